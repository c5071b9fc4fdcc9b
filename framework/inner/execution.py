"""How a run's arithmetic is carried out: what ``--engine auto`` and ``--accelerate auto`` stand for on a device."""

import ctypes
import sys
from dataclasses import dataclass

import torch

from framework.errors import UserError
from framework.inner.kernels import Execution, has_compiler
from framework.inner.names import CHUNK

# Compiling takes half a minute on a CPU, a minute on a GPU. What it saves of a differentiated step was measured with
# ConvNets on digits and MNIST (scripts/study.sh's settings) and at the CIFAR-10 shape (benchmarks/metagrad.py); on a
# GPU inside of graphs, where a layer costs nothing by itself.
SAVED_PER_NUMBER = {"cpu": 5e-9, "cuda": 7.5e-11}  # seconds, for each number that the forward pass writes
SAVED_PER_LAYER = {"cpu": 5e-4, "cuda": 0.0}  # and for each layer, however little it has to do
WORTH_SECONDS = 180.0  # compile where more than this would be saved
# Numbers that a chunk's forward pass writes on a CPU: more of them take no less time (docs/engines.md), but memory.
CHUNK_NUMBERS = 14e6


@dataclass(frozen=True)
class Work:
    """What a run differentiates, as far as it is known beforehand."""

    steps: int = 0  # inner steps that are differentiated, in the whole run
    images: int = 0  # of each of them
    activations: int = 0  # numbers that one image's forward pass writes
    layers: int = 0  # that write them

    def saved_by_compiling(self, device: torch.device) -> float:
        """About how many seconds compiled programs save, on one core or one GPU."""
        numbers, layers = SAVED_PER_NUMBER[device.type], SAVED_PER_LAYER[device.type]
        return self.steps * (self.images * self.activations * numbers + self.layers * layers)


def auto_chunk(device: torch.device, activations: int) -> int:
    """Images differentiated at a time where nobody says.

    Args:
        device: where the run will be.
        activations: numbers that one image's forward pass writes.
    """
    if device.type == "cuda":
        return CHUNK
    return max(1, min(CHUNK, round(CHUNK_NUMBERS / max(1, activations))))


def choose(
    accelerate: str,
    device: torch.device,
    work: Work,
    *,
    per_sample: bool = True,
    replayed: bool = True,
    chunk: int | None = None,
    precision: str = "float32",
    channels_last: bool = False,
) -> Execution:
    """The execution that is asked for, on a device.

    Args:
        accelerate: ``auto``, ``none``, ``compile``, ``graphs`` or ``both``.
        device: where the run will be.
        work: what there is to compute.
        per_sample: in training, the network's output for an image does not depend on the others in its batch.
        replayed: the engine runs each step by itself, not in a graph of the whole window.
        chunk, precision, channels_last: see ``Execution``; ``chunk`` None: see ``auto_chunk``.

    Raises:
        UserError: what is asked for does not exist here.
    """
    cuda = device.type == "cuda"
    compilable = per_sample and device.type in ("cpu", "cuda") and has_compiler(device)
    compiled, graphs = accelerate in ("compile", "both"), accelerate in ("graphs", "both")
    if precision == "tf32" and not cuda:
        raise UserError(f"--precision tf32: only CUDA devices have it, this run is on {device.type}; give float32")
    if graphs and not cuda:
        raise UserError(f"--accelerate {accelerate}: CUDA graphs need a CUDA device, this run is on {device.type}; "
                        "give auto, compile or none")  # fmt: skip
    if compiled and not compilable:
        needs = "needs a C++ compiler and Python.h (python3-dev), on CUDA Triton and a device of capability 7.0 too"
        why = needs if per_sample else "does not support --norm batch"
        raise UserError(f"--accelerate {accelerate}: torch.compile {why}; give auto or none")
    if accelerate == "auto" and replayed:
        graphs = cuda
        compiled = compilable and work.saved_by_compiling(device) > WORTH_SECONDS
    return Execution(
        chunk=chunk or auto_chunk(device, work.activations),
        precision=precision,
        channels_last=channels_last,
        compile=compiled,
        whole=compiled and not cuda,
        graphs=graphs,
        together=cuda and per_sample,
    )


def set_device_precision(precision: str) -> None:
    """Let CUDA use TF32 for float32 arithmetic, or not; PyTorch's own default differs between layers."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep memory that it has freed, for what it allocates next; for work on the CPU.

    By default glibc returns large blocks to the system, and every new tensor pays for its pages again: up to half of
    an inner step's time. The peak stays what it was for replay; a graph of the whole window takes up to a fifth more
    (benchmarks/metagrad.py).

    Returns:
        Whether the C library could be told so; others than glibc have their own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, 2**31 - 1) and mallopt(M_TRIM_THRESHOLD, -1))


def configure_process(device: torch.device, precision: str) -> None:
    """What a process that computes on ``device`` sets for all of its work."""
    set_device_precision(precision)
    if device.type == "cpu":
        keep_freed_memory()
