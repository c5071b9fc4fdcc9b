"""Flags that all verbs share: of the data, the network, and the processes.

A configuration is the only description of a run. The parser, the ``--help`` text, the validation, the saved
``config.json`` and the comparison made on resume are all derived from its fields.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
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
from framework.inner.counts import Asked, text_of
from framework.inner.names import PRECISIONS
from framework.networks.registry import ARCHITECTURES
from framework.networks.spec import ACTIVATIONS, NORMS, POOLS

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
        "compile (torch.compile), graphs (CUDA graphs), both, none, or auto (graphs on CUDA; compile where a run is "
        "long enough to gain minutes by it)", choices=("auto", "none", "compile", "graphs", "both"), resume="free")

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
