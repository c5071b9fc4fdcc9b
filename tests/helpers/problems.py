"""Small float64 distillation problems shared by the tests of the inner loop and its engines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from framework.distill_higher import outer_gradient
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.plan import ClassSampler, Plan
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engines.engine import Engine, MetaGradient, RealBatch
from framework.outer.policies.policy import Window
from framework.outer.synthetic import Synthetic, noise_images, one_hot_labels
from framework.rng import generator

CPU = torch.device("cpu")


@dataclass
class Problem:
    network: FlatNetwork
    theta: Tensor
    images: Tensor
    labels: Tensor
    plan: Plan
    real: RealBatch

    @property
    def synthetic(self) -> Synthetic:
        """Images and labels as engines take them."""
        return Synthetic(self.images.detach(), self.labels.detach(), self.labels.requires_grad)


def make_problem(
    steps: int,
    strategy: str = "flip_rotate",
    *,
    compose: bool = False,
    channels: int = 2,
    side: int = 8,
    width: int = 6,
    depth: int | None = 2,
    classes: int = 3,
    ipc: int = 2,
    batch_per_class: int = 1,
    soft: bool = True,
    smooth: bool = False,
    seed: int = 0,
    arch: str = "convnet",
    norm: str | None = None,
    device: torch.device = CPU,
) -> Problem:
    """A random problem; labels require a gradient where ``soft``.

    ``smooth`` replaces ReLU by softplus: finite differences would step over ReLU's kinks.
    """
    gen = generator(seed, "problem")
    module = build(arch, channels, side, classes, width=width, depth=depth, norm=norm)
    if smooth:
        layers = module.get_submodule("features").children()
        module.features = nn.Sequential(*(nn.Softplus() if isinstance(m, nn.ReLU) else m for m in layers))
    network = FlatNetwork(module, device, torch.float64)
    augmentation = Augmentation(strategy, compose, side)
    labels = one_hot_labels(Counts.equal(classes, ipc)).double()
    if soft:
        labels = labels + 0.1 * torch.rand(labels.shape, generator=gen, dtype=torch.float64)
    real_labels = one_hot_labels(Counts.equal(classes, 3)).double()
    return Problem(
        network,
        network.init(gen),
        noise_images(classes * ipc, (channels, side, side), gen).double().to(device).requires_grad_(),
        labels.to(device).requires_grad_(soft),
        ClassSampler(Counts.equal(classes, ipc), classes, batch_per_class, augmentation).plan(steps, gen).to(device),
        RealBatch(
            torch.randn(len(real_labels), channels, side, side, generator=gen, dtype=torch.float64).to(device),
            real_labels.to(device),
            augmentation.draw(1, len(real_labels), gen).at(0).to(device),
        ),
    )


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Of a value on any device, where the reference is."""
    return float((value.to(reference.device) - reference).norm() / reference.norm())


def solve(engine: Engine, window: Window, *problems: Problem) -> MetaGradient:
    """The mean meta-gradient of the problems' networks on the first one's images."""
    first = problems[0]
    thetas, plans = [p.theta for p in problems], [p.plan for p in problems]
    return outer_gradient(engine, thetas, first.synthetic, plans, window, first.real)


def assert_same(result: MetaGradient, reference: MetaGradient, tolerance: float = 1e-9) -> None:
    assert relative_error(result.loss, reference.loss) < 1e-10
    assert float(result.accuracy) == pytest.approx(float(reference.accuracy), abs=1e-12)
    assert relative_error(result.grads.images, reference.grads.images) < tolerance
    assert (result.grads.labels is None) == (reference.grads.labels is None)
    if result.grads.labels is not None and reference.grads.labels is not None:
        assert relative_error(result.grads.labels, reference.grads.labels) < tolerance


def emulate(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A recording that runs the call again and overwrites the same result, as a graph does."""
    result = call()

    def replay() -> None:
        for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(call()), strict=True):
            if old is not None:
                old.copy_(new)

    return replay, result
