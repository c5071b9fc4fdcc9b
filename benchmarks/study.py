"""Run variants of one distillation over several seeds, and put them in one table.

    python benchmarks/study.py --out DIR --variant NAME "FLAGS" [--variant ...] --seeds 0 1 2 -- COMMON FLAGS

Every run has a folder of its own, ``DIR/NAME/seedN``; a study that was stopped (by hand, or by ``--minutes``)
continues where it was when started again. Ends in ``DIR/results.md`` and ``DIR/results.json``. Used by
``scripts/ablation.sh``, ``scripts/readings.sh`` and ``scripts/sensitivity.sh``.

``--known FILE`` goes on from a study's ``results.json`` where its folders are not: runs that are in it with the same
variant, seed and flags are not run again.

With ``--finalists N --final_seeds 0 1 2 3 4`` the N best variants by test accuracy over ``--seeds``, and the first of
the list, with which the others are compared, go on to the other seeds.
"""

import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

from common import Parser, at_least, markdown, portable, ran_on, run, threads_each, write_results
from framework.config.bptt import Config
from framework.errors import UserError
from framework.files import make_folder, read_json
from framework.records import Summary, read_record
from framework.report.folder import RunFolder
from runs import do_all, execute


@dataclass(frozen=True)
class Result:
    """What the table has from a finished run."""

    variant: str
    seed: int
    flags: str
    accuracy: float  # of the selected set, on test images
    evaluations: list[list[float]]  # seconds (of processor time on a CPU), validation accuracy
    windows: dict[str, float]  # shares of the epochs' windows, and means in inner steps; empty without windows
    dataset: str
    device: str
    torch: str
    python: str
    outer_steps: int
    epochs: int

    @property
    def seconds(self) -> float:
        """To the last evaluation."""
        return self.evaluations[-1][0]

    def accuracy_at(self, seconds: float) -> float:
        """Validation accuracy of the best snapshot that was there after this many seconds."""
        return max((accuracy for when, accuracy in self.evaluations if when <= seconds), default=0.0)


@dataclass(frozen=True)
class Job:
    """One run."""

    variant: str
    seed: int
    flags: list[str]
    folder: Path

    @classmethod
    def of(cls, out: Path, variant: str, seed: int, flags: list[str]) -> Self:
        """The run of a study whose results go to ``out``."""
        return cls(variant, seed, flags, out / variant.replace(" ", "_").replace("/", ":") / f"seed{seed}")

    @property
    def summary(self) -> Summary | None:
        """The finished run's, None before."""
        return RunFolder(self.folder).summary

    @property
    def result(self) -> Result | None:
        """The finished run's, None before."""
        folder = RunFolder(self.folder)
        s = folder.summary
        if s is None:
            return None
        # What other work takes of a GPU cannot be told.
        clock = "cpu_seconds" if s.device.startswith("cpu") else "seconds"
        return Result(
            variant=self.variant,
            seed=self.seed,
            flags=self.text,
            accuracy=s.results["distilled"].top1,
            evaluations=[[e[clock], e["accuracy"]] for e in folder.records["evaluation"]],
            windows=shares_of_windows(folder),
            **{key: getattr(s, key) for key in ("dataset", "device", "torch", "python", "outer_steps", "epochs")},
        )

    @property
    def text(self) -> str:
        """Its flags, as results have them."""
        return shlex.join(portable(self.flags))

    def known_as(self, result: Result) -> bool:
        """Whether ``result`` is this run's."""
        return (result.variant, result.seed, result.flags) == (self.variant, self.seed, self.text)


def shares_of_windows(folder: RunFolder) -> dict[str, float]:
    """Where the epochs' windows lay."""
    windows = [(point.start, point.length) for point in folder.epochs]
    if not windows:
        return {}
    steps = folder.config.totwindow if isinstance(folder.config, Config) else 0
    return {
        "distinct": len(set(windows)) / len(windows),
        "start in the first sixth": fmean(start < steps / 6 for start, _ in windows),
        "end at T": fmean(start + length == steps for start, length in windows),
        "mean start": fmean(start for start, _ in windows),
        "mean length": fmean(length for _, length in windows),
    }


def distil(job: Job, deadline: float, threads: int) -> None:
    """Start or continue a run; at the deadline ask it to checkpoint and stop."""
    if job.summary is not None or time.monotonic() > deadline:
        return
    where = ["--seed", str(job.seed), "--save_dir", str(job.folder), "--resume"]
    left = deadline - time.monotonic()
    execute(f"{job.variant}, seed {job.seed}", [*job.flags, *where], job.folder, left, threads)


def mean_and_deviation(values: list[float]) -> dict[str, float | None]:
    """In percent; no deviation for a single value."""
    return {
        "mean": 100 * fmean(values),
        "deviation": 100 * stdev(values) if len(values) > 1 else None,
    }


def collect(results: list[Result]) -> dict[str, Any]:
    """What the finished runs show, by variant, and they themselves."""
    if not results:
        return {"variants": {}, "runs": []}
    # Evaluations cost every variant the same; the fastest run's end is the time all are compared at.
    equal_time = min(result.seconds for result in results)
    variants = {}
    for name in dict.fromkeys(result.variant for result in results):
        runs = [result for result in results if result.variant == name]
        variants[name] = {
            "n": len(runs),
            "seeds": [result.seed for result in runs],
            "test accuracy, equal outer steps": mean_and_deviation([result.accuracy for result in runs]),
            "validation accuracy, equal time": mean_and_deviation([r.accuracy_at(equal_time) for r in runs]),
            "seconds": fmean(result.seconds for result in runs),
            "windows": means([result.windows for result in runs]),
            "per seed": [result.accuracy for result in runs],
        }
    compare(variants)
    first = asdict(results[0])
    about = {key: first[key] for key in ("dataset", "device", "torch", "python", "outer_steps", "epochs", "flags")}
    return {**about, "equal time, seconds": equal_time, "variants": variants, "runs": [asdict(r) for r in results]}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each key that all rows have."""
    return {key: fmean(row[key] for row in rows) for key in rows[0] if all(key in row for row in rows)}


def paired_gains(values: dict[int, float], reference: dict[int, float]) -> list[float]:
    """Values by seed over others of the same seeds."""
    return [value - reference[seed] for seed, value in values.items() if seed in reference]


def told_of(gains: list[float]) -> dict[str, Any]:
    """Points, and in how many paired seeds they are above 0."""
    return {**mean_and_deviation(gains), "better": sum(gain > 0 for gain in gains), "pairs": len(gains)}


def compare(variants: dict[str, dict[str, Any]]) -> None:
    """Add to each variant but the first how much better it is, in points and in paired seeds, than the first."""
    first, *others = variants.values()
    reference = dict(zip(first["seeds"], first["per seed"], strict=True))
    for row in others:
        pairs = dict(zip(row["seeds"], row["per seed"], strict=True))
        if gains := paired_gains(pairs, reference):
            row["against the first"] = told_of(gains)


def finalists(results: list[Result], count: int) -> set[str]:
    """The first variant, and the best others by test accuracy."""
    variants = collect(results)["variants"]
    column = "test accuracy, equal outer steps"
    return first_and_best({name: row[column]["mean"] for name, row in variants.items()}, count)


def first_and_best(scores: dict[str, float], count: int | None) -> set[str]:
    """The first name, and the ``count`` others with the highest scores; None: all of them."""
    first, *others = scores
    return {first, *sorted(others, key=lambda name: -scores[name])[:count]}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    columns = ("test accuracy, equal outer steps", "validation accuracy, equal time")
    shares = ("distinct", "start in the first sixth", "end at T")
    rows = [
        [name, *(percent(row[column]) for column in columns), against(row), f"{row['seconds']:.0f}", row["n"]]
        + [f"{100 * row['windows'][share]:.0f} %" for share in shares if row.get("windows")]
        for name, row in results["variants"].items()
    ]
    head = ["variant", *(f"{column} (%)" for column in columns), "points against the first (better in)", "seconds", "n"]
    if any(row.get("windows") for row in results["variants"].values()):
        head += [f"windows: {share}" for share in shares]
    text = markdown(head, rows)
    if rows:
        of_processor = " of processor time" if results["device"].startswith("cpu") else ""
        text += (
            f"\n\n± is the deviation over seeds. {results['dataset']}, {results['outer_steps']} outer steps, equal "
            f"time after {results['equal time, seconds']:.0f} s{of_processor}; {ran_on(results)}."
        )
    return text


def against(row: dict[str, Any]) -> str:
    """What ``compare`` found, as text."""
    found = row.get("against the first")
    if found is None:
        return ""
    sign = "+" if found["mean"] > 0 else ""
    return f"{sign}{percent(found)} ({found['better']} of {found['pairs']})"


def percent(value: dict[str, float | None], digits: int = 2) -> str:
    """What ``mean_and_deviation`` found, as text."""
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"


@dataclass(frozen=True)
class Study:
    """How runs are carried out."""

    known: list[Result]  # of which nothing is run
    deadline: float
    at_a_time: int

    def result(self, job: Job) -> Result | None:
        """A run's, None before it is finished."""
        return next((result for result in self.known if job.known_as(result)), None) or job.result

    def carry_out(self, jobs: list[Job]) -> list[Result]:
        """Run what is not finished until the deadline; what is finished then, in order."""
        threads = threads_each(self.at_a_time)
        missing = [job for job in jobs if self.result(job) is None]
        do_all(lambda job: distil(job, self.deadline, threads), missing, self.at_a_time)
        return [result for job in jobs if (result := self.result(job)) is not None]


def deadline_in(minutes: float) -> float:
    """By ``time.monotonic``."""
    return time.monotonic() + 60 * minutes


def read_known(file: Path) -> list[Result]:
    """The runs of a study's ``results.json``.

    Raises:
        UserError: it is none.
    """
    content = read_json(file)
    if not isinstance(content, dict) or "runs" not in content:
        raise UserError(f"--known {file}: has no runs of a study; give a results.json of benchmarks/study.py")
    return [read_record(Result, record, file) for record in content["runs"]]


def main() -> None:
    """Parse, run what is missing, collect."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument("--variant", nargs=2, action="append", metavar=("NAME", "FLAGS"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--finalists", type=at_least(0), default=0, metavar="N", help="see above (default: 0, nobody)")
    parser.add_argument("--final_seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--known", type=Path, nargs="+", default=[], metavar="FILE", help="earlier results, see above")
    parser.add_runs()
    a = parser.parse_args()
    known = [result for file in a.known for result in read_known(file)]
    out = a.out.resolve()
    make_folder(out, "--out")

    def jobs_of(seeds: list[int]) -> list[Job]:
        return [Job.of(out, name, seed, [*a.common, *flags.split()]) for seed in seeds for name, flags in a.variant]

    jobs = jobs_of(a.seeds)
    study = Study(known, deadline_in(a.minutes), a.jobs)
    results = study.carry_out(jobs)
    if a.finalists and len(results) == len(jobs):
        chosen = finalists(results, a.finalists)
        others = [seed for seed in a.final_seeds if seed not in a.seeds]
        final = [job for job in jobs_of(others) if job.variant in chosen]
        results += study.carry_out(final)
        jobs += final
    found = collect(results)
    write_results(out, "results", found, table(found))
    print(table(found))
    if missing := len(jobs) - len(results):
        print(f"{missing} of {len(jobs)} runs are not finished: start the same command again to continue")


if __name__ == "__main__":
    run(main)
