"""What ``evaluate``, ``export`` and ``report`` have in common: damaged flags, full memory and disks, Ctrl-C, NaN."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import TINY, refused

from framework import load_distilled
from framework.config.bptt import Config
from framework.distilled.exports import WRITERS
from framework.distilled.formats import write_safetensors
from framework.distilled.names import FORMS
from framework.errors import UserError
from framework.evaluation import baselines, coresets, names
from framework.evaluation.scores import Score
from framework.files import SET
from framework.run import checkpoint
from main import main

EVALUATE = ["--num_train_eval", "1", "--eval_steps", "3", "6", "--device", "cpu"]
FLAGS_OF_RUN = [*TINY, "--epochs", "2", "--baselines", "random", "full"]


def strict(text: str) -> Any:
    """Parsed JSON, in the strict sense: without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def last_line(error: str) -> str:
    """The last line of an error output, in which a progress bar may come first."""
    assert "Traceback" not in error
    return error.rstrip("\n").replace("\r", "\n").rpartition("\n")[2]


def test_the_tables_of_names_are_those_of_the_work() -> None:
    assert tuple(FORMS) == tuple(WRITERS)
    assert tuple(names.CORESETS) == tuple(coresets.NAMES)
    assert set(names.BASELINES) == {*baselines.BASELINES, *names.CORESETS}


# ---- flags in files --------------------------------------------------------------------------------

DAMAGED: dict[str, tuple[str, Any, str]] = {
    "augmentation": ("syn_strategy", "nonsense", "--syn_strategy nonsense: unknown augmentation"),
    "augmentation of two lines": ("syn_strategy", "flip\nrotate", "--syn_strategy"),
    "negative rate": ("inner_lr", -0.1, "--inner_lr -0.1: give a value above 0"),
    "rate as text": ("inner_lr", "fast", "--inner_lr 'fast': float expected"),
    "rate that is NaN": ("inner_lr", math.nan, "--inner_lr nan: give a finite number"),
    "infinite rate": ("inner_lr", math.inf, "--inner_lr inf: give a finite number"),
    "empty batch": ("batch_per_class", 0, "--batch_per_class 0: give a value of at least 1"),
    "batch too large": ("batch_per_class", 2, "--batch_per_class 2 is larger than --num_per_class 1"),
    "fraction": ("batch_per_class", 1.5, "--batch_per_class 1.5: int expected"),
    "truth": ("seed", True, "--seed True: int expected"),
    "nothing": ("seed", None, "--seed None: one value expected"),
    "network": ("arch", "transformer9000", "--arch 'transformer9000': choose from"),
    "list": ("width", [4], "--width [4]: one value expected"),
    "no list": ("eval_steps", 4, "--eval_steps 4: several values expected"),
    "object": ("dataset", {"name": "digits"}, "--dataset {'name': 'digits'}: str expected"),
    "unknown": ("flag_of_the_future", 1, "unknown flags flag_of_the_future"),
    "contradiction": ("window", 300, "--window 300 is larger than --totwindow 8"),
}
MISFITS: dict[str, tuple[str, Any, str]] = {
    "too deep": ("depth", 9, "lower --depth"),
    "of no size": ("width", 10**30, "--width 1" + 30 * "0" + " --depth 1: no network can be that large"),
    "of no memory": ("width", 10**17, "--width 1" + 17 * "0" + " --depth 1: no network can be that large"),
    "classes": ("task_sampler_nc", 11, "--task_sampler_nc 11 is more than the 10 classes"),
}
"""Sound by themselves, but not for the set's images."""


def set_with(run: Path, **flags: Any) -> Path:
    """Change flags in the metadata of a run's set."""
    stored = load_distilled(run).stored(numbers=False)
    provenance = json.loads(stored.metadata["provenance"])
    provenance["config"] |= flags
    stored.metadata["provenance"] = json.dumps(provenance)
    write_safetensors(stored, run / SET)
    return run / SET


@pytest.mark.parametrize("verb", ["evaluate", "export", "report"])
@pytest.mark.parametrize("damage", [*DAMAGED, *MISFITS])
def test_damaged_flags_of_a_set_are_one_line(
    damage: str, verb: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value, message = (DAMAGED | MISFITS)[damage]
    set_with(run, **{name: value})
    before = sorted(run.rglob("*"))
    error = refused([verb, str(run), *({"export": ["--to", "pt"], "evaluate": EVALUATE}.get(verb, []))], capsys)
    assert error.startswith(f"main.py: error: {run}")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(run.rglob("*")) == before
    with pytest.raises(UserError) as raised:
        load_distilled(run)
    assert f"main.py: error: {raised.value}\n" == error


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_flags_of_a_run_are_one_line(damage: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, value, message = DAMAGED[damage]
    config = json.dumps(json.loads((run / "config.json").read_text()) | {name: value})
    state = checkpoint.load(run / "last.pt")
    checkpoint.save(run / "last.pt", {**state, "config": config})
    (run / "previous.pt").unlink()
    error = refused([*FLAGS_OF_RUN, "--save_dir", str(run), "--resume"], capsys)
    assert error.startswith(f"main.py: error: {run}/last.pt: its flags are damaged (")
    assert message in error
    assert error.count("\n") == 1
    (run / "config.json").write_text(config)
    error = refused(["report", str(run)], capsys)
    assert error.startswith(f"main.py: error: {run}/config.json: its flags are damaged (")
    assert message in error
    assert error.count("\n") == 1


def test_missing_flags_of_a_set_have_their_defaults(run: Path) -> None:
    stored = load_distilled(run).stored(numbers=False)
    stored.metadata["provenance"] = json.dumps({"config": {"dataset": "digits"}})
    write_safetensors(stored, run / SET)
    distilled = load_distilled(run)
    assert distilled.config == Config(dataset="digits")
    assert distilled.steps == 3000
    assert main(["evaluate", str(run), *EVALUATE]) == 0
    assert main(["export", str(run), "--to", "pt"]) == 0


def test_missing_flags_of_a_checkpoint_have_their_defaults(run: Path) -> None:
    state = checkpoint.load(run / "last.pt")
    flags = json.loads(state["config"])
    for young in ("lr", "psp_lambda"):  # which the run has left at their defaults
        del flags[young]
    checkpoint.save(run / "last.pt", {**state, "config": json.dumps(flags)})
    assert main([*FLAGS_OF_RUN, "--save_dir", str(run), "--resume"]) == 0


def test_a_batch_larger_than_what_the_set_holds_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As flags it is sound: the run had more images of each class than the file has."""
    path = set_with(run, num_per_class=5, batch_per_class=3)
    error = refused(["evaluate", str(path), *EVALUATE], capsys)
    assert error.startswith(f"main.py: error: {path}: ")
    assert "--batch_per_class 3 is more than the 1 image(s) of each class" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"provenance": "[]"}, "provenance has no flags"),
        ({"provenance": '{"config": 3}'}, "no flags are there"),
        ({"provenance": '{"config": {"dataset": "digits"}, "best_length": "long"}'}, "best_length is 'long'"),
        ({"provenance": '{"config": {"dataset": "digits"}, "experts": "SAM"}'}, "experts is 'SAM'"),
        ({"class_names": "3"}, "class_names is no list of names"),
        ({"class_names": "[1, 2]"}, "class_names is no list of names"),
        ({"class_names": '"0123456789"'}, "class_names is no list of names"),
    ],
)
def test_damaged_metadata_is_one_line(
    metadata: dict[str, str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = load_distilled(run).stored(numbers=False)
    stored.metadata.update(metadata)
    write_safetensors(stored, run / SET)
    error = refused(["export", str(run), "--to", "pt"], capsys)
    assert error.startswith(f"main.py: error: {run}")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("shape", [(10, 8, 8), (10, 1, 8, 4), (9, 1, 8, 8), (0, 1, 8, 8)])
def test_images_that_are_none_are_one_line(
    shape: tuple[int, ...], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = load_distilled(run).stored(numbers=False)
    stored.tensors["images"] = torch.zeros(shape)
    write_safetensors(stored, run / SET)
    error = refused(["evaluate", str(run), *EVALUATE], capsys)
    assert f"images of shape {shape}" in error
    assert error.count("\n") == 1


# ---- memory, disk, Ctrl-C --------------------------------------------------------------------------


def on_cuda(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def on_cpu(*_: object) -> None:
    torch.empty(2**50)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("allocate", [on_cuda, on_cpu])
def test_out_of_memory_in_evaluate_is_one_line_and_leaves_nothing(
    allocate: Callable[..., None], there: bool, run: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = run / "new" / "deep"
    if there:
        output.mkdir(parents=True)
    before = sorted(run.rglob("*"))
    monkeypatch.setattr("framework.evaluation.evaluator.score", allocate)
    line = last_line(refused(["evaluate", str(run), *EVALUATE, "--output", str(output)], capsys))
    assert line.startswith("main.py: error: out of memory (")
    assert all(flag in line for flag in ("--baselines", "--eval_arch", "--width", "--device"))
    assert "--resume" not in line
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["evaluate", "{run}", *EVALUATE], "framework.evaluation.evaluator.score"),
        (["export", "{run}", "--to", "images"], "framework.distilled.exports.re.sub"),
        (["export", "{run}", "--to", "pt"], "framework.files.os.fsync"),
        (["report", "{run}", "--output", "{run}/new/page.html"], "framework.report.page.markdown"),
    ],
)
def test_stopped_with_nothing_written_is_true(
    arguments: list[str], where: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    monkeypatch.setattr("framework.report.page.themed", lambda draw: {"light": "data:,", "dark": "data:,"})
    monkeypatch.setattr(where, interrupted)
    assert main([argument.format(run=run) for argument in arguments]) == 130
    assert last_line(capsys.readouterr().err) == f"main.py {arguments[0]}: stopped; nothing was written"
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["evaluate", "{run}", *EVALUATE], ["evaluation/inner.json", "evaluation/inner.md"]),
        (["report", "{run}"], ["report.html", "report.md"]),
    ],
)
def test_once_files_are_being_written_a_stop_comes_too_late(
    arguments: list[str], files: list[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.replace

    def stopped_while_writing(*paths: Any) -> None:
        write(*paths)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("framework.report.page.themed", lambda draw: {"light": "data:,", "dark": "data:,"})
    monkeypatch.setattr("framework.files.os.replace", stopped_while_writing)
    assert main([argument.format(run=run) for argument in arguments]) == 0
    assert all((run / name).exists() for name in files)


@pytest.mark.parametrize("verb", ["evaluate", "export", "report"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    verb: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("framework.report.page.themed", lambda draw: {"light": "data:,", "dark": "data:,"})
    monkeypatch.setattr("framework.files.os.fsync", full)
    more = {"evaluate": EVALUATE, "export": ["--to", "pt"], "report": ["--output", str(run / "new" / "page.html")]}
    assert main([verb, str(run), *more[verb]]) == 2
    said = capsys.readouterr()
    line = last_line(said.err)
    assert line.startswith("main.py: error: cannot write ")
    assert "No space left on device" in line
    assert "--resume" not in line
    assert sorted(run.rglob("*")) == before
    assert ("| 10 distilled images |" in said.out) == (verb == "evaluate"), "hours of training are not lost"


def test_a_table_whose_events_cannot_be_written_is_there(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    line = last_line(refused(["evaluate", str(run), *EVALUATE], capsys))
    table = run / "evaluation" / "inner.md"
    assert line.endswith(f"No space left on device; the table is in {table}")
    assert "10 distilled images" in table.read_text()


# ---- networks that diverge -------------------------------------------------------------------------


def test_a_network_that_diverges_in_evaluate_is_shown_as_such(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_with(run, inner_optim="SGD", inner_lr=1e30)
    assert main(["evaluate", str(run), *EVALUATE, "--num_train_eval", "2"]) == 0
    row = strict((run / "evaluation" / "inner.json").read_text())["results"]["convnet"]["distilled"]
    assert row["loss"] is None and row["loss_std"] is None
    assert 0 <= row["top1"] <= 1
    table = (run / "evaluation" / "inner.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| nan |" in table
    assert main(["report", str(run)]) == 0
    assert ">nan" in (run / "report.html").read_text()


def test_a_network_that_diverges_in_a_run_is_shown_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diverged = Score(0.1, 0.5, math.nan, math.nan)
    monkeypatch.setattr("framework.evaluation.evaluator.score", lambda *_: diverged)
    command = [*TINY, "--epochs", "2", "--save_dir", str(tmp_path / "run")]
    assert main([*command, "--baselines", "random"]) == 0
    assert "| 10.0 ± 0.0 | 50.0 ± 0.0 | nan ± nan |" in capsys.readouterr().out
    row = strict((tmp_path / "run" / "summary.json").read_text())["results"]["distilled"]
    assert (row["top1"], row["ece"], row["loss"]) == (0.1, None, None)
    records = [strict(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [record["scores"] for record in records if record["kind"] == "evaluation"]
    assert [score["loss"] for row in scores for score in row] == [None] * 4
    assert main([*command, "--baselines", "random", "full", "--resume"]) == 0, "read back from checkpoint and summary"
    assert main(["report", str(tmp_path / "run")]) == 0
    assert ">nan" in (tmp_path / "run" / "report.html").read_text()
    assert "nan" in (tmp_path / "run" / "report.md").read_text()


def test_a_set_of_another_program_has_its_flags_checked_too(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = load_distilled(run)
    torch.save((original.images, original.hard_labels), tmp_path / "set.pt")
    torch.save((original.images[:0], original.labels[:0]), tmp_path / "empty.pt")
    foreign = ["--dataset", "digits", "--preprocess", "zca", "--zca_reg", "-1"]
    assert "--zca_reg -1.0: give a value above 0" in refused(["evaluate", str(tmp_path / "set.pt"), *foreign], capsys)
    nan = ["--dataset", "digits", "--preprocess", "standardise", "--mean", "nan", "--std", "1"]
    assert "--mean, --std: give" in refused(["evaluate", str(tmp_path / "set.pt"), *nan], capsys)
    assert "0 images but 0 labels" in refused(["evaluate", str(tmp_path / "empty.pt"), *foreign[:4]], capsys)


def test_replacing_a_set_keeps_its_flags(run: Path) -> None:
    """What ``set_with`` stands on: a set that is written again is the same."""
    distilled = load_distilled(run)
    set_with(run)
    assert replace(load_distilled(run), images=distilled.images).config == distilled.config
