"""The synthetic set: batches, clipping, optimiser and state, against plain Python and torch.optim."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import difference
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import stir, untouched
from torch import Tensor

from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.plan import ClassSampler, Plan, UniformSampler
from framework.outer.synthetic import AVERAGE, RAW, SyntheticSet, joint_norm, noise_images, one_hot_labels
from framework.rng import generator

FLIP = Augmentation("flip", False, 4)


# ---- batches ---------------------------------------------------------------------------------------


@st.composite
def samplers(draw: st.DrawFn) -> ClassSampler:
    classes, per_class = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    return ClassSampler(
        Counts.equal(classes, per_class), draw(st.integers(1, classes)), draw(st.integers(1, per_class)), FLIP
    )


@settings(max_examples=60, deadline=None)
@given(samplers(), st.integers(0, 6), st.integers(0, 100))
def test_every_batch_has_the_right_number_of_images_of_distinct_classes(
    sampler: ClassSampler, steps: int, seed: int
) -> None:
    plan = sampler.plan(steps, generator(seed))
    assert len(plan) == steps
    assert plan.indices.dtype == torch.int64
    assert plan.draw.flip is not None
    assert plan.draw.flip.shape == plan.indices.shape
    for batch in plan.indices.tolist():
        assert len(set(batch)) == len(batch)
        assert set(batch) <= set(range(sampler.counts.total))
        classes = Counter(index // sampler.counts.largest for index in batch)
        assert len(classes) == sampler.classes_per_step
        assert set(classes.values()) == {sampler.batch_per_class}


@settings(max_examples=60, deadline=None)
@given(samplers(), st.integers(0, 6), st.integers(0, 100))
def test_of_equally_many_images_batches_are_drawn_as_they_ever_were(
    sampler: ClassSampler, steps: int, seed: int
) -> None:
    """As before classes could differ: old runs go on, and their sets are evaluated, with the same batches."""
    gen, per_class = generator(seed), sampler.counts.largest
    classes = torch.arange(sampler.num_classes).expand(steps, -1)
    if sampler.classes_per_step < sampler.num_classes:
        classes = torch.rand(steps, sampler.num_classes, generator=gen).topk(sampler.classes_per_step).indices
    members = torch.rand(steps, classes.shape[1], per_class, generator=gen).topk(sampler.batch_per_class).indices
    expected = (classes.unsqueeze(-1) * per_class + members).flatten(1)
    draw = FLIP.draw(steps, expected.shape[1], gen)
    plan = sampler.plan(steps, generator(seed))
    assert torch.equal(plan.indices, expected)
    assert difference(vars(plan.draw), vars(draw)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 100))
def test_each_class_is_drawn_from_its_own_images_alone(numbers: list[int], batch: int, seed: int) -> None:
    counts, batch = Counts(tuple(numbers)), min(batch, max(numbers))
    plan = ClassSampler(counts, len(numbers), batch, FLIP).plan(5, generator(seed))
    own = [k for k, number in enumerate(numbers) for _ in range(number)]
    for drawn in plan.indices.tolist():
        assert len(set(drawn)) == len(drawn)
        assert [own[i] for i in drawn] == [k for k, number in enumerate(numbers) for _ in range(min(number, batch))]


def test_every_image_of_a_class_is_drawn_equally_often_however_many_there_are() -> None:
    plan = ClassSampler(Counts((1, 4, 2)), 3, 2, FLIP).plan(4000, generator(0))
    drawn = plan.indices.flatten().bincount(minlength=7)
    assert drawn[0] == 4000 and drawn[5:].tolist() == [4000, 4000]
    assert within_five_deviations(drawn[1:5], 4000, 2 / 4)


def test_batches_of_all_classes_hold_all_classes_in_order() -> None:
    plan = ClassSampler(Counts.equal(5, 3), 5, 2, FLIP).plan(20, generator(0))
    assert plan.indices.div(3, rounding_mode="floor").tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 20


def within_five_deviations(counts: Tensor, draws: int, probability: float) -> bool:
    """Whether binomial counts are what ``probability`` makes likely."""
    deviation = math.sqrt(draws * probability * (1 - probability))
    return bool((counts - draws * probability).abs().max() < 5 * deviation)


@pytest.mark.parametrize(("classes_per_step", "batch_per_class"), [(2, 1), (5, 1), (3, 2)])
def test_every_image_is_drawn_equally_often(classes_per_step: int, batch_per_class: int) -> None:
    steps = 4000
    plan = ClassSampler(Counts.equal(5, 3), classes_per_step, batch_per_class, FLIP).plan(steps, generator(0))
    counts = plan.indices.flatten().bincount(minlength=15)
    assert within_five_deviations(counts, steps, classes_per_step / 5 * batch_per_class / 3)
    pairs = (plan.indices[1:, 0] == plan.indices[:-1, 0]).sum()  # steps are independent of each other
    shared = sum((plan.indices[:, 0] == i).double().mean().item() ** 2 for i in range(15))
    assert within_five_deviations(pairs, steps - 1, shared)


def test_uniform_batches_draw_every_image_equally_often() -> None:
    plan = UniformSampler(9, 20, FLIP).plan(500, generator(0))
    assert plan.indices.shape == (500, 20)
    assert within_five_deviations(plan.indices.flatten().bincount(minlength=9), 10_000, 1 / 9)


@pytest.mark.parametrize(
    "sampler", [ClassSampler(Counts.equal(5, 3), 2, 2, FLIP), UniformSampler(9, 4, FLIP)], ids=["class", "all"]
)
def test_a_plan_depends_on_its_generator_alone(sampler: ClassSampler | UniformSampler) -> None:
    """Ancestors' fault 16: Python's global stream drew the classes."""

    def plan(stirred: int, seed: int) -> Tensor:
        stir(stirred)
        with untouched():
            return sampler.plan(6, generator(seed)).indices

    assert torch.equal(plan(1, 0), plan(2, 0))
    assert not torch.equal(plan(1, 0), plan(1, 1))


def test_a_part_of_a_plan_holds_the_same_choices() -> None:
    plan = ClassSampler(Counts.equal(5, 3), 2, 2, Augmentation("flip_rotate_mixup", True, 4)).plan(6, generator(0))
    part = plan[2:5]
    assert len(part) == 3
    assert torch.equal(part.indices, plan.indices[2:5])
    for t in range(3):
        assert difference(vars(part.draw.at(t)), vars(plan.draw.at(2 + t))) is None
    moved = Plan(plan.indices, plan.draw).to(torch.device("meta"))
    assert moved.indices.device.type == "meta"
    assert all(value is None or value.device.type == "meta" for value in vars(moved.draw).values())


# ---- the start -------------------------------------------------------------------------------------


def test_noise_images_are_gaussian_directions_of_norm_one() -> None:
    with untouched():
        images = noise_images(200, (3, 8, 8), generator(0))
    assert images.shape == (200, 3, 8, 8)
    assert images.dtype == torch.float32
    assert torch.allclose(images.flatten(1).double().norm(dim=1), torch.ones(200).double(), rtol=0, atol=1e-6)
    values = images.double().flatten() * math.sqrt(192)  # of a direction in 192 dimensions: nearly N(0, 1)
    error = 5 / math.sqrt(len(values))
    assert abs(values.mean()) < error
    assert abs(values.pow(3).mean()) < 4 * error
    assert abs(values.pow(4).mean() - 3 * 192 / 194) < 10 * error
    assert len(images.unique(dim=0)) == 200
    assert torch.equal(images, noise_images(200, (3, 8, 8), generator(0)))


def test_one_hot_labels_are_sorted_by_class() -> None:
    assert one_hot_labels(Counts.equal(2, 3)).tolist() == [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]
    assert one_hot_labels(Counts((1, 2))).tolist() == [[1, 0], [0, 1], [0, 1]]


# ---- updates ---------------------------------------------------------------------------------------


def make_set(
    learn_labels: bool = True, optimizer: str = "Adam", weight_decay: float = 0.0, ema: float = 0.9, **about: Any
) -> SyntheticSet:
    images = noise_images(6, (1, 4, 4), generator(0)).double()
    return SyntheticSet(
        images,
        one_hot_labels(Counts.equal(3, 2)).double(),
        learn_labels=learn_labels,
        lr=0.05,
        label_lr=0.02,
        optimizer=optimizer,
        eps=1e-6,
        weight_decay=weight_decay,
        ema_decay=ema,
        **about,
    )


def gradients(steps: int, labels: bool = True) -> list[dict[str, torch.Tensor]]:
    """Gradients whose norms jump by factors of up to ten, so that some are clipped and some not."""
    gen = generator(0, "gradients")
    scales = [1.0, 0.3, 8.0, 30.0, 1.0, 0.1, 5.0, 5.0, 50.0, 2.0]

    def one(scale: float) -> dict[str, torch.Tensor]:
        images = scale * torch.randn(6, 1, 4, 4, generator=gen, dtype=torch.float64)
        soft = scale * torch.randn(6, 3, generator=gen, dtype=torch.float64)
        return {"images": images, "labels": soft} if labels else {"images": images}

    return [one(scales[t % 10]) for t in range(steps)]


@pytest.mark.parametrize("ema", [0.9, 0.0, 1.0])
@pytest.mark.parametrize("learn_labels", [True, False])
def test_the_clip_is_twice_the_moving_average_of_the_norm(learn_labels: bool, ema: float) -> None:
    s = make_set(learn_labels, ema=ema)
    average, factors = None, []
    for grads in gradients(10, learn_labels):
        squares = sum(v * v for g in grads.values() for v in g.flatten().tolist())
        norm = math.sqrt(squares)
        average = norm if average is None else ema * average + (1 - ema) * norm
        expected = min(1.0, 2 * average / norm)
        factor = s.update(grads)["clip_factor"]
        assert joint_norm(grads).item() == pytest.approx(norm, rel=1e-13)
        assert factor.item() == pytest.approx(expected, rel=1e-13)
        assert s.norm_emas[0].item() == pytest.approx(average, rel=1e-13)
        factors.append(expected)
    assert max(factors) == 1
    assert (min(factors) < 0.5) == (ema > 0)


def test_an_outlier_raises_neither_the_robust_clip_nor_its_average() -> None:
    """The clip is twice the average of what was applied before, however large the norm is."""
    s, published = make_set(robust=True), make_set()
    average: float | None = None
    factors, lefts = [], []
    for step, grads in enumerate(gradients(10)):
        grads = {name: gradient * (1e6 if step == 4 else 1) for name, gradient in grads.items()}
        norm = joint_norm(grads).item()
        limit = math.inf if average is None else 2 * average
        factor = s.update(grads)["clip_factor"].item()
        left = published.update(grads)["clip_factor"].item()
        assert factor == pytest.approx(min(1.0, limit / norm), rel=1e-13)
        applied = min(norm, limit)
        average = applied if average is None else 0.9 * average + 0.1 * applied
        assert s.norm_emas[0].item() == pytest.approx(average, rel=1e-13)
        if step == 4:
            assert left == pytest.approx(0.2, rel=1e-4)
            assert factor < 1e-5
        factors.append(factor)
        lefts.append(left)
    assert min(factors[5:]) < 1, "large gradients are still cut"
    assert set(lefts[5:]) == {1.0}, "by the published clip none is for a while"


def test_every_clip_has_an_average_of_its_own() -> None:
    """Of an average of its own, not of all, clip 2 cuts its large gradients less."""
    apart, together, averages, less = make_set(), make_set(), {}, []
    for grads, clip in zip(gradients(10), [0, 0, 2, 2, 0, 0, 2, 2, 2, 0], strict=True):
        norm = joint_norm(grads).item()
        averages[clip] = 0.9 * averages[clip] + 0.1 * norm if clip in averages else norm
        factor = apart.update(grads, clip=clip)["clip_factor"]
        assert factor.item() == pytest.approx(min(1.0, 2 * averages[clip] / norm), rel=1e-13)
        shared = together.update(grads)["clip_factor"]
        less.append(clip == 2 and bool(shared < factor))
    assert any(less)
    assert {clip: ema.item() for clip, ema in apart.norm_emas.items()} == pytest.approx(averages, rel=1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("learn_labels", [True, False])
def test_steps_are_pytorchs_own_on_clipped_gradients(learn_labels: bool, optimizer: str, weight_decay: float) -> None:
    s = make_set(learn_labels, optimizer, weight_decay)
    images, labels = (tensor.detach().clone().requires_grad_() for tensor in (s.images, s.labels))
    references: list[torch.optim.Optimizer] = []
    for tensor, lr in ((images, 0.05), (labels, 0.02)):  # labels have a learning rate of their own
        if optimizer == "Adam":
            references.append(torch.optim.Adam([tensor], lr=lr, eps=1e-6, weight_decay=weight_decay))
        else:
            references.append(torch.optim.SGD([tensor], lr=lr, momentum=0.9, weight_decay=weight_decay))
    before = labels.detach().clone()
    for grads in gradients(10):
        factor = s.update(grads if learn_labels else {"images": grads["images"]})["clip_factor"]
        images.grad, labels.grad = grads["images"] * factor, grads["labels"] * factor
        for reference in references:
            reference.step()
        labels.data.copy_(labels.data.where(labels.data > 0, 0.0))
    assert torch.allclose(s.images, images, rtol=1e-13, atol=1e-15)
    assert torch.allclose(s.labels, labels if learn_labels else before, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("learn_labels", [True, False])
def test_normalised_images_are_those_of_the_step_scaled_to_norm_one(learn_labels: bool) -> None:
    plain, s = make_set(learn_labels), make_set(learn_labels, normalise=True)
    for grads in gradients(4, learn_labels):
        plain.images.data.copy_(s.images)
        plain.update(grads)
        s.update(grads)
        for image, moved in zip(s.images.detach(), plain.images.detach(), strict=True):
            assert torch.allclose(image, moved / moved.square().sum().sqrt(), rtol=1e-13, atol=0)
            assert not torch.equal(moved, image)
        assert torch.equal(s.labels, plain.labels)


def test_only_images_that_may_move_are_normalised() -> None:
    s = make_set(normalise=True)
    with torch.no_grad():
        s.images.mul_(3.0)
    before = s.images.detach().clone()
    mask = torch.zeros_like(before, dtype=torch.bool)
    mask[1, :, :2] = True  # a patch of one image, all of which is scaled with it
    s.update(gradients(1)[0], mask)
    assert [i for i in range(6) if not torch.equal(s.images[i], before[i])] == [1]
    assert s.images[1].norm().item() == pytest.approx(1, rel=1e-13)
    kept = s.images.detach()[1, :, 2:] / before[1, :, 2:]
    assert torch.allclose(kept, kept.flatten()[0].expand_as(kept), rtol=1e-12)


def test_an_image_without_any_light_stays_finite() -> None:
    s = make_set(learn_labels=False, normalise=True)
    with torch.no_grad():
        s.images[0] = 0
    s.update({"images": torch.zeros_like(s.images)})
    assert bool(s.images.isfinite().all())
    assert not s.images[0].any()


def test_frozen_images_keep_every_bit_and_labels_learn_alone() -> None:
    s, both = make_set(weight_decay=0.5, learn_images=False, normalise=True), make_set(weight_decay=0.5)
    assert list(s.learnt) == ["labels"]
    assert not s.images.requires_grad
    assert not s.now.images.requires_grad
    before = s.images.clone()
    for grads in gradients(3):
        labels = {"labels": grads["labels"] / joint_norm({"labels": grads["labels"]})}  # no step is clipped
        s.update(labels)
        both.update({"images": torch.zeros_like(before), **labels})
    assert torch.equal(s.images, before)
    assert torch.equal(s.labels, both.labels)
    again = make_set(weight_decay=0.5, learn_images=False)
    again.load_state_dict(s.state_dict())
    assert difference(again.state_dict(), s.state_dict()) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_learnt_labels_never_become_negative(seed: int, scale: float) -> None:
    s = make_set()
    gen = generator(seed)
    for _ in range(5):
        soft = scale * torch.rand(6, 3, generator=gen, dtype=torch.float64)
        s.update({"images": torch.zeros_like(s.images), "labels": soft})
        assert s.labels.min() >= 0


def test_fixed_labels_keep_every_bit_and_need_no_gradient() -> None:
    s = make_set(learn_labels=False, weight_decay=0.5)
    before = s.labels.clone()
    for grads in gradients(5, labels=False):
        s.update(grads)
    assert torch.equal(s.labels, before)
    assert not s.labels.requires_grad
    assert s.images.requires_grad


@pytest.mark.parametrize("eta", [0, 1, 9])
@pytest.mark.parametrize("learnt", [("images",), ("images", "labels"), ("labels",)])
def test_the_average_weighs_steps_by_a_polynomial_and_does_not_change_them(learnt: tuple[str, ...], eta: int) -> None:
    """Step t counts as t (t + 1) ... (t + eta - 1); what is not learnt is what it is."""
    about = {"learn_labels": "labels" in learnt, "learn_images": "images" in learnt}
    s, plain = make_set(**about, average=float(eta)), make_set(**about)
    iterates: list[dict[str, Tensor]] = []
    for grads in gradients(7):
        for of in (s, plain):
            of.update({name: grads[name] for name in learnt})
        iterates.append({name: getattr(s, name).detach().clone() for name in ("images", "labels")})
    weights = [math.prod(range(t, t + eta)) for t in range(1, 8)]
    forms = s.snapshots()
    assert list(forms) == [RAW, AVERAGE]
    for name, now in iterates[-1].items():
        mean = sum(w * step[name] for w, step in zip(weights, iterates, strict=True)) / sum(weights)
        assert torch.allclose(getattr(forms[AVERAGE], name), mean, rtol=1e-13, atol=0)
        assert torch.equal(getattr(forms[RAW], name), now)
        assert torch.equal(getattr(plain.snapshots()[""], name), now)


def test_a_vanishing_gradient_leaves_the_images_finite_and_in_place() -> None:
    s = make_set(learn_labels=False)
    before = s.images.detach().clone()
    factor = s.update({"images": torch.zeros_like(before)})["clip_factor"]
    assert factor.isfinite()
    assert torch.equal(s.images, before)


def test_the_given_tensors_and_gradients_are_left_alone() -> None:
    images, labels = noise_images(6, (1, 4, 4), generator(0)).double(), one_hot_labels(Counts.equal(3, 2)).double()
    s = SyntheticSet(images, labels, learn_labels=True, lr=0.1, label_lr=0.1)
    kept = images.clone(), labels.clone()
    (grads,) = gradients(1)
    copies = {name: tensor.clone() for name, tensor in grads.items()}
    s.update(grads)
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    assert difference(grads, copies) is None
    assert s.images.grad is None  # nothing piles up for the next step


# ---- state -----------------------------------------------------------------------------------------


def test_a_snapshot_is_a_copy_both_ways() -> None:
    """Ancestors' fault 29: ``.detach().cpu()`` is no copy on the CPU."""
    s = make_set()
    snapshot = s.snapshots()[""]
    kept = {name: getattr(snapshot, name).clone() for name in ("images", "labels")}
    live = s.images.detach().clone()
    for grads in gradients(3):
        s.update(grads)
    assert torch.equal(snapshot.images, kept["images"])
    assert torch.equal(snapshot.labels, kept["labels"])
    assert not torch.equal(s.images, live)
    live = s.images.detach().clone()
    snapshot.images.zero_()
    assert torch.equal(s.images, live)
    assert not (snapshot.images.requires_grad or snapshot.labels.requires_grad)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("learn_labels", [True, False])
@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("average", [None, 3.0])
def test_a_restored_set_continues_bit_identically(
    average: float | None, before: int, learn_labels: bool, optimizer: str, tmp_path: Path
) -> None:
    """Ancestors' faults 13 and 14: with learnt labels a resume restored neither optimiser nor clip."""
    steps = gradients(9, learn_labels)
    one, two = (make_set(learn_labels, optimizer, average=average) for _ in range(2))
    for step, grads in enumerate(steps[:before]):
        one.update(grads, clip=step % 3)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.update(steps[8])  # whatever it was before
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step, grads in enumerate(steps[before:], before):
        factors = [s.update(grads, clip=step % 3)["clip_factor"] for s in (one, two)]
        assert torch.equal(*factors)
    assert difference(one.state_dict(), two.state_dict()) is None


def test_a_state_of_before_there_were_several_clips_is_read() -> None:
    one, two = make_set(), make_set()
    for grads in gradients(3):
        one.update(grads)
    state = one.state_dict()
    old = {**state, "norm_ema": state["norm_emas"][0]}
    del old["norm_emas"]
    two.load_state_dict(old)
    assert difference(one.state_dict(), two.state_dict()) is None
    two.load_state_dict({**old, "norm_ema": None})
    assert two.norm_emas == {}


def test_a_state_does_not_follow_the_live_set() -> None:
    s = make_set()
    first, second = gradients(2)
    s.update(first)
    state = s.state_dict()
    moment = state["optimizer"]["state"][0]["exp_avg"]
    kept = moment.clone()
    s.update(second)
    assert torch.equal(moment, kept)
