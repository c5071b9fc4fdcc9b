"""Training experts: the sharpness-aware step against its identities and oracles, trajectories against plain loops."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import CPU, emulate, relative_error
from streams import stir, untouched
from torch import Tensor, nn

from framework.data.splits import Split, StreamedImages
from framework.errors import UserError
from framework.inner.augment import Augmentation, CondensationAugmentation, apply
from framework.inner.graphs import Captured
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, State
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.matching.experts import Expert, ExpertRecipe, ExpertTrainer, Sharpness, sharp_direction
from framework.rng import generator

CLASSES, SIDE, IMAGES = 3, 8, 22  # batches of 8: the last has 6

FLAT = Sharpness(rho=0.0)
RECIPE = ExpertRecipe(
    lr=0.1, momentum=0.0, weight_decay=0.0, batch=8, epochs=2, decay=False,
    sharpness=Sharpness(), augmentation=Augmentation("color_crop_cutout_flip_scale_rotate", False, SIDE),
)  # fmt: skip


def module(norm: str = "instance") -> nn.Module:
    return build("convnet", 2, SIDE, CLASSES, width=8, depth=2, norm=norm)


def network(dtype: torch.dtype = torch.float32, norm: str = "instance") -> FlatNetwork:
    return FlatNetwork(module(norm), CPU, dtype)


def pixels() -> Tensor:
    return torch.randint(256, (IMAGES, 2, SIDE, SIDE), generator=generator(0, "pixels"), dtype=torch.uint8)


def preprocess(images: Tensor) -> Tensor:
    return images.float() / 128 - 1


def split(dtype: torch.dtype = torch.float32) -> Split:
    return Split(preprocess(pixels()).to(dtype), torch.arange(IMAGES) % CLASSES)


def trainer(
    recipe: ExpertRecipe = RECIPE,
    dtype: torch.dtype = torch.float32,
    norm: str = "instance",
    execution: Execution | None = None,
) -> ExpertTrainer:
    return ExpertTrainer(network(dtype, norm), split(dtype), CLASSES, recipe, execution, seed=5)


# ---- the direction of a step ---------------------------------------------------------------------------


def batch_gradient(seed: int = 0) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Parameters (P,) in float64, and the gradient of a fixed batch's loss."""
    net, gen = network(torch.float64), generator(seed, "batch")
    images, labels = torch.randn(7, 2, SIDE, SIDE, generator=gen, dtype=torch.float64), torch.arange(7) % CLASSES

    def gradient(theta: Tensor) -> Tensor:
        leaf = theta.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(net(leaf, images), labels), leaf)[0]

    return net.init(gen), gradient


def never(_: Tensor) -> Tensor:
    raise AssertionError("a second gradient was taken")


def test_without_rho_the_direction_is_the_gradient_itself() -> None:
    theta, gradient = batch_gradient()
    g = gradient(theta)
    assert sharp_direction(theta, g, never, FLAT) is g


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("theta", [0.7, -1.3])
def test_on_a_parabola_it_is_what_pencil_and_paper_give(theta: float, adaptive: bool) -> None:
    """L = h theta^2 / 2: g = h theta, e = rho |theta| sign(g) if adaptive, else rho sign(g); d = g' = h (theta + e)."""
    h, rho = 2.5, 0.3
    at = torch.tensor([theta], dtype=torch.float64)
    d = sharp_direction(at, h * at, lambda x: h * x, Sharpness(rho, 0.9, adaptive))
    sign = 1 if theta > 0 else -1
    expected = h * (theta + rho * (abs(theta) if adaptive else 1) * sign)
    assert d.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("adaptive", [True, False])
def test_without_alpha_it_is_sam(adaptive: bool) -> None:
    """Written out over a module's parameters, as SAM (arXiv 2010.01412) and ASAM (arXiv 2102.11600) define it."""
    theta, gradient = batch_gradient()
    g, rho = gradient(theta), 0.05
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    length = sum(float(s * x) ** 2 for s, x in zip(scale, g, strict=True)) ** 0.5
    expected = gradient(theta + rho * scale**2 * g / length)
    d = sharp_direction(theta, g, gradient, Sharpness(rho, 0.0, adaptive))
    assert relative_error(d, expected) < 1e-9
    assert relative_error(d, g) > 1e-3


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_what_is_ascended_is_orthogonal_to_the_second_gradient(alpha: float, adaptive: bool) -> None:
    theta, gradient = batch_gradient()
    seen: list[Tensor] = []

    def watched(at: Tensor) -> Tensor:
        seen.append(gradient(at))
        return seen[-1]

    g = gradient(theta)
    d = sharp_direction(theta, g, watched, Sharpness(0.05, alpha, adaptive))
    (there,) = seen
    v = (there - d) / alpha
    assert v.norm() > 1e-3 * g.norm()
    assert abs(float(v @ there)) < 1e-6 * float(v.norm() * there.norm())
    assert float(d @ there) == pytest.approx(float(there @ there), rel=1e-9)
    assert relative_error(v, g - (g @ there) / (there @ there) * there) < 1e-9


def test_parameters_are_as_they_were() -> None:
    theta, gradient = batch_gradient()
    before, g = theta.clone(), gradient(theta)
    kept = g.clone()
    sharp_direction(theta, g, gradient, Sharpness(2.0, 0.3))
    assert torch.equal(theta, before)
    assert torch.equal(g, kept)


def test_networks_side_by_side_have_norms_of_their_own() -> None:
    pairs = [batch_gradient(seed) for seed in range(3)]
    thetas = torch.stack([theta for theta, _ in pairs])

    def gradient(at: Tensor) -> Tensor:
        return torch.stack([own(row) for (_, own), row in zip(pairs, at, strict=True)])

    together = sharp_direction(thetas, gradient(thetas), gradient, Sharpness(0.05, 0.3))
    for d, (theta, own) in zip(together, pairs, strict=True):
        assert relative_error(d, sharp_direction(theta, own(theta), own, Sharpness(0.05, 0.3))) < 1e-12


# ---- trajectories --------------------------------------------------------------------------------------


def plain_loop(t: ExpertTrainer, number: int) -> tuple[list[Tensor], list[tuple[float, float]]]:
    """An expert by a module, ``.grad`` and ``torch.optim.SGD``, at the trainer's own random choices.

    Returns:
        Flat parameters before and after each epoch, and mean loss and accuracy of each.
    """
    r, data = t.recipe, t.train_split
    net = module().to(t.network.dtype)
    nn.utils.vector_to_parameters(t.network.init(generator(t.seed, "expert", number, "init")), net.parameters())
    parameters, lr = list(net.parameters()), r.lr
    optimiser = torch.optim.SGD(parameters, lr, r.momentum, weight_decay=r.weight_decay)
    snapshots, means = [nn.utils.parameters_to_vector(parameters).detach().clone()], []

    def gradients(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        return loss.detach(), (logits.argmax(1) == labels).sum(), list(torch.autograd.grad(loss, parameters))

    def dot(one: list[Tensor], two: list[Tensor]) -> Tensor:
        return torch.stack([(a * b).sum() for a, b in zip(one, two, strict=True)]).sum()

    for epoch in range(r.epochs):
        total, right = 0.0, 0
        for plan in t._plans(number, epoch):
            for i, rows in enumerate(plan.indices):
                images, _ = apply(data.batch(rows), torch.zeros(len(rows), CLASSES), plan.draw.at(i))
                loss, correct, g = gradients(images, data.labels[rows])
                total, right = total + loss.item() * len(rows), right + int(correct)
                d, s = g, r.sharpness
                if s.rho:
                    scale = [p.detach().abs() if s.adaptive else torch.ones_like(p) for p in parameters]
                    length = dot(
                        [x * y for x, y in zip(scale, g, strict=True)], [x * y for x, y in zip(scale, g, strict=True)]
                    ).sqrt()
                    kept = [p.detach().clone() for p in parameters]
                    with torch.no_grad():
                        for p, x, y in zip(parameters, scale, g, strict=True):
                            p += s.rho * x**2 * y / length
                    there = gradients(images, data.labels[rows])[2]
                    with torch.no_grad():
                        for p, old in zip(parameters, kept, strict=True):
                            p.copy_(old)
                    share = dot(g, there) / dot(there, there)
                    d = [b - s.alpha * (a - share * b) for a, b in zip(g, there, strict=True)]
                for p, x in zip(parameters, d, strict=True):
                    p.grad = x
                optimiser.step()
        snapshots.append(nn.utils.parameters_to_vector(parameters).detach().clone())
        means.append((total / IMAGES, right / IMAGES))
        if r.decay and epoch == r.epochs // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(parameters, lr, r.momentum, weight_decay=r.weight_decay)
    return snapshots, means


RECIPES = {
    "FTD": RECIPE,
    "MTT": replace(RECIPE, sharpness=FLAT),
    "decay": replace(RECIPE, sharpness=FLAT, epochs=5, decay=True, momentum=0.9, weight_decay=0.01),
    "SAM": replace(RECIPE, sharpness=Sharpness(0.05, 0.0, False), momentum=0.5),
    "GSAM": replace(RECIPE, sharpness=Sharpness(0.05, 1.0, False), augmentation=CondensationAugmentation(SIDE)),
    "small": replace(RECIPE, batch=100),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_expert_is_what_a_plain_loop_trains(name: str) -> None:
    t = trainer(RECIPES[name], torch.float64)
    (expert,) = t.train([4])
    snapshots, means = plain_loop(t, 4)
    assert expert.trajectory.shape == (RECIPES[name].epochs + 1, t.network.size)
    assert expert.trajectory.dtype == torch.float32
    for ours, theirs in zip(expert.trajectory, snapshots, strict=True):
        assert relative_error(ours.double(), theirs) < 1e-6  # that of float32, which snapshots are kept in
    for loss, accuracy, mean in zip(expert.losses, expert.accuracies, means, strict=True):
        assert (loss, accuracy) == pytest.approx(mean, rel=1e-9)


def test_decay_changes_later_epochs_alone() -> None:
    plain = replace(RECIPE, sharpness=FLAT, epochs=4, momentum=0.9)
    (kept,), (decayed,) = trainer(plain).train([0]), trainer(replace(plain, decay=True)).train([0])
    assert torch.equal(
        kept.trajectory[:4], decayed.trajectory[:4]
    )  # after the epoch of index 4 // 2 + 1 = 3 it is over
    five = replace(plain, epochs=5)
    (kept,), (decayed,) = trainer(five).train([0]), trainer(replace(five, decay=True)).train([0])
    assert torch.equal(kept.trajectory[:5], decayed.trajectory[:5])
    moved = [float((one.trajectory[5] - one.trajectory[4]).norm()) for one in (kept, decayed)]
    assert moved[1] < 0.3 * moved[0]


def test_without_rho_it_is_the_inner_loops_sgd_bit_for_bit() -> None:
    t = trainer(replace(RECIPE, sharpness=FLAT, momentum=0.9, weight_decay=5e-4))
    (expert,) = t.train([2])
    loop = InnerLoop(t.network, SGD(0.1, 0.9, 5e-4))
    state = State.fresh(t.network.init(generator(5, "expert", 2, "init")))
    images, labels = t.train_split.batch(torch.arange(IMAGES)), F.one_hot(t.train_split.labels, CLASSES).float()
    for epoch in range(2):
        for plan in t._plans(2, epoch):
            state = loop.train(state, images, labels, plan)
        assert torch.equal(expert.trajectory[epoch + 1], state.theta)


def same(one: Expert, two: Expert, tolerance: float) -> bool:
    return relative_error(one.trajectory, two.trajectory) <= tolerance and one.losses == pytest.approx(
        two.losses, rel=max(tolerance, 1e-12)
    )


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_experts_side_by_side_are_those_one_by_one(norm: str) -> None:
    together = trainer(norm=norm).train([3, 0, 7])
    assert [expert.number for expert in together] == [3, 0, 7]
    for expert in together:
        assert same(expert, trainer(norm=norm).train([expert.number])[0], 1e-5)
    assert relative_error(together[0].trajectory[2], together[1].trajectory[2]) > 0.1


def test_an_expert_follows_from_seed_and_number_alone() -> None:
    t = trainer()
    stir(1)
    with untouched():
        t.train([0])
        (after_another,) = t.train([1])
    stir(2)
    (alone,) = trainer().train([1])
    assert torch.equal(after_another.trajectory, alone.trajectory)
    (other_seed,) = ExpertTrainer(network(), split(), CLASSES, RECIPE, seed=6).train([1])
    assert not torch.equal(other_seed.trajectory[0], alone.trajectory[0])


def test_streamed_images_give_the_same_expert() -> None:
    streamed = Split(StreamedImages(pixels(), preprocess), split().labels)
    t = ExpertTrainer(network(), streamed, CLASSES, RECIPE, seed=5)
    for one, two in zip(t.train([0, 1]), trainer().train([0, 1]), strict=True):
        assert torch.equal(one.trajectory, two.trajectory)


def test_snapshots_are_copies() -> None:
    """FTD's faults: on the CPU its snapshots are all the last one."""
    (expert,) = trainer().train([0])
    first, second, third = expert.trajectory
    assert torch.equal(first, network().init(generator(5, "expert", 0, "init")))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_every_epoch_takes_each_image_once_in_another_order() -> None:
    t = trainer()
    orders = [torch.cat([plan.indices.flatten() for plan in t._plans(0, epoch)]) for epoch in range(2)]
    assert all(order.sort().values.tolist() == list(range(IMAGES)) for order in orders)
    assert not torch.equal(*orders)
    assert [tuple(plan.indices.shape) for plan in t._plans(0, 0)] == [(2, 8), (1, 6)]


@pytest.mark.parametrize(("sharpness", "passes"), [(FLAT, 1), (Sharpness(), 2)])
def test_both_gradients_of_a_step_see_the_same_batch(
    sharpness: Sharpness, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trainer(replace(RECIPE, sharpness=sharpness, epochs=1))
    seen: list[tuple[Tensor, Tensor]] = []
    gradient = t.loop.kernels.gradient

    def watched(theta: Tensor, images: Tensor, labels: Tensor, low: bool) -> tuple[Tensor, Tensor, Tensor]:
        seen.append((theta, images))
        return gradient(theta, images, labels, low)

    monkeypatch.setattr(t.loop.kernels, "gradient", watched)
    t.train([0])
    assert len(seen) == 3 * passes
    for step in range(0, len(seen), passes):
        thetas, images = zip(*seen[step : step + passes], strict=True)
        assert all(torch.equal(image, images[0]) for image in images)
        assert passes == 1 or not torch.equal(thetas[0], thetas[1])


def test_each_batch_is_ticked_and_a_tick_may_stop() -> None:
    ticks = []
    trainer().train([0, 1], lambda: ticks.append(1))
    assert len(ticks) == 2 * 3

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer().train([0], stop)


def test_divergence_is_told_with_expert_and_epoch() -> None:
    t = trainer(replace(RECIPE, lr=1e30, sharpness=FLAT, epochs=3))
    with pytest.raises(UserError) as error:
        t.train([6, 8])
    assert str(error.value) == "expert 6 diverged in epoch 1 of 3; lower --lr_teacher or --rho"
    last = trainer(replace(RECIPE, lr=1e39, sharpness=FLAT, epochs=1, batch=100))  # its only loss is finite
    with pytest.raises(UserError, match="expert 2 diverged in epoch 1 of 1"):
        last.train([2])


@pytest.mark.parametrize("numbers", [[0], [0, 1]])
def test_steps_replayed_from_static_buffers_are_exact(numbers: list[int]) -> None:
    recipe = replace(RECIPE, epochs=5, decay=True, momentum=0.9)
    t = trainer(recipe)
    made = [0]

    def count(call: Callable[[], object]) -> tuple[Callable[[], None], object]:
        made[0] += 1
        return emulate(call)

    for key, function in t._step.items():
        t._step[key] = Captured(function, count)
    for one, two in zip(t.train(numbers), trainer(recipe).train(numbers), strict=True):
        assert same(one, two, 1e-6)
    assert made[0] == 2 * 2  # batches of 8 and of 6, before and after the decay


def test_graphs_are_captured_where_they_are_asked_for() -> None:
    asked = trainer(execution=Execution(graphs=True))
    assert all(isinstance(function, Captured) for function in asked._step.values())
    assert not any(isinstance(function, Captured) for function in trainer()._step.values())
