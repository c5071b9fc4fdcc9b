"""Readers of the data sets that torchvision downloads.

Pixels are ``(N, C, H, W)`` uint8 in 0..255, labels ``(N,)`` int64; both live on the CPU. Whatever is
wrong with the files is raised as a one-line ``UserError`` that names the file or the flag.
"""

import gzip
import sys
import zlib
from collections.abc import Callable, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from framework.data.folders import some
from framework.data.parts import ArrayPart, Source
from framework.data.registry import DATASETS, DatasetInfo
from framework.errors import UserError, one_line

# What torchvision raises for a file that is missing, unreachable or not what its name promises.
_TORCHVISION_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, EOFError)

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its gzipped IDX files."""

# MD5 of what the archives hold: the package has compressed it anew.
DEBIAN_SUMS = {
    "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
}


def read_mnist(root: Path, size: int) -> Source:
    """MNIST (1x28x28, ten digits) from ``root/MNIST/raw``; downloaded there if it is missing.

    Source: Y. LeCun, C. Cortes and C. J. C. Burges, through ``torchvision.datasets.MNIST``.
    """
    return _mnist("mnist", datasets.MNIST, root, size)


def read_fashion_mnist(root: Path, size: int) -> Source:
    """Fashion-MNIST (1x28x28, ten kinds of clothes) from ``root/FashionMNIST/raw``, else from Debian's package.

    Downloaded to ``root`` where neither is there. Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST,
    arXiv 1708.07747, through torchvision or ``dataset-fashion-mnist``.
    """
    raw = root / "FashionMNIST" / "raw"
    here = all((raw / Path(file).stem).is_file() for file in DEBIAN_SUMS)
    if not here and all((DEBIAN_FASHION / file).is_file() for file in DEBIAN_SUMS):
        return _debian_fashion(size)
    remedy = "; or apt-get install dataset-fashion-mnist"
    return _mnist("fashion-mnist", datasets.FashionMNIST, root, size, remedy)


def _debian_fashion(size: int) -> Source:
    """Fashion-MNIST from Debian's package.

    Raises:
        UserError: a file cannot be read, or does not hold what was published.
    """
    content = {file: _unpacked(DEBIAN_FASHION / file, known) for file, known in DEBIAN_SUMS.items()}

    def part(prefix: str) -> ArrayPart:
        # IDX: four bytes of magic, four for each dimension, then the values.
        pixels = np.frombuffer(content[f"{prefix}-images-idx3-ubyte.gz"], np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.frombuffer(content[f"{prefix}-labels-idx1-ubyte.gz"], np.uint8, offset=8).astype(np.int64)
        return _whole(pixels.copy(), labels, DATASETS["fashion-mnist"], size)

    return Source(tuple(datasets.FashionMNIST.classes), part("train"), None, part("t10k"))


def _unpacked(file: Path, known: str) -> bytes:
    """What a gzipped file holds, which must have the MD5 sum ``known``."""
    remedy = "install the package dataset-fashion-mnist again, or put the data set into --root"
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)}); {remedy}") from error
    if md5(content, usedforsecurity=False).hexdigest() != known:
        raise UserError(f"{file}: not the published file (its checksum differs); {remedy}")
    return content


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


def present(name: str, root: Path) -> bool:
    """Whether a data set that is downloaded where it is missing is there already; of others, False."""
    if name == "svhn":
        halves = [datasets.SVHN.split_list[part][1] for part in ("train", "test")]
        return any(all((folder / file).is_file() for file in halves) for folder in (root, root / "svhn"))
    places = {
        "mnist": _mnist_files(datasets.MNIST), "fashion-mnist": _mnist_files(datasets.FashionMNIST),
        "cifar10": _cifar_files(datasets.CIFAR10), "cifar100": _cifar_files(datasets.CIFAR100),
    }  # fmt: skip
    packaged = name == "fashion-mnist" and all((DEBIAN_FASHION / file).is_file() for file in DEBIAN_SUMS)
    return packaged or (name in places and all((root / file).is_file() for file in places[name]))


_Half = tuple[Any, Any, Sequence[object]]  # (N, H, W) or (N, H, W, 3) uint8 array, labels, names of classes


def _mnist_files(dataset: Any) -> list[Path]:
    """Below ``--root``."""
    return [Path(dataset.__name__, "raw", Path(archive).stem) for archive, _ in dataset.resources]


def _cifar_files(dataset: Any) -> list[Path]:
    """Below ``--root``."""
    names = [file for file, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]
    return [Path(dataset.base_folder, name) for name in names]


def _mnist(name: str, dataset: Any, root: Path, size: int, remedy: str = "") -> Source:
    return _of_class(name, dataset, root, size, _mnist_files(dataset), dataset.mirrors[0], remedy)


def _cifar(name: str, dataset: Any, root: Path, size: int) -> Source:
    # The files are pickles: torchvision compares their MD5 sums with the published ones before opening them.
    return _of_class(name, dataset, root, size, _cifar_files(dataset), dataset.url)


def _of_class(name: str, dataset: Any, root: Path, size: int, files: list[Path], url: str, remedy: str = "") -> Source:
    """Read one of torchvision's classes, which download both halves at once."""

    def open_half(half: str, download: bool) -> _Half:
        train = half == "train"
        part = dataset(str(root), train=train, download=download and train)
        return part.data, part.targets, part.classes

    folder, names = root / files[0].parent, [file.name for file in files]
    return _torchvision(name, open_half, root, size, folder, names, url, remedy)


def _torchvision(
    name: str,
    open_half: Callable[[str, bool], _Half],
    root: Path,
    size: int,
    folder: Path,
    files: list[str],
    url: str,
    remedy: str = "",
) -> Source:
    """Read both halves of torchvision's data set ``name``, after a download if ``folder`` lacks one of ``files``.

    Args:
        open_half: called with ``train`` or ``test`` and whether to download.
        url: where the files come from, for a person to read.
        remedy: another way to get them, at the end of the message.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        print(f"{name}: {folder} lacks {some(missing)}; downloading", file=sys.stderr)
    try:
        halves = [open_half(half, bool(missing)) for half in ("train", "test")]
        parts = [_whole(data, targets, DATASETS[name], size) for data, targets, _ in halves]
    except _TORCHVISION_ERRORS as error:
        if missing:
            raise UserError(
                f"--root {root}: {name} is not there and its download failed ({one_line(error)}); "
                f"put {', '.join(files)} into {folder} (from {url}){remedy}"
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
