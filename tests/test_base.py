"""Whole runs through the command line: what they leave, how they resume, what they say to a mistake."""

import json
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import HANGS, TINY, difference, run_signalled, start, state_of
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tries import tried

from framework.data.preprocess import Preprocess
from framework.run import checkpoint
from main import main


def records_of(folder: Path) -> list[tuple[str, int, float | None]]:
    """What the metrics hold, clocks left out."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(record["kind"], record["step"], record.get("accuracy")) for record in records]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "deep" / "folder"
    assert main([*TINY, "--train_y", "--baselines", "random", "full", "--save_dir", str(folder)]) == 0
    return folder


# ---- what a run leaves -----------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished: Path) -> None:
    """Ancestors' fault 9: output folders were never made."""
    names = {path.name for path in finished.iterdir()}
    assert names == {
        ".lock", "accuracy.png", "best.pt", "config.json", "distilled.png", "distilled.safetensors", "last.pt",
        "metrics.jsonl", "previous.pt", "summary.json", "tensorboard", "truncation.png",
    }  # fmt: skip


def test_summary_holds_three_rows_with_deviations(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["results"]) == ["distilled", "random", "full"]
    for row in summary["results"].values():
        assert row["networks"] == 2
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["top1_std"] >= 0
    assert summary["outer_steps"] == 3 * (1295 // 300)


def test_metrics_hold_every_step_epoch_and_evaluation(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert {"loss", "accuracy", "meta_gradient_norm", "clip_factor", "window_start", "window_length",
            "seconds_per_step", "peak_memory_mib"} <= steps[0].keys()  # fmt: skip
    assert sum(record["kind"] == "epoch" for record in records) == 3
    assert sum(record["kind"] == "evaluation" for record in records) == 3
    for epoch in (1, 2, 3):  # RaT-BPTT: one window per epoch
        assert len({r["window_start"] for r in steps if r["epoch"] == epoch}) == 1


def test_the_exported_set_is_the_best_snapshot_not_the_last(finished: Path) -> None:
    """Ancestors' fault 15: the last images were written over the best ones."""
    best, last = checkpoint.load(finished / "best.pt"), checkpoint.load(finished / "last.pt")
    tensors = load_file(finished / "distilled.safetensors")
    assert torch.equal(tensors["images"], best["images"])
    assert torch.equal(tensors["labels"], best["labels"])
    assert (
        difference(
            last["progress"]["best"], {k: v for k, v in best.items() if k != "config"} | {"form": "", "step_size": None}
        )
        is None
    )
    history = last["progress"]["history"]
    assert best["accuracy"] == max(entry["accuracy"] for entry in history)
    with safe_open(finished / "distilled.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["class_names"]) == list("0123456789")
    assert json.loads(about["provenance"])["epoch"] == best["epoch"]
    pictures = Preprocess.from_tensors(tensors).inverse(tensors["images"])
    assert pictures.shape == (10, 1, 8, 8)


def test_two_runs_of_one_seed_are_bit_identical_and_two_seeds_are_not(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # a run must not listen to global random state (ancestors' faults 16 and 17)
    again, other = tmp_path / "again", tmp_path / "other"
    assert main([*TINY, "--train_y", "--save_dir", str(again)]) == 0
    assert main([*TINY, "--train_y", "--save_dir", str(other), "--seed", "1"]) == 0
    assert difference(state_of(finished), state_of(again)) is None
    assert difference(state_of(finished)["set"], state_of(other)["set"]) is not None


def test_a_run_never_touches_global_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  (the global state is the point)
    assert main([*TINY, "--epochs", "1", "--save_dir", str(tmp_path / "run")]) == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_fewer_steps_than_print_freq_is_no_division_by_zero(tmp_path: Path) -> None:
    """Ancestors' fault 9; also a batch larger than the data, which then is used whole."""
    folder = tmp_path / "run"
    flags = [*TINY, "--print_freq", "1000", "--batch_size", "100000", "--epochs", "1", "--num_train_eval", "1"]
    assert main([*flags, "--save_dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["outer_steps"] == 1
    assert summary["results"]["distilled"]["top1_std"] is None


@pytest.mark.parametrize(
    "flags",
    [
        "--truncation bptt",
        "--truncation t-bptt",
        "--truncation fixed --inner_optim SGD",
        "--truncation forward",
        "--truncation rat-bptt --complete_random",
        "-d 2",
        "-d 1 --window_rule public --window_weight softmax --early_patience 1 --middle_patience 0.05E --minwindow 1",
        "--truncation at-bptt-positions --probe_every 2",
        "--truncation at-bptt-windows -d 2",
        "--num_per_class 3 --batch_per_class 2 --task_sampler_nc 4",
        "--syn_strategy flip_rotate_scale_crop_color_cutout_mixup --comp_aug --real_strategy mixup",
        "--syn_strategy none --real_strategy none --outer_optim SGD",
        "--zca",
        "--zca_pixels",
        "--im_size 16 --depth 2 --limit_train 100",
        "--norm batch --act gelu --pool max",
        "--arch vit --pool none",
        "--engine higher --meta_batch 2",
        "--engine lowrank --lowrank_rank 2 --lowrank_refresh 2 --lowrank_metric adam",
        "--engine lowrank --lowrank_rank 2 --lowrank_random --train_y",
        "--ddtype at_bptt_pp --cr_mode gradient --cr_rank 2 --cr_oversample 0 --cr_power_iter 0 --meta_batch 2",
        "--cr_lrha --cr_rank 2 --cr_oversample 0 --cr_power_iter 0 --normalize_syn --train_y --freeze_data",
        "--precision bf16 --window 3 --totwindow 25 --chunk 4 --channels_last",
        "--start_epoch 2",
        "--select test",
    ],
)
def test_every_method_runs(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags += " --epochs 1" if "start_epoch" not in flags else ""
    assert main([*TINY, *flags.split(), "--save_dir", str(tmp_path / "run")]) == 0


def test_more_networks_per_step_are_less_noisy(tmp_path: Path) -> None:
    """Four networks' meta-gradients averaged: the same streams, so the first network's is among them."""
    records = {}
    for networks in (1, 4):
        folder = tmp_path / str(networks)
        assert main([*TINY, "--epochs", "1", "--meta_batch", str(networks), "--save_dir", str(folder)]) == 0
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records[networks] = next(record for record in map(json.loads, lines) if record["kind"] == "step")
    assert records[4]["meta_gradient_norm"] < records[1]["meta_gradient_norm"]
    assert records[4]["window_start"] == records[1]["window_start"]


def test_select_test_is_marked_wherever_the_figure_appears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ancestors' fault 19: the best of all epochs on the test set was reported as the result."""
    assert main([*TINY, "--epochs", "1", "--select", "test", "--save_dir", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "optimistic" in captured.err
    assert "ON THE TEST SET" in captured.out


def test_complete_random_changes_the_window_within_an_epoch(tmp_path: Path) -> None:
    flags = ["--batch_size", "100", "--complete_random", "--epochs", "1"]
    assert main([*TINY, *flags, "--save_dir", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len({record["window_start"] for record in records if record["kind"] == "step"}) > 1


def test_ckptname_is_where_the_set_starts(finished: Path, tmp_path: Path) -> None:
    """Ancestors' fault 13: the images were loaded and dropped."""
    flags = ["--train_y", "--epochs", "1", "--lr", "1e-12", "--ckptname", str(finished / "distilled.safetensors")]
    assert main([*TINY, *flags, "--save_dir", str(tmp_path / "run")]) == 0
    given = load_file(finished / "distilled.safetensors")
    ended = checkpoint.load(tmp_path / "run" / "last.pt")["set"]
    assert torch.allclose(given["images"], ended["images"], atol=1e-9)
    assert torch.allclose(given["labels"], ended["labels"], atol=1e-9)


# ---- evaluation alone ----------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_given_set_is_evaluated_as_a_run_would_and_not_changed(finished: Path, tmp_path: Path) -> None:
    flags = ["--train_y", "--eval_only", "--ckptname", str(finished / "distilled.safetensors"), "--num_train_eval", "1"]
    assert main([*TINY, *flags, "--save_dir", str(tmp_path / "run")]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        ".lock", "accuracy.png", "best.pt", "config.json", "distilled.png", "distilled.safetensors", "metrics.jsonl",
        "summary.json", "tensorboard",
    }  # fmt: skip
    given, found = (load_file(folder / "distilled.safetensors") for folder in (finished, tmp_path / "run"))
    assert difference(given, found) is None
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["outer_steps"], summary["epochs"], list(summary["results"])) == (0, 0, ["distilled"])
    assert [kind for kind, *_ in records_of(tmp_path / "run")] == ["evaluation"]


def test_a_run_is_evaluated_as_it_stands_and_goes_on_as_if_it_had_not_been(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    state = checkpoint.load(folder / "last.pt")
    last = state["progress"]["history"][-1]
    state["progress"] |= {"history": [], "best": None}  # as of a run that stopped before its first evaluation
    checkpoint.save(folder / "last.pt", state)
    (folder / "summary.json").unlink()
    before = files_of(folder)
    flags = [*TINY, "--train_y", "--save_dir", str(folder), "--resume"]
    assert main([*flags, "--eval_only", "--epochs", "99"]) == 0
    after = files_of(folder)
    assert {name for name, content in after.items() if before.get(name) != content} >= {"summary.json", "metrics.jsonl"}
    assert [after[name] for name in ("last.pt", "config.json")] == [before[name] for name in ("last.pt", "config.json")]
    added = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (added["kind"], added["epoch"], added["scores"]) == ("evaluation", 3, last["scores"])
    assert json.loads(after["summary.json"])["epochs"] == 3


def test_a_finished_run_is_not_evaluated_twice(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*TINY, "--train_y", "--baselines", "random", "full", "--save_dir", str(finished), "--resume"]
    before = {name: content for name, content in files_of(finished).items() if name != "accuracy.png"}
    assert main([*flags, "--eval_only"]) == 0
    assert "random real images" in capsys.readouterr().out
    assert before == {name: content for name, content in files_of(finished).items() if name != "accuracy.png"}


# ---- resume ----------------------------------------------------------------------------------------


KILLED = [(1, "after"), (4, "before"), (10, "after")]
STOPPED = [(2, "after"), (8, "after")]  # noticed after the next step, and during an epoch's evaluation


@pytest.mark.parametrize(
    ("number", "moments"),
    [(signal.SIGKILL, KILLED), (signal.SIGTERM, STOPPED), (signal.SIGINT, STOPPED[:1])],
    ids=["SIGKILL", "SIGTERM", "SIGINT"],
)
def test_a_run_stopped_again_and_again_ends_bit_identical(
    number: signal.Signals, moments: list[tuple[int, str]], finished: Path, tmp_path: Path
) -> None:
    """Kill before or after a step is saved, resume: images, labels, optimiser, clip, policy, best."""
    flags = [*TINY, "--train_y", "--baselines", "random", "full", "--save_dir", tmp_path / "run"]
    flags += ["--ckpt_minutes", "1e-9"]  # after every step
    for step, when in moments:
        ended = run_signalled(number.name, when, step, *flags, "--resume")
        tried()
        if number == signal.SIGKILL:
            assert ended.returncode == -9, ended.stderr
            assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["step"] == step - (when == "before")
        else:
            assert ended.returncode == 128 + number, ended.stderr
            assert f"stopped by {number.name}" in ended.stdout
            assert "Traceback" not in ended.stderr
    assert main([*map(str, flags), "--resume"]) == 0
    assert difference(state_of(finished), state_of(tmp_path / "run")) is None
    results = [json.loads((f / "summary.json").read_text())["results"] for f in (finished, tmp_path / "run")]
    assert results[0] == results[1]
    assert records_of(finished) == records_of(tmp_path / "run"), "no record is lost or repeated"


def test_load_ckpt_and_more_epochs_continue_a_finished_run(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, "--train_y", "--epochs", "2", "--save_dir", str(folder)]) == 0
    assert main([*TINY, "--train_y", "--save_dir", str(folder), "--load_ckpt"]) == 0
    assert difference(state_of(finished)["set"], state_of(folder)["set"]) is None


def test_resuming_a_finished_run_only_shows_its_table(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {
        path.name: path.read_bytes()
        for path in finished.iterdir()
        if path.suffix == ".pt" or path.name == "summary.json"
    }
    flags = [*TINY, "--train_y", "--baselines", "random", "full", "--save_dir", str(finished), "--resume"]
    assert main(flags) == 0
    assert "random real images" in capsys.readouterr().out
    assert before == {
        path.name: path.read_bytes()
        for path in finished.iterdir()
        if path.suffix == ".pt" or path.name == "summary.json"
    }


# ---- mistakes --------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *flags: str | Path) -> str:
    """The one line that a mistake gets; exit code 2."""
    try:
        code = main([*TINY, *map(str, flags)])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else -1
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--window 9", ["--window 9", "--totwindow 8"]),
        ("--num_per_class 0", ["--num_per_class", "at least 1"]),
        ("--syn_strategy flip_warp", ["--syn_strategy", "warp"]),
        ("--task_sampler_nc 11", ["--task_sampler_nc 11", "10 classes"]),  # ancestors' fault 11
        ("--depth 4", ["--depth", "16 pixels"]),
        ("--device cuda:99", ["--device cuda:99"]),
        ("--device toaster", ["--device toaster"]),
        ("--dataset imagefolder --root /nowhere", ["--root", "/nowhere"]),
        ("--ckptname /nowhere.safetensors", ["/nowhere.safetensors"]),
        ("--val_fraction 0.0001 --select val --save_dir /dev/null/x", ["--save_dir"]),
        ("--lr nan", ["--lr nan", "finite"]),
        ("--eval_only", ["--eval_only", "nothing to evaluate", "--ckptname"]),
        ("--eval_only --resume", ["--eval_only", "no checkpoint to evaluate", "--save_dir"]),
        ("--eval_only --resume --dry_run", ["--eval_only", "no checkpoint to evaluate", "--save_dir"]),
        ("--freeze_data", ["--freeze_data", "--train_y"]),
        ("--zca --zca_pixels", ["--zca and --zca_pixels are two preprocessings: give one of them"]),
        ("--no_such_flag", ["--no_such_flag"]),
        ("--epoch x", ["--epoch", "x"]),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_and_writes_nothing(
    flags: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "--save_dir", tmp_path / "run", *flags.split())
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "last.pt").read_bytes()
    assert "--resume" in refused(capsys, "--save_dir", finished)
    assert (finished / "last.pt").read_bytes() == before


def test_a_checkpoint_of_another_configuration(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--train_y", "--save_dir", finished, "--resume", "--lr", "0.5")
    assert "--lr was 0.01 and is 0.5" in line


@pytest.mark.parametrize("damage", ["half", "text", "incomplete"])
def test_a_damaged_checkpoint(damage: str, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, path = (finished / "last.pt").read_bytes(), tmp_path / "last.pt"
    if damage == "incomplete":
        state = checkpoint.load(finished / "last.pt")
        del state["set"]["optimizer"]
        state["config"] = state["config"].replace(str(finished), str(tmp_path))
        torch.save(state, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"not a checkpoint")
    line = refused(capsys, "--train_y", "--save_dir", tmp_path, "--resume")
    assert str(path) in line


def test_nan_in_the_starting_images(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(finished / "distilled.safetensors")
    tensors["images"][3, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    line = refused(capsys, "--ckptname", tmp_path / "nan.safetensors", "--save_dir", tmp_path / "run")
    assert "NaN" in line
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_and_keeps_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "--inner_optim", "SGD", "--inner_lr", "1e30", "--save_dir", tmp_path / "run")
    assert "--inner_lr" in line


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "cat" / "1.png")
    assert "class" in refused(capsys, "--dataset", "imagefolder", "--root", tmp_path, "--save_dir", tmp_path / "run")


def test_a_full_disk_while_running(tmp_path: Path) -> None:
    """Files may not grow beyond 20 kB, as on a full disk: one line, exit 2, and no half-written file."""
    flags = [*TINY, "--width", "64", "--save_dir", tmp_path / "run"]
    process = start(*flags, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 2
    assert err.count("error:") == 1
    assert "cannot write" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "run").glob(".*.tmp"))
