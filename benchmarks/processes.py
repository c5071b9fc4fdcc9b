"""One process against two for the same total work.

    python benchmarks/processes.py --out DIR [--repeats 3]

Every rank differentiates an inner trajectory of its own at each outer step, on its share of the real batch. So one
process at batch size B and two at 2 B take equally many trajectories per epoch on equally many real images. Runs
alternate; the figure is the median over outer steps of the metrics' seconds per step. One thread per process.
Writes DIR/processes.json and DIR/processes.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RUN = [
    *("--dataset", "digits", "--width", "32", "--depth", "2", "--device", "cpu", "--inner_optim", "Adam"),
    *(
        "--num_per_class",
        "4",
        "--batch_per_class",
        "4",
        "--ddtype",
        "curriculum",
        "--window",
        "10",
        "--totwindow",
        "20",
    ),
    *("--epochs", "3", "--test_freq", "3", "--num_train_eval", "2", "--eval_steps", "20", "--print_freq", "1"),
]


def seconds_per_trajectory(processes: int) -> float:
    """Median over a run's outer steps, the first left out, divided by the trajectories of one."""
    flags = ["--batch_size", str(120 * processes)]
    flags += ["--mp_distributed", "--nproc", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main.py", *RUN, *flags, "--save_dir", folder]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        steps = [record["seconds_per_step"] for record in records if record["kind"] == "step"]
    return statistics.median(steps[1:]) / processes


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each kind (default: 3)")
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2], metavar="N", help="processes (default: 1 2)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    times: dict[int, list[float]] = {n: [] for n in arguments.nproc}
    for _ in range(arguments.repeats):
        for n in arguments.nproc:
            times[n].append(seconds_per_trajectory(n))
    medians = {n: statistics.median(values) for n, values in times.items()}
    where = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    first = arguments.nproc[0]
    table = "| processes | ms per trajectory | time for the same work |\n| --- | --- | --- |\n"
    table += "".join(f"| {n} | {1000 * t:.1f} | {t / medians[first]:.2f} |\n" for n, t in medians.items())
    (arguments.out / "processes.json").write_text(json.dumps({"seconds": times, **where}, indent=2) + "\n")
    (arguments.out / "processes.md").write_text(table)
    print(table, where)


if __name__ == "__main__":
    main()
