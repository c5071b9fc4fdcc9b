"""A run to which something happens at a state, not at a time: just before or after it saves a given outer step.

Usage: python signalled.py EVENT before|after STEP FLAGS OF main.py
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from framework import base
from framework.base import main_worker
from framework.config.bptt import Config
from framework.run import checkpoint, launch
from framework.run.distributed import Comm
from main import main


def stop_everybody(pids: list[int]) -> None:
    """Ask the parent of all ranks to stop, as a scheduler does, and wait until it has passed that on to this one."""
    heard: list[int] = []
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)

    def note(number: int, frame: Any) -> None:
        heard.append(number)
        handler(number, frame)

    signal.signal(signal.SIGTERM, note)
    os.kill(os.getppid(), signal.SIGTERM)
    while not heard:
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, handler)


# Called on rank 0, with the processes of all ranks.
EVENTS: dict[str, Callable[[list[int]], None]] = {
    "SIGKILL": lambda pids: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda pids: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda pids: os.kill(os.getpid(), signal.SIGINT),
    "SIGKILL to rank 1": lambda pids: os.kill(pids[1], signal.SIGKILL),
    "SIGTERM to the parent": stop_everybody,
}


def worker(config: Config, comm: Comm, device: torch.device) -> int:
    """A run with the event that the environment names."""
    event, when, step = os.environ["EVENT"].split(",")
    pids, save = comm.gather(os.getpid()), checkpoint.save_run
    happened: list[str] = []

    def save_run(folder: Path, state: dict[str, Any]) -> None:
        due = state["progress"]["step"] == int(step) and not happened
        if due:  # once: whoever stops saves the same step again
            happened.append(event)
        if due and when == "before":
            EVENTS[event](pids)
        save(folder, state)
        if due and when == "after":
            EVENTS[event](pids)

    with patch.object(checkpoint, "save_run", save_run):
        return main_worker(config, comm, device)


if __name__ == "__main__":
    os.environ["EVENT"] = ",".join(sys.argv[1:4])  # for the processes that this one starts
    # The others may take as long as they like to save and leave after one has ended.
    with patch.object(launch, "GRACE", 3600.0), patch.object(base, "main_worker", worker):
        sys.exit(main(sys.argv[4:]))
