"""``main.py report``: one or several runs as a page that needs nothing but itself, and the same as Markdown."""

import base64
import io
import json
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from framework import report
from framework.checkpoint import make_folder, write_text
from framework.config import DEFAULTS, FLAGS, Config, UserError
from framework.crossarch import top1_rows
from framework.distilled import Distilled, config_from, load_distilled, network_options
from framework.report import percent

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


@dataclass(frozen=True)
class RunFolder:
    """What a run has left in its folder.

    Raises:
        UserError: from any property, if the folder holds no run or a damaged one.
    """

    path: Path

    @cached_property
    def config(self) -> Config:
        """The run's flags."""
        file = self.path / "config.json"
        if not file.exists():
            raise UserError(f"{self.path}: no run is here; give a folder with config.json")
        try:
            return config_from(_read_json(file))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); restore it from a copy") from error

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``; empty for a run that has not ended."""
        file = self.path / "summary.json"
        needed = ("results", "outer_steps", "best_epoch", "epochs", "select", "seconds", "processes", "device")
        return _read_json(file, *needed, "peak_memory_mb", "torch", "python") if file.exists() else {}

    @cached_property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics, by kind."""
        file = self.path / report.METRICS
        result: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": [], "evaluation": []}
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                record = json.loads(line)
                result.setdefault(record["kind"], []).append(record)
            except (ValueError, TypeError, KeyError):
                break  # cut short by a power failure; a resumed run drops it too
        return result

    @cached_property
    def distilled(self) -> Distilled | None:
        """The selected set; None before the first evaluation."""
        return load_distilled(self.path) if (self.path / "distilled.safetensors").exists() else None

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """What ``main.py evaluate`` found, one entry per recipe."""
        files = sorted((self.path / "evaluation").glob("*.json"))
        needed = ("results", "recipe", "recipe_text", "dataset", "device", "seconds")
        return [_read_json(file, *needed) for file in files]

    @property
    def words(self) -> list[str]:
        """The command line that runs it again, in a folder of its own: the program, then each flag with its values."""
        words = ["python main.py"]
        for name in FLAGS:
            value = getattr(self.config, name)
            if name != "dataset" and (value == getattr(DEFAULTS, name) or name in ("save_dir", "resume", "dry_run")):
                continue
            values = [] if value is True else [str(v) for v in (value if isinstance(value, tuple) else (value,))]
            words.append(shlex.join([f"--{name}", *values]))
        return words

    @property
    def facts(self) -> dict[str, str]:
        """What was run, and what it took."""
        c, s = self.config, self.summary
        steps = self.records["step"]
        own = {name: value for name, value in network_options(c).items() if value != getattr(DEFAULTS, name)}
        facts = {
            "data set": f"{c.dataset}{', ZCA' if c.zca else ''}",
            "method": f"{c.policy}, W {c.window}, T {c.totwindow}",
            "images per class": f"{c.num_per_class}{', learnt labels' if c.train_y else ''}",
            "network": ", ".join([c.arch, *(f"{name} {value}" for name, value in own.items())]),
            "seed": str(c.seed),
            "outer steps": f"{s['outer_steps'] if s else steps[-1]['step'] if steps else 0:,}",
        }
        if s:
            facts |= {
                "selected": f"epoch {s['best_epoch']} of {s['epochs']}, on {s['select']}",
                "time": duration(s["seconds"]),
                "peak memory": f"{s['peak_memory_mb']:,.0f} MiB",
                "device": s["device"] + (f", {s['processes']} processes" if s["processes"] > 1 else ""),
                "versions": f"torch {s['torch']}, Python {s['python']}",
            }
        return facts

    @cached_property
    def pictures(self) -> list[dict[str, Any]]:
        """Per class its name and its images, as data URIs with what their labels say; see ``MOST_IMAGES``."""
        if self.distilled is None:
            return []
        d = self.distilled
        per_class = len(d.images) // d.num_classes
        shown = max(1, min(per_class, 10, MOST_IMAGES // d.num_classes))
        pixels = (d.pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(3).numpy()
        return [
            {
                "name": d.class_names[k],
                "images": [
                    {"uri": data_uri(png(pixels[i])), "label": _label(d, i)}
                    for i in range(k * per_class, k * per_class + shown)
                ],
                "more": per_class - shown,
            }
            for k in range(min(d.num_classes, MOST_IMAGES))
        ]


def _read_json(file: Path, *needed: str) -> dict[str, Any]:
    """An object with at least the keys ``needed``.

    Raises:
        UserError: that is not what the file holds.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore it from a copy") from error
    if not isinstance(content, dict) or not content.keys() >= set(needed):
        raise UserError(f"{file}: lacks {', '.join(needed) or 'everything'}, or some of it; restore it from a copy")
    return content


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``12 min 5 s`` or ``7.2 s``."""
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.1f} s"


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
    report.save_figure(figure, path)


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
    report.save_figure(figure, path)


def figures(run: RunFolder) -> list[dict[str, Any]]:
    """The run's plots: what each shows, and its themed images."""
    history, epochs, steps = (run.records[kind] for kind in ("evaluation", "epoch", "step"))
    result = []
    if history:
        uris = themed(lambda path: report.accuracy_plot(history, path))
        result.append({"caption": "Accuracy of fresh networks trained on the set, ± one deviation", "uris": uris})
    if epochs:
        uris = themed(lambda path: report.truncation_plot(epochs, path))
        result.append({"caption": "Where the differentiated window lay in the inner loop", "uris": uris})
    if len(steps) > 1:
        uris = themed(lambda path: training_plot(steps, path))
        result.append({"caption": "The outer loop", "uris": uris})
    return result


def result_rows(results: dict[str, Any]) -> list[list[str]]:
    """Rows of a result table: what was trained on, three metrics with deviations, networks, steps."""
    return [
        [
            row["name"],
            *(percent(row[metric], row[f"{metric}_std"]) for metric in ("top1", "top5", "ece")),
            str(row["networks"]),
            str(row["steps"]),
        ]
        for row in results.values()
    ]


RESULT_COLUMNS = ("trained on", "top-1 %", "top-5 %", "ECE %", "networks", "steps")


def comparison(runs: dict[str, RunFolder]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that puts runs side by side: one column per run."""
    lines: dict[str, list[str]] = {}
    kinds = dict.fromkeys(key for run in runs.values() for key in run.summary.get("results", {}))
    for kind in kinds:
        cells = (run.summary.get("results", {}).get(kind) for run in runs.values())
        lines[f"{kind}, top-1 %"] = [percent(cell["top1"], cell["top1_std"]) if cell else "–" for cell in cells]
    for fact in dict.fromkeys(fact for run in runs.values() for fact in run.facts):
        lines[fact] = [run.facts.get(fact, "–") for run in runs.values()]
    return ["", *runs], [[name, *cells] for name, cells in lines.items()]


def name_runs(paths: list[Path]) -> dict[str, RunFolder]:
    """Runs by the shortest ends of their paths that tell them apart."""
    full = [path.resolve() for path in paths]
    if len(set(full)) < len(full):
        raise UserError("the same run is given twice; give each once")
    depth = next(n for n in range(1, 99) if len({path.parts[-n:] for path in full}) == len(full))
    return {"/".join(where.parts[-depth:]): RunFolder(path) for where, path in zip(full, paths, strict=True)}


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
                "selection": report.SELECTION[run.config.select],
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


def result_rows_by_network(evaluation: dict[str, Any]) -> list[list[str]]:
    """All metrics of an evaluation, the network's name in front."""
    return [[arch, *row] for arch, results in evaluation["results"].items() for row in result_rows(results)]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows), ""]


def markdown(runs: dict[str, RunFolder], folder: Path) -> str:
    """The same as Markdown; pictures are those in the runs' folders, addressed from ``folder``."""
    lines = ["# Distillation report", ""]
    if len(runs) > 1:
        lines += _table(*comparison(runs))
    for name, run in runs.items():
        lines += [f"## {name}", "", "```bash", " ".join(run.words), "```", ""]
        if run.summary:
            lines += _table(list(RESULT_COLUMNS), result_rows(run.summary["results"]))
            lines += [f"± is one standard deviation over networks. {report.SELECTION[run.config.select]}", ""]
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
