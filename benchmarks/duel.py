"""Methods against one another, each with the setting that serves it best: paired seeds, equal steps and equal time.

    python benchmarks/duel.py --out DIR --method NAME "FLAGS" [--method ...] --setting "FLAGS" [--setting ...]
        [--tune_seeds 100 101] [--finalists N] [--seeds 0 1 2 3 4 5 6 7 8 9] [--known FILE ...] [--minutes M]
        -- COMMON FLAGS

Every method is tried with every setting, an outer learning rate for example, on seeds of their own; the one with the
best validation accuracy goes on to ``--seeds``, for the first method and the ``--finalists`` best others (for all, if
not given). There each method is compared with the first, seed by seed:

* test accuracy after all outer steps, of the snapshot that validation images chose;
* validation accuracy of the best snapshot at the time that the fastest run took (processor time on a CPU);
* p, of a two-sided sign test over the seeds, of each;
* the time to the first's accuracy: when the mean over seeds of the best validation accuracy so far, linear between
  evaluations, reaches what the first method ends with, over the first method's own time to the end; "-" where it never
  does. The first's own is below 1 where it ends on a plateau.

Runs, ``--known`` and stopping are as of ``benchmarks/study.py``, with METHOD and SETTING as a run's variant. Ends in
DIR/results.json and DIR/results.md. Used by ``scripts/duel.sh``.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import binomtest

from common import Parser, at_least, markdown, ran_on, run, write_results
from framework.errors import UserError
from framework.files import make_folder
from study import (
    Job,
    Result,
    Study,
    against,
    deadline_in,
    first_and_best,
    mean_and_deviation,
    paired_gains,
    percent,
    read_known,
    told_of,
)

STEPS, TIME = "test accuracy, equal outer steps", "validation accuracy, equal time"  # columns


def variant(method: str, setting: str) -> str:
    """A run's, by its method and setting."""
    return f"{method}, {setting.replace('--', '')}" if setting else method


def choose(tuned: list[Result], methods: list[str], settings: list[str], finalists: int | None) -> dict[str, str]:
    """Each method's setting with the best mean validation accuracy, of the first and the ``finalists`` best others."""

    def accuracy(method: str, setting: str) -> float:
        return fmean(r.accuracy_at(float("inf")) for r in tuned if r.variant == variant(method, setting))

    best = {method: max(settings, key=lambda setting: accuracy(method, setting)) for method in methods}
    going_on = first_and_best({method: accuracy(method, setting) for method, setting in best.items()}, finalists)
    return {method: setting for method, setting in best.items() if method in going_on}


def sign_test(gains: list[float]) -> float | None:
    """Two-sided p of as many gains above 0; ties are left out, and without any gain there is none."""
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return float(binomtest(better, better + worse).pvalue) if better + worse else None


def best_so_far(runs: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (E + 1,) and best validation accuracy so far, means over runs of as many evaluations; from 0 on."""
    seconds = np.array([[0.0, *(when for when, _ in run.evaluations)] for run in runs])
    accuracy = np.array([[0.0, *(accuracy for _, accuracy in run.evaluations)] for run in runs])
    return seconds.mean(0), np.maximum.accumulate(accuracy, 1).mean(0)


def time_to(goal: float, seconds: np.ndarray, accuracy: np.ndarray) -> float | None:
    """When a rising curve, linear between its points, reaches the goal."""
    reached = int(np.searchsorted(accuracy, goal))
    if reached == len(accuracy):
        return None
    if reached == 0:
        return float(seconds[0])
    low, high = accuracy[reached - 1], accuracy[reached]
    return float(seconds[reached - 1] + (goal - low) / (high - low) * (seconds[reached] - seconds[reached - 1]))


def compared(values: dict[int, float], reference: dict[int, float]) -> dict[str, Any]:
    """Values by seed against others of the same seeds: points, how many are better, and p."""
    gains = paired_gains(values, reference)
    return {**told_of(gains), "p": sign_test(gains)} if gains else {}


def collect(results: list[Result], chosen: dict[str, str]) -> dict[str, Any]:
    """What the runs of the chosen settings show, by method; the first is what others are compared with."""
    runs = {m: [r for r in results if r.variant == variant(m, setting)] for m, setting in chosen.items()}
    runs = {method: own for method, own in runs.items() if own}
    if not runs:
        return {"methods": {}}
    equal_time = min(r.seconds for own in runs.values() for r in own)
    columns: dict[str, Callable[[Result], float]] = {
        STEPS: lambda r: r.accuracy,
        TIME: lambda r: r.accuracy_at(equal_time),
    }
    first, *_ = runs
    curve, methods = best_so_far(runs[first]), {}
    for method, own in runs.items():
        row: dict[str, Any] = {"setting": chosen[method], "n": len(own), "seeds": [r.seed for r in own]}
        for column, value in columns.items():
            row[column] = mean_and_deviation([value(r) for r in own])
            row[f"{column}, per seed"] = [value(r) for r in own]
            if method != first:
                reference = {r.seed: value(r) for r in runs[first]}
                row[f"{column}, against the first"] = compared({r.seed: value(r) for r in own}, reference)
        reached = time_to(float(curve[1][-1]), *best_so_far(own))
        row["time to the first's accuracy"] = None if reached is None else reached / float(curve[0][-1])
        row["seconds"] = fmean(r.seconds for r in own)
        methods[method] = row
    about = asdict(runs[first][0])
    keys = ("dataset", "device", "torch", "python", "outer_steps", "epochs", "flags")
    return {**{key: about[key] for key in keys}, "equal time, seconds": equal_time, "methods": methods}


def tuning(results: list[Result], methods: list[str], settings: list[str]) -> str:
    """Mean validation accuracy on the seeds that settings are chosen by, as Markdown."""
    rows = []
    for method in methods:
        of = [[r for r in results if r.variant == variant(method, setting)] for setting in settings]
        means = [mean_and_deviation([r.accuracy_at(float("inf")) for r in own]) if own else None for own in of]
        rows.append([method, *("" if value is None else percent(value) for value in means)])
    return markdown(["validation accuracy (%)", *(setting or "as it is" for setting in settings)], rows)


def table(found: dict[str, Any]) -> str:
    """Methods as Markdown."""
    head = ["method", "setting", f"{STEPS} (%)", "against the first (better in)", "p", f"{TIME} (%)",
            "against the first (better in)", "p", "time to the first's accuracy", "seconds", "n"]  # fmt: skip
    rows = []
    for name, row in found["methods"].items():
        cells = [name, row["setting"]]
        for column in (STEPS, TIME):
            gains = row.get(f"{column}, against the first")
            p = gains["p"] if gains else None
            cells += [percent(row[column]), against({"against the first": gains} if gains else {})]
            cells.append("" if p is None else f"{p:.3f}")
        ratio = row["time to the first's accuracy"]
        rows.append([*cells, "-" if ratio is None else f"{ratio:.2f}", f"{row['seconds']:.0f}", row["n"]])
    return markdown(head, rows)


def text_of(found: dict[str, Any], tuned: str) -> str:
    """Both tables, and what they are of; ``tuned`` is empty where there was nothing to choose."""
    if not found["methods"]:
        return tuned
    choice = f"\n\nSettings were chosen on other seeds:\n\n{tuned}" if tuned else ""
    of_processor = " of processor time" if found["device"].startswith("cpu") else ""
    return (
        f"{table(found)}\n\n± is the deviation over seeds, p of a two-sided sign test. {found['dataset']}, "
        f"{found['outer_steps']} outer steps, equal time after {found['equal time, seconds']:.0f} s{of_processor}; "
        f"{ran_on(found)}.{choice}"
    )


def main() -> None:
    """Tune, run what is missing, collect."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument("--method", nargs=2, action="append", metavar=("NAME", "FLAGS"), required=True)
    parser.add_argument("--setting", action="append", metavar="FLAGS", required=True)
    parser.add_argument("--tune_seeds", type=int, nargs="+", default=[100, 101], metavar="SEED")
    parser.add_argument("--finalists", type=at_least(1), metavar="N", help="see above (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), metavar="SEED")
    parser.add_argument("--known", type=Path, nargs="+", default=[], metavar="FILE", help="earlier results.json")
    parser.add_runs()
    a = parser.parse_args()
    if a.finalists and len(a.setting) == 1:
        raise UserError("--finalists: methods are ranked by what --setting is chosen by; give two settings or more")
    study = Study([result for file in a.known for result in read_known(file)], deadline_in(a.minutes), a.jobs)
    out = a.out.resolve()
    make_folder(out, "--out")
    flags = dict(a.method)

    def job(method: str, setting: str, seed: int) -> Job:
        words = [*a.common, *flags[method].split(), *setting.split()]
        return Job.of(out, variant(method, setting), seed, words)

    trials = []
    if len(a.setting) > 1:
        trials = [job(method, setting, seed) for seed in a.tune_seeds for method in flags for setting in a.setting]
    tuned = study.carry_out(trials)
    finals, results = [], []
    chosen: dict[str, str] = {}
    if len(tuned) == len(trials):
        chosen = choose(tuned, list(flags), a.setting, a.finalists) if trials else dict.fromkeys(flags, a.setting[0])
        finals = [job(method, setting, seed) for seed in a.seeds for method, setting in chosen.items()]
        results = study.carry_out(finals)
    found = collect(results, chosen)
    found["runs"] = [asdict(r) for r in [*tuned, *results]]
    text = text_of(found, tuning(tuned, list(flags), a.setting) if trials else "")
    write_results(out, "results", found, text)
    print(text)
    if missing := len(trials) + len(finals) - len(tuned) - len(results):
        more = "" if chosen else ", and then those of --seeds"
        print(f"{missing} runs are not finished{more}: start the same command again to continue")


if __name__ == "__main__":
    run(main)
