"""Plots of a run, for its folder and for the report page."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from framework.files import write_atomically
from framework.outer.policies.policy import Window
from framework.report.folder import RunFolder


def accuracy_plot(history: list[dict[str, Any]], path: Path) -> None:
    """Plot accuracy over epochs, one curve per training length, with one deviation as a band."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    epochs = [entry["epoch"] for entry in history]
    for i, length in enumerate(history[0]["lengths"]):
        mean = torch.tensor([entry["scores"][i]["top1"] for entry in history]) * 100
        deviation = torch.tensor([entry["scores"][i]["top1_std"] or 0.0 for entry in history]) * 100
        ax.plot(epochs, mean, marker=".", label=f"{length} steps")
        ax.fill_between(epochs, mean - deviation, mean + deviation, alpha=0.2)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{history[0]['split']} accuracy (%)")
    ax.legend(title="trained for")
    ax.grid(alpha=0.3)
    save_figure(figure, path)


STAGE_COLOURS = {"early": "tab:blue", "middle": "tab:orange", "late": "tab:green", None: "tab:gray"}


def truncation_plot(epochs: list[dict[str, Any]], path: Path) -> None:
    """Plot the window of every epoch as a band, coloured by stage, beside the accuracy on real batches."""
    figure = Figure(figsize=(8, 5))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    x = np.array([entry["epoch"] for entry in epochs])
    start = np.array([entry["window_start"] for entry in epochs])
    length = np.array([entry["window_length"] for entry in epochs])
    accuracy = 100 * np.array([entry["accuracy"] for entry in epochs], dtype=float)  # None, of no step, becomes NaN
    stages = [entry.get("stage") for entry in epochs]
    for stage in dict.fromkeys(stages):
        at = np.array([other == stage for other in stages])
        colour = STAGE_COLOURS[stage]
        top.bar(x[at], length[at], width=1.0, bottom=start[at], color=colour, alpha=0.6, label=stage or "window")
        bottom.plot(x[at], accuracy[at], ".", markersize=3, color=colour)
    top.set_ylabel("inner steps differentiated")
    top.legend(loc="upper left", title="stage" if any(stages) else None)
    bottom.set_ylabel("accuracy on\nreal batches (%)")
    bottom.set_xlabel("epoch")
    bottom.grid(alpha=0.3)
    save_figure(figure, path)


def probe_figure(curves: dict[str, list[float]], window: Window) -> Figure:
    """Each of the curves over the inner steps, with the window that was chosen shaded."""
    figure = Figure(figsize=(7, 2 * len(curves)))
    FigureCanvasAgg(figure)
    for ax, (name, values) in zip(figure.subplots(len(curves), 1, sharex=True), curves.items(), strict=True):
        ax.plot(values)
        ax.axvspan(window.start, window.start + window.length, alpha=0.2)
        ax.set_ylabel(name)
    ax.set_xlabel("inner step")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120, bbox_inches="tight"))


def training_plot(steps: list[dict[str, Any]], path: Path) -> None:
    """Plot the outer loss and the meta-gradient's norm over outer steps."""
    figure = Figure(figsize=(7, 4))
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = [record["step"] for record in steps]
    for ax, key, name in (
        (top, "loss", "loss on real\nbatches"),
        (bottom, "meta_gradient_norm", "meta-gradient\nnorm"),
    ):
        ax.plot(x, [record[key] for record in steps], linewidth=1.2)
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
        history = run.records["evaluation"]
        ax.plot(
            [r["step"] for r in history],
            [100 * r["accuracy"] for r in history],
            marker=".",
            label=" " + name.replace("$", r"\$"),
        )
    ax.set_xlabel("outer step")
    ax.set_ylabel("accuracy at selection (%)")
    ax.legend()
    ax.grid(alpha=0.3)
    save_figure(figure, path)
