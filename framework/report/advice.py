"""What another policy, clip, window length or number of networks would gain: ``main.py advise``.

It is read from the records of a RaT-BPTT run alone, whose windows are uniform: at each recorded outer step where the
window started, the norm of its meta-gradient, what the clip multiplied it by, and how long the step took. Needs no
PyTorch. The formulas are in ``outer.importance``.
"""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from framework.config.bptt import Config
from framework.data.registry import known
from framework.errors import UserError
from framework.files import METRICS, SET, finite
from framework.outer.importance import bin_of, costs_in_passes, gains, pool_prefix, position_bins
from framework.report.folder import RunFolder, WindowPoint
from framework.report.tables import markdown_table

LEAST = 4  # recorded windows of a bin: two for each half
WORTH = 1.1  # a gain from which on a change is advised
AROUND = 10  # recorded steps before and after one that its norm is compared with
OUTLIER = 10.0  # times their median, after the clip, from which on a clip is advised that outliers do not move
UNEVEN = 1.25  # largest over smallest mean clip factor of a bin from which on the clip is said to weigh positions
POLICIES = {"rat-is": "rat-is", "by norm": "rat-is if it knew no cost", "best": "bound, without a uniform share"}
LIMITS = """\
Gains are of squared error at equal cost, of the gradient before the clip, averaged over the run (or from --since on).
"By halves" draws by one half of the windows and judges by the other: gains of few samples are too good otherwise.
These records cannot tell what another window length, or kept networks whose earlier steps were taken on an older set,
do to the gradient (another expectation: a bias), what less error is worth in accuracy, or what a learning rate tuned
anew would give."""


@dataclass(frozen=True)
class Bin:
    """What was recorded of the windows that start at ``first`` .. ``last``."""

    first: int
    last: int
    windows: int
    norm: float
    """Root mean square of the meta-gradient's norm."""
    applied: float
    """The same after the clip."""
    cut: float
    """Share of the windows that the clip has shrunk."""
    factor: float
    """What it multiplied them by, on average."""
    passes: float
    """Of an outer step from the bin's middle, over an image."""
    seconds: float | None
    """Of an outer step, the median; None where none was recorded."""


@dataclass(frozen=True)
class Change:
    """Another setting, and the cost of an outer step with it."""

    flag: str
    passes: float
    times: float
    """The run's cost."""
    noise: float | None
    """Times the run's mean square of the gradient's noise; None: the records cannot tell."""


@dataclass(frozen=True)
class Advice:
    """All that ``main.py advise`` tells."""

    run: str
    window: int
    totwindow: int
    steps: int
    """Outer steps that the run has taken."""
    windows: int
    """Recorded ones that were used."""
    bins: list[Bin]
    passes: dict[str, float]
    """Of an outer step on average: prefix, window, real batch."""
    gain: dict[str, dict[str, float]]
    """By unit of cost: ``outer.importance.gains``."""
    halves: dict[str, float]
    """By unit of cost: that of ``rat-is``, drawn by one half of the windows and judged by the other."""
    uneven: float
    """The largest over the smallest mean clip factor of a bin."""
    first_step: float | None
    """Mean square norm over all positions, times that without windows that hold Adam's first step; None: unknown, or
    the run has no such windows."""
    outlier: float
    """The largest norm after the clip, times the median norm of the recorded steps around it."""
    changes: list[Change]
    flags: list[tuple[str, str]]
    """What to try, each with the reason."""


def advise(folder: RunFolder, since: int = 0) -> Advice:
    """Read a run's records.

    Args:
        folder: the run's; it may still go on.
        since: leave out outer steps before this one.

    Raises:
        UserError: it is no RaT-BPTT run, or too little was recorded.
    """
    c = folder.config
    if not isinstance(c, Config) or c.policy != "rat-bptt":
        raise UserError(f"{folder.path}: a run of {c.policy}; give one of rat-bptt, whose windows are uniform")
    points = [point for point in folder.windows if point.step >= since]
    block = points[-1].block if points else 1
    points = [point for point in points if point.block == block]  # a boosted run's blocks are runs of their own
    parts = _parts(c, points, folder)
    per_step, rest = _costs(c, folder, block)
    inside = [[point for point in points if bin_of(parts, point.start) == k] for k in range(len(parts))]
    bins = [_bin(part, own, per_step, rest) for part, own in zip(parts, inside, strict=True)]
    gain, halves = _gains(c, folder, parts, inside, bins)
    uneven = max(b.factor for b in bins) / min(b.factor for b in bins)
    passes, first_step = _passes(c, c.window, per_step, rest - 4 * per_step * c.window), _first_step(c, points)
    outlier = _outlier(points)
    return Advice(
        str(folder.path), c.window, c.totwindow, points[-1].step, len(points), bins, passes, gain, halves, uneven,
        first_step, outlier, _changes(c, per_step, passes), _flags(c, halves, uneven, first_step, outlier),
    )  # fmt: skip


def _parts(c: Config, points: list[WindowPoint], folder: RunFolder) -> list[list[int]]:
    """As many bins of positions, --is_bins at most, as have ``LEAST`` windows each; one only of a single position."""
    first, last = c.minwindow, c.totwindow - c.window
    positions = last - first + 1
    for count in range(min(c.is_bins, positions), min(2, positions) - 1, -1):
        parts = position_bins(first, last, count)
        counts = Counter(bin_of(parts, point.start) for point in points)
        if all(counts[k] >= LEAST for k in range(count)):
            return parts
    raise UserError(
        f"{folder.path / METRICS}: {len(points)} recorded windows are too few; let the run go on, or record more of "
        "them by --print_freq 1"
    )


def _classes(c: Config, folder: RunFolder) -> int:
    """How many classes the data have: as the table of data sets says, else as the run's set does."""
    if (classes := known(c.dataset).num_classes) is not None:
        return classes
    file = folder.path / SET
    if not file.exists():
        raise UserError(
            f"{file}: not there yet, and only it tells how many classes {c.dataset} has; wait for the first evaluation"
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stored:
            return len(json.loads(stored.metadata()["class_names"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}); restore it from a copy") from error


def _costs(c: Config, folder: RunFolder, block: int) -> tuple[float, float]:
    """``costs_in_passes`` of one process's outer step, while the block of this number is learnt."""
    distributed = known(c.dataset).train_size
    real = c.batch_size if distributed is None else min(c.batch_size, c.train_sizes(distributed)[1])
    processes = folder.summary.processes if folder.summary else 1
    inner = c.inner_batch(_classes(c, folder), c.block_size * block)
    per_step, rest = costs_in_passes(inner, c.window, real // processes)
    return c.meta_batch * per_step, c.meta_batch * rest


def _bin(part: list[int], points: list[WindowPoint], per_step: float, rest: float) -> Bin:
    norms, factors = np.array([p.norm for p in points]), np.array([p.clip_factor for p in points])
    seconds = [point.seconds for point in points if math.isfinite(point.seconds)]
    return Bin(
        first=part[0],
        last=part[-1],
        windows=len(points),
        norm=float(np.sqrt((norms**2).mean())),
        applied=float(np.sqrt(((norms * factors) ** 2).mean())),
        cut=float((factors < 1).mean()),
        factor=float(factors.mean()),
        passes=per_step * float(np.mean(part)) + rest,
        seconds=float(np.median(seconds)) if seconds else None,
    )


def _gains(
    c: Config, folder: RunFolder, parts: list[list[int]], inside: list[list[WindowPoint]], bins: list[Bin]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """``Advice.gain`` and ``Advice.halves``."""
    one, two, both = (
        np.array([np.mean([point.norm**2 for point in own[half]]) for own in inside])
        for half in (slice(0, None, 2), slice(1, None, 2), slice(None))
    )
    if not (one.all() and two.all()):
        raise UserError(
            f"{folder.path / METRICS}: all meta-gradients of some positions are 0, so that nothing can be compared; "
            "lower --inner_lr, and run it again"
        )
    sizes = np.array([len(part) for part in parts], dtype=np.float64)
    costs = {"pass": np.array([b.passes for b in bins])}
    seconds = [b.seconds for b in bins if b.seconds is not None]
    if len(seconds) == len(bins):
        costs["second"] = np.array(seconds)
    gain = {unit: gains(both, cost, sizes, c.is_uniform) for unit, cost in costs.items()}
    halves = {
        unit: math.sqrt(math.prod(gains(by, cost, sizes, c.is_uniform, judge)["rat-is"]
                                  for by, judge in ((one, two), (two, one))))
        for unit, cost in costs.items()
    }  # fmt: skip
    return gain, halves


def _first_step(c: Config, points: list[WindowPoint]) -> float | None:
    """``Advice.first_step``."""
    squares = {at_0: [p.norm**2 for p in points if (p.start == 0) == at_0] for at_0 in (True, False)}
    heavy = c.inner_optim == "Adam" and c.inner_eps_root == 0 and c.minwindow == 0
    if not heavy or min(map(len, squares.values())) < LEAST:
        return None
    positions = c.totwindow - c.window + 1
    at_0, later = np.mean(squares[True]), np.mean(squares[False])
    return float((at_0 / later + positions - 1) / positions)


def _outlier(points: list[WindowPoint]) -> float:
    """``Advice.outlier``."""
    norms = np.array([point.norm for point in points])
    medians = [np.median(norms[max(0, i - AROUND) : i + AROUND + 1]) for i in range(len(points))]
    applied = (point.norm * point.clip_factor for point in points)
    return float(max((norm / median for norm, median in zip(applied, medians, strict=True) if median), default=0.0))


def _passes(c: Config, window: int, per_step: float, real: float) -> dict[str, float]:
    """Of an outer step on average over uniform positions, with a window of so many steps."""
    prefix = (c.minwindow + c.totwindow - window) / 2
    return {"prefix": per_step * prefix, "window": 4 * per_step * window, "real batch": real}


def _changes(c: Config, per_step: float, passes: dict[str, float]) -> list[Change]:
    """Windows of half and twice the length, kept networks, and twice and four times as many networks an outer step."""
    now, changes = sum(passes.values()), []
    for window in (max(1, c.window // 2), min(2 * c.window, c.totwindow - c.minwindow)):
        if window != c.window:
            then = sum(_passes(c, window, per_step, passes["real batch"]).values())
            changes.append(Change(f"--window {window}", then, then / now, None))
    prefix = per_step * pool_prefix(c.minwindow, c.totwindow - c.window, c.window)
    pooled = now - passes["prefix"] + prefix
    changes.append(Change("--truncation rat-pool", pooled, pooled / now, None))
    return changes + [Change(f"--meta_batch {k * c.meta_batch}", k * now, float(k), 1 / k) for k in (2, 4)]


def _flags(
    c: Config, halves: dict[str, float], uneven: float, first_step: float | None, outlier: float
) -> list[tuple[str, str]]:
    """What is worth trying."""
    found = []
    if first_step is not None and first_step >= WORTH:
        reason = f"windows that hold Adam's first step bring the mean square norm to {first_step:.2f} times the others'"
        found.append(("--minwindow 1", f"{reason}, and that step tells nothing: docs/windows.md"))
    if outlier >= OUTLIER and c.clip_norms == "raw":
        reason = f"clipped as it was, a meta-gradient was {outlier:.0f} times its neighbours' median"
        found.append(("--clip_norms applied", f"{reason}, and the outer optimiser remembers it"))
    if (least := min(halves.values())) >= WORTH:
        found.append(("--truncation rat-is", f"predicted: the same error for 1/{least:.2f} of the cost"))
    if uneven >= UNEVEN and c.clip_by == "all":
        found.append(("--clip_by position", f"the clip weighs positions by factors that differ {uneven:.2f}-fold"))
    return found


# ---- for people ------------------------------------------------------------------------------------


def as_json(advice: Advice) -> str:
    """All of it, indented."""
    return json.dumps(finite(asdict(advice)), indent=2, allow_nan=False)


def as_text(a: Advice) -> str:
    """Tables, what cannot be told, and at last the flags to try."""
    head = ["start", "windows", "rms norm", "after the clip", "cut", "mean factor", "passes", "seconds"]
    rows = [[f"{b.first} .. {b.last}", f"{b.windows}", f"{b.norm:.3g}", f"{b.applied:.3g}", f"{100 * b.cut:.0f} %",
             f"{b.factor:.2f}", f"{b.passes:,.0f}", _or_dash(b.seconds)] for b in a.bins]  # fmt: skip
    policies = [[text, *(f"{values[name]:.2f}" for values in a.gain.values())] for name, text in POLICIES.items()]
    policies.insert(1, ["rat-is, by halves", *(f"{value:.2f}" for value in a.halves.values())])
    changes = [[change.flag, f"{change.passes:,.0f}", f"{change.times:.2f}", _or_dash(change.noise)]
               for change in a.changes]  # fmt: skip
    total = sum(a.passes.values())
    shares = ", ".join(f"{name} {100 * passes / total:.0f} %" for name, passes in a.passes.items())
    return "\n".join([
        f"{a.run}: rat-bptt, W {a.window}, T {a.totwindow}; {a.windows} recorded windows of {a.steps} outer steps",
        f"An outer step is {total:,.0f} passes over an image: {shares}", "",
        *markdown_table(head, rows), "",
        *markdown_table(["predicted gain over uniform positions", *(f"per {unit}" for unit in a.gain)], policies), "",
        *markdown_table(["or", "passes per outer step", "times the run's", "noise, mean square"], changes), "",
        LIMITS, "", *_verdict(a),
    ])  # fmt: skip


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _verdict(a: Advice) -> list[str]:
    """The flags to try, or that nothing is to be gained, or that too little is known."""
    certain, possible = min(a.halves.values()), min(values["rat-is"] for values in a.gain.values())
    lines = ["Try, each by itself:", *(f"  {flag}    # {reason}" for flag, reason in a.flags)] if a.flags else []
    if certain < WORTH <= possible:
        lines.append(
            f"Not certain: rat-is gains {possible:.2f} by all windows and {certain:.2f} by halves, so that it hangs "
            "on a few of them. Record more (--print_freq 1), or measure: benchmarks/estimator.py."
        )
    return lines or [
        f"Nothing to gain: importance sampling would save less than a factor of {WORTH}, and the clip treats positions "
        "alike."
    ]
