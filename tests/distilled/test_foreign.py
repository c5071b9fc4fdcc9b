"""Sets as other programs write them, evaluated from the command line: each as the same numbers in a plain pair."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cli import refused
from PIL import Image
from torch import Tensor, nn

from framework import load_distilled
from framework.data import load as loading
from framework.distilled import foreign
from framework.distilled.foreign import Target
from framework.distilled.formats import LR, Stored, read
from framework.errors import UserError
from framework.rng import generator
from main import main

DIGITS = ["--dataset", "digits", "--preprocess", "standardise"]
BUDGET = ["--num_train_eval", "1", "--eval_steps", "3", "--device", "cpu"]
GEN = generator(0, "foreign")
IMAGES = torch.randn(20, 1, 8, 8, generator=GEN)
NUMBERS = torch.arange(10).repeat_interleave(2)
LOGITS = 3 * torch.eye(10).repeat_interleave(2, 0) + torch.randn(20, 10, generator=GEN) / 4


def scored(path: Path, *flags: str, recipe: str = "inner") -> dict[str, Any]:
    """What ``main.py evaluate`` found of a set: its row, and how networks were trained."""
    output = path.parent / "out" / path.name
    shutil.rmtree(output, ignore_errors=True)
    assert main(["evaluate", str(path), *BUDGET, "--recipe", recipe, *flags, "--output", str(output)]) == 0
    found = json.loads((output / f"{recipe}.json").read_text())
    (row,) = next(iter(found["results"].values())).values()
    return {"recipe": found["recipe_text"], **row}


def plain(folder: Path, images: Tensor, labels: Tensor, *flags: str, recipe: str = "inner") -> dict[str, Any]:
    """The scores of the same numbers in a pair of ours: (N, C, H, W), labels as class weights or numbers."""
    torch.save((images, labels), folder / "plain.pt")
    kind = ["--label_kind", "weights"] if labels.ndim == 2 else []
    return scored(folder / "plain.pt", *(flags or DIGITS), *kind, recipe=recipe)


# ---- trajectory matching: files beside each other --------------------------------------------------


@pytest.mark.parametrize("name", ["images_best.pt", "images_5000.pt", "ema_images_best.pt", "images.pt"])
def test_mtt_has_the_labels_in_a_file_beside_the_images(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = tmp_path / name.replace("images", "labels")
    torch.save(IMAGES, tmp_path / name)
    torch.save(NUMBERS, beside)
    found = scored(tmp_path / name, *DIGITS)
    assert f"{tmp_path / name}: its labels are taken from {beside}\n" in capsys.readouterr().err
    assert found == plain(tmp_path, IMAGES, NUMBERS)


def test_labels_that_are_given_come_before_those_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(IMAGES, tmp_path / "images_best.pt")
    torch.save(NUMBERS, tmp_path / "labels_best.pt")
    torch.save(NUMBERS.flip(0), tmp_path / "other.pt")
    found = scored(tmp_path / "images_best.pt", "--labels", str(tmp_path / "other.pt"), *DIGITS)
    assert "labels are taken" not in capsys.readouterr().err
    assert found == plain(tmp_path, IMAGES, NUMBERS.flip(0))


def write_datm(folder: Path, rate: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As DATM's ``distill/DATM.py`` does, with tensors that were on a GPU."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(IMAGES, folder / "images_best.pt")
        torch.save(nn.Parameter(LOGITS), folder / "labels_best.pt")
        torch.save(rate, folder / "lr_best.pt")
    return folder / "images_best.pt"


@pytest.mark.parametrize("recipe", ["inner", "dc", "papers"])
@pytest.mark.parametrize("rate", [torch.tensor(0.25), nn.Parameter(torch.tensor([0.25]))])
def test_datms_learnt_rate_is_that_of_every_recipe(
    recipe: str, rate: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_datm(tmp_path, rate, monkeypatch)
    found = scored(path, *DIGITS, "--label_kind", "logits", recipe=recipe)
    assert (
        f"{tmp_path / 'lr_best.pt'}: the learnt rate 0.25 is the recipe's learning rate; --inner_lr gives another\n"
        in capsys.readouterr().err
    )
    assert " 0.25" in found["recipe"]
    assert found == plain(tmp_path, IMAGES, LOGITS.softmax(1), *DIGITS, "--inner_lr", "0.25", recipe=recipe)


@pytest.mark.parametrize(
    ("rate", "what"),
    [(float("nan"), "nan"), (0.0, "0"), (-0.1, "-0.1"), (float("inf"), "inf"), ([0.1, 0.2], "of shape (2,)")],
)
def test_a_learnt_rate_that_is_none_needs_another(
    rate: Any, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_datm(tmp_path, torch.tensor(rate), monkeypatch)
    flags = ["evaluate", str(path), *BUDGET, *DIGITS, "--label_kind", "logits"]
    line = refused(flags, capsys)
    file = tmp_path / "lr_best.pt"
    expected = f"{file}: a learnt rate {what} is no positive number; give another by --inner_lr\n"
    assert line == f"main.py: error: {expected}"
    found = scored(path, *DIGITS, "--label_kind", "logits", "--inner_lr", "0.5")
    assert " 0.5" in found["recipe"]
    assert "learnt rate" not in capsys.readouterr().err


def test_the_rate_of_the_same_name_is_taken(tmp_path: Path) -> None:
    for name, tensor in (("images_7", IMAGES), ("labels_7", NUMBERS), ("lr_7", torch.tensor(0.5)), ("lr_8", IMAGES)):
        torch.save(tensor, tmp_path / f"{name}.pt")
    stored = read(tmp_path / "images_7.pt")
    assert stored.companions == {"labels": tmp_path / "labels_7.pt", LR: tmp_path / "lr_7.pt"}
    assert stored.tensors[LR] == 0.5
    torch.save({"images": IMAGES, "labels": NUMBERS, "syn_lr": 0.125}, tmp_path / "dictionary.pt")
    found = foreign.learnt_rate(read(tmp_path / "dictionary.pt"), tmp_path / "dictionary.pt")
    assert found is not None
    assert found[0] == 0.125


# ---- RaT-BPTT, KIP, FRePo --------------------------------------------------------------------------


def test_rat_bptts_h5_has_rows_of_pixels_and_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ``framework/base2.py``: an embedding's weight (N, C * H * W), class after class, and what it kept beside."""
    with h5py.File(tmp_path / "IPC_2.h5", "w") as file:
        file.create_dataset("data", data=IMAGES.flatten(1).numpy())
        file.create_dataset("epoch", data=7)
        file.create_dataset("grad", data=np.array([0.5, np.nan]))
    found = scored(tmp_path / "IPC_2.h5", *DIGITS)
    lines = capsys.readouterr().err
    assert "IPC_2.h5: images of 64 numbers are taken as 1 x 8 x 8\n" in lines
    assert "IPC_2.h5: holds no labels; its images are taken as 2 of each class in order\n" in lines
    assert found == plain(tmp_path, IMAGES, NUMBERS)


def test_rat_bptts_learnt_labels_are_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = LOGITS.clip(min=0)
    with h5py.File(tmp_path / "IPC_2.h5", "w") as file:
        file.create_dataset("data", data=IMAGES.flatten(1).numpy())
        file.create_dataset("epoch", data=7)
        file.create_dataset("label", data=weights.numpy())
    found = scored(tmp_path / "IPC_2.h5", *DIGITS)
    assert "holds no labels" not in capsys.readouterr().err
    assert found == plain(tmp_path, IMAGES, weights)


def test_without_labels_there_are_as_many_of_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.create_dataset("data", data=IMAGES[:19].flatten(1).numpy())
    line = refused(["evaluate", str(tmp_path / "odd.h5"), *BUDGET, *DIGITS], capsys)
    assert "odd.h5: holds no labels, and 19 images are not as many of each of 10 classes in their order" in line


def test_kips_npz_is_channels_last_with_centred_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """google-research's ``kip/dataset.ipynb``: images (N, H, W, C), labels one-hot less 1/K where not learnt."""
    one_hot = torch.eye(10)[NUMBERS]
    images = IMAGES.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "ConvNet_ssize20_nol.npz", images=images, labels=(one_hot - 0.1).numpy())
    found = scored(tmp_path / "ConvNet_ssize20_nol.npz", *DIGITS)
    assert "labels taken as --label_kind centred: each row is one-hot less 1/10" in capsys.readouterr().err
    assert found["loss"] == pytest.approx(plain(tmp_path, IMAGES, one_hot)["loss"], rel=1e-4)


def test_frepos_learnt_labels_need_their_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ``save_proto_np``: ``image`` (N, H, W, C) and ``label``, centred at first and then learnt."""
    learnt = torch.eye(10)[NUMBERS] - 0.1 + torch.randn(20, 10, generator=generator(1, "foreign")) / 20
    path = tmp_path / "step000500.npz"
    np.savez(path, image=IMAGES.permute(0, 2, 3, 1).numpy(), label=learnt.numpy())
    line = refused(["evaluate", str(path), *BUDGET, *DIGITS], capsys)
    assert "say which: --label_kind logits (DATM), centred (KIP, FRePo, RFAD), log or weights" in line
    assert line.count("\n") == 1
    assert scored(path, *DIGITS, "--label_kind", "centred") == plain(tmp_path, IMAGES, learnt + 0.1)


@pytest.mark.parametrize("shape", [(8, 1, 8), (1, 8, 7), (65,), (8,), ()])
def test_other_shapes_are_not_guessed(shape: tuple[int, ...], tmp_path: Path) -> None:
    stored = Stored({"images": torch.zeros(20, *shape), "labels": NUMBERS})
    with pytest.raises(UserError, match="those of digits 1 x 8 x 8; give another --dataset or --im_size"):
        foreign.understood(stored, tmp_path, Target("digits", (1, 8, 8), tuple("0123456789")), pixels=False)


# ---- DD-Ranking ------------------------------------------------------------------------------------


def write_coloured_tree(root: Path, names: list[str]) -> None:
    """Real data: a tree of coloured pictures of 8 x 8 pixels."""
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = noise.integers(0, 120, (8, 8, 3)) + 13 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")


def folder_flags(root: Path, preprocess: str) -> list[str]:
    data = ["--dataset", "imagefolder", "--root", str(root), "--im_size", "8"]
    return [*data, "--preprocess", preprocess, "--eval_arch", "convnet", "--width", "4"]


@pytest.mark.parametrize("soft", [False, True])
def test_our_export_to_ddranking_is_read_back(soft: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = tmp_path / "real", tmp_path / "run"
    write_coloured_tree(root, list("abc"))
    flags = ["--dataset", "imagefolder", "--root", str(root), "--im_size", "8", "--depth", "1", "--width", "4"]
    flags += ["--epochs", "1", "--batch_size", "8", "--window", "2", "--totwindow", "4", "--num_train_eval", "1"]
    flags += ["--eval_steps", "2", "--device", "cpu", "--val_fraction", "0.25", *(["--train_y"] if soft else [])]
    assert main([*flags, "--save_dir", str(run)]) == 0
    export = ["export", str(run), "--to", "ddranking", "--ddranking_dataset", "CIFAR10"]
    assert main([*export, "--output", str(tmp_path / "set")]) == 0
    (tmp_path / "set" / "set.json").unlink()  # as others have it
    capsys.readouterr()
    original = load_distilled(run)
    kind = ["--label_kind", "log"] if soft else []
    theirs = folder_flags(root, "standardise")
    theirs += ["--mean", "0.4914", "0.4822", "0.4465", "--std", "0.2023", "0.1994", "0.2010"]
    found = scored(tmp_path / "set", *theirs, *kind)
    lines = capsys.readouterr().err
    assert f"its labels are taken from {tmp_path / 'set' / 'labels.pt'}" in lines
    images = torch.load(tmp_path / "set" / "images.pt")
    expected = plain(tmp_path, images, original.labels if soft else original.hard_labels, *theirs)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_pairs_of_ddranking_have_logits(tmp_path: Path) -> None:
    """Its README's ``images.pt``, ``labels.pt`` and ``lr.pt`` in one folder."""
    (tmp_path / "syn").mkdir()
    torch.save(IMAGES, tmp_path / "syn" / "images.pt")
    torch.save(LOGITS, tmp_path / "syn" / "labels.pt")
    torch.save(torch.tensor(0.5), tmp_path / "syn" / "lr.pt")
    found = scored(tmp_path / "syn", *DIGITS, "--label_kind", "logits")
    assert found == plain(tmp_path, IMAGES, LOGITS.softmax(1), *DIGITS, "--inner_lr", "0.5")


# ---- SRe2L, RDED: trees of pictures ----------------------------------------------------------------

WNIDS = ["n01440764", "n02102040", "n02979186"]


def write_pictures(folder: Path, names: list[str], suffix: str = ".jpg") -> Tensor:
    """Two pictures a class, as SRe2L and RDED save them; what a reader decodes, (N, 3, 8, 8) uint8."""
    noise, decoded = np.random.default_rng(1), []
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            path = folder / name / f"class{label:03d}_id{number:03d}{suffix}"
            Image.fromarray(noise.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
            decoded.append(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))
    return torch.stack(decoded)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (WNIDS, None),
        (["new000", "new001", "new002"], "folders are taken as numbers of classes, as new000 of n01440764"),
        (["00000", "00001", "00002"], "folders are taken as numbers of classes, as 00000 of n01440764"),
    ],
)
def test_trees_named_by_wnid_or_number(
    names: list[str], line: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coloured_tree(tmp_path / "real", WNIDS)
    pixels = write_pictures(tmp_path / "set", names)
    flags = folder_flags(tmp_path / "real", "pixels")
    found = scored(tmp_path / "set", *flags)
    error = capsys.readouterr().err
    assert ("folders are taken" not in error) if line is None else f"{tmp_path / 'set'}: {line}\n" in error
    assert "taken as pixels" not in error, "pictures are of 0..255"
    assert found == plain(tmp_path, pixels, torch.arange(3).repeat_interleave(2), *flags)


def test_a_tree_of_pictures_is_evaluated_again_and_again(tmp_path: Path) -> None:
    write_coloured_tree(tmp_path / "real", WNIDS)
    write_pictures(tmp_path / "set", WNIDS)
    for _ in range(2):
        assert main(["evaluate", str(tmp_path / "set"), *BUDGET, *folder_flags(tmp_path / "real", "pixels")]) == 0
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == WNIDS
    assert (tmp_path / "set.evaluation" / "inner.json").is_file()


def test_numbers_count_wnids_in_order_but_our_exports_count_labels() -> None:
    """imagefruit's labels are not in the order of its WNIDs, in which torchvision numbers folders."""
    names = tuple(foreign.SUBSETS["imagefruit"].values())
    wnids = list(foreign.SUBSETS["imagefruit"])
    target = Target("imagefruit", (3, 8, 8), names)
    numbered, line = foreign._folder_classes([f"new{k:03d}" for k in range(10)], target, Path("set"))
    assert [wnids[label] for label in numbered] == sorted(wnids) != wnids
    assert names[numbered[0]] in line[0]
    assert foreign._folder_classes(sorted(wnids), target, Path("set"))[0].tolist() == numbered.tolist()
    ours = [f"{label:05d}_{name}" for label, name in enumerate(names)]
    assert foreign._folder_classes(ours, target, Path("set"))[0].tolist() == list(range(10))


@pytest.mark.parametrize("names", [["n01440764", "n99999999"], ["new000", "new003"], ["old000", "old001"]])
def test_folders_of_other_classes_are_named_before_images_are_decoded(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coloured_tree(tmp_path / "real", WNIDS)
    write_pictures(tmp_path / "set", names)
    monkeypatch.setattr(loading._Images, "read", _no_decoding)
    line = refused(["evaluate", str(tmp_path / "set"), *BUDGET, *folder_flags(tmp_path / "real", "pixels")], capsys)
    assert "folders are named neither like classes nor by their numbers (" in line
    assert names[1] in line
    assert line.endswith("rename them 0, 1, 2, ... up to 2\n")


def _no_decoding(self: object, *_: object) -> None:
    raise AssertionError("an image was decoded")


# ---- what is wrong with a file ---------------------------------------------------------------------


WRONG: dict[str, tuple[Any, str]] = {
    "an object": (
        {"images": IMAGES, "labels": Path("x")},
        "set.pt: holds pathlib.PosixPath, which is not read from foreign files; save tensors only",
    ),
    "a network": (
        nn.Linear(2, 2),
        "set.pt: holds torch.nn.modules.linear.Linear, which is not read from foreign files; save tensors only",
    ),
    "code": (os.system, "set.pt: holds posix.system, which is not read from foreign files; save tensors only"),
    "weights of a network": (
        nn.Linear(2, 2).state_dict(),
        "set.pt: holds no images (found weight, bias); name them images and labels",
    ),
    "lists": ({"images": IMAGES.tolist(), "labels": NUMBERS}, "set.pt: holds no images (found labels)"),
    "sparse images": ((IMAGES.to_sparse(), NUMBERS), "set.pt: holds no images (found labels)"),
    "a number": (3, "set.pt: neither a pair nor a dictionary of images and labels; save one with torch.save"),
    "too few labels": ((IMAGES, NUMBERS[:19]), "set.pt: 20 images but 19 labels; give the files of one set"),
    "too many classes": ((IMAGES, NUMBERS + 1), "set.pt: labels are not all in 0..9; check --dataset"),
    "other classes": ((IMAGES, torch.rand(20, 12)), "set.pt: labels of shape (20, 12); there are 10 classes"),
    "NaN": ((IMAGES / 0, NUMBERS), "set.pt: holds NaN or infinity; restore it from a copy"),
    "pixels": ((IMAGES.byte(), NUMBERS), "set.pt: holds whole numbers, which are pixels; give --preprocess pixels"),
    "another shape": ((IMAGES[..., :7], NUMBERS), "set.pt: images are 1 x 8 x 7, those of digits 1 x 8 x 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_plain_line_before_real_images_are_decoded(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = WRONG[case]
    torch.save(content, tmp_path / "set.pt")
    monkeypatch.setattr(loading._Images, "read", _no_decoding)
    line = refused(["evaluate", str(tmp_path / "set.pt"), *BUDGET, *DIGITS], capsys)
    assert message in line
    assert line[:-1].isprintable()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "set.pt"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.pt", b""),
        ("set.pt", b"junk"),
        ("set.pt", b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."),  # pickle's protocol 4
        ("set.pt", b"PK\x03\x04 half an archive"),
        ("set.npz", b"junk"),
        ("set.h5", b"junk"),
        ("set.safetensors", b"junk"),
    ],
)
def test_damaged_files_are_told_in_one_plain_line(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / name).write_bytes(content)
    line = refused(["evaluate", str(tmp_path / name), *BUDGET, *DIGITS], capsys)
    assert str(tmp_path / name) in line
    assert line[:-1].isprintable()
    assert "\\x1b" not in line
    assert ";" in line, "what to do"
    assert not [warning for warning in recwarn if "pickle" in str(warning.message)]


def test_a_companion_that_holds_no_tensor_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(IMAGES, tmp_path / "images_best.pt")
    torch.save({"labels": NUMBERS}, tmp_path / "labels_best.pt")
    line = refused(["evaluate", str(tmp_path / "images_best.pt"), *BUDGET, *DIGITS], capsys)
    assert f"{tmp_path / 'labels_best.pt'}: holds no tensor but a dict; save tensors only\n" in line


@pytest.mark.parametrize("given", [False, True])
def test_of_two_files_that_with_nan_is_named(given: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / ("other.pt" if given else "labels_best.pt")
    torch.save(IMAGES, tmp_path / "images_best.pt")
    torch.save(LOGITS / 0, labels)
    flags = ["--labels", str(labels)] if given else []
    line = refused(["evaluate", str(tmp_path / "images_best.pt"), *flags, *BUDGET, *DIGITS], capsys)
    assert f"{labels}: holds NaN or infinity; restore it from a copy\n" in line


def test_labels_for_a_file_that_has_them_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save((IMAGES, NUMBERS), tmp_path / "set.pt")
    torch.save(NUMBERS, tmp_path / "labels.pt")
    flags = ["evaluate", str(tmp_path / "set.pt"), "--labels", str(tmp_path / "labels.pt"), *BUDGET, *DIGITS]
    assert "set.pt has more than images; leave it out" in refused(flags, capsys)


# ---- pixels ----------------------------------------------------------------------------------------

PIXELS = torch.randint(256, (20, 1, 8, 8), generator=generator(2, "foreign"), dtype=torch.uint8)
AS_PIXELS = ["--dataset", "digits", "--preprocess", "pixels"]


@pytest.mark.parametrize(
    ("images", "flags", "said"),
    [
        (PIXELS.float() / 255, [], False),
        (PIXELS.double() / 255 * 1.0000001, [], False),
        (PIXELS, [], True),
        (PIXELS.float(), [], True),
        (PIXELS.float() - 0.25, [], True),
        (PIXELS, ["--pixel_range", "255"], False),
        (PIXELS.float() / 255, ["--pixel_range", "1"], False),
    ],
)
def test_pixels_of_0_to_1_are_plain_and_others_are_told(
    images: Tensor, flags: list[str], said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save((images, NUMBERS), tmp_path / "set.pt")
    found = scored(tmp_path / "set.pt", *AS_PIXELS, *flags)
    told = "are taken as pixels of 0..255 (--pixel_range 255)\n" in capsys.readouterr().err
    assert told == said
    assert found == plain(tmp_path, PIXELS, NUMBERS, *AS_PIXELS, "--pixel_range", "255")


@pytest.mark.parametrize(
    "images", [(PIXELS > 99).to(torch.uint8), PIXELS.float() / 200, PIXELS.float() / 128, PIXELS.float() / 100]
)
def test_pixels_that_may_be_either_are_refused_but_taken_as_given(
    images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save((images, NUMBERS), tmp_path / "set.pt")
    line = refused(["evaluate", str(tmp_path / "set.pt"), *BUDGET, *AS_PIXELS], capsys)
    assert "which may be of 0..1 or 0..255; give --pixel_range, or the --preprocess that made them" in line
    found = scored(tmp_path / "set.pt", *AS_PIXELS, "--pixel_range", "255")
    assert found == plain(tmp_path, images.float().round().byte(), NUMBERS, *AS_PIXELS, "--pixel_range", "255")


def white_of(values: list[float], given: int | None = None) -> int | None:
    """What a file's pixels of these values, an image each of two classes, are taken for."""
    images = torch.tensor(values, dtype=torch.float64).view(2, 1, 1, 1)
    stored = Stored({"images": images, "labels": torch.arange(2)})
    return foreign.understood(stored, Path("set.pt"), Target("x", (1, 1, 1), "ab"), pixels=True, white=given).white


@pytest.mark.parametrize(
    ("values", "white"),
    [([0, 1.0000001], 1), ([0, 0.5], 1), ([-0.001, 1], 1), ([0, 254.7], 255), ([0, 3.0], 255), ([0, 255.0], 255)],
)
def test_white_is_1_or_255_where_that_is_certain(values: list[float], white: int) -> None:
    assert white_of(values) == white


@pytest.mark.parametrize("values", [[-2.1, 2.3], [0, 1.5], [0, 300.0], [-3.0, 200.0]])
def test_values_that_are_no_pixels_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match="the --preprocess that made them"):
        white_of(values)


def test_the_pixel_range_is_as_given() -> None:
    assert white_of([0, 1.5], 255) == 255
    with pytest.raises(UserError, match=r"in 0..1.5, outside 0..1; give"):
        white_of([0, 1.5], 1)
