"""Meta-gradient engines: how the real loss is differentiated through the window's inner steps.

All engines have one signature and one result, so that any can stand in for any other; ``higher``, in
``framework.distill_higher``, is the reference that the others are tested against.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.augment import Draw, apply
from framework.inner import Optimizer, State
from framework.networks import FlatNetwork
from framework.synthetic import Grads, Plan

CHUNK = 256  # images differentiated at a time; bounds memory, changes results only by rounding


@dataclass(frozen=True)
class RealBatch:
    """Real images that judge the trained inner network, and their augmentation."""

    images: Tensor  # (B, C, H, W)
    labels: Tensor  # (B, K) class weights
    draw: Draw


@dataclass(frozen=True)
class MetaGradient:
    """What one outer step returns; ``loss`` and ``accuracy`` (a fraction) are () on the device."""

    loss: Tensor
    accuracy: Tensor
    grads: Grads


def real_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy (a fraction) of logits (B, K) under class weights (B, K)."""
    accuracy = (logits.detach().argmax(1) == labels.argmax(1)).to(logits.dtype).mean()
    return F.cross_entropy(logits, labels), accuracy


class Engine(Protocol):
    """Differentiates the real loss through ``len(plan)`` inner steps."""

    def __call__(
        self,
        network: FlatNetwork,
        rule: Optimizer,
        state: State,
        images: Tensor,
        labels: Tensor,
        plan: Plan,
        real: RealBatch,
    ) -> MetaGradient:
        """Return loss, accuracy and the gradient towards images and labels.

        Args:
            network: f.
            rule: the inner optimiser.
            state: where the window starts; no gradient flows into it.
            images: (N, C, H, W), the synthetic images.
            labels: (N, K); differentiated too if they require a gradient.
            plan: the window's batches.
            real: the batch that defines the outer loss.
        """


def _chunks(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(images.split(CHUNK), labels.split(CHUNK), strict=True)


def _chunk_loss(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """A chunk's share of the mean cross-entropy over ``batch`` images: chunks' losses add up to it."""
    return F.cross_entropy(network(theta, images), labels, reduction="sum") / batch


def replay_engine(
    network: FlatNetwork, rule: Optimizer, state: State, images: Tensor, labels: Tensor, plan: Plan, real: RealBatch
) -> MetaGradient:
    """Exact, with the memory of one inner step: keep each step's vectors, then walk back and replay one at a time.

    Forward, only parameters, moments and gradient of every step are kept. Backward, with the cotangents of
    parameters and moments, the optimiser's pullback gives w = dLoss/dg_t; step t is run again, and the
    directional derivatives H w and (d2 L_t / dS dtheta) w come from differentiating <g_t, w> once more
    (METHOD section 3; Maclaurin et al. 2015, arXiv 1502.03492). Chunks of the batch are exact because the
    networks normalise per sample.
    """
    learn_labels = labels.requires_grad
    images, labels = images.detach(), labels.detach()
    tape: list[tuple[Tensor, State, Tensor]] = []  # theta_t, state t+1, g_t
    for t in range(len(plan)):
        theta = state.theta.detach().requires_grad_()
        batch = plan.indices[t]
        augmented, targets = apply(images[batch], labels[batch], plan.draw.at(t))
        gradient = torch.zeros_like(state.theta)
        for x, y in _chunks(augmented, targets):
            gradient += torch.autograd.grad(_chunk_loss(network, theta, x, y, len(batch)), theta)[0]
        with torch.no_grad():
            new = rule.step(state, gradient)
        tape.append((state.theta, new, gradient))
        state = new

    loss, accuracy, u = _real_gradient(network, state.theta, real)
    cotangent = State(u, torch.zeros_like(u), torch.zeros_like(u))
    grads = Grads(torch.zeros_like(images), torch.zeros_like(labels) if learn_labels else None)
    for t in reversed(range(len(plan))):
        theta, new, gradient = tape.pop()
        cotangent, w = rule.pullback(cotangent, new, gradient)
        hessian_product = _replay_step(network, theta, images, labels, plan, t, w, grads)
        cotangent = State(cotangent.theta + hessian_product, cotangent.m, cotangent.v)
    return MetaGradient(loss, accuracy, grads)


def _real_gradient(network: FlatNetwork, theta: Tensor, real: RealBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and accuracy on the real batch, and the loss's gradient (P,) towards theta."""
    leaf = theta.detach().requires_grad_()
    images, labels = apply(real.images, real.labels, real.draw)
    loss, correct = torch.zeros((), dtype=theta.dtype, device=theta.device), torch.zeros_like(theta[0])
    gradient = torch.zeros_like(theta)
    for x, y in _chunks(images, labels):
        mean, accuracy = real_loss(network(leaf, x), y)
        share = len(x) / len(images)
        gradient += torch.autograd.grad(share * mean, leaf)[0]
        loss += share * mean.detach()
        correct += share * accuracy
    return loss, correct, gradient


def _replay_step(
    network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, plan: Plan, t: int, w: Tensor, grads: Grads
) -> Tensor:
    """Run step ``t`` again at ``theta`` and contract its second derivatives with ``w`` (P,).

    Adds the mixed partials' products to ``grads`` and returns the Hessian's, (P,).
    """
    batch, draw = plan.indices[t], plan.draw.at(t)
    theta = theta.detach().requires_grad_()
    x, y = images[batch].requires_grad_(), labels[batch].requires_grad_(grads.labels is not None)
    augmented, targets = apply(x, y, draw)
    hessian_product = torch.zeros_like(theta)
    products: list[list[Tensor]] = []
    for part, target in _chunks(augmented.detach(), targets.detach()):
        inputs = [theta, part.requires_grad_()]
        if grads.labels is not None:
            inputs.append(target.requires_grad_())
        loss = _chunk_loss(network, theta, part, target, len(batch))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        h, *mixed = torch.autograd.grad(gradient, inputs, w)
        hessian_product += h
        products.append(mixed)
    mixed_x, *mixed_y = (torch.cat(parts) for parts in zip(*products, strict=True))
    # Back through the augmentation, which is linear in images and labels.
    if grads.labels is None:
        (dx,) = torch.autograd.grad(augmented, x, mixed_x)
    else:
        dx, dy = torch.autograd.grad([augmented, targets], [x, y], [mixed_x, *mixed_y])
        grads.labels.index_add_(0, batch, dy)
    grads.images.index_add_(0, batch, dx)
    return hessian_product
