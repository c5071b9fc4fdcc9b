"""Sets of other programs: what their files do not say, and how it is found."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from framework.config import Config
from framework.data.splits import RealData
from framework.distilled.formats import Stored
from framework.distilled.labels import interpreted, sorted_by_class
from framework.distilled.set import Distilled
from framework.errors import UserError


class Target(NamedTuple):
    """What is known of the real data before they are read."""

    name: str
    class_names: tuple[str, ...]
    """In label order."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""


class Arranged(NamedTuple):
    """A set's images and labels as they fit its data."""

    images: Tensor
    """(N, C, H, W) as the file has them, sorted by class where there are equally many of each."""
    weights: Tensor
    """(N, K) float32."""
    by_class: bool
    """There are equally many images of each class by their heaviest label."""
    lines: list[str]
    """What was not plain."""


def from_foreign(
    stored: Stored,
    path: Path,
    real: RealData,
    config: Config,
    *,
    pixels: bool,
    white: int | None = None,
    label_kind: str = "auto",
) -> Distilled:
    """A set of another program, for the real data that it was made from; a line on stderr says what was not plain.

    It is sorted by class, by the heaviest where labels are learnt; where soft labels have not equally many images
    of each class, batches are drawn uniformly.

    Args:
        stored: its file's content.
        path: for messages.
        real: with the preprocessing that the set is to be seen in.
        config: the inner recipe to use.
        pixels: the images are pixels, 0..255 or floating point in [0, 1] (which are rounded to 8 bits), to be
            preprocessed like the real ones.
        white: the largest value of a pixel, 1 or 255 (None: as the values tell).
        label_kind: one of ``names.LABEL_KINDS``.

    Raises:
        UserError: shapes or labels do not fit the data set.
    """
    target = Target(real.name, real.class_names, real.image_shape)
    images, weights, by_class, lines = arranged(stored, path, target, pixels=pixels, label_kind=label_kind)
    if lines:
        print("\n".join(lines), file=sys.stderr, flush=True)
    if pixels:
        high = _pixel_range(images, path, white)
        images = real.preprocess((images * (255 / high)).round().clamp(0, 255).to(torch.uint8))
    images = images.float().contiguous()
    return Distilled(path, images, weights, real.class_names, real.preprocess, config, {}, by_class=by_class)


def arranged(stored: Stored, path: Path, target: Target, *, pixels: bool, label_kind: str = "auto") -> Arranged:
    """A set of another program in the shapes and the order that its data ask for; see ``from_foreign``.

    Raises:
        UserError: shapes or labels do not fit the data set.
    """
    images = _placed(stored.tensors["images"], path, target, pixels=pixels)
    labels = stored.tensors["labels"]
    if "folders" in stored.metadata:
        labels = _folder_classes(json.loads(stored.metadata["folders"]), target.class_names, path)[labels]
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(f"{path}: {len(images)} images but {len(labels)} labels; give the files of one set")
    weights, line = interpreted(labels, len(target.class_names), label_kind, path)
    lines = [] if line is None else [line]
    (by_class, rows), hard = sorted_by_class(weights), bool((weights.amax(1) == 1).all())
    if not (by_class or hard):
        lines.append(f"{path}: not as many images of each class by their heaviest label; batches are drawn uniformly")
    elif not torch.equal(rows, torch.arange(len(rows))):
        images, weights = images[rows], weights[rows]
        lines += [] if labels.ndim == 1 else [f"{path}: not in order of the classes; sorted by the heaviest label"]
    return Arranged(images, weights, by_class, lines)


def _placed(images: Tensor, path: Path, target: Target, *, pixels: bool) -> Tensor:
    """A set's images as (N, C, H, W) of the real data's shape.

    Raises:
        UserError: they have another.
    """
    shape, (channels, height, width) = tuple(images.shape[1:]), target.image_shape
    if shape != target.image_shape and shape == (height, width, channels):
        images = images.permute(0, 3, 1, 2)
    elif shape == (1, height, width) and channels == 3 and pixels:
        images = images.expand(-1, 3, -1, -1)
    elif shape != target.image_shape:
        raise UserError(
            f"{path}: images are {' x '.join(map(str, shape))}, those of {target.name} {channels} x {height} x {width};"
            " give another --dataset or --im_size"
        )
    return images


def _pixel_range(images: Tensor, path: Path, white: int | None = None) -> int:
    """The value of white, 1 or 255; half a level beyond the range is rounding.

    Raises:
        UserError: the values are no pixels, or could be either kind.
    """
    low, high = images.min().item(), images.max().item()
    if white is None:
        whole = not images.is_floating_point() or (high > 2 and torch.equal(images, images.round()))
        white = 1 if not whole and high <= 1 + 0.5 / 255 else 255
        if not whole and 1 + 0.5 / 255 < high < 16:
            raise UserError(f"{path}: --preprocess pixels, but values are in {low:.4g}..{high:.4g}, neither 0..1 nor "
                            "0..255; give --pixel_range, or the --preprocess that made them")  # fmt: skip
    if low < -0.5 * white / 255 or high > white + 0.5 * white / 255:
        raise UserError(f"{path}: --preprocess pixels, but values are in {low:.4g}..{high:.4g}, outside 0..{white}; "
                        "give the --preprocess that made them")  # fmt: skip
    return white


def _folder_classes(folders: list[str], class_names: tuple[str, ...], path: Path) -> Tensor:
    """The class of each folder: by its name, else by the number in front."""
    if set(folders) <= set(class_names):
        return torch.tensor([class_names.index(name) for name in folders])
    numbers = [name.partition("_")[0] for name in folders]
    if all(number.isdecimal() and int(number) < len(class_names) for number in numbers):
        return torch.tensor([int(number) for number in numbers])
    raise UserError(f"{path}: folders are named neither like classes nor by their numbers; rename them 0, 1, 2, ...")
