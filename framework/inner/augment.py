"""Differentiable augmentation whose random choices are made beforehand.

Two halves, kept apart so that a step can be replayed exactly and nothing waits for the host:

* ``Augmentation.draw`` makes every random choice of a trajectory at once, from one generator, as
  tensors with a leading time axis.
* ``apply`` is a pure function of images, labels and one time slice of such a draw. It is linear in
  the images and in the labels, vectorised over the batch, and has no data-dependent branch: an image
  that an operation skips gets that operation's identity parameters.

Operations and their ranges follow differentiable siamese augmentation (Zhao and Bilen, ICML 2021,
arXiv 2102.08259), which RaT-BPTT and AT-BPTT use: flip with probability 1/2, rotation by up to 15
degrees, scaling of each axis by up to 1.2, translation by up to an eighth of the side, colour
(brightness, saturation, contrast), a cut-out square of half the side, and mixup.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ANGLE = 15.0  # degrees


MAX_SCALE = 1.2


CROP_RATIO = 0.125  # of the side


CUTOUT_RATIO = 0.5  # of the side


BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5


CONDENSATION_SHIFT, CONDENSATION_SCALE, CONDENSATION_ANGLE = 4, 0.2, 45.0  # pixels, share, degrees


@dataclass(frozen=True)
class Draw:
    """The random choices of ``T`` augmented batches of ``B`` images; ``None`` where never used.

    ``at(t)`` drops the leading axis. Shapes are given without it.
    """

    flip: Tensor | None = None  # (B,) bool
    affine: Tensor | None = None  # (B, 2, 3) output-to-input map in normalised coordinates
    colour: Tensor | None = None  # (B, 3) brightness offset, saturation factor, contrast factor
    cutout: Tensor | None = None  # (B, 2) row and column of the square's first pixel; beyond the image: none
    mix_weight: Tensor | None = None  # () or (B,) share of the image itself
    mix_partner: Tensor | None = None  # (B,) int64, a permutation

    def map(self, function: Callable[[Tensor], Tensor]) -> "Draw":
        """Apply ``function`` to every tensor."""
        return Draw(**{f.name: None if (v := getattr(self, f.name)) is None else function(v) for f in fields(self)})

    def at(self, t: int) -> "Draw":
        """The choices of batch ``t``."""
        return self.map(lambda tensor: tensor[t])

    def to(self, device: torch.device) -> "Draw":
        """Move to ``device`` without waiting for the copy."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


torch.export.register_dataclass(Draw)


def _uniform(low: float, high: float, shape: tuple[int, ...], gen: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=gen, dtype=torch.float64) * (high - low) + low


def _rotation(shape: tuple[int, int], most: float, gen: torch.Generator) -> Tensor:
    angle = _uniform(-most, most, shape, gen) * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _scaling(shape: tuple[int, int], gen: torch.Generator) -> Tensor:
    return torch.diag_embed(_uniform(1 / MAX_SCALE, MAX_SCALE, (*shape, 2), gen))


def _translation(shape: tuple[int, int], side: int, reach: int, gen: torch.Generator) -> Tensor:
    pixels = torch.randint(-reach, reach + 1, (*shape, 2), generator=gen)
    return pixels.double() * (2 / side)  # normalised coordinates span 2 over the side


def _colour(shape: tuple[int, int], gen: torch.Generator) -> Tensor:
    low = torch.tensor([-0.5 * BRIGHTNESS, 0.0, CONTRAST], dtype=torch.float64)
    high = torch.tensor([0.5 * BRIGHTNESS, SATURATION, 1 + CONTRAST], dtype=torch.float64)
    return torch.rand((*shape, 3), generator=gen, dtype=torch.float64) * (high - low) + low


class Augmenter(Protocol):
    """Anything that makes the choices of augmented batches; its text names it."""

    def draw(self, steps: int, batch: int, gen: torch.Generator) -> Draw:
        """The choices for ``steps`` batches of ``batch`` images each, on the CPU."""


@dataclass(frozen=True)
class Augmentation:
    """A strategy such as ``flip_rotate``.

    Args:
        strategy: names from ``names.AUGMENTATIONS`` joined by ``_``, or ``none``.
        compose: apply every operation to each batch, instead of one drawn per batch.
        side: image height and width in pixels.
    """

    strategy: str
    compose: bool
    side: int

    def __str__(self) -> str:
        return f"{self.strategy}, composed" if self.compose else self.strategy

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations, in the order named."""
        return () if self.strategy == "none" else tuple(self.strategy.split("_"))

    def draw(self, steps: int, batch: int, gen: torch.Generator) -> Draw:
        """Make the choices for ``steps`` batches of ``batch`` images each, on the CPU.

        Real-valued parameters are float64; ``apply`` casts them to the images' type.
        """
        names = self.operations
        chosen = torch.randint(max(len(names), 1), (steps,), generator=gen)

        def keep(name: str, drawn: Tensor, identity: Tensor | float) -> Tensor:
            """``drawn`` for the batches that use ``name``, the identity for the others."""
            used = torch.ones(steps, dtype=torch.bool) if self.compose else chosen == names.index(name)
            return torch.where(
                used.view(-1, *[1] * (drawn.dim() - 1)), drawn, torch.as_tensor(identity, dtype=drawn.dtype)
            )

        shape = (steps, batch)
        result: dict[str, Tensor] = {}
        eye = torch.eye(2, dtype=torch.float64)
        linear, shift = eye.expand(*shape, 2, 2), torch.zeros(*shape, 2, dtype=torch.float64)
        for name in names:
            if name == "flip":
                result["flip"] = keep(name, torch.rand(shape, generator=gen) < 0.5, False)
            elif name == "rotate":
                linear = linear @ keep(name, _rotation(shape, MAX_ANGLE, gen), eye)
            elif name == "scale":
                linear = linear @ keep(name, _scaling(shape, gen), eye)
            elif name == "crop":
                shift = keep(name, _translation(shape, self.side, int(self.side * CROP_RATIO + 0.5), gen), 0.0)
            elif name == "color":
                result["colour"] = keep(name, _colour(shape, gen), torch.tensor([0.0, 1.0, 1.0]))
            elif name == "cutout":
                size = int(self.side * CUTOUT_RATIO + 0.5)
                corner = torch.randint(self.side + 1 - size % 2, (*shape, 2), generator=gen) - size // 2
                result["cutout"] = keep(name, corner, self.side)
            elif name == "mixup":
                result["mix_weight"] = keep(name, _uniform(0, 1, (steps,), gen), 1.0)
                result["mix_partner"] = torch.rand(shape, generator=gen).argsort(dim=1)
        if {"rotate", "scale", "crop"} & set(names):
            result["affine"] = torch.cat([linear, shift.unsqueeze(-1)], dim=-1)
        return Draw(**result)


@dataclass(frozen=True)
class CondensationAugmentation:
    """Dataset condensation's own (arXiv 2006.05929), for training on whole real sets.

    Each image is either shifted by up to 4 pixels along each axis, or scaled by 0.8 to 1.2 along each axis, or rotated
    by up to 45 degrees. What comes into view is 0, where their code puts the batch's mean colour around shifted and
    rotated images; scaling is bilinear, where theirs takes the nearest pixel.

    Args:
        side: image height and width in pixels.
    """

    side: int

    def __str__(self) -> str:
        return "condensation"

    def draw(self, steps: int, batch: int, gen: torch.Generator) -> Draw:
        """See ``Augmentation.draw``."""
        shape = (steps, batch)
        chosen = torch.randint(3, shape, generator=gen)[..., None]
        shift = torch.where(chosen == 0, _translation(shape, self.side, CONDENSATION_SHIFT, gen), 0.0)
        size = _uniform(1 - CONDENSATION_SCALE, 1 + CONDENSATION_SCALE, (*shape, 2), gen)
        linear = torch.diag_embed(torch.where(chosen == 1, 1 / size, 1.0))  # an output pixel comes from nearer
        linear = torch.where(chosen[..., None] == 2, _rotation(shape, CONDENSATION_ANGLE, gen), linear)
        return Draw(affine=torch.cat([linear, shift.unsqueeze(-1)], dim=-1))


def sample_bilinearly(images: Tensor, grid: Tensor) -> Tensor:
    """``F.grid_sample`` with zero padding, by operations whose derivatives have deterministic algorithms on CUDA.

    Args:
        images: (B, C, H, W).
        grid: (B, H, W, 2) normalised x and y, as ``F.affine_grid`` returns without aligned corners.
    """
    _, channels, height, width = images.shape
    x = ((grid[..., 0] + 1) * width - 1) / 2
    y = ((grid[..., 1] + 1) * height - 1) / 2
    left, top = x.floor(), y.floor()
    result = torch.zeros_like(images)
    for column in (left, left + 1):
        for row in (top, top + 1):
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(1)
            corner = images.flatten(2).gather(2, index.unsqueeze(1).expand(-1, channels, -1)).view_as(images)
            result = result + (weight * inside).unsqueeze(1) * corner
    return result


def apply(images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Augment one batch.

    Args:
        images: (B, C, H, W) floating point.
        labels: (B, K) class weights (one-hot or soft).
        draw: the choices for this batch, from ``Draw.at``, on the images' device.

    Returns:
        Images and labels of the same shapes. Labels change only under mixup: cross-entropy is linear
        in the labels, so mixing them equals mixing the two losses.
    """
    side = images.shape[-1]
    if draw.flip is not None:
        images = torch.where(draw.flip.view(-1, 1, 1, 1), images.flip(-1), images)
    if draw.affine is not None:
        grid = F.affine_grid(draw.affine.to(images.dtype), list(images.shape), align_corners=False)
        if images.is_cuda and torch.are_deterministic_algorithms_enabled():
            images = sample_bilinearly(images, grid)
        else:
            images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if draw.colour is not None:
        offset, saturation, contrast = draw.colour.to(images.dtype).T.view(3, -1, 1, 1, 1)
        images = images + offset
        grey = images.mean(dim=1, keepdim=True)
        images = (images - grey) * saturation + grey
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * contrast + mean
    if draw.cutout is not None:
        size = int(side * CUTOUT_RATIO + 0.5)
        position = torch.arange(side, device=images.device)
        inside = (position >= draw.cutout.unsqueeze(-1)) & (position < draw.cutout.unsqueeze(-1) + size)  # (B, 2, side)
        images = images.masked_fill((inside[:, 0, :, None] & inside[:, 1, None, :]).unsqueeze(1), 0.0)
    if draw.mix_weight is not None and draw.mix_partner is not None:
        weight = draw.mix_weight.to(images.dtype).view(-1, 1)
        labels = weight.to(labels.dtype) * labels + (1 - weight.to(labels.dtype)) * labels[draw.mix_partner]
        weight = weight.view(-1, 1, 1, 1)
        images = weight * images + (1 - weight) * images[draw.mix_partner]
    return images, labels
