"""Every flag, once: its name, default, help, range and who reads it.

``Config`` is the only description of a run. The parser, the ``--help`` text, the validation, the
saved ``config.json`` and the comparison made on resume are all derived from its fields.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.registry import DATASETS, of_origin
from framework.errors import UserError
from framework.flags import Flag, Parser, add_flags, check_range, checked_values, flag, flags_of, option, plain_text
from framework.inner.names import AUGMENTATIONS, CHUNK, MOMENTUM, PRECISIONS, WEIGHT_DECAY
from framework.networks.registry import ARCHITECTURES
from framework.networks.spec import ACTIVATIONS, NORMS, POOLS
from framework.outer.policies.registry import POLICIES, that

ENGINES = ("higher", "replay", "lowrank")
AUTOMATIC, RESIZING = that("automatic"), that("resizes")
PATIENCE = re.compile(r"\d+(\.\d+)?[TE]|[1-9]\d*")  # a fraction of T or of all epochs, or whole epochs
DOWNLOADED, IMAGE_FILES = of_origin("downloaded"), of_origin("files")


_ENGINE_LOWRANK: dict[str, Any] = {"read_by": "--engine lowrank", "reads": lambda config: config.engine == "lowrank"}


def _policy_in(*names: str) -> dict[str, Any]:
    return {"read_by": ", ".join(names), "reads": lambda config: config.policy in names}


@dataclass(frozen=True)
class Config:
    """One run, as given on the command line. Frozen: nothing may change a flag while running."""

    # fmt: off
    # Data
    dataset: str = flag("digits", "data",
        "real data set to distil: digits (embedded, needs no files), one that is downloaded to ROOT if missing "
        f"({', '.join(DOWNLOADED)}), one of image files ({', '.join(IMAGE_FILES[:-1])}: ImageNet and ten classes of "
        "it), or imagefolder (ROOT/train/<class>/*, ROOT/{val,test}/<class>/*)",
        choices=tuple(DATASETS), metavar="NAME")
    root: str = flag("./dataset", "data", "folder that holds the data set's files",
        metavar="DIR", resume="free", read_by="all but digits", reads=lambda c: c.dataset != "digits")
    im_size: int | None = flag(None, "data", "resize images to this many pixels a side (default: the data set's own)",
        kind=int, minimum=1, metavar="PIXELS")
    zca: bool = flag(False, "data", "whiten with the regularised ZCA of RaT-BPTT and AT-BPTT, which normalises each "
        "image first, instead of standardising each channel")
    zca_reg: float = flag(0.1, "data", "ZCA regularisation, as a fraction of the mean eigenvalue",
        above=0, read_by="--zca", reads=lambda c: c.zca)
    zca_pixels: bool = flag(False, "data",
        "whiten with the ZCA of MTT, FTD and DATM, of pixels about the mean image, instead")
    val_fraction: float = flag(0.1, "data",
        "share of the real training images kept apart to select snapshot and training length",
        minimum=0, maximum=0.9, read_by="--select val", reads=lambda c: c.select == "val")
    limit_train: int | None = flag(None, "data", "use only N real training images, balanced over classes (N: 5000)",
        kind=int, nargs="?", const=5000, minimum=1, metavar="N")
    workers: int = flag(0, "data", "threads that decode image files once at the start (0: one per core)",
        aliases=("-j",), minimum=0, resume="free", read_by="data sets of image files",
        reads=lambda c: c.dataset in IMAGE_FILES)
    data_cache: str = flag("auto", "data",
        "where real images are kept: device (all, as float32), disk (decoded once into a memory-mapped cache, read by "
        "batches; same numbers), or auto (disk where they would take more than half of the free memory)",
        choices=("auto", "device", "disk"), resume="free")
    cache_dir: str | None = flag(None, "data", "where ZCA matrices and decoded images are kept for later runs "
        "(default: at-bptt in the user's cache folder)", kind=str, metavar="DIR", resume="free",
        read_by="--zca, --zca_pixels, --data_cache auto and disk",
        reads=lambda c: c.zca or c.zca_pixels or c.data_cache != "device")

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

    # Synthetic set
    num_per_class: int = flag(1, "synthetic set", "synthetic images per class (IPC)", minimum=1)
    train_y: bool = flag(False, "synthetic set", "learn soft labels too; they start one-hot and stay >= 0")
    ckptname: str = flag("none", "synthetic set",
        "start from this distilled set instead of noise: a run's folder, or a file or image folder of this program or "
        "another, as evaluate reads them; brought into the run's preprocessing", metavar="FILE")

    # Inner loop
    inner_optim: str = flag("SGD", "inner loop",
        f"optimiser of the inner network: Adam, or SGD (momentum {MOMENTUM}, weight decay {WEIGHT_DECAY:g})",
        choices=("SGD", "Adam"))
    inner_lr: float = flag(0.01, "inner loop", "learning rate of the inner network", above=0)
    batch_per_class: int = flag(1, "inner loop", "synthetic images drawn per class and inner step", minimum=1)
    task_sampler_nc: int | None = flag(None, "inner loop", "classes drawn per inner step (default: all)",
        kind=int, minimum=1, metavar="CLASSES")
    syn_strategy: str = flag("flip_rotate", "inner loop",
        f"augmentation of synthetic batches, joined by '_' ({', '.join(AUGMENTATIONS)}), or none", metavar="A_B")
    comp_aug: bool = flag(False, "inner loop", "apply all of --syn_strategy at each step, not one drawn at random",
        read_by="strategies of several operations", reads=lambda c: "_" in c.syn_strategy)

    # Truncation
    ddtype: str = flag("standard", "truncation",
        "standard: BPTT over the first --window steps; curriculum: the window lies where --cctype says",
        choices=("standard", "curriculum"), read_by="runs without --truncation",
        reads=lambda c: c.truncation is None)
    cctype: int = flag(0, "truncation", "where a curriculum's window lies: 0 at the end, 1 moving forward, 2 random",
        choices=(0, 1, 2), read_by="--ddtype curriculum without --truncation",
        reads=lambda c: c.truncation is None and c.ddtype == "curriculum")
    truncation: str | None = flag(None, "truncation",
        "truncation policy by name; overrides --ddtype and --cctype", kind=str, choices=tuple(POLICIES))
    window: int = flag(20, "truncation", "W: inner steps differentiated per outer step", minimum=1,
        read_by="all but bptt", reads=lambda c: c.truncation != "bptt")
    minwindow: int = flag(0, "truncation", "first inner step at which the window may start", minimum=0,
        **_policy_in(*that("places")))
    totwindow: int = flag(20, "truncation", "T: inner steps of a whole trajectory", minimum=1)
    complete_random: bool = flag(False, "truncation", "draw a new window at every outer step, not every epoch",
        **_policy_in("rat-bptt"))

    # Automatic truncation
    d: int | None = flag(None, "automatic truncation",
        "window radius: lengths from W-d to W+d; turns --cctype 2 into AT-BPTT", aliases=("--d",), kind=int,
        minimum=0, metavar="STEPS", read_by="--cctype 2, at-bptt, at-bptt-windows",
        reads=lambda c: c.policy in RESIZING)
    tau: float = flag(1.0, "automatic truncation", "temperature of positions, and of softmax window weights",
        above=0, **_policy_in(*AUTOMATIC))
    window_weight: str = flag("rank", "automatic truncation",
        "a window's length follows the rank of its gradient variation (public code) or its softmax (paper)",
        choices=("rank", "softmax"), **_policy_in(*RESIZING))
    window_rule: str = flag("adaptive", "automatic truncation",
        "adaptive: lengths from variation in every stage (paper); public: W+d in the middle, W-d late (public code)",
        choices=("adaptive", "public"), **_policy_in(*RESIZING))
    early_gain: float = flag(1.5, "automatic truncation",
        "points of accuracy an epoch must gain to count as progress in the early stage", **_policy_in(*AUTOMATIC))
    middle_gain: float = flag(1.0, "automatic truncation", "the same in the middle stage",
        **_policy_in(*AUTOMATIC))
    early_patience: str = flag("0.15T", "automatic truncation",
        "epochs in a row without progress that end the early stage: N, or 0.15T (times --totwindow; public code), or "
        "0.05E (of all epochs; paper)", metavar="N|fT|fE", **_policy_in(*AUTOMATIC))
    middle_patience: str = flag("0.125T", "automatic truncation", "the same for the middle stage",
        metavar="N|fT|fE", **_policy_in(*AUTOMATIC))
    probe_every: int = flag(1, "automatic truncation", "epochs for which one probe of the gradient norms is used",
        minimum=1, **_policy_in(*AUTOMATIC))

    # Meta-gradient
    engine: str = flag("auto", "meta-gradient",
        "how the window is differentiated: higher (graph of the whole window; the reference), replay (the same "
        "gradient, one step at a time, in a fraction of the memory), lowrank (replay with low-rank Hessians, the "
        "paper's approximation), or auto (replay)", choices=("auto", *ENGINES))
    meta_batch: int = flag(1, "meta-gradient",
        "inner networks per outer step, whose meta-gradients are averaged; on CUDA all of them share each kernel",
        minimum=1, metavar="NETWORKS")
    chunk: int | None = flag(None, "meta-gradient",
        f"images differentiated at a time; fewer need less memory (default: {CHUNK['cpu']} on a CPU, "
        f"{CHUNK['cuda']} on CUDA)", kind=int, minimum=1, metavar="IMAGES", resume="free")
    precision: str = flag("float32", "meta-gradient",
        "of the inner network: float32; tf32 (CUDA); or bf16 from the inner step on at which it is safe",
        choices=PRECISIONS)
    channels_last: bool = flag(False, "meta-gradient", "store images and activations channels-last", resume="free")
    accelerate: str = flag("auto", "meta-gradient",
        "compile (torch.compile), graphs (CUDA graphs), both, none, or auto (CUDA: graphs; CPU: compile where a run is "
        "long enough to gain by it)", choices=("auto", "none", "compile", "graphs", "both"), resume="free")
    lowrank_rank: int = flag(8, "meta-gradient", "rank of the factors; 0 leaves the Hessian out", minimum=0,
        metavar="K", **_ENGINE_LOWRANK)
    lowrank_oversampling: int = flag(4, "meta-gradient", "extra random samples per factorisation", minimum=0,
        metavar="SAMPLES", **_ENGINE_LOWRANK)
    lowrank_power_iters: int = flag(2, "meta-gradient", "power iterations per factorisation", minimum=0,
        metavar="N", **_ENGINE_LOWRANK)
    lowrank_refresh: int = flag(5, "meta-gradient",
        "inner steps that share one factorisation; 0: all steps of a window", minimum=0, metavar="STEPS",
        **_ENGINE_LOWRANK)
    lowrank_metric: str = flag("plain", "meta-gradient",
        "factorise the Hessian H (plain), or D^1/2 H D^1/2 with D the inner optimiser's diagonal step (adam)",
        choices=("plain", "adam"), **_ENGINE_LOWRANK)
    lowrank_random: bool = flag(False, "meta-gradient",
        "random samples alone, as published; by default the vector to be multiplied is kept among the factors too",
        **_ENGINE_LOWRANK)

    # Outer loop
    epochs: int = flag(100, "outer loop", "passes over the real training set", aliases=("--epoch",), minimum=1,
        resume="free")
    start_epoch: int = flag(0, "outer loop", "number of the first epoch", minimum=0)
    batch_size: int = flag(200, "outer loop", "real images per outer step", minimum=1)
    lr: float = flag(0.01, "outer loop", "learning rate of the synthetic images", above=0)
    label_lr_scale: float = flag(1.0, "outer loop", "labels learn at lr / this", above=0,
        read_by="--train_y", reads=lambda c: c.train_y)
    outer_optim: str = flag("Adam", "outer loop", "optimiser of the synthetic set; SGD has momentum 0.9",
        choices=("Adam", "SGD"))
    eps: float = flag(1e-8, "outer loop", "Adam's epsilon in the outer loop", above=0,
        read_by="--outer_optim Adam", reads=lambda c: c.outer_optim == "Adam")
    wd: float = flag(0.0, "outer loop", "weight decay of the synthetic set", minimum=0)
    clip_coef: float = flag(0.9, "outer loop",
        "decay of the moving average of the meta-gradient's norm; the meta-gradient is clipped to twice that average",
        minimum=0, maximum=1)
    real_strategy: str = flag("flip_rotate", "outer loop", "augmentation of real batches; see --syn_strategy",
        metavar="A_B")
    comp_aug_real: bool = flag(False, "outer loop", "apply all of --real_strategy, not one drawn at random",
        read_by="strategies of several operations", reads=lambda c: "_" in c.real_strategy)
    max_bad_steps: int = flag(10, "outer loop", "outer steps in a row whose meta-gradient is NaN or infinite (each is "
        "skipped) after which the run stops", minimum=1, resume="free")

    # High resolution
    psp_patches: int = flag(0, "high resolution",
        "patch-wise semantic preservation: optimise N x N patches in turn and align them to real ones (0: off)",
        minimum=0, metavar="N")
    psp_lambda: float = flag(0.01, "high resolution", "weight of the alignment's loss", minimum=0,
        read_by="--psp_patches", reads=lambda c: c.psp_patches > 0)

    # Evaluation
    test_freq: int = flag(5, "evaluation", "epochs between evaluations", minimum=1)
    num_train_eval: int = flag(10, "evaluation", "fresh networks trained per evaluation", minimum=1)
    eval_steps: tuple[int, ...] = flag((300, 600, 1000, 3000), "evaluation",
        "training lengths to evaluate, in inner steps", kind=int, nargs="+", minimum=1, metavar="STEPS")
    select: str = flag("val", "evaluation",
        "images that choose snapshot and length: val (a split of the training data; honest) or test (the papers' "
        "protocol; optimistic, and marked so)", choices=("val", "test"))
    baselines: tuple[str, ...] = flag((), "evaluation",
        "rows to add to the result table: random (as many real images, same recipe), full (the whole real set)",
        kind=str, nargs="*", choices=("random", "full"), resume="free")

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
    wandb: bool = flag(False, "output", "mirror TensorBoard to Weights & Biases (needs the package wandb)",
        resume="free")
    name: str = flag("test", "output", "name of the experiment there", metavar="TEXT", resume="free",
        read_by="--wandb", reads=lambda c: c.wandb)
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
    def policy(self) -> str:
        """The truncation policy's name, from --truncation or else --ddtype, --cctype and the window."""
        if self.truncation is not None:
            return self.truncation
        if self.ddtype == "standard":
            return "bptt" if self.window == self.totwindow else "t-bptt"
        return ("fixed", "forward", "rat-bptt" if self.d is None else "at-bptt")[self.cctype]

    @property
    def network(self) -> dict[str, Any]:
        """The flags of the group ``network`` but the name, as ``networks.registry.build`` takes them."""
        return {
            name: getattr(self, name) for name, about in FLAGS.items() if about.group == "network" and name != "arch"
        }

    @property
    def longest_window(self) -> int:
        """The most inner steps that the policy will ever have differentiated."""
        radius = self.d if self.d is not None and self.policy in RESIZING else 0
        return self.totwindow if self.policy == "bptt" else min(self.window + radius, self.totwindow)

    def inner_batch(self, num_classes: int) -> int:
        """Synthetic images per inner step."""
        return (self.task_sampler_nc or num_classes) * self.batch_per_class

    @property
    def engine_name(self) -> str:
        """The engine that --engine stands for."""
        return "replay" if self.engine == "auto" else self.engine

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.save_dir is not None:
            return Path(self.save_dir)
        parts = [f"IPC_{self.num_per_class}", self.policy, str(self.window), str(self.totwindow), f"seed{self.seed}"]
        return Path("save", self.dataset, "_".join(parts + ([self.fname.strip("_")] if self.fname else [])))

    @property
    def device_name(self) -> str:
        """--device, or what --gpu N stands for."""
        return self.device if self.gpu is None else f"cuda:{self.gpu}"

    def to_json(self) -> str:
        """The configuration as an indented JSON object, one key per flag."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, values: Any, source: Path) -> "Config":
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
            config = cls(**checked_values(values, cls))
            validate(config)
        except UserError as error:
            raise UserError(f"{source}: its flags are damaged ({error}); restore it from a copy") from error
        return config


FLAGS: dict[str, Flag] = flags_of(Config)
DEFAULTS = Config()


def build_parser() -> Parser:
    """The parser of a distillation run, made from ``Config``'s fields."""
    parser = Parser(
        "main.py",
        "Distil a data set into a few synthetic images by truncated back-propagation through time.",
        epilog="What to do with a distilled set: main.py evaluate | export | report, each with its own --help.",
    )
    add_flags(parser, Config)
    return parser


def parse(arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """Parse and validate a command line.

    Returns:
        The configuration and a list of warnings, one line each.

    Raises:
        UserError: a value is out of range or two flags contradict each other.
        SystemExit: code 2 after one line for what argparse itself refuses; code 0 after ``--help``.
    """
    plain_text(arguments)
    given: dict[str, Any] = vars(build_parser().parse_args(arguments))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    config = Config(**given)
    warnings = validate(config)
    for name in given:
        about, changed = FLAGS[name], getattr(config, name) != getattr(DEFAULTS, name)
        if changed and about.reads is not None and not about.reads(config):
            warnings.append(f"{option(name)} is not read by this run: only {about.read_by} reads it")
    return config, warnings


def _check_strategy(name: str, strategy: str) -> None:
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


def validate(config: Config) -> list[str]:
    """Check what can be checked without data: ranges, contradictions, policies.

    Returns:
        Warnings about choices that are allowed but likely unintended.

    Raises:
        UserError: naming the flag.
    """
    for field in dataclasses.fields(config):
        check_range(field.name, getattr(config, field.name), FLAGS[field.name])
    _check_strategy("syn_strategy", config.syn_strategy)
    _check_strategy("real_strategy", config.real_strategy)

    c = config
    if c.zca and c.zca_pixels:
        raise UserError("--zca and --zca_pixels are two preprocessings: give one of them")
    if c.policy != "bptt" and c.window > c.totwindow:
        raise UserError(f"--window {c.window} is larger than --totwindow {c.totwindow}: a window cannot be longer "
                        "than the trajectory; lower --window or raise --totwindow")  # fmt: skip
    if FLAGS["minwindow"].reads(c) and c.minwindow + c.window > c.totwindow:  # type: ignore[misc]
        raise UserError(f"--minwindow {c.minwindow} + --window {c.window} is larger than --totwindow {c.totwindow}: "
                        "lower --minwindow or --window, or raise --totwindow")  # fmt: skip
    if c.policy in RESIZING and c.d is None:
        raise UserError(f"--truncation {c.policy} needs the window radius: give -d, for example -d {c.window // 4}")
    for name in ("early_patience", "middle_patience"):
        text = getattr(c, name)
        if not PATIENCE.fullmatch(text):
            raise UserError(f"--{name} {text}: give epochs (30), a fraction of T (0.15T) or of all epochs (0.05E)")
    if c.batch_per_class > c.num_per_class:
        raise UserError(f"--batch_per_class {c.batch_per_class} is larger than --num_per_class {c.num_per_class}: "
                        "give at most the number of images per class")  # fmt: skip
    if c.start_epoch >= c.epochs:
        raise UserError(
            f"--start_epoch {c.start_epoch} leaves nothing to do before --epochs {c.epochs}: raise --epochs"
        )
    if c.select == "val" and c.val_fraction == 0:
        raise UserError("--val_fraction 0 leaves no images for --select val: raise it, or give --select test")
    if sorted(set(c.eval_steps)) != list(c.eval_steps):
        raise UserError(f"--eval_steps {' '.join(map(str, c.eval_steps))}: give increasing lengths, each once")
    if c.gpu is not None and c.device not in ("auto", "cuda", f"cuda:{c.gpu}"):
        raise UserError(f"--gpu {c.gpu} contradicts --device {c.device}: give one of them")
    if c.rank >= c.world_size:
        raise UserError(f"--rank {c.rank} is not below --world_size {c.world_size}: nodes are numbered from 0")
    if c.world_size > 1 and c.dist_url is None:
        raise UserError("--world_size above 1 needs --dist-url tcp://HOST:PORT, where HOST is node 0")
    warnings = []
    if c.select == "test":
        warnings.append("--select test chooses snapshot and length on the test set, as the papers do: "
                        "the reported accuracy is optimistic")  # fmt: skip
    return warnings


def differences(saved: Config, config: Config) -> list[str]:
    """Flags that a resumed run may not change but that differ from the saved configuration.

    Returns:
        One text per flag, such as ``"--lr was 0.01 and is 0.1"``.
    """
    pairs = [(name, getattr(saved, name), getattr(config, name)) for name in FLAGS if FLAGS[name].resume == "same"]
    return [f"{option(name)} was {was} and is {now}" for name, was, now in pairs if was != now]


def resolve_patience(text: str, steps: int, epochs: int) -> int:
    """``--early_patience`` and ``--middle_patience`` in whole epochs, rounded up, at least 1.

    Args:
        text: ``30`` (epochs), ``0.15T`` (times the trajectory's length) or ``0.05E`` (of all epochs).
        steps: T.
        epochs: E.

    Raises:
        ValueError: another form.
    """
    if not PATIENCE.fullmatch(text):
        raise ValueError(text)
    unit = {"T": steps, "E": epochs}.get(text[-1], 1)
    # 0.07 * 100 is 7.000000000000001 in floating point, and must not become 8.
    return max(1, math.ceil(round(float(text.rstrip("TE")) * unit, 9)))
