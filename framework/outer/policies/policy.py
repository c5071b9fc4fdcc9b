"""Truncation policies: where the differentiated window lies and how long it is.

A policy is a small state machine. ``choose`` returns an immutable ``Window``; ``observe`` is told how
the epoch went; ``state_dict`` holds all that changes. The base window length W is never changed.
Only rank 0 asks a policy; the other ranks are told.

Policies that look at the inner loop's gradients are given ``probe``, a function that trains a fresh
network for T steps on the current synthetic set and returns the T gradient norms. They call it only
when they need it, since it costs as much as a prefix of T steps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch

from framework.errors import UserError
from framework.outer.importance import Vector
from framework.outer.policies.registry import Settings
from framework.rng import generator

Probe = Callable[[], Sequence[float]]


def no_probe() -> Sequence[float]:
    """For policies that never look at gradients."""
    raise AssertionError("this policy needs a probe")


def checked_norms(norms: Sequence[float], steps: int) -> Vector:
    """A probe's gradient norms (T,) of all ``steps``.

    Raises:
        UserError: one is not finite; names the inner step.
    """
    for step, norm in enumerate(norms):
        if not math.isfinite(norm):
            raise UserError(f"the probe's gradient norm is {norm} at inner step {step} of {steps}: lower --inner_lr")
    assert len(norms) == steps
    return np.asarray(norms, dtype=np.float64)


def variations(norms: Sequence[float]) -> Vector:
    """v_t = |n_t - n_{t-1}| (T,) of a probe's norms, v_0 = 0."""
    n = np.asarray(norms)
    v: Vector = np.abs(np.diff(n, prepend=n[0]))
    return v


def adapted(window: int, radius: int, eta: float) -> int:
    """W - r + 2 r eta, rounded, halves up: the length of a window for a weight in 0 .. 1."""
    return math.floor(window - radius + 2 * radius * eta + 0.5)


def sample(chances: Vector, gen: torch.Generator) -> int:
    """A step t with the probability ``chances[t]``, which sum to 1 but for rounding."""
    draw = float(torch.rand((), generator=gen, dtype=torch.float64))
    # The last edge is 1 up to rounding; searching the others only can never return T.
    return int(np.searchsorted(np.cumsum(chances)[:-1], draw, side="right"))


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
    probes_first_network: ClassVar[bool] = False
    """Whether the probe starts from the initial weights of the step's first network, instead of weights of its own."""
    weight: float = 1.0
    """What the meta-gradient of the last window is multiplied by."""
    drift: float | None = None
    """How far gradient norms have moved since the last choice, relatively; None where it is not measured."""

    slot: int | None = None
    """The kept networks that take the last window, by number; None: fresh networks do."""

    certain: int | None = None
    growth: float = 1.0
    """See ``Lags``, of the last window; where ``certain`` is None, contributions by lag are not asked for."""

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0) -> None:
        assert 1 <= window <= steps and 0 <= minimum <= steps - window, "validated with the flags"
        self.steps, self.window, self.minimum, self.seed = steps, window, minimum, seed
        self.draws = 0

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """The policy with the settings that it reads: here T and W."""
        return cls(settings.steps, settings.window, **options)

    @abstractmethod
    def choose(self, probe: Probe = no_probe) -> Window:
        """The next window, with minimum <= start and start + length <= T."""

    def state(self) -> dict[str, str | int | float]:
        """Where the policy stands, for the metrics of every epoch."""
        return {}

    def curves(self) -> dict[str, list[float]]:
        """What the last choice was made from, over the T steps, for a plot; empty without a probe."""
        return {}

    def learn(self, norm: float) -> None:  # noqa: B027  (most policies do not care)
        """Take note of the norm of an applied step's meta-gradient, over all ranks and before ``weight``."""

    def learn_lags(self, norms: Sequence[float]) -> None:  # noqa: B027  (most policies do not ask for them)
        """Take note of the norm of each lag's contribution to an applied step's meta-gradient (M,), counted once.

        Root mean squares over networks and ranks, of all that is learnt.
        """

    def forget(self, slot: int) -> None:  # noqa: B027  (most policies keep no networks)
        """Take note that the networks of a slot are lost."""

    def observe(self, loss: float, accuracy: float) -> None:  # noqa: B027  (most policies do not care)
        """Take note of an epoch's mean loss and accuracy (a fraction) on real batches."""

    def _generator(self) -> torch.Generator:
        """A fresh stream for each draw, so that the number of draws is all there is to save."""
        self.draws += 1
        return generator(self.seed, "policy", self.name, self.draws)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run, as plain numbers."""
        return {"draws": self.draws, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises:
            ValueError: it is another policy's, or of another version.
        """
        if difference := sorted(state.keys() ^ self.state_dict().keys()):
            raise ValueError(f"the policy's state and {self.name}'s differ in {', '.join(difference)}")
        for key, value in state.items():
            part = getattr(self, key)
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                setattr(self, key, value)
