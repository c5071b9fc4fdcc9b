"""Readers on tiny trees in their true layout, and on the real files where they are at hand."""

import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from framework import readers
from framework.config import FLAGS, UserError
from framework.readers import DatasetInfo, Part, Source

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


def write_mnist(root: Path, train: int = 20, test: int = 10) -> Path:
    raw = root / "MNIST" / "raw"
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
        DatasetInfo("digits", 1, 8, 10, 1437, 360),
        DatasetInfo("mnist", 1, 28, 10, 60000, 10000),
        DatasetInfo("cifar10", 3, 32, 10, 50000, 10000),
        DatasetInfo("cifar100", 3, 32, 100, 50000, 10000),
        DatasetInfo("tiny-imagenet-200", 3, 64, 200, 100000, 10000),
        DatasetInfo("imagenet", 3, 64, 1000, 1281167, 50000),
        DatasetInfo("imagefolder", 3, 32, None, None, None),
    ],
    ids=lambda info: info.name,
)
def test_describe_needs_no_files(expected: DatasetInfo, tmp_path: Path) -> None:
    assert readers.describe(expected.name, tmp_path / "none", None) == expected
    assert readers.describe(expected.name, tmp_path / "none", 20).image_size == 20
    assert expected.name in readers.dataset_names()


def test_describe_counts_an_image_folder(folder_tree: Tree) -> None:
    root = folder_tree(classes="abc", per_class=2)
    assert readers.describe("imagefolder", root, 16) == DatasetInfo("imagefolder", 3, 16, 3, 6, 6)


def test_describe_refuses_unknown_names_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--dataset cifar: unknown; choose one of digits, mnist"):
        readers.describe("cifar", tmp_path, None)
    with pytest.raises(UserError, match=r"--im_size 0"):
        readers.describe("digits", tmp_path, 0)


# ---- arrays


def test_digits_split_is_fixed_stratified_and_complete(tmp_path: Path) -> None:
    source = readers.read_digits(tmp_path, 8)
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
    again = readers.read_digits(tmp_path, 8)
    assert torch.equal(train, everything(again.train))
    # 16 grey levels above 0, evenly spread and rounded.
    assert set(train.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}
    # 1797 images in all, none of them in both parts (the set has no duplicates).
    assert len({image.numpy().tobytes() for image in torch.cat([train, test])}) == 1797


def test_resizing_arrays(tmp_path: Path) -> None:
    native, large = readers.read_digits(tmp_path, 8).test, readers.read_digits(tmp_path, 16).test
    some = torch.tensor([5, 2])
    assert large.read(some).shape == (2, 1, 16, 16)
    assert large.read(some).dtype == torch.uint8
    pooled = torch.nn.functional.avg_pool2d(large.read(some).float(), 16)
    assert torch.allclose(pooled, torch.nn.functional.avg_pool2d(native.read(some).float(), 8), atol=3)
    flat = readers.ArrayPart(torch.full((1, 3, 9, 9), 77, dtype=torch.uint8), torch.zeros(1).long(), 4)
    assert torch.equal(everything(flat), torch.full((1, 3, 4, 4), 77, dtype=torch.uint8))


def test_mnist_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path)
    source = readers.read_mnist(tmp_path, 28)
    assert everything(source.train).flatten().tolist() == [i % 251 for i in range(20 * 784)]
    assert source.test.labels.tolist() == list(range(10))
    assert source.val is None
    assert source.class_names == tuple("0123456789")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("keep", [0, 6, 17])
def test_damaged_mnist(tmp_path: Path, file: str, keep: int) -> None:
    path = write_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"--root .*mnist files in .*MNIST/raw are damaged .*remove them to have"):
        readers.read_mnist(tmp_path, 28)


def test_mnist_labels_are_checked(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(UserError, match="labels are missing or out of range"):
        readers.read_mnist(tmp_path, 28)
    path.write_bytes(struct.pack(">2i", 0x801, 3) + b"\0\1\2")
    with pytest.raises(UserError, match=r"3 labels for images of shape \(20, 1, 28, 28\)"):
        readers.read_mnist(tmp_path, 28)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int) -> None:
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder = write_cifar(tmp_path, dataset, classes, monkeypatch)
    _, source = readers.open_source(name, tmp_path, None)
    batches = [pickle.loads((folder / file).read_bytes())["data"] for file, _ in dataset.train_list]
    assert np.array_equal(everything(source.train).numpy(), np.concatenate(batches).reshape(-1, 3, 32, 32))
    assert source.test.labels.tolist() == list(range(classes))
    assert source.class_names == tuple(f"class{i}" for i in range(classes))


def test_cifar_with_a_wrong_checksum_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        folder = write_cifar(tmp_path, datasets.CIFAR10, 10, context)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled an unknown file"))
    with pytest.raises(UserError, match=r"--root .*cifar10 files in .*cifar-10-batches-py are damaged"):
        readers.read_cifar10(tmp_path, 32)
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "train-images-idx3-ubyte, .* into .*MNIST/raw"),
        ("cifar10", "data_batch_1, .*batches.meta into .*cifar-10-batches-py"),
        ("cifar100", "train, test, meta into .*cifar-100-python"),
    ],
)
def test_failed_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(
        UserError, match=rf"--root .*{name} is not there and its download failed .*put {place}"
    ) as error:
        readers.open_source(name, tmp_path, None)
    assert "\n" not in str(error.value)
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: {tmp_path}")
    assert said.endswith("downloading\n")
    assert said.count("\n") == 1


def test_download_happens_only_if_files_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver(self: datasets.MNIST) -> None:
        write_mnist(tmp_path / "fresh")

    monkeypatch.setattr(datasets.MNIST, "download", deliver)
    assert len(readers.read_mnist(tmp_path / "fresh", 28).train.labels) == 20
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: pytest.fail("downloaded again"))
    readers.read_mnist(tmp_path / "fresh", 28)


# ---- folders


def labels_and_reds(part: Part) -> tuple[list[int], list[int]]:
    return part.labels.tolist(), everything(part)[:, 0, 0, 0].tolist()


def test_imagefolder_layout(folder_tree: Tree) -> None:
    root = folder_tree(("train", "test", "val"), "ba", 2)
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "a" / ".DS_Store").write_bytes(b"junk")
    source = readers.read_imagefolder(root, 4)
    assert source.class_names == ("a", "b")
    for part in (source.train, source.test, source.val):
        # The tree gave "b" red 0 and "a" red 10; sorted by name, "a" is label 0.
        assert part is not None
        assert labels_and_reds(part) == ([0, 0, 1, 1], [10, 10, 0, 0])


def test_imagefolder_val_alone_is_the_test_part(folder_tree: Tree) -> None:
    source = readers.read_imagefolder(folder_tree(("train", "val")), 4)
    assert source.val is None
    assert len(source.test.labels) == 6


def test_read_takes_the_indices_in_their_order(folder_tree: Tree) -> None:
    part = readers.read_imagefolder(folder_tree(classes="abc"), 6).train
    assert part.read(torch.tensor([8, 0, 4]))[:, :2, 0, 0].tolist() == [[20, 2], [0, 0], [10, 1]]


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_decoding_does_not_depend_on_workers(folder_tree: Tree, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_FILES_PER_TASK", 2)
    part = readers.read_imagefolder(folder_tree(classes="abcd", per_class=5), 6).train
    pixels = part.read(torch.arange(20), workers)
    assert pixels[:, 0, 0, 0].tolist() == [10 * i for i in range(4) for _ in range(5)]
    assert pixels[:, 1, 0, 0].tolist() == list(range(5)) * 4


def test_progress_bar_only_when_asked(folder_tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    part = readers.read_imagefolder(folder_tree(), 6).train
    part.read(torch.arange(6), progress=False)
    assert capsys.readouterr() == ("", "")
    part.read(torch.arange(6), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "decoding" in captured.err


def test_imagefolder_user_errors(folder_tree: Tree, tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            readers.read_imagefolder(tmp_path / "data", 4)
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
    readers.read_imagefolder(data, 4)
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
        everything(readers.read_imagefolder(root, 4).train)
    assert "\n" not in str(error.value)


def test_unlistable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()

    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(UserError, match=r"train: cannot be listed \(Permission denied\)"):
        readers.read_imagefolder(tmp_path, 4)


# ---- decoding one image


def test_centre_crop_of_a_wide_and_of_a_tall_image(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = (0, 255, 0)
    for path, array in ((tmp_path / "wide.png", pixels), (tmp_path / "tall.png", pixels.transpose(1, 0, 2))):
        Image.fromarray(array).save(path)
        decoded = readers.decode_image(str(path), 8)
        assert decoded.dtype == np.uint8
        assert (decoded == np.array([0, 255, 0])).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 7), (255, 255, 255)).convert(mode).save(path)
    assert (readers.decode_image(str(path), 3) == 255).all()


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x4321, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (readers.decode_image(str(tmp_path / "deep.png"), 4) == 0x43).all()


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [(np.float32, "floating-point grey levels"), (np.int32, "grey levels outside 0..65535")],
)
def test_levels_without_a_range_are_refused(tmp_path: Path, dtype: type, reason: str) -> None:
    Image.fromarray(np.full((4, 4), 70000, dtype=dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=rf"deep\.tif: not a readable image \({reason}"):
        readers.decode_image(str(tmp_path / "deep.tif"), 4)


def test_one_line_is_one_short_line() -> None:
    assert readers.one_line(ValueError("a\n  b\tc")) == "a b c"
    assert readers.one_line(EOFError()) == "EOFError"
    assert len(readers.one_line(ValueError("x" * 500))) == 160


# ---- Tiny-ImageNet and ImageNet


@pytest.mark.parametrize("subfolder", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_layout(tmp_path: Path, subfolder: str) -> None:
    write_tiny_imagenet(tmp_path / subfolder)
    info, source = readers.open_source("tiny-imagenet-200", tmp_path, None)
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
            everything(readers.read_tiny_imagenet(tmp_path, 64).test)
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
    fails("n02/images: class n02 has no images")
    (base / "wnids.txt").write_text("n01\n")
    fails(r"wnids\.txt: found 1 class")


@pytest.mark.parametrize("inside", [True, False])
def test_imagenet_layout(tmp_path: Path, inside: bool) -> None:
    base = tmp_path / "imagenet" if inside else tmp_path
    for part, count in (("train", 2), ("val", 1)):
        for label, wnid in enumerate(("n01440764", "n01443537", "n02102040")):
            for i in range(count):
                picture(base / part / wnid / f"{wnid}_{i}.JPEG", (80 * label, 0, 0), (90, 70))
    info, source = readers.open_source("imagenet", tmp_path, None)
    assert info.image_size == 64
    assert source.class_names == ("n01440764", "n01443537", "n02102040")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.val is None
    assert torch.allclose(everything(source.test)[:, 0].float().mean((1, 2)), torch.tensor([0.0, 80, 160]), atol=2)


def test_missing_imagenet(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--root .*/train is missing; download ILSVRC2012 .*put its images into .*train/WNID"
    ):
        readers.read_imagenet(tmp_path, 64)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"imagenet/val is missing"):
        readers.read_imagenet(tmp_path, 64)


# ---- real files


def test_real_mnist(real_data: Path) -> None:
    source = readers.read_mnist(real_data, 28)
    info = readers.describe("mnist", real_data, None)
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
                tar.extract(member, root, filter="data")
    return root


def test_real_jpeg_cifar(jpeg_cifar: Path) -> None:
    source: Source = readers.read_imagefolder(jpeg_cifar, 32)
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    assert len(source.class_names) == 10
    assert source.train.labels.bincount().tolist() == [CIFAR_PER_CLASS] * 10
    pixels = everything(source.train)
    assert pixels.shape == (10 * CIFAR_PER_CLASS, 3, 32, 32)
    # 32x32 images come out as they are.
    with Image.open(jpeg_cifar / "train" / "airplane" / "0000.jpg") as image:
        assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    assert pixels.double().mean((0, 2, 3)).div(255).tolist() == pytest.approx([0.491, 0.482, 0.447], abs=0.05)


def test_the_command_line_offers_exactly_the_readers_there_are() -> None:
    assert set(FLAGS["dataset"].choices or ()) == set(readers.dataset_names())
