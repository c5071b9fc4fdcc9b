"""What a person sees of a run: progress bar, metrics, TensorBoard, pictures, tables."""

import json
import math
import platform
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from framework.checkpoint import write_atomically, write_text
from framework.config import UserError
from framework.data import Preprocess
from framework.truncation import Window

METRICS = "metrics.jsonl"
TILE = 128  # pixels a side of a picture in the grid, about


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
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
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
        truncation_plot([r for r in records if r["kind"] == "epoch"], self.folder / "truncation.png")

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


def natural_images(images: Tensor, preprocess: Preprocess, contrast: float) -> Tensor:
    """Distilled images (N, C, H, W) as a person would see them: float32 in [0, 1].

    Networks with instance norm hardly notice an image's contrast, and distilled images start at a tiny
    one; so each is stretched about its mean to ``contrast``, the standard deviation of real preprocessed
    images, before the preprocessing is undone.
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return preprocess.inverse((images - mean) / deviation * contrast + mean)


def image_grid(
    pictures: Tensor, class_names: Sequence[str], path: Path, labels: Tensor | None = None, columns: int = 10
) -> None:
    """Draw pictures (K * ipc, C, H, W) in [0, 1] as a PNG: one row per class with its name.

    Args:
        pictures: sorted by class.
        class_names: K of them.
        path: of the PNG.
        labels: (K * ipc, K) soft labels; if given, the two classes of the largest weights stand below each picture.
        columns: pictures shown of each class, the first ones.
    """
    rows, side = len(class_names), pictures.shape[-1]
    enlarge = max(1, TILE // side)  # whole numbers, so that every pixel is shown alike
    size, mode = (side * enlarge, "nearest") if side <= TILE else (TILE, "area")
    by_class = pictures.cpu().unflatten(0, (rows, -1))[:, :columns].mul(255).round()
    per_class = by_class.shape[1]
    # Drawn with PIL: matplotlib takes minutes for the labels of a thousand classes.
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    large, small = ImageFont.truetype(fonts, 14), ImageFont.truetype(fonts, 10)
    right, down = size + 8, size + (8 if labels is None else 36)
    margin = 16 + math.ceil(max(large.getbbox(name)[2] for name in class_names))
    sheet = Image.new("RGB", (margin + per_class * right, 8 + rows * down), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(class_names):
        y = 8 + row * down
        draw.text((margin - 8, y + size // 2), name, fill="black", font=large, anchor="rm")
        for column, tile in enumerate(F.interpolate(by_class[row], (size, size), mode=mode)):
            x = margin + column * right
            sheet.paste(Image.fromarray(tile.expand(3, -1, -1).byte().permute(1, 2, 0).numpy()), (x, y))
            if labels is not None:
                draw.text((x, y + size + 2), _top_classes(labels[row * (len(labels) // rows) + column], class_names),
                          fill="black", font=small)  # fmt: skip
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))


def _top_classes(label: Tensor, class_names: Sequence[str]) -> str:
    """The two largest of the non-negative class weights (K,), as shares, a line each."""
    top = (label / label.sum().clamp_min(torch.finfo(label.dtype).tiny)).topk(min(2, len(label)))
    return "\n".join(
        f"{class_names[k][:12]} {100 * share:.0f}%" for share, k in zip(*map(Tensor.tolist, top), strict=True)
    )


def accuracy_plot(history: list[dict[str, Any]], path: Path) -> None:
    """Plot accuracy over epochs, one curve per training length, with one deviation as a band."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    epochs = [entry["epoch"] for entry in history]
    for i, length in enumerate(history[0]["lengths"]):
        mean = torch.tensor([entry["scores"][i]["top1"] for entry in history]) * 100
        deviation = torch.tensor([entry["scores"][i]["top1_std"] or 0.0 for entry in history]) * 100
        ax.plot(epochs, mean, marker=".", label=f"{length} steps")
        ax.fill_between(epochs, mean - deviation, mean + deviation, alpha=0.2)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{history[0]['split']} accuracy (%)")
    ax.legend(title="trained for")
    ax.grid(alpha=0.3)
    save_figure(figure, path)


STAGE_COLOURS = {"early": "tab:blue", "middle": "tab:orange", "late": "tab:green", None: "tab:gray"}


def truncation_plot(epochs: list[dict[str, Any]], path: Path) -> None:
    """Plot the window of every epoch as a band, coloured by stage, beside the accuracy on real batches."""
    figure = Figure(figsize=(8, 5))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    x = np.array([entry["epoch"] for entry in epochs])
    start = np.array([entry["window_start"] for entry in epochs])
    length = np.array([entry["window_length"] for entry in epochs])
    accuracy = 100 * np.array([entry["accuracy"] for entry in epochs], dtype=float)  # None, of no step, becomes NaN
    stages = [entry.get("stage") for entry in epochs]
    for stage in dict.fromkeys(stages):
        at = np.array([other == stage for other in stages])
        colour = STAGE_COLOURS[stage]
        top.bar(x[at], length[at], width=1.0, bottom=start[at], color=colour, alpha=0.6, label=stage or "window")
        bottom.plot(x[at], accuracy[at], ".", markersize=3, color=colour)
    top.set_ylabel("inner steps differentiated")
    top.legend(loc="upper left", title="stage" if any(stages) else None)
    bottom.set_ylabel("accuracy on\nreal batches (%)")
    bottom.set_xlabel("epoch")
    bottom.grid(alpha=0.3)
    save_figure(figure, path)


def probe_figure(curves: dict[str, list[float]], window: Window) -> Figure:
    """Each of the curves over the inner steps, with the window that was chosen shaded."""
    figure = Figure(figsize=(7, 2 * len(curves)))
    FigureCanvasAgg(figure)
    for ax, (name, values) in zip(figure.subplots(len(curves), 1, sharex=True), curves.items(), strict=True):
        ax.plot(values)
        ax.axvspan(window.start, window.start + window.length, alpha=0.2)
        ax.set_ylabel(name)
    ax.set_xlabel("inner step")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120, bbox_inches="tight"))


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


def read_summary(path: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run; empty where there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, --resume makes it again") from error


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions and peak memory so far: what a figure depends on."""
    name = f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peak_memory_mb": peak_memory_mb(device),
    }


def peak_memory_mb(device: torch.device) -> float:
    """MiB: the device's allocations on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes on macOS, in kB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
