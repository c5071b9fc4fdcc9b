"""Files that are either the old version or the new one, whatever happens in between.

Everything is written to a temporary file in the same folder, flushed to the disk, and renamed over
the target. A run keeps its last checkpoint and the one before, so that a damaged file costs a few steps
and no more. Checkpoints hold tensors and plain Python values only and are read with
``weights_only=True``, so a file cannot run code.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from framework.config.distilling import Distilling
from framework.config.registry import read_config
from framework.errors import UserError
from framework.files import LAST, PREVIOUS, write_atomically


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def save_run(folder: Path, state: dict[str, Any]) -> None:
    """Write a run's checkpoint; the last one becomes the previous one. One of both is whole at any moment.

    Raises:
        UserError: it cannot be written; the last one is as it was.
    """
    write_atomically(folder / LAST, lambda file: torch.save(state, file), keep=folder / PREVIOUS)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, without ever running code from it.

    Raises:
        UserError: the file is missing, damaged, or not one of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; check --save_dir") from error
    except Exception as error:  # zip, pickle and OS errors alike mean that the file cannot be used
        raise UserError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__}); restore it from a copy, or delete the "
            "run's folder to start over"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint of this program; check --save_dir")
    return state


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    content = to_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(path, lambda file: file.write(content))


def find_run(folder: Path, config: Distilling) -> dict[str, Any] | None:
    """The state to resume from in a run's folder; None where a new run is to start.

    Where the last checkpoint is damaged or missing, the one before, and a line says so.

    Raises:
        UserError: the folder holds a run and --resume was not given; or both its checkpoints are damaged, or
            of another configuration; or there is none, and a set was to be evaluated.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not (last.exists() or previous.exists()):
        if config.eval_only and config.given_set is None:
            raise UserError(f"--eval_only: {folder} holds no checkpoint to evaluate; check --save_dir")
        return None
    if not config.resume:
        raise UserError(f"{folder} already holds a run: continue it with --resume, or choose another --save_dir")
    try:
        path, (state, saved) = last, _load_run(last)
    except UserError as error:
        if not previous.exists():
            raise
        try:
            path, (state, saved) = previous, _load_run(previous)
        except UserError:
            raise error from None
        print(f"{str(error).partition(';')[0]}; continuing from {previous}, the checkpoint before", flush=True)
    if changed := _changed(saved, config):
        raise UserError(
            f"--resume: {path} is of another configuration: {'; '.join(changed)}; give the same flags, or another "
            "--save_dir"
        )
    return state


def _load_run(path: Path) -> tuple[dict[str, Any], Distilling]:
    """A run's checkpoint and the flags it was saved with.

    Raises:
        UserError: it or its flags are damaged, or it is not one of ours.
    """
    state = load(path)
    try:
        saved = json.loads(state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint of this program; check --save_dir") from error
    return state, read_config(saved, path)


def _changed(saved: Distilling, config: Distilling) -> list[str]:
    """How flags differ that must not; see ``Common.differences``."""
    if type(saved) is not type(config):
        return [f"the verb was {saved.VERB or 'none'} and is {config.VERB or 'none'}"]
    return config.differences(saved)
