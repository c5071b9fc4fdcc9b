"""Readers: one function per data set, from files to uint8 pixels and integer labels.

A reader lists what is there and checks it, but decodes nothing: a ``Part`` knows all its labels, and
``Part.read`` decodes the images that are asked for. So splits are drawn, and memory is checked, before
the first image file is opened.

Pixels are ``(N, C, H, W)`` uint8 in 0..255, labels ``(N,)`` int64; both live on the CPU. Whatever is
wrong with the files is raised as a one-line ``UserError`` that names the file or the flag.
"""

import os
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tqdm import tqdm

from framework.errors import UserError, one_line

_FILES_PER_TASK = 16
_IMAGES_PER_RESIZE = 4096
DECODING = 2
"""Raised whenever ``open_picture`` makes other pixels of the same file."""
_TELLING = Lock()

# What Pillow raises for a file that is no image, or only the beginning of one.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Part(Protocol):
    """One part (train, val, test) of a data set, as it is distributed."""

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64 in 0..num_classes-1."""

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """Decode the images at ``indices`` (n,) int64; returns (n, C, H, W) uint8.

        Args:
            indices: which images, in the order they are wanted.
            workers: threads that decode files, 0 for one per core.
            progress: show a progress bar on stderr while files are decoded.
        """

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes with whatever ``read`` would return: for files, with names, sizes and
        times of last change, so that no file has to be opened.
        """


@dataclass(frozen=True)
class ArrayPart:
    """Images that came as one array, resized to ``size`` pixels a side when read."""

    pixels: torch.Tensor
    labels: torch.Tensor
    size: int

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """See ``Part.read``; the array is in memory, so there is no file to spread over workers."""
        return resized(self.pixels[indices], self.size)

    def fingerprint(self) -> str:
        """See ``Part.fingerprint``; here that of the pixels."""
        digest = blake2b(repr((torch.__version__, self.size, tuple(self.pixels.shape))).encode(), digest_size=16)
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class FilePart:
    """Images in files of their own; the shorter side is resized to ``size``, the rest cropped centrally."""

    paths: Sequence[str]
    labels: torch.Tensor
    size: int

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """See ``Part.read``. Raises ``UserError`` naming the first file that is not a readable image."""
        chosen = [self.paths[i] for i in indices.tolist()]
        pixels = np.empty((len(chosen), 3, self.size, self.size), dtype=np.uint8)

        def decode(start: int) -> int:
            paths = chosen[start : start + _FILES_PER_TASK]
            for row, path in enumerate(paths, start):
                pixels[row] = decode_image(path, self.size).transpose(2, 0, 1)
            return len(paths)

        # Threads are enough: Pillow releases the interpreter lock while it decodes and resizes.
        with (
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
            tqdm(total=len(chosen), desc="decoding", unit="image", leave=False, disable=not progress) as bar,
        ):
            for done in pool.map(decode, range(0, len(chosen), _FILES_PER_TASK)):
                bar.update(done)
        return torch.from_numpy(pixels)

    def fingerprint(self) -> str:
        """See ``Part.fingerprint``. Raises ``UserError`` naming the first file that is not there."""
        digest = blake2b(repr((PIL.__version__, DECODING, self.size)).encode(), digest_size=16)
        # Names below the folder that all have in common: a tree that was moved is still the same.
        common = len(os.path.commonpath(self.paths))
        for path in self.paths:
            try:
                about = os.stat(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); put it there or remove it") from error
            digest.update(os.fsencode(f"{path[common:]}\0{about.st_size}\0{about.st_mtime_ns}\n"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk. ``val`` is there only if the data set comes with one."""

    class_names: tuple[str, ...]
    train: Part
    val: Part | None
    test: Part
    shape: tuple[int, int, int] | None = None
    """(C, H, W) of its images; None: as the table of data sets has it."""
    identity: Callable[[], str] | None = None
    """Of one's own data: what changes with what they hold, and with nothing else."""
    lines: tuple[str, ...] = ()
    """What was not plain, for people."""


Reader = Callable[[Path, int], Source]
"""``reader(root, size)``: lists the data set under ``root``; images will be ``size`` pixels a side."""


def decode_image(path: str, size: int) -> npt.NDArray[np.uint8]:
    """Return the image at ``path`` as (size, size, 3) uint8 RGB.

    The shorter side is resized to ``size`` (bilinear, antialiased) and the centre kept. Raises ``UserError`` as
    ``open_picture``.
    """
    rgb = open_picture(path).convert("RGB")
    return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR))


def open_picture(file: str | Path | BinaryIO, name: object = None) -> Image.Image:
    """Decode an image file in its own size: mode L where it is grey, else RGB.

    It is turned as its EXIF orientation says; 16-bit grey levels keep their upper 8 bits; what is transparent is
    laid over black, which is said once.

    Args:
        file: its path, or the file.
        name: of it, for messages (None: the path).

    Raises:
        UserError: the file is missing, damaged, no image, or has levels that no 8-bit image can show.
    """
    try:
        with Image.open(file) as image:
            upright = _sixteen_to_eight_bits(ImageOps.exif_transpose(image))
            mode = "L" if upright.mode in ("L", "LA", "1") else "RGB"
            return _over_black(upright).convert(mode)
    except _PILLOW_ERRORS as error:
        raise UserError(
            f"{file if name is None else name}: not a readable image ({one_line(error)}); replace or remove it"
        ) from error


def _over_black(image: Image.Image) -> Image.Image:
    """Without its transparency: the colour stored below it is arbitrary, and would show."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    opaque = rgba.getchannel("A").getextrema() == (255, 255)
    if not opaque:
        with _TELLING:
            _tell_transparency()
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)


@cache
def _tell_transparency() -> None:
    print("pictures with transparent pixels are laid over black", file=sys.stderr)


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point grey levels have no fixed range, save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    # Pillow's own conversion clips at 255, which would turn most 16-bit images white.
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise ValueError("grey levels outside 0..65535, save it with 8 or 16 bits")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Square (N, C, H, H) uint8 images at ``size`` pixels a side (bilinear, antialiased); themselves if they are."""
    if pixels.shape[-1] == size:
        return pixels
    return torch.cat([_resize(chunk, size) for chunk in torch.split(pixels, _IMAGES_PER_RESIZE)])


def _resize(pixels: torch.Tensor, size: int) -> torch.Tensor:
    resized = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
