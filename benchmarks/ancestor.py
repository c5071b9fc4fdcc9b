"""One outer step as the ancestors' public code takes it: the reference row of benchmarks/metagrad.py.

``higher`` with the graph of the whole window and its own Adam; every step draws its batch and augmentation when it
comes to it, on the host, class by class; the prefix, too, records what it does. ``rebuild`` adds what surrounds a step
there: the network is made anew on the CPU, and cached memory is given back six times.
"""

import gc
import math
import random
from collections.abc import Callable

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMPTYINGS = 6  # per outer step


def augment(images: Tensor) -> Tensor:
    """Flip or rotate, one of them drawn by the host for the batch, with parameters for every image."""
    if random.random() < 0.5:
        flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(flip, images.flip(3), images)
    angle = (torch.rand(len(images), device=images.device) - 0.5) * math.pi / 6
    rows = [
        torch.stack([angle.cos(), -angle.sin(), 0 * angle], 1),
        torch.stack([angle.sin(), angle.cos(), 0 * angle], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def draw(num_classes: int, per_class: int, count: int, device: torch.device) -> Tensor:
    """Indices of ``count`` images of each class, one permutation after the other."""
    picks = [c * per_class + torch.randperm(per_class)[:count] for c in range(num_classes)]
    return torch.cat(picks).to(device)


def outer_step(
    make_network: Callable[[], nn.Module], images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, *,
    num_classes: int, prefix: int, window: int, lr: float, rebuild: bool, mark: Callable[[str], None],
) -> Tensor:  # fmt: skip
    """The gradient towards ``images`` (N, C, H, W), of the same work as the engines' benchmark.

    Args:
        make_network: a fresh network on the CPU.
        labels: (N,) classes; as many images of each, all drawn at every step.
        real, real_labels: the batch of the outer loss.
        rebuild: with the network's making and the emptying of caches.
        mark: told each phase's name when it is over.
    """
    device = images.device

    def empty() -> None:
        if rebuild:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    for _ in range(EMPTYINGS // 2):
        empty()
    network = make_network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    leaf = images.detach().requires_grad_()
    per_class = len(images) // num_classes
    for _ in range(prefix):
        batch = draw(num_classes, per_class, per_class, device)
        optimizer.zero_grad()
        F.cross_entropy(network(augment(leaf[batch])), labels[batch]).backward()
        optimizer.step()
    leaf.grad = None
    mark("prefix")
    with higher.innerloop_ctx(network, optimizer, copy_initial_weights=True) as (fast, inner):
        for _ in range(window):
            batch = draw(num_classes, per_class, per_class, device)
            inner.step(F.cross_entropy(fast(augment(leaf[batch])), labels[batch]))
        mark("window")
        loss = F.cross_entropy(fast(augment(real)), real_labels)
        mark("real")
        loss.backward()
        mark("backward")
    for _ in range(EMPTYINGS - EMPTYINGS // 2):
        empty()
    assert leaf.grad is not None
    return leaf.grad
