"""SIGINT and SIGTERM as a request to stop at the next safe point."""

import os
import signal
import time
from types import FrameType

from framework.run.distributed import Comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


ECHO = 2.0  # seconds within which a second signal is taken for the first: a terminal, torchrun and our parent all send


class Interrupted(Exception):
    """Raised at a safe point after a stop was requested; str() is the signal's name."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """Within ``with``, the first SIGINT or SIGTERM is only noted; another, later than its echo, acts as usual."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check(self, comm: Comm, collective: bool = True) -> None:
        """Raise ``Interrupted`` if a stop was requested, with ``collective`` on any rank.

        A collective check is a message between ranks, so all of them must make it. Elsewhere each rank
        looks for itself; whoever waits for one that stopped so gets ``PeerLost``.
        """
        number = max(comm.gather(self.number)) if collective else self.number
        if number:
            raise Interrupted(number)
