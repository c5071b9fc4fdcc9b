"""One's own data, named on the command line: arrays in an ``.npz`` file."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cli import TINY, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import loaded

from framework.config.bptt import parse
from framework.config.matching import FtdConfig
from framework.config.registry import parse as parse_any
from framework.data import arrays
from framework.data.arrays import NpzPart, read_npz
from framework.data.load import DataSpec, list_data
from framework.data.parts import Part, Source, resized
from framework.data.registry import Reading, is_own, label_of
from framework.dry_run import preview
from framework.errors import UserError
from main import main

Arrays = dict[str, npt.NDArray[Any]]


def made_up(count: int = 40, test: int = 12, side: int = 8, channels: int | None = 3, classes: int = 4) -> Arrays:
    """Random arrays under Keras' names; without ``channels``, images are (N, H, W)."""
    rng = np.random.default_rng(0)
    shape = (side, side) if channels is None else (side, side, channels)
    return {
        "x_train": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        "y_train": np.arange(count) % classes,
        "x_test": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": np.arange(test) % classes,
    }


def write(path: Path, content: Arrays, save: Callable[..., None] = np.savez) -> Path:
    save(path, **content)
    return path


def opened(path: Path, size: int | None = None, white: int | None = None) -> Source:
    return read_npz(str(path), Path("unused"), size, Reading(white))


def everything(part: Part) -> torch.Tensor:
    return part.read(torch.arange(len(part.labels)))


def channels_first(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)


# ---- what is read


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_are_read_as_they_are(tmp_path: Path, channels: int | None, save: Callable[..., None]) -> None:
    content = made_up(channels=channels)
    source = opened(write(tmp_path / "set.npz", content, save))
    assert source.shape == (channels or 1, 8, 8)
    assert source.class_names == ("0", "1", "2", "3")
    assert source.val is None and source.lines == ()
    for part, half in ((source.train, "train"), (source.test, "test")):
        assert np.array_equal(everything(part).numpy(), channels_first(content[f"x_{half}"]))
        assert part.labels.tolist() == content[f"y_{half}"].tolist()
        assert part.labels.dtype == torch.int64
        # Only what is uncompressed can stay on the disk.
        assert isinstance(part, NpzPart) and isinstance(part.array, np.memmap) == (save is np.savez)
    order = torch.tensor([7, 0, 7, 3])
    assert torch.equal(source.train.read(order), everything(source.train)[order])


def test_parts_under_medmnists_names(tmp_path: Path) -> None:
    """Labels are (N, 1) uint8 there, and ``val`` is a part of its own."""
    made = made_up()
    content = {"train_images": made["x_train"], "train_labels": made["y_train"][:, None].astype(np.uint8)}
    content |= {f"{part}_images": made["x_test"] for part in ("val", "test")}
    content |= {f"{part}_labels": made["y_test"][:, None].astype(np.uint8) for part in ("val", "test")}
    source = opened(write(tmp_path / "set.npz", content))
    assert source.val is not None and torch.equal(everything(source.val), everything(source.test))
    assert source.train.labels.tolist() == made["y_train"].tolist()


def test_classes_have_the_names_that_are_given(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "ä", "owl"])
    assert opened(write(tmp_path / "set.npz", made_up() | {"class_names": names})).class_names == tuple(names)


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
def test_floating_point_pixels_become_eight_bits(tmp_path: Path, white: int, kind: str) -> None:
    made = made_up()
    content = {
        name: (array / 255 * white).astype(kind) if name.startswith("x") else array for name, array in made.items()
    }
    source = opened(write(tmp_path / "set.npz", content))
    assert np.array_equal(everything(source.train).numpy(), channels_first(made["x_train"]))


def test_axes_in_fortrans_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_CHUNK", 1000)
    made = made_up()
    halves = {"x_train": np.asfortranarray(made["x_train"] / 255.0), "x_test": made["x_test"] / 255.0}
    for save in (np.savez, np.savez_compressed):
        source = opened(write(tmp_path / "set.npz", made | halves, save))
        assert np.array_equal(everything(source.train).numpy(), channels_first(made["x_train"]))


def test_images_of_another_size(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", made_up())
    own, large = opened(path), opened(path, 11)
    assert large.shape == (3, 11, 11)
    assert torch.equal(everything(large.test), resized(everything(own.test), 11))


def test_without_a_test_part_a_fixed_fifth_of_each_class_is_held_out(tmp_path: Path) -> None:
    made = made_up(count=90)
    labels = np.sort(np.arange(90) % 4)[::-1]  # 23, 23, 22 and 22 of each
    path = write(tmp_path / "set.npz", {"images": made["x_train"], "labels": labels})
    source = opened(path)
    assert source.train.labels.bincount().tolist() == [18, 18, 18, 18]
    assert source.test.labels.bincount().tolist() == [5, 5, 4, 4]
    parts = [everything(part).numpy().tobytes() for part in (source.train, source.test)]
    pixels = np.concatenate([everything(part).numpy() for part in (source.train, source.test)])
    assert sorted(image.tobytes() for image in pixels) == sorted(
        image.tobytes() for image in np.ascontiguousarray(channels_first(made["x_train"]))
    )
    assert source.lines == (f"{path}: no test part; a fixed 20% of each class, 18 images, are the test images",)
    elsewhere = opened(write(tmp_path / "other.npz", {"images": made["x_train"], "labels": labels}))
    assert [everything(part).numpy().tobytes() for part in (elsewhere.train, elsewhere.test)] == parts
    assert source.train.fingerprint() != source.test.fingerprint()


@pytest.mark.parametrize("zca", [False, True])
def test_streamed_and_held_images_are_the_same(tmp_path: Path, zca: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "set.npz", {"images": made_up()["x_train"], "labels": np.arange(40) % 4})
    held, streamed = (
        loaded(f"npz:{path}", zca=zca, val_fraction=0.25, data_cache=kept, cache_dir=tmp_path / "cache", progress=True)
        for kept in ("device", "disk")
    )
    assert (held.num_classes, held.image_shape, len(held.train), len(held.test)) == (4, (3, 8, 8), 24, 8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(held.train.batch(order), streamed.train.batch(order))
    assert "no test part; a fixed 20% of each class, 8 images" in capsys.readouterr().err
    assert held.identity == streamed.identity
    assert all("npz" in file.name and "set" not in file.name for file in (tmp_path / "cache").iterdir())


# ---- what it is


def test_identity_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    made = made_up()
    path = write(tmp_path / "set.npz", made)
    first = opened(path)
    assert first.identity is not None
    (tmp_path / "moved").mkdir()
    moved = shutil.move(path, tmp_path / "moved" / "renamed.npz")
    os.utime(moved, (1, 1))
    compressed = write(tmp_path / "set.npz", made, np.savez_compressed)
    for same in (moved, compressed):
        source = opened(same)
        assert source.identity is not None and source.identity() == first.identity()
        assert source.train.fingerprint() == first.train.fingerprint()
    for name in made:
        changed = {**made, name: made[name].copy()}
        changed[name].reshape(-1)[:2] = changed[name].reshape(-1)[:2][::-1]
        other = opened(write(tmp_path / "other.npz", changed))
        assert other.identity is not None and other.identity() != first.identity(), name
    assert len({part.fingerprint() for part in (first.train, first.test, opened(compressed, 9).train)}) == 3


def test_where_a_file_lies_does_not_change_its_splits(tmp_path: Path) -> None:
    splits = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder / f"{folder}.npz", made_up())
        listing = list_data(DataSpec(f"npz:{path}", Path(), val_fraction=0.5, limit_train=12))
        splits.append((listing.train.tolist(), None if listing.val is None else listing.val.tolist()))
    assert splits[0] == splits[1]


def test_a_file_is_also_found_in_root_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "set.npz", made_up())
    assert list_data(DataSpec("npz:gone/set.npz", tmp_path)).image_shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"^--dataset npz:gone/x.npz: no such file, nor .*/x.npz; check the path$"):
        list_data(DataSpec("npz:gone/x.npz", tmp_path))
    with pytest.raises(UserError, match="no such file"):
        list_data(DataSpec(f"npz:{'x' * 5000}", tmp_path))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("digits", "digits"),
        ("npz:flowers.npz", "npz-flowers"),
        ("npz:/my data/größe & co.npz", "npz-gr-e-co"),
        ("npz:../..", "npz-data"),
        ("npz:x/" + "y" * 300, "npz-" + "y" * 80),
        ("npz:a:b.npz", "npz-a-b"),
    ],
)
def test_labels_are_names_of_files(name: str, label: str) -> None:
    assert label_of(name) == label


def test_folders_are_named_after_the_label() -> None:
    assert str(parse(["--dataset", "npz:/My Data/set 1.npz"])[0].folder).startswith("save/npz-set-1/IPC_1_")
    config, _ = parse_any(["ftd", "--dataset", "npz:/My Data/set 1.npz"])
    assert isinstance(config, FtdConfig)
    assert config.dataset == "npz:/My Data/set 1.npz", "upper case is kept"
    assert str(config.buffer_folder) == "buffers/npz-set-1_NO_ZCA/ConvNet"
    assert not is_own("npz:") and not is_own("npz") and not is_own("zip:x")


# ---- mistakes

MADE = made_up()
FAULTS: dict[str, tuple[Arrays, str]] = {
    "nothing": ({"z": np.zeros(3)}, r"no training images \(found z\); name them x_train and y_train, or images and"),
    "no labels": ({"images": MADE["x_train"]}, "holds images but no labels; add it"),
    "no test labels": ({k: v for k, v in MADE.items() if k != "y_test"}, "holds x_test but no y_test; add it"),
    "twice": (MADE | {"images": MADE["x_train"]}, "holds x_train as well as images; leave one of them out"),
    "whole numbers": (MADE | {"x_train": MADE["x_train"].astype(int)}, "x_train is of type int64; give uint8, or"),
    "text": (MADE | {"x_train": np.array(["a"])}, "x_train is of type <U1; give uint8"),
    "complex": (MADE | {"x_train": MADE["x_train"] * 1j}, "x_train is of type complex128; give uint8"),
    "rows": (MADE | {"x_train": MADE["x_train"].reshape(40, -1)}, "x_train is 40 x 192, not N x H x W or"),
    "one number": (MADE | {"x_train": np.float32(3)}, "x_train is one number, not N x H x W"),
    "channels first": (
        MADE | {"x_train": np.moveaxis(MADE["x_train"], -1, 1)},
        r"x_train is 40 x 3 x 8 x 8, not .*; put channels last, by numpy.moveaxis\(x_train, 1, -1\)",
    ),
    "four channels": (MADE | {"x_train": np.zeros((9, 8, 8, 4), np.uint8)}, "9 x 8 x 8 x 4, not .*; C is 1 or 3"),
    "not square": (MADE | {"x_train": MADE["x_train"][:, :7]}, "images of 7 x 8 pixels; crop or pad them to squares"),
    "empty": (MADE | {"x_train": MADE["x_train"][:0]}, "x_train is 0 x 8 x 8 x 3 and holds no images; add some"),
    "sizes": (MADE | {"x_test": np.zeros((12, 9, 9, 3), np.uint8)}, "8 x 8 x 3 in x_train, 9 x 9 x 3 in x_test; make"),
    "channels": (MADE | {"x_test": MADE["x_test"][..., 0]}, "images are 8 x 8 x 3 in x_train, 8 x 8 x 1 in x_test"),
    "types": (MADE | {"x_test": MADE["x_test"] / 255}, "images are of types float64 and uint8; make them alike"),
    "too few labels": (MADE | {"y_train": np.arange(39) % 4}, "y_train is 39 of type int64; give 40 whole numbers"),
    "one-hot labels": (MADE | {"y_train": np.eye(4)[MADE["y_train"]]}, "y_train is 40 x 4 of type float64; give 40"),
    "negative labels": (MADE | {"y_train": MADE["y_train"] - 1}, "y_train holds -1, and there are 4 classes in"),
    "labels from 1": (MADE | {"y_train": MADE["y_train"] + 1}, "y_train holds 4, and there are 4 classes in training"),
    "a gap": (MADE | {"y_train": MADE["y_train"] % 2 * 2}, r"y_train holds 2, and there are 2 classes .*0\.\.1 with"),
    "huge labels": (MADE | {"y_train": MADE["y_train"].astype(np.uint64) * 2**62}, "y_train holds "),
    "another test class": (MADE | {"y_test": MADE["y_test"] + 1}, "y_test holds 4, and there are 4 classes in"),
    "no test image": (MADE | {"y_test": MADE["y_test"] % 3}, "y_test has no image of class 3; add some, or leave"),
    "one class": (MADE | {"y_train": MADE["y_train"] * 0}, r"1 class\(es\), but it takes at least 2 to classify"),
    "a name too many": (MADE | {"class_names": np.array([*"abcde"])}, "y_train has no image of class e; add some"),
    "a name too few": (MADE | {"class_names": np.array([*"abc"])}, "y_train holds 3, and there are 3 classes with n"),
    "a name twice": (MADE | {"class_names": np.array([*"abca"])}, "two classes have the same name; rename one"),
    "numbers as names": (MADE | {"class_names": np.arange(4)}, "class_names is not one line of text for each class"),
    "not finite": (
        {k: np.where(v == 255, np.nan, v / 255) if k[0] == "x" else v for k, v in MADE.items()},
        "x_train holds NaN or infinity; mend it",
    ),
    "normalised": (
        {k: v / 255 - 0.5 if k[0] == "x" else v for k, v in MADE.items()},
        r"pixels are in -0\.5\.\.0\.5, outside 0\.\.1; store them before they are normalised",
    ),
    "ambiguous": (
        {k: v / 100 if k[0] == "x" else v for k, v in MADE.items()},
        r"pixels are in 0\.\.2\.55, which may be of 0\.\.1 or 0\.\.255; give --pixel_range, or store them as uint8",
    ),
    "one image of a class": (
        {"images": MADE["x_train"][:5], "labels": np.array([0, 0, 1, 1, 2])},
        "no test part, and class 2 has one image, which cannot be in two parts; add a test part, or images",
    ),
    "objects": (MADE | {"x_train": np.array([{}])}, "x_train holds Python objects, which are not read; store numbers"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_in_the_file_is_told_in_one_line(tmp_path: Path, fault: str) -> None:
    content, said = FAULTS[fault]
    path = write(tmp_path / "set.npz", content)
    with pytest.raises(UserError, match=f"^{path}: .*{said}") as error:
        opened(path)
    assert "\n" not in str(error.value)


def test_the_value_of_white_is_taken_where_it_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "dark.npz", FAULTS["ambiguous"][0])
    assert torch.equal(
        everything(opened(path, white=255).train), torch.from_numpy(channels_first(np.rint(MADE["x_train"] / 100)))
    )
    with pytest.raises(UserError, match=r"outside 0\.\.1; store them"):
        opened(path, white=1)
    with pytest.raises(UserError, match=r"^--pixel_range 1: .* has uint8 images, which are of 0\.\.255; leave it out"):
        opened(write(tmp_path / "bright.npz", MADE), white=1)
    assert "--pixel_range is not read by this run: only --dataset npz:FILE" in parse(["--pixel_range", "1"])[1][0]
    assert parse(["--pixel_range", "1", "--dataset", "npz:x"])[1] == []


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, save: Callable[..., None]) -> None:
    path = write(tmp_path / "set.npz", MADE, save)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:-40], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}: not a readable .npz file .*; write it with numpy.savez"):
            opened(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in MADE:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x09\x00rubbish")
    with pytest.raises(UserError, match="not a readable .npz file"):
        opened(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_byte_is_damaged_it_is_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("damaged") / "set.npz", made_up(8, 4, 2, 1, 2))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with suppress(UserError):
        everything(opened(path).train)


@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_a_run_refuses_it_before_anything_is_written(
    tmp_path: Path, dry: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("set.npz"), FAULTS["not square"][0])
    assert "set.npz: x_train has images of 7 x 8 pixels" in refused(["--dataset", "npz:set.npz", *dry], capsys)
    assert "invalid choice: 'npz:'" in refused(["--dataset", "npz:", *dry], capsys)
    assert "npz:FILE" in refused(["--dataset", "npz", *dry], capsys)
    assert os.listdir() == ["set.npz"]


# ---- runs


def test_a_dry_run_knows_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", made_up(side=12, channels=1))
    text = preview(parse(["--dataset", f"npz:{path}", "--batch_size", "10"])[0])
    assert "1 x 12 x 12 images" in text and "about 3 (36 real images, 10 per step)" in text and "unknown" not in text
    with pytest.raises(UserError, match="--task_sampler_nc 5 is more than the 4 classes of npz:"):
        preview(parse(["--dataset", f"npz:{path}", "--task_sampler_nc", "5"])[0])


def test_a_run_goes_on_where_its_data_were_moved_and_not_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("my set.npz"), made_up(), np.savez_compressed)
    flags = [*TINY, "--batch_size", "12", "--eval_steps", "2", "--num_train_eval", "1"]
    assert main([*flags, "--dataset", "npz:my set.npz", "--epochs", "1"]) == 0
    (run,) = Path("save/npz-my-set").iterdir()
    assert "| npz-my-set, trained on |" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["dataset"] == "npz-my-set"
    Path("there").mkdir()
    Path("my set.npz").rename("there/renamed.npz")
    more = [*flags, "--epochs", "2", "--resume", "--save_dir", str(run), "--dataset"]
    other = made_up()
    other["x_train"][0, 0, 0, 0] ^= 1
    write(Path("other.npz"), other)
    said = refused([*more, "npz:other.npz"], capsys)
    assert said.endswith("was begun on data of another content than that of npz:other.npz; give those data, or another "
                         "--save_dir\n")  # fmt: skip
    assert main([*more, "npz:there/renamed.npz"]) == 0
    said = refused(["export", str(run), "--to", "ddranking"], capsys)
    assert "not npz-renamed; if the set" in said
    evaluate = ["evaluate", str(run), "--eval_steps", "2", "--num_train_eval", "1", "--device", "cpu"]
    Path("there/renamed.npz").rename("renamed.npz")
    assert "npz:there/renamed.npz: no such file" in refused(evaluate, capsys)
    assert main([*evaluate, "--root", "."]) == 0
    assert "npz-renamed test images" in capsys.readouterr().out


def test_experts_are_matched_to_the_content_of_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("set.npz"), made_up())
    common = [
        "--depth",
        "1",
        "--width",
        "4",
        "--device",
        "cpu",
        "--batch_train",
        "20",
        "--buffer_path",
        "b",
        "--dataset",
    ]
    assert main(["buffer", *common, "npz:set.npz", "--num_experts", "1", "--train_epochs", "3"]) == 0
    ftd = [
        "ftd",
        "--syn_steps",
        "1",
        "--expert_epochs",
        "1",
        "--max_start_epoch",
        "2",
        "--Iteration",
        "1",
        "--num_eval",
        "1",
    ]
    ftd += ["--epoch_eval_train", "1", *common]
    Path("moved").mkdir()
    Path("set.npz").rename("moved/set.npz")
    assert main([*ftd, "npz:moved/set.npz", "--save_dir", "run"]) == 0
    other = made_up()
    other["x_test"][0, 0, 0, 0] ^= 1
    write(Path("set.npz"), other)
    said = refused([*ftd, "npz:set.npz", "--save_dir", "other"], capsys)
    assert "its experts are of other data or of another network: dataset npz " in said and "(--dataset)" in said
    assert not Path("other").exists()
