"""What each window tells of the meta-gradient, what it costs, and what policies that choose windows would make of that.

    python benchmarks/estimator.py RUN [RUN ...] --out DIR [--samples 40] [--positions 9] [--lengths 5 10] [--steps 100]
        [--flags "FLAGS"] [--minutes M]

RUN is the folder of a run of back-propagation through time; its set is taken as its last checkpoint has it, so runs of
one command with more and more ``--epochs`` are snapshots early, in the middle and late. Of windows of the run's length
W, of ``--lengths``, each at ``--positions`` starts spread over all it can have, and of the whole trajectory T,
``--samples`` meta-gradients each are taken (of the whole trajectory as many as of all windows of one length), with
networks, trajectories and real batches of their own, by the run's flags, or by FLAGS in their place.

Of each window: the root mean square norm; the norm of the mean, without the bias that a few samples have; the kurtosis,
the mean fourth power of the norm over its squared mean square, which tells heavy tails; seconds (medians; processor
time on a CPU), and passes over an image as the policy ``rat-is`` counts them.

From these follows what each policy's average would be worth, after the cost of ``--steps`` outer steps of RaT-BPTT,
against the gradient of RaT-BPTT's objective, which is the mean over its windows, and against that of the whole
trajectory: bias, squared error and cosine; see ``prospects.py``. ``gain`` is RaT-BPTT's variance over the policy's: how
many times less it costs to have the same. Windows that RaT-BPTT and AT-BPTT keep for an epoch, which no average within
it takes out, count as that. What is said is exact for the windows measured if their moments were known; they are
estimated from the samples that judge them, so gains of few samples are too good. It does not know the clip, nor what
networks that were kept since an older set do (``rat-pool``).

A measurement that was stopped continues when started again. Writes DIR/estimator.json, estimator.md and estimator.png.
"""

import shlex
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from common import Parser, at_least, markdown, ran_on, run, write_results
from framework.assemble.bptt import assemble_bptt, make_policy
from framework.config.bptt import Config, parse
from framework.data.splits import epoch_batches
from framework.distill_higher import BackpropThroughTime
from framework.errors import UserError
from framework.files import LAST, make_folder
from framework.inner.execution import configure_process
from framework.machine import environment
from framework.outer.importance import Vector, costs_in_passes, pool_prefix
from framework.outer.policies.at_bptt import ATBPTT
from framework.outer.policies.policy import Window
from framework.outer.policies.stages import EARLY, LATE, STAGES
from framework.report.folder import RunFolder
from framework.report.plots import save_figure
from framework.rng import generator
from framework.run import checkpoint
from framework.run.distributed import Comm, resolve_device
from prospects import Choice, Moments, Prospect, prospect

UNITS = ("seconds", "passes")
RAT, POOL, WHOLE = "rat-bptt", "rat-pool, as if fresh", "bptt"  # names of policies


@dataclass
class Measured:
    """Sums over the meta-gradients of one window."""

    start: int
    length: int
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
    def mean(self) -> Tensor:
        """(D,) of the samples."""
        assert self.total is not None
        return self.total / self.count

    @property
    def moment(self) -> float:
        """E||G||^2."""
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


def windows_of(c: Config, positions: int, lengths: list[int]) -> list[Window]:
    """W's windows first, then those of other lengths, then the whole trajectory."""
    found = []
    for length in dict.fromkeys([c.window, *lengths]):
        if not 1 <= length <= c.totwindow - c.minwindow:
            raise UserError(f"--lengths {length}: the run has windows of 1 to {c.totwindow - c.minwindow} steps")
        starts = np.linspace(c.minwindow, c.totwindow - length, positions).round().astype(int)
        found += [Window(start, length) for start in sorted(set(starts.tolist()))]
    return [*found, Window(0, c.totwindow)]


class Snapshot:
    """A run's set and what gives its meta-gradients.

    Args:
        folder: the run's.
        positions: how many starts of each length.
        lengths: other than W.
        flags: of ``main.py``, in place of the run's own.
        device: where to compute.

    Raises:
        UserError: no checkpoint of back-propagation through time is there, or a length does not fit.
    """

    def __init__(self, folder: Path, positions: int, lengths: list[int], flags: str, device: torch.device) -> None:
        config = RunFolder(folder).config
        if not isinstance(config, Config):
            raise UserError(f"{folder}: a run of another method; give one of back-propagation through time")
        config, _ = parse(shlex.split(flags), config)
        self.name, self.config, self.flags = "/".join(folder.resolve().parts[-2:]), config, flags
        self.windows = [Measured(*window) for window in windows_of(config, positions, lengths)]
        saved = checkpoint.load(folder / LAST)
        parts = assemble_bptt(config, Comm(), device)
        parts.set.load_state_dict(saved["set"])
        assert isinstance(parts.method, BackpropThroughTime)
        self.method, self.step = parts.method, int(saved["progress"]["step"])
        self.method.pool = None  # each sample takes a network of its own
        self.probes: list[list[float]] = []
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        inner = config.inner_batch(parts.real.num_classes)
        self.passes = np.empty(len(self.windows))
        for index, window in enumerate(self.windows):
            per_step, rest = costs_in_passes(inner, window.length, self.method.batch_size)
            self.passes[index] = per_step * window.start + rest
        # What RaT-BPTT's windows would cost on kept networks, which lack their prefixes but for the first shift.
        self.pool_prefix = pool_prefix(config.minwindow, config.totwindow - config.window, config.window)
        self.at_bptt = {stage: self._at_bptt(stage, parts.real.num_classes) for stage in (EARLY, LATE)}

    def _at_bptt(self, stage: int, classes: int) -> ATBPTT:
        policy = make_policy(replace(self.config, truncation="at-bptt-positions"), classes, self.method.batch_size)
        assert isinstance(policy, ATBPTT)
        policy.stages.now = stage
        return policy

    def of_length(self, length: int) -> list[int]:
        """Which windows have it; none of them is the whole trajectory."""
        return [index for index, window in enumerate(self.windows[:-1]) if window.length == length]

    def sample(self, number: int) -> None:
        """Take one meta-gradient of every window, as many of the whole trajectory as of W's, and a probe."""
        whole = [len(self.windows) - 1] * len(self.of_length(self.config.window))
        for place, index in enumerate([*range(len(self.windows) - 1), *whole]):
            self._take(number * (len(self.windows) - 1 + len(whole)) + place, self.windows[index])
        self.probes.append(self.method.probe(number))

    def _take(self, key: int, window: Measured) -> None:
        m = self.method
        batch = epoch_batches(len(m.train), m.batch_size, generator(m.seed, "estimator", key))[0]
        began = self.clock()
        proposal = m.propose(key, Window(window.start, window.length), batch, m.train.batch(batch))
        gradient = torch.cat([grad.flatten() for grad in proposal.grads.values()]).cpu()
        window.add(gradient, self.clock() - began)

    def state(self) -> dict[str, Any]:
        """To continue from."""
        return {"windows": [vars(window) for window in self.windows], "probes": self.probes, "flags": self.flags}

    def load_state(self, state: dict[str, Any], path: Path) -> None:
        """Continue from what ``state`` returned.

        Raises:
            UserError: other windows were measured, or with other flags.
        """
        windows = [Measured(**window) for window in state["windows"]]
        same = [(w.start, w.length) for w in windows] == [(w.start, w.length) for w in self.windows]
        if not same or state["flags"] != self.flags:
            raise UserError(
                f"{path}: was measured with other --positions, --lengths or --flags; give these, or another --out"
            )
        self.windows, self.probes = windows, state["probes"]

    def moments(self) -> Moments:
        """Of all windows; the products of a mean with itself are those of different samples."""
        means = torch.stack([window.mean for window in self.windows])
        products = (means @ means.T).numpy()
        np.fill_diagonal(products, [window.squared_mean for window in self.windows])
        return Moments(products, np.array([window.moment for window in self.windows]))

    def costs(self, unit: str) -> Vector:
        """(K,) of an outer step with each window."""
        return np.array([statistics.median(w.seconds) for w in self.windows]) if unit == "seconds" else self.passes

    def kept_costs(self, unit: str) -> Vector:
        """(K,) of W's windows without their prefix, but for the share of it that kept networks have."""
        costs = self.costs(unit).copy()
        own = self.of_length(self.config.window)
        first, last = own[0], own[-1]
        steps = self.windows[last].start - self.windows[first].start
        per_step = (costs[last] - costs[first]) / steps if steps else 0.0
        costs[own] = costs[first] + (self.pool_prefix - self.config.minwindow) * per_step
        return costs

    def choices(self, squares: Vector) -> dict[str, Choice]:
        """Every policy by its flags; RaT-BPTT first."""
        c, count, held = self.config, len(self.windows), self.method.steps_per_epoch
        own = self.of_length(c.window)
        flat = Choice.uniform(own, count)
        found = {
            RAT: replace(flat, held=held),
            f"{RAT} --complete_random": flat,
            "rat-is": Choice.important(own, squares, self.passes, c.is_uniform),
            "rat-is --is_uniform 0": Choice.important(own, squares, self.passes, 0.0),
            POOL: flat,
        }
        for stage, policy in self.at_bptt.items():
            name = f"at-bptt-positions, {STAGES[stage]}"
            found[name] = replace(self._by_norms(policy, weighted=False), held=held)
            found[f"{name}, --reweight"] = replace(self._by_norms(policy, weighted=True), held=held)
        for length in dict.fromkeys(window.length for window in self.windows[:-1] if window.length != c.window):
            found[f"{RAT} --complete_random --window {length}"] = Choice.uniform(self.of_length(length), count)
        return found | {WHOLE: Choice.uniform([count - 1], count)}

    def _by_norms(self, policy: ATBPTT, weighted: bool) -> Choice:
        """AT-BPTT's choice among W's windows, each drawn one taken for the nearest that was measured."""
        own, steps = self.of_length(self.config.window), self.config.totwindow
        starts = np.array([self.windows[index].start for index in own])
        nearest = [own[int(np.abs(starts - policy.around(t, self.config.window).start).argmin())] for t in range(steps)]
        sums = np.zeros((3, len(self.windows)))
        for norms in self.probes:
            policy.norms = norms
            chances = first = second = policy.probabilities()
            if weighted:
                first = np.full(steps, 1 / steps)
                with np.errstate(divide="ignore", over="ignore"):  # steps never drawn leave an infinite variance
                    second = first**2 / chances
            for row, values in zip(sums, (chances, first, second), strict=True):
                np.add.at(row, nearest, values)
        return Choice(*sums / len(self.probes))

    def results(self, steps: int) -> dict[str, Any]:
        """What was found so far, of at least two samples of each window."""
        moments, costs = self.moments(), {unit: self.costs(unit) for unit in UNITS}
        rows = [
            {"start": w.start, "length": w.length, "root mean square norm": w.moment**0.5,
             "norm of the mean": max(w.squared_mean, 0.0) ** 0.5, "kurtosis": w.kurtosis,
             "squared mean over variance": w.squared_mean / (w.moment - w.squared_mean),
             **{unit: float(costs[unit][index]) for unit in UNITS}}
            for index, w in enumerate(self.windows)
        ]  # fmt: skip
        choices = self.choices(moments.squares)
        return {
            "run": self.name, "flags": self.flags, "outer steps": self.step, "samples": self.windows[0].count,
            "steps": steps, "window": self.config.window, "totwindow": self.config.totwindow, "windows": rows,
            "policies": [self._policy(name, choices, moments, steps) for name in choices],
        }  # fmt: skip

    def _policy(self, name: str, choices: dict[str, Choice], moments: Moments, steps: int) -> dict[str, Any]:
        """A row: what a policy's average is worth after the cost of so many steps of RaT-BPTT."""
        choice, rat, whole = choices[name], choices[RAT], choices[WHOLE]
        row: dict[str, Any] = {"policy": name}
        for unit in UNITS:
            costs = self.costs(unit)
            own = self.kept_costs(unit) if name == POOL else costs
            budget = steps * float(rat.chances @ costs)
            found = prospect(choice, rat.first, moments, own, budget)
            beside = prospect(rat, rat.first, moments, costs, budget)
            gain = beside.variance / found.variance if found.variance > 0 else None
            row[unit] = {**_figures(found), "gain": gain}
            if unit == "seconds":
                row["of the whole trajectory"] = _figures(prospect(choice, whole.first, moments, own, budget))
        return row


def _figures(found: Prospect) -> dict[str, float]:
    return {**asdict(found), "error": found.error}


def shown(value: float | None) -> str:
    """A figure of a table."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3g}"


def table(results: dict[str, Any]) -> str:
    """Markdown: for each snapshot a table of windows and one of policies."""
    parts = []
    for snapshot in results["snapshots"]:
        told = f" with `{snapshot['flags']}`" if snapshot["flags"] else ""
        head = list(snapshot["windows"][0])
        windows = [[shown(value) for value in row.values()] for row in snapshot["windows"]]
        policies = [
            [row["policy"], *(shown(row[unit]["cost"]) for unit in UNITS),
             *(shown(row["seconds"][what]) for what in ("gain", "bias", "error", "cosine")),
             *(shown(row["of the whole trajectory"][what]) for what in ("bias", "cosine"))]
            for row in snapshot["policies"]
        ]  # fmt: skip
        columns = ["policy", "seconds", "passes", "gain", "bias", "squared error", "cosine",
                   "bias to the whole trajectory", "cosine to it"]  # fmt: skip
        parts.append(
            f"{snapshot['run']}{told}, after {snapshot['outer steps']} outer steps; W {snapshot['window']}, T "
            f"{snapshot['totwindow']}, {snapshot['samples']} samples:\n\n{markdown(head, windows)}\n\n"
            f"Averages over the time of {snapshot['steps']} outer steps of rat-bptt, against its objective's gradient, "
            f"in units of that one's norm; - is lost in noise, or infinite:\n\n{markdown(columns, policies)}"
        )
    return "\n\n".join([*parts, f"{ran_on(results)}."])


def picture(results: dict[str, Any], path: Path) -> None:
    """A row of panels for each snapshot: norms, signal and seconds of windows by start, a line for each length."""
    snapshots = results["snapshots"]
    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "norm (dashed: of the mean)": lambda row: row["root mean square norm"],
        "squared mean over variance": lambda row: row["squared mean over variance"],
        "seconds": lambda row: row["seconds"],
    }
    figure = Figure(figsize=(12, 3.2 * len(snapshots)))
    axes = figure.subplots(len(snapshots), len(panels), squeeze=False)
    for line, snapshot in zip(axes, snapshots, strict=True):
        for number, (axis, (title, value)) in enumerate(zip(line, panels.items(), strict=True)):
            for colour, length in enumerate(dict.fromkeys(row["length"] for row in snapshot["windows"])):
                rows = [row for row in snapshot["windows"] if row["length"] == length]
                starts = [row["start"] for row in rows]
                axis.plot(starts, [value(row) for row in rows], ".-", color=f"C{colour}", label=f"{length} steps")
                if number == 0:
                    axis.plot(starts, [row["norm of the mean"] for row in rows], ".--", color=f"C{colour}")
            axis.set(xlabel="start of the window", title=f"{title}, step {snapshot['outer steps']}")
            axis.grid(alpha=0.3)
        line[0].set_yscale("log")
        line[0].legend()
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Measure what is missing, and write."""
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_out()
    parser.add_argument("--samples", type=at_least(2), default=40, help="of each window (default: 40)")
    parser.add_argument("--positions", type=at_least(1), default=9, help="starts of each length (default: 9)")
    parser.add_argument("--lengths", type=at_least(1), nargs="+", default=[], metavar="STEPS",
                        help="of windows beside the run's own and the whole trajectory")  # fmt: skip
    parser.add_argument("--flags", default="", help="of main.py, in place of the runs' own")
    parser.add_argument("--steps", type=at_least(1), default=100, help="RaT-BPTT's, the time that policies are given "
                        "(default: 100)")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; run again to continue")
    parser.add_device()
    a = parser.parse_args()
    device = resolve_device(a.device)
    configure_process(device, "float32")
    make_folder(a.out, "--out")
    deadline, found = time.monotonic() + 60 * a.minutes, []
    for folder in a.runs:
        snapshot = Snapshot(folder, a.positions, a.lengths, a.flags, device)
        kept = a.out / f"{snapshot.name.replace('/', '_')}_{snapshot.step}.pt"
        if kept.exists():
            snapshot.load_state(checkpoint.load(kept), kept)
        for number in range(len(snapshot.probes), a.samples):
            if time.monotonic() > deadline:
                break
            snapshot.sample(number)
            checkpoint.save(kept, snapshot.state())
        if len(snapshot.probes) > 1:
            found.append(snapshot.results(a.steps))
    if not found:
        raise UserError(f"--minutes {a.minutes:g}: too few for two samples of each window; the same command continues")
    results = {**environment(device), "snapshots": found}
    write_results(a.out, "estimator", results, table(results))
    picture(results, a.out / "estimator.png")
    print(table(results))


if __name__ == "__main__":
    run(main)
