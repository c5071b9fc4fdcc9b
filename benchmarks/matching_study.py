"""Accuracy of trajectory matching and of RaT-BPTT after the same wall time, experts' training included.

    python benchmarks/matching_study.py --out DIR --dataset digits --seconds 600 [--seeds 0 1 2] [--minutes M]
        [--experts "FLAGS"] [--matching "FLAGS"] [--bptt "FLAGS"] [-- FLAGS OF ALL]

FTD: experts by ``main.py buffer`` with rho 0.01, then ``main.py ftd``. MTT: the same with rho 0. RaT-BPTT: ``main.py
--truncation rat-bptt``. Each seed of each method has experts of its own. A distillation has no planned end: when
``--seconds`` since its experts' start are used up, it is told to stop, which it does after the step at hand, and the
same command with ``--resume`` then ends it at the epoch that it has reached: the best snapshot so far is judged on the
test images, and as many random real ones beside it. So ``--seconds`` hold start-up, experts, steps and all evaluations
that choose the snapshot, but not that last table. ``--jobs`` runs share the cores, with as many threads each as there
are for it.

CIFAR-10 from image files: ``--dataset cifar10 ... -- --dataset imagefolder --im_size 32 --root ROOT``. Given flags come
after those of ``SETTINGS`` and so take their place.

A study that was stopped (by hand, or by ``--minutes``) continues where it was when started again; a run that was killed
with it starts anew, as nobody knows its time. Ends in DIR/results.json and DIR/results.md.
"""

import argparse
import shlex
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Parser, at_least, markdown, portable, ran_on, run, threads_each, write_results
from framework.config.matching import FtdConfig
from framework.errors import UserError
from framework.files import make_folder, read_json, write_json
from framework.records import Summary
from framework.report.folder import RunFolder
from runs import do_all, execute
from study import Job, mean_and_deviation, percent

RHO = {"FTD": 0.01, "MTT": 0.0}
"""Of the experts, by method."""
METHODS = (*RHO, "RaT-BPTT")
NETWORKS = 5  # that judge a set
ENDLESS = str(10**9)  # outer steps or epochs


@dataclass(frozen=True)
class Settings:
    """Flags for a data set."""

    common: str
    experts: str
    matching: str
    bptt: str


_SMALL = "--limit_train 5000 --width 16"
_ADAM = "--inner_optim Adam --inner_lr 0.005 --lr 0.005 --syn_strategy none --real_strategy none --eval_steps 30 60 120"
_EXPERTS = "--num_experts 3 --train_epochs 8 --batch_train 64"
_EVALUATION = "--ema_decay 0.98 --eval_it 100 --epoch_eval_train 300"
_MATCHING = f"--syn_steps 20 --expert_epochs 2 --max_start_epoch 5 --lr_img 300 {_EVALUATION}"
_BPTT = f"{_ADAM} --window 15 --totwindow 30 --batch_size 500 --test_freq 5"
SETTINGS = {
    "digits": Settings(
        common="--dataset digits --depth 1 --width 64",
        experts="--num_experts 10 --train_epochs 15 --batch_train 32 --lr_teacher 0.03",
        matching="--syn_steps 20 --expert_epochs 2 --max_start_epoch 8 --lr_img 10 --lr_lr 1e-4 --lr_teacher 0.03 "
        f"{_EVALUATION}",
        bptt=f"{_ADAM} --window 15 --totwindow 30 --batch_size 400 --test_freq 20",
    ),
    "mnist": Settings(f"--dataset mnist {_SMALL}", _EXPERTS, _MATCHING, _BPTT),
    "fashion-mnist": Settings(f"--dataset fashion-mnist {_SMALL}", _EXPERTS, _MATCHING, _BPTT),
    "cifar10": Settings(f"--dataset cifar10 {_SMALL}", _EXPERTS, f"{_MATCHING} --lr_img 1000", _BPTT),
}


class Clock:
    """The seconds that work in a folder has taken in all attempts, kept there.

    Args:
        folder: of the work; emptied where an attempt's end was not seen.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "clock.json"
        if self._state == "running":
            shutil.rmtree(folder)

    @property
    def seconds(self) -> float:
        """So far."""
        return float(read_json(self.path)["seconds"]) if self.path.exists() else 0.0

    @property
    def done(self) -> bool:
        """Whether ``finish`` was called."""
        return self._state == "done"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        before, began = self.seconds, time.monotonic()
        self._write(before, "running")
        try:
            yield
        finally:
            self._write(before + time.monotonic() - began, "stopped")

    def finish(self) -> None:
        """Note that the work is done."""
        self._write(self.seconds, "done")

    @property
    def _state(self) -> str | None:
        return read_json(self.path)["state"] if self.path.exists() else None

    def _write(self, seconds: float, state: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"seconds": seconds, "state": state})


@dataclass(frozen=True)
class TimedJob(Job):
    """A distillation that ends when its time is over; ``experts`` are the flags of theirs, empty for no experts."""

    experts: list[str]
    seconds: float

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def experts_folder(self) -> Path:
        """What ``--buffer_path`` names."""
        return self.folder.with_name(f"{self.folder.name}_experts")

    @property
    def experts_seconds(self) -> float:
        """What they took."""
        return Clock(self.experts_folder).seconds if self.experts else 0.0

    @property
    def seconds_used(self) -> float:
        """By experts and distillation."""
        return self.experts_seconds + Clock(self.folder).seconds

    @property
    def commands(self) -> list[str]:
        """That make the set, for people: without its seed and folders."""
        return [shlex.join(["python", "main.py", *portable(words)]) for words in (self.experts, self.flags) if words]

    @property
    def command(self) -> list[str]:
        """Of the distillation, but for its end."""
        where = ["--seed", str(self.seed), "--save_dir", str(self.folder), "--resume"]
        return [*self.flags, *(["--buffer_path", str(self.experts_folder)] if self.experts else []), *where]

    def work(self, deadline: float, threads: int) -> None:
        """Train the experts, distil until the time is over, judge; stop at the deadline.

        Raises:
            UserError: the time does not suffice for experts or for an evaluation.
        """
        if self.summary is not None or not self._train_experts(deadline, threads):
            return
        clock = Clock(self.folder)
        if not clock.done:
            left = self.seconds - self.experts_seconds - clock.seconds
            limit = min(left, deadline - time.monotonic())
            if left > 0 and limit <= 0:
                return
            if left > 0:
                with clock.running():
                    execute(self.title, [*self.command, *self._until(ENDLESS)], self.folder, limit, threads)
            if self.seconds_used < self.seconds:
                return
            clock.finish()
        execute(self.title, [*self.command, *self._until(self._reached())], self.folder, float("inf"), threads)

    def _train_experts(self, deadline: float, threads: int) -> bool:
        """Whether they are there."""
        if not self.experts:
            return True
        clock = Clock(self.experts_folder)
        if not clock.done:
            limit = deadline - time.monotonic()
            if limit <= 0:
                return False
            command = [*self.experts, "--seed", str(self.seed), "--buffer_path", str(self.experts_folder)]
            with clock.running():
                ended = execute(f"{self.title}, experts", command, self.experts_folder, limit, threads)
            if not ended:
                return False
            clock.finish()
        if clock.seconds >= self.seconds:
            raise UserError(
                f"--seconds {self.seconds:g}: the experts of {self.title} took {clock.seconds:.0f}; raise it, or lower "
                '--num_experts or --train_epochs in --experts "FLAGS"'
            )
        return True

    def _until(self, end: str) -> list[str]:
        return ["--Iteration" if self.experts else "--epochs", end]

    def _reached(self) -> str:
        """The iterations or epochs after which the run has stopped, up to the last whole epoch."""
        folder = RunFolder(self.folder)
        if not folder.records["evaluation"]:
            raise UserError(
                f"--seconds {self.seconds:g}: {self.title} was not evaluated before they were over; raise it, or lower "
                "--eval_it or --test_freq"
            )
        config, epochs = folder.config, folder.records["epoch"][-1]["epoch"]
        return str(epochs * config.iterations_per_epoch if isinstance(config, FtdConfig) else epochs)


def parser_of(doc: str | None, methods: Sequence[str]) -> Parser:
    """Of a study of these methods at equal time; ``flags_of`` and ``carry_out`` read what it gives."""
    parser = Parser(doc)
    parser.add_out()
    parser.add_argument("--dataset", choices=tuple(SETTINGS), default="digits", help="whose settings are taken")
    parser.add_argument("--seconds", type=at_least(1), required=True, help="of each method and seed")
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(methods))
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--ipc", type=at_least(1), default=1, help="synthetic images per class")
    parser.add_argument("--experts", default="", metavar="FLAGS", help="more flags of main.py buffer, in one word")
    parser.add_argument("--matching", default="", metavar="FLAGS", help="more flags of main.py ftd")
    parser.add_argument("--bptt", default="", metavar="FLAGS", help="more flags of main.py without a verb")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; run again to continue")
    parser.add_argument("--jobs", type=at_least(1), default=2, help="runs at a time; they share the cores")
    parser.add_argument("common", nargs="*", help="flags of main.py for all, after --")
    return parser


def flags_of(a: argparse.Namespace, own: str, rho: float | None) -> tuple[list[str], list[str]]:
    """The flags of a distillation, and those of its experts.

    Args:
        a: of ``parser_of``.
        own: more flags of the distillation.
        rho: of the experts; None: back-propagation through time, which has none.
    """
    s = SETTINGS[a.dataset]
    shared = ["--accelerate", "none", *s.common.split(), *a.common]
    judged = [*own.split(), *shared, "--num_per_class", str(a.ipc), "--num_train_eval", str(NETWORKS)]
    if rho is None:
        return [*judged, "--batch_per_class", str(a.ipc), *s.bptt.split(), *a.bptt.split()], []
    experts = ["buffer", *shared, *s.experts.split(), "--rho", f"{rho:g}", *a.experts.split()]
    return ["ftd", *judged, *s.matching.split(), *a.matching.split()], experts


def carry_out(jobs: Sequence[TimedJob], a: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, until ``--minutes`` are over; returns how."""
    deadline, threads = time.monotonic() + 60 * a.minutes, threads_each(a.jobs)
    do_all(lambda job: job.work(deadline, threads), jobs, a.jobs)
    return {"seconds": a.seconds, "threads": threads, "jobs": a.jobs}


def about_all(summaries: Sequence[Summary]) -> dict[str, Any]:
    """What the runs have in common; nothing of no run."""
    return {key: getattr(summaries[0], key) for key in ("dataset", "device", "torch", "python")} if summaries else {}


def listed(commands: dict[str, list[str]]) -> str:
    """Markdown below a table: the commands of each method."""
    parts = ["\n".join([f"\n\n{name}:\n", *(f"    {line}" for line in lines)]) for name, lines in commands.items()]
    return "".join(parts)


def collect(jobs: list[TimedJob]) -> dict[str, Any]:
    """What the finished runs show, by method."""
    finished = [(job, summary) for job in jobs if (summary := job.summary) is not None]
    methods = {}
    for name in dict.fromkeys(job.variant for job, _ in finished):
        runs = [(job, summary) for job, summary in finished if job.variant == name]
        first = runs[0][0]
        methods[name] = {
            "n": len(runs),
            "seeds": [job.seed for job, _ in runs],
            "test accuracy": mean_and_deviation([s.results["distilled"].top1 for _, s in runs]),
            "random real images": mean_and_deviation([s.results["random"].top1 for _, s in runs]),
            "per seed": [s.results["distilled"].top1 for _, s in runs],
            "outer steps": statistics.fmean(s.outer_steps for _, s in runs),
            "experts, seconds": statistics.fmean(job.experts_seconds for job, _ in runs),
            "seconds": statistics.fmean(job.seconds_used for job, _ in runs),
            "commands": first.commands,
        }
    return {**about_all([summary for _, summary in finished]), "methods": methods}


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each method, and the commands below."""
    rows = [
        [name, percent(m["test accuracy"]), percent(m["random real images"]), m["n"], f"{m['seconds']:.0f}",
         f"{m['experts, seconds']:.0f}", f"{m['outer steps']:.0f}"]
        for name, m in results["methods"].items()
    ]  # fmt: skip
    head = ["method", "test accuracy (%)", "random real images (%)", "n", "seconds", "of experts", "outer steps"]
    text = markdown(head, rows)
    if rows:
        text += f"\n\n± is the deviation over seeds. {results['dataset']}; {ran_on(results)}."
        text += listed({name: m["commands"] for name, m in results["methods"].items()})
    return text


def main() -> None:
    """Parse, run what is missing, collect."""
    a = parser_of(__doc__, METHODS).parse_args()
    out = a.out.resolve()
    make_folder(out, "--out")
    jobs = []
    for seed in a.seeds:
        for name in a.methods:
            own = "--baselines random" if name in RHO else "--truncation rat-bptt --baselines random"
            flags, experts = flags_of(a, own, RHO.get(name))
            jobs.append(TimedJob(name, seed, flags, out / name / f"seed{seed}", experts, a.seconds))
    results = {**carry_out(jobs, a), **collect(jobs)}
    write_results(out, "results", results, table(results))
    print(table(results))
    if missing := sum(job.summary is None for job in jobs):
        print(f"{missing} of {len(jobs)} runs are not finished: start the same command again to continue")


if __name__ == "__main__":
    run(main)
