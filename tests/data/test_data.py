"""Splits, preprocessing and loading, held against independent numpy oracles."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cli import TINY, difference
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import loaded
from PIL import Image
from safetensors.torch import load_file, save_file

from framework import machine
from framework.data import load, parts, preprocess, registry, splits, store
from framework.data.digits import read_digits
from framework.data.load import DataSpec
from framework.data.parts import decode_image
from framework.data.preprocess import Preprocess, Standardise, Zca, ZcaPixels
from framework.data.splits import RealData, Split, StreamedImages, epoch_batches
from framework.errors import UserError
from framework.files import cache_folder
from framework.rng import generator
from main import main

CPU = torch.device("cpu")
# No deadline: how long an example takes says more about the machine's other work than about the code.
quick = settings(max_examples=30, deadline=None)


def natural_images(count: int = 150, shape: tuple[int, int, int] = (3, 6, 6), seed: int = 0) -> torch.Tensor:
    """Smooth random uint8 images: neighbouring pixels are correlated, so that whitening has work to do."""
    gen = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 3, 3, generator=gen) * 255
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    noise = torch.rand(count, *shape, generator=gen) * 20
    return (smooth * 0.9 + noise).to(torch.uint8)


def write_tree(root: Path, seed: int = 0, parts: dict[str, int] | None = None, size: int = 6) -> Path:
    """Write an image folder of two classes, its images as in ``natural_images``."""
    for offset, (part, per_class) in enumerate((parts or {"train": 12, "test": 5}).items()):
        images = natural_images(2 * per_class, (3, size, size), seed=100 * seed + offset)
        for i, image in enumerate(images):
            folder = root / part / ("cat", "dog")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return root


def load_tree(root: Path, **options: Any) -> RealData:
    return loaded("imagefolder", root, **{"im_size": 6, "val_fraction": 0.25, **options})


def load_digits(**options: Any) -> RealData:
    return loaded("digits", **options)


def same_tensors(one: Preprocess, other: Preprocess) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def no_eigh(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        pytest.fail("computed an eigendecomposition again")

    monkeypatch.setattr(torch.linalg, "eigh", fail)


# ---- standardisation


def test_standardise_against_numpy() -> None:
    images = natural_images()
    x = images.numpy().astype(np.float64) / 255
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    fitted = Standardise.fit(images)
    np.testing.assert_allclose(fitted.mean.numpy(), mean, rtol=1e-7)
    np.testing.assert_allclose(fitted.std.numpy(), std, rtol=1e-7)
    expected = (x - mean[:, None, None]) / std[:, None, None]
    result = fitted(images)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_standardise_inverse_is_exact() -> None:
    images = natural_images()
    fitted = Standardise.fit(images)
    natural = fitted.inverse(fitted(images))
    assert natural.dtype == torch.float32
    assert torch.equal((natural * 255).round().to(torch.uint8), images)
    np.testing.assert_allclose(natural.numpy(), images.numpy() / 255, atol=1e-6)


def test_standardise_maps_a_constant_channel_to_zero() -> None:
    images = natural_images()
    images[:, 1] = 77
    fitted = Standardise.fit(images)
    assert fitted.std[1] == 1
    assert fitted(images)[:, 1].abs().max() < 1e-6
    np.testing.assert_allclose(fitted.inverse(fitted(images))[:, 1].numpy(), 77 / 255, atol=1e-6)


# ---- ZCA


def oracle_zca(
    train: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8], reg: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Whitened ``images`` and eigenvalues, from singular values of the data in [0, 1] scale.

    No covariance is formed: of X = U S V^T, the covariance has eigenvalues S^2 / n.
    """

    def unit(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        rows = [image.ravel() / 255 for image in pixels]
        rows = [row - row.mean() for row in rows]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    x = unit(train)
    _, singular, vt = np.linalg.svd(x, full_matrices=len(x) < x.shape[1])
    eigenvalues = np.zeros(x.shape[1])
    eigenvalues[: len(singular)] = singular**2 / len(x)
    scaled = np.diag(1 / np.sqrt(eigenvalues + reg * eigenvalues.mean()))
    return (unit(images) @ vt.T @ scaled @ vt).reshape(images.shape), eigenvalues


@pytest.mark.parametrize("reg", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("count", [40, 300], ids=["fewer images than pixels", "more"])
def test_zca_against_svd(count: int, reg: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "_CHUNK_VALUES", 1000)  # so that there are many chunks
    train, test = natural_images(count), natural_images(30, seed=1)
    fitted = Zca.fit(train, reg, CPU)
    for images in (train, test):
        expected, _ = oracle_zca(train.numpy(), images.numpy(), reg)
        result = fitted(images)
        assert result.dtype == torch.float32
        assert result.shape == images.shape
        # float32 matrices: about 1e-7 of the largest value.
        np.testing.assert_allclose(result.numpy(), expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


def test_digits_zca_against_svd() -> None:
    reg = 0.1
    source = read_digits(Path(), 8)
    train, test = (part.read(torch.arange(len(part.labels))) for part in (source.train, source.test))
    expected, _ = oracle_zca(train.numpy(), test.numpy(), reg)
    result = Zca.fit(train, reg, CPU)(test)
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


def test_whitened_covariance_is_the_regularised_identity() -> None:
    images, reg = natural_images(300), 0.1
    whitened = Zca.fit(images, reg, CPU)(images).double().flatten(1).numpy()
    unit = preprocess._unit_images(images.double()).unit.numpy()
    eigenvalues, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
    in_eigenbasis = vectors.T @ (whitened.T @ whitened / len(unit)) @ vectors
    expected = eigenvalues / (eigenvalues + reg * eigenvalues.mean())
    np.testing.assert_allclose(in_eigenbasis, np.diag(expected), atol=1e-5)


def test_zca_does_not_depend_on_the_pixel_scale() -> None:
    images = natural_images() // 2
    once, twice = Zca.fit(images, 0.1, CPU), Zca.fit(images * 2, 0.1, CPU)
    torch.testing.assert_close(once(images), twice(images * 2), rtol=0, atol=1e-5)
    assert twice.image_norm.item() == pytest.approx(2 * once.image_norm.item(), rel=1e-6)


def test_zca_inverse_gives_the_image_with_average_mean_and_norm() -> None:
    images = natural_images()
    fitted = Zca.fit(images, 0.1, CPU)
    x = images.numpy().reshape(len(images), -1) / 255
    means = x.mean(1, keepdims=True)
    norms = np.linalg.norm(x - means, axis=1, keepdims=True)
    assert fitted.image_mean.item() == pytest.approx(means.mean(), rel=1e-6)
    assert fitted.image_norm.item() == pytest.approx(norms.mean(), rel=1e-6)
    expected = ((x - means) / norms * norms.mean() + means.mean()).clip(0, 1).reshape(images.shape)
    natural = fitted.inverse(fitted(images))
    assert natural.dtype == torch.float32
    np.testing.assert_allclose(natural.numpy(), expected, atol=1e-5)


def test_inverse_matrix_inverts() -> None:
    fitted = Zca.fit(natural_images(), 0.1, CPU)
    product = fitted.whiten.double() @ fitted.colour.double()
    torch.testing.assert_close(product, torch.eye(108, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(fitted.whiten, fitted.whiten.T, rtol=0, atol=1e-4)


def test_flat_images_stay_zero() -> None:
    images = natural_images()
    images[3] = 200
    fitted = Zca.fit(images, 0.1, CPU)
    assert fitted(images)[3].abs().max() == 0


def test_zca_user_errors() -> None:
    with pytest.raises(UserError, match="ZCA: every training image is a single flat colour"):
        Zca.fit(torch.full((5, 3, 4, 4), 9, dtype=torch.uint8), 0.1, CPU)
    for reg in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="--zca_reg"):
            Zca.fit(natural_images(), reg, CPU)


def test_failing_decomposition_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("did not\nconverge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(UserError, match=r"ZCA: the 108x108 covariance failed on cpu \(did not converge\)"):
        Zca.fit(natural_images(), 0.1, CPU)


# ---- ZCA of pixels


def oracle_zca_pixels(
    train: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8], eps: float = 0.1
) -> npt.NDArray[np.float64]:
    """Whitened ``images``, from singular values of the centred data in [0, 1] scale."""
    x, y = (part.reshape(len(part), -1).astype(np.float64) / 255 for part in (train, images))
    mean = x.mean(0)
    _, singular, vt = np.linalg.svd(x - mean, full_matrices=True)
    variances = np.zeros(x.shape[1])
    variances[: len(singular)] = singular[: x.shape[1]] ** 2 / (len(x) - 1)
    return ((y - mean) @ vt.T @ np.diag(1 / np.sqrt(variances + eps)) @ vt).reshape(images.shape)


@pytest.mark.parametrize("count", [40, 300], ids=["fewer images than pixels", "more"])
def test_zca_of_pixels_against_svd(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "_CHUNK_VALUES", 1000)  # so that there are many chunks
    train, test = natural_images(count), natural_images(30, seed=1)
    train[:, 1, 2, 3] = 99  # a constant pixel
    fitted = ZcaPixels.fit(train, CPU)
    for images in (train, test):
        expected = oracle_zca_pixels(train.numpy(), images.numpy())
        result = fitted(images)
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6 * np.abs(expected).max(), rtol=0)
        np.testing.assert_allclose(fitted.inverse(result).numpy(), images.numpy() / 255, atol=2e-6, rtol=0)
    assert fitted(train)[:, 1, 2, 3].abs().max() < 1e-6


def test_digits_zca_of_pixels_against_svd() -> None:
    """Many pixels at the digits' border are always black."""
    source = read_digits(Path(), 8)
    train, test = (part.read(torch.arange(len(part.labels))) for part in (source.train, source.test))
    expected = oracle_zca_pixels(train.numpy(), test.numpy())
    result = ZcaPixels.fit(train, CPU)(test)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_zca_of_pixels_user_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from kornia.enhance import ZCAWhitening

    with pytest.raises(UserError, match="ZCA of pixels: one training image has no covariance"):
        ZcaPixels.fit(natural_images(1), CPU)

    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("did not\nconverge")

    monkeypatch.setattr(ZCAWhitening, "fit", fail)
    with pytest.raises(UserError, match=r"ZCA of pixels: the 108x108 covariance failed on cpu \(did not converge\)"):
        ZcaPixels.fit(natural_images(), CPU)


# ---- what all kinds share


@pytest.fixture(params=["standardise", "zca", "zca_pixels"])
def fitted(request: pytest.FixtureRequest) -> Preprocess:
    images = natural_images()
    kinds = {
        "standardise": lambda: Standardise.fit(images),
        "zca": lambda: Zca.fit(images, 0.1, CPU),
        "zca_pixels": lambda: ZcaPixels.fit(images, CPU),
    }
    return kinds[request.param]()


def test_preprocessing_survives_a_file(fitted: Preprocess, tmp_path: Path) -> None:
    save_file({**fitted.tensors(), "images": torch.zeros(2)}, tmp_path / "set.safetensors")
    rebuilt = Preprocess.from_tensors(load_file(tmp_path / "set.safetensors"))
    assert rebuilt.kind == fitted.kind
    assert same_tensors(rebuilt, fitted)
    assert torch.equal(rebuilt(natural_images(9, seed=2)), fitted(natural_images(9, seed=2)))


def test_preprocessing_works_image_by_image(fitted: Preprocess, monkeypatch: pytest.MonkeyPatch) -> None:
    images = natural_images(7)
    whole = fitted(images)
    monkeypatch.setattr(preprocess, "_CHUNK_VALUES", 1)
    torch.testing.assert_close(fitted(images), whole, rtol=0, atol=1e-6)
    assert fitted(images[:0]).shape == (0, 3, 6, 6)


def test_inverse_clips_and_does_not_differentiate(fitted: Preprocess) -> None:
    images = (1000 * torch.randn(4, 3, 6, 6)).requires_grad_()
    natural = fitted.inverse(images)
    assert natural.min() == 0
    assert natural.max() == 1
    assert not natural.requires_grad


def test_damaged_tensors_are_refused(fitted: Preprocess) -> None:
    tensors = fitted.tensors()
    first = next(iter(tensors))
    with pytest.raises(UserError, match="preprocessing: expected the tensors of one kind"):
        Preprocess.from_tensors({name: tensor for name, tensor in tensors.items() if name != first})
    with pytest.raises(UserError, match="preprocessing: expected the tensors of one kind, found none"):
        Preprocess.from_tensors({})
    last = list(tensors)[-1]
    with pytest.raises(UserError, match="stored tensors are damaged"):
        Preprocess.from_tensors({**tensors, last: tensors[last].unsqueeze(0)})
    for damaged in (tensors[first].unsqueeze(0), tensors[first] * torch.nan, tensors[first].double()):
        with pytest.raises(UserError, match=rf"preprocessing \({fitted.kind}\): stored tensors are damaged"):
            Preprocess.from_tensors({**tensors, first: damaged})


def test_results_that_are_not_finite_are_refused() -> None:
    broken = Standardise(torch.zeros(3), torch.tensor([1.0, 1e-45, 1.0]))
    with pytest.raises(UserError, match=r"preprocessing \(standardise\): images became infinite or NaN"):
        broken(natural_images())


# ---- splits


@st.composite
def labelled(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Labels in random order, at least two of each class."""
    counts = draw(st.lists(st.integers(2, 40), min_size=2, max_size=6))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=generator(draw(st.integers(0, 9))))], len(counts)


@quick
@given(labelled(), st.floats(0.001, 0.5))
def test_validation_split_is_stratified(case: tuple[torch.Tensor, int], fraction: float) -> None:
    labels, classes = case
    names = tuple(f"c{i}" for i in range(classes))
    train, val = splits.validation_split(labels, names, fraction, "x")
    assert torch.cat([train, val]).sort().values.tolist() == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    taken = labels[val].bincount(minlength=classes)
    exact = labels.bincount(minlength=classes) * fraction
    assert (taken >= 1).all()
    assert (labels[train].bincount(minlength=classes) >= 1).all()
    assert ((taken - exact).abs() <= 0.5 + 1e-6).logical_or(taken == 1).all()
    again = splits.validation_split(labels, names, fraction, "x")
    assert torch.equal(train, again[0])


def test_validation_split_is_random_and_known_by_the_data_set() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    (_, one), (_, other) = (splits.validation_split(labels, ("c",), 0.1, name) for name in ("mnist", "cifar10"))
    assert one.tolist() != other.tolist()
    assert 350 < one.double().mean() < 650


@pytest.mark.parametrize(("counts", "fraction"), [([5, 1], 0.1), ([9, 9], 0.99), ([4, 0], 0.1)])
def test_validation_split_needs_images(counts: list[int], fraction: float) -> None:
    labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
    with pytest.raises(UserError, match=r"--val_fraction .*: class \w+ has \d+ training image"):
        splits.validation_split(labels, ("cat", "dog"), fraction, "x")


@quick
@given(labelled(), st.data())
def test_limited_training_set_is_balanced(case: tuple[torch.Tensor, int], draw: st.DataObject) -> None:
    labels, classes = case
    limit = draw.draw(st.integers(classes, len(labels) + 5))
    chosen = splits.balanced_subset(labels, classes, limit, "x")
    assert len(set(chosen.tolist())) == len(chosen) == min(limit, len(labels))
    assert chosen.tolist() == sorted(chosen.tolist())
    available = labels.bincount(minlength=classes)
    taken = labels[chosen].bincount(minlength=classes)
    # A class that could give more is at most one image behind the class that gave most.
    assert (taken[taken < available] >= taken.max() - 1).all()
    assert torch.equal(chosen, splits.balanced_subset(labels, classes, limit, "x"))


def test_limit_below_one_per_class() -> None:
    with pytest.raises(UserError, match="--limit_train 9: .*each of 10 classes"):
        load_digits(limit_train=9)


@quick
@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 2**31))
def test_epoch_batches_is_one_pass(num_images: int, batch_size: int, seed: int) -> None:
    batches = epoch_batches(num_images, batch_size, generator(seed))
    assert batches.dtype == torch.int64
    assert batches.shape == (max(1, num_images // batch_size), min(batch_size, num_images))
    assert batches.unique().numel() == batches.numel()
    assert batches.min() >= 0
    assert batches.max() < num_images
    assert torch.equal(batches, epoch_batches(num_images, batch_size, generator(seed)))


# ---- load


def test_digits_load_whole() -> None:
    real = load_digits()
    assert (real.name, real.num_classes, real.image_shape) == ("digits", 10, (1, 8, 8))
    assert real.val is not None
    assert (len(real.train), len(real.val), len(real.test)) == (1295, 142, 360)
    for split in (real.train, real.val, real.test):
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert len(split.images) == len(split.labels)
    # Statistics are those of the training images, without the validation images.
    assert real.train.images.mean().item() == pytest.approx(0, abs=1e-6)
    assert real.train.images.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert isinstance(real.preprocess, Standardise)


def test_splits_are_disjoint_reproducible_and_complete() -> None:
    real, again = load_digits(), load_digits()
    assert real.val is not None
    pixels = [(real.preprocess.inverse(s.images) * 255).round().byte() for s in (real.train, real.val, real.test)]
    assert len({image.numpy().tobytes() for image in torch.cat(pixels)}) == 1797
    assert torch.equal(real.train.images, again.train.images)
    # Without a validation split nothing is lost, and a limit cuts the training images only.
    assert load_digits(val_fraction=0).val is None
    assert len(load_digits(val_fraction=0).train) == 1437
    limited = load_digits(limit_train=25)
    assert limited.val is not None
    assert torch.equal(limited.val.labels, real.val.labels)
    assert sorted(limited.train.labels.bincount().tolist()) == [2] * 5 + [3] * 5


def test_labels_belong_to_their_images(tmp_path: Path) -> None:
    source = read_digits(tmp_path, 8)
    label_of = {}
    for part in (source.train, source.test):
        for image, label in zip(part.read(torch.arange(len(part.labels))), part.labels.tolist(), strict=True):
            label_of[image.numpy().tobytes()] = label
    real = load_digits(limit_train=100)
    assert real.val is not None
    for split in (real.train, real.val, real.test):
        images = (real.preprocess.inverse(split.images) * 255).round().byte()
        assert [label_of[image.numpy().tobytes()] for image in images] == split.labels.tolist()


@pytest.mark.parametrize("im_size", [5, 16])
def test_im_size_resizes(im_size: int) -> None:
    real = load_digits(im_size=im_size, limit_train=20)
    assert real.image_shape == (1, im_size, im_size)
    assert real.test.images.shape == (360, 1, im_size, im_size)


@pytest.mark.parametrize("whitening", [{}, {"zca": True}, {"zca_pixels": True}], ids=str)
def test_preprocessing_never_sees_test_or_validation_images(tmp_path: Path, whitening: dict[str, bool]) -> None:
    sizes = {"train": 12, "test": 5, "val": 4}
    one = load_tree(write_tree(tmp_path / "one", parts=sizes), **whitening, cache_dir=tmp_path)
    other_root = write_tree(tmp_path / "other", parts=sizes)
    for part in ("test", "val"):
        for path in (other_root / part).glob("*/*.png"):
            Image.new("RGB", (6, 6), (255, 255, 255)).save(path)
    other = load_tree(other_root, **whitening, cache_dir=tmp_path / "elsewhere")
    assert one.val is not None
    assert (len(one.train), len(one.val), len(one.test)) == (24, 8, 10)
    assert same_tensors(one.preprocess, other.preprocess)
    assert torch.equal(one.train.images, other.train.images)
    assert not torch.equal(one.test.images, other.test.images)


def test_preprocessing_depends_on_the_split_of_train_alone(tmp_path: Path) -> None:
    root = write_tree(tmp_path, parts={"train": 12, "test": 5})
    before = load_tree(root)
    _, val = splits.validation_split(torch.arange(2).repeat_interleave(12), ("cat", "dog"), 0.25, "imagefolder")
    paths = sorted((root / "train").glob("*/*.png"))
    for i in val.tolist():
        Image.new("RGB", (6, 6), (255, 0, 255)).save(paths[i])
    after = load_tree(root)
    assert before.val is not None
    assert after.val is not None
    assert same_tensors(before.preprocess, after.preprocess)
    assert not torch.equal(before.val.images, after.val.images)


def test_val_folder_is_left_out_for_val_fraction_zero(tmp_path: Path) -> None:
    root = write_tree(tmp_path, parts={"train": 4, "val": 2, "test": 2})
    assert load_tree(root, val_fraction=0.0).val is None


def test_limit_train_decodes_no_more_than_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path, parts={"train": 12, "test": 5})
    opened: list[str] = []
    decode = decode_image
    monkeypatch.setattr(parts, "decode_image", lambda path, size: opened.append(path) or decode(path, size))
    load_tree(root, limit_train=4)
    assert len([path for path in opened if "/train/" in path]) == 4 + 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": -0.1}, "--val_fraction -0.1: it must be"),
        ({"val_fraction": 1.0}, "--val_fraction 1.0: it must be"),
        ({"val_fraction": float("nan")}, "--val_fraction nan: it must be"),
        ({"zca": True, "zca_reg": 0.0}, "--zca_reg 0.0: it must be positive"),
        ({"zca": True, "zca_pixels": True}, "--zca and --zca_pixels are two preprocessings: give one of them"),
        ({"im_size": -3}, "--im_size -3:"),
        ({"limit_train": 1}, "--limit_train 1:"),
    ],
)
def test_wrong_flags(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_digits(**options)
    assert "\n" not in str(error.value)


def test_unknown_data_set() -> None:
    with pytest.raises(UserError, match="--dataset letters: unknown"):
        loaded("letters")


# ---- memory


def test_memory_is_checked_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path)
    monkeypatch.setattr(parts, "decode_image", lambda *_: pytest.fail("decoded an image"))
    monkeypatch.setattr(load, "free_memory", lambda _: 1000)
    message = r"--device cpu: 34 images of 3x6x6 need .* GB on cpu, where .* free; give --data_cache disk$"
    with pytest.raises(UserError, match=message):
        load_tree(root, data_cache="device")


def test_memory_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    info = registry.describe("cifar10", Path(), None)
    values = 60000 * 3072

    def check(free: dict[str, int | None], device: str, **whitening: bool) -> None:
        monkeypatch.setattr(load, "free_memory", lambda device: free[device.type])
        spec = DataSpec(info.name, Path(), **whitening)
        load._require_memory(60000, info, load._fit_bytes(spec, info, 50000), torch.device(device))

    check({"cpu": 5 * values}, "cpu")
    check({"cpu": None}, "cpu")
    check({"cpu": values, "cuda": 4 * values}, "cuda")
    check({"cpu": None, "mps": None}, "mps")
    with pytest.raises(UserError, match="on cpu"):
        check({"cpu": 5 * values - 1}, "cpu")
    with pytest.raises(UserError, match="on cpu"):
        check({"cpu": values - 1, "cuda": 4 * values}, "cuda")
    with pytest.raises(UserError, match=r"--device cuda: .* need 0\.7 GB on cuda, where 0\.7 GB are free"):
        check({"cpu": values, "cuda": 4 * values - 1}, "cuda")
    with pytest.raises(UserError, match="on cpu"):
        check({"cpu": 5 * values}, "cpu", zca=True)
    kornias = 16 * 50000 * 3072 + 6 * 8 * 3072**2
    check({"cpu": values, "cuda": 4 * values + kornias}, "cuda", zca_pixels=True)
    with pytest.raises(
        UserError, match="the ZCA matrices of 3x32x32 images need .*, or standardise them instead of ZCA$"
    ):
        check({"cpu": values, "cuda": 4 * values + kornias - 1}, "cuda", zca_pixels=True)
    info = registry.describe("imagenet", Path(), 224)
    with pytest.raises(
        UserError, match="the ZCA matrices of 3x224x224 images need .*; take smaller images, or standardise them inst"
    ):
        check({"cpu": 10**11}, "cpu", zca=True)


def test_free_memory_is_known_on_linux() -> None:
    free = machine.free_memory(CPU)
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo: free memory is unknown here")
    assert free is not None
    assert 2**20 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- the ZCA cache


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[tuple[Path, RealData, Path]]:
    """An image folder, its first loading with --zca, and the cache file that this wrote."""
    root = write_tree(tmp_path / "data")
    first = load_tree(root, zca=True, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    return root, first, file


Cached = tuple[Path, RealData, Path]


def test_cache_hit_does_not_compute(cached: Cached, no_eigh: None, capsys: pytest.CaptureFixture[str]) -> None:
    root, first, file = cached
    again = load_tree(root, zca=True, cache_dir=file.parent)
    assert same_tensors(first.preprocess, again.preprocess)
    assert torch.equal(first.test.images, again.test.images)
    assert capsys.readouterr() == ("", "")


def test_cache_name_depends_on_images_and_parameters(cached: Cached) -> None:
    root, first, file = cached
    assert re.fullmatch(r"zca-imagefolder-[0-9a-f]{32}\.safetensors", file.name)
    load_tree(root, zca=True, cache_dir=file.parent, zca_reg=0.2)
    load_tree(root, zca=True, cache_dir=file.parent, limit_train=6)
    load_tree(root, zca=True, cache_dir=file.parent, im_size=5)
    assert len(list(file.parent.iterdir())) == 4
    # Not on the test images.
    Image.new("RGB", (6, 6)).save(next((root / "test").glob("*/*.png")))
    load_tree(root, zca=True, cache_dir=file.parent)
    assert len(list(file.parent.iterdir())) == 4
    changed = sorted((root / "train" / "cat").iterdir())
    for path in changed:
        Image.new("RGB", (6, 6), (1, 2, 3)).save(path)
    other = load_tree(root, zca=True, cache_dir=file.parent)
    assert len(list(file.parent.iterdir())) == 5
    assert not same_tensors(first.preprocess, other.preprocess)


def test_the_kinds_of_zca_do_not_share_a_cache(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    root, first, file = cached
    pixels = load_tree(root, zca_pixels=True, cache_dir=file.parent)
    (other,) = set(file.parent.iterdir()) - {file}
    assert re.fullmatch(r"zca_pixels-imagefolder-[0-9a-f]{32}\.safetensors", other.name)
    monkeypatch.setattr(ZcaPixels, "fit", lambda *_: pytest.fail("fitted again"))
    again = load_tree(root, zca_pixels=True, cache_dir=file.parent)
    assert same_tensors(pixels.preprocess, again.preprocess)
    assert torch.equal(pixels.test.images, again.test.images)
    assert same_tensors(load_tree(root, zca=True, cache_dir=file.parent).preprocess, first.preprocess)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other", "nan", "folder"])
def test_damaged_cache_is_computed_again(cached: Cached, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    root, first, file = cached
    whole = file.read_bytes()
    if damage in ("truncated", "empty", "garbage"):
        file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": os.urandom(999)}[damage])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        other = Standardise(torch.zeros(3), torch.ones(3)).tensors()
        poisoned = {name: tensor * torch.nan for name, tensor in first.preprocess.tensors().items()}
        save_file(other if damage == "other" else poisoned, file)
    again = load_tree(root, zca=True, cache_dir=file.parent)
    assert same_tensors(first.preprocess, again.preprocess)
    said = capsys.readouterr().err
    assert f"{file}: unreadable cache file, computing ZCA again" in said
    if damage == "folder":
        # It cannot be replaced by a file either, which is said and is no reason to stop.
        assert f"{file}: cannot cache the ZCA matrices" in said
    else:
        assert file.read_bytes() == whole
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_unwritable_cache_is_not_fatal(cached: Cached, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, first, _ = cached
    (tmp_path / "file").write_text("in the way")
    again = load_tree(root, zca=True, cache_dir=tmp_path / "file")
    assert same_tensors(first.preprocess, again.preprocess)
    assert "cannot cache the ZCA matrices" in capsys.readouterr().err


def test_interrupted_write_leaves_nothing(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, file = cached
    file.unlink()

    def full(_: dict[str, torch.Tensor], path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "save_file", full)
    load_tree(root, zca=True, cache_dir=file.parent)
    assert list(file.parent.iterdir()) == []


def test_default_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_tree(write_tree(tmp_path / "data"), zca=True)
    assert len(list((tmp_path / "xdg" / "at-bptt").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "at-bptt"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        cache_folder()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    code = (
        "import sys, torch; from pathlib import Path; from framework.data.load import DataSpec, load;"
        "spec = DataSpec('imagefolder', Path(sys.argv[1]), zca=True, im_size=6, cache_dir=Path(sys.argv[2]));"
        "real = load(spec, torch.device('cpu'), progress=False); print(real.train.images.double().sum().item())"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "cache")]
    here = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0] == results[1]
    assert results[0][1] == ""
    assert len(list((tmp_path / "cache").iterdir())) == 1


# ---- streaming from disk


def same_split(one: Split | None, other: Split | None) -> bool:
    """Bit for bit, whole and in batches of several sizes, in this order and in another."""
    if one is None or other is None:
        return one is other
    indices = torch.randperm(len(one), generator=generator(0))
    pairs = [
        (torch.cat(list(one.chunks(len(one)))), torch.cat(list(other.chunks(7)))),
        (one.batch(indices), other.batch(indices)),
        *zip(one.batches(indices.split(5)), other.batches(indices.split(5)), strict=True),
        *((one.batch(indices[:n]), other.batch(indices[:n])) for n in (1, 2, 3)),
    ]
    return torch.equal(one.labels, other.labels) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("whitening", [{}, {"zca": True}, {"zca_pixels": True}], ids=str)
@pytest.mark.parametrize("parts", [{"train": 12, "test": 5}, {"train": 12, "val": 3, "test": 5}], ids=["share", "own"])
@pytest.mark.parametrize("options", [{}, {"limit_train": 9}, {"val_fraction": 0.0}], ids=str)
def test_streamed_data_is_the_same_to_the_last_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whitening: dict[str, bool],
    parts: dict[str, int],
    options: dict[str, float],
) -> None:
    monkeypatch.setattr(preprocess, "_CHUNK_VALUES", 1000)  # so that there are many chunks
    monkeypatch.setattr(store, "_BLOCK", 7)
    root = write_tree(tmp_path / "data", parts=parts)
    common = {**whitening, **options}
    held = load_tree(root, data_cache="device", cache_dir=tmp_path / "one", **common)
    streamed = load_tree(root, data_cache="disk", cache_dir=tmp_path / "other", **common)
    assert isinstance(held.train.images, torch.Tensor)
    assert isinstance(streamed.train.images, StreamedImages)
    assert same_tensors(held.preprocess, streamed.preprocess)
    assert held.image_shape == streamed.image_shape == (3, 6, 6)
    assert len(streamed.train.images) == len(held.train.images)
    for one, other in ((held.train, streamed.train), (held.val, streamed.val), (held.test, streamed.test)):
        assert same_split(one, other)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_is_whitened_alike_in_every_batch(threads: int) -> None:
    """Without blocks of one size the last bits of a matrix product depend on its shape."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        images = natural_images(600, (3, 16, 16))
        for fitted in (Zca.fit(images[:300], 0.1, CPU), ZcaPixels.fit(images[:300], CPU)):
            whole = fitted(images)
            order = torch.randperm(600, generator=generator(1))
            assert torch.equal(fitted(images[order]), whole[order])
            assert all(torch.equal(fitted(images[:n]), whole[:n]) for n in (1, 2, 31, 255, 256, 257))
    finally:
        torch.set_num_threads(before)


def test_a_set_is_streamed_if_it_takes_more_than_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    info = registry.describe("cifar10", Path(), None)
    values = 60000 * 3072

    def streams(free: dict[str, int | None], device: str, choice: str = "auto") -> bool:
        monkeypatch.setattr(load, "free_memory", lambda device: free[device.type])
        return load.streams(choice, 60000, info, torch.device(device))

    plenty = 100 * values
    assert not streams({"cpu": 10 * values}, "cpu")
    assert streams({"cpu": 10 * values - 1}, "cpu")
    assert not streams({"cpu": None, "mps": None}, "mps")
    assert not streams({"cpu": plenty, "cuda": 8 * values}, "cuda")
    assert streams({"cpu": plenty, "cuda": 8 * values - 1}, "cuda")
    assert streams({"cpu": 2 * values - 1, "cuda": plenty}, "cuda")
    assert streams({"cpu": plenty}, "cpu", "disk")
    assert not streams({"cpu": 1}, "cpu", "device")


def test_a_set_too_large_for_memory_is_streamed_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path / "data")
    monkeypatch.setattr(load, "free_memory", lambda _: 1000)
    real = load_tree(root, cache_dir=tmp_path / "cache", progress=True)
    assert isinstance(real.train.images, StreamedImages)
    assert f"imagefolder: streaming images from {tmp_path / 'cache'} (--data_cache)\n" in capsys.readouterr().err
    monkeypatch.undo()
    assert same_split(load_tree(root).train, real.train)


def test_batches_are_read_ahead_and_reading_can_stop_anywhere() -> None:
    read: list[int] = []

    class Numbers:
        shape = torch.Size((9, 1, 1, 1))

        def __len__(self) -> int:
            return 9

        def __getitem__(self, rows: slice | torch.Tensor, /) -> torch.Tensor:
            assert isinstance(rows, torch.Tensor)
            if 8 in rows:
                raise OSError("disk failure")
            read.extend(rows.tolist())
            return rows.to(torch.uint8).view(-1, 1, 1, 1)

    images = StreamedImages(Numbers(), lambda pixels: pixels.float())
    threads = set(threading.enumerate())
    batches = images.batches(torch.arange(8).split(2))
    assert next(batches).flatten().tolist() == [0, 1]
    batches.close()
    assert read == [0, 1, 2, 3]
    assert set(threading.enumerate()) <= threads
    assert [batch.flatten().tolist() for batch in images.batches(torch.arange(4).split(3))] == [[0, 1, 2], [3]]
    assert list(images.batches([])) == []
    with pytest.raises(OSError, match="disk failure"):
        list(images.batches(torch.arange(9).split(4)))


def test_streaming_does_not_help_where_the_zca_matrices_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "data")
    monkeypatch.setattr(load, "free_memory", lambda _: 1000)
    with pytest.raises(UserError, match="--device cpu: the ZCA matrices of 3x6x6 images need"):
        load_tree(root, zca=True, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_streamed_run_is_the_same_run(tmp_path: Path) -> None:
    """Checkpoints, results and all, also where a streamed run goes on with one that was not."""
    disk = ("--data_cache", "disk", "--cache_dir", str(tmp_path / "cache"), "--limit_train", "300")
    small = ("--batch_size", "100", "--epochs", "2", "--num_train_eval", "1", "--eval_steps", "3")
    line = [*TINY, *disk, *small, "--baselines", "random", "full"]
    assert main([*line, "--data_cache", "device", "--save_dir", str(tmp_path / "held")]) == 0
    assert main([*line, "--save_dir", str(tmp_path / "both"), "--epochs", "1"]) == 0
    assert main([*line, "--save_dir", str(tmp_path / "both"), "--resume"]) == 0
    held, both = (load_file(tmp_path / name / "distilled.safetensors") for name in ("held", "both"))
    assert difference(held, both) is None
    held, both = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("held", "both"))
    assert held["results"] == both["results"]
    assert set(held["results"]) == {"distilled", "random", "full"}
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 2


# ---- real files


def test_real_mnist_loads_standardised(real_data: Path) -> None:
    real = loaded("mnist", real_data, limit_train=2000)
    assert real.val is not None
    assert (len(real.train), len(real.val), len(real.test)) == (2000, 5999, 10000)
    assert real.image_shape == (1, 28, 28)
    assert real.train.labels.bincount().tolist() == [200] * 10
    # The figures everyone uses for MNIST.
    mean, std = real.preprocess.tensors().values()
    assert mean.item() == pytest.approx(0.1307, abs=0.005)
    assert std.item() == pytest.approx(0.3081, abs=0.005)


def test_real_mnist_streams_the_same_images(real_data: Path, tmp_path: Path) -> None:
    held = loaded("mnist", real_data, limit_train=1000, progress=False)
    streamed = loaded("mnist", real_data, limit_train=1000, data_cache="disk", cache_dir=tmp_path, progress=False)
    assert same_tensors(held.preprocess, streamed.preprocess)
    assert torch.equal(held.train.batch(torch.arange(1000)), streamed.train.batch(torch.arange(1000)))
    assert torch.equal(held.test.images, torch.cat(list(streamed.test.chunks(999))))
