"""AT-BPTT: position and length from gradient norms, by stage of training."""

from typing import Any, Self

import numpy as np
from scipy.stats import rankdata

from framework.outer.importance import Vector
from framework.outer.policies.policy import (
    Policy,
    Probe,
    Window,
    adapted,
    checked_norms,
    no_probe,
    sample,
    variations,
)
from framework.outer.policies.registry import Settings
from framework.outer.policies.stages import EARLY, LATE, MIDDLE, Stages


def _relative_weight(values: Vector, tau: float) -> Vector:
    """exp(values / tau) over its largest, for any finite values."""
    with np.errstate(over="ignore"):  # a difference that overflows is -inf, and its weight rightly 0
        weight: Vector = np.exp((values - values.max()) / tau)
    return weight


def _standardised(values: Vector) -> Vector:
    """Zero mean and unit population deviation; zeros where all values are equal."""
    if np.ptp(values) == 0:
        return np.zeros_like(values)
    relative = values / values.max()  # the square of a large norm overflows
    standard: Vector = (relative - relative.mean()) / relative.std()
    return standard


class ATBPTT(Policy):
    """AT-BPTT (arXiv 2510.04838): position and length from gradient norms, by stage of training.

    With n_t the probe's gradient norms and v_t = |n_t - n_{t-1}|, v_0 = 0:

    * Dynamic truncation position: t ~ exp(n_t / tau) early, uniform in the middle, exp(-n_t / tau) late.
    * Adaptive window size: M = round(W - d + 2 d eta(t)), eta(t) in [0, 1] by the rank of v_t (the public
      code's reading) or by exp(v_t / tau) over its largest value (the paper's).
    * Threshold-guided stages, see ``Stages``.

    Which step of the window t is, the sources do not agree on; ``anchor`` says it. A window that reaches beyond
    minimum .. T is moved back into it; one whose last step is t is cut at minimum instead, so that t stays its last.

    Args:
        steps, window, minimum, seed: see ``Policy``.
        stages: when early becomes middle and middle late.
        radius: d.
        tau: temperature of positions and of the softmax; above 0.
        measure: what lengths follow, ``rank`` or ``softmax``.
        rule: ``adaptive`` (the paper's: eta in every stage) or ``public`` (W+d in the middle, W-d late).
        anchor: the step drawn is the ``first`` one differentiated (public code), the ``centre`` (the authors' figure;
            the later of two middle ones), or the ``last`` (the authors' later code, AT-BPTT++).
        scale: ``raw`` norms, or ``standard``: n and v with zero mean and unit deviation over the trajectory.
        late: ``inverse`` (the paper's exp(-n_t / tau)) or ``mirror``: the early stage's window, reflected in the
            middle of the trajectory (public code).
        reweight: weight meta-gradients by 1 / (T P(t)), so that their expectation is that of a uniform t: RaT-BPTT's
            objective, but for the windows that are fitted into the trajectory and for their lengths.
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
        stages: Stages | None = None,
        tau: float = 1.0,
        measure: str = "rank",
        rule: str = "adaptive",
        anchor: str = "first",
        scale: str = "raw",
        late: str = "inverse",
        reweight: bool = False,
        probe_every: int = 1,
        move: bool = True,
        resize: bool = True,
    ) -> None:
        super().__init__(steps, window, minimum, seed)
        assert radius >= 0, "validated with the flags"
        self.radius, self.tau, self.measure, self.rule = radius, tau, measure, rule
        self.anchor, self.scale, self.late, self.reweight = anchor, scale, late, reweight
        self.stages = Stages() if stages is None else stages
        self.probe_every, self.move, self.resize = probe_every, move, resize
        self.norms: list[float] | None = None  # of the last probe
        self.norms_age = 0  # epochs for which they were used

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(
            s.steps, s.window, s.minimum, s.seed, radius=s.radius, stages=Stages(s.gains, s.patience, s.plateau),
            tau=s.tau, measure=s.measure, rule=s.rule, anchor=s.anchor, scale=s.scale, late=s.late,
            reweight=s.reweight, probe_every=s.probe_every, **options,
        )  # fmt: skip

    def choose(self, probe: Probe = no_probe) -> Window:
        """Draw the step t, then the length for it, then fit both into the trajectory.

        Raises:
            UserError: a gradient norm is not finite; names the inner step.
        """
        if not (self._uniform and self._fixed):
            self._refresh(probe)
        weights = self.probabilities()
        t = sample(weights, self._generator())
        if self.reweight:
            self.weight = float(1 / (self.steps * weights[t]))
        return self.around(t, min(self._length(t), self.steps - self.minimum))

    def around(self, t: int, length: int) -> Window:
        """The window of a length, at most T - minimum, whose ``anchor`` is the step t: mirrored if so, then fitted."""
        if self.anchor == "last":
            length = min(length, max(t + 1 - self.minimum, 1))
        start = t - {"first": 0, "centre": length // 2, "last": length - 1}[self.anchor]
        if self.late == "mirror" and self.move and self.stages.now == LATE:
            start = self.steps - (start + length)
        return Window(min(max(start, self.minimum), self.steps - length), length)

    @property
    def _uniform(self) -> bool:
        """Whether positions are drawn without looking at norms."""
        return not self.move or self.stages.now == MIDDLE

    @property
    def _fixed(self) -> bool:
        """Whether lengths are set without looking at variations."""
        return not self.resize or (self.rule == "public" and self.stages.now > EARLY)

    def _refresh(self, probe: Probe) -> None:
        if self.norms is None or self.norms_age >= self.probe_every:
            self.norms, self.norms_age = checked_norms(probe(), self.steps).tolist(), 0
        self.norms_age += 1

    def probabilities(self) -> Vector:
        """P(t) of the current stage (T,), from the last probe's norms (paper, dynamic truncation position)."""
        if self._uniform:
            return np.full(self.steps, 1 / self.steps)
        inverse = self.stages.now == LATE and self.late == "inverse"
        norms = self._scaled(np.asarray(self.norms))
        weight = _relative_weight(-norms if inverse else norms, self.tau)
        share: Vector = weight / weight.sum()
        return share

    def _scaled(self, values: Vector) -> Vector:
        return _standardised(values) if self.scale == "standard" else values

    def eta(self) -> Vector:
        """The window weight in [0, 1] of every step (T,); the largest variation gets 1."""
        assert self.norms is not None, "probed"
        v = variations(self.norms)
        if self.measure == "softmax":
            return _relative_weight(self._scaled(v), self.tau)
        rank: Vector = rankdata(v, method="min") - 1.0
        return rank / rank.max() if rank.max() > 0 else np.ones_like(v)

    def _length(self, t: int) -> int:
        if not self.resize:
            return self.window
        if self._fixed:
            length = self.window + (self.radius if self.stages.now == MIDDLE else -self.radius)
        else:
            length = adapted(self.window, self.radius, float(self.eta()[t]))
        return min(max(length, 1), self.steps)

    def observe(self, loss: float, accuracy: float) -> None:
        """Change the stage where the accuracy has stopped rising."""
        self.stages.observe(accuracy)

    def state(self) -> dict[str, str | int | float]:
        """See ``Stages``."""
        return self.stages.state()

    def curves(self) -> dict[str, list[float]]:
        """Norms and variations of the last probe, and P(t) of the current stage."""
        if self.norms is None:
            return {}
        p, v = self.probabilities(), variations(self.norms)
        return {"gradient norm": self.norms, "variation": v.tolist(), "probability": p.tolist()}

    def state_dict(self) -> dict[str, Any]:
        """The stage and what it is told by, the last probe."""
        own = {"stages": self.stages.state_dict(), "norms": self.norms, "norms_age": self.norms_age}
        return super().state_dict() | own
