"""Tables of results, as rows of text and as Markdown."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from framework.files import BOARD, CannotWrite, folder_for, write_json, write_text
from framework.records import METRICS, Judgement, Results, Row, Summary

SELECTION = {
    "val": "Snapshot and length were chosen on a validation split; the test set was used once, for this table.",
    "test": "Snapshot and length were chosen ON THE TEST SET (--select test, the papers' protocol): optimistic.",
}
LENGTHS = {
    "val": "Training lengths were chosen on validation images.",
    "test": "Training lengths were chosen ON THE TEST SET: optimistic.",
}
RESULT_COLUMNS = ("trained on", "top-1 %", "top-5 %", "ECE %", "networks", "steps")
PREFIX_COLUMNS = ("first of each class", *RESULT_COLUMNS)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; whatever a cell holds, it stays one cell."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows)]


def percent(mean: float, deviation: float | None) -> str:
    """``61.2 ± 0.8`` from fractions."""
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def percent_if_known(mean: float | None, deviation: float | None = None) -> str:
    """The same, or a dash."""
    return "–" if mean is None else percent(mean, deviation)


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``12 min 5 s`` or ``7.2 s``."""
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.1f} s"


def bits(count: float | None) -> str:
    """``12,800``, or a dash where it is not known."""
    return "–" if count is None else f"{count:,.0f}"


def result_cells(row: Row) -> list[str]:
    """A row under ``RESULT_COLUMNS``."""
    shares = (percent(row.top1, row.top1_std), percent(row.top5, row.top5_std), percent(row.ece, row.ece_std))
    return [row.name, *shares, str(row.networks), str(row.steps)]


def result_rows(results: Results) -> list[list[str]]:
    """The rows of a result table."""
    return [result_cells(row) for row in results.values()]


def prefix_rows(prefixes: Results) -> list[list[str]]:
    """The rows of a boosted run's table, under ``PREFIX_COLUMNS``."""
    return [[size, *result_cells(row)] for size, row in prefixes.items()]


def result_table(summary: Summary) -> str:
    """The result of a finished run as Markdown, with the files it left."""
    header = [f"{summary.dataset}, trained on", *RESULT_COLUMNS[1:]]
    lines = markdown_table(header, result_rows(summary.results))
    if summary.prefixes is not None:
        lines += ["", *markdown_table(PREFIX_COLUMNS, prefix_rows(summary.prefixes))]
    lines += ["", f"± is one standard deviation over networks. {SELECTION[summary.select]}"]
    if summary.gave_up is not None:
        lines.append(f"Ended by --patience after epoch {summary.gave_up} of {summary.epochs}.")
    lines.append("")
    lines += [f"{what}: {path}" for what, path in summary.files.items()]
    return "\n".join(lines)


def top1_rows(judgement: Judgement) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the cross-architecture table: one row per training set, one column per network."""
    results = judgement.results
    names = {key: row.name for by_row in results.values() for key, row in by_row.items()}
    rows = [
        [name, *(percent(by_row[key].top1, by_row[key].top1_std) for by_row in results.values())]
        for key, name in names.items()
    ]
    return ["top-1 %, trained on", *results], rows


def rows_by_network(judgement: Judgement) -> list[list[str]]:
    """Every network's result rows, its name in front."""
    return [[arch, *result_cells(row)] for arch, results in judgement.results.items() for row in results.values()]


def judgement_table(judgement: Judgement) -> str:
    """Markdown: top-1 of every training set under every network, and below it all metrics."""
    j = judgement
    rows = [row for results in j.results.values() for row in results.values()]
    full = [
        [*cells, f"{row.loss:.3f}", bits(row.bits_per_class)]
        for cells, row in zip(rows_by_network(j), rows, strict=True)
    ]
    lines = markdown_table(*top1_rows(j))
    lines += ["", *markdown_table(["network", *RESULT_COLUMNS, "loss", "bits per class"], full)]
    lines += [
        "",
        f"{j.dataset} test images; recipe {j.recipe}: {j.recipe_text}. ± is one standard deviation over networks. "
        f"{LENGTHS[j.select]} Seed {j.seed}, {j.device}, torch {j.torch}, {j.seconds:.0f} s.",
    ]
    return "\n".join(lines)


def write_judgement(judgement: Judgement, folder: Path) -> list[Path]:
    """Write JSON, Markdown and TensorBoard events into a folder, named after the recipe; returns their paths.

    Raises:
        CannotWrite: disk full, folder read-only; what could be written stays.
    """
    board = folder / BOARD / judgement.file_name
    paths = [folder / f"{judgement.file_name}.json", folder / f"{judgement.file_name}.md"]
    write_json(paths[0], dataclasses.asdict(judgement))
    write_text(paths[1], judgement_table(judgement) + "\n")
    try:
        with folder_for(board):
            _write_events(judgement, board)
    except OSError as error:
        raise CannotWrite(f"cannot write {board}: {error.strerror}; the table is in {paths[1]}") from error
    return [*paths, board]


def _write_events(judgement: Judgement, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter  # late: tables need no TensorBoard

    with SummaryWriter(str(folder), purge_step=0) as board:  # an older evaluation's events go
        board.add_text("table", judgement_table(judgement))
        for arch, results in judgement.results.items():
            for key, row in results.items():
                for metric in METRICS:
                    board.add_scalar(f"{arch}/{key}/{metric}", getattr(row, metric), row.steps)
