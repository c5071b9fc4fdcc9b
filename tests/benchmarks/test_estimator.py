"""The estimator's benchmark: sums against loops over all samples, and that a measurement continues."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import estimator
from estimator import Position
from framework.errors import UserError


def test_sums_are_those_of_loops_over_samples() -> None:
    samples = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    position = Position(0)
    for sample in samples:
        position.add(sample, 1.0)
    pairs = [float(a @ b) for a, b in itertools.permutations(samples, 2)]
    norms = samples.norm(dim=1)
    assert position.squared_mean == pytest.approx(np.mean(pairs), rel=1e-12)
    assert position.moment == pytest.approx(float((norms**2).mean()), rel=1e-12)
    assert position.kurtosis == pytest.approx(float((norms**4).mean() / (norms**2).mean() ** 2), rel=1e-12)


def test_a_measurement_continues_and_ends_as_a_whole_one(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(out: str, *options: str) -> list[dict[str, float]]:
        command = ["estimator.py", str(finished_run), "--out", str(tmp_path / out), "--positions", "3"]
        monkeypatch.setattr("sys.argv", [*command, "--device", "cpu", *options])
        estimator.main()
        (snapshot,) = json.loads((tmp_path / out / "estimator.json").read_text())["snapshots"]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in snapshot["positions"]]

    measure("parts", "--samples", "2")
    parts, whole = measure("parts", "--samples", "4"), measure("whole", "--samples", "4")
    assert parts == whole
    assert [row["start"] for row in whole] == [0, 2, 5]  # T 8, W 3; NumPy rounds 2.5 to 2
    assert all(row["root mean square norm"] > 0 for row in whole)
    assert "Gain over uniform positions" in (tmp_path / "whole" / "estimator.md").read_text()


def test_a_folder_without_a_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["estimator.py", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    with pytest.raises(UserError, match="no run is here"):
        estimator.main()
