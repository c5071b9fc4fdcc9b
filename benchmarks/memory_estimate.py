"""How far `--dry_run`'s estimate of the window's memory is from the truth.

    python benchmarks/memory_estimate.py --out DIR

Measures the additional peak resident memory of each engine, each case in a process of its own. Writes
DIR/memory_estimate.json and DIR/memory_estimate.md.
"""

import argparse
import itertools
import json
import subprocess
import sys
from typing import Any

import torch

from common import RESULTS, Parser, at_least, markdown, ran_on, resident_mib, run, write_results
from framework.distill_higher import make_engine
from framework.files import make_folder
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Adam, State
from framework.inner.plan import ClassSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engines.engine import RealBatch
from framework.outer.synthetic import Synthetic, noise_images, one_hot_labels
from framework.rng import generator
from framework.run.memory import window_bytes

CASES = [(1, 5), (1, 20), (5, 5), (10, 5)]  # images per class, window


def measure(engine: str, ipc: int, window: int, width: int) -> dict[str, Any]:
    """Measured and estimated MiB for ConvNet-3 on 3x32x32 images of ten classes."""
    gen = generator(0, "benchmark")
    network = FlatNetwork(build("convnet", 3, 32, 10, width=width), torch.device("cpu"))
    augmentation = Augmentation("flip_rotate", False, 32)
    plan = ClassSampler(Counts.equal(10, ipc), 10, ipc, augmentation).plan(window, gen)
    real = RealBatch(
        torch.randn(10, 3, 32, 32), one_hot_labels(Counts.equal(10, 1)), augmentation.draw(1, 10, gen).at(0)
    )
    images = noise_images(10 * ipc, (3, 32, 32), gen)
    state = State.fresh(network.init(gen))
    before = resident_mib("VmHWM")
    loop = InnerLoop(network, Adam(1e-3), Execution())
    make_engine(engine, loop)(state, Synthetic(images, one_hot_labels(Counts.equal(10, ipc))), plan, real)
    estimate = window_bytes(engine, network.module.to("meta"), 3, 32, window, 10 * ipc, loop.execution.chunk) / 2**20
    measured = resident_mib("VmHWM") - before
    return {"engine": engine, "images per step": 10 * ipc, "window": window,
            "measured MiB": measured, "estimated MiB": estimate}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each case."""
    rows = [
        [c["engine"], c["images per step"], c["window"], f"{c['measured MiB']:.0f}", f"{c['estimated MiB']:.0f}",
         f"{c['estimated MiB'] / c['measured MiB']:.2f}"]
        for c in results["cases"]
    ]  # fmt: skip
    head = ("engine", "images per step", "window", "measured MiB", "estimated MiB", "ratio")
    return markdown(head, rows) + f"\n\n{ran_on(results)}."


def main() -> None:
    """Run every case in its own process."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--width", type=at_least(1), default=128)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.case:
        engine, ipc, window = a.case
        print(json.dumps(measure(engine, int(ipc), int(window), a.width)))
        return
    make_folder(a.out, "--out")
    results: dict[str, Any] = {**environment(torch.device("cpu")), "width": a.width, "cases": []}
    for engine, (ipc, window) in itertools.product(("higher", "replay"), CASES):
        command = [sys.executable, __file__, "--width", str(a.width), "--case", engine, str(ipc), str(window)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results["cases"].append(json.loads(output.splitlines()[-1]))
        write_results(a.out, "memory_estimate", results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
