"""RaT-BPTT's positions without prefixes: inner networks that live on from one outer step to the next."""

from typing import Any, Self

import torch

from framework.outer.importance import bin_of
from framework.outer.policies.policy import Policy, Probe, Window, no_probe, sample
from framework.outer.policies.rat_is import ImportanceSampled
from framework.outer.policies.registry import Settings

NONE_YET = -1


class Pool(Policy):
    """The windows of K kept networks, each of which goes on where its last one ended.

    The networks take turns, one at each outer step. One whose next window would reach beyond T gives way to a fresh
    one, whose first window starts at ``minimum`` + s, s uniform in 0 .. W-1: it visits every W-th position from there,
    so that over many networks windows start uniformly in minimum .. T-W, as RaT-BPTT's. The first K networks start at
    ages that are spread over all positions. Not RaT-BPTT's objective to the letter: a network's earlier steps were
    taken on the set as it was then.

    With ``importance`` they take no turns: network i is drawn with a chance p(i) that grows with the meta-gradient's
    norm where its next window lies, and its meta-gradient is weighted by 1 / (K p(i)): the expectation over the draw is
    the mean over the networks as they stand. But every network still visits each of its positions once, so windows
    start as often at one position as at another, whatever p is, and those where p is small wait longest: over a run
    the objective is that of positions weighted by 1 / p, in which small meta-gradients count for more than in
    RaT-BPTT's.

    Args:
        steps, window, minimum, seed: see ``Policy``.
        size: K.
        importance: what is known of positions; None: the networks take turns.
    """

    name = "rat-pool"
    every_step = True

    def __init__(
        self,
        steps: int,
        window: int,
        minimum: int = 0,
        seed: int = 0,
        *,
        size: int = 16,
        importance: ImportanceSampled | None = None,
    ) -> None:
        super().__init__(steps, window, minimum, seed)
        self.slot = 0
        self.ends = [NONE_YET] * size  # of each network's last window; of a fresh one that waits, where it starts
        self.importance = importance

    @classmethod
    def make(cls, settings: Settings, **options: Any) -> Self:
        """See ``Policy.make``."""
        s = settings
        importance = ImportanceSampled.make(s) if s.pool_choice == "importance" else None
        return cls(s.steps, s.window, s.minimum, s.seed, size=s.pool, importance=importance, **options)

    def choose(self, probe: Probe = no_probe) -> Window:
        """The next window of the network whose turn it is, or that is drawn."""
        gen, size = self._generator(), len(self.ends)
        if self.importance is None:
            self.slot = (self.draws - 1) % size
            start = self._next(self.slot, gen)
        else:
            self.ends = [self._next(slot, gen) for slot in range(size)]
            chances = self.importance.among(self.ends)
            self.slot = sample(chances, gen)
            start, self.weight = self.ends[self.slot], float(1 / (size * chances[self.slot]))
            self.importance.bin = bin_of(self.importance.bins, start)
        self.ends[self.slot] = start + self.window
        return Window(start, self.window)

    def _next(self, slot: int, gen: torch.Generator) -> int:
        """Where a network's next window starts; that of a fresh one is drawn."""
        end, last = self.ends[slot], self.steps - self.window
        positions = last - self.minimum + 1
        if end == NONE_YET:
            place = (slot + float(torch.rand((), generator=gen, dtype=torch.float64))) * positions / len(self.ends)
            return self.minimum + min(int(place), positions - 1)
        if end > last:
            return self.minimum + int(torch.randint(min(self.window, positions), (), generator=gen))
        return end

    def learn(self, norm: float) -> None:
        """See ``Policy``: of the bin that the last window starts in."""
        if self.importance is not None:
            self.importance.learn(norm)

    def forget(self, slot: int) -> None:
        """See ``Policy``: a fresh one follows."""
        self.ends[slot] = self.steps

    def state(self) -> dict[str, str | int | float]:
        """Which network took the last window, and the weight of that where it was drawn."""
        assert self.slot is not None, "set from the start"
        weight = {} if self.importance is None else {"weight": self.weight}
        return {"network": self.slot, **weight}

    def state_dict(self) -> dict[str, Any]:
        """Where each network is, and what is known of positions."""
        own = super().state_dict() | {"slot": self.slot, "ends": list(self.ends)}
        return own if self.importance is None else own | {"importance": self.importance.state_dict()}
