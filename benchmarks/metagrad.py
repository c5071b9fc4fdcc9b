"""Meta-gradient engines side by side: time by phase, memory, error.

    python benchmarks/metagrad.py --out DIR [--images 10 100] [--windows 20 60] [--variants ...] [--seconds 240]

Every variant takes the same outer step: ConvNet-3 of ``--width`` on 3x32x32 images of ten classes, Adam, a prefix of 20
steps, the window, a real batch. Ratios refer to ``ancestor``, the public code's way (benchmarks/ancestor.py);
``higher`` is our engine of that name, on planned batches. Times are medians of runs in turn (A B C A B C ...) after a
warm-up, in one process. Memory is each variant's additional peak over what is held before it: on a CPU in a process of
its own, after a short run whose memory was given back to the system; on CUDA, all that the allocator reserves, graphs'
own memory included. The error is the images' gradient's against float64.

What the ancestors' code leaves to defaults: on a CPU, our engines keep freed memory for the next tensors, as our runs
do, and the ancestors' have the C library's default (``ancestor, memory kept`` tells what that alone is worth). On CUDA,
PyTorch's default is TF32 in convolutions: ``ancestor, tf32`` is the public code as it would run there, the other
ancestors compute in float32.

Writes DIR/NAME.json and DIR/NAME.md; ``--plot FILE`` draws the growth of time and memory from such a JSON, or from
several.
"""

import argparse
import ctypes
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ancestor import outer_step
from common import RESULTS, Parser, at_least, markdown, resident_mib, run, write_results
from framework.distill_higher import Higher, outer_gradient
from framework.files import make_folder, read_json
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.execution import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, auto_chunk, configure_process
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Adam
from framework.inner.plan import ClassSampler, Plan
from framework.machine import environment, free_memory
from framework.networks.flat import FlatNetwork, activation_floats
from framework.networks.registry import build
from framework.outer.engines.engine import Engine, Mark, RealBatch, no_mark
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.policies.policy import Window
from framework.outer.synthetic import Synthetic, noise_images, one_hot_labels
from framework.report.plots import save_figure
from framework.rng import generator
from framework.run.distributed import resolve_device
from framework.run.memory import window_bytes

Runner = Callable[[int, Mark], Tensor]
WARM_UP = 2  # window of the run that loads libraries, compiles and captures
PREFIX = 20
RULE = Adam(1e-3)
PHASES = ("prefix", "window", "real", "backward")
ANCESTORS = ("ancestor", "ancestor+rebuild", "ancestor, memory kept", "ancestor, tf32")
ENGINES: dict[str, Callable[[FlatNetwork, Execution], Engine]] = {
    "higher": lambda network, how: Higher(InnerLoop(network, RULE, how)),
    "replay": lambda network, how: Replay(InnerLoop(network, RULE, how)),
    "replay, whole batches": lambda network, how: Replay(InnerLoop(network, RULE, replace(how, chunk=10**6))),
    "replay, forward over reverse": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, forward_over_reverse=True))
    ),
    "replay, compile": lambda network, how: Replay(InnerLoop(network, RULE, replace(how, compile=True))),
    "replay, compile, bf16": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, compile=True, precision="bf16"))
    ),
    "replay, graphs": lambda network, how: Replay(InnerLoop(network, RULE, replace(how, graphs=True))),
    "replay, graphs, tf32": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, graphs=True, precision="tf32"))
    ),
    "replay, graphs, bf16": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, graphs=True, precision="bf16"))
    ),
    "replay, graphs, bf16, channels last": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, graphs=True, precision="bf16", channels_last=True))
    ),
    "replay, graphs, compile": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, graphs=True, compile=True))
    ),
    "replay, graphs, compile, tf32": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, graphs=True, compile=True, precision="tf32"))
    ),
    "replay, graphs, compile, bf16": lambda network, how: Replay(
        InnerLoop(network, RULE, replace(how, graphs=True, compile=True, precision="bf16"))
    ),
    "lowrank": lambda network, how: LowRank(InnerLoop(network, RULE, how)),
    "lowrank, one random set per window": lambda network, how: LowRank(
        InnerLoop(network, RULE, how), Recipe(8, 8, 1, refresh=0, cotangent=False)
    ),
}
VARIANTS = (*ANCESTORS, *ENGINES)
DEFAULTS = {
    "cpu": ["ancestor", "ancestor+rebuild", "ancestor, memory kept", "higher", "replay", "replay, compile",
            "replay, compile, bf16"],
    "cuda": ["ancestor", "ancestor+rebuild", "ancestor, tf32", "higher", "replay", "replay, forward over reverse",
             "replay, graphs", "replay, graphs, tf32", "replay, graphs, bf16", "replay, graphs, bf16, channels last"],
}  # fmt: skip


@dataclass
class Problem:
    """One outer step's ingredients."""

    network: FlatNetwork
    theta: Tensor
    synthetic: Synthetic
    plan: Plan
    real: RealBatch

    def runner(self, variant: str) -> Runner:
        """What takes the step with a window of so many steps, tells of its phases, and returns the images' gradient."""
        device = self.network.device
        if variant in ANCESTORS:
            width = self.network.shapes[0][0]
            classes = self.synthetic.labels.argmax(1)

            def ancestors_step(window: int, mark: Mark) -> Tensor:
                configure_process(device, "float32")
                if device.type == "cpu" and "kept" not in variant:
                    return_freed_memory()
                torch.backends.cudnn.allow_tf32 = "tf32" in variant
                return outer_step(
                    lambda: build("convnet", 3, 32, 10, width=width), self.synthetic.images, classes, self.real.images,
                    self.real.labels.argmax(1), num_classes=10, prefix=PREFIX, window=window, lr=RULE.lr,
                    rebuild="rebuild" in variant, mark=mark,
                )  # fmt: skip

            return ancestors_step
        chunk = auto_chunk(device, activation_floats(self.network.module, 3, 32))
        engine = ENGINES[variant](self.network, Execution(chunk=chunk))

        def step(window: int, mark: Mark) -> Tensor:
            configure_process(device, engine.loop.execution.precision)
            result = outer_gradient(engine, [self.theta], self.synthetic, [self.plan], Window(PREFIX, window),
                                    self.real, mark)  # fmt: skip
            return result.grads.images

        return step


def make(images: int, window: int, real: int, width: int, device: torch.device, dtype: torch.dtype) -> Problem:
    """The problem with ``images`` synthetic images per step; the same numbers in every dtype."""
    gen = generator(0, "metagrad")
    network = FlatNetwork(build("convnet", 3, 32, 10, width=width), device, dtype)
    augmentation = Augmentation("flip_rotate", False, 32)
    ipc = images // 10
    plan = ClassSampler(Counts.equal(10, ipc), 10, ipc, augmentation).plan(PREFIX + window, gen).to(device)
    synthetic = noise_images(10 * ipc, (3, 32, 32), gen).to(device, dtype)
    labels = one_hot_labels(Counts.equal(10, ipc)).to(device, dtype)
    batch = RealBatch(
        torch.randn(real, 3, 32, 32, generator=gen).to(device, dtype),
        one_hot_labels(Counts.equal(10, real // 10)).to(device, dtype),
        augmentation.draw(1, real, gen).at(0).to(device),
    )
    return Problem(network, network.init(gen), Synthetic(synthetic, labels), plan, batch)


def return_freed_memory() -> None:
    """Undo ``keep_freed_memory``: the values that glibc's own settle at after a block of 32 MiB was freed."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
    libc.malloc_trim(0)


def timed(run: Runner, window: int, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """Seconds of each phase and in all, and the gradient."""
    gc.collect()
    seconds: dict[str, float] = {}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = last = now()

    def mark(phase: str) -> None:
        nonlocal last
        moment = now()
        seconds[phase], last = moment - last, moment

    gradient = run(window, mark)
    seconds["all"] = now() - began
    return seconds, gradient


def give_back(device: torch.device) -> None:
    """Return to the system what this process holds and does not use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)


def available_mib(device: torch.device) -> float:
    """MiB that are free once this process has given back what it keeps."""
    give_back(device)
    return (free_memory(device) or 0) / 2**20


def needed_mib(images: int, window: int, width: int) -> float:
    """MiB that a graph of the whole window needs, by the estimate of ``--dry_run``."""
    with torch.device("meta"):
        module = build("convnet", 3, 32, 10, width=width)
    return window_bytes("higher", module, 3, 32, window, images, images) / 2**20


def memory(problem: Problem, variant: str, images: int, window: int, a: argparse.Namespace) -> float:
    """The additional peak memory of one variant in MiB: on a CPU in a process of its own."""
    device = problem.network.device
    if device.type == "cuda":
        give_back(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        problem.runner(variant)(window, no_mark)
        return (torch.cuda.max_memory_reserved(device) - before) / 2**20
    command = [sys.executable, __file__, "--memory", variant, "--images", str(images), "--windows", str(window)]
    command += ["--real", str(a.real), "--widths", str(a.width)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_memory(variant: str, a: argparse.Namespace) -> None:
    """Print by how many MiB one outer step's peak on the CPU exceeds what the process holds after a short one."""
    cpu = torch.device("cpu")
    step = make(a.images[0], a.windows[0], a.real, a.widths[0], cpu, torch.float32).runner(variant)
    step(WARM_UP, no_mark)
    give_back(cpu)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = resident_mib("VmRSS")
    step(a.windows[0], no_mark)
    print(resident_mib("VmHWM") - before)


def case(images: int, window: int, a: argparse.Namespace, device: torch.device, deadline: float) -> dict[str, Any]:
    """Time, memory and error of every variant on one problem; those not warmed up by the deadline are left out."""
    problem = make(images, window, a.real, a.width, device, torch.float32)
    needed, free = needed_mib(images, window, a.width), available_mib(device)
    entry: dict[str, Any] = {"images": images, "window": window, "real": a.real, "width": a.width,
                             "parameters": problem.network.size, "variants": {}, "left out": {}}  # fmt: skip
    chosen = []
    for variant in a.variants or DEFAULTS[device.type]:
        if (variant == "higher" or variant in ANCESTORS) and needed > 0.85 * free:
            entry["left out"][variant] = f"needs about {needed / 1024:.0f} GiB, {free / 1024:.0f} are free"
        else:
            chosen.append(variant)
    peaks: dict[str, dict[str, float]] = {}
    for variant in chosen:
        if not a.no_memory and time.monotonic() < deadline:
            peaks[variant] = {"peak MiB": memory(problem, variant, images, window, a)}
    runs: dict[str, Runner] = {}
    for variant in chosen:
        if runs and time.monotonic() > deadline:
            entry["left out"][variant] = "no time was left for it"
            continue
        began = time.perf_counter()
        runs[variant] = problem.runner(variant)
        runs[variant](WARM_UP, no_mark)
        entry["variants"][variant] = {**peaks.get(variant, {}), "warm-up seconds": time.perf_counter() - began}
    times: dict[str, list[dict[str, float]]] = {variant: [] for variant in runs}
    gradients = {}
    enough = time.monotonic() + a.case_seconds
    for _ in range(a.repeats):
        for variant, runner in runs.items():
            seconds, gradients[variant] = timed(runner, window, device)
            times[variant].append(seconds)
        if time.monotonic() > enough:
            break
    exact = None
    if images * window <= a.error_limit:
        reference = make(images, window, a.real, a.width, device, torch.float64)
        exact = reference.runner("replay")(window, no_mark)
    for variant, measured in times.items():
        result = entry["variants"][variant]
        for phase in ("all", *PHASES):
            result[phase] = statistics.median(m[phase] for m in measured)
        result["runs"] = [m["all"] for m in measured]
        if exact is not None and variant not in ANCESTORS:  # those draw batches of their own
            g = gradients[variant].double()
            result["relative error"] = float((g - exact).norm() / exact.norm())
            result["cosine"] = float(torch.nn.functional.cosine_similarity(g.flatten(), exact.flatten(), 0))
    return entry


def table(results: dict[str, Any]) -> str:
    """Markdown, with ratios to the ancestors' way, or to the first variant where that was left out."""
    rows = []
    for entry in results["cases"]:
        base = entry["variants"].get(ANCESTORS[0])
        for name, e in entry["variants"].items():
            seconds = [f"{e[phase]:.2f}" for phase in ("all", *PHASES)]
            faster = f"{base['all'] / e['all']:.2f}" if base else ""
            peak = f"{e['peak MiB']:.0f}" if "peak MiB" in e else ""
            share = f"{100 * e['peak MiB'] / base['peak MiB']:.1f} %" if base and "peak MiB" in e else ""
            error = f"{e['relative error']:.0e}" if "relative error" in e else ""
            rows.append([entry["images"], entry["window"], name, *seconds, faster, peak, share, error])
        rows += [[entry["images"], entry["window"], name, why] for name, why in entry["left out"].items()]
    head = ["images", "window", "variant", "s", *PHASES, "faster", "peak MiB", "of it", "error"]
    place = ", ".join(str(results[key]) for key in ("device", "cpu", "threads", "torch", "python") if key in results)
    lines = [f"{place}. Medians of {results['repeats']} runs in turn; real batch {results['real']}."]
    lines += [f"Not run for lack of time: {skipped}." for skipped in results["skipped"]]
    return "\n".join([markdown(head, rows), "", *lines])


def plot(sources: list[Path], target: Path) -> None:
    """Time and memory against window, images and parameters, each over the others' smallest value, log-log."""
    cases = [entry for source in sources for entry in read_json(source)["cases"]]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    for column, key in enumerate(("window", "images", "parameters")):
        others = [k for k in ("window", "images", "parameters") if k != key]
        # The slice with the most points.
        slices: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for entry in cases:
            slices.setdefault(tuple(entry[k] for k in others), []).append(entry)
        fixed, chosen = max(slices.items(), key=lambda item: (len(item[1]), [-v for v in item[0]]))
        chosen.sort(key=lambda entry: entry[key])
        for variant in ("ancestor", "higher", "replay", "replay, compile", "replay, graphs"):
            for row, quantity in enumerate(("all", "peak MiB")):
                points = [(e[key], e["variants"][variant][quantity]) for e in chosen
                          if quantity in e["variants"].get(variant, {})]  # fmt: skip
                if points:
                    axes[row, column].loglog(*zip(*points, strict=True), "o-", label=variant)
        axes[0, column].set_title(
            "at " + ", ".join(f"{k} {v:,}" for k, v in zip(others, fixed, strict=True)), fontsize=10
        )
        axes[1, column].set_xlabel({"window": "window (inner steps)", "images": "images per step"}.get(key, key))
        values = [entry[key] for entry in chosen]
        for row in range(2):
            axes[row, column].set_xticks(values, [f"{value:,}" for value in values])
            axes[row, column].minorticks_off()
    axes[0, 0].set_ylabel("seconds per outer step")
    axes[1, 0].set_ylabel("additional peak memory (MiB)")
    axes[0, 0].legend()
    save_figure(figure, target)


def pair(text: str) -> tuple[int, int]:
    """``IMAGES,WINDOW`` as numbers."""
    images, separator, window = text.partition(",")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form IMAGES,WINDOW")
    return at_least(10)(images), at_least(1)(window)


def main() -> None:
    """Run the cases that fit into the time, smallest first."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--name", default="metagrad", help="of the files")
    parser.add_argument("--images", type=at_least(10), nargs="+", default=[10, 100], help="synthetic images per step")
    parser.add_argument("--windows", type=at_least(1), nargs="+", default=[20, 60])
    parser.add_argument("--widths", type=at_least(1), nargs="+", default=[128], help="of the ConvNet; further ones "
                        "only with the fewest images and the shortest window")  # fmt: skip
    parser.add_argument(
        "--cases", type=pair, nargs="+", metavar="IMAGES,WINDOW", help="these instead of all combinations"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="; ".join(VARIANTS))
    parser.add_argument("--real", type=at_least(10), default=500, help="real images")
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--case_seconds", type=float, default=math.inf, help="repeat no case after this time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case, and no further variant of "
                        "one, after this time")  # fmt: skip
    parser.add_argument("--error_limit", type=int, default=2000, help="images x window up to which errors are measured")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_device()
    parser.add_argument("--plot", nargs="+", metavar=("FILE", "JSON"), help="only draw FILE, from DIR/NAME.json or "
                        "from these")  # fmt: skip
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.plot:
        target, *sources = map(Path, a.plot)
        plot(sources or [a.out / f"{a.name}.json"], target)
        return
    if a.memory:
        print_memory(a.memory, a)
        return
    device = resolve_device(a.device)
    results: dict[str, Any] = {**environment(device), "real": a.real, "repeats": a.repeats, "cases": [], "skipped": []}
    if device.type == "cpu":
        results["threads"] = f"{torch.get_num_threads()} threads"
    deadline = time.monotonic() + a.seconds
    make_folder(a.out, "--out")
    pairs = a.cases or [(i, w) for i in a.images for w in a.windows]
    pairs.sort(key=lambda pair: pair[0] * pair[1])
    todo = [(i, w, a.widths[0]) for i, w in pairs] + [(*pairs[0], width) for width in a.widths[1:]]
    for images, window, a.width in todo:
        if time.monotonic() > deadline:
            results["skipped"].append(f"{images} images, window {window}, width {a.width}")
            continue
        results["cases"].append(case(images, window, a, device, deadline))
        write_results(a.out, a.name, results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
