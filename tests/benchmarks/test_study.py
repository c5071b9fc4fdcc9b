"""Studies: the table at the end, and that a stopped study continues."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cli import ROOT, TINY
from sets import made_up_summary

from framework.files import write_json
from study import Job, collect, table


def finished(folder: Path, top1: float, evaluations: list[tuple[float, float]]) -> None:
    """Write what a finished run leaves; evaluations are (seconds, accuracy)."""
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", asdict(made_up_summary(top1=top1)))
    records: list[dict[str, Any]] = [{"kind": "epoch", "step": 1}]
    records += [{"kind": "evaluation", "step": i, "seconds": s, "accuracy": a} for i, (s, a) in enumerate(evaluations)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_table_compares_at_equal_steps_and_at_equal_time(tmp_path: Path) -> None:
    finished(tmp_path / "slow0", 0.90, [(10, 0.5), (20, 0.9), (40, 0.95)])
    finished(tmp_path / "slow1", 0.80, [(10, 0.6), (21, 0.8), (42, 0.99)])
    finished(tmp_path / "fast0", 0.70, [(5, 0.7), (10, 0.65), (20, 0.6)])
    jobs = [
        Job("slow", 0, ["--x"], tmp_path / "slow0"),
        Job("slow", 1, ["--x"], tmp_path / "slow1"),
        Job("fast", 0, ["--x"], tmp_path / "fast0"),
        Job("fast", 1, ["--x"], tmp_path / "not started"),
    ]
    results = collect(jobs)
    assert results["equal time, seconds"] == 20
    slow, fast = results["variants"]["slow"], results["variants"]["fast"]
    assert slow["test accuracy, equal outer steps"]["mean"] == pytest.approx(85)
    assert slow["test accuracy, equal outer steps"]["deviation"] == pytest.approx(100 * 0.05 * 2**0.5)
    assert slow["validation accuracy, equal time"]["mean"] == pytest.approx(75)  # 0.9 at 20 s, 0.6 before 21 s
    assert fast["validation accuracy, equal time"] == {"mean": pytest.approx(70), "deviation": None}  # the best so far
    assert (slow["n"], fast["n"]) == (2, 1)
    assert "| slow | 85.00 ± 7.07 | 75.00 ± 21.21 | 41 | 2 |" in table(results)
    assert "| fast | 70.00 | 70.00 | 20 | 1 |" in table(results)


def test_a_study_out_of_time_continues(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/study.py", "--out", str(tmp_path), "--seeds", "0"]
    command += ["--variant", "rat", "--truncation rat-bptt", "--variant", "at", "-d 1"]
    flags = ["--", *TINY, "--epochs", "1"]

    def run(*options: str) -> str:
        result = subprocess.run([*command, *options, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "2 of 2 runs are not finished" in run("--minutes", "0")
    assert "not finished" not in run()
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["variants"]) == ["rat", "at"]
    assert (tmp_path / "results.md").read_text().startswith("| variant |")
    before = (tmp_path / "at" / "seed0" / "last.pt").read_bytes()
    run()
    assert before == (tmp_path / "at" / "seed0" / "last.pt").read_bytes(), "finished runs are not touched"


def test_a_failing_run_ends_the_study_with_its_error(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/study.py",
        "--out",
        str(tmp_path),
        "--seeds",
        "0",
        "--variant",
        "x",
        "--lr -1",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "--lr" in result.stderr
    assert "Traceback" not in result.stderr
