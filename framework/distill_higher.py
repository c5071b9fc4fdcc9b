"""The inner loop of one outer step: fresh network, prefix, differentiated window, meta-gradient.

The reference engine lives here: the window is unrolled with ``higher`` (Grefenstette et al. 2019, arXiv
1910.01727), as in RaT-BPTT and AT-BPTT, and the graph of the whole window is kept and differentiated once.
The engines of ``framework.engines`` compute the same gradient in other ways.
"""

import higher
import torch
import torch.nn.functional as F
from torch import Tensor

from framework import inner
from framework.augment import apply
from framework.engines import Engine, MetaGradient, RealBatch, real_loss, replay_engine
from framework.inner import Optimizer, State
from framework.networks import FlatNetwork
from framework.synthetic import Grads, Plan
from framework.truncation import Window


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


def higher_engine(
    network: FlatNetwork, rule: Optimizer, state: State, images: Tensor, labels: Tensor, plan: Plan, real: RealBatch
) -> MetaGradient:
    """Keep the graph of all inner steps of the window and differentiate it once; see ``engines.Engine``."""
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
    real_images, real_labels = apply(real.images, real.labels, real.draw)
    loss, accuracy = real_loss(fast_model(real_images), real_labels)
    gradients = torch.autograd.grad(loss, inputs)
    return MetaGradient(loss.detach(), accuracy, Grads(gradients[0], gradients[1] if len(inputs) == 2 else None))


ENGINES: dict[str, Engine] = {"higher": higher_engine, "replay": replay_engine}


def outer_gradient(
    engine: Engine,
    network: FlatNetwork,
    rule: Optimizer,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    window: Window,
    real: RealBatch,
) -> MetaGradient:
    """One outer step's meta-gradient (METHOD section 1): prefix, then the differentiated window.

    Args:
        engine: differentiates the window.
        theta: (P,) parameters of a fresh network.
        plan: at least ``window.start + window.length`` inner steps.
    """
    prefix, inside = plan[: window.start], plan[window.start : window.start + window.length]
    state = inner.train(network, rule, State.fresh(theta), images.detach(), labels.detach(), prefix)
    return engine(network, rule, state, images, labels, inside, real)
