"""Flags that several verbs share: of the data, the network, a distillation run, and the processes.

A configuration is the only description of a run. The parser, the ``--help`` text, the validation, the saved
``config.json`` and the comparison made on resume are all derived from its fields.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from framework.data.registry import NAMES, is_own, kind_of, label_of, of_origin
from framework.errors import UserError
from framework.flags import (
    Flag,
    Parser,
    add_flags,
    check_range,
    checked_values,
    flag,
    flags_of,
    number_or_auto,
    option,
    plain_text,
)
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
from framework.inner.names import AUGMENTATIONS, PRECISIONS
from framework.networks.registry import ARCHITECTURES
from framework.networks.spec import ACTIVATIONS, NORMS, POOLS

TRACKERS = ("wandb", "trackio")  # packages that take metrics
DOWNLOADED, IMAGE_FILES = of_origin("downloaded"), of_origin("files")
GROUPS = (
    "data", "network", "experts", "synthetic set", "inner loop", "matching", "truncation", "automatic truncation",
    "importance sampling", "learnt truncation", "meta-gradient", "arithmetic", "outer loop", "high resolution",
    "evaluation", "output", "device and processes", "accepted for the originals' sake",
)  # fmt: skip
"""Of flags, in the order of ``--help``."""


_HF: dict[str, Any] = {"read_by": "--dataset hf:...", "reads": lambda config: kind_of(config.dataset) == "hf"}


@dataclass(frozen=True)
class Common(ABC):
    """What every verb that starts processes takes. Frozen: nothing may change a flag while running."""

    VERB: ClassVar[str] = ""
    """After ``main.py``; nothing for the first method."""
    ABOUT: ClassVar[str]
    """What it does, for ``--help``."""
    EPILOG: ClassVar[str] = ""
    """The end of ``--help``."""

    # fmt: off
    # Data
    dataset: str = flag("digits", "data",
        "real data set to distil: digits (embedded, needs no files), one that is downloaded to ROOT if missing "
        f"({', '.join(DOWNLOADED)}), one of image files ({', '.join(IMAGE_FILES[:-1])}: ImageNet and ten classes of "
        "it), imagefolder (ROOT/train/<class>/*, ROOT/{val,test}/<class>/*), npz:FILE (arrays x_train, y_train, "
        "x_test, y_test, or images and labels), or hf:FOLDER_OR_NAME (needs the package datasets)",
        choices=NAMES, metavar="NAME")
    root: str = flag("./dataset", "data", "folder that holds the data set's files",
        metavar="DIR", resume="free", read_by="all but digits", reads=lambda c: c.dataset != "digits")
    pixel_range: int | None = flag(None, "data", "the value of white in floating-point images, 1 or 255 (default: as "
        "the values tell, where they are certain)", kind=int, choices=(1, 255), read_by="--dataset npz:FILE",
        reads=lambda c: kind_of(c.dataset) == "npz")
    hf_image: str | None = flag(None, "data", "the column of pictures (default: the one that is plain)", kind=str,
        metavar="COLUMN", **_HF)
    hf_label: str | None = flag(None, "data", "the column of classes (default: the one that is plain)", kind=str,
        metavar="COLUMN", **_HF)
    im_size: int | None = flag(None, "data", "resize images to this many pixels a side (default: the data set's own)",
        kind=int, minimum=1, metavar="PIXELS")
    val_fraction: float = flag(0.1, "data",
        "share of the real training images kept apart to select snapshot and training length",
        minimum=0, maximum=0.9, read_by="--select val", reads=lambda c: c.select == "val")
    select: str = flag("val", "evaluation",
        "images that choose snapshot and length: val (a split of the training data; honest) or test (the papers' "
        "protocol; optimistic, and marked so)", choices=("val", "test"))
    limit_train: int | None = flag(None, "data", "use only N real training images, balanced over classes (N: 5000)",
        kind=int, nargs="?", const=5000, minimum=1, metavar="N")
    workers: int = flag(0, "data", "threads that decode image files once at the start (0: one per core)",
        aliases=("-j",), minimum=0, resume="free", read_by="data sets of image files",
        reads=lambda c: kind_of(c.dataset) in (*IMAGE_FILES, "hf"))
    data_cache: str = flag("auto", "data",
        "where real images are kept: device (all, as float32), disk (decoded once into a memory-mapped cache, read by "
        "batches; same numbers), or auto (disk where they would take more than half of the free memory)",
        choices=("auto", "device", "disk"), resume="free")
    cache_dir: str | None = flag(None, "data", "where ZCA matrices and decoded images are kept for later runs "
        "(default: at-bptt in the user's cache folder)", kind=str, metavar="DIR", resume="free",
        read_by="--zca, --zca_pixels, --data_cache auto and disk",
        reads=lambda c: c.whitening is not None or c.data_cache != "device")

    # Network
    arch: str = flag("convnet", "network",
        "inner network: ConvNet of 3, 4 or 5 blocks (for 32, 64, 128 pixels), VGG11, AlexNet, ResNet18, or a small ViT",
        choices=ARCHITECTURES)
    width: int | None = flag(None, "network",
        "channels of the first convolution (convnets, alexnet 128; vgg11, resnet18 64) or of a ViT's tokens (128)",
        kind=int, minimum=1, metavar="N")
    depth: int | None = flag(None, "network",
        "blocks (convnets, as named), stages (vgg11, 5), convolutions (alexnet, 5), blocks of each stage (resnet18, 2) "
        "or layers (vit, 4)", kind=int, minimum=1, metavar="N")
    norm: str | None = flag(None, "network",
        "normalisation (default: none in alexnet, layer in vit, else instance); batch: statistics of each step's batch",
        kind=str, choices=NORMS)
    act: str | None = flag(None, "network", "activation (default: gelu in vit, else relu)", kind=str,
        choices=tuple(ACTIVATIONS))
    pool: str | None = flag(None, "network",
        "pooling of 2x2 pixels (default: avg in convnets, max in vgg11, alexnet); in resnet18, vit what becomes of the "
        "last map or tokens (avg; none: the whole map, a class token)", kind=str, choices=POOLS)

    # Arithmetic
    precision: str = flag("float32", "arithmetic",
        "of the inner network: float32; tf32 (CUDA); or bf16 from the inner step on at which it is safe",
        choices=PRECISIONS)
    chunk: int | None = flag(None, "arithmetic",
        "images differentiated at a time; fewer need less memory (default: auto: 256, on a CPU fewer where activations "
        "are many)", kind=number_or_auto, minimum=1, metavar="IMAGES", resume="free")
    channels_last: bool = flag(False, "arithmetic", "store images and activations channels-last", resume="free")
    accelerate: str = flag("auto", "arithmetic",
        "compile (torch.compile), graphs (CUDA graphs), both, none, or auto (CUDA: graphs; CPU: compile where a run is "
        "long enough to gain by it)", choices=("auto", "none", "compile", "graphs", "both"), resume="free")

    # Output
    dry_run: bool = flag(False, "output", "validate everything, print what would run and stop; writes nothing",
        resume="free")

    # Device and processes
    seed: int = flag(0, "device and processes", "seed of every random stream", minimum=0)
    device: str = flag("auto", "device and processes", "auto, cpu, cuda, cuda:N or mps", resume="free")
    gpu: int | None = flag(None, "device and processes", "the ancestors' name for --device cuda:N",
        kind=int, minimum=0, metavar="N", resume="free")
    deterministic: bool = flag(False, "device and processes", "two runs on one machine are bit-identical, and slower "
        "on CUDA; by default they may differ there, as sums are taken in any order (on the CPU they do not)",
        resume="free")
    mp_distributed: bool = flag(False, "device and processes", "one process per visible GPU (see --nproc)",
        resume="free")
    nproc: int | None = flag(None, "device and processes", "processes to start (default: visible GPUs, or 1)",
        kind=int, minimum=1, metavar="N", resume="free", read_by="--mp_distributed", reads=lambda c: c.mp_distributed)
    world_size: int = flag(1, "device and processes", "number of nodes, each of which starts its own processes",
        minimum=1, resume="free")
    rank: int = flag(0, "device and processes", "number of this node", minimum=0, resume="free",
        read_by="--world_size above 1", reads=lambda c: c.world_size > 1)
    dist_url: str | None = flag(None, "device and processes", "where nodes meet, tcp://HOST:PORT",
        aliases=("--dist-url",), kind=str, metavar="URL", resume="free",
        read_by="--world_size above 1", reads=lambda c: c.world_size > 1)
    dist_backend: str | None = flag(None, "device and processes",
        "nccl or gloo (default: nccl on CUDA, gloo elsewhere)", aliases=("--dist-backend",), kind=str,
        choices=("nccl", "gloo"), resume="free",
        read_by="runs of several processes", reads=lambda c: c.mp_distributed or c.world_size > 1)
    # fmt: on

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the run writes."""

    @property
    @abstractmethod
    def whitening(self) -> Literal["zca", "zca_pixels"] | None:
        """The kind of ZCA that images are whitened by; None: each channel is standardised."""

    @property
    @abstractmethod
    def zca_reg(self) -> float:
        """Regularisation of the whitening ``zca``, as a share of the mean eigenvalue."""

    @property
    def dataset_label(self) -> str:
        """What the data set is called in names of folders, in tables and cards."""
        return label_of(self.dataset)

    def train_sizes(self, distributed: int) -> tuple[int, int]:
        """Of so many distributed training images, those left by the validation split, about, and by --limit_train."""
        all_train = distributed if self.select == "test" else round(distributed * (1 - self.val_fraction))
        return all_train, min(all_train, self.limit_train or all_train)

    @property
    def network(self) -> dict[str, Any]:
        """The flags of the group ``network`` but the name, as ``networks.registry.build`` takes them."""
        return {name: getattr(self, name) for name in ("width", "depth", "norm", "act", "pool")}

    @property
    def device_name(self) -> str:
        """--device, or what --gpu N stands for."""
        return self.device if self.gpu is None else f"cuda:{self.gpu}"

    @classmethod
    @cache
    def flags(cls) -> dict[str, Flag]:
        """Every flag, by its field's name."""
        return flags_of(cls)

    @classmethod
    @cache
    def defaults(cls) -> Self:
        """The configuration of an empty command line."""
        return cls()

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What a command line's values stand for, where some of them are names for others.

        Args:
            given: values by the fields' names, those that were given.

        Raises:
            UserError: they contradict each other.
        """
        return given

    def validate(self) -> list[str]:
        """Check what can be checked without data: ranges and contradictions.

        Returns:
            Warnings about choices that are allowed but likely unintended.

        Raises:
            UserError: naming the flag.
        """
        for name, about in self.flags().items():
            check_range(name, getattr(self, name), about)
        if self.select == "val" and self.val_fraction == 0:
            raise UserError("--val_fraction 0 leaves no images for --select val: raise it, or give --select test")
        if self.gpu is not None and self.device not in ("auto", "cuda", f"cuda:{self.gpu}"):
            raise UserError(f"--gpu {self.gpu} contradicts --device {self.device}: give one of them")
        if self.rank >= self.world_size:
            raise UserError(
                f"--rank {self.rank} is not below --world_size {self.world_size}: nodes are numbered from 0"
            )
        if self.world_size > 1 and self.dist_url is None:
            raise UserError("--world_size above 1 needs --dist-url tcp://HOST:PORT, where HOST is node 0")
        return []

    def check_data(  # noqa: B027  (most kinds of run have nothing to check)
        self, num_classes: int | None, image_size: int, train: int | None = None, processes: int = 1
    ) -> None:
        """Check what needs the data set's numbers; None: not known yet.

        Args:
            num_classes: of it.
            image_size: in pixels.
            train: training images.
            processes: of the run.

        Raises:
            UserError: naming the flag.
        """

    @property
    def real_per_class(self) -> tuple[str, Asked] | None:
        """A flag that asks for real images of every class, and how many; None: no flag does."""
        return None

    def to_json(self) -> str:
        """The configuration as an indented JSON object, one key per flag, and the verb where there is one."""
        verb = {"verb": self.VERB} if self.VERB else {}
        return json.dumps(verb | dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, values: Any, source: Path) -> Self:
        """The configuration that a file holds, checked as a command line is; younger flags have their defaults.

        Args:
            values: what ``to_json`` wrote, parsed.
            source: the file, for the message.

        Raises:
            UserError: naming the file, the flag and what is wrong with it.
        """
        try:
            if not isinstance(values, dict):
                raise UserError("no flags are there")
            flags = checked_values({name: v for name, v in values.items() if name != "verb"}, cls)
            config = cls(**cls.resolve(flags))
            config.validate()
        except UserError as error:
            raise UserError(f"{source}: its flags are damaged ({error}); restore it from a copy") from error
        return config

    def differences(self, saved: Self) -> list[str]:
        """Flags that a resumed run may not change but that differ from the saved configuration.

        Returns:
            One text per flag, such as ``"--lr was 0.01 and is 0.1"``.
        """
        fixed = [name for name, about in self.flags().items() if about.resume == "same"]
        pairs = [(name, getattr(saved, name), getattr(self, name)) for name in fixed]
        # One's own data may lie elsewhere now; that they are the same is seen when they are there (``base.Run``).
        moved = is_own(self.dataset) and kind_of(self.dataset) == kind_of(saved.dataset)
        pairs = [pair for pair in pairs if not (moved and pair[0] == "dataset")]
        return [f"{option(name)} {_changed(was, now)}" for name, was, now in pairs if was != now]


def _changed(was: Any, now: Any) -> str:
    """What a flag was and is; of numbers for classes those that differ alone."""
    if isinstance(was, dict) and isinstance(now, dict):
        differing = [name for name in [*was, *now] if was.get(name) != now.get(name)]
        return f"of class {differing[0]} was {was.get(differing[0])} and is {now.get(differing[0])}"
    shown = (text_of(value) if isinstance(value, dict) else value for value in (was, now))
    return "was {} and is {}".format(*shown)


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
        return dataclasses.replace(self, num_per_class=per_class, boost_block=0, boost_epochs=())

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


C = TypeVar("C", bound=Common)


def build_parser(kind: type[Common]) -> Parser:
    """The parser of a verb, made from its configuration's fields."""
    parser = Parser(f"main.py {kind.VERB}".strip(), kind.ABOUT, epilog=kind.EPILOG)
    add_flags(parser, kind, GROUPS)
    return parser


def parse_as(arguments: Sequence[str], kind: type[C], start: C | None = None) -> tuple[C, list[str]]:
    """Parse and validate a command line, without the verb.

    Args:
        arguments: its words.
        kind: of configuration.
        start: what flags that are not given have, instead of their defaults.

    Returns:
        The configuration and a list of warnings, one line each.

    Raises:
        UserError: a value is out of range or two flags contradict each other.
        SystemExit: code 2 after one line for what argparse itself refuses; code 0 after ``--help``.
    """
    plain_text(arguments)
    given: dict[str, Any] = vars(build_parser(kind).parse_args(arguments))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    given = kind.resolve(given)
    config = kind(**given) if start is None else dataclasses.replace(start, **given)
    warnings = config.validate()
    for name in given:
        about, changed = kind.flags()[name], getattr(config, name) != getattr(kind.defaults(), name)
        if about.inert:
            warnings.append(f"{option(name)}: {about.inert}")
        elif changed and about.reads is not None and not about.reads(config):
            warnings.append(f"{option(name)} is not read by this run: only {about.read_by} reads it")
    return config, warnings


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
