"""From flags to objects: everything a run is made of. Nobody below knows flags."""
