"""How a run's processes start, hear signals and end: one process, one per device, a scheduler's, or nodes by hand."""

import atexit
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from framework.config.common import Common
from framework.errors import UserError
from framework.inner.execution import configure_process
from framework.output import lasting_output
from framework.run.distributed import Comm, PeerLost, resolve_device
from framework.run.interrupt import SIGNALS
from framework.run.place import find_place

GRACE = 10.0  # seconds that the others get to save and leave after one process has ended; twice that, then SIGKILL


C = TypeVar("C", bound=Common)
Worker = Callable[[C, Comm, torch.device], int]


Messages = SimpleQueue[tuple[int, str]]  # rank on this node, and the one line it leaves with


def launch(worker: Worker[C], config: C) -> int:
    """Run ``worker`` in as many processes as the flags or the environment ask for; see ``find_place``.

    Returns:
        The exit code: 0, or that of the process that ended the run.

    Raises:
        UserError: what a worker raised, that one of them was killed, or that the environment is wrong.
    """
    if (place := find_place(config, os.environ)) is not None:
        if place.local_rank is not None:
            return _join_alone(worker, config, place.rank, place.local_rank, place.size, place.url)
        config = replace(config, world_size=place.size, rank=place.rank, dist_url=place.url)
    nproc = 1
    if config.mp_distributed:
        nproc = config.nproc or (torch.cuda.device_count() if config.device_name in ("auto", "cuda") else 1) or 1
    if nproc * config.world_size == 1:
        return _work(worker, config, Comm(), resolve_device(config.device_name))
    # A file, not a port: another program could take a free port before the processes do.
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder, "meet").as_uri()
        if config.world_size > 1:
            assert config.dist_url is not None, "see config.validate"
            url = config.dist_url
        if nproc == 1:  # one of several nodes
            return _join_alone(worker, config, config.rank, 0, config.world_size, url)
        messages: Messages = get_context("spawn").SimpleQueue()
        arguments = (worker, config, nproc, url, messages)
        context = start_processes(_spawned, args=arguments, nprocs=nproc, join=False, start_method="spawn")
        assert context is not None
        return _supervise(context, messages, first_rank=config.rank * nproc)


def join(worker: Worker[C], config: C, rank: int, local_rank: int, size: int, url: str) -> int:
    """Run ``worker`` as process ``rank`` of ``size`` that meet at ``url``. Returns its exit code."""
    device = resolve_device(config.device_name, local_rank)
    backend = config.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
    if backend == "nccl":
        if device.type != "cuda":
            raise UserError(f"--dist_backend nccl needs CUDA devices, this is {device}: give gloo")
        # Tensors by NCCL; words between hosts by gloo, which need not wait for the device and notices a lost peer.
        backend = "cpu:gloo,cuda:nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=timedelta(minutes=30))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"rank {rank} cannot meet the others at {url} ({reason}): check --dist-url and --rank, or MASTER_ADDR, "
            "MASTER_PORT and RANK"
        ) from error
    code = _work(worker, config, Comm(rank, size), device)
    dist.destroy_process_group()  # only here: after a failure it could wait for a process that is gone
    return code


def leave(code: int) -> NoReturn:
    """End a process of several without the interpreter's clean-up, in which threads of its group can abort it."""
    for stream in (sys.stdout, sys.stderr):  # None where a process was started without it
        if stream is not None:
            with suppress(OSError):
                stream.flush()
    os._exit(code)


def _join_alone(worker: Worker[C], config: C, rank: int, local_rank: int, size: int, url: str) -> int:
    """``join`` where nobody of ours waits for this process: it has to say itself why it fails."""
    try:
        code = join(worker, config, rank, local_rank, size, url)
        atexit.register(os._exit, code)  # as ``leave``, once all has been said
        return code
    except PeerLost as error:
        said, code = f"stopped by {error}", PeerLost.exit_code
    except UserError as error:
        said, code = str(error), 2
    print(f"main.py: error: {said}", file=sys.stderr)
    leave(code)


def _work(worker: Worker[C], config: C, comm: Comm, device: torch.device) -> int:
    configure_process(device, config.precision)
    with deterministic_algorithms(config.deterministic):
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return worker(config, comm, device)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Have PyTorch use only algorithms that give the same bits every time; CUDA must not be in use yet."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _spawned(local_rank: int, worker: Worker[C], config: C, nproc: int, url: str, messages: Messages) -> None:
    """One process; its last words go to the parent, which prints only those of the process to blame."""
    with lasting_output():
        code = _run_spawned(local_rank, worker, config, nproc, url, messages)
    leave(code)


def _run_spawned(local_rank: int, worker: Worker[C], config: C, nproc: int, url: str, messages: Messages) -> int:
    try:
        code = join(worker, config, config.rank * nproc + local_rank, local_rank, nproc * config.world_size, url)
    except UserError as error:
        messages.put((local_rank, str(error)))
        code = 2
    except PeerLost as error:
        messages.put((local_rank, str(error)))
        code = PeerLost.exit_code
    except Exception:  # a fault of the program: here, as the parent sees only an exit code
        traceback.print_exc()
        code = 1
    return code


def _supervise(context: ProcessContext, messages: Messages, first_rank: int) -> int:
    """Wait for this node's processes. The first to fail ends them all, within three times ``GRACE`` seconds.

    Returns:
        The exit code.

    Raises:
        UserError: what that process raised, or that it was killed.
    """
    stops: list[int] = []
    with _passed_on(context.pids(), stops):
        try:
            while not context.join(grace_period=GRACE):
                pass
            return 0
        except ProcessExitedException as error:
            first = error.error_index
    codes = [process.exitcode for process in context.processes]
    if codes[first] == PeerLost.exit_code:  # a witness, not the culprit, which may be on another node
        first = next((i for i, code in enumerate(codes) if code not in (0, PeerLost.exit_code)), first)
    said = {}
    while not messages.empty():
        rank, text = messages.get()
        said[rank] = text
    code = int(codes[first])
    if code < 0 and stops:  # a signal that came before the run could note it
        return 128 + stops[0]
    if code < 0:
        raise UserError(
            f"rank {first_rank + first} (process {context.pids()[first]}) was killed by {signal.Signals(-code).name} "
            "(out of memory, if you did not kill it), so all were stopped; continue with --resume"
        )
    if first in said:
        raise UserError(said[first])
    return code


@contextmanager
def _passed_on(processes: list[int], stops: list[int]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to ``processes`` and go on waiting; they save and leave by themselves."""

    def handle(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
