"""Plots of a run, for its folder and for the report page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from framework.files import write_atomically
from framework.records import Entry, Results, Standing
from framework.report.folder import EpochPoint, MatchPoint, RunFolder

T = TypeVar("T")


COLUMNS = 1200  # epochs that a plot shows at most: more than its pixels are side by side


def accuracy_plot(history: Sequence[Entry], path: Path) -> None:
    """Plot accuracy over epochs, one curve per form of the set and training length, one deviation as a band."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    for form in dict.fromkeys(entry.form for entry in history):
        shown = _spread([entry for entry in history if entry.form == form])
        epochs = [entry.epoch for entry in shown]
        for i, length in enumerate(shown[0].lengths):
            mean = 100 * np.array([entry.scores[i].top1 for entry in shown])
            deviation = 100 * np.array([entry.scores[i].top1_std or 0.0 for entry in shown])
            ax.plot(epochs, mean, marker=".", label=f"{length} steps{form and f', {form} images'}")
            ax.fill_between(epochs, mean - deviation, mean + deviation, alpha=0.2)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{history[0].split} accuracy (%)")
    ax.legend(title="trained for")
    ax.grid(alpha=0.3)
    save_figure(figure, path)


def _spread(points: Sequence[T]) -> list[T]:
    """At most ``COLUMNS`` of the points, evenly spread, the last among them."""
    every = -(-len(points) // COLUMNS)
    return list(points[::-1][::every][::-1]) if every > 1 else list(points)


def truncation_plot(epochs: Sequence[EpochPoint], path: Path) -> None:
    """Plot the windows of the epochs as bars, coloured by stage, beside the accuracy on real batches."""
    figure = Figure(figsize=(8, 5))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    shown = _spread(epochs)
    wide = 400 / max(len(shown), 1)  # points of the axes' width, about
    for i, stage in enumerate(dict.fromkeys(point.stage for point in shown)):
        here = [point for point in shown if point.stage == stage]
        x, start = np.array([point.epoch for point in here]), np.array([point.start for point in here])
        colour = STAGE_COLOURS.get(stage, f"C{i + len(STAGE_COLOURS)}")
        ends = start + np.array([point.length for point in here])
        top.vlines(x, start, ends, colors=colour, alpha=0.6, linewidth=max(wide, 0.5), label=stage or "window")
        bottom.plot(x, [100 * point.accuracy for point in here], ".", markersize=3, color=colour)
    top.set_ylabel("inner steps differentiated")
    if shown:
        top.legend(loc="upper left", title="stage" if any(point.stage for point in shown) else None)
    bottom.set_ylabel("accuracy on\nreal batches (%)")
    bottom.set_xlabel("epoch")
    bottom.grid(alpha=0.3)
    save_figure(figure, path)


def matching_plot(points: Sequence[MatchPoint], path: Path) -> None:
    """Plot the matching loss of trajectory matching by start epoch, and the step size, over iterations."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[2, 1, 2])
    shown = _spread(points)
    steps, starts = [point.step for point in shown], [point.start_epoch for point in shown]
    dots = top.scatter(steps, [point.loss for point in shown], c=starts, s=6, cmap="viridis")
    figure.colorbar(dots, ax=top, label="start epoch")
    top.axhline(1, color="tab:gray", linewidth=0.8, linestyle="--")  # of a student that stays where it is
    top.set_ylabel("matching loss")
    middle.sharex(top)
    middle.plot(steps, [point.step_size for point in shown], linewidth=1.2)
    middle.set_ylabel("step size")
    middle.set_xlabel("iteration")
    late = [point for point in points if 2 * point.step > points[-1].step]
    by_start = {
        start: [p.loss for p in late if p.start_epoch == start] for start in sorted({p.start_epoch for p in late})
    }
    bottom.plot(list(by_start), [np.mean(losses) for losses in by_start.values()], marker=".")
    bottom.set_xlabel("start epoch")
    bottom.set_ylabel("mean matching loss\nin the second half")
    for ax in (top, middle, bottom):
        ax.grid(alpha=0.3)
    save_figure(figure, path)


def prefix_plot(prefixes: Results, path: Path) -> None:
    """Plot the test accuracy of networks trained on each prefix of a boosted set over its images per class."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    sizes, rows = [int(size) for size in prefixes], list(prefixes.values())
    deviations = [100 * (row.top1_std or 0.0) for row in rows]
    ax.errorbar(sizes, [100 * row.top1 for row in rows], deviations, marker="o", capsize=3)
    ax.set_xticks(sizes)
    ax.set_xlabel("first images of each class")
    ax.set_ylabel("test accuracy (%)")
    ax.grid(alpha=0.3)
    save_figure(figure, path)


def leaderboard_plot(rows: Sequence[Standing], path: Path) -> None:
    """Plot the accuracies of sets as bars, from top to bottom as in the table, with those of hard labels and others."""
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(rows)))
    ax = figure.subplots()
    places = np.arange(len(rows))
    accuracies = [100 * (row.accuracy or 0.0) for row in rows]
    ax.barh(places, accuracies, xerr=[100 * (row.deviation or 0.0) for row in rows], capsize=2, color="tab:blue",
            alpha=0.55, ecolor="tab:gray", label="the set's own labels")  # fmt: skip
    for field, marker, colour, label in (
        ("hard", "D", "tab:orange", "hard labels"),
        ("cross", "x", "tab:green", "other networks"),
        ("real", "|", "tab:red", "best real images"),
    ):
        values = [np.nan if getattr(row, field) is None else 100 * getattr(row, field) for row in rows]
        if np.isfinite(values).any():
            ax.plot(values, places, marker, color=colour, markersize=7, markeredgewidth=2, label=label)
    ax.set_yticks(places, [f"{i}: {row.method}, {row.per_class_text} per class" for i, row in enumerate(rows, 1)])
    ax.invert_yaxis()
    ax.set_xlabel("test accuracy (%)")
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.32 * len(rows) + 0.5)), ncols=4, frameon=False)
    save_figure(figure, path)


STAGE_COLOURS = {"early": "tab:blue", "middle": "tab:orange", "late": "tab:green", None: "tab:gray"}
"""Of AT-BPTT's stages; others take the next colours of the cycle."""


def probe_figure(curves: dict[str, list[float]], start: int, length: int) -> Figure:
    """Each of the curves over the inner steps, with the window of ``length`` steps from ``start`` shaded."""
    figure = Figure(figsize=(7, 2 * len(curves)))
    FigureCanvasAgg(figure)
    for ax, (name, values) in zip(figure.subplots(len(curves), 1, sharex=True), curves.items(), strict=True):
        ax.plot(values)
        ax.axvspan(start, start + length, alpha=0.2)
        ax.set_ylabel(name)
    ax.set_xlabel("inner step")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120, bbox_inches="tight"))


def training_plot(steps: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the outer loss and the meta-gradient's norm over outer steps."""
    figure = Figure(figsize=(7, 4))
    top, bottom = figure.subplots(2, 1, sharex=True)
    shown = _spread(steps)
    x = [record["step"] for record in shown]
    for ax, key, name in (
        (top, "loss", "outer loss"),
        (bottom, "meta_gradient_norm", "meta-gradient\nnorm"),
    ):
        ax.plot(x, [record.get(key) for record in shown], linewidth=1.2)
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
    bottom.set_yscale("log")
    bottom.set_xlabel("outer step")
    save_figure(figure, path)


def comparison_plot(runs: dict[str, RunFolder], path: Path) -> None:
    """Plot the accuracy of every run over its outer steps."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    for name, run in runs.items():
        accuracies = [100 * accuracy for accuracy in run.accuracies.values()]
        ax.plot(list(run.accuracies), accuracies, marker=".", label=" " + name.replace("$", r"\$"))
    ax.set_xlabel("outer step")
    ax.set_ylabel("accuracy at selection (%)")
    ax.legend()
    ax.grid(alpha=0.3)
    save_figure(figure, path)
