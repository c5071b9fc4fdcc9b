"""RaT-BPTT's positions without prefixes: inner networks that live on from one outer step to the next."""

from typing import Any, Self

import torch

from framework.outer.policies.policy import Policy, Probe, Window, no_probe
from framework.outer.policies.registry import Settings

NONE_YET = -1


class Pool(Policy):
    """The windows of K kept networks, each of which goes on where its last one ended.

    The networks take turns, one at each outer step. One whose next window would reach beyond T gives way to a fresh
    one, whose first window starts at ``minimum`` + s, s uniform in 0 .. W-1: it visits every W-th position from there,
    so that over many networks windows start uniformly in minimum .. T-W, as RaT-BPTT's. The first K networks start at
    ages that are spread over all positions. Not RaT-BPTT's objective to the letter: a network's earlier steps were
    taken on the set as it was then.

    Args:
        steps, window, minimum, seed: see ``Policy``.
        size: K.
    """

    name = "rat-pool"
    every_step = True

    def __init__(self, steps: int, window: int, minimum: int = 0, seed: int = 0, *, size: int = 16) -> None:
        super().__init__(steps, window, minimum, seed)
        self.slot = 0
        self.ends = [NONE_YET] * size  # of each network's last window

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        return cls(s.steps, s.window, s.minimum, s.seed, size=s.pool, **options)

    def choose(self, probe: Probe = no_probe) -> Window:
        """The next window of the network whose turn it is."""
        gen, size = self._generator(), len(self.ends)
        self.slot = (self.draws - 1) % size
        end, last = self.ends[self.slot], self.steps - self.window
        positions = last - self.minimum + 1
        if end == NONE_YET:
            place = (self.slot + float(torch.rand((), generator=gen, dtype=torch.float64))) * positions / size
            start = self.minimum + min(int(place), positions - 1)
        elif end > last:
            start = self.minimum + int(torch.randint(min(self.window, positions), (), generator=gen))
        else:
            start = end
        self.ends[self.slot] = start + self.window
        return Window(start, self.window)

    def forget(self, slot: int) -> None:
        """See ``Policy``: a fresh one follows."""
        self.ends[slot] = self.steps

    def state(self) -> dict[str, str | int | float]:
        """Which network took the last window."""
        assert self.slot is not None, "set from the start"
        return {"network": self.slot}

    def state_dict(self) -> dict[str, Any]:
        """Where each network is."""
        return super().state_dict() | {"slot": self.slot, "ends": list(self.ends)}
