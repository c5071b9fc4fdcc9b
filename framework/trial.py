"""A few outer steps taken and timed, to tell how long a run will take: ``--dry_run --trial``."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from framework.assemble.bptt import assemble_bptt, build_bptt
from framework.assemble.common import Parts, check_packages
from framework.config.bptt import Config
from framework.data.preprocess import Standardise
from framework.data.registry import DatasetInfo, at_hand
from framework.data.splits import RealData, Split, StreamedImages
from framework.distill_higher import BackpropThroughTime
from framework.inner.optimizers import State
from framework.outer.synthetic import joint_norm
from framework.rng import generator
from framework.run.distributed import Comm
from framework.run.memory import advice, explained

STEPS = 3  # outer steps that are timed, each with a window of its own
CHOICE = "choice of the window"  # of the phases, the one that many steps may share

_INNER_STEPS = 5
_JUDGED = 500  # images at most of a timed forward pass
_UNKNOWN = 1000  # training images where neither the data nor what is published of them says how many


@dataclass(frozen=True)
class Trial:
    """What was found."""

    real: bool
    """On the data themselves; else on random pixels."""
    windows: list[str]
    """Of the steps, as ``start..end``."""
    phases: dict[str, float]
    """Seconds of a mean outer step."""
    inner: float
    """Seconds of an inner step that is not differentiated."""
    judged: float
    """Seconds of a forward pass over the images that select."""

    @property
    def lines(self) -> list[str]:
        """What was found, for people."""
        on = "the real images" if self.real else "random pixels, as the data are not here"
        shown = ", ".join(f"{phase} {seconds:.2g}" for phase, seconds in self.phases.items())
        windows = f"; windows {', '.join(self.windows)}" if self.windows else ""
        return [f"trial: {STEPS} outer steps on {on}, {sum(self.phases.values()):.3g} s each ({shown}){windows}"]

    def outer_seconds(self, steps: int, choices: int) -> float:
        """Of so many outer steps, for which so many windows are chosen."""
        choice = self.phases.get(CHOICE, 0.0)
        return (sum(self.phases.values()) - choice) * steps + choice * choices

    def evaluation_seconds(self, networks: int, lengths: tuple[int, ...]) -> float:
        """Of one evaluation: so many networks, each judged after so many inner steps."""
        return networks * (self.inner * max(lengths) + self.judged * len(lengths))


def forecast(trial: Trial, c: Config, steps_per_epoch: int, every_step: bool, done: int) -> str:
    """How long the rest of a run will take.

    Args:
        trial: what was found.
        c: the run's flags.
        steps_per_epoch: outer steps.
        every_step: a window is chosen for each of them, not for each epoch.
        done: epochs that lie behind; those are left out.
    """
    epochs = c.epochs - done
    evaluations = len({number for number in range(done + 1, c.epochs) if number % c.test_freq == 0}) + 1
    choices = epochs * steps_per_epoch if every_step else -(-epochs // c.probe_every)
    outer = trial.outer_seconds(epochs * steps_per_epoch, choices)
    # The final table trains as many networks once more, and again for the baseline of random images.
    tables = evaluations + 1 + ("random" in c.baselines)
    judging = tables * trial.evaluation_seconds(c.num_train_eval, c.eval_steps)
    rest = " from where --resume continues" if done > c.start_epoch else ""
    return (
        f"time{rest}, in one process: {(outer + judging) / 3600:.3g} h, of which {outer / 3600:.3g} h for "
        f"{epochs * steps_per_epoch:,} outer steps and {judging / 3600:.3g} h for {evaluations:,} evaluations and the "
        "final table"
    )


def tried(c: Config, info: DatasetInfo, classes: int, train: int | None, device: torch.device, done: int) -> list[str]:
    """Take a few outer steps as the run would, and tell what they took and how long the rest will take.

    Nothing is written but, where real images are read, the caches that the run itself would use.

    Args:
        c: the run's flags.
        info: of the data.
        classes: of them.
        train: training images, if known.
        device: the run's.
        done: epochs that a run in its folder has behind it.

    Raises:
        UserError: the data cannot be read, or flags do not fit them.
        OutOfMemory: with what to lower.
    """
    from framework.data.readers import present  # late: it takes torchvision, which few data sets need

    comm, root = Comm(), Path(c.root)
    here = at_hand(c.dataset, root) or present(c.dataset, root)
    if here:
        parts = assemble_bptt(c, comm, device)
    else:
        check_packages(c)
        parts = build_bptt(c, comm, device, _stand_in(c, info, classes, train or _UNKNOWN, device), None)
    with explained(lambda: advice(c, parts.memory, device)):
        trial = _trial(parts, here, device)
    lines = trial.lines
    if c.policy == "rat-pool":
        lines.append(
            "rat-pool: the first networks are new and take a prefix, later ones hardly: the run is faster than this"
        )
    every_step = isinstance(parts.method, BackpropThroughTime) and parts.method.policy.every_step
    if not here and train is None:
        return [*lines, "time: unknown until --root is here"]
    return [*lines, forecast(trial, c, parts.method.steps_per_epoch, every_step, max(done, c.start_epoch))]


def _trial(parts: Parts, real: bool, device: torch.device) -> Trial:
    watch, method = _Stopwatch(device), parts.method
    windows: list[str] = []
    if isinstance(method, BackpropThroughTime):
        method.mark = watch
    for epoch in range(STEPS + 1):
        if epoch == 1:
            watch.spent.clear()  # the first one was to warm up
            windows.clear()
        watch.start()
        proposals = method.proposals(epoch, 0)
        proposal = next(proposals)
        parts.set.update(proposal.grads, proposal.mask, proposal.clip)
        method.applied(float(joint_norm(proposal.grads)))
        watch("update")
        accuracy = float("nan") if proposal.accuracy is None else float(proposal.accuracy)
        facts = method.close_epoch(float(proposal.loss), accuracy)
        if "window_start" in facts:
            windows.append(f"{facts['window_start']}..{facts['window_start'] + facts['window_length']}")
    phases = {phase: seconds / STEPS for phase, seconds in watch.spent.items()}
    return Trial(real, windows, phases, _inner_seconds(parts, device), _judged_seconds(parts, device))


@dataclass
class _Stopwatch:
    """Adds up the seconds between its calls, by the phase that each call ends; waits for the device."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def start(self) -> None:
        """Begin, leaving out what was before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        """End a phase; the next one begins."""
        before = self.last
        self.start()
        self.spent[phase] = self.spent.get(phase, 0.0) + self.last - before


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """What ``work`` takes, the second time."""
    work()
    watch = _Stopwatch(device)
    watch.start()
    work()
    watch("work")
    return watch.spent["work"]


def _inner_seconds(parts: Parts, device: torch.device) -> float:
    """Of an inner step in an evaluation."""
    loop, snapshot = parts.loop.for_evaluation(), next(iter(parts.set.snapshots().values()))
    gen = generator(0, "trial")
    images, labels = snapshot.images.to(device), snapshot.labels.to(device)
    plan, state = parts.sampler.plan(_INNER_STEPS, gen).to(device), State.fresh(parts.network.init(gen))
    return seconds_of(lambda: loop.train(state, images, labels, plan), device) / _INNER_STEPS


@torch.no_grad()
def _judged_seconds(parts: Parts, device: torch.device) -> float:
    """Of a forward pass over the images that select."""
    count = min(_JUDGED, len(parts.selection))
    images, theta = parts.selection.batch(torch.arange(count)), parts.network.init(generator(0, "trial"))
    return seconds_of(lambda: parts.network(theta, images), device) * len(parts.selection) / count


# ---- in place of data that are not here ------------------------------------------------------------------


@dataclass(frozen=True)
class _RandomPixels:
    """(N, C, H, W) random uint8 images, drawn when they are read."""

    shape: torch.Size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        count = len(rows) if isinstance(rows, Tensor) else len(range(*rows.indices(len(self))))
        return torch.randint(256, (count, *self.shape[1:]), dtype=torch.uint8)


def _stand_in(c: Config, info: DatasetInfo, classes: int, train: int, device: torch.device) -> RealData:
    """Random images in the numbers and shapes of a data set."""
    shape = (info.channels, info.image_size, info.image_size)
    flat = Standardise(torch.full((info.channels,), 0.5), torch.full((info.channels,), 0.3))

    def split(count: int) -> Split:
        images = StreamedImages(_RandomPixels(torch.Size((count, *shape))), flat.on(device))
        return Split(images, torch.arange(count, device=device) % classes)

    held_out = max(classes, round(train * c.val_fraction)) if c.select == "val" else info.test_size or train
    asked = c.num_per_class
    names = tuple(map(str, range(classes)) if isinstance(asked, int) else asked)
    trained = max(train, classes * c.most_per_class)
    return RealData(c.dataset, names, split(trained), split(held_out), split(classes), flat)
