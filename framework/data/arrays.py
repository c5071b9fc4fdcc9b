"""One's own data in an ``.npz`` file: arrays of images and labels, mapped into memory where they are uncompressed.

Of each part, the file holds images (N, H, W) or (N, H, W, C) with C 1 or 3, uint8 or floating point, and labels (N,) or
(N, 1), whole numbers from 0; ``NAMES`` has their names, those of Keras and of MedMNIST among them. ``class_names``
(K,) may name the classes.
"""

import math
import zipfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from framework.data.folders import some
from framework.data.npz import BROKEN, Arrays
from framework.data.own import Labels, class_names, rows_and_lines
from framework.data.parts import Source, resized
from framework.data.pixels import eight_bits, in_range, white_of
from framework.data.registry import Reading, located
from framework.errors import UserError, one_line

NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
"""Of each part, what its images and labels may be called."""
CLASS_NAMES = "class_names"

_CHUNK = 2**24  # values converted at a time


@dataclass(frozen=True)
class NpzPart:
    """Rows of an array of images, converted to 8 bits and resized to ``size`` pixels a side when read."""

    array: npt.NDArray[Any]
    """(M, H, W) or (M, H, W, C): uint8, or floating point."""
    rows: torch.Tensor
    """(N,) int64: which of them."""
    labels: torch.Tensor
    size: int
    white: int | None
    """The value of white in floating-point images; None: uint8."""
    content: str
    """Changes with what the array holds."""

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """See ``Part.read``; there is nothing to decode."""
        step = max(1, _CHUNK // math.prod(self.array.shape[1:]))
        return torch.cat([self._read(rows) for rows in self.rows[indices].split(step)])

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        pixels = _tensor(self.array[rows.numpy()])
        pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        return resized((pixels if self.white is None else eight_bits(pixels, self.white)).contiguous(), self.size)

    def fingerprint(self) -> str:
        """See ``Part.fingerprint``."""
        about = repr((torch.__version__, self.size, self.white, self.content))
        return blake2b(about.encode() + self.rows.numpy().tobytes(), digest_size=16).hexdigest()


class _Pair(NamedTuple):
    """The arrays of a part."""

    image_name: str
    label_name: str
    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]


def read_npz(where: str, root: Path, size: int | None, reading: Reading) -> Source:
    """List the data in an ``.npz`` file; see the module. Nothing is unpickled.

    Args:
        where: the file; or its name in ``root``.
        root: see ``where``.
        size: pixels a side (None: as they are).
        reading: the value of white, for floating-point images whose values do not tell it.

    Raises:
        UserError: it cannot be read, or an array is missing or not as it should be.
    """
    path = located(where, root)
    if path is None or not path.is_file():
        raise UserError(f"--dataset npz:{where}: no such file, nor {root / Path(where).name}; check the path")
    pairs, named, identity = _opened(path)
    channels, side = _common_shape(path, pairs)
    labels = {part: Labels(pair.label_name, _numbers(path, pair)) for part, pair in pairs.items()}
    names = class_names(labels, named, path)
    rows, lines = rows_and_lines(labels, names, path)
    white, size = _white(path, pairs, reading.white), size or side
    parts = {
        part: NpzPart(pairs[of].images, chosen, labels[of].numbers[chosen], size, white, f"{of} {identity}")
        for part, (of, chosen) in rows.items()
    }
    shape = (channels, size, size)
    return Source(names, parts["train"], parts.get("val"), parts["test"], shape, lambda: identity, tuple(lines))


def _opened(path: Path) -> tuple[dict[str, _Pair], list[str] | None, str]:
    """The arrays of each part, the classes' names, and what changes with all that is in them.

    Raises:
        UserError: the file cannot be read, or an array is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = Arrays(path, archive)
            pairs = {part: pair for part in NAMES if (pair := _pair(arrays, part)) is not None}
            names = _named(path, arrays.get(CLASS_NAMES)) if CLASS_NAMES in arrays else None
            return pairs, names, arrays.identity
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{path}: not a readable .npz file ({one_line(error)}); write it with numpy.savez") from error


def _pair(arrays: Arrays, part: str) -> _Pair | None:
    """The arrays of a part; None where it is not there.

    Raises:
        UserError: one is missing, or they are there twice; or there is no training part.
    """
    there = [(x, y) for x, y in NAMES[part] if x in arrays or y in arrays]
    if len(there) > 1:
        raise UserError(f"{arrays.path}: holds {there[0][0]} as well as {there[1][0]}; leave one of them out")
    if not there and part == "train":
        found = some(arrays.names) or "nothing"
        raise UserError(
            f"{arrays.path}: no training images (found {found}); name them x_train and y_train, or images and labels"
        )
    for images, labels in there:
        for name, other in ((images, labels), (labels, images)):
            if name not in arrays:
                raise UserError(f"{arrays.path}: holds {other} but no {name}; add it")
        return _Pair(images, labels, arrays.get(images), arrays.get(labels))
    return None


def _named(path: Path, names: npt.NDArray[Any]) -> list[str]:
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UserError(f"{path}: {CLASS_NAMES} is not one line of text for each class; mend it or leave it out")
    found: list[str] = names.tolist()
    return found


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """A copy that torch can hold: uint8 as it is, floating point as float32."""
    return torch.from_numpy(np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32, order="C"))


def _common_shape(path: Path, pairs: dict[str, _Pair]) -> tuple[int, int]:
    """Channels and pixels a side of all images.

    Raises:
        UserError: an array's type or shape is not that of images, or they are not all of one.
    """
    found = {pair.image_name: _shape(path, pair) for pair in pairs.values()}
    if len({*found.values()}) > 1:
        shown = ", ".join(f"{side} x {side} x {channels} in {name}" for name, (channels, side) in found.items())
        raise UserError(f"{path}: images are {shown}; make them alike")
    if len(types := {pair.images.dtype for pair in pairs.values()}) > 1:
        raise UserError(f"{path}: images are of types {' and '.join(sorted(map(str, types)))}; make them alike")
    return next(iter(found.values()))


def _shape(path: Path, pair: _Pair) -> tuple[int, int]:
    """Channels and pixels a side of a part's images."""
    name, images, shape = pair.image_name, pair.images, pair.images.shape
    shown = " x ".join(map(str, shape)) or "one number"
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{path}: {name} is of type {images.dtype}; give uint8, or floating point in 0..1 or 0..255")
    if images.ndim not in (3, 4) or (images.ndim == 4 and shape[3] not in (1, 3)):
        first = images.ndim == 4 and shape[1] in (1, 3)
        remedy = f"put channels last, by numpy.moveaxis({name}, 1, -1)" if first else "C is 1 or 3"
        raise UserError(f"{path}: {name} is {shown}, not N x H x W or N x H x W x C; {remedy}")
    if not images.size:
        raise UserError(f"{path}: {name} is {shown} and holds no images; add some")
    if shape[1] != shape[2]:
        raise UserError(f"{path}: {name} has images of {shape[1]} x {shape[2]} pixels; crop or pad them to squares")
    return (1 if images.ndim == 3 else shape[3]), shape[1]


def _numbers(path: Path, pair: _Pair) -> torch.Tensor:
    """The labels of a part, (N,) int64.

    Raises:
        UserError: they are not whole numbers, one for each image.
    """
    labels, count = pair.labels, len(pair.images)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        shown = " x ".join(map(str, labels.shape)) or "one number"
        raise UserError(
            f"{path}: {pair.label_name} is {shown} of type {labels.dtype}; give {count} whole numbers, one for each of "
            f"{pair.image_name}"
        )
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _white(path: Path, pairs: dict[str, _Pair], given: int | None) -> int | None:
    """The value of white of floating-point images; None of uint8.

    Raises:
        UserError: values are not finite, out of range, or could be of 0..1 as well as of 0..255.
    """
    if pairs["train"].images.dtype == np.uint8:
        if given == 1:
            raise UserError(f"--pixel_range 1: {path} has uint8 images, which are of 0..255; leave it out")
        return None
    spans = [span for pair in pairs.values() for span in _spans(path, pair)]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    white = given or white_of(low, high, floating=True, whole=all(span[2] for span in spans))
    if white is None:
        raise UserError(
            f"{path}: pixels are in {low:.4g}..{high:.4g}, which may be of 0..1 or 0..255; give --pixel_range, or "
            "store them as uint8"
        )
    if not in_range(low, high, white):
        raise UserError(
            f"{path}: pixels are in {low:.4g}..{high:.4g}, outside 0..{white}; store them before they are normalised"
        )
    return white


def _spans(path: Path, pair: _Pair) -> list[tuple[float, float, bool]]:
    """Smallest and largest value, and whether all are whole numbers, of some images at a time."""
    step, result = max(1, _CHUNK // math.prod(pair.images.shape[1:])), []
    for start in range(0, len(pair.images), step):
        chunk = _tensor(pair.images[start : start + step])
        if not chunk.isfinite().all():
            raise UserError(f"{path}: {pair.image_name} holds NaN or infinity; mend it")
        result.append((chunk.min().item(), chunk.max().item(), torch.equal(chunk, chunk.round())))
    return result
