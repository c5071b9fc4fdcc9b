"""Files that hold a distilled set: safetensors, ``.pt``, ``.npz``, ``.h5`` and image folders, read and written.

All forms but the image folder hold the same named tensors, bit for bit, and the same metadata; so a set that was
written in one form is whole in any other. Files of other programs hold ``images``, ``labels`` and perhaps a learnt
rate alone, under the names usual in the field or in files beside each other, and no metadata.

Each form's library is imported when such a file is read or written: who only opens a safetensors file needs none.
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from framework.errors import UserError, one_line
from framework.files import write_atomically
from framework.run import checkpoint
from framework.run.checkpoint import save_tensors

IMAGE_NAMES = ("images", "data", "image", "x", "images_train")


LABEL_NAMES = ("labels", "label", "targets", "y", "labels_train")


LR = "syn_lr"
"""A learning rate that was learnt with the images."""

COMPANIONS = {"labels": "labels", LR: "lr"}
"""What lies beside a file of images alone, and what stands for ``images`` in its name: ``images_best.pt`` and
``images_5000.pt`` of MTT and DATM, ``ema_images_best.pt`` of FTD, ``images.pt`` of DD-Ranking."""

IMAGES = "images.pt"
"""Of a pair of files in a folder of their own, as ``export --to ddranking`` writes it."""

LABELS = "labels.npy"

H5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    ``tensors`` has ``images`` (N, C, H, W) and ``labels``, (N,) class numbers or (N, K) class weights, and in our own
    files the ``preprocess.*`` tensors. ``metadata`` has ``class_names`` and ``provenance`` as JSON, or nothing.
    Other programs' images may lie otherwise in memory, RaT-BPTT's may lack labels, and there may be ``syn_lr``.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    companions: dict[str, Path] = field(default_factory=dict)
    """The files beside that of the images in which ``labels`` and ``syn_lr`` were found."""
    white: int | None = None
    """The value of a white pixel, where the form tells it."""

    @property
    def bits(self) -> tuple[int, int]:
        """Of a value of an image and of a label; of an image where there are no labels."""
        images, labels = self.tensors["images"], self.tensors.get("labels")
        own = 8 * images.element_size()
        return own, own if labels is None else 8 * labels.element_size()

    @property
    def ours(self) -> bool:
        """Written by this program, and so complete."""
        return {"class_names", "provenance"} <= self.metadata.keys()


def read(path: Path, labels: Path | None = None, *, needs_labels: bool = True) -> Stored:
    """Read a distilled set from a file, a folder of ``images.pt``, or an image folder (one sub-folder per class).

    Args:
        path: its suffix tells the form.
        labels: a second ``.pt`` file, where ``path`` is one that holds the images alone.
        needs_labels: images alone are a mistake, but in an ``.h5``.

    Raises:
        UserError: the file is missing, damaged, or of no form that is known here.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if (path / IMAGES).is_file():
        path = path / IMAGES
    reader = _read_folder if path.is_dir() else READERS.get(path.suffix.lower())
    if labels is not None and reader is not _read_pt:
        raise UserError(f"--labels {labels}: only a .pt file of images has its labels elsewhere; leave it out")
    if reader is None:
        raise UserError(f"{path}: unknown form; give a run's folder, an image folder, or {', '.join(READERS)}")
    try:
        stored = _read_pt(path, labels, needs_labels) if reader is _read_pt else reader(path)
        stored = _complete(stored, path, needs_labels)
        broken = [name for name, tensor in stored.tensors.items() if name != LR and not tensor.isfinite().all()]
    except UserError:
        raise
    except Exception as error:  # whatever the libraries make of a damaged file
        raise UserError(f"{path}: cannot be read ({one_line(error)}); restore it from a copy") from error
    if broken:
        file = labels if broken[0] == "labels" and labels else stored.companions.get(broken[0], path)
        raise UserError(f"{file}: holds NaN or infinity; restore it from a copy")
    return stored


def _complete(stored: Stored, path: Path, needs_labels: bool) -> Stored:
    """A set with its images and labels; what other programs keep beside those and the learnt rate is left out.

    Only RaT-BPTT's ``.h5`` may lack labels: it has none where they are not learnt, as its images are sorted by class.
    """
    alone = not stored.ours and (path.suffix.lower() in H5 or not needs_labels)
    needed = ("images",) if alone else ("images", "labels")
    if missing := [name for name in needed if name not in stored.tensors]:
        found = ", ".join(list(stored.tensors)[:5]) or "nothing"
        raise UserError(f"{path}: holds no {missing[0]} (found {found}); name them images and labels")
    if stored.ours:
        return stored
    kept = ("images", "labels", LR)
    return replace(stored, tensors={name: stored.tensors[name] for name in kept if name in stored.tensors})


def _named(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors under our names, from arrays under any of the usual ones; what is no real numbers is left out."""
    import numpy as np

    result = {}
    for name, array in arrays.items():
        ours = "images" if name in IMAGE_NAMES else "labels" if name in LABEL_NAMES else name
        if isinstance(array, Tensor) and array.layout == torch.strided and not array.is_complex():
            result[ours] = array.detach()
        elif isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "biuf":
            result[ours] = torch.from_numpy(np.array(array))
        elif isinstance(array, float) and name == LR:
            result[ours] = torch.tensor(array)
    return result


def _read_safetensors(path: Path) -> Stored:
    try:
        with safe_open(path, "pt") as file:
            return Stored({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({one_line(error)}); check the path") from error


def is_ours(path: Path) -> bool:
    """Whether a ``.safetensors`` file is a set that this program wrote, as its header tells."""
    try:
        with safe_open(path, "pt") as file:
            return Stored({}, dict(file.metadata() or {})).ours
    except (OSError, SafetensorError):
        return False


def _read_pt(path: Path, labels: Path | None = None, needs_labels: bool = True) -> Stored:
    """A dictionary, a pair of images and labels, or images with their labels in a file of their own."""
    content, files = _load_pt(path), {}
    if isinstance(content, dict) and isinstance(content.get("data"), list):  # dataset condensation: one pair per run
        content = content["data"][-1]
    if isinstance(content, Tensor):
        files = _companions(path) | ({} if labels is None else {"labels": labels})
        if "labels" not in files and needs_labels:
            raise UserError(f"{path}: holds one tensor, the images; give --labels FILE with theirs")
        content = {"images": content, **{name: _load_pt(file) for name, file in files.items()}}
    elif labels is not None:
        raise UserError(f"--labels {labels}: {path} has more than images; leave it out")
    if isinstance(content, list | tuple) and len(content) == 2:
        content = {"images": content[0], "labels": content[1]}
    if not isinstance(content, dict):
        raise UserError(f"{path}: neither a pair nor a dictionary of images and labels; save one with torch.save")
    tensors, metadata = _named(content), content.get("metadata")
    for name, file in files.items():
        if name not in tensors:
            raise UserError(f"{file}: holds no tensor but a {type(content[name]).__name__}; save tensors only")
    if labels is not None:
        del files["labels"]
    return Stored(tensors, metadata if isinstance(metadata, dict) else {}, files)


def _companions(path: Path) -> dict[str, Path]:
    """The files beside one of images alone, by what they hold; see ``COMPANIONS``."""
    names = {held: re.sub(r"(?<![^\W_])images(?![^\W_])", stem, path.name) for held, stem in COMPANIONS.items()}
    beside = {held: path.with_name(name) for held, name in names.items() if name != path.name}
    return {held: file for held, file in beside.items() if file.is_file()}


def _load_pt(file: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, without running code from it.

    Raises:
        UserError: there are objects in it that could run code, or it is damaged.
    """
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that it may fail on: then it says so
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # pickle's, zip's and the system's alike; torch's texts tell how to run the code
        if held := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file}: holds {held[1]}, which is not read from foreign files; save tensors only"
            ) from error
        raise UserError(
            f"{file}: damaged or not written by torch.save ({type(error).__name__}); restore it from a copy"
        ) from error


def _numpy_scalars() -> list[Any]:
    """What numpy's scalars are pickled with: dataset condensation keeps its accuracies as such. They run no code."""
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    old_name = "numpy.core.multiarray.scalar"  # before numpy 2
    return [scalar, (scalar, old_name), np.dtype, *kinds]


def _read_npz(path: Path) -> Stored:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    metadata = json.loads(str(arrays.pop("metadata"))) if "metadata" in arrays else {}
    return Stored(_named(arrays), metadata)


def _read_h5(path: Path) -> Stored:
    import h5py

    with h5py.File(path, "r") as file:
        arrays = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
    metadata = json.loads(arrays.pop("metadata")) if "metadata" in arrays else {}
    return Stored(_named(arrays), metadata)


def _read_folder(path: Path) -> Stored:
    """Images as uint8 (N, 3, H, W), or (N, 1, H, W) where all are grey; folders in order of their names.

    A folder's name is the class's number, as in ``7``, ``00007_dog`` or ``new007``, or its name; names are kept in
    the metadata as ``folders``, for whoever knows the data set's classes. Learnt labels, which folders cannot say, are
    in ``labels.npy``, (N, K) in the order of the files.
    """
    import numpy as np

    from framework.data.folders import folder_names, picture_paths
    from framework.data.parts import open_picture

    folders = folder_names(path)
    files = [picture_paths(path / name) for name in folders]
    if not any(files):
        raise UserError(f"{path}: no images; an image folder has one sub-folder of pictures per class")
    pixels = [torch.from_numpy(np.array(open_picture(file))) for group in files for file in group]
    if len({image.shape for image in pixels}) > 1:
        raise UserError(f"{path}: pictures of different sizes or colour modes; make them alike")
    stack = torch.stack(pixels)
    images = stack.unsqueeze(1) if stack.ndim == 3 else stack.permute(0, 3, 1, 2)
    images = images.contiguous()
    if (path / LABELS).exists():
        labels = torch.from_numpy(np.load(path / LABELS, allow_pickle=False))
        return Stored({"images": images, "labels": labels}, white=255)
    numbers = torch.tensor([number for number, group in enumerate(files) for _ in group])
    return Stored({"images": images, "labels": numbers}, {"folders": json.dumps(folders)}, white=255)


READERS: dict[str, Callable[[Path], Stored]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".npz": _read_npz,
    **dict.fromkeys(H5, _read_h5),
}


def write_safetensors(stored: Stored, path: Path) -> None:
    """Our own form."""
    save_tensors(path, stored.tensors, stored.metadata)


def write_pt(stored: Stored, path: Path) -> None:
    """A dictionary of tensors for ``torch.load(..., weights_only=True)``, with ``metadata``."""
    checkpoint.save(path, {**stored.tensors, "metadata": stored.metadata})


def write_npz(stored: Stored, path: Path) -> None:
    """Arrays for ``numpy.load``; ``metadata`` is a JSON text."""
    import numpy as np

    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in stored.tensors.items()}
    arrays["metadata"] = np.array(json.dumps(stored.metadata))
    write_atomically(path, lambda file: np.savez(file, **arrays))


def write_h5(stored: Stored, path: Path) -> None:
    """The ancestors' names: ``data`` and ``label``; ``metadata`` is a JSON text."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, tensor in stored.tensors.items():
            file[{"images": "data", "labels": "label"}.get(name, name)] = tensor.numpy()
        file["metadata"] = json.dumps(stored.metadata)
    write_atomically(path, lambda target: target.write(buffer.getvalue()))
