"""How the real loss is differentiated through a window of inner steps: replay, low-rank factors."""
