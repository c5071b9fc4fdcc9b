"""Processes: the few things they say to each other. How they are started: ``run.launch``.

Every rank trains an inner network of its own on its share of the real batch; meta-gradients are
averaged. Rank 0 alone decides and writes. With one process every method here is trivial.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from framework.errors import UserError

T = TypeVar("T")


class PeerLost(Exception):
    """Another process of the run has ended; nothing more can be said to anybody."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


@contextmanager
def _talking() -> Iterator[None]:
    """Within this there are only messages: if one fails, somebody is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("the loss of another process, whose own output says why") from error


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
        with _talking():
            dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        # Of several precisions, all are sent in the highest.
        return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]

    def from_main(self, value: T) -> T:
        """Rank 0's ``value``, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        with _talking():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        box: list[T] = [value] * self.size
        with _talking():
            dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            with _talking():
                dist.barrier()

    def verify(self, tensors: list[Tensor], name: str) -> None:
        """Check that every rank holds the same bits.

        Args:
            tensors: to compare.
            name: what they are, for the message.

        Raises:
            UserError: on every rank, naming the ranks that differ from rank 0.
        """
        if self.size == 1:
            return
        digest = hashlib.blake2b()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        first, *others = self.gather(digest.hexdigest())
        if odd := [str(rank) for rank, other in enumerate(others, 1) if other != first]:
            raise UserError(
                f"{name} of rank {', '.join(odd)} differs from rank 0's: a fault of memory or network, nothing was "
                "saved since; continue from the last checkpoint with --resume"
            )


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
