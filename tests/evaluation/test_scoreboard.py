"""``main.py evaluate --labels --strategies``: a set under several labels, with and without augmentation; its bits."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import refused
from loading import loaded
from safetensors.torch import load_file
from sets import made_up
from torch import Tensor, nn

from framework import load_distilled
from framework.distilled.formats import write_safetensors
from framework.distilled.set import Distilled
from framework.evaluation.bits import bits_per_class
from framework.evaluation.scoreboard import labels_of
from main import main

BUDGET = ["--num_train_eval", "2", "--eval_steps", "3", "--device", "cpu"]


def evaluated(path: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The rows of the set's own network."""
    output = path.with_name("evaluated")
    assert main(["evaluate", str(path), *BUDGET, *arguments, "--output", str(output)]) == 0
    (results,) = json.loads((output / "inner.json").read_text())["results"].values()
    return results


def scores(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("name", "bits_per_class")}


def stored(distilled: Distilled, path: Path, **flags: Any) -> Path:
    """A file of the set, with some of its flags changed."""
    content = distilled.stored(numbers=False)
    config = json.loads(distilled.config.to_json()) | flags
    content.metadata["provenance"] = json.dumps(distilled.provenance | {"config": config})
    write_safetensors(content, path)
    return path


def softened(run: Path) -> Distilled:
    """The run's set with soft labels, two of which are heaviest at each other's class."""
    distilled = load_distilled(run)
    labels = 0.7 * distilled.labels + 0.3 * torch.rand(10, 10, generator=torch.Generator().manual_seed(0))
    labels[[3, 4]] = labels[[4, 3]]
    return replace(distilled, labels=labels)


# ---- labels ----------------------------------------------------------------------------------------


def test_hard_labels_are_one_hot_and_at_the_heaviest_class() -> None:
    soft = torch.tensor([[0.2, 0.5, 0.3], [3.0, 1.0, 2.0], [-2.0, -3.0, -1.0]], dtype=torch.float64)
    hard = labels_of("hard", soft, torch.empty(0), None)
    assert hard.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert hard.dtype == soft.dtype


def test_hard_labels_give_what_a_set_with_these_labels_gives(run: Path, tmp_path: Path) -> None:
    soft = softened(run)
    rows = evaluated(stored(soft, tmp_path / "soft.safetensors"), "--labels", "hard", "learnt")
    assert list(rows) == ["hard", "distilled"]
    assert rows["hard"]["name"] == "10 distilled images, hard labels"
    hard = torch.zeros(10, 10)
    for i, weights in enumerate(soft.labels.tolist()):
        hard[i, weights.index(max(weights))] = 1
    given = evaluated(stored(replace(soft, labels=hard), tmp_path / "hard.safetensors"), "--labels", "learnt", "hard")
    assert scores(rows["hard"]) == scores(given["distilled"]) == scores(given["hard"])
    assert scores(rows["hard"]) != scores(rows["distilled"])


def reference(theta: Tensor, distilled: Distilled) -> nn.Module:
    """The set's own network with these parameters."""
    network = distilled.network()
    nn.utils.vector_to_parameters(theta, network.parameters())
    return network.eval()


def test_a_teacher_is_trained_once_and_its_labels_are_what_it_says(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--teacher_steps", "20", "--teacher_dir", str(tmp_path / "teachers")]
    rows = evaluated(run, "--labels", "teacher", *own)
    weights, record = sorted((tmp_path / "teachers").iterdir(), reverse=True)
    assert "trained and kept: " + str(weights) in capsys.readouterr().err
    about = json.loads(record.read_text())
    assert about["checksum"] == hashlib.blake2b(weights.read_bytes(), digest_size=16).hexdigest()
    assert (about["source"]["dataset"], about["source"]["arch"], about["source"]["preprocess"]) == (
        "digits", "convnet", "standardise",
    )  # fmt: skip

    distilled, real = load_distilled(run), loaded("digits")
    network = reference(load_file(weights)["theta"], distilled)
    with torch.no_grad():
        right = network(real.test.images).argmax(1) == real.test.labels
        labels = network(distilled.images).softmax(1)
    assert about["accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-6)
    assert about["accuracy"] > 0.15, "20 steps teach it something"
    given = evaluated(stored(replace(distilled, labels=labels), tmp_path / "given.safetensors"))
    for metric, value in scores(given["distilled"]).items():
        assert rows["teacher"][metric] == pytest.approx(value, abs=1e-5)

    before = weights.stat().st_mtime_ns
    assert evaluated(run, "--labels", "teacher", *own, "--strategies", "run", "none")["teacher"] == rows["teacher"]
    assert "kept from before: " + str(weights) in capsys.readouterr().err
    assert weights.stat().st_mtime_ns == before

    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    files = sorted(tmp_path.rglob("*"))
    error = refused(["evaluate", str(run), *BUDGET, "--labels", "teacher", *own], capsys)
    last = error.rstrip("\n").rpartition("\n")[2]
    assert last.startswith(
        f"main.py: error: {weights}: not the weights that {record.name} has the checksum of; delete "
    )
    assert sorted(tmp_path.rglob("*")) == files


def test_teachers_of_other_data_networks_and_lengths_are_others(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teachers"
    for arch, steps in (("convnet", "1"), ("convnet", "2"), ("convnet", "1"), ("vit", "1")):
        network = ["--teacher_arch", arch, "--width", "4", "--teacher_steps", steps]
        evaluated(run, "--labels", "teacher", *network, "--teacher_dir", str(folder))
    assert len(list(folder.glob("*.json"))) == len(list(folder.glob("*.safetensors"))) == 3
    other = stored(load_distilled(run), tmp_path / "set.safetensors", val_fraction=0.2)
    evaluated(other, "--labels", "teacher", "--teacher_steps", "1", "--teacher_dir", str(folder))
    assert len(list(folder.glob("*.json"))) == 4, "other images are held out"


@pytest.mark.parametrize("form", ["images", "pt", "soft"])
def test_every_form_is_judged_by_every_kind_of_labels(form: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    if form == "images":
        assert main(["export", str(run), "--to", "images", "--output", str(path)]) == 0
        foreign = ["--preprocess", "pixels"]
    else:
        soft = softened(run)
        path = path.with_suffix(".pt")
        labels = soft.labels if form == "soft" else soft.labels.argmax(1)
        torch.save(soft.images.half(), path)
        torch.save(labels, tmp_path / "theirs_labels.pt")
        foreign = ["--preprocess", "standardise", "--recipe", "dc"]
    kinds = [
        "--labels",
        "learnt",
        "hard",
        "teacher",
        *([] if form == "images" else [str(tmp_path / "theirs_labels.pt")]),
    ]
    output = tmp_path / "out"
    assert main([
        "evaluate", str(path), "--dataset", "digits", *foreign, *BUDGET, *kinds, "--width", "4", "--teacher_steps", "2",
        "--teacher_dir", str(tmp_path / "teachers"), "--output", str(output),
    ]) == 0  # fmt: skip
    (file,) = output.glob("*.json")
    (rows,) = json.loads(file.read_text())["results"].values()
    assert list(rows) == ["distilled", "hard", "teacher"]
    assert (scores(rows["distilled"]) == scores(rows["hard"])) == (form != "soft")
    value = 8 if form == "images" else 16
    own = 10 * 32 if form == "soft" else 4
    for row, label in zip(rows.values(), (own, 4, 10 * 32), strict=True):
        assert row["bits_per_class"] == 64 * value + label + 2 * 32 / 10


# ---- augmentation ----------------------------------------------------------------------------------


def test_without_augmentation_a_set_gives_what_it_gives_under_a_recipe_without_any(run: Path, tmp_path: Path) -> None:
    every = ["--strategies", "run", "none", "--labels", "learnt", "hard", "--baselines", "random", "full"]
    rows = evaluated(run, *every)
    assert list(rows) == [
        "distilled", "distilled none", "hard", "hard none", "random", "random none", "full", "full none",
    ]  # fmt: skip
    bare = evaluated(stored(load_distilled(run), tmp_path / "bare.safetensors", syn_strategy="none"),
                     "--baselines", "random")  # fmt: skip
    assert scores(rows["distilled none"]) == scores(bare["distilled"])
    assert scores(rows["random none"]) == scores(bare["random"])
    assert rows["random none"]["name"] == f"{rows['random']['name']}, no augmentation"
    assert scores(rows["distilled none"]) != scores(rows["distilled"])
    assert scores(rows["full none"]) != scores(rows["full"])


def test_rows_of_prefixes_have_every_kind_of_labels(tmp_path: Path, run: Path) -> None:
    twice = load_distilled(run)
    images, labels = (tensor.repeat_interleave(2, 0) for tensor in (twice.images, twice.labels))
    path = stored(replace(twice, images=images, labels=labels), tmp_path / "two.safetensors", num_per_class=2)
    flags = ["--prefix", "1", "2", "--labels", "hard", "--strategies", "none", "--baselines", "full"]
    output = tmp_path / "out"
    assert main(["evaluate", str(path), *BUDGET, *flags, "--output", str(output)]) == 0
    rows = json.loads((output / "inner_prefixes.json").read_text())["results"]["convnet"]
    assert list(rows) == ["hard none 1", "hard none 2", "full none"]
    assert rows["hard none 1"]["name"] == "10 distilled images, hard labels, the first 1 of each class, no augmentation"


# ---- bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standardise", "zca", "zca_pixels"])
@pytest.mark.parametrize("soft", [False, True])
def test_bits_are_those_of_the_bytes_that_a_file_would_have(kind: str, soft: bool) -> None:
    """Except that a one-hot label takes no more bits than tell the classes apart."""
    distilled = made_up(kind, soft=soft)
    content = distilled.stored(numbers=False).tensors
    held = {name: 8 * len(tensor.numpy().tobytes()) for name, tensor in content.items()}
    if not soft:
        held["labels"] = len(distilled.labels) * math.ceil(math.log2(3))
    found = bits_per_class(distilled.images.shape, distilled.labels, distilled.preprocess, 32)
    assert found == sum(held.values()) / 3


# ---- mistakes --------------------------------------------------------------------------------------

MISTAKES = {
    "a kind twice": (["--labels", "hard", "hard"], "--labels hard hard: give each of learnt, hard, teacher once"),
    "a misspelt kind": (["--labels", "hrad"], "--labels hrad: no such file, and none of learnt, hard, teacher"),
    "a strategy twice": (["--strategies", "none", "none"], "--strategies none none: give each once"),
    "a teacher for nothing": (["--teacher_arch", "vit"], "--teacher_arch is not read without --labels teacher or"),
    "its length for nothing": (["--labels", "hard", "--teacher_steps", "3"], "--teacher_steps is not read without"),
    "too deep a teacher": (["--labels", "teacher", "--teacher_arch", "convnet4"], "--teacher_arch convnet4: "),
    "a folder that is a file": (
        ["--labels", "teacher", "--teacher_dir", "{run}/config.json"], "--teacher_dir {run}/config.json: cannot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(mistake: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[mistake]
    before = sorted(run.rglob("*"))
    error = refused(["evaluate", str(run), *BUDGET, *(word.format(run=run) for word in arguments)], capsys)
    assert message.format(run=run) in error
    assert error.count("\n") == 1
    assert sorted(run.rglob("*")) == before
