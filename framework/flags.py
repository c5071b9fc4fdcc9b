"""The mechanism of flags: a dataclass whose fields carry their flag, and the parser and checks made from it."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from framework.errors import UserError, printable


@dataclass(frozen=True)
class Flag:
    """What the parser and the checks need to know about one field of a configuration."""

    group: str
    help: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str | int, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # strict lower bound
    metavar: str | None = None
    kind: Callable[[str], Any] | None = None  # None: taken from the default's type
    nargs: str | None = None
    const: Any = None
    from_json: Callable[[Any], Any] | None = None  # the value that JSON holds; None: of the default's type, or kind
    read_by: str = ""  # shown in --help: who reads this flag, if not everybody
    reads: Callable[[Any], bool] | None = None  # of the configuration; False: giving the flag is pointless, so warn
    negation: str = ""  # an option that stands for this one with False
    inert: str = ""  # why giving it changes nothing
    resume: str = "same"  # "same": must not change on resume; "free": may


def flag(default: Any, group: str, text: str, **about: Any) -> Any:
    """A field of a configuration; ``about`` is the rest of its ``Flag``."""
    return dataclasses.field(default=default, metadata={"flag": Flag(group, text, **about)})


def varied(configuration: Any, name: str, default: Any = None, **changes: Any) -> Any:
    """The field ``name`` of another configuration, with another default (None: its own) or another ``Flag``."""
    field = configuration.__dataclass_fields__[name]
    about = dataclasses.replace(field.metadata["flag"], **changes)
    return dataclasses.field(default=field.default if default is None else default, metadata={"flag": about})


def truth(text: str) -> bool:
    """``True`` or ``False``, as the originals' commands give some switches.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number_or_auto(text: str) -> int | None:
    """A whole number; None for ``auto``.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto")
    return int(text)


def switch(default: bool | None, group: str, text: str, **about: Any) -> Any:
    """A flag that is given alone or with True or False; None: the run's other flags decide."""
    return flag(default, group, text, kind=truth, nargs="?", const=True, metavar="True|False", **about)


def flags_of(configuration: Any) -> dict[str, Flag]:
    """Every flag of a configuration's class, by its field's name."""
    return {field.name: field.metadata["flag"] for field in dataclasses.fields(configuration)}


def option(name: str) -> str:
    """The flag of a field as it is written on a command line."""
    return f"--{name}" if len(name) > 1 else f"-{name}"


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, reports a mistake in one line and exits with code 2."""

    def __init__(self, prog: str, description: str, **about: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
            **about,
        )

    def error(self, message: str) -> NoReturn:
        """See the class."""
        print(f"{self.prog}: error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def add_flags(parser: Parser, configuration: Any, order: Sequence[str]) -> None:
    """Give ``parser`` every flag of a configuration's class, by groups in their ``order``.

    What is not given on a command line stays absent.
    """
    fields = dataclasses.fields(configuration)
    used = {field.metadata["flag"].group for field in fields}
    groups = {name: parser.add_argument_group(name) for name in order if name in used}
    for field in fields:
        about: Flag = field.metadata["flag"]
        groups[about.group].add_argument(
            option(field.name),
            *about.aliases,
            dest=field.name,
            default=argparse.SUPPRESS,
            **_options(about, field.default),
        )
        if about.negation:
            groups[about.group].add_argument(
                about.negation, dest=field.name, action="store_const", const=False, default=argparse.SUPPRESS,
                help=f"the same as {option(field.name)} False",
            )  # fmt: skip


def _options(about: Flag, default: Any) -> dict[str, Any]:
    """What argparse is told about one flag."""
    text = about.help.replace("%", "%%")
    if about.read_by:
        text += f" [read by {about.read_by}]"
    if isinstance(default, bool) and about.kind is None:
        return {"action": "store_true", "help": text}
    if default not in (None, "", ()):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" (default: {shown})"
    options = {"type": about.kind or type(default), "choices": about.choices, "metavar": about.metavar, "help": text}
    optional = {"nargs": about.nargs, "const": about.const}
    return options | {name: value for name, value in optional.items() if value is not None}


def check_range(name: str, value: Any, about: Flag) -> None:
    """Check a flag's number, or each of its numbers; other values pass.

    Raises:
        UserError: naming the flag and its bound.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{option(name)} {number}: give a finite number")
        if about.minimum is not None and number < about.minimum:
            raise UserError(f"{option(name)} {number}: give a value of at least {about.minimum:g}")
        if about.above is not None and number <= about.above:
            raise UserError(f"{option(name)} {number}: give a value above {about.above:g}")
        if about.maximum is not None and number > about.maximum:
            raise UserError(f"{option(name)} {number}: give a value of at most {about.maximum:g}")


def checked_values(values: Mapping[str, Any], configuration: Any) -> dict[str, Any]:
    """Values from JSON as the parser would have made them: known flags, of the right types, among their choices.

    Raises:
        UserError: naming the flag.
    """
    fields = {field.name: field for field in dataclasses.fields(configuration)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise UserError(f"unknown flags {', '.join(unknown)}, of another version")
    return {name: _checked(name, value, fields[name]) for name, value in values.items()}


def _checked(name: str, value: Any, field: "dataclasses.Field[Any]") -> Any:
    about: Flag = field.metadata["flag"]
    if about.from_json is not None:
        try:
            return about.from_json(value)
        except UserError as error:
            raise UserError(f"{option(name)} {error}") from error
    several = isinstance(field.default, tuple)
    if several != isinstance(value, list | tuple) or (value is None and field.default is not None):
        raise UserError(f"{option(name)} {value!r}: {'several values' if several else 'one value'} expected")
    kind = bool if about.kind is truth else about.kind if isinstance(about.kind, type) else type(field.default)
    for single in value if several else () if value is None else (value,):
        sound = (
            isinstance(single, float | int) and not isinstance(single, bool) if kind is float else type(single) is kind
        )
        if not sound:
            raise UserError(f"{option(name)} {single!r}: {getattr(kind, '__name__', 'value')} expected")
        if about.choices is not None and single not in about.choices:
            raise UserError(f"{option(name)} {single!r}: choose from {', '.join(map(str, about.choices))}")
    return tuple(value) if several else value


def plain_text(arguments: Sequence[str]) -> None:
    """Refuse arguments that no one-line error could show.

    Raises:
        UserError: an argument holds control characters or bytes that are no text.
    """
    for argument in arguments:
        if printable(argument) != argument:
            raise UserError(f"{argument!a}: holds control characters or bytes that are no text; leave them out")
