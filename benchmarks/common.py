"""What the benchmarks share: their flags, results as JSON and Markdown, and a run's records."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Python finds this file beside a benchmark that is run as a script, but not framework.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from framework.errors import UserError
from framework.files import finite, write_atomically, write_text
from framework.output import lasting_output
from framework.report.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Parser(argparse.ArgumentParser):
    """Shows the benchmark's docstring as it stands; a mistake is one line and exit code 2."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")

    def add_out(self, default: Path | None = None) -> None:
        """``--out``: the folder of the results, required where it has no default."""
        text = "folder of the results" + (f" (default: {default})" if default else "")
        self.add_argument("--out", type=Path, required=default is None, default=default, metavar="DIR", help=text)

    def add_runs(self) -> None:
        """``--minutes``, ``--jobs`` and, after ``--``, ``common``: how a study is carried out, and its runs' flags."""
        inf = float("inf")
        self.add_argument("--minutes", type=float, default=inf, help="stop after this time; run again to continue")
        self.add_argument("--jobs", type=at_least(1), default=1, help="runs at a time; they share the cores")
        self.add_argument("common", nargs="*", help="flags of main.py for every run, after --")

    def add_device(self) -> None:
        """``--device``, as main.py has it; ``resolve_device`` reads it."""
        self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def at_least(minimum: int) -> Callable[[str], int]:
    """For ``add_argument(type=...)``: a whole number that is not below ``minimum``."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return whole_number


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the code that ``main`` returns; what the user did wrong is told in one line, with code 2.

    ``kill`` ends it as Ctrl-C does, so that what it has started can be ended too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with lasting_output():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
            sys.exit(130)
        except UserError as error:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
            sys.exit(2)


def to_json(results: Any) -> str:
    """Indented JSON without NaN and infinities, which JSON does not know: null in their place."""
    return json.dumps(finite(results), indent=2, allow_nan=False, default=_number) + "\n"


def _number(value: Any) -> float | None:
    """NumPy's and PyTorch's scalars as Python's."""
    number: float | None = finite(float(value))
    return number


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, without a line break at its end. A row that is too short is filled up with empty cells."""
    filled = ([*map(str, row), *[""] * (len(head) - len(row))] for row in rows)
    return "\n".join(markdown_table(head, filled))


def threads_each(jobs: int) -> int:
    """Threads for each of so many processes at a time that share the cores this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def portable(words: Sequence[str]) -> list[str]:
    """A command's words, with ROOT and DIR for the folders of data and results, which are others on every machine."""
    places = {"--root": "ROOT", "--out": "DIR"}
    return [places.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def ran_on(results: Mapping[str, Any]) -> str:
    """Device and version, for the line below a table; ``results`` hold ``framework.report.environment``."""
    return f"{results['device']}, torch {results['torch']}"


def write_results(out: Path, name: str, results: Any, text: str) -> None:
    """Write ``out/name.json`` and ``out/name.md``: both, or neither where one of them cannot be written.

    Args:
        out: an existing folder; see ``make_folder``.
        name: of the files.
        results: whatever ``to_json`` takes.
        text: Markdown.

    Raises:
        UserError: the files cannot be written.
    """
    content = to_json(results).encode()

    def write(file: Any) -> None:
        file.write(content)
        file.flush()
        write_text(out / f"{name}.md", text + "\n")  # now: the JSON is on the disk, under a temporary name still

    write_atomically(out / f"{name}.json", write)


def resident_mib(key: str) -> float:
    """This process's resident memory now (``VmRSS``) or at most (``VmHWM``), in MiB; Linux."""
    return _kib(Path("/proc/self/status"), key) / 1024


def _kib(path: Path, key: str) -> int:
    """The value of a line ``key: value kB``."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{key}:"))
