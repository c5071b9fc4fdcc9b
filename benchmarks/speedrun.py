"""Verify a claim of distillation speed: how long until a goal, beside RaT-BPTT on the same machine.

    python benchmarks/speedrun.py --track digits_ipc1 --out DIR [--seeds 0 1 2] [--write] -- FLAGS OF THE CLAIM

For each seed it runs the track's RaT-BPTT, then the claim: the same command with the claim's flags after it, which may
not be those that make the track (``FIXED_GROUPS``, ``FIXED``). The time is that of the first evaluation whose accuracy
on validation images is at least the goal, start-up left out and evaluations included: seconds of processor time on a
CPU, of the clock on a GPU. The ratio is that of mean times; its deviation is that of the seeds' own ratios. Test
accuracy is the selected set's, after the whole run.

Stopped (by hand, or by ``--minutes``), the same command continues. Ends in ``DIR/results.json`` and ``.md``, with exit
code 1 where the claim fails or the ratio is unknown. ``--write`` puts the row into ``benchmarks/results/speedrun``,
where it takes the place of one of the same track and flags; only from a checkout without changes. ``--goal`` tries
another goal, or an open track, and is never written there.
"""

import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from common import RESULTS, ROOT, Parser, at_least, markdown, ran_on, run, threads_each, write_results
from framework.config.bptt import Config, parse
from framework.config.common import build_parser
from framework.errors import UserError
from framework.files import make_folder, read_json, write_json
from framework.flags import option
from framework.records import read_record
from study import Job, Result, distil, mean_and_deviation, percent

NAME = "speedrun"  # of the record table's files
FIXED_GROUPS = ("data", "network", "inner loop", "evaluation", "output", "device and processes")
"""Of flags that a claim may not give: what is learnt from, how sets are judged (by the inner loop), where it runs."""
FIXED = ("num_per_class", "train_y", "freeze_data")
"""More of them: what is learnt."""


@dataclass(frozen=True)
class Track:
    """What claims are compared on."""

    dataset: str
    per_class: int
    goal: float | None  # validation accuracy in percent; None: not known yet
    rat_bptt: str  # flags of RaT-BPTT
    needs_gpu: bool = False

    @property
    def flags(self) -> list[str]:
        """RaT-BPTT's command line, without seed, folder and device."""
        what = ["--dataset", self.dataset, "--num_per_class", str(self.per_class)]
        return [*what, "--truncation", "rat-bptt", *self.rat_bptt.split()]


_ADAM = "--inner_optim Adam --inner_lr 0.005 --syn_strategy none --real_strategy none --window 15 --totwindow 30"
_JUDGED = "--eval_steps 30 60 120 --num_train_eval 5"
_MNIST = f"--depth 3 --width 16 {_ADAM} --batch_size 500 --limit_train 5000 --lr 0.01 --epochs 400 --test_freq 5"
TRACKS = {
    "digits_ipc1": Track("digits", 1, 90.0,  # scripts/study.sh's settings, evaluated more often
        f"--depth 1 --width 64 {_ADAM} --batch_size 400 --lr 0.005 --epochs 240 --test_freq 10 {_JUDGED}"),
    # The settings of scripts/study.sh for a quarter of an hour on one core, in which RaT-BPTT's best, with seed 0, was
    # 85.8 and 75.6: the goals leave a margin.
    "mnist_ipc1": Track("mnist", 1, 84.0, f"{_MNIST} {_JUDGED}"),
    "fashion_mnist_ipc1": Track("fashion-mnist", 1, 74.0, f"{_MNIST} {_JUDGED}"),
    "cifar10_ipc10": Track("cifar10", 10, 69.4,  # RaT-BPTT's published command and accuracy
        "--batch_per_class 10 --num_train_eval 8 --batch_size 5000 --epochs 60000 --test_freq 25 --window 60 "
        "--totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --zca", needs_gpu=True),
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """What is to be verified."""

    track: str
    goal: float  # validation accuracy in percent
    reference: str  # flags of RaT-BPTT
    flags: str  # that the claim adds to them
    commit: str  # with ``-dirty`` where the checkout has changes


class Unproven(Exception):
    """Runs do not bear a claim out, in one line."""


@dataclass(frozen=True)
class Record:
    """A row of the record table. Accuracies are test accuracies in percent, mean and deviation over seeds."""

    track: str
    goal: float
    reference: str
    flags: str
    commit: str
    seeds: list[int]
    ratio: float  # of mean times to the goal, to RaT-BPTT's
    deviation: float | None  # of the seeds' ratios; None: of one seed
    seconds: float  # to the goal, mean
    reference_seconds: float
    accuracy: dict[str, float | None]
    reference_accuracy: dict[str, float | None]
    device: str
    torch: str
    python: str


# ---- before the runs -------------------------------------------------------------------------------


def goal_of(name: str, tried: float | None) -> float:
    """A track's goal, or the one that is tried instead.

    Raises:
        UserError: the track has none.
    """
    goal = TRACKS[name].goal if tried is None else tried
    if goal is None:
        raise UserError(f"--track {name} is open: no goal is known yet; choose another, or try one by --goal PERCENT")
    return goal


def check_flags(name: str, words: Sequence[str]) -> None:
    """Check a claim's flags, which stand after those of the track.

    Raises:
        UserError: one of them makes the track, starts from a finished set, or is out of its range.
        SystemExit: code 2 after one line for what is no flag.
    """
    for flag in vars(build_parser(Config).parse_args(words)):
        if flag in FIXED or Config.flags()[flag].group in FIXED_GROUPS:
            raise UserError(f"{option(flag)}: is part of the track {name} or of how it is run; leave it out")
    start = parse([*TRACKS[name].flags, *words])[0].start_set
    if start is not None:
        raise UserError(f"{' '.join(start)}: the time that this set took would not count; start from noise or real")


def checkout() -> str:
    """The commit of this checkout, with ``-dirty`` where tracked files other than results and pages differ from it.

    Raises:
        UserError: this is none.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs", ":!*.md"
    )
    return f"{commit}-dirty" if changed else commit


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{ROOT}: no commit can be read by git; a row names the commit: use a git clone") from error
    return done.stdout.strip()


def note(claim: Claim, out: Path) -> None:
    """Note in the folder of the results what is verified there.

    Raises:
        UserError: it is another claim, or the same of another commit.
    """
    make_folder(out, "--out")
    file = out / "claim.json"
    if not file.exists():
        write_json(file, asdict(claim))
        return
    kept = read_record(Claim, read_json(file), file)
    if different := [key for key, value in asdict(claim).items() if value != getattr(kept, key)]:
        raise UserError(f"--out {out}: holds a claim that differs in {' and '.join(different)}; choose another folder")


# ---- after them ------------------------------------------------------------------------------------


def seconds_to(result: Result, goal: float) -> float | None:
    """Until the first evaluation whose accuracy is at least the goal, in percent; None: there is none."""
    return next((seconds for seconds, accuracy in result.evaluations if 100 * accuracy > goal - 1e-9), None)


def times_to(goal: float, results: list[Result], who: str) -> list[float]:
    """``seconds_to`` of each run.

    Raises:
        Unproven: some do not reach the goal.
    """
    times = {result.seed: seconds_to(result, goal) for result in results}
    best = {r.seed: max(accuracy for _, accuracy in r.evaluations) for r in results}
    if short := [f"{100 * best[seed]:.1f} with seed {seed}" for seed, seconds in times.items() if seconds is None]:
        raise Unproven(f"{who} does not reach {goal:g} % on validation images: at best {', '.join(short)}")
    return [seconds for seconds in times.values() if seconds is not None]


def judge(claim: Claim, references: list[Result], claimed: list[Result]) -> Record:
    """The record that the runs make, of which there are two for each seed.

    Raises:
        Unproven: they make none.
        UserError: they are of several machines.
    """
    ours = times_to(claim.goal, claimed, "the claim fails: it")
    theirs = times_to(claim.goal, references, "the ratio is unknown: RaT-BPTT")
    machines = {f"{r.device}, torch {r.torch}, Python {r.python}" for r in (*references, *claimed)}
    if len(machines) > 1:
        raise UserError(f"--out: holds runs on {' and on '.join(sorted(machines))}; begin anew in another folder")
    ratios = [own / reference for own, reference in zip(ours, theirs, strict=True)]
    first = claimed[0]
    return Record(
        **asdict(claim),
        seeds=[result.seed for result in claimed],
        ratio=fmean(ours) / fmean(theirs),
        deviation=stdev(ratios) if len(ratios) > 1 else None,
        seconds=fmean(ours),
        reference_seconds=fmean(theirs),
        accuracy=mean_and_deviation([result.accuracy for result in claimed]),
        reference_accuracy=mean_and_deviation([result.accuracy for result in references]),
        device=first.device,
        torch=first.torch,
        python=first.python,
    )


def table(records: Iterable[Record]) -> str:
    """Markdown: a row for each record, or that there is none."""
    rows = [
        [r.track, f"{r.goal:g}", f"{r.ratio:.2f}" + ("" if r.deviation is None else f" ± {r.deviation:.2f}"),
         f"{r.seconds:.0f}", f"{r.reference_seconds:.0f}", percent(r.accuracy), percent(r.reference_accuracy),
         len(r.seeds), f"`{r.flags}`" if r.flags else "none", r.commit[:10] + r.commit[40:], ran_on(asdict(r))]
        for r in records
    ]  # fmt: skip
    if not rows:
        return "No claim has been verified yet."
    head = ["track", "goal (%)", "time / RaT-BPTT's", "seconds", "RaT-BPTT's", "test accuracy (%)", "RaT-BPTT's",
            "n", "flags", "commit", "on"]  # fmt: skip
    text = "Mean of n seeds; ± is the deviation over seeds. Seconds are of processor time on a CPU."
    return f"{markdown(head, rows)}\n\n{text}"


def tracks_table() -> str:
    """Markdown: a row for each track."""
    rows = [
        [name, track.dataset, track.per_class, "open" if track.goal is None else f"{track.goal:g}",
         "one GPU" if track.needs_gpu else "any", f"`{shlex.join(track.flags)}`"]
        for name, track in TRACKS.items()
    ]  # fmt: skip
    return markdown(["track", "data set", "images per class", "goal (%)", "machine", "RaT-BPTT's command"], rows)


def read_records(folder: Path = RESULTS) -> list[Record]:
    """The record table; empty where there is none yet.

    Raises:
        UserError: it is damaged.
    """
    file = folder / f"{NAME}.json"
    return [read_record(Record, row, file) for row in read_json(file)] if file.exists() else []


def add(record: Record, folder: Path) -> None:
    """Write a record into the table, for the one of the same track and flags if there is one."""
    others = [r for r in read_records(folder) if (r.track, r.flags) != (record.track, record.flags)]
    records = sorted([*others, record], key=lambda r: (r.track, r.ratio))
    write_results(folder, NAME, [asdict(r) for r in records], table(records))


def jobs_of(claim: Claim, out: Path, seeds: Sequence[int], where: Sequence[str]) -> list[Job]:
    """RaT-BPTT and the claim in turn, for each seed; ``where`` they run: more flags of both."""
    reference = [*claim.reference.split(), *where]
    variants = {"RaT-BPTT": reference, "claim": [*reference, *shlex.split(claim.flags)]}
    return [Job.of(out, name, seed, flags) for seed in seeds for name, flags in variants.items()]


def main() -> int:
    """Check, run what is missing, judge, write."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument("--track", choices=tuple(TRACKS), required=True)
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--goal", type=float, metavar="PERCENT", help="another goal, for a trial")
    parser.add_argument("--write", action="store_true", help="add the row to benchmarks/results/speedrun")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; run again to continue")
    parser.add_argument("--root", type=Path, metavar="ROOT", help="folder of the data sets, as of main.py")
    parser.add_device()
    parser.add_argument("flags", nargs="*", help="flags of the claim, after --")
    a = parser.parse_args()
    if a.write and a.goal is not None:
        raise UserError(f"--goal {a.goal:g} is for trials, which are not written: leave out --goal or --write")
    goal, track = goal_of(a.track, a.goal), TRACKS[a.track]
    check_flags(a.track, a.flags)
    check_machine(a.track, a.device)
    claim = Claim(a.track, goal, shlex.join(track.flags), shlex.join(a.flags), checkout())
    if a.write and claim.commit.endswith("-dirty"):
        raise UserError("--write: the checkout has changes that its commit does not; commit them first")
    out = a.out.resolve()
    note(claim, out)
    where = ["--device", a.device, *(["--root", str(a.root.resolve())] if a.root else [])]
    jobs = jobs_of(claim, out, list(dict.fromkeys(a.seeds)), where)
    deadline = time.monotonic() + 60 * a.minutes
    for job in jobs:
        distil(job, deadline, threads_each(1))
    results = [result for job in jobs if (result := job.result) is not None]
    if missing := len(jobs) - len(results):
        print(f"{missing} of {len(jobs)} runs are not finished: start the same command again to continue")
        return 0
    return conclude(claim, results, out, write=a.write)


def check_machine(name: str, device: str) -> None:
    """Check that a track can be run on the device that ``--device`` names.

    Raises:
        UserError: it cannot, or there is no such device.
    """
    from framework.run.distributed import resolve_device  # late: nobody waits for PyTorch to be told of a flag

    if resolve_device(device).type != "cuda" and TRACKS[name].needs_gpu:
        raise UserError(f"--track {name}: needs a CUDA GPU; give --device cuda on a machine that has one")


def conclude(claim: Claim, results: list[Result], out: Path, *, write: bool) -> int:
    """Judge the runs of all seeds, in the order of ``jobs_of``, and write what was found; returns the exit code.

    Raises:
        UserError: the checkout is no longer what the runs began with.
    """
    runs = [asdict(result) for result in results]
    try:
        record = judge(claim, results[::2], results[1::2])
    except Unproven as why:
        write_results(out, "results", {"verdict": str(why), "record": None, "runs": runs}, str(why))
        print(why)
        return 1
    text = table([record])
    write_results(out, "results", {"verdict": "verified", "record": asdict(record), "runs": runs}, text)
    print(text)
    if write:
        if checkout() != claim.commit:
            raise UserError("--write: the checkout changed while the runs went on; begin anew with another --out")
        add(record, RESULTS)
        print("written; python benchmarks/readme_tables.py puts it into docs/speedrun.md")
    return 0


if __name__ == "__main__":
    run(main)
