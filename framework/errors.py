"""What a user's mistake is told with."""


class UserError(ValueError):
    """A mistake in what the user gave (flag, file, folder).

    The message is one line that names the flag or file, says what is wrong and what to do. ``main``
    prints it without a traceback and exits with code 2.
    """


def one_line(error: BaseException) -> str:
    """An error's text on one line of at most 160 characters, for use inside another message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
