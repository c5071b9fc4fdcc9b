"""Flags of every distillation run, whatever its method: its set, its recipe, its evaluations and its output."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from framework.config.common import Common
from framework.errors import UserError
from framework.flags import flag
from framework.inner.counts import (
    Asked,
    Counts,
    checked_numbers,
    counts_of,
    images_per_class,
    most,
    numbers_of,
    text_of,
)
from framework.inner.names import AUGMENTATIONS

TRACKERS = ("wandb", "trackio")  # packages that take metrics
_BOOSTED: dict[str, Any] = {"read_by": "--boost_block above 0", "reads": lambda config: config.boost_block > 0}


@dataclass(frozen=True)
class Distilling(Common):
    """What every distillation run takes, whatever its method."""

    # fmt: off
    # Synthetic set
    num_per_class: Asked = flag(1, "synthetic set",  # noqa: RUF009
        "synthetic images per class (IPC), or a text file with a line for each class: its name or index, white space "
        "or a comma, its number of images", minimum=1, metavar="N|FILE", kind=images_per_class,
        from_json=checked_numbers)
    boost_block: int = flag(0, "synthetic set", "boosting: learn the set in blocks of this many images per class, one "
        "after the other, so that the first blocks are a good set of their own size (0: all images at once)",
        minimum=0, metavar="B")
    boost_beta: float = flag(0.0, "synthetic set",
        "finished blocks go on learning at this share of the learning rate (0: they are frozen)",
        minimum=0, maximum=1, **_BOOSTED)
    boost_epochs: tuple[int, ...] = flag((), "synthetic set",
        "epochs of each block, of main.py ftd iterations (default: for each block --epochs, or --Iteration)",
        kind=int, nargs="+", minimum=1, metavar="E", **_BOOSTED)

    # Outer loop
    max_bad_steps: int = flag(10, "outer loop", "outer steps in a row whose meta-gradient is NaN or infinite (each is "
        "skipped) after which the run stops", minimum=1, resume="free")

    # Evaluation
    num_train_eval: int = flag(10, "evaluation", "fresh networks trained per evaluation", minimum=1)
    patience: int = flag(0, "evaluation", "evaluations in a row without a better accuracy on the images that select, "
        "after which the run ends (0: never)", minimum=0, metavar="N", resume="free")
    baselines: tuple[str, ...] = flag((), "evaluation",
        "rows to add to the result table: random (as many real images, same recipe), full (the whole real set)",
        kind=str, nargs="*", choices=("random", "full"), resume="free")
    eval_only: bool = flag(False, "evaluation", "take no step: evaluate the set that the run starts from, or with "
        "--resume the run as its checkpoint left it, and stop; writes all that the end of a run writes, but no "
        "checkpoint", resume="free")

    # Output
    save_dir: str | None = flag(None, "output", "the run's folder (default: save/<dataset>/<name made of the flags>)",
        kind=str, metavar="DIR", resume="free")
    fname: str = flag("", "output", "suffix of the default folder's name", metavar="TEXT", resume="free",
        read_by="runs without --save_dir", reads=lambda c: c.save_dir is None)
    resume: bool = flag(False, "output", "continue the run in its folder exactly where its last checkpoint left it",
        aliases=("--load_ckpt",), resume="free")
    print_freq: int = flag(20, "output", "outer steps between updates of progress bar and metrics", minimum=1,
        resume="free")
    ckpt_epochs: int | None = flag(None, "output", "epochs between checkpoints (default: 1, or as many as it takes to "
        "spend less than 0.1 % of the time on them)", kind=int, minimum=1, metavar="N", resume="free")
    ckpt_minutes: float = flag(10.0, "output", "also checkpoint after this many minutes", above=0, resume="free")
    track: tuple[str, ...] = flag((), "output", "send metrics and images to these as well, whose packages are "
        "needed; TensorBoard's files are always written", kind=str, nargs="*", choices=("tensorboard", *TRACKERS),
        resume="free")
    wandb: bool = flag(False, "output", "the same as --track wandb", resume="free")
    name: str = flag("test", "output", "name of the experiment there", metavar="TEXT", resume="free",
        read_by="--track", reads=lambda c: c.trackers)
    # fmt: on

    @property
    def trackers(self) -> tuple[str, ...]:
        """Those that metrics are sent to."""
        return tuple(name for name in TRACKERS if name in self.track or (name == "wandb" and self.wandb))

    # What is asked of every run, by whatever flags a method says it.

    @property
    def real_per_class(self) -> tuple[str, Asked] | None:
        """See ``Common``."""
        return ("--baselines random", self.num_per_class) if "random" in self.baselines else None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.save_dir is not None:
            return Path(self.save_dir)
        return Path(
            "save", self.dataset_label, "_".join(self.name_parts + ([self.fname.strip("_")] if self.fname else []))
        )

    @property
    def given_set(self) -> str | None:
        """File or folder of the set that the run starts from; None: it makes its own."""
        return None

    @property
    @abstractmethod
    def name_parts(self) -> list[str]:
        """Of the default folder's name."""

    @property
    @abstractmethod
    def policy(self) -> str:
        """The method's name, by the flags alone, and for the folder."""

    def method(self, provenance: Mapping[str, Any]) -> str:
        """The method's name for people: ``policy``, unless what the run's set says of itself tells more."""
        return self.policy

    @abstractmethod
    def facts(self, provenance: Mapping[str, Any]) -> dict[str, str]:
        """What makes this run, for people; see ``method``."""

    @property
    @abstractmethod
    def train_y(self) -> bool:
        """Whether soft labels are learnt."""

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Epochs of the run, or of each block of a boosted one, whatever the method calls so."""

    def counts(self, class_names: Sequence[str]) -> Counts:
        """Images of each of a data set's classes.

        Raises:
            UserError: --num_per_class has other classes.
        """
        return counts_of(self.num_per_class, class_names)

    @property
    def most_per_class(self) -> int:
        """Images of the class that has most."""
        return most(self.num_per_class)

    @property
    def mean_per_class(self) -> int:
        """Images per class in the mean, rounded down."""
        numbers = numbers_of(self.num_per_class, 1)
        return sum(numbers) // len(numbers)

    @property
    def per_class_text(self) -> str:
        """Images per class, for people."""
        return text_of(self.num_per_class)

    @property
    def ipc_name(self) -> str:
        """The same in names of folders."""
        return "IPC_" + self.per_class_text.translate(str.maketrans(" ", "_", "()"))

    @property
    def block_size(self) -> int:
        """Images per class that are learnt together; where classes have not as many, of the one that has most."""
        return self.boost_block or self.most_per_class

    @property
    def block_epochs(self) -> tuple[int, ...]:
        """Epochs of each block; of a run that is not boosted there is one."""
        return self.given_epochs or (self.epochs,) * (self.most_per_class // self.block_size)

    @property
    def given_epochs(self) -> tuple[int, ...]:
        """--boost_epochs, where it is read."""
        return self.boost_epochs if self.boost_block else ()

    def of_size(self, per_class: int) -> Self:
        """The flags for a part of the set, of so many images per class, that is used by itself."""
        return replace(self, num_per_class=per_class, boost_block=0, boost_epochs=())

    @property
    def total_epochs(self) -> int:
        """The number of the run's last epoch, counted from 1."""
        return sum(self.block_epochs)

    def is_evaluated(self, epoch: int) -> bool:
        """Whether the set is evaluated after an epoch, counted from 1: always after the last one of a block."""
        return epoch % self.test_freq == 0 or epoch in accumulate(self.block_epochs)

    @property
    @abstractmethod
    def start_epoch(self) -> int:
        """Number of the first one."""

    @property
    @abstractmethod
    def test_freq(self) -> int:
        """Epochs between evaluations."""

    @property
    @abstractmethod
    def recipe(self) -> str:
        """How networks are trained on the set by default, of ``evaluation.names.RECIPES``."""

    @property
    @abstractmethod
    def eval_steps(self) -> tuple[int, ...]:
        """Training lengths in inner steps; empty where the recipe has its own."""

    @property
    @abstractmethod
    def syn_strategy(self) -> str:
        """Augmentation of synthetic batches."""

    @property
    @abstractmethod
    def comp_aug(self) -> bool:
        """Whether all of its operations are applied."""

    @property
    @abstractmethod
    def batch_per_class(self) -> int:
        """Synthetic images drawn per class and inner step."""

    @property
    @abstractmethod
    def task_sampler_nc(self) -> int | None:
        """Classes drawn per inner step; None: all."""

    @property
    @abstractmethod
    def inner_optim(self) -> str:
        """Optimiser of the inner network."""

    @property
    @abstractmethod
    def inner_lr(self) -> float:
        """Its learning rate."""

    @property
    @abstractmethod
    def inner_eps_root(self) -> float:
        """What Adam adds inside its square root, as it is given."""

    @property
    def eps_root(self) -> float:
        """What the inner optimiser adds there; 0 where it has none."""
        return self.inner_eps_root if self.inner_optim == "Adam" else 0.0

    @property
    def block_names(self) -> list[str]:
        """What tells boosted runs apart, for ``name_parts``."""
        return [f"block{self.boost_block}", f"beta{self.boost_beta:g}"] if self.boost_block else []

    @property
    def boosting(self) -> str:
        """For people: the blocks, and what becomes of finished ones; empty where the run is not boosted."""
        if not self.boost_block:
            return ""
        finished = f"finished ones at {self.boost_beta:g} of the rate" if self.boost_beta else "finished ones frozen"
        return f"{len(self.block_epochs)} block(s) of {self.boost_block} image(s) per class, {finished}"

    def differences(self, saved: Self) -> list[str]:
        """See ``Common``; where a boosted run's blocks end must not change either."""
        changed = super().differences(saved)
        was, now = saved.block_epochs, self.block_epochs
        if not changed and self.boost_block and was != now:
            return [f"the blocks' epochs were {' '.join(map(str, was))} and are {' '.join(map(str, now))}"]
        return changed

    def validate(self) -> list[str]:
        """See ``Common``."""
        warnings = super().validate()
        if self.eval_only and not self.resume and self.given_set is None:
            start = "--ckptname FILE, or " if "ckptname" in self.flags() else ""
            raise UserError(f"--eval_only: there is nothing to evaluate; give {start}--resume with the folder of a run")
        self._check_blocks()
        if self.select == "test":
            warnings.append("--select test chooses snapshot and length on the test set, as the papers do: "
                            "the reported accuracy is optimistic")  # fmt: skip
        return warnings

    def _check_blocks(self) -> None:
        """Check the flags of boosting.

        Raises:
            UserError: naming the flag.
        """
        images, size, given = self.most_per_class, self.boost_block, self.given_epochs
        if size and not isinstance(self.num_per_class, int):
            raise UserError(f"--boost_block {size}: the blocks have as many images of each class; give one number as "
                            "--num_per_class, or leave it out")  # fmt: skip
        if size and images % size:
            raise UserError(f"--boost_block {size} does not divide the {images} image(s) of each class: give a divisor "
                            "of that number, or change it")  # fmt: skip
        if given and len(given) != images // size:
            raise UserError(f"--boost_epochs {' '.join(map(str, given))}: there are {images // size} block(s), give a "
                            "number for each, or leave it out")  # fmt: skip
        if size and self.start_epoch:
            raise UserError(f"--boost_block {size}: the first block starts at epoch 0; leave out --start_epoch")
        if size and self.patience:
            raise UserError(f"--patience {self.patience} would end a boosted run before its last block: leave it out, "
                            "or --boost_block")  # fmt: skip
        if size and self.eval_only and self.given_set is not None:
            raise UserError(f"--boost_block {size}: --eval_only evaluates the given set as a whole; leave it out, or "
                            "evaluate its prefixes by main.py evaluate --prefix")  # fmt: skip


def check_strategy(name: str, strategy: str) -> None:
    """Check the value of a flag that names augmentations.

    Raises:
        UserError: naming the flag.
    """
    names = strategy.split("_")
    shown = strategy if strategy.isprintable() else repr(strategy)  # errors are one line
    if strategy == "none":
        return
    for part in names:
        if part not in AUGMENTATIONS:
            raise UserError(f"--{name} {shown}: unknown augmentation {part!r}; join any of {', '.join(AUGMENTATIONS)} "
                            "by '_', or give none")  # fmt: skip
    if len(set(names)) < len(names):
        raise UserError(f"--{name} {shown}: names an augmentation twice; name each once")
