"""One's own data in the form of the package ``datasets``: a folder it wrote or can read, or a name on its hub.

The package is optional: it is imported when such data are listed.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from framework.data.folders import some
from framework.data.own import Labels, class_names, rows_and_lines
from framework.data.parts import DECODING, Source, open_picture
from framework.data.registry import Reading, located
from framework.errors import UserError, one_line

SPLITS = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}
"""Of each part, what its split may be called."""
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
"""Which of several columns are taken, where none is named."""

_ROWS = 4096  # read at a time
_LOOKED_AT = 100  # images of each split, evenly spread, that tell size and channels
_SAVED = ("dataset_dict.json", "state.json")  # in a folder that ``save_to_disk`` wrote


@dataclass(frozen=True, eq=False)
class Column:
    """The pictures of a split, undecoded."""

    table: Any
    """``datasets.Dataset`` of this column alone."""
    name: str
    where: str
    """For messages."""

    def entries(self, rows: torch.Tensor) -> Iterator[tuple[int, dict[str, Any]]]:
        """Of some rows (n,) int64: their numbers, and ``bytes`` or the ``path`` of each picture.

        Raises:
            UserError: a row has none.
        """
        for some_rows in rows.split(_ROWS):
            numbers = some_rows.tolist()
            for number, entry in zip(numbers, self.table[numbers][self.name], strict=True):
                if entry is None or not (entry["bytes"] or entry["path"]):
                    raise UserError(f"{self.where}: row {number} has no picture in {self.name}; leave it out")
                yield number, entry

    def picture(self, number: int, entry: dict[str, Any]) -> Image.Image:
        """Decoded as files are, see ``parts.open_picture``."""
        place = f"{self.where}, row {number}"
        return open_picture(io.BytesIO(entry["bytes"]) if entry["bytes"] else entry["path"], place)

    @cached_property
    def digest(self) -> str:
        """Of all pictures as they are stored; reads them all."""
        digest = blake2b(digest_size=8)
        for _, entry in self.entries(torch.arange(len(self.table))):
            content = entry["bytes"] or _content(entry["path"], self.where)
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()


def _content(path: str, where: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror}); put it there") from error


@dataclass(frozen=True)
class PicturePart:
    """Rows of a column of pictures; the shorter side is resized to ``size``, the rest cropped centrally."""

    column: Column
    rows: torch.Tensor
    """(N,) int64."""
    labels: torch.Tensor
    size: int
    channels: int

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """See ``Part.read``. Raises ``UserError`` naming the first row that is no readable picture, or no grey one."""
        pixels = np.empty((len(indices), self.channels, self.size, self.size), dtype=np.uint8)

        def decode(place: int, number: int, entry: dict[str, Any]) -> None:
            pixels[place] = self._decoded(number, entry)

        with (
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
            tqdm(total=len(indices), desc="decoding", unit="image", leave=False, disable=not progress) as bar,
        ):
            for start in range(0, len(indices), _ROWS):  # so that what waits to be decoded is bounded
                entries = list(self.column.entries(self.rows[indices[start : start + _ROWS]]))
                list(pool.map(lambda place, entry: decode(place, *entry), range(start, start + len(entries)), entries))
                bar.update(len(entries))
        return torch.from_numpy(pixels)

    def _decoded(self, number: int, entry: dict[str, Any]) -> Any:
        picture = self.column.picture(number, entry)
        if self.channels == 1 and picture.mode != "L":
            raise UserError(
                f"{self.column.where}: row {number} has a picture in colour, those looked at first are grey; convert "
                "it or the others"
            )
        picture = picture if self.channels == 1 else picture.convert("RGB")
        fitted = np.asarray(ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BILINEAR))
        return fitted.reshape(self.size, self.size, self.channels).transpose(2, 0, 1)

    def fingerprint(self) -> str:
        """See ``Part.fingerprint``; the pictures themselves are read, as times of files tell nothing here."""
        about = repr((PIL.__version__, DECODING, self.size, self.channels, self.column.digest))
        return blake2b(about.encode() + self.rows.numpy().tobytes(), digest_size=16).hexdigest()


def read_hf(where: str, root: Path, size: int | None, reading: Reading) -> Source:
    """List the splits of a data set of the package ``datasets``.

    Its training split is ``train``, its test split ``test`` or else ``validation``; with both, ``validation`` is the
    validation part. A split whose labels are all -1, as hubs withhold them, is left out. Without a test part, a fifth
    of each class is held out for it.

    Args:
        where: a folder that ``save_to_disk`` wrote or ``load_dataset`` reads, or its name in ``root``; else a name on
            the hub.
        root: see ``where``.
        size: pixels a side (None: their own, where all those looked at are square and of one size).
        reading: the columns, where they are not found.

    Raises:
        UserError: the package is missing, the data cannot be read, or a split or a column is missing or unclear.
    """
    path = located(where, root)
    name = f"hf:{where}"
    tables = _tables(name, where if path is None else str(path), path)
    image, label = _columns(name, tables["train"].features, reading)
    labels, names = _labels(name, tables, label)
    if "test" not in labels and "val" in labels:
        tables["test"], labels["test"] = tables.pop("val"), labels.pop("val")
    columns = {part: _pictures(f"{name}, {labels[part].name}", tables[part], image) for part in labels}
    class_list = class_names(labels, names, name)
    rows, lines = rows_and_lines(labels, class_list, name)
    channels, side = _shape(name, columns, size)
    parts = {
        part: PicturePart(columns[of], chosen, labels[of].numbers[chosen], side, channels)
        for part, (of, chosen) in rows.items()
    }

    def identity() -> str:
        about = [(part, column.digest, labels[part].numbers.tolist()) for part, column in columns.items()]
        return blake2b(repr((about, class_list)).encode(), digest_size=8).hexdigest()

    shape = (channels, side, side)
    return Source(class_list, parts["train"], parts.get("val"), parts["test"], shape, identity, tuple(lines))


def _tables(name: str, place: str, path: Path | None) -> dict[str, Any]:
    """The tables by the part that they are; raises ``UserError`` as ``read_hf``."""
    try:
        from datasets import Dataset, disable_progress_bars, load_dataset, load_from_disk
    except ImportError as error:
        raise UserError(f"--dataset {name}: needs the package: pip install datasets") from error
    disable_progress_bars()
    saved = path is not None and any((path / file).is_file() for file in _SAVED)
    try:
        found = load_from_disk(place) if saved else load_dataset(place)
    except Exception as error:  # whatever the package makes of names, folders and networks
        known = "cannot be read" if path is not None else "no such folder, and not to be had from the hub"
        raise UserError(f"--dataset {name}: {known} ({one_line(error)}); check the folder or name") from error
    splits = {"train": found} if isinstance(found, Dataset) else dict(found)
    there = {part: split for part, names in SPLITS.items() if (split := next((n for n in names if n in splits), None))}
    if "train" not in there:
        raise UserError(f"--dataset {name}: no split train (found {some(list(splits)) or 'none'}); name one so")
    if empty := [split for split in there.values() if not len(splits[split])]:
        raise UserError(f"--dataset {name}: the split {empty[0]} is empty; leave it out")
    return {part: splits[split] for part, split in there.items()}


def _columns(name: str, features: Any, reading: Reading) -> tuple[str, str]:
    """The names of the columns of pictures and of classes; raises ``UserError`` where they are not plain."""
    from datasets import ClassLabel
    from datasets import Image as Picture

    pictures = [column for column, kind in features.items() if isinstance(kind, Picture)]
    classes = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
    numbers = [c for c in features if c in LABEL_COLUMNS and "int" in str(getattr(features[c], "dtype", ""))]
    image = _chosen(name, "--hf_image", "pictures", reading.image, pictures, IMAGE_COLUMNS, list(features))
    label = _chosen(name, "--hf_label", "classes", reading.label, classes or numbers, LABEL_COLUMNS, list(features))
    return image, label


def _chosen(
    name: str, flag: str, what: str, given: str | None, fitting: list[str], usual: tuple[str, ...], columns: list[str]
) -> str:
    """The column that is named, or the only one that fits, or the only one of those with a usual name."""
    if given is not None:
        if given not in columns:
            raise UserError(f"{flag} {given}: {name} has no such column (found {some(columns)}); give one of them")
        return given
    several = [column for column in fitting if column in usual] if len(fitting) > 1 else fitting
    if len(several) == 1:
        return several[0]
    found = (
        f"several columns of {what} ({some(fitting)})" if fitting else f"no column of {what} (found {some(columns)})"
    )
    raise UserError(f"--dataset {name}: {found}; name it by {flag}")


def _labels(name: str, tables: dict[str, Any], column: str) -> tuple[dict[str, Labels], list[str] | None]:
    """The labels of each part that has any, and the classes' names.

    Raises:
        UserError: they are not whole numbers.
    """
    result, feature = {}, tables["train"].features[column]
    for part, table in tables.items():
        if column not in table.column_names:
            raise UserError(f"--dataset {name}: the part {part} has no column {column}; add it or leave the part out")
        values = np.array(table[column])
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise UserError(
                f"--dataset {name}: column {column} does not hold a whole number in each row; name another by "
                "--hf_label, or cast it to ClassLabel"
            )
        if part == "train" or (values != -1).any():
            result[part] = Labels(f"{column} of {part}", torch.from_numpy(values.astype(np.int64)))
    return result, list(names) if (names := getattr(feature, "names", None)) else None


def _pictures(where: str, table: Any, column: str) -> Column:
    """A table's column of pictures, undecoded; raises ``UserError`` where it is none."""
    from datasets import Image as Picture

    if not isinstance(table.features.get(column), Picture):
        raise UserError(f"{where}: column {column} holds no pictures; name another by --hf_image")
    return Column(table.select_columns([column]).cast_column(column, Picture(decode=False)), column, where)


def _shape(name: str, columns: dict[str, Column], size: int | None) -> tuple[int, int]:
    """Channels (1 where those looked at are grey) and pixels a side.

    Raises:
        UserError: no size is given, and they have several, or are not square.
    """
    modes, sizes = set(), set()
    for column in columns.values():
        rows = torch.linspace(0, len(column.table) - 1, min(_LOOKED_AT, len(column.table))).long()
        for number, entry in column.entries(rows):
            picture = column.picture(number, entry)
            modes.add(picture.mode)
            sizes.add(picture.size)
    channels = 1 if modes == {"L"} else 3
    if size is not None:
        return channels, size
    if len(sizes) > 1 or any(width != height for width, height in sizes):
        shown = some([f"{width} x {height}" for width, height in sorted(sizes)])
        raise UserError(f"--dataset {name}: pictures of {shown} pixels; give --im_size, to which they are made to fit")
    return channels, sizes.pop()[0]
