"""Inner optimisers as pure, differentiable functions, shared by every engine and by evaluation.

One rule everywhere: PyTorch's own (for Adam, epsilon is added after the bias correction). ``step``
works on one flat vector or on a list of tensors' worth of it alike, being elementwise.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.augment import Draw, apply
from framework.networks import FlatNetwork
from framework.synthetic import Plan


@dataclass(frozen=True)
class State:
    """Parameters and optimiser moments after ``t`` steps; all tensors have theta's shape.

    ``m`` is Adam's first moment or SGD's momentum buffer; ``v`` is Adam's second moment and unused
    (kept at zero) by SGD.
    """

    theta: Tensor
    m: Tensor
    v: Tensor
    t: int = 0

    @classmethod
    def fresh(cls, theta: Tensor) -> "State":
        """The state before the first step."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def detach(self) -> "State":
        """The same numbers without history."""
        return State(self.theta.detach(), self.m.detach(), self.v.detach(), self.t)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root of x >= 0 whose derivative at 0 is 0 instead of infinite.

    A parameter whose gradient has always been exactly 0 has v = 0; it takes no part in the
    meta-gradient. ``higher`` masks the same entries.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) as ``torch.optim.Adam`` computes it."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def step(self, state: State, grad: Tensor) -> State:
        """One update; differentiable in every tensor of ``state`` and in ``grad``."""
        t = state.t + 1
        m = self.beta1 * state.m + (1 - self.beta1) * grad
        v = self.beta2 * state.v + (1 - self.beta2) * grad * grad
        root = safe_sqrt(v) if v.requires_grad else v.sqrt()
        denominator = root / (1 - self.beta2**t) ** 0.5 + self.eps
        return State(state.theta - self.lr / (1 - self.beta1**t) * m / denominator, m, v, t)

    def pullback(self, cotangent: State, new: State, grad: Tensor) -> tuple[State, Tensor]:
        """The vector-Jacobian product of ``step``.

        Args:
            cotangent: of the state that ``step`` returned.
            new: that state.
            grad: the gradient that ``step`` was given.

        Returns:
            The cotangents of the state and of the gradient that ``step`` was given.
        """
        correction2 = (1 - self.beta2**new.t) ** 0.5
        root = new.v.sqrt()
        denominator = root / correction2 + self.eps
        a = self.lr / (1 - self.beta1**new.t) * cotangent.theta / denominator
        m = cotangent.m - a
        # The derivative of the square root at 0 is taken as 0; see safe_sqrt.
        slope = torch.where(root > 0, a * new.m / (2 * correction2 * denominator * root), 0.0)
        v = cotangent.v + slope
        w = (1 - self.beta1) * m + 2 * (1 - self.beta2) * grad * v
        return State(cotangent.theta, self.beta1 * m, self.beta2 * v, new.t - 1), w


@dataclass(frozen=True)
class SGD:
    """SGD with momentum and weight decay as ``torch.optim.SGD`` computes it."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def step(self, state: State, grad: Tensor) -> State:
        """One update; differentiable in every tensor of ``state`` and in ``grad``."""
        m = self.momentum * state.m + grad + self.weight_decay * state.theta
        return State(state.theta - self.lr * m, m, state.v, state.t + 1)

    def pullback(self, cotangent: State, new: State, grad: Tensor) -> tuple[State, Tensor]:
        """The vector-Jacobian product of ``step``; see ``Adam.pullback``."""
        w = cotangent.m - self.lr * cotangent.theta
        theta = cotangent.theta + self.weight_decay * w
        return State(theta, self.momentum * w, cotangent.v, new.t - 1), w


Optimizer = Adam | SGD


def make_optimizer(name: str, lr: float) -> Optimizer:
    """The inner optimiser of ``--inner_optim`` and ``--inner_lr``."""
    return Adam(lr) if name == "Adam" else SGD(lr)


def inner_loss(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
    """Cross-entropy of an augmented batch, averaged over its images: a scalar.

    Args:
        network: f.
        theta: (P,).
        images: (B, C, H, W), before augmentation.
        labels: (B, K) class weights.
        draw: the batch's augmentation.
    """
    images, labels = apply(images, labels, draw)
    return F.cross_entropy(network(theta, images), labels)


def inner_gradient(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
    """g_t (P,), detached: nothing flows to images or labels, and no graph is kept."""
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(inner_loss(network, leaf, images.detach(), labels.detach(), draw), leaf)
    return gradient


@torch.no_grad()
def train(
    network: FlatNetwork,
    optimizer: Optimizer,
    state: State,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    norms: list[Tensor] | None = None,
) -> State:
    """Take ``len(plan)`` inner steps without recording anything.

    Used alike by the prefix of an outer step, the probe and evaluation, so that all follow one recipe.

    Args:
        images: (N, C, H, W), the set that ``plan`` indexes.
        labels: (N, K) class weights.
        norms: if given, ||g_t||_2 of every step is appended, () on the device.
    """
    for t in range(len(plan)):
        batch = plan.indices[t]
        gradient = inner_gradient(network, state.theta, images[batch], labels[batch], plan.draw.at(t))
        if norms is not None:
            norms.append(torch.linalg.vector_norm(gradient))
        state = optimizer.step(state, gradient)
    return state


def probe_norms(
    network: FlatNetwork, optimizer: Optimizer, theta: Tensor, images: Tensor, labels: Tensor, plan: Plan
) -> list[float]:
    """Gradient norms ||g_t||_2 along a whole trajectory from ``theta``; one transfer from the device."""
    norms: list[Tensor] = []
    train(network, optimizer, State.fresh(theta), images.detach(), labels.detach(), plan, norms)
    return torch.stack(norms).tolist()
