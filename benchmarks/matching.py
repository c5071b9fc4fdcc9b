"""One iteration of trajectory matching over the student's steps: memory, time, and what leaving out the Hessian costs.

    python benchmarks/matching.py --out DIR [--steps 10 20 40 80] [--images 100] [--variants ...] [--device cuda]

ConvNet-3 of ``--width`` on 3x32x32 images of ten classes, all ``--images`` in each step, hard labels, one DSA operation
a step. ``graph`` is the originals' way (MTT, FTD): one autograd graph through all steps, whole batches. ``replay`` is
ours, ``none`` ours with ``--hessian none``, which is TESLA's gradient; each also with compiled kernels or, on CUDA, as
CUDA graphs. All take the same batches and the same augmentation, so that their gradients can be compared.

Start and target lie on the trajectory of a real expert, which is trained first: plain SGD on digits, enlarged to 32
pixels, with noise. The set is ``--images`` of them.

Every variant has a process of its own. Memory is what an iteration's peak adds to what is held before: on a CPU
resident memory after a warm-up of two steps, on CUDA all that the allocator reserves, graphs' own included. Times are
medians of iterations in turn (A B C A B C ...). On a CPU ours keep freed memory for the next tensors, as our runs do;
``graph`` has the C library's default. ``cosine`` and ``error`` (relative) are the images' gradient's against that of
``graph``, or of ``replay`` where it is left out; ``step size`` is the ratio of the gradients towards the step size.

Writes DIR/matching.json and DIR/matching.md.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from common import RESULTS, Parser, at_least, markdown, ran_on, resident_mib, run, write_results
from framework.data.digits import read_digits
from framework.data.splits import Split
from framework.errors import UserError
from framework.files import make_folder
from framework.inner.augment import Augmentation, apply
from framework.inner.counts import Counts
from framework.inner.execution import auto_chunk, configure_process, set_device_precision
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import PlainSGD
from framework.inner.plan import Plan, ShuffledSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork, activation_floats
from framework.networks.registry import build
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.matching.experts import ExpertRecipe, ExpertTrainer, Sharpness
from framework.outer.matching.ftd import Matched, match
from framework.outer.synthetic import Grads, Synthetic, one_hot_labels
from framework.rng import generator
from framework.run.distributed import resolve_device
from metagrad import available_mib, give_back, needed_mib

GRAPH = "graph"
OURS = {
    "replay": Execution(),
    "replay, compile": Execution(compile=True),
    "replay, graphs": Execution(graphs=True),
    "none": Execution(),
    "none, compile": Execution(compile=True),
    "none, graphs": Execution(graphs=True),
}
"""How each is carried out; on a CPU without those of CUDA graphs."""
VARIANTS = (GRAPH, *OURS)
DEFAULTS = {
    "cpu": [GRAPH, "replay", "replay, compile", "none", "none, compile"],
    "cuda": [GRAPH, "replay", "replay, graphs", "none", "none, graphs"],
}
CLASSES = 10
AUGMENTATION = Augmentation("color_crop_cutout_scale_rotate", False, 32)
DIGITS, MOST = 1797, 1000  # images that there are, and that have enough of each class
NOISE = 0.2  # deviation of what is added to standardised digits
WARM_UP = 2  # steps of the run that loads libraries and compiles


@dataclass(frozen=True)
class Problem:
    """One iteration's ingredients: see ``framework.outer.matching.ftd.match``."""

    network: FlatNetwork
    start: Tensor
    target: Tensor
    synthetic: Synthetic
    step_size: Tensor
    plan: Plan

    def solver(self, variant: str, chunk: int) -> Callable[["Problem"], Matched]:
        """What differentiates the matching loss of a problem with this one's network, in chunks of so many images."""
        device = self.network.device
        if variant == GRAPH:
            set_device_precision("float32")
            return unrolled
        configure_process(device, "float32")
        how = replace(OURS[variant], chunk=chunk)
        loop = InnerLoop(self.network, PlainSGD(), how)
        engine = LowRank(loop, Recipe(rank=0)) if variant.startswith("none") else Replay(loop)
        return lambda p: match(engine, p.start, p.target, p.synthetic, p.step_size, p.plan)


def unrolled(p: Problem) -> Matched:
    """The originals' way: parameters after each step are a function of the set, whose graph is kept to the end."""
    images, step_size = p.synthetic.images.clone().requires_grad_(), p.step_size.clone().requires_grad_()
    theta = p.start.clone().requires_grad_()
    for t in range(len(p.plan)):
        drawn = p.plan.indices[t]
        x, y = apply(images[drawn], p.synthetic.labels[drawn], p.plan.draw.at(t))
        (gradient,) = torch.autograd.grad(F.cross_entropy(p.network(theta, x), y), theta, create_graph=True)
        theta = theta - step_size * gradient
    loss = (theta - p.target).square().sum() / (p.start - p.target).square().sum()
    dx, da = torch.autograd.grad(loss, [images, step_size])
    return Matched(loss.detach(), Grads(dx, None), da)


# ---- the problem -----------------------------------------------------------------------------------------


def enlarged_digits(count: int) -> tuple[Tensor, Tensor]:
    """The first images of digits, standardised, as (N, 3, 32, 32), with noise; and their labels (N,).

    Without it all pixels of a flat background cross a ReLU's kink together, which makes gradients of another rounding
    differ by several per cent. Photographs have no such places.
    """
    source = read_digits(Path(), 8)
    halves = [(part.read(torch.arange(len(part.labels))), part.labels) for part in (source.train, source.test)]
    pixels, labels = (torch.cat(parts)[:count] for parts in zip(*halves, strict=True))
    pixels = pixels.float()
    images = F.interpolate((pixels - pixels.mean()) / pixels.std(), size=32, mode="bilinear").repeat(1, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator(0, "noise of the digits"))
    return images + NOISE * noise, labels


def train_expert(a: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
    """Start and target (P,) on the CPU, and the synthetic images, sorted by class."""
    real, labels = enlarged_digits(max(a.expert_images, 5 * a.images))
    images = torch.cat([real[labels == k][: a.images // CLASSES] for k in range(CLASSES)])
    recipe = ExpertRecipe(
        lr=0.01, momentum=0.0, weight_decay=0.0, batch=32, epochs=a.start_epoch + a.expert_epochs, decay=False,
        sharpness=Sharpness(rho=0.0), augmentation=AUGMENTATION,
    )  # fmt: skip
    network = FlatNetwork(build("convnet", 3, 32, CLASSES, width=a.width), device)
    train = Split(real[: a.expert_images].to(device), labels[: a.expert_images].to(device))
    configure_process(device, "float32")
    (expert,) = ExpertTrainer(network, train, CLASSES, recipe, Execution(chunk=recipe.batch)).train([0])
    return {"start": expert.trajectory[a.start_epoch], "target": expert.trajectory[-1], "images": images}


def make(folder: Path, steps: int, a: argparse.Namespace, device: torch.device) -> Problem:
    """The problem of so many steps, from what ``train_expert`` left in ``folder``."""
    saved = torch.load(folder / "expert.pt", map_location=device, weights_only=True)
    network = FlatNetwork(build("convnet", 3, 32, CLASSES, width=a.width), device)
    labels = one_hot_labels(Counts.equal(CLASSES, a.images // CLASSES)).to(device)
    plan = ShuffledSampler(a.images, a.images, AUGMENTATION).plan(steps, generator(0, "matching")).to(device)
    step_size = torch.tensor(a.step_size, dtype=torch.float64, device=device)
    return Problem(network, saved["start"], saved["target"], Synthetic(saved["images"], labels), step_size, plan)


# ---- one variant, in a process of its own ----------------------------------------------------------------


def peak_mib(function: Callable[[], Matched], device: torch.device) -> tuple[float, Matched]:
    """By how many MiB the peak of a call exceeds what the process holds before it, and what it returns."""
    give_back(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        reserved = torch.cuda.memory_reserved(device)
        result = function()
        return (torch.cuda.max_memory_reserved(device) - reserved) / 2**20, result
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = resident_mib("VmRSS")
    result = function()
    return resident_mib("VmHWM") - before, result


def tell(**facts: Any) -> None:
    """A line for the parent process."""
    print(json.dumps(facts), flush=True)


def serve(variant: str, folder: Path, steps: int, a: argparse.Namespace, device: torch.device) -> None:
    """Measure the memory of an iteration and keep its gradient; then time one for each line of the standard input."""
    began = time.perf_counter()
    problem = make(folder, steps, a, device)
    solve = problem.solver(variant, a.chunk or auto_chunk(device, activation_floats(problem.network.module, 3, 32)))
    if device.type == "cpu":  # on CUDA, what is captured or loaded counts
        solve(replace(problem, plan=problem.plan[:WARM_UP]))
    peak, found = peak_mib(lambda: solve(problem), device)
    torch.save({"images": found.grads.images.cpu(), "step_size": found.step_size.cpu()}, folder / f"{variant}.pt")
    tell(**{"peak MiB": peak, "loss": float(found.loss), "warm-up seconds": time.perf_counter() - began})
    del found
    for _ in sys.stdin:
        if variant == GRAPH:
            give_back(device)
        began = time.perf_counter()
        float(solve(problem).loss)  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        tell(seconds=time.perf_counter() - began)


class Server:
    """A process that runs ``serve``.

    Args:
        variant: of which.
        folder: of ``train_expert``.
        steps: N.
        a: the benchmark's flags.
    """

    def __init__(self, variant: str, folder: Path, steps: int, a: argparse.Namespace) -> None:
        self.variant, self.steps = variant, steps
        command = [sys.executable, __file__, "--out", str(folder), "--serve", variant, "--steps", str(steps)]
        command += ["--images", str(a.images), "--width", str(a.width), "--step_size", str(a.step_size)]
        command += ["--chunk", str(a.chunk)]
        self.process = subprocess.Popen(
            [*command, "--device", a.device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self) -> dict[str, Any]:
        """Until it is ready, once: what it has found by then.

        Raises:
            UserError: it ended.
        """
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input ends it

    def seconds(self) -> float:
        """Of one more iteration, after ``wait``."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(
                f"{self.variant}, {self.steps} steps: ended with code {self.process.wait()}; leave it out by "
                "--variants or --steps"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


# ---- all of them -----------------------------------------------------------------------------------------


def case(folder: Path, steps: int, a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time, memory and gradient of every variant at so many steps."""
    entry: dict[str, Any] = {"steps": steps, "variants": {}, "left out": {}}
    needed, free = needed_mib(a.images, steps, a.width), available_mib(device)
    chosen = list(a.variants or DEFAULTS[device.type])
    if GRAPH in chosen and needed > 0.85 * free:
        chosen.remove(GRAPH)
        entry["left out"][GRAPH] = f"needs about {needed / 1024:.0f} GiB, {free / 1024:.0f} are free"
    with ExitStack() as stack:
        # They start at the same time: importing and compiling take longer than all that is measured.
        servers = [stack.enter_context(Server(variant, folder, steps, a)) for variant in chosen]
        known = {server.variant: server.wait() for server in servers}
        times: dict[str, list[float]] = {variant: [] for variant in chosen}
        for _ in range(a.repeats):
            for server in servers:
                times[server.variant].append(server.seconds())
    reference = next((name for name in (GRAPH, "replay") if name in chosen), None)
    for name in chosen:
        errors = compare(folder, name, reference) if reference else {}
        entry["variants"][name] = {
            "seconds": statistics.median(times[name]), "runs": times[name], **known[name], **errors
        }  # fmt: skip
    return entry


def compare(folder: Path, variant: str, reference: str) -> dict[str, float]:
    """A variant's gradients against the reference's, in float64."""
    found, exact = (torch.load(folder / f"{name}.pt", weights_only=True) for name in (variant, reference))
    g, e = found["images"].double().flatten(), exact["images"].double().flatten()
    return {
        "cosine": float(F.cosine_similarity(g, e, 0)),
        "relative error": float((g - e).norm() / e.norm()),
        "step size": float(found["step_size"] / exact["step_size"]),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown, with ratios to the originals' way where it was run."""
    rows = []
    for entry in results["cases"]:
        base = entry["variants"].get(GRAPH)
        for name, e in entry["variants"].items():
            faster = f"{base['seconds'] / e['seconds']:.2f}" if base else ""
            share = f"{100 * e['peak MiB'] / base['peak MiB']:.1f} %" if base else ""
            errors = (
                [f"{e['cosine']:.4f}", f"{e['relative error']:.0e}", f"{e['step size']:.3f}"] if "cosine" in e else []
            )
            rows.append([entry["steps"], name, f"{e['seconds']:.2f}", faster, f"{e['peak MiB']:.0f}", share, *errors])
        rows += [[entry["steps"], name, why] for name, why in entry["left out"].items()]
    head = ["steps", "variant", "s", "faster", "peak MiB", "of it", "cosine", "error", "step size"]
    chunks = f", ours in chunks of {results['chunk']}" if results["chunk"] else ""
    about = (
        f"{ran_on(results)}. {results['images']} images per step{chunks}, width {results['width']}, step size "
        f"{results['step size']:g}, start at epoch {results['start epoch']}; medians of {results['repeats']} in turn."
    )
    return f"{markdown(head, rows)}\n\n{about}"


def positive(text: str) -> float:
    """For ``add_argument(type=...)``: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main() -> None:
    """Train the expert, then measure at each number of steps."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--name", default="matching", help="of the files")
    parser.add_argument("--steps", type=at_least(1), nargs="+", default=[10, 20, 40, 80], help="of the student")
    parser.add_argument("--images", type=at_least(10), default=100, help="synthetic images, a multiple of 10")
    parser.add_argument("--chunk", type=at_least(0), default=0, help="images per chunk of ours (default: as in runs)")
    parser.add_argument("--width", type=at_least(1), default=128, help="of the ConvNet")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="; ".join(VARIANTS))
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--step_size", type=positive, default=0.01, help="of the student")
    parser.add_argument("--start_epoch", type=at_least(0), default=5, help="of the expert")
    parser.add_argument("--expert_epochs", type=at_least(1), default=2, help="from there to the target")
    parser.add_argument("--expert_images", type=at_least(10), default=1000, help="digits that the expert is trained on")
    parser.add_device()
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.images % CLASSES or a.images > MOST:
        parser.error(f"--images {a.images} is no multiple of {CLASSES}, the number of classes, up to {MOST}")
    if a.expert_images > DIGITS:
        parser.error(f"--expert_images {a.expert_images} is more than the {DIGITS:,} that there are")
    device = resolve_device(a.device)
    if a.serve:
        serve(a.serve, a.out, a.steps[0], a, device)
        return
    make_folder(a.out, "--out")
    results: dict[str, Any] = {
        **environment(device), "images": a.images, "width": a.width, "chunk": a.chunk or None, "step size": a.step_size,
        "start epoch": a.start_epoch, "expert epochs": a.expert_epochs, "expert images": a.expert_images,
        "repeats": a.repeats, "cases": [],
    }  # fmt: skip
    with TemporaryDirectory() as name:
        torch.save(train_expert(a, device), Path(name, "expert.pt"))
        for steps in a.steps:
            results["cases"].append(case(Path(name), steps, a, device))
            write_results(a.out, a.name, results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
