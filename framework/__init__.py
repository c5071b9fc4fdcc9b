"""Dataset distillation by truncated back-propagation through time (RaT-BPTT, AT-BPTT)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.distilled.load import load_distilled

__all__ = ["load_distilled"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``load_distilled`` when it is asked for: ``main.py --help`` should not wait for the libraries."""
    if name == "load_distilled":
        from framework.distilled.load import load_distilled

        return load_distilled
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
