"""The replay engine against ``higher``, in float64 and with tight tolerances."""

import pytest
import torch
from problems import Problem, assert_same, make_problem, relative_error, solve
from torch import Tensor

from framework.distill_higher import Higher, outer_gradient
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, Optimizer, State
from framework.networks.registry import ARCHITECTURES
from framework.networks.spec import NORMS
from framework.outer.engines.engine import MetaGradient
from framework.outer.engines.replay import Replay
from framework.outer.policies.policy import Window
from framework.rng import generator

RULES = [Adam(1e-2), SGD(0.1)]
ROOTED = Adam(1e-2, eps_root=1e-4)
STRATEGIES = ["none", "flip", "rotate", "scale", "crop", "color", "cutout", "mixup", "flip_rotate_scale_crop_mixup"]


def both(
    p: Problem, rule: Optimizer, window: Window, execution: Execution | None = None
) -> tuple[MetaGradient, MetaGradient]:
    loop = InnerLoop(p.network, rule, execution)
    return solve(Replay(loop), window, p), solve(Higher(loop), window, p)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("compose", [False, True])
def test_replay_is_exact_for_every_augmentation(rule: Optimizer, strategy: str, compose: bool) -> None:
    p = make_problem(9, strategy, compose=compose)
    assert_same(*both(p, rule, Window(5, 4)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    "window", [Window(4, 1), Window(4, 2), Window(4, 20), Window(4, 60), Window(0, 1), Window(0, 12)]
)
def test_replay_is_exact_for_every_window(rule: Optimizer, window: Window) -> None:
    p = make_problem(sum(window), width=4)
    assert_same(*both(p, rule, window))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_replay_is_exact_for_sampled_classes_and_images(rule: Optimizer) -> None:
    p = make_problem(10, classes=4, ipc=5, batch_per_class=3, depth=1, channels=1, side=6)
    assert_same(*both(p, rule, Window(3, 7)))


def test_labels_that_are_not_learnt_get_no_gradient() -> None:
    assert_same(*both(make_problem(6, soft=False), Adam(1e-2), Window(2, 4)))


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_chunks_of_the_batch_change_nothing(chunk: int, rule: Optimizer) -> None:
    p = make_problem(7, "rotate_mixup", compose=True)
    assert_same(*both(p, rule, Window(3, 4), Execution(chunk=chunk)))


@pytest.mark.parametrize("every", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_states_had_again_from_gradients_change_not_a_bit(rule: Optimizer, every: int) -> None:
    p = make_problem(11)
    loop = InnerLoop(p.network, rule)
    results = [solve(Replay(loop, every), Window(3, 8), p), solve(Replay(loop, 1), Window(3, 8), p)]
    assert torch.equal(results[0].grads.images, results[1].grads.images)


def test_the_default_segments_keep_few_vectors() -> None:
    p = make_problem(42, width=2, depth=1)
    loop = InnerLoop(p.network, Adam(1e-2))
    kept = {every: solve(Replay(loop, every), Window(2, 40), p).cost.vectors for every in (None, 1, 3, 13, 40)}
    assert kept[None] == 40 + 3 * (6 + 7)  # 40 gradients, 6 states of three vectors, one segment of 7
    assert kept[None] == min(kept.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_forward_over_reverse_is_the_same(rule: Optimizer) -> None:
    p = make_problem(7, "rotate_mixup", compose=True)
    assert_same(*both(p, rule, Window(3, 4), Execution(forward_over_reverse=True)))


@pytest.mark.parametrize("strategy", ["none", "flip_rotate", "flip_rotate_scale_crop_color_cutout_mixup"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_several_networks_at_once_are_the_mean_of_each_alone(rule: Optimizer, strategy: str) -> None:
    problems = [make_problem(7, strategy, compose=True, seed=seed) for seed in range(3)]
    p, window = problems[0], Window(2, 5)
    loop = InnerLoop(p.network, rule, Execution(chunk=2, together=True))
    batched = solve(Replay(loop), window, *problems)
    alone = [outer_gradient(Higher(loop), [q.theta], p.synthetic, [q.plan], window, p.real) for q in problems]
    one_by_one = solve(Higher(loop), window, *problems)
    assert_same(batched, one_by_one)
    assert relative_error(batched.grads.images, torch.stack([r.grads.images for r in alone]).mean(0)) < 1e-9
    assert float(batched.loss) == pytest.approx(sum(float(r.loss) for r in alone) / 3, rel=1e-12)
    assert len({float(r.loss) for r in alone}) == 3


def test_replay_is_exact_with_a_root() -> None:
    p = make_problem(6, width=4)
    result, reference = both(p, ROOTED, Window(2, 4))
    assert_same(result, reference)
    assert relative_error(both(p, Adam(1e-2), Window(2, 4))[0].grads.images, reference.grads.images) > 0.01


@pytest.mark.parametrize("rule", [Adam(1e-2), ROOTED], ids=["Adam", "rooted"])
def test_replay_survives_parameters_without_gradient(rule: Adam) -> None:
    """v = 0: both engines take the square root's derivative as 0."""
    p = make_problem(3, "none")
    start = State.fresh(torch.zeros_like(p.theta))
    loop = InnerLoop(p.network, rule)
    results = [engine(start, p.synthetic, p.plan, p.real) for engine in (Replay(loop), Higher(loop))]
    assert results[0].grads.labels is not None
    assert results[1].grads.labels is not None
    assert relative_error(results[0].grads.labels, results[1].grads.labels) < 1e-9
    assert torch.allclose(results[0].grads.images, results[1].grads.images, atol=1e-15)


@pytest.mark.parametrize("name", ["replay", "higher"])
def test_phases_are_told_in_order(name: str) -> None:
    p, phases = make_problem(5), []
    loop = InnerLoop(p.network, Adam(1e-2))
    engine = Replay(loop) if name == "replay" else Higher(loop)
    outer_gradient(engine, [p.theta], p.synthetic, [p.plan], Window(1, 4), p.real, phases.append)
    assert phases == ["prefix", "window", "real", "backward"]


def test_replay_leaves_no_graph_and_no_gradient_behind() -> None:
    p = make_problem(5)
    result = both(p, Adam(1e-2), Window(1, 4))[0]
    assert p.images.grad is None
    assert p.labels.grad is None
    assert not result.loss.requires_grad
    assert not result.grads.images.requires_grad


@pytest.mark.parametrize("rule", [*RULES, ROOTED], ids=lambda rule: type(rule).__name__)
def test_pullback_is_the_steps_vector_jacobian_product(rule: Optimizer) -> None:
    gen = generator(0, "pullback")

    def vector() -> Tensor:
        return torch.randn(20, generator=gen, dtype=torch.float64)

    theta, m, v, grad = vector(), vector(), vector().square(), vector()
    v[:3], grad[:3], m[:3] = 0, 0, 0  # never received a gradient
    leaves = [tensor.requires_grad_() for tensor in (theta, m, v, grad)]
    new = rule.step(State(theta, m, v, 6), grad)
    cotangents = [vector(), vector(), vector()]
    if isinstance(rule, SGD):
        cotangents[2].zero_()
    expected = torch.autograd.grad([new.theta, new.m, new.v], leaves, cotangents, allow_unused=True)
    back, w = rule.pullback(State(*cotangents), new.detach(), grad.detach())
    for value, reference in zip((back.theta, back.m, back.v, w), expected, strict=True):
        assert torch.allclose(
            value, torch.zeros_like(value) if reference is None else reference, rtol=1e-12, atol=1e-14
        )
    assert back.t == 6


SIDES = {"convnet": 8, "convnet4": 16, "convnet5": 32, "vgg11": 17, "alexnet": 8, "resnet18": 9, "vit": 8}
NETWORKS = [(arch, norm) for arch in ARCHITECTURES for norm in NORMS if (arch, norm) != ("vit", "instance")]


@pytest.mark.parametrize(("arch", "norm"), NETWORKS)
def test_replay_is_exact_for_every_network_and_norm(arch: str, norm: str) -> None:
    p = make_problem(4, arch=arch, norm=norm, side=SIDES[arch], width=8, depth=None)
    assert_same(*both(p, SGD(0.1), Window(1, 3)))
