"""What a run would be, told without running it: ``--dry_run``."""

from pathlib import Path

import torch
from torch import nn

from framework import networks
from framework.config import RESIZING, Config, check_against_data
from framework.data import describe
from framework.distributed import resolve_device
from framework.engines import CHUNK

# Measured by benchmarks/memory_estimate.py, as multiples of the floats that one forward pass writes.
WINDOW_GRAPH = 1.5  # higher: kept for every differentiated step and image
STEP_GRAPH = 3.5  # replay: at the peak of one step's second derivative, for every image of a chunk
REAL_GRAPH = 2.0  # at the peak of the real batch's gradient, for every image differentiated at a time
WINDOW_PARAMETERS = 12  # higher: vectors of theta's size per differentiated step
TAPE_PARAMETERS = 4  # replay: theta, both moments and the gradient per differentiated step


def activation_floats(module: nn.Module, channels: int, side: int) -> int:
    """Numbers that one image's forward pass writes, summed over layers. ``module`` must be on ``meta``."""
    total = 0

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if not list(layer.children())]
    module(torch.empty(1, channels, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def window_bytes(engine: str, module: nn.Module, channels: int, side: int, length: int, batch: int) -> float:
    """Estimated additional peak memory of ``length`` differentiated steps on ``batch`` images.

    Args:
        engine: ``higher`` or ``replay``.
        module: the network, on ``meta``.
        channels, side: of its images.
        length: of the window.
        batch: synthetic images per step.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    floats = activation_floats(module, channels, side)
    if engine == "higher":
        return 4 * length * (WINDOW_GRAPH * floats * batch + WINDOW_PARAMETERS * parameters)
    return 4 * (STEP_GRAPH * floats * min(batch, CHUNK) + TAPE_PARAMETERS * parameters * length)


def real_bytes(engine: str, floats: int, batch: int) -> float:
    """Estimated peak memory of the gradient of ``batch`` real images, each with ``floats`` activations."""
    return 4 * REAL_GRAPH * floats * (batch if engine == "higher" else min(batch, CHUNK))


def longest_window(config: Config) -> int:
    """The most inner steps that the run's policy will ever have differentiated."""
    radius = config.d if config.d is not None and config.policy in RESIZING else 0
    return config.totwindow if config.policy == "bptt" else min(config.window + radius, config.totwindow)


def preview(config: Config) -> str:
    """The resolved configuration, method, steps per epoch and an estimate of memory, as text."""
    c = config
    device = resolve_device(c.device_name)
    info = describe(c.dataset, Path(c.root), c.im_size)
    classes = info.num_classes or 10
    check_against_data(c, classes if info.num_classes else None, info.image_size)
    with torch.device("meta"):
        module = networks.build(c.arch, info.channels, info.image_size, classes, width=c.width, depth=c.depth)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    floats = activation_floats(module, info.channels, info.image_size)
    batch = (c.task_sampler_nc or classes) * c.batch_per_class
    length = longest_window(c)
    window = window_bytes(c.engine_name, module, info.channels, info.image_size, length, batch)
    lines = [
        c.to_json(),
        "",
        f"method: {c.policy}, at most {length} of {c.totwindow} inner steps differentiated, engine {c.engine_name}",
    ]
    lines.append(f"device: {device}")
    lines.append(
        f"network: {c.arch}, {parameters:,} parameters, {info.channels} x {info.image_size} x {info.image_size} images"
    )
    if info.num_classes is None:
        lines.append(f"classes: unknown, --root {c.root} is not here; the estimate assumes {classes}")
    real_batch = c.batch_size
    data = 0
    if info.train_size is None:
        lines.append("steps per epoch: unknown until --root is here")
    else:
        train = info.train_size if c.select == "test" else round(info.train_size * (1 - c.val_fraction))
        train = min(train, c.limit_train or train)
        real_batch = min(c.batch_size, train)
        steps = max(1, train // real_batch)
        total = steps * (c.epochs - c.start_epoch)
        lines.append(f"steps per epoch: about {steps} ({train:,} real images, {real_batch} per step), {total:,} in all")
        pixels = info.channels * info.image_size**2
        data = 4 * pixels * (info.train_size + (info.test_size or 0))
    real = real_bytes(c.engine_name, floats, real_batch)
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
