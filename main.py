"""Command line of the project: parse flags, validate, launch the workers. See ``--help``."""

import sys
from collections.abc import Sequence

from framework.config.registry import parse
from framework.errors import UserError
from framework.output import lasting_output

COMMANDS = ("evaluate", "export", "report", "leaderboard", "advise", "zoo")


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code (2 for a user's mistake, told in one line)."""
    with lasting_output():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    try:
        if arguments and arguments[0] in COMMANDS:
            from framework.commands import run

            return run(arguments[0], arguments[1:])
        config, warnings = parse(arguments)
        for warning in warnings:
            print(f"main.py: warning: {warning}", file=sys.stderr)
        # Imported late: --help and mistakes in flags should not wait for the libraries.
        if config.dry_run:
            from framework.dry_run import preview

            print(preview(config))
            return 0
        from framework.config.matching import BufferConfig
        from framework.run.launch import launch

        if isinstance(config, BufferConfig):
            from framework import train_experts

            return launch(train_experts.main_worker, config)
        from framework import base
        from framework.config.distilling import Distilling

        assert isinstance(config, Distilling), "all others are told apart above"
        return launch(base.main_worker, config)
    except UserError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("main.py: stopped before the first step; nothing to save", file=sys.stderr)
        return 130


def console() -> None:
    """Entry point of the installed command ``at-bptt``: run the process's own arguments and exit with their code."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
