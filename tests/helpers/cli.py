"""A run small enough for a test, started through the command line's own door."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from main import main

ROOT = Path(__file__).resolve().parents[2]

TINY = [
    *("--dataset", "digits", "--depth", "1", "--width", "4", "--device", "cpu"),
    *("--inner_optim", "Adam", "--inner_lr", "0.01", "--batch_size", "300", "--epochs", "3"),
    *("--ddtype", "curriculum", "--cctype", "2", "--window", "3", "--totwindow", "8"),
    *("--test_freq", "1", "--num_train_eval", "2", "--eval_steps", "4", "8", "--print_freq", "1"),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that must be refused, with code 2, says on stderr."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    assert code == 2
    return capsys.readouterr().err


def start(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """Run main.py in a process of its own."""
    command = [sys.executable, "main.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[str]") -> None:
    """Until the metrics show that ``step`` outer steps were taken and a checkpoint exists."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = folder / "metrics.jsonl"
        if (folder / "last.pt").exists() and metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


def difference(one: Any, two: Any, where: str = "") -> str | None:
    """The path to the first difference between two nested checkpoints, None where they are bit-identical."""
    if isinstance(one, torch.Tensor):
        return None if one.dtype == two.dtype and torch.equal(one, two) else where
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return where + ".keys"
        pairs: Any = ((key, one[key], two[key]) for key in one)
    elif isinstance(one, list | tuple):
        if len(one) != len(two):
            return where + ".len"
        pairs = ((i, a, b) for i, (a, b) in enumerate(zip(one, two, strict=True)))
    else:
        return None if one == two else where
    return next((found for key, a, b in pairs if (found := difference(a, b, f"{where}.{key}"))), None)
