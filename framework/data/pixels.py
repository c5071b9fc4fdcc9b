"""What numbers of pixels mean: the value of white, and how floating-point pixels become 8 bits."""

import torch

HALF_LEVEL = 0.5 / 255
"""Of white: what rounding may add to a pixel."""


def white_of(low: float, high: float, *, floating: bool, whole: bool) -> int | None:
    """The value of white, 1 or 255, of images whose pixels span ``low`` to ``high``; None where it could be either.

    Half a level beyond 1 is rounding.

    Args:
        low, high: the smallest and the largest value.
        floating: they are of a floating-point type.
        whole: all of them are whole numbers.
    """
    if floating and high <= 1 + HALF_LEVEL:
        return 1
    return 255 if high >= 16 or (high >= 2 and whole) else None


def in_range(low: float, high: float, white: int) -> bool:
    """Whether pixels that span ``low`` to ``high`` are within 0..white, but for rounding of half a level."""
    return low >= -HALF_LEVEL * white and high <= (1 + HALF_LEVEL) * white


def eight_bits(pixels: torch.Tensor, white: int) -> torch.Tensor:
    """Pixels of 0..white as uint8 of 0..255, rounded."""
    return (pixels * (255 / white)).round().clamp(0, 255).to(torch.uint8)
