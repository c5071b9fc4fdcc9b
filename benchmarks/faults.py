"""Cause every fault again and again, and count what survives.

    python benchmarks/faults.py --out DIR [--times 3]

Each fault is caused by a test, which asserts what is left afterwards; this runs them and counts. Writes
DIR/faults.json and DIR/faults.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """What is caused, by which tests, how often in each of them, and what those tests let it cost."""

    name: str
    tests: str  # begin with this
    tries: int
    lost: str


FAULTS = (
    Fault("kill -9 while a checkpoint is written", "test_kill_9_at_50_moments", 50, "no checkpoint that was complete"),
    Fault("kill -9 between steps", "test_a_run_stopped_again_and_again_ends_bit_identical[SIGKILL", 5,
          "steps since the last checkpoint, taken again bit for bit"),
    Fault("SIGTERM, Ctrl-C", "test_a_run_stopped_again_and_again_ends_bit_identical[SIG", 2, "nothing"),
    Fault("kill -9 of one of two ranks, SIGTERM to both", "test_two_processes_killed_stopped", 2, "nothing"),
    Fault("last checkpoint truncated, bit-flipped or missing", "test_the_checkpoint_before_stands_in", 1,
          "one checkpoint's steps, taken again bit for bit"),
    Fault("random damage to a checkpoint", "test_one_damaged_checkpoint_loses_no_run", 100,
          "one checkpoint's steps; no damage unnoticed"),
    Fault("full disk, quota, read-only or missing folder", "test_a_folder_that_cannot_be_written", 1,
          "the step under way, taken again bit for bit"),
    Fault("NaN or infinite meta-gradient", "test_a_meta_gradient_that_is_not_finite", 2, "the steps with it, counted"),
    Fault("NaN for ever", "test_too_many_in_a_row_end", 1, "nothing: the set before them is saved"),
    Fault("NaN on one of two ranks", "test_all_ranks_skip", 1, "that step, on both"),
    Fault("out of memory", "test_out_of_memory_says", 1, "the step under way"),
    Fault("one rank's set off by a bit", "test_sets_that_differ", 2, "the epoch, which is not saved"),
    Fault("second run in the same folder", "test_the_second_run_in_a_folder", 1, "nothing: refused"),
    Fault("malicious pickle", "test_a_malicious_file", 1, "nothing: not run"),
    Fault("random command line", "test_any_command_line", 150, "nothing: runs dry, or one line and exit 2"),
    Fault("random damage to the files of a run", "test_a_run_with_a_damaged_file", 2, "damaged metrics"),
    Fault("random damage to metrics", "test_damaged_metrics", 40, "the damaged records"),
    Fault("random damage to a distilled set", "test_a_damaged_distilled_set", 100, "nothing: loads, or one line"),
    Fault("random damage to an image", "test_a_damaged_image", 50, "nothing: decodes, or one line"),
)  # fmt: skip


def outcomes() -> dict[str, bool]:
    """Run the tests of all faults once: whether each passed, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "tests/test_faults.py"]
        command += ["tests/test_fuzz.py", "tests/test_distributed.py", "tests/test_base.py"]
        names = {fault.tests.partition("[")[0] for fault in FAULTS}
        subprocess.run(
            [*command, "-k", " or ".join(sorted(names))], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        cases = list(ET.parse(report).iter("testcase"))
    return {
        case.attrib["name"]: not any(case.find(tag) is not None for tag in ("failure", "error"))
        for case in cases
        if case.find("skipped") is None
    }


def main() -> None:
    """Run, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the table")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="how often to run every test (default: 1)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [outcomes() for _ in range(arguments.times)]
    rows: list[dict[str, Any]] = []
    for fault in FAULTS:
        longer = [f.tests for f in FAULTS if f.tests.startswith(fault.tests) and f is not fault]
        passed = [
            ok
            for run in runs
            for name, ok in run.items()
            if name.startswith(fault.tests) and not any(name.startswith(other) for other in longer)
        ]
        tried, survived = fault.tries * len(passed), fault.tries * sum(passed)
        rows.append({"fault": fault.name, "tried": tried, "survived": survived, "lost": fault.lost})
    table = "| fault | times tried | times survived | what was lost |\n| --- | --- | --- | --- |\n"
    table += "".join(f"| {row['fault']} | {row['tried']:,} | {row['survived']:,} | {row['lost']} |\n" for row in rows)
    (arguments.out / "faults.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.out / "faults.md").write_text(table)
    print(table)
    sys.exit(any(row["tried"] == 0 or row["survived"] < row["tried"] for row in rows))


if __name__ == "__main__":
    main()
