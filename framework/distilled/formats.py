"""Files that hold a distilled set: safetensors, ``.pt``, ``.npz``, ``.h5`` and image folders, read and written.

All forms but the image folder hold the same named tensors, bit for bit, and the same metadata; so a set that was
written in one form is whole in any other. Files of other programs hold ``images`` and ``labels`` alone, under the
names usual in the field, and no metadata.

Each form's library is imported when such a file is read or written: who only opens a safetensors file needs none.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


LABELS = "labels.npy"


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    ``tensors`` has ``images`` (N, C, H, W) and ``labels``, (N,) class numbers or (N, K) class weights, where the file
    has them, and in our own files the ``preprocess.*`` tensors. ``metadata`` has ``class_names`` and ``provenance`` as
    JSON, or nothing.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Written by this program, and so complete."""
        return {"class_names", "provenance"} <= self.metadata.keys()


def read(path: Path, labels: Path | None = None, *, needs_labels: bool = True) -> Stored:
    """Read a distilled set from a file or an image folder (one sub-folder per class).

    Args:
        path: its suffix tells the form.
        labels: a second ``.pt`` file, where ``path`` is one that holds the images alone.
        needs_labels: images alone are a mistake.

    Raises:
        UserError: the file is missing, damaged, or of no form that is known here.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    reader = _read_folder if path.is_dir() else READERS.get(path.suffix.lower())
    if labels is not None and reader is not _read_pt:
        raise UserError(f"--labels {labels}: only a .pt file of images has its labels elsewhere; leave it out")
    if reader is None:
        raise UserError(f"{path}: unknown form; give a run's folder, an image folder, or {', '.join(READERS)}")
    try:
        stored = _read_pt(path, labels, needs_labels) if reader is _read_pt else reader(path)
    except UserError:
        raise
    except Exception as error:  # whatever the libraries make of a damaged file
        raise UserError(f"{path}: cannot be read ({one_line(error)}); restore it from a copy") from error
    for name in ("images", "labels") if needs_labels else ("images",):
        if name not in stored.tensors:
            found = ", ".join(stored.tensors) or "nothing"
            raise UserError(f"{path}: holds no {name} (found {found}); name them images and labels")
    if not all(tensor.isfinite().all() for tensor in stored.tensors.values()):
        raise UserError(f"{path}: holds NaN or infinity; restore it from a copy")
    return stored


def _named(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors under our names, from arrays under any of the usual ones; what is no numbers is left out."""
    import numpy as np

    result = {}
    for name, array in arrays.items():
        ours = "images" if name in IMAGE_NAMES else "labels" if name in LABEL_NAMES else name
        if isinstance(array, Tensor):
            result[ours] = array.detach()
        elif isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "biuf":
            result[ours] = torch.from_numpy(np.array(array))
    return result


def _read_safetensors(path: Path) -> Stored:
    try:
        with safe_open(path, "pt") as file:
            return Stored({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({one_line(error)}); check the path") from error


def _read_pt(path: Path, labels: Path | None = None, needs_labels: bool = True) -> Stored:
    """A dictionary, a pair of images and labels, or images with their labels in a file of their own."""

    def load(file: Path) -> Any:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(file, map_location="cpu", weights_only=True)

    content = load(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):  # dataset condensation: one pair per run
        content = content["data"][-1]
    if isinstance(content, Tensor):
        if labels is None and needs_labels:
            raise UserError(f"{path}: holds one tensor, the images; give --labels FILE with theirs")
        content = {"images": content} if labels is None else (content, load(labels))
    if isinstance(content, list | tuple) and len(content) == 2:
        content = {"images": content[0], "labels": content[1]}
    if not isinstance(content, dict):
        raise UserError(f"{path}: neither a pair nor a dictionary of images and labels; save one with torch.save")
    metadata = content.get("metadata")
    return Stored(_named(content), metadata if isinstance(metadata, dict) else {})


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

    A folder's name is the class's number, as in ``7`` or ``00007_dog``, or its name; names are kept in the
    metadata as ``folders``, for whoever knows the data set's classes. Learnt labels, which folders cannot say, are
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
        return Stored({"images": images, "labels": torch.from_numpy(np.load(path / LABELS, allow_pickle=False))})
    numbers = torch.tensor([number for number, group in enumerate(files) for _ in group])
    return Stored({"images": images, "labels": numbers}, {"folders": json.dumps(folders)})


READERS: dict[str, Callable[[Path], Stored]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".npz": _read_npz,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
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
