"""Real data: splits, preprocessing and placement on the device.

``load`` reads a data set once, splits it, and leaves it whole on the device as float32 tensors, so that
a batch is an index and nothing in a hot loop waits for a disk or a copy. What a split holds depends on
the data and the flags, never on the run's seed: all runs share their validation images.
"""

import hashlib
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from framework.config import UserError
from framework.readers import DatasetInfo, Part, dataset_names, describe, one_line, open_source
from framework.rng import generator

__all__ = [
    "DatasetInfo",
    "Preprocess",
    "RealData",
    "Split",
    "Standardise",
    "Zca",
    "dataset_names",
    "describe",
    "epoch_batches",
    "load",
]

_CHUNK_VALUES = 2**24
"""Values worked on at a time: 128 MiB in float64."""

_CACHE_VERSION = "zca-1"
"""Part of a cache file's name: to be raised when the same images would give other matrices."""

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of the data, on the device."""

    images: torch.Tensor
    """(N, C, H, W) float32, preprocessed."""
    labels: torch.Tensor
    """(N,) int64 in 0..num_classes-1."""

    def __len__(self) -> int:
        return len(self.labels)


class Preprocess(ABC):
    """An invertible map from uint8 pixels to what networks see, fitted on training images alone.

    Its tensors stay on the CPU and are moved for the length of a call: the ZCA matrices of 64x64 images
    would otherwise hold 1.2 GB of device memory that is needed at the start and for showing images only.
    """

    kind: ClassVar[Literal["standardise", "zca"]]

    def __call__(self, images: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Preprocess (N, C, H, W) uint8 images; returns float32 of the same shape.

        Args:
            images: on any device; moved in chunks, so that only the result has to fit on ``device``.
            device: where the result goes (default: where ``images`` are).

        Raises:
            UserError: the result is not finite, which damaged preprocessing tensors can cause.
        """
        assert images.dtype == torch.uint8
        assert images.ndim == 4
        device = images.device if device is None else device
        result = torch.empty(images.shape, dtype=torch.float32, device=device)
        work = _float64_device(device)
        forward = self._forward_on(work)
        for rows in _chunks(images):
            chunk = forward(images[rows].to(work, torch.float64)).to(torch.float32)
            if not chunk.isfinite().all():
                raise UserError(
                    f"preprocessing ({self.kind}): images became infinite or NaN; "
                    f"its tensors are damaged, or --zca_reg is too small"
                )
            result[rows] = chunk.to(device)
        return result

    @abstractmethod
    def inverse(self, images: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """Return float (N, C, H, W) preprocessed images in natural colours: float32, clipped to [0, 1] with ``clip``.

        The result is on the device of ``images``.
        """

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """What ``from_tensors`` rebuilds this from, bit for bit: CPU tensors under ``preprocess.`` names."""

    @abstractmethod
    def _forward_on(self, device: torch.device) -> Map:
        """Return the map from pixels 0..255 to preprocessed images, both float64, with its tensors moved."""

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> "Preprocess":
        """Rebuild what ``tensors()`` gave; other names in ``tensors`` are ignored.

        Raises:
            UserError: the tensors of neither kind are there, or they are not of the right shape or finite.
        """
        own = {name: tensor.cpu() for name, tensor in tensors.items() if name.startswith("preprocess.")}
        if set(own) == set(Standardise.NAMES):
            mean, std = (own[name] for name in Standardise.NAMES)
            sound = mean.ndim == 1 and mean.shape == std.shape
            built: Preprocess = Standardise(mean, std)
        elif set(own) == set(Zca.NAMES):
            whiten, colour, image_mean, image_norm = (own[name] for name in Zca.NAMES)
            sound = whiten.ndim == 2 and whiten.shape == whiten.T.shape == colour.shape
            sound = sound and image_mean.ndim == image_norm.ndim == 0
            built = Zca(whiten, colour, image_mean, image_norm)
        else:
            raise UserError(f"preprocessing: expected the tensors of one kind, found {sorted(own) or 'none'}")
        if not sound or not all(t.dtype == torch.float32 and t.isfinite().all() for t in own.values()):
            raise UserError(f"preprocessing ({built.kind}): stored tensors are damaged; write the file again")
        return built


@dataclass(frozen=True, eq=False)
class Standardise(Preprocess):
    """(x - mean) / std of each channel, in [0, 1] scale."""

    mean: torch.Tensor
    """(C,) float32."""
    std: torch.Tensor
    """(C,) float32, positive."""

    kind = "standardise"
    NAMES: ClassVar = ("preprocess.standardise.mean", "preprocess.standardise.std")

    @classmethod
    def fit(cls, images: torch.Tensor) -> "Standardise":
        """Take the statistics of (N, C, H, W) uint8 training images; the deviation is the population's."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        # Of 256 levels a histogram tells all: exact, and without a float copy of the images.
        for channel in range(images.shape[1]):
            counts = sum(
                (torch.bincount(images[rows, channel].flatten(), minlength=256) for rows in _chunks(images)),
                start=torch.zeros(256, dtype=torch.int64),
            )
            share = counts / counts.sum(dtype=torch.float64)
            mean = (share * levels).sum()
            std = (share * (levels - mean).square()).sum().sqrt()
            means.append(mean)
            # A constant channel has nothing to scale. Dividing by 1 maps it to 0 instead of NaN.
            stds.append(std if std > 0 else torch.ones_like(std))
        return cls(torch.stack(means).float(), torch.stack(stds).float())

    def inverse(self, images: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """See ``Preprocess.inverse``; exact for preprocessed images, up to float32 rounding."""
        mean, std = (t.view(-1, 1, 1).to(images.device) for t in (self.mean, self.std))
        natural = images.detach().float() * std + mean
        return natural.clamp(0, 1) if clip else natural

    def tensors(self) -> dict[str, torch.Tensor]:
        """See ``Preprocess.tensors``."""
        return dict(zip(self.NAMES, (self.mean, self.std), strict=True))

    def _forward_on(self, device: torch.device) -> Map:
        mean, std = (t.view(-1, 1, 1).to(device, torch.float64) for t in (self.mean, self.std))
        return lambda pixels: (pixels / 255 - mean) / std


@dataclass(frozen=True, eq=False)
class Zca(Preprocess):
    """Regularised ZCA whitening of images that were centred and normalised one by one.

    Each image, flattened, loses its own mean and is divided by its own Euclidean norm. With the
    covariance C = X^T X / n of the training images, not centred again, and its eigenvalues E and
    eigenvectors V, it is then multiplied by V diag((E + reg * mean(E))^-1/2) V^T.

    Source: the preprocessing of RaT-BPTT (Feng et al., 2024, https://arxiv.org/abs/2311.07025), after
    that of Kernel Inducing Points (Nguyen et al., 2021, https://arxiv.org/abs/2107.13034).
    """

    whiten: torch.Tensor
    """(D, D) float32 with D = C*H*W, symmetric."""
    colour: torch.Tensor
    """(D, D) float32, the inverse of ``whiten``: V diag((E + reg * mean(E))^1/2) V^T."""
    image_mean: torch.Tensor
    """() float32: mean over the training images of their own mean, in [0, 1] scale."""
    image_norm: torch.Tensor
    """() float32: mean over the training images of their own norm, in [0, 1] scale."""

    kind = "zca"
    NAMES: ClassVar = (
        "preprocess.zca.whiten",
        "preprocess.zca.colour",
        "preprocess.zca.image_mean",
        "preprocess.zca.image_norm",
    )

    @classmethod
    def fit(cls, images: torch.Tensor, reg: float, device: torch.device, progress: bool = False) -> "Zca":
        """Whiten by the covariance of (N, C, H, W) uint8 training images, in float64 on ``device``.

        Raises:
            UserError: ``reg`` is not positive, all images are flat, or the (D, D) matrices are too large.
        """
        # Every image has mean 0, so the flat image is an eigenvector of eigenvalue 0: 0^-1/2 without reg.
        if not reg > 0:
            raise UserError(f"--zca_reg {reg}: it must be positive, as the covariance is always singular")
        work = _float64_device(device)
        size = images[0].numel()
        try:
            covariance = torch.zeros(size, size, dtype=torch.float64, device=work)
            mean_sum, norm_sum = torch.zeros(2, dtype=torch.float64, device=work)
            chunks = list(_chunks(images))
            for rows in tqdm(chunks, desc="ZCA covariance", unit="chunk", leave=False, disable=not progress):
                unit, mean, norm = _unit_images(images[rows].to(work, torch.float64))
                covariance.addmm_(unit.T, unit)
                mean_sum += mean.sum()
                norm_sum += norm.sum()
            eigenvalues, vectors = torch.linalg.eigh(covariance.div_(len(images)))
        except RuntimeError as error:
            raise UserError(
                f"--zca: the {size}x{size} covariance failed on {work} ({one_line(error)}); lower --im_size"
            ) from error
        # Rounding leaves the zero eigenvalues at about +-1e-18.
        eigenvalues = eigenvalues.clamp(min=0)
        if eigenvalues.sum() == 0:
            raise UserError("--zca: every training image is a single flat colour; leave out --zca")
        scale = (eigenvalues + reg * eigenvalues.mean()).sqrt()
        whiten = (vectors / scale) @ vectors.T
        colour = (vectors * scale) @ vectors.T
        statistics = (mean_sum / (255 * len(images)), norm_sum / (255 * len(images)))
        return cls(*(t.to(torch.float32).cpu().contiguous() for t in (whiten, colour, *statistics)))

    def inverse(self, images: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """See ``Preprocess.inverse``; every image gets the training images' average mean and norm."""
        flat = images.detach().float().flatten(1) @ self.colour.to(images.device)
        natural = flat * self.image_norm.to(images.device) + self.image_mean.to(images.device)
        return (natural.clamp(0, 1) if clip else natural).view(images.shape)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See ``Preprocess.tensors``."""
        return dict(zip(self.NAMES, (self.whiten, self.colour, self.image_mean, self.image_norm), strict=True))

    def _forward_on(self, device: torch.device) -> Map:
        # In float64 so that a TF32 setting made elsewhere cannot change the data.
        whiten = self.whiten.to(device, torch.float64)
        return lambda pixels: (_unit_images(pixels).unit @ whiten).view(pixels.shape)


@dataclass(frozen=True)
class RealData:
    """A data set, split, preprocessed and on the device."""

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
    cache_dir: Path | None = None,
    progress: bool = True,
) -> RealData:
    """Read, split and preprocess data set ``name``, and place it on ``device``.

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
        cache_dir: where ZCA matrices are kept (default: ``at-bptt`` in the user's cache folder).
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
    val_part = source.train if source.val is None else source.val
    if val_fraction > 0 and source.val is None:
        train, val = _validation_split(source.train.labels, source.class_names, val_fraction, name)
    elif val_fraction > 0:
        val = torch.arange(len(val_part.labels))
    if limit_train is not None:
        train = train[_balanced_subset(source.train.labels[train], len(source.class_names), limit_train, name)]
    test = torch.arange(len(source.test.labels))
    _require_memory(len(train) + len(test) + (0 if val is None else len(val)), info, zca and preprocess is None, device)

    def read(part: Part, indices: torch.Tensor) -> torch.Tensor:
        return part.read(indices, workers, progress)

    def place(pixels: torch.Tensor, labels: torch.Tensor) -> Split:
        return Split(fitted(pixels, device), labels.to(device))

    train_pixels = read(source.train, train)
    fitted: Preprocess
    if preprocess is not None:
        fitted = preprocess
    elif zca:
        fitted = _cached_zca(train_pixels, zca_reg, device, cache_dir or _default_cache(), name, progress)
    else:
        fitted = Standardise.fit(train_pixels)
    return RealData(
        name,
        source.class_names,
        place(train_pixels, source.train.labels[train]),
        None if val is None else place(read(val_part, val), val_part.labels[val]),
        place(read(source.test, test), source.test.labels),
        fitted,
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


class _UnitImages(NamedTuple):
    unit: torch.Tensor
    """(n, D): centred, of norm 1 (or 0)."""
    mean: torch.Tensor
    """(n, 1)."""
    norm: torch.Tensor
    """(n, 1): norm of the centred image."""


def _unit_images(pixels: torch.Tensor) -> _UnitImages:
    """Centre and normalise each of (n, C, H, W) float64 images by itself."""
    flat = pixels.flatten(1)
    mean = flat.mean(1, keepdim=True)
    centred = flat - mean
    norm = centred.norm(dim=1, keepdim=True)
    # A flat image has no direction: it stays zero.
    return _UnitImages(centred / norm.where(norm > 0, 1), mean, norm)


def _cached_zca(images: torch.Tensor, reg: float, device: torch.device, folder: Path, name: str, progress: bool) -> Zca:
    """``Zca.fit``, unless a file in ``folder`` holds its result for the very same images and ``reg``."""
    digest = hashlib.blake2b(repr((_CACHE_VERSION, tuple(images.shape), reg)).encode(), digest_size=16)
    digest.update(images.contiguous().numpy().data)
    path = folder / f"zca-{name}-{digest.hexdigest()}.safetensors"
    try:
        if path.exists():
            stored = Preprocess.from_tensors(load_file(path))
            if isinstance(stored, Zca) and len(stored.whiten) == images[0].numel():
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


def _default_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "at-bptt"
    except RuntimeError as error:
        raise UserError("no home folder to cache ZCA matrices in; set the variable XDG_CACHE_HOME") from error


def _require_memory(num_images: int, info: DatasetInfo, zca: bool, device: torch.device) -> None:
    """Raise ``UserError`` if uint8 pixels in memory and float32 images on ``device`` would not fit."""
    values = num_images * info.channels * info.image_size**2
    # Covariance, eigenvectors, and two products of them, in float64.
    matrices = 4 * 8 * (info.channels * info.image_size**2) ** 2 if zca else 0
    on_device = 4 * values + matrices
    needs = {torch.device("cpu"): values, device: on_device}
    if device.type == "cpu":
        needs = {device: values + on_device}
    for place, need in needs.items():
        free = _free_memory(place)
        if free is not None and need > free:
            lower = "--im_size or leave out --zca" if matrices > need // 2 else "--im_size or --limit_train"
            shape = f"{info.channels}x{info.image_size}x{info.image_size}"
            raise UserError(
                f"--device {device}: {num_images} images of {shape} need {need / 1e9:.1f} GB on {place}, "
                f"where {free / 1e9:.1f} GB are free; lower {lower}"
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


def _float64_device(device: torch.device) -> torch.device:
    """``device``, or the CPU in place of an accelerator without float64."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def _chunks(images: torch.Tensor) -> Iterable[slice]:
    """Cut (N, ...) images into slices of at most ``_CHUNK_VALUES`` values, but at least one image."""
    step = max(1, _CHUNK_VALUES // images.shape[1:].numel())
    return (slice(start, start + step) for start in range(0, len(images), step))
