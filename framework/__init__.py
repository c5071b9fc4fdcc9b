"""Dataset distillation by truncated back-propagation through time (RaT-BPTT, AT-BPTT)."""

__version__ = "0.1.0"
