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
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision import datasets
from tqdm import tqdm

from framework.config import UserError
from framework.subsets import SUBSETS

_FILES_PER_TASK = 16
_IMAGES_PER_RESIZE = 4096

# What torchvision raises for a file that is missing, unreachable or not what its name promises.
_TORCHVISION_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, EOFError)
# What Pillow raises for a file that is no image, or only the beginning of one.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


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

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes with whatever ``read`` would return: for files, with names, sizes and
        times of last change, so that no file has to be opened.
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

    def fingerprint(self) -> str:
        """See ``Part.fingerprint``; here that of the pixels."""
        digest = blake2b(repr((torch.__version__, self.size, tuple(self.pixels.shape))).encode(), digest_size=16)
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()


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

    def fingerprint(self) -> str:
        """See ``Part.fingerprint``. Raises ``UserError`` naming the first file that is not there."""
        digest = blake2b(repr((PIL.__version__, self.size)).encode(), digest_size=16)
        # Names below the folder that all have in common: a tree that was moved is still the same.
        common = len(os.path.commonpath(self.paths))
        for path in self.paths:
            try:
                about = os.stat(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); put it there or remove it") from error
            digest.update(os.fsencode(f"{path[common:]}\0{about.st_size}\0{about.st_mtime_ns}\n"))
        return digest.hexdigest()


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

    Where only the files can tell (``imagefolder`` and ImageNet's subsets), they are counted if ``root`` exists.

    Raises:
        UserError: unknown ``name``, ``im_size`` below 1, or such a ``root`` that is not laid out as it should.
    """
    info = _registered(name, im_size)
    if info.train_size is not None or not root.exists():
        return info
    source = _READERS[name](root, info.image_size)
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
    return _mnist("mnist", datasets.MNIST, root, size)


def read_fashion_mnist(root: Path, size: int) -> Source:
    """Fashion-MNIST (1x28x28, ten kinds of clothes) from ``root/FashionMNIST/raw``; downloaded if missing.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv 1708.07747, through torchvision.
    """
    return _mnist("fashion-mnist", datasets.FashionMNIST, root, size)


def read_svhn(root: Path, size: int) -> Source:
    """SVHN's cropped digits (3x32x32, ten digits) from ``root`` or ``root/svhn``; downloaded there if missing.

    The ``extra`` images are not used. Source: Y. Netzer et al., Reading Digits in Natural Images with
    Unsupervised Feature Learning, 2011, through torchvision.
    """
    (url, train, _), (_, test, _) = (datasets.SVHN.split_list[part] for part in ("train", "test"))
    folder = root if (root / train).is_file() else root / "svhn"

    def open_half(half: str, download: bool) -> _Half:
        part = datasets.SVHN(str(folder), split=half, download=download)
        return part.data.transpose(0, 2, 3, 1), part.labels, list(range(10))

    return _torchvision("svhn", open_half, root, size, folder, [train, test], url.rsplit("/", 1)[0])


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


def read_cub(root: Path, size: int) -> Source:
    """CUB-200-2011 (200 kinds of birds) as distributed, in ``root/CUB_200_2011`` or ``root`` itself.

    The halves are those of ``train_test_split.txt``, the classes in the order of ``classes.txt``.
    Source: C. Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001.

    Raises:
        UserError: a file of the distribution is missing, or its tables contradict each other.
    """
    base = root if (root / "images.txt").is_file() else root / "CUB_200_2011"
    if not (base / "images.txt").is_file():
        raise UserError(
            f"--root {root}: {base / 'images.txt'} is missing; get CUB_200_2011.tgz from "
            f"https://www.vision.caltech.edu/datasets/cub_200_2011 and unpack it into {root}"
        )
    files = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    paths, class_of, half_of, classes = (dict(row[:2] for row in _table(base / file, 2, " ")) for file in files)
    for file, table in ((files[1], class_of), (files[2], half_of)):
        if difference := sorted({*table} ^ {*paths}):
            raise UserError(
                f"{base / file}: its images and images.txt differ in {_some(difference)}; unpack the archive again"
            )
    if difference := sorted({*class_of.values()} ^ {*classes}):
        raise UserError(
            f"{base / files[3]}: its classes and {files[1]} differ in {_some(difference)}; unpack the archive again"
        )
    _require_two_classes(tuple(classes), base / files[3])
    label_of = {number: label for label, number in enumerate(classes)}

    def half(flag: str) -> FilePart:
        images = [image for image in paths if half_of[image] == flag]
        labels = [label_of[class_of[image]] for image in images]
        if missing := sorted({*range(len(classes))} - {*labels}):
            name = list(classes.values())[missing[0]]
            which = "training" if flag == "1" else "test"
            raise UserError(f"{base / files[2]}: class {name} has no {which} images; unpack the archive again")
        return FilePart([str(base / "images" / paths[image]) for image in images], torch.tensor(labels), size)

    # "001.Black_footed_Albatross"
    names = tuple(name.split(".", 1)[-1].replace("_", " ") for name in classes.values())
    return Source(names, half("1"), None, half("0"))


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
    base = _imagenet_tree(root)
    class_names = tuple(_folders(base / "train"))
    _require_two_classes(class_names, base / "train")
    return Source(
        class_names,
        _class_folders(base / "train", class_names, size),
        None,
        _class_folders(base / "val", class_names, size),
    )


def read_imagenet_subset(name: str, root: Path, size: int) -> Source:
    """Ten classes of an ImageNet tree (see ``read_imagenet``), in the order of ``subsets.SUBSETS``.

    Other classes of the tree are not looked at, and need not be there.

    Raises:
        UserError: the tree or one of the classes is missing.
    """
    base, classes = _imagenet_tree(root), SUBSETS[name]
    for part in (base / "train", base / "val"):
        if missing := [f"{wnid} ({words})" for wnid, words in classes.items() if not (part / wnid).is_dir()]:
            raise UserError(
                f"--root {root}: {part} lacks {_some(missing)} of {name}; download ILSVRC2012 from "
                f"https://image-net.org and put their images into {part}/WNID/"
            )
    train, val = (_file_part(((wnid, base / part / wnid) for wnid in classes), size) for part in ("train", "val"))
    return Source(tuple(classes.values()), train, None, val)


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


_Half = tuple[Any, Any, Sequence[object]]  # (N, H, W) or (N, H, W, 3) uint8 array, labels, names of classes


def _mnist(name: str, dataset: Any, root: Path, size: int) -> Source:
    files = [Path(archive).stem for archive, _ in dataset.resources]
    return _of_class(name, dataset, root, size, Path(dataset.__name__, "raw"), files, dataset.mirrors[0])


def _cifar(name: str, dataset: Any, root: Path, size: int) -> Source:
    files = [file for file, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]
    # The files are pickles: torchvision compares their MD5 sums with the published ones before opening them.
    return _of_class(name, dataset, root, size, Path(dataset.base_folder), files, dataset.url)


def _of_class(name: str, dataset: Any, root: Path, size: int, subfolder: Path, files: list[str], url: str) -> Source:
    """Read one of torchvision's classes, which download both halves at once."""

    def open_half(half: str, download: bool) -> _Half:
        train = half == "train"
        part = dataset(str(root), train=train, download=download and train)
        return part.data, part.targets, part.classes

    return _torchvision(name, open_half, root, size, root / subfolder, files, url)


def _torchvision(
    name: str, open_half: Callable[[str, bool], _Half], root: Path, size: int, folder: Path, files: list[str], url: str
) -> Source:
    """Read both halves of torchvision's data set ``name``, after a download if ``folder`` lacks one of ``files``.

    Args:
        open_half: called with ``train`` or ``test`` and whether to download.
        url: where the files come from, for a person to read.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        print(f"{name}: {folder} lacks {_some(missing)}; downloading", file=sys.stderr)
    try:
        halves = [open_half(half, bool(missing)) for half in ("train", "test")]
        parts = [_whole(data, targets, _INFO[name], size) for data, targets, _ in halves]
    except _TORCHVISION_ERRORS as error:
        if missing:
            raise UserError(
                f"--root {root}: {name} is not there and its download failed ({one_line(error)}); "
                f"put {', '.join(files)} into {folder} (from {url})"
            ) from error
        raise UserError(
            f"--root {root}: the {name} files in {folder} are damaged ({one_line(error)}); "
            f"remove them to have them downloaded again"
        ) from error
    # MNIST's classes are called "0 - zero" and so on.
    return Source(tuple(str(label).split(" - ")[0] for label in halves[0][2]), parts[0], None, parts[1])


def _whole(data: Any, targets: Any, info: DatasetInfo, size: int) -> ArrayPart:
    """Turn torchvision's (N, H, W) or (N, H, W, 3) uint8 array and its targets into a part."""
    pixels, labels = torch.as_tensor(data), torch.as_tensor(targets)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    if pixels.shape != (len(labels), info.channels, info.image_size, info.image_size):
        raise ValueError(f"{len(labels)} labels for images of shape {tuple(pixels.shape)}")
    if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < (info.num_classes or 0):
        raise ValueError("labels are missing or out of range")
    return ArrayPart(pixels, labels, size)


def _imagenet_tree(root: Path) -> Path:
    """The folder that holds ``train`` and ``val``: ``root/imagenet`` or ``root`` itself."""
    base = root / "imagenet" if (root / "imagenet").is_dir() else root
    for part in (base / "train", base / "val"):
        if not part.is_dir():
            raise UserError(
                f"--root {root}: {part} is missing; download ILSVRC2012 from https://image-net.org "
                f"and put its images into {part}/WNID/"
            )
    for part in (base / "train", base / "val"):
        if not _folders(part):
            raise UserError(f"--root {root}: {part} holds no folders; sort its images into {part}/WNID/")
    return base


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


def _table(path: Path, columns: int, separator: str = "\t") -> list[list[str]]:
    """Return the lines of ``path``, each split into its fields, of which it must have at least ``columns``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); unpack the archive again") from error
    rows = [line.split(separator) for line in lines if line.strip()]
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
        DatasetInfo("fashion-mnist", 1, 28, 10, 60_000, 10_000),
        DatasetInfo("svhn", 3, 32, 10, 73_257, 26_032),
        DatasetInfo("cifar10", 3, 32, 10, 50_000, 10_000),
        DatasetInfo("cifar100", 3, 32, 100, 50_000, 10_000),
        DatasetInfo("tiny-imagenet-200", 3, 64, 200, 100_000, 10_000),
        DatasetInfo("cub-200-2011", 3, 32, 200, 5_994, 5_794),
        DatasetInfo("imagenet", 3, 64, 1000, 1_281_167, 50_000),
        *(DatasetInfo(name, 3, 128, 10, None, None) for name in SUBSETS),
        DatasetInfo("imagefolder", 3, 32, None, None, None),
    )
}

_READERS: dict[str, Reader] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "fashion-mnist": read_fashion_mnist,
    "svhn": read_svhn,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny-imagenet-200": read_tiny_imagenet,
    "cub-200-2011": read_cub,
    "imagenet": read_imagenet,
    **{name: partial(read_imagenet_subset, name) for name in SUBSETS},
    "imagefolder": read_imagefolder,
}
