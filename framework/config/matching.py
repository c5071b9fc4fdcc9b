"""Flags of trajectory matching: ``main.py buffer`` trains experts, ``main.py ftd`` distils by matching them.

Every flag of the command lines of MTT, FTD and DATM is here under its own name, or as another name of ours.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.config.common import Common
from framework.config.distilling import Distilling, check_strategy
from framework.data.registry import NAMES, Names, is_own, known
from framework.data.subsets import SUBSETS
from framework.errors import UserError
from framework.flags import flag, option, switch, varied
from framework.inner.counts import Asked
from framework.networks.registry import ARCHITECTURES

STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""Differentiable siamese augmentation (arXiv 2102.08259), of experts, students and evaluation alike."""
IMAGENET = "ImageNet"  # of whose subsets --subset names one
FIELD_DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "Tiny": "tiny-imagenet-200"}
"""The field's names for data sets, which its buffers' folders have too."""
_ORIGINALS = "accepted for the originals' sake"
_DOES_NOTHING = "does nothing, here as in the originals"
_NETWORK_NAMES = {
    "convnet": "ConvNet", "vgg11": "VGG11", "alexnet": "AlexNet", "resnet18": "ResNet18", "vit": "ViT"
}  # fmt: skip
_CONVNET = {"depth": 3, "width": 128, "norm": "instance", "pool": "avg", "act": "relu"}
_PATTERNS = {"depth": "D{}", "width": "W{}", "norm": "{}N", "pool": "{}P", "act": "A{}"}
"""What is said of a network in its name: ConvNetD4, ConvNetBN."""
_WORDS = {
    "norm": {"N": "none", "B": "batch", "L": "layer", "I": "instance", "G": "group"},
    "pool": {"N": "none", "M": "max", "A": "avg"},
    "act": {"S": "sigmoid", "R": "relu", "L": "leakyrelu"},
}
_LETTERS = {word: letter for words in _WORDS.values() for letter, word in words.items()}


def dataset_name(text: str) -> str:
    """Our name of a data set, from the field's or ours in any case; that of one's own data as it is."""
    if is_own(text):
        return text
    ours = {name.lower(): own for name, own in FIELD_DATASETS.items()}
    return text if text == IMAGENET else ours.get(text.lower(), text.lower())


def network_of(model: str) -> dict[str, Any]:
    """The flags of the group ``network`` that a name of MTT's family stands for.

    Raises:
        argparse.ArgumentTypeError: there is no such network here.
    """
    if model.lower() in ARCHITECTURES:
        return {"arch": model.lower()}
    if model in ("VGG11BN", "ResNet18BN"):
        return {"arch": model[:-2].lower(), "norm": "batch"}
    if model == "ConvNetKIP":
        return {"arch": "convnet", "width": 1024, "norm": "none"}
    if found := re.fullmatch(r"ConvNet(?:D([1-9]\d*)|W([1-9]\d*)|([NBLIG])N|([NMA])P|A([SRL]))", model):
        depth, width, norm, pool, act = found.groups()
        letters = {"norm": norm, "pool": pool, "act": act}
        changes: dict[str, Any] = {name: _WORDS[name][letter] for name, letter in letters.items() if letter}
        sizes = {name: int(size) for name, size in (("depth", depth), ("width", width)) if size}
        return {"arch": "convnet", **sizes, **changes}
    raise argparse.ArgumentTypeError(
        f"{model!r} is not supported; give ConvNet, ConvNetD4, ConvNetW64, ConvNetBN and the like, AlexNet, VGG11 or "
        "ResNet18"
    )


def _model(text: str) -> str:
    network_of(text)
    return text


@dataclass(frozen=True)
class Matching(Common):
    """What experts and the matching of them have in common: data, network, augmentation, and where experts are."""

    # fmt: off
    dataset: str = varied(Common, "dataset", kind=dataset_name, choices=Names((*NAMES, IMAGENET)),
        help="real data set, as in a run without a verb; also CIFAR10, CIFAR100, Tiny, and ImageNet with --subset")
    root: str = varied(Common, "root", aliases=("--data_path",))
    im_size: int | None = varied(Common, "im_size", aliases=("--res",))
    subset: str | None = flag(None, "data", "which ten classes of ImageNet (default: imagenette)", kind=str,
        choices=tuple(SUBSETS), read_by="--dataset ImageNet")
    zca: bool = flag(False, "data", "whiten by the ZCA of MTT, FTD and DATM, of pixels about the mean image, instead "
        "of standardising each channel")
    model: str | None = flag(None, "network", "network by its name in MTT's family, which stands for --arch and the "
        "like: ConvNet, ConvNetD4, ConvNetW64, ConvNetBN, ConvNetMP, ConvNetAS, VGG11, AlexNet, ResNet18", kind=_model,
        metavar="NAME")
    buffer_path: str = flag("./buffers", "experts", "folder of experts; below it one for each data set and network",
        metavar="DIR", resume="free")
    dsa: bool = switch(True, "inner loop", "augment by --dsa_strategy; False: experts by dataset condensation's own "
        "augmentation, students and evaluated networks not at all")
    dsa_strategy: str | None = flag(None, "inner loop", f"operations, of which one is drawn per batch (default: "
        f"{STRATEGY}, without flip for digits)", kind=str, metavar="A_B", read_by="--dsa True",
        reads=lambda c: c.dsa)
    precision: str = varied(Common, "precision", help="of the network: float32, or tf32 (CUDA)",
        choices=("float32", "tf32"))
    batch_real: int = flag(256, _ORIGINALS, _DOES_NOTHING, inert=_DOES_NOTHING)
    # fmt: on

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See ``Common``: ImageNet stands for one of its subsets, and --model for the network's flags."""
        given = dict(given)
        subset = given.pop("subset", None)
        if given.get("dataset") == IMAGENET:
            given["dataset"] = subset or "imagenette"
        elif subset is not None:
            raise UserError(f"--subset {subset} is a part of ImageNet: give --dataset ImageNet, or --dataset {subset}")
        model = given.pop("model", None)
        if model is None:
            return given
        meant = network_of(model)
        if both := [name for name in meant if name in given]:
            raise UserError(f"--model {model} and {option(both[0])} both describe the network: give one of them")
        return given | meant

    @property
    def whitening(self) -> Literal["zca", "zca_pixels"] | None:
        """See ``Common``."""
        return "zca_pixels" if self.zca else None

    zca_reg = 0.1  # read by no run of these: of the other ZCA

    @property
    def strategy(self) -> str:
        """The operations of --dsa_strategy, or ``none``."""
        if not self.dsa:
            return "none"
        return self.dsa_strategy or (STRATEGY.replace("_flip", "") if known(self.dataset).upright else STRATEGY)

    @property
    def model_name(self) -> str:
        """The network in the words of MTT's family: ConvNet, ConvNetD4, ConvNetW32GN."""
        arch, depth = self.arch, self.depth
        if arch in ("convnet4", "convnet5"):
            arch, depth = "convnet", depth or int(arch[-1])
        own = _CONVNET if arch == "convnet" else {}
        parts = [_NETWORK_NAMES[arch]]
        for name, pattern in _PATTERNS.items():
            value = depth if name == "depth" else getattr(self, name)
            if value not in (None, own.get(name)):
                parts.append(pattern.format(_LETTERS.get(str(value), value)))
        return "".join(parts)

    @property
    def buffer_folder(self) -> Path:
        """The folder of these experts, laid out as MTT's and FTD's are (their ``buffer.py``)."""
        names = {own: name for name, own in FIELD_DATASETS.items()}
        if self.dataset in SUBSETS:
            data = Path(IMAGENET, self.dataset, str(self.im_size or known(self.dataset).image_size))
        else:
            size = "" if self.im_size in (None, known(self.dataset).image_size) else f"_{self.im_size}"
            plain = "" if self.zca or self.dataset == FIELD_DATASETS["Tiny"] else "_NO_ZCA"
            data = Path(f"{names.get(self.dataset, self.dataset_label)}{size}{plain}")
        return Path(self.buffer_path) / data / self.model_name

    def validate(self) -> list[str]:
        """See ``Common``."""
        warnings = super().validate()
        check_strategy("dsa_strategy", self.strategy)
        return warnings


@dataclass(frozen=True)
class BufferConfig(Matching):
    """The training of experts: ``main.py buffer``."""

    VERB = "buffer"
    ABOUT = (
        "Train experts on the real data set and keep their parameters after every epoch, for main.py ftd: plain SGD "
        "with FTD's sharpness-aware step (--rho 0: without, as MTT)."
    )

    # fmt: off
    num_experts: int = flag(100, "experts", "networks to train", minimum=1, resume="free")
    train_epochs: int = flag(50, "experts", "passes of each over the real training set", minimum=1)
    lr_teacher: float = flag(0.01, "experts", "learning rate", above=0)
    batch_train: int = flag(256, "experts", "real images per step", minimum=1)
    mom: float = flag(0.0, "experts", "momentum", minimum=0, maximum=1)
    l2: float = flag(0.0, "experts", "weight decay", minimum=0)
    decay: bool = flag(False, "experts", "a tenth of the learning rate in the second half, with fresh momentum, as MTT")
    rho: float = flag(0.01, "experts", "radius of the sharpness-aware step (FTD; 0: plain SGD, MTT's experts)",
        minimum=0)
    alpha: float = flag(0.3, "experts", "weight of the part of the gradient that lies across the perturbed one (GSAM; "
        "0: SAM)", minimum=0, read_by="--rho above 0", reads=lambda c: c.rho > 0)
    adaptive: bool = switch(True, "experts", "perturb each parameter in proportion to its size (ASAM)",
        read_by="--rho above 0", reads=lambda c: c.rho > 0)
    rho_max: float | None = flag(None, "experts", "the original's name for --rho, together with --rho_min", kind=float)
    rho_min: float | None = flag(None, "experts", "must be --rho_max: the learning rate, which would move the radius "
        "between them, is constant", kind=float)
    save_interval: int = flag(10, "experts", "experts in a file", minimum=1)
    side_by_side: int | None = flag(None, "experts", "experts of a process that are trained at once; more need more "
        "memory (default: 1 on a CPU, 4 on CUDA)", kind=int, minimum=1, metavar="N", resume="free")
    resume: bool = flag(False, "output", "accepted, and not needed: experts that are there are not trained again",
        resume="free")
    # fmt: on

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See ``Common``: both ends of the radius are one."""
        given = super().resolve(given)
        ends = [given.pop(name) for name in ("rho_max", "rho_min") if name in given]
        if len(set(ends)) == 2:
            raise UserError(f"--rho_max {ends[0]:g} and --rho_min {ends[1]:g} differ: the radius follows the learning "
                            "rate, which is constant; give --rho")  # fmt: skip
        return given | ({"rho": ends[0]} if ends else {})

    @property
    def folder(self) -> Path:
        """See ``Common``."""
        return self.buffer_folder


@dataclass(frozen=True)
class FtdConfig(Matching, Distilling):
    """Distillation by trajectory matching: ``main.py ftd``."""

    VERB = "ftd"
    ABOUT = (
        "Distil a data set into a few synthetic images by matching the trajectories of experts, which main.py buffer "
        "trains: FTD, and with the experts or options of theirs MTT and DATM."
    )
    EPILOG = "What to do with a distilled set: main.py evaluate | export | report, each with its own --help."

    # fmt: off
    num_per_class: int = varied(Distilling, "num_per_class", aliases=("--ipc",), metavar=None, kind=None,
        from_json=None, help="synthetic images per class (IPC)")
    pix_init: str = flag("real", "synthetic set", "start from random real images, from those that experts classify "
        "correctly (samples_predicted_correctly, as DATM), or from noise",
        choices=("real", "samples_predicted_correctly", "noise"))
    soft_labels: bool = flag(False, "synthetic set", "learn soft labels, which start as the experts' own (DATM)")

    syn_steps: int = flag(20, "matching", "N: steps of the student", minimum=1)
    expert_epochs: int = flag(3, "matching", "epochs of the expert that they are to cover", minimum=1)
    max_start_epoch: int = flag(25, "matching", "students start from an expert's epochs below this", minimum=1)
    min_start_epoch: int = flag(0, "matching", "and from this on (DATM)", minimum=0)
    current_max_start_epoch: int | None = flag(None, "matching", "the end of the range at the first iteration, from "
        "which it grows to --max_start_epoch (DATM)", kind=int, minimum=1, metavar="EPOCH")
    expansion_end: int | None = flag(None, "matching", "iterations in which it grows", kind=int, minimum=1, metavar="N",
        read_by="--current_max_start_epoch", reads=lambda c: c.current_max_start_epoch is not None)
    batch_syn: int | None = flag(None, "matching", "synthetic images per step (default: all)", kind=int, minimum=1)
    threshold: float | None = flag(None, "matching", "iterations of a larger matching loss change nothing (DATM: 1)",
        kind=float, above=0)
    no_aug: bool = switch(False, "matching", "do not augment the student's batches")
    hessian: str = flag("exact", "matching", "exact, or none: leave the Hessian out of the gradient, as TESLA does",
        choices=("exact", "none"))
    max_files: int | None = flag(None, "experts", "use the first files of experts only", kind=int, minimum=1)
    max_experts: int | None = flag(None, "experts", "use the first experts of each file only", kind=int, minimum=1)

    iterations: int = flag(5000, "outer loop", "updates of the set, with --boost_block of each block",
        aliases=("--Iteration",), minimum=1, resume="free", read_by="runs without --boost_epochs",
        reads=lambda c: not c.given_epochs)
    lr_img: float = flag(1000.0, "outer loop", "learning rate of the images", above=0)
    lr_teacher: float = flag(0.01, "outer loop", "the student's step size at the start", above=0)
    lr_lr: float = flag(1e-5, "outer loop", "learning rate of the step size", above=0)
    lr_y: float = flag(2.0, "outer loop", "learning rate of the soft labels' logits", above=0,
        read_by="--soft_labels", reads=lambda c: c.soft_labels)
    momentum_y: float = flag(0.9, "outer loop", "momentum of the same", minimum=0, maximum=1,
        aliases=("--Momentum_y",), read_by="--soft_labels", reads=lambda c: c.soft_labels)
    ema_decay: float = flag(0.999, "outer loop", "of the moving average of the images", minimum=0, maximum=1)

    eval_it: int = flag(100, "evaluation", "iterations between evaluations", minimum=1)
    num_train_eval: int = varied(Distilling, "num_train_eval", 5, aliases=("--num_eval",))
    epoch_eval_train: int = flag(1000, "evaluation", "passes of an evaluated network over the distilled set",
        minimum=1)
    batch_train: int = flag(256, "evaluation", "images per step of an evaluated network", minimum=1)
    eval_mode: str = flag("S", "evaluation", "S: the run's own network; other letters: see main.py evaluate "
        "--eval_arch, after the run", kind=str, metavar="S|M|...")

    lr_init: float = flag(0.01, _ORIGINALS, _DOES_NOTHING, inert=_DOES_NOTHING)
    load_all: bool = flag(False, _ORIGINALS, "experts are read from the disk as they are needed",
        inert="not needed: experts are read from the disk as they are needed")
    force_save: bool = flag(False, _ORIGINALS, "pictures are always saved",
        inert="not needed: pictures are always saved")
    texture: bool = flag(False, _ORIGINALS, "toroidal textures are not supported")
    canvas_size: int = flag(2, _ORIGINALS, "of textures", inert="read by --texture alone, which is not supported")
    canvas_samples: int = flag(1, _ORIGINALS, "of textures", inert="read by --texture alone, which is not supported")
    # fmt: on

    policy = "ftd"
    recipe = "mtt"
    comp_aug = False
    start_epoch = 0
    test_freq = 1
    task_sampler_nc = None
    inner_optim = "SGD"
    inner_eps_root = 0.0

    def method(self, provenance: Mapping[str, Any]) -> str:
        """See ``Distilling``: MTT where the experts are known to be trained without the sharpness-aware step."""
        return "mtt" if provenance.get("experts", {}).get("rho") == 0 else self.policy

    def facts(self, provenance: Mapping[str, Any]) -> dict[str, str]:
        """See ``Distilling``."""
        matched = f"{self.syn_steps} steps for {self.expert_epochs} epochs, from below {self.max_start_epoch}"
        method = f"{self.method(provenance)}, {matched}"
        return {
            "data set": f"{self.dataset_label}{', ZCA of pixels' if self.zca else ''}",
            "method": f"{method}{', without Hessian' if self.hessian == 'none' else ''}",
            "images per class": f"{self.num_per_class}{', learnt labels' if self.soft_labels else ''}",
            **({"boosting": self.boosting} if self.boosting else {}),
        }

    @property
    def name_parts(self) -> list[str]:
        """See ``Distilling``."""
        matched = [str(number) for number in (self.syn_steps, self.expert_epochs, self.max_start_epoch)]
        return [self.ipc_name, *self.block_names, "ftd", *matched, f"seed{self.seed}"]

    @property
    def train_y(self) -> bool:
        """See ``Distilling``."""
        return self.soft_labels

    @property
    def iterations_per_epoch(self) -> int:
        """What a run counts as an epoch: the iterations between evaluations."""
        return min(self.eval_it, *(self.given_epochs or (self.iterations,)))

    @property
    def epochs(self) -> int:
        """See ``Distilling``."""
        return self.iterations // self.iterations_per_epoch

    @property
    def block_epochs(self) -> tuple[int, ...]:
        """See ``Distilling``."""
        if not self.given_epochs:
            return super().block_epochs
        return tuple(iterations // self.iterations_per_epoch for iterations in self.given_epochs)

    @property
    def total_iterations(self) -> int:
        """Updates of the set, over all blocks."""
        return self.total_epochs * self.iterations_per_epoch

    @property
    def eval_steps(self) -> tuple[int, ...]:
        """See ``Distilling``: for the recipe ``inner``, with all images in each step."""
        return (self.epoch_eval_train + 1,)

    @property
    def syn_strategy(self) -> str:
        """See ``Distilling``."""
        return self.strategy

    @property
    def batch_per_class(self) -> int:
        """See ``Distilling``."""
        return self.num_per_class

    @property
    def inner_lr(self) -> float:
        """See ``Distilling``: before it is learnt."""
        return self.lr_teacher

    @property
    def real_per_class(self) -> tuple[str, Asked] | None:
        """See ``Common``."""
        real = ("--pix_init real", self.num_per_class) if self.pix_init == "real" else None
        return super().real_per_class or real

    def student_batch(self, num_classes: int, per_class: int | None = None) -> int:
        """Synthetic images per step of the student; ``per_class``: of a set of so many, not of all."""
        images = num_classes * (per_class or self.num_per_class)
        return min(self.batch_syn or images, images)

    def differentiated(self, num_classes: int) -> tuple[int, int]:
        """Student steps of the run, of a boosted one in its first block, and images of each; see ``Config``."""
        steps = self.block_epochs[0] * self.iterations_per_epoch * self.syn_steps
        return steps, self.student_batch(num_classes, self.block_size)

    def validate(self) -> list[str]:
        """See ``Common``."""
        warnings = super().validate()
        given = [("--boost_epochs", number) for number in self.given_epochs]
        for name, iterations in given or [("--Iteration", self.iterations)]:
            if iterations % self.iterations_per_epoch:
                raise UserError(
                    f"{name} {iterations} is no multiple of --eval_it {self.eval_it}: change one of them, so that the "
                    "last update is evaluated"
                )
        current = self.current_max_start_epoch
        if self.min_start_epoch >= (current or self.max_start_epoch):
            end = "current_max_start_epoch" if current else "max_start_epoch"
            raise UserError(
                f"--min_start_epoch {self.min_start_epoch} is not below --{end} {current or self.max_start_epoch}, "
                "which start epochs stay below: lower it"
            )
        if current is not None and current > self.max_start_epoch:
            raise UserError(
                f"--current_max_start_epoch {current} is above --max_start_epoch {self.max_start_epoch}, to which it "
                "grows: lower it"
            )
        if (current is None) != (self.expansion_end is None):
            raise UserError("--current_max_start_epoch and --expansion_end belong together: give both, or none")
        if self.texture:
            raise UserError("--texture is not supported: leave it out")
        if self.eval_mode != "S":
            warnings.append(
                f"--eval_mode {self.eval_mode}: the run evaluates its own network; for others give main.py evaluate "
                f"{self.folder} --eval_arch when it has ended"
            )
        return warnings
