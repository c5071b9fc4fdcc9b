"""The record table of distillation speed: times to a goal, ratios, what is refused, and what is written."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from cli import ROOT
from commands import RAT_BPTT
from studies import finished

import speedrun
from framework.config.bptt import parse
from framework.errors import UserError
from framework.files import read_json, write_json
from speedrun import TRACKS, Claim, Record, add, check_flags, checkout, jobs_of, note, read_records, seconds_to, table
from study import Job

COMMIT = "0123456789" * 4
REACHED = [(5.0, 0.6), (20.0, 0.92), (40.0, 0.8)]
SHORT = [(5.0, 0.6), (20.0, 0.8994)]
RECORD = Record("digits_ipc1", 90.0, "--x", "--tau 2", COMMIT, [0], 0.5, None, 10.0, 20.0,
                {"mean": 91.0, "deviation": None}, {"mean": 92.0, "deviation": None}, "cpu (x)", "2", "3")  # fmt: skip


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without changes, whose record table is elsewhere."""
    monkeypatch.setattr(speedrun, "checkout", lambda: COMMIT)
    monkeypatch.setattr(speedrun, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def verify(out: Path, *words: str, flags: str = "--tau 2", track: str = "digits_ipc1") -> int:
    """Give the benchmark's command."""
    arguments = ["--track", track, "--out", str(out), "--device", "cpu", *words, "--", *flags.split()]
    with patch.object(sys, "argv", ["speedrun.py", *arguments]):
        return speedrun.main()


def refusal(out: Path, *words: str, **about: str) -> str:
    """What a command that must be refused says."""
    with pytest.raises(UserError) as error:
        verify(out, *words, **about)
    return str(error.value)


def made_up_runs(out: Path) -> None:
    """Of two seeds; RaT-BPTT needs 20 and 40 seconds, the claim 10 and 30."""
    finished(out / "RaT-BPTT" / "seed0", 0.93, REACHED)
    finished(out / "RaT-BPTT" / "seed1", 0.95, [(5, 0.2), (40, 0.9)])
    finished(out / "claim" / "seed0", 0.91, [(10, 0.95)])
    finished(out / "claim" / "seed1", 0.93, [(15, 0.89), (30, 0.91)])


# ---- what is found -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("goal", "seconds"), [(69.4, 2), (69.5, 4), (97, None)])
def test_the_time_is_that_of_the_first_evaluation_at_the_goal(
    goal: float, seconds: float | None, tmp_path: Path
) -> None:
    finished(tmp_path / "run", 0.9, [(1, 0.6), (2, 0.694), (3, 0.1), (4, 0.96), (5, 0.95)])
    result = Job("claim", 0, [], tmp_path / "run").result
    assert result is not None
    assert seconds_to(result, goal) == seconds


def test_the_ratio_is_of_mean_times_and_its_deviation_of_the_seeds_ratios(tmp_path: Path, results: Path) -> None:
    made_up_runs(tmp_path / "out")
    assert verify(tmp_path / "out", "--seeds", "0", "1", "--write") == 0
    (record,) = read_records(results)
    assert record.ratio == pytest.approx(20 / 30)
    assert record.deviation == pytest.approx((0.75 - 0.5) / 2**0.5)  # the ratios are 10/20 and 30/40
    assert (record.seconds, record.reference_seconds, record.seeds) == (20, 30, [0, 1])
    assert record.accuracy == {"mean": pytest.approx(92), "deviation": pytest.approx(2**0.5)}
    assert record.reference_accuracy["mean"] == pytest.approx(94)
    assert (record.track, record.goal, record.flags, record.commit) == ("digits_ipc1", 90, "--tau 2", COMMIT)
    assert (record.device, record.torch, record.python) == ("cpu (x)", "2", "3")
    row = "| digits_ipc1 | 90 | 0.67 ± 0.18 | 20 | 30 | 92.00 ± 1.41 | 94.00 ± 1.41 | 2 | `--tau 2` | 0123456789 |"
    assert row in (results / "speedrun.md").read_text()
    assert row in (tmp_path / "out" / "results.md").read_text()


def test_a_claim_that_misses_its_goal_with_one_seed_fails(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, claimed in enumerate((REACHED, SHORT)):
        finished(tmp_path / "out" / "RaT-BPTT" / f"seed{seed}", 0.93, SHORT)
        finished(tmp_path / "out" / "claim" / f"seed{seed}", 0.95, claimed)
    assert verify(tmp_path / "out", "--seeds", "0", "1", "--write") == 1
    text = "the claim fails: it does not reach 90 % on validation images: at best 89.9 with seed 1\n"
    assert capsys.readouterr().out == text
    assert read_json(tmp_path / "out" / "results.json")["record"] is None
    assert not list(results.iterdir())


def test_the_ratio_is_unknown_where_the_reference_misses_the_goal(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "out" / "RaT-BPTT" / "seed0", 0.93, SHORT)
    finished(tmp_path / "out" / "claim" / "seed0", 0.95, REACHED)
    assert verify(tmp_path / "out", "--seeds", "0", "--write") == 1
    assert capsys.readouterr().out.startswith("the ratio is unknown: RaT-BPTT does not reach 90 %")
    assert not list(results.iterdir())


def test_runs_on_two_machines_make_no_ratio(tmp_path: Path) -> None:
    finished(tmp_path / "out" / "RaT-BPTT" / "seed0", 0.93, REACHED)
    finished(tmp_path / "out" / "claim" / "seed0", 0.95, REACHED, device="NVIDIA")
    assert "holds runs on NVIDIA, torch 2, Python 3 and on cpu (x)" in refusal(tmp_path / "out", "--seeds", "0")


def test_what_is_not_finished_is_neither_judged_nor_written(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "out" / "claim" / "seed0", 0.95, REACHED)
    assert verify(tmp_path / "out", "--seeds", "0", "--write", "--minutes", "0") == 0
    assert "1 of 2 runs are not finished" in capsys.readouterr().out
    assert not list(results.iterdir())


# ---- what is run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKS)
def test_every_track_is_rat_bptt_without_a_warning(name: str) -> None:
    config, warnings = parse(TRACKS[name].flags)
    assert (config.policy, config.train_y, config.select, warnings) == ("rat-bptt", False, "val", [])
    assert config.per_class_text == name.rpartition("ipc")[2]
    assert config.dataset.replace("-", "_") == name.rpartition("_")[0]


def test_cifar10s_reference_is_the_published_command() -> None:
    ours, published = (
        parse(words)[0] for words in (TRACKS["cifar10_ipc10"].flags, RAT_BPTT["cifar10-ipc10"].arguments)
    )
    named = {name: getattr(ours, name) for name in ("truncation", "ddtype", "cctype", "fname", "print_freq")}
    assert replace(published, **named) == ours


def test_the_claim_is_the_references_command_with_more_flags_in_turn_with_it(tmp_path: Path) -> None:
    claim = Claim("digits_ipc1", 90, "--window 15 --lr 0.005", "--lr 0.01", COMMIT)
    jobs = jobs_of(claim, tmp_path, [3, 5], ["--device", "cpu"])
    assert [(job.variant, job.seed) for job in jobs] == [
        ("RaT-BPTT", 3), ("claim", 3), ("RaT-BPTT", 5), ("claim", 5)
    ]  # fmt: skip
    assert jobs[1].flags == [*jobs[0].flags, "--lr", "0.01"]
    assert parse(jobs[1].flags)[0] == replace(parse(jobs[0].flags)[0], lr=0.01)
    assert len({job.folder for job in jobs}) == 4


def test_the_script_gives_track_and_flags() -> None:
    command = ["bash", str(ROOT / "scripts" / "speedrun.sh"), "digits_ipc1", "--write", "--", "--tau", "2"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True)
    words = "--track digits_ipc1 --out save/speedrun/digits_ipc1 --write -- --tau 2"
    assert done.stdout == f"benchmarks/speedrun.py {words}\n"


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    ["--dataset mnist", "--limit_train 50", "--zca", "--num_per_class 2", "--width 8", "--arch vit", "--inner_lr 0.1",
     "--batch_per_class 1", "--train_y", "--freeze_data", "--test_freq 1", "--eval_steps 5", "--num_train_eval 1",
     "--select test", "--patience 1", "--seed 1", "--gpu 0", "--save_dir x", "--dry_run", "--mp_distributed"],
)  # fmt: skip
def test_what_makes_the_track_cannot_be_changed(flags: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "out", flags=f"--lr 0.01 {flags}").startswith(f"{flags.split()[0]}: is part of the track")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    ["", "--truncation rat-is", "--truncation at-bptt -d 5", "--window 5 --totwindow 20", "--epochs 9 --lr 0.01",
     "--init real", "--normalize_syn", "--accelerate compile", "--batch_size 100 --meta_batch 2", "--engine lowrank"],
)  # fmt: skip
def test_the_method_is_free(flags: str) -> None:
    check_flags("digits_ipc1", flags.split())


@pytest.mark.parametrize("flags", ["--init zoo:digits-ipc1", "--ckptname zoo:digits-ipc1"])
def test_a_finished_set_is_no_start(flags: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, flags=flags).startswith(f"{flags}: the time that this set took would not count")


def test_a_flag_out_of_its_range_costs_no_run(tmp_path: Path) -> None:
    assert "--window 31 is larger than --totwindow 30" in refusal(tmp_path / "out", flags="--window 31")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", ["ftd", "--no_such_flag"])
def test_what_is_no_flag_is_one_line(flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verify(tmp_path / "out", flags=flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert f"unrecognized arguments: {flags}" in line


def test_an_open_track_is_refused_unless_a_goal_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKS, "mnist_ipc1", replace(TRACKS["mnist_ipc1"], goal=None))
    assert refusal(tmp_path / "out", track="mnist_ipc1").startswith("--track mnist_ipc1 is open: no goal is known yet")
    assert not (tmp_path / "out").exists()
    assert verify(tmp_path / "out", "--goal", "50", "--minutes", "0", track="mnist_ipc1") == 0


def test_cifar10_needs_a_gpu(tmp_path: Path) -> None:
    assert refusal(tmp_path / "out", track="cifar10_ipc10").startswith("--track cifar10_ipc10: needs a CUDA GPU")
    assert not (tmp_path / "out").exists()


def test_a_goal_of_ones_own_is_not_written(tmp_path: Path) -> None:
    assert refusal(tmp_path / "out", "--write", "--goal", "50").startswith("--goal 50 is for trials")


def test_changes_without_a_commit_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedrun, "checkout", lambda: f"{COMMIT}-dirty")
    assert "the checkout has changes" in refusal(tmp_path / "out", "--write")
    assert not (tmp_path / "out").exists()
    made_up_runs(tmp_path / "out")
    assert verify(tmp_path / "out", "--seeds", "0", "1") == 0
    assert "| 0123456789-dirty |" in (tmp_path / "out" / "results.md").read_text()


def test_a_checkout_that_changes_while_runs_go_on_is_not_written(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_runs(tmp_path / "out")
    answers = iter([COMMIT, f"{COMMIT}-dirty"])
    monkeypatch.setattr(speedrun, "checkout", lambda: next(answers))
    assert "changed while the runs went on" in refusal(tmp_path / "out", "--seeds", "0", "1", "--write")
    assert not list(results.iterdir())


def test_a_folder_is_of_one_claim(tmp_path: Path) -> None:
    claim = Claim("digits_ipc1", 90, "--x", "--tau 2", COMMIT)
    note(claim, tmp_path)
    note(claim, tmp_path)
    with pytest.raises(UserError, match="holds a claim that differs in flags and commit; choose another folder"):
        note(replace(claim, flags="--tau 3", commit="f" * 40), tmp_path)


def test_the_commit_tells_of_changed_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedrun, "ROOT", tmp_path)
    with pytest.raises(UserError, match="no commit can be read"):
        checkout()
    for name in ("benchmarks/results/speedrun.json", "docs/speedrun.md", "framework/base.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    commit = checkout()
    assert len(commit) == 40
    (tmp_path / "benchmarks/results/speedrun.json").write_text("new")
    (tmp_path / "docs/speedrun.md").write_text("new")
    (tmp_path / "untracked").write_text("new")
    assert checkout() == commit
    (tmp_path / "framework/base.py").write_text("new")
    assert checkout() == f"{commit}-dirty"


# ---- the record table --------------------------------------------------------------------------------


def test_a_record_takes_the_place_of_the_same_track_and_flags_and_the_fastest_stands_first(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    for record in (RECORD, replace(RECORD, flags="--tau 3", ratio=0.4), replace(RECORD, track="a", ratio=9)):
        add(record, tmp_path)
    add(replace(RECORD, ratio=0.3, commit="f" * 40), tmp_path)
    found = [(record.track, record.flags, record.ratio) for record in read_records(tmp_path)]
    assert found == [("a", "--tau 2", 9), ("digits_ipc1", "--tau 2", 0.3), ("digits_ipc1", "--tau 3", 0.4)]
    assert (tmp_path / "speedrun.md").read_text() == table(read_records(tmp_path)) + "\n"


def test_an_empty_table_says_so() -> None:
    assert table([]) == "No claim has been verified yet."


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    add(RECORD, tmp_path)
    rows = json.loads((tmp_path / "speedrun.json").read_text())
    del rows[0]["commit"]
    write_json(tmp_path / "speedrun.json", rows)
    with pytest.raises(UserError, match=r"speedrun\.json: damaged or of another version \(lacks commit\)"):
        read_records(tmp_path)
