"""RaT-BPTT: a window at a uniformly random place."""

from typing import Any, Self

import torch

from framework.outer.policies.policy import Policy, Probe, Window, no_probe
from framework.outer.policies.registry import Settings


class RaTBPTT(Policy):
    """A window of W steps at a uniformly random place (RaT-BPTT, Feng et al. ICLR 2024, section 3)."""

    name = "rat-bptt"

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0, *, every_step: bool = False) -> None:
        super().__init__(steps, window, minimum, seed)
        self.every_step = every_step

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(s.steps, s.window, s.minimum, s.seed, every_step=s.every_step, **options)

    def choose(self, probe: Probe = no_probe) -> Window:
        """Uniform over minimum .. T-W, both included."""
        last = self.steps - self.window
        return Window(int(torch.randint(self.minimum, last + 1, (), generator=self._generator())), self.window)
