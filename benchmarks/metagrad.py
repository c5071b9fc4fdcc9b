"""Meta-gradient engines side by side: time, memory, error.

    python benchmarks/metagrad.py --out DIR [--images 10 100] [--windows 20 60] [--minutes 5]

Every engine computes the same meta-gradient of the same problem (ConvNet-3 on 3x32x32 images of ten classes, Adam, a
window that starts after 20 steps). Times are interleaved medians after a warm-up, in one process; memory is each
engine's own additional peak, in a process of its own; the error is that of the images' gradient against the reference
engine in float64. Ratios are to ``higher``. Writes DIR/metagrad.json and DIR/metagrad.md.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from framework import inner
from framework.augment import Augmentation
from framework.distill_higher import ENGINES
from framework.distributed import resolve_device
from framework.engines import MetaGradient, RealBatch
from framework.inner import Adam, State
from framework.networks import FlatNetwork, build
from framework.report import peak_memory_mb
from framework.rng import generator
from framework.synthetic import ClassSampler, Plan, noise_images, one_hot_labels

PREFIX = 20
RULE = Adam(1e-3)


@dataclass
class Problem:
    """One meta-gradient to compute."""

    network: FlatNetwork
    state: State  # after PREFIX steps
    images: Tensor
    labels: Tensor
    plan: Plan  # of the window
    real: RealBatch

    def solve(self, engine: str) -> MetaGradient:
        """Run one engine."""
        result = ENGINES[engine](self.network, RULE, self.state, self.images, self.labels, self.plan, self.real)
        synchronise(self.network.device)
        return result


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a host clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make(images: int, window: int, real: int, width: int, device: torch.device, dtype: torch.dtype) -> Problem:
    """The problem with ``images`` synthetic images per step; the same numbers in every dtype."""
    gen = generator(0, "metagrad")
    network = FlatNetwork(build("convnet", 3, 32, 10, width=width), device, dtype)
    augmentation = Augmentation("flip_rotate", False, 32)
    ipc = images // 10
    plan = ClassSampler(10, ipc, 10, ipc, augmentation).plan(PREFIX + window, gen).to(device)
    synthetic = noise_images(10, ipc, (3, 32, 32), gen).to(device, dtype)
    labels = one_hot_labels(10, ipc).to(device, dtype)
    real_images = torch.randn(real, 3, 32, 32, generator=gen).to(device, dtype)
    real_labels = one_hot_labels(10, real // 10).to(device, dtype)
    batch = RealBatch(real_images, real_labels, augmentation.draw(1, real, gen).at(0).to(device))
    theta = network.init(gen)
    state = inner.train(network, RULE, State.fresh(theta), synthetic, labels, plan[:PREFIX])
    return Problem(network, state, synthetic, labels, plan[PREFIX:], batch)


def memory(engine: str, a: argparse.Namespace) -> None:
    """Print the additional peak memory of one engine, in MiB; this process does nothing else."""
    problem = make(a.images[0], a.windows[0], a.real, a.width, resolve_device(a.device), torch.float32)
    if problem.network.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_memory_mb(problem.network.device)
    problem.solve(engine)
    print(peak_memory_mb(problem.network.device) - before)


def case(images: int, window: int, a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time, memory and error of every engine on one problem."""
    problem = make(images, window, a.real, a.width, device, torch.float32)
    reference = make(images, window, a.real, a.width, device, torch.float64)
    # The same start: float32's own rounding in the prefix is not the engines' error.
    reference.state = State(*(v.double() for v in (problem.state.theta, problem.state.m, problem.state.v)), PREFIX)
    exact = reference.solve("replay").grads.images
    del reference
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    result: dict[str, Any] = {"images": images, "window": window, "engines": {}}
    errors = {}
    for repeat in range(a.repeats + 1):
        for engine in ENGINES:
            gc.collect()
            started = time.perf_counter()
            gradient = problem.solve(engine).grads.images
            if repeat:  # the first is the warm-up
                times[engine].append(time.perf_counter() - started)
            errors[engine] = float((gradient.double() - exact).norm() / exact.norm())
    started = time.perf_counter()
    inner.train(problem.network, RULE, problem.state, problem.images, problem.labels, problem.plan)
    synchronise(device)
    result["undifferentiated seconds"] = time.perf_counter() - started
    for engine in ENGINES:
        command = [sys.executable, __file__, "--memory", engine, "--images", str(images), "--windows", str(window)]
        command += ["--real", str(a.real), "--width", str(a.width), "--device", a.device]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        result["engines"][engine] = {
            "seconds": statistics.median(times[engine]),
            "all seconds": times[engine],
            "peak MiB": float(peak),
            "error": errors[engine],
        }
    return result


def table(results: dict[str, Any]) -> str:
    """Markdown, with ratios to ``higher``."""
    lines = [
        "| images per step | window | engine | seconds | times faster | peak MiB | of higher's | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in results["cases"]:
        base = entry["engines"]["higher"]
        for name, e in entry["engines"].items():
            faster = base["seconds"] / e["seconds"]
            lines.append(
                f"| {entry['images']} | {entry['window']} | {name} | {e['seconds']:.3f} | {faster:.2f} "
                f"| {e['peak MiB']:.0f} | {100 * e['peak MiB'] / base['peak MiB']:.1f} % | {e['error']:.1e} |"
            )
    lines += [
        "",
        f"{results['device']}, torch {results['torch']}, real batch {results['real']}, width {results['width']}.",
    ]
    lines += [f"Not run for lack of time: {skipped}." for skipped in results["skipped"]]
    return "\n".join(lines)


def main() -> None:
    """Run the cases that fit into the time, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=int, nargs="+", default=[10, 100], help="synthetic images per step")
    parser.add_argument("--windows", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--real", type=int, default=500, help="real images")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no case after this time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", choices=list(ENGINES), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.memory:
        memory(a.memory, a)
        return
    device = resolve_device(a.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    results |= {"real": a.real, "width": a.width, "cases": [], "skipped": []}
    deadline = time.monotonic() + 60 * a.minutes
    a.out.mkdir(parents=True, exist_ok=True)
    for images, window in sorted(((i, w) for i in a.images for w in a.windows), key=lambda c: c[0] * c[1]):
        if time.monotonic() > deadline:
            results["skipped"].append(f"{images} images, window {window}")
            continue
        results["cases"].append(case(images, window, a, device))
        (a.out / "metagrad.json").write_text(json.dumps(results, indent=2) + "\n")
    (a.out / "metagrad.json").write_text(json.dumps(results, indent=2) + "\n")
    (a.out / "metagrad.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
