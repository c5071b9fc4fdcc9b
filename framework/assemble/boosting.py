"""From flags to objects: boosting, whatever the method that it wraps."""

from collections.abc import Callable

from torch import Tensor

from framework.config.distilling import Distilling
from framework.outer.blocks import Blocks
from framework.outer.boosting import Boosting, Growing
from framework.outer.method import Method


def blocks_of(c: Distilling, num_classes: int) -> Blocks | None:
    """How the set grows; None: it does not."""
    return Blocks(num_classes, c.boost_block, c.boost_beta) if c.boost_block else None


def boosted(
    c: Distilling,
    learnt: Growing,
    start: Callable[[int], tuple[Tensor, Tensor]],
    make: Callable[[int], Method],
) -> Method:
    """The method for all blocks, or where the run is not boosted that for the one there is; see ``Boosting``."""
    return Boosting(learnt, c.block_epochs, start, make) if c.boost_block else make(0)
