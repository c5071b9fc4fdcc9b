"""Where a run stands: its counters and what they add up."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from framework.errors import UserError
from framework.outer.method import Snapshot
from framework.records import Entry, read_record


class Diverged(UserError):
    """Too many steps in a row could not be applied; the synthetic set is as it was before them."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The selected snapshot: the evaluation that chose it, and the set as it was then, on the CPU."""

    epoch: int
    split: str
    best_length: int
    accuracy: float
    images: Tensor
    labels: Tensor
    form: str = ""
    step_size: float | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The set."""
        return Snapshot(self.images, self.labels, self.step_size)

    @property
    def facts(self) -> dict[str, Any]:
        """All but the tensors; form and step size where there are any."""
        names = ("epoch", "split", "best_length", "accuracy", *(("form", "step_size") if self.form else ()))
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass
class Progress:
    """Where a run stands; with the synthetic set and the method's state, all there is to resume.

    No random state is here: every stream is derived from the seed and the counters below.
    """

    epoch: int
    step_in_epoch: int = 0
    step: int = 0  # outer steps since the start of the run
    loss_sum: float = 0.0  # over the epoch's applied steps so far
    accuracy_sum: float = 0.0
    skipped: int = 0  # steps of the epoch so far that could not be applied: not finite, or rejected by the set
    skipped_in_row: int = 0
    skipped_in_run: int = 0
    seconds: float = 0.0  # all attempts together
    cpu_seconds: float = 0.0  # of rank 0; see ``Clock``
    records: int = 0  # lines of metrics.jsonl
    history: list[Entry] = dataclasses.field(default_factory=list)
    best: Best | None = None

    @classmethod
    def restored(cls, values: dict[str, Any], source: Path) -> "Progress":
        """What ``dataclasses.asdict`` made of it.

        Raises:
            UserError: an evaluation is damaged.
            TypeError: something else is missing.
        """
        history = [read_record(Entry, entry, source) for entry in values["history"]]
        best = None if values["best"] is None else Best(**values["best"])
        return cls(**{**values, "history": history, "best": best})

    def applied(self, loss: float, accuracy: float) -> None:
        """Count a step that changed the set."""
        self.loss_sum += loss
        self.accuracy_sum += accuracy
        self.skipped_in_row = 0
        self._count()

    def skip(self) -> None:
        """Count a step that could not be applied; the next one draws another network and other batches."""
        self.skipped += 1
        self.skipped_in_row += 1
        self.skipped_in_run += 1
        self._count()

    def check(self, limit: int, reason: str, remedy: str) -> None:
        """Raise ``Diverged`` where ``limit`` steps in a row were skipped; a resumed run may try again.

        Args:
            limit: ``--max_bad_steps``.
            reason: why the last one was.
            remedy: see ``Method``.
        """
        if self.skipped_in_row >= limit:
            self.skipped_in_row = 0
            raise Diverged(
                f"{limit} outer steps in a row could not be applied, the last of them step {self.step}: {reason}. "
                f"Try to {remedy}; or raise --max_bad_steps. The set before them is saved"
            )

    def _count(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def means(self) -> tuple[float, float]:
        """Loss and accuracy over the epoch's applied steps; NaN where there was none."""
        steps = self.step_in_epoch - self.skipped
        return (self.loss_sum / steps, self.accuracy_sum / steps) if steps else (math.nan, math.nan)

    @property
    def fruitless(self) -> int:
        """Evaluations in a row, up to the last, in which no form of the set was better than the best before."""
        return 0 if self.best is None else len({entry.epoch for entry in self.history if entry.epoch > self.best.epoch})

    def gave_up(self, patience: int) -> bool:
        """Whether so many evaluations were fruitless that the run is to end; never with a ``patience`` of 0."""
        return 0 < patience <= self.fruitless

    def next_epoch(self) -> None:
        """Start the next epoch's counters."""
        self.epoch += 1
        self.step_in_epoch, self.loss_sum, self.accuracy_sum, self.skipped = 0, 0.0, 0.0, 0
