"""Standard output and standard error that cannot take a run with them.

A reader that leaves (``| head``), a full disk, a terminal that is gone or has no ± in its character set: what a run
has learnt must not be lost to its printing. Everything printed within ``lasting_output``, by us or by a library,
passes here.
"""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

_PLAIN = {"±": "+/-", "–": "-"}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Codecs' error handler: ``_PLAIN`` where a character set lacks a character, an escape for all others."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    plain = _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1


codecs.register_error("at-bptt", _in_ascii)


class Output:
    """A text stream to which writing never fails; after a failure of the one beneath, what follows is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write, with escapes for what the stream's character set lacks."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "at-bptt").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Note the failure, and let what is buffered go nowhere: Python would fail at it again at the very end."""
        self.failure = error
        with suppress(OSError), open(os.devnull, "wb") as nowhere:  # some streams have no descriptor
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within this, ``sys.stdout`` and ``sys.stderr`` are an ``Output``; at the end stderr says if stdout failed."""
    _occupy_descriptors()
    before = sys.stdout, sys.stderr
    # A program that was started without one of them has None there.
    out, err = (Output(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.flush()
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
            program, reason = Path(sys.argv[0]).name, out.failure.strerror
            err.write(f"{program}: warning: standard output cannot be written ({reason}); what was printed is lost\n")
        err.flush()
        sys.stdout, sys.stderr = before


def _occupy_descriptors() -> None:
    """Put nothing where a standard stream is closed: the next file that is opened would take its place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
