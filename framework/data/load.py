"""Real data: splits, preprocessing and placement.

``list_data`` lists a data set and splits it, ``load_listed`` reads it once. Where it fits, it is left whole on the
device as float32 tensors, so that a batch is an index and nothing in a hot loop waits for a disk or a copy; where it
does not, it is streamed from ``store``'s memory-mapped uint8 images. Both give the same numbers, to the last bit. What
a split holds depends on the data and the flags, never on the run's seed: all runs share their validation images.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from framework.data.parts import Part, Source
from framework.data.preprocess import Pixels, Preprocess, Standardise, Zca, ZcaPixels, chunks
from framework.data.registry import DatasetInfo, Reading, kind_of, open_source
from framework.data.splits import RealData, Split, StreamedImages, balanced_subset, validation_split
from framework.data.store import StoredImages, open_store
from framework.errors import UserError, one_line
from framework.files import cache_folder
from framework.machine import free_memory

_DEVICE_SHARE = 0.5
"""Of the free memory, what images may take under ``--data_cache auto``; the rest is for networks and windows."""

_CACHE_VERSION = "zca-1"
_PIXELS_CACHE_VERSION = "zca_pixels-1"
"""Parts of a cache file's name: to be raised when the same images would give other matrices."""


@dataclass(frozen=True)
class DataSpec:
    """What to load, and how.

    Args:
        name: one of ``registry.NAMES``.
        root: folder that holds the data set's files; each reader's docstring says where.
        zca: whiten with ``Zca`` instead of standardising each channel.
        zca_reg: its regularisation, as a share of the mean eigenvalue.
        zca_pixels: whiten with ``ZcaPixels`` instead.
        im_size: pixels a side (default: the data set's own).
        val_fraction: share of each class's training images kept apart as validation images, in [0, 1); 0
            gives none. A validation part that comes with an ``imagefolder`` is used instead of a share.
        limit_train: keep this many training images after the split, spread evenly over classes.
        workers: threads that decode image files, 0 for one per core.
        data_cache: ``device``, ``disk`` or ``auto``; see ``streams``.
        cache_dir: where ZCA matrices and decoded images are kept (default: ``files.cache_folder``).
        reading: what the user says of their own data.

    Raises:
        UserError: a number is out of its range.
    """

    name: str
    root: Path
    zca: bool = False
    zca_reg: float = 0.1
    zca_pixels: bool = False
    im_size: int | None = None
    val_fraction: float = 0.1
    limit_train: int | None = None
    workers: int = 0
    data_cache: str = "auto"
    cache_dir: Path | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val_fraction {self.val_fraction}: it must be at least 0 and below 1")
        if self.zca and not self.zca_reg > 0:
            raise UserError(f"--zca_reg {self.zca_reg}: it must be positive")
        if self.zca and self.zca_pixels:
            raise UserError("--zca and --zca_pixels are two preprocessings: give one of them")

    @property
    def cache(self) -> Path:
        """Where caches are kept."""
        return self.cache_dir or cache_folder()

    @property
    def kind(self) -> str:
        """What splits and caches are named by: where one's own data lie makes no difference to them."""
        return kind_of(self.name)


@dataclass(frozen=True)
class Listing:
    """A data set listed and split; none of its images is decoded yet."""

    spec: DataSpec
    info: DatasetInfo
    source: Source
    train: torch.Tensor
    """(n,) int64: which images of the training part train."""
    val: torch.Tensor | None
    """(m,) int64: which of the training or validation part select."""

    @property
    def name(self) -> str:
        """The data set's."""
        return self.spec.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order."""
        return self.source.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.info.channels, self.info.image_size, self.info.image_size

    @property
    def counts(self) -> torch.Tensor:
        """(K,) int64: training images of each class."""
        return self.source.train.labels[self.train].bincount(minlength=len(self.class_names))


def list_data(spec: DataSpec) -> Listing:
    """List and split a data set.

    Several processes may call this at once, but a data set that torchvision still has to download should
    be listed by one of them first.

    Raises:
        UserError: a flag is wrong, or what is known of a file before it is decoded.
    """
    info, source = open_source(spec.name, spec.root, spec.im_size, spec.reading)
    return Listing(spec, info, source, *_train_and_val(spec, source))


def load(
    spec: DataSpec, device: torch.device, *, preprocess: Preprocess | None = None, progress: bool = True
) -> RealData:
    """``load_listed`` after ``list_data``, where there is nothing to check in between."""
    return load_listed(list_data(spec), device, preprocess=preprocess, progress=progress)


def load_listed(
    listing: Listing, device: torch.device, *, preprocess: Preprocess | None = None, progress: bool = True
) -> RealData:
    """Read and preprocess a listed data set, and place it on ``device`` or stream it from disk.

    Args:
        listing: what to load.
        device: where the tensors go.
        listing: what ``list_data`` made of the spec, where that was done before.
        preprocess: to be used instead of one fitted on the training images.
        progress: show progress bars on stderr.

    Raises:
        UserError: an image cannot be decoded, or the tensors would not fit in memory.
    """
    spec, info, source, train, val = listing.spec, listing.info, listing.source, listing.train, listing.val
    val_part = source.train if source.val is None else source.val
    test = torch.arange(len(source.test.labels))
    count = len(train) + len(test) + (0 if val is None else len(val))
    streamed = streams(spec.data_cache, count, info, device)
    fit = _fit_bytes(spec, info, len(train)) if preprocess is None else 0
    _require_memory(0 if streamed else count, info, fit, device)
    for line in source.lines if progress else ():
        print(line, file=sys.stderr)
    if streamed and progress:
        print(f"{spec.name}: streaming images from {spec.cache} (--data_cache)", file=sys.stderr)
    images = _Images(spec, info, streamed, progress)
    train_pixels = images.read(source.train, train)
    fitted = preprocess or _fit(spec, train_pixels, device, progress)
    place = fitted.on(device)

    def split(pixels: Pixels, part: Part, rows: torch.Tensor) -> Split:
        images = place(pixels) if isinstance(pixels, torch.Tensor) else StreamedImages(pixels, place)
        return Split(images, part.labels[rows].to(device))

    return RealData(
        spec.name,
        source.class_names,
        split(train_pixels, source.train, train),
        None if val is None else split(images.read(val_part, val), val_part, val),
        split(images.read(source.test, test), source.test, test),
        fitted,
        None if source.identity is None else f"{spec.kind} {source.identity()}",
    )


def _train_and_val(spec: DataSpec, source: Source) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which images of the training part train, and which of it or of the validation part select."""
    train, val = torch.arange(len(source.train.labels)), None
    if spec.val_fraction > 0 and source.val is None:
        train, val = validation_split(source.train.labels, source.class_names, spec.val_fraction, spec.kind)
    elif spec.val_fraction > 0 and source.val is not None:
        val = torch.arange(len(source.val.labels))
    if spec.limit_train is not None:
        labels = source.train.labels[train]
        train = train[balanced_subset(labels, len(source.class_names), spec.limit_train, spec.kind)]
    return train, val


@dataclass
class _Images:
    """Reads images of a data set's parts, or opens their stores, each once."""

    spec: DataSpec
    info: DatasetInfo
    streamed: bool
    progress: bool
    stores: dict[int, StoredImages] = field(default_factory=dict)  # by the part's id

    def read(self, part: Part, rows: torch.Tensor) -> Pixels:
        """The images at ``rows`` of a part: decoded, or to be read from its store."""
        if not self.streamed:
            return part.read(rows, self.spec.workers, self.progress)
        if id(part) not in self.stores:
            # All of it, so that runs with other splits and limits share it.
            shape = (self.info.channels, self.info.image_size, self.info.image_size)
            self.stores[id(part)] = open_store(
                part, self.spec.kind, shape, self.spec.cache, self.spec.workers, self.progress
            )
        return self.stores[id(part)].take(rows)


def _fit(spec: DataSpec, images: Pixels, device: torch.device, progress: bool) -> Preprocess:
    """The preprocessing that the spec asks for, fitted on training images."""
    if spec.zca:
        return _cached(Zca, (_CACHE_VERSION, tuple(images.shape), spec.zca_reg), images, spec,
                       lambda: Zca.fit(images, spec.zca_reg, device, progress))  # fmt: skip
    if spec.zca_pixels:
        return _cached(ZcaPixels, (_PIXELS_CACHE_VERSION, tuple(images.shape), ZcaPixels.EPS), images, spec,
                       lambda: ZcaPixels.fit(images, device))  # fmt: skip
    return Standardise.fit(images)


def _cached(
    kind: type[Zca | ZcaPixels],
    about: tuple[object, ...],
    images: Pixels,
    spec: DataSpec,
    fit: Callable[[], Zca | ZcaPixels],
) -> Zca | ZcaPixels:
    """``fit()``, unless a file in the cache holds its result for the very same images and what ``about`` says."""
    digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
    for rows in chunks(images):
        digest.update(images[rows].contiguous().numpy().data)
    path = spec.cache / f"{kind.kind}-{spec.kind}-{digest.hexdigest()}.safetensors"
    try:
        if path.exists():
            stored = Preprocess.from_tensors(load_file(path))
            if isinstance(stored, kind) and len(stored.whiten) == images.shape[1:].numel():
                return stored
            raise UserError("it holds something else")
    except (OSError, SafetensorError, UserError) as error:
        print(f"{path}: unreadable cache file, computing ZCA again ({one_line(error)})", file=sys.stderr)
    fitted = fit()
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
    needs = _needs(num_images, info, fit=0, device=device).items()
    return any(need > _DEVICE_SHARE * free for place, need in needs if (free := free_memory(place)) is not None)


def _needs(num_images: int, info: DatasetInfo, fit: int, device: torch.device) -> dict[torch.device, int]:
    """Bytes that resident images take: uint8 pixels in memory while they are read, and float32 on ``device``.

    ``fit`` are those that fitting the preprocessing takes there.
    """
    values = num_images * info.channels * info.image_size**2
    on_device = 4 * values + fit
    if device.type == "cpu":
        return {device: values + on_device}
    return {torch.device("cpu"): values, device: on_device}


def _fit_bytes(spec: DataSpec, info: DatasetInfo, num_train: int) -> int:
    """What fitting ZCA takes, in float64."""
    size = info.channels * info.image_size**2
    if spec.zca:
        return 4 * 8 * size**2  # covariance, eigenvectors, and two products of them
    if spec.zca_pixels:
        return 8 * (2 * num_train * size + 6 * size**2)  # images and centred images; covariance, U, V, and products
    return 0


def _require_memory(num_images: int, info: DatasetInfo, fit: int, device: torch.device) -> None:
    """Raise ``UserError`` if ``num_images`` resident images and ``fit`` bytes of fitting ZCA would not fit."""
    for place, need in _needs(num_images, info, fit, device).items():
        free = free_memory(place)
        if free is not None and need > free:
            shape = f"{info.channels}x{info.image_size}x{info.image_size}"
            if fit > need // 2:
                subject = f"the ZCA matrices of {shape} images"
                remedy = "take smaller images, or standardise them instead of ZCA"
            else:
                subject, remedy = f"{num_images} images of {shape}", "give --data_cache disk"
            raise UserError(
                f"--device {device}: {subject} need {need / 1e9:.1f} GB on {place}, where {free / 1e9:.1f} GB are "
                f"free; {remedy}"
            )
