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
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from framework.config import PATIENCE, Config, UserError
from framework.rng import generator

Probe = Callable[[], Sequence[float]]
Vector = NDArray[np.float64]


def _relative_weight(values: Vector, tau: float) -> Vector:
    """exp(values / tau) over its largest, for any finite values."""
    with np.errstate(over="ignore"):  # a difference that overflows is -inf, and its weight rightly 0
        weight: Vector = np.exp((values - values.max()) / tau)
    return weight


def no_probe() -> Sequence[float]:
    """For policies that never look at gradients."""
    raise AssertionError("this policy needs a probe")


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
    def choose(self, probe: Probe = no_probe) -> Window:
        """The next window, with minimum <= start and start + length <= T."""

    def state(self) -> dict[str, str | int]:
        """Where the policy stands, for the metrics of every epoch."""
        return {}

    def curves(self) -> dict[str, list[float]]:
        """What the last choice was made from, over the T steps, for a plot; empty without a probe."""
        return {}

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


class RaTBPTT(Policy):
    """A window of W steps at a uniformly random place (RaT-BPTT, Feng et al. ICLR 2024, section 3)."""

    name = "rat-bptt"

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0, *, every_step: bool = False) -> None:
        super().__init__(steps, window, minimum, seed)
        self.every_step = every_step

    def choose(self, probe: Probe = no_probe) -> Window:
        """Uniform over minimum .. T-W, both included."""
        last = self.steps - self.window
        return Window(int(torch.randint(self.minimum, last + 1, (), generator=self._generator())), self.window)


STAGES = ("early", "middle", "late")


class ATBPTT(Policy):
    """AT-BPTT (arXiv 2510.04838): position and length from gradient norms, by stage of training.

    With n_t the probe's gradient norms and v_t = |n_t - n_{t-1}|, v_0 = 0:

    * Dynamic truncation position: t ~ exp(n_t / tau) early, uniform in the middle, exp(-n_t / tau) late.
    * Adaptive window size: M = round(W - d + 2 d eta(t)), eta(t) in [0, 1] by the rank of v_t (the public
      code's reading) or by exp(v_t / tau) over its largest value (the paper's).
    * Threshold-guided stages: early becomes middle after ``patience[0]`` epochs in a row in which the mean
      accuracy on real batches gained less than ``gains[0]`` points over the epoch before; middle becomes
      late likewise with the second pair.

    t is the first differentiated step, clipped into minimum .. T-M, and M into 1 .. T-minimum.

    Args:
        steps, window, minimum, seed: see ``Policy``.
        radius: d.
        tau: temperature of positions and of the softmax weight; above 0.
        weight: ``rank`` or ``softmax``.
        rule: ``adaptive`` (the paper's: eta in every stage) or ``public`` (W+d in the middle, W-d late).
        gains: points of accuracy that count as progress, early and middle.
        patience: epochs without progress, early and middle; at least 1 each.
        probe_every: epochs for which one probe is used.
        move: choose positions by norms; otherwise uniformly (for ablation).
        resize: choose lengths by variation; otherwise W (for ablation).
    """

    name = "at-bptt"

    def __init__(
        self,
        steps: int,
        window: int,
        minimum: int = 0,
        seed: int = 0,
        *,
        radius: int,
        tau: float = 1.0,
        weight: str = "rank",
        rule: str = "adaptive",
        gains: tuple[float, float] = (1.5, 1.0),
        patience: tuple[int, int] = (1, 1),
        probe_every: int = 1,
        move: bool = True,
        resize: bool = True,
    ) -> None:
        super().__init__(steps, window, minimum, seed)
        assert radius >= 0, "validated with the flags"
        assert min(patience) >= 1, "validated with the flags"
        self.radius, self.tau, self.weight, self.rule = radius, tau, weight, rule
        self.gains, self.patience, self.probe_every = gains, patience, probe_every
        self.move, self.resize = move, resize
        self.stage = 0  # index into STAGES
        self.stale = 0  # epochs in a row without progress
        self.accuracy: float | None = None  # of the epoch before
        self.norms: list[float] | None = None  # of the last probe
        self.norms_age = 0  # epochs for which they were used

    def choose(self, probe: Probe = no_probe) -> Window:
        """Draw the step t, then the length for it, then fit both into the trajectory.

        Raises:
            UserError: a gradient norm is not finite; names the inner step.
        """
        if not (self._uniform and self._fixed):
            self._refresh(probe)
        weights = self.probabilities()
        draw = float(torch.rand((), generator=self._generator(), dtype=torch.float64))
        # The last edge is 1 up to rounding; searching the others only can never return T.
        t = int(np.searchsorted(np.cumsum(weights)[:-1], draw, side="right"))
        length = min(self._length(t), self.steps - self.minimum)
        return Window(min(max(t, self.minimum), self.steps - length), length)

    @property
    def _uniform(self) -> bool:
        """Whether positions are drawn without looking at norms."""
        return not self.move or self.stage == 1

    @property
    def _fixed(self) -> bool:
        """Whether lengths are set without looking at variations."""
        return not self.resize or (self.rule == "public" and self.stage > 0)

    def _refresh(self, probe: Probe) -> None:
        if self.norms is None or self.norms_age >= self.probe_every:
            norms = list(map(float, probe()))
            for step, norm in enumerate(norms):
                if not math.isfinite(norm):
                    raise UserError(
                        f"the probe's gradient norm is {norm} at inner step {step} of {self.steps}: lower --inner_lr"
                    )
            assert len(norms) == self.steps
            self.norms, self.norms_age = norms, 0
        self.norms_age += 1

    def probabilities(self) -> Vector:
        """P(t) of the current stage (T,), from the last probe's norms (paper, dynamic truncation position)."""
        if self._uniform:
            return np.full(self.steps, 1 / self.steps)
        sign = 1.0 if self.stage == 0 else -1.0
        weight = _relative_weight(sign * np.asarray(self.norms), self.tau)
        share: Vector = weight / weight.sum()
        return share

    def variations(self) -> Vector:
        """v_t (T,), from the last probe's norms."""
        n = np.asarray(self.norms)
        v: Vector = np.abs(np.diff(n, prepend=n[0]))
        return v

    def eta(self) -> Vector:
        """The window weight in [0, 1] of every step (T,); the largest variation gets 1."""
        v = self.variations()
        if self.weight == "softmax":
            return _relative_weight(v, self.tau)
        rank: Vector = rankdata(v, method="min") - 1.0
        return rank / rank.max() if rank.max() > 0 else np.ones_like(v)

    def _length(self, t: int) -> int:
        if not self.resize:
            return self.window
        if self._fixed:
            length = self.window + (self.radius if self.stage == 1 else -self.radius)
        else:
            length = math.floor(self.window - self.radius + 2 * self.radius * float(self.eta()[t]) + 0.5)
        return min(max(length, 1), self.steps)

    def observe(self, loss: float, accuracy: float) -> None:
        """Count epochs without progress and change the stage when there were enough of them."""
        before, self.accuracy = self.accuracy, accuracy
        if before is None or self.stage == 2:
            return
        self.stale = self.stale + 1 if 100 * (accuracy - before) < self.gains[self.stage] else 0
        if self.stale >= self.patience[self.stage]:
            self.stage, self.stale = self.stage + 1, 0

    def state(self) -> dict[str, str | int]:
        """Stage (by name, and by number for TensorBoard), and epochs in a row without progress."""
        return {"stage": STAGES[self.stage], "stage_number": self.stage + 1, "stale_epochs": self.stale}

    def curves(self) -> dict[str, list[float]]:
        """Norms and variations of the last probe, and P(t) of the current stage."""
        if self.norms is None:
            return {}
        p, v = self.probabilities(), self.variations()
        return {"gradient norm": self.norms, "variation": v.tolist(), "probability": p.tolist()}

    def state_dict(self) -> dict[str, Any]:
        """Stage, counter, the epoch before's accuracy, the last probe."""
        own = ("stage", "stale", "accuracy", "norms", "norms_age")
        return {**super().state_dict(), **{name: getattr(self, name) for name in own}}


def resolve_patience(text: str, steps: int, epochs: int) -> int:
    """``--early_patience`` and ``--middle_patience`` in whole epochs, rounded up, at least 1.

    Args:
        text: ``30`` (epochs), ``0.15T`` (times the trajectory's length) or ``0.05E`` (of all epochs).
        steps: T.
        epochs: E.

    Raises:
        ValueError: another form.
    """
    if not PATIENCE.fullmatch(text):
        raise ValueError(text)
    unit = {"T": steps, "E": epochs}.get(text[-1], 1)
    # 0.07 * 100 is 7.000000000000001 in floating point, and must not become 8.
    return max(1, math.ceil(round(float(text.rstrip("TE")) * unit, 9)))


def make_policy(config: Config) -> Policy:
    """The truncation policy that the flags ask for."""
    c = config
    place = (c.totwindow, c.window, c.minwindow, c.seed)
    match c.policy:
        case "bptt":
            return BPTT(c.totwindow, c.totwindow)
        case "t-bptt":
            return TruncatedBPTT(c.totwindow, c.window)
        case "fixed":
            return Fixed(c.totwindow, c.window)
        case "forward":
            return Forward(*place)
        case "rat-bptt":
            return RaTBPTT(*place, every_step=c.complete_random)
        case "at-bptt" | "at-bptt-positions" | "at-bptt-windows":
            early, middle = (
                resolve_patience(text, c.totwindow, c.epochs) for text in (c.early_patience, c.middle_patience)
            )
            return ATBPTT(
                *place,
                radius=c.d or 0,
                tau=c.tau,
                weight=c.window_weight,
                rule=c.window_rule,
                gains=(c.early_gain, c.middle_gain),
                patience=(early, middle),
                probe_every=c.probe_every,
                move=c.policy != "at-bptt-windows",
                resize=c.policy != "at-bptt-positions",
            )
        case unknown:
            raise AssertionError(unknown)
