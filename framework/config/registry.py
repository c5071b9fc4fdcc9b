"""Every verb that starts a run, by its name on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.config.bptt import Config
from framework.config.common import Common, parse_as
from framework.config.distilling import Distilling
from framework.config.matching import BufferConfig, FtdConfig
from framework.errors import UserError

RUNS: dict[str, type[Common]] = {kind.VERB: kind for kind in (Config, FtdConfig, BufferConfig)}


def parse(arguments: Sequence[str]) -> tuple[Common, list[str]]:
    """Parse and validate a command line, whose first word may be a verb of ``RUNS``; see ``parse_as``."""
    kind = RUNS.get(arguments[0]) if arguments else None
    return parse_as(arguments, Config) if kind is None else parse_as(arguments[1:], kind)


def read_config(values: Any, source: Path) -> Distilling:
    """The configuration of a distillation run that a file holds; see ``Common.from_json``.

    Raises:
        UserError: naming the file, the flag and what is wrong with it.
    """
    verb = values.get("verb", Config.VERB) if isinstance(values, dict) else Config.VERB
    kind = RUNS.get(verb) if isinstance(verb, str) else None
    if kind is None or not issubclass(kind, Distilling):
        raise UserError(f"{source}: its flags are damaged (verb {verb!r}); restore it from a copy")
    return kind.from_json(values, source)
