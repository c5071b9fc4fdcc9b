"""Boosting: a set is learnt block by block, so that the first blocks are a good set of their own size.

Boost-DD (Feng et al. 2024, RaT-BPTT, arXiv 2311.07025, section 5): subsets of a distilled set do much worse than sets
distilled at their size. So while block i is learnt, networks train on blocks 1 .. i together, blocks before i learn at
beta times the learning rate (0: frozen), and in the end every prefix of blocks is a set. What the paper leaves open is
decided here:

* The rate is scaled, not the gradient: Adam does not see a gradient's scale. Old blocks keep their moments, a new one
  starts without.
* Each block is an ordinary run of the wrapped method on a set that has grown: its epochs count from 0, a policy's stage
  and counters and the clip's average start anew, and all that it draws comes from a seed of its own.
* A finished block is as its last step left it. So the first j blocks of a run with beta 0 are, bit for bit, what a run
  with j blocks in all ends with.

The mixed partials towards frozen images are computed all the same, as they come with the product with the Hessian for
little more than the first layer's share, and are then dropped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from framework.outer.blocks import Blocks
from framework.outer.method import LearntSet, Method, Proposal

BLOCKWISE = ("images", "labels")
"""What of a set has a part in every block."""


class Growing(LearntSet, Protocol):
    """A set that grows block by block; ``load_state_dict`` gives it the blocks that it had."""

    blocks: Blocks | None

    def grow(self, images: Tensor, labels: Tensor) -> None:
        """Add a block (K * b, ...), sorted by class, behind the others; from now on it is the one that is learnt."""


class Boosting:
    """Learns a set's blocks one after the other by another method; see ``method.Method``.

    Args:
        set: what is learnt; it has the first block.
        epochs: of each block.
        start: images (K * b, C, H, W) and labels (K * b, K) with which a block starts, by its number from 0 on.
        make: the method for a block, with the set as it then is.
    """

    def __init__(
        self,
        set: Growing,
        epochs: Sequence[int],
        start: Callable[[int], tuple[Tensor, Tensor]],
        make: Callable[[int], Method],
    ) -> None:
        assert set.blocks is not None, "it is to grow"
        self.set, self.blocks = set, set.blocks
        self.epochs, self.start, self.make = tuple(epochs), start, make
        self.block = 0  # which is learnt
        self.method = make(0)

    @property
    def steps_per_epoch(self) -> int:
        """See ``Method``: the same for all blocks."""
        return self.method.steps_per_epoch

    @property
    def remedy(self) -> str:
        """See ``Method``."""
        return self.method.remedy

    def place(self, epoch: int) -> tuple[int, int]:
        """The block that an epoch of the run belongs to, and the epoch's number among that block's."""
        for block, count in enumerate(self.epochs):
            if epoch < count:
                return block, epoch
            epoch -= count
        raise AssertionError("the run is over")

    def proposals(self, epoch: int, first: int) -> Iterator[Proposal]:
        """See ``Method``; with a block's first epoch the set grows."""
        block, within = self.place(epoch)
        while self.block < block:
            self._next_block()
        for proposal in self.method.proposals(within, first):
            grads = {name: self._learnt_alone(name, gradient) for name, gradient in proposal.grads.items()}
            yield replace(proposal, grads=grads, facts=proposal.facts | self._facts)

    def _next_block(self) -> None:
        self.block += 1
        self.set.grow(*self.start(self.block))
        self.method = self.make(self.block)

    def _learnt_alone(self, name: str, gradient: Tensor) -> Tensor:
        """Without frozen blocks, which must not count in the clip's norm."""
        return self.blocks.learnt_alone(gradient) if name in BLOCKWISE else gradient

    @property
    def _facts(self) -> dict[str, Any]:
        return {"block": self.block + 1}

    def applied(self, norm: float) -> None:
        """See ``Method``."""
        self.method.applied(norm)

    def close_epoch(self, loss: float, accuracy: float) -> dict[str, Any]:
        """See ``Method``: the wrapped method's, and which block was learnt."""
        return self.method.close_epoch(loss, accuracy) | self._facts

    def curves(self) -> dict[str, list[float]]:
        """See ``Method``."""
        return self.method.curves()

    def state_dict(self) -> dict[str, Any]:
        """See ``Method``: the block, and the wrapped method's state."""
        return {"block": self.block, "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Method``; the set has been restored before."""
        self.block = state["block"]
        if self.blocks.count(self.set.images) != self.block + 1:
            raise ValueError(f"block {self.block + 1} of a set of {self.blocks.count(self.set.images)}")
        self.method = self.make(self.block)
        self.method.load_state_dict(state["method"])
