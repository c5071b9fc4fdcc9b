"""Processes: how they are started and the few things they say to each other.

Every rank trains an inner network of its own on its share of the real batch; meta-gradients are
averaged. Rank 0 alone decides and writes. With one process every method here is trivial.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from framework.config import Config, UserError

T = TypeVar("T")


class Comm:
    """This process's place among its peers."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean of each tensor over all ranks, in one message."""
        if self.size == 1:
            return tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def from_main(self, value: T) -> T:
        """Rank 0's ``value``, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        box: list[T] = [value] * self.size
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            dist.barrier()


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that ``--device`` (or ``--gpu``) names, for this process of its node.

    Raises:
        UserError: it does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: give auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise UserError(f"--device {name}: this machine shows {count} CUDA devices; give --device cpu or a lower N")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; give --device cpu")
    if device.type not in ("cpu", "mps"):
        raise UserError(f"--device {name}: give auto, cpu, cuda, cuda:N or mps")
    return device


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


Worker = Callable[[Config, Comm, torch.device], int]


def _join(worker: Worker, config: Config, rank: int, local_rank: int, size: int, url: str) -> int:
    device = resolve_device(config.device_name, local_rank)
    backend = config.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=timedelta(minutes=30))
    try:
        return worker(config, Comm(rank, size), device)
    finally:
        dist.destroy_process_group()


def _spawned(local_rank: int, worker: Worker, config: Config, nproc: int, url: str) -> None:
    try:
        code = _join(worker, config, config.rank * nproc + local_rank, local_rank, nproc * config.world_size, url)
    except UserError as error:
        print(f"main.py: error: {error}", flush=True)
        code = 2
    if code:
        raise SystemExit(code)


def launch(worker: Worker, config: Config) -> int:
    """Run ``worker`` in as many processes as the flags or torchrun's environment ask for.

    Returns:
        The exit code: 0, or the first non-zero one.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun, which gives every process its place
        rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        return _join(worker, config, rank, local_rank, size, "env://")
    nproc = 1
    if config.mp_distributed:
        nproc = config.nproc or (torch.cuda.device_count() if config.device_name in ("auto", "cuda") else 1) or 1
    if nproc * config.world_size == 1:
        return worker(config, Comm(), resolve_device(config.device_name))
    url = config.dist_url or f"tcp://127.0.0.1:{_free_port()}"
    try:
        start_processes(_spawned, args=(worker, config, nproc, url), nprocs=nproc, start_method="spawn")
    except ProcessExitedException as error:
        return error.exit_code
    return 0
