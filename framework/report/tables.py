"""Tables of results as Markdown."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from framework.errors import UserError
from framework.files import write_text
from framework.report.folder import RunFolder


def percent(mean: float, deviation: float | None) -> str:
    """``61.2 ± 0.8`` from fractions."""
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


SELECTION = {
    "val": "Snapshot and length were chosen on a validation split; the test set was used once, for this table.",
    "test": "Snapshot and length were chosen ON THE TEST SET (--select test, the papers' protocol): optimistic.",
}


def result_table(summary: dict[str, Any]) -> str:
    """The result of a finished run as a Markdown table, with the files it left."""
    lines = [
        f"| {summary['dataset']}, trained on | top-1 % | top-5 % | ECE % | networks | steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary["results"].values():
        cells = [percent(row[m], row[f"{m}_std"]) for m in ("top1", "top5", "ece")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['networks']} | {row['steps']} |")
    lines += ["", f"± is one standard deviation over networks. {SELECTION[summary['select']]}", ""]
    lines += [f"{what}: {path}" for what, path in summary["files"].items()]
    return "\n".join(lines)


METRICS = ("top1", "top5", "ece", "loss")


def top1_rows(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the cross-architecture table: one row per set, one column per network."""
    results = evaluation["results"]
    names = {key: row["name"] for by_row in results.values() for key, row in by_row.items()}
    cells = (
        [name, *(percent(by_row[key]["top1"], by_row[key]["top1_std"]) for by_row in results.values())]
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
            cells = [percent(row[m], row[f"{m}_std"]) for m in ("top1", "top5", "ece")]
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


def result_rows_by_network(evaluation: dict[str, Any]) -> list[list[str]]:
    """All metrics of an evaluation, the network's name in front."""
    return [[arch, *row] for arch, results in evaluation["results"].items() for row in result_rows(results)]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows), ""]
