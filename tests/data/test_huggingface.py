"""Data of the package ``datasets``, from folders that it wrote; nothing is fetched."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cli import TINY, refused
from loading import loaded
from PIL import Image

from framework.config.bptt import parse
from framework.data import huggingface
from framework.data.huggingface import read_hf
from framework.data.load import DataSpec, list_data
from framework.data.parts import Part, Source
from framework.data.registry import Reading, label_of
from framework.errors import UserError
from main import main

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

Pixels = npt.NDArray[np.uint8]


def pictures(count: int, side: int = 8, grey: bool = False, seed: int = 0) -> Pixels:
    shape = (count, side, side) if grey else (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def split(pixels: Pixels | list[Pixels], labels: list[int] | None = None, **about: Any) -> Any:
    """A table of PNG files and labels of three classes."""
    rows = {
        "img": [Image.fromarray(image) for image in pixels],
        "label": [k % 3 for k in range(len(pixels))] if labels is None else labels,
    }
    kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    return datasets.Dataset.from_dict(rows | about.pop("rows", {}), datasets.Features(kinds | about.pop("kinds", {})))


TRAIN, TEST = pictures(30), pictures(9, seed=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "my data"
    datasets.DatasetDict({"train": split(TRAIN), "test": split(TEST)}).save_to_disk(folder)
    return folder


def opened(folder: Path, size: int | None = None, **reading: Any) -> Source:
    return read_hf(str(folder), Path("unused"), size, Reading(**reading))


def saved(folder: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def everything(part: Part, **about: Any) -> torch.Tensor:
    return part.read(torch.arange(len(part.labels)), **about)


def channels_first(pixels: Pixels) -> Pixels:
    return pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1)


def test_splits_and_columns_are_found(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "_ROWS", 7)
    source = opened(written)
    assert (source.class_names, source.shape, source.val, source.lines) == (("cat", "dog", "owl"), (3, 8, 8), None, ())
    for part, pixels in ((source.train, TRAIN), (source.test, TEST)):
        assert part.labels.tolist() == [k % 3 for k in range(len(pixels))]
        assert np.array_equal(everything(part, workers=2).numpy(), channels_first(pixels))
    order = torch.tensor([20, 3, 3, 11])
    assert torch.equal(source.train.read(order), everything(source.train)[order])


def test_a_folder_that_load_dataset_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    split(TRAIN).to_parquet(tmp_path / "set" / "train.parquet")
    split(TEST).to_parquet(tmp_path / "set" / "validation.parquet")
    source = opened(tmp_path / "set")
    assert source.val is None, "the validation split is the test part where there is no other"
    assert np.array_equal(everything(source.test).numpy(), channels_first(TEST))


def test_grey_pictures_have_one_channel_and_mixed_ones_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = pictures(12, grey=True)
    source = opened(saved(tmp_path / "grey", train=split(grey), test=split(grey[:6])))
    assert source.shape == (1, 8, 8)
    assert np.array_equal(everything(source.train).numpy(), grey[:, None])
    folder = saved(tmp_path / "mixed", train=split([*grey, *TRAIN[:6]]), test=split(TEST))
    source = opened(folder)
    assert source.shape == (3, 8, 8)
    assert np.array_equal(source.train.read(torch.tensor([4]))[0, 2].numpy(), grey[4])
    # Where those looked at are grey, another is not turned grey in silence.
    monkeypatch.setattr(huggingface, "_LOOKED_AT", 1)
    late = saved(tmp_path / "late", train=split([*grey, *TRAIN[:6]]), test=split(grey))
    with pytest.raises(UserError, match=r"^hf:.*late, label of train: row 12 has a picture in colour, those looked at"):
        everything(opened(late).train)


def test_other_sizes(tmp_path: Path) -> None:
    """The shorter side is resized, the rest cropped centrally, as for files."""
    wide = pictures(6)[:, :4]  # 4 high, 8 wide
    folder = saved(tmp_path / "set", train=split(wide), test=split(TEST))
    with pytest.raises(UserError, match=r"^--dataset hf:.*: pictures of 8 x 4, 8 x 8 pixels; give --im_size, to which"):
        opened(folder)
    assert np.array_equal(everything(opened(folder, 4).train).numpy(), channels_first(wide[:, :, 2:6]))


def test_withheld_labels_and_three_parts(tmp_path: Path) -> None:
    other = pictures(6, seed=2)
    three = opened(saved(tmp_path / "3", train=split(TRAIN), validation=split(other), test=split(TEST)))
    assert three.val is not None and np.array_equal(everything(three.val).numpy(), channels_first(other))
    assert np.array_equal(everything(three.test).numpy(), channels_first(TEST))
    withheld = split(TEST, [-1] * 9)
    source = opened(saved(tmp_path / "2", train=split(TRAIN), validation=split(other), test=withheld))
    assert source.val is None and np.array_equal(everything(source.test).numpy(), channels_first(other))
    source = opened(saved(tmp_path / "1", train=split(TRAIN), test=withheld))
    assert (len(source.train.labels), len(source.test.labels)) == (24, 6)
    assert source.lines[0].endswith("1: no test part; a fixed 20% of each class, 6 images, are the test images")


def test_a_single_table_is_the_training_part(tmp_path: Path) -> None:
    split(TRAIN).save_to_disk(tmp_path / "set")
    source = opened(tmp_path / "set")
    assert source.test.labels.bincount().tolist() == [2, 2, 2]


def test_columns_that_are_named(tmp_path: Path) -> None:
    rows = {"other": [Image.fromarray(image) for image in TRAIN[::-1]], "number": [k % 2 for k in range(30)]}
    kinds = {"other": datasets.Image(), "number": datasets.Value("int32")}
    two = split(TRAIN, rows=rows, kinds=kinds)
    folder = saved(tmp_path / "set", train=two, test=two)
    assert np.array_equal(everything(opened(folder).train).numpy(), channels_first(TRAIN)), "img is a usual name"
    source = opened(folder, image="other", label="number")
    assert source.class_names == ("0", "1")
    assert np.array_equal(everything(source.test).numpy(), channels_first(TRAIN[::-1]))
    for reading, said in (
        (
            {"image": "x"},
            r"^--hf_image x: hf:.* has no such column \(found img, label, other, number\); give",
        ),
        (
            {"image": "number"},
            r"^hf:.*set, label of train: column number holds no pictures; name another by",
        ),
        ({"label": "img"}, "column img does not hold a whole number in each row; name another by --hf_label"),
    ):
        with pytest.raises(UserError, match=said):
            opened(folder, **reading)
    unclear = saved(tmp_path / "unclear", train=two.rename_column("img", "this"))
    with pytest.raises(UserError, match=r"several columns of pictures \(this, other\); name it by --hf_image"):
        opened(unclear)
    none = saved(tmp_path / "none", train=split(TRAIN).remove_columns("label"))
    with pytest.raises(UserError, match=r"no column of classes \(found img\); name it by --hf_label"):
        opened(none)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"test": split(TEST)}, r"no split train \(found test\); name one so"),
        ({"train": split(TRAIN, [0] * 30)}, "label of train has no image of class dog; add some"),
        ({"train": split(TRAIN), "test": split(TEST, [0] * 9)}, "label of test has no image of class dog"),
        (
            {"train": split(TRAIN, [-1, *range(3)] * 7 + [0, 1])},
            "label of train holds -1, and there are 3 classes",
        ),
        ({"train": split(TRAIN[:3])}, "no test part, and class cat has one image, which cannot be in two parts"),
    ],
)
def test_a_mistake_in_the_data_is_told_in_one_line(tmp_path: Path, splits: dict[str, Any], said: str) -> None:
    folder = saved(tmp_path / "set", **splits)
    with pytest.raises(UserError, match=f"hf:{folder}.*{said}") as error:
        opened(folder)
    assert "\n" not in str(error.value)


def test_an_empty_split(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = datasets.DatasetDict({"train": split(TRAIN), "test": split(TEST[:0])})
    monkeypatch.setattr("datasets.load_from_disk", lambda _: parts)
    with pytest.raises(UserError, match=f"^--dataset hf:{written}: the split test is empty; leave it out$"):
        opened(written)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(TRAIN[0]).save(good, "PNG")
    entries = [{"bytes": good.getvalue(), "path": None}] * 9
    for broken, said in (
        ({"bytes": b"no picture", "path": None}, r"label of train, row 4: not a readable image"),
        (None, "label of train: row 4 has no picture in img; leave it out"),
        ({"bytes": None, "path": str(tmp_path / "gone.png")}, "row 4: not a readable image .*No such file"),
    ):
        table = datasets.Dataset.from_dict(
            {"img": [*entries[:4], broken, *entries[5:]], "label": [0, 1, 2] * 3}, features=split(TRAIN).features
        )
        (tmp_path / "gone.png").touch()
        table.save_to_disk(tmp_path / said[:14])
        (tmp_path / "gone.png").unlink()
        with pytest.raises(UserError, match=said):
            opened(tmp_path / said[:14])


def test_identity_follows_the_content_and_nothing_else(tmp_path: Path, written: Path) -> None:
    def identity(source: Source) -> str:
        assert source.identity is not None
        return source.identity()

    first = opened(written)
    again = opened(saved(tmp_path / "again", train=split(TRAIN), test=split(TEST)))
    assert identity(again) == identity(first)
    assert again.train.fingerprint() == first.train.fingerprint() != opened(written, 9).train.fingerprint()
    changed = TRAIN.copy()
    changed[7, 0, 0, 0] ^= 1
    labels = [1, 0, *[k % 3 for k in range(2, 9)]]
    others = [
        opened(saved(tmp_path / "1", train=split(changed), test=split(TEST))),
        opened(saved(tmp_path / "2", train=split(TRAIN), test=split(TEST, labels))),
    ]
    assert len({identity(source) for source in (first, *others)}) == 3
    assert others[0].train.fingerprint() != first.train.fingerprint()


def test_streamed_and_held_images_are_the_same(tmp_path: Path, written: Path) -> None:
    held, streamed = (
        loaded(f"hf:{written}", val_fraction=0.2, data_cache=kept, cache_dir=tmp_path) for kept in ("device", "disk")
    )
    rows = torch.arange(len(held.train)).flip(0)
    assert torch.equal(held.train.batch(rows), streamed.train.batch(rows))
    assert held.identity == streamed.identity and str(held.identity).startswith("hf ")


def test_without_the_package_or_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    said = refused(["--dataset", "hf:some/set", "--save_dir", str(tmp_path / "run")], capsys)
    assert said == (
        "main.py: error: --dataset hf:some/set: no such folder, and not to be had from the hub (no route to host); "
        "check the folder or name\n"
    )
    (tmp_path / "set").mkdir()
    assert "cannot be read (no route to host); check" in refused(["--dataset", f"hf:{tmp_path / 'set'}"], capsys)
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = refused(["--dataset", "hf:some/set", "--dry_run"], capsys)
    assert said == "main.py: error: --dataset hf:some/set: needs the package: pip install datasets\n"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_its_flags_and_its_name(written: Path) -> None:
    assert "--hf_label is not read by this run: only --dataset hf:... reads it" in parse(["--hf_label", "x"])[1]
    config, warnings = parse(["--dataset", "hf:owner/My Set", "--hf_image", "a", "--hf_label", "b", "--workers", "2"])
    assert warnings == [] and str(config.folder).startswith("save/hf-My-Set/")
    assert label_of(f"hf:{written}") == "hf-my-data"
    assert list_data(DataSpec("hf:my data", written.parent)).image_shape == (3, 8, 8), "it is found in --root"


def test_a_run(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*TINY, "--epochs", "1", "--eval_steps", "2", "--num_train_eval", "1", "--batch_size", "9"]
    assert main([*flags, "--dataset", f"hf:{written}", "--save_dir", str(tmp_path / "run")]) == 0
    assert "| hf-my-data, trained on |" in capsys.readouterr().out
