"""What a run records while it goes on: JSON lines, TensorBoard, a progress bar, plots in its folder."""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from framework.distilled.pictures import HIGHEST
from framework.errors import UserError
from framework.files import BOARD, CURVES, MATCHING, METRICS, WINDOWS, CannotWrite, finite, write_text
from framework.records import Entry
from framework.report.folder import EpochPoint, MatchPoint, parse_metric
from framework.report.plots import accuracy_plot, matching_plot, probe_figure, truncation_plot
from framework.report.tables import percent
from framework.report.trackers import Tracker
from framework.run.chores import Seldom
from framework.run.clock import Clock
from framework.run.progress import Best, Progress

GRID_COLUMNS = 8  # of TensorBoard's grids of images
PLOTS_SHARE, PLOTS_PAUSE = 0.001, 120.0  # of a run's time for plots, and seconds between two at least


class Reporter:
    """Metrics of rank 0.

    Args:
        folder: the run's folder.
        total: outer steps of the whole run.
        step: outer steps already done.
        records: metrics already recorded by then; later ones, of an earlier attempt, are dropped.
        trackers: metrics and pictures go there as well.
    """

    def __init__(
        self, folder: Path, total: int, step: int = 0, records: int = 0, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.folder, self.trackers = folder, trackers
        self.epochs: list[EpochPoint] = []
        self.matches: list[MatchPoint] = []
        self.plots = Seldom(PLOTS_SHARE, PLOTS_PAUSE)
        self.records = self._keep(records)
        try:
            self._file = open(folder / METRICS, "a", buffering=1)  # noqa: SIM115  (open for the run's whole life)
            self.board = SummaryWriter(str(folder / BOARD), purge_step=step + 1 if step else None)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --save_dir") from error
        self._previous_hook, threading.excepthook = threading.excepthook, self._thread_failed
        self.bar = tqdm(total=total, initial=step, desc="distilling", unit="step", file=sys.stderr, dynamic_ncols=True)

    def _keep(self, records: int) -> int:
        """Drop records of steps that a resumed run will take again, and damaged ones; returns how many are left."""
        path = self.folder / METRICS
        try:
            lines = path.read_bytes().splitlines()[:records] if path.exists() else []
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; move it away, then continue with --resume"
            ) from error
        kept = [(line, record) for line in lines if (record := parse_metric(line)) is not None]
        if lost := records - len(kept):
            print(
                f"{path}: {lost} of {records} records are damaged or missing; continuing without them", file=sys.stderr
            )
        write_text(path, "".join(f"{line.decode()}\n" for line, _ in kept))
        for _, record in kept:
            self._remember(record)
        return len(kept)

    def _remember(self, record: dict[str, Any]) -> None:
        """Keep what plots show: the file of a long run is too large to be read for each."""
        if record["kind"] == "epoch" and (point := EpochPoint.of(record)) is not None:
            self.epochs.append(point)
        if record["kind"] == "step" and (match := MatchPoint.of(record)) is not None:
            self.matches.append(match)

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Record one event: to the JSON lines as it is, its numbers to TensorBoard and trackers under ``kind/``."""
        record = finite({"kind": kind, "step": step, **values})
        with self._writing():
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self.records += 1
            self._remember(record)
            self._show(kind, values, step)

    def step(self, progress: Progress, facts: dict[str, Any], *, shown: bool) -> None:
        """Move the bar on after a step that was applied; where ``shown``, tell and record its facts."""
        self.bar.update()
        if shown:
            self.bar.set_postfix(
                {name: f"{fact:.3f}" for name, fact in facts.items() if name in ("loss", "accuracy")}
                | {name: str(fact) for name, fact in facts.items() if isinstance(fact, int)},
                refresh=False,
            )
            self.log("step", progress.step, epoch=progress.epoch + 1, **facts)

    def skipped(self, progress: Progress, facts: dict[str, Any], reason: str) -> None:
        """Tell and record a step that could not be applied, and why."""
        p, shown = progress, {name: facts[name] for name in ("loss", "accuracy", "meta_gradient_norm") if name in facts}
        self.bar.update()
        self.say(
            f"outer step {p.step} skipped: {reason} (loss {facts['loss']:g}, meta-gradient's norm "
            f"{facts['meta_gradient_norm']:g}); {p.skipped_in_row} in a row, {p.skipped_in_run} in this run"
        )
        self.log("skipped", p.step, epoch=p.epoch + 1, **shown, reason=reason, skipped_in_run=p.skipped_in_run)

    def evaluated(self, entry: Entry, best: Best, step: int, clock: Clock) -> None:
        """Tell and record an evaluation, and when it was."""
        self.say(
            f"epoch {entry.epoch}{entry.form and f', {entry.form} images'}: {entry.split} accuracy "
            f"{percent(entry.accuracy, entry.best.top1_std)} % after "
            f"{entry.best_length} steps (best {percent(best.accuracy, None)} at epoch {best.epoch})"
        )
        self.log("evaluation", step, seconds=clock.seconds, cpu_seconds=clock.cpu_seconds, **asdict(entry))

    def _show(self, kind: str, values: dict[str, Any], step: int) -> None:
        """Numbers for TensorBoard, all in one event: ``add_scalar`` takes as long for each as this for all."""
        scalars = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.numbers(scalars, step)
        event = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        cast(Any, self.board.file_writer).add_summary(Summary(value=event), step)

    def pictures(self, name: str, images: Tensor, step: int) -> None:
        """Show (N, C, H, W) images in [0, 1], some of them evenly spread where all would be too high."""
        most = GRID_COLUMNS * (HIGHEST // images.shape[2])
        images = images[:: -(-len(images) // most)]
        for tracker in self.trackers:
            tracker.picture(name, images, step)
        with self._writing():
            self.board.add_images(name, images, step)

    def probe(self, step: int, curves: dict[str, list[float]], facts: dict[str, Any]) -> None:
        """Record what the epoch's window, which is among its ``facts``, was chosen from, over the inner steps."""
        self.log("probe", step, **curves)
        if self.plots.due():
            with self._writing():
                window = facts["window_start"], facts["window_length"]
                self.board.add_figure("probe", probe_figure(curves, *window), step)

    def plot(self, history: Sequence[Entry], images: Callable[[], Tensor], step: int, *, last: bool) -> None:
        """Draw accuracy and windows into the folder and show the images, if it was not done just now.

        Args:
            history: all evaluations.
            images: (N, C, H, W) in [0, 1].
            step: the outer step.
            last: at the end of a run all is drawn.
        """
        if not (last or self.plots.due()):
            return
        with self.plots.doing():
            accuracy_plot(history, self.folder / CURVES)
            if self.epochs:
                truncation_plot(self.epochs, self.folder / WINDOWS)
            if self.matches:
                matching_plot(self.matches, self.folder / MATCHING)
            self.pictures("synthetic images", images(), step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotWrite(f"cannot write metrics to {self.folder}: {error.strerror}; free space") from error

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        self.bar.write(text, file=sys.stderr)

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread; where it cannot, neither can the run, which then says so in one line."""
        if not isinstance(failure.exc_value, OSError):
            self._previous_hook(failure)

    def close(self) -> None:
        """Flush and close everything."""
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()
        with suppress(OSError):  # a full disk was reported already, and closing flushes once more
            self.board.close()
            self._file.close()
        threading.excepthook = self._previous_hook
