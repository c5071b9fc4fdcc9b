"""The benchmark scripts run the published commands, and pass extra flags through."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import AT_BPTT, AT_BPTT_PP, RAT_BPTT
from PIL import Image

from framework.config.bptt import parse
from framework.config.common import parse_as
from framework.config.matching import BufferConfig, FtdConfig

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PUBLISHED = {
    "cifar10_ipc10.sh": AT_BPTT["cifar10-ipc10"],
    "cifar100_ipc10.sh": AT_BPTT["cifar100-ipc10"],
    "tiny_imagenet_ipc10.sh": AT_BPTT["tiny-imagenet-ipc10"],
    "rat_bptt/cifar10_ipc10.sh": RAT_BPTT["cifar10-ipc10"],
    "rat_bptt/cifar100_ipc10.sh": RAT_BPTT["cifar100-ipc10"],
    "rat_bptt/tiny_imagenet_ipc10.sh": RAT_BPTT["tiny-imagenet-ipc10"],
    "rat_bptt/cifar100_ipc1_fixed.sh": RAT_BPTT["cifar100-ipc1"],
    "rat_bptt/tiny_imagenet_ipc10_fixed.sh": RAT_BPTT["tiny-imagenet-fixed"],
    "rat_bptt/imagenet_ipc1_fixed.sh": RAT_BPTT["imagenet-ipc1"],
    "at_bptt_pp/cifar10_ipc10.sh": AT_BPTT_PP["cifar10-ipc10"],
    "at_bptt_pp/cifar100_ipc10.sh": AT_BPTT_PP["cifar100-ipc10"],
    "at_bptt_pp/tiny_imagenet_ipc10.sh": AT_BPTT_PP["tiny-imagenet-ipc10"],
    "at_bptt_pp/imagenet_ipc1.sh": AT_BPTT_PP["imagenet-ipc1"],
}
EVERY = sorted(str(path.relative_to(SCRIPTS)) for path in SCRIPTS.rglob("*_ipc*.sh"))
BENCHMARKS = [script for script in EVERY if not script.startswith("ftd/")]
MATCHING = [script for script in EVERY if script.startswith("ftd/")]


def flags_of(script: str, *extra: str) -> list[str]:
    """What the script would hand to main.py."""
    environment = {**os.environ, "PYTHON": "echo"}
    command = ["bash", str(SCRIPTS / script), *extra]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert output[0] == "main.py"
    return output[1:]


@pytest.mark.parametrize("script", PUBLISHED)
def test_a_published_command_is_run_as_it_was_published(script: str) -> None:
    assert parse(flags_of(script)) == parse(PUBLISHED[script].arguments)


@pytest.mark.parametrize("script", BENCHMARKS)
def test_every_benchmark_parses_without_a_warning_and_takes_extra_flags(script: str) -> None:
    config, warnings = parse(flags_of(script, "--epochs", "2", "--batch_size", "7"))
    assert warnings == []
    assert (config.epochs, config.batch_size) == (2, 7)
    name = Path(script).stem.split("_ipc")[0].replace("tiny_imagenet", "tiny-imagenet-200")
    assert config.dataset == name
    assert config.num_per_class == int(Path(script).stem.split("_ipc")[1].split("_")[0])
    folder = "fixed" if "fixed" in script else script.rpartition("/")[0]
    assert config.policy == (folder.replace("_", "-") or "at-bptt")


@pytest.mark.parametrize("dataset", ["digits", "fashion-mnist", "cifar10"])
@pytest.mark.parametrize("study", ["ablation", "ablation_pp", "duel", "rates", "readings", "sensitivity"])
def test_every_variant_of_a_study_is_understood_without_a_warning(study: str, dataset: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    command = ["bash", str(SCRIPTS / f"{study}.sh"), "--dataset", dataset]
    environment = {**os.environ, "PYTHON": str(python)}
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    common = words[words.index("--") + 1 :]
    kind = "--method" if study == "duel" else "--variant"
    variants = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == kind}
    assert len(variants) == words.count(kind) >= 4
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--setting"] or [""]
    for setting in settings:
        for name, flags in variants.items():
            assert parse([*common, *flags.split(), *setting.split()])[1] == [], name


def test_every_distillation_of_continual_learning_is_understood_without_a_warning(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    command = ["bash", str(SCRIPTS / "continual.sh"), "--dataset", "mnist", "--sizes", "1", "5", "--", "--width", "8"]
    environment = {**os.environ, "PYTHON": str(python)}
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    at = words.index("--")
    assert words[:at] == ["benchmarks/continual.py", "--out", "save/mnist/continual", "--sizes", "1", "5"]
    config, warnings = parse([*words[at + 1 :], "--num_per_class", "5"])
    assert warnings == []
    assert (config.dataset, config.policy, config.width, config.baselines) == ("mnist", "rat-bptt", 8, ())


def both_of(script: str, *extra: str, **environment: str) -> tuple[BufferConfig, FtdConfig]:
    """What a script of ``ftd`` would hand to both verbs, without a warning."""
    command = ["bash", str(SCRIPTS / script), *extra]
    given = {**os.environ, "PYTHON": "echo", **environment}
    lines = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.splitlines()
    (_, one, *experts), (_, two, *matching) = (line.split() for line in lines)
    assert (one, two) == ("buffer", "ftd")
    buffer, ftd = parse_as(experts, BufferConfig), parse_as(matching, FtdConfig)
    assert (buffer[1], ftd[1]) == ([], [])
    return buffer[0], ftd[0]


@pytest.mark.parametrize("script", MATCHING)
def test_experts_and_matching_belong_together_and_take_extra_flags(script: str) -> None:
    buffer, ftd = both_of(script, "--width", "64", "--", "--seed", "3", EXPERTS="--num_experts 2")
    assert buffer.folder == ftd.buffer_folder
    assert (buffer.num_experts, buffer.width, ftd.width, ftd.seed) == (2, 64, 64, 3)
    assert ftd.max_start_epoch - 1 + ftd.expert_epochs <= buffer.train_epochs
    assert str(buffer.alpha) in str(buffer.folder).replace("alpha_1", "alpha_1.0")
    assert ftd.num_per_class == int(Path(script).stem.split("_ipc")[1])


def test_there_is_a_script_for_every_column_of_ftds_table() -> None:
    """FTD, docs/parameters.png, Table 7."""
    table = {
        "cifar10_ipc1": (50, 2, 2, None, 100, 1e-7, 0.01, 0.3, 0.9999),
        "cifar10_ipc10": (30, 2, 20, None, 100, 1e-5, 0.001, 0.3, 0.9995),
        "cifar10_ipc50": (30, 2, 40, None, 1000, 1e-5, 0.01, 1, 0.999),
        "cifar100_ipc1": (40, 3, 20, None, 1000, 1e-5, 0.01, 1, 0.9995),
        "cifar100_ipc10": (20, 2, 40, None, 1000, 1e-5, 0.01, 1, 0.9995),
        "cifar100_ipc50": (80, 2, 40, 1000, 1000, 1e-5, 0.01, 1, 0.999),
        "tiny_imagenet_ipc1": (30, 2, 10, None, 10000, 1e-4, 0.01, 1, 0.999),
        "tiny_imagenet_ipc10": (20, 2, 40, 500, 10000, 1e-4, 0.01, 1, 0.999),
    }
    assert {f"ftd/{name}.sh" for name in table} == set(MATCHING)
    for name, values in table.items():
        b, f = both_of(f"ftd/{name}.sh")
        found = (f.syn_steps, f.expert_epochs, f.max_start_epoch, f.batch_syn, f.lr_img, f.lr_lr, f.lr_teacher)
        assert (*found, b.alpha, f.ema_decay) == values
        assert (b.rho, b.zca, b.num_experts, b.train_epochs) == (0.01, True, 100, 50)


def test_there_is_a_script_for_every_benchmark() -> None:
    expected = {f"{name}_ipc{ipc}.sh" for name in ("cifar10", "cifar100", "tiny_imagenet") for ipc in (1, 10, 50)}
    assert expected | {"imagenet_ipc1.sh", "imagenet_ipc10.sh"} <= set(BENCHMARKS)


def test_figures_are_drawn_from_a_run(finished_run: Path, tmp_path: Path) -> None:
    command = ["bash", str(SCRIPTS / "figures.sh"), str(finished_run), "--out", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=True
    )
    names = ["method.png", "zoo.png", "accuracy_digits.png", "distilled_digits.png"]
    assert [Path(line).name for line in done.stdout.splitlines()] == names
    for name in names:
        with Image.open(tmp_path / name) as picture:
            picture.load()


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_a_score_needs_a_run(arguments: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPTS / "ddranking_score.sh"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "ddranking_score: give a run's folder or a distilled file first\n"


def gpu_bench(out: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The GPU's benchmark, shrunk to what a CPU does in seconds: four outer steps for each engine."""
    few = ["--num_per_class", "1", "--batch_per_class", "1", "--batch_size", "432", "--width", "4", "--window", "2"]
    few += ["--totwindow", "4", "-d", "1", "--eval_steps", "2", "--num_train_eval", "1", "--epochs", "2"]
    few += ["--dataset", "digits", "--device", "cpu"]
    compared = "--cases 10,2 --widths 4 --real 10 --repeats 1 --no_memory --device cpu"
    compared += " --variants ancestor replay"
    command = ["bash", str(SCRIPTS / "gpu_bench.sh"), str(out), str(out), *few]
    environment = {**os.environ, "PYTHON": sys.executable, "COMPARE_FLAGS": compared, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_gpu_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    """All parts end by themselves, far from any time limit."""
    done = gpu_bench(tmp_path, SECONDS_IN_ALL="1000000")
    assert done.returncode == 0, done.stderr
    for name in ("metagrad", "metagrad_sweep"):
        (case,) = json.loads((tmp_path / f"{name}.json").read_text())["cases"]
        assert list(case["variants"]) == ["ancestor", "replay"]
    results = json.loads((tmp_path / "distillation.json").read_text())
    assert [engine["outer steps"] for engine in results.values()] == [4, 4]
    assert all(engine["accuracy over seconds"] for engine in results.values())
    assert "\n| our default | 4 |" in done.stdout


NOTHING = "nothing: cut short before its first metrics"


def test_the_gpu_benchmark_goes_on_past_an_engine_that_its_time_limit_ends(tmp_path: Path) -> None:
    """Every part ends as ``timeout`` ends it; only the first engine has written metrics by then."""
    metrics = tmp_path / "metrics.jsonl"
    records: list[dict[str, object]] = [{"kind": "step", "step": step, "seconds_per_step": step} for step in (1, 2, 3)]
    records += [{"kind": "evaluation", "step": 3, "seconds": 7.0, "accuracy": 0.25}]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "st')
    python = tmp_path / "python"
    python.write_text(f"""#!/usr/bin/env bash
case "$*" in
  *"--engine auto"*) mkdir -p "{tmp_path}/out/run_auto" && cp "{metrics}" "{tmp_path}/out/run_auto" && exit 124 ;;
  *"--engine higher"*) exit 124 ;;
  *metagrad.py*) exit 137 ;;
esac
exec "{sys.executable}" "$@"
""")
    python.chmod(0o755)
    done = gpu_bench(tmp_path / "out", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "gave nothing" in line)
    assert "--engine higher" in line
    assert "SECONDS_IN_ALL" in line
    assert done.stdout.splitlines()[-2:] == [
        "| our default | 3 | 2.000 | 25.0 | 7 |",
        f"| reference engine | {NOTHING} |  |  |  |",
    ]
    results = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert "left out" not in results["auto"]
    assert results["higher"] == {"outer steps": 0, "median seconds per step": None, "accuracy over seconds": [],
                                 "left out": NOTHING}  # fmt: skip


def test_without_time_the_gpu_benchmark_starts_nothing(tmp_path: Path) -> None:
    earlier = tmp_path / "distil_auto.jsonl"
    earlier.write_text('{"kind": "step", "step": 9, "seconds_per_step": 1}\n')
    done = gpu_bench(tmp_path, SECONDS_IN_ALL="0")
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[1] for line in done.stdout.splitlines()[-2:]] == [NOTHING] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "distil_auto.jsonl", "distil_higher.jsonl", "distillation.json", "distillation.md", "distillation.png"
    ]  # fmt: skip


def test_a_failure_of_the_gpu_benchmark_is_not_taken_for_its_time_limit(tmp_path: Path) -> None:
    done = gpu_bench(tmp_path, PYTHON="false")
    assert done.returncode == 1
    assert not (tmp_path / "distillation.json").exists()


@pytest.mark.parametrize(("variable", "code"), [("0", 0), ("1", 1)])
def test_nothing_is_skipped_where_that_is_asked_for(variable: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text('import pytest\ndef test_it(): pytest.skip("no oven here")\n')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SKIP_NOTHING": variable}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rsf", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    assert "no oven here" in done.stdout


@pytest.mark.parametrize("file", ["scripts/python.sh", "scripts/quickstart.sh", "main.py", "Figure/method.png"])
def test_a_clone_that_asks_for_windows_line_ends_gets_what_was_committed(file: str, tmp_path: Path) -> None:
    """As under WSL with ``core.autocrlf``: a script that ends its lines so does not run."""
    committed = (SCRIPTS.parent / file).read_bytes()
    git = ["git", "-c", "core.autocrlf=true", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(committed)
    shutil.copy(SCRIPTS.parent / ".gitattributes", tmp_path)
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / file).unlink()
    subprocess.run([*git, "checkout", "--quiet", "--", "."], cwd=tmp_path, check=True)
    assert (tmp_path / file).read_bytes() == committed
