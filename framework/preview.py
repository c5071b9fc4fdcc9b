"""What a run would be, told without running it: ``--dry_run``."""

from pathlib import Path

import torch
from torch import nn

from framework import networks
from framework.cache import default_folder
from framework.config import Config, check_against_data
from framework.data import describe, streams
from framework.distributed import resolve_device
from framework.engines import kept_vectors, segment
from framework.execution import choose
from framework.kernels import Execution

# Measured by benchmarks/memory_estimate.py, as multiples of the floats that one forward pass writes.
WINDOW_GRAPH = 1.5  # higher: kept for every differentiated step and image
STEP_GRAPH = 3.5  # replay: at the peak of one step's second derivative, for every image of a chunk
REAL_GRAPH = 2.0  # at the peak of the real batch's gradient, for every image differentiated at a time
WINDOW_PARAMETERS = 12  # higher: vectors of theta's size per differentiated step


def window_bytes(
    engine: str, module: nn.Module, channels: int, side: int, length: int, batch: int, chunk: int, samples: int = 0
) -> float:
    """Estimated additional peak memory of ``length`` differentiated steps on ``batch`` images.

    Args:
        engine: ``higher``, ``replay`` or ``lowrank``.
        module: the network, on ``meta``.
        channels, side: of its images.
        length: of the window.
        batch: synthetic images per step.
        chunk: images differentiated at a time.
        samples: columns of a low-rank factorisation.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    floats = networks.activation_floats(module, channels, side)
    if engine == "higher":
        return 4 * length * (WINDOW_GRAPH * floats * batch + WINDOW_PARAMETERS * parameters)
    vectors = kept_vectors(length, segment(length)) + 4 * samples
    return 4 * (STEP_GRAPH * floats * min(batch, chunk) + vectors * parameters)


def step_bytes(
    config: Config, execution: Execution, module: nn.Module, channels: int, side: int, classes: int, real_batch: int
) -> tuple[float, float]:
    """Estimated additional peak memory of one process's outer step: of its window, and of its real batch.

    Args:
        config, execution: of the run.
        module: the network, on ``meta``.
        channels, side: of its images.
        classes: of the data set.
        real_batch: real images of this process.
    """
    c = config
    batch = c.inner_batch(classes)
    whole = c.norm == "batch"
    at_once = c.meta_batch if execution.together else 1
    window = window_bytes(
        c.engine_name, module, channels, side, c.longest_window, batch, batch if whole else execution.chunk,
        c.lowrank_rank + c.lowrank_oversampling if c.engine_name == "lowrank" else 0,
    )  # fmt: skip
    images = real_batch if whole or c.engine_name == "higher" else min(real_batch, execution.chunk)
    return at_once * window, at_once * 4 * REAL_GRAPH * images * networks.activation_floats(module, channels, side)


def preview(config: Config) -> str:
    """The resolved configuration, method, steps per epoch and an estimate of memory, as text."""
    c = config
    device = resolve_device(c.device_name)
    info = describe(c.dataset, Path(c.root), c.im_size)
    classes = info.num_classes or 10
    check_against_data(c, classes if info.num_classes else None, info.image_size)
    with torch.device("meta"):
        module = networks.build(c.arch, info.channels, info.image_size, classes, **c.network)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    floats = networks.activation_floats(module, info.channels, info.image_size)
    batch = c.inner_batch(classes)
    length = c.longest_window
    lines = [c.to_json(), "", f"method: {c.policy}, at most {length} of {c.totwindow} inner steps differentiated"]
    lines.append(f"device: {device}")
    lines.append(
        f"network: {c.arch}, {parameters:,} parameters, {info.channels} x {info.image_size} x {info.image_size} images"
    )
    if info.num_classes is None:
        lines.append(f"classes: unknown, --root {c.root} is not here; the estimate assumes {classes}")
    real_batch, data, total = c.batch_size, 0, 0
    if info.train_size is None:
        lines.append("steps per epoch: unknown until --root is here")
    else:
        all_train = info.train_size if c.select == "test" else round(info.train_size * (1 - c.val_fraction))
        train = min(all_train, c.limit_train or all_train)
        real_batch = min(c.batch_size, train)
        steps = max(1, train // real_batch)
        total = steps * (c.epochs - c.start_epoch)
        lines.append(f"steps per epoch: about {steps} ({train:,} real images, {real_batch} per step), {total:,} in all")
        images = train + info.train_size - all_train + (info.test_size or 0)
        pixels = images * info.channels * info.image_size**2
        if not streams(c.data_cache, images, info, device):
            data = 4 * pixels
        else:
            lines.append(f"data: streamed from {c.cache_dir or default_folder()}, {size_text(pixels)} once decoded")
    execution = choose(c, device, floats, total * length * batch * c.meta_batch)
    lines.append(f"engine: {c.engine_name} ({execution})")
    window, real = step_bytes(c, execution, module, info.channels, info.image_size, classes, real_batch)
    sizes = {"window": window, "real batch": real, "data": data, "together": window + real + data}
    shown = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
    lines.append(f"memory, within a factor of two: {shown}")
    lines.append(f"folder: {c.folder}")
    return "\n".join(lines)


def size_text(count: float) -> str:
    """``count`` bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
