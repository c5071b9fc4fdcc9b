"""Differentiable augmentation, against pixel-by-pixel loops in float64, scipy and kornia."""

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia import enhance
from kornia.augmentation import RandomErasing, RandomMixUpV2
from kornia.enhance.adjust import adjust_contrast_with_mean_subtraction, adjust_saturation_with_gray_subtraction
from kornia.geometry import transform
from kornia.geometry.conversions import normal_transform_pixel
from scipy import ndimage
from streams import stir, untouched
from torch import Tensor

from framework.inner.augment import Augmentation, CondensationAugmentation, Draw, apply
from framework.inner.names import AUGMENTATIONS
from framework.rng import generator

SIDES = [7, 8]
ALL = "_".join(AUGMENTATIONS)


def batch(count: int = 5, channels: int = 3, side: int = 8, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Random float64 images and soft labels."""
    gen = generator(0, "images", count, channels, side)
    images = torch.randn(count, channels, side, side, generator=gen, dtype=torch.float64)
    return images, torch.rand(count, classes, generator=gen, dtype=torch.float64)


def one_draw(strategy: str, side: int = 8, count: int = 5, seed: int = 0) -> Draw:
    """The choices of one batch, every operation of the strategy in use."""
    return Augmentation(strategy, True, side).draw(1, count, generator(seed, "draw", strategy)).at(0)


def tensors(draw: Draw) -> dict[str, Tensor]:
    return {f.name: value for f in fields(draw) if (value := getattr(draw, f.name)) is not None}


def close(one: Tensor, two: Tensor | np.ndarray, tolerance: float = 1e-12) -> bool:
    return torch.allclose(one, torch.as_tensor(two), rtol=0, atol=tolerance)


# ---- the effect of each operation ------------------------------------------------------------------


def test_none_is_the_identity() -> None:
    images, labels = batch()
    draw = Augmentation("none", False, 8).draw(3, 5, generator(0))
    assert tensors(draw) == {}
    new_images, new_labels = apply(images, labels, draw.at(1))
    assert torch.equal(new_images, images)
    assert torch.equal(new_labels, labels)


def test_flip_mirrors_exactly_the_chosen_images() -> None:
    images, labels = batch()
    chosen = [True, False, True, True, False]
    flipped, _ = apply(images, labels, Draw(flip=torch.tensor(chosen)))
    for image, new, flip in zip(images, flipped, chosen, strict=True):
        expected = np.fliplr(image.permute(1, 2, 0)) if flip else image.permute(1, 2, 0)
        assert np.array_equal(new.permute(1, 2, 0), expected)


def bilinear(image: np.ndarray, y: float, x: float) -> float:
    """The value of an (H, W) image between pixels, zero outside."""
    total = 0.0
    for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def warped(image: Tensor, matrix: Tensor) -> np.ndarray:
    """One (C, H, W) image resampled by an output-to-input map in normalised coordinates, pixel by pixel."""
    source, (a, b) = image.numpy(), matrix.tolist()
    side = source.shape[-1]
    centre = [(2 * i + 1) / side - 1 for i in range(side)]  # of pixel i, in -1 .. 1
    result = np.empty_like(source)
    for c, i, j in np.ndindex(*source.shape):
        x, y = centre[j], centre[i]
        u, v = a[0] * x + a[1] * y + a[2], b[0] * x + b[1] * y + b[2]
        result[c, i, j] = bilinear(source[c], ((v + 1) * side - 1) / 2, ((u + 1) * side - 1) / 2)
    return result


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("strategy", ["rotate", "scale", "crop", "rotate_scale_crop"])
def test_geometry_is_bilinear_sampling_pixel_by_pixel(strategy: str, side: int) -> None:
    images, labels = batch(side=side)
    draw = one_draw(strategy, side)
    assert draw.affine is not None
    new, _ = apply(images, labels, draw)
    for image, result, matrix in zip(images, new, draw.affine, strict=True):
        assert close(result, warped(image, matrix))


def test_rotation_is_scipys_rotation_about_the_centre() -> None:
    images, labels = batch(count=3, side=9)
    draw = one_draw("rotate", 9, 3)
    assert draw.affine is not None
    new, _ = apply(images, labels, draw)
    for image, result, matrix in zip(images, new, draw.affine, strict=True):
        angle = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))
        # Padded with zeros: beyond the outermost pixels' centres scipy cuts off where we fade out.
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
        expected = ndimage.rotate(padded, angle, axes=(1, 2), reshape=False, order=1)
        assert close(result, expected[:, 4:-4, 4:-4])


def test_crop_shifts_by_whole_pixels_and_fills_with_zeros() -> None:
    images, labels = batch(count=40)
    draw = one_draw("crop", 8, 40)
    assert draw.affine is not None
    new, _ = apply(images, labels, draw)
    shifts = (draw.affine[:, :, 2] * 4).tolist()  # pixels: normalised coordinates span 2 over 8 pixels
    for image, result, (dx, dy) in zip(images, new, shifts, strict=True):
        assert close(result, ndimage.shift(image.numpy(), (0, -dy, -dx), order=0))
    assert {tuple(shift) for shift in shifts} >= {(-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (1.0, -1.0)}


def test_scaling_stretches_each_axis_about_the_centre() -> None:
    images, labels = batch(count=4)
    draw = one_draw("scale", 8, 4)
    assert draw.affine is not None
    new, _ = apply(images, labels, draw)
    for image, result, matrix in zip(images, new, draw.affine, strict=True):
        sx, sy = matrix[0, 0].item(), matrix[1, 1].item()
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
        offset = [0, 7.5 * (1 - sy), 7.5 * (1 - sx)]
        expected = ndimage.affine_transform(padded, np.diag([1, sy, sx]), offset, order=1)
        assert close(result, expected[:, 4:-4, 4:-4])


def test_colour_changes_brightness_saturation_and_contrast_in_this_order() -> None:
    images, labels = batch()
    draw = one_draw("color")
    assert draw.colour is not None
    new, _ = apply(images, labels, draw)
    for image, result, (offset, saturation, contrast) in zip(images.numpy(), new, draw.colour.tolist(), strict=True):
        bright = image + offset
        grey = sum(bright[c] for c in range(3)) / 3
        saturated = np.stack([grey + saturation * (bright[c] - grey) for c in range(3)])
        mean = saturated.sum() / saturated.size
        assert close(result, mean + contrast * (saturated - mean))


@pytest.mark.parametrize("side", SIDES)
def test_cutout_blanks_a_square_of_half_the_side(side: int) -> None:
    images, labels = batch(count=60, side=side)
    draw = one_draw("cutout", side, 60)
    assert draw.cutout is not None
    new, _ = apply(images, labels, draw)
    corners = draw.cutout.tolist()
    for image, result, (top, left) in zip(images.numpy(), new, corners, strict=True):
        expected = image.copy()
        for i, j in itertools.product(range(4), range(4)):  # half of 7 is rounded up
            if 0 <= top + i < side and 0 <= left + j < side:
                expected[:, top + i, left + j] = 0
        assert np.array_equal(result, expected)
    assert {min(c) for c in zip(*corners, strict=True)} == {-2}  # the square's centre lies in the image


def test_mixup_mixes_images_and_labels_with_the_same_weight() -> None:
    images, labels = batch()
    draw = one_draw("mixup")
    assert draw.mix_weight is not None
    assert draw.mix_partner is not None
    new_images, new_labels = apply(images, labels, draw)
    w, partner = draw.mix_weight.item(), draw.mix_partner.tolist()
    assert sorted(partner) == list(range(5))
    for i in range(5):
        assert close(new_images[i], w * images[i].numpy() + (1 - w) * images[partner[i]].numpy())
        assert close(new_labels[i], w * labels[i].numpy() + (1 - w) * labels[partner[i]].numpy())
    assert new_labels.sum().item() == pytest.approx(labels.sum().item(), rel=1e-14)


@pytest.mark.parametrize("strategy", [name for name in AUGMENTATIONS if name != "mixup"])
def test_labels_change_under_mixup_only(strategy: str) -> None:
    images, labels = batch()
    new_images, new_labels = apply(images, labels, one_draw(strategy))
    assert torch.equal(new_labels, labels)
    assert not torch.equal(new_images, images)


@pytest.mark.parametrize("side", SIDES)
def test_identity_parameters_change_nothing(side: int) -> None:
    images, labels = batch(side=side)
    identity = Draw(
        flip=torch.zeros(5, dtype=torch.bool),
        affine=torch.eye(2, 3, dtype=torch.float64).expand(5, 2, 3),
        colour=torch.tensor([0.0, 1.0, 1.0]).expand(5, 3),
        cutout=torch.full((5, 2), side),
        mix_weight=torch.tensor(1.0),
        mix_partner=torch.tensor([1, 2, 3, 4, 0]),
    )
    new_images, new_labels = apply(images, labels, identity)
    assert close(new_images, images)
    assert torch.equal(new_labels, labels)


# ---- against kornia --------------------------------------------------------------------------------

PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
precisions = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"])
sides = pytest.mark.parametrize("side", [*SIDES, 32])


def natural(side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images between 0 and 1, as kornia expects them, and labels."""
    images, labels = batch(side=side)
    return images.sigmoid().to(dtype), labels.to(dtype)


def agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return ours.dtype == theirs.dtype and close(ours, theirs, tolerance)


@precisions
@sides
@pytest.mark.parametrize("strategy", ["rotate", "scale", "crop"])
def test_each_geometric_operation_is_kornias(strategy: str, side: int, dtype: torch.dtype, tolerance: float) -> None:
    """Kornia moves the image where ours says which pixel to fetch: the same angle, but the inverse scale and shift."""
    images, labels = natural(side, dtype)
    draw = one_draw(strategy, side)
    assert draw.affine is not None
    matrix = draw.affine.to(dtype)
    new, _ = apply(images, labels, draw)
    if strategy == "rotate":
        angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
        theirs = transform.rotate(images, angle, align_corners=False)
    elif strategy == "scale":
        theirs = transform.scale(images, 1 / matrix.diagonal(dim1=1, dim2=2), align_corners=False)
    else:
        theirs = transform.translate(images, -matrix[:, :, 2] * side / 2, align_corners=False)
    assert agree(new, theirs, tolerance)


@precisions
@sides
def test_composed_geometry_is_one_affine_warp_of_kornias(side: int, dtype: torch.dtype, tolerance: float) -> None:
    images, labels = natural(side, dtype)
    draw = one_draw("rotate_scale_crop", side)
    assert draw.affine is not None
    fetch = torch.cat([draw.affine.to(dtype), torch.tensor([0.0, 0.0, 1.0], dtype=dtype).expand(5, 1, 3)], dim=1)
    # From pixels to coordinates in -1 .. 1; kornia's matrices map input pixels to output pixels.
    to_unit = normal_transform_pixel(side, side, dtype=dtype, align_corners=False)
    move = (to_unit.inverse() @ fetch.inverse() @ to_unit)[:, :2]
    new, _ = apply(images, labels, draw)
    assert agree(new, transform.warp_affine(images, move, (side, side), align_corners=False), tolerance)


@sides
def test_flip_is_kornias(side: int) -> None:
    images, labels = batch(side=side)
    draw = one_draw("flip", side)
    assert draw.flip is not None
    assert draw.flip.unique().tolist() == [False, True]
    new, _ = apply(images, labels, draw)
    assert torch.equal(new[draw.flip], transform.hflip(images)[draw.flip])
    assert torch.equal(new[~draw.flip], images[~draw.flip])


def mean_is_luma(dtype: torch.dtype) -> Tensor:
    """(5, 3, 8, 8) images near 0.5 of which each pixel's mean over channels is its luma 0.299 R + 0.587 G + 0.114 B."""
    red, blue = 0.45 + 0.1 * torch.rand(2, 5, 8, 8, generator=generator(0, "luma"), dtype=torch.float64)
    green = ((1 / 3 - 0.299) * red + (1 / 3 - 0.114) * blue) / (0.587 - 1 / 3)
    return torch.stack([red, green, blue], dim=1).to(dtype)


@precisions
def test_colour_is_kornias_where_both_mean_the_same(dtype: torch.dtype, tolerance: float) -> None:
    """Ours takes the plain mean of the channels for grey, and never clamps, which whitened images would not survive.

    Kornia takes the luma and clamps saturation and contrast to 0 .. 1; so images here have a luma equal to their mean,
    and stay within. ``adjust_saturation`` and ``adjust_contrast`` scale the distance from the channels' least value and
    from black, which are other operations.
    """
    images, (_, labels) = mean_is_luma(dtype), batch()
    offset = torch.tensor([-0.3, -0.1, 0.0, 0.1, 0.3], dtype=torch.float64)
    colour = torch.stack([offset, torch.linspace(0, 2, 5).double(), torch.linspace(1.5, 0.5, 5).double()], dim=1)
    new, _ = apply(images, labels, Draw(colour=colour))
    offset, saturation, contrast = colour.to(dtype).T
    bright = enhance.adjust_brightness(images, offset, clip_output=False)
    saturated = adjust_saturation_with_gray_subtraction(bright, saturation)
    theirs = adjust_contrast_with_mean_subtraction(saturated, contrast)
    assert all(stage.min() > 0 and stage.max() < 1 for stage in (bright, saturated, theirs)), "nothing was clamped"
    assert agree(new, theirs, tolerance)
    assert not close(new, bright, 0.01)


@precisions
def test_colour_of_grey_images_is_kornias(dtype: torch.dtype, tolerance: float) -> None:
    """One channel: its mean is its luma, and saturation leaves it alone."""
    images, labels = 0.5 + 0.02 * batch(channels=1)[0].to(dtype), batch()[1]
    colour = torch.tensor([[0.2, 0.0, 1.5], [-0.2, 2.0, 0.5], [0.1, 0.5, 1.0], [0.0, 1.0, 0.9], [-0.1, 1.5, 1.2]])
    new, _ = apply(images, labels, Draw(colour=colour))
    offset, saturation, contrast = colour.to(dtype).T
    bright = enhance.adjust_brightness(images, offset, clip_output=False)
    saturated = adjust_saturation_with_gray_subtraction(bright, saturation)
    theirs = adjust_contrast_with_mean_subtraction(saturated, contrast)
    assert theirs.min() > 0 and theirs.max() < 1, "nothing was clamped"
    assert agree(new, theirs, tolerance)


@sides
def test_cutout_is_kornias_erasing(side: int) -> None:
    """At our squares, of which parts may lie outside: kornia's own lie inside and are of random sizes."""
    images, labels = batch(count=60, side=side)
    draw = one_draw("cutout", side, 60)
    assert draw.cutout is not None
    top, left = draw.cutout.double().T
    size = torch.full((60,), float((side + 1) // 2), dtype=torch.float64)
    erased = {"xs": left, "ys": top, "widths": size, "heights": size, "values": torch.zeros(60)}
    theirs = RandomErasing(p=1.0).apply_transform(images, erased, {})
    assert torch.equal(apply(images, labels, draw)[0], theirs)


@precisions
def test_mixup_is_kornias(dtype: torch.dtype, tolerance: float) -> None:
    """Of images: kornia keeps two labels and the weight for the loss, where ours mixes the labels themselves."""
    images, labels = natural(8, dtype)
    draw = one_draw("mixup")
    assert draw.mix_weight is not None
    assert draw.mix_partner is not None
    mixed = {"mixup_pairs": draw.mix_partner, "mixup_lambdas": (1 - draw.mix_weight).expand(5)}
    theirs = RandomMixUpV2().apply_transform(images, mixed)
    assert agree(apply(images, labels, draw)[0], theirs, tolerance)


# ---- linearity and derivatives ---------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(AUGMENTATIONS), min_size=1, max_size=7, unique=True),
    st.integers(0, 1000),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_augmentation_is_linear_in_images_and_labels(names: list[str], seed: int, a: float, b: float) -> None:
    draw = one_draw("_".join(names), seed=seed)
    if draw.colour is not None:  # a brightness offset alone makes it affine
        draw = replace(draw, colour=draw.colour * torch.tensor([0.0, 1.0, 1.0]))
    (x, y), (p, q) = batch(), batch(channels=2)
    p = torch.cat([p, p[:, :1]], 1)
    mixed_images, mixed_labels = apply(a * x + b * p, a * y + b * q, draw)
    (x, y), (p, q) = apply(x, y, draw), apply(p, q, draw)
    assert close(mixed_images, a * x + b * p)
    assert close(mixed_labels, a * y + b * q)


def test_brightness_makes_colour_affine() -> None:
    images, labels = batch()
    draw = one_draw("color")
    zero, _ = apply(torch.zeros_like(images), labels, draw)
    assert zero.abs().min() > 0
    double, single = apply(2 * images, labels, draw)[0], apply(images, labels, draw)[0]
    assert close(double - zero, 2 * (single - zero))


@pytest.mark.parametrize("strategy", [*AUGMENTATIONS, ALL])
def test_derivatives_agree_with_finite_differences(strategy: str) -> None:
    images, labels = batch(count=2, side=4, classes=2)
    draw = one_draw(strategy, 4, 2)
    inputs = (images.requires_grad_(), labels.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: apply(x, y, draw), inputs)


@pytest.mark.parametrize("strategy", [*AUGMENTATIONS, ALL])
def test_float32_images_stay_float32_and_agree_with_float64(strategy: str) -> None:
    images, labels = batch()
    draw = one_draw(strategy)
    exact = apply(images, labels, draw)
    for new, reference in zip(apply(images.float(), labels.float(), draw), exact, strict=True):
        assert new.dtype == torch.float32
        assert close(new.double(), reference, 1e-5)


# ---- the draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["none", *AUGMENTATIONS, ALL])
@pytest.mark.parametrize("compose", [True, False])
def test_draws_depend_on_their_generator_alone(strategy: str, compose: bool) -> None:
    """Ancestors' faults 16 and 17: Python's and numpy's global streams drove and were reset by augmentation."""

    def draw(stirred: int, seed: int) -> dict[str, Tensor]:
        stir(stirred)
        with untouched():
            result = Augmentation(strategy, compose, 8).draw(6, 5, generator(seed))
            apply(*batch(), result.at(0))
        return tensors(result)

    first, second, other = draw(1, 1), draw(2, 1), draw(1, 2)
    assert first.keys() == second.keys() == other.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("strategy", [*AUGMENTATIONS, ALL])
def test_batches_of_one_trajectory_differ(strategy: str) -> None:
    draw = Augmentation(strategy, True, 8).draw(2, 30, generator(0))
    assert all(not torch.equal(value[0], value[1]) for value in tensors(draw).values())


# Whether a batch's image is left alone by each operation.
IDLE: dict[str, Callable[[Draw], bool]] = {
    "flip": lambda d: d.flip is None or not d.flip.any(),
    "rotate": lambda d: d.affine is None or not d.affine[:, 0, 1].any(),
    "scale": lambda d: d.affine is None or bool((d.affine[:, :, :2].det() - 1).abs().max() < 1e-12),
    "crop": lambda d: d.affine is None or not d.affine[:, :, 2].any(),
    "color": lambda d: d.colour is None or torch.equal(d.colour, torch.tensor([0.0, 1, 1]).double().expand(30, 3)),
    "cutout": lambda d: d.cutout is None or bool((d.cutout == 8).all()),
    "mixup": lambda d: d.mix_weight is None or d.mix_weight.item() == 1,
}


def used(draw: Draw) -> list[str]:
    return [name for name, idle in IDLE.items() if not idle(draw)]


def test_one_operation_per_batch_each_equally_often() -> None:
    steps = 1400
    draw = Augmentation(ALL, False, 8).draw(steps, 30, generator(0))
    counts = dict.fromkeys(AUGMENTATIONS, 0)
    for t in range(steps):
        (name,) = used(draw.at(t))
        counts[name] += 1
    # Binomial with p = 1/7: a deviation of 13.1, of which 4.5 are allowed.
    assert all(abs(count - 200) < 59 for count in counts.values()), counts


@pytest.mark.parametrize("strategy", [ALL, "rotate_color", "mixup_flip_crop"])
def test_composition_uses_every_operation_on_every_batch(strategy: str) -> None:
    draw = Augmentation(strategy, True, 8).draw(20, 30, generator(0))
    assert all(sorted(used(draw.at(t))) == sorted(strategy.split("_")) for t in range(20))


def uniform(values: Tensor, low: float, high: float) -> bool:
    """Whether values fill low .. high evenly, up to both ends; mean and deviation within 5 standard errors."""
    flat, spread = values.flatten().double(), high - low
    margin = 10 / len(flat) * spread  # missed by chance once in 20,000 times
    inside = bool(low <= flat.min() < low + margin and high - margin < flat.max() <= high)
    error = 5 / math.sqrt(len(flat))
    return (
        inside
        and abs(flat.mean().item() - (low + high) / 2) < error * spread
        and abs(flat.std().item() - spread / math.sqrt(12)) < error * spread
    )


def test_parameters_fill_their_ranges() -> None:
    steps, count, side = 50, 40, 32
    draws = {name: Augmentation(name, True, side).draw(steps, count, generator(0, name)) for name in AUGMENTATIONS}
    assert draws["flip"].flip is not None
    assert abs(draws["flip"].flip.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(steps * count)
    rotation = draws["rotate"].affine
    assert rotation is not None
    assert uniform(torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]).rad2deg(), -15, 15)
    assert close(rotation[..., :2] @ rotation[..., :2].mT, torch.eye(2).double().expand(steps, count, 2, 2))
    scaling = draws["scale"].affine
    assert scaling is not None
    assert all(uniform(scaling[..., i, i], 1 / 1.2, 1.2) for i in range(2))
    assert not torch.equal(scaling[..., 0, 0], scaling[..., 1, 1])
    crop, cutout, colour = draws["crop"].affine, draws["cutout"].cutout, draws["color"].colour
    assert crop is not None
    assert cutout is not None
    assert colour is not None
    pixels = crop[..., 2] * side / 2
    assert pixels.unique().tolist() == list(range(-4, 5))
    assert cutout.unique().tolist() == list(range(-8, 25))
    for channel, bounds in enumerate([(-0.5, 0.5), (0, 2), (0.5, 1.5)]):
        assert uniform(colour[..., channel], *bounds)
    assert draws["mixup"].mix_weight is not None
    assert uniform(Augmentation("mixup", True, 8).draw(2000, 1, generator(0)).mix_weight, 0, 1)  # type: ignore[arg-type]


def test_condensations_own_draws_one_operation_for_each_image() -> None:
    steps, count, side = 60, 100, 32
    draw = CondensationAugmentation(side).draw(steps, count, generator(0, "condensation"))
    assert tensors(draw).keys() == {"affine"}
    assert draw.affine is not None
    assert torch.equal(
        draw.affine, CondensationAugmentation(side).draw(steps, count, generator(0, "condensation")).affine
    )
    linear, pixels = draw.affine[..., :2].flatten(0, 1), draw.affine[..., 2].flatten(0, 1) * side / 2
    rotated = linear[:, 0, 1] != 0
    scaled = ~rotated & (linear[:, 0, 0] != 1)
    shifted = ~rotated & ~scaled
    # Binomial with p = 1/3 of 6,000: a deviation of 37, of which 4.5 are allowed. All are alike on every batch.
    assert all(abs(int(kind.sum()) - 2000) < 165 for kind in (rotated, scaled, shifted))
    assert all(kind.view(steps, count).any(1).all() for kind in (rotated, scaled, shifted))
    assert (pixels[~shifted] == 0).all()
    assert pixels[shifted].unique().tolist() == list(range(-4, 5))
    assert uniform(torch.atan2(linear[rotated, 1, 0], linear[rotated, 0, 0]).rad2deg(), -45, 45)
    assert close(linear[rotated] @ linear[rotated].mT, torch.eye(2).double().expand(int(rotated.sum()), 2, 2))
    assert all(uniform(1 / linear[scaled, i, i], 0.8, 1.2) for i in range(2))
    assert (linear[scaled, 0, 1] == 0).all()


def test_condensations_own_moves_shrinks_and_fills_with_zeros() -> None:
    images, labels = batch(count=90)
    draw = CondensationAugmentation(8).draw(1, 90, generator(1)).at(0)
    new, same = apply(images, labels, draw)
    assert torch.equal(same, labels)
    assert draw.affine is not None
    for image, result, matrix in zip(images, new, draw.affine, strict=True):
        if torch.equal(matrix[:, :2], torch.eye(2).double()):
            dx, dy = (matrix[:, 2] * 4).tolist()
            assert close(result, ndimage.shift(image.numpy(), (0, -dy, -dx), order=0))
        assert close(result, warped(image, matrix))
    white, _ = apply(torch.ones_like(images), labels, draw)
    small = (draw.affine.diagonal(dim1=1, dim2=2) > 1.1).all(1)  # shrunk on both axes
    assert small.any()
    assert (white[small][..., 0, 0] < 0.99).all()


def test_at_and_to_keep_the_choices() -> None:
    draw = Augmentation(ALL, True, 8).draw(3, 5, generator(0))
    at, moved = tensors(draw.at(2)), tensors(draw.to(torch.device("meta")))
    for name, value in tensors(draw).items():
        assert torch.equal(at[name], value[2])
        assert moved[name].device.type == "meta"
        assert moved[name].shape == value.shape
    assert tensors(Draw(flip=draw.flip).at(0)).keys() == {"flip"}
