"""How good a training set is: train fresh networks on it from scratch and score them on real images."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.config import UserError
from framework.data import RealData, Split, StreamedImages
from framework.inner import InnerLoop, State
from framework.networks import FlatNetwork
from framework.rng import generator
from framework.synthetic import ClassSampler, Plan, UniformSampler, one_hot_labels

ECE_BINS = 15
FULL_SET_BATCH = 256  # real images per step when a network is trained on the whole real set
_CHUNK = 50  # inner steps planned and taken between two calls of ``tick``


@dataclass(frozen=True)
class Score:
    """A network on a split: fractions, and the mean cross-entropy in nats."""

    top1: float
    top5: float
    ece: float
    loss: float


@torch.no_grad()
def score(network: FlatNetwork, theta: Tensor, split: Split, batch_size: int = 1000) -> Score:
    """Score the network theta (P + R,) on every image of ``split``, in evaluation mode.

    ECE is the expected calibration error over 15 equal-width confidence bins (Guo et al. 2017,
    arXiv 1706.04599, eq. 3); top-5 is top-K where there are fewer than 5 classes.
    """
    network.module.eval()
    try:
        logits = torch.cat([network(theta, batch) for batch in split.chunks(batch_size)])
    finally:
        network.module.train()
    confidence, prediction = logits.softmax(1).max(1)
    correct = (prediction == split.labels).to(logits.dtype)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap = torch.zeros(ECE_BINS, dtype=logits.dtype, device=logits.device).index_add_(0, bins, correct - confidence)
    values = torch.stack([
        correct.mean(),
        (best == split.labels.unsqueeze(1)).any(1).to(logits.dtype).mean(),
        gap.abs().sum() / len(split),
        F.cross_entropy(logits, split.labels),
    ])  # fmt: skip
    return Score(*values.tolist())


class Sampler(Protocol):
    """Anything that plans batches; see ``framework.synthetic``."""

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """All choices of ``steps`` batches."""


@dataclass(frozen=True)
class TrainingSet:
    """A set to train on, and how batches of it are drawn."""

    images: Tensor | StreamedImages  # (N, C, H, W)
    labels: Tensor  # (N, K) class weights
    sampler: Sampler


@dataclass(frozen=True)
class Evaluation:
    """Scores of n networks at several training lengths: ``scores[network][length]``."""

    lengths: tuple[int, ...]
    scores: list[list[Score]]

    def values(self, length: int, metric: str = "top1") -> list[float]:
        """The metric of every network after ``length`` steps."""
        at = self.lengths.index(length)
        return [getattr(row[at], metric) for row in self.scores]

    def mean(self, length: int, metric: str = "top1") -> float:
        """Mean over networks."""
        return statistics.fmean(self.values(length, metric))

    def deviation(self, length: int, metric: str = "top1") -> float | None:
        """Sample standard deviation over networks; None for a single one."""
        values = self.values(length, metric)
        if not all(map(math.isfinite, values)):  # of a network that diverged; statistics.stdev would crash
            return math.nan
        return statistics.stdev(values) if len(values) > 1 else None

    def summary(self, length: int) -> dict[str, float | None]:
        """Mean and ``<metric>_std`` of every metric after ``length`` steps."""
        result: dict[str, float | None] = {}
        for field in fields(Score):
            result[field.name] = self.mean(length, field.name)
            result[f"{field.name}_std"] = self.deviation(length, field.name)
        return result

    def best_length(self) -> int:
        """The length of the highest mean accuracy, the shortest among equals."""
        return max(self.lengths, key=lambda length: (self.mean(length), -length))


@dataclass(frozen=True)
class Candidate:
    """A row of the final table: one training set per network, and the lengths to choose from."""

    name: str
    sets: list[TrainingSet]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Evaluator:
    """Trains fresh networks with the inner loop's own optimiser and scores them.

    Args:
        loop: the architecture and the inner optimiser.
        seed: of every random choice, together with each call's ``key``.
        tick: called with the number of inner steps just taken; may raise to stop.
    """

    loop: InnerLoop
    seed: int
    tick: Callable[[int], None] = lambda steps: None

    @property
    def network(self) -> FlatNetwork:
        """The architecture."""
        return self.loop.network

    def thetas(self, data: TrainingSet, lengths: tuple[int, ...], *key: str | int) -> Iterator[Tensor]:
        """One fresh network after each of ``lengths`` (increasing) steps on ``data``.

        Parameters, with running statistics after them where there is batch norm: (P + R,).
        """
        gen = generator(self.seed, "evaluation", *key)
        state = State.fresh(self.network.init(gen))
        statistics = self.network.fresh_statistics()
        plan = data.sampler.plan(0, gen)
        for length in lengths:
            while state.t < length:
                # Always drawn in whole chunks: what is drawn must not depend on which lengths are asked for.
                if not len(plan):
                    plan = data.sampler.plan(_CHUNK, gen).to(self.network.device)
                steps = min(len(plan), length - state.t)
                with self.network.tracking(statistics):
                    state = self._train(state, data, plan[:steps])
                plan = plan[steps:]
                self.tick(steps)
            yield torch.cat([state.theta, statistics])

    def _train(self, state: State, data: TrainingSet, plan: Plan) -> State:
        """Take the inner steps of ``plan``; of streamed images, only one batch at a time is on the device."""
        if isinstance(data.images, Tensor):
            return self.loop.train(state, data.images, data.labels, plan)
        batches = data.images.batches(plan.indices)
        for t, indices in enumerate(plan.indices):
            step = Plan(torch.arange(len(indices), device=indices.device).unsqueeze(0), plan[t : t + 1].draw)
            state = self.loop.train(state, next(batches), data.labels[indices], step)
        return state

    def evaluate(self, data: TrainingSet, lengths: tuple[int, ...], split: Split, *key: str | int) -> list[Score]:
        """Scores of one fresh network on ``split`` after each of ``lengths`` steps."""
        return [score(self.network, theta, split) for theta in self.thetas(data, lengths, *key)]

    def select_and_test(
        self, candidate: Candidate, select_on: Split, test: Split, *key: str | int
    ) -> tuple[int, Evaluation]:
        """Train one network per set; choose the length on one split, take the result from another.

        Returns:
            The selected length and the evaluation on ``test`` at that length alone.
        """
        lengths = candidate.lengths
        kept = [list(self.thetas(data, lengths, *key, i)) for i, data in enumerate(candidate.sets)]
        selection = Evaluation(lengths, [[score(self.network, theta, select_on) for theta in row] for row in kept])
        chosen = selection.best_length()
        at = lengths.index(chosen)
        return chosen, Evaluation((chosen,), [[score(self.network, row[at], test)] for row in kept])


def random_real(real: RealData, sampler: ClassSampler, networks: int, lengths: tuple[int, ...], seed: int) -> Candidate:
    """As many real images as the distilled set has, drawn anew for each network; same recipe.

    Raises:
        UserError: a class has fewer real images than the distilled set.
    """
    ipc, labels, sets = sampler.per_class, real.train.labels.cpu(), []
    for i in range(networks):
        gen = generator(seed, "random real images", i)
        picks = []
        for k, name in enumerate(real.class_names):
            members = (labels == k).nonzero().squeeze(1)
            if len(members) < ipc:
                raise UserError(
                    f"--baselines random: class {name} has only {len(members)} real images for --num_per_class {ipc}; "
                    "drop the baseline"
                )
            picks.append(members[torch.randperm(len(members), generator=gen)[:ipc]])
        images = real.train.batch(torch.cat(picks))
        sets.append(TrainingSet(images, one_hot_labels(real.num_classes, ipc).to(images.device), sampler))
    return Candidate("random real images (another draw for each network)", sets, lengths)


def full_real(real: RealData, sampler: ClassSampler, networks: int, lengths: tuple[int, ...], seed: int) -> Candidate:
    """The whole real training set in uniform batches of 256; same optimiser, augmentation and lengths."""
    labels = F.one_hot(real.train.labels, real.num_classes).float()
    uniform = UniformSampler(len(labels), FULL_SET_BATCH, sampler.augmentation)
    data = TrainingSet(real.train.images, labels, uniform)
    return Candidate("real images: the whole training set", [data] * networks, lengths)


BASELINES = {"random": random_real, "full": full_real}
