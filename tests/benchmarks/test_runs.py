"""Runs that a study starts: none outlives it, whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cli import HANGS, ROOT, TINY

import runs
from framework.errors import UserError
from framework.files import LAST

FAKE = """
import pathlib, signal, sys, time

def stop(number, frame):
    pathlib.Path(sys.argv[1], "asked").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "began").write_text("now")
time.sleep(600)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In main.py's place a program that goes on until it is asked to stop."""
    (tmp_path / "main.py").write_text(FAKE)
    monkeypatch.setattr(runs, "ROOT", tmp_path)


def waited_for(path: Path) -> bool:
    """Whether the file is there, and not empty, within some minutes."""
    for _ in range(6000):
        if path.exists() and path.stat().st_size:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.usefixtures("fake")
def test_a_job_that_fails_stops_the_others(tmp_path: Path) -> None:
    begun: list[str] = []

    def work(name: str) -> None:
        begun.append(name)
        if name == "fails":
            assert waited_for(tmp_path / "goes on" / "began")
            raise UserError("its time is over")
        runs.execute(name, [str(tmp_path / name)], tmp_path / name, float("inf"), 1)

    with pytest.raises(UserError, match="its time is over"):
        runs.do_all(work, ["goes on", "fails", *map(str, range(100))], 2)
    assert (tmp_path / "goes on" / "asked").exists()
    assert len(begun) < 5  # one may have begun in the failed one's place


@pytest.mark.usefixtures("fake")
def test_a_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    assert not runs.execute("run", [str(tmp_path / "run")], tmp_path / "run", 5, 1)


def test_whoever_ends_a_study_ends_its_runs(tmp_path: Path) -> None:
    """Only the study itself is told, as by ``kill``; its run leaves a checkpoint, from which the study continues."""
    flags = [*TINY, "--epochs", "1000000", "--test_freq", "1000000"]
    command = [sys.executable, "benchmarks/study.py", "--out", str(tmp_path), "--variant", "a", "", "--seeds", "0"]
    study = subprocess.Popen(
        [*command, "--", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    folder = tmp_path / "a" / "seed0"
    assert waited_for(folder / "metrics.jsonl")
    children = psutil.Process(study.pid).children(recursive=True)
    assert children
    study.send_signal(signal.SIGTERM)
    _, told = study.communicate(timeout=HANGS)
    assert (study.returncode, told) == (130, "study.py: stopped\n")
    assert not any(child.is_running() for child in children)
    assert (folder / LAST).exists()
