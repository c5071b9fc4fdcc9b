"""Training experts, whose trajectories are matched: networks trained on all real images, by SGD or sharpness-aware.

Trajectory matching (MTT, arXiv 2203.11932) takes experts of plain SGD; FTD (arXiv 2211.11004) flattens their
trajectories by GSAM (arXiv 2203.08065) with adaptive perturbations (ASAM, arXiv 2102.11600).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.data.splits import Split
from framework.errors import UserError
from framework.inner.augment import Augmenter, Draw
from framework.inner.graphs import preparer
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, State
from framework.inner.plan import Plan
from framework.networks.flat import FlatNetwork
from framework.records import ExpertTraining
from framework.rng import generator

EPS = 1e-12  # of norms that are divided by
DECAY = 0.1  # of the learning rate, once


@dataclass(frozen=True)
class Sharpness:
    """How a step looks for flat places (GSAM).

    Args:
        rho: how far away the second gradient is taken; 0 is plain SGD.
        alpha: share of the part of the gradient at hand that is orthogonal to the second, to be ascended; 0 is SAM.
        adaptive: whether the perturbation is scaled by the parameters (ASAM).
    """

    rho: float = 0.01
    alpha: float = 0.3
    adaptive: bool = True


def _norm(x: Tensor) -> Tensor:
    """Over all parameters of each network: (N, 1), or (1,) of one."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # type: ignore[no-any-return]


def sharp_direction(theta: Tensor, g: Tensor, gradient: Callable[[Tensor], Tensor], sharpness: Sharpness) -> Tensor:
    """The direction d that a sharpness-aware step descends (GSAM, algorithm 1, with the perturbation of ASAM).

    Args:
        theta: (P,) or, of networks side by side, (N, P).
        g: the gradient at theta.
        gradient: of the same batch, anywhere; asked once, and not at all where rho is 0.
        sharpness: rho, alpha, and which perturbation.

    Returns:
        d, of theta's shape; ``g`` itself where rho is 0.
    """
    if sharpness.rho == 0:
        return g
    if sharpness.adaptive:
        away = sharpness.rho * theta.square() * g / (_norm(theta.abs() * g) + EPS)
    else:
        away = sharpness.rho * g / (_norm(g) + EPS)
    there = gradient(theta + away)
    own, theirs = _norm(g), _norm(there)
    cosine = (g * there).sum(-1, keepdim=True) / (theirs * own + EPS)
    orthogonal = g - cosine * own * there / (theirs + EPS)
    return there - sharpness.alpha * orthogonal


@dataclass(frozen=True)
class ExpertRecipe:
    """How experts are trained.

    Args:
        lr, momentum, weight_decay: of SGD.
        batch: images per step; an epoch's last batch may be smaller.
        epochs: passes over the training images.
        decay: once, after the epoch of index ``epochs // 2 + 1``, lower the rate to a tenth and forget the momentum, as
            MTT does.
        sharpness: of the steps.
        augmentation: of the batches.
    """

    lr: float
    momentum: float
    weight_decay: float
    batch: int
    epochs: int
    decay: bool
    sharpness: Sharpness
    augmentation: Augmenter

    def record(self, images: int, seed: int) -> ExpertTraining:
        """What the experts' folder says of it, of ``images`` training images and of the run's seed."""
        s = self.sharpness
        return ExpertTraining(
            self.lr, self.momentum, self.weight_decay, self.batch, self.epochs, self.decay, s.rho, s.alpha, s.adaptive,
            str(self.augmentation), images, seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Expert:
    """A trained expert."""

    number: int
    trajectory: Tensor  # (epochs + 1, P) float32 on the CPU: fresh parameters, then those after each epoch
    losses: list[float]  # of each epoch, mean over its images as they were trained on, in nats
    accuracies: list[float]  # likewise, a fraction


class ExpertTrainer:
    """Trains experts, one at a time or several side by side.

    All random choices of an expert follow from the seed and its number: it is the same, up to rounding, whoever is
    trained beside it. Running statistics of batch norm are not kept: trajectories are of parameters alone.

    Args:
        network: f.
        train: the real images.
        num_classes: K.
        recipe: how.
        execution: how derivatives are computed.
        seed: of every random choice, together with an expert's number.
    """

    def __init__(
        self,
        network: FlatNetwork,
        train: Split,
        num_classes: int,
        recipe: ExpertRecipe,
        execution: Execution | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.train_split, self.num_classes = network, train, num_classes
        self.recipe, self.seed = recipe, seed
        rule = SGD(recipe.lr, recipe.momentum, recipe.weight_decay)
        self.loop = InnerLoop(network, rule, execution)
        prepare = preparer(self.loop.execution.graphs)
        rules = {False: rule, True: replace(rule, lr=DECAY * rule.lr)}
        self._step = {
            (low, decayed): prepare(partial(self._take_step, low, rules[decayed]))
            for low in (False, True)
            for decayed in rules
        }

    def train(self, numbers: Sequence[int], tick: Callable[[], None] = lambda: None) -> list[Expert]:
        """The experts of these numbers, trained side by side.

        Args:
            numbers: distinct.
            tick: called after every batch; may raise to stop.

        Raises:
            UserError: one of them diverges; names it and the epoch.
        """
        recipe = self.recipe
        fresh = [self.network.init(generator(self.seed, "expert", number, "init")) for number in numbers]
        state = State.fresh(torch.stack(fresh) if len(fresh) > 1 else fresh[0])
        # Each snapshot is copied into memory of its own: a step must not change those before it.
        trajectories = torch.empty(len(numbers), recipe.epochs + 1, self.network.size)
        trajectories[:, 0].copy_(state.theta)
        curves: list[tuple[list[float], list[float]]] = [([], []) for _ in numbers]
        low_from = recipe.epochs // 2 + 2 if recipe.decay else recipe.epochs
        for epoch in range(recipe.epochs):
            if epoch == low_from:
                state = replace(state, m=torch.zeros_like(state.m))
            plans = [self._plans(number, epoch) for number in numbers]
            state, means = self._epoch(state, plans, epoch >= low_from, tick)
            trajectories[:, epoch + 1].copy_(state.theta)
            for number, snapshot, curve, (loss, accuracy) in zip(
                numbers, trajectories[:, epoch + 1], curves, means.tolist(), strict=True
            ):
                if not (math.isfinite(loss) and snapshot.isfinite().all()):
                    raise UserError(
                        f"expert {number} diverged in epoch {epoch + 1} of {recipe.epochs}; lower --lr_teacher or --rho"
                    )
                curve[0].append(loss)
                curve[1].append(accuracy)
        return [
            Expert(number, trajectory, *curve)
            for number, trajectory, curve in zip(numbers, trajectories, curves, strict=True)
        ]

    def _plans(self, number: int, epoch: int) -> list[Plan]:
        """All choices of an expert's epoch: those of its whole batches, then of a shorter last one."""
        gen = generator(self.seed, "expert", number, "epoch", epoch)
        size = min(self.recipe.batch, len(self.train_split))
        order = torch.randperm(len(self.train_split), generator=gen)
        whole = len(order) // size * size
        parts = [order[:whole].view(-1, size), *([order[None, whole:]] if whole < len(order) else [])]
        return [Plan(rows, self.recipe.augmentation.draw(len(rows), rows.shape[1], gen)) for rows in parts]

    @torch.no_grad()
    def _epoch(
        self, state: State, plans: list[list[Plan]], decayed: bool, tick: Callable[[], None]
    ) -> tuple[State, Tensor]:
        """One pass over the images, each network in its own order.

        Returns:
            The next state, and mean loss and accuracy of each network, (N, 2) on the device.
        """
        parts = [Plan.side_by_side(part) for part in zip(*plans, strict=True)]
        images = self.train_split.batches(rows for part in parts for rows in part.indices)
        totals = torch.zeros(len(plans), 2, dtype=self.network.dtype, device=self.network.device)
        for rows, draw in self._steps(parts):
            labels = F.one_hot(self.train_split.labels[rows], self.num_classes).to(self.network.dtype)
            step = self._step[self.loop.is_low(state), decayed]
            new, means = step(state, next(images), labels, draw)
            state = replace(new, t=state.t + 1)
            totals += means * (len(rows) // len(plans))
            tick()
        return state, totals / len(self.train_split)

    def _steps(self, parts: list[Plan]) -> Iterator[tuple[Tensor, Draw]]:
        """Rows (N B,) and draw of each step, on the device."""
        for part in parts:
            moved = part.to(self.network.device)
            for t, rows in enumerate(moved.indices):
                yield rows, moved.draw.at(t)

    def _take_step(
        self, low: bool, rule: SGD, state: State, images: Tensor, labels: Tensor, draw: Draw
    ) -> tuple[State, Tensor]:
        """The next state, and loss and accuracy before the step, (N, 2); captured as it is, like ``InnerLoop``'s."""
        x, y = self.loop.batch(state.theta, images, labels, draw)
        loss, accuracy, g = self.loop.kernels.gradient(state.theta, x, y, low)
        direction = sharp_direction(
            state.theta, g, lambda at: self.loop.kernels.gradient(at, x, y, low)[2], self.recipe.sharpness
        )
        return rule.step(state, direction), torch.stack([loss, accuracy], -1).view(-1, 2)
