"""Every data set by its name in ``--dataset``: the one table of them, and the kinds of one's own.

One's own data are named ``KIND:WHERE``, as ``npz:FILE``. A reader is imported when a data set is opened: the names are
needed where PyTorch is not, as in ``--help``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from framework.data.subsets import SUBSETS
from framework.errors import UserError, reachable

if TYPE_CHECKING:
    from framework.data.parts import Reader, Source


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any image is read.

    ``None`` stands for a number that only the files can tell.
    """

    name: str
    channels: int
    image_size: int
    """Height and width in pixels, after ``--im_size``."""
    num_classes: int | None
    train_size: int | None
    """Images distributed as training data, before a validation split is taken from them."""
    test_size: int | None
    reader: str
    """What lists it, as ``module:name`` in this package; see ``parts.Reader``."""
    origin: str
    """``embedded``, ``downloaded`` to ``--root`` where it is missing, image ``files`` that the user has, or ``own``:
    data that ``--dataset`` itself names, of which channels, sizes and classes are known once they are listed."""
    upright: bool = False
    """Mirrored, its images would mean something else."""
    ddranking: str | None = None
    """Its name in the package ddranking."""
    traces: tuple[str, ...] = ()
    """Of image files: below ``--root``, one of these is there where the data set is."""


_LONGEST = 80  # characters of a label
_SUBSET = "folders:read_imagenet_subset"
_TREE = ("imagenet", "train")  # of ImageNet
_DDRANKING = {f"image{kind.lower()}": f"Image{kind}" for kind in ("Nette", "Woof", "Fruit", "Meow", "Squawk", "Yellow")}
# fmt: off
DATASETS: dict[str, DatasetInfo] = {info.name: info for info in (
    DatasetInfo("digits", 1, 8, 10, 1437, 360, "digits:read_digits", "embedded", upright=True),
    DatasetInfo("mnist", 1, 28, 10, 60_000, 10_000, "readers:read_mnist", "downloaded", upright=True),
    DatasetInfo("fashion-mnist", 1, 28, 10, 60_000, 10_000, "readers:read_fashion_mnist", "downloaded"),
    DatasetInfo("svhn", 3, 32, 10, 73_257, 26_032, "readers:read_svhn", "downloaded", upright=True),
    DatasetInfo("cifar10", 3, 32, 10, 50_000, 10_000, "readers:read_cifar10", "downloaded", ddranking="CIFAR10"),
    DatasetInfo("cifar100", 3, 32, 100, 50_000, 10_000, "readers:read_cifar100", "downloaded", ddranking="CIFAR100"),
    DatasetInfo("tiny-imagenet-200", 3, 64, 200, 100_000, 10_000, "folders:read_tiny_imagenet", "files",
                ddranking="TinyImageNet", traces=("tiny-imagenet-200", "wnids.txt")),
    DatasetInfo("cub-200-2011", 3, 32, 200, 5_994, 5_794, "folders:read_cub", "files",
                traces=("CUB_200_2011", "images.txt")),
    DatasetInfo("imagenet", 3, 64, 1000, 1_281_167, 50_000, "folders:read_imagenet", "files", ddranking="ImageNet1K",
                traces=_TREE),
    *(DatasetInfo(name, 3, 128, 10, None, None, _SUBSET, "files", ddranking=_DDRANKING[name], traces=_TREE)
      for name in SUBSETS),
    DatasetInfo("imagefolder", 3, 32, None, None, None, "folders:read_imagefolder", "files", traces=("",)),
)}
OWN: dict[str, DatasetInfo] = {info.name: info for info in (
    DatasetInfo("npz", 3, 32, None, None, None, "arrays:read_npz", "own"),
    DatasetInfo("hf", 3, 32, None, None, None, "huggingface:read_hf", "own"),
)}
"""Kinds of the user's own data, by what stands before the colon; each with the word that ``FORMS`` has after it."""
FORMS = {"npz": "FILE", "hf": "FOLDER_OR_NAME"}
# fmt: on


@dataclass(frozen=True)
class Reading:
    """What files of one's own may leave open."""

    white: int | None = None
    """The value of a white pixel in floating-point images, 1 or 255; None: as the values tell."""
    image: str | None = None
    """The column of pictures in a table; None: the one that is plain."""
    label: str | None = None
    """That of classes."""


class Names(tuple[str, ...]):
    """Names of data sets, for messages; it contains whatever names one's own data, too."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_own(name))


NAMES = Names((*DATASETS, *(f"{kind}:{form}" for kind, form in FORMS.items())))
"""Of ``--dataset``."""


def is_own(name: str) -> bool:
    """Whether a name is that of one's own data: ``KIND:WHERE``."""
    kind, colon, where = name.partition(":")
    return bool(colon and where) and kind in OWN


def kind_of(name: str) -> str:
    """What a data set is called wherever it lies: its own name, or ``npz`` for ``npz:FILE``."""
    return name.partition(":")[0] if is_own(name) else name


def label_of(name: str) -> str:
    """What a data set is called in names of folders, tables and cards: ``npz-flowers`` for ``npz:my/flowers.npz``."""
    if not is_own(name):
        return name
    kind, _, where = name.partition(":")
    stem = Path(where).stem if kind == "npz" else Path(where).name
    safe = re.sub(r"[^a-zA-Z0-9_.-]+", "-", stem)[:_LONGEST].strip("-.")
    return f"{kind}-{safe or 'data'}"


def known(name: str) -> DatasetInfo:
    """What the tables have of a data set; raises ``KeyError`` for none of them."""
    return OWN[kind_of(name)] if is_own(name) else DATASETS[name]


def located(where: str, root: Path) -> Path | None:
    """The file or folder that ``KIND:WHERE`` names: as it is given, else by its own name in ``root``; None: neither.

    Raises:
        PermissionError: this user may not look there.
    """
    for path in (Path(where), root / Path(where).name):
        try:
            if path.exists():
                return path
        except PermissionError:
            raise
        except OSError:  # no name of a file
            continue
    return None


def of_origin(origin: str) -> tuple[str, ...]:
    """The names of all data sets of this ``DatasetInfo.origin``."""
    return tuple(info.name for info in DATASETS.values() if info.origin == origin)


def describe(name: str, root: Path, im_size: int | None) -> DatasetInfo:
    """Return what is known of a data set without reading an image.

    Where only the files can tell (``imagefolder`` and ImageNet's subsets), they are counted if ``root`` exists; one's
    own data must be there.

    Raises:
        UserError: unknown ``name``, ``im_size`` below 1, or such a ``root`` that is not laid out as it should.
    """
    info = _registered(name, im_size)
    with reachable():
        if info.origin == "own":
            info, source = open_source(name, root, im_size)
        elif info.train_size is not None or not root.exists():
            return info
        else:
            source = _reader(info)(root, info.image_size)
    return replace(
        info,
        num_classes=len(source.class_names),
        train_size=len(source.train.labels),
        test_size=len(source.test.labels),
    )


def at_hand(name: str, root: Path) -> bool:
    """Whether a data set can be listed as it is, without a download."""
    info = known(name)
    with reachable():
        return info.origin in ("embedded", "own") or any((root / trace).exists() for trace in info.traces)


def open_source(
    name: str, root: Path, im_size: int | None, reading: Reading | None = None
) -> "tuple[DatasetInfo, Source]":
    """List data set ``name`` under ``root``; raises ``UserError`` as ``describe`` and its reader do.

    Args:
        name: see ``NAMES``.
        root: folder of its files.
        im_size: pixels a side (None: its own).
        reading: what the user says of their own data.
    """
    info = _registered(name, im_size)
    with reachable():
        if info.origin != "own":
            return info, _reader(info)(root, info.image_size)
        where = name.partition(":")[2]
        source: Source = resolve_name(f"framework.data.{info.reader}")(where, root, im_size, reading or Reading())
    assert source.shape is not None, "its files alone tell"
    return replace(info, channels=source.shape[0], image_size=source.shape[1]), source


def _registered(name: str, im_size: int | None) -> DatasetInfo:
    if name not in NAMES:
        raise UserError(f"--dataset {name}: unknown; choose one of {', '.join(NAMES)}")
    if im_size is not None and im_size < 1:
        raise UserError(f"--im_size {im_size}: an image needs at least 1 pixel a side")
    return replace(known(name), image_size=im_size or known(name).image_size)


def _reader(info: DatasetInfo) -> "Reader":
    """Its ``reader``; one that serves several data sets is told which."""
    reader: Callable[..., Source] = resolve_name(f"framework.data.{info.reader}")
    return partial(reader, info.name) if info.reader == _SUBSET else reader
