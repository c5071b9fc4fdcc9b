"""Cross-architecture evaluation: one recipe, several networks, the distilled set beside real images."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from framework.data.splits import RealData
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation.baselines import BASELINES
from framework.evaluation.evaluator import Candidate, Evaluator, TrainingSet
from framework.evaluation.recipes import Recipe
from framework.inner.loop import InnerLoop
from framework.machine import environment
from framework.networks import registry
from framework.networks.flat import FlatNetwork


def build(arch: str, distilled: Distilled, width: int | None, device: torch.device) -> FlatNetwork:
    """The network named ``arch`` for the set's images: the run's own with its settings, others with theirs.

    Args:
        width: of the others (None: their own).

    Raises:
        UserError: the network does not fit the images.
    """
    channels, side = distilled.images.shape[1:3]
    others = {} if width is None else {"width": width}
    options = distilled.config.network if arch == distilled.config.arch else others
    try:
        return FlatNetwork(registry.build(arch, channels, side, distilled.num_classes, **options), device)
    except ValueError as error:
        raise UserError(f"--eval_arch {arch}: {error}; leave it out") from error


def candidates(
    distilled: Distilled,
    real: RealData,
    recipe: Recipe,
    baselines: tuple[str, ...],
    runs: int,
    seed: int,
    device: torch.device,
) -> dict[str, Candidate]:
    """The table's rows: the distilled set, and the baselines under the same recipe."""
    own = TrainingSet(distilled.images.to(device), distilled.labels.to(device), recipe.sampler)
    rows = {"distilled": Candidate("distilled images", [own] * runs, recipe.lengths)}
    like = replace(distilled.sampler, augmentation=recipe.sampler.augmentation)
    for name in baselines:
        drawn = BASELINES[name](real, like, runs, recipe.lengths, seed)
        if name == "random":
            drawn = replace(drawn, sets=[replace(data, sampler=recipe.sampler) for data in drawn.sets])
        rows[name] = drawn
    return rows


def evaluate(
    distilled: Distilled,
    real: RealData,
    recipe: Recipe,
    nets: dict[str, FlatNetwork],
    rows: dict[str, Candidate],
    seed: int,
    tick: Callable[[int], None],
) -> dict[str, Any]:
    """Train every network on every row and score it on the test images.

    A training length is chosen on the validation images, or under a run's ``--select test`` on the test images.

    Returns:
        What ``<recipe>.json`` holds: facts about the evaluation, and ``results[arch][row]`` with mean and
        deviation of every metric.
    """
    began = time.monotonic()
    select_on = real.test if real.val is None else real.val
    results: dict[str, dict[str, Any]] = {}
    for arch, network in nets.items():
        evaluator = Evaluator(InnerLoop(network, recipe.rule), seed, tick)
        results[arch] = {}
        for key, row in rows.items():
            length, scores = evaluator.select_and_test(row, select_on, real.test, "evaluate", recipe.name, arch, key)
            name = f"{len(row.sets[0].images):,} {row.name}"
            results[arch][key] = {"name": name, "networks": len(row.sets), "steps": length, **scores.summary(length)}
    return {
        "source": str(distilled.source),
        "dataset": real.name,
        "recipe": recipe.name,
        "recipe_text": recipe.text,
        "lengths": list(recipe.lengths),
        "select": "test" if real.val is None else "val",
        "seed": seed,
        "results": results,
        "seconds": time.monotonic() - began,
        **environment(next(iter(nets.values())).device),
    }
