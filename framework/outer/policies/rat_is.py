"""RaT-BPTT's objective by importance sampling: windows where the meta-gradient is large and cheap, with weights."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from framework.outer.importance import Vector, best_chances, bin_of, position_bins
from framework.outer.policies.policy import Policy, Probe, Window, no_probe, sample
from framework.outer.policies.registry import Settings

ENOUGH = 2  # samples of every bin, before which positions are uniform


class ImportanceSampled(Policy):
    """Draws RaT-BPTT's window anew at every step, from a distribution that is learnt; without bias, by weights.

    Positions minimum .. T-W are divided into bins; a window starts uniformly within the bin drawn. For each bin a
    moving average of the meta-gradient's squared norm is kept; see ``best_chances``. The expectation of the weighted
    meta-gradient over positions is RaT-BPTT's.

    Args:
        steps, window, minimum, seed: see ``Policy``.
        bins: of positions; as many as there are positions at most.
        decay: of the moving averages.
        uniform: see ``best_chances``; in 0 .. 1.
        cost: of a prefix step, and of all of an outer step but its prefix, in any one unit.
    """

    name = "rat-is"
    every_step = True

    def __init__(
        self,
        steps: int,
        window: int,
        minimum: int = 0,
        seed: int = 0,
        *,
        bins: int = 9,
        decay: float = 0.9,
        uniform: float = 0.2,
        cost: tuple[float, float] = (3.0, 12.0),
    ) -> None:
        super().__init__(steps, window, minimum, seed)
        self.bins = position_bins(minimum, steps - window, bins)
        self.sizes = np.array([len(part) for part in self.bins], dtype=np.float64)
        self.costs = cost[0] * np.array([np.mean(part) for part in self.bins]) + cost[1]
        self.decay, self.uniform = decay, uniform
        self.moments = [0.0] * len(self.bins)  # moving averages of the squared norm
        self.samples = [0] * len(self.bins)
        self.bin = 0  # of the last window

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(
            s.steps, s.window, s.minimum, s.seed, bins=s.bins, decay=s.decay, uniform=s.uniform, cost=s.cost, **options
        )

    def chances(self) -> Vector:
        """Of the bins (K,), now."""
        return self._best(np.array(self.moments), self.costs, self.sizes)

    def among(self, starts: Sequence[int]) -> Vector:
        """The chances (n,) of windows at these starts, which cost the same, by what is known of their bins."""
        moments, ones = np.array([self.moments[bin_of(self.bins, start)] for start in starts]), np.ones(len(starts))
        return self._best(moments, ones, ones)

    def _best(self, moments: Vector, costs: Vector, sizes: Vector) -> Vector:
        if min(self.samples) < ENOUGH or not moments.any():
            uniform: Vector = sizes / sizes.sum()
            return uniform
        return best_chances(moments, costs, sizes, self.uniform)

    def choose(self, probe: Probe = no_probe) -> Window:
        """Draw a bin, then a position in it."""
        gen, chances = self._generator(), self.chances()
        self.bin = sample(chances, gen)
        part = self.bins[self.bin]
        self.weight = float(self.sizes[self.bin] / self.sizes.sum() / chances[self.bin])
        return Window(part[int(torch.randint(len(part), (), generator=gen))], self.window)

    def learn(self, norm: float) -> None:
        """Take the squared norm into the average of the last window's bin."""
        k, first = self.bin, self.samples[self.bin] == 0
        self.moments[k] = norm**2 if first else self.decay * self.moments[k] + (1 - self.decay) * norm**2
        self.samples[k] += 1

    def state(self) -> dict[str, str | int | float]:
        """The last window's weight."""
        return {"weight": self.weight}

    def state_dict(self) -> dict[str, Any]:
        """What is known of the bins, and the last one drawn."""
        own = {"moments": list(self.moments), "samples": list(self.samples), "bin": self.bin}
        return super().state_dict() | own
