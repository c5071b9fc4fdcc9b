"""The scoreboard of methods at equal time: their flags, their evaluation and the table at the end."""

import argparse
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cli import ROOT, TINY
from sets import made_up_summary

import scoreboard
from framework.config.bptt import Config
from framework.config.matching import BufferConfig, FtdConfig
from framework.config.registry import parse
from framework.evaluation.names import BASELINES
from framework.files import write_json
from framework.records import Judgement, Origin
from main import main
from matching_study import SETTINGS, parser_of
from scoreboard import METHODS, ScoredJob, collect, command, jobs_of, table


def given(*words: str) -> argparse.Namespace:
    parser = parser_of(None, tuple(METHODS))
    parser.add_argument("--evaluate", default="")
    return parser.parse_args(["--out", "x", "--seconds", "100", *words])


def evaluated(job: ScoredJob, top1: dict[str, float], bits: float = 500.0) -> None:
    """Write what a finished run of 60 seconds, whose experts took 40, and its evaluation leave."""
    (job.folder / "evaluation").mkdir(parents=True)
    summary = replace(made_up_summary(), outer_steps=12)
    write_json(job.folder / "summary.json", asdict(summary))
    write_json(job.folder / "clock.json", {"seconds": 60, "state": "done"})
    if job.experts:
        job.experts_folder.mkdir(parents=True)
        write_json(job.experts_folder / "clock.json", {"seconds": 40, "state": "done"})
    row = summary.results["distilled"]
    rows = {key: replace(row, top1=value, name=f"10 images, {key}", bits_per_class=bits) for key, value in top1.items()}
    recipe = "mtt" if job.experts else "inner"
    origin = Origin("convnet", job.variant, 1, True, "python")
    about = ("val", job.seed, {"convnet": rows, "vit": {}}, 1.0, "cpu", "2", "3", 1.0)
    j = Judgement("set", "digits", recipe, "", [9], *about, origin=origin)
    write_json(job.folder / "evaluation" / f"{recipe}.json", asdict(j))


# ---- what is run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ipc", ["1", "10"])
@pytest.mark.parametrize("dataset", SETTINGS)
def test_every_method_is_understood_without_a_warning(dataset: str, ipc: str, tmp_path: Path) -> None:
    jobs = jobs_of(given("--dataset", dataset, "--ipc", ipc, "--seeds", "3"), tmp_path)
    found = {}
    for job in jobs:
        config, warnings = parse([*job.command])
        assert warnings == []
        assert isinstance(config, Config | FtdConfig)
        assert (config.dataset, config.num_per_class, config.seed) == (dataset, int(ipc), 3)
        found[job.variant] = (config.policy, config.train_y)
        if isinstance(config, FtdConfig):
            experts, warnings = parse([*job.experts, "--buffer_path", str(job.experts_folder)])
            assert warnings == []
            assert isinstance(experts, BufferConfig)
            assert (experts.rho, experts.buffer_folder) == (0.01, config.buffer_folder)
            assert config.max_start_epoch - 1 + config.expert_epochs <= experts.train_epochs
    assert found == {
        "rat-bptt": ("rat-bptt", False), "rat-bptt-learnt": ("rat-bptt", True), "at-bptt": ("at-bptt", False),
        "at-bptt-learnt": ("at-bptt", True), "ftd": ("ftd", False),
    }  # fmt: skip


def test_real_images_are_rows_of_the_first_methods_sets_alone(tmp_path: Path) -> None:
    jobs = jobs_of(given("--seeds", "0", "1", "--methods", "ftd", "at-bptt-learnt"), tmp_path)
    assert [(job.variant, job.seed, job.baselines) for job in jobs] == [
        ("ftd", 0, tuple(BASELINES)), ("at-bptt-learnt", 0, ()), ("ftd", 1, tuple(BASELINES)), ("at-bptt-learnt", 1, ())
    ]  # fmt: skip
    one, two = jobs[:2]
    assert one.evaluation[:3] == ["--labels", "learnt", "teacher"], "its own are one-hot anyway"
    assert two.evaluation == ["--labels", "learnt", "hard", "teacher", "--num_train_eval", "5", "--seed", "0"]


def test_the_script_starts_the_study() -> None:
    words = ["--dataset", "mnist", "--ipc", "10", "--out", "a folder", "--seconds", "9"]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "scoreboard.sh"), *words], env={**os.environ, "PYTHON": "echo"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"benchmarks/scoreboard.py {' '.join(words)}\n"
    for attempt in ([], ["--minutes", "5"]):
        shown = command([*words[:2], *attempt, *words[2:]])
        assert shown == "bash scripts/scoreboard.sh --dataset mnist --ipc 10 --out DIR --seconds 9"


def test_a_finished_set_is_evaluated_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def execute(title: str, arguments: list[str], *_: object) -> bool:
        titles.append(title)
        return main(arguments) == 0

    monkeypatch.setattr(scoreboard, "execute", execute)
    monkeypatch.setattr(scoreboard, "NETWORKS", 1)
    more = ["--teacher_steps", "3", "--eval_steps", "4"]
    timed = ("rat-bptt", 2, TINY, run, [], 100.0)
    job = ScoredJob(*timed, (), more, tmp_path / "teachers")
    job.work(0.0, 1)
    assert titles == [], "not after the deadline"
    job.work(float("inf"), 1)
    job.work(float("inf"), 1)
    assert titles == ["rat-bptt, seed 2, evaluation"]
    with_real = ScoredJob(*timed, ("random", "herding"), more, tmp_path / "teachers")
    assert with_real.judgement is None, "rows are missing"
    with_real.work(float("inf"), 1)
    assert len(titles) == 2
    j = with_real.judgement
    assert j is not None
    assert set(j.results["convnet"]) == {"distilled", "teacher", "random", "herding"}
    assert j.seed == 2
    assert len(list((tmp_path / "teachers").glob("*.safetensors"))) == 1


# ---- the table -------------------------------------------------------------------------------------


def test_the_table_has_methods_by_labels_and_real_images_over_seeds(tmp_path: Path) -> None:
    jobs = jobs_of(given("--seeds", "0", "1", "--methods", "rat-bptt", "at-bptt-learnt", "ftd"), tmp_path)
    real = dict.fromkeys(BASELINES, 0.4)
    accuracies = {
        ("rat-bptt", 0): {"distilled": 0.8, "teacher": 0.6, **real, "herding": 0.5},
        ("rat-bptt", 1): {"distilled": 0.9, "teacher": 0.6, **real, "herding": 0.7},
        ("at-bptt-learnt", 0): {"distilled": 0.7, "hard": 0.3, "teacher": 0.5},
        ("at-bptt-learnt", 1): {"distilled": 0.7, "hard": 0.4},  # not evaluated as it should be
        ("ftd", 0): {"distilled": 0.85, "teacher": 0.5},
    }
    for job in jobs:
        if (job.variant, job.seed) in accuracies:
            evaluated(job, accuracies[job.variant, job.seed])
    results = {"images per class": 1, **collect(jobs)}
    assert [(row["method"], row["labels"], row["n"]) for row in results["rows"]] == [
        ("RaT-BPTT", "hard", 2), ("RaT-BPTT", "teacher", 2), ("AT-BPTT, labels learnt", "learnt", 1),
        ("AT-BPTT, labels learnt", "hard", 1), ("AT-BPTT, labels learnt", "teacher", 1), ("FTD", "hard", 1),
        ("FTD", "teacher", 1), *((name, "hard", 2) for name in BASELINES),
    ]  # fmt: skip
    assert results["rows"][0]["per seed"] == [0.8, 0.9]
    text = table(results)
    assert "| RaT-BPTT | hard | 85.00 ± 7.07 | 2 | 500 | inner | 60 | 0 | 12 |" in text
    assert "| AT-BPTT, labels learnt | hard | 30.00 | 1 | 500 | inner | 60 | 0 | 12 |" in text
    assert "| FTD | hard | 85.00 | 1 | 500 | mtt | 100 | 40 | 12 |" in text
    assert "| 10 images, herding | hard | 60.00 ± 14.14 | 2 | 500 | inner |  |  |  |" in text
    assert "\nFTD:\n\n    python main.py buffer --accelerate none --dataset digits " in text
    assert "    python main.py evaluate RUN --labels learnt hard teacher --num_train_eval 5 --seed 0" in text


def test_without_an_evaluated_set_there_is_an_empty_table(tmp_path: Path) -> None:
    results = {"images per class": 1, **collect(jobs_of(given(), tmp_path))}
    assert results["rows"] == []
    assert table(results).count("\n") == 1
