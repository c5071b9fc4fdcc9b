"""Readers: one function per data set, from files to uint8 pixels and integer labels.

A reader lists what is there and checks it, but decodes nothing: a ``Part`` knows all its labels, and
``Part.read`` decodes the images that are asked for. So splits are drawn, and memory is checked, before
the first image file is opened.

Pixels are ``(N, C, H, W)`` uint8 in 0..255, labels ``(N,)`` int64; both live on the CPU. Whatever is
wrong with the files is raised as a one-line ``UserError`` that names the file or the flag.
"""

import os
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision import datasets
from tqdm import tqdm

from framework.config import UserError

_FILES_PER_TASK = 64
_IMAGES_PER_RESIZE = 4096

# What torchvision raises for a file that is missing, unreachable or not what its name promises.
_TORCHVISION_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, EOFError)
# What Pillow raises for a file that is no image, or only the beginning of one.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any image is read.

    ``None`` stands for a number that only the files can tell (``imagefolder`` without its folder).
    """

    name: str
    channels: int
    image_size: int
    """Height and width in pixels, after ``--im_size``."""
    num_classes: int | None
    train_size: int | None
    """Images distributed as training data, before a validation split is taken from them."""
    test_size: int | None


class Part(Protocol):
    """One part (train, val, test) of a data set, as it is distributed."""

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64 in 0..num_classes-1."""

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """Decode the images at ``indices`` (n,) int64; returns (n, C, H, W) uint8.

        Args:
            indices: which images, in the order they are wanted.
            workers: threads that decode files, 0 for one per core.
            progress: show a progress bar on stderr while files are decoded.
        """


@dataclass(frozen=True)
class ArrayPart:
    """Images that came as one array, resized to ``size`` pixels a side when read."""

    pixels: torch.Tensor
    labels: torch.Tensor
    size: int

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """See ``Part.read``; the array is in memory, so there is no file to spread over workers."""
        chosen = self.pixels[indices]
        if chosen.shape[-1] == self.size:
            return chosen
        return torch.cat([_resize(chunk, self.size) for chunk in torch.split(chosen, _IMAGES_PER_RESIZE)])


@dataclass(frozen=True)
class FilePart:
    """Images in files of their own; the shorter side is resized to ``size``, the rest cropped centrally."""

    paths: Sequence[str]
    labels: torch.Tensor
    size: int

    def read(self, indices: torch.Tensor, workers: int = 0, progress: bool = False) -> torch.Tensor:
        """See ``Part.read``. Raises ``UserError`` naming the first file that is not a readable image."""
        chosen = [self.paths[i] for i in indices.tolist()]
        pixels = np.empty((len(chosen), 3, self.size, self.size), dtype=np.uint8)

        def decode(start: int) -> int:
            paths = chosen[start : start + _FILES_PER_TASK]
            for row, path in enumerate(paths, start):
                pixels[row] = decode_image(path, self.size).transpose(2, 0, 1)
            return len(paths)

        # Threads are enough: Pillow releases the interpreter lock while it decodes and resizes.
        with (
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
            tqdm(total=len(chosen), desc="decoding", unit="image", leave=False, disable=not progress) as bar,
        ):
            for done in pool.map(decode, range(0, len(chosen), _FILES_PER_TASK)):
                bar.update(done)
        return torch.from_numpy(pixels)


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk. ``val`` is there only if the data set comes with one."""

    class_names: tuple[str, ...]
    train: Part
    val: Part | None
    test: Part


Reader = Callable[[Path, int], Source]
"""``reader(root, size)``: lists the data set under ``root``; images will be ``size`` pixels a side."""


def dataset_names() -> tuple[str, ...]:
    """The values that ``--dataset`` takes."""
    return tuple(_READERS)


def describe(name: str, root: Path, im_size: int | None) -> DatasetInfo:
    """Return what is known of a data set without reading an image.

    Only ``imagefolder`` looks at ``root``, and counts its files if the folder exists.

    Raises:
        UserError: unknown ``name``, ``im_size`` below 1, or an ``imagefolder`` that is not laid out as one.
    """
    info = _registered(name, im_size)
    if name != "imagefolder" or not root.exists():
        return info
    source = read_imagefolder(root, info.image_size)
    return replace(
        info,
        num_classes=len(source.class_names),
        train_size=len(source.train.labels),
        test_size=len(source.test.labels),
    )


def open_source(name: str, root: Path, im_size: int | None) -> tuple[DatasetInfo, Source]:
    """List data set ``name`` under ``root``; raises ``UserError`` as ``describe`` and its reader do."""
    info = _registered(name, im_size)
    return info, _READERS[name](root, info.image_size)


def read_digits(root: Path, size: int) -> Source:
    """scikit-learn's 8x8 grey digits: 1437 training and 360 test images, in a fixed stratified split.

    They ship with scikit-learn, so ``root`` is not looked at. Their grey levels 0..16 become 0..255.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    # Imported here because scikit-learn takes a second to import and no other data set needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    halves = train_test_split(np.arange(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    train, test = (ArrayPart(pixels[half], labels[half], size) for half in map(torch.from_numpy, halves))
    return Source(tuple(map(str, range(10))), train, None, test)


def read_mnist(root: Path, size: int) -> Source:
    """MNIST (1x28x28, ten digits) from ``root/MNIST/raw``; downloaded there if it is missing.

    Source: Y. LeCun, C. Cortes and C. J. C. Burges, through ``torchvision.datasets.MNIST``.
    """
    files = [Path(archive).stem for archive, _ in datasets.MNIST.resources]
    return _torchvision("mnist", datasets.MNIST, root, size, Path("MNIST", "raw"), files)


def read_cifar10(root: Path, size: int) -> Source:
    """CIFAR-10 (3x32x32) from ``root/cifar-10-batches-py``; downloaded there if it is missing.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, through torchvision.
    """
    return _cifar("cifar10", datasets.CIFAR10, root, size)


def read_cifar100(root: Path, size: int) -> Source:
    """CIFAR-100 (3x32x32, fine labels) from ``root/cifar-100-python``; downloaded there if it is missing.

    Source: as ``read_cifar10``.
    """
    return _cifar("cifar100", datasets.CIFAR100, root, size)


def read_imagefolder(root: Path, size: int) -> Source:
    """A tree ``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``val`` for ``test``) of image files.

    With both ``test`` and ``val``, ``val`` is the validation part. Classes are the folders' names, sorted;
    hidden entries, and folders inside a class's folder, are not looked at.

    Raises:
        UserError: a folder is missing or empty, classes differ between parts, or there is only one class.
    """
    if not root.is_dir():
        raise UserError(f"--root {root}: no such folder; give one that holds train/CLASS/* and test/CLASS/*")
    has_train, has_val, has_test = ((root / part).is_dir() for part in ("train", "val", "test"))
    if not has_train or not (has_val or has_test):
        missing = "test or val" if has_train else "train"
        raise UserError(f"--root {root}: it holds no folder {missing}; lay images out as train/CLASS/*, test/CLASS/*")
    class_names = tuple(_folders(root / "train"))
    _require_two_classes(class_names, root / "train")
    return Source(
        class_names,
        _class_folders(root / "train", class_names, size),
        _class_folders(root / "val", class_names, size) if has_test and has_val else None,
        _class_folders(root / ("test" if has_test else "val"), class_names, size),
    )


def read_tiny_imagenet(root: Path, size: int) -> Source:
    """Tiny-ImageNet (3x64x64, 200 classes) as distributed, in ``root/tiny-imagenet-200`` or ``root`` itself.

    The distributed validation images are the test part, as the distributed test images have no labels.
    Classes are sorted by WordNet id and named by the first synonym in ``words.txt``.
    Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip.

    Raises:
        UserError: a file of the distribution is missing or damaged.
    """
    base = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    if not (base / "wnids.txt").is_file():
        raise UserError(
            f"--root {root}: {base / 'wnids.txt'} is missing; unpack "
            f"http://cs231n.stanford.edu/tiny-imagenet-200.zip into {root}"
        )
    wnids = tuple(sorted(line[0] for line in _table(base / "wnids.txt", 1)))
    _require_two_classes(wnids, base / "wnids.txt")
    words = {wnid: synonyms for wnid, synonyms, *_ in _table(base / "words.txt", 2)}
    annotations = base / "val" / "val_annotations.txt"
    rows = _table(annotations, 2)
    if unknown := sorted({*wnids} - {*words}):
        raise UserError(f"{base / 'words.txt'}: it has no name for {_some(unknown)}; unpack the archive again")
    if unknown := sorted({wnid for _, wnid, *_ in rows} ^ {*wnids}):
        raise UserError(
            f"{annotations}: its classes and wnids.txt differ in {_some(unknown)}; unpack the archive again"
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    return Source(
        tuple(words[wnid].split(",")[0].strip() for wnid in wnids),
        _file_part(((wnid, base / "train" / wnid / "images") for wnid in wnids), size),
        None,
        FilePart(
            [str(base / "val" / "images" / file) for file, *_ in rows],
            torch.tensor([label_of[wnid] for _, wnid, *_ in rows]),
            size,
        ),
    )


def read_imagenet(root: Path, size: int) -> Source:
    """ImageNet-1k as ``train/WNID/*`` and ``val/WNID/*``, in ``root/imagenet`` or ``root`` itself.

    ``val`` is the test part, as ImageNet's own test labels are not public. Any number of classes is taken.
    Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015.

    Raises:
        UserError: as ``read_imagefolder``, or the folders are missing.
    """
    base = root / "imagenet" if (root / "imagenet").is_dir() else root
    for part in (base / "train", base / "val"):
        if not part.is_dir():
            raise UserError(
                f"--root {root}: {part} is missing; download ILSVRC2012 from https://image-net.org "
                f"and put its images into {base / part.name}/WNID/"
            )
    class_names = tuple(_folders(base / "train"))
    _require_two_classes(class_names, base / "train")
    return Source(
        class_names,
        _class_folders(base / "train", class_names, size),
        None,
        _class_folders(base / "val", class_names, size),
    )


def decode_image(path: str, size: int) -> npt.NDArray[np.uint8]:
    """Return the image at ``path`` as (size, size, 3) uint8 RGB.

    The shorter side is resized to ``size`` (bilinear, antialiased) and the centre kept. 16-bit grey levels
    keep their upper 8 bits.

    Raises:
        UserError: the file is missing, damaged, no image, or has levels that no 8-bit image can show.
    """
    try:
        with Image.open(path) as image:
            rgb = _sixteen_to_eight_bits(image).convert("RGB")
            return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR))
    except _PILLOW_ERRORS as error:
        raise UserError(f"{path}: not a readable image ({one_line(error)}); replace or remove it") from error


def one_line(error: BaseException) -> str:
    """An error's text on one line of at most 160 characters, for use inside another message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point grey levels have no fixed range, save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    # Pillow's own conversion clips at 255, which would turn most 16-bit images white.
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise ValueError("grey levels outside 0..65535, save it with 8 or 16 bits")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _resize(pixels: torch.Tensor, size: int) -> torch.Tensor:
    resized = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _cifar(name: str, dataset: Any, root: Path, size: int) -> Source:
    files = [file for file, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]
    # The files are pickles: torchvision compares their MD5 sums with the published ones before opening them.
    return _torchvision(name, dataset, root, size, Path(dataset.base_folder), files)


def _torchvision(name: str, dataset: Any, root: Path, size: int, subfolder: Path, files: list[str]) -> Source:
    """Read torchvision's ``dataset``, after a download if one of ``files`` is missing."""
    folder = root / subfolder
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        print(f"{name}: {folder} lacks {_some(missing)}; downloading", file=sys.stderr)
    try:
        train = dataset(str(root), train=True, download=bool(missing))
        test = dataset(str(root), train=False, download=False)
        # MNIST's classes are called "0 - zero" and so on.
        class_names = tuple(str(label).split(" - ")[0] for label in train.classes)
        parts = [_whole(part.data, part.targets, _INFO[name], size) for part in (train, test)]
    except _TORCHVISION_ERRORS as error:
        if missing:
            raise UserError(
                f"--root {root}: {name} is not there and its download failed ({one_line(error)}); "
                f"put {', '.join(files)} into {folder}"
            ) from error
        raise UserError(
            f"--root {root}: the {name} files in {folder} are damaged ({one_line(error)}); "
            f"remove that folder to have them downloaded again"
        ) from error
    return Source(class_names, parts[0], None, parts[1])


def _whole(data: Any, targets: Any, info: DatasetInfo, size: int) -> ArrayPart:
    """Turn torchvision's (N, H, W) or (N, H, W, 3) uint8 array and its targets into a part."""
    pixels, labels = torch.as_tensor(data), torch.as_tensor(targets)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    if pixels.shape != (len(labels), info.channels, info.image_size, info.image_size):
        raise ValueError(f"{len(labels)} labels for images of shape {tuple(pixels.shape)}")
    if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < (info.num_classes or 0):
        raise ValueError("labels are missing or out of range")
    return ArrayPart(pixels, labels, size)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check that --root is right") from error


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _class_folders(folder: Path, class_names: tuple[str, ...], size: int) -> FilePart:
    """List ``folder/CLASS/*``, whose classes must be exactly ``class_names``."""
    if difference := sorted({*_folders(folder)} ^ {*class_names}):
        raise UserError(
            f"{folder}: its classes differ from the training classes in {_some(difference)}; make them equal"
        )
    return _file_part(((name, folder / name) for name in class_names), size)


def _file_part(folders: Iterable[tuple[str, Path]], size: int) -> FilePart:
    """List the files of one folder per class; ``folders`` yields (class name, folder) in label order."""
    paths: list[str] = []
    counts: list[int] = []
    for name, folder in folders:
        files = [entry.path for entry in _visible(folder) if entry.is_file()]
        if not files:
            raise UserError(f"{folder}: class {name} has no images; put some there or remove the class")
        paths += files
        counts.append(len(files))
    return FilePart(paths, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), size)


def _require_two_classes(class_names: Sequence[str], where: Path) -> None:
    if len(class_names) < 2:
        raise UserError(f"{where}: found {len(class_names)} class(es), but it takes at least 2 to classify")


def _table(path: Path, columns: int) -> list[list[str]]:
    """Return the tab-separated lines of ``path``, each of which must have at least ``columns`` fields."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); unpack the archive again") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows or min(map(len, rows)) < columns:
        raise UserError(f"{path}: expected lines of at least {columns} fields; unpack the archive again")
    return rows


def _some(names: Sequence[str]) -> str:
    """Name a few of ``names`` and count the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _registered(name: str, im_size: int | None) -> DatasetInfo:
    if name not in _INFO:
        raise UserError(f"--dataset {name}: unknown; choose one of {', '.join(_INFO)}")
    if im_size is not None and im_size < 1:
        raise UserError(f"--im_size {im_size}: an image needs at least 1 pixel a side")
    return replace(_INFO[name], image_size=im_size or _INFO[name].image_size)


_INFO = {
    info.name: info
    for info in (
        DatasetInfo("digits", 1, 8, 10, 1437, 360),
        DatasetInfo("mnist", 1, 28, 10, 60_000, 10_000),
        DatasetInfo("cifar10", 3, 32, 10, 50_000, 10_000),
        DatasetInfo("cifar100", 3, 32, 100, 50_000, 10_000),
        DatasetInfo("tiny-imagenet-200", 3, 64, 200, 100_000, 10_000),
        DatasetInfo("imagenet", 3, 64, 1000, 1_281_167, 50_000),
        DatasetInfo("imagefolder", 3, 32, None, None, None),
    )
}

_READERS: dict[str, Reader] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny-imagenet-200": read_tiny_imagenet,
    "imagenet": read_imagenet,
    "imagefolder": read_imagefolder,
}
