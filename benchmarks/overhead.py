"""What a long run does besides its steps: records, plots, TensorBoard, checkpoints and the selected set's files.

    python benchmarks/overhead.py --out DIR [--epochs 60000] [--step_seconds 0.0367]

Runs the worker of a CIFAR-10 run as long as the papers' (60,000 epochs of 9 steps, 10 images per class, AT-BPTT,
evaluated every 25 epochs) with steps and evaluations that cost nothing, on a clock that goes on by ``--step_seconds``
at each step; by default as long as the paper reports for that run on an A800 (5.5 hours). All that remains is real: its
share of the run's time is the result. Writes DIR/overhead.json and DIR/overhead.md.
"""

import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from common import RESULTS, Parser, at_least, markdown, ran_on, run, write_results
from framework import base
from framework.assemble import bptt as assemble
from framework.config.bptt import parse
from framework.data.preprocess import Zca
from framework.data.splits import RealData, Split
from framework.distill_higher import BackpropThroughTime
from framework.evaluation.selection import Assessor
from framework.files import make_folder
from framework.machine import environment
from framework.outer.method import Proposal
from framework.outer.synthetic import SyntheticSet
from framework.records import Entry, Results, Row, Scores
from framework.report.metrics import Reporter
from framework.rng import generator
from framework.run.chores import Seldom
from framework.run.distributed import Comm
from framework.run.progress import Best

STEPS, SIDE, IPC = 9, 32, 10  # of an epoch; pixels; images per class
STEP_SECONDS = 5.5 * 3600 / (60_000 * STEPS)
FLAGS = [
    *("--dataset", "cifar10", "--zca", "--num_per_class", str(IPC), "--batch_per_class", str(IPC), "--batch_size", "5"),
    *("--ddtype", "curriculum", "--cctype", "2", "-d", "10", "--window", "40", "--totwindow", "200", "--device", "cpu"),
    *("--inner_optim", "Adam", "--inner_lr", "0.001", "--test_freq", "25", "--print_freq", "10"),
]
ONE = torch.tensor(1.0)
PARTS: dict[str, tuple[Any, str]] = {
    "records": (Reporter, "log"),
    "probes, their records too": (Reporter, "probe"),
    "plots and pictures": (Reporter, "plot"),
    "checkpoints": (base.Run, "_save"),
    "the selected set's files": (Assessor, "_export"),
}


class Clock:
    """The time that has really passed, and what faked steps add; ``inside`` is what making them really took."""

    def __init__(self) -> None:
        self.faked = self.inside = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return time.perf_counter() + self.faked


def real_data() -> RealData:
    """As many images as nine steps take, and a whitening of the right size."""
    images = torch.randn(5 * STEPS, 3, SIDE, SIDE, generator=generator(0, "images"))
    split = Split(images, torch.arange(len(images)) % 10)
    whiten, colour = torch.eye(3 * SIDE**2), torch.eye(3 * SIDE**2)
    whitening = Zca(whiten, colour, torch.tensor(0.5), torch.tensor(10.0))
    return RealData("cifar10", tuple(map(str, range(10))), split, split, split, whitening)


def faked_steps(clock: Clock, seconds: float) -> Any:
    """``BackpropThroughTime.proposals`` at no cost, in time ``seconds`` a step."""
    gradient = torch.full((10 * IPC, 3, SIDE, SIDE), 1e-3)

    def proposals(self: BackpropThroughTime, epoch: int, first: int) -> Iterator[Proposal]:
        began = time.perf_counter()
        self.window = self.policy.choose(lambda: [math.exp(-t / 20) for t in range(self.policy.steps)])
        start, length = self.window
        for _ in range(first, STEPS):
            facts = {"window_start": start, "window_length": length, "alignment": None}
            proposal = Proposal({"images": gradient}, ONE, ONE, facts=facts)
            clock.faked += seconds
            clock.inside += time.perf_counter() - began
            yield proposal
            began = time.perf_counter()

    return proposals


def faked_update(self: SyntheticSet, grads: dict[str, Tensor], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``SyntheticSet.update`` at no cost: it is part of a step."""
    return ONE, ONE


def faked_evaluation(self: Assessor, epoch: int) -> Entry:
    """Accuracies that rise ever more slowly, with noise: so that new bests become rarer, as in a run."""
    noise = float(torch.randn((), generator=generator(0, "accuracy", epoch)))
    accuracy = 0.7 * (1 - math.exp(-epoch / 10_000)) + 0.003 * noise
    lengths = list(self.config.eval_steps)
    return Entry(epoch, "val", lengths, [Scores(accuracy, 0.003, 0.9, 0.01, 0.05, 0.01, 1.0, 0.1)] * len(lengths),
                 lengths[0], accuracy)  # fmt: skip


def faked_results(self: Assessor, best: Best) -> Results:
    """A final table at no cost."""
    row = Row(0.7, 0.1, 0.9, 0.1, 0.1, 0.1, 1.0, 0.1, name="100 distilled images", networks=8, steps=300)
    return {"distilled": row}


def timed(function: Callable[..., Any], calls: list[float]) -> Callable[..., Any]:
    """``function``; the seconds of each call are appended to ``calls``."""

    def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            calls.append(time.perf_counter() - began)

    return call


def measure(epochs: int, step_seconds: float) -> dict[str, Any]:
    """Run it; seconds of steps, of all else, and of each part."""
    clock, calls = Clock(), {part: list[float]() for part in PARTS}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        replaced: list[tuple[Any, str, Any]] = [
            (assemble, "read_data", lambda *_: real_data()),
            (BackpropThroughTime, "proposals", faked_steps(clock, step_seconds)),
            (SyntheticSet, "update", faked_update),
            (base, "joint_norm", lambda grads: ONE),
            (Assessor, "evaluate", faked_evaluation),
            (Assessor, "final_results", faked_results),
            (time, "monotonic", clock),
            (Seldom.__init__, "__defaults__", (0.0, clock)),
            *((owner, name, timed(getattr(owner, name), calls[part])) for part, (owner, name) in PARTS.items()),
        ]
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        config = parse([*FLAGS, "--epochs", str(epochs), "--save_dir", f"{folder}/run"])[0]
        began = time.perf_counter()
        base.main_worker(config, Comm(), torch.device("cpu"))
        seconds = time.perf_counter() - began - clock.inside
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "epochs": epochs,
        "outer steps": epochs * STEPS,
        "seconds of steps": clock.faked,
        "seconds besides": seconds,
        "share": seconds / (clock.faked + seconds),
        "parts": {part: {"calls": len(each), "seconds": sum(each)} for part, each in calls.items()},
        "folder MiB": size / 2**20,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--epochs", type=at_least(1), default=60_000)
    parser.add_argument("--step_seconds", type=float, default=STEP_SECONDS, help="time that a step stands for")
    a = parser.parse_args()
    make_folder(a.out, "--out")
    torch.set_num_threads(1)
    results = {**measure(a.epochs, a.step_seconds), **environment(torch.device("cpu"))}
    rows = [(part, f"{m['calls']:,}", f"{m['seconds']:.1f}") for part, m in results["parts"].items()]
    rows.append(("all, with what is in none of these", "", f"{results['seconds besides']:.1f}"))
    text = markdown(["besides the steps", "calls", "seconds"], rows)
    text += (
        f"\n\n{results['outer steps']:,} steps in {results['epochs']:,} epochs: {100 * results['share']:.2f} % of "
        f"{(results['seconds of steps'] + results['seconds besides']) / 3600:.2f} hours. The folder ends at "
        f"{results['folder MiB']:.0f} MiB. {ran_on(results)}."
    )
    write_results(a.out, "overhead", results, text)
    print(text)


if __name__ == "__main__":
    run(main)
