"""The seam between methods and the worker: a method proposes, the worker applies.

A method owns all that its gradients are made of: real batches, windows or experts, networks, engines. The worker
(``framework.base``) averages proposals over the ranks, applies or skips them, evaluates, records and saves.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor

from framework.outer.blocks import prefix_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal:
    """What one outer step of one rank proposes.

    Args:
        grads: the meta-gradient towards each learnt tensor, by its name (``images``, ``labels`` ...), in its shape.
        loss: (), the outer loss, on the device.
        accuracy: (), a fraction, where there is one.
        mask: broadcast to the images, bool: pixels that may move; None: all of them.
        limit: the step is passed over where the loss, averaged over the ranks, is above it.
        clip: the number of the clip that it is cut by, where gradients of several sizes have one each.
        facts: for the metrics. Tensors () are averaged over the ranks, and the step is skipped where they are not
            finite; anything else is recorded as rank 0 has it.
    """

    grads: dict[str, Tensor]
    loss: Tensor
    accuracy: Tensor | None = None
    mask: Tensor | None = None
    limit: float = math.inf
    clip: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class Rejected(Exception):
    """An update that cannot be made; the set is as it was. str() says why."""


@dataclass(frozen=True)
class Snapshot:
    """A synthetic set as it was at some time, on the CPU; never an alias of the live one."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N, K) class weights
    step_size: float | None = None  # learning rate that was learnt with it

    def prefix(self, num_classes: int, per_class: int) -> "Snapshot":
        """The first ``per_class`` images of each of K classes alone, of a set that is sorted by class."""
        rows = prefix_rows(num_classes, len(self.images), per_class)
        return replace(self, images=self.images[rows], labels=self.labels[rows])


class LearntSet(Protocol):
    """What a run learns: images, perhaps labels and more, with the optimiser that updates them."""

    images: Tensor  # (N, C, H, W)

    @property
    def step_sizes(self) -> Sequence[float]:
        """Of a boosted set, the learnt step size when each block but the last was finished; empty where none is."""

    @property
    def learnt(self) -> dict[str, Tensor]:
        """The tensors that are learnt, by their names in ``Proposal.grads``."""

    def update(self, grads: dict[str, Tensor], mask: Tensor | None = None, clip: int = 0) -> dict[str, Tensor]:
        """Take one outer step.

        Args:
            grads: towards each tensor of ``learnt``.
            mask, clip: see ``Proposal``.

        Returns:
            Facts () of the step, for the metrics.

        Raises:
            Rejected: the step would leave the set unusable; nothing has changed.
        """

    def snapshots(self) -> dict[str, Snapshot]:
        """The set in each form that is to be judged, by its name: one without a name, or several."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class Peers(Protocol):
    """The ranks of a run, as far as a method needs them; see ``run.distributed.Comm``."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which decides."""

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""


class Method(Protocol):
    """A way to distil. Its numbers must depend on its state and the arguments alone, so that a run resumes exactly."""

    @property
    def steps_per_epoch(self) -> int:
        """Outer steps of one epoch."""

    @property
    def remedy(self) -> str:
        """What to change where steps are not finite, as an imperative that names flags."""

    def proposals(self, epoch: int, first: int) -> Iterator[Proposal]:
        """The rest of an epoch's outer steps, each made from the synthetic set as it is when it is asked for.

        Args:
            epoch: its number.
            first: steps of the epoch that were taken before.
        """

    def applied(self, norm: float) -> None:
        """Take note that the last proposal was applied.

        Args:
            norm: of its gradients together, averaged over the ranks.
        """

    def close_epoch(self, loss: float, accuracy: float) -> dict[str, Any]:
        """Take note of an epoch that is over.

        Args:
            loss, accuracy: means over its applied steps; NaN where there was none.

        Returns:
            Facts of the epoch for the metrics.
        """

    def curves(self) -> dict[str, list[float]]:
        """What the last choice was made from, over inner steps, for a plot; empty where there is nothing to show."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run, as plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises:
            ValueError: it is another method's, or of another version.
        """
