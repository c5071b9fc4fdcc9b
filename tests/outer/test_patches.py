"""Patch-wise semantic preservation against loops and finite differences, in float64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cli import TINY, difference
from problems import CPU, relative_error
from torch import Tensor

from framework.inner.counts import Counts
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer import patches
from framework.outer.patches import PatchAlignment
from framework.outer.synthetic import SyntheticSet, noise_images, one_hot_labels
from framework.rng import generator
from framework.run import checkpoint
from main import main

CLASSES, SIDE = 3, 8


def normal(*shape: int, key: str = "images") -> Tensor:
    return torch.randn(*shape, generator=generator(0, key), dtype=torch.float64)


def smooth_network(norm: str = "instance") -> tuple[FlatNetwork, Tensor]:
    module = build("convnet", 2, SIDE, CLASSES, width=4, depth=2, act="gelu", norm=norm)
    network = FlatNetwork(module, CPU, torch.float64)
    return network, network.init(generator(0))


def patch_by_slicing(images: Tensor, n: int, position: int) -> Tensor:
    size = images.shape[-1] // n
    row, column = divmod(position, n)
    return images[..., row * size : (row + 1) * size, column * size : (column + 1) * size]


def whole_loss(
    n: int, network: FlatNetwork, theta: Tensor, images: Tensor, classes: Tensor, real: Tensor, labels: Tensor
) -> Tensor:
    """L_align over all positions, as METHOD writes it."""
    total = torch.zeros((), dtype=torch.float64)
    present = labels.unique().tolist()

    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = (network.embed(theta, F.interpolate(x, (SIDE, SIDE), mode="bilinear")) for x in (ours, theirs))
        return sum(((ours[classes == c].mean(0) - theirs[labels == c].mean(0)) ** 2).sum() for c in present)  # type: ignore

    total = distance(images, real)
    for position in range(n * n):
        total = total + distance(patch_by_slicing(images, n, position), patch_by_slicing(real, n, position)) / n**2
    return total / len(present)


# ---- patches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
def test_patches_tile_the_image_exactly(n: int) -> None:
    alignment, images = PatchAlignment(n, 1.0, 2, 0), normal(2, 3, SIDE, SIDE)
    rebuilt, covered = torch.zeros_like(images), torch.zeros(2, 1, SIDE, SIDE)
    for position in range(n * n):
        positions = torch.full((2,), position)
        patch, mask = alignment.patch(images, positions), alignment.mask(images, positions)
        assert torch.equal(patch, patch_by_slicing(images, n, position))
        rebuilt[mask.expand_as(images)] = patch.flatten()
        covered += mask
    assert torch.equal(rebuilt, images)
    assert (covered == 1).all()


def test_images_of_a_batch_have_each_a_position_of_their_own() -> None:
    alignment, images = PatchAlignment(2, 1.0, 3, 0), normal(3, 1, SIDE, SIDE)
    positions = torch.tensor([3, 0, 2])
    for i, position in enumerate(positions.tolist()):
        assert torch.equal(alignment.patch(images, positions)[i], patch_by_slicing(images[i], 2, position))


def test_every_class_goes_through_all_positions_in_an_order_of_its_own() -> None:
    alignment = PatchAlignment(3, 1.0, 20, 0)
    for cycle in range(3):
        steps = torch.stack([alignment.active(9 * cycle + turn) for turn in range(9)])
        assert (steps.sort(0).values == torch.arange(9).unsqueeze(1)).all()
        assert len({tuple(order) for order in steps.T.tolist()}) > 15
    assert torch.equal(alignment.active(4), alignment.active(4))
    first, next_cycle = alignment.active(0), alignment.active(9)
    assert not torch.equal(first, next_cycle)
    assert not torch.equal(first, replace(alignment, seed=1).active(0))


# ---- the loss --------------------------------------------------------------------------------------


def test_the_loss_is_zero_where_synthetic_and_real_prototypes_are_equal() -> None:
    network, theta = smooth_network()
    pair = normal(CLASSES, 2, 2, SIDE, SIDE)
    images, real = pair.flatten(0, 1), pair.flip(1).transpose(0, 1).flatten(0, 1)
    labels = torch.arange(CLASSES).repeat(2)
    alignment = PatchAlignment(2, 1.0, CLASSES, 0)
    same = alignment.pull(network, theta, images, real, labels, 5)
    assert float(same.loss) < 1e-25
    assert same.gradient.abs().max() < 1e-13
    other = alignment.pull(network, theta, images, real, labels.flip(0), 5)
    assert float(other.loss) > 1e-3


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("per_class", [1, 3])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_the_gradient_is_that_of_the_whole_loss_towards_the_active_patches(
    step: int, per_class: int, norm: str
) -> None:
    """The whole loss, over all positions, differentiated twice over: by autograd, and by finite differences."""
    network, theta = smooth_network(norm)
    images, real = normal(CLASSES * per_class, 2, SIDE, SIDE), normal(10, 2, SIDE, SIDE, key="real")
    classes, labels = torch.arange(CLASSES).repeat_interleave(per_class), torch.arange(10) % CLASSES
    found = PatchAlignment(2, 0.3, CLASSES, 0).pull(network, theta, images, real, labels, step)

    def loss(images: Tensor) -> Tensor:
        return 0.3 * whole_loss(2, network, theta, images, classes, real, labels)

    expected = torch.autograd.functional.jacobian(loss, images)
    assert found.mask.sum() == len(images) * (SIDE // 2) ** 2
    assert relative_error(found.gradient, expected * found.mask) < 1e-12
    direction = F.normalize(normal(*images.shape, key="direction") * found.mask, dim=None)  # type: ignore[arg-type]
    slope = (loss(images + 1e-5 * direction) - loss(images - 1e-5 * direction)) / 2e-5
    assert float((found.gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-7)


def test_the_reported_loss_is_of_whole_images_and_active_patches() -> None:
    network, theta = smooth_network()
    images, real, labels = normal(CLASSES, 2, SIDE, SIDE), normal(CLASSES, 2, SIDE, SIDE, key="r"), torch.arange(3)
    alignment = PatchAlignment(2, 2.0, CLASSES, 0)
    mean = torch.stack([alignment.pull(network, theta, images, real, labels, step).loss for step in range(4)]).mean()
    expected = 2.0 * whole_loss(2, network, theta, images, labels, real, labels)
    assert relative_error(mean, expected) < 1e-12, "over one round the active patches are all patches"


def test_classes_that_the_real_batch_lacks_are_left_alone() -> None:
    network, theta = smooth_network()
    images, real, labels = normal(CLASSES, 2, SIDE, SIDE), normal(4, 2, SIDE, SIDE, key="r"), torch.tensor([0, 2, 2, 0])
    found = PatchAlignment(2, 1.0, CLASSES, 0).pull(network, theta, images, real, labels, 0)
    moved = found.gradient.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [True, False, True]
    both = torch.autograd.functional.jacobian(
        lambda x: whole_loss(2, network, theta, x, torch.arange(CLASSES), real, labels), images
    )
    assert relative_error(found.gradient, both * found.mask) < 1e-12


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, theta = smooth_network()
    images, real = normal(6, 2, SIDE, SIDE), normal(7, 2, SIDE, SIDE, key="real")
    alignment, labels = PatchAlignment(2, 1.0, CLASSES, 0), torch.arange(7) % CLASSES
    whole = alignment.pull(network, theta, images, real, labels, 1)
    monkeypatch.setattr(patches, "CHUNK", 2)
    parts = alignment.pull(network, theta, images, real, labels, 1)
    assert relative_error(parts.gradient, whole.gradient) < 1e-12
    assert relative_error(parts.loss, whole.loss) < 1e-12


# ---- in a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_an_update_keeps_the_pixels_outside_the_mask(optimizer: str) -> None:
    """Momentum of the last step must not move them."""
    synthetic = SyntheticSet(
        torch.randn(2, 1, 4, 4),
        one_hot_labels(Counts.equal(2, 1)),
        learn_labels=False,
        lr=0.1,
        label_lr=0.1,
        optimizer=optimizer,
    )
    alignment, gradient = PatchAlignment(2, 1.0, 2, 0), torch.ones(2, 1, 4, 4)
    for step in range(8):
        mask = alignment.mask(synthetic.images, alignment.active(step))
        before = synthetic.images.detach().clone()
        synthetic.update({"images": gradient * mask}, mask)
        assert ((synthetic.images != before) == mask).all()


PSP = [*TINY, "--psp_patches", "2", "--train_y", "--epochs", "2", "--num_train_eval", "1", "--test_freq", "2"]


def test_a_stopped_run_continues_bit_identical(tmp_path: Path) -> None:
    """The order of patches is derived from seed and step, so nothing of it has to be saved."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*PSP, "--save_dir", str(whole)]) == 0
    assert main([*PSP, "--epochs", "1", "--save_dir", str(parts)]) == 0
    assert main([*PSP, "--resume", "--save_dir", str(parts)]) == 0
    one, two = (checkpoint.load(folder / "last.pt")["set"] for folder in (whole, parts))
    assert difference(one, two) is None


def test_a_run_moves_one_patch_of_each_class_at_a_step(tmp_path: Path) -> None:
    flags = ["--psp_patches", "4", "--epochs", "1", "--batch_size", "430", "--save_dir", str(tmp_path)]
    assert main([*TINY, *flags]) == 0
    ended = checkpoint.load(tmp_path / "last.pt")["set"]["images"]
    start = noise_images(10, (1, 8, 8), generator(0, "synthetic images"))
    touched = (ended != start).any(1, keepdim=True)
    alignment = PatchAlignment(4, 1.0, 10, 0)
    expected = torch.stack([alignment.mask(ended, alignment.active(step)) for step in range(3)]).any(0)
    assert torch.equal(touched, expected)
