"""The one reader of what a run leaves in its folder."""

import json
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from framework.config.common import Common
from framework.config.distilling import Distilling
from framework.config.registry import read_config
from framework.errors import UserError, printable
from framework.files import CONFIG, EVALUATION, METRICS, SET, SUMMARY, read_json
from framework.records import Entry, Judgement, Summary, read_record
from framework.report.tables import duration
from framework.zoo.cards import stand_in

if TYPE_CHECKING:
    from framework.distilled.set import Distilled

BESIDE = ".evaluation"  # ends the name of what lies beside a set's file


def evaluation_folder(path: Path) -> Path:
    """Where ``main.py evaluate`` writes by default what it finds of a set on the data that it was made from."""
    # A run's folder is known by its set: of an image folder, every folder inside is a class.
    return path / EVALUATION if (path / SET).exists() else Path(f"{stand_in(path)}{BESIDE}")


def parse_metric(line: bytes) -> dict[str, Any] | None:
    """A line of the metrics, None where it is damaged: every record has a ``kind`` and the outer ``step``."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(record, dict) and isinstance(record.get("kind"), str) and isinstance(record.get("step"), int)
    return record if sound else None


def read_metrics(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a ``metrics.jsonl`` by kind, in their order, but damaged ones; none where there is no file."""
    result: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_bytes().splitlines() if file.exists() else []:
        if (record := parse_metric(line)) is not None:
            result.setdefault(record["kind"], []).append(record)
    return result


def read_evaluations(folder: Path) -> dict[Path, Judgement]:
    """What ``main.py evaluate`` has left in a folder, by file.

    Raises:
        UserError: a file is damaged.
    """
    return {file: read_record(Judgement, read_json(file), file) for file in sorted(folder.glob("*.json"))}


class EpochPoint(NamedTuple):
    """What plots show of an epoch."""

    epoch: int
    start: int  # of the window, in inner steps
    length: int
    accuracy: float  # on real batches, a fraction; NaN without any
    stage: str | None

    @classmethod
    def of(cls, record: dict[str, Any]) -> "EpochPoint | None":
        """From a record of the kind ``epoch``; None where it has no window, as other methods' have not."""
        epoch, start, length, accuracy, stage = (
            record.get(name) for name in ("epoch", "window_start", "window_length", "accuracy", "stage")
        )
        if not (isinstance(epoch, int) and isinstance(start, int) and isinstance(length, int)):
            return None
        accuracy = accuracy if isinstance(accuracy, float | int) else math.nan
        return cls(epoch, start, length, accuracy, stage if isinstance(stage, str) else None)


class MatchPoint(NamedTuple):
    """What plots show of an iteration of trajectory matching."""

    step: int
    start_epoch: int
    loss: float
    step_size: float

    @classmethod
    def of(cls, record: dict[str, Any]) -> "MatchPoint | None":
        """From a record of the kind ``step``; None where it is another method's, or has changed nothing."""
        step, start, loss, size = (record.get(name) for name in ("step", "start_epoch", "loss", "step_size"))
        if not (isinstance(step, int) and isinstance(start, int)):
            return None
        if not (isinstance(loss, float | int) and isinstance(size, float | int)):
            return None
        return cls(step, start, loss, size)


class WindowPoint(NamedTuple):
    """An outer step of back-propagation through time that was recorded."""

    step: int
    block: int  # which was learnt; 1 in a run that is not boosted
    start: int  # of the window, in inner steps
    norm: float  # of the meta-gradient
    clip_factor: float  # what it was multiplied by, at most 1
    seconds: float  # of the whole step; NaN where they were not recorded

    @classmethod
    def of(cls, record: dict[str, Any]) -> "WindowPoint | None":
        """From a record of the kind ``step``; None where it is another method's."""
        start, norm, factor = (record.get(name) for name in ("window_start", "meta_gradient_norm", "clip_factor"))
        if not (isinstance(start, int) and isinstance(norm, float | int) and isinstance(factor, float | int)):
            return None
        seconds = record.get("seconds_per_step")
        return cls(
            record["step"], record.get("block", 1), start, norm, factor, math.nan if seconds is None else seconds
        )


@dataclass(frozen=True)
class RunFolder:
    """What a run has left in its folder.

    Raises:
        UserError: from any property, if the folder holds no run or a damaged one.
    """

    path: Path

    @cached_property
    def config(self) -> Distilling:
        """The run's flags."""
        file = self.path / CONFIG
        if not file.exists():
            raise UserError(f"{self.path}: no run is here; give a folder with {CONFIG}")
        return read_config(read_json(file), file)

    @cached_property
    def summary(self) -> Summary | None:
        """The final table and what it took; None for a run that has not ended."""
        file = self.path / SUMMARY
        if not file.exists():
            return None
        try:
            return read_record(Summary, read_json(file), file)
        except UserError as error:
            raise UserError(
                f"{str(error).rpartition(';')[0]}; delete it, and the run's own command with --resume writes it again"
            ) from error

    @cached_property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics, by kind; damaged lines are left out."""
        return {"step": [], "epoch": [], "evaluation": [], **read_metrics(self.path / METRICS)}

    @cached_property
    def history(self) -> list[Entry]:
        """The evaluations."""
        return [read_record(Entry, record, self.path / METRICS) for record in self.records["evaluation"]]

    @property
    def accuracies(self) -> dict[int, float]:
        """The best accuracy of any form of the set, by the outer step of its evaluation."""
        best: dict[int, float] = {}
        for record, entry in zip(self.records["evaluation"], self.history, strict=True):
            best[record["step"]] = max(entry.accuracy, best.get(record["step"], 0.0))
        return best

    @cached_property
    def epochs(self) -> list[EpochPoint]:
        """The windows of all epochs, for a plot."""
        return [point for record in self.records["epoch"] if (point := EpochPoint.of(record)) is not None]

    @cached_property
    def windows(self) -> list[WindowPoint]:
        """The recorded outer steps of back-propagation through time."""
        return [point for record in self.records["step"] if (point := WindowPoint.of(record)) is not None]

    @cached_property
    def matches(self) -> list[MatchPoint]:
        """The iterations of trajectory matching, for a plot."""
        return [point for record in self.records["step"] if (point := MatchPoint.of(record)) is not None]

    @cached_property
    def distilled(self) -> "Distilled | None":
        """The selected set; None before the first evaluation."""
        from framework.distilled.load import load_distilled  # late: records are read without PyTorch

        return load_distilled(self.path) if (self.path / SET).exists() else None

    @cached_property
    def evaluations(self) -> list[Judgement]:
        """What ``main.py evaluate`` found, one for each recipe."""
        return list(read_evaluations(self.path / EVALUATION).values())

    @property
    def words(self) -> list[str]:
        """The command line that runs it again; see ``words_of``."""
        return words_of(self.config)

    @property
    def facts(self) -> dict[str, str]:
        """What was run, and what it took."""
        c, s = self.config, self.summary
        steps = self.records["step"]
        provenance = {} if self.distilled is None else self.distilled.provenance
        own = {name: value for name, value in c.network.items() if value != getattr(c.defaults(), name)}
        facts = {
            **c.facts(provenance),
            "network": ", ".join([c.arch, *(f"{name} {value}" for name, value in own.items())]),
            "seed": str(c.seed),
            "outer steps": f"{s.outer_steps if s else steps[-1]['step'] if steps else 0:,}",
        }
        if s:
            facts |= {
                "selected": f"epoch {s.best_epoch} of {s.gave_up or s.epochs}, on {s.select}"
                + (f"; ended by --patience, {s.epochs} epochs were asked for" if s.gave_up else ""),
                "time": duration(s.seconds),
                "peak memory": f"{s.peak_memory_mib:,.0f} MiB",
                "device": s.device + (f", {s.processes} processes" if s.processes > 1 else ""),
                "versions": f"torch {s.torch}, Python {s.python}",
            }
        return facts


def words_of(c: Common) -> list[str]:
    """The command line of a run, or of experts, in a folder of its own: the program, then each flag with its values."""
    defaults = c.defaults()
    words = [f"python main.py {c.VERB}".strip()]
    for name in c.flags():
        value = getattr(c, name)
        if name != "dataset" and (value == getattr(defaults, name) or name in ("save_dir", "resume", "dry_run")):
            continue
        several = value if isinstance(value, tuple) else (value,)
        values = [] if value is True else [json.dumps(v) if isinstance(v, dict) else str(v) for v in several]
        words.append(shlex.join([f"--{name}", *values]))
    return words


def name_runs(paths: list[Path]) -> dict[str, RunFolder]:
    """Runs by the shortest ends of their paths that tell them apart."""
    full = [path.resolve() for path in paths]
    if len(set(full)) < len(full):
        raise UserError("the same run is given twice; give each once")
    depth = next(n for n in range(1, 99) if len({path.parts[-n:] for path in full}) == len(full))
    return {printable("/".join(where.parts[-depth:])): RunFolder(path) for where, path in zip(full, paths, strict=True)}
