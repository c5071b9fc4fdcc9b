"""Every form of a distilled set: written and read back, by us and by those whose form it is."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cli import ROOT, difference, refused
from PIL import Image
from sets import CLASSES, KINDS, SIDE, made_up

from framework import load_distilled
from framework.config.bptt import Config
from framework.config.matching import FtdConfig
from framework.data.preprocess import Standardise
from framework.distilled import formats
from framework.distilled.exports import export
from framework.distilled.formats import write_safetensors
from framework.distilled.names import DDRANKING, FORMS
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.networks.registry import build
from main import main

LOSSLESS = ("safetensors", "pt", "npz", "h5")


def written(distilled: Distilled, form: str, folder: Path) -> Path:
    path = folder / f"set{FORMS[form]}"
    export(distilled, form, path)
    return path


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", LOSSLESS)
def test_a_lossless_form_is_read_back_bit_for_bit(form: str, kind: str, soft: bool, tmp_path: Path) -> None:
    distilled = made_up(kind, soft=soft)
    back = load_distilled(written(distilled, form, tmp_path))
    assert difference(back.images, distilled.images) is None
    assert difference(back.labels, distilled.labels) is None
    assert difference(back.preprocess.tensors(), distilled.preprocess.tensors()) is None
    assert (back.class_names, back.config, back.provenance) == (
        distilled.class_names,
        distilled.config,
        distilled.provenance,
    )


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("soft", [False, True])
def test_other_tools_find_images_and_labels_under_the_usual_names(form: str, soft: bool, tmp_path: Path) -> None:
    distilled = made_up(soft=soft)
    path = written(distilled, form, tmp_path)
    if form == "pt":
        content = torch.load(path, weights_only=True)
        images, labels = content["images"].numpy(), content["labels"].numpy()
    elif form == "npz":
        with np.load(path) as content:
            images, labels = content["images"], content["labels"]
    elif form == "h5":
        with h5py.File(path) as content:
            images, labels = content["data"][()], content["label"][()]
    else:
        stored = formats.read(path)
        images, labels = (stored.tensors[name].numpy() for name in ("images", "labels"))
        assert labels.shape == (6, 3)  # as --ckptname reads it
        labels = labels if soft else labels.argmax(1)
    assert np.array_equal(images, distilled.images.numpy())
    expected = distilled.labels.numpy() if soft else np.array([0, 0, 1, 1, 2, 2])
    assert labels.dtype == expected.dtype
    assert np.array_equal(labels, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_within_half_a_level_of_the_natural_colours(kind: str, channels: int, tmp_path: Path) -> None:
    distilled = made_up(kind, channels=channels, scale=0.4)
    stored = formats.read(written(distilled, "images", tmp_path))
    assert stored.tensors["images"].dtype == torch.uint8
    natural = distilled.preprocess.inverse(distilled.images)
    assert (stored.tensors["images"] / 255 - natural).abs().max() <= 0.5 / 255 + 1e-6
    assert stored.tensors["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert json.loads(stored.metadata["folders"]) == ["00000_a-cat", "00001_b-..-c", "00002_-é-"]
    if kind == "standardise":  # in what networks see, half a level of each channel's deviation where none was clipped
        again = distilled.preprocess(stored.tensors["images"])
        inside = distilled.preprocess.inverse(distilled.images, clip=False) == natural
        bound = 0.5 / 255 / distilled.preprocess.tensors()["preprocess.standardise.std"].view(-1, 1, 1)
        assert ((again - distilled.images).abs() <= bound + 1e-5)[inside].all()
        assert inside.float().mean() > 0.5


def test_pictures_say_how_much_was_clipped_and_keep_learnt_labels_beside_them(tmp_path: Path) -> None:
    distilled = made_up(soft=True, scale=3.0)
    natural = distilled.preprocess.inverse(distilled.images, clip=False)
    share = ((natural < 0) | (natural > 1)).double().mean()
    assert f"{share:.1%} of them were outside" in export(distilled, "images", tmp_path / "set")
    assert np.array_equal(np.load(tmp_path / "set" / "labels.npy"), distilled.labels.numpy())
    assert torch.equal(formats.read(tmp_path / "set").tensors["labels"], distilled.labels)


@pytest.mark.parametrize("soft", [False, True])
def test_hugging_face_opens_its_form(soft: bool, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    distilled = made_up(soft=soft)
    path = written(distilled, "hf", tmp_path)
    rows = datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["label"].names == list(distilled.class_names)
    assert rows["label"][:] == [0, 0, 1, 1, 2, 2]
    exact = rows.with_format("numpy")
    assert np.array_equal(np.stack(exact["pixels"][:]), distilled.images.numpy())
    assert np.array_equal(np.stack(exact["weights"][:]), distilled.labels.numpy())
    picture = np.asarray(rows[3]["image"]).transpose(2, 0, 1)
    assert np.abs(picture / 255 - distilled.preprocess.inverse(distilled.images)[3].numpy()).max() <= 0.5 / 255 + 1e-6
    assert torch.equal(load_distilled(path).images, distilled.images)
    card = (path / "README.md").read_text()
    assert "learnt class weights" in card if soft else "one-hot" in card


def test_the_data_card_of_a_matched_set_has_its_method_and_its_learnt_rate(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    distilled = replace(made_up(), config=FtdConfig(dataset="cifar10", num_per_class=2, depth=1), learnt_lr=0.0234)
    card = (written(distilled, "hf", tmp_path) / "README.md").read_text()
    assert "made by ftd, " in card
    assert "Train with SGD, learning rate 0.0234," in card


def test_hugging_faces_form_needs_no_network_and_leaves_no_cache(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    home = tmp_path / "home"
    home.mkdir()
    write_safetensors(made_up().stored(numbers=False), tmp_path / "set.safetensors")
    program = f"""
import socket, sys
sys.path.insert(0, {str(ROOT)!r})
def refuse(*_, **__):
    raise AssertionError("asks the network")
socket.getaddrinfo = socket.socket.connect = refuse
from main import main
sys.exit(main(["export", {str(tmp_path / "set.safetensors")!r}, "--to", "hf"]))
"""
    variables = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", program], env=variables, cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exports", "home", "set.safetensors"]
    assert list(home.iterdir()) == []


def test_a_form_that_needs_a_package_names_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    error = refused(["export", str(run), "--to", "hf"], capsys)
    assert error == "main.py: error: --to hf needs the package: pip install datasets, or choose another form\n"
    assert not (run / "exports").exists()


@pytest.mark.parametrize("soft", [False, True])
def test_ddranking_gets_its_own_normalisation(soft: bool, tmp_path: Path) -> None:
    distilled = made_up(soft=soft)
    path = written(distilled, "ddranking", tmp_path)
    images, labels = (torch.load(path / name, weights_only=True) for name in ("images.pt", "labels.pt"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in DDRANKING["CIFAR10"])
    ours = distilled.preprocess.tensors()
    natural = distilled.images * ours["preprocess.standardise.std"].view(-1, 1, 1)
    natural = natural + ours["preprocess.standardise.mean"].view(-1, 1, 1)
    assert torch.allclose(images * std + mean, natural, rtol=0, atol=1e-6)
    if soft:  # it takes the softmax
        assert torch.allclose(labels.softmax(1), distilled.labels / distilled.labels.sum(1, keepdim=True), atol=1e-6)
    else:
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    about = json.loads((path / "set.json").read_text())
    assert (about["dataset"], about["ipc"], about["im_size"]) == ("CIFAR10", 2, [4, 4])


def test_ddranking_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    other = replace(made_up(), config=Config(dataset="imagefolder"))
    with pytest.raises(UserError, match="--ddranking_dataset"):
        export(other, "ddranking", tmp_path / "set")
    assert "ImageNette" in export(other, "ddranking", tmp_path / "set", "ImageNette")
    with pytest.raises(UserError, match="--to ddranking: it knows colour images"):
        export(made_up(channels=1), "ddranking", tmp_path / "grey")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled = made_up()
    path = tmp_path / "there"
    path.write_text("precious")
    with pytest.raises(UserError, match="there already"):
        export(distilled, form, path)
    assert path.read_text() == "precious"
    if FORMS[form]:
        return
    full = OSError(28, "No space left on device")

    def fail(*arguments: object, **options: object) -> None:
        raise full

    monkeypatch.setattr(Path, "write_text", fail)
    monkeypatch.setattr(Path, "write_bytes", fail)
    if form == "hf":
        pytest.importorskip("datasets", reason="the package datasets is not installed")
        monkeypatch.setattr("datasets.Dataset.to_parquet", fail)
    with pytest.raises(UserError, match="No space left"):
        export(distilled, form, tmp_path / "deep" / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]


# ---- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [form for form in FORMS if form != "ddranking"])
def test_a_run_is_exported_from_the_command_line(
    form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", form]) == 0
    suffix = FORMS[form]
    path = run / "exports" / (f"distilled{suffix}" if suffix else form)
    assert capsys.readouterr().out.startswith(f"{path}: 10 images of 10 classes; ")
    if form != "images":
        assert torch.equal(load_distilled(path).images, load_distilled(run).images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--to", "ddranking"], "--to ddranking: it knows colour images"),
        (["{run}", "--to", "pt", "--ddranking_dataset", "CIFAR10"], "--ddranking_dataset is not read by --to pt"),
        (["{run}", "--to", "png"], "argument --to: invalid choice"),
        (["{run}/nothing", "--to", "pt"], "nothing: no such file or folder"),
        (["{run}/metrics.jsonl", "--to", "pt"], "metrics.jsonl: unknown form"),
        (["{run}/tensorboard", "--to", "pt"], "no images"),
        (["{run}"], "required: --to"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    error = refused(["export", *(argument.format(run=run) for argument in arguments)], capsys)
    assert message in error
    assert error.count("\n") == 1
    assert sorted(run.rglob("*")) == before


# ---- load_distilled --------------------------------------------------------------------------------


def test_a_set_knows_how_to_train_on_it() -> None:
    distilled = made_up(soft=True)
    config = replace(distilled.config, batch_per_class=1, task_sampler_nc=2, syn_strategy="flip")
    distilled = replace(distilled, config=config)
    assert len(distilled.dataset) == 6
    image, weights = distilled.dataset[4]
    assert torch.equal(image, distilled.images[4])
    assert torch.equal(weights, distilled.labels[4])
    batches = list(distilled.batches())
    assert len(batches) == distilled.steps == 5
    flipped = torch.cat([distilled.images, distilled.images.flip(-1)])
    for images, labels in batches:
        assert images.shape == (2, 3, SIDE, SIDE)
        for one, label in zip(images, labels, strict=True):
            which = [i for i, other in enumerate(flipped) if torch.equal(one, other)]
            assert which
            assert torch.equal(label, distilled.labels[which[0] % 6])
    assert difference(next(distilled.batches(seed=1))[0], batches[0][0]) is not None
    expected = build("convnet", 3, SIDE, CLASSES, width=4, depth=1)
    assert str(distilled.network()) == str(expected)
    assert config.network.items() >= {"width": 4, "depth": 1}.items()
    group = distilled.optimizer(expected.parameters()).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.003, 0.9, 5e-4)
    rooted = replace(distilled, config=replace(config, inner_optim="Adam", inner_eps_root=1e-6))
    (group,) = rooted.optimizer(expected.parameters()).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["eps_root"]) == (0.003, (0.9, 0.999), 1e-8, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_stretched_to_the_contrast_of_real_images(kind: str) -> None:
    """The contrast is known from the preprocessing alone; here against the pixels it was fitted on."""
    gen = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(500, 3, 2, 2, generator=gen), size=(6, 6), mode="bilinear")
    pixels = (255 * smooth).to(torch.uint8)
    preprocess = KINDS[kind](pixels)
    from framework.distilled.set import _contrast

    assert _contrast(preprocess, 0.1) == pytest.approx(float(preprocess(pixels).double().std()), rel=2e-3)
    distilled = replace(made_up(), preprocess=Standardise.fit(pixels))
    assert distilled.pictures.min() >= 0
    assert distilled.pictures.max() <= 1


def test_a_picture_of_a_digit_is_a_grey_png(run: Path) -> None:
    main(["export", str(run), "--to", "images"])
    with Image.open(next((run / "exports" / "images").rglob("*.png"))) as picture:
        assert (picture.mode, picture.size) == ("L", (8, 8))


def test_files_of_other_programs_are_not_guessed_at(tmp_path: Path) -> None:
    torch.save((torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])), tmp_path / "pair.pt")
    with pytest.raises(UserError, match="main.py evaluate"):
        load_distilled(tmp_path / "pair.pt")


@pytest.mark.parametrize("damage", ["truncate", "metadata", "newer", "nan"])
def test_a_damaged_file_is_a_user_error(damage: str, tmp_path: Path) -> None:
    distilled = made_up()
    path = tmp_path / "set.safetensors"
    stored = distilled.stored(numbers=False)
    if damage == "metadata":
        stored.metadata["provenance"] = "{"
    if damage == "newer":
        stored.metadata["provenance"] = json.dumps({"config": {"flag_of_the_future": 1}})
    if damage == "nan":
        stored.tensors["images"] = distilled.images.clone().fill_(float("nan"))
    write_safetensors(stored, path)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="set.safetensors"):
        load_distilled(path)
