"""The arithmetic of a window's step, counted, against what the derivatives need."""

import pytest

from floor import per_step

IMAGES, WIDTH = 10, 8


@pytest.mark.parametrize(("engine", "passes", "without_images"), [("higher", 9, 3), ("replay", 12, 4)])
def test_a_step_takes_no_more_arithmetic_than_its_derivatives_need(
    engine: str, passes: int, without_images: int
) -> None:
    """In units of a forward pass.

    A step's gradient takes 3; its second derivatives 4 for the two products of each layer's bilinear map, and 2 to go
    back through the forward pass. Replay takes the gradient again. Towards the images, the first layer's derivative is
    needed only where it is contracted with the cotangent.
    """
    first, second, third = (2 * 9 * c * WIDTH * side**2 for c, side in ((3, 32), (WIDTH, 16), (WIDTH, 8)))
    linear = 2 * (WIDTH * 4**2) * 10
    counted = per_step(engine, IMAGES, WIDTH, [1.0], 1.0)["flops"]
    assert counted == IMAGES * (passes * (first + second + third + linear) - without_images * first)
