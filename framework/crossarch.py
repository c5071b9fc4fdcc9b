"""Cross-architecture evaluation: one recipe, several networks, the distilled set beside real images."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from framework import networks, report
from framework.checkpoint import write_text
from framework.config import UserError
from framework.data import RealData
from framework.distilled import Distilled, network_options
from framework.evaluate import BASELINES, Candidate, Evaluator, TrainingSet
from framework.inner import InnerLoop
from framework.networks import FlatNetwork
from framework.recipes import Recipe

METRICS = ("top1", "top5", "ece", "loss")


def build(arch: str, distilled: Distilled, width: int | None, device: torch.device) -> FlatNetwork:
    """The network named ``arch`` for the set's images: the run's own with its settings, others with theirs.

    Args:
        width: of the others (None: their own).

    Raises:
        UserError: the network does not fit the images.
    """
    channels, side = distilled.images.shape[1:3]
    others = {} if width is None else {"width": width}
    options = network_options(distilled.config) if arch == distilled.config.arch else others
    try:
        return FlatNetwork(networks.build(arch, channels, side, distilled.num_classes, **options), device)
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
        **report.environment(next(iter(nets.values())).device),
    }


def top1_rows(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the cross-architecture table: one row per set, one column per network."""
    results = evaluation["results"]
    names = {key: row["name"] for by_row in results.values() for key, row in by_row.items()}
    cells = (
        [name, *(report.percent(by_row[key]["top1"], by_row[key]["top1_std"]) for by_row in results.values())]
        for key, name in names.items()
    )
    return ["top-1 %, trained on", *results], list(cells)


def table(evaluation: dict[str, Any]) -> str:
    """Markdown: top-1 of every set under every network, and below it all metrics."""
    header, rows = top1_rows(evaluation)
    lines = [
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "| network | trained on | top-1 % | top-5 % | ECE % | loss | networks | steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arch, by_row in evaluation["results"].items():
        for row in by_row.values():
            cells = [report.percent(row[m], row[f"{m}_std"]) for m in ("top1", "top5", "ece")]
            cells += [f"{row['loss']:.3f}", str(row["networks"]), str(row["steps"])]
            lines.append(f"| {arch} | {row['name']} | {' | '.join(cells)} |")
    chosen = {
        "val": "Training lengths were chosen on validation images.",
        "test": "Training lengths were chosen ON THE TEST SET: optimistic.",
    }[evaluation["select"]]
    lines += [
        "",
        f"{evaluation['dataset']} test images; recipe {evaluation['recipe']}: {evaluation['recipe_text']}. ± is one "
        f"standard deviation over networks. {chosen} Seed {evaluation['seed']}, {evaluation['device']}, "
        f"torch {evaluation['torch']}, {evaluation['seconds']:.0f} s.",
    ]
    return "\n".join(lines)


def write(evaluation: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``<recipe>.json``, ``<recipe>.md`` and TensorBoard events into a folder; returns their paths."""
    name = evaluation["recipe"]
    try:
        board = SummaryWriter(str(folder / "tensorboard" / name), purge_step=0)  # an older evaluation's events go
        board.add_text("table", table(evaluation))
        for arch, by_row in evaluation["results"].items():
            for key, row in by_row.items():
                for metric in METRICS:
                    board.add_scalar(f"{arch}/{key}/{metric}", row[metric], row["steps"])
        board.close()
    except OSError as error:
        raise UserError(f"--output {folder}: cannot write events ({error.strerror}); choose another") from error
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    write_text(paths[0], json.dumps(evaluation, indent=2) + "\n")
    write_text(paths[1], table(evaluation) + "\n")
    return [*paths, folder / "tensorboard" / name]
