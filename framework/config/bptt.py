"""Flags of distillation by truncated back-propagation through time: RaT-BPTT, AT-BPTT and their ancestors."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from framework.config.common import parse_as
from framework.config.distilling import Distilling, check_strategy
from framework.errors import UserError
from framework.flags import flag, switch
from framework.inner.counts import Asked, numbers_of
from framework.inner.names import AUGMENTATIONS, MOMENTUM, WEIGHT_DECAY
from framework.outer.policies.registry import POLICIES, RECOMMENDED, that

ENGINES = ("higher", "replay", "lowrank")
AUTOMATIC, RESIZING, LEARNING = that("automatic"), that("resizes"), that("learns")
PAPERS_EPOCHS = 2000  # above these, a share of all epochs is far from the 30 epochs of the public code
INITS = ("noise", "real")  # anything else is a set
STILL = ("bptt", "t-bptt", "fixed")  # their windows all start at one place
MOVING = ("at-bptt", "at-bptt-positions")
PATIENCE = re.compile(r"\d+(\.\d+)?[TE]|[1-9]\d*")  # a fraction of T or of all epochs, or whole epochs


_ENGINE_LOWRANK: dict[str, Any] = {
    "read_by": "--engine lowrank without --cr_lrha",
    "reads": lambda config: config.engine == "lowrank" and not config.keeps_factors,
}
_KEPT: dict[str, Any] = {"read_by": "--cr_lrha", "reads": lambda config: config.keeps_factors}


def _policy_in(*names: str) -> dict[str, Any]:
    return {"read_by": ", ".join(names), "reads": lambda config: config.policy in names}


@dataclass(frozen=True)
class Config(Distilling):
    """One run, as given on the command line."""

    ABOUT = "Distil a data set into a few synthetic images by truncated back-propagation through time."
    EPILOG = (
        "Another way to distil, by matching experts' trajectories: main.py buffer and main.py ftd. What to do with a "
        "distilled set: main.py evaluate | export | report. What another choice of windows would gain: main.py advise. "
        "Each has its own --help."
    )

    # fmt: off
    # Data
    zca: bool = flag(False, "data", "whiten with the regularised ZCA of RaT-BPTT and AT-BPTT, which normalises each "
        "image first, instead of standardising each channel")
    zca_reg: float = flag(0.1, "data", "ZCA regularisation, as a fraction of the mean eigenvalue",
        above=0, read_by="--zca", reads=lambda c: c.zca)
    zca_pixels: bool = flag(False, "data",
        "whiten with the ZCA of MTT, FTD and DATM, of pixels about the mean image, instead")

    # Synthetic set
    train_y: bool = flag(False, "synthetic set", "learn soft labels too; they start one-hot and stay >= 0")
    freeze_data: bool = flag(False, "synthetic set", "learn the labels alone, of images that stay as they are")
    normalize_syn: bool | None = switch(None, "synthetic set",
        "scale images back to Euclidean norm 1 after every outer step (default: True under at-bptt-pp, else False)",
        negation="--no_normalize_syn", read_by="runs without --freeze_data", reads=lambda c: not c.freeze_data)
    init: str = flag("noise", "synthetic set",
        "start from noise, from real (random training images of each class), or from a distilled set: a run's folder, "
        "or a file or image folder of this program or another, as evaluate reads them; brought into the run's "
        "preprocessing, and where it has fewer images per class, topped up with noise", metavar="noise|real|SET")
    ckptname: str = flag("none", "synthetic set", "the ancestors' name for --init SET", metavar="SET")

    # Inner loop
    inner_optim: str = flag("SGD", "inner loop",
        f"optimiser of the inner network: Adam, or SGD (momentum {MOMENTUM}, weight decay {WEIGHT_DECAY:g})",
        choices=("SGD", "Adam"))
    inner_lr: float = flag(0.01, "inner loop", "learning rate of the inner network", above=0)
    inner_eps_root: float = flag(0.0, "inner loop", "added to Adam's second moment inside its square root, wherever "
        "networks are trained by the run's recipe: the meta-gradient is less ill-conditioned, inner training slower; "
        "1e-8 for example", minimum=0, read_by="--inner_optim Adam",
        reads=lambda c: c.inner_optim == "Adam")
    batch_per_class: int = flag(1, "inner loop", "synthetic images drawn per class and inner step; of a class "
        "that has fewer, all", minimum=1)
    task_sampler_nc: int | None = flag(None, "inner loop", "classes drawn per inner step (default: all)",
        kind=int, minimum=1, metavar="CLASSES")
    syn_strategy: str = flag("flip_rotate", "inner loop",
        f"augmentation of synthetic batches, joined by '_' ({', '.join(AUGMENTATIONS)}), or none", metavar="A_B")
    comp_aug: bool = flag(False, "inner loop", "apply all of --syn_strategy at each step, not one drawn at random",
        read_by="strategies of several operations", reads=lambda c: "_" in c.syn_strategy)

    # Truncation
    ddtype: str = flag("standard", "truncation",
        "standard: BPTT over the first --window steps; curriculum: the window lies where --cctype says; at_bptt_pp: "
        "AT-BPTT++", choices=("standard", "curriculum", "at_bptt_pp"), read_by="runs without --truncation",
        reads=lambda c: c.truncation is None)
    cctype: int = flag(0, "truncation", "where a curriculum's window lies: 0 at the end, 1 moving forward, 2 random",
        choices=(0, 1, 2), read_by="--ddtype curriculum without --truncation",
        reads=lambda c: c.truncation is None and c.ddtype == "curriculum")
    truncation: str | None = flag(None, "truncation",
        f"truncation policy by name; overrides --ddtype and --cctype; auto: what served best in this project's own "
        f"comparisons, {RECOMMENDED}", kind=str, choices=("auto", *POLICIES))
    window: int = flag(20, "truncation", "W: inner steps differentiated per outer step", minimum=1,
        read_by="all but bptt", reads=lambda c: c.truncation != "bptt")
    minwindow: int = flag(0, "truncation", "first inner step at which the window may start", minimum=0,
        **_policy_in(*that("places")))
    totwindow: int = flag(20, "truncation", "T: inner steps of a whole trajectory", minimum=1)
    complete_random: bool = flag(False, "truncation", "draw a new window at every outer step, not every epoch",
        **_policy_in("rat-bptt"))

    pool_size: int = flag(16, "truncation", "inner networks that are kept between outer steps",
        minimum=1, metavar="NETWORKS", **_policy_in("rat-pool"))
    pool_choice: str = flag("turns", "truncation", "which of them takes a step's window: they take turns, or one is "
        "drawn by the importance of its position, as rat-is draws positions", choices=("turns", "importance"),
        **_policy_in("rat-pool"))
    bias: float = flag(0.1, "truncation", "windows are as short as leaves out at most this share of the "
        "meta-gradient's norm, by what their steps contribute; none is longer than --window", above=0,
        **_policy_in("rat-bias"))
    bias_roulette: float = flag(0.0, "truncation", "probability with which a window goes on beyond that length by one "
        "more step, whose contribution counts for more, so that nothing is left out on average (0: off)", minimum=0,
        maximum=1, metavar="Q", **_policy_in("rat-bias"))

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
    truncation_anchor: str = flag("first", "automatic truncation",
        "the step drawn is the window's first (public code), its centre (the authors' figure) or its last (AT-BPTT++)",
        choices=("first", "centre", "last"), **_policy_in(*AUTOMATIC))
    norm_scale: str = flag("raw", "automatic truncation",
        "gradient norms and variations as they are, or standard: with zero mean and unit deviation over the trajectory",
        choices=("raw", "standard"), **_policy_in(*AUTOMATIC))
    late: str = flag("inverse", "automatic truncation",
        "late positions: inverse, small norms are likely (paper); mirror, the early stage's windows reflected in the "
        "middle of the trajectory (public code)", choices=("inverse", "mirror"),
        **_policy_in(*MOVING))
    reweight: bool = flag(False, "automatic truncation", "weight meta-gradients by 1 / (T P(t)): the objective of "
        "uniform positions, sampled by AT-BPTT's", **_policy_in(*MOVING))
    plateau: str = flag("consecutive", "automatic truncation",
        "a stage ends after so many epochs in a row without progress (both sources), or when the mean of so many "
        "epochs is no progress over the mean of as many before (mean)", choices=("consecutive", "mean"),
        **_policy_in(*AUTOMATIC))
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

    # Importance sampling
    is_bins: int = flag(9, "importance sampling", "bins of window positions, each with a moving average of its "
        "meta-gradient's squared norm (rat-is, --pool_choice importance) or of its norm (--clip_by position)",
        minimum=1, read_by="rat-is, --pool_choice importance, --clip_by position",
        reads=lambda c: c.samples_importance or c.clip_by == "position")
    is_decay: float = flag(0.9, "importance sampling", "decay of these averages under rat-is and rat-pool, and of "
        "those of contributions under rat-bias", minimum=0, maximum=1,
        read_by="rat-is, --pool_choice importance, rat-bias",
        reads=lambda c: c.samples_importance or c.policy == "rat-bias")
    is_uniform: float = flag(0.2, "importance sampling", "share of windows that stay uniform, so that no weight is "
        "above 1 / this", above=0, maximum=1, read_by="rat-is, --pool_choice importance",
        reads=lambda c: c.samples_importance)

    # Learnt truncation
    window_radius: int = flag(8, "learnt truncation", "r: lengths from W-r to W+r", minimum=0, metavar="STEPS",
        **_policy_in(*LEARNING))
    selector_kl: float = flag(1.0, "learnt truncation",
        "lambda: how closely the policy of positions stays to its reference; larger is closer", above=0,
        **_policy_in(*LEARNING))
    selector_ref_ema: float = flag(0.05, "learnt truncation",
        "rho: share of the policy that its reference takes on at every outer step", minimum=0, maximum=1,
        **_policy_in(*LEARNING))
    selector_tau_w: float = flag(1.0, "learnt truncation", "tau_w: temperature of lengths", above=0,
        **_policy_in(*LEARNING))

    # Meta-gradient
    engine: str = flag("auto", "meta-gradient",
        "how the window is differentiated: higher (graph of the whole window; the reference), replay (the same "
        "gradient, one step at a time, in a fraction of the memory), lowrank (replay with low-rank Hessians, the "
        "paper's approximation), or auto (replay; lowrank with --cr_lrha)", choices=("auto", *ENGINES))
    meta_batch: int = flag(1, "meta-gradient",
        "inner networks per outer step, whose meta-gradients are averaged; on CUDA all of them share each kernel",
        minimum=1, metavar="NETWORKS")
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

    cr_lrha: bool | None = switch(None, "meta-gradient",
        "keep low-rank factors across outer steps (default: True under at-bptt-pp, else False)",
        negation="--disable_cr_lrha", read_by="--engine auto and lowrank",
        reads=lambda c: c.engine in ("auto", "lowrank"))
    cr_mode: str = flag("hessian", "meta-gradient",
        "what kept factors stand for: the Hessian of the backward recursion (hessian), or, as in AT-BPTT++'s public "
        "code, what inner gradients of the window are multiplied by (gradient)", choices=("hessian", "gradient"),
        **_KEPT)
    cr_rank: int = flag(32, "meta-gradient", "rank of kept factors", minimum=1, metavar="K", **_KEPT)
    cr_oversample: int = flag(4, "meta-gradient", "extra random samples when they are made", minimum=0,
        metavar="SAMPLES", **_KEPT)
    cr_power_iter: int = flag(2, "meta-gradient", "power iterations when they are made", minimum=0, metavar="N",
        **_KEPT)
    cr_period: int = flag(20, "meta-gradient", "outer steps for which they are kept at most", minimum=1,
        metavar="STEPS", **_KEPT)
    cr_delta: float = flag(0.2, "meta-gradient",
        "relative change of the gradient norm at the step drawn from which on they are made anew", minimum=0,
        read_by="--cr_lrha under at-bptt-pp", reads=lambda c: c.keeps_factors and c.policy in LEARNING)
    cr_blend: float = flag(1.0, "meta-gradient", "share of what they stand for; the rest is exact", minimum=0,
        maximum=1, **_KEPT)

    # Outer loop
    epochs: int = flag(100, "outer loop", "passes over the real training set, with --boost_block for each block",
        aliases=("--epoch",), minimum=1, resume="free", read_by="runs without --boost_epochs",
        reads=lambda c: not c.given_epochs)
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
    iterate_average: float | None = flag(None, "outer loop", "judge the average over all steps too, in which step t "
        "counts as t to this power (9: mostly the last tenth of the steps; default: off)", kind=float, minimum=0)
    clip_coef: float = flag(0.9, "outer loop",
        "decay of the moving average of the meta-gradient's norm; the meta-gradient is clipped to twice that average",
        minimum=0, maximum=1)
    clip_norms: str = flag("raw", "outer loop", "what enters that average: norms as they are, the step's own before it "
        "sets the clip (raw, as published), or norms as applied, after that (applied: an outlier raises neither)",
        choices=("raw", "applied"))
    clip_by: str = flag("all", "outer loop", "that average is one over all windows, or one for each of --is_bins bins "
        "of window positions (position); of norms with the policy's weight, as they are clipped",
        choices=("all", "position"), read_by="policies that move windows", reads=lambda c: c.policy not in STILL)
    real_strategy: str = flag("flip_rotate", "outer loop", "augmentation of real batches; see --syn_strategy",
        metavar="A_B")
    comp_aug_real: bool = flag(False, "outer loop", "apply all of --real_strategy, not one drawn at random",
        read_by="strategies of several operations", reads=lambda c: "_" in c.real_strategy)

    # High resolution
    psp_patches: int = flag(0, "high resolution",
        "patch-wise semantic preservation: optimise N x N patches in turn and align them to real ones (0: off)",
        minimum=0, metavar="N")
    psp_lambda: float = flag(0.01, "high resolution", "weight of the alignment's loss", minimum=0,
        read_by="--psp_patches", reads=lambda c: c.psp_patches > 0)

    # Output
    trial: bool = flag(False, "output", "take three outer steps, on random pixels where the data are not here, and say "
        "how long the run will take; may fill the caches of real images", resume="free",
        read_by="--dry_run without --eval_only", reads=lambda c: c.dry_run and not c.eval_only)

    # Evaluation
    test_freq: int = flag(5, "evaluation", "epochs between evaluations", minimum=1)
    eval_steps: tuple[int, ...] = flag((300, 600, 1000, 3000), "evaluation",
        "training lengths to evaluate, in inner steps", kind=int, nargs="+", minimum=1, metavar="STEPS")
    # fmt: on

    recipe = "inner"

    @property
    def whitening(self) -> Literal["zca", "zca_pixels"] | None:
        """See ``Common``."""
        return "zca" if self.zca else "zca_pixels" if self.zca_pixels else None

    def facts(self, provenance: Mapping[str, Any]) -> dict[str, str]:
        """See ``Distilling``."""
        return {
            "data set": f"{self.dataset_label}{', ZCA' if self.zca else ', ZCA of pixels' if self.zca_pixels else ''}",
            "method": f"{self.policy}, W {self.window}, T {self.totwindow}{', CR-LRHA' if self.keeps_factors else ''}",
            "images per class": f"{self.per_class_text}{', learnt labels' if self.train_y else ''}",
            **({"boosting": self.boosting} if self.boosting else {}),
        }

    @property
    def start_set(self) -> tuple[str, str] | None:
        """The flag that names a set to start from, and the set; None: from noise or real images."""
        if self.ckptname != "none":
            return "--ckptname", self.ckptname
        return None if self.init in INITS else ("--init", self.init)

    @property
    def given_set(self) -> str | None:
        """See ``Distilling``."""
        return None if self.start_set is None else self.start_set[1]

    @property
    def real_per_class(self) -> tuple[str, Asked] | None:
        """See ``Common``."""
        real = ("--init real", self.num_per_class) if self.init == "real" else None
        return super().real_per_class or real

    @classmethod
    def resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See ``Common``: --truncation auto stands for a policy, by whose name the run is recorded."""
        return given | ({"truncation": RECOMMENDED} if given.get("truncation") == "auto" else {})

    @property
    def policy(self) -> str:
        """The truncation policy's name, from --truncation or else --ddtype, --cctype and the window."""
        if self.truncation is not None:
            return self.truncation
        if self.ddtype == "standard":
            return "bptt" if self.window == self.totwindow else "t-bptt"
        if self.ddtype == "at_bptt_pp":
            return "at-bptt-pp"
        return ("fixed", "forward", "rat-bptt" if self.d is None else "at-bptt")[self.cctype]

    @property
    def samples_importance(self) -> bool:
        """Whether windows are drawn by importance."""
        return self.policy == "rat-is" or (self.policy == "rat-pool" and self.pool_choice == "importance")

    @property
    def longest_window(self) -> int:
        """The most inner steps that the policy will ever have differentiated."""
        radius = self.window_radius if self.policy in LEARNING else 0
        if self.d is not None and self.policy in RESIZING:
            radius = self.d
        return self.totwindow if self.policy == "bptt" else min(self.window + radius, self.totwindow)

    def inner_batch(self, num_classes: int, per_class: int | None = None) -> int:
        """Synthetic images per inner step; ``per_class``: of a set of no more of each class, not of all."""
        numbers = numbers_of(self.num_per_class, self.task_sampler_nc or num_classes)
        return sum(min(self.batch_per_class, number, per_class or number) for number in numbers)

    def of_size(self, per_class: int) -> Self:
        """See ``Distilling``."""
        return replace(super().of_size(per_class), batch_per_class=min(self.batch_per_class, per_class))

    def differentiated(self, num_classes: int, steps_per_epoch: int) -> tuple[int, int]:
        """Inner steps that are differentiated in the run, of a boosted one in its first block, at most; images of each.

        Of the first block, as how to compute must not depend on how many blocks follow: see ``outer.boosting``.
        """
        steps = (self.block_epochs[0] - self.start_epoch) * steps_per_epoch * self.longest_window * self.meta_batch
        return steps, self.inner_batch(num_classes, self.block_size)

    @property
    def keeps_factors(self) -> bool:
        """Whether low-rank factors are kept across outer steps: if asked for, and by default as AT-BPTT++ does."""
        wanted = self.policy in LEARNING if self.cr_lrha is None else self.cr_lrha
        return wanted and self.engine in ("auto", "lowrank")

    @property
    def engine_name(self) -> str:
        """The engine that --engine stands for."""
        automatic = "lowrank" if self.keeps_factors else "replay"
        return automatic if self.engine == "auto" else self.engine

    @property
    def engine_text(self) -> str:
        """It for people."""
        kept = {"hessian": "kept factors for the Hessian", "gradient": "kept factors for inner gradients"}
        return f"{self.engine_name}, {kept[self.cr_mode]}" if self.keeps_factors else self.engine_name

    @property
    def factor_columns(self) -> int:
        """Random samples of a low-rank factorisation; 0 without any."""
        if self.keeps_factors:
            return self.cr_rank + self.cr_oversample
        return self.lowrank_rank + self.lowrank_oversampling if self.engine_name == "lowrank" else 0

    @property
    def normalises(self) -> bool:
        """Whether images are scaled back to norm 1 after every outer step; by default as AT-BPTT++ does."""
        return self.policy in LEARNING if self.normalize_syn is None else self.normalize_syn

    @property
    def name_parts(self) -> list[str]:
        """See ``Distilling``."""
        made = [self.policy, str(self.window), str(self.totwindow)]
        return [self.ipc_name, *self.block_names, *made, f"seed{self.seed}"]

    def check_data(
        self, num_classes: int | None, image_size: int, train: int | None = None, processes: int = 1
    ) -> None:
        """See ``Common``."""
        c = self
        if num_classes is not None and isinstance(c.num_per_class, dict) and len(c.num_per_class) != num_classes:
            raise UserError(f"--num_per_class: gives {len(c.num_per_class)} classes their number of images, and "
                            f"{c.dataset} has {num_classes}: give each of them one")  # fmt: skip
        if num_classes is not None and c.task_sampler_nc is not None and c.task_sampler_nc > num_classes:
            raise UserError(f"--task_sampler_nc {c.task_sampler_nc} is more than the {num_classes} classes of "
                            f"{c.dataset}: give at most {num_classes}")  # fmt: skip
        if c.psp_patches and image_size % c.psp_patches:
            raise UserError(f"--psp_patches {c.psp_patches} does not divide images of {image_size} pixels: change it "
                            "or --im_size")  # fmt: skip
        if train is not None and (batch_size := min(c.batch_size, train)) < processes:
            raise UserError(f"--batch_size {batch_size} cannot be shared by {processes} processes: raise it")

    def validate(self) -> list[str]:
        """See ``Common``."""
        warnings = super().validate()
        check_strategy("syn_strategy", self.syn_strategy)
        check_strategy("real_strategy", self.real_strategy)
        c = self
        if c.init != "noise" and c.ckptname != "none":
            raise UserError(f"--init {c.init} and --ckptname {c.ckptname} are two starts: give one of them")
        if c.zca and c.zca_pixels:
            raise UserError("--zca and --zca_pixels are two preprocessings: give one of them")
        if c.policy != "bptt" and c.window > c.totwindow:
            raise UserError(f"--window {c.window} is larger than --totwindow {c.totwindow}: a window cannot be longer "
                            "than the trajectory; lower --window or raise --totwindow")  # fmt: skip
        if c.flags()["minwindow"].reads(c) and c.minwindow + c.window > c.totwindow:  # type: ignore[misc]
            raise UserError(f"--minwindow {c.minwindow} + --window {c.window} is larger than --totwindow "
                            f"{c.totwindow}: lower --minwindow or --window, or raise --totwindow")  # fmt: skip
        if c.freeze_data and not c.train_y:
            raise UserError("--freeze_data leaves nothing to learn: give --train_y too, or leave it out")
        if c.freeze_data and c.psp_patches:
            raise UserError("--psp_patches learns images, which --freeze_data keeps as they are: leave one of them out")
        if c.policy in RESIZING and c.d is None:
            raise UserError(f"--truncation {c.policy} needs the window radius: give -d, for example -d {c.window // 4}")
        if c.policy == "rat-bias" and c.engine == "higher":
            raise UserError("--truncation rat-bias needs what each step contributes, which --engine higher does not "
                            "tell: give --engine replay or lowrank")  # fmt: skip
        if c.trial and c.boost_block:
            raise UserError("--trial times steps of one size, and those of a boosted run grow with its blocks: leave "
                            "it out, or --boost_block")  # fmt: skip
        for name in ("early_patience", "middle_patience"):
            text = getattr(c, name)
            if not PATIENCE.fullmatch(text):
                raise UserError(f"--{name} {text}: give epochs (30), a fraction of T (0.15T) or of all epochs (0.05E)")
            if text.endswith("E") and (most := max(c.block_epochs)) > PAPERS_EPOCHS and c.policy in AUTOMATIC:
                epochs = resolve_patience(text, c.totwindow, most)
                warnings.append(f"--{name} {text} is {epochs} epochs here; the paper's 5 % seem to be of about 600 "
                                "epochs: give 30, or 0.15T, for stages like its own")  # fmt: skip
        if c.batch_per_class > c.most_per_class:
            raise UserError(f"--batch_per_class {c.batch_per_class} is larger than --num_per_class {c.per_class_text}: "
                            "give at most the number of images per class")  # fmt: skip
        if isinstance(c.num_per_class, dict):
            c._check_numbers()
        if c.start_epoch >= c.epochs:
            raise UserError(
                f"--start_epoch {c.start_epoch} leaves nothing to do before --epochs {c.epochs}: raise --epochs"
            )
        if sorted(set(c.eval_steps)) != list(c.eval_steps):
            raise UserError(f"--eval_steps {' '.join(map(str, c.eval_steps))}: give increasing lengths, each once")
        return warnings

    def _check_numbers(self) -> None:
        """Check the flags that need as many images of each class.

        Raises:
            UserError: naming the flag.
        """
        for name in ("task_sampler_nc", "psp_patches"):
            if value := getattr(self, name):
                raise UserError(f"--{name} {value} needs as many images of each class: leave it out, or give one "
                                "number as --num_per_class")  # fmt: skip


FLAGS, DEFAULTS = Config.flags(), Config.defaults()


def parse(arguments: Sequence[str], start: Config | None = None) -> tuple[Config, list[str]]:
    """Parse and validate a command line; see ``parse_as``."""
    return parse_as(arguments, Config, start)


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
