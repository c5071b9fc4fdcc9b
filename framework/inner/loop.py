"""The inner loop: the training steps that all parts of a run share."""

import itertools
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from framework.inner.augment import Draw, apply
from framework.inner.graphs import preparer
from framework.inner.kernels import Execution, Kernels
from framework.inner.optimizers import Optimizer, State
from framework.inner.plan import Plan
from framework.inner.programs import Compiled
from framework.networks.flat import FlatNetwork

LOW_PRECISION_FROM = 20  # inner steps before it are too ill-conditioned for bfloat16; see benchmarks/precision.py


@dataclass(frozen=True)
class Step:
    """One training step that was taken, as its derivative needs it."""

    old: State
    new: State
    gradient: Tensor  # (P,) g_t
    images: Tensor  # (B, C, H, W) drawn, before augmentation
    labels: Tensor  # (B, K)
    draw: Draw


torch.export.register_dataclass(Step)


class InnerLoop:
    """Training steps of the inner network, for every use: prefix, probe, window, evaluation.

    Several networks can be trained at once: theta is then (N, P), and a plan's batches hold those of all networks one
    after the other (``Plan.side_by_side``).

    Args:
        network: f.
        rule: the inner optimiser.
        execution: how derivatives are computed.
    """

    def __init__(self, network: FlatNetwork, rule: Optimizer, execution: Execution | None = None) -> None:
        self.network, self.rule = network, rule
        self.execution = execution or Execution()
        self.kernels = Kernels(network, self.execution)
        # Each as it is or as a graph, and as one program.
        prepare = preparer(self.execution.graphs)
        flags = (False, True)
        ways = {False: prepare, True: Compiled}
        self._step = {
            (low, whole): ways[whole](partial(self._take_step, low)) for low, whole in itertools.product(flags, flags)
        }
        self._judge = {low: prepare(partial(self._judge_at, low)) for low in flags}
        self._back = {
            (low, whole, learnt): ways[whole](partial(self._step_back, low, learnt))
            for low, whole, learnt in itertools.product(flags, flags, flags)
        }

    def with_rule(self, rule: Optimizer, *, graphs: bool = True) -> "InnerLoop":
        """The loop with another optimiser, and the same kernels: what is compiled is compiled once.

        Args:
            rule: the optimiser.
            graphs: whether its steps may be captured; not where it holds tensors that will not stay. They are not
                compiled whole: the programs of another rule are used too little.
        """
        if rule == self.rule:
            return self
        execution = replace(self.execution, graphs=graphs and self.execution.graphs, whole=False)
        other = InnerLoop(self.network, rule, execution)
        other.kernels = self.kernels
        return other

    def for_evaluation(self) -> "InnerLoop":
        """A loop for judging a set: in float32, and step by step where running statistics must be kept."""
        if self.network.per_sample and self.execution.precision != "bf16":
            return self
        return InnerLoop(
            self.network, self.rule, replace(self.execution, precision="float32", graphs=False, whole=False)
        )

    @torch.no_grad()
    def step(self, state: State, images: Tensor, labels: Tensor, plan: Plan, t: int) -> tuple[State, Tensor]:
        """Take step ``t`` of ``plan`` without recording anything.

        Args:
            images: (N, C, H, W), the set that ``plan`` indexes.
            labels: (N, K) class weights.

        Returns:
            The next state, and g_t (P,).
        """
        drawn = plan.indices[t]
        take = self._step[self.is_low(state), self._is_whole(state, drawn)]
        new, gradient = take(state, images[drawn], labels[drawn], plan.draw.at(t))
        return replace(new, t=state.t + 1), gradient

    @torch.no_grad()
    def step_back(self, cotangent: State, step: Step, learn_labels: bool) -> tuple[State, Tensor, Tensor | None]:
        """The vector-Jacobian product of ``step``.

        Args:
            cotangent: of the state after the step.
            step: the step.
            learn_labels: whether the cotangent of labels is wanted.

        Returns:
            The cotangents of the state before, of the drawn images (B, C, H, W) and, if learnt, of their labels (B, K).
        """
        back = self._back[self.is_low(step.old), self._is_whole(step.old, step.labels), learn_labels]
        before, dx, dy = back(cotangent, step)
        return replace(before, t=step.old.t), dx, dy

    @torch.no_grad()
    def judge(self, state: State, images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss (), accuracy () (a fraction) and the loss's gradient (P,) on real images, which are augmented."""
        return self._judge[self.is_low(state)](state.theta, images, labels, draw)  # type: ignore[no-any-return]

    def train(
        self, state: State, images: Tensor, labels: Tensor, plan: Plan, norms: list[Tensor] | None = None
    ) -> State:
        """Take all steps of ``plan``; if ``norms`` is given, ||g_t||_2 of each is appended, () on the device."""
        images, labels = images.detach(), labels.detach()
        for t in range(len(plan)):
            state, gradient = self.step(state, images, labels, plan, t)
            if norms is not None:
                norms.append(torch.linalg.vector_norm(gradient))
        return state

    def probe_norms(self, theta: Tensor, images: Tensor, labels: Tensor, plan: Plan) -> list[float]:
        """Gradient norms ||g_t||_2 along a whole trajectory from theta (P,); one transfer from the device."""
        norms: list[Tensor] = []
        self.train(State.fresh(theta), images, labels, plan, norms)
        return torch.stack(norms).tolist()

    def is_low(self, state: State) -> bool:
        """Whether a step from here is to be taken in bfloat16."""
        return self.execution.precision == "bf16" and state.t >= LOW_PRECISION_FROM

    def _is_whole(self, state: State, batch: Tensor) -> bool:
        """Whether a step from here on ``batch``, that of all networks, is one program."""
        networks = len(state.theta) if state.theta.dim() == 2 else 1
        return self.execution.whole and len(batch) <= networks * self.execution.chunk

    def batch(self, theta: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Augment the batches of all networks, (N B, ...), and give each its own: (N, B, ...); (B, ...) for one."""
        images, labels = apply(images, labels, draw)
        if theta.dim() == 2:
            images, labels = images.unflatten(0, (len(theta), -1)), labels.unflatten(0, (len(theta), -1))
        return images, labels

    def second_order(
        self, theta: Tensor, w: Tensor, images: Tensor, labels: Tensor, draw: Draw, learn_labels: bool, low: bool,
        hessian: bool = True,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:  # fmt: skip
        """One step's second derivatives contracted with w (P,), METHOD section 3.

        Args:
            images, labels: the drawn ones, (B, C, H, W) and (B, K), before augmentation.
            hessian: whether H w is wanted.

        Returns:
            H w (P,) or None, and the mixed partials' products towards images and, if learnt, labels.
        """
        with torch.enable_grad():
            x, y = images.detach().requires_grad_(), labels.detach().requires_grad_(learn_labels)
            augmented, targets = self.batch(theta, x, y, draw)
        product, mixed_x, mixed_y = self.kernels.products(
            theta, augmented.detach(), targets.detach(), w, learn_labels, low, hessian
        )
        # Back through the augmentation, which is linear in images and labels.
        if mixed_y is None:
            return product, torch.autograd.grad(augmented, x, mixed_x)[0], None
        dx, dy = torch.autograd.grad([augmented, targets], [x, y], [mixed_x, mixed_y])
        return product, dx, dy

    # ---- what is captured or compiled: pure functions of tensors, of the step count too ----------------
    # Of the synthetic set they are given the drawn images alone: a graph copies all that it is given.

    def _take_step(self, low: bool, state: State, images: Tensor, labels: Tensor, draw: Draw) -> tuple[State, Tensor]:
        x, y = self.batch(state.theta, images, labels, draw)
        gradient = self.kernels.gradient(state.theta, x, y, low)[2]
        return self.rule.step(state, gradient), gradient

    def _step_back(
        self, low: bool, learn_labels: bool, cotangent: State, step: Step
    ) -> tuple[State, Tensor, Tensor | None]:
        before, w = self.rule.pullback(cotangent, step.new, step.gradient)
        product, dx, dy = self.second_order(step.old.theta, w, step.images, step.labels, step.draw, learn_labels, low)
        assert product is not None
        return replace(before, theta=before.theta + product), dx, dy

    def _judge_at(
        self, low: bool, theta: Tensor, images: Tensor, labels: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, y = apply(images, labels, draw)
        if theta.dim() == 2:
            x, y = x.expand(len(theta), *x.shape), y.expand(len(theta), *y.shape)
        return self.kernels.gradient(theta, x, y, low)
