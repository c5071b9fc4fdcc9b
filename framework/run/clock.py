"""How long a run has taken."""

import time


class Clock:
    """Runs from its creation on; pauses between attempts are left out.

    Args:
        seconds: of earlier attempts.
        cpu_seconds: of earlier attempts.
    """

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall, self._cpu = time.monotonic() - seconds, time.process_time() - cpu_seconds

    @property
    def seconds(self) -> float:
        """As they pass."""
        return time.monotonic() - self._wall

    @property
    def cpu_seconds(self) -> float:
        """Of processor time, of all threads of this process together: other work beside it hardly changes them."""
        return time.process_time() - self._cpu
