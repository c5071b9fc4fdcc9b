"""How long a run has taken."""

import os
import time


class Clock:
    """Runs from its creation on; pauses between attempts are left out.

    Args:
        seconds: of earlier attempts.
        cpu_seconds: of earlier attempts.
    """

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall, self._cpu = time.monotonic() - seconds, _processor() - cpu_seconds

    @property
    def seconds(self) -> float:
        """As they pass."""
        return time.monotonic() - self._wall

    @property
    def cpu_seconds(self) -> float:
        """Of processor time, of this process's threads and finished children: other work beside it hardly counts."""
        return _processor() - self._cpu


def _processor() -> float:
    return sum(os.times()[:4])
