"""Methods after the same wall time, each under every kind of labels, beside as many real images: one table.

    python benchmarks/scoreboard.py --out DIR --dataset digits --ipc 1 --seconds 600 [--seeds 0 1 2] [--minutes M]
        [--experts "FLAGS"] [--matching "FLAGS"] [--bptt "FLAGS"] [--evaluate "FLAGS"] [-- FLAGS OF ALL]

RaT-BPTT and AT-BPTT, with one-hot labels and with learnt ones (``--train_y``), and FTD. Settings, and what counts as
``--seconds`` of a method and seed, are those of ``benchmarks/matching_study.py``: start-up, experts of its own, steps
and the evaluations that choose the snapshot. Then ``main.py evaluate`` trains fresh networks on each set by its own
recipe (``inner``; of FTD ``mtt``, at the learnt step size), with its labels, with one-hot labels where its own are
learnt, and with those of a teacher. The sets of the first of ``--methods`` are evaluated beside real images by that
method's recipe: random ones, coresets and the whole training set. The time of these evaluations and of the teachers,
which are kept in DIR/teachers, does not count.

CIFAR-10 from image files: ``--dataset cifar10 ... -- --dataset imagefolder --im_size 32 --root ROOT``.

A study that was stopped (by hand, or by ``--minutes``) continues where it was when started again. Ends in
DIR/results.json and DIR/results.md; ``python main.py leaderboard DIR --out BOARD`` has every set as a row of its own.
"""

import argparse
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import markdown, portable, ran_on, run, write_results
from framework.evaluation.names import BASELINES
from framework.files import make_folder
from framework.records import Judgement, Results, Row
from framework.report.folder import RunFolder
from framework.report.tables import bits
from matching_study import NETWORKS, RHO, TimedJob, about_all, carry_out, flags_of, listed, parser_of
from runs import execute
from study import mean_and_deviation, percent


@dataclass(frozen=True)
class Method:
    """How a set is made: its name for people, flags of its own, and the rho of its experts, if it has any."""

    name: str
    flags: str = ""
    rho: float | None = None


_AT = "--truncation at-bptt -d 5"
METHODS = {
    "rat-bptt": Method("RaT-BPTT", "--truncation rat-bptt"),
    "rat-bptt-learnt": Method("RaT-BPTT, labels learnt", "--truncation rat-bptt --train_y"),
    "at-bptt": Method("AT-BPTT", _AT),
    "at-bptt-learnt": Method("AT-BPTT, labels learnt", f"{_AT} --train_y"),
    "ftd": Method("FTD", rho=RHO["FTD"]),
}
ROWS = {True: {"distilled": "learnt", "hard": "hard", "teacher": "teacher"},
        False: {"distilled": "hard", "teacher": "teacher"}}  # fmt: skip
"""By whether labels are learnt: of the rows that ``main.py evaluate`` gives, which labels networks are trained on."""

ONE_AT_A_TIME = threading.Lock()
"""Held by an evaluation: runs that end together would all train the teacher that they share."""


@dataclass(frozen=True)
class ScoredJob(TimedJob):
    """A timed distillation whose set is then evaluated.

    Args:
        baselines: rows of real images beside it.
        more: flags of ``main.py evaluate``.
        teachers: the folder that keeps them.
    """

    baselines: tuple[str, ...]
    more: list[str]
    teachers: Path

    @property
    def rows(self) -> dict[str, str]:
        """See ``ROWS``."""
        return ROWS["--train_y" in self.flags]

    @property
    def evaluation(self) -> list[str]:
        """Flags of ``main.py evaluate``, after the set."""
        labels = ["--labels", "learnt", *(["hard"] if "hard" in self.rows else []), "teacher"]
        baselines = ["--baselines", *self.baselines] if self.baselines else []
        return [*labels, *baselines, "--num_train_eval", str(NETWORKS), "--seed", str(self.seed), *self.more]

    @property
    def commands(self) -> list[str]:
        """See ``TimedJob``; RUN is the folder of the set."""
        return [*super().commands, shlex.join(["python", "main.py", "evaluate", "RUN", *self.evaluation])]

    @property
    def judgement(self) -> Judgement | None:
        """What the evaluation has found, None before."""
        wanted = {*self.rows, *self.baselines}
        return next((j for j in RunFolder(self.folder).evaluations if wanted <= results_of(j).keys()), None)

    def work(self, deadline: float, threads: int) -> None:
        """See ``TimedJob``; then evaluate, which is not begun after the deadline."""
        super().work(deadline, threads)
        if self.summary is None or self.judgement is not None:
            return
        where = ["--teacher_dir", str(self.teachers), "--device", RunFolder(self.folder).config.device]
        words = ["evaluate", str(self.folder), *self.evaluation, *where]
        with ONE_AT_A_TIME:
            if time.monotonic() < deadline:
                execute(f"{self.title}, evaluation", words, self.folder, float("inf"), threads)


def results_of(j: Judgement) -> Results:
    """The rows of the set's own network."""
    return {} if j.origin is None else j.results.get(j.origin.arch, {})


def jobs_of(a: argparse.Namespace, out: Path) -> list[ScoredJob]:
    """All runs, seed by seed."""
    jobs = []
    for seed in a.seeds:
        for name in a.methods:
            flags, experts = flags_of(a, METHODS[name].flags, METHODS[name].rho)
            timed = (name, seed, flags, out / name / f"seed{seed}", experts, a.seconds)
            baselines = tuple(BASELINES) if name == a.methods[0] else ()
            jobs.append(ScoredJob(*timed, baselines, a.evaluate.split(), out / "teachers"))
    return jobs


def figures(found: Sequence[tuple[ScoredJob, Judgement]], key: str) -> dict[str, Any]:
    """Of a row of the evaluations, over the seeds."""
    rows: list[Row] = [results_of(j)[key] for _, j in found]
    return {
        "test accuracy": mean_and_deviation([row.top1 for row in rows]),
        "n": len(rows),
        "seeds": [job.seed for job, _ in found],
        "per seed": [row.top1 for row in rows],
        "deviations over networks": [row.top1_std for row in rows],
        "networks": rows[0].networks,
        "bits per class": rows[0].bits_per_class,
        "recipe": found[0][1].recipe,
        "name": rows[0].name,
    }


def collect(jobs: Sequence[ScoredJob]) -> dict[str, Any]:
    """What the evaluated sets show, row by row: methods and their labels, then real images."""
    found = [(job, j) for job in jobs if (j := job.judgement) is not None]
    rows, real, commands = [], [], {}
    for variant in dict.fromkeys(job.variant for job, _ in found):
        own = [(job, j) for job, j in found if job.variant == variant]
        first, name = own[0][0], METHODS[variant].name
        spent = {
            "seconds": statistics.fmean(job.seconds_used for job, _ in own),
            "experts, seconds": statistics.fmean(job.experts_seconds for job, _ in own),
            "outer steps": statistics.fmean(job.summary.outer_steps for job, _ in own if job.summary is not None),
        }
        rows += [{"method": name, "labels": kind, **figures(own, key), **spent} for key, kind in first.rows.items()]
        real += [{"method": key, "labels": "hard", **figures(own, key)} for key in first.baselines]
        commands[name] = first.commands
    summaries = [job.summary for job, _ in found if job.summary is not None]
    return {**about_all(summaries), "rows": [*rows, *real], "commands": commands}


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each method and kind of labels and for each choice of real images; the commands below."""
    rows = [
        [row["name"] if "seconds" not in row else row["method"], row["labels"], percent(row["test accuracy"]), row["n"],
         bits(row["bits per class"]), row["recipe"],
         *([f"{row['seconds']:.0f}", f"{row['experts, seconds']:.0f}", f"{row['outer steps']:.0f}"]
           if "seconds" in row else [])]
        for row in results["rows"]
    ]  # fmt: skip
    head = ["trained on", "labels", "test accuracy (%)", "n", "bits per class", "recipe", "seconds", "of experts",
            "outer steps"]  # fmt: skip
    text = markdown(head, rows)
    if rows:
        text += (
            f"\n\n± is the deviation over n seeds, each the mean of {results['rows'][0]['networks']} networks. "
            f"{results['dataset']}, {results['images per class']} image(s) per class; {ran_on(results)}."
            f"{listed(results['commands'])}"
        )
    return text


def command(words: Sequence[str]) -> str:
    """The study's own, for people: without the time after which one attempt at it stopped."""
    own = portable(words)
    if "--minutes" in own:
        at = own.index("--minutes")
        del own[at : at + 2]
    return shlex.join(["bash", "scripts/scoreboard.sh", *own])


def main() -> None:
    """Parse, run what is missing, collect."""
    parser = parser_of(__doc__, tuple(METHODS))
    parser.add_argument("--evaluate", default="", metavar="FLAGS", help="more flags of main.py evaluate")
    a = parser.parse_args()
    out = a.out.resolve()
    make_folder(out, "--out")
    jobs = jobs_of(a, out)
    how = {"command": command(sys.argv[1:]), "images per class": a.ipc, **carry_out(jobs, a)}
    results = {**how, **collect(jobs)}
    write_results(out, "results", results, table(results))
    print(table(results))
    if missing := sum(job.judgement is None for job in jobs):
        print(f"{missing} of {len(jobs)} sets are not evaluated: start the same command again to continue")


if __name__ == "__main__":
    run(main)
