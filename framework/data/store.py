"""Decoded images on disk: written once, memory-mapped, shared by processes and by runs.

A store is a file of raw uint8 pixels and one of checksums, a CRC-32 for every 1024 images, which is written
after them. An image counts as there if its block's checksum is right, and nothing else does: so a store that
was interrupted, cut short or damaged is noticed when it is opened, and only the blocks that are wrong are
decoded again. A store's name holds a digest of names, sizes and times of all files that it was made of; when
one of them changes, another store is made. One process at a time writes; who finds a store unfinished waits for it.
"""

import math
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from framework.data.parts import Part
from framework.errors import UserError

_BLOCK = 1024  # images


_VERSION = "images-1"
"""Part of a store's name: to be raised when the same files would give other pixels."""


@dataclass(frozen=True)
class StoredImages:
    """Some of a store's images, read by row like a (N, C, H, W) uint8 tensor on the CPU."""

    file: npt.NDArray[np.uint8]
    """(M, C, H, W), memory-mapped and read-only."""
    images: torch.Tensor
    """(N,) int64: which of them."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.images), *self.file.shape[1:]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | torch.Tensor, /) -> torch.Tensor:
        return torch.from_numpy(self.file[self.images[rows].numpy()])

    def take(self, rows: torch.Tensor) -> "StoredImages":
        """The images at ``rows`` (n,) int64; nothing is read."""
        return StoredImages(self.file, self.images[rows])


def open_store(
    part: Part, name: str, shape: tuple[int, int, int], folder: Path, workers: int = 0, progress: bool = False
) -> StoredImages:
    """Map all images of ``part`` into memory, after decoding those that the store does not have yet.

    Args:
        part: the images.
        name: what the store's name begins with.
        shape: (C, H, W) of one image.
        folder: where stores are.
        workers: threads that decode or check, 0 for one per core.
        progress: show progress bars on stderr, and say when another process is waited for.

    Raises:
        UserError: an image cannot be read, or the store cannot be written.
    """
    digest = part.fingerprint()
    path = folder / f"{_VERSION}-{name}-{'x'.join(map(str, shape))}-{digest}.uint8"
    store = _Store(path, len(part.labels), math.prod(shape))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without the lock first: a store that is whole is not written again, and all may read it at once.
        if not store.complete() or store.wrong_blocks(workers, progress):
            with _locked(path, progress):
                store.extend()
                store.write(part, store.wrong_blocks(workers, progress), workers, progress)
        file = np.asarray(np.memmap(path, np.uint8, "r", shape=(store.count, *shape)))
    except OSError as error:
        raise UserError(
            f"--cache_dir {folder}: cannot keep decoded images there ({error.strerror}); give another folder, or "
            f"--data_cache device"
        ) from error
    return StoredImages(file, torch.arange(store.count))


@dataclass(frozen=True)
class _Store:
    """The two files of a store of ``count`` images of ``image_bytes`` bytes."""

    path: Path
    count: int
    image_bytes: int

    @property
    def _blocks(self) -> int:
        return math.ceil(self.count / _BLOCK)

    @property
    def _sums(self) -> Path:
        return self.path.with_suffix(".crc")

    def complete(self) -> bool:
        """Whether both files are there in full length."""
        lengths = {self.path: self.count * self.image_bytes, self._sums: 4 * self._blocks}
        return all(path.is_file() and path.stat().st_size == length for path, length in lengths.items())

    def extend(self) -> None:
        """Make both files, or give them their full length; what is missing becomes a hole of zeros."""
        for path, length in ((self.path, self.count * self.image_bytes), (self._sums, 4 * self._blocks)):
            with open(path, "ab") as file:
                file.truncate(length)

    def wrong_blocks(self, workers: int, progress: bool) -> list[int]:
        """Numbers of the blocks whose checksum is not that of their pixels. Reads the whole file."""
        sums = np.fromfile(self._sums, "<u4").tolist()
        pixels = np.memmap(self.path, np.uint8, "r").data
        length = _BLOCK * self.image_bytes

        def right(block: int) -> bool:
            recorded: int = sums[block]  # 0 if it was never written
            return recorded != 0 and zlib.crc32(pixels[block * length : (block + 1) * length]) == recorded

        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            checks = pool.map(right, range(self._blocks))
            bar = tqdm(checks, "checking images", total=self._blocks, unit="block", leave=False, disable=not progress)
            return [block for block, is_right in enumerate(bar) if not is_right]

    def write(self, part: Part, blocks: list[int], workers: int, progress: bool) -> None:
        """Decode ``blocks`` and write them, each followed by its checksum."""
        need = min(len(blocks) * _BLOCK, self.count) * self.image_bytes
        free = shutil.disk_usage(self.path.parent).free
        if need > free:
            raise UserError(
                f"--cache_dir {self.path.parent}: decoded images need {need / 1e9:.1f} GB there, {free / 1e9:.1f} GB "
                f"are free; free space, give another folder, or give --data_cache device"
            )
        with (
            open(self.path, "r+b") as pixels,
            open(self._sums, "r+b") as sums,
            tqdm(total=self.count, desc="decoding", unit="image", leave=False, disable=not progress) as bar,
        ):
            bar.update(max(0, self.count - len(blocks) * _BLOCK))
            for block in blocks:
                first, last = block * _BLOCK, min((block + 1) * _BLOCK, self.count)
                content = part.read(torch.arange(first, last), workers).numpy().tobytes()
                pixels.seek(first * self.image_bytes)
                pixels.write(content)
                pixels.flush()
                sums.seek(4 * block)
                sums.write(struct.pack("<I", zlib.crc32(content)))
                sums.flush()
                bar.update(last - first)


@contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold a store's lock, which the system takes back when this process ends, however it ends."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print(f"{path}: another process is at work on it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
