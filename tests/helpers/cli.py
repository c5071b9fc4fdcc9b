"""A run small enough for a test, started through the command line's own door."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.run import checkpoint
from main import main

ROOT = Path(__file__).resolve().parents[2]
HANGS = 600.0  # seconds after which a process is taken to hang for ever: a guard, not a measure of speed

TINY = [
    *("--dataset", "digits", "--depth", "1", "--width", "4", "--device", "cpu"),
    *("--inner_optim", "Adam", "--inner_lr", "0.01", "--batch_size", "300", "--epochs", "3"),
    *("--ddtype", "curriculum", "--cctype", "2", "--window", "3", "--totwindow", "8"),
    *("--test_freq", "1", "--num_train_eval", "2", "--eval_steps", "4", "8", "--print_freq", "1"),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that must be refused, with code 2, says on stderr."""
    code: str | int | None
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    assert code == 2
    return capsys.readouterr().err


def start(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """Run main.py in a process of its own."""
    return _python("main.py", *arguments, **options)


def torchrun(*arguments: str | Path) -> "subprocess.Popen[str]":
    """Start processes of a group by PyTorch's own launcher."""
    return _python("-m", "torch.distributed.run", *arguments)


def _python(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run_signalled(event: str, when: str, step: int, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run main.py so that ``event`` of ``signalled.EVENTS`` comes "before" or "after" outer step ``step`` is saved."""
    program = Path(__file__).with_name("signalled.py")
    command = [sys.executable, str(program), event, when, str(step), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )


@contextmanager
def reserved_port() -> Iterator[int]:
    """A TCP port for a server that is given its number; as long as it is reserved, the system assigns it to nobody."""
    with socket.socket() as holder:
        # With this option, which servers set too, a port can be bound twice as long as only one of both listens.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])


def state_of(folder: Path, *but: str) -> dict[str, Any]:
    """The last checkpoint without what legitimately differs between two runs: folder and clock, and ``but`` these."""
    state = checkpoint.load(folder / "last.pt")
    del state["config"]
    for name in ("seconds", "cpu_seconds", *but):
        del state["progress"][name]
    return state


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
