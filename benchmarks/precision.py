"""How close to float32's is a meta-gradient in lower precision, by the step at which its window starts?

    python benchmarks/precision.py --out DIR [--device cuda]

On ``digits`` as in benchmarks/lrha_quality.py: cosine of the images' meta-gradient to float32's, window 20, Adam. ``all
steps`` computes every step in bfloat16; ``--precision bf16`` keeps the first ones of a trajectory in float32. Writes
DIR/precision.json and DIR/precision.md.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lrha_quality import WINDOW, learnt_images, real_batch

from framework.data import load
from framework.inner import loop as inner_loop
from framework.inner.augment import Augmentation
from framework.inner.execution import set_device_precision
from framework.inner.kernels import Execution
from framework.inner.loop import LOW_PRECISION_FROM, InnerLoop
from framework.inner.optimizers import Adam, State
from framework.inner.plan import ClassSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engine import RealBatch
from framework.outer.replay import Replay
from framework.outer.synthetic import one_hot_labels
from framework.rng import generator
from framework.run.distributed import resolve_device

STARTS = (0, 5, 10, 20, 50, 200)
WAYS = {
    "bf16, all steps": ("bf16", 0),
    "--precision bf16": ("bf16", LOW_PRECISION_FROM),
    "--precision tf32": ("tf32", 0),
}


def main() -> None:
    """Measure every way at every start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    device, cpu = resolve_device(a.device), torch.device("cpu")
    real = load.load("digits", Path(), device=cpu, zca=False, progress=False)
    small = build("convnet", 1, 8, 10, width=32, depth=2)
    images = learnt_images(InnerLoop(FlatNetwork(small, cpu), Adam(1e-3)), real, 60).to(device)
    labels, network = one_hot_labels(10, 1).to(device), FlatNetwork(small, device)
    sampler = ClassSampler(10, 1, 10, 1, Augmentation("flip_rotate", False, 8))
    ways = {name: way for name, way in WAYS.items() if device.type == "cuda" or way[0] != "tf32"}
    results: dict[str, Any] = {**environment(device), "window": WINDOW, "networks": a.networks, "cases": []}
    for start in STARTS:
        cosines: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(a.networks):
            gen = generator(1, "network", i)
            theta, plan = network.init(gen), sampler.plan(start + WINDOW, gen).to(device)
            batch = real_batch(real, gen)
            batch = RealBatch(batch.images.to(device), batch.labels.to(device), batch.draw.to(device))
            set_device_precision("float32")
            exact = InnerLoop(network, Adam(1e-3))
            state = exact.train(State.fresh(theta), images, labels, plan[:start])
            reference = Replay(exact)(state, images, labels, plan[start:], batch).grads.images
            for name, (precision, first) in ways.items():
                set_device_precision(precision)
                with patch.object(inner_loop, "LOW_PRECISION_FROM", first):
                    loop = InnerLoop(network, Adam(1e-3), Execution(precision=precision))
                    result = Replay(loop)(state, images, labels, plan[start:], batch).grads.images
                cosines[name].append(float(F.cosine_similarity(result.flatten(), reference.flatten(), 0)))
        for name, values in cosines.items():
            case = {
                "start": start,
                "way": name,
                "cosine": statistics.fmean(values),
                "cosine_std": statistics.stdev(values),
            }
            results["cases"].append(case)
    lines = ["| window starts at | " + " | ".join(ways) + " |", "| --- " * (len(ways) + 1) + "|"]
    for start in STARTS:
        row = [case for case in results["cases"] if case["start"] == start]
        lines.append(f"| {start} | " + " | ".join(f"{c['cosine']:.4f} ± {c['cosine_std']:.4f}" for c in row) + " |")
    lines += ["", f"Cosine to float32 ± deviation, {a.networks} networks, window {WINDOW}. {results['device']}, torch "
              f"{results['torch']}, seeds 0 and 1."]  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "precision.json").write_text(json.dumps(results, indent=2) + "\n")
    (a.out / "precision.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
