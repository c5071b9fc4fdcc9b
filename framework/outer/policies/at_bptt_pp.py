"""AT-BPTT++: position and length from a policy that is learnt along the run, without stages (WTPO)."""

import math
from typing import Any, ClassVar, Self

import numpy as np

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

EPS = 1e-8  # in every division and in the logarithm; the public code takes that of the outer Adam
SQUARED = 1e-12  # added to a squared gradient norm


def _standardised(values: Vector) -> Vector:
    """Zero mean and unit population deviation."""
    result: Vector = (values - values.mean()) / (values.std() + EPS)
    return result


def _softmax(logits: Vector) -> Vector:
    weights = np.exp(logits - logits.max())
    share: Vector = weights / weights.sum()
    return share


class ATBPTTPP(Policy):
    """Within-trajectory policy optimisation (AT-BPTT++, the follow-up of arXiv 2510.04838; read from its public code).

    All of it once per outer step. The probe starts from the initial weights of the step's first network. With n_t its
    gradient norms, v_t = |n_t - n_{t-1}|, v_0 = 0, and a and w both standardised within the trajectory:

    * m is the mean of n, and beta = 2 (m - min) / (max - min) - 1 with the least and the largest m so far, this one
      included; 1 while they coincide. +1 prefers large norms, -1 small ones, 0 leaves the policy as it is.
    * The policy is pi ~ pi_ref exp(beta a / lambda), the proximal step from the reference policy pi_ref, which then
      follows by pi_ref <- (1 - rho) pi_ref + rho pi. It starts uniform.
    * t ~ pi is the last differentiated step.
    * M = round(W - r + 2 r sigmoid(w_t / tau_w)), clipped to W-r .. W+r, to T, and to t + 1.
    * The drift, by which kept Hessian factors are judged, is v_t over n_t of the previous probe; 1 at first.

    ``minimum`` is not read: the authors' code does not either.

    Args:
        steps, window, seed: see ``Policy``.
        radius: r.
        kl_weight: lambda, above 0.
        reference_rate: rho, in 0 .. 1.
        length_temperature: tau_w, above 0.
    """

    name = "at-bptt-pp"
    every_step = True
    probes_first_network: ClassVar[bool] = True

    def __init__(
        self,
        steps: int,
        window: int,
        seed: int = 0,
        *,
        radius: int,
        kl_weight: float = 1.0,
        reference_rate: float = 0.05,
        length_temperature: float = 1.0,
    ) -> None:
        super().__init__(steps, window, 0, seed)
        assert radius >= 0, "validated with the flags"
        assert min(kl_weight, length_temperature) > 0, "validated with the flags"
        self.radius, self.kl_weight = radius, kl_weight
        self.reference_rate, self.length_temperature = reference_rate, length_temperature
        self.reference = [1 / steps] * steps  # pi_ref
        self.chances = self.reference  # pi, of the last choice
        self.norms: list[float] | None = None  # of the last probe
        self.lowest: float | None = None  # of the probes' mean norms
        self.highest: float | None = None
        self.beta = 1.0

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(
            s.steps, s.window, s.seed, radius=s.radius, kl_weight=s.kl_weight, reference_rate=s.reference_rate,
            length_temperature=s.length_temperature, **options,
        )  # fmt: skip

    def choose(self, probe: Probe = no_probe) -> Window:
        """Update the policy by a probe, and draw the window's last step from it.

        Raises:
            UserError: a gradient norm is not finite; names the inner step.
        """
        before = self.norms
        n = np.hypot(checked_norms(probe(), self.steps), math.sqrt(SQUARED))
        self.norms = n.tolist()
        self.beta = self._beta(float(n.mean()))
        self._learn(_standardised(n))
        t = sample(np.asarray(self.chances), self._generator())
        v = variations(self.norms)
        self.drift = 1.0 if before is None else float(v[t]) / (before[t] + EPS)
        length = self._length(t, float(_standardised(v)[t]))
        return Window(t + 1 - length, length)

    def _beta(self, mean: float) -> float:
        self.lowest = mean if self.lowest is None else min(self.lowest, mean)
        self.highest = mean if self.highest is None else max(self.highest, mean)
        span = self.highest - self.lowest
        return 1.0 if span < EPS else 2 * (mean - self.lowest) / (span + EPS) - 1

    def _learn(self, advantages: Vector) -> None:
        """One proximal step from the reference policy, which then follows."""
        reference = np.asarray(self.reference)
        chances = _softmax(np.log(np.maximum(reference, EPS)) + self.beta * advantages / self.kl_weight)
        self.chances = chances.tolist()
        self.reference = ((1 - self.reference_rate) * reference + self.reference_rate * chances).tolist()

    def _length(self, t: int, advantage: float) -> int:
        """M for a window that ends at t, from the standardised variation there."""
        eta = 0.5 * (1 + math.tanh(advantage / self.length_temperature / 2))  # the sigmoid, for any argument
        length = adapted(self.window, self.radius, eta)
        low, high = max(1, self.window - self.radius), min(self.steps, self.window + self.radius)
        return min(max(length, low), high, t + 1)

    def state(self) -> dict[str, str | int | float]:
        """Beta and drift of the last choice, and in words (``stage``, for plots) which steps that beta prefers."""
        stage = "large norms" if self.beta > 1 / 3 else "small norms" if self.beta < -1 / 3 else "reference"
        drift = {} if self.drift is None else {"drift": self.drift}
        return {"stage": stage, "beta": self.beta, **drift}

    def curves(self) -> dict[str, list[float]]:
        """Norms and variations of the last probe, the policy that was drawn from, and the reference after it."""
        if self.norms is None:
            return {}
        shown = {"gradient norm": self.norms, "variation": variations(self.norms).tolist()}
        return {**shown, "probability": self.chances, "reference": self.reference}

    def state_dict(self) -> dict[str, Any]:
        """Reference and last policy, the last probe, the range of mean norms, beta and drift."""
        own = ("reference", "chances", "norms", "lowest", "highest", "beta", "drift")
        return {**super().state_dict(), **{name: getattr(self, name) for name in own}}
