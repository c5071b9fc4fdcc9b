"""Readers on tiny trees in their true layout, and on the real files where they are at hand."""

import gzip
import hashlib
import os
import pickle
import re
import struct
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from shutil import rmtree
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from cli import refused
from loading import loaded
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets
from torchvision.models._meta import _IMAGENET_CATEGORIES

from framework.config.bptt import FLAGS
from framework.data import parts, readers, registry
from framework.data.digits import read_digits
from framework.data.folders import read_cub, read_imagefolder, read_imagenet, read_tiny_imagenet
from framework.data.parts import ArrayPart, Part, Source, decode_image
from framework.data.readers import read_cifar10, read_fashion_mnist, read_mnist, read_svhn
from framework.data.registry import DATASETS, FORMS, OWN, open_source
from framework.data.subsets import SUBSETS
from framework.distilled import formats
from framework.errors import UserError, one_line

Tree = Callable[..., Path]


def everything(part: Part) -> torch.Tensor:
    return part.read(torch.arange(len(part.labels)))


def picture(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder_tree(tmp_path: Path) -> Tree:
    """Write ROOT/PART/CLASS/N.png with ``per_class`` images, red = 10 * label."""

    def write(parts: tuple[str, ...] = ("train", "test"), classes: str = "ab", per_class: int = 3) -> Path:
        for part in parts:
            for label, name in enumerate(classes):
                for i in range(per_class):
                    picture(tmp_path / part / name / f"{i}.png", (10 * label, i, 0))
        return tmp_path

    return write


def write_mnist(root: Path, train: int = 20, test: int = 10, name: str = "MNIST") -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = (np.arange(count * 784) % 251).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels.tobytes())
    return raw


def write_cifar(root: Path, dataset: type, classes: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write batches of ``classes`` images each in CIFAR's layout, and let torchvision accept their sums."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    for seed, (file, _) in enumerate((*dataset.train_list, *dataset.test_list)):
        pixels = np.random.default_rng(seed).integers(0, 256, (classes, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, key: list(range(classes))}))
    names = {dataset.meta["key"]: [f"class{i}" for i in range(classes)]}
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(names))
    monkeypatch.setattr(dataset, "train_list", [(file, None) for file, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [(file, None) for file, _ in dataset.test_list])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": None})
    return folder


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write SVHN's two halves, digit 0 labelled 10 as there, and let torchvision accept their sums."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for half, count in (("train", 20), ("test", 10)):
        written[half] = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8).reshape(-1, 1)
        savemat(folder / f"{half}_32x32.mat", {"X": written[half], "y": labels})
    sums = {half: [url, file, None] for half, (url, file, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)
    return written


def write_cub(base: Path) -> Path:
    """Three classes of three images, of which every third is a test image; red = 80 * label."""
    classes = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")
    tables: dict[str, list[str]] = {"classes": [f"{k + 1} {name}" for k, name in enumerate(classes)]}
    for i in range(9):
        file = f"{classes[i // 3]}/Bird_{i:04}.jpg"
        picture(base / "images" / file, (80 * (i // 3), 0, 0), (50, 40))
        for table, value in (
            ("images", file),
            ("image_class_labels", i // 3 + 1),
            ("train_test_split", int(i % 3 < 2)),
        ):
            tables.setdefault(table, []).append(f"{i + 1} {value}")
    for table, lines in tables.items():
        (base / f"{table}.txt").write_text("\n".join(lines) + "\n")
    return base


def write_imagenet(base: Path, wnids: Iterable[str], counts: dict[str, int] | None = None) -> Path:
    """Red = 20 * position in ``wnids``."""
    for part, count in (counts or {"train": 2, "val": 1}).items():
        for position, wnid in enumerate(wnids):
            for i in range(count):
                picture(base / part / wnid / f"{wnid}_{i}.JPEG", (20 * position, 0, 0), (90, 70))
    return base


def write_tiny_imagenet(base: Path) -> Path:
    """Two classes, listed in wnids.txt in descending order as the real file is not sorted either."""
    for label, wnid in enumerate(("n01", "n02")):
        for i in range(3):
            picture(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", (100 * label, 50, 50), (64, 64))
    rows = []
    for i, wnid in enumerate(("n02", "n01", "n02")):
        picture(base / "val" / "images" / f"val_{i}.JPEG", (100 * int(wnid == "n02"), 50, 50), (64, 64))
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    (base / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (base / "wnids.txt").write_text("n02\nn01\n")
    (base / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tEuropean fire salamander\nn03\tbullfrog\n")
    return base


# ---- describe


@pytest.mark.parametrize(
    "expected",
    [
        ("digits", 1, 8, 10, 1437, 360),
        ("mnist", 1, 28, 10, 60000, 10000),
        ("fashion-mnist", 1, 28, 10, 60000, 10000),
        ("svhn", 3, 32, 10, 73257, 26032),
        ("cifar10", 3, 32, 10, 50000, 10000),
        ("cifar100", 3, 32, 100, 50000, 10000),
        ("tiny-imagenet-200", 3, 64, 200, 100000, 10000),
        ("cub-200-2011", 3, 32, 200, 5994, 5794),
        ("imagenet", 3, 64, 1000, 1281167, 50000),
        *((name, 3, 128, 10, None, None) for name in SUBSETS),
        ("imagefolder", 3, 32, None, None, None),
    ],
    ids=lambda expected: expected[0],
)
def test_describe_needs_no_files(expected: tuple[object, ...], tmp_path: Path) -> None:
    name = str(expected[0])
    info = registry.describe(name, tmp_path / "none", None)
    numbers = (info.channels, info.image_size, info.num_classes, info.train_size, info.test_size)
    assert (info.name, *numbers) == expected
    assert registry.describe(name, tmp_path / "none", 20).image_size == 20


def test_every_data_set_has_a_reader() -> None:
    for info in (*DATASETS.values(), *OWN.values()):
        assert callable(resolve_name(f"framework.data.{info.reader}"))


def test_describe_counts_an_image_folder(folder_tree: Tree) -> None:
    root = folder_tree(classes="abc", per_class=2)
    counted = replace(DATASETS["imagefolder"], image_size=16, num_classes=3, train_size=6, test_size=6)
    assert registry.describe("imagefolder", root, 16) == counted


def test_a_subset_does_not_look_at_other_classes_of_the_tree(tmp_path: Path) -> None:
    write_imagenet(tmp_path, [*SUBSETS["imagefruit"]], {"train": 3, "val": 2})
    (train,) = tmp_path.rglob("train")
    (train / "n00000001").symlink_to(tmp_path / "gone")
    assert registry.describe("imagefruit", tmp_path, 64).train_size == 30


def test_describe_counts_an_imagenet_subset(tmp_path: Path) -> None:
    write_imagenet(tmp_path, ["n00000001", *SUBSETS["imagefruit"]], {"train": 3, "val": 2})
    counted = replace(DATASETS["imagefruit"], image_size=64, train_size=30, test_size=20)
    assert registry.describe("imagefruit", tmp_path, 64) == counted


def test_describe_refuses_unknown_names_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--dataset cifar: unknown; choose one of digits, mnist"):
        registry.describe("cifar", tmp_path, None)
    with pytest.raises(UserError, match=r"--im_size 0"):
        registry.describe("digits", tmp_path, 0)


# ---- arrays


def test_digits_are_scikit_learns_and_their_split_is_its_own(tmp_path: Path) -> None:
    digits, source = load_digits(), read_digits(tmp_path, 8)
    halves = train_test_split(np.arange(1797), test_size=360, stratify=digits.target, random_state=0)
    for half, part in zip(halves, (source.train, source.test), strict=True):
        assert (everything(part).squeeze(1).numpy() == np.rint(digits.images[half] * 255 / 16)).all()
        assert (part.labels.numpy() == digits.target[half]).all()


def test_digits_split_is_fixed_stratified_and_complete(tmp_path: Path) -> None:
    source = read_digits(tmp_path, 8)
    train, test = everything(source.train), everything(source.test)
    assert train.shape == (1437, 1, 8, 8)
    assert test.shape == (360, 1, 8, 8)
    assert train.dtype == torch.uint8
    assert source.train.labels.dtype == torch.int64
    assert train.min() == 0
    assert train.max() == 255
    assert source.class_names == tuple("0123456789")
    shares = source.train.labels.bincount() / (source.train.labels.bincount() + source.test.labels.bincount())
    assert (shares - 0.8).abs().max() < 0.01
    again = read_digits(tmp_path, 8)
    assert torch.equal(train, everything(again.train))
    # 16 grey levels above 0, evenly spread and rounded.
    assert set(train.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}
    # 1797 images in all, none of them in both parts (the set has no duplicates).
    assert len({image.numpy().tobytes() for image in torch.cat([train, test])}) == 1797


def test_resizing_arrays(tmp_path: Path) -> None:
    native, large = read_digits(tmp_path, 8).test, read_digits(tmp_path, 16).test
    some = torch.tensor([5, 2])
    assert large.read(some).shape == (2, 1, 16, 16)
    assert large.read(some).dtype == torch.uint8
    pooled = torch.nn.functional.avg_pool2d(large.read(some).float(), 16)
    assert torch.allclose(pooled, torch.nn.functional.avg_pool2d(native.read(some).float(), 8), atol=3)
    flat = ArrayPart(torch.full((1, 3, 9, 9), 77, dtype=torch.uint8), torch.zeros(1).long(), 4)
    assert torch.equal(everything(flat), torch.full((1, 3, 4, 4), 77, dtype=torch.uint8))


def test_mnist_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path)
    source = read_mnist(tmp_path, 28)
    assert everything(source.train).flatten().tolist() == [i % 251 for i in range(20 * 784)]
    assert source.test.labels.tolist() == list(range(10))
    assert source.val is None
    assert source.class_names == tuple("0123456789")
    assert capsys.readouterr().err == ""


def test_fashion_mnist_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path, name="FashionMNIST")
    info, source = open_source("fashion-mnist", tmp_path, None)
    assert info.image_size == 28
    assert everything(source.train).flatten().tolist() == [i % 251 for i in range(20 * 784)]
    assert source.test.labels.tolist() == list(range(10))
    assert source.class_names[:3] == ("T-shirt/top", "Trouser", "Pullover")
    assert len(source.class_names) == 10
    assert capsys.readouterr().err == ""
    # MNIST's files, which have the same names, are not taken for it.
    write_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"fashion-mnist files in .*FashionMNIST/raw are damaged"):
        read_fashion_mnist(tmp_path, 28)


@pytest.fixture
def debian_fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of Debian's package, whose sums are taken for the published ones."""
    folder, sums = tmp_path / "debian", {}
    folder.mkdir()
    for file in write_mnist(tmp_path / "made").iterdir():
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        sums[f"{file.name}.gz"] = hashlib.md5(file.read_bytes()).hexdigest()
    assert sums.keys() == readers.DEBIAN_SUMS.keys()
    monkeypatch.setattr(readers, "DEBIAN_FASHION", folder)
    monkeypatch.setattr(readers, "DEBIAN_SUMS", sums)
    return folder


def test_fashion_mnist_of_debian_is_found_without_a_download(
    debian_fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "download", lambda self: pytest.fail("downloaded"))
    packaged = read_fashion_mnist(tmp_path / "none", 28)
    write_mnist(tmp_path, name="FashionMNIST")
    own = read_fashion_mnist(tmp_path, 28)
    assert packaged.class_names == own.class_names
    for one, other in ((packaged.train, own.train), (packaged.test, own.test)):
        assert torch.equal(one.labels, other.labels) and torch.equal(everything(one), everything(other))
    # The files in --root come first: the package is not even opened.
    (debian_fashion / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    assert len(read_fashion_mnist(tmp_path, 28).train.labels) == 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no gzip", r"cannot be read \(Not a gzipped file"),
        (gzip.compress(b"x" * 999)[:-9], "cannot be read"),
        (gzip.compress(b"another"), r"not the published file \(its checksum differs\)"),
    ],
    ids=["no gzip", "cut", "another"],
)
def test_damaged_fashion_mnist_of_debian(debian_fashion: Path, tmp_path: Path, content: bytes, said: str) -> None:
    file = debian_fashion / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{file}: {said}.*; install the package dataset-fashion-mnist again, or put"):
        read_fashion_mnist(tmp_path / "none", 28)


@pytest.mark.parametrize("subfolder", ["", "svhn"])
def test_svhn_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str) -> None:
    written = write_svhn(tmp_path / subfolder, monkeypatch)
    info, source = open_source("svhn", tmp_path, None)
    assert (info.channels, info.image_size) == (3, 32)
    assert source.class_names == tuple("0123456789")
    # The files say 10 for the digit 0.
    assert source.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    for part, half in ((source.train, "train"), (source.test, "test")):
        pixels = everything(part)
        assert pixels.shape == (len(part.labels), 3, 32, 32)
        # (row, column, channel, image) in the file
        assert pixels[7, 2, 5, 30] == written[half][5, 30, 2, 7]
        assert np.array_equal(pixels.numpy(), written[half].transpose(3, 2, 0, 1))


def test_svhn_with_a_wrong_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        write_svhn(tmp_path, context)
    with pytest.raises(UserError, match=r"--root .*svhn files in .* are damaged .*; remove them"):
        read_svhn(tmp_path, 32)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("keep", [0, 6, 17])
def test_damaged_mnist(tmp_path: Path, file: str, keep: int) -> None:
    path = write_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"--root .*mnist files in .*MNIST/raw are damaged .*remove them to have"):
        read_mnist(tmp_path, 28)


def test_mnist_labels_are_checked(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(UserError, match="labels are missing or out of range"):
        read_mnist(tmp_path, 28)
    path.write_bytes(struct.pack(">2i", 0x801, 3) + b"\0\1\2")
    with pytest.raises(UserError, match=r"3 labels for images of shape \(20, 1, 28, 28\)"):
        read_mnist(tmp_path, 28)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int) -> None:
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = write_cifar(tmp_path, dataset, classes, monkeypatch)
    _, source = open_source(name, tmp_path, None)
    batches = [pickle.loads((folder / file).read_bytes())["data"] for file, _ in dataset.train_list]
    assert np.array_equal(everything(source.train).numpy(), np.concatenate(batches).reshape(-1, 3, 32, 32))
    assert source.test.labels.tolist() == list(range(classes))
    assert source.class_names == tuple(f"class{i}" for i in range(classes))


def test_cifar_with_a_wrong_checksum_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        folder = write_cifar(tmp_path, datasets.CIFAR10, 10, context)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled an unknown file"))
    with pytest.raises(UserError, match=r"--root .*cifar10 files in .*cifar-10-batches-py are damaged"):
        read_cifar10(tmp_path, 32)
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", r"train-images-idx3-ubyte, .* into .*/MNIST/raw \(from http.*mnist"),
        ("fashion-mnist", r"train-images-idx3-ubyte, .* into .*/FashionMNIST/raw \(from http.*\); or apt-get install"),
        ("svhn", r"train_32x32.mat, test_32x32.mat into .*/svhn \(from http.*/housenumbers\)"),
        ("cifar10", r"data_batch_1, .*batches.meta into .*cifar-10-batches-py \(from https://.*cifar"),
        ("cifar100", r"train, test, meta into .*cifar-100-python \(from https://.*cifar"),
    ],
)
def test_failed_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", unreachable)
    monkeypatch.setattr(readers, "DEBIAN_FASHION", tmp_path)
    with pytest.raises(
        UserError, match=rf"--root .*{name} is not there and its download failed .*put {place}"
    ) as error:
        open_source(name, tmp_path, None)
    assert "\n" not in str(error.value)
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: {tmp_path}")
    assert said.endswith("downloading\n")
    assert said.count("\n") == 1


def test_download_happens_only_if_files_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver(self: datasets.MNIST) -> None:
        write_mnist(tmp_path / "fresh")

    monkeypatch.setattr(datasets.MNIST, "download", deliver)
    assert len(read_mnist(tmp_path / "fresh", 28).train.labels) == 20
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: pytest.fail("downloaded again"))
    read_mnist(tmp_path / "fresh", 28)


def test_what_is_there_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "DEBIAN_FASHION", tmp_path / "debian")
    names = ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "digits", "imagefolder")
    assert not any(readers.present(name, tmp_path) for name in names)
    write_mnist(tmp_path)
    write_mnist(tmp_path, name="FashionMNIST")
    write_cifar(tmp_path, datasets.CIFAR10, 10, monkeypatch)
    write_cifar(tmp_path, datasets.CIFAR100, 100, monkeypatch)
    write_svhn(tmp_path / "svhn", monkeypatch)
    assert [name for name in names if readers.present(name, tmp_path)] == list(names[:5])
    for file in ("MNIST/raw/t10k-labels-idx1-ubyte", "cifar-100-python/meta", "svhn/test_32x32.mat"):
        (tmp_path / file).unlink()
    assert [name for name in names if readers.present(name, tmp_path)] == ["fashion-mnist", "cifar10"]


def test_debians_package_counts_as_there(debian_fashion: Path, tmp_path: Path) -> None:
    assert readers.present("fashion-mnist", tmp_path / "none")
    assert not readers.present("mnist", tmp_path / "none")
    (debian_fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    assert not readers.present("fashion-mnist", tmp_path / "none")


# ---- folders


def labels_and_reds(part: Part) -> tuple[list[int], list[int]]:
    return part.labels.tolist(), everything(part)[:, 0, 0, 0].tolist()


def test_imagefolder_layout(folder_tree: Tree) -> None:
    root = folder_tree(("train", "test", "val"), "ba", 2)
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "a" / ".DS_Store").write_bytes(b"junk")
    source = read_imagefolder(root, 4)
    assert source.class_names == ("a", "b")
    for part in (source.train, source.test, source.val):
        # The tree gave "b" red 0 and "a" red 10; sorted by name, "a" is label 0.
        assert part is not None
        assert labels_and_reds(part) == ([0, 0, 1, 1], [10, 10, 0, 0])


def test_imagefolder_val_alone_is_the_test_part(folder_tree: Tree) -> None:
    source = read_imagefolder(folder_tree(("train", "val")), 4)
    assert source.val is None
    assert len(source.test.labels) == 6


def test_read_takes_the_indices_in_their_order(folder_tree: Tree) -> None:
    part = read_imagefolder(folder_tree(classes="abc"), 6).train
    assert part.read(torch.tensor([8, 0, 4]))[:, :2, 0, 0].tolist() == [[20, 2], [0, 0], [10, 1]]


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_decoding_does_not_depend_on_workers(folder_tree: Tree, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_FILES_PER_TASK", 2)
    part = read_imagefolder(folder_tree(classes="abcd", per_class=5), 6).train
    pixels = part.read(torch.arange(20), workers)
    assert pixels[:, 0, 0, 0].tolist() == [10 * i for i in range(4) for _ in range(5)]
    assert pixels[:, 1, 0, 0].tolist() == list(range(5)) * 4


def test_progress_bar_only_when_asked(folder_tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    part = read_imagefolder(folder_tree(), 6).train
    part.read(torch.arange(6), progress=False)
    assert capsys.readouterr() == ("", "")
    part.read(torch.arange(6), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "decoding" in captured.err


def test_imagefolder_user_errors(folder_tree: Tree, tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            read_imagefolder(tmp_path / "data", 4)
        assert "\n" not in str(error.value)

    data = tmp_path / "data"
    fails("--root .*data: no such folder")
    (data / "test").mkdir(parents=True)
    fails("--root .*data: it holds no folder train;")
    (data / "test").rename(data / "train")
    fails("--root .*data: it holds no folder test or val;")
    picture(data / "train" / "cat" / "1.png")
    (data / "test").mkdir()
    fails(r"data/train: found 1 class\(es\)")
    picture(data / "train" / "dog" / "1.png")
    picture(data / "test" / "dog" / "1.png")
    picture(data / "test" / "eel" / "1.png")
    fails("data/test: its classes differ from the training classes in cat, eel; make them equal")
    (data / "test" / "eel").rename(data / "test" / "cat")
    read_imagefolder(data, 4)
    picture(data / "val" / "cat" / "1.png")
    fails("data/val: its classes differ from the training classes in dog")
    (data / "val" / "dog").mkdir()
    fails("data/val/dog: class dog has no images")


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_unreadable_image_is_named(folder_tree: Tree, content: bytes | None) -> None:
    root = folder_tree()
    victim = root / "train" / "b" / "1.png"
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(victim)
        content = victim.read_bytes()[:-2000]
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"train/b/1\.png: not a readable image .*replace or remove it") as error:
        everything(read_imagefolder(root, 4).train)
    assert "\n" not in str(error.value)


def test_unlistable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()

    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(
        UserError, match=r"train: cannot be listed \(Permission denied\); give yourself the right to read it$"
    ):
        read_imagefolder(tmp_path, 4)


def test_a_class_folder_that_is_not_there(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    rmtree(tmp_path / "train" / "n02")
    with pytest.raises(UserError, match=r"train/n02: cannot be listed \(No such file or directory\); check the path$"):
        read_tiny_imagenet(tmp_path, 4)


@pytest.mark.parametrize(
    "command",
    [["--dry_run"], ["--save_dir", "{run}"], ["evaluate", "{root}/set.pt"]],
    ids=["dry run", "run", "evaluate"],
)
def test_a_folder_that_may_not_be_reached(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As below a folder of another user; the tests' own may be allowed everything."""
    root, stat = tmp_path / "locked" / "data", Path.stat

    def denied(path: Path, **options: Any) -> Any:
        if tmp_path / "locked" in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    given = [word.format(run=tmp_path / "run", root=root) for word in command]
    flags = [] if "evaluate" in given else ["--dataset", "imagefolder", "--root", str(root)]
    said = refused([*given, *flags], capsys)
    assert f"{root}" in said and said.count("\n") == 1
    assert said.endswith(": cannot be reached (Permission denied); give yourself the right to read it\n")


# ---- decoding one image


def test_centre_crop_of_a_wide_and_of_a_tall_image(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = (0, 255, 0)
    for path, array in ((tmp_path / "wide.png", pixels), (tmp_path / "tall.png", pixels.transpose(1, 0, 2))):
        Image.fromarray(array).save(path)
        decoded = decode_image(str(path), 8)
        assert decoded.dtype == np.uint8
        assert (decoded == np.array([0, 255, 0])).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 7), (255, 255, 255)).convert(mode).save(path)
    assert (decode_image(str(path), 3) == 255).all()


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x4321, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (decode_image(str(tmp_path / "deep.png"), 4) == 0x43).all()


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [(np.float32, "floating-point grey levels"), (np.int32, "grey levels outside 0..65535")],
)
def test_levels_without_a_range_are_refused(tmp_path: Path, dtype: type, reason: str) -> None:
    Image.fromarray(np.full((4, 4), 70000, dtype=dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=rf"deep\.tif: not a readable image \({reason}"):
        decode_image(str(tmp_path / "deep.tif"), 4)


def test_one_line_is_one_short_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError("\x1b[1mbold\x1b[0m text")) == "bold text"
    assert one_line(EOFError()) == "EOFError"
    assert len(one_line(ValueError("x" * 500))) == 160


# ---- Tiny-ImageNet and ImageNet


@pytest.mark.parametrize("subfolder", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_layout(tmp_path: Path, subfolder: str) -> None:
    write_tiny_imagenet(tmp_path / subfolder)
    info, source = open_source("tiny-imagenet-200", tmp_path, None)
    assert info.image_size == 64
    assert source.val is None
    assert source.class_names == ("goldfish", "European fire salamander")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.labels.tolist() == [1, 0, 1]
    reds = everything(source.test)[:, 0].float().mean((1, 2))
    assert torch.allclose(reds, torch.tensor([100.0, 0.0, 100.0]), atol=2)
    assert everything(source.train).shape == (6, 3, 64, 64)


def test_tiny_imagenet_user_errors(tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            everything(read_tiny_imagenet(tmp_path, 64).test)
        assert "\n" not in str(error.value)

    fails(r"--root .*wnids.txt is missing; unpack http://cs231n.*zip into")
    base = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    image = base / "val" / "images" / "val_1.JPEG"
    image.unlink()
    fails(r"val_1\.JPEG: not a readable image")
    picture(image)
    annotations = base / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text(whole + "val_9.JPEG\tn77\t0\t0\t1\t1\n")
    fails(r"val_annotations\.txt: its classes and wnids\.txt differ in n77")
    annotations.write_text("val_0.JPEG\n")
    fails(r"val_annotations\.txt: expected lines of at least 2 fields")
    annotations.write_bytes(b"\xff\xfe\x00")
    fails(r"val_annotations\.txt: cannot be read")
    annotations.write_text(whole)
    words = (base / "words.txt").read_text()
    (base / "words.txt").write_text("n01\tgoldfish\n")
    fails(r"words\.txt: it has no name for n02")
    (base / "words.txt").unlink()
    fails(r"words\.txt: cannot be read")
    (base / "words.txt").write_text(words)
    for file in (base / "train" / "n02" / "images").iterdir():
        file.unlink()
    fails("n02: class n02 has no images")
    (base / "wnids.txt").write_text("n01\n")
    fails(r"wnids\.txt: found 1 class")


@pytest.mark.parametrize("inside", [True, False])
def test_imagenet_layout(tmp_path: Path, inside: bool) -> None:
    write_imagenet(tmp_path / "imagenet" if inside else tmp_path, ("n01440764", "n01443537", "n02102040"))
    info, source = open_source("imagenet", tmp_path, None)
    assert info.image_size == 64
    assert source.class_names == ("n01440764", "n01443537", "n02102040")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.val is None
    assert torch.allclose(everything(source.test)[:, 0].float().mean((1, 2)), torch.tensor([0.0, 20, 40]), atol=2)


def test_missing_imagenet(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--root .*/train is missing; download ILSVRC2012 .*put its images into .*train/WNID"
    ):
        read_imagenet(tmp_path, 64)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"imagenet/val is missing"):
        read_imagenet(tmp_path, 64)
    # Validation images as they are distributed: in one folder.
    write_imagenet(tmp_path / "imagenet", ["n01440764"], {"train": 1})
    picture(tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match=r"imagenet/val holds no folders; sort its images into .*val/WNID/"):
        read_imagenet(tmp_path, 64)


@pytest.mark.parametrize("size", [64, 128, 224])
def test_imagenet_at_any_size(tmp_path: Path, size: int) -> None:
    write_imagenet(tmp_path, ("n01440764", "n01443537"))
    info, source = open_source("imagenet", tmp_path, size)
    assert info.image_size == size
    assert everything(source.train).shape == (4, 3, size, size)


# As published with the subsets: positions in ImageNet-1k's own order of classes.
POSITIONS = {
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
}


def test_subsets_are_the_published_ones() -> None:
    """Torchvision knows the names by position; ImageNet-1k's classes are sorted by WordNet id."""
    assert SUBSETS.keys() == POSITIONS.keys()
    position_of = {}
    for name, classes in SUBSETS.items():
        assert list(classes.values()) == [_IMAGENET_CATEGORIES[position] for position in POSITIONS[name]]
        position_of |= dict(zip(classes, POSITIONS[name], strict=True))
    assert len(position_of) == 60 - 3  # banana, lemon and lion are in two subsets each
    assert sorted(position_of) == sorted(position_of, key=position_of.__getitem__)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in position_of)


@pytest.mark.parametrize("name", SUBSETS)
def test_imagenet_subset_is_found_in_the_tree_of_imagenet(tmp_path: Path, name: str) -> None:
    wnids = [*SUBSETS[name], "n00000001", "n99999999"]  # other classes are not looked at
    write_imagenet(tmp_path / "imagenet", wnids, {"train": 2, "val": 1})
    info, source = open_source(name, tmp_path, None)
    assert (info.image_size, info.num_classes) == (128, 10)
    assert source.class_names == tuple(SUBSETS[name].values())
    assert source.train.labels.tolist() == [k for k in range(10) for _ in range(2)]
    assert source.val is None
    reds = everything(source.test)[:, 0].float().mean((1, 2))
    assert torch.allclose(reds, torch.arange(10) * 20.0, atol=2)


def test_missing_classes_of_a_subset_are_named(tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            everything(open_source("imagenette", tmp_path, 16)[1].train)
        assert "\n" not in str(error.value)

    fails(r"--root .*/train is missing; download ILSVRC2012 from https://image-net.org")
    wnids = list(SUBSETS["imagenette"])
    write_imagenet(tmp_path, wnids[:8], {"train": 1, "val": 1})
    fails(r"train lacks n03445777 \(golf ball\), n03888257 \(parachute\) of imagenette; download ILSVRC2012")
    write_imagenet(tmp_path, wnids, {"train": 1})
    fails(r"val lacks n03445777 \(golf ball\)")
    write_imagenet(tmp_path, wnids, {"val": 1})
    (tmp_path / "train" / wnids[3] / f"{wnids[3]}_0.JPEG").write_bytes(b"no image")
    fails(r"n03000684_0\.JPEG: not a readable image")
    (tmp_path / "train" / wnids[3] / f"{wnids[3]}_0.JPEG").unlink()
    fails("n03000684: class n03000684 has no images")


# ---- CUB-200-2011


@pytest.mark.parametrize("subfolder", ["", "CUB_200_2011"])
def test_cub_layout(tmp_path: Path, subfolder: str) -> None:
    write_cub(tmp_path / subfolder)
    info, source = open_source("cub-200-2011", tmp_path, None)
    assert info.image_size == 32
    assert source.class_names == ("Black footed Albatross", "Laysan Albatross", "Red winged Blackbird")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.test.labels.tolist() == [0, 1, 2]
    assert source.val is None
    for part in (source.train, source.test):
        reds = everything(part)[:, 0].float().mean((1, 2))
        assert torch.allclose(reds, part.labels * 80.0, atol=2)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images", None, "", r"images\.txt: expected lines of at least 2 fields; unpack"),
        ("images", "1 001", "99 001", r"image_class_labels\.txt: its images and images\.txt differ in 1, 99; unpack"),
        ("train_test_split", "5 1\n", "", r"train_test_split\.txt: its images and images\.txt differ in 5; unpack"),
        (
            "classes",
            "2 002.Laysan_Albatross\n",
            "",
            r"classes\.txt: its classes and image_class_labels\.txt differ in 2",
        ),
        ("classes", "1 001", "4 004.Owl\n1 001", r"classes\.txt: its classes and image_class_labels\.txt differ in 4"),
        ("train_test_split", "9 0", "9 1", r"train_test_split\.txt: class 010.* has no test images"),
        ("train_test_split", " 1", " 0", r"train_test_split\.txt: class 001.* has no training images"),
        ("images", "Bird_0000", "Bird_1234", r"Bird_1234\.jpg: not a readable image .*No such file"),
    ],
)
def test_cub_user_errors(tmp_path: Path, file: str, old: str | None, new: str, message: str) -> None:
    path = write_cub(tmp_path) / f"{file}.txt"
    path.write_text(new if old is None else path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        everything(read_cub(tmp_path, 32).train)
    assert "\n" not in str(error.value)


def test_missing_cub(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--root .*CUB_200_2011/images.txt is missing; get CUB_200_2011.tgz from https"
    ):
        read_cub(tmp_path, 32)
    write_cub(tmp_path)
    (tmp_path / "train_test_split.txt").unlink()
    with pytest.raises(UserError, match=r"train_test_split\.txt: cannot be read .* unpack the archive again"):
        read_cub(tmp_path, 32)


# ---- fingerprints


def test_a_fingerprint_is_that_of_names_sizes_and_times(folder_tree: Tree, tmp_path: Path) -> None:
    root = folder_tree()

    def digest(size: int = 4, folder: Path = root) -> str:
        return read_imagefolder(folder, size).train.fingerprint()

    first = digest()
    assert digest() == first
    assert digest(5) != first
    victim = root / "train" / "a" / "1.png"
    before = victim.stat()
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert digest() != first
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest() == first
    content = victim.read_bytes()
    victim.write_bytes(content + b"x")
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest() != first
    victim.write_bytes(content)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    victim.rename(victim.with_name("1b.png"))
    assert digest() != first
    victim.with_name("1b.png").rename(victim)
    (tmp_path / "moved").mkdir()
    for part in ("train", "test"):
        (root / part).rename(tmp_path / "moved" / part)
    assert digest(folder=tmp_path / "moved") == first


def test_the_fingerprint_of_arrays_is_that_of_their_pixels(tmp_path: Path) -> None:
    train, test = (getattr(read_digits(tmp_path, 8), half) for half in ("train", "test"))
    assert train.fingerprint() == read_digits(tmp_path, 8).train.fingerprint()
    assert len({train.fingerprint(), test.fingerprint(), read_digits(tmp_path, 9).train.fingerprint()}) == 3


def test_a_file_that_went_missing_is_named(folder_tree: Tree) -> None:
    root = folder_tree()
    part = read_imagefolder(root, 4).train
    (root / "train" / "b" / "2.png").unlink()
    with pytest.raises(UserError, match=r"train/b/2\.png: cannot be read \(No such file or directory\)"):
        part.fingerprint()


# ---- real files


def test_real_mnist(real_data: Path) -> None:
    source = read_mnist(real_data, 28)
    info = registry.describe("mnist", real_data, None)
    assert (len(source.train.labels), len(source.test.labels)) == (info.train_size, info.test_size)
    assert source.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    # The well-known mean of the training set.
    assert everything(source.train).double().mean() / 255 == pytest.approx(0.1307, abs=1e-4)


CIFAR_PER_CLASS = 20


@pytest.fixture(scope="session")
def jpeg_cifar(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first few images of each class and part, as an image folder."""
    archive = real_data / "cifar10_jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is missing: set ATBPTT_DATA to a folder that has it")
    root = tmp_path_factory.mktemp("cifar")
    with tarfile.open(archive) as tar:
        for member in tar:
            # CLASS/NNNN.jpg is numbered from 0 in each class and part.
            if member.isfile() and int(Path(member.name).stem) < CIFAR_PER_CLASS:
                (root / member.name).parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                (root / member.name).write_bytes(content.read())
    return root


def test_real_jpeg_cifar(jpeg_cifar: Path) -> None:
    source: Source = read_imagefolder(jpeg_cifar, 32)
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    assert len(source.class_names) == 10
    assert source.train.labels.bincount().tolist() == [CIFAR_PER_CLASS] * 10
    pixels = everything(source.train)
    assert pixels.shape == (10 * CIFAR_PER_CLASS, 3, 32, 32)
    # 32x32 images come out as they are.
    with Image.open(jpeg_cifar / "train" / "airplane" / "0000.jpg") as image:
        assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    assert pixels.double().mean((0, 2, 3)).div(255).tolist() == pytest.approx([0.491, 0.482, 0.447], abs=0.05)


@pytest.mark.parametrize("zca", [False, True])
def test_real_jpeg_cifar_streams_the_same_images(jpeg_cifar: Path, tmp_path: Path, zca: bool) -> None:
    held, streamed = (
        loaded("imagefolder", jpeg_cifar, zca=zca, im_size=16, data_cache=kept,
                  cache_dir=tmp_path)
        for kept in ("device", "disk")
    )  # fmt: skip
    assert held.num_classes == 10
    order = torch.randperm(len(held.train), generator=torch.Generator().manual_seed(0))
    assert torch.equal(held.train.batch(order), torch.cat(list(streamed.train.batches(order.split(17)))))


def test_the_command_line_offers_exactly_the_readers_there_are() -> None:
    assert set(FLAGS["dataset"].choices or ()) == {*DATASETS, *(f"{kind}:{form}" for kind, form in FORMS.items())}
    assert OWN.keys() == FORMS.keys()


def test_links_that_lead_nowhere_are_counted(folder_tree: Tree) -> None:
    root = folder_tree()
    (root / "train" / "a" / "lost.png").symlink_to(root / "gone.png")
    with pytest.raises(UserError, match=r"1 link\(s\) lead nowhere \(lost.png\); restore what they name or remove"):
        read_imagefolder(root, 6)


def test_windows_own_files_are_no_images(folder_tree: Tree) -> None:
    root = folder_tree()
    before = read_imagefolder(root, 6).train.labels
    for name in ("Thumbs.db", "desktop.ini", "._x.png"):
        (root / "train" / "a" / name).write_bytes(b"junk")
    assert torch.equal(read_imagefolder(root, 6).train.labels, before)


def test_the_exif_orientation_is_followed(tmp_path: Path) -> None:
    stored = np.zeros((2, 4, 3), dtype=np.uint8)
    stored[:, :2] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(parts.open_picture(tmp_path / "turned.png"))
    assert turned.shape == (4, 2, 3) and (turned[:2] == 200).all() and (turned[2:] == 0).all()


def test_colour_below_transparency_is_not_shown_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts._tell_transparency.cache_clear()
    for name in ("a.png", "b.png"):
        Image.new("RGBA", (4, 4), (250, 10, 10, 0)).save(tmp_path / name)
        assert not np.asarray(parts.open_picture(tmp_path / name)).any()
    assert capsys.readouterr().err == "pictures with transparent pixels are laid over black\n"


def test_sets_in_image_folders_are_read_like_training_images(tmp_path: Path) -> None:
    for label, name in enumerate(("0", "1", ".hidden")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4), 0x4000 + (label << 8), dtype=np.uint16)).save(tmp_path / name / "A.PNG")
        Image.fromarray(np.full((4, 4), 0x40 + label, dtype=np.uint8)).save(tmp_path / name / "b.TIF")
        (tmp_path / name / "._A.PNG").write_bytes(b"junk")
    stored = formats.read(tmp_path)
    assert stored.tensors["images"].amax((1, 2, 3)).tolist() == [0x40, 0x40, 0x41, 0x41]
    assert stored.tensors["labels"].tolist() == [0, 0, 1, 1]
    assert stored.metadata["folders"] == '["0", "1"]'


@pytest.mark.parametrize("level", ["", "images"])
@pytest.mark.parametrize("name", ["tiny-imagenet-200", "imagefolder"])
def test_tiny_imagenet_sorted_into_class_folders(tmp_path: Path, name: str, level: str) -> None:
    write_tiny_imagenet(tmp_path)
    distributed = labels_and_reds(read_tiny_imagenet(tmp_path, 64).test)
    for line in (tmp_path / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        folder = tmp_path / "val" / wnid / level
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / "images" / file).rename(folder / file)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("0.JPEG\t0\t0\t1\t1\n")
    (tmp_path / "val" / "images").rmdir()
    found = labels_and_reds(open_source(name, tmp_path, 64)[1].test)
    assert sorted(zip(*found, strict=True)) == sorted(zip(*distributed, strict=True))
