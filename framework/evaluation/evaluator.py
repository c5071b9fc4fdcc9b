"""How good a training set is: train fresh networks on it from scratch and score them on real images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.data.splits import Split, StreamedImages
from framework.evaluation.scores import Evaluation, Score, score
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import State
from framework.inner.plan import Plan, Sampler
from framework.networks.flat import FlatNetwork
from framework.rng import generator

_CHUNK = 50  # inner steps planned and taken between two calls of ``tick``


@dataclass(frozen=True)
class TrainingSet:
    """A set to train on, and how batches of it are drawn."""

    images: Tensor | StreamedImages  # (N, C, H, W)
    labels: Tensor  # (N, K) class weights
    sampler: Sampler


@dataclass(frozen=True)
class Candidate:
    """A row of the final table: one training set per network, and the lengths to choose from."""

    name: str
    sets: list[TrainingSet]
    lengths: tuple[int, ...]
    bits_per_class: float | None = None
    stream: str | None = None
    """Of its random choices; rows of the same stream start from the same networks (None: of the row's own name)."""


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
