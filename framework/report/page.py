"""``main.py report``: one or several runs as a page that needs nothing but itself, and the same as Markdown."""

import base64
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from framework.distilled.set import Distilled
from framework.files import CURVES, MATCHING, PICTURE, PREFIXES, WINDOWS, folder_for, write_text
from framework.report.folder import RunFolder, name_runs
from framework.report.plots import (
    accuracy_plot,
    comparison_plot,
    matching_plot,
    prefix_plot,
    training_plot,
    truncation_plot,
)
from framework.report.tables import (
    PREFIX_COLUMNS,
    RESULT_COLUMNS,
    SELECTION,
    markdown_table,
    percent,
    prefix_rows,
    result_rows,
    rows_by_network,
    top1_rows,
)
from framework.run.interrupt import StopRequest

MOST_IMAGES = 400  # of one run; a page of thousands would not open on a phone
THEMES: dict[str, dict[str, Any]] = {
    "light": {"figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff", "grid.color": "#c8ccd4"},
    "dark": {
        "figure.facecolor": "#1b1e24", "axes.facecolor": "#1b1e24", "grid.color": "#4a505c", "text.color": "#e6e8ec",
        "axes.labelcolor": "#e6e8ec", "axes.edgecolor": "#8a909c", "xtick.color": "#c3c7cf", "ytick.color": "#c3c7cf",
        "legend.facecolor": "#1b1e24", "legend.edgecolor": "#4a505c",
    },
}  # fmt: skip


FIGURE: dict[str, Any] = {"font.size": 13.0, "legend.fontsize": 11.0}


def themed(draw: Callable[[Path], None]) -> dict[str, str]:
    """The figure that ``draw`` writes to a path, as data URIs for a light and for a dark page."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, colours in THEMES.items():
            settings: Any = {**FIGURE, **colours}
            with matplotlib.rc_context(settings):
                draw(Path(folder, name))
            result[name] = data_uri(Path(folder, name).read_bytes())
    return result


def png(pixels: Any) -> bytes:
    """Encode (H, W) or (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _label(d: Distilled, index: int) -> str:
    """The three largest class weights of an image whose labels were learnt, as shares; nothing for one-hot ones."""
    if d.hard_labels is not None:
        return ""
    weights = d.labels[index]
    share, classes = (weights / weights.sum().clamp_min(1e-12)).topk(min(3, d.num_classes))
    return ", ".join(
        f"{d.class_names[k]} {100 * s:.0f} %" for k, s in zip(classes.tolist(), share.tolist(), strict=True)
    )


def pictures(run: RunFolder) -> list[dict[str, Any]]:
    """Per class its name and its images, as data URIs with what their labels say; see ``MOST_IMAGES``."""
    if run.distilled is None:
        return []
    d = run.distilled
    shown = d.counts.part(0, max(1, min(10, MOST_IMAGES // d.num_classes))).numbers
    pixels = (d.pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(3).numpy()
    return [
        {
            "name": d.class_names[k],
            "images": [
                {"uri": data_uri(png(pixels[i])), "label": _label(d, i)}
                for i in range(d.counts.offsets[k], d.counts.offsets[k] + shown[k])
            ],
            "more": d.counts.numbers[k] - shown[k],
        }
        for k in range(min(d.num_classes, MOST_IMAGES))
    ]


def figures(run: RunFolder) -> list[dict[str, Any]]:
    """The run's plots: what each shows, and its themed images."""
    history, epochs, steps = run.history, run.epochs, run.records["step"]
    result = []
    if history:
        uris = themed(lambda path: accuracy_plot(history, path))
        result.append({"caption": "Accuracy of fresh networks trained on the set, ± one deviation", "uris": uris})
    if epochs:
        uris = themed(lambda path: truncation_plot(epochs, path))
        result.append({"caption": "Where the differentiated window lay in the inner loop", "uris": uris})
    if matches := run.matches:
        uris = themed(lambda path: matching_plot(matches, path))
        result.append({"caption": "How close students come to the experts, and with which steps", "uris": uris})
    if run.summary and (prefixes := run.summary.prefixes):
        uris = themed(lambda path: prefix_plot(prefixes, path))
        result.append({"caption": "Accuracy of fresh networks trained on the first images of each class alone, "
                                  "± one deviation", "uris": uris})  # fmt: skip
    if len(steps) > 1:
        uris = themed(lambda path: training_plot(steps, path))
        result.append({"caption": "The outer loop", "uris": uris})
    return result


def comparison(runs: dict[str, RunFolder]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that puts runs side by side: one column per run."""
    lines: dict[str, list[str]] = {}
    results = [run.summary.results if run.summary else {} for run in runs.values()]
    for kind in dict.fromkeys(key for by_row in results for key in by_row):
        rows = [by_row.get(kind) for by_row in results]
        lines[f"{kind}, top-1 %"] = [percent(row.top1, row.top1_std) if row else "–" for row in rows]
    for fact in dict.fromkeys(fact for run in runs.values() for fact in run.facts):
        lines[fact] = [run.facts.get(fact, "–") for run in runs.values()]
    return ["", *runs], [[name, *cells] for name, cells in lines.items()]


def template(name: str) -> Template:
    """A page's template, of the files beside this one; whatever is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def html(runs: dict[str, RunFolder]) -> str:
    """The page. Everything from files is escaped; no script, nothing from the network."""
    several = len(runs) > 1
    return template("page.html").render(
        runs=[
            {
                "name": name,
                "run": run,
                "rows": result_rows(run.summary.results) if run.summary else [],
                "prefixes": prefix_rows(run.summary.prefixes) if run.summary and run.summary.prefixes else [],
                "selection": SELECTION[run.config.select],
                "figures": figures(run),
                "pictures": pictures(run),
                "evaluations": [(e, top1_rows(e), rows_by_network(e)) for e in run.evaluations],
            }
            for name, run in runs.items()
        ],
        columns=RESULT_COLUMNS,
        prefix_columns=PREFIX_COLUMNS,
        comparison=comparison(runs) if several else None,
        comparison_figure=themed(lambda path: comparison_plot(runs, path)) if several else None,
        most_images=MOST_IMAGES,
        tile=100 * min(4, max((len(c["images"]) for run in runs.values() for c in pictures(run)), default=1)),
    )


def _address(path: str) -> str:
    """A path inside the angle brackets of a Markdown link: what they cannot hold, percent-encoded."""
    return "".join(c if c.isprintable() and c not in "<>" else quote(c, errors="surrogateescape") for c in path)


def markdown(runs: dict[str, RunFolder], folder: Path) -> str:
    """The same as Markdown; pictures are those in the runs' folders, addressed from ``folder``."""
    lines = ["# Distillation report", ""]
    if len(runs) > 1:
        lines += [*markdown_table(*comparison(runs)), ""]
    for name, run in runs.items():
        lines += [f"## {name}", "", "```bash", " ".join(run.words), "```", ""]
        if run.summary:
            lines += [*markdown_table(list(RESULT_COLUMNS), result_rows(run.summary.results)), ""]
            if run.summary.prefixes:
                lines += [*markdown_table(PREFIX_COLUMNS, prefix_rows(run.summary.prefixes)), ""]
            lines += [f"± is one standard deviation over networks. {SELECTION[run.config.select]}", ""]
        else:
            lines += [
                "Not finished: no final table yet; to go on, give the run's own command with --resume.",
                "",
            ]
        for file, text in (
            (CURVES, "accuracy"),
            (WINDOWS, "windows"),
            (MATCHING, "matching"),
            (PREFIXES, "prefixes"),
            (PICTURE, "distilled images"),
        ):
            if (run.path / file).exists():
                shown = _address(os.path.relpath(run.path / file, folder))
                lines += [f"![{text}](<{shown}>)", ""]
        for evaluation in run.evaluations:
            header, rows = top1_rows(evaluation)
            lines += [f"### Recipe {evaluation.recipe}, on {evaluation.dataset}", ""]
            lines += [evaluation.recipe_text, ""]
            lines += [*markdown_table(header, rows), ""]
        lines += [*markdown_table(["", ""], [list(fact) for fact in run.facts.items()]), ""]
    return "\n".join(lines)


def write(paths: list[Path], output: Path) -> list[Path]:
    """Write the page to ``output`` and the Markdown beside it; returns both paths."""
    runs = name_runs(paths)
    for run in runs.values():  # what is missing or damaged is told before anything is drawn
        _ = run.config, run.summary, run.distilled, run.history, run.evaluations
    files = {output: html(runs), output.with_suffix(".md"): markdown(runs, output.parent)}
    with folder_for(output.parent), StopRequest():  # from here on, Ctrl-C comes too late
        for path, text in files.items():
            write_text(path, text)
    return list(files)
