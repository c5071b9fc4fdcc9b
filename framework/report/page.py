"""``main.py report``: one or several runs as a page that needs nothing but itself, and the same as Markdown."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from framework.files import make_folder, write_text
from framework.report.folder import MOST_IMAGES, RunFolder, data_uri, name_runs
from framework.report.plots import accuracy_plot, comparison_plot, training_plot, truncation_plot
from framework.report.tables import (
    RESULT_COLUMNS,
    SELECTION,
    _table,
    comparison,
    result_rows,
    result_rows_by_network,
    top1_rows,
)

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


def figures(run: RunFolder) -> list[dict[str, Any]]:
    """The run's plots: what each shows, and its themed images."""
    history, epochs, steps = (run.records[kind] for kind in ("evaluation", "epoch", "step"))
    result = []
    if history:
        uris = themed(lambda path: accuracy_plot(history, path))
        result.append({"caption": "Accuracy of fresh networks trained on the set, ± one deviation", "uris": uris})
    if epochs:
        uris = themed(lambda path: truncation_plot(epochs, path))
        result.append({"caption": "Where the differentiated window lay in the inner loop", "uris": uris})
    if len(steps) > 1:
        uris = themed(lambda path: training_plot(steps, path))
        result.append({"caption": "The outer loop", "uris": uris})
    return result


def html(runs: dict[str, RunFolder]) -> str:
    """The page. Everything from files is escaped; no script, nothing from the network."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    several = len(runs) > 1
    return environment.get_template("page.html").render(
        runs=[
            {
                "name": name,
                "run": run,
                "rows": result_rows(run.summary.get("results", {})),
                "selection": SELECTION[run.config.select],
                "figures": figures(run),
                "evaluations": [(e, top1_rows(e), result_rows_by_network(e)) for e in run.evaluations],
            }
            for name, run in runs.items()
        ],
        columns=RESULT_COLUMNS,
        comparison=comparison(runs) if several else None,
        comparison_figure=themed(lambda path: comparison_plot(runs, path)) if several else None,
        most_images=MOST_IMAGES,
        tile=100 * min(4, max((len(c["images"]) for run in runs.values() for c in run.pictures), default=1)),
    )


def markdown(runs: dict[str, RunFolder], folder: Path) -> str:
    """The same as Markdown; pictures are those in the runs' folders, addressed from ``folder``."""
    lines = ["# Distillation report", ""]
    if len(runs) > 1:
        lines += _table(*comparison(runs))
    for name, run in runs.items():
        lines += [f"## {name}", "", "```bash", " ".join(run.words), "```", ""]
        if run.summary:
            lines += _table(list(RESULT_COLUMNS), result_rows(run.summary["results"]))
            lines += [f"± is one standard deviation over networks. {SELECTION[run.config.select]}", ""]
        else:
            lines += ["Not finished: no final table yet; continue it with --resume.", ""]
        for file, text in (("accuracy", "accuracy"), ("truncation", "windows"), ("distilled", "distilled images")):
            if (run.path / f"{file}.png").exists():
                shown = os.path.relpath(run.path / f"{file}.png", folder)
                lines += [f"![{text}](<{shown}>)", ""]
        for evaluation in run.evaluations:
            header, rows = top1_rows(evaluation)
            lines += [f"### Recipe {evaluation['recipe']}, on {evaluation['dataset']}", ""]
            lines += [evaluation["recipe_text"], ""]
            lines += _table(header, rows)
        lines += _table(["", ""], [list(fact) for fact in run.facts.items()])
    return "\n".join(lines)


def write(paths: list[Path], output: Path) -> list[Path]:
    """Write the page to ``output`` and the Markdown beside it; returns both paths."""
    runs = name_runs(paths)
    for run in runs.values():
        _ = run.config  # a folder without a run is reported before anything is drawn
    files = {output: html(runs), output.with_suffix(".md"): markdown(runs, output.parent)}
    make_folder(output.parent)
    for path, text in files.items():
        write_text(path, text)
    return list(files)
