"""Runs whose classes have unequal numbers of images: learnt, resumed, judged, exported, shown and started from."""

import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cli import TINY, difference, refused, state_of
from loading import loaded

from framework import load_distilled
from framework.config.bptt import Config, parse
from framework.distilled import labels
from framework.distilled.foreign import Target
from framework.distilled.formats import write_safetensors
from framework.distilled.set import Distilled
from framework.distilled.start import read_start
from framework.dry_run import preview
from framework.errors import UserError
from framework.evaluation.recipes import make_recipe
from framework.evaluation.scoreboard import baseline_rows
from framework.files import read_json
from framework.inner.counts import Counts
from framework.report.folder import RunFolder
from framework.report.leaderboard import cells, standings
from framework.report.page import pictures
from framework.report.plots import leaderboard_plot
from framework.run import checkpoint
from main import main

NUMBERS = (1, 1, 1, 1, 1, 3, 3, 3, 3, 2)
CLASSES = [k for k, number in enumerate(NUMBERS) for _ in range(number)]
BITS = 8 * 64  # of a real image of digits
RUN = [*TINY, "--epochs", "2", "--batch_per_class", "2", "--train_y", "--baselines", "random", "--ckpt_minutes", "1e-9"]
JUDGE = ["--num_train_eval", "1", "--eval_steps", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("numbers") / "numbers.txt"
    path.write_text("".join(f"{k} {number}\n" for k, number in enumerate(NUMBERS)))
    return str(path)


@pytest.fixture(scope="module")
def unequal(file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it a copy of its folder as it was after its sixth step of eight."""
    folder, save = tmp_path_factory.mktemp("unequal") / "run", checkpoint.save_run

    def save_run(where: Path, state: dict[str, Any]) -> None:
        save(where, state)
        if state["progress"]["step"] == 6:
            shutil.copytree(where, folder.with_name("half"), ignore=shutil.ignore_patterns("tensorboard", ".lock"))

    with patch.object(checkpoint, "save_run", save_run):
        assert main([*RUN, "--num_per_class", file, "--save_dir", str(folder)]) == 0
    return folder


# ---- a run -----------------------------------------------------------------------------------------


def test_every_class_has_its_number_of_images_and_all_learn(unequal: Path) -> None:
    distilled, state = load_distilled(unequal), state_of(unequal)
    assert distilled.images.shape == state["set"]["images"].shape == (19, 1, 8, 8)
    assert distilled.counts == Counts(NUMBERS)
    assert distilled.labels.argmax(1).tolist() == CLASSES
    moments = state["set"]["optimizer"]["state"][0]["exp_avg_sq"]
    assert (moments.flatten(1).amax(1) > 0).all(), "no image was left out of all batches"
    results = RunFolder(unequal).summary.results  # type: ignore[union-attr]
    assert results["random"].name.startswith("19 random real images")


def test_a_resumed_run_needs_no_file_and_ends_bit_identical(unequal: Path, file: str, tmp_path: Path) -> None:
    shutil.copytree(unequal.with_name("half"), tmp_path / "run")
    numbers = json.dumps(read_json(unequal / "config.json")["num_per_class"])
    assert main([*RUN, "--num_per_class", numbers, "--save_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert difference(state_of(tmp_path / "run"), state_of(unequal)) is None
    words = shlex.split(" ".join(RunFolder(unequal).words))
    again, _ = parse(words[2:])
    assert again == parse([*RUN, "--num_per_class", file])[0]


def test_other_numbers_are_refused_on_resume(
    unequal: Path, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text(Path(file).read_text().replace("9 2", "9 3"))
    flags = [*RUN, "--save_dir", str(unequal), "--resume", "--num_per_class"]
    assert "--num_per_class of class 9 was 2 and is 3" in refused([*flags, str(tmp_path / "other.txt")], capsys)
    assert "--num_per_class was 1-3 (19 images) and is 2" in refused([*flags, "2"], capsys)


def test_as_many_of_each_in_a_file_is_the_same_run_as_the_number(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("".join(f"{k} 2\n" for k in range(10)))
    flags = [*TINY, "--epochs", "1", "--init", "real", "--save_dir"]
    for name, value in (("file", str(tmp_path / "two.txt")), ("number", "2")):
        assert main([*flags, str(tmp_path / name), "--num_per_class", value]) == 0
    assert difference(state_of(tmp_path / "file"), state_of(tmp_path / "number")) is None
    one, two = (load_distilled(tmp_path / name) for name in ("file", "number"))
    assert torch.equal(one.prefix(1).images, two.prefix(1).images) and one.prefix(1).counts == Counts.equal(10, 1)


def test_a_run_starts_from_real_images_of_each_class(file: str, tmp_path: Path) -> None:
    flags = [*TINY, "--epochs", "1", "--init", "real", "--lr", "1e-12", "--num_per_class", file]
    assert main([*flags, "--save_dir", str(tmp_path / "run")]) == 0
    images, train = load_distilled(tmp_path / "run").images, loaded("digits", val_fraction=0.1).train
    assert isinstance(train.images, torch.Tensor)
    found = (images.unsqueeze(1) - train.images).abs().flatten(2).amax(2).min(1)
    assert found.values.max() < 1e-4
    assert train.labels[found.indices].tolist() == CLASSES
    assert len(set(found.indices.tolist())) == 19


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("9 900", "--init real", "--init real: class 9 has only 1"),
        ("9 900", "--baselines random", "--baselines random: class 9 has only 1"),
        ("10 1", "", "--num_per_class: the data have no class 10; give each of the 10 classes once"),
        ("", "", "--num_per_class: no number for class 9; give each of the 10 classes once"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_numbers_that_do_not_fit_the_data_are_refused_and_nothing_is_written(
    text: str, flags: str, said: str, dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "n.txt").write_text("".join(f"{k} 1\n" for k in range(9)) + text)
    common = [*TINY, *dry, "--num_per_class", str(tmp_path / "n.txt"), "--save_dir", str(tmp_path / "run")]
    error = refused([*common, *flags.split()], capsys)
    assert said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["n.txt"]


@pytest.mark.parametrize("verb", [["ftd", "--ipc"], ["ftd", "--num_per_class"]])
def test_trajectory_matching_takes_a_number_alone(
    verb: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "invalid int value" in refused([*verb, file], capsys)


def test_data_that_are_not_here_are_compared_by_their_number_of_classes(tmp_path: Path) -> None:
    numbers = {str(k): 1 + k for k in range(10)}
    config = Config(dataset="cifar10", root=str(tmp_path), num_per_class=numbers, baselines=("random",), dry_run=True)
    assert '"9": 10' in preview(config)
    with pytest.raises(UserError, match=r"45,000 .* fewer than --num_per_class 2-45000 \(45054 images\)"):
        preview(replace(config, num_per_class=numbers | {"0": 45_000}))
    with pytest.raises(UserError, match="--num_per_class: gives 11 classes their number of images, and cifar10 has 10"):
        preview(replace(config, num_per_class=numbers | {"10": 1}))


def test_a_trial_on_random_pixels_takes_names_that_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = json.dumps({name: 1 + place % 2 for place, name in enumerate("abcdefghij")})
    flags = [*TINY, "--dataset", "mnist", "--root", str(tmp_path), "--num_per_class", numbers, "--dry_run", "--trial"]
    assert main(flags) == 0
    assert "3 outer steps on random pixels" in capsys.readouterr().out


# ---- the set ---------------------------------------------------------------------------------------


def test_rows_of_real_images_have_as_many_of_each_class(
    unequal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: dict[str, Any] = {}

    def kept(*arguments: Any) -> Any:
        rows.update(baseline_rows(*arguments))
        return baseline_rows(*arguments)

    coresets = ["--baselines", "random", "kcentre", "herding", "el2n", "full", "--teacher_steps", "4"]
    places = ["--teacher_dir", str(tmp_path), "--output", str(tmp_path / "out")]
    with patch("framework.evaluation.command.baseline_rows", kept):
        assert main(["evaluate", str(unequal), *JUDGE, *coresets, *places]) == 0
    for name in ("random", "kcentre", "herding", "el2n"):
        assert rows[name].sets[0].labels.argmax(1).tolist() == CLASSES
        decoder = 2 * 32  # mean and deviation of the only channel
        assert math.isclose(rows[name].bits_per_class, (19 * (BITS + 4) + decoder) / 10)
    assert "at most 2 image(s) of a class drawn per step" in capsys.readouterr().out


def test_a_leaderboard_tells_how_many_there_are(unequal: Path, tmp_path: Path) -> None:
    shutil.copytree(unequal, tmp_path / "run")
    own = standings(tmp_path / "run")[0]
    assert main(["evaluate", str(tmp_path / "run"), *JUDGE]) == 0
    judged = standings(tmp_path / "run")[0]
    for (row,) in (own, judged):
        assert (row.per_class, cells(1, row)[2]) == (1, "1-3 (19 images)")
    leaderboard_plot(judged, tmp_path / "plot.png")
    assert RunFolder(unequal).facts["images per class"] == "1-3 (19 images), learnt labels"


def test_a_page_shows_each_classs_own_images(unequal: Path) -> None:
    shown = pictures(RunFolder(unequal))
    assert [(len(entry["images"]), entry["more"]) for entry in shown] == [(number, 0) for number in NUMBERS]
    own = [image["label"].split()[0] for entry in shown for image in entry["images"]]
    assert own == [str(k) for k in CLASSES], "labels start one-hot, and hardly move in eight steps"


@pytest.mark.parametrize("form", ["safetensors", "pt", "npz", "h5", "hf", "images"])
def test_an_export_keeps_the_numbers(form: str, unequal: Path, tmp_path: Path) -> None:
    path = tmp_path / (form if form in ("hf", "images") else f"set.{form}")
    assert main(["export", str(unequal), "--to", form, "--output", str(path)]) == 0
    whole = load_distilled(unequal)
    if form == "images":
        assert [len(list(folder.glob("*.png"))) for folder in sorted(path.glob("*_*"))] == list(NUMBERS)
        return
    again = load_distilled(path)
    assert again.counts == whole.counts
    assert torch.equal(again.images, whole.images) and torch.equal(again.labels, whole.labels)
    if form == "hf":
        assert "1-3 (19 images) each" in (path / "README.md").read_text()
        assert "steps of at most 2 image(s)" in (path / "README.md").read_text()


def test_prefixes_and_ddranking_need_as_many_of_each(
    unequal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["evaluate", str(unequal), *JUDGE, "--prefix", "1", "--output", str(tmp_path / "out")], capsys)
    assert error.endswith("has not as many images of each class, and so no prefixes; give a set that has\n")
    whole = load_distilled(unequal)
    grey = replace(whole, images=whole.images.expand(-1, 3, -1, -1))
    write_safetensors(grey.stored(), tmp_path / "set.safetensors")
    flags = ["--to", "ddranking", "--ddranking_dataset", "CIFAR10", "--output", str(tmp_path / "x")]
    assert "sets of as many images of each class only" in refused(
        ["export", str(tmp_path / "set.safetensors"), *flags], capsys
    )


def test_a_set_whose_numbers_do_not_fit_is_damaged(unequal: Path, tmp_path: Path) -> None:
    whole = load_distilled(unequal)
    for numbers, said in (({**whole.config.num_per_class, "9": 4}, "19 images, and its flags say 21"),
                          ({"0": 19}, "its flags do not fit its classes")):  # type: ignore[dict-item]  # fmt: skip
        provenance = whole.provenance | {"config": whole.provenance["config"] | {"num_per_class": numbers}}
        write_safetensors(replace(whole, provenance=provenance).stored(), tmp_path / "set.safetensors")
        with pytest.raises(UserError, match=said):
            load_distilled(tmp_path / "set.safetensors")


def reordered(unequal: Path) -> tuple[Distilled, Distilled, list[int]]:
    order = [9, 5, *range(5), 8, 7, 6]
    whole = load_distilled(unequal)
    return whole, labels.with_classes_of(whole, [whole.class_names[k] for k in order]), order


def test_classes_in_another_order_take_their_numbers_with_them(unequal: Path) -> None:
    whole, moved, order = reordered(unequal)
    assert moved.counts.numbers == tuple(NUMBERS[k] for k in order)
    for place, k in enumerate(order):
        ours, theirs = (d.images.split(d.counts.numbers)[n] for d, n in ((moved, place), (whole, k)))
        assert torch.equal(ours, theirs)
    assert torch.equal(moved.labels, torch.cat([whole.labels.split(NUMBERS)[k] for k in order])[:, order])
    sampler: Any = make_recipe("inner", moved, None).sampler
    assert sampler.counts == moved.counts


# ---- as a start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [True, False])
def test_a_run_starts_from_an_unequal_set_and_tops_it_up(hard: bool, unequal: Path, tmp_path: Path) -> None:
    whole = load_distilled(unequal)
    target = Target("digits", (1, 8, 8), whole.class_names)
    start = read_start(unequal, target, Counts.equal(10, 3))
    assert (start.counts, start.lines) == (Counts(NUMBERS), [f"{unequal}: 19 image(s); the other 11 start as noise"])
    if hard:
        torch.save((whole.images, whole.labels.argmax(1)), tmp_path / "foreign.pt")
        assert read_start(tmp_path / "foreign.pt", target, Counts(NUMBERS)).counts == Counts(NUMBERS)
    flags = [*TINY, "--epochs", "1", "--train_y", "--lr", "1e-12", "--num_per_class", "3", "--init", str(unequal)]
    assert main([*flags, "--save_dir", str(tmp_path / "run")]) == 0
    ends = load_distilled(tmp_path / "run").images.split(3)
    for own, given in zip(ends, whole.images.split(NUMBERS), strict=True):
        assert torch.allclose(own[: len(given)], given, atol=1e-6)
        assert torch.allclose(own[len(given) :].flatten(1).norm(dim=1), torch.ones(3 - len(given)), atol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((1, 1, 1, 1, 1, 3, 3, 3, 3, 1), "needs images of shape (18, 1, 8, 8), found (19, 1, 8, 8)"),
        ((1, 1, 1, 1, 1, 3, 3, 3, 2, 3), "has 3 image(s) of class 8, and the run 2; give another --num_per_class"),
    ],
)
def test_a_set_with_more_of_a_class_than_the_run_is_refused(numbers: tuple[int, ...], said: str, unequal: Path) -> None:
    target = Target("digits", (1, 8, 8), load_distilled(unequal).class_names)
    with pytest.raises(UserError) as error:
        read_start(unequal, target, Counts(numbers))
    assert str(error.value).startswith("--init ") and said in str(error.value)
