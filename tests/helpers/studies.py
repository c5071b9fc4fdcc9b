"""Studies of the benchmarks in this process, with the runs that they start or that are made up."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from sets import made_up_summary

import study
from framework.files import write_json
from framework.report.metrics import Reporter
from main import main


def finished(folder: Path, top1: float, evaluations: list[tuple[float, float]], device: str = "cpu (x)") -> None:
    """Write what a finished run leaves; evaluations are (seconds of processor time, accuracy), at a busy processor."""
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", asdict(replace(made_up_summary(top1=top1), device=device)))
    records: list[dict[str, Any]] = [{"kind": "epoch", "step": 1}]
    records += [
        {"kind": "evaluation", "step": i, "seconds": 3 * s + 1, "cpu_seconds": s, "accuracy": a}
        for i, (s, a) in enumerate(evaluations)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def in_this_thread(work: Callable[[Any], object], jobs: Iterable[Any], _: int) -> None:
    """Stands in for ``do_all``: signals, which runs listen to, are the main thread's."""
    for job in jobs:
        work(job)


class StudyHere:
    """A study that runs here.

    Args:
        program: its benchmark.
        words: of every command line of it.
        flags: of main.py, after --.
        capsys: pytest's.
    """

    def __init__(
        self, program: ModuleType, words: Sequence[str], flags: Sequence[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.program, self.words, self.flags, self.capsys = program, words, flags, capsys
        self.started: list[str] = []
        """Titles of all runs, in order."""

    def __call__(self, *more: str) -> str:
        """Give its command with more words; returns what it prints."""
        self.capsys.readouterr()
        with patch.object(sys, "argv", [self.program.__name__, *self.words, *more, "--", *self.flags]):
            self.program.main()
        return self.capsys.readouterr().out

    @contextmanager
    def ready(self) -> Iterator[None]:
        """While open, runs are no processes of their own and draw no plots."""
        with (
            patch.object(study, "execute", self._execute),
            patch.object(self.program, "do_all", in_this_thread),
            patch.object(Reporter, "plot", lambda *_, **about: None),
        ):
            yield

    def _execute(self, title: str, arguments: list[str], *_: object) -> bool:
        self.started.append(title)
        assert main(arguments) == 0
        return True
