"""RaT-BPTT's windows, as short as a tolerated bias allows: the length follows how fast contributions decay by lag."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from framework.outer.policies.policy import Policy, Probe, Window, no_probe
from framework.outer.policies.registry import Settings

REFRESH = 10  # so many windows at first, and then one of each as many, have W steps, so that all lags are seen


class LengthByBias(Policy):
    """RaT-BPTT's window ends, drawn anew at every step, and the least length whose bias is tolerated.

    The meta-gradient of a window is the sum of what each of its steps contributes. With r_k a moving average of the
    norm of the contribution of lag k (0 is the last step) and r beta^k fitted to it, all that lies L steps and more
    before the end contributes at most r beta^L / (1 - beta), and the least L in 1 .. W is taken for which that is no
    more than ``bias`` times ||G||, a moving average too (Aicher, Foti, Fox, UAI 2019, arXiv 1905.07473, adaptive
    truncation). The fit is by least squares of log r_k, from the largest r_k on: under momentum contributions first
    rise with the lag. With beta >= 1, or none to fit, L is W.

    So the objective is RaT-BPTT's with the bias of the lags that are left out; ends are RaT-BPTT's, W + N with N
    uniform in minimum .. T-W, and nothing is longer than its windows. With ``roulette`` q there is no such bias: from
    L on the window goes on by one more step with probability q, up to W, and a lag that was reached with probability
    q^j counts q^-j times (ARTBP, Tallec and Ollivier 2017, arXiv 1705.08209), at the price of variance, which grows
    with every lag where beta^2 > q (Beatson and Adams, ICML 2019, arXiv 1905.07006).

    Args:
        steps, window, minimum, seed: see ``Policy``; no window is longer than W.
        bias: tolerated, as a share of ||G||; above 0.
        decay: of the moving averages.
        roulette: q in 0 .. 1; 0: none.
    """

    name = "rat-bias"
    every_step = True

    def __init__(
        self,
        steps: int,
        window: int,
        minimum: int = 0,
        seed: int = 0,
        *,
        bias: float = 0.1,
        decay: float = 0.9,
        roulette: float = 0.0,
    ) -> None:
        super().__init__(steps, window, minimum, seed)
        self.bias, self.decay, self.roulette = bias, decay, roulette
        self.growth = 1 / roulette if roulette else 1.0
        self.certain = window
        self.norm: float | None = None  # moving average of ||G||
        self.lags: list[float] = []  # (W,) moving averages of r_k; empty before the first step is applied

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(s.steps, s.window, s.minimum, s.seed, bias=s.bias, decay=s.decay, roulette=s.roulette, **options)

    def choose(self, probe: Probe = no_probe) -> Window:
        """Draw the end, and how far beyond L the window reaches; now and then W steps."""
        gen, refresh = self._generator(), self.draws <= REFRESH or self.draws % REFRESH == 0
        end = self.window + int(torch.randint(self.minimum, self.steps - self.window + 1, (), generator=gen))
        length = self.certain = self.window if refresh else self.length()
        while length < self.window and float(torch.rand((), generator=gen, dtype=torch.float64)) < self.roulette:
            length += 1
        return Window(end - length, length)

    def fit(self) -> tuple[float, float] | None:
        """Logarithms of r and beta, by least squares from the largest norm on; None: of fewer than two lags."""
        norms = np.array(self.lags)
        known = np.flatnonzero(norms)
        known = known[known >= norms.argmax()] if len(known) else known
        if len(known) < 2:
            return None
        slope, start = np.polyfit(known, np.log(norms[known]), 1)
        return float(start), float(slope)

    def length(self) -> int:
        """The least L in 1 .. W with r beta^L / (1 - beta) <= bias ||G||; W where none is known to do."""
        fit = self.fit()
        if fit is None or fit[1] >= 0 or not self.norm:
            return self.window
        start, slope = fit
        tolerated = math.log(self.bias) + math.log(self.norm) + math.log(-math.expm1(slope))
        return math.ceil(min(max((tolerated - start) / slope, 1), self.window))

    def learn(self, norm: float) -> None:
        """Take ||G|| into its average."""
        self.norm = norm if self.norm is None else self._averaged(self.norm, norm)

    def learn_lags(self, norms: Sequence[float]) -> None:
        """Take r_k of the window's lags into their averages; those of lags beyond it stay as they are."""
        known = self.lags or norms  # the first window has all
        self.lags = [*map(self._averaged, known, norms), *known[len(norms) :]]

    def _averaged(self, old: float, new: float) -> float:
        return self.decay * old + (1 - self.decay) * new

    def state(self) -> dict[str, str | int | float]:
        """Beta, where there is one to fit."""
        fit = self.fit()
        return {} if fit is None else {"beta": math.exp(fit[1])}

    def state_dict(self) -> dict[str, Any]:
        """The averages, and which lags of the last window count once."""
        return super().state_dict() | {"norm": self.norm, "lags": list(self.lags), "certain": self.certain}
