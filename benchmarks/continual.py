"""What is a memory of distilled images worth when classes arrive in tasks, against as many real images?

    python benchmarks/continual.py --out DIR --sizes 1 10 --seeds 0 1 2 [--classes 2] [--steps 120] -- FLAGS

Classes arrive in tasks of ``--classes``, in label order. Of a task's training images nothing stays but a memory of n
images of each of its classes (``--sizes``):

* distilled: by main.py, from the task's classes alone, which it is given as ``--dataset npz:FILE``;
* random: drawn anew for each network;
* herding, kcentre: chosen in the features of a network that was trained on the task alone.

After each task a fresh network with an output for every class seen so far is trained on the memory alone, and tested on
all test images of these classes. That is the learner of GDumb (Prabhu, Torr and Dokania 2020, ECCV): nothing but the
memory passes from one task to the next, so that accuracy says what the memory is worth. GDumb shares out a memory of
fixed size among the classes; here each class keeps n images, as where Zhao and Bilen 2023 (arXiv 2110.04181) judge
condensed images by that learner.

Two rows are no memory of a learner that sees one task at a time: images distilled with all classes at once, and all
real images of the classes seen.

Networks are trained by FLAGS' optimiser and augmentation for ``--steps`` steps, a number that no image has chosen:
``--num_train_eval`` of them for each seed and memory, the same fresh ones for all memories. Real and distilled images
are standardised as the first task's training images are, since later ones are not known yet. FLAGS are of main.py, for
every distillation; where ``--batch_per_class`` is more than there are images, it is lowered.

Every run has a folder of its own below DIR; a study that was stopped (by hand, or by ``--minutes``) continues where it
was when started again. Ends in DIR/results.json and results.md. Used by ``scripts/continual.sh``.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common import Parser, at_least, markdown, portable, ran_on, run, threads_each, write_results
from framework.assemble.common import data_spec
from framework.config.bptt import Config, parse
from framework.data.load import Listing, list_data, load_listed
from framework.data.splits import RealData, Split, draw_per_class, require_random_real
from framework.distilled.load import load_distilled
from framework.errors import UserError
from framework.evaluation.baselines import FULL_SET_BATCH
from framework.evaluation.coresets import choose
from framework.evaluation.evaluator import Evaluator, TrainingSet
from framework.evaluation.teacher import Pupil, Teacher
from framework.files import make_folder, read_json, write_atomically, write_json
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.execution import configure_process
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import make_optimizer
from framework.inner.plan import ClassSampler, Sampler, UniformSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build, specify
from framework.rng import generator
from framework.run.distributed import resolve_device
from runs import do_all
from study import Job, distil, mean_and_deviation, percent

MEMORIES = {
    "distilled": "distilled, each task on its own",
    "random": "random real images",
    "herding": "real images by herding",
    "kcentre": "real images by greedy k-centre",
    "joint": "distilled with all classes at once",
}
"""Rows of the table for each size."""
DISTILLED = ("distilled", "joint")
"""Of these, the ones that main.py makes."""
FULL = "full"
"""The row without a size: all real images of the classes seen."""
FEATURE_STEPS = 200
"""For which the network is trained in whose features coresets are chosen, in batches of 256."""


@dataclass(frozen=True)
class Study:
    """What is asked for.

    Args:
        out: folder of the results.
        classes: of each task.
        sizes: images of each class that the memory keeps, increasing.
        steps: for which networks are trained on a memory.
        seeds: of distillations, choices and networks.
        common: flags of main.py.
    """

    out: Path
    classes: int
    sizes: list[int]
    steps: int
    seeds: list[int]
    common: list[str]

    @cached_property
    def config(self) -> Config:
        """The common flags, with a size that any batch fits."""
        return parse([*self.common, "--num_per_class", str(10**6)])[0]

    @cached_property
    def listing(self) -> Listing:
        """All classes' images, none of them decoded."""
        return list_data(data_spec(self.config))

    @property
    def tasks(self) -> list[range]:
        """The classes of each task."""
        return [range(k, k + self.classes) for k in range(0, len(self.listing.class_names), self.classes)]

    @property
    def rows(self) -> list[tuple[str, int | None]]:
        """Each memory with its size."""
        return [*((kind, size) for size in self.sizes for kind in MEMORIES), (FULL, None)]

    def task_file(self, task: int) -> Path:
        """The images of a task."""
        return self.out / "tasks" / f"task{task}.npz"

    def of_task(self, task: int, size: int, seed: int) -> Job:
        """The distillation of a task."""
        return self._job(f"task{task}_{size}", size, seed, ["--dataset", f"npz:{self.task_file(task)}"])

    def joint(self, size: int, seed: int) -> Job:
        """The distillation of all classes at once."""
        return self._job(f"joint_{size}", size, seed, [])

    def needed(self, kind: str, size: int | None, seed: int) -> list[Job]:
        """The distillations of a row."""
        if size is None or kind not in DISTILLED:
            return []
        if kind == "joint":
            return [self.joint(size, seed)]
        return [self.of_task(task, size, seed) for task in range(len(self.tasks))]

    @property
    def jobs(self) -> list[Job]:
        """All distillations, seed by seed, those of all classes at once last."""
        rows = [(kind, size, seed) for kind in DISTILLED for seed in self.seeds for size in self.sizes]
        return [job for row in rows for job in self.needed(*row)]

    def _job(self, name: str, size: int, seed: int, data: list[str]) -> Job:
        batch = min(self.config.batch_per_class, size)
        sized = ["--num_per_class", str(size), "--batch_per_class", str(batch)]
        return Job.of(self.out, name, seed, [*self.common, *data, *sized])

    def score_file(self, kind: str, size: int | None, seed: int) -> Path:
        """Where the accuracies of a row are kept."""
        name = kind if size is None else f"{kind}_{size}"
        return self.out / "scores" / f"seed{seed}" / f"{name}.json"

    def check(self) -> None:
        """Check the flags, before anything is written.

        Raises:
            UserError: naming the flag.
        """
        c, names = self.config, self.listing.class_names
        excluded = {
            "--zca": c.zca, "--zca_pixels": c.zca_pixels, "--train_y": c.train_y, "--boost_block": c.boost_block,
        }  # fmt: skip
        if given := [flag for flag, value in excluded.items() if value]:
            raise UserError(f"{given[0]}: a memory is of standardised images with their classes; leave it out")
        if len(names) % self.classes:
            raise UserError(f"--classes {self.classes}: does not divide the {len(names)} classes of {c.dataset}")
        require_random_real(self.listing.counts, names, Counts.equal(len(names), self.sizes[-1]), "--sizes")

    def claim(self) -> None:
        """Note in the folder what is studied there, and write the tasks' images that it does not have.

        Raises:
            UserError: it holds a study of other flags.
        """
        asked = {"classes": self.classes, "steps": self.steps, "flags": self.common}
        kept = self.out / "study.json"
        if not kept.exists():
            write_json(kept, asked)
        elif read_json(kept) != asked:
            raise UserError(f"--out {self.out}: holds a study of other flags; choose another folder")
        for task in range(len(self.tasks)):
            if not self.task_file(task).exists():
                write_task(self, task)


# ---- tasks -----------------------------------------------------------------------------------------


def write_task(s: Study, task: int) -> None:
    """Write the images of a task's classes, split as those of all classes are, for ``--dataset npz:FILE``."""
    own, source = s.tasks[task], s.listing.source
    arrays: dict[str, Any] = {"class_names": np.array(s.listing.class_names[own.start : own.stop])}
    rows_of = {
        "train": (source.train, s.listing.train),
        "val": (source.train if source.val is None else source.val, s.listing.val),
        "test": (source.test, torch.arange(len(source.test.labels))),
    }
    for name, (part, rows) in rows_of.items():
        if rows is not None:
            chosen = rows[torch.isin(part.labels[rows], torch.tensor(own))]
            arrays[f"x_{name}"] = part.read(chosen, s.config.workers).permute(0, 2, 3, 1).numpy()
            arrays[f"y_{name}"] = (part.labels[chosen] - own.start).numpy()
    file = s.task_file(task)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, lambda to: np.savez(to, **arrays))


def load_tasks(s: Study, device: torch.device) -> list[RealData]:
    """The real images of each task, all of them standardised as the first task's."""
    loaded: list[RealData] = []
    for task in range(len(s.tasks)):
        spec = data_spec(replace(s.config, dataset=f"npz:{s.task_file(task)}"))
        preprocess = loaded[0].preprocess if loaded else None
        loaded.append(load_listed(list_data(spec), device, preprocess=preprocess, progress=False))
    # By its own name: augmentation does not mirror digits.
    return [replace(real, name=s.config.dataset) for real in loaded]


# ---- memories --------------------------------------------------------------------------------------

Memory = list[Split]
"""What stays of each task: images sorted by class, and numbers of classes that start from 0 in each task."""


class Memories:
    """The memories of one seed.

    Args:
        s: the study.
        tasks: the real images.
        seed: of all choices.
    """

    def __init__(self, s: Study, tasks: list[RealData], seed: int) -> None:
        self.s, self.tasks, self.seed = s, tasks, seed

    def of(self, kind: str, size: int | None) -> list[Memory]:
        """A memory for each network.

        Args:
            kind: of ``MEMORIES``, or ``FULL``.
            size: images of each class.
        """
        runs = self.s.config.num_train_eval
        if size is None:
            return [[real.train for real in self.tasks]] * runs
        if kind == "random":
            return [self._random(size, network) for network in range(runs)]
        made = {"distilled": self._distilled, "joint": self._joint}
        return [made[kind](size) if kind in made else self._coreset(kind, size)] * runs

    def _random(self, size: int, network: int) -> Memory:
        counts = Counts.equal(self.s.classes, size)
        chosen = [
            draw_per_class(real.train.labels.cpu(), counts, generator(self.seed, "memory", network, t))
            for t, real in enumerate(self.tasks)
        ]
        return self._chosen(chosen)

    def _coreset(self, kind: str, size: int) -> Memory:
        return self._chosen([
            torch.cat(choose(kind, teacher, real, Counts.equal(real.num_classes, size), lambda steps: None))
            for teacher, real in zip(self.teachers, self.tasks, strict=True)
        ])  # fmt: skip

    def _chosen(self, rows: list[torch.Tensor]) -> Memory:
        return [Split(real.train.batch(r), real.train.labels[r]) for real, r in zip(self.tasks, rows, strict=True)]

    def _distilled(self, size: int) -> Memory:
        return [self._images(self.s.of_task(t, size, self.seed), range(self.s.classes)) for t in range(len(self.tasks))]

    def _joint(self, size: int) -> Memory:
        return [self._images(self.s.joint(size, self.seed), own) for own in self.s.tasks]

    def _images(self, job: Job, classes: range) -> Split:
        """Some classes of a distilled set, through natural colours to the first task's standardisation."""
        distilled = load_distilled(job.folder)
        images = distilled.images.unflatten(0, (distilled.num_classes, -1))[classes.start : classes.stop].flatten(0, 1)
        first = self.tasks[0]
        images = first.preprocess.of_natural(distilled.preprocess.inverse(images, clip=False))
        labels = torch.arange(len(classes)).repeat_interleave(distilled.per_class)
        device = first.train.labels.device
        return Split(images.to(device), labels.to(device))

    @cached_property
    def teachers(self) -> list[Teacher]:
        """For each task a network that was trained on its images alone; its accuracy is not looked at."""
        result = []
        for t, real in enumerate(self.tasks):
            c, classes = self.s.config, real.num_classes
            spec = specify(c.arch, *real.image_shape[:2], classes, **c.network)
            pupil = Pupil(c.arch, spec, network_for(c, real, classes), FEATURE_STEPS)
            theta = pupil.trained(real, FEATURE_STEPS, lambda steps: None, "continual", self.seed, t)
            result.append(Teacher(pupil, theta, float("nan")))
        return result


# ---- scores ----------------------------------------------------------------------------------------


def network_for(c: Config, real: RealData, classes: int) -> FlatNetwork:
    """The network of the flags for so many classes."""
    return FlatNetwork(build(c.arch, *real.image_shape[:2], classes, **c.network), real.train.labels.device)


def joined(splits: Sequence[Split], classes: int) -> Split:
    """Splits of tasks of so many classes as one, in which the second task's classes come after the first's."""
    images = [split.batch(torch.arange(len(split))) for split in splits]
    return Split(torch.cat(images), torch.cat([split.labels + t * classes for t, split in enumerate(splits)]))


def accuracies(
    s: Study, tasks: list[RealData], memories: list[Memory], size: int | None, seed: int
) -> list[list[float]]:
    """After each task, the test accuracy (a fraction) over the classes seen so far, of one network on each memory."""
    c, result = s.config, []
    rule = make_optimizer(c.inner_optim, c.inner_lr)
    for seen in range(1, len(tasks) + 1):
        classes = seen * s.classes
        evaluator = Evaluator(InnerLoop(network_for(c, tasks[0], classes), rule), seed)
        test, found = joined([real.test for real in tasks[:seen]], s.classes), []
        for i, memory in enumerate(memories):
            data = training_set(c, joined(memory[:seen], s.classes), classes, size)
            # Of one stream whatever the memory: all start from the same networks.
            found.append(evaluator.evaluate(data, (s.steps,), test, "continual", seen, i)[0].top1)
        result.append(found)
    return result


def training_set(c: Config, memory: Split, classes: int, size: int | None) -> TrainingSet:
    """Batches of a memory: by class where it keeps ``size`` images of each, else of any class."""
    augmentation = Augmentation(c.syn_strategy, c.comp_aug, memory.images.shape[-1])
    sampler: Sampler = UniformSampler(len(memory), FULL_SET_BATCH, augmentation)
    if size is not None:
        drawn = min(c.task_sampler_nc or classes, classes)
        sampler = ClassSampler(Counts.equal(classes, size), drawn, min(c.batch_per_class, size), augmentation)
    return TrainingSet(memory.images, F.one_hot(memory.labels, classes).float(), sampler)


def judge(s: Study, tasks: list[RealData], seed: int, deadline: float) -> None:
    """Judge what is missing of a seed's memories and can be judged, until the deadline."""
    memories = Memories(s, tasks, seed)
    for kind, size in s.rows:
        file = s.score_file(kind, size, seed)
        lacking = any(job.summary is None for job in s.needed(kind, size, seed))
        if file.exists() or lacking or time.monotonic() > deadline:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, accuracies(s, tasks, memories.of(kind, size), size, seed))


# ---- results ---------------------------------------------------------------------------------------


def collect(s: Study) -> dict[str, Any]:
    """What is known so far: for each row, accuracy after each task and its mean over tasks, over the seeds."""
    rows = []
    for kind, size in s.rows:
        files = {seed: file for seed in s.seeds if (file := s.score_file(kind, size, seed)).exists()}
        # Of each seed the mean over networks, after each task.
        found = {seed: [statistics.fmean(row) for row in read_json(file)] for seed, file in files.items()}
        if found:
            after = [mean_and_deviation(list(column)) for column in zip(*found.values(), strict=True)]
            over = mean_and_deviation([statistics.fmean(values) for values in found.values()])
            rows.append({"memory": kind, "size": size, "per seed": found, "after each task": after, "mean": over})
    done = {job.variant: summary for job in s.jobs if (summary := job.summary)}
    about = environment(resolve_device(s.config.device_name))
    return {
        **{key: about[key] for key in ("device", "torch", "python")},
        "dataset": s.config.dataset,
        "tasks": [[s.listing.class_names[k] for k in task] for task in s.tasks],
        "seeds": s.seeds,
        "networks": s.config.num_train_eval,
        "steps": s.steps,
        "flags": portable(s.common),
        "outer steps": {name: summary.outer_steps for name, summary in done.items()},
        "seconds": {name: summary.seconds for name, summary in done.items()},
        "rows": rows,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each memory, a column for each task."""
    names = {**MEMORIES, FULL: "all real images"}
    counts = [sum(map(len, results["tasks"][: t + 1])) for t in range(len(results["tasks"]))]
    rows = [
        [row["size"] or "all", names[row["memory"]], *map(percent, row["after each task"]), percent(row["mean"]),
         len(row["per seed"])]
        for row in results["rows"]
    ]  # fmt: skip
    text = markdown(["images per class", "memory", *(f"{count} classes" for count in counts), "mean", "n"], rows)
    return text + (
        f"\n\nTest accuracy (%) over all classes seen so far, after each task, and the mean over tasks. ± is the "
        f"deviation over n seeds, of each the mean of {results['networks']} networks trained for {results['steps']} "
        f"steps. {results['dataset']}; {ran_on(results)}."
    )


def main() -> None:
    """Parse, run what is missing, collect."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument("--classes", type=at_least(2), default=2, help="of each task")
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=[1, 10], help="images per class in the memory")
    parser.add_argument("--steps", type=at_least(1), default=120, help="of training on a memory")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_runs()
    a = parser.parse_args()
    deadline = time.monotonic() + 60 * a.minutes
    s = Study(a.out.resolve(), a.classes, sorted(set(a.sizes)), a.steps, a.seeds, a.common)
    s.check()
    make_folder(s.out, "--out")
    s.claim()
    threads = threads_each(a.jobs)
    do_all(lambda job: distil(job, deadline, threads), s.jobs, a.jobs)
    device = resolve_device(s.config.device_name)
    configure_process(device, "float32")
    tasks = load_tasks(s, device)
    for seed in s.seeds:
        judge(s, tasks, seed, deadline)
    results = collect(s)
    write_results(s.out, "results", results, table(results))
    print(table(results))
    missing = sum(job.summary is None for job in s.jobs)
    missing += sum(not s.score_file(kind, size, seed).exists() for kind, size in s.rows for seed in s.seeds)
    if missing:
        print(f"{missing} runs and rows are not finished: start the same command again to continue")


if __name__ == "__main__":
    run(main)
