"""Policies that never look at gradients, in a fixed order: BPTT, T-BPTT, a fixed and a forward-moving window."""

from typing import Any, Self

from framework.outer.policies.policy import Policy, Probe, Window, no_probe
from framework.outer.policies.registry import Settings


class BPTT(Policy):
    """The whole trajectory: full back-propagation through time."""

    name = "bptt"

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``; W is T."""
        return cls(settings.steps, settings.steps, **options)

    def choose(self, probe: Probe = no_probe) -> Window:
        """0 .. T."""
        return Window(0, self.steps)


class TruncatedBPTT(Policy):
    """The first W steps; the trajectory ends there."""

    name = "t-bptt"

    def choose(self, probe: Probe = no_probe) -> Window:
        """0 .. W."""
        return Window(0, self.window)


class Fixed(Policy):
    """The last W steps of the trajectory (RaT-BPTT's ``--cctype 0``)."""

    name = "fixed"

    def choose(self, probe: Probe = no_probe) -> Window:
        """T-W .. T."""
        return Window(self.steps - self.window, self.window)


class Forward(Policy):
    """Starts at ``minimum`` and moves on by W when the loss has stopped improving (``--cctype 1``)."""

    name = "forward"
    PATIENCE = 60  # epochs without a better loss (RaT-BPTT's public code)

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0) -> None:
        super().__init__(steps, window, minimum, seed)
        self.start = minimum
        self.best_loss: float | None = None
        self.stale = 0

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        return cls(settings.steps, settings.window, settings.minimum, settings.seed, **options)

    def choose(self, probe: Probe = no_probe) -> Window:
        """The current position."""
        return Window(self.start, self.window)

    def observe(self, loss: float, accuracy: float) -> None:
        """Move after ``PATIENCE`` epochs without a better loss at this position.

        Losses at different positions are not comparable, so the best one is forgotten on moving.
        """
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.stale = loss, 0
            return
        self.stale += 1
        if self.stale >= self.PATIENCE:
            self.start = min(self.start + self.window, self.steps - self.window)
            self.best_loss, self.stale = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Position, best loss there, epochs since."""
        return {**super().state_dict(), "start": self.start, "best_loss": self.best_loss, "stale": self.stale}
