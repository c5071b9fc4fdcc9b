"""Studies: the table at the end, and that a stopped study continues."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ROOT, TINY
from studies import finished

from framework.config.bptt import parse
from framework.files import read_json
from framework.report.folder import RunFolder
from study import Job, collect, shares_of_windows, table


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
    results = collect([result for job in jobs if (result := job.result) is not None])
    assert results["equal time, seconds"] == 20
    slow, fast = results["variants"]["slow"], results["variants"]["fast"]
    assert slow["test accuracy, equal outer steps"]["mean"] == pytest.approx(85)
    assert slow["test accuracy, equal outer steps"]["deviation"] == pytest.approx(100 * 0.05 * 2**0.5)
    assert slow["validation accuracy, equal time"]["mean"] == pytest.approx(75)  # 0.9 at 20 s, 0.6 before 21 s
    assert fast["validation accuracy, equal time"] == {"mean": pytest.approx(70), "deviation": None}  # the best so far
    assert (slow["n"], fast["n"]) == (2, 1)
    assert "| slow | 85.00 ± 7.07 | 75.00 ± 21.21 |  | 41 | 2 |" in table(results)
    assert "| fast | 70.00 | 70.00 | -20.00 (0 of 1) | 20 | 1 |" in table(results)


def test_time_is_the_processors_on_a_cpu_and_the_clocks_on_a_gpu(tmp_path: Path) -> None:
    for device in ("cpu (x86_64, 1 threads)", "NVIDIA"):
        finished(tmp_path / device[:3], 0.9, [(10, 0.5), (20, 0.9)], device)
    cpu, cuda = (Job(name, 0, [], tmp_path / name).result for name in ("cpu", "NVI"))
    assert cpu is not None and cuda is not None
    assert (cpu.evaluations, cuda.evaluations) == ([[10, 0.5], [20, 0.9]], [[31, 0.5], [61, 0.9]])
    assert "equal time after 20 s of processor time;" in table(collect([cpu]))
    assert "equal time after 61 s;" in table(collect([cuda]))


def test_finalists_are_the_best_of_the_first_seeds_and_the_reference(tmp_path: Path) -> None:
    """Nothing is run: all but the finalists' last seeds are there, and those would be missed."""
    accuracies = {"reference": [0.1, 0.1, 0.1], "good": [0.5, 0.6, 0.05], "bad": [0.2, 0.2], "fair": [0.4, 0.3, 0.4]}
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            finished(tmp_path / name / f"seed{seed}", value, [(1, value)])
    variants = [word for name in accuracies for word in ("--variant", name, "")]
    seeds = ["--seeds", "0", "1", "--finalists", "2", "--final_seeds", "0", "1", "2"]
    command = [sys.executable, "benchmarks/study.py", "--out", str(tmp_path), *variants, *seeds]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = json.loads((tmp_path / "results.json").read_text())["variants"]
    assert {name: row["n"] for name, row in results.items()} == {"reference": 3, "good": 3, "bad": 2, "fair": 3}
    against = results["good"]["against the first"]
    assert (against["better"], against["pairs"]) == (2, 3)
    assert against["mean"] == pytest.approx(100 * (0.4 + 0.5 - 0.05) / 3)


def test_known_runs_are_not_run_again(tmp_path: Path) -> None:
    """Nothing could be run: the folders of the second study are not there, and its deadline is now."""
    for seed in (0, 1):
        finished(tmp_path / "before" / "a" / f"seed{seed}", 0.5 + seed / 10, [(1, 0.25), (3, 0.5)])

    def study(out: str, flags: str, *options: str) -> str:
        command = [sys.executable, "benchmarks/study.py", "--out", str(tmp_path / out), "--variant", "a", flags]
        command += ["--seeds", "0", "1", "--minutes", "0", *options, "--", "--root", "a folder"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    study("before", "--tau 1")
    file = tmp_path / "before" / "results.json"
    assert "not finished" not in study("after", "--tau 1", "--known", str(file))
    assert read_json(tmp_path / "after" / "results.json") == read_json(file)
    assert "2 of 2 runs are not finished" in study("other flags", "--tau 2", "--known", str(file))


def test_windows_are_told_by_where_they_lay(tmp_path: Path) -> None:
    config = parse([*TINY, "--totwindow", "12", "--window", "3"])[0]
    (tmp_path / "config.json").write_text(config.to_json())
    windows = [(0, 3), (1, 3), (2, 3), (9, 3), (9, 3)]
    records = [{"kind": "epoch", "step": i, "epoch": i, "window_start": s, "window_length": n, "accuracy": 0.5}
               for i, (s, n) in enumerate(windows)]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert shares_of_windows(RunFolder(tmp_path)) == pytest.approx(
        {"distinct": 0.8, "start in the first sixth": 0.4, "end at T": 0.4, "mean start": 4.2, "mean length": 3}
    )


def test_a_study_out_of_time_continues(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/study.py", "--out", str(tmp_path), "--seeds", "0"]
    command += ["--variant", "a/b c", "--truncation rat-bptt"]
    flags = ["--", *TINY, "--epochs", "1"]

    def run(*options: str) -> str:
        result = subprocess.run([*command, *options, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "1 of 1 runs are not finished" in run("--minutes", "0")
    assert "not finished" not in run()
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["variants"]) == ["a/b c"]
    assert (tmp_path / "results.md").read_text().startswith("| variant |")
    before = (tmp_path / "a:b_c" / "seed0" / "last.pt").read_bytes()
    run()
    assert before == (tmp_path / "a:b_c" / "seed0" / "last.pt").read_bytes(), "finished runs are not touched"


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
