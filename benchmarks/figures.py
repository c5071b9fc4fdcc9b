"""Draw the figures of README and docs: the method, the zoo, accuracy and images of a run. See scripts/figures.sh."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from common import Parser, run
from framework import load_distilled
from framework.errors import UserError
from framework.files import make_folder
from framework.report.folder import RunFolder
from framework.report.plots import save_figure
from framework.report.tables import percent
from framework.zoo import cards

GREY, BLUE, ORANGE, GREEN = "#9aa1ab", "#1f77b4", "#ff7f0e", "#2ca02c"


def _box(ax: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, 0.9, boxstyle="round,pad=0.05", facecolor=colour, alpha=0.25, lw=0))
    ax.add_patch(FancyBboxPatch((x, y), width, 0.9, boxstyle="round,pad=0.05", fill=False, edgecolor=colour))
    ax.text(x + width / 2, y + 0.45, text, ha="center", va="center", fontsize=10)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    style = f"arc3,rad={bend}"
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, connectionstyle=style))


def method(path: Path) -> None:
    """The bilevel loop above, and below it how AT-BPTT's stages choose the window from gradient norms."""
    figure = Figure(figsize=(10, 5.6))
    top, bottom = figure.subplots(2, 1, height_ratios=[1.25, 1])
    top.set_xlim(0, 16)
    top.set_ylim(-0.4, 4.3)
    top.axis("off")
    for i, name in enumerate(
        ("$\\theta_0$", "$\\theta_1$", "…", "$\\theta_N$", "$\\theta_{N+1}$", "…", "$\\theta_{N+M}$")
    ):
        inside = 3 <= i <= 6
        _box(top, 0.4 + 1.8 * i, 1.5, 1.1, name, ORANGE if inside else GREY)
        if i:
            _arrow(top, (1.6 + 1.8 * (i - 1), 1.95), (0.3 + 1.8 * i, 1.95), ORANGE if i > 3 else GREY)
    _box(top, 13.2, 1.5, 2.4, "loss on a\nreal batch", GREEN)
    _arrow(top, (12.4, 1.95), (13.1, 1.95), GREEN)
    _box(top, 4.3, 3.3, 5.0, "synthetic images and labels S", BLUE)
    for x in (2.3, 6.6, 10.2):
        _arrow(top, (6.8, 3.25), (x, 2.5), BLUE)
    _arrow(top, (14.4, 2.5), (9.5, 3.75), GREEN, bend=0.25)
    top.text(12.9, 3.85, "meta-gradient: clip, Adam", color=GREEN, fontsize=10)
    top.text(2.7, 1.0, "prefix: N steps, not differentiated", ha="center", color="#5c6470", fontsize=10)
    top.text(9.1, 1.0, "window: M steps, differentiated backwards", ha="center", color=ORANGE, fontsize=10)
    top.text(
        9.1, 0.3, "AT-BPTT chooses N and M by stage; M is longer where gradients vary more", ha="center", fontsize=10
    )

    t = np.arange(40)
    norms = 0.4 + 2.6 * np.exp(-t / 9)
    for sign, name, colour in (
        (1, "early: exp(+n / τ)", BLUE),
        (0, "middle: uniform", GREY),
        (-1, "late: exp(−n / τ)", GREEN),
    ):
        weights = np.exp(sign * norms)
        bottom.plot(t, weights / weights.sum(), color=colour, label=name)
    bottom.set_xlabel("inner step t")
    bottom.set_ylabel("P(window at t)")
    bottom.set_yticks([])
    norm = bottom.twinx()
    norm.plot(t, norms, "--", color="#1c2026", linewidth=1, label="gradient norm n")
    norm.set_yticks([])
    norm.set_ylabel("n")
    lines = [*bottom.get_lines(), *norm.get_lines()]
    bottom.legend(
        lines, [str(line.get_label()) for line in lines], loc="upper center", ncols=4, frameon=False, fontsize=9
    )
    bottom.set_ylim(0, 0.115)
    for ax in (bottom, norm):
        ax.spines["top"].set_visible(False)
    save_figure(figure, path)


def accuracy(folder: RunFolder, path: Path) -> None:
    """Selection accuracy over outer steps at the best length, of each form of the set, and the final table as lines."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    assert folder.summary is not None
    results, steps = folder.summary.results, [record["step"] for record in folder.records["evaluation"]]
    name = results["distilled"].name.split(" (")[0]
    for form, colour in zip(dict.fromkeys(entry.form for entry in folder.history), (BLUE, ORANGE), strict=False):
        own = [(step, entry.best) for step, entry in zip(steps, folder.history, strict=True) if entry.form == form]
        at = [step for step, _ in own]
        mean = 100 * np.array([scores.top1 for _, scores in own])
        deviation = 100 * np.array([scores.top1_std or 0.0 for _, scores in own])
        ax.plot(at, mean, marker="o", color=colour, label=f"{name}{form and f', {form}'} (selection)")
        ax.fill_between(at, mean - deviation, mean + deviation, color=colour, alpha=0.2)
    for (key, row), colour in zip(results.items(), (BLUE, GREY, GREEN), strict=False):
        label = f"{row.name.split(' (')[0]}: {percent(row.top1, row.top1_std)} (test)"
        ax.axhline(100 * row.top1, color=colour, linestyle=":" if key == "distilled" else "--", label=label)
    ax.set_xlabel("outer step")
    ax.set_ylabel("accuracy (%)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=9, frameon=False)
    ax.grid(alpha=0.3)
    save_figure(figure, path)


def _show(axes: Iterable[Axes], pictures: Tensor) -> None:
    """Pictures (N, H, W, C) in as many axes."""
    for ax, picture in zip(axes, pictures, strict=True):
        ax.imshow(picture.expand(-1, -1, 3).numpy(), interpolation="nearest")
        ax.axis("off")


def zoo(path: Path) -> None:
    """The sets of one image per class, a row each, with their accuracy on real test images."""
    found = {name: card for name in cards.names() if (card := cards.read_card(name)).per_class == 1}
    figure = Figure(figsize=(11.2, 0.93 * len(found)))
    for part, (name, card) in zip(figure.subfigures(len(found), 1, squeeze=False).flat, found.items(), strict=True):
        own = card.scores[card.recipe]
        axes = part.subplots(1, card.images, gridspec_kw={"left": 0.2, "right": 1, "bottom": 0.02, "top": 0.98})
        _show(axes.flat, load_distilled(f"{cards.PREFIX}{name}").pictures.permute(0, 2, 3, 1))
        assert own.random is not None
        lines = [f"zoo:{name}", f"test accuracy {percent(own.accuracy, own.deviation)} %",
                 f"random real images {percent(own.random, own.random_deviation)} %"]  # fmt: skip
        part.text(0.005, 0.5, "\n".join(lines), va="center", fontsize=8.5)
    save_figure(figure, path)


def images(folder: RunFolder, path: Path) -> None:
    """The first images of the first classes, one column per class."""
    distilled = folder.distilled
    assert distilled is not None
    by_class = distilled.pictures.unflatten(0, (distilled.num_classes, -1))[:10, :5].permute(1, 0, 3, 4, 2)
    rows, columns = by_class.shape[:2]
    figure = Figure(figsize=(columns, rows + 0.3))
    _show(figure.subplots(rows, columns, squeeze=False).flat, by_class.flatten(0, 1))
    for ax, name in zip(figure.axes, distilled.class_names, strict=False):
        ax.set_title(name, fontsize=10, parse_math=False)
    save_figure(figure, path)


def main() -> None:
    """Draw everything for one finished run."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_out(Path("Figure"))
    a = parser.parse_args()
    folder = RunFolder(a.run)
    name = folder.config.dataset_label
    if not folder.summary or folder.distilled is None:
        raise UserError(f"{a.run}: not a finished run; continue it with main.py --resume")
    make_folder(a.out, "--out")
    figures: dict[str, Callable[[Path], None]] = {
        "method": method,
        "zoo": zoo,
        f"accuracy_{name}": partial(accuracy, folder),
        f"distilled_{name}": partial(images, folder),
    }
    for picture, draw in figures.items():
        path = a.out / f"{picture}.png"
        draw(path)
        print(path)


if __name__ == "__main__":
    run(main)
