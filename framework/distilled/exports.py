"""A distilled set in the forms that the field's tools read: ``main.py export``."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from framework.data.registry import known
from framework.distilled.formats import LABELS, write_h5, write_npz, write_pt, write_safetensors
from framework.distilled.names import DDRANKING
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.files import SET, folder_for, write_text


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at ``path`` when everything in it is written, or not at all."""
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        building.mkdir()
        yield building
        building.rename(path)
    except OSError as error:
        raise UserError(f"--output {path}: cannot write ({error.strerror}); choose another") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _classes(distilled: Distilled) -> Tensor:
    """(N,) the class that each image was made for: the sets are sorted by class."""
    return torch.tensor(distilled.counts.classes)


def _pngs(distilled: Distilled) -> tuple[list[bytes], float]:
    """Every image in natural colours as a PNG of 8 bits, and the share of pixel values that had to be clipped."""
    natural = distilled.preprocess.inverse(distilled.images, clip=False)
    clipped = float(((natural < 0) | (natural > 1)).float().mean())
    pixels = (natural.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(3).numpy()
    result = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        result.append(buffer.getvalue())
    return result, clipped


def _losses(distilled: Distilled, clipped: float) -> str:
    """What the 8 bits of an image file cost."""
    text = f"8 bits: pixels are within 1/510 of the original; {clipped:.1%} of them were outside 0..1 and clipped"
    if distilled.preprocess.kind == "zca":
        text += "; whitening again rescales each image, as ZCA normalises images one by one"
    return text


def _safetensors(distilled: Distilled, path: Path) -> str:
    write_safetensors(distilled.stored(numbers=False), path)
    return "lossless"


def _pt(distilled: Distilled, path: Path) -> str:
    write_pt(distilled.stored(), path)
    return "lossless; torch.load(..., weights_only=True) gives a dictionary with images and labels"


def _npz(distilled: Distilled, path: Path) -> str:
    write_npz(distilled.stored(), path)
    return "lossless; arrays images and labels"


def _h5(distilled: Distilled, path: Path) -> str:
    write_h5(distilled.stored(), path)
    return "lossless; data and label, the ancestors' names"


def _images(distilled: Distilled, path: Path) -> str:
    """One sub-folder of PNG files per class, in natural colours; learnt labels go into ``labels.npy``."""
    pngs, clipped = _pngs(distilled)
    with _new_folder(path) as folder:
        for number, (label, png) in enumerate(zip(_classes(distilled).tolist(), pngs, strict=True)):
            name = re.sub(r"[^\w.-]+", "-", distilled.class_names[label])
            (folder / f"{label:05d}_{name}").mkdir(exist_ok=True)
            (folder / f"{label:05d}_{name}" / f"{number:06d}.png").write_bytes(png)
        if distilled.hard_labels is None:
            np.save(folder / LABELS, distilled.labels.numpy())
    learnt = f"; {LABELS} has the learnt labels, in the order of the files" if distilled.hard_labels is None else ""
    return _losses(distilled, clipped) + learnt


def _ddranking(distilled: Distilled, path: Path, dataset: str | None) -> str:
    """What the package ddranking 0.2.0 reads: ``images.pt`` in its normalisation, ``labels.pt``, ``set.json``.

    Its scores take images (N, 3, H, W) float32 that are normalised like its test images, and hard labels (N,) int64
    or soft ones (N, K) float32, which a softmax turns into a distribution: so these are the logarithms of ours.
    """
    name = dataset or known(distilled.config.dataset).ddranking
    if name is None or distilled.images.shape[1] != 3:
        raise UserError(
            f"--to ddranking: it knows colour images of {', '.join(DDRANKING)} only, not "
            f"{distilled.config.dataset_label}; if the set is of one of those, say so with --ddranking_dataset"
        )
    if not distilled.counts.same:
        raise UserError("--to ddranking: it knows sets of as many images of each class only, not "
                        f"{distilled.counts.text}; choose another form")  # fmt: skip
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in DDRANKING[name])
    images = (distilled.preprocess.inverse(distilled.images, clip=False) - mean) / std
    hard = distilled.hard_labels
    about = {
        "dataset": name,
        "ipc": distilled.per_class,
        "im_size": [images.shape[-1]] * 2,
        "labels": "soft" if hard is None else "hard",
        "optimizer": distilled.config.inner_optim.lower(),
        "lr": distilled.config.inner_lr,
    }
    with _new_folder(path) as folder:
        torch.save(images, folder / "images.pt")
        torch.save(distilled.labels.clamp_min(1e-12).log() if hard is None else hard, folder / "labels.pt")
        (folder / "set.json").write_text(json.dumps(about, indent=2) + "\n")
    notes = [f"images normalised like {name}'s in ddranking"]
    if distilled.preprocess.kind == "zca":
        notes.append("from the inverse of our ZCA: approximate")
    if distilled.config.eps_root:
        notes.append("to be trained there without the run's --inner_eps_root")
    return ", ".join(notes)


def _hf(distilled: Distilled, path: Path) -> str:
    """A folder for ``datasets.load_dataset``: parquet with pictures, labels and exact pixels, and a data card."""
    try:
        from datasets import Array3D, ClassLabel, Dataset, Features, List, Value, disable_progress_bars
        from datasets import Image as Picture
    except ImportError as error:
        raise UserError("--to hf needs the package: pip install datasets, or choose another form") from error
    disable_progress_bars()
    pngs, clipped = _pngs(distilled)
    features = {
        "image": Picture(),
        "label": ClassLabel(names=list(distilled.class_names)),
        "weights": List(Value("float32")),
        "pixels": Array3D(tuple(distilled.images.shape[1:]), "float32"),
    }
    columns = {
        "image": [{"bytes": png, "path": f"{number:06d}.png"} for number, png in enumerate(pngs)],
        "label": _classes(distilled).tolist(),
        "weights": distilled.labels.numpy(),
        "pixels": distilled.images.numpy(),
    }
    rows = Dataset.from_dict(columns, features=Features(features))
    with _new_folder(path) as folder:
        (folder / "data").mkdir()
        rows.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        write_safetensors(distilled.stored(numbers=False), folder / SET)
        write_text(folder / "README.md", _card(distilled, _losses(distilled, clipped)))
    return "weights and pixels lossless, pictures " + _losses(distilled, clipped)


def _card(distilled: Distilled, losses: str) -> str:
    """The data card: YAML that the hub and ``datasets`` read, then text for people."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # late: only this form needs it

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    count = len(distilled.images)
    return environment.get_template("card.md.j2").render(
        d=distilled,
        c=distilled.config,
        most="" if distilled.counts.same else "at most ",
        size="n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K",
        losses=losses,
        set_file=SET,
    )


WRITERS: dict[str, Callable[..., str]] = {
    "safetensors": _safetensors,
    "pt": _pt,
    "npz": _npz,
    "h5": _h5,
    "images": _images,
    "ddranking": _ddranking,
    "hf": _hf,
}
"""What writes each of ``names.FORMS``, and says what is lost."""


def export(distilled: Distilled, form: str, path: Path, ddranking_dataset: str | None = None) -> str:
    """Write the set; nothing is overwritten.

    Returns:
        One line about what was written, and what it lost.

    Raises:
        UserError: something is at ``path`` already, or the set does not fit the form.
    """
    if path.exists():
        raise UserError(f"--output {path}: is there already; remove it or choose another")
    options: dict[str, Any] = {"dataset": ddranking_dataset} if form == "ddranking" else {}
    with folder_for(path.parent):
        return WRITERS[form](distilled, path, **options)
