"""What can be known before the first step is told before it: by runs and ``evaluate`` before an image is decoded, and
by --dry_run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import TINY, refused
from PIL import Image

from framework.config.bptt import Config, parse
from framework.data.preprocess import Standardise
from framework.distilled.formats import write_safetensors
from framework.distilled.set import Distilled
from framework.dry_run import preview
from framework.errors import UserError

SMALL = [*TINY, "--im_size", "8", "--val_fraction", "0.5"]


def tree(root: Path, counts: dict[str, int]) -> list[str]:
    """Flags for an image folder none of whose files can be decoded: who tries says so."""
    for part in ("train", "test"):
        for name, count in counts.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                (root / part / name / f"{i}.png").write_bytes(b"no image")
    return ["--dataset", "imagefolder", "--root", str(root)]


FLAGS: list[tuple[list[str], str]] = [
    (
        ["--baselines", "random", "--num_per_class", "3"],
        "--baselines random: class owl has only 2 real image(s), fewer than the 3 distilled one(s) of a class; leave",
    ),
    (["--baselines", "random", "--num_per_class", "2", "--limit_train", "5"], "has only 1 real image(s)"),
    (["--task_sampler_nc", "4"], "--task_sampler_nc 4 is more than the 3 classes"),
    (["--limit_train", "2"], "--limit_train 2: it takes at least one image for each of 3 classes"),
    (["--depth", "4"], "depth 4"),
    (["--wandb"], "--track wandb needs the package"),
]


@pytest.mark.parametrize(("flags", "said"), FLAGS, ids=lambda value: " ".join(value)[:40])
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_flags_are_compared_with_the_data_before_it_is_decoded(
    flags: list[str],
    said: str,
    dry: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("framework.assemble.common.find_spec", lambda name: None)
    root = tree(tmp_path / "data", {"cat": 8, "dog": 8, "owl": 4})
    folder = tmp_path / "run"
    (line,) = refused([*SMALL, *root, *flags, *dry, "--save_dir", str(folder)], capsys).splitlines()
    assert said in line
    assert not folder.exists()


def test_the_images_were_there_to_be_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "data", {"cat": 8, "dog": 8, "owl": 4})
    assert "not a readable image" in refused([*SMALL, *root, "--save_dir", str(tmp_path / "run")], capsys)


CLASSES = ("cat", "dog", "owl")
STATED = ["--preprocess", "standardise", "--im_size", "8"]


def ours(path: Path, names: tuple[str, ...] = CLASSES, channels: int = 3) -> Path:
    """A set of this program: an image of each of 3 classes."""
    config = Config(dataset="imagefolder", im_size=8, depth=1, width=4, eval_steps=(3,))
    facts = {"best_length": 3, "config": json.loads(config.to_json())}
    images, scale = torch.zeros(3, channels, 8, 8), Standardise(torch.zeros(channels), torch.ones(channels))
    write_safetensors(Distilled(path, images, torch.eye(3), names, scale, config, facts).stored(), path)
    return path


def theirs(path: Path, counts: tuple[int, ...] = (1, 1, 1)) -> Path:
    """A set of another program."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    torch.save((torch.zeros(len(labels), 3, 8, 8), labels), path)
    return path


def pictures(path: Path, names: tuple[str, ...]) -> Path:
    """A set as an image folder."""
    for name in names:
        (path / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path / name / "0.png")
    return path


EVALUATED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "classes": (
        lambda at: [str(ours(at / "s.safetensors", ("cat", "dog", "barn owl")))],
        "its classes are not the data's (only there: 'barn owl'; only in the data: 'owl')",
    ),
    "channels": (
        lambda at: [str(ours(at / "s.safetensors", channels=1))],
        "images are 1 x 8 x 8, those of imagefolder 3 x 8 x 8",
    ),
    "images for random": (
        lambda at: [str(theirs(at / "s.pt", (5, 5, 5))), *STATED, "--baselines", "random"],
        "--baselines random: class owl has only 3 real image(s), fewer than the 5 distilled",
    ),
    "size": (
        lambda at: [str(theirs(at / "s.pt")), *STATED, "--im_size", "16"],
        "images are 3 x 8 x 8, those of imagefolder 3 x 16 x 16",
    ),
    "labels": (lambda at: [str(theirs(at / "s.pt", (1, 1, 1, 1))), *STATED], "labels are not all in 0..2"),
    "even classes": (lambda at: [str(theirs(at / "s.pt", (1, 2, 1))), *STATED], "has not as many images of each"),
    "folders": (
        lambda at: [str(pictures(at / "s", ("cat", "dog", "eagle"))), "--preprocess", "pixels", "--im_size", "8"],
        "folders are named neither like classes nor by their numbers",
    ),
    "network": (
        lambda at: [str(theirs(at / "s.pt")), *STATED, "--eval_arch", "convnet5"],
        "--eval_arch convnet5: ",
    ),
    "output": (
        lambda at: [str(ours(at / "s.safetensors")), "--output", str(at / "s.safetensors")],
        "s.safetensors: cannot make this folder",
    ),
}


@pytest.mark.parametrize("what", EVALUATED)
def test_a_set_is_compared_with_the_data_before_it_is_decoded(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "data", {"cat": 8, "dog": 8, "owl": 4})
    (tmp_path / "sets").mkdir()
    make, said = EVALUATED[what]
    arguments = make(tmp_path / "sets")
    known = root[2:] if arguments[0].endswith(".safetensors") else root
    before = sorted(tmp_path.rglob("*"))
    (line,) = refused(["evaluate", *arguments, *known, "--device", "cpu"], capsys).splitlines()
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_the_images_were_there_to_be_tried_by_evaluate_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "data", {"cat": 8, "dog": 8, "owl": 4})
    for arguments in (
        [str(ours(tmp_path / "s.safetensors")), *root[2:]],
        [str(theirs(tmp_path / "s.pt")), *STATED, *root],
    ):
        assert "not a readable image" in refused(["evaluate", *arguments, "--device", "cpu"], capsys)
    assert not list(tmp_path.glob("*.evaluation"))


def tiny_imagenet(root: Path) -> None:
    base = root / "tiny-imagenet-200"
    for wnid in ("n01", "n02"):
        (base / "train" / wnid / "images").mkdir(parents=True)
        (base / "train" / wnid / "images" / "0.JPEG").write_bytes(b"")
    (base / "val").mkdir()
    (base / "wnids.txt").write_text("n01\nn02\n")
    (base / "words.txt").write_text("n01\tcat\nn02\tdog\n")
    (base / "val" / "val_annotations.txt").write_text("a.JPEG\tn01\nb.JPEG\tn03\n")


def imagenet(root: Path) -> None:
    for path in ("train/n01", "train/n02", "val/n01"):
        (root / "imagenet" / path).mkdir(parents=True)
        (root / "imagenet" / path / "0.JPEG").write_bytes(b"")


@pytest.mark.parametrize(
    ("dataset", "write", "said"),
    [
        ("tiny-imagenet-200", tiny_imagenet, "its classes and wnids.txt differ in n02, n03"),
        ("imagenet", imagenet, "its classes differ from the training classes in n02"),
    ],
)
def test_a_dry_run_lists_data_that_are_at_hand(
    dataset: str, write: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", dataset, "--root", str(tmp_path), "--dry_run"]
    assert "steps per epoch: about" in preview(parse(arguments)[0]), "none is there: told from what is published"
    write(tmp_path)
    assert said in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--num_per_class 10 --limit_train 99 --baselines random",
            "99 real training images are fewer than --num_per_cl",
        ),
        ("--num_per_class 4501 --baselines random", "45,000 real training images are fewer"),
        ("--limit_train 9", "at least one image for each of 10 classes"),
    ],
)
def test_a_dry_run_counts_data_that_are_not(flags: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        preview(parse(["--dataset", "cifar10", "--root", str(tmp_path / "none"), *flags.split()])[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_a_folder_that_cannot_be_made_is_told_at_once(
    dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "data", {"cat": 2, "dog": 2})
    (tmp_path / "file").touch()
    said = refused([*SMALL, *root, *dry, "--save_dir", str(tmp_path / "file" / "run")], capsys)
    assert said.endswith("cannot reach or make this folder (Not a directory); choose another\n")


def test_a_dry_run_tells_that_the_folder_has_a_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    flags = [*TINY, "--epochs", "2", "--save_dir", str(tmp_path / "run"), "--dry_run"]
    assert "already holds a run: continue it with --resume" in refused(flags, capsys)
    assert "--inner_lr was 0.01 and is 0.5" in refused([*flags, "--resume", "--inner_lr", "0.5"], capsys)
    assert "method: " in preview(parse([*flags, "--resume"])[0])
