"""The inner loop of one outer step: fresh network, prefix, differentiated window, meta-gradient.

The reference engine lives here: the window is unrolled with ``higher`` (Grefenstette et al. 2019, arXiv
1910.01727), as in RaT-BPTT and AT-BPTT, and the graph of the whole window is kept and differentiated once.
The engines of ``framework.outer`` compute the same gradient in other ways.
"""

from collections.abc import Sequence

import higher
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.inner.augment import apply
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Optimizer, State
from framework.inner.plan import Plan
from framework.networks.flat import FlatNetwork
from framework.outer.engine import Cost, Engine, Mark, MetaGradient, RealBatch, no_mark
from framework.outer.lowrank import LowRank, Recipe
from framework.outer.policies.policy import Window
from framework.outer.replay import Replay
from framework.outer.synthetic import Grads


class _DifferentiableOptimizer(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """Applies the project's one update rule to each of ``higher``'s fast parameters."""

    def __init__(self, rule: Optimizer, network: FlatNetwork, state: State, fast_model: torch.nn.Module) -> None:
        parameters = list(network.module.parameters())
        # higher copies parameter groups from a PyTorch optimiser; the rule itself is ours.
        super().__init__(torch.optim.SGD(parameters, lr=rule.lr), parameters, fmodel=fast_model)
        self.rule, self.steps = rule, state.t
        self.moments = list(zip(network.unflatten(state.m), network.unflatten(state.v), strict=True))

    def _update(self, grouped_grads: list[list[Tensor]], **_: object) -> None:
        parameters, gradients = self.param_groups[0]["params"], grouped_grads[0]
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            new = self.rule.step(State(parameter, *self.moments[i], self.steps), gradient)
            parameters[i], self.moments[i] = new.theta, (new.m, new.v)
        self.steps += 1


class Higher:
    """Keep the graph of all inner steps of the window and differentiate it once; see ``engines.Engine``.

    Args:
        loop: the inner loop; only its network and rule are used, in one chunk and full precision.
    """

    together = False

    def __init__(self, loop: InnerLoop) -> None:
        self.loop = loop

    def __call__(
        self, state: State, images: Tensor, labels: Tensor, plan: Plan, real: RealBatch, mark: Mark = no_mark
    ) -> MetaGradient:
        """See ``engines.Engine``."""
        network, rule = self.loop.network, self.loop.rule
        with torch.no_grad():
            for parameter, value in zip(network.module.parameters(), network.unflatten(state.theta), strict=True):
                parameter.copy_(value)
        fast_model = higher.patch.monkeypatch(network.module, copy_initial_weights=True)
        optimizer = _DifferentiableOptimizer(rule, network, state, fast_model)
        inputs = [images.detach().requires_grad_()]
        if labels.requires_grad:
            inputs.append(labels.detach().requires_grad_())
        soft = inputs[1] if labels.requires_grad else labels
        for t in range(len(plan)):
            batch = plan.indices[t]
            augmented, targets = apply(inputs[0][batch], soft[batch], plan.draw.at(t))
            optimizer.step(F.cross_entropy(fast_model(augmented), targets))
        mark("window")
        real_images, real_labels = apply(real.images, real.labels, real.draw)
        logits = fast_model(real_images)
        loss = F.cross_entropy(logits, real_labels)
        mark("real")
        gradients = torch.autograd.grad(loss, inputs)
        mark("backward")
        accuracy = (logits.detach().argmax(1) == real_labels.argmax(1)).to(logits.dtype).mean()
        grads = Grads(gradients[0], gradients[1] if len(inputs) == 2 else None)
        theta = torch.cat([parameter.detach().flatten() for parameter in fast_model.parameters()])
        return MetaGradient(loss.detach(), accuracy, grads, theta, Cost(len(plan), len(plan), 5 * len(plan), len(plan)))


def make_engine(name: str, loop: InnerLoop, recipe: Recipe | None = None) -> Engine:
    """The engine called ``name``; ``recipe`` is read by ``lowrank``."""
    if name == "lowrank":
        return LowRank(loop, recipe)
    return Higher(loop) if name == "higher" else Replay(loop)


def outer_gradient(
    engine: Engine,
    thetas: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    plans: Sequence[Plan],
    window: Window,
    real: RealBatch,
    mark: Mark = no_mark,
) -> MetaGradient:
    """One outer step's meta-gradient (METHOD section 1), averaged over networks: prefix, then differentiated window.

    Args:
        engine: differentiates the window.
        thetas: (P,) parameters of each fresh network.
        images, labels: the synthetic set.
        plans: of each network, at least ``window.start + window.length`` inner steps.
        window: the steps to differentiate.
        real: the batch that judges all networks.
        mark: see ``Engine``; the first phase is the ``prefix``.
    """
    if engine.together and len(thetas) > 1:
        return _outer_gradient(engine, torch.stack(list(thetas)), images, labels, Plan.side_by_side(plans), window,
                               real, mark)  # fmt: skip
    results = [
        _outer_gradient(engine, theta, images, labels, plan, window, real, mark)
        for theta, plan in zip(thetas, plans, strict=True)
    ]
    return results[0] if len(results) == 1 else _mean(results)


def _outer_gradient(
    engine: Engine,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    window: Window,
    real: RealBatch,
    mark: Mark,
) -> MetaGradient:
    prefix, inside = plan[: window.start], plan[window.start : window.start + window.length]
    state = engine.loop.train(State.fresh(theta), images, labels, prefix)
    mark("prefix")
    return engine(state, images, labels, inside, real, mark)


def _mean(results: list[MetaGradient]) -> MetaGradient:
    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean(0)

    label_grads = [result.grads.labels for result in results if result.grads.labels is not None]
    return MetaGradient(
        mean([result.loss for result in results]),
        mean([result.accuracy for result in results]),
        Grads(mean([result.grads.images for result in results]), mean(label_grads) if label_grads else None),
        torch.stack([result.theta for result in results]),
        results[0].cost,
    )
