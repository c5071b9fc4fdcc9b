"""Chores beside the steps, such as checkpoints and plots, that must not take a run's time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Seldom:
    """Lets a chore run only so often that it takes at most ``share`` of the time.

    Args:
        share: of the time, above 0.
        pause: seconds that pass between two at least.
        clock: seconds since any moment.
    """

    def __init__(self, share: float, pause: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.share, self.pause, self.clock = share, pause, clock
        self._next = -float("inf")

    def due(self) -> bool:
        """Whether it may run now; the first time always."""
        return self.clock() >= self._next

    @contextmanager
    def doing(self) -> Iterator[None]:
        """Measures the chore done within."""
        began = self.clock()
        yield
        ended = self.clock()
        self._next = ended + max(self.pause, (ended - began) / self.share)
