"""The meta-gradient of the ``higher`` engine, against finite differences and a hand-unrolled loop."""

import higher
import pytest
import torch
import torch.nn.functional as F
from problems import Problem, make_problem, relative_error, solve
from torch import Tensor

from framework.distill_higher import Higher
from framework.inner.augment import apply
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, Optimizer, State
from framework.outer.engines.engine import MetaGradient
from framework.outer.policies.policy import Window
from framework.rng import generator

RULES = [Adam(1e-2), SGD(0.1)]
STRATEGIES = ["none", "flip", "rotate", "scale", "crop", "color", "cutout", "mixup", "flip_rotate_scale_crop_mixup"]


def outer_loss(p: Problem, rule: Optimizer, start: State, images: Tensor, labels: Tensor, window: Window) -> Tensor:
    """The real loss after the window, without any engine."""
    plan = p.plan[window.start : sum(window)]
    theta = InnerLoop(p.network, rule).train(start, images, labels, plan).theta
    real_images, real_labels = apply(p.real.images, p.real.labels, p.real.draw)
    return F.cross_entropy(p.network(theta, real_images), real_labels)


def prefix(p: Problem, rule: Optimizer, window: Window) -> State:
    return InnerLoop(p.network, rule).train(State.fresh(p.theta), p.images, p.labels, p.plan[: window.start])


def gradient(p: Problem, rule: Optimizer, window: Window) -> MetaGradient:
    return solve(Higher(InnerLoop(p.network, rule)), window, p)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_meta_gradient_equals_finite_differences(rule: Optimizer, strategy: str) -> None:
    window = Window(5, 6)
    p = make_problem(11, strategy, smooth=True)
    result = gradient(p, rule, window)
    start = prefix(p, rule, window)
    gen = generator(1, "direction")
    dx = torch.randn(p.images.shape, generator=gen, dtype=torch.float64)
    dy = torch.randn(p.labels.shape, generator=gen, dtype=torch.float64)

    def along(size: float) -> Tensor:
        images, labels = p.images.detach() + size * dx, p.labels.detach() + size * dy
        return outer_loss(p, rule, start, images, labels, window)

    h = 1e-4 / float(dx.norm())
    # fourth-order central difference: its error is far below the tolerance
    difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert result.grads.labels is not None
    directional = (result.grads.images * dx).sum() + (result.grads.labels * dy).sum()
    assert float(directional) == pytest.approx(float(difference), rel=2e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("window", [Window(0, 1), Window(0, 8), Window(6, 2), Window(3, 5)])
def test_meta_gradient_equals_a_hand_unrolled_loop(rule: Optimizer, window: Window) -> None:
    p = make_problem(8, "flip_rotate_mixup", compose=True)
    result = gradient(p, rule, window)
    state = prefix(p, rule, window)
    images, labels = p.images.detach().requires_grad_(), p.labels.detach().requires_grad_()
    state = State(state.theta.requires_grad_(), state.m, state.v, state.t)
    for t in range(window.start, sum(window)):
        batch = p.plan.indices[t]
        x, y = apply(images[batch], labels[batch], p.plan.draw.at(t))
        loss = F.cross_entropy(p.network(state.theta, x), y)
        state = rule.step(state, torch.autograd.grad(loss, state.theta, create_graph=True)[0])
    real_images, real_labels = apply(p.real.images, p.real.labels, p.real.draw)
    loss = F.cross_entropy(p.network(state.theta, real_images), real_labels)
    expected = torch.autograd.grad(loss, [images, labels])
    assert float(result.loss) == pytest.approx(loss.item(), rel=1e-12)
    assert relative_error(result.grads.images, expected[0]) < 1e-9
    assert result.grads.labels is not None
    assert relative_error(result.grads.labels, expected[1]) < 1e-9


def test_agrees_with_highers_own_sgd() -> None:
    """The whole path once more with the library's own optimiser and PyTorch's, as the ancestors do it."""
    p = make_problem(6, "none", soft=False)
    module = p.network.module
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), p.network.unflatten(p.theta), strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images = p.images.detach().requires_grad_()
    classes = p.labels.argmax(1)
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=True) as (fast, diffopt):
        for t in range(6):
            batch = p.plan.indices[t]
            diffopt.step(F.cross_entropy(fast(images[batch]), classes[batch]))
        loss = F.cross_entropy(fast(p.real.images), p.real.labels.argmax(1))
        (expected,) = torch.autograd.grad(loss, images)
    result = gradient(p, SGD(0.1), Window(0, 6))
    assert relative_error(result.grads.images, expected) < 1e-10


def test_labels_that_are_not_learnt_get_no_gradient() -> None:
    p = make_problem(4, soft=False)
    result = gradient(p, Adam(1e-2), Window(1, 3))
    assert result.grads.labels is None
    assert not result.loss.requires_grad
    assert not result.grads.images.requires_grad


def test_only_images_of_the_window_get_a_gradient() -> None:
    """Images drawn in the prefix alone must stay untouched: truncation cuts there."""
    p = make_problem(6, "none", ipc=4)
    window = Window(5, 1)
    result = gradient(p, Adam(1e-2), window)
    touched = result.grads.images.flatten(1).norm(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == sorted(p.plan.indices[5].tolist())


def test_accuracy_is_that_of_the_real_batch() -> None:
    p = make_problem(4, "none")
    result = gradient(p, Adam(1e-2), Window(0, 4))
    theta = InnerLoop(p.network, Adam(1e-2)).train(State.fresh(p.theta), p.images, p.labels, p.plan).theta
    expected = (p.network(theta, p.real.images).argmax(1) == p.real.labels.argmax(1)).double().mean()
    assert float(result.accuracy) == float(expected)


def test_the_template_network_may_hold_anything() -> None:
    """Nothing of an outer step is left behind in the module that the next one uses."""
    p = make_problem(5)
    first = gradient(p, Adam(1e-2), Window(2, 3))
    with torch.no_grad():
        for parameter in p.network.module.parameters():
            parameter.fill_(7.0)
    second = gradient(p, Adam(1e-2), Window(2, 3))
    assert torch.equal(first.grads.images, second.grads.images)


def test_parameters_without_gradient_do_not_break_adam() -> None:
    """v = 0 would make the square root's derivative infinite (METHOD section 3)."""
    p = make_problem(3, "none")
    dead = torch.zeros_like(p.theta)  # all-zero parameters: ReLU blocks every gradient but the last bias's
    result = Higher(InnerLoop(p.network, Adam(1e-2)))(State.fresh(dead), p.synthetic, p.plan, p.real)
    assert bool(result.grads.images.isfinite().all())
    assert result.grads.labels is not None
    assert bool(result.grads.labels.isfinite().all())
    assert float(result.grads.labels.norm()) > 0
