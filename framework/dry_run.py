"""What a run would be, told without running it: ``--dry_run``."""

import os
from dataclasses import replace
from pathlib import Path

from framework.assemble import (
    bare_network,
    check_against_data,
    check_listing,
    check_packages,
    data_spec,
    execution_for,
)
from framework.config import Config
from framework.data.load import list_data, streams
from framework.data.registry import DatasetInfo, at_hand, describe
from framework.distilled.load import open_stored
from framework.errors import UserError
from framework.files import cache_folder, can_hold
from framework.networks.flat import activation_floats
from framework.run.checkpoint import find_run
from framework.run.distributed import resolve_device
from framework.run.memory import Problem, size_text, step_bytes
from framework.run.place import find_place


def preview(config: Config) -> str:
    """The resolved configuration, method, steps per epoch and an estimate of memory, as text."""
    c = config
    place = find_place(c, os.environ)
    device = resolve_device(c.device_name, 0 if place is None else place.local_rank or 0)
    if can_hold(c.folder):
        find_run(c.folder, c)
    check_packages(c)
    info = _described(c, 1 if place is None else place.size)
    classes = info.num_classes or 10
    module = bare_network(c, info.channels, info.image_size, classes)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    floats = activation_floats(module, info.channels, info.image_size)
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
        all_train, train = _train_sizes(c, info.train_size)
        real_batch = min(c.batch_size, train)
        steps = max(1, train // real_batch)
        total = steps * (c.epochs - c.start_epoch)
        lines.append(f"steps per epoch: about {steps} ({train:,} real images, {real_batch} per step), {total:,} in all")
        images = train + info.train_size - all_train + (info.test_size or 0)
        pixels = images * info.channels * info.image_size**2
        if not streams(c.data_cache, images, info, device):
            data = 4 * pixels
        else:
            lines.append(f"data: streamed from {c.cache_dir or cache_folder()}, {size_text(pixels)} once decoded")
    execution = execution_for(c, device, floats, total * length * batch * c.meta_batch)
    lines.append(f"engine: {c.engine_name} ({execution})")
    problem = Problem(module, info.channels, info.image_size, classes, real_batch, execution)
    window, real = step_bytes(c, problem)
    sizes = {"window": window, "real batch": real, "data": data, "together": window + real + data}
    shown = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
    lines.append(f"memory, within a factor of two: {shown}")
    if place is not None:
        what = "node" if place.local_rank is None else "process"
        lines.append(f"{what} {place.rank} of {place.size}, which meet at {place.url}")
    lines.append(f"folder: {c.folder}")
    return "\n".join(lines)


def _described(c: Config, processes: int) -> DatasetInfo:
    """What is known of the data: all that its files tell where they are at hand, else what is published of it.

    Raises:
        UserError: files or flags are wrong.
    """
    if at_hand(c.dataset, Path(c.root)):
        listing = list_data(data_spec(c))
        check_listing(c, listing, processes)
        source, classes = listing.source, len(listing.class_names)
        counts = (len(source.train.labels), len(source.test.labels))
        return replace(listing.info, num_classes=classes, train_size=counts[0], test_size=counts[1])
    info = describe(c.dataset, Path(c.root), c.im_size)
    check_against_data(c, info.num_classes, info.image_size)
    if c.ckptname != "none":
        open_stored(Path(c.ckptname), needs_labels=False)  # whether it fits is known once the data are here
    if info.num_classes is not None and info.train_size is not None:
        _check_sizes(c, info.num_classes, _train_sizes(c, info.train_size)[1])
    return info


def _check_sizes(c: Config, classes: int, train: int) -> None:
    """Check what the number of training images tells, without that of each class.

    Raises:
        UserError: they are too few.
    """
    if train < classes:
        raise UserError(f"--limit_train {c.limit_train}: it takes at least one image for each of {classes} classes")
    if "random" in c.baselines and train < classes * c.num_per_class:
        raise UserError(
            f"--baselines random: {train:,} real training images are fewer than --num_per_class {c.num_per_class} for "
            f"{classes} classes; drop the baseline"
        )


def _train_sizes(c: Config, distributed: int) -> tuple[int, int]:
    """Training images after the validation split, about, and after ``--limit_train``."""
    all_train = distributed if c.select == "test" else round(distributed * (1 - c.val_fraction))
    return all_train, min(all_train, c.limit_train or all_train)
