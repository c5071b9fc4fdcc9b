"""What a user's mistake is told with."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # categories: control characters, bytes that are no text, ends of lines

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Of a terminal: bold, red and so on, as PyTorch has in its messages."""


class UserError(ValueError):
    """A mistake in what the user gave (flag, file, folder).

    The message is one line that names the flag or file, says what is wrong and what to do. ``main``
    prints it without a traceback and exits with code 2. Names of files and classes may hold anything, and are
    escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


MAY_READ = "give yourself the right to read it"


@contextmanager
def reachable() -> Iterator[None]:
    """Where files of the user are looked for: raises ``UserError`` for one that this user may not reach."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{error.filename}: cannot be reached ({error.strerror}); {MAY_READ}") from error


def printable(text: str) -> str:
    """``text`` on one line: ends of lines, other control characters and bytes that are no text become escapes."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNPRINTABLE else character
        for character in text
    )


def one_line(error: BaseException) -> str:
    """An error's text on one line of at most 160 characters, for use inside another message; without colours."""
    text = " ".join(COLOUR.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
