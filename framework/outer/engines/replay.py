"""Exact replay: the meta-gradient of a window, one inner step at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.inner.loop import InnerLoop, Step
from framework.inner.optimizers import State
from framework.inner.plan import Plan
from framework.outer.engines.engine import Cost, Lags, Mark, MetaGradient, RealBatch, no_mark
from framework.outer.synthetic import Grads, Synthetic


def segment(length: int) -> int:
    """Steps between two kept states with which ``Replay`` keeps the fewest vectors: the square root, rounded up."""
    return math.isqrt(max(length, 1) - 1) + 1


def kept_vectors(length: int, every: int, state: int = 3) -> int:
    """The most vectors (P,) that ``Replay`` keeps: a gradient for each step, kept states, and one segment's states.

    Args:
        length: differentiated steps.
        every: steps of a segment.
        state: vectors of a state; see ``State``.
    """
    return length + state * (-(-length // every) + min(every, length))


@dataclass(frozen=True)
class Trail:
    """What ``Replay`` keeps of the steps that it took; walking back uses it up."""

    state: State  # after the last step
    kept: list[State]  # every ``every``-th, from the first on
    gradients: list[Tensor]  # (P,) of each step
    every: int


class _Contributions:
    """The contributions of the steps that are walked back, by lag, and what each counts for."""

    def __init__(self, lags: Lags) -> None:
        self.lags = lags
        self.counts_for = 1.0  # the lag that comes next
        self.noted: list[tuple[Tensor, Tensor | None]] = []

    def grown(self, cotangent: State) -> State:
        """The cotangent with which to take the next step back."""
        growth = self.lags.growth
        if len(self.noted) < self.lags.certain or growth == 1:
            return cotangent
        self.counts_for *= growth
        c = cotangent
        return replace(c, theta=growth * c.theta, m=growth * c.m, v=growth * c.v)

    def note(self, cotangent: State, dx: Tensor, dy: Tensor | None) -> None:
        """Take note of what a step contributes to the gradients towards images and labels; nobody waits for it."""
        networks = cotangent.theta.shape[0] if cotangent.theta.dim() == 2 else 1
        self.noted.append((self._square(dx, networks), None if dy is None else self._square(dy, networks)))

    def _square(self, contribution: Tensor, networks: int) -> Tensor:
        """Its squared norm (), a mean over networks, none of which draws an image twice in a step."""
        norms = torch.linalg.vector_norm(contribution.reshape(networks, -1), dim=1, dtype=torch.float64)
        square: Tensor = (norms / self.counts_for).square().mean()
        return square

    def squares(self) -> Grads:
        """See ``MetaGradient``."""
        images, labels = zip(*self.noted, strict=True)
        return Grads(torch.stack(images), None if labels[0] is None else torch.stack(labels))


class Replay:
    """Exact, with the memory of one inner step: keep vectors, then walk back and run one step at a time again.

    Forward, the gradient of every step and every ``every``-th state are kept; the states in between are recomputed from
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
        self,
        state: State,
        synthetic: Synthetic,
        plan: Plan,
        real: RealBatch,
        mark: Mark = no_mark,
        lags: Lags | None = None,
    ) -> MetaGradient:
        """See ``Engine``."""
        trail = self.forward(state, synthetic, plan)
        vectors = kept_vectors(len(plan), trail.every)
        mark("window")
        loss, accuracy, u = self.loop.judge(trail.state, real.images, real.labels, real.draw)
        mark("real")
        told = None if lags is None else _Contributions(lags)
        grads, _ = self.back(trail, State(u, torch.zeros_like(u), torch.zeros_like(u)), synthetic, plan, told)
        mark("backward")
        networks = u.shape[0] if u.dim() == 2 else 1
        mean = Grads(grads.images / networks, None if grads.labels is None else grads.labels / networks)
        cost, squares = self._cost(len(plan), vectors), None if told is None else told.squares()
        return MetaGradient(loss.mean(), accuracy.mean(), mean, trail.state, cost, squares)

    def forward(self, state: State, synthetic: Synthetic, plan: Plan) -> Trail:
        """Take the steps of ``plan`` from ``state``, and keep what walking back needs."""
        every = self.every or segment(len(plan))
        kept: list[State] = []
        gradients: list[Tensor] = []
        for t in range(len(plan)):
            if t % every == 0:
                kept.append(state)
            state, gradient = self.loop.step(state, synthetic.images, synthetic.labels, plan, t)
            gradients.append(gradient)
        return Trail(state, kept, gradients, every)

    def back(
        self, trail: Trail, cotangent: State, synthetic: Synthetic, plan: Plan, told: "_Contributions | None" = None
    ) -> tuple[Grads, State]:
        """Take the cotangent of the last state back through all steps.

        Args:
            trail: what ``forward`` returned for the same set and plan; it is used up.
            cotangent: of its ``state``.
            told: what contributions by lag are told to, if they are asked for.

        Returns:
            The gradients towards the set, summed over networks, and the cotangent of the first state.
        """
        images, labels, learn_labels = synthetic.images, synthetic.labels, synthetic.learn_labels
        kept, gradients = trail.kept, trail.gradients
        grads = Grads(torch.zeros_like(images), torch.zeros_like(labels) if learn_labels else None)
        step_back = self._step_back(learn_labels)
        while kept:
            states = [kept.pop()]
            for gradient in gradients[len(kept) * trail.every :]:
                states.append(self.loop.rule.step(states[-1], gradient))
            while len(states) > 1:
                new, gradient, t = states.pop(), gradients.pop(), len(gradients)
                drawn = plan.indices[t]
                step = Step(states[-1], new, gradient, images[drawn], labels[drawn], plan.draw.at(t))
                if told is not None:
                    cotangent = told.grown(cotangent)
                cotangent, dx, dy = step_back(cotangent, step)
                if told is not None:
                    told.note(cotangent, dx, dy)
                grads.images.index_add_(0, drawn, dx)
                if grads.labels is not None:
                    grads.labels.index_add_(0, drawn, dy)
        return grads, cotangent

    def _step_back(self, learn_labels: bool) -> Callable[..., tuple[State, Tensor, Any]]:
        """What takes the cotangent of a state to that of the state before."""
        return partial(self.loop.step_back, learn_labels=learn_labels)

    def _cost(self, length: int, vectors: int) -> Cost:
        return Cost(length, length, vectors, 1)
