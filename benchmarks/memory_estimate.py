"""How far `--dry_run`'s estimate of the window's memory is from the truth.

Measures the additional peak resident memory of each engine, each case in a process of its own:

    python benchmarks/memory_estimate.py
"""

import argparse
import itertools
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from framework.distill_higher import make_engine
from framework.inner.augment import Augmentation
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Adam, State
from framework.inner.plan import ClassSampler
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engine import RealBatch
from framework.outer.synthetic import noise_images, one_hot_labels
from framework.rng import generator
from framework.run.memory import window_bytes

CASES = [(1, 5), (1, 20), (5, 5), (10, 5)]  # images per class, window


def peak_mb() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(engine: str, ipc: int, window: int, width: int) -> None:
    """Print measured and estimated MiB for ConvNet-3 on 3x32x32 images of ten classes."""
    gen = generator(0, "benchmark")
    network = FlatNetwork(build("convnet", 3, 32, 10, width=width), torch.device("cpu"))
    augmentation = Augmentation("flip_rotate", False, 32)
    plan = ClassSampler(10, ipc, 10, ipc, augmentation).plan(window, gen)
    real = RealBatch(torch.randn(10, 3, 32, 32), one_hot_labels(10, 1), augmentation.draw(1, 10, gen).at(0))
    images = noise_images(10, ipc, (3, 32, 32), gen)
    state = State.fresh(network.init(gen))
    before = peak_mb()
    loop = InnerLoop(network, Adam(1e-3), Execution())
    make_engine(engine, loop)(state, images, one_hot_labels(10, ipc), plan, real)
    estimate = window_bytes(engine, network.module.to("meta"), 3, 32, window, 10 * ipc, loop.execution.chunk) / 2**20
    measured = peak_mb() - before
    print(f"| {engine} | {10 * ipc} | {window} | {measured:.0f} | {estimate:.0f} | {estimate / measured:.2f} |")


def main() -> None:
    """Run every case in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        engine, ipc, window = arguments.case
        measure(engine, int(ipc), int(window), arguments.width)
        return
    print("| engine | images per step | window | measured MiB | estimated MiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for engine, (ipc, window) in itertools.product(("higher", "replay"), CASES):
        case = ["--case", engine, str(ipc), str(window)]
        subprocess.run([sys.executable, __file__, "--width", str(arguments.width), *case], check=True)


if __name__ == "__main__":
    main()
