"""What a run would be, told without running it: ``--dry_run``."""

from pathlib import Path

import torch
from torch import nn

from framework import networks
from framework.cache import default_folder
from framework.config import RESIZING, Config, check_against_data
from framework.data import describe, streams
from framework.distributed import resolve_device
from framework.engines import kept_vectors, segment
from framework.execution import choose

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
    batch = (c.task_sampler_nc or classes) * c.batch_per_class
    radius = c.d if c.d is not None and c.policy in RESIZING else 0
    length = c.totwindow if c.policy == "bptt" else min(c.window + radius, c.totwindow)  # the longest there can be
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
            lines.append(f"data: streamed from {c.cache_dir or default_folder()}, {_size(pixels)} once decoded")
    execution = choose(c, device, floats, total * length * batch * c.meta_batch)
    lines.append(f"engine: {c.engine_name} ({execution})")
    whole = c.norm == "batch"
    networks_at_once = c.meta_batch if execution.together else 1
    window = networks_at_once * window_bytes(
        c.engine_name, module, info.channels, info.image_size, length, batch, batch if whole else execution.chunk,
        c.lowrank_rank + c.lowrank_oversampling if c.engine_name == "lowrank" else 0,
    )  # fmt: skip
    at_a_time = real_batch if whole or c.engine_name == "higher" else min(real_batch, execution.chunk)
    real = networks_at_once * 4 * REAL_GRAPH * floats * at_a_time
    lines.append(
        f"memory, within a factor of two: window {_size(window)}, real batch {_size(real)}, data {_size(data)}, "
        f"together {_size(window + real + data)}"
    )
    lines.append(f"folder: {c.folder}")
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
