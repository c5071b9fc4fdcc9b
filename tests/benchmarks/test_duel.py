"""Duels of methods: settings chosen on seeds of their own, paired seeds, and the time to the first's accuracy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli import ROOT
from studies import finished

from duel import best_so_far, choose, sign_test, time_to
from framework.files import read_json
from study import Job, Result


def result(folder: Path, accuracy: float, evaluations: list[tuple[float, float]]) -> Result:
    finished(folder, accuracy, evaluations)
    found = Job("m", 0, [], folder).result
    assert found is not None
    return found


def test_the_sign_test_is_two_sided_and_leaves_ties_out() -> None:
    assert sign_test([1.0] * 10) == pytest.approx(2 / 2**10, rel=1e-12)
    assert sign_test([1.0, 1.0, -1.0, 0.0, 0.0]) == pytest.approx(1.0, rel=1e-12)
    assert sign_test([0.0]) is None


def test_the_mean_curve_is_of_the_best_so_far_and_linear_between_evaluations(tmp_path: Path) -> None:
    runs = [
        result(tmp_path / "a", 0.5, [(10, 0.5), (20, 0.3), (30, 0.7)]),
        result(tmp_path / "b", 0.5, [(12, 0.1), (20, 0.5), (34, 0.5)]),
    ]
    seconds, accuracy = best_so_far(runs)
    assert seconds.tolist() == [0, 11, 20, 32]
    assert accuracy.tolist() == pytest.approx([0, 0.3, 0.5, 0.6])
    assert time_to(0.4, seconds, accuracy) == pytest.approx(15.5)
    assert time_to(0.6, seconds, accuracy) == pytest.approx(32)
    assert time_to(0.0, seconds, accuracy) == 0
    assert time_to(0.61, seconds, accuracy) is None
    assert time_to(0.5, np.array([0.0, 5.0, 9.0]), np.array([0.0, 0.5, 0.5])) == 5


def test_each_method_goes_on_with_its_own_best_setting(tmp_path: Path) -> None:
    """Nothing is run: all runs that a duel needs are there, and others would be missed."""
    tune = {"m,_lr_1": 0.3, "m,_lr_2": 0.4, "other,_lr_1": 0.5, "other,_lr_2": 0.2}
    for name, accuracy in tune.items():
        finished(tmp_path / name / "seed100", 0.9, [(1, accuracy)])
    for seed in (0, 1, 2):
        finished(tmp_path / "m,_lr_2" / f"seed{seed}", 0.5, [(10, 0.2), (20, 0.4 + seed / 10)])
        finished(tmp_path / "other,_lr_1" / f"seed{seed}", 0.5 + (seed - 0.5) / 10, [(10, 0.5), (40, 0.6)])
    methods = ["--method", "m", "--a 1", "--method", "other", "--b 2"]
    settings = ["--setting", "--lr 1", "--setting", "--lr 2", "--tune_seeds", "100", "--seeds", "0", "1", "2"]
    command = [sys.executable, "benchmarks/duel.py", "--out", str(tmp_path), *methods, *settings]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "not finished" not in told
    found = read_json(tmp_path / "results.json")
    assert {name: row["setting"] for name, row in found["methods"].items()} == {"m": "--lr 2", "other": "--lr 1"}
    other = found["methods"]["other"]
    against = other["test accuracy, equal outer steps, against the first"]
    assert (against["better"], against["pairs"], against["mean"]) == (2, 3, pytest.approx(5))
    assert found["equal time, seconds"] == 20
    assert other["validation accuracy, equal time, per seed"] == [0.5, 0.5, 0.5]
    # The first ends with 0.5 after 20 s; the other has that after 10.
    assert other["time to the first's accuracy"] == pytest.approx(0.5)
    assert found["methods"]["m"]["time to the first's accuracy"] == pytest.approx(1)
    assert "| validation accuracy (%) | --lr 1 | --lr 2 |" in told
    assert "| m | 30.00 | 40.00 |" in told
    missing = subprocess.run([*command, "4", "--minutes", "0"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "2 runs are not finished: start" in missing.stdout


def test_one_setting_needs_no_seeds_to_be_chosen_by(tmp_path: Path) -> None:
    for name, accuracy in {"m": 0.5, "other": 0.6}.items():
        finished(tmp_path / name / "seed0", accuracy, [(10, accuracy)])
    methods = ["--method", "m", "--a 1", "--method", "other", "--b 2", "--setting", "", "--seeds", "0"]
    command = [sys.executable, "benchmarks/duel.py", "--out", str(tmp_path), *methods]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "+10.00 (1 of 1)" in told
    assert "not finished" not in told
    assert "other seeds" not in told


def test_finalists_are_the_first_and_the_best_others(tmp_path: Path) -> None:
    accuracies = {"m,_lr_1": 0.1, "m,_lr_2": 0.2, "a,_lr_1": 0.6, "a,_lr_2": 0.3, "b,_lr_1": 0.1, "b,_lr_2": 0.5}
    tuned = []
    for name, accuracy in accuracies.items():
        finished(tmp_path / name, 0.9, [(1, accuracy), (2, 0.0)])
        found = Job(name.replace("_", " "), 100, [], tmp_path / name).result
        assert found is not None
        tuned.append(found)
    methods, settings = ["m", "b", "a"], ["--lr 1", "--lr 2"]
    assert choose(tuned, methods, settings, None) == {"m": "--lr 2", "b": "--lr 2", "a": "--lr 1"}
    assert choose(tuned, methods, settings, 1) == {"m": "--lr 2", "a": "--lr 1"}


def test_finalists_without_settings_to_choose_by_are_refused(tmp_path: Path) -> None:
    one = ["--method", "m", "", "--setting", "", "--finalists", "2"]
    command = [sys.executable, "benchmarks/duel.py", "--out", str(tmp_path / "out"), *one]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("duel.py: error: --finalists: ")
    assert not (tmp_path / "out").exists()
