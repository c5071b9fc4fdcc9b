"""Boosted runs from the command line: prefixes bit for bit, resumption, what is saved, prefixes evaluated alone."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cli import TINY, difference, refused, state_of
from torch import Tensor

from framework import load_distilled
from framework.config.bptt import parse
from framework.config.common import parse_as
from framework.config.matching import FtdConfig
from framework.errors import UserError
from framework.evaluation import selection
from framework.files import SET
from framework.outer.blocks import prefix_rows
from framework.records import Row
from framework.report.folder import RunFolder
from framework.report.metrics import Reporter
from framework.run import checkpoint
from main import main

SHORT = [*TINY, "--epochs", "1", "--num_train_eval", "1", "--eval_steps", "3", "6", "--test_freq", "7"]
AT_BPTT = ["-d", "1", "--early_gain", "99", "--early_patience", "1", "--complete_random"]
RUN = [*SHORT, *AT_BPTT, "--train_y", "--batch_per_class", "2", "--ckpt_minutes", "1e-9", "--ckpt_epochs", "1"]
BLOCKS = ["--boost_block", "1"]
STEPS = 4  # outer steps of an epoch, and so of a block
EXPERTS = [
    *("--dataset", "digits", "--depth", "1", "--width", "4", "--device", "cpu"),
    *("--num_experts", "2", "--train_epochs", "3", "--batch_train", "400", "--lr_teacher", "0.05"),
]
FTD = [
    *("ftd", *EXPERTS[:8], "--syn_steps", "2", "--expert_epochs", "1", "--max_start_epoch", "2", "--Iteration", "4"),
    *("--eval_it", "2", "--num_eval", "1", "--epoch_eval_train", "4", "--lr_img", "1", "--lr_lr", "1e-4"),
    *(
        "--lr_teacher",
        "0.05",
        "--ema_decay",
        "0.5",
        "--print_freq",
        "1",
        "--ckpt_minutes",
        "1e-9",
        "--ckpt_epochs",
        "1",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def without_plots() -> Iterator[None]:
    """Of accuracy and windows, which take longer than all else here and are tested elsewhere."""
    with patch.object(Reporter, "plot", lambda *_, **about: None):
        yield


def folder_of(flags: list[str], folder: Path) -> Path:
    assert main([*flags, "--save_dir", str(folder)]) == 0
    return folder


def recorded(flags: list[str], folder: Path) -> Path:
    """A run, of whose folder a copy is kept beside it, as it was after each step and epoch."""
    save = checkpoint.save_run

    def save_run(where: Path, state: dict[str, Any]) -> None:
        save(where, state)
        place = where.with_name(f"{where.name}-{state['progress']['step']}-{state['progress']['epoch']}")
        shutil.copytree(where, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tensorboard", ".lock"))

    with patch.object(checkpoint, "save_run", save_run), patch.object(selection, "EXPORTS_SHARE", 1e9):
        return folder_of(flags, folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks, the first ones frozen."""
    return recorded([*RUN, *BLOCKS, "--num_per_class", "3"], tmp_path_factory.mktemp("three") / "run")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    assert main(["buffer", *EXPERTS, "--buffer_path", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def matched(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks of a set learnt by matching."""
    flags = [*FTD, *BLOCKS, "--ipc", "3", "--buffer_path", str(experts)]
    return recorded(flags, tmp_path_factory.mktemp("matched") / "run")


def learnt(folder: Path) -> dict[str, Any]:
    """The set as the last step left it."""
    found: dict[str, Any] = checkpoint.load(folder / "last.pt")["set"]
    return found


def prefix(tensor: Tensor, per_class: int) -> Tensor:
    return tensor[prefix_rows(10, len(tensor), per_class)]


# ---- the identities --------------------------------------------------------------------------------


def test_a_run_of_fewer_blocks_is_a_prefix_bit_for_bit(three: Path, tmp_path: Path) -> None:
    two = folder_of([*RUN, *BLOCKS, "--num_per_class", "2"], tmp_path / "run")
    for name in ("images", "labels"):
        assert torch.equal(prefix(learnt(three)[name], 2), learnt(two)[name])
        assert not torch.equal(prefix(learnt(three)[name], 2), learnt(three)[name])


def test_one_block_is_an_ordinary_run_bit_for_bit(three: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--batch_per_class", "1"]
    one, plain = (folder_of([*flags, *more], tmp_path / str(len(more))) for more in (BLOCKS, []))
    found, expected = state_of(one), state_of(plain)
    for state in (found, expected):  # whose shapes are those of the block's view
        moments = state["set"]["optimizer"]["state"]
        state["set"]["moments"] = {
            i: {name: m.flatten().tolist() for name, m in moment.items()} for i, moment in moments.items()
        }
        del state["set"]["optimizer"]
    assert found.pop("method") == {"block": 0, "method": expected.pop("method")}
    assert difference(found, expected) is None
    for name in ("images", "labels"):
        assert torch.equal(prefix(learnt(three)[name], 1), learnt(plain)[name])


def test_finished_blocks_keep_every_bit_and_others_move(three: Path) -> None:
    for step in range(STEPS + 1, 3 * STEPS):
        states = [learnt(path) for path in three.parent.glob(f"run-{step}-*")]
        assert states, step
        for state in states:
            blocks = (step - 1) // STEPS
            assert torch.equal(prefix(state["images"], blocks), prefix(learnt(three)["images"], blocks))
            assert torch.equal(prefix(state["labels"], blocks), prefix(learnt(three)["labels"], blocks))
            if step % STEPS:
                assert not torch.equal(state["images"], prefix(learnt(three)["images"], blocks + 1))


@pytest.mark.parametrize("place", ["run-5-1", "run-8-2"])
def test_a_run_left_within_or_between_blocks_ends_bit_identical(place: str, three: Path, tmp_path: Path) -> None:
    """After the first step of the second block, and at its end."""
    shutil.copytree(three.parent / place, tmp_path / "run")
    assert main([*RUN, *BLOCKS, "--num_per_class", "3", "--save_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert difference(state_of(tmp_path / "run"), state_of(three)) is None
    one, two = (RunFolder(folder).summary for folder in (tmp_path / "run", three))
    assert one is not None
    assert two is not None
    assert one.prefixes == two.prefixes


def test_learning_blocks_resume_bit_identical_with_moments_and_images_given(three: Path, tmp_path: Path) -> None:
    """With beta above 0, started from a set, whose images blocks take in their order."""
    flags = [*RUN, *BLOCKS, "--num_per_class", "3", "--boost_beta", "0.5", "--outer_optim", "SGD", "--lr", "1e-9"]
    flags += ["--boost_epochs", "1", "1", "2", "--ckptname", str(three)]
    whole = recorded(flags, tmp_path / "run")
    given = load_distilled(three)
    assert torch.allclose(learnt(whole)["images"], given.images, atol=1e-6)
    assert not torch.equal(learnt(whole)["images"], given.images)
    shutil.copytree(tmp_path / "run-9-2", tmp_path / "again")
    assert main([*flags, "--save_dir", str(tmp_path / "again"), "--resume"]) == 0
    assert difference(state_of(tmp_path / "again"), state_of(whole)) is None
    assert len(RunFolder(whole).records["epoch"]) == 4


def test_an_ordinary_matched_run_is_the_first_block_in_both_forms(experts: Path, matched: Path, tmp_path: Path) -> None:
    one = folder_of([*FTD, "--buffer_path", str(experts), "--ipc", "1"], tmp_path / "one")
    for name in ("images", "average", "labels"):
        assert torch.equal(prefix(learnt(matched)[name], 1), learnt(one)[name])
    sizes = learnt(matched)["step_sizes"]
    assert sizes[0] == float(learnt(one)["step_size"])
    distilled = load_distilled(matched)
    assert distilled.provenance["step_sizes"] == list(sizes)
    assert [distilled.prefix(size).learnt_lr for size in (1, 2, 3)] == [*sizes, distilled.learnt_lr]


def test_blocks_of_a_matched_run_start_from_different_real_images(matched: Path) -> None:
    first = checkpoint.load(next(matched.parent.glob("run-9-*")) / "last.pt")["set"]["images"]
    distances = torch.cdist(first.flatten(1), first.flatten(1)) + 99 * torch.eye(30)
    assert distances.min() > 0


def test_a_matched_run_left_within_a_block_ends_bit_identical(experts: Path, matched: Path, tmp_path: Path) -> None:
    shutil.copytree(next(matched.parent.glob("run-7-*")), tmp_path / "run")
    flags = [*FTD, *BLOCKS, "--ipc", "3", "--buffer_path", str(experts), "--save_dir", str(tmp_path / "run")]
    assert main([*flags, "--resume"]) == 0
    assert difference(state_of(tmp_path / "run"), state_of(matched)) is None


# ---- what is saved and told ------------------------------------------------------------------------


def test_the_set_of_an_unfinished_run_has_the_blocks_it_came_to(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(three.parent / f"run-{2 * STEPS}-2", tmp_path / "run")
    distilled = load_distilled(tmp_path / "run")
    assert (distilled.per_class, distilled.block_size) == (2, 1)
    assert {name: distilled.provenance[name] for name in ("block_size", "blocks", "blocks_in_all")} == {
        "block_size": 1, "blocks": 2, "blocks_in_all": 3,
    }  # fmt: skip
    assert torch.equal(distilled.images, learnt(tmp_path / "run")["images"])
    assert main(["export", str(tmp_path / "run"), "--to", "pt"]) == 0
    assert "has block 1 to 2 of 3; the run that learns the others has not ended" in capsys.readouterr().err
    assert load_distilled(tmp_path / "run" / "exports" / "distilled.pt").lacks
    assert load_distilled(three).lacks == ""


def test_every_block_is_evaluated_at_its_end_and_epochs_tell_their_block(three: Path) -> None:
    run = RunFolder(three)
    assert [entry.epoch for entry in run.history] == [1, 2, 3]
    assert [record["block"] for record in run.records["epoch"]] == [1, 2, 3]
    assert [record["stage"] for record in run.records["epoch"]] == ["early"] * 3, "a policy's stages start anew"
    assert len({record["window_start"] for record in run.records["step"]}) > 1
    assert "3 block(s) of 1 image(s) per class, finished ones frozen" in run.facts["boosting"]


def test_the_summary_has_a_row_for_each_prefix(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = RunFolder(three).summary
    assert summary is not None
    assert summary.prefixes is not None
    assert [(size, row.name) for size, row in summary.prefixes.items()] == [
        ("1", "10 distilled images"), ("2", "20 distilled images"), ("3", "30 distilled images"),
    ]  # fmt: skip
    assert summary.prefixes["3"] == summary.results["distilled"]
    assert summary.epochs == 3
    assert main([*RUN, *BLOCKS, "--num_per_class", "3", "--save_dir", str(three), "--resume"]) == 0
    assert "| first of each class | trained on |" in capsys.readouterr().out
    assert main(["report", str(three)]) == 0
    for page in (three / "report.html", three / "report.md"):
        assert "first of each class" in page.read_text()
    assert "prefixes.png" in (three / "report.md").read_text()


def test_the_rows_of_prefixes_read_no_other_image(three: Path, tmp_path: Path) -> None:
    """Other images are NaN when the final table is made again; the first two prefixes' rows stay as they are."""
    shutil.copytree(three, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    images = state["progress"]["best"]["images"]
    spoilt = torch.full_like(images, float("nan"))
    spoilt[prefix_rows(10, 30, 2)] = prefix(images, 2)
    state["progress"]["best"]["images"] = spoilt
    checkpoint.save(tmp_path / "run" / "last.pt", state)
    (tmp_path / "run" / "summary.json").unlink()
    assert main([*RUN, *BLOCKS, "--num_per_class", "3", "--save_dir", str(tmp_path / "run"), "--resume"]) == 0
    found, expected = (RunFolder(folder).summary for folder in (tmp_path / "run", three))
    assert found is not None and found.prefixes is not None
    assert expected is not None and expected.prefixes is not None
    for size in ("1", "2"):
        assert found.prefixes[size] == expected.prefixes[size]
    assert found.prefixes["3"] != expected.prefixes["3"]


def test_flags_that_do_not_fit_are_told_in_one_line(
    experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = [*SHORT, "--save_dir", str(tmp_path / "run")]
    for flags, message in (
        ("--num_per_class 5 --boost_block 2", "--boost_block 2 does not divide the 5 image(s) of each class: give a"),
        ("--boost_block 1 --patience 2", "--patience 2 would end a boosted run before its last block"),
        ("--boost_block 1 --trial", "--trial times steps of one size"),
        ("--num_per_class 2 --boost_block 4", "--boost_block 4 does not divide the 2 image(s) of each class"),
        ("--num_per_class 4 --boost_block 2 --boost_epochs 3", "--boost_epochs 3: there are 2 block(s), give a number"),
        ("--boost_block 1 --start_epoch 0 --boost_beta 2", "--boost_beta 2.0: give a value of at most 1"),
        ("--boost_block 1 --epochs 3 --start_epoch 1", "--boost_block 1: the first block starts at epoch 0; leave out"),
        (f"--boost_block 1 --eval_only --ckptname {experts}", "--boost_block 1: --eval_only evaluates the given set"),
        ("--boost_block -1", "--boost_block -1: give a value of at least 0"),
    ):
        told = refused([*there, *flags.split()], capsys)
        assert message in told
        assert len([line for line in told.splitlines() if "error:" in line]) == 1
    ftd = [*FTD, "--buffer_path", str(experts), "--ipc", "2", *BLOCKS, "--save_dir", str(tmp_path / "run")]
    assert "--boost_epochs 3 is no multiple of --eval_it 2" in refused([*ftd, "--boost_epochs", "4", "3"], capsys)
    assert not (tmp_path / "run").exists()


def test_where_blocks_end_cannot_change_on_resume(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*RUN, *BLOCKS, "--num_per_class", "3", "--save_dir", str(three), "--resume"]
    assert "the blocks' epochs were 1 1 1 and are 2 2 2" in refused([*flags, "--epochs", "2"], capsys)


@pytest.mark.parametrize(
    ("line", "epochs"),
    [
        ("--num_per_class 6 --epochs 4", (4,)),
        ("--num_per_class 6 --epochs 4 --boost_epochs 9 9", (4,)),
        ("--num_per_class 6 --epochs 4 --boost_block 2", (4, 4, 4)),
        ("--num_per_class 6 --boost_block 2 --boost_epochs 1 5 2", (1, 5, 2)),
    ],
)
def test_epochs_of_the_blocks(line: str, epochs: tuple[int, ...]) -> None:
    config, warnings = parse(line.split())
    assert (config.block_epochs, config.total_epochs) == (epochs, sum(epochs))
    ends = [sum(epochs[: i + 1]) for i in range(len(epochs))]
    expected = {*ends, *range(5, sum(epochs) + 1, 5)}
    assert {epoch for epoch in range(1, sum(epochs) + 1) if config.is_evaluated(epoch)} == expected
    assert bool(warnings) == ("9 9" in line), "--boost_epochs is read by boosted runs alone"


def test_iterations_of_the_blocks() -> None:
    config, _ = parse_as(["--ipc", "4", "--boost_block", "2", "--boost_epochs", "300", "500"], FtdConfig)
    assert (config.block_epochs, config.iterations_per_epoch, config.total_iterations) == ((3, 5), 100, 800)
    config, _ = parse_as(["--ipc", "4", "--boost_block", "2", "--Iteration", "50"], FtdConfig)
    assert (config.block_epochs, config.iterations_per_epoch, config.total_iterations) == ((1, 1), 50, 100)


def test_the_dry_run_tells_the_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num_per_class", "4", "--boost_block", "2", "--boost_beta", "0.1", "--boost_epochs", "3", "5"]
    flags += ["--dry_run", "--save_dir"]
    assert main([*SHORT, *flags, str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "boosting: 2 block(s) of 2 image(s) per class, finished ones at 0.1 of the rate" in text
    assert "block 1: image(s) 1 to 2 of each class, 3 epochs" in text
    assert "block 2: image(s) 3 to 4 of each class, 5 epochs" in text
    assert "32 in all" in text
    assert not (tmp_path / "run").exists()


# ---- evaluate --prefix -----------------------------------------------------------------------------


def evaluated(folder: Path, *flags: str) -> dict[str, Any]:
    assert main(["evaluate", str(folder), "--num_train_eval", "2", "--eval_steps", "3", "--device", "cpu", *flags]) == 0
    name = "inner_prefixes" if "--prefix" in flags else "inner"
    found: dict[str, Any] = json.loads((folder / "evaluation" / f"{name}.json").read_text())
    return found


@pytest.fixture
def boosted(three: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


def numbers(row: dict[str, Any]) -> list[Any]:
    return [row[name] for name in Row.__dataclass_fields__ if name != "name"]


def test_prefixes_together_are_what_each_is_alone(boosted: Path) -> None:
    whole = evaluated(boosted)
    every = evaluated(boosted, "--prefix", "all", "--baselines", "random", "full")
    rows = every["results"]["convnet"]
    assert every["prefixes"] == [1, 2, 3]
    assert list(rows) == ["distilled 1", "random 1", "distilled 2", "random 2", "distilled 3", "random 3", "full"]
    assert rows["distilled 2"]["name"] == "20 distilled images, the first 2 of each class"
    assert rows["random 2"]["name"].startswith("20 random real images")
    two = evaluated(boosted, "--prefix", "2")["results"]["convnet"]
    assert numbers(two["distilled"]) == numbers(rows["distilled 2"])
    assert numbers(whole["results"]["convnet"]["distilled"]) == numbers(rows["distilled 3"])
    assert main(["report", str(boosted)]) == 0
    assert "the first 2 of each class" in (boosted / "report.html").read_text()


def test_a_prefix_is_judged_as_the_set_that_it_is(boosted: Path, tmp_path: Path) -> None:
    """The file of a prefix says what a set of that size says, and gives the same numbers."""
    part = load_distilled(boosted).prefix(2)
    assert (part.per_class, part.config.num_per_class, part.config.batch_per_class) == (2, 2, 2)
    assert part.block_size is None
    checkpoint.save_tensors(tmp_path / "part.safetensors", part.stored().tensors, part.stored().metadata)
    again = load_distilled(tmp_path / "part.safetensors")
    assert torch.equal(again.images, prefix(load_distilled(boosted).images, 2))
    assert again.config == part.config
    flags = ["--num_train_eval", "2", "--eval_steps", "3", "--device", "cpu"]
    assert main(["evaluate", str(tmp_path / "part.safetensors"), *flags]) == 0
    alone = json.loads((tmp_path / "part.safetensors.evaluation" / "inner.json").read_text())
    there = evaluated(boosted, "--prefix", "2")
    assert numbers(alone["results"]["convnet"]["distilled"]) == numbers(there["results"]["convnet"]["distilled"])


def test_a_prefix_that_is_not_there(boosted: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in boosted.iterdir())
    for path, sizes, message in (
        (boosted, "4", f"--prefix 4: {boosted}: has 3 image(s) of each class; give at most that many"),
        (boosted, "2 1", "--prefix 2 1: give increasing numbers, each once, or all alone"),
        (boosted, "1 all", "--prefix 1 all: give increasing numbers"),
        (boosted, "0", "'0' is not a positive whole number"),
        (finished_run, "all", f"--prefix all: {finished_run} was not learnt in blocks; give numbers of images"),
    ):
        told = refused(["evaluate", str(path), "--prefix", *sizes.split()], capsys)
        assert message in told
        assert len(told.splitlines()) == 1
    assert sorted(path.name for path in boosted.iterdir()) == before
    scattered = replace(load_distilled(boosted), by_class=False)
    with pytest.raises(UserError, match="has not as many images of each class"):
        scattered.prefix(1)


@pytest.mark.parametrize(
    ("name", "value"), [("block_size", 0), ("block_size", "x"), ("block_size", 2), ("blocks", -1), ("step_sizes", 3)]
)
def test_damaged_words_about_blocks(name: str, value: Any, boosted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distilled = load_distilled(boosted)
    stored = replace(distilled, provenance=distilled.provenance | {name: value}).stored()
    checkpoint.save_tensors(boosted / SET, stored.tensors, stored.metadata)
    told = refused(["evaluate", str(boosted)], capsys)
    assert "restore it from a copy" in told
    assert len(told.splitlines()) == 1
