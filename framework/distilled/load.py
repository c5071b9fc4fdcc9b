"""A distilled set from its file: ``load_distilled``."""

import json
import math
from pathlib import Path
from typing import Any

from framework.config.distilling import Distilling
from framework.config.registry import read_config
from framework.data.preprocess import Preprocess
from framework.distilled import formats
from framework.distilled.formats import Stored
from framework.distilled.labels import class_weights
from framework.distilled.set import Distilled
from framework.errors import UserError, reachable
from framework.files import CONFIG, SET
from framework.networks.registry import build_bare
from framework.zoo import cards


def load_distilled(path: str | Path) -> Distilled:
    """Open a distilled set with all that training on it takes.

    Args:
        path: a run's folder, its ``distilled.safetensors``, or what ``main.py export`` made of it (``.pt``, ``.npz``,
            ``.h5``); or ``zoo:NAME``, a set of the package's own, as ``main.py zoo`` lists them.

    Raises:
        UserError: there is no set, the file is damaged, or it was written by another program and so does
            not say how its images were made.
    """
    return from_stored(open_stored(Path(path)), Path(path))


def from_stored(stored: Stored, path: Path) -> Distilled:
    """The set in one of our own files; see ``load_distilled``."""
    if not stored.ours:
        raise UserError(
            f"{path}: a file of another program, which says nothing of data set and preprocessing; main.py evaluate "
            "takes it with --dataset and --preprocess"
        )
    class_names, provenance = _metadata(stored, path)
    config = read_config(provenance["config"], path)
    images, labels = stored.tensors["images"].float(), class_weights(stored.tensors["labels"], len(class_names), path)
    numbers = None if isinstance(config.num_per_class, int) else _numbers(config, class_names, len(images), path)
    per_class, rest = divmod(len(images), len(class_names))
    whole = numbers is not None or (per_class and not rest)
    if images.ndim != 4 or images.shape[2] != images.shape[3] or len(images) != len(labels) or not whole:
        raise UserError(
            f"{path}: images of shape {tuple(images.shape)} and {len(labels)} labels are no set of {len(class_names)} "
            "classes by this program; restore it from a copy"
        )
    try:
        preprocess = Preprocess.from_tensors(stored.tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    step_size = provenance.get("step_size")
    distilled = Distilled(
        path, images, labels, class_names, preprocess, config, provenance, learnt_lr=step_size, stored_bits=stored.bits,
        numbers=numbers,
    )  # fmt: skip
    _check_flags(distilled)
    if (block := distilled.block_size) is not None and per_class % block:
        raise UserError(f"{path}: {per_class} image(s) of each class are no blocks of {block}; restore it from a copy")
    return distilled


def _numbers(config: Distilling, class_names: tuple[str, ...], images: int, path: Path) -> tuple[int, ...]:
    """The images of each class, as the flags have them.

    Raises:
        UserError: they do not fit the set.
    """
    try:
        counts = config.counts(class_names)
    except UserError as error:
        raise UserError(f"{path}: its flags do not fit its classes ({error}); restore it from a copy") from error
    if counts.total != images:
        raise UserError(f"{path}: {images} images, and its flags say {counts.total}; restore it from a copy")
    return counts.numbers


def _metadata(stored: Stored, path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The class names and the provenance, which has the flags under ``config``.

    Raises:
        UserError: they are damaged.
    """
    try:
        names, provenance = (json.loads(stored.metadata[name]) for name in ("class_names", "provenance"))
        if not (names and isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError("class_names is no list of names")
        if not isinstance(provenance, dict) or "config" not in provenance:
            raise TypeError("provenance has no flags")
        length = provenance.get("best_length", 1)
        if type(length) is not int or length < 1:
            raise TypeError(f"best_length is {length!r}, no number of steps")
        for step_size in (provenance.get("step_size"), *provenance.get("step_sizes", ())):
            if step_size is not None and not (isinstance(step_size, float) and 0 < step_size < math.inf):
                raise TypeError(f"step_size is {step_size!r}, no learning rate")
        for name in ("block_size", "blocks", "blocks_in_all"):
            if type(number := provenance.get(name, 1)) is not int or number < 1:
                raise TypeError(f"{name} is {number!r}, no number above 0")
        if not isinstance(experts := provenance.get("experts", {}), dict):
            raise TypeError(f"experts is {experts!r}, no facts about them")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged metadata ({error}); restore it from a copy") from error
    return tuple(names), provenance


def _check_flags(d: Distilled) -> None:
    """Check that the flags fit the images, as a run checks it of its data.

    Raises:
        UserError: naming the file and the flag.
    """
    wrong, c = None, d.config
    if c.batch_per_class > d.counts.largest and d.block_size is None:
        wrong = f"--batch_per_class {c.batch_per_class} is more than the {d.counts.text} image(s) of each class"
    elif c.task_sampler_nc is not None and c.task_sampler_nc > d.num_classes:
        wrong = f"--task_sampler_nc {c.task_sampler_nc} is more than the {d.num_classes} classes"
    else:
        try:
            channels, side = d.images.shape[1:3]
            build_bare(c.arch, channels, side, d.num_classes, **c.network)
        except ValueError as error:
            wrong = str(error)
    if wrong is not None:
        raise UserError(f"{d.source}: its flags do not fit its images ({wrong}); restore it from a copy")


def open_stored(path: Path, labels: Path | None = None, *, needs_labels: bool = True) -> Stored:
    """Read a set; ``path`` may also be a run's folder, or ``zoo:NAME``. See ``formats.read``."""
    if (name := cards.name_of(path)) is not None:
        path = cards.checked_file(name)
    with reachable():
        ours, without = (path.is_dir() and (path / name).exists() for name in (SET, CONFIG))
    if ours:
        return formats.read(path / SET)
    if without:
        raise UserError(
            f"{path}: a run without {SET}, which its first evaluation writes; let the run go on, or give another"
        )
    return formats.read(path, labels, needs_labels=needs_labels)
