"""Files that are either the old version or the new one, whatever happens in between.

Everything is written to a temporary file in the same folder, flushed to the disk, and renamed over
the target. Checkpoints hold tensors and plain Python values only and are read with
``weights_only=True``, so a file cannot run code.
"""

import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from framework.config import Config, UserError, differences


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace ``path`` with what ``write`` puts into the file it is given.

    Raises:
        UserError: the file cannot be written (disk full, folder read-only); an older version is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise UserError(
            f"cannot write {path}: {reason}; free space or fix the folder's permissions, then continue with --resume"
        ) from error
    finally:
        with suppress(
            OSError
        ):  # after a success, or where the folder itself is the trouble, there is nothing to remove
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


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


def make_folder(path: Path) -> None:
    """Make the folder that --output names, or that the file which it names lies in, with all above it.

    Raises:
        UserError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: cannot make this folder ({error.strerror}); choose another") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error}); check the path") from error


def find_run(folder: Path, config: Config) -> dict[str, Any] | None:
    """The state to resume from in a run's folder; None where a new run is to start.

    Raises:
        UserError: the folder holds a run and --resume was not given; or its checkpoint is damaged or of
            another configuration.
    """
    path = folder / "last.pt"
    if not path.exists():
        return None
    if not config.resume:
        raise UserError(f"{folder} already holds a run: continue it with --resume, or choose another --save_dir")
    state = load(path)
    try:
        changed = differences(json.loads(state["config"]), config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a checkpoint of this program; check --save_dir") from error
    if changed:
        raise UserError(
            f"--resume: {path} is of another configuration: {'; '.join(changed)}; give the same flags, or another "
            "--save_dir"
        )
    return state
