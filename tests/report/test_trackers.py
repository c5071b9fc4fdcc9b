"""What trackers are sent, by a stand-in for their packages; and that one which fails ends no run."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from framework.config.bptt import parse
from framework.errors import UserError
from framework.report.metrics import Reporter
from framework.report.trackers import Tracker, tiled


class Package(ModuleType):
    """Has wandb's and trackio's functions, and keeps what they are called with."""

    def __init__(self, name: str, fails: str = "") -> None:
        super().__init__(name)
        self.fails = fails
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.Image = lambda pixels: pixels.shape

    def _note(self, function: str, **arguments: Any) -> None:
        self.calls.append((function, arguments))
        if function == self.fails:
            raise RuntimeError("no\nnetwork")

    def init(self, **arguments: Any) -> None:
        self._note("init", **arguments)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._note("log", values=values, step=step)

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setitem(sys.modules, "trackio", stand_in := Package("trackio"))
    return stand_in


def test_a_tracker_gets_flags_numbers_and_pictures(package: Package, tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, 3, trackers=[Tracker("trackio", "mine", {"lr": 0.5, "gap": float("nan")}, tmp_path)])
    reporter.log("step", 2, loss=0.25, stage="early", epoch=1)
    reporter.pictures("synthetic images", torch.rand(12, 1, 4, 4), 2)
    reporter.close()
    assert package.calls == [
        ("init", {"project": "at-bptt", "name": "mine", "config": {"lr": 0.5, "gap": None}}),
        ("log", {"values": {"step/loss": 0.25, "step/epoch": 1}, "step": 2}),
        ("log", {"values": {"synthetic images": (8, 40, 3)}, "step": 2}),
        ("finish", {}),
    ]


def test_a_tracker_that_fails_is_told_of_once_and_ends_no_run(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package.fails = "log"
    reporter = Reporter(tmp_path, 3, trackers=[Tracker("trackio", "mine", {}, tmp_path)])
    for step in (1, 2):
        reporter.log("step", step, loss=0.25)
    reporter.close()
    assert [name for name, _ in package.calls] == ["init", "log"]
    assert capsys.readouterr().err.count("--track trackio: no network; nothing more is sent there\n") == 1
    assert len([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]) == 2


def test_a_tracker_that_does_not_start_is_one_line(package: Package, tmp_path: Path) -> None:
    package.fails = "init"
    with pytest.raises(UserError, match=r"^--track trackio: cannot be started \(no network\); log in there, or leave"):
        Tracker("trackio", "mine", {}, tmp_path)


def test_pictures_are_tiled_row_by_row() -> None:
    images = torch.arange(12).div(255).view(12, 1, 1, 1).expand(12, 1, 2, 3)
    sheet = tiled(images)
    assert sheet.shape == (4, 30, 3)
    expected = np.zeros((2, 10), np.uint8)
    expected.flat[:12] = range(12)
    assert (sheet == expected.repeat(2, 0).repeat(3, 1)[:, :, None]).all()


@pytest.mark.parametrize(
    ("flags", "trackers"),
    [([], ()), (["--wandb"], ("wandb",)), (["--track", "tensorboard", "trackio", "wandb"], ("wandb", "trackio")),
     (["--track", "wandb", "--wandb"], ("wandb",)), (["--track", "tensorboard"], ())],
)  # fmt: skip
def test_trackers_are_chosen_by_flags(flags: list[str], trackers: tuple[str, ...]) -> None:
    assert parse(flags)[0].trackers == trackers
