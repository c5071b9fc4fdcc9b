"""A distilled set from its file: ``load_distilled``."""

import json
from pathlib import Path

from framework.config import Config
from framework.data.preprocess import Preprocess
from framework.distilled import formats
from framework.distilled.formats import Stored
from framework.distilled.set import Distilled, class_weights
from framework.errors import UserError
from framework.files import CONFIG, SET


def load_distilled(path: str | Path) -> Distilled:
    """Open a distilled set with all that training on it takes.

    Args:
        path: a run's folder, its ``distilled.safetensors``, or what ``main.py export`` made of it (``.pt``, ``.npz``,
            ``.h5``).

    Raises:
        UserError: there is no set, the file is damaged, or it was written by another program and so does
            not say how its images were made.
    """
    return from_stored(open_stored(Path(path)), Path(path))


def from_stored(stored: Stored, path: Path) -> Distilled:
    """The set in one of our own files; see ``load_distilled``."""
    if not stored.ours:
        raise UserError(
            f"{path}: a file of another program, which says nothing of data set and preprocessing; main.py evaluate "
            "takes it with --dataset and --preprocess"
        )
    try:
        class_names = tuple(json.loads(stored.metadata["class_names"]))
        provenance = json.loads(stored.metadata["provenance"])
        flags = provenance["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged metadata ({error}); restore it from a copy") from error
    config = Config.from_json(flags, path)
    images, labels = stored.tensors["images"].float(), class_weights(stored.tensors["labels"], len(class_names), path)
    preprocess = Preprocess.from_tensors(stored.tensors)
    return Distilled(path, images, labels, class_names, preprocess, config, provenance)


def open_stored(path: Path, labels: Path | None = None) -> Stored:
    """Read a set; ``path`` may also be a run's folder. See ``formats.read``."""
    if path.is_dir() and (path / SET).exists():
        return formats.read(path / SET)
    if path.is_dir() and (path / CONFIG).exists():
        raise UserError(f"{path}: a run without {SET}; it is written at the first evaluation, continue with --resume")
    return formats.read(path, labels)
