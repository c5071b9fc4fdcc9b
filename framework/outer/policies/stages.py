"""Threshold-guided stages: early, middle and late in a run, told by accuracy on real batches."""

from statistics import fmean
from typing import Any

STAGES = ("early", "middle", "late")
EARLY, MIDDLE, LATE = range(3)


class Stages:
    """Moves to the next stage when the accuracy on real batches has stopped rising (AT-BPTT, arXiv 2510.04838).

    The two rules that say when it has, for a stage with a gain and a patience:

    * ``consecutive`` (the paper and the public code): so many epochs in a row have each gained less over the epoch
      before. An epoch's accuracy is taken after its own window, so this compares windows as much as epochs.
    * ``mean``: the mean of the last so many epochs is less than that gain above the mean of as many epochs before
      them, all of this stage.

    Args:
        gains: points of accuracy that count as progress, early and middle.
        patience: epochs, early and middle; at least 1 each.
        plateau: ``consecutive`` or ``mean``.
    """

    def __init__(
        self,
        gains: tuple[float, float] = (1.5, 1.0),
        patience: tuple[int, int] = (1, 1),
        plateau: str = "consecutive",
    ) -> None:
        assert min(patience) >= 1, "validated with the flags"
        self.gains, self.patience, self.plateau = gains, patience, plateau
        self.now = 0  # index into STAGES
        self.stale = 0  # epochs in a row without progress; counted by both rules, read by ``consecutive``
        self.recent: list[float] = []  # accuracies that the rule still needs, the oldest first

    def observe(self, accuracy: float) -> None:
        """Take note of an epoch's mean accuracy (a fraction)."""
        if self.now == LATE:
            return
        gain, patience = self.gains[self.now], self.patience[self.now]
        if self.recent:
            self.stale = self.stale + 1 if 100 * (accuracy - self.recent[-1]) < gain else 0
        self.recent = [*self.recent, accuracy][-2 * patience :]
        if self.plateau == "mean":
            over = len(self.recent) == 2 * patience and self._gained(patience) < gain
        else:
            over = self.stale >= patience
        if over:
            self.now, self.stale = self.now + 1, 0
            # The first epoch of the new stage is still compared with the last one of the old, but no mean is.
            self.recent = self.recent[-1:] if self.plateau == "consecutive" else []

    def _gained(self, patience: int) -> float:
        """Points between the means of the recent half and of the half before it."""
        return 100 * (fmean(self.recent[patience:]) - fmean(self.recent[:patience]))

    def state(self) -> dict[str, str | int | float]:
        """Stage (by name, and by number for TensorBoard), and epochs in a row without progress."""
        return {"stage": STAGES[self.now], "stage_number": self.now + 1, "stale_epochs": self.stale}

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as plain values."""
        return {"now": self.now, "stale": self.stale, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.now, self.stale, self.recent = state["now"], state["stale"], list(state["recent"])
