"""How close to float32's is a meta-gradient in lower precision, by the step at which its window starts?

    python benchmarks/precision.py --out DIR [--device cuda]

On ``digits`` as in benchmarks/lrha_quality.py: cosine of the images' meta-gradient to float32's, window 20, Adam. ``all
steps`` computes every step in bfloat16; ``--precision bf16`` keeps the first ones of a trajectory in float32. Writes
DIR/precision.json and DIR/precision.md.
"""

import statistics
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from common import RESULTS, Parser, at_least, markdown, ran_on, run, write_results
from framework.data.load import DataSpec, load
from framework.files import make_folder
from framework.inner import loop as inner_loop
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.execution import set_device_precision
from framework.inner.kernels import Execution
from framework.inner.loop import LOW_PRECISION_FROM, InnerLoop
from framework.inner.optimizers import Adam, State
from framework.inner.plan import ClassSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engines.engine import RealBatch
from framework.outer.engines.replay import Replay
from framework.outer.synthetic import Synthetic, one_hot_labels
from framework.rng import generator
from framework.run.distributed import resolve_device
from lrha_quality import WINDOW, learnt_images, real_batch

STARTS = (0, 5, 10, 20, 50, 200)
WAYS = {
    "bf16, all steps": ("bf16", 0),
    "--precision bf16": ("bf16", LOW_PRECISION_FROM),
    "--precision tf32": ("tf32", 0),
}


def main() -> None:
    """Measure every way at every start."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--networks", type=at_least(2), default=5)
    parser.add_device()
    a = parser.parse_args()
    make_folder(a.out, "--out")
    device, cpu = resolve_device(a.device), torch.device("cpu")
    real = load(DataSpec("digits", Path()), cpu, progress=False)
    small = build("convnet", 1, 8, 10, width=32, depth=2)
    images = learnt_images(InnerLoop(FlatNetwork(small, cpu), Adam(1e-3)), real, 60).to(device)
    labels, network = one_hot_labels(Counts.equal(10, 1)).to(device), FlatNetwork(small, device)
    sampler = ClassSampler(Counts.equal(10, 1), 10, 1, Augmentation("flip_rotate", False, 8))
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
            reference = Replay(exact)(state, Synthetic(images, labels), plan[start:], batch).grads.images
            for name, (precision, first) in ways.items():
                set_device_precision(precision)
                with patch.object(inner_loop, "LOW_PRECISION_FROM", first):
                    loop = InnerLoop(network, Adam(1e-3), Execution(precision=precision))
                    result = Replay(loop)(state, Synthetic(images, labels), plan[start:], batch).grads.images
                cosines[name].append(float(F.cosine_similarity(result.flatten(), reference.flatten(), 0)))
        for name, values in cosines.items():
            case = {
                "start": start,
                "way": name,
                "cosine": statistics.fmean(values),
                "cosine_std": statistics.stdev(values),
            }
            results["cases"].append(case)
    write_results(a.out, "precision", results, table(results))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each start, one column for each way."""
    rows: dict[int, list[str]] = {}
    for c in results["cases"]:
        rows.setdefault(c["start"], [str(c["start"])]).append(f"{c['cosine']:.4f} ± {c['cosine_std']:.4f}")
    ways = dict.fromkeys(case["way"] for case in results["cases"])
    note = (
        f"Cosine to float32 ± deviation, {results['networks']} networks, window {results['window']}. "
        f"{ran_on(results)}, seeds 0 and 1."
    )
    return markdown(["window starts at", *ways], rows.values()) + f"\n\n{note}"


if __name__ == "__main__":
    run(main)
