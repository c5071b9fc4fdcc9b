"""Files of a run: their names, how they are written, who may write them.

A file is either the old version or the new one, whatever happens in between: everything is written to a temporary file
in the same folder, flushed to the disk, and renamed over the target.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from framework.errors import UserError

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SET, PICTURE, CURVES, WINDOWS = "distilled.safetensors", "distilled.png", "accuracy.png", "truncation.png"
MATCHING, PREFIXES = "matching.png", "prefixes.png"
EXPERTS, TEACHERS = "experts.json", "teachers"
BOARD, EVALUATION, EXPORTS = "tensorboard", "evaluation", "exports"  # folders


class CannotWrite(UserError):
    """A file could not be written; an older version of it is untouched."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """Create or replace ``path`` with what ``write`` puts into the file it is given.

    Args:
        path: the file.
        write: called with the temporary file.
        keep: where the older version goes; by default it is replaced.

    Raises:
        CannotWrite: disk full, folder read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise CannotWrite(f"cannot write {path}: {reason}; free space or fix the folder's permissions") from error
    finally:
        # After a success, or where the folder itself is the trouble, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; bytes of file names that are no text become escapes."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity, which JSON does not know, become null."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it from a copy") from error


def file_checksum(path: Path) -> str:
    """Of a file's content: blake2b of 16 bytes, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def finite(value: Any) -> Any:
    """``value`` with None for NaN and infinity, in nested dictionaries and sequences too."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(path: Path, name: str = "--output") -> None:
    """Make a folder with all above it.

    Args:
        path: the folder.
        name: the flag that names it, for the message.

    Raises:
        UserError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} {path}: cannot make this folder ({error.strerror}); choose another") from error


@contextmanager
def folder_for(path: Path, name: str = "--output") -> Iterator[Path]:
    """A folder to write into, made with all above it; after a failure, what was made and is still empty goes again.

    Args:
        path: the folder.
        name: the flag that names it, for the message.

    Raises:
        UserError: it cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        make_folder(path, name)
        yield path
    except BaseException:
        with suppress(OSError):  # there is something in it
            for folder in made:
                folder.rmdir()
        raise


def cache_folder() -> Path:
    """``at-bptt`` in the user's cache folder.

    Raises:
        UserError: the user has none.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "at-bptt"
    except RuntimeError as error:
        raise UserError(
            "no home folder to keep caches in; give --cache_dir, or set the variable XDG_CACHE_HOME"
        ) from error


def can_hold(folder: Path, name: str = "--save_dir") -> bool:
    """Whether a folder exists; nothing is made.

    Args:
        folder: that a run is to write into.
        name: the flag that names it, for the message.

    Raises:
        UserError: it cannot be reached, or does not exist and cannot be made.
    """
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if nearest != folder and not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if nearest != folder and not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{name} {folder}: cannot reach or make this folder ({error.strerror}); choose another"
        ) from error
    return nearest == folder


class FolderLock:
    """A run's folder held by one process; the system lets go of it however that process ends.

    Args:
        folder: the run's.
        name: the flag that names it, for messages.
    """

    def __init__(self, folder: Path, name: str = "--save_dir") -> None:
        self.folder, self.name = folder, name
        self._lock: FileLock | None = None

    def __enter__(self) -> "FolderLock":
        """Hold the folder if it exists; a run that is refused later must not have made it.

        Raises:
            UserError: another run holds it, or it cannot be reached, made or written.
        """
        if can_hold(self.folder, self.name):
            self._take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def make(self) -> None:
        """Make the folder if need be, hold it, and remove what a killed process was writing there.

        Raises:
            UserError: it cannot be made or written; or another run was quicker.
        """
        make_folder(self.folder, self.name)
        if self._lock is None:
            self._take()
            if (self.folder / LAST).exists():
                raise UserError(f"{self.folder} already holds a run by now: choose another {self.name}")
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def _take(self) -> None:
        self._lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{self.folder}: another run is writing there; wait for its end, or choose another {self.name}"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise UserError(
                    f"cannot write to {self.folder}: {error.strerror}; choose another {self.name}"
                ) from error
            print(f"{self.folder}: its file system has no locks; start no second run there", flush=True)
