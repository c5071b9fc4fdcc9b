"""How fast experts of trajectory matching are trained, against a plain PyTorch loop of the same mathematics.

    python benchmarks/experts.py --out DIR [--shapes cifar10 mnist] [--batches 2] [--at_once 1 2 4 8] [--device cuda]

An epoch here is ``--batches`` batches of 256 images of noise, of CIFAR-10's shape for a ConvNet-3 of width 128 and of
MNIST's for one of width 16; seconds are given for an epoch of the real set's 50,000 or 60,000 images, per expert.
``plain`` is an ``nn.Module``, ``torch.optim.SGD`` and GSAM over its parameters one by one; ours are ``at once`` experts
side by side, in chunks of whole batches or of 25 images, eager or compiled, on CUDA as graphs too. Each with the
sharpness-aware step (rho 0.01) and without (rho 0). ``plain`` has the C library's default memory handling, ours and
``plain, memory kept`` keep freed memory for the next tensors.

All take the same batches with the same augmentation. Before times are taken, the first expert of each must have moved
as the plain loop's, to ``--tolerance`` of the way; the benchmark ends with code 1 otherwise. Times are medians of runs
in turn (A B C A B C ...) in one process, after that run.

Writes DIR/experts.json and DIR/experts.md.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import RESULTS, Parser, at_least, markdown, ran_on, run, write_results
from framework.data.splits import Split
from framework.files import make_folder
from framework.inner.augment import Augmentation, Draw, apply
from framework.inner.execution import configure_process
from framework.inner.kernels import Execution
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.matching.experts import EPS, ExpertRecipe, ExpertTrainer, Sharpness
from framework.rng import generator
from framework.run.distributed import resolve_device
from metagrad import return_freed_memory

PLAIN, KEPT = "plain", "plain, memory kept"
CLASSES, BATCH, SEED, CHUNKED = 10, 256, 0, 25
RHOS = (0.01, 0.0)


@dataclass(frozen=True)
class Shape:
    """Of images, and the network that is trained on them."""

    channels: int
    side: int
    width: int
    images: int  # in the real set
    strategy: str


SHAPES = {
    "cifar10": Shape(3, 32, 128, 50_000, "color_crop_cutout_flip_scale_rotate"),
    "mnist": Shape(1, 28, 16, 60_000, "color_crop_cutout_scale_rotate"),
}

Trained = Callable[[], Tensor]
"""Trains one expert or several for an epoch, and returns the first one's parameters (P,) on the CPU."""


@dataclass(frozen=True)
class Variant:
    """How experts are trained: by the plain loop, or so many of ours at once with this execution."""

    name: str
    at_once: int = 1
    execution: Execution | None = None


def variants(a: argparse.Namespace, device: torch.device) -> list[Variant]:
    """All that are asked for; whole batches are chunks of ``BATCH``."""
    result = [Variant(PLAIN)] + ([Variant(KEPT)] if device.type == "cpu" else [])
    ways = ["eager", *([] if a.no_compile else ["compile"]), *(["graphs"] if device.type == "cuda" else [])]
    for way, chunk, at_once in itertools.product(ways, (BATCH, CHUNKED), a.at_once):
        name = f"{at_once} at once, {'whole batches' if chunk == BATCH else f'chunks of {chunk}'}, {way}"
        how = Execution(chunk=chunk, compile=way == "compile", graphs=way == "graphs")
        result.append(Variant(name, at_once, how))
    return result


# ---- the plain loop --------------------------------------------------------------------------------------


def plain_epoch(module: nn.Module, trainer: ExpertTrainer) -> Tensor:
    """Expert 0's epoch at the trainer's own random choices, as one would write it: its parameters (P,) on the CPU."""
    recipe, data, gen = trainer.recipe, trainer.train_split, generator(trainer.seed, "expert", 0, "init")
    nn.utils.vector_to_parameters(trainer.network.init(gen), module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=recipe.lr)
    gen = generator(trainer.seed, "expert", 0, "epoch", 0)
    order = torch.randperm(len(data), generator=gen).view(-1, recipe.batch)
    draw = recipe.augmentation.draw(len(order), recipe.batch, gen)
    for t, rows in enumerate(order):
        batch = next(iter(data.batches([rows])))
        plain_step(module, optimizer, batch, data.labels[rows], draw.at(t).to(trainer.network.device), recipe.sharpness)
    theta: Tensor = nn.utils.parameters_to_vector(module.parameters())
    return theta.detach().cpu()


def plain_step(
    module: nn.Module, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor, draw: Draw, sharpness: Sharpness
) -> None:
    """One step on labels (B,), with GSAM (arXiv 2203.08065) around it where rho is above 0."""
    x, y = apply(images, F.one_hot(labels, CLASSES).to(images.dtype), draw)
    optimizer.zero_grad()
    F.cross_entropy(module(x), y).backward()
    if sharpness.rho > 0:
        sharpen(module, x, y, sharpness)
    optimizer.step()


def sharpen(module: nn.Module, x: Tensor, y: Tensor, sharpness: Sharpness) -> None:
    """Replace the gradients at hand by GSAM's direction, with ASAM's perturbation (arXiv 2102.11600)."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    before, g = [p.detach().clone() for p in parameters], [gradient(p).clone() for p in parameters]
    scale = sharpness.rho / (norm([b.abs() * k for b, k in zip(before, g, strict=True)]) + EPS)
    with torch.no_grad():
        for p, b, k in zip(parameters, before, g, strict=True):
            p.add_(scale * b.square() * k)
    module.zero_grad()
    F.cross_entropy(module(x), y).backward()
    with torch.no_grad():
        there = [gradient(p) for p in parameters]
        own, theirs = norm(g), norm(there)
        product = torch.stack([(k * s).sum() for k, s in zip(g, there, strict=True)]).sum()
        cosine = product / (own * theirs + EPS)
        for p, b, k, s in zip(parameters, before, g, there, strict=True):
            across = k - cosine * own * s / (theirs + EPS)
            p.copy_(b)
            p.grad = s - sharpness.alpha * across


def gradient(parameter: nn.Parameter) -> Tensor:
    """What ``backward`` left there."""
    assert parameter.grad is not None
    return parameter.grad


def norm(tensors: list[Tensor]) -> Tensor:
    """Of all of them together, ()."""
    together: Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return together


# ---- measuring -------------------------------------------------------------------------------------------


def prepare(variant: Variant, shape: Shape, rho: float, batches: int, device: torch.device) -> Trained:
    """What trains a variant's experts for an epoch of so many batches."""
    module = build("convnet", shape.channels, shape.side, CLASSES, width=shape.width)
    gen = generator(SEED, "noise")
    images = torch.randn(batches * BATCH, shape.channels, shape.side, shape.side, generator=gen).to(device)
    data = Split(images, torch.randint(CLASSES, (len(images),), generator=gen).to(device))
    recipe = ExpertRecipe(
        lr=0.01, momentum=0.0, weight_decay=0.0, batch=BATCH, epochs=1, decay=False, sharpness=Sharpness(rho),
        augmentation=Augmentation(shape.strategy, False, shape.side),
    )  # fmt: skip
    trainer = ExpertTrainer(FlatNetwork(module, device), data, CLASSES, recipe, variant.execution, SEED)
    if variant.execution is None:
        return lambda: plain_epoch(trainer.network.module, trainer)
    numbers = range(variant.at_once)
    return lambda: trainer.train(numbers)[0].trajectory[-1]


def timed(variant: Variant, train: Trained, device: torch.device) -> tuple[float, Tensor]:
    """Seconds per expert, and the first one's parameters, which are waited for."""
    configure_process(device, "float32")
    if variant.name == PLAIN and device.type == "cpu":
        return_freed_memory()
    began = time.perf_counter()
    theta = train()
    return (time.perf_counter() - began) / variant.at_once, theta


def case(name: str, rho: float, a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Every variant on images of one shape, with or without the sharpness-aware step.

    Raises:
        SystemExit: a variant's expert is another than the plain loop's.
    """
    shape = replace(SHAPES[name], width=a.width or SHAPES[name].width)
    chosen = {variant: prepare(variant, shape, rho, a.batches, device) for variant in variants(a, device)}
    fresh = FlatNetwork(build("convnet", shape.channels, shape.side, CLASSES, width=shape.width), torch.device("cpu"))
    start = fresh.init(generator(SEED, "expert", 0, "init"))
    expected: Tensor | None = None
    entry: dict[str, Any] = {"shape": name, "width": shape.width, "rho": rho, "images": shape.images, "variants": {}}
    for variant, train in chosen.items():
        seconds, theta = timed(variant, train, device)
        expected = theta if expected is None else expected
        difference = float((theta - expected).norm() / (expected - start).norm())
        if not difference < a.tolerance:
            raise SystemExit(f"{name}, rho {rho:g}: {variant.name} trains another expert: {difference:.1e} of the way")
        entry["variants"][variant.name] = {"warm-up seconds": seconds * variant.at_once, "difference": difference}
    times: dict[Variant, list[float]] = {variant: [] for variant in chosen}
    for _ in range(a.repeats):
        for variant, train in chosen.items():
            times[variant].append(timed(variant, train, device)[0])
    scale = shape.images / (a.batches * BATCH)
    for variant, runs in times.items():
        entry["variants"][variant.name] |= {"runs": runs, "seconds per epoch": scale * statistics.median(runs)}
    return entry


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each variant, with the ratio to the plain loop."""
    rows = []
    for entry in results["cases"]:
        base = entry["variants"][PLAIN]["seconds per epoch"]
        for name, e in entry["variants"].items():
            seconds = e["seconds per epoch"]
            rows.append([
                entry["shape"], entry["width"], f"{entry['rho']:g}", name, f"{seconds:.1f}", f"{base / seconds:.2f}",
                f"{e['difference']:.0e}",
            ])  # fmt: skip
    head = ("shape", "width", "rho", "variant", "s per epoch", "faster", "difference")
    about = (
        f"{ran_on(results)}. Medians of {results['repeats']} runs in turn of {results['batches']} batches of {BATCH}."
    )
    return f"{markdown(head, rows)}\n\n{about}"


def main() -> None:
    """Measure every shape with and without the sharpness-aware step."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--rhos", nargs="+", type=float, choices=RHOS, default=list(RHOS))
    parser.add_argument("--width", type=at_least(1), help="of the ConvNet (default: each shape's)")
    parser.add_argument("--batches", type=at_least(1), default=2, help=f"of {BATCH} images")
    parser.add_argument("--at_once", nargs="+", type=at_least(1), default=[1, 2, 4, 8], help="experts side by side")
    parser.add_argument("--no_compile", action="store_true", help="leave compiled kernels out")
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="see above (float32)")
    parser.add_device()
    a = parser.parse_args()
    device = resolve_device(a.device)
    make_folder(a.out, "--out")
    results: dict[str, Any] = {**environment(device), "batches": a.batches, "repeats": a.repeats, "cases": []}
    for name, rho in itertools.product(a.shapes, a.rhos):
        results["cases"].append(case(name, rho, a, device))
        write_results(a.out, "experts", results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
