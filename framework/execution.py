"""How a run's arithmetic is carried out: what ``--engine auto`` and ``--accelerate auto`` stand for on a device."""

import torch

from framework.config import Config, UserError
from framework.kernels import CHUNK, Execution, has_compiler

# benchmarks/metagrad.py on two cores: compiling takes about a minute, and saves this much of each image's step.
SAVED_SECONDS = 8e-9  # per number that one forward pass writes
WORTH_SECONDS = 300.0  # compile where more than this would be saved


def choose(config: Config, device: torch.device, activations: int, image_steps: float) -> Execution:
    """The execution that the flags ask for.

    Args:
        config: the flags.
        device: where the run will be.
        activations: numbers that one image's forward pass writes.
        image_steps: differentiated inner steps of the whole run, times images per step.

    Raises:
        UserError: what is asked for does not exist here.
    """
    c, cuda = config, device.type == "cuda"
    per_sample = c.norm != "batch"
    compilable = per_sample and device.type in ("cpu", "cuda") and has_compiler(device)
    compiled, graphs = c.accelerate in ("compile", "both"), c.accelerate in ("graphs", "both")
    if c.precision == "tf32" and not cuda:
        raise UserError(f"--precision tf32: only CUDA devices have it, this run is on {device.type}; give float32")
    if graphs and not cuda:
        raise UserError(f"--accelerate {c.accelerate}: CUDA graphs need a CUDA device, this run is on {device.type}; "
                        "give auto, compile or none")  # fmt: skip
    if compiled and not compilable:
        why = "needs a C++ compiler (and Triton on CUDA)" if per_sample else "does not support --norm batch"
        raise UserError(f"--accelerate {c.accelerate}: torch.compile {why}; give auto or none")
    if c.accelerate == "auto" and c.engine != "higher":
        graphs = cuda
        compiled = device.type == "cpu" and compilable and image_steps * activations * SAVED_SECONDS > WORTH_SECONDS
    return Execution(
        chunk=c.chunk or CHUNK.get(device.type, CHUNK["cpu"]),
        precision=c.precision,
        channels_last=c.channels_last,
        compile=compiled,
        graphs=graphs,
        together=cuda and per_sample,
    )


def set_device_precision(precision: str) -> None:
    """Let CUDA use TF32 for float32 arithmetic, or not; PyTorch's own default differs between layers."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
