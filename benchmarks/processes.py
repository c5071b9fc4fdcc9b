"""One process against two for the same total work.

    python benchmarks/processes.py --out DIR [--repeats 3]

Every rank differentiates an inner trajectory of its own at each outer step, on its share of the real batch. So one
process at batch size B and two at 2 B take equally many trajectories per epoch on equally many real images. Runs
alternate; the figure is the median over outer steps of the metrics' seconds per step. One thread per process.
Writes DIR/processes.json and DIR/processes.md.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import ROOT, Parser, at_least, markdown, run, write_results
from framework.files import make_folder
from framework.report.folder import RunFolder

RUN = [
    *("--dataset", "digits", "--width", "32", "--depth", "2", "--device", "cpu", "--inner_optim", "Adam"),
    *("--num_per_class", "4", "--batch_per_class", "4", "--ddtype", "curriculum", "--window", "10"),
    *("--totwindow", "20"),
    *("--epochs", "3", "--test_freq", "3", "--num_train_eval", "2", "--eval_steps", "20", "--print_freq", "1"),
]


def seconds_per_trajectory(processes: int) -> float:
    """Median over a run's outer steps, the first left out, divided by the trajectories of one."""
    flags = ["--batch_size", str(120 * processes)]
    flags += ["--mp_distributed", "--nproc", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main.py", *RUN, *flags, "--save_dir", folder]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        steps: list[float] = [r["seconds_per_step"] for r in RunFolder(Path(folder)).records["step"]]
    return statistics.median(steps[1:]) / processes


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each number of processes."""
    medians = {n: statistics.median(values) for n, values in results["seconds"].items()}
    first = next(iter(medians.values()))
    rows = [(n, f"{1000 * t:.1f}", f"{t / first:.2f}") for n, t in medians.items()]
    return markdown(("processes", "ms per trajectory", "time for the same work"), rows)


def main() -> None:
    """Measure, write."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument("--repeats", type=at_least(1), default=3, metavar="N", help="runs of each kind (default: 3)")
    parser.add_argument(
        "--nproc", type=at_least(1), nargs="+", default=[1, 2], metavar="N", help="processes (default: 1 2)"
    )
    a = parser.parse_args()
    make_folder(a.out, "--out")
    times: dict[int, list[float]] = {n: [] for n in a.nproc}
    for _ in range(a.repeats):
        for n in a.nproc:
            times[n].append(seconds_per_trajectory(n))
    where = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    results = {"seconds": times, **where}
    write_results(a.out, "processes", results, table(results))
    print(f"{table(results)}\n\n{where}")


if __name__ == "__main__":
    run(main)
