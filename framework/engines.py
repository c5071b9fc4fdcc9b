"""Meta-gradient engines: how the real loss is differentiated through the window's inner steps.

All engines have one signature and one result, so that any can stand in for any other; ``Higher``, in
``framework.distill_higher``, is the reference that the others are tested against.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from framework.augment import Draw
from framework.inner import InnerLoop, State
from framework.lowrank import Factors, Recipe, factorise
from framework.rng import generator
from framework.synthetic import Grads, Plan


@dataclass(frozen=True)
class RealBatch:
    """Real images that judge the trained inner network, and their augmentation."""

    images: Tensor  # (B, C, H, W)
    labels: Tensor  # (B, K) class weights
    draw: Draw


@dataclass(frozen=True)
class Cost:
    """The work of one window of M steps, in passes over an inner batch.

    Args:
        gradients: first derivatives taken.
        products: second derivatives contracted with a vector, after a gradient of their own.
        vectors: the most vectors of theta's size that are kept at once between steps.
        graphs: steps whose activations are kept at once.
    """

    gradients: int
    products: int
    vectors: int
    graphs: int


@dataclass(frozen=True)
class MetaGradient:
    """What one outer step returns; ``loss`` and ``accuracy`` (a fraction) are () on the device."""

    loss: Tensor
    accuracy: Tensor
    grads: Grads
    theta: Tensor  # (P,) at the end of the window; (N, P) for several networks
    cost: Cost


Mark = Callable[[str], None]


def no_mark(phase: str) -> None:
    """Where nobody asks how long each phase takes."""


class Engine(Protocol):
    """Differentiates the real loss through ``len(plan)`` inner steps.

    ``loop`` takes the steps. ``together`` says whether several networks are to be differentiated at once.
    """

    loop: InnerLoop
    together: bool

    def __call__(
        self, state: State, images: Tensor, labels: Tensor, plan: Plan, real: RealBatch, mark: Mark = no_mark
    ) -> MetaGradient:
        """Return loss, accuracy and the gradient towards images and labels, averaged over networks.

        Args:
            state: where the window starts; no gradient flows into it.
            images: (N, C, H, W), the synthetic images.
            labels: (N, K); differentiated too if they require a gradient.
            plan: the window's batches.
            real: the batch that defines the outer loss.
            mark: told the name of each phase (``window``, ``real``, ``backward``) when it is over.
        """


def segment(length: int) -> int:
    """Steps between two kept states with which ``Replay`` keeps the fewest vectors: the square root, rounded up."""
    return math.isqrt(length - 1) + 1


def kept_vectors(length: int, every: int) -> int:
    """The most vectors (P,) that ``Replay`` keeps: a gradient for each step, kept states, and one segment's states."""
    return length + 3 * (-(-length // every) + min(every, length))


class Replay:
    """Exact, with the memory of one inner step: keep vectors, then walk back and run one step at a time again.

    Forward, the gradient of every step and every ``every``-th state are kept; the states between are had again from
    the gradients, by elementwise updates, one segment at a time. Backward, the second derivatives of each step are
    contracted with the cotangent (METHOD section 3; Maclaurin et al. 2015, arXiv 1502.03492).

    Args:
        loop: the inner loop.
        every: steps of a segment; by default the square root of the window's length, which keeps the fewest vectors.
    """

    def __init__(self, loop: InnerLoop, every: int | None = None) -> None:
        self.loop, self.every = loop, every
        self.together = loop.execution.together

    def __call__(
        self, state: State, images: Tensor, labels: Tensor, plan: Plan, real: RealBatch, mark: Mark = no_mark
    ) -> MetaGradient:
        """See ``Engine``."""
        learn_labels = labels.requires_grad
        images, labels = images.detach(), labels.detach()
        every = self.every or segment(len(plan))
        kept: list[State] = []
        gradients: list[Tensor] = []
        for t in range(len(plan)):
            if t % every == 0:
                kept.append(state)
            state, gradient = self.loop.step(state, images, labels, plan, t)
            gradients.append(gradient)
        vectors = kept_vectors(len(plan), every)
        mark("window")

        loss, accuracy, u = self.loop.judge(state, real.images, real.labels, real.draw)
        mark("real")

        cotangent = State(u, torch.zeros_like(u), torch.zeros_like(u))
        grads = Grads(torch.zeros_like(images), torch.zeros_like(labels) if learn_labels else None)
        step_back = self._step_back(learn_labels)
        while kept:
            states = [kept.pop()]
            for gradient in gradients[len(kept) * every :]:
                states.append(self.loop.rule.step(states[-1], gradient))
            while len(states) > 1:
                new, gradient, t = states.pop(), gradients.pop(), len(gradients)
                cotangent, dx, dy = step_back(cotangent, states[-1], new, gradient, images, labels, plan, t)
                grads.images.index_add_(0, plan.indices[t], dx)
                if grads.labels is not None:
                    grads.labels.index_add_(0, plan.indices[t], dy)
        mark("backward")
        networks = u.shape[0] if u.dim() == 2 else 1
        mean = Grads(grads.images / networks, None if grads.labels is None else grads.labels / networks)
        return MetaGradient(loss.mean(), accuracy.mean(), mean, state.theta, self._cost(len(plan), vectors))

    def _step_back(self, learn_labels: bool) -> Callable[..., tuple[State, Tensor, Any]]:
        """What takes the cotangent of a state to that of the state before."""
        return partial(self.loop.step_back, learn_labels=learn_labels)

    def _cost(self, length: int, vectors: int) -> Cost:
        return Cost(length, length, vectors, 1)


class LowRank(Replay):
    """Replay with the Hessians of the window replaced by low-rank factors (LRHA); the mixed partials stay exact.

    Inner steps are not altered: factors serve the backward sweep alone. With ``recipe.rank`` 0 the Hessian is left out.
    ``benchmarks/lrha_quality.py`` measures how good the result is.

    Args:
        loop: the inner loop.
        recipe: of the factors.
    """

    def __init__(self, loop: InnerLoop, recipe: Recipe | None = None) -> None:
        super().__init__(loop)
        self.together = False
        self.recipe = recipe or Recipe()

    def _step_back(self, learn_labels: bool) -> Callable[..., tuple[State, Tensor, Any]]:
        loop, recipe = self.loop, self.recipe
        factors: Factors | None = None
        used = 0

        @torch.no_grad()
        def step_back(
            cotangent: State,
            old: State,
            new: State,
            gradient: Tensor,
            images: Tensor,
            labels: Tensor,
            plan: Plan,
            t: int,
        ) -> tuple[State, Tensor, Tensor | None]:
            nonlocal factors, used
            before, w = loop.rule.pullback(cotangent, new, gradient)
            x, y, draw = images[plan.indices[t]], labels[plan.indices[t]], plan.draw.at(t)
            _, dx, dy = loop.second_order(old.theta, w, x, y, draw, learn_labels, loop.is_low(old), hessian=False)
            if recipe.rank == 0:
                return before, dx, dy
            if factors is None or (recipe.refresh and used == recipe.refresh):
                factors, used = self._factorise(old, new, w, *loop.batch(old.theta, x, y, draw)), 0
            used += 1
            return replace(before, theta=before.theta + factors @ w), dx, dy

        return step_back

    def _factorise(self, old: State, new: State, w: Tensor, images: Tensor, labels: Tensor) -> Factors:
        """Factors of the Hessian at ``old`` on an augmented batch. The samples depend on the step's number alone."""
        recipe = self.recipe
        gen = generator(0, "low-rank samples", old.t)
        samples = torch.randn(w.numel(), recipe.rank + recipe.oversampling, generator=gen, dtype=w.dtype).to(w.device)
        return factorise(
            lambda vectors: self.loop.kernels.hessian_products(old.theta, images, labels, vectors),
            samples,
            recipe,
            scale=self.loop.rule.step_sizes(new).sqrt() if recipe.metric == "adam" else None,
            cotangent=w if recipe.cotangent else None,
        )

    def _cost(self, length: int, vectors: int) -> Cost:
        rebuilds = 0 if self.recipe.rank == 0 else -(-length // (self.recipe.refresh or length))
        columns = self.recipe.rank + self.recipe.oversampling
        return Cost(length + rebuilds, length + rebuilds * self.recipe.products(), vectors + 2 * columns, 1)
