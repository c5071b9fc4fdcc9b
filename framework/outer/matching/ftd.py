"""Trajectory matching: MTT, FTD, and DATM's options.

A student starts from an expert's parameters, takes N steps of plain SGD on the synthetic set, and is to end where the
expert is some epochs later (Cazenavette et al. 2022, MTT, arXiv 2203.11932, eq. 2):

    L = ||theta_N - theta*||^2 / ||theta_0 - theta*||^2

FTD (Du et al. 2023, arXiv 2211.11004) makes it with experts of flat trajectories (``experts``) and averages the images
over iterations; DATM (Guo et al. 2024, arXiv 2310.05773) chooses the epochs by difficulty and learns soft labels.

Originals keep the graph of all N steps. Here ``Replay`` takes the same gradient with the memory of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from framework.inner.optimizers import PlainSGD, State
from framework.inner.plan import Plan, ShuffledSampler
from framework.networks.flat import FlatNetwork
from framework.outer.engines.replay import Replay
from framework.outer.matching.matched import MatchedSet
from framework.outer.method import Peers, Proposal
from framework.outer.synthetic import Grads, Synthetic
from framework.rng import generator


class Experts(Protocol):
    """Trajectories of networks trained on the real set; see ``buffers.Buffer``."""

    def __len__(self) -> int:
        """How many there are."""

    def segment(self, expert: int, start: int, epochs: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) on the CPU after ``start`` epochs and ``epochs`` later, which differ."""


@dataclass(frozen=True)
class Starts:
    """The epochs from which students start: uniform in ``first`` to ``last`` - 1, the end growing as in DATM.

    Args:
        first: T-, the lowest.
        current: T, the end at the first iteration.
        last: T+, the end from iteration ``expansion`` on.
        expansion: iterations in which the end grows from ``current`` to ``last``; 0: it is ``last`` from the start.
    """

    first: int
    current: int
    last: int
    expansion: int = 0

    def end(self, iteration: int) -> int:
        """U, one more than the highest start epoch of an iteration (DATM, ``Sequential_Generation``)."""
        if not self.expansion:
            return self.last
        return min(self.last, self.current + (self.last - self.current) * iteration // self.expansion)

    def draw(self, iteration: int, gen: torch.Generator) -> int:
        """A start epoch."""
        return int(torch.randint(self.first, max(self.end(iteration), self.first + 1), (), generator=gen))


@dataclass(frozen=True)
class Matched:
    """One student's matching loss () and its gradients; that and ``step_size`` () are in the step size's precision."""

    loss: Tensor
    grads: Grads
    step_size: Tensor


def match(
    engine: Replay, start: Tensor, target: Tensor, synthetic: Synthetic, step_size: Tensor, plan: Plan
) -> Matched:
    """The matching loss of ``len(plan)`` steps of plain SGD, differentiated towards images, labels and step size.

    With u_N = 2 (theta_N - theta*) / ||theta_0 - theta*||^2, backwards over the steps: the step size gets
    -<u_{t+1}, g_t>, images and labels the mixed partials' products with w_t = -a u_{t+1}, and
    u_t = u_{t+1} + H_t w_t. TESLA (Cui et al. 2023, arXiv 2211.10586) leaves H_t out, as ``LowRank`` of rank 0 does.

    Args:
        engine: whose loop has the rule ``PlainSGD``.
        start, target: theta_0 and theta* (P,), which differ.
        synthetic: the set.
        step_size: a (), above 0.
        plan: the student's batches.
    """
    exact = step_size.dtype
    distance = (start - target).to(exact).square().sum()
    trail = engine.forward(PlainSGD.start(start, step_size), synthetic, plan)
    gap = trail.state.theta - target
    loss = gap.to(exact).square().sum() / distance
    terminal = State((2 * gap.to(exact) / distance).to(gap.dtype), trail.state.m, torch.zeros_like(step_size))
    grads, first = engine.back(trail, terminal, synthetic, plan)
    return Matched(loss, grads, first.v)


@dataclass
class TrajectoryMatching:
    """Proposes the update of images, step size and soft labels; see ``method.Method``.

    It has no state: expert, start epoch, batches and augmentation are drawn from streams named by the iteration.

    Args:
        engine: see ``match``.
        sampler: of the student's batches.
        set: what is learnt.
        experts: all of them are used once before any is used again, shared out among the ranks.
        starts: start epochs.
        span: expert epochs between start and target.
        steps: N, of the student.
        threshold: iterations of a larger loss change nothing (DATM).
        iterations: of what the run calls an epoch.
        peers: this rank and the others.
        seed: of every random stream.
    """

    engine: Replay
    sampler: ShuffledSampler
    set: MatchedSet
    experts: Experts
    starts: Starts
    span: int
    steps: int
    threshold: float
    iterations: int
    peers: Peers
    seed: int

    remedy = (
        "lower --lr_img, --lr_lr or --lr_teacher, or look whether the experts' loss still falls at every epoch up to "
        "--max_start_epoch + --expert_epochs"
    )

    @property
    def network(self) -> FlatNetwork:
        """The student."""
        return self.engine.loop.network

    @property
    def steps_per_epoch(self) -> int:
        """See ``Method``: there are no epochs of the real set, so as many iterations as lie between evaluations."""
        return self.iterations

    def proposals(self, epoch: int, first: int) -> Iterator[Proposal]:
        """See ``Method``."""
        for i in range(first, self.iterations):
            yield self._propose(epoch * self.iterations + i)

    def _propose(self, iteration: int) -> Proposal:
        """This rank's proposal."""
        gen = generator(self.seed, "student", self.peers.rank, iteration)
        expert, epoch = self._expert(iteration), self.starts.draw(iteration, gen)
        ends = self.experts.segment(expert, epoch, self.span)
        start, target = (theta.to(self.network.device) for theta in ends)
        plan = self.sampler.plan(self.steps, gen).to(self.network.device)
        matched = match(self.engine, start, target, self.set.now, self.set.step_size.detach(), plan)
        grads = {"images": matched.grads.images, "step_size": matched.step_size}
        if matched.grads.labels is not None:
            grads["labels"] = self.set.towards_logits(matched.grads.labels)
        facts = {"expert": expert, "start_epoch": epoch, "step_size": self.set.step_size.item()}
        return Proposal(grads, matched.loss, limit=self.threshold, facts=facts)

    def _expert(self, iteration: int) -> int:
        """The expert whose turn it is on this rank: each pass over all of them has an order of its own."""
        turn, place = divmod(iteration * self.peers.size + self.peers.rank, len(self.experts))
        order = torch.randperm(len(self.experts), generator=generator(self.seed, "experts", turn))
        return int(order[place])

    def applied(self, norm: float) -> None:
        """See ``Method``: nothing depends on it."""

    def close_epoch(self, loss: float, accuracy: float) -> dict[str, Any]:
        """See ``Method``."""
        return {"step_size": self.set.step_size.item()}

    def curves(self) -> dict[str, list[float]]:
        """See ``Method``: none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See ``Method``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        if state:
            raise ValueError("of another method")
