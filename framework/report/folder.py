"""The one reader of what a run leaves in its folder."""

import base64
import io
import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from framework.config import DEFAULTS, FLAGS, Config
from framework.distilled.load import load_distilled
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.files import CONFIG, EVALUATION, METRICS, SET, SUMMARY, read_json


def read_summary(path: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run; empty where there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, --resume makes it again") from error


MOST_IMAGES = 400  # of one run; a page of thousands would not open on a phone


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
        file = self.path / CONFIG
        if not file.exists():
            raise UserError(f"{self.path}: no run is here; give a folder with config.json")
        return Config.from_json(read_json(file), file)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``; empty for a run that has not ended."""
        file = self.path / SUMMARY
        needed = ("results", "outer_steps", "best_epoch", "epochs", "select", "seconds", "processes", "device")
        return _read_object(file, *needed, "peak_memory_mb", "torch", "python") if file.exists() else {}

    @cached_property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics, by kind."""
        file = self.path / METRICS
        result: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": [], EVALUATION: []}
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
        return load_distilled(self.path) if (self.path / SET).exists() else None

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """What ``main.py evaluate`` found, one entry per recipe."""
        files = sorted((self.path / EVALUATION).glob("*.json"))
        needed = ("results", "recipe", "recipe_text", "dataset", "device", "seconds")
        return [_read_object(file, *needed) for file in files]

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
        own = {name: value for name, value in c.network.items() if value != getattr(DEFAULTS, name)}
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


def _read_object(file: Path, *needed: str) -> dict[str, Any]:
    """An object with at least the keys ``needed``.

    Raises:
        UserError: that is not what the file holds.
    """
    content = read_json(file)
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


def name_runs(paths: list[Path]) -> dict[str, RunFolder]:
    """Runs by the shortest ends of their paths that tell them apart."""
    full = [path.resolve() for path in paths]
    if len(set(full)) < len(full):
        raise UserError("the same run is given twice; give each once")
    depth = next(n for n in range(1, 99) if len({path.parts[-n:] for path in full}) == len(full))
    return {"/".join(where.parts[-depth:]): RunFolder(path) for where, path in zip(full, paths, strict=True)}
