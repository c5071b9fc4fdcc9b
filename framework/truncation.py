"""Truncation policies: where the differentiated window lies and how long it is.

A policy is a small state machine. ``choose`` returns an immutable ``Window``; ``observe`` is told how
the epoch went; ``state_dict`` holds all that changes. The base window length W is never changed.
Only rank 0 asks a policy; the other ranks are told.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch

from framework.rng import generator


class Window(NamedTuple):
    """Inner steps ``start`` to ``start + length - 1`` are differentiated, those before are not."""

    start: int
    length: int


class Policy(ABC):
    """Chooses the window of each epoch (or of each outer step, where ``every_step``).

    Args:
        steps: T, the length of a whole trajectory.
        window: W, the base length of the window; 1 <= W <= T.
        minimum: first step at which the window may start.
        seed: of the policy's own random stream.
    """

    name: ClassVar[str]
    every_step: bool = False

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0) -> None:
        assert 1 <= window <= steps and 0 <= minimum <= steps - window, "validated with the flags"
        self.steps, self.window, self.minimum, self.seed = steps, window, minimum, seed
        self.draws = 0

    @abstractmethod
    def choose(self) -> Window:
        """The next window, with minimum <= start and start + length <= T."""

    def observe(self, loss: float, accuracy: float) -> None:  # noqa: B027  (most policies do not care)
        """Take note of an epoch's mean loss and accuracy (a fraction) on real batches."""

    def _generator(self) -> torch.Generator:
        """A fresh stream for each draw, so that the number of draws is all there is to save."""
        self.draws += 1
        return generator(self.seed, "policy", self.name, self.draws)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run, as plain numbers."""
        return {"draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        for key, value in state.items():
            setattr(self, key, value)


class BPTT(Policy):
    """The whole trajectory: full back-propagation through time."""

    name = "bptt"

    def choose(self) -> Window:
        """0 .. T."""
        return Window(0, self.steps)


class TruncatedBPTT(Policy):
    """The first W steps; the trajectory ends there."""

    name = "t-bptt"

    def choose(self) -> Window:
        """0 .. W."""
        return Window(0, self.window)


class Fixed(Policy):
    """The last W steps of the trajectory (RaT-BPTT's ``--cctype 0``)."""

    name = "fixed"

    def choose(self) -> Window:
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

    def choose(self) -> Window:
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


class RaTBPTT(Policy):
    """A window of W steps at a uniformly random place (RaT-BPTT, Feng et al. ICLR 2024, section 3)."""

    name = "rat-bptt"

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0, *, every_step: bool = False) -> None:
        super().__init__(steps, window, minimum, seed)
        self.every_step = every_step

    def choose(self) -> Window:
        """Uniform over minimum .. T-W, both included."""
        last = self.steps - self.window
        return Window(int(torch.randint(self.minimum, last + 1, (), generator=self._generator())), self.window)


def make_policy(
    name: str, *, steps: int, window: int, minimum: int, seed: int, complete_random: bool = False
) -> Policy:
    """The policy called ``name``; the arguments are those of ``Policy`` and ``RaTBPTT``."""
    if name == RaTBPTT.name:
        return RaTBPTT(steps, window, minimum, seed, every_step=complete_random)
    if name == Forward.name:
        return Forward(steps, window, minimum, seed)
    if name == BPTT.name:
        return BPTT(steps, steps, 0, seed)
    simple: dict[str, type[Policy]] = {policy.name: policy for policy in (TruncatedBPTT, Fixed)}
    return simple[name](steps, window, 0, seed)
