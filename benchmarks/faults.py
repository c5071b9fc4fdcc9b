"""Cause every fault again and again, and count what survives.

    python benchmarks/faults.py --out DIR [--times 3]

Each fault is caused by a test, which asserts what is left afterwards; this runs them and counts. A test that causes its
fault several times counts how often it did (the fixture ``tried``), any other is one try; what a failing test tried
counts as not survived. Writes DIR/faults.json and DIR/faults.md.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, Parser, at_least, markdown, run, write_results
from framework.files import make_folder


@dataclass(frozen=True)
class Fault:
    """What is caused, by which tests, and what those tests let it cost."""

    name: str
    tests: str  # begin with this
    lost: str


FAULTS = (
    Fault("kill -9 while a checkpoint is written", "test_kill_9", "no checkpoint that was complete"),
    Fault("kill -9 between steps", "test_a_run_stopped_again_and_again_ends_bit_identical[SIGKILL",
          "steps since the last checkpoint, taken again bit for bit"),
    Fault("SIGTERM, Ctrl-C", "test_a_run_stopped_again_and_again_ends_bit_identical[SIG", "nothing"),
    Fault("kill -9 of one of two ranks, SIGTERM to both", "test_two_processes_killed_stopped", "nothing"),
    Fault("last checkpoint truncated, bit-flipped or missing", "test_the_checkpoint_before_stands_in",
          "one checkpoint's steps, taken again bit for bit"),
    Fault("random damage to a checkpoint", "test_one_damaged_checkpoint_loses_no_run",
          "one checkpoint's steps; no damage unnoticed"),
    Fault("full disk, quota, read-only or missing folder", "test_a_folder_that_cannot_be_written",
          "the step under way, taken again bit for bit"),
    Fault("NaN or infinite meta-gradient", "test_a_meta_gradient_that_is_not_finite", "the steps with it, counted"),
    Fault("NaN for ever", "test_too_many_in_a_row_end", "nothing: the set before them is saved"),
    Fault("NaN on one of two ranks", "test_all_ranks_skip", "that step, on both"),
    Fault("out of memory", "test_out_of_memory_says", "the step under way"),
    Fault("one rank's set off by a bit", "test_sets_that_differ", "the epoch, which is not saved"),
    Fault("second run in the same folder", "test_the_second_run_in_a_folder", "nothing: refused"),
    Fault("malicious pickle", "test_a_malicious_file", "nothing: not run"),
    Fault("random command line", "test_any_command_line", "nothing: runs dry, or one line and exit 2"),
    Fault("random damage to the files of a run", "test_a_run_with_a_damaged_file", "damaged metrics"),
    Fault("random damage to metrics", "test_damaged_metrics", "the damaged records"),
    Fault("random damage to a distilled set", "test_a_damaged_distilled_set", "nothing: loads, or one line"),
    Fault("random damage to an image", "test_a_damaged_image", "nothing: decodes, or one line"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one test did."""

    test: str
    tries: int
    passed: bool


def outcomes(report: Path) -> list[Outcome]:
    """Every test that was run, from pytest's JUnit XML."""
    cases = [case for case in ET.parse(report).iter("testcase") if case.find("skipped") is None]
    return [Outcome(case.attrib["name"], tries(case), not failed(case)) for case in cases]


def tries(case: ET.Element) -> int:
    """How often a test caused its fault: as it counted, once where it does not count."""
    counted = case.find("properties/property[@name='tries']")
    return 1 if counted is None else int(counted.attrib["value"])


def failed(case: ET.Element) -> bool:
    """Whether a test, or what surrounds it, failed."""
    return any(case.find(tag) is not None for tag in ("failure", "error"))


def cause_all() -> list[Outcome]:
    """Run the tests of all faults once."""
    names = sorted({fault.tests.partition("[")[0] for fault in FAULTS})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-k", " or ".join(names), "tests"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        return outcomes(report)


def fault_of(test: str) -> Fault | None:
    """The fault that a test causes: the one with the longest matching name."""
    return max((f for f in FAULTS if test.startswith(f.tests)), key=lambda f: len(f.tests), default=None)


def count(found: list[Outcome]) -> list[dict[str, Any]]:
    """How often each fault was tried and survived."""
    rows: list[dict[str, Any]] = []
    for fault in FAULTS:
        own = [outcome for outcome in found if fault_of(outcome.test) is fault]
        tried, survived = sum(o.tries for o in own), sum(o.tries for o in own if o.passed)
        rows.append({"fault": fault.name, "tried": tried, "survived": survived, "lost": fault.lost})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row for each fault."""
    cells = [(row["fault"], f"{row['tried']:,}", f"{row['survived']:,}", row["lost"]) for row in rows]
    return markdown(("fault", "times tried", "times survived", "what was lost"), cells)


def main() -> int:
    """Run, count, write; the exit code is 1 where a fault was not tried or not survived."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument(
        "--times", type=at_least(1), default=1, metavar="N", help="how often to run every test (default: 1)"
    )
    a = parser.parse_args()
    make_folder(a.out, "--out")
    rows = count([outcome for _ in range(a.times) for outcome in cause_all()])
    write_results(a.out, "faults", rows, table(rows))
    print(table(rows))
    return int(any(row["tried"] == 0 or row["survived"] < row["tried"] for row in rows))


if __name__ == "__main__":
    run(main)
