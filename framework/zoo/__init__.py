"""Finished sets that come with the package, ``NAME.safetensors`` with a card ``NAME.json`` each."""
