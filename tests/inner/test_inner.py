"""Inner optimisers and the undifferentiated inner loop, against PyTorch's own optimisers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import make_problem, relative_error
from torch import Tensor, nn

from framework.inner.augment import apply
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, ModuleAdam, Optimizer, State, make_optimizer, safe_sqrt
from framework.rng import generator

RULES = [Adam(1e-2), SGD(0.1)]
ROOTED = Adam(1e-2, eps_root=1e-3)


def torch_optimizer(rule: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(rule, Adam):
        return torch.optim.Adam(parameters, lr=rule.lr, betas=(rule.beta1, rule.beta2), eps=rule.eps)
    return torch.optim.SGD(parameters, lr=rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rule_is_pytorchs_own(rule: Optimizer) -> None:
    gen = generator(0, "test")
    theta = torch.randn(50, generator=gen, dtype=torch.float64)
    gradients = torch.randn(30, 50, generator=gen, dtype=torch.float64)
    gradients[:, :5] = 0  # parameters that never receive a gradient
    parameter = nn.Parameter(theta.clone())
    reference = torch_optimizer(rule, [parameter])
    state = State.fresh(theta)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        reference.step()
        state = rule.step(state, gradient)
    assert relative_error(state.theta, parameter.detach()) < 1e-14
    assert state.t == 30


def optax_adam(theta: np.ndarray, gradients: np.ndarray, rule: Adam) -> np.ndarray:
    """optax.adam's update with its ``eps_root``, from its documentation: sqrt(v_hat + eps_root) + eps."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m, v = rule.beta1 * m + (1 - rule.beta1) * g, rule.beta2 * v + (1 - rule.beta2) * g**2
        corrected_m, corrected_v = m / (1 - rule.beta1**t), v / (1 - rule.beta2**t)
        theta = theta - rule.lr * corrected_m / (np.sqrt(corrected_v + rule.eps_root) + rule.eps)
    return theta


def test_eps_root_is_optaxs_and_a_modules_optimiser_has_it_too() -> None:
    gen = generator(0, "test")
    theta, gradients = (torch.randn(*s, generator=gen, dtype=torch.float64) for s in ((20,), (15, 20)))
    gradients[:, :5] *= 1e-3  # whose second moment is far below eps_root
    gradients[:, 5:8] = 0
    expected = torch.from_numpy(optax_adam(theta.numpy(), gradients.numpy(), ROOTED))
    parameter, state = nn.Parameter(theta.clone()), State.fresh(theta)
    other = nn.Parameter(torch.zeros(2))  # never has a gradient
    optimizer = ModuleAdam([parameter, other], ROOTED)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        state = ROOTED.step(state, gradient)
    for result in (state.theta, parameter.detach()):
        assert relative_error(result, expected) < 1e-14
    assert relative_error(expected, torch.from_numpy(optax_adam(theta.numpy(), gradients.numpy(), Adam(1e-2)))) > 1e-3
    old = State(theta, gradients[0], gradients[1].square(), 4)
    new = ROOTED.step(old, gradients[2])
    assert torch.allclose(old.theta - ROOTED.step_sizes(new) * new.m, new.theta, rtol=1e-13, atol=1e-15)


def test_the_flags_name_the_rules() -> None:
    assert make_optimizer("Adam", 0.5) == Adam(0.5)
    assert make_optimizer("Adam", 0.5, 1e-8) == Adam(0.5, eps_root=1e-8)
    assert make_optimizer("SGD", 0.5) == SGD(0.5, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("rule", [*RULES, ROOTED], ids=lambda rule: type(rule).__name__)
def test_rule_is_differentiable_in_state_and_gradient(rule: Optimizer) -> None:
    gen = generator(0, "test")
    inputs = [torch.rand(4, generator=gen, dtype=torch.float64).requires_grad_() for _ in range(4)]

    def step(theta: Tensor, m: Tensor, v: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        new = rule.step(State(theta, m, v, 3), gradient)
        return new.theta, new.m, new.v

    assert torch.autograd.gradcheck(step, inputs, atol=1e-8)


def test_safe_sqrt_has_a_zero_derivative_at_zero_only() -> None:
    x = torch.tensor([0.0, 1e-30, 4.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(safe_sqrt(x).sum(), x)
    assert gradient.tolist() == pytest.approx([0.0, 0.5e15, 0.25])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("strategy", ["none", "flip_rotate", "mixup", "flip_rotate_scale_crop_color_cutout"])
def test_training_equals_a_plain_pytorch_loop(rule: Optimizer, strategy: str) -> None:
    p = make_problem(12, strategy)
    state = InnerLoop(p.network, rule).train(State.fresh(p.theta), p.images, p.labels, p.plan)

    module = p.network.module
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), p.network.unflatten(p.theta), strict=True):
            parameter.copy_(value)
    reference = torch_optimizer(rule, list(module.parameters()))
    for t in range(12):
        batch = p.plan.indices[t]
        images, labels = apply(p.images[batch].detach(), p.labels[batch].detach(), p.plan.draw.at(t))
        reference.zero_grad()
        log_probabilities = module(images).log_softmax(1)
        (-(labels * log_probabilities).sum(1).mean()).backward()
        reference.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert relative_error(state.theta, expected) < 1e-12


def test_training_in_two_parts_is_bit_identical() -> None:
    p = make_problem(10)
    rule = Adam(1e-2)
    whole = InnerLoop(p.network, rule).train(State.fresh(p.theta), p.images, p.labels, p.plan)
    part = InnerLoop(p.network, rule).train(State.fresh(p.theta), p.images, p.labels, p.plan[:4])
    rest = InnerLoop(p.network, rule).train(part, p.images, p.labels, p.plan[4:])
    assert torch.equal(whole.theta, rest.theta)
    assert torch.equal(whole.v, rest.v)


def test_nothing_flows_to_the_synthetic_set() -> None:
    """Ancestors' fault 23: the prefix back-propagated into images and labels for nothing."""
    p = make_problem(3)
    state = InnerLoop(p.network, Adam(1e-2)).train(State.fresh(p.theta), p.images, p.labels, p.plan)
    gradient = InnerLoop(p.network, Adam(1e-2)).step(state, p.images, p.labels, p.plan, 0)[1]
    assert not state.theta.requires_grad
    assert not gradient.requires_grad
    assert p.images.grad is None
    assert p.labels.grad is None


def test_soft_labels_and_class_indices_give_the_same_loss() -> None:
    p = make_problem(1, "none", soft=False)
    batch = p.plan.indices[0]
    gradient = InnerLoop(p.network, Adam(1e-2)).step(State.fresh(p.theta), p.images, p.labels, p.plan, 0)[1]
    theta = p.theta.clone().requires_grad_()
    loss = F.cross_entropy(p.network(theta, p.images[batch].detach()), p.labels[batch].argmax(1))
    assert relative_error(gradient, torch.autograd.grad(loss, theta)[0]) < 1e-14
