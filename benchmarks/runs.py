"""Runs of main.py that a study starts, several at a time. None of them outlives the study."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import TypeVar

from common import ROOT

T = TypeVar("T")

_RUNNING: set["subprocess.Popen[bytes]"] = set()
_STOPPING = Event()


def do_all(work: Callable[[T], object], jobs: Iterable[T], at_a_time: int) -> None:
    """Do the work of every job in a thread, so many at a time.

    Whatever ends this early, a job that fails or a signal, first asks all runs to checkpoint and stop.
    """
    pool = ThreadPoolExecutor(at_a_time)
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            future.result()
    except BaseException:
        _STOPPING.set()
        for process in tuple(_RUNNING):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        _STOPPING.clear()


def execute(title: str, arguments: list[str], folder: Path, seconds: float, threads: int) -> bool:
    """Run main.py, what it says going to ``folder/output.txt``; after so many seconds ask it to checkpoint and stop.

    Returns:
        Whether it ended by itself.

    Raises:
        SystemExit: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "main.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    print(f"{title}: {' '.join(command[1:])}", flush=True)
    with open(folder / "output.txt", "a") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _RUNNING.add(process)
        if _STOPPING.is_set():  # it was too late for the others' request
            process.terminate()
        try:
            process.wait(None if seconds == float("inf") else max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.terminate()  # does nothing to one that has ended
            process.wait()
            _RUNNING.discard(process)
    if process.returncode != 0:
        said = (folder / "output.txt").read_text().splitlines() or ["it said nothing"]
        raise SystemExit(f"{title} failed ({process.returncode}): {said[-1]}")
    return True
