"""Trajectory matching from the command line: experts, runs, resumption, and every mistake's message."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import difference, refused, run_signalled, start, state_of

from framework import load_distilled
from framework.config.common import parse_as
from framework.config.matching import BufferConfig, FtdConfig
from framework.data.load import DataSpec, load
from framework.files import EXPERTS, LAST, SET
from framework.report.folder import RunFolder
from main import main

DATA = ["--dataset", "digits", "--depth", "1", "--width", "4", "--device", "cpu"]
BUFFER = [*DATA, "--num_experts", "3", "--train_epochs", "4", "--batch_train", "200", "--lr_teacher", "0.05",
          "--save_interval", "2"]  # fmt: skip
FTD = [*DATA, "--ipc", "1", "--syn_steps", "3", "--expert_epochs", "2", "--max_start_epoch", "3", "--Iteration", "6",
       "--eval_it", "2", "--num_eval", "2", "--epoch_eval_train", "6", "--lr_img", "1", "--lr_lr", "1e-4",
       "--lr_teacher", "0.05", "--ema_decay", "0.5", "--print_freq", "1"]  # fmt: skip
FOLDER = Path("digits_NO_ZCA", "ConvNetD1W4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experts; tests that write into their folder copy it first."""
    folder = tmp_path_factory.mktemp("experts")
    assert main(["buffer", *BUFFER, "--buffer_path", str(folder)]) == 0
    return folder


@pytest.fixture
def experts(trained: Path, tmp_path: Path) -> Path:
    """A copy of the experts."""
    shutil.copytree(trained, tmp_path / "experts")
    return tmp_path / "experts"


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    arguments = ["ftd", *FTD, "--buffer_path", str(trained), "--save_dir", str(folder), "--baselines", "random", "full"]
    assert main(arguments) == 0
    return folder


def ftd(experts: Path, folder: Path, *more: str) -> list[str]:
    return ["ftd", *FTD, "--buffer_path", str(experts), "--save_dir", str(folder), *more]


# ---- command lines --------------------------------------------------------------------------------------


def test_the_readme_of_ftd_trains_experts() -> None:
    line = (
        "--dataset=CIFAR100 --model=ConvNet --train_epochs=50 --num_experts=100 --zca --buffer_path=P --data_path=D "
        "--rho 0.01"
    )
    config, warnings = parse_as(line.split(), BufferConfig)
    expected = BufferConfig(dataset="cifar100", zca=True, buffer_path="P", root="D")
    assert config == expected, "all else is the default"
    assert (config.rho, config.alpha, config.whitening, warnings) == (0.01, 0.3, "zca_pixels", [])
    assert config.folder == Path("P", "CIFAR100", "ConvNet")


def test_the_readme_of_ftd_distils() -> None:
    line = (
        "--dataset=CIFAR100 --ipc=10 --syn_steps=20 --expert_epochs=2 --max_start_epoch=40 --zca --lr_img=1000 "
        "--lr_lr=1e-05 --lr_teacher=0.01 --ema_decay=0.9995 --Iteration=5000 --buffer_path=P --data_path=D"
    )
    config, warnings = parse_as(line.split(), FtdConfig)
    assert config == FtdConfig(
        dataset="cifar100", num_per_class=10, expert_epochs=2, max_start_epoch=40, zca=True, ema_decay=0.9995,
        buffer_path="P", root="D",
    )  # fmt: skip
    assert (config.syn_steps, config.lr_img, config.lr_lr, config.lr_teacher, config.iterations) == (
        20, 1000, 1e-5, 0.01, 5000,
    )  # fmt: skip
    assert warnings == []


def test_the_originals_other_commands() -> None:
    mtt = (
        "--dataset=CIFAR100 --ipc=1 --syn_steps=20 --expert_epochs=3 --max_start_epoch=20 --zca --lr_img=1000 "
        "--lr_lr=1e-05 --lr_teacher=0.01 --buffer_path=P --data_path=D"
    )
    assert parse_as(mtt.split(), FtdConfig)[0].max_start_epoch == 20
    script = "--dataset=CIFAR10 --model=ConvNet --train_epochs=50 --num_experts=100 --zca --rho_max=0.01 --rho_min=0.01"
    assert parse_as(script.split(), BufferConfig)[0].rho == 0.01
    fruit = "--dataset=ImageNet --subset=imagefruit --model=ConvNetD5 --res=128 --ipc 1"
    config = parse_as(fruit.split(), FtdConfig)[0]
    assert (config.dataset, config.im_size, config.depth) == ("imagefruit", 128, 5)
    assert config.buffer_folder == Path("buffers", "ImageNet", "imagefruit", "128", "ConvNetD5")


@pytest.mark.parametrize(
    ("model", "network"),
    [
        ("ConvNet", {}), ("ConvNetD3", {"depth": 3}), ("ConvNetD4", {"depth": 4}), ("ConvNetW64", {"width": 64}),
        ("ConvNetBN", {"norm": "batch"}), ("ConvNetNN", {"norm": "none"}), ("ConvNetMP", {"pool": "max"}),
        ("ConvNetAS", {"act": "sigmoid"}), ("ConvNetAL", {"act": "leakyrelu"}),
        ("ConvNetKIP", {"width": 1024, "norm": "none"}), ("VGG11BN", {"arch": "vgg11", "norm": "batch"}),
        ("ResNet18", {"arch": "resnet18"}), ("AlexNet", {"arch": "alexnet"}),
    ],
)  # fmt: skip
def test_networks_by_their_names_in_mtts_family(model: str, network: dict[str, Any]) -> None:
    config = parse_as(["--model", model], FtdConfig)[0]
    assert config == FtdConfig(**network)
    if model not in ("ConvNetD3", "ConvNetKIP"):
        assert config.model_name == model


def test_flags_that_do_nothing_are_accepted_and_say_so() -> None:
    line = "--batch_real 128 --lr_init 0.01 --load_all --force_save --canvas_size 2 --eval_mode M --dsa True"
    config, warnings = parse_as(line.split(), FtdConfig)
    names = ["--batch_real", "--lr_init", "--load_all", "--force_save", "--canvas_size", "--eval_mode"]
    assert sorted(warning.partition(":")[0].split()[0] for warning in warnings) == sorted(names)
    assert config.strategy == "color_crop_cutout_scale_rotate", "a flipped digit is another"
    assert parse_as(["--dsa", "False"], FtdConfig)[0].strategy == "none"
    assert not parse_as(["--adaptive", "False"], BufferConfig)[0].adaptive


@pytest.mark.parametrize(
    ("verb", "line", "message"),
    [
        ("buffer", "--rho_max 0.02 --rho_min 0.01", "--rho_max 0.02 and --rho_min 0.01 differ"),
        ("buffer", "--model ConvNetX", "'ConvNetX' is not supported; give ConvNet,"),
        ("buffer", "--model ConvNetD4 --depth 3", "--model ConvNetD4 and --depth both describe the network"),
        ("buffer", "--subset imagefruit", "--subset imagefruit is a part of ImageNet"),
        ("buffer", "--dsa maybe", "'maybe' is neither True nor False"),
        ("buffer", "--train_epochs 0", "--train_epochs 0: give a value of at least 1"),
        ("ftd", "--Iteration 250 --eval_it 100", "--Iteration 250 is no multiple of --eval_it 100"),
        ("ftd", "--min_start_epoch 25", "--min_start_epoch 25 is not below --max_start_epoch 25"),
        ("ftd", "--current_max_start_epoch 9", "--current_max_start_epoch and --expansion_end belong together"),
        ("ftd", "--current_max_start_epoch 30 --expansion_end 5", "--current_max_start_epoch 30 is above"),
        ("ftd", "--texture", "--texture is not supported"),
        ("ftd", "--rho 0.01", "unrecognized arguments: --rho 0.01"),
        ("ftd", "--dsa_strategy flip_bend", "unknown augmentation 'bend'"),
        ("ftd", "--lr_img 0", "--lr_img 0.0: give a value above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    verb: str, line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = refused([verb, *line.split()], capsys)
    assert message in told
    assert len(told.splitlines()) == 1


# ---- experts --------------------------------------------------------------------------------------------


def test_experts_are_files_that_the_field_reads(trained: Path) -> None:
    folder = trained / FOLDER
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        EXPERTS, "replay_buffer_0.pt", "replay_buffer_1.pt",
    ]  # fmt: skip
    files = [torch.load(folder / f"replay_buffer_{n}.pt", weights_only=True) for n in range(2)]
    assert [len(file) for file in files] == [2, 1]
    expert = files[0][0]
    assert len(expert) == 5
    assert [tuple(tensor.shape) for tensor in expert[0]] == [(4, 1, 3, 3), (4,), (4,), (4,), (10, 64), (10,)]
    assert not torch.equal(expert[0][0], expert[1][0])
    about = json.loads((folder / EXPERTS).read_text())
    assert (about["count"], about["source"]["dataset"], about["training"]["rho"]) == (3, "digits", 0.01)
    losses = about["curves"][0]["losses"]
    assert losses[-1] < losses[0]


def test_finished_experts_are_kept_and_the_others_trained_to_the_last_bit(trained: Path, tmp_path: Path) -> None:
    few = ["buffer", *BUFFER[:-2], "--save_interval", "2", "--buffer_path", str(tmp_path)]
    few[few.index("--num_experts") + 1] = "1"
    assert main(few) == 0
    assert main(["buffer", *BUFFER, "--buffer_path", str(tmp_path)]) == 0
    there = [torch.load(path, weights_only=True) for path in sorted((tmp_path / FOLDER).glob("replay_buffer_*.pt"))]
    expected = [torch.load(path, weights_only=True) for path in sorted((trained / FOLDER).glob("replay_buffer_*.pt"))]
    assert difference([e for file in there for e in file], [e for file in expected for e in file]) is None


def test_experts_are_shared_out_among_processes(trained: Path, tmp_path: Path) -> None:
    process = start("buffer", *BUFFER, "--buffer_path", tmp_path, "--mp_distributed", "--nproc", "2")
    assert process.wait(600) == 0, process.stderr and process.stderr.read()
    for number in range(2):
        name = FOLDER / f"replay_buffer_{number}.pt"
        one, two = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, trained))
        assert difference(one, two) is None


def test_experts_trained_otherwise_are_not_mixed(experts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in (experts / FOLDER).iterdir()}
    told = refused(["buffer", *BUFFER, "--buffer_path", str(experts), "--rho", "0.5"], capsys)
    assert "rho 0.01, not 0.5 (--rho)" in told
    assert {path.name: path.read_bytes() for path in (experts / FOLDER).iterdir()} == before


# ---- runs -----------------------------------------------------------------------------------------------


def test_a_run_leaves_what_every_run_leaves(whole: Path) -> None:
    run = RunFolder(whole)
    assert run.summary is not None
    assert run.summary.policy == "ftd"
    assert load_distilled(whole).provenance["experts"]["rho"] == 0.01
    assert run.summary.outer_steps == 6
    assert set(run.summary.results) == {"distilled", "random", "full"}
    assert {entry.form for entry in run.history} == {"raw", "EMA"}
    assert len(run.history) == 6, "both forms at each of three evaluations"
    best = max(run.history, key=lambda entry: entry.accuracy)
    assert f"({best.form})" in run.summary.results["distilled"].name
    assert len(run.matches) == 6
    assert {point.start_epoch for point in run.matches} <= {0, 1, 2}
    for file in run.summary.files.values():
        assert Path(file).exists()
    assert any(path.endswith("matching.png") for path in run.summary.files.values())


def test_the_set_knows_its_step_size(whole: Path) -> None:
    distilled = load_distilled(whole)
    assert distilled.images.shape == (10, 1, 8, 8)
    assert distilled.learnt_lr is not None
    assert distilled.provenance["form"] in ("raw", "EMA")
    optimizer = distilled.optimizer(distilled.network().parameters())
    assert optimizer.param_groups[0]["lr"] == distilled.learnt_lr


def test_it_is_evaluated_exported_and_reported_like_any_other(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    run = tmp_path / "run"
    assert main(["evaluate", str(run), "--num_train_eval", "1", "--baselines", "random"]) == 0
    judged = json.loads((run / "evaluation" / "mtt.json").read_text())
    learnt = load_distilled(run).learnt_lr
    assert f"SGD {learnt:g}, " in judged["recipe_text"]
    assert main(["export", str(run), "--to", "pt"]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "How close students come to the experts" in page
    assert "<span>python main.py ftd</span> <span>--dataset digits</span>" in page


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(trained: Path, whole: Path, tmp_path: Path) -> None:
    flags = [*ftd(trained, tmp_path / "parts", "--baselines", "random", "full", "--ckpt_minutes", "1e-9")]
    assert run_signalled("SIGKILL", "after", 3, *flags).returncode != 0
    assert main([*flags, "--resume"]) == 0
    assert difference(state_of(tmp_path / "parts", "records"), state_of(whole, "records")) is None
    one, two = (load_distilled(folder) for folder in (tmp_path / "parts", whole))
    assert torch.equal(one.images, two.images)


def test_two_processes_match_two_experts_at_a_time(trained: Path, tmp_path: Path) -> None:
    two = ["--mp_distributed", "--nproc", "2", "--Iteration", "2", "--num_eval", "1"]
    blocks = ["--ipc", "2", "--boost_block", "1"]  # all ranks' sets grow alike
    process = start(*ftd(trained, tmp_path / "two", *two, *blocks))
    assert process.wait(600) == 0, process.stderr and process.stderr.read()
    summary = RunFolder(tmp_path / "two").summary
    assert summary is not None
    assert summary.processes == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--hessian", "none"], ["--soft_labels", "--pix_init", "samples_predicted_correctly", "--threshold", "5"],
        ["--soft_labels"], ["--pix_init", "noise"], ["--batch_syn", "4", "--no_aug"], ["--dsa", "False"],
        ["--min_start_epoch", "1", "--current_max_start_epoch", "2", "--expansion_end", "4"],
        ["--max_files", "1", "--max_experts", "1"], ["--select", "test"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_option_runs(options: list[str], experts: Path, tmp_path: Path) -> None:
    if "test" in options:  # other training images, so other experts
        shutil.rmtree(experts)
        assert main(["buffer", *BUFFER, "--buffer_path", str(experts), "--select", "test"]) == 0
    short = ["--Iteration", "2", "--num_eval", "1"]
    assert main(ftd(experts, tmp_path / "run", *short, *options)) == 0
    distilled = load_distilled(tmp_path / "run")
    assert (distilled.hard_labels is None) == ("--soft_labels" in options)
    if "--soft_labels" in options:
        torch.testing.assert_close(distilled.labels.sum(1), torch.ones(10))


def test_images_start_as_real_ones_of_their_class(trained: Path, tmp_path: Path) -> None:
    still = ["--Iteration", "1", "--num_eval", "1", "--lr_img", "1e-30"]
    assert main(ftd(trained, tmp_path / "run", *still)) == 0
    distilled = load_distilled(tmp_path / "run")
    real = load(DataSpec("digits", Path()), torch.device("cpu"))
    assert isinstance(real.train.images, torch.Tensor)
    for image, label in zip(distilled.images, range(10), strict=True):
        found = (real.train.images == image).flatten(1).all(1).nonzero().flatten()
        assert len(found) > 0
        assert real.train.labels[found[0]] == label


def test_iterations_above_the_threshold_change_nothing(trained: Path, tmp_path: Path) -> None:
    run = ["--Iteration", "2", "--num_eval", "1", "--threshold", "1e-9"]
    assert main(ftd(trained, tmp_path / "run", *run)) == 0
    folder = RunFolder(tmp_path / "run")
    assert all(record["passed_over"] for record in folder.records["step"])
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)["set"]
    assert torch.equal(state["images"], state["average"])
    assert float(state["step_size"]) == 0.05


def test_a_step_size_that_runs_away_stops_the_run_with_advice(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(ftd(trained, tmp_path / "run", "--lr_lr", "1e9", "--max_bad_steps", "2"), capsys)
    assert "2 outer steps in a row could not be applied" in told
    assert "lower --lr_img, --lr_lr or --lr_teacher" in told


# ---- mistakes about experts -----------------------------------------------------------------------------


def test_experts_that_are_not_there_are_named_before_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(ftd(tmp_path / "nowhere", tmp_path / "run"), capsys)
    assert str(tmp_path / "nowhere" / FOLDER) in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_experts_that_were_not_trained_for_long_enough(
    dry: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(ftd(trained, tmp_path / "run", "--max_start_epoch", "4", *dry), capsys)
    assert "--max_start_epoch 4 - 1 + --expert_epochs 2 reaches epoch 5" in told
    assert "were trained for 4" in told
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_experts(experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = experts / FOLDER / "replay_buffer_1.pt"
    file.write_bytes(file.read_bytes()[:-100])
    told = refused(ftd(experts, tmp_path / "run"), capsys)
    assert str(file) in told
    assert len(told.splitlines()) == 1


def test_experts_of_other_data_are_refused_and_say_why(
    experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(ftd(experts, tmp_path / "run", "--limit_train", "300"), capsys)
    assert "other values of the preprocessing" in told
    assert not (tmp_path / "run").exists()


def test_foreign_experts_are_read_and_what_is_assumed_is_said(
    experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (experts / FOLDER / EXPERTS).unlink()
    assert main(ftd(experts, tmp_path / "run", "--Iteration", "2", "--num_eval", "1")) == 0
    assert "to have seen all training images, those of validation too" in capsys.readouterr().err
    distilled = load_distilled(tmp_path / "run")
    assert "experts" not in distilled.provenance
    assert distilled.method == "ftd"


def test_with_experts_of_plain_sgd_the_method_is_mtt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts, run = tmp_path / "experts", tmp_path / "run"
    assert main(["buffer", *BUFFER, "--num_experts", "1", "--rho", "0", "--buffer_path", str(experts)]) == 0
    flags = ftd(experts, run, "--Iteration", "2", "--num_eval", "1")
    assert main([*flags, "--dry_run"]) == 0
    assert "method: mtt, 3 steps for 2 epochs" in capsys.readouterr().out
    assert main(flags) == 0
    assert "mtt on digits" in capsys.readouterr().err
    folder = RunFolder(run)
    assert folder.summary is not None
    assert (folder.summary.policy, load_distilled(run).method) == ("mtt", "mtt")
    assert folder.facts["method"] == "mtt, 3 steps for 2 epochs, from below 3"

    def methods() -> list[str]:
        assert main(["leaderboard", str(run), "--out", str(tmp_path / "board")]) == 0
        return [row["method"] for row in json.loads((tmp_path / "board" / "leaderboard.json").read_text())]

    assert methods() == ["mtt"], "by the run's own table"
    assert main(["evaluate", str(run), "--num_train_eval", "1"]) == 0
    assert methods() == ["mtt"], "by the evaluation of its set"


def test_previews_tell_memory_disk_and_time_and_write_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["buffer", *BUFFER, "--buffer_path", str(tmp_path / "b"), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "method: 3 experts of 4 epochs" in text
    parameters = 4 * 9 + 2 * 4 + 4 * 64 // 4 * 4 // 4 * 10 + 10
    assert f"disk: {4 * parameters * 5 / 1000:.3g} kB an expert" in text
    assert "s for an expert's epoch" in text
    assert main(ftd(trained, tmp_path / "r", "--dry_run")) == 0
    text = capsys.readouterr().out
    assert "experts: 3 of 4 epochs in " in text
    assert "s for an iteration" in text
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "r").exists()


def test_a_run_of_another_verb_is_not_resumed(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["--dataset", "digits", "--save_dir", str(whole), "--resume"], capsys)
    assert "the verb was ftd and is none" in told
    assert (whole / SET).exists()
