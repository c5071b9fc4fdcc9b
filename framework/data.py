"""Real data: splits, preprocessing and placement.

``load`` reads a data set once and splits it. Where it fits, it is left whole on the device as float32 tensors, so
that a batch is an index and nothing in a hot loop waits for a disk or a copy; where it does not, it is streamed from
``cache``'s memory-mapped uint8 images. Both give the same numbers, to the last bit. What a split holds depends on the
data and the flags, never on the run's seed: all runs share their validation images.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from framework.cache import StoredImages, default_folder, open_store
from framework.config import Config, UserError
from framework.preprocess import Map, Pixels, Preprocess, Standardise, Zca, chunks
from framework.readers import DatasetInfo, Part, dataset_names, describe, one_line, open_source
from framework.rng import generator

__all__ = [
    "DatasetInfo",
    "Preprocess",
    "RealData",
    "Split",
    "Standardise",
    "StreamedImages",
    "Zca",
    "dataset_names",
    "describe",
    "epoch_batches",
    "load",
    "streams",
]

_DEVICE_SHARE = 0.5
"""Of the free memory, what images may take under ``--data_cache auto``; the rest is for networks and windows."""

_CACHE_VERSION = "zca-1"
"""Part of a cache file's name: to be raised when the same images would give other matrices."""


@dataclass(frozen=True)
class StreamedImages:
    """Images that are read from disk, moved to the device and preprocessed when they are needed."""

    pixels: Pixels
    preprocess: Map
    """From (n, C, H, W) uint8 on the CPU to float32 on the device."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self.pixels.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, indices: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """See ``Split.batches``; the next batch is read by a thread while the caller works on this one."""
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for rows in indices:
                following = reader.submit(self.pixels.__getitem__, rows.cpu())
                if ahead is not None:
                    yield self.preprocess(ahead.result())
                ahead = following
            if ahead is not None:
                yield self.preprocess(ahead.result())


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of the data."""

    images: torch.Tensor | StreamedImages
    """(N, C, H, W) float32, preprocessed: all on the device, or streamed. Read them by ``batches``."""
    labels: torch.Tensor
    """(N,) int64 in 0..num_classes-1, on the device."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at ``indices`` (B,) int64: (B, C, H, W) float32 on the device."""
        return next(self.batches([indices]))

    def batches(self, indices: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """``batch`` of each of ``indices`` in turn."""
        if isinstance(self.images, StreamedImages):
            return self.images.batches(indices)
        images = self.images
        return (images[rows.to(images.device)] for rows in indices)

    def chunks(self, size: int) -> Iterator[torch.Tensor]:
        """All images in their order, ``size`` at a time."""
        if isinstance(self.images, StreamedImages):
            return self.images.batches(torch.arange(len(self)).split(size))
        return iter(self.images.split(size))


@dataclass(frozen=True)
class RealData:
    """A data set, split and preprocessed, on the device or streamed to it."""

    name: str
    class_names: tuple[str, ...]
    """In label order."""
    train: Split
    val: Split | None
    test: Split
    preprocess: Preprocess

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def load(
    name: str,
    root: Path,
    *,
    device: torch.device,
    zca: bool = False,
    zca_reg: float = 0.1,
    im_size: int | None = None,
    val_fraction: float = 0.1,
    limit_train: int | None = None,
    workers: int = 0,
    preprocess: Preprocess | None = None,
    data_cache: str = "auto",
    cache_dir: Path | None = None,
    progress: bool = True,
) -> RealData:
    """Read, split and preprocess data set ``name``, and place it on ``device`` or stream it from disk.

    Several processes may call this at once, but a data set that torchvision still has to download should
    be loaded by one of them first.

    Args:
        name: one of ``dataset_names()``.
        root: folder that holds the data set's files; each reader's docstring says where.
        device: where the tensors go.
        zca: whiten with regularised ZCA instead of standardising each channel.
        zca_reg: ZCA regularisation, as a share of the mean eigenvalue.
        im_size: pixels a side (default: the data set's own).
        val_fraction: share of each class's training images kept apart as validation images, in [0, 1); 0
            gives none. A validation part that comes with an ``imagefolder`` is used instead of a share.
        limit_train: keep this many training images after the split, spread evenly over classes.
        workers: threads that decode image files, 0 for one per core.
        preprocess: to be used instead of one fitted on the training images; ``zca`` and ``zca_reg`` are not read then.
        data_cache: ``device``, ``disk`` or ``auto``; see ``streams``.
        cache_dir: where ZCA matrices and decoded images are kept (default: ``cache.default_folder``).
        progress: show progress bars on stderr.

    Raises:
        UserError: a flag or a file is wrong, or the tensors would not fit in memory.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"--val_fraction {val_fraction}: it must be at least 0 and below 1")
    if zca and not zca_reg > 0:
        raise UserError(f"--zca_reg {zca_reg}: it must be positive")
    info, source = open_source(name, root, im_size)
    train, val = torch.arange(len(source.train.labels)), None
    val_labels = source.train.labels if source.val is None else source.val.labels
    if val_fraction > 0 and source.val is None:
        train, val = _validation_split(source.train.labels, source.class_names, val_fraction, name)
    elif val_fraction > 0:
        val = torch.arange(len(val_labels))
    if limit_train is not None:
        train = train[_balanced_subset(source.train.labels[train], len(source.class_names), limit_train, name)]
    test = torch.arange(len(source.test.labels))
    count = len(train) + len(test) + (0 if val is None else len(val))
    streamed = streams(data_cache, count, info, device)
    _require_memory(0 if streamed else count, info, zca and preprocess is None, device)
    if streamed and progress:
        print(f"{name}: streaming images from {cache_dir or default_folder()} (--data_cache)", file=sys.stderr)

    def opened(part: Part) -> Part | StoredImages:
        if not streamed:
            return part
        # All of it, so that runs with other splits and limits share it.
        shape = (info.channels, info.image_size, info.image_size)
        return open_store(part, name, shape, cache_dir or default_folder(), workers, progress)

    def read(part: Part | StoredImages, indices: torch.Tensor) -> Pixels:
        return part.take(indices) if isinstance(part, StoredImages) else part.read(indices, workers, progress)

    train_part, test_part = opened(source.train), opened(source.test)
    val_part = train_part if source.val is None or val is None else opened(source.val)
    train_pixels = read(train_part, train)
    fitted: Preprocess
    if preprocess is not None:
        fitted = preprocess
    elif zca:
        fitted = _cached_zca(train_pixels, zca_reg, device, cache_dir or default_folder(), name, progress)
    else:
        fitted = Standardise.fit(train_pixels)
    place = fitted.on(device)

    def split(pixels: Pixels, labels: torch.Tensor) -> Split:
        images = place(pixels) if isinstance(pixels, torch.Tensor) else StreamedImages(pixels, place)
        return Split(images, labels.to(device))

    return RealData(
        name,
        source.class_names,
        split(train_pixels, source.train.labels[train]),
        None if val is None else split(read(val_part, val), val_labels[val]),
        split(read(test_part, test), source.test.labels),
        fitted,
    )


def load_for(
    config: Config,
    device: torch.device,
    *,
    root: Path | None = None,
    preprocess: Preprocess | None = None,
    progress: bool = True,
) -> RealData:
    """``load`` what a run's flags describe.

    Args:
        config: the flags.
        device: where the tensors go.
        root: instead of the flags' own.
        preprocess, progress: see ``load``.
    """
    c = config
    return load(
        c.dataset,
        root or Path(c.root),
        device=device,
        zca=c.zca,
        zca_reg=c.zca_reg,
        im_size=c.im_size,
        val_fraction=c.val_fraction if c.select == "val" else 0.0,
        limit_train=c.limit_train,
        workers=c.workers,
        preprocess=preprocess,
        data_cache=c.data_cache,
        cache_dir=None if c.cache_dir is None else Path(c.cache_dir),
        progress=progress,
    )


def epoch_batches(num_images: int, batch_size: int, gen: torch.Generator) -> torch.Tensor:
    """Return the indices of one random pass over ``num_images`` images, without replacement.

    The remainder that does not fill a batch is dropped. A set smaller than a batch is one batch, whole.

    Args:
        num_images: size of the set, at least 1.
        batch_size: images per step, at least 1.
        gen: CPU generator that the order is drawn from.

    Returns:
        (steps, min(batch_size, num_images)) int64 on the CPU, with steps = max(1, num_images // batch_size).
    """
    assert num_images > 0
    assert batch_size > 0
    size = min(batch_size, num_images)
    steps = num_images // size
    return torch.randperm(num_images, generator=gen)[: steps * size].view(steps, size)


def _rank_within_class(labels: torch.Tensor, num_classes: int, gen: torch.Generator) -> torch.Tensor:
    """Number the images of each class 0, 1, 2, ... in random order; (N,) int64 to (N,) int64."""
    order = torch.randperm(len(labels), generator=gen)
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.bincount(minlength=num_classes)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels)) - first.repeat_interleave(counts)
    return ranks


def _validation_split(
    labels: torch.Tensor, class_names: tuple[str, ...], fraction: float, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending indices of the training and of the validation images, disjoint and stratified."""
    counts = labels.bincount(minlength=len(class_names))
    held_out = (counts.double() * fraction).round().long().clamp(min=1)
    if (held_out >= counts).any():
        short = int((held_out >= counts).nonzero()[0])
        raise UserError(
            f"--val_fraction {fraction}: class {class_names[short]} has {int(counts[short])} training image(s), "
            f"too few to leave some for training and some for validation; lower it, add images, or give 0"
        )
    ranks = _rank_within_class(labels, len(class_names), generator(0, "validation-split", name))
    is_val = ranks < held_out[labels]
    return (~is_val).nonzero().flatten(), is_val.nonzero().flatten()


def _balanced_subset(labels: torch.Tensor, num_classes: int, limit: int, name: str) -> torch.Tensor:
    """Return ascending indices of ``limit`` images whose classes differ by one image at most.

    Where a class has too few images the others fill in, and all images are kept if there are not more.
    """
    if limit < num_classes:
        raise UserError(f"--limit_train {limit}: it takes at least one image for each of {num_classes} classes")
    gen = generator(0, "limit-train", name)
    ranks = _rank_within_class(labels, num_classes, gen)
    # Deal one image of each class, then a second one of each, ...; who is short in the last round is random.
    turn = torch.randperm(num_classes, generator=gen)
    return (ranks * num_classes + turn[labels]).argsort()[:limit].sort().values


def _cached_zca(images: Pixels, reg: float, device: torch.device, folder: Path, name: str, progress: bool) -> Zca:
    """``Zca.fit``, unless a file in ``folder`` holds its result for the very same images and ``reg``."""
    digest = hashlib.blake2b(repr((_CACHE_VERSION, tuple(images.shape), reg)).encode(), digest_size=16)
    for rows in chunks(images):
        digest.update(images[rows].contiguous().numpy().data)
    path = folder / f"zca-{name}-{digest.hexdigest()}.safetensors"
    try:
        if path.exists():
            stored = Preprocess.from_tensors(load_file(path))
            if isinstance(stored, Zca) and len(stored.whiten) == images.shape[1:].numel():
                return stored
            raise UserError("it holds something else")
    except (OSError, SafetensorError, UserError) as error:
        print(f"{path}: unreadable cache file, computing ZCA again ({one_line(error)})", file=sys.stderr)
    fitted = Zca.fit(images, reg, device, progress)
    try:
        _write_atomically(fitted.tensors(), path)
    except (OSError, SafetensorError) as error:
        print(f"{path}: cannot cache the ZCA matrices ({one_line(error)})", file=sys.stderr)
    return fitted


def _write_atomically(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file that other processes see complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def streams(data_cache: str, num_images: int, info: DatasetInfo, device: torch.device) -> bool:
    """Whether images are streamed from the cache on disk: ``--data_cache disk``, or ``auto`` if they are too large.

    Too large is what takes more than half of the memory that is free where it would lie.
    """
    if data_cache != "auto":
        return data_cache == "disk"
    needs = _needs(num_images, info, zca=False, device=device).items()
    return any(need > _DEVICE_SHARE * free for place, need in needs if (free := _free_memory(place)) is not None)


def _needs(num_images: int, info: DatasetInfo, zca: bool, device: torch.device) -> dict[torch.device, int]:
    """Bytes that resident images take: uint8 pixels in memory while they are read, and float32 on ``device``."""
    values = num_images * info.channels * info.image_size**2
    on_device = 4 * values + _matrix_bytes(info, zca)
    if device.type == "cpu":
        return {device: values + on_device}
    return {torch.device("cpu"): values, device: on_device}


def _matrix_bytes(info: DatasetInfo, zca: bool) -> int:
    """Covariance, eigenvectors, and two products of them, in float64."""
    return 4 * 8 * (info.channels * info.image_size**2) ** 2 if zca else 0


def _require_memory(num_images: int, info: DatasetInfo, zca: bool, device: torch.device) -> None:
    """Raise ``UserError`` if ``num_images`` resident images and the ZCA matrices would not fit."""
    matrices = _matrix_bytes(info, zca)
    for place, need in _needs(num_images, info, zca, device).items():
        free = _free_memory(place)
        if free is not None and need > free:
            shape = f"{info.channels}x{info.image_size}x{info.image_size}"
            if matrices > need // 2:
                subject, remedy = f"the ZCA matrices of {shape} images", "lower --im_size or leave out --zca"
            else:
                subject = f"{num_images} images of {shape}"
                remedy = "give --data_cache disk, or lower --im_size or --limit_train"
            raise UserError(
                f"--device {device}: {subject} need {need / 1e9:.1f} GB on {place}, where {free / 1e9:.1f} GB are "
                f"free; {remedy}"
            )


def _free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on ``device``, or None where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        # Not sysconf's SC_AVPHYS_PAGES, which counts the page cache as taken: after reading a large data
        # set next to nothing would seem free.
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                fields = dict(line.split(":") for line in lines)
            return int(fields["MemAvailable"].split()[0]) * 1024
        except (OSError, LookupError, ValueError):
            return None
    return None
