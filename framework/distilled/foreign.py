"""Sets of other programs: what their files do not say, and how it is found."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from framework.config.bptt import Config
from framework.data.pixels import eight_bits, in_range, white_of
from framework.data.preprocess import Preprocess, Standardise
from framework.data.subsets import SUBSETS
from framework.distilled.formats import LR, Stored
from framework.distilled.labels import interpreted, sorted_by_class
from framework.distilled.set import Distilled
from framework.errors import UserError


@dataclass(frozen=True)
class Target:
    """What a set was made from: a data set, of which no image needs to be decoded yet."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    class_names: Sequence[str]
    """In label order."""


@dataclass(frozen=True)
class Understood:
    """The numbers of a file, and what they mean."""

    images: Tensor
    """(N, C, H, W) of the data's shape, sorted by class where that is possible: uint8 pixels, or float32."""
    weights: Tensor
    """(N, K) float32 class weights, in the same order."""
    by_class: bool
    """There are equally many images of each class."""
    white: int | None
    """The value that a white pixel had in the file, where the images are pixels."""
    lines: list[str]
    """What was not plain, for people."""


def from_foreign(
    stored: Stored,
    path: Path,
    target: Target,
    config: Config,
    *,
    pixels: bool,
    white: int | None = None,
    label_kind: str = "auto",
    learnt: bool = True,
) -> Distilled:
    """A set of another program, for the data that it was made from; lines on stderr say what was not plain.

    It is sorted by class, by the heaviest where labels are learnt; where soft labels have not equally many images
    of each class, batches are drawn uniformly. No real image is needed: pixels are left as uint8, for ``preprocessed``.

    Args:
        stored: its file's content.
        path: for messages.
        target: the data.
        config: the inner recipe to use.
        pixels, white, label_kind: see ``understood``.
        learnt: take the learning rate that was learnt with the set, if there is one.

    Raises:
        UserError: see ``understood`` and ``learnt_rate``.
    """
    rate = learnt_rate(stored, path) if learnt else None
    found = understood(stored, path, target, pixels=pixels, white=white, label_kind=label_kind)
    for line in found.lines if rate is None else [*found.lines, rate[1]]:
        print(line, file=sys.stderr, flush=True)
    names, channels, learnt_lr = tuple(target.class_names), target.shape[0], None if rate is None else rate[0]
    unknown = Standardise(torch.zeros(channels), torch.ones(channels))  # until ``preprocessed``
    value_bits, weight_bits = stored.bits
    bits = (8 if pixels else value_bits, weight_bits)  # pixels are rounded, whatever the file has
    return Distilled(path, found.images, found.weights, names, unknown, config, {}, found.by_class, learnt_lr, bits)


def preprocessed(distilled: Distilled, preprocess: Preprocess) -> Distilled:
    """The set in the real data's preprocessing: uint8 pixels go through it, other images are seen in it already."""
    images = distilled.images if distilled.images.dtype != torch.uint8 else preprocess(distilled.images)
    return replace(distilled, images=images.contiguous(), preprocess=preprocess)


def understood(
    stored: Stored, path: Path, target: Target, *, pixels: bool, white: int | None = None, label_kind: str = "auto"
) -> Understood:
    """What a file's numbers mean for the data that it was made from.

    Args:
        stored: its content.
        path: for messages.
        target: the data.
        pixels: the images are pixels, 0..255 or floating point in [0, 1] (which are rounded to 8 bits), to be
            preprocessed like the real ones.
        white: the largest value of a pixel, 1 or 255 (None: as the form or the values tell).
        label_kind: one of ``names.LABEL_KINDS``.

    Raises:
        UserError: shapes, labels or values do not fit the data set, or could mean several things.
    """
    images, lines = _placed(stored.tensors["images"], path, target, pixels=pixels)
    labels, told = _labels(stored, path, target)
    lines += told
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(f"{path}: {len(images)} images but {len(labels)} labels; give the files of one set")
    weights, line = interpreted(labels, len(target.class_names), label_kind, path)
    lines += [] if line is None else [line]
    (by_class, rows), hard = sorted_by_class(weights), bool((weights.amax(1) == 1).all())
    in_order = torch.equal(rows, torch.arange(len(rows)))
    if not (by_class or hard):
        lines.append(f"{path}: not as many images of each class by their heaviest label; batches are drawn uniformly")
    elif not in_order and labels.ndim > 1:
        lines.append(f"{path}: not in order of the classes; sorted by the heaviest label")
    if (by_class or hard) and not in_order:
        images, weights = images[rows], weights[rows]
    if not pixels:
        if not images.is_floating_point():
            raise UserError(f"{path}: holds whole numbers, which are pixels; give --preprocess pixels")
        return Understood(images.float(), weights, by_class, None, lines)
    white = white or stored.white
    if white is None:
        white, told = _range_of(images, path)
        lines += told
    _check_range(images, path, white)
    return Understood(eight_bits(images, white), weights, by_class, white, lines)


def learnt_rate(stored: Stored, path: Path) -> tuple[float, str] | None:
    """The learning rate that was learnt with a set, and a line that says so; None where there is none.

    Raises:
        UserError: it is not one positive number.
    """
    if LR not in stored.tensors:
        return None
    tensor, file = stored.tensors[LR], stored.companions.get(LR, path)
    value = float(tensor) if tensor.numel() == 1 else float("nan")
    if not 0 < value < float("inf"):
        what = f"{value:g}" if tensor.numel() == 1 else f"of shape {tuple(tensor.shape)}"
        raise UserError(f"{file}: a learnt rate {what} is no positive number; give another by --inner_lr")
    return value, f"{file}: the learnt rate {value:g} is the recipe's learning rate; --inner_lr gives another"


def _placed(images: Tensor, path: Path, target: Target, *, pixels: bool) -> tuple[Tensor, list[str]]:
    """A set's images as (N, C, H, W) of the data's shape, from channels last or rows too; and what was not plain.

    Raises:
        UserError: they have another.
    """
    given = tuple(images.shape[1:]) if images.ndim > 1 else ()
    (channels, height, width), wanted = target.shape, " x ".join(map(str, target.shape))
    if given == target.shape:
        return images, []
    if given == (channels * height * width,):  # as RaT-BPTT keeps them
        return images.reshape(-1, *target.shape), [f"{path}: images of {given[0]} numbers are taken as {wanted}"]
    if given == (height, width, channels):  # as JAX and TensorFlow have them
        return images.permute(0, 3, 1, 2), []
    if given == (height, width) and channels == 1:
        return images.unsqueeze(1), []
    if given == (1, height, width) and channels == 3 and pixels:
        return images.expand(-1, 3, -1, -1), []
    raise UserError(
        f"{path}: images are {' x '.join(map(str, given)) or 'single numbers'}, those of {target.name} {wanted}; "
        "give another --dataset or --im_size"
    )


def _labels(stored: Stored, path: Path, target: Target) -> tuple[Tensor, list[str]]:
    """A set's labels, which may be elsewhere: in a file beside it, in folders' names, or in the order of the images.

    Raises:
        UserError: there are none, and not as many images of each class; or folders are not named like classes.
    """
    count, classes = len(stored.tensors["images"]), len(target.class_names)
    if "labels" not in stored.tensors:
        if count % classes:
            raise UserError(f"{path}: holds no labels, and {count} images are not as many of each of {classes} classes "
                            "in their order; add labels")  # fmt: skip
        numbers = torch.arange(classes).repeat_interleave(count // classes)
        return numbers, [f"{path}: holds no labels; its images are taken as {count // classes} of each class in order"]
    labels = stored.tensors["labels"]
    if "folders" in stored.metadata:
        classes_of, lines = _folder_classes(json.loads(stored.metadata["folders"]), target, path)
        return classes_of[labels], lines
    if "labels" in stored.companions:
        return labels, [f"{path}: its labels are taken from {stored.companions['labels']}"]
    return labels, []


def _range_of(images: Tensor, path: Path) -> tuple[int, list[str]]:
    """The value of white, 1 or 255, and a line where it is 255; half a level beyond 1 is rounding.

    Raises:
        UserError: it could be either.
    """
    low, high, floating = images.min().item(), images.max().item(), images.is_floating_point()
    whole = not floating or torch.equal(images, images.round())
    white = white_of(low, high, floating=floating, whole=whole)
    if white == 1:
        return 1, []
    if white == 255:
        return 255, [f"{path}: values in {low:.4g}..{high:.4g} are taken as pixels of 0..255 (--pixel_range 255)"]
    raise UserError(f"{path}: --preprocess pixels, but values are in {low:.4g}..{high:.4g}, which may be of 0..1 or "
                    "0..255; give --pixel_range, or the --preprocess that made them")  # fmt: skip


def _check_range(images: Tensor, path: Path, white: int) -> None:
    """Check that pixels are in 0..white, but for rounding of half a level.

    Raises:
        UserError: they are not.
    """
    low, high = images.min().item(), images.max().item()
    if not in_range(low, high, white):
        raise UserError(f"{path}: --preprocess pixels, but values are in {low:.4g}..{high:.4g}, outside 0..{white}; "
                        "give the --preprocess that made them")  # fmt: skip


def _folder_classes(folders: list[str], target: Target, path: Path) -> tuple[Tensor, list[str]]:
    """The class of each folder, and a line where it is not its name's.

    A number in front, as our own exports have it (``00007_dog``), counts in label order. A number alone (RDED's
    ``00007``; SRe2L's ``new007``) counts as torchvision does, in the order of the data's folders: that is label order
    too but for ImageNet's subsets.

    Raises:
        UserError: folders are named neither like classes nor by their numbers.
    """
    names, wnids = list(target.class_names), list(SUBSETS.get(target.name, ()))
    for known in (names, wnids):
        if set(folders) <= set(known):
            return torch.tensor([known.index(folder) for folder in folders]), []
    found = [re.fullmatch(r"(?:new)?([0-9]+)(_.*)?", folder, re.DOTALL) for folder in folders]
    if any(match is None or int(match[1]) >= len(names) for match in found):
        unknown = [folder for folder, match in zip(folders, found, strict=True) if match is None] or folders
        raise UserError(
            f"{path}: folders are named neither like classes nor by their numbers ({', '.join(unknown[:3])}); rename "
            f"them 0, 1, 2, ... up to {len(names) - 1}"
        )
    numbers = [int(match[1]) for match in found if match is not None]
    if wnids and not any(match[2] for match in found if match is not None):
        numbers = [wnids.index(sorted(wnids)[number]) for number in numbers]
    line = f"{path}: folders are taken as numbers of classes, as {folders[0]} of {names[numbers[0]]}"
    return torch.tensor(numbers), [line]
