"""What a run records while it goes on: JSON lines, TensorBoard, a progress bar."""

import json
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from framework.errors import UserError
from framework.files import BOARD, METRICS, WINDOWS, write_text
from framework.outer.policies.policy import Window
from framework.report.plots import STAGE_COLOURS, probe_figure, truncation_plot


class Reporter:
    """Metrics of rank 0, as JSON lines and TensorBoard events, with a progress bar.

    Args:
        folder: the run's folder.
        total: outer steps of the whole run.
        step: outer steps already done.
        records: metrics already recorded by then; later ones, of an earlier attempt, are dropped.
    """

    def __init__(self, folder: Path, total: int, step: int = 0, records: int = 0) -> None:
        self.folder = folder
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
        kept = [line.decode() for line in lines if _is_record(line)]
        if lost := records - len(kept):
            print(
                f"{path}: {lost} of {records} records are damaged or missing; continuing without them", file=sys.stderr
            )
        write_text(path, "".join(f"{line}\n" for line in kept))
        return len(kept)

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Record one event: to the JSON lines as it is, its numbers to TensorBoard under ``kind/``."""
        with self._writing():
            self._file.write(json.dumps(_finite({"kind": kind, "step": step, **values}), allow_nan=False) + "\n")
            self.records += 1
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def pictures(self, name: str, images: Tensor, step: int) -> None:
        """Show (N, C, H, W) images in [0, 1] in TensorBoard."""
        with self._writing():
            self.board.add_images(name, images, step)

    def truncation(self, step: int, curves: dict[str, list[float]], window: Window) -> None:
        """Record what the policy saw, and plot all windows of the run so far."""
        if curves:
            self.log("probe", step, **curves)
            with self._writing():
                self.board.add_figure("probe", probe_figure(curves, window), step)
        records = [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]
        truncation_plot([r for r in records if r["kind"] == "epoch"], self.folder / WINDOWS)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write metrics to {self.folder}: {error.strerror}; free space, then continue with --resume"
            ) from error

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
        with suppress(OSError):  # a full disk was reported already, and closing flushes once more
            self.board.close()
            self._file.close()
        threading.excepthook = self._previous_hook


def _is_record(line: bytes) -> bool:
    """Whether a line of the metrics is as it was written, as far as anybody reads it."""
    try:
        record = json.loads(line)
        if record["kind"] == "epoch":  # plots are made of these
            numbers = [record[name] for name in ("epoch", "window_start", "window_length")]
            accuracy, stage = record["accuracy"], record.get("stage")
            if not isinstance(accuracy, float | int | None) or stage not in STAGE_COLOURS:
                return False
            return all(isinstance(number, int) for number in numbers)
        return isinstance(record["step"], int)
    except (ValueError, KeyError, TypeError):
        return False


def _finite(value: Any) -> Any:
    """``value`` with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mirror_to_wandb(name: str, config: dict[str, Any], folder: Path) -> None:
    """Send everything written to TensorBoard to Weights & Biases as well.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the package: pip install wandb, or drop the flag") from error
    wandb.init(project="at-bptt", name=name, config=config, dir=str(folder), sync_tensorboard=True)
