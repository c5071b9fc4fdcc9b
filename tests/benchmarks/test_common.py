"""What the benchmarks share, and how faults are counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import ROOT

from common import Parser, at_least, markdown, portable, run, to_json, write_results
from faults import FAULTS, Outcome, count, fault_of, outcomes
from framework.errors import UserError
from metagrad import pair

# ---- tables and files ------------------------------------------------------------------------------


def test_a_tables_cells_stay_in_their_columns() -> None:
    text = markdown(("a|b", "c"), [["x | y", 1], ["two\nlines", None], ["short"]])
    assert text.splitlines() == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| x \\| y | 1 |",
        "| two lines | None |",
        "| short |  |",
    ]


def test_commands_for_people_name_no_folder_of_this_machine() -> None:
    assert portable([]) == []
    words = ["--root", "/a/b", "--out", "/c", "--width", "--root", "--root"]
    assert portable(words) == ["--root", "ROOT", "--out", "DIR", "--width", "--root", "ROOT"]


def test_a_table_without_rows_has_its_head() -> None:
    assert markdown(["a"], []) == "| a |\n| --- |"


def test_json_is_always_finite() -> None:
    nan, inf = float("nan"), float("inf")
    results = {"a": nan, "b": [inf, -inf, 1.5], "c": {"d": (np.float32("nan"), np.float64("inf"), np.float32(0.5))}}
    expected = {"a": None, "b": [None, None, 1.5], "c": {"d": [None, None, 0.5]}}

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    assert json.loads(to_json({**results, "n": 3, "t": True}), parse_constant=refuse) == {**expected, "n": 3, "t": True}


def test_results_stand_side_by_side(tmp_path: Path) -> None:
    write_results(tmp_path, "x", {"seconds": float("nan")}, "| a |")
    assert (tmp_path / "x.json").read_text() == '{\n  "seconds": null\n}\n'
    assert (tmp_path / "x.md").read_text() == "| a |\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md"]


def test_what_json_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_results(tmp_path, "x", {"path": tmp_path}, "| a |")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["json", "md"])
def test_where_one_file_cannot_be_written_neither_is(suffix: str, tmp_path: Path) -> None:
    write_results(tmp_path, "x", 1, "old")
    (tmp_path / f".x.{suffix}.{os.getpid()}.tmp").symlink_to("/dev/full")  # the kernel's own "no space left"
    with pytest.raises(UserError, match=f"cannot write .*x.{suffix}: No space left"):
        write_results(tmp_path, "x", 2, "new")
    assert [(tmp_path / name).read_text() for name in ("x.json", "x.md")] == ["1\n", "old\n"]
    assert len(list(tmp_path.iterdir())) == 2


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--networks", "1"], "argument --networks: '1' is not a whole number of at least 2"),
        (["--networks", "2.5"], "argument --networks: '2.5' is not"),
        (["--case", "10"], "argument --case: '10' is not of the form IMAGES,WINDOW"),
        (["--case", "10,x"], "argument --case: 'x' is not a whole number"),
        ([], "required: --out"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("Text.")
    parser.add_out()
    parser.add_argument("--networks", type=at_least(2))
    parser.add_argument("--case", type=pair)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_folder_that_cannot_be_made_costs_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "benchmarks/processes.py", "--out", str(tmp_path / "file" / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("processes.py: error: --out ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("returned", "code"), [(None, None), (1, 1)])
def test_the_exit_code_is_mains(returned: int | None, code: int | None) -> None:
    with pytest.raises(SystemExit) as stop:
        run(lambda: returned)
    assert stop.value.code == code


# ---- faults ----------------------------------------------------------------------------------------

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase name="test_kill_9_at_50_moments"><properties><property name="tries" value="7"/></properties></testcase>
<testcase name="test_a_malicious_file_runs_nothing[set]"/>
<testcase name="test_a_malicious_file_runs_nothing[last.pt]"><failure message="it ran"/></testcase>
<testcase name="test_a_malicious_file_runs_nothing[previous.pt]"><skipped message="no"/></testcase>
<testcase name="test_a_run_stopped_again_and_again_ends_bit_identical[SIGKILL]"><error message="fixture"/></testcase>
<testcase name="test_a_run_stopped_again_and_again_ends_bit_identical[SIGINT]"/>
<testcase name="test_something_else"/>
</testsuite></testsuites>"""


def test_tries_are_counted_not_assumed(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    found = outcomes(tmp_path / "report.xml")
    assert found[0] == Outcome("test_kill_9_at_50_moments", tries=7, passed=True)
    rows = {row["fault"]: (row["tried"], row["survived"]) for row in count(found * 2) if row["tried"]}
    assert rows == {
        "kill -9 while a checkpoint is written": (14, 14),
        "kill -9 between steps": (2, 0),
        "SIGTERM, Ctrl-C": (2, 2),
        "malicious pickle": (4, 2),
    }


def test_what_a_test_counts_reaches_the_report(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from tries import tried\n"
        "def test_often():\n    for _ in range(3): tried()\n"
        "def test_once(): pass\n"
        "def test_until_it_fails():\n    tried(); tried(); assert False\n"
    )
    report = tmp_path / "report.xml"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert outcomes(report) == [
        Outcome("test_often", 3, True), Outcome("test_once", 1, True), Outcome("test_until_it_fails", 2, False)
    ]  # fmt: skip


def test_every_fault_has_tests() -> None:
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = [line.split("(")[0].removeprefix("def ") for line in text.splitlines() if line.startswith("def test_")]
    caused = {fault_of(name) for name in names} | {fault_of(f"{name}[SIGKILL]") for name in names}
    caused |= {fault_of(f"{name}[SIGTERM]") for name in names}
    assert caused >= set(FAULTS)
