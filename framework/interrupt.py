"""SIGINT and SIGTERM as a request to stop at the next safe point."""

import signal
from types import FrameType

from framework.distributed import Comm


class Interrupted(Exception):
    """Raised at a safe point after a stop was requested; str() is the signal's name."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """Within ``with``, the first SIGINT or SIGTERM is only noted; a second one acts as usual."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for noted in self._previous:
            signal.signal(noted, signal.SIG_DFL)

    def check(self, comm: Comm, collective: bool = True) -> None:
        """Raise ``Interrupted`` if a stop was requested, with ``collective`` on any rank.

        A collective check is a message between ranks, so all of them must make it; elsewhere a rank
        among several waits for the next collective one.
        """
        if comm.size == 1:
            number = self.number
        elif collective:
            number = max(comm.gather(self.number))
        else:
            return
        if number:
            raise Interrupted(number)
