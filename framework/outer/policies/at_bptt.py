"""AT-BPTT: position and length from gradient norms, by stage of training."""

import math
from typing import Any, Self

import numpy as np
import torch
from scipy.stats import rankdata

from framework.errors import UserError
from framework.outer.policies.policy import Policy, Probe, Vector, Window, no_probe
from framework.outer.policies.registry import Settings


def _relative_weight(values: Vector, tau: float) -> Vector:
    """exp(values / tau) over its largest, for any finite values."""
    with np.errstate(over="ignore"):  # a difference that overflows is -inf, and its weight rightly 0
        weight: Vector = np.exp((values - values.max()) / tau)
    return weight


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

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(
            s.steps, s.window, s.minimum, s.seed, radius=s.radius, tau=s.tau, weight=s.weight, rule=s.rule,
            gains=s.gains, patience=s.patience, probe_every=s.probe_every, **options,
        )  # fmt: skip

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
