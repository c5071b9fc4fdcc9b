"""The set that a run starts from, in every form and under every preprocessing: ``--init SET``, ``--ckptname SET``."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import TINY, refused
from loading import loaded
from PIL import Image
from sets import CLASSES, KINDS, SIDE, made_up

from framework import load_distilled
from framework.data.preprocess import Preprocess
from framework.distilled.exports import export
from framework.distilled.foreign import Target
from framework.distilled.formats import write_safetensors
from framework.distilled.names import FORMS
from framework.distilled.set import Distilled
from framework.distilled.start import filled, read_start
from framework.errors import UserError
from framework.inner.counts import Counts
from framework.run import checkpoint
from main import main

IPC = 2
EQUAL = Counts.equal(CLASSES, IPC)
TARGET = Target("cifar10", (3, SIDE, SIDE), made_up().class_names)


def start_of(
    distilled: Distilled, folder: Path, form: str = "safetensors", target: Target = TARGET
) -> "tuple[torch.Tensor, ...]":
    """What a run with the set's own preprocessing starts from."""
    path = folder / f"set{FORMS[form]}"
    export(distilled, form, path)
    start = read_start(path, target, EQUAL)
    return start.images_under(distilled.preprocess)[0], start.labels


def other_pixels(seed: int = 5) -> torch.Tensor:
    """Of another distribution than those that ``made_up`` fits to."""
    gen = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(
        torch.rand(300, 3, 2, 2, generator=gen), size=(SIDE, SIDE), mode="bilinear"
    )
    return (200 * smooth + 30).to(torch.uint8)


# ---- our own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "pt", "npz", "h5"])
@pytest.mark.parametrize("kind", KINDS)
def test_our_own_set_starts_a_run_as_it_is(form: str, kind: str, tmp_path: Path) -> None:
    distilled = made_up(kind, soft=True)
    images, labels = start_of(distilled, tmp_path, form)
    assert torch.equal(images, distilled.images)
    assert torch.equal(labels, distilled.labels)


def test_another_devices_rounding_is_no_other_preprocessing(tmp_path: Path) -> None:
    distilled = made_up("zca")
    write_safetensors(distilled.stored(), tmp_path / "set.safetensors")
    start = read_start(tmp_path / "set.safetensors", TARGET, EQUAL)
    rounded = {name: tensor * (1 + 1e-6) for name, tensor in distilled.preprocess.tensors().items()}
    images, line = start.images_under(Preprocess.from_tensors(rounded))
    assert line is None
    assert torch.equal(images, distilled.images)


def test_classes_are_put_in_the_datas_order(tmp_path: Path) -> None:
    distilled, (a, b, c) = made_up(soft=True), TARGET.class_names
    images, labels = start_of(distilled, tmp_path, target=replace(TARGET, class_names=(c, a, b)))
    assert torch.equal(images, distilled.images[[4, 5, 0, 1, 2, 3]])
    assert torch.equal(labels, distilled.labels[[4, 5, 0, 1, 2, 3]][:, [2, 0, 1]])


def natural(distilled: Distilled) -> np.ndarray:
    """(N, D) in natural colours, in float64 and by the definitions."""
    t = {name.rpartition(".")[2]: value.double().numpy() for name, value in distilled.preprocess.tensors().items()}
    images = distilled.images.double().numpy()
    if distilled.preprocess.kind == "standardise":
        return (images * t["std"].reshape(-1, 1, 1) + t["mean"].reshape(-1, 1, 1)).reshape(len(images), -1)
    rows = images.reshape(len(images), -1) @ np.linalg.inv(t["whiten"])
    return rows + t["mean"] if distilled.preprocess.kind == "zca_pixels" else rows * t["image_norm"] + t["image_mean"]


def seen(rows: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Natural colours (N, D) preprocessed."""
    t = {name.rpartition(".")[2]: value.double().numpy() for name, value in preprocess.tensors().items()}
    if preprocess.kind == "standardise":
        mean, std = (np.repeat(t[name], SIDE**2) for name in ("mean", "std"))
        return (rows - mean) / std
    if preprocess.kind == "zca_pixels":
        return (rows - t["mean"]) @ t["whiten"]
    centred = rows - rows.mean(1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True) @ t["whiten"]


@pytest.mark.parametrize("now", KINDS)
@pytest.mark.parametrize("made", KINDS)
def test_a_set_is_brought_into_the_runs_preprocessing(made: str, now: str, tmp_path: Path) -> None:
    """Far outside 0..1, so that clipping would show."""
    distilled, run = made_up(made, scale=3.0), KINDS[now](other_pixels())
    rows = natural(distilled)
    assert rows.min() < -0.3
    assert rows.max() > 1.3
    write_safetensors(distilled.stored(), tmp_path / "set.safetensors")
    images, line = read_start(tmp_path / "set.safetensors", TARGET, EQUAL).images_under(run)
    expected = seen(rows, run).reshape(images.shape)
    np.testing.assert_allclose(images.numpy(), expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    assert line is not None
    assert line.startswith(f"{tmp_path / 'set.safetensors'}: made under {made}")
    assert ("lost: each image's own mean and norm" in line) == (now == "zca")
    assert ("average mean and norm" in line) == (made == "zca" != now)


@pytest.mark.parametrize(
    ("target", "per_class", "message"),
    [
        (TARGET, 1, r"needs images of shape \(3, 3, 4, 4\), found \(6, 3, 4, 4\)"),
        (replace(TARGET, shape=(1, 4, 4)), IPC, "needs images of shape"),
        (replace(TARGET, class_names=("a cat", "dog", "<é>")), IPC, "only in the data: 'dog'"),
    ],
)
def test_a_set_of_other_data_is_refused(target: Target, per_class: int, message: str, tmp_path: Path) -> None:
    write_safetensors(made_up().stored(), tmp_path / "set.safetensors")
    with pytest.raises(UserError, match=f"^--init .*set.safetensors: .*{message}"):
        read_start(tmp_path / "set.safetensors", target, Counts.equal(CLASSES, per_class))


# ---- other programs' -------------------------------------------------------------------------------


IMAGES = torch.randn(CLASSES * IPC, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
NUMBERS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("form", ["pair", "alone", "npz", "channels last"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_program_are_taken_as_they_are(form: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("set.npz" if form == "npz" else "set.pt")
    if form == "npz":
        np.savez(path, images=IMAGES.numpy(), labels=NUMBERS.numpy())
    elif form == "channels last":
        torch.save((IMAGES.permute(0, 2, 3, 1), NUMBERS), path)
    else:
        torch.save(IMAGES if form == "alone" else (IMAGES, NUMBERS), path)
    start = read_start(path, TARGET, EQUAL)
    images, line = start.images_under(KINDS[kind](other_pixels()))
    assert torch.equal(images, IMAGES)
    assert torch.equal(start.labels, torch.eye(CLASSES)[NUMBERS])
    assert line == f"{path}: does not say its preprocessing; its images are taken as already under the run's {kind}"
    told = [f"{path}: holds no labels; its images are taken as 2 of each class in order"]
    assert start.lines == (told if form == "alone" else [])


def test_labels_of_another_program_are_understood_and_sort_its_images(tmp_path: Path) -> None:
    order = torch.tensor([4, 0, 2, 1, 5, 3])
    weights = torch.eye(CLASSES)[NUMBERS] * 0.7 + 0.1
    torch.save((IMAGES[order], weights[order].log()), tmp_path / "set.pt")
    start = read_start(tmp_path / "set.pt", TARGET, EQUAL)
    assert torch.equal(start.images, IMAGES)
    assert torch.allclose(start.labels, weights)
    assert ["labels taken as --label_kind log" in start.lines[0], "sorted by the heaviest" in start.lines[1]] == [
        True
    ] * 2


def test_pixels_are_preprocessed_as_real_images_are(tmp_path: Path) -> None:
    run, pixels = KINDS["zca_pixels"](other_pixels()), other_pixels(6)[: CLASSES * IPC]
    torch.save((pixels, NUMBERS), tmp_path / "set.pt")
    for number, image in enumerate(pixels):
        (tmp_path / "tree" / f"{NUMBERS[number]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "tree" / f"{NUMBERS[number]}" / f"{number}.png")
    for path in (tmp_path / "set.pt", tmp_path / "tree"):
        images, line = read_start(path, TARGET, EQUAL).images_under(run)
        assert torch.equal(images, run(pixels))
        assert line == f"{path}: pixels, to which the run's zca_pixels is applied"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:5], NUMBERS[:5], "5 images, not 2 or fewer of each of 3 classes; give another --num_per_class"),
        (IMAGES[:5], None, "5 images, not 2 or fewer of each of 3 classes; give another --num_per_class"),
        (torch.cat([IMAGES, IMAGES]), None, "12 images, not 2 or fewer of each of 3 classes; give another"),
        (IMAGES, torch.tensor([0, 0, 1, 1, 2, 0]), "not 2 images of each class by their heaviest label"),
        (IMAGES, IMAGES.flatten(1)[:, :3], "labels that may be logits, centred or weights; store class weights"),
        (IMAGES[..., :3], NUMBERS, "images are 3 x 4 x 3, those of cifar10 3 x 4 x 4; give another"),
        (IMAGES / 0, NUMBERS, "holds NaN or infinity"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(
    images: torch.Tensor, labels: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.pt"
    torch.save(images if labels is None else (images, labels), path)
    with pytest.raises(UserError) as error:
        read_start(path, TARGET, EQUAL, "--ckptname")
    assert str(error.value).startswith(f"--ckptname {path}: {message}")
    assert "\n" not in str(error.value)


# ---- fewer images than the run has ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ours", "tensors"])
def test_a_smaller_set_is_taken_whole_and_the_rest_left_to_noise(form: str, tmp_path: Path) -> None:
    if form == "ours":
        write_safetensors(made_up(soft=True).stored(), path := tmp_path / "set.safetensors")
        images, labels = made_up(soft=True).images, made_up(soft=True).labels
    else:
        torch.save((IMAGES, NUMBERS), path := tmp_path / "set.pt")
        images, labels = IMAGES, torch.eye(CLASSES)[NUMBERS]
    start = read_start(path, TARGET, Counts.equal(CLASSES, IPC + 3))
    assert torch.equal(start.images, images) and torch.equal(start.labels, labels)
    assert start.lines == [f"{path}: 2 image(s) of each class; the other 3 start as noise"]


def test_rows_are_filled_class_by_class() -> None:
    start, given = torch.arange(12.0).view(6, 2), -torch.arange(1.0, 5).view(2, 2)
    expected = [[-1, -2], [2, 3], [4, 5], [-3, -4], [8, 9], [10, 11]]
    three = Counts.equal(2, 3)
    assert filled(start, given, three, Counts.equal(2, 1)).tolist() == expected
    assert torch.equal(filled(start, given.repeat(3, 1), three, three), given.repeat(3, 1))
    expected = [[-1, -2], [2, 3], [-3, -4], [6, 7], [8, 9], [10, 11]]
    assert filled(start, given, Counts((2, 4)), Counts((1, 1))).tolist() == expected
    assert start.tolist() == torch.arange(12.0).view(6, 2).tolist()


# ---- whole runs ------------------------------------------------------------------------------------


def test_a_run_starts_from_a_set_of_another_preprocessing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = [*TINY, "--epochs", "1", "--lr", "1e-12", "--zca_pixels", "--save_dir", str(tmp_path / "run")]
    assert main([*flags, "--ckptname", str(run)]) == 0
    given, found = load_distilled(run), load_distilled(tmp_path / "run")
    expected = found.preprocess.of_natural(given.preprocess.inverse(given.images, clip=False))
    assert torch.allclose(checkpoint.load(tmp_path / "run" / "last.pt")["set"]["images"], expected, atol=1e-6)
    assert f"{run}: made under standardise, converted to the run's zca_pixels" in capsys.readouterr().err


def test_a_run_starts_from_an_exported_image_folder(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", "images", "--output", str(tmp_path / "tree")]) == 0
    flags = [*TINY, "--epochs", "1", "--lr", "1e-12", "--save_dir", str(tmp_path / "run")]
    assert main([*flags, "--init", str(tmp_path / "tree")]) == 0
    given, ended = load_distilled(run), checkpoint.load(tmp_path / "run" / "last.pt")["set"]["images"]
    back = given.preprocess.inverse(ended) - given.preprocess.inverse(given.images)
    assert back.abs().max() <= 0.5 / 255 + 1e-4


def test_a_run_starts_from_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the right class, different ones, and those of the seed."""
    flags = [*TINY, "--epochs", "1", "--lr", "1e-12", "--num_per_class", "3", "--init", "real", "--val_fraction", "0.5"]
    started = []
    for seed in ("0", "1"):
        assert main([*flags, "--seed", seed, "--save_dir", str(tmp_path / seed)]) == 0
        started.append(checkpoint.load(tmp_path / seed / "last.pt")["set"]["images"])
    real = loaded("digits", val_fraction=0.5)
    assert isinstance(real.train.images, torch.Tensor)
    for images in started:
        differences = images.flatten(1).unsqueeze(1) - real.train.images.flatten(1)
        distance, nearest = differences.norm(dim=2).min(1)
        assert distance.max() < 1e-6
        assert real.train.labels[nearest].tolist() == [k for k in range(10) for _ in range(3)]
        assert len({*nearest.tolist()}) == 30
    assert not torch.equal(*started)
    said = refused([*flags, "--limit_train", "20", "--save_dir", str(tmp_path / "few")], capsys)
    assert "--init real: class 0 has only 2 real image(s), fewer than the 3 distilled" in said
    assert "--init real and --ckptname x are two starts" in refused([*flags, "--ckptname", "x"], capsys)


def test_a_run_starts_from_a_smaller_set(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = load_distilled(run)
    flags = [*TINY, "--epochs", "1", "--lr", "1e-12", "--save_dir", str(tmp_path / "run")]
    assert main([*flags, "--num_per_class", "3", "--init", str(run)]) == 0
    images = checkpoint.load(tmp_path / "run" / "last.pt")["set"]["images"].unflatten(0, (10, 3))
    assert torch.allclose(images[:, 0], given.images, atol=1e-9)
    assert torch.allclose(images[:, 1:].flatten(2).norm(dim=2), torch.ones(10, 2))
    assert f"{run}: 1 image(s) of each class; the other 2 start as noise" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["here", "elsewhere"])
def test_a_dry_run_tells_that_there_is_no_such_set(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"here": TINY, "elsewhere": ["--dataset", "mnist", "--root", str(tmp_path / "none")]}[data]
    said = refused([*flags, "--dry_run", "--ckptname", str(tmp_path / "set.pt")], capsys)
    assert f"{tmp_path / 'set.pt'}: no such file or folder; check the path" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("dry", [True, False])
def test_a_set_of_other_classes_is_refused_before_an_image_is_decoded(
    dry: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_distilled(run)
    write_safetensors(replace(ours, class_names=("naught", *ours.class_names[1:])).stored(), tmp_path / "x.safetensors")
    monkeypatch.setattr("framework.data.load._Images.read", lambda *_: pytest.fail("decoded"))
    flags = [*TINY, "--save_dir", str(tmp_path / "new"), "--ckptname", str(tmp_path / "x.safetensors")]
    said = refused([*flags, *(["--dry_run"] if dry else [])], capsys)
    assert "--ckptname" in said
    assert "'naught'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
