"""The estimator's benchmark: sums against loops over all samples, and that a measurement continues."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import estimator
from estimator import Measured, Snapshot
from framework.errors import UserError
from framework.outer.policies.stages import EARLY


def test_sums_are_those_of_loops_over_samples() -> None:
    samples = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    window = Measured(0, 3)
    for sample in samples:
        window.add(sample, 1.0)
    pairs = [float(a @ b) for a, b in itertools.permutations(samples, 2)]
    norms = samples.norm(dim=1)
    assert window.squared_mean == pytest.approx(np.mean(pairs), rel=1e-12)
    assert window.moment == pytest.approx(float((norms**2).mean()), rel=1e-12)
    assert window.kurtosis == pytest.approx(float((norms**4).mean() / (norms**2).mean() ** 2), rel=1e-12)
    assert window.mean.tolist() == pytest.approx(samples.mean(0).tolist(), rel=1e-12)


def measure(monkeypatch: pytest.MonkeyPatch, out: Path, *options: str) -> dict[str, Any]:
    """What the benchmark finds of one run, T 8 and W 3."""
    command = ["estimator.py", "--out", str(out), "--positions", "3", "--lengths", "2", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*command, *options])
    estimator.main()
    (snapshot,) = json.loads((out / "estimator.json").read_text())["snapshots"]
    assert isinstance(snapshot, dict)
    return snapshot


def without_seconds(snapshot: dict[str, Any]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in snapshot["windows"]]


def test_a_measurement_continues_and_ends_as_a_whole_one(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(finished_run)
    measure(monkeypatch, tmp_path / "parts", run, "--samples", "2")
    parts = measure(monkeypatch, tmp_path / "parts", run, "--samples", "4")
    whole = measure(monkeypatch, tmp_path / "whole", run, "--samples", "4")
    assert without_seconds(parts) == without_seconds(whole)
    windows = [(row["start"], row["length"]) for row in whole["windows"]]
    assert windows == [(0, 3), (2, 3), (5, 3), (0, 2), (3, 2), (6, 2), (0, 8)]  # NumPy rounds 2.5 to 2
    assert all(row["root mean square norm"] > 0 for row in whole["windows"])
    assert (tmp_path / "whole" / "estimator.png").stat().st_size > 0
    with pytest.raises(UserError, match="other --positions"):
        measure(monkeypatch, tmp_path / "parts", run, "--samples", "4", "--lengths", "1")
    with pytest.raises(UserError, match="or --flags"):
        measure(monkeypatch, tmp_path / "parts", run, "--samples", "4", "--flags", "--minwindow 1")
    with pytest.raises(UserError, match="--lengths 9"):
        measure(monkeypatch, tmp_path / "parts", run, "--lengths", "9")


def test_flags_take_the_place_of_the_runs(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--minwindow 1 --window 4"
    snapshot = measure(monkeypatch, tmp_path, str(finished_run), "--samples", "2", "--flags", flags)
    assert [(row["start"], row["length"]) for row in snapshot["windows"][:3]] == [(1, 4), (2, 4), (4, 4)]
    assert f"with `{flags}`" in (tmp_path / "estimator.md").read_text()


def test_every_policy_has_a_row_and_rat_bptt_is_what_others_are_measured_by(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = measure(monkeypatch, tmp_path, str(finished_run), "--samples", "6")
    rows = {row["policy"]: row for row in snapshot["policies"]}
    assert list(rows) == [
        "rat-bptt", "rat-bptt --complete_random", "rat-is", "rat-is --is_uniform 0", "rat-pool, as if fresh",
        "at-bptt-positions, early", "at-bptt-positions, early, --reweight", "at-bptt-positions, late",
        "at-bptt-positions, late, --reweight", "rat-bptt --complete_random --window 2", "bptt",
    ]  # fmt: skip
    passes = {name: row["passes"]["cost"] for name, row in rows.items()}
    mean = np.mean([row["passes"] for row in snapshot["windows"][:3]])
    assert passes["rat-bptt"] == passes["rat-bptt --complete_random"] == pytest.approx(mean, rel=1e-12)
    assert passes["bptt"] == snapshot["windows"][-1]["passes"]
    assert passes["rat-pool, as if fresh"] < passes["rat-bptt"]
    assert "at-bptt-positions" in (tmp_path / "estimator.md").read_text()


def test_at_bptts_choice_takes_each_drawn_step_for_the_nearest_window(finished_run: Path) -> None:
    snapshot = Snapshot(finished_run, 3, [], "", torch.device("cpu"))
    snapshot.probes = [[3.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1], [1.0] * 8]
    policy = snapshot.at_bptt[EARLY]
    chances, second = np.zeros(8), np.zeros(8)
    for norms in snapshot.probes:
        p = np.exp(norms) / np.exp(norms).sum()
        chances, second = chances + p / 2, second + 1 / (8**2 * p) / 2
    plain, weighted = (snapshot._by_norms(policy, weighted=w) for w in (False, True))
    nearest = [[0, 1], [2, 3], [4, 5, 6, 7]]  # to starts 0, 2, 5; of two as near, the first
    assert plain.chances[:3] == pytest.approx([chances[steps].sum() for steps in nearest], rel=1e-12)
    assert (plain.first == plain.chances).all() and (plain.second == plain.chances).all()
    assert weighted.chances == pytest.approx(plain.chances, rel=1e-12)
    assert weighted.first[:3] == pytest.approx([2 / 8, 2 / 8, 4 / 8], rel=1e-12)
    assert weighted.second[:3] == pytest.approx([second[steps].sum() for steps in nearest], rel=1e-12)


def test_a_folder_without_a_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["estimator.py", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    with pytest.raises(UserError, match="no run is here"):
        estimator.main()
