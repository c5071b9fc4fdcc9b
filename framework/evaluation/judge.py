"""Judging training sets on the real test images: the final table of a run, and ``main.py evaluate``."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framework.data.registry import label_of
from framework.data.splits import RealData, Split
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation.baselines import BASELINES
from framework.evaluation.evaluator import Candidate, Evaluator, TrainingSet
from framework.evaluation.names import TIMM
from framework.evaluation.recipes import Recipe
from framework.inner.counts import Counts
from framework.inner.loop import InnerLoop
from framework.machine import environment
from framework.networks import registry
from framework.networks.external import build_external
from framework.networks.flat import FlatNetwork
from framework.records import Judgement, Results, Row

ALONE = {"full", "full none"}
"""Rows that have nothing to do with a set's size."""


def options(arch: str, distilled: Distilled, width: int | None) -> dict[str, Any]:
    """Settings of the network named ``arch``: the run's own with its settings, others with theirs but for ``width``."""
    others = {} if width is None else {"width": width}
    return distilled.config.network if arch == distilled.config.arch else others


def build(
    arch: str, distilled: Distilled, width: int | None, device: torch.device, flag: str = "--eval_arch"
) -> FlatNetwork:
    """The network named ``arch`` for the set's images: the run's own with its settings, others with theirs.

    Args:
        width: of the others (None: their own).
        flag: what names it.

    Raises:
        UserError: the network does not fit the images.
    """
    channels, side = distilled.images.shape[1:3]
    settings = options(arch, distilled, width)
    try:
        if arch.startswith(TIMM):
            return build_external(arch.removeprefix(TIMM), channels, side, distilled.num_classes, device)
        return FlatNetwork(registry.build(arch, channels, side, distilled.num_classes, **settings), device)
    except ValueError as error:
        raise UserError(f"{flag} {arch}: {error}; leave it out") from error


def candidates(
    images: Tensor,
    labels: Tensor,
    counts: Counts,
    real: RealData,
    recipe: Recipe,
    baselines: tuple[str, ...],
    runs: int,
    seed: int,
) -> dict[str, Candidate]:
    """The table's rows: a distilled set (N, C, H, W) and (N, K), and the baselines under the same recipe.

    A baseline has ``counts`` images of each class, as the set has.
    """
    own = TrainingSet(images, labels, recipe.sampler)
    rows = {"distilled": Candidate("distilled images", [own] * runs, recipe.lengths)}
    for name in baselines:
        rows[name] = BASELINES[name](real, counts, recipe.sampler, runs, recipe.lengths, seed)
    return rows


def judge(evaluator: Evaluator, rows: dict[str, Candidate], select_on: Split, test: Split, *key: str) -> Results:
    """Train fresh networks on every row's sets and score them on the test images.

    Args:
        evaluator: trains and scores.
        rows: of the table.
        select_on: chooses each row's training length.
        test: gives its scores.
        key: of the random streams, with each row's own.
    """
    results = {}
    for name, row in rows.items():
        length, evaluation = evaluator.select_and_test(row, select_on, test, *key, row.stream or name)
        scores = dataclasses.asdict(evaluation.summary(length))
        label = f"{len(row.sets[0].images):,} {row.name}"
        results[name] = Row(
            **scores, name=label, networks=len(row.sets), steps=length, bits_per_class=row.bits_per_class
        )
    return results


@dataclass(frozen=True)
class Trial:
    """A distilled set and its baselines, to be judged under the set's recipe.

    Args:
        recipe: of the set.
        rows: of the table.
        size: the set is the first so many images of each class of another; None: it is no part of one.
    """

    recipe: Recipe
    rows: dict[str, Candidate]
    size: int | None = None


def evaluate(
    distilled: Distilled,
    real: RealData,
    trials: list[Trial],
    nets: dict[str, FlatNetwork],
    seed: int,
    tick: Callable[[int], None],
) -> Judgement:
    """Judge the trials' rows by every network. Where there are several trials, a row's name ends in its trial's size.

    A training length is chosen on the validation images, or under a run's ``--select test`` on the test images. A
    prefix is judged under the same random choices as if its images were the whole set.
    """
    began = time.monotonic()
    results: dict[str, Results] = {arch: {} for arch in nets}
    select_on = real.test if real.val is None else real.val
    for arch, network in nets.items():
        for trial in trials:
            evaluator = Evaluator(InnerLoop(network, trial.recipe.rule), seed, tick)
            judged = judge(evaluator, trial.rows, select_on, real.test, "evaluate", trial.recipe.name, arch)
            alone = ALONE if len(trials) > 1 else judged.keys()
            results[arch] |= {name if name in alone else f"{name} {trial.size}": row for name, row in judged.items()}
    recipe = trials[-1].recipe
    return Judgement(
        source=str(distilled.source),
        dataset=label_of(real.name),
        recipe=recipe.name,
        recipe_text=recipe.text,
        lengths=list(recipe.lengths),
        select="test" if real.val is None else "val",
        seed=seed,
        results=results,
        prefixes=None if trials[0].size is None else [trial.size or 0 for trial in trials],
        seconds=time.monotonic() - began,
        **environment(next(iter(nets.values())).device),
    )
