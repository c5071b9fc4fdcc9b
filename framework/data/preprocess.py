"""Preprocessing: from uint8 pixels to what networks see, and back to natural colours."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from framework.errors import UserError, one_line

_CHUNK_VALUES = 2**24
"""Values worked on at a time: 128 MiB in float64."""


_ZCA_BLOCK = 256
"""Images whitened in one matrix product."""


Map = Callable[[torch.Tensor], torch.Tensor]


class Pixels(Protocol):
    """(N, C, H, W) uint8 images on the CPU, read by row: a tensor is one, and so is ``cache.StoredImages``."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | torch.Tensor, /) -> torch.Tensor: ...


class Preprocess(ABC):
    """An invertible map from uint8 pixels to what networks see, fitted on training images alone.

    Its tensors stay on the CPU and are moved for the length of a call (or of a map that ``on`` gave): the ZCA
    matrices of 64x64 images would otherwise hold 1.2 GB of device memory that only streamed images need for long.
    """

    kind: ClassVar[Literal["standardise", "zca", "zca_pixels"]]
    NAMES: ClassVar[tuple[str, ...]]
    """Of its tensors in files: ``preprocess.``, the kind, and the field that holds it."""

    def __call__(self, images: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Preprocess (N, C, H, W) uint8 images; returns float32 of the same shape.

        Args:
            images: on any device; moved in chunks, so that only the result has to fit on ``device``.
            device: where the result goes (default: where ``images`` are).

        Raises:
            UserError: the result is not finite, which damaged preprocessing tensors can cause.
        """
        return self.on(images.device if device is None else device)(images)

    def on(self, device: torch.device) -> Map:
        """The map that ``__call__`` applies, with its tensors moved to ``device`` once for many calls.

        An image's result is the same to the last bit in whatever batch it comes.
        """
        work = _float64_device(device)
        forward = self._forward_on(work)

        def preprocessed(images: torch.Tensor) -> torch.Tensor:
            assert images.dtype == torch.uint8
            assert images.ndim == 4
            result = torch.empty(images.shape, dtype=torch.float32, device=device)
            for rows in chunks(images):
                # Moved as bytes: converted first, eight times as much would have to be moved.
                result[rows] = self._finite(forward(images[rows].to(work).double())).to(device)
            return result

        return preprocessed

    def of_natural(self, images: torch.Tensor) -> torch.Tensor:
        """Preprocess float (N, C, H, W) images in natural colours, whose values may lie outside [0, 1]; float32.

        Raises:
            UserError: see ``__call__``.
        """
        work = _float64_device(images.device)
        return self._finite(self._forward_on(work)(images.to(work).double() * 255)).to(images.device)

    def _finite(self, images: torch.Tensor) -> torch.Tensor:
        """The images as float32, if they are finite."""
        result = images.to(torch.float32)
        if not result.isfinite().all():
            raise UserError(
                f"preprocessing ({self.kind}): images became infinite or NaN; "
                f"its tensors are damaged, or --zca_reg is too small"
            )
        return result

    @abstractmethod
    def inverse(self, images: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """Return float (N, C, H, W) preprocessed images in natural colours: float32, clipped to [0, 1] with ``clip``.

        The result is on the device of ``images``.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """What ``from_tensors`` rebuilds this from, bit for bit: CPU tensors under ``preprocess.`` names."""
        return {name: getattr(self, name.rpartition(".")[2]) for name in self.NAMES}

    @abstractmethod
    def _forward_on(self, device: torch.device) -> Map:
        """Return the map from pixels 0..255 to preprocessed images, both float64, with its tensors moved."""

    @abstractmethod
    def _fits_together(self) -> bool:
        """Whether the tensors' shapes are those that their descriptions say."""

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> "Preprocess":
        """Rebuild what ``tensors()`` gave; other names in ``tensors`` are ignored.

        Raises:
            UserError: the tensors of no kind are there, or they are not of the right shape or finite.
        """
        own = {name: tensor.cpu() for name, tensor in tensors.items() if name.startswith("preprocess.")}
        for kind in (Standardise, Zca, ZcaPixels):
            if set(own) == set(kind.NAMES):
                built: Preprocess = kind(*(own[name] for name in kind.NAMES))
                sound = all(t.dtype == torch.float32 and t.isfinite().all() for t in own.values())
                if not (sound and built._fits_together()):
                    raise UserError(f"preprocessing ({built.kind}): stored tensors are damaged; write the file again")
                return built
        raise UserError(f"preprocessing: expected the tensors of one kind, found {sorted(own) or 'none'}")


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
    def fit(cls, images: Pixels) -> "Standardise":
        """Take the statistics of (N, C, H, W) uint8 training images; the deviation is the population's."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        # Of 256 levels a histogram tells all: exact, and without a float copy of the images.
        histogram = torch.zeros(images.shape[1], 256, dtype=torch.int64)
        for rows in chunks(images):
            chunk = images[rows]
            for channel, counts in enumerate(histogram):
                counts += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        for counts in histogram:
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

    def _forward_on(self, device: torch.device) -> Map:
        mean, std = (t.view(-1, 1, 1).to(device, torch.float64) for t in (self.mean, self.std))
        return lambda pixels: (pixels / 255 - mean) / std

    def _fits_together(self) -> bool:
        return self.mean.ndim == 1 and self.mean.shape == self.std.shape


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
    def fit(cls, images: Pixels, reg: float, device: torch.device, progress: bool = False) -> "Zca":
        """Whiten by the covariance of (N, C, H, W) uint8 training images, in float64 on ``device``.

        Raises:
            UserError: ``reg`` is not positive, all images are flat, or the (D, D) matrices are too large.
        """
        from tqdm import tqdm  # late: whoever only applies a preprocessing needs no bar

        # Every image has mean 0, so the flat image is an eigenvector of eigenvalue 0: 0^-1/2 without reg.
        if not reg > 0:
            raise UserError(f"--zca_reg {reg}: it must be positive, as the covariance is always singular")
        work = _float64_device(device)
        size = images.shape[1:].numel()
        try:
            covariance = torch.zeros(size, size, dtype=torch.float64, device=work)
            mean_sum, norm_sum = torch.zeros(2, dtype=torch.float64, device=work)
            parts = list(chunks(images))
            for rows in tqdm(parts, desc="ZCA covariance", unit="chunk", leave=False, disable=not progress):
                unit, mean, norm = _unit_images(images[rows].to(work).double())
                covariance.addmm_(unit.T, unit)
                mean_sum += mean.sum()
                norm_sum += norm.sum()
            eigenvalues, vectors = torch.linalg.eigh(covariance.div_(len(images)))
        except RuntimeError as error:
            raise UserError(
                f"ZCA: the {size}x{size} covariance failed on {work} ({one_line(error)}); take smaller images"
            ) from error
        # Rounding leaves the zero eigenvalues at about +-1e-18.
        eigenvalues = eigenvalues.clamp(min=0)
        if eigenvalues.sum() == 0:
            raise UserError("ZCA: every training image is a single flat colour; standardise them instead")
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

    def _forward_on(self, device: torch.device) -> Map:
        # In float64 so that a TF32 setting made elsewhere cannot change the data.
        whiten = self.whiten.to(device, torch.float64)
        return _in_blocks(lambda flat: _unit_images(flat).unit @ whiten)

    def _fits_together(self) -> bool:
        return _square(self.whiten, self.colour) and self.image_mean.ndim == self.image_norm.ndim == 0


@dataclass(frozen=True, eq=False)
class ZcaPixels(Preprocess):
    """ZCA whitening of pixels: of the training images X (N, D) in [0, 1] with mean m and covariance U diag(S) U^T,
    divided by N - 1, an image x becomes (x - m) U diag((S + eps)^-1/2) U^T. No image is normalised by itself, so that
    the inverse is exact.

    Source: ``get_dataset`` of MTT (Cazenavette et al., 2022, https://arxiv.org/abs/2203.11932), which FTD and DATM
    kept: kornia's ``ZCAWhitening`` with eps = 0.1.
    """

    whiten: torch.Tensor
    """(D, D) float32 with D = C*H*W, symmetric."""
    colour: torch.Tensor
    """(D, D) float32, the inverse of ``whiten``: U diag((S + eps)^1/2) U^T."""
    mean: torch.Tensor
    """(D,) float32: the mean training image, in [0, 1] scale."""

    kind = "zca_pixels"
    NAMES: ClassVar = ("preprocess.zca_pixels.whiten", "preprocess.zca_pixels.colour", "preprocess.zca_pixels.mean")
    EPS: ClassVar = 0.1

    @classmethod
    def fit(cls, images: Pixels, device: torch.device) -> "ZcaPixels":
        """Whiten by the covariance of (N, C, H, W) uint8 training images, in float64 on ``device``.

        All of them lie there at once: kornia takes them in one tensor and centres a copy.

        Raises:
            UserError: there is one image alone, or images and the (D, D) matrices are too large.
        """
        from kornia.enhance import ZCAWhitening  # late: whoever only applies a preprocessing needs no kornia

        if len(images) < 2:
            raise UserError("ZCA of pixels: one training image has no covariance; give more, or standardise it instead")
        work = _float64_device(device)
        size = images.shape[1:].numel()
        try:
            flat = torch.empty(len(images), size, dtype=torch.float64, device=work)
            for rows in chunks(images):
                flat[rows] = images[rows].to(work).flatten(1).double() / 255
            fitted = ZCAWhitening(eps=cls.EPS, compute_inv=True).fit(flat)
        except RuntimeError as error:
            raise UserError(
                f"ZCA of pixels: the {size}x{size} covariance failed on {work} ({one_line(error)}); take smaller images"
            ) from error
        found = (fitted.transform_matrix, fitted.transform_inv, fitted.mean_vector.flatten())
        return cls(*(t.to(torch.float32).cpu().contiguous() for t in found))

    def inverse(self, images: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """See ``Preprocess.inverse``; exact for preprocessed images, up to float32 rounding."""
        flat = images.detach().float().flatten(1) @ self.colour.to(images.device)
        natural = flat + self.mean.to(images.device)
        return (natural.clamp(0, 1) if clip else natural).view(images.shape)

    def _forward_on(self, device: torch.device) -> Map:
        whiten, mean = (t.to(device, torch.float64) for t in (self.whiten, self.mean))
        return _in_blocks(lambda flat: (flat / 255 - mean) @ whiten)

    def _fits_together(self) -> bool:
        return _square(self.whiten, self.colour) and self.mean.shape == self.whiten.shape[:1]


def _square(whiten: torch.Tensor, colour: torch.Tensor) -> bool:
    return whiten.ndim == 2 and whiten.shape == whiten.T.shape == colour.shape


def _in_blocks(whitened: Map) -> Map:
    """The map of images (n, C, H, W) that ``whitened`` makes of rows (``_ZCA_BLOCK``, D)."""

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        # Always whole blocks: the last bits of a matrix product and of a mean depend on its shape.
        padded = F.pad(pixels.flatten(1), (0, 0, 0, -len(pixels) % _ZCA_BLOCK))
        blocks = [whitened(block) for block in padded.split(_ZCA_BLOCK)]
        return torch.cat(blocks)[: len(pixels)].view(pixels.shape)

    return forward


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


def _float64_device(device: torch.device) -> torch.device:
    """``device``, or the CPU in place of an accelerator without float64."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def chunks(images: Pixels) -> Iterable[slice]:
    """Cut (N, ...) images into slices of at most ``_CHUNK_VALUES`` values, but at least one image."""
    step = max(1, _CHUNK_VALUES // images.shape[1:].numel())
    return (slice(start, start + step) for start in range(0, len(images), step))
