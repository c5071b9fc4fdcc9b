"""Trajectory matching against autograd through the unrolled loop, in float64: gradients, batches, start epochs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import Problem, emulate, make_problem, relative_error
from torch import Tensor

from framework.inner.augment import Augmentation, apply
from framework.inner.counts import Counts
from framework.inner.graphs import Captured
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import PlainSGD
from framework.inner.plan import Plan, ShuffledSampler
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.matching.ftd import Matched, Starts, TrajectoryMatching, match
from framework.outer.matching.matched import EMA, MatchedSet
from framework.outer.method import Rejected
from framework.outer.synthetic import RAW, Grads, one_hot_labels
from framework.rng import generator
from framework.run.distributed import Comm

STRATEGIES = ["none", "flip", "rotate", "scale", "crop", "color", "cutout", "mixup", "color_crop_cutout_flip"]
LR = 0.3


def target_of(p: Problem, distance: float = 0.1) -> Tensor:
    """An expert's parameters, some way from the problem's own."""
    return p.theta + distance * torch.randn(p.theta.shape, generator=generator(1, "target"), dtype=torch.float64)


def replayed(p: Problem, engine: Replay | None = None, lr: float = LR) -> Matched:
    engine = engine or Replay(InnerLoop(p.network, PlainSGD()))
    return match(engine, p.theta, target_of(p), p.synthetic, torch.tensor(lr, dtype=torch.float64), p.plan)


def unrolled(p: Problem, lr: float = LR, *, detached: bool = False) -> Matched:
    """The originals' way: the graph of all steps; ``detached``: TESLA's, whose gradients do not depend on theta."""
    images, labels = p.images.detach().requires_grad_(), p.labels.detach().requires_grad_(p.labels.requires_grad)
    step_size = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    theta, target = p.theta.clone().requires_grad_(), target_of(p)
    for t in range(len(p.plan)):
        batch = p.plan.indices[t]
        x, y = apply(images[batch], labels[batch], p.plan.draw.at(t))
        at = theta.detach().requires_grad_() if detached else theta
        loss = F.cross_entropy(p.network(at, x), y)
        theta = theta - step_size * torch.autograd.grad(loss, at, create_graph=True)[0]
    loss = (theta - target).square().sum() / (p.theta - target).square().sum()
    towards = [images, step_size, *([labels] if labels.requires_grad else [])]
    dx, da, *dy = torch.autograd.grad(loss, towards)
    return Matched(loss.detach(), Grads(dx, dy[0] if dy else None), da)


def assert_same(found: Matched, reference: Matched, tolerance: float = 1e-9) -> None:
    assert relative_error(found.loss, reference.loss) < 1e-11
    assert relative_error(found.grads.images, reference.grads.images) < tolerance
    assert relative_error(found.step_size, reference.step_size) < tolerance
    assert (found.grads.labels is None) == (reference.grads.labels is None)
    if found.grads.labels is not None and reference.grads.labels is not None:
        assert relative_error(found.grads.labels, reference.grads.labels) < tolerance


def minibatches(p: Problem, batch: int, strategy: str = "none") -> Problem:
    sampler = ShuffledSampler(len(p.images), batch, Augmentation(strategy, False, p.images.shape[-1]))
    return replace(p, plan=sampler.plan(len(p.plan), generator(3, "batches")))


# ---- the gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_replay_is_autograd_through_the_unrolled_loop(steps: int, soft: bool) -> None:
    p = make_problem(steps, soft=soft, width=8, batch_per_class=2)
    assert_same(replayed(p), unrolled(p))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replay_is_exact_for_every_augmentation(strategy: str) -> None:
    p = minibatches(make_problem(5), 6, strategy)
    assert_same(replayed(p), unrolled(p))


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_replay_is_exact_for_batches_smaller_than_the_set(batch: int) -> None:
    p = minibatches(make_problem(7, ipc=2), batch, "color_crop")
    indices = p.plan.indices.flatten()
    assert indices.bincount().max() > 1, "an image is to be drawn more than once"
    assert_same(replayed(p), unrolled(p))


@pytest.mark.parametrize("norm", ["none", "instance", "batch", "group", "layer"])
def test_replay_is_exact_for_every_norm(norm: str) -> None:
    p = make_problem(4, width=8, norm=norm, batch_per_class=2)
    assert_same(replayed(p), unrolled(p))


@pytest.mark.parametrize("every", [1, 3, 4, 11])
def test_the_length_of_a_segment_changes_not_a_bit(every: int) -> None:
    p = make_problem(11)
    found, reference = (replayed(p, Replay(InnerLoop(p.network, PlainSGD()), e)) for e in (every, None))
    assert torch.equal(found.grads.images, reference.grads.images)
    assert torch.equal(found.step_size, reference.step_size)


@pytest.mark.parametrize("execution", [Execution(chunk=1), Execution(chunk=4)], ids=str)
def test_chunks_are_exact(execution: Execution) -> None:
    p = make_problem(3, batch_per_class=2)
    assert_same(replayed(p, Replay(InnerLoop(p.network, PlainSGD(), execution))), unrolled(p))


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    p = make_problem(6, "crop", smooth=True, batch_per_class=2)
    found = replayed(p)
    assert found.grads.labels is not None
    gen, h = generator(5, "direction"), 1e-5
    dx, dy = (torch.randn(t.shape, generator=gen, dtype=torch.float64) for t in (p.images, p.labels))

    def loss(side: int) -> float:
        moved = replace(p, images=(p.images + side * h * dx).detach(), labels=(p.labels + side * h * dy).detach())
        return float(replayed(moved, lr=LR + side * h).loss)

    slope = (found.grads.images * dx).sum() + (found.grads.labels * dy).sum() + found.step_size
    assert (loss(1) - loss(-1)) / (2 * h) == pytest.approx(float(slope), rel=1e-6)


def test_the_step_size_is_an_input_not_a_constant() -> None:
    """A captured graph would go on with the step size of its capture."""
    p = make_problem(4)
    engine = Replay(InnerLoop(p.network, PlainSGD()))
    for captured in (engine.loop._step, engine.loop._back):
        for key, function in captured.items():
            captured[key] = Captured(function, emulate)  # type: ignore[index]
    for lr in (0.3, 0.1):  # one engine, as in a run
        assert_same(replayed(p, engine, lr), unrolled(p, lr))


# ---- what must hold of any matching loss -----------------------------------------------------------------


def test_no_step_leaves_the_loss_at_one() -> None:
    p = make_problem(1)
    found = replayed(replace(p, plan=p.plan[:0]))
    assert float(found.loss) == 1
    assert not found.grads.images.any()
    assert float(found.step_size) == 0


def test_a_student_that_arrives_has_no_loss_and_no_gradient() -> None:
    p = make_problem(1)
    engine = Replay(InnerLoop(p.network, PlainSGD()))
    lr = torch.tensor(LR, dtype=torch.float64)
    end = engine.forward(PlainSGD.start(p.theta, lr), p.synthetic, p.plan).state.theta
    found = match(engine, p.theta, end, p.synthetic, lr, p.plan)
    assert float(found.loss) == 0
    assert not found.grads.images.any()
    assert float(found.step_size) == 0


def test_images_in_another_order_have_their_gradients_in_that_order() -> None:
    p = make_problem(5, "none", batch_per_class=2)
    order = torch.randperm(len(p.images), generator=generator(2, "order"))
    plan = Plan(order.argsort()[p.plan.indices], p.plan.draw)
    moved = replace(p, images=p.images[order].detach(), labels=p.labels[order].detach().requires_grad_(), plan=plan)
    assert relative_error(replayed(moved).grads.images, replayed(p).grads.images[order]) < 1e-12


# ---- TESLA's approximation -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_without_the_hessian_it_is_teslas_formula(steps: int) -> None:
    p = make_problem(steps, "crop", batch_per_class=2)
    engine = LowRank(InnerLoop(p.network, PlainSGD()), Recipe(rank=0))
    found = replayed(p, engine)
    assert_same(found, unrolled(p, detached=True))
    exact = replayed(p)
    assert (relative_error(found.grads.images, exact.grads.images) < 1e-12) == (steps == 1)


# ---- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch", "steps"), [(6, 6, 4), (6, 2, 7), (6, 4, 9), (5, 3, 1)])
def test_every_image_is_drawn_once_before_any_is_drawn_again(size: int, batch: int, steps: int) -> None:
    plan = ShuffledSampler(size, batch, Augmentation("flip", False, 4)).plan(steps, generator(0, "x"))
    assert plan.indices.shape == (steps, batch)
    assert plan.draw.flip is not None
    assert plan.draw.flip.shape == (steps, batch)
    drawn = plan.indices.flatten()
    for turn in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[turn : turn + size].tolist()) == list(range(size))
    rest = drawn[len(drawn) - len(drawn) % size :]
    assert len(set(rest.tolist())) == len(rest)


# ---- the learnt set --------------------------------------------------------------------------------------


def make_set(**other: Any) -> MatchedSet:
    gen = generator(4, "set")
    settings: dict[str, Any] = {"lr_images": 10.0, "lr_step_size": 1e-3, "ema_decay": 0.9, **other}
    labels = torch.randn(6, 3, generator=gen) if settings.get("lr_labels") else one_hot_labels(Counts.equal(3, 2))
    return MatchedSet(torch.randn(6, 2, 4, 4, generator=gen), labels, 0.01, **settings)


def gradients(s: MatchedSet, number: int = 0) -> dict[str, Tensor]:
    gen = generator(number, "gradients")
    return {name: torch.randn(t.shape, generator=gen, dtype=t.dtype) for name, t in s.learnt.items()}


def test_updates_are_sgd_with_their_own_rates_and_momenta_and_an_average() -> None:
    s = make_set(lr_labels=2.0)
    images, logits, a = s.images.detach().clone(), s.labels.detach().clone(), 0.01
    average, buffers = images.clone(), {name: torch.zeros_like(t) for name, t in s.learnt.items()}
    for i in range(4):
        given = gradients(s, i)
        for name, momentum in (("images", 0.5), ("step_size", 0.5), ("labels", 0.9)):
            buffers[name] = momentum * buffers[name] + given[name]
        images, logits = images - 10 * buffers["images"], logits - 2 * buffers["labels"]
        a -= 1e-3 * float(buffers["step_size"])
        average = 0.9 * average + 0.1 * images
        s.update(given)
        assert s.step_size.item() == pytest.approx(a, rel=1e-12)
    kept = s.snapshots()
    torch.testing.assert_close(kept[RAW].images, images)
    torch.testing.assert_close(kept[EMA].images, average)
    torch.testing.assert_close(kept[EMA].labels, logits.softmax(1))
    assert kept[RAW].step_size == pytest.approx(a, rel=1e-12)


def test_the_gradient_towards_logits_is_the_softmaxs() -> None:
    s = make_set(lr_labels=1.0)
    logits = s.labels.detach().double().requires_grad_()
    given = torch.randn(6, 3, generator=generator(0, "weights"), dtype=torch.float64)
    (expected,) = torch.autograd.grad(logits.softmax(1), logits, given)
    torch.testing.assert_close(s.towards_logits(given.float()), expected.float())


@pytest.mark.parametrize("steps", [0, 3])
def test_a_step_size_that_would_not_be_positive_changes_nothing(steps: int) -> None:
    s, twin = make_set(), make_set()
    for i in range(steps):
        for one in (s, twin):
            one.update(gradients(one, i) | {"step_size": torch.zeros((), dtype=torch.float64)})
    bad = gradients(s, 7) | {"step_size": torch.tensor(1e6, dtype=torch.float64)}
    with pytest.raises(Rejected, match="the step size would become -"):
        s.update(bad)
    for one in (s, twin):  # momentum too is as it was
        one.update(gradients(one, 8) | {"step_size": torch.tensor(0.5, dtype=torch.float64)})
    assert torch.equal(s.images, twin.images)
    assert torch.equal(s.step_size, twin.step_size)
    assert torch.equal(s.average, twin.average)


def test_a_restored_set_goes_on_exactly() -> None:
    one, two = make_set(lr_labels=1.0), make_set(lr_labels=1.0)
    for i in range(3):
        one.update(gradients(one, i))
    state = one.state_dict()
    one.update(gradients(one, 3))
    two.update(gradients(two, 9))  # whatever it was before
    two.load_state_dict(state)
    two.update(gradients(two, 3))
    for name in one.learnt:
        assert torch.equal(one.learnt[name], two.learnt[name])
    assert torch.equal(one.average, two.average)


def test_snapshots_are_no_aliases() -> None:
    s = make_set()
    snapshots = s.snapshots()
    before = {name: kept.images.clone() for name, kept in snapshots.items()}
    s.update(gradients(s))
    for name, kept in snapshots.items():
        assert torch.equal(kept.images, before[name])


# ---- start epochs and experts ----------------------------------------------------------------------------


def drawn(starts: Starts, iteration: int) -> set[int]:
    return {starts.draw(iteration, generator(i, "start")) for i in range(200)}


def test_start_epochs_have_an_exclusive_end() -> None:
    assert drawn(Starts(0, 3, 3), 0) == {0, 1, 2}
    assert drawn(Starts(2, 4, 4), 9) == {2, 3}


def test_the_range_grows_as_in_datm() -> None:
    starts = Starts(0, 10, 20, expansion=1000)
    assert [starts.end(i) for i in (0, 99, 100, 999, 1000, 5000)] == [10, 10, 11, 19, 20, 20]
    assert drawn(Starts(1, 2, 6, expansion=8), 0) == {1}
    assert drawn(Starts(1, 2, 6, expansion=8), 8) == {1, 2, 3, 4, 5}


class Line:
    """Experts on straight lines."""

    def __init__(self, theta: Tensor, experts: int) -> None:
        self.theta, self.experts = theta, experts
        self.asked: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return self.experts

    def segment(self, expert: int, start: int, epochs: int) -> tuple[Tensor, Tensor]:
        self.asked.append((expert, start, epochs))
        first, last = (self.theta + 0.01 * (expert + 1) * epoch for epoch in (start, start + epochs))
        return first, last


def make_method(p: Problem, experts: Line, **other: Any) -> TrajectoryMatching:
    sampler = ShuffledSampler(len(p.images), 4, Augmentation("flip", False, p.images.shape[-1]))
    learnt = MatchedSet(p.images.detach(), p.labels.detach(), LR, lr_images=1.0, lr_step_size=1e-4)
    settings: dict[str, Any] = {
        "engine": Replay(InnerLoop(p.network, PlainSGD())), "sampler": sampler, "set": learnt, "experts": experts,
        "starts": Starts(0, 4, 4), "span": 2, "steps": 3, "threshold": 1.5, "iterations": 6, "peers": Comm(), "seed": 0,
    }  # fmt: skip
    return TrajectoryMatching(**{**settings, **other})


def test_all_experts_are_used_before_any_is_used_again_also_by_several_ranks() -> None:
    p = make_problem(1, soft=False)
    used = []
    for rank in (0, 1):
        experts = Line(p.theta, 5)
        method = make_method(p, experts, iterations=10, peers=Comm(rank, 2))
        used.append([fact.facts["expert"] for fact in method.proposals(0, 0)])
        assert {span for _, _, span in experts.asked} == {2}
    turns = [expert for both in zip(*used, strict=True) for expert in both]
    for turn in range(0, 20, 5):
        assert sorted(turns[turn : turn + 5]) == [0, 1, 2, 3, 4]
    assert turns[:5] != turns[5:10], "each pass has an order of its own"


def test_proposals_depend_on_the_iteration_alone() -> None:
    p = make_problem(1, soft=False)
    whole = list(make_method(p, Line(p.theta, 3)).proposals(1, 0))
    rest = list(make_method(p, Line(p.theta, 3)).proposals(1, 4))
    for one, other in zip(whole[4:], rest, strict=True):
        assert one.facts == other.facts
        assert one.limit == 1.5
        assert torch.equal(one.grads["images"], other.grads["images"])
        assert torch.equal(one.loss, other.loss)
    assert len({float(proposal.loss) for proposal in whole}) == len(whole)
