"""What each window position tells of the meta-gradient, what it costs, and what choosing positions by that would gain.

    python benchmarks/estimator.py RUN [RUN ...] --out DIR [--samples 40] [--positions 9] [--minutes M]

RUN is the folder of a run of back-propagation through time; its set is taken as its last checkpoint has it, so runs of
one command with more and more ``--epochs`` are snapshots early, in the middle and late. At each of ``--positions``
starts, spread over 0 .. T-W, ``--samples`` meta-gradients are taken, each with a network, trajectory and real batch of
its own, by the run's flags. Of these G(N): the root mean square norm; its kurtosis, the mean fourth power of the norm
over its squared mean square, which tells heavy tails; the squared mean over the variance, without the bias that a few
samples have; seconds (medians), and passes over an image as the policy ``rat-is`` counts them.

With m(N) = E||G(N)||^2, c(N) the cost, and g the gradient of RaT-BPTT's objective, the mean over positions of E[G(N)],
an average over t seconds of weighted samples has the squared error (second moment - ||g||^2) cost / t. So what a policy
needs for the same error, against uniform positions, is the ratio of these products: ``gain``. ``rat-is`` is drawn with
p ~ sqrt(m / c), a fifth of it uniform; ``by norm`` with p ~ sqrt(m), which knows no cost; ``best`` is the bound without
the uniform fifth. What is said is exact for the positions measured if their m were known; they are estimated from the
same samples, so gains of few samples are too good.

A measurement that was stopped continues when started again. Writes DIR/estimator.json and DIR/estimator.md.
"""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import Parser, at_least, markdown, ran_on, run, write_results
from framework.assemble.bptt import assemble_bptt
from framework.config.bptt import DEFAULTS, Config
from framework.data.splits import epoch_batches
from framework.distill_higher import BackpropThroughTime
from framework.errors import UserError
from framework.files import LAST, make_folder
from framework.inner.execution import configure_process
from framework.machine import environment
from framework.outer.importance import costs_in_passes, gains
from framework.outer.policies.policy import Window
from framework.report.folder import RunFolder
from framework.rng import generator
from framework.run import checkpoint
from framework.run.distributed import Comm, resolve_device


@dataclass
class Position:
    """Sums over the meta-gradients of one start."""

    start: int
    count: int = 0
    total: Tensor | None = None  # (D,) float64
    squares: list[float] = field(default_factory=list)  # squared norms
    seconds: list[float] = field(default_factory=list)

    def add(self, gradient: Tensor, seconds: float) -> None:
        """Take a sample (D,)."""
        sample = gradient.double().cpu()
        self.total = sample if self.total is None else self.total + sample
        self.count += 1
        self.squares.append(float(sample @ sample))
        self.seconds.append(seconds)

    @property
    def moment(self) -> float:
        """m."""
        return statistics.fmean(self.squares)

    @property
    def squared_mean(self) -> float:
        """||E[G]||^2 without bias: the mean over pairs of different samples of their product; may be below 0."""
        assert self.total is not None
        return (float(self.total @ self.total) - sum(self.squares)) / (self.count * (self.count - 1))

    @property
    def kurtosis(self) -> float:
        """Of the norm about 0; 1 where it is constant."""
        return statistics.fmean(square**2 for square in self.squares) / self.moment**2


class Snapshot:
    """A run's set and what gives its meta-gradients.

    Args:
        folder: the run's.
        positions: how many starts.
        device: where to compute.

    Raises:
        UserError: no checkpoint of back-propagation through time is there.
    """

    def __init__(self, folder: Path, positions: int, device: torch.device) -> None:
        config = RunFolder(folder).config
        if not isinstance(config, Config):
            raise UserError(f"{folder}: a run of another method; give one of back-propagation through time")
        self.folder, self.config = folder, config
        saved = checkpoint.load(folder / LAST)
        parts = assemble_bptt(config, Comm(), device)
        parts.set.load_state_dict(saved["set"])
        assert isinstance(parts.method, BackpropThroughTime)
        self.method, self.step = parts.method, int(saved["progress"]["step"])
        self.method.pool = None  # each sample takes a network of its own
        starts = np.linspace(0, config.totwindow - config.window, positions).round().astype(int)
        self.positions = [Position(int(start)) for start in sorted(set(starts.tolist()))]
        inner = config.inner_batch(parts.real.num_classes)
        per_step, rest = costs_in_passes(inner, config.window, self.method.batch_size)
        self.passes = [per_step * p.start + rest for p in self.positions]

    def sample(self, number: int) -> None:
        """Take one meta-gradient at every position."""
        m = self.method
        batches = epoch_batches(len(m.train), m.batch_size, generator(m.seed, "estimator", number))
        for index, position in enumerate(self.positions):
            key = number * len(self.positions) + index
            batch = batches[index % len(batches)]
            began = time.perf_counter()
            proposal = m.propose(key, Window(position.start, self.config.window), batch, m.train.batch(batch))
            gradient = torch.cat([grad.flatten() for grad in proposal.grads.values()]).cpu()
            position.add(gradient, time.perf_counter() - began)

    def state(self) -> list[dict[str, Any]]:
        """To continue from."""
        return [vars(position) for position in self.positions]

    def results(self) -> dict[str, Any]:
        """What was found so far, of at least two samples."""
        moments = np.array([p.moment for p in self.positions])
        costs = {
            "seconds": np.array([statistics.median(p.seconds) for p in self.positions]),
            "passes": np.array(self.passes, dtype=np.float64),
        }
        rows = [
            {"start": p.start, "root mean square norm": p.moment**0.5, "kurtosis": p.kurtosis,
             "squared mean over variance": p.squared_mean / (p.moment - p.squared_mean),
             "seconds": float(costs["seconds"][i]), "passes": self.passes[i]}
            for i, p in enumerate(self.positions)
        ]  # fmt: skip
        return {
            "run": self.folder.name, "outer steps": self.step, "samples": self.positions[0].count,
            "window": self.config.window, "totwindow": self.config.totwindow, "positions": rows,
            "gain": {
                unit: gains(moments, cost, np.ones_like(cost), DEFAULTS.is_uniform) for unit, cost in costs.items()
            },
            "cosine after 100 steps": self._cosine(moments, 100),
        }  # fmt: skip

    def _cosine(self, moments: np.ndarray, steps: int) -> float | None:
        """Of an average of so many uniform samples to g, by their second moment; None where g is lost in noise."""
        totals = [p.total for p in self.positions if p.total is not None]
        means = torch.stack(totals) / self.positions[0].count
        mean = means.mean(0)
        # The product of two positions' means has no bias; that of a mean with itself has.
        own = sum(p.squared_mean - float(m @ m) for p, m in zip(self.positions, means, strict=True))
        square = float(mean @ mean) + own / len(means) ** 2
        error = (float(moments.mean()) - square) / steps
        return (square / (square + error)) ** 0.5 if square > 0 else None


def table(results: dict[str, Any]) -> str:
    """Markdown: a table of positions and one line of gains for each snapshot."""
    parts = []
    for snapshot in results["snapshots"]:
        head = list(snapshot["positions"][0])
        rows = [[f"{value:.3g}" for value in row.values()] for row in snapshot["positions"]]
        told = "; ".join(
            f"by {unit}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items())
            for unit, values in snapshot["gain"].items()
        )
        cosine = snapshot["cosine after 100 steps"]
        parts.append(
            f"{snapshot['run']}, after {snapshot['outer steps']} outer steps; W {snapshot['window']}, T "
            f"{snapshot['totwindow']}, {snapshot['samples']} samples:\n\n{markdown(head, rows)}\n\nGain over uniform "
            f"positions {told}. Cosine of 100 uniform samples' mean to the objective's gradient: "
            + ("lost in noise." if cosine is None else f"{cosine:.2f}.")
        )
    return "\n\n".join([*parts, f"{ran_on(results)}."])


def main() -> None:
    """Measure what is missing, and write."""
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_out()
    parser.add_argument("--samples", type=at_least(2), default=40, help="of each position")
    parser.add_argument("--positions", type=at_least(1), default=9)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; run again to continue")
    parser.add_device()
    a = parser.parse_args()
    device = resolve_device(a.device)
    configure_process(device, "float32")
    make_folder(a.out, "--out")
    deadline, snapshots = time.monotonic() + 60 * a.minutes, []
    for folder in a.runs:
        snapshot = Snapshot(folder, a.positions, device)
        kept = a.out / f"{folder.name}_{snapshot.step}.pt"
        if kept.exists():
            snapshot.positions = [Position(**state) for state in checkpoint.load(kept)["positions"]]
        for number in range(snapshot.positions[0].count, a.samples):
            if time.monotonic() > deadline:
                break
            snapshot.sample(number)
            checkpoint.save(kept, {"positions": snapshot.state()})
        if snapshot.positions[0].count > 1:
            snapshots.append(snapshot.results())
    results = {**environment(device), "snapshots": snapshots}
    write_results(a.out, "estimator", results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
