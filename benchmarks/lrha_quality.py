"""How good is a meta-gradient whose Hessians are replaced by low-rank factors (LRHA)?

    python benchmarks/lrha_quality.py --out DIR [--quick]

On ``digits`` (ConvNet of depth 2 and width 32, 10 images learnt a little beforehand), cosine and relative error of the
images' meta-gradient against the exact one, over the optimiser, the stage of inner training at which the window starts,
rank, refresh interval, power iterations and metric; rank 0, the Hessian left out, is the base line. Each figure is the
mean and the sample deviation over inner networks. Cost is counted in products with second derivatives per window; the
exact sweep takes one per step. Writes DIR/lrha_quality.json and DIR/lrha_quality.md.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import RESULTS, Parser, at_least, markdown, ran_on, run, write_results
from framework.data.load import DataSpec, load
from framework.data.splits import RealData
from framework.files import make_folder
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import State, make_optimizer
from framework.inner.plan import ClassSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engines.engine import RealBatch
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.synthetic import Synthetic, noise_images, one_hot_labels
from framework.rng import generator

WINDOW = 20
STARTS = (0, 20, 200)
RATES = {"Adam": 0.001, "SGD": 0.01}
RECIPES = {
    "no Hessian": Recipe(0),
    "k 8, per window": Recipe(8, 4, 2, refresh=0, cotangent=False),
    "k 32, per window": Recipe(32, 4, 2, refresh=0, cotangent=False),
    "k 128, per window": Recipe(128, 4, 2, refresh=0, cotangent=False),
    "k 32, every 5": Recipe(32, 4, 2, refresh=5, cotangent=False),
    "k 8, every step": Recipe(8, 4, 2, refresh=1, cotangent=False),
    "k 32, every step": Recipe(32, 4, 2, refresh=1, cotangent=False),
    "k 32, every step, no power iteration": Recipe(32, 4, 0, refresh=1, cotangent=False),
    "k 32, every step, 6 power iterations": Recipe(32, 4, 6, refresh=1, cotangent=False),
    "k 8, every step, adam metric": Recipe(8, 4, 2, refresh=1, metric="adam", cotangent=False),
    "k 32, every step, adam metric": Recipe(32, 4, 2, refresh=1, metric="adam", cotangent=False),
    "k 32, per window, adam metric": Recipe(32, 4, 2, refresh=0, metric="adam", cotangent=False),
    "k 8, every 5, cotangent": Recipe(8, 4, 2, refresh=5, cotangent=True),
    "k 8, every 2, cotangent": Recipe(8, 4, 2, refresh=2, cotangent=True),
    "k 8, every 2, cotangent, adam metric": Recipe(8, 4, 2, refresh=2, metric="adam", cotangent=True),
}
QUICK = ("no Hessian", "k 8, per window", "k 8, every step")


def learnt_images(loop: InnerLoop, real: RealData, steps: int) -> torch.Tensor:
    """Ten images after ``steps`` plain outer steps from noise: near noise, gradients are not typical of a run."""
    images = noise_images(10, real.image_shape, generator(0, "images")).requires_grad_()
    labels, optimizer = one_hot_labels(Counts.equal(10, 1)), torch.optim.Adam([images], lr=0.01)
    sampler = ClassSampler(Counts.equal(10, 1), 10, 1, Augmentation("flip_rotate", False, 8))
    for step in range(steps):
        gen = generator(0, "learning", step)
        start = State.fresh(loop.network.init(gen))
        images.grad = Replay(loop)(
            start, Synthetic(images.detach(), labels), sampler.plan(WINDOW, gen), real_batch(real, gen)
        ).grads.images
        optimizer.step()
    return images.detach()


def real_batch(real: RealData, gen: torch.Generator) -> RealBatch:
    """200 real training images, not augmented."""
    picks = torch.randint(len(real.train), (200,), generator=gen)
    images, labels = real.train.batch(picks), F.one_hot(real.train.labels[picks], real.num_classes).float()
    return RealBatch(images, labels, Augmentation("none", False, 8).draw(1, 200, gen).at(0))


def main() -> None:
    """Measure, and write after every case."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--networks", type=at_least(2), default=3)
    parser.add_argument("--quick", action="store_true", help="three recipes, one start: a minute")
    a = parser.parse_args()
    make_folder(a.out, "--out")
    recipes = {name: RECIPES[name] for name in QUICK} if a.quick else RECIPES
    starts = STARTS[1:2] if a.quick else STARTS
    real = load(DataSpec("digits", Path()), torch.device("cpu"), progress=False)
    network = FlatNetwork(build("convnet", 1, 8, 10, width=32, depth=2), torch.device("cpu"))
    results: dict[str, Any] = {**environment(torch.device("cpu")), "window": WINDOW, "networks": a.networks,
                               "parameters": network.size, "cases": []}  # fmt: skip
    bar = tqdm(total=len(RATES) * len(starts) * len(recipes) * a.networks, unit="window", dynamic_ncols=True)
    for name, rate in RATES.items():
        loop = InnerLoop(network, make_optimizer(name, rate))
        images, labels = learnt_images(loop, real, 60), one_hot_labels(Counts.equal(10, 1))
        sampler = ClassSampler(Counts.equal(10, 1), 10, 1, Augmentation("flip_rotate", False, 8))
        for start in starts:
            measured: dict[str, list[tuple[float, float]]] = {key: [] for key in recipes}
            seconds = dict.fromkeys(("exact", *recipes), 0.0)
            products = {}
            for i in range(a.networks):
                gen = generator(1, "network", i)
                theta, plan, batch = network.init(gen), sampler.plan(start + WINDOW, gen), real_batch(real, gen)
                state = loop.train(State.fresh(theta), images, labels, plan[:start])
                inside = plan[start:]
                began = time.perf_counter()
                exact = Replay(loop)(state, Synthetic(images, labels), inside, batch).grads.images.flatten()
                seconds["exact"] += (time.perf_counter() - began) / a.networks
                for key, recipe in recipes.items():
                    began = time.perf_counter()
                    result = LowRank(loop, recipe)(state, Synthetic(images, labels), inside, batch)
                    seconds[key] += (time.perf_counter() - began) / a.networks
                    g, products[key] = result.grads.images.flatten(), result.cost.products
                    error = float((g - exact).norm() / exact.norm())
                    measured[key].append((float(F.cosine_similarity(g, exact, 0)), error))
                    bar.update()
            for key, values in measured.items():
                cosines, errors = zip(*values, strict=True)
                results["cases"].append({
                    "optimiser": name, "start": start, "recipe": key, "products": products[key],
                    "cosine": statistics.fmean(cosines), "cosine_std": statistics.stdev(cosines),
                    "relative error": statistics.fmean(errors), "relative error_std": statistics.stdev(errors),
                    "times the exact sweep's seconds": seconds[key] / seconds["exact"],
                })  # fmt: skip
            write_results(a.out, "lrha_quality", results, table(results))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each recipe; cosine / relative error for each optimiser and start."""
    cases = results["cases"]
    columns = list(dict.fromkeys((case["optimiser"], case["start"]) for case in cases))
    rows = []
    for recipe in dict.fromkeys(case["recipe"] for case in cases):
        found = {(case["optimiser"], case["start"]): case for case in cases if case["recipe"] == recipe}
        slower = statistics.fmean(case["times the exact sweep's seconds"] for case in found.values())
        cells = [
            f"{found[c]['cosine']:.2f} ± {found[c]['cosine_std']:.2f} / {found[c]['relative error']:.2g}"
            for c in columns
        ]
        rows.append([recipe, found[columns[0]]["products"], f"{slower:.1f} x", *cells])
    head = ["factors", "products", "time", *(f"{name}, from {start}" for name, start in columns)]
    note = (
        f"Window {results['window']}, {results['parameters']:,} parameters, {results['networks']} networks; cosine ± "
        f"deviation / relative error against the exact meta-gradient, which takes {results['window']} products.\n"
        f"{ran_on(results)}, seeds 0 and 1."
    )
    return markdown(head, rows) + f"\n\n{note}"


if __name__ == "__main__":
    run(main)
