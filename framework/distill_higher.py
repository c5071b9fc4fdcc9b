"""Distillation by truncated back-propagation through time, the method of RaT-BPTT and AT-BPTT.

Each outer step trains a fresh network on the synthetic set: a prefix, then a window that is differentiated. The
reference engine lives here: the window is unrolled with ``higher`` (Grefenstette et al. 2019, arXiv 1910.01727), as in
both papers' code, and the graph of the whole window is kept and differentiated once. The engines of
``framework.outer`` compute the same gradient in other ways.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import higher
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.data.splits import Split, epoch_batches
from framework.inner.augment import Augmentation, apply
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Optimizer, State, apart, side_by_side
from framework.inner.plan import ClassSampler, Plan
from framework.networks.flat import FlatNetwork
from framework.outer.engines.engine import Cost, Engine, Lags, Mark, MetaGradient, RealBatch, no_mark
from framework.outer.engines.kept_factors import KeptFactors, KeptHessian, LowRankSteps
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.importance import bin_of
from framework.outer.method import Peers, Proposal
from framework.outer.patches import PatchAlignment
from framework.outer.policies.policy import Policy, Window
from framework.outer.pool import NetworkPool
from framework.outer.synthetic import Grads, Synthetic, SyntheticSet
from framework.rng import generator


class _DifferentiableOptimizer(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """Applies the project's one update rule to each of ``higher``'s fast parameters."""

    def __init__(self, rule: Optimizer, network: FlatNetwork, state: State, fast_model: torch.nn.Module) -> None:
        parameters = list(network.module.parameters())
        # higher copies parameter groups from a PyTorch optimiser; the rule itself is ours.
        super().__init__(torch.optim.SGD(parameters, lr=1.0), parameters, fmodel=fast_model)
        self.rule, self.steps = rule, state.t
        self.moments = list(zip(network.unflatten(state.m), network.unflatten(state.v), strict=True))

    def _update(self, grouped_grads: list[list[Tensor]], **_: object) -> None:
        parameters, gradients = self.param_groups[0]["params"], grouped_grads[0]
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            new = self.rule.step(State(parameter, *self.moments[i], self.steps), gradient)
            parameters[i], self.moments[i] = new.theta, (new.m, new.v)
        self.steps += 1

    def reached(self, parameters: Iterable[Tensor]) -> State:
        """Where the last step led, without history."""
        theta, m, v = (
            torch.cat([tensor.detach().flatten() for tensor in tensors])
            for tensors in (parameters, *zip(*self.moments, strict=True))
        )
        return State(theta, m, v, self.steps)


class Higher:
    """Keep the graph of all inner steps of the window and differentiate it once; see ``engines.Engine``.

    Args:
        loop: the inner loop; only its network and rule are used, in one chunk and full precision.
    """

    together = False

    def __init__(self, loop: InnerLoop) -> None:
        self.loop = loop

    def __call__(
        self,
        state: State,
        synthetic: Synthetic,
        plan: Plan,
        real: RealBatch,
        mark: Mark = no_mark,
        lags: Lags | None = None,
    ) -> MetaGradient:
        """See ``engines.Engine``."""
        assert lags is None, "validated with the flags"
        network, rule = self.loop.network, self.loop.rule
        with torch.no_grad():
            for parameter, value in zip(network.module.parameters(), network.unflatten(state.theta), strict=True):
                parameter.copy_(value)
        fast_model = higher.patch.monkeypatch(network.module, copy_initial_weights=True)
        optimizer = _DifferentiableOptimizer(rule, network, state, fast_model)
        inputs = [synthetic.images.detach().requires_grad_()]
        if synthetic.learn_labels:
            inputs.append(synthetic.labels.detach().requires_grad_())
        soft = inputs[-1] if synthetic.learn_labels else synthetic.labels
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
        end = optimizer.reached(fast_model.parameters())
        return MetaGradient(loss.detach(), accuracy, grads, end, Cost(len(plan), len(plan), 5 * len(plan), len(plan)))


def make_engine(name: str, loop: InnerLoop, recipe: Recipe | None = None, kept: KeptFactors | None = None) -> Engine:
    """The engine called ``name``; ``lowrank`` reads ``recipe``, or uses factors that are ``kept``."""
    if name == "lowrank" and kept is not None:
        return KeptHessian(loop, kept) if kept.recipe.mode == "hessian" else LowRankSteps(loop, kept)
    if name == "lowrank":
        return LowRank(loop, recipe)
    return Higher(loop) if name == "higher" else Replay(loop)


def outer_gradient(
    engine: Engine,
    starts: Sequence[Tensor | State],
    synthetic: Synthetic,
    plans: Sequence[Plan],
    window: Window,
    real: RealBatch,
    mark: Mark = no_mark,
    lags: Lags | None = None,
) -> MetaGradient:
    """One outer step's meta-gradient (METHOD section 1), averaged over networks: prefix, then differentiated window.

    Args:
        engine: differentiates the window.
        starts: of each network its parameters (P,), if it is fresh, or its state after earlier steps, as many for all.
        synthetic: the set that they are trained on.
        plans: of each network, at least ``window.start + window.length`` inner steps.
        window: the steps to differentiate, counted from there.
        real: the batch that judges all networks.
        mark: see ``Engine``; the first phase is the ``prefix``.
        lags: see ``Engine``.
    """
    states = [start if isinstance(start, State) else State.fresh(start) for start in starts]
    if engine.together and len(states) > 1:
        together = Plan.side_by_side(plans)
        return _outer_gradient(engine, side_by_side(states), synthetic, together, window, real, mark, lags)
    results = [
        _outer_gradient(engine, state, synthetic, plan, window, real, mark, lags)
        for state, plan in zip(states, plans, strict=True)
    ]
    return results[0] if len(results) == 1 else _mean(results)


def _outer_gradient(
    engine: Engine,
    state: State,
    synthetic: Synthetic,
    plan: Plan,
    window: Window,
    real: RealBatch,
    mark: Mark,
    lags: Lags | None,
) -> MetaGradient:
    prefix, inside = plan[: window.start], plan[window.start : window.start + window.length]
    state = engine.loop.train(state, synthetic.images, synthetic.labels, prefix)
    mark("prefix")
    return engine(state, synthetic, inside, real, mark, lags)


def _mean(results: list[MetaGradient]) -> MetaGradient:
    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean(0)

    def mean_of(grads: list[Grads]) -> Grads:
        labels = [each.labels for each in grads if each.labels is not None]
        return Grads(mean([each.images for each in grads]), mean(labels) if labels else None)

    lags = [result.lags for result in results if result.lags is not None]
    return MetaGradient(
        mean([result.loss for result in results]),
        mean([result.accuracy for result in results]),
        mean_of([result.grads for result in results]),
        side_by_side([result.state for result in results]),
        results[0].cost,
        mean_of(lags) if lags else None,
    )


@dataclass
class BackpropThroughTime:
    """Chooses windows, differentiates them, and proposes the update of images and labels; see ``outer.method``.

    Args:
        engine: differentiates a window.
        sampler: of synthetic batches.
        policy: chooses windows; rank 0's is asked, and the others are told.
        set: what is learnt.
        train: real images, of which each outer step takes one batch, shared out among the ranks.
        num_classes: of theirs.
        augmentation: of real batches.
        batch_size: real images per outer step, over all ranks.
        meta_batch: networks per outer step and rank.
        peers: this rank and the others.
        seed: of every random stream.
        start_epoch: number of the run's first epoch.
        alignment: patch-wise semantic preservation, if any.
        kept: low-rank factors of the Hessian that the engine keeps across outer steps, if any.
        clip_bins: bins of window positions, each with a clip of its own; without any there is one for all.
        pool: networks that are kept across outer steps, where the policy says which of them take a window.
    """

    engine: Engine
    sampler: ClassSampler
    policy: Policy
    set: SyntheticSet
    train: Split
    num_classes: int
    augmentation: Augmentation
    batch_size: int
    meta_batch: int
    peers: Peers
    seed: int
    start_epoch: int = 0
    alignment: PatchAlignment | None = None
    kept: KeptFactors | None = None
    clip_bins: Sequence[Sequence[int]] = ()
    pool: NetworkPool | None = None
    mark: Mark = no_mark  # called at the end of each phase of an outer step; see ``outer_gradient``
    remedy = "lower --inner_lr or --window, or raise --minwindow"

    window: Window | None = None  # in force
    window_step: int = -1  # the outer step for which it was chosen
    lags: Tensor | None = None  # (M,) of the last proposal, where the policy asks: squared norms by lag

    @property
    def network(self) -> FlatNetwork:
        """The inner network."""
        return self.engine.loop.network

    @property
    def steps_per_epoch(self) -> int:
        """Outer steps of one pass over the real training images."""
        return len(self.train) // self.batch_size

    def proposals(self, epoch: int, first: int) -> Iterator[Proposal]:
        """See ``Method``."""
        batches = epoch_batches(len(self.train), self.batch_size, generator(self.seed, "real order", epoch))
        share = self.batch_size // self.peers.size
        mine = batches[first:, self.peers.rank * share : (self.peers.rank + 1) * share]
        before = (epoch - self.start_epoch) * self.steps_per_epoch + first
        for step, (batch, images) in enumerate(zip(mine, self.train.batches(mine), strict=True), before):
            window = self._window(step)
            self.mark("choice of the window")
            yield self.propose(step, window, batch, images)

    def _window(self, step: int) -> Window:
        """The window of an outer step: chosen anew every epoch, or every step where the policy wants that."""
        if self.window is None or (self.policy.every_step and self.window_step != step):
            # Kept at once: a run that stops within this step must not ask the policy for it again.
            p, chosen = self.policy, None
            if self.pool is not None and (lost := self.pool.drop_pending()) is not None:
                p.forget(lost)
            if self.peers.main:
                window = p.choose(lambda: self.probe(step))
                chosen = window, p.weight, p.drift, p.slot, p.certain
            self.window_step = step
            told = self.peers.from_main(chosen)
            assert told is not None
            self.window, p.weight, p.drift, p.slot, p.certain = told
        assert self.window is not None
        return self.window

    def probe(self, step: int) -> list[float]:
        """Gradient norms along the whole trajectory of a network of the probe's own, or of the step's first one."""
        own = ("probe", step, "network")
        key = ("network", self.peers.rank, step) if self.policy.probes_first_network else own
        theta = self.network.init(generator(self.seed, *key))
        plan = self.sampler.plan(self.policy.steps, generator(self.seed, "probe", step, "trajectory"))
        return self.engine.loop.probe_norms(theta, self.set.images, self.set.labels, plan.to(self.network.device))

    def propose(self, step: int, window: Window, batch: Tensor, images: Tensor) -> Proposal:
        """This rank's proposal for an outer step.

        Args:
            step: its number in the run.
            window: where to differentiate.
            batch: (B,) indices of this rank's real images.
            images: (B, C, H, W), these.
        """
        key, device = (self.peers.rank, step), self.network.device
        trajectories, networks = generator(self.seed, "trajectory", *key), generator(self.seed, "network", *key)
        states, ahead = self._kept(window), window._replace(start=0)
        if states is None:
            states = [State.fresh(self.network.init(networks)) for _ in range(self.meta_batch)]
            ahead = window
        plans = [self.sampler.plan(sum(ahead), trajectories).to(device) for _ in states]
        classes = self.train.labels[batch.to(device)]
        draw = self.augmentation.draw(1, len(batch), generator(self.seed, "real batch", *key)).at(0)
        real = RealBatch(images, F.one_hot(classes, self.num_classes).float(), draw.to(device))
        if self.kept is not None:
            self.kept.begin(step, self.policy.drift)
        lags = None if self.policy.certain is None else Lags(self.policy.certain, self.policy.growth)
        result = outer_gradient(self.engine, states, self.set.now, plans, ahead, real, self.mark, lags)
        grads = {name: gradient * self.policy.weight for name, gradient in self._learnt(result.grads).items()}
        self.lags = None if result.lags is None else torch.stack([*self._learnt(result.lags).values()]).sum(0)
        facts: dict[str, Any] = {"window_start": window.start, "window_length": window.length, "alignment": None}
        if self.policy.every_step:
            facts |= self.policy.state()
        if self.kept is not None:
            facts["factors_age"] = self.kept.age
        clip = bin_of(self.clip_bins, window.start)
        proposal = Proposal(grads, result.loss, result.accuracy, clip=clip, facts=facts)
        if self.alignment is not None:
            proposal = self._aligned(proposal, result.state.theta, images, classes, step)
        if self.pool is not None and self.policy.slot is not None:
            # At last: where memory runs out before, the step is taken again from the networks as they were.
            self.pool.keep(self.policy.slot, apart(result.state))
        return proposal

    def _learnt(self, grads: Grads) -> dict[str, Tensor]:
        """Those towards what is learnt, by name."""
        return {name: g for name, g in grads._asdict().items() if g is not None and name in self.set.learnt}

    def _kept(self, window: Window) -> list[State] | None:
        """Networks that have been trained up to the window's start, if there are any."""
        if self.pool is None or self.policy.slot is None:
            return None
        return self.pool.at(self.policy.slot, window.start, self.network.device)

    def _aligned(self, proposal: Proposal, theta: Tensor, real: Tensor, classes: Tensor, step: int) -> Proposal:
        """A proposal for the step's patches alone, with the pull of their alignment (METHOD section 4)."""
        assert self.alignment is not None
        trained = theta.view(-1, self.network.size)[0]
        psp = self.alignment.pull(self.network, trained, self.set.images, real, classes, step)
        grads = proposal.grads | {"images": (proposal.grads["images"] + psp.gradient) * psp.mask}
        return replace(proposal, grads=grads, mask=psp.mask, facts=proposal.facts | {"alignment": psp.loss})

    def applied(self, norm: float) -> None:
        """See ``Method``: tell the policy."""
        self.policy.learn(norm / self.policy.weight)
        if self.lags is not None:  # the device has just been waited for
            told = self.peers.gather(self.lags.tolist())
            self.policy.learn_lags([math.sqrt(fmean(squares)) for squares in zip(*told, strict=True)])
        if self.pool is not None:
            self.pool.confirm()

    def close_epoch(self, loss: float, accuracy: float) -> dict[str, Any]:
        """See ``Method``: the epoch's last window, and where the policy stood."""
        assert self.window is not None
        facts = {"window_start": self.window.start, "window_length": self.window.length, **self.policy.state()}
        if math.isfinite(loss):
            self.policy.observe(loss, accuracy)
        self.window = None
        return facts

    def curves(self) -> dict[str, list[float]]:
        """See ``Method``: the last probe, and the probabilities made from it."""
        return self.policy.curves()

    def state_dict(self) -> dict[str, Any]:
        """See ``Method``."""
        window = None if self.window is None else list(self.window)
        state = {"policy": self.policy.state_dict(), "window": window, "window_step": self.window_step}
        parts = {"kept_factors": self.kept, "pool": self.pool}
        return state | {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        self.policy.load_state_dict(state["policy"])
        self.window = None if state["window"] is None else Window(*state["window"])
        self.window_step = state["window_step"]
        if self.kept is not None:
            self.kept.load_state_dict(state["kept_factors"])
        if self.pool is not None:
            self.pool.load_state_dict(state["pool"])
