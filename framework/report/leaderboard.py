"""``main.py leaderboard``: sets side by side, by what their evaluations have left, one table and picture a data set."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from framework.distilled.formats import is_ours
from framework.errors import UserError, reachable
from framework.files import CONFIG, SET, folder_for, write_json, write_text
from framework.records import Judgement, Results, Row, Standing, Summary
from framework.report.folder import BESIDE, RunFolder, evaluation_folder, read_evaluations
from framework.report.page import template, themed
from framework.report.plots import leaderboard_plot
from framework.report.tables import bits, markdown_table, percent_if_known
from framework.run.interrupt import StopRequest
from framework.zoo.cards import name_of

"""What the folder of a file's evaluations is called, after the file."""
COLUMNS = ("#", "method", "per class", "recipe", "top-1 %", "n", "hard labels %", "other networks %",
           "best real images %", "bits per class", "hours", "set")  # fmt: skip
REAL = ("random", "kcentre", "herding", "el2n")
"""Rows of as many real images."""
OWN_TABLE = "its own table"
"""Instead of a recipe's name: networks were trained as the run's final table has it."""
NOTE = (
    "± is one standard deviation over n networks of the set's own architecture. Hard labels: the same images with "
    "one-hot labels. Other networks: the mean over other architectures. Best real images: the best of as many real "
    "ones, drawn or chosen. Bits per class: images, labels and preprocessing, uncompressed. Hours: of the run. "
    "*: lengths, or the snapshot, were chosen on the test set, which is optimistic. –: not evaluated, or not known."
)


# ---- what is there ---------------------------------------------------------------------------------


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / SET).exists() or (path / CONFIG).exists()


def sets_in(path: Path) -> list[Path]:
    """The sets that a path stands for: itself, or all below it, sorted.

    Below a folder, runs are found, whatever has its evaluation beside it, and safetensors files of ours.

    Raises:
        UserError: it is not there, or nothing is found.
    """
    with reachable():
        if is_run(path) or evaluation_folder(path).is_dir() or path.is_file() or name_of(path) is not None:
            return [path]
        if not path.is_dir():
            raise UserError(f"{path}: no such file or folder; check the path")
        found = list(dict.fromkeys(_below(path)))
    if not found:
        raise UserError(f"{path}: no run or set is there; give a folder that has some")
    return found


def _below(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.name.endswith(BESIDE):
            yield entry.with_name(entry.name.removesuffix(BESIDE))
        elif entry.is_dir() and is_run(entry):
            yield entry
        elif entry.is_dir() and not evaluation_folder(entry).is_dir():
            yield from _below(entry)
        elif entry.suffix == ".safetensors" and is_ours(entry):
            yield entry


# ---- rows ------------------------------------------------------------------------------------------


def standings(path: Path) -> tuple[list[Standing], list[str]]:
    """The rows of a set, and lines for people about what has none.

    A run that was not evaluated by ``main.py evaluate`` has the row of its own final table.

    Raises:
        UserError: what the set's folder holds is damaged.
    """
    run = RunFolder(path) if (path / CONFIG).exists() else None
    rows, lines = [], []
    for file, judgement in read_evaluations(evaluation_folder(path)).items():
        found = _of_judgement(path, judgement, run)
        rows += found
        if not found:
            command = shlex.join(["python", "main.py", "evaluate", str(path), "--recipe", judgement.recipe])
            lines.append(f"{file}: does not say its command, or has no row of the set; run: {command}")
    if not rows and run is not None and run.summary is not None:
        return [_of_summary(path, run, run.summary)], []
    if not rows and not lines:
        command = shlex.join(["python", "main.py", "evaluate", str(path), "--labels", "learnt", "hard"])
        lines.append(f"{path}: was not evaluated; run: {command}")
    return rows, lines


def _remade(path: Path, run: RunFolder) -> str:
    """The command that makes a run again, in the folder where it is."""
    return " ".join([*run.words, shlex.join(["--save_dir", str(path)])])


def _best_real(results: Results, suffix: str) -> tuple[float | None, str | None]:
    found = {name: results[name + suffix].top1 for name in REAL if name + suffix in results}
    return (None, None) if not found else max((accuracy, name) for name, accuracy in found.items())


def _of_judgement(path: Path, j: Judgement, run: RunFolder | None) -> list[Standing]:
    """A row of an evaluation, or one for each prefix; none where it does not say its command or has none of the set."""
    if j.origin is None:
        return []
    sizes: Sequence[int | None] = [None] if j.prefixes is None else j.prefixes
    rows = [_standing(path, j, run, size, f" {size}" if len(sizes) > 1 else "") for size in sizes]
    return [row for row in rows if (row.accuracy, row.hard, row.cross) != (None, None, None)]


def _standing(path: Path, j: Judgement, run: RunFolder | None, size: int | None, suffix: str) -> Standing:
    """The row of a set, or of its first ``size`` images per class, whose keys in the results have the suffix."""
    origin = j.origin
    assert origin is not None, "checked before"
    results = j.results.get(origin.arch, {})
    own = results.get(f"distilled{suffix}")
    hard = results.get(f"hard{suffix}") or (own if origin.hard else None)
    cross = {
        name: row.top1
        for name, others in j.results.items()
        if name != origin.arch and (row := others.get(f"distilled{suffix}")) is not None
    }
    real, real_name = _best_real(results, suffix)
    summary = None if run is None else run.summary
    return Standing(
        dataset=j.dataset,
        set=str(path) + ("" if size is None else f", the first {size} of each class"),
        method=origin.method,
        per_class=origin.per_class if size is None else size,
        spread=origin.spread,
        recipe=j.recipe,
        select=j.select,
        arch=origin.arch,
        **_accuracies(own, hard),
        cross=sum(cross.values()) / len(cross) if cross else None,
        cross_archs=list(cross),
        real=real,
        real_name=real_name,
        hours=None if summary is None or size is not None else summary.seconds / 3600,
        command=origin.command if run is None else f"{_remade(path, run)} && {origin.command}",
    )


def _accuracies(own: Row | None, hard: Row | None) -> dict[str, Any]:
    """The fields of a ``Standing`` that come from the rows with the set's own labels and with hard ones."""
    shown = own or hard
    return {
        "accuracy": own.top1 if own else None,
        "deviation": own.top1_std if own else None,
        "networks": shown.networks if shown else None,
        "hard": hard.top1 if hard else None,
        "hard_deviation": hard.top1_std if hard else None,
        "bits_per_class": shown.bits_per_class if shown else None,
    }


def _of_summary(path: Path, run: RunFolder, summary: Summary) -> Standing:
    """The row of a run by its own final table."""
    own, c = summary.results["distilled"], run.config
    real, real_name = _best_real(summary.results, "")
    return Standing(
        dataset=summary.dataset,
        set=str(path),
        method=summary.policy,
        per_class=c.mean_per_class,
        spread=None if isinstance(c.num_per_class, int) else c.per_class_text,
        recipe=OWN_TABLE,
        select=summary.select,
        arch=c.arch,
        **_accuracies(own, None if c.train_y else own),
        cross=None,
        cross_archs=[],
        real=real,
        real_name=real_name,
        hours=summary.seconds / 3600,
        command=_remade(path, run),
    )


# ---- the page --------------------------------------------------------------------------------------


def by_dataset(rows: Sequence[Standing]) -> dict[str, list[Standing]]:
    """Rows by data set, each from few images to many and from good to bad."""

    def order(row: Standing) -> tuple[int, float, str]:
        return row.per_class, -(row.accuracy or row.hard or row.cross or 0.0), row.set

    names = sorted({row.dataset for row in rows})
    return {name: sorted((row for row in rows if row.dataset == name), key=order) for name in names}


def cells(number: int, row: Standing) -> list[str]:
    """A row under ``COLUMNS``."""

    mark = "*" if row.select == "test" else ""
    return [
        str(number),
        row.method,
        row.per_class_text,
        row.recipe,
        percent_if_known(row.accuracy, row.deviation) + mark,
        "–" if row.networks is None else str(row.networks),
        percent_if_known(row.hard, row.hard_deviation),
        percent_if_known(row.cross) + (f" ({', '.join(row.cross_archs)})" if row.cross_archs else ""),
        percent_if_known(row.real) + (f" ({row.real_name})" if row.real_name else ""),
        bits(row.bits_per_class),
        "–" if row.hours is None else f"{row.hours:.3g}",
        row.set,
    ]


def picture_name(dataset: str) -> str:
    """Of a data set's picture."""
    return f"leaderboard-{re.sub(r'[^a-zA-Z0-9_.-]+', '-', dataset)}.png"


def markdown(tables: dict[str, list[Standing]]) -> str:
    """The tables as Markdown, with every row's command below its table."""
    lines = ["# Leaderboard", ""]
    for name, rows in tables.items():
        lines += [f"## {name}", "", *markdown_table(COLUMNS, [cells(i, row) for i, row in enumerate(rows, 1)]), ""]
        lines += [f"![accuracies on {name}](<{picture_name(name)}>)", "", "```bash"]
        lines += [f"{row.command}  # {i}" for i, row in enumerate(rows, 1)]
        lines += ["```", ""]
    return "\n".join([*lines, NOTE, ""])


def html(tables: dict[str, list[Standing]]) -> str:
    """The same as a page that needs nothing but itself."""
    return template("leaderboard.html").render(
        tables=[
            {
                "name": name,
                "rows": [cells(i, row) for i, row in enumerate(rows, 1)],
                "commands": [row.command for row in rows],
                "figure": themed(lambda path, rows=rows: leaderboard_plot(rows, path)),  # type: ignore[misc]
            }
            for name, rows in tables.items()
        ],
        columns=COLUMNS,
        note=NOTE,
    )


def write(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write the leaderboard of all sets that the paths stand for; returns the files' paths.

    What has no row is a line on stderr with the command that would give it one.

    Raises:
        UserError: nothing is at a path, something is damaged, or there would be no row at all.
    """
    found = [standings(path) for path in dict.fromkeys(path for given in paths for path in sets_in(given))]
    for line in (line for _, lines in found for line in lines):
        print(line, file=sys.stderr, flush=True)
    tables = by_dataset([row for rows, _ in found for row in rows])
    if not tables:
        raise UserError("no set was evaluated; run the commands above, then this one")
    page, text = html(tables), markdown(tables)
    with folder_for(folder, "--out"), StopRequest():  # from here on, Ctrl-C comes too late
        for name, rows in tables.items():
            leaderboard_plot(rows, folder / picture_name(name))
        write_text(folder / "leaderboard.html", page)
        write_text(folder / "leaderboard.md", text)
        write_json(folder / "leaderboard.json", [dataclasses.asdict(row) for rows in tables.values() for row in rows])
    names = [*map(picture_name, tables), *(f"leaderboard.{suffix}" for suffix in ("html", "md", "json"))]
    return [folder / name for name in names]
