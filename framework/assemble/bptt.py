"""From flags to objects: a run of back-propagation through time."""

from pathlib import Path

import torch
from torch import Tensor, nn

from framework.assemble.boosting import blocks_of, boosted
from framework.assemble.common import Parts, bare_network, check_packages, execution_for, listed, read_data, work_of
from framework.config.bptt import LEARNING, Config, resolve_patience
from framework.data.load import Listing
from framework.data.splits import RealData, draw_per_class
from framework.distill_higher import BackpropThroughTime, make_engine
from framework.distilled.foreign import Target
from framework.distilled.start import Start, filled, read_start
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import make_optimizer
from framework.inner.plan import ClassSampler
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.blocks import block_seed
from framework.outer.engines.kept_factors import KeptFactors, KeptRecipe
from framework.outer.engines.lowrank import Recipe
from framework.outer.importance import costs_in_passes, position_bins
from framework.outer.method import Method
from framework.outer.patches import PatchAlignment
from framework.outer.policies.policy import Policy
from framework.outer.policies.registry import Settings, make
from framework.outer.pool import NetworkPool
from framework.outer.synthetic import SyntheticSet, noise_images, one_hot_labels
from framework.rng import generator
from framework.run.distributed import Comm
from framework.run.memory import Problem

_Given = tuple[Tensor, Tensor, Counts]
"""Images and labels that a run begins with, and how many of each class."""


def assemble_bptt(c: Config, comm: Comm, device: torch.device) -> Parts:
    """Load the data and build the rest.

    Raises:
        UserError: the data cannot be read, or flags do not fit it.
    """
    check_packages(c)
    listing = listed(c, comm)
    start = start_for(c, listing)
    return build_bptt(c, comm, device, read_data(listing, comm, device), start)


def build_bptt(c: Config, comm: Comm, device: torch.device, real: RealData, start: Start | None) -> Parts:
    """Build a run on loaded data; ``start`` is the set that it begins with, if it is given one.

    Raises:
        UserError: flags do not fit the data or the device.
    """
    classes, (channels, side, _) = real.num_classes, real.image_shape
    counts = c.counts(real.class_names)
    batch_size = min(c.batch_size, len(real.train))
    bare = bare_network(c, channels, side, classes)
    execution = _execution(c, real, bare, batch_size, device)
    network = FlatNetwork(build(c.arch, channels, side, classes, **c.network), device)
    loop = InnerLoop(network, make_optimizer(c.inner_optim, c.inner_lr, c.eps_root), execution)
    given, lines = _given(start, real)
    synthetic = _new_set(c, real, given, device)
    sampler = ClassSampler(
        counts=counts,
        classes_per_step=c.task_sampler_nc or classes,
        batch_per_class=c.batch_per_class,
        augmentation=Augmentation(c.syn_strategy, c.comp_aug, side),
    )

    def method_for(block: int) -> BackpropThroughTime:
        seed = block_seed(c.seed, block)
        kept = KeptFactors(kept_recipe(c), comm, seed) if c.keeps_factors else None
        policy = make_policy(c, classes, batch_size, block)
        return BackpropThroughTime(
            engine=make_engine(c.engine_name, loop, lowrank_recipe(c), kept),
            sampler=sampler.of(counts.part(0, c.block_size * (block + 1))),
            policy=policy,
            set=synthetic,
            train=real.train,
            num_classes=classes,
            augmentation=Augmentation(c.real_strategy, c.comp_aug_real, side),
            batch_size=batch_size,
            meta_batch=c.meta_batch,
            peers=comm,
            seed=seed,
            start_epoch=c.start_epoch,
            alignment=PatchAlignment(c.psp_patches, c.psp_lambda, classes, seed) if c.psp_patches else None,
            kept=kept,
            clip_bins=clip_bins(c, policy),
            pool=None if policy.slot is None else NetworkPool(comm),
        )

    method = boosted(c, synthetic, lambda block: _block_start(c, real, given, block), method_for)
    memory = Problem(bare, channels, side, classes, len(real.train), execution, comm.size)
    return Parts(real, loop, sampler, synthetic, method, memory, lines + _description(c, real, loop, method))


def _description(c: Config, real: RealData, loop: InnerLoop, method: Method) -> list[str]:
    """What a run says at its start."""
    lines, validation = [], 0 if real.val is None else len(real.val)
    images = c.counts(real.class_names).total
    if c.batch_size > len(real.train):
        lines.append(f"--batch_size {c.batch_size}: only {len(real.train)} real training images; using all")
    lines.append(
        f"{c.policy} on {c.dataset_label}, engine {c.engine_text} ({loop.execution}), {loop.network.device}: "
        f"{images} synthetic images, {len(real.train)} real (and {validation} for validation), "
        f"{method.steps_per_epoch} outer steps per epoch, {loop.network.size:,} parameters; {c.folder}"
    )
    if c.boosting:
        lines.append(f"boosting: {c.boosting}")
    if loop.execution.compile:
        lines.append("compiling the inner steps: the first outer step takes half a minute longer or more")
    return lines


def _execution(c: Config, real: RealData, bare: nn.Module, batch_size: int, device: torch.device) -> Execution:
    channels, side, _ = real.image_shape
    work = work_of(bare, channels, side, *c.differentiated(real.num_classes, len(real.train) // batch_size))
    return execution_for(c, device, work, c.engine_name != "higher")


def lowrank_recipe(c: Config) -> Recipe:
    """How ``--engine lowrank`` approximates Hessians."""
    return Recipe(c.lowrank_rank, c.lowrank_oversampling, c.lowrank_power_iters, c.lowrank_refresh, c.lowrank_metric,
                  not c.lowrank_random)  # fmt: skip


def kept_recipe(c: Config) -> KeptRecipe:
    """How factors are made, kept and used under --cr_lrha."""
    factors = Recipe(c.cr_rank, c.cr_oversample, c.cr_power_iter, cotangent=False)
    return KeptRecipe(factors, c.cr_delta, c.cr_period, c.cr_blend, c.cr_mode)


def make_policy(c: Config, num_classes: int, real_batch: int, block: int = 0) -> Policy:
    """The truncation policy that the flags ask for.

    Args:
        c: these.
        num_classes: of the data.
        real_batch: real images of an outer step.
        block: which is learnt, of a boosted run.
    """
    inner, epochs = c.inner_batch(num_classes, c.block_size * (block + 1)), c.block_epochs[block]
    early, middle = (resolve_patience(text, c.totwindow, epochs) for text in (c.early_patience, c.middle_patience))
    settings = Settings(
        steps=c.totwindow,
        window=c.window,
        minimum=c.minwindow,
        seed=block_seed(c.seed, block),
        every_step=c.complete_random,
        radius=c.window_radius if c.policy in LEARNING else c.d or 0,
        tau=c.tau,
        measure=c.window_weight,
        rule=c.window_rule,
        anchor=c.truncation_anchor,
        scale=c.norm_scale,
        late=c.late,
        reweight=c.reweight,
        gains=(c.early_gain, c.middle_gain),
        patience=(early, middle),
        plateau=c.plateau,
        probe_every=c.probe_every,
        bins=c.is_bins,
        decay=c.is_decay,
        uniform=c.is_uniform,
        cost=costs_in_passes(inner, c.window, real_batch),
        pool=c.pool_size,
        pool_choice=c.pool_choice,
        bias=c.bias,
        roulette=c.bias_roulette,
        kl_weight=c.selector_kl,
        reference_rate=c.selector_ref_ema,
        length_temperature=c.selector_tau_w,
    )
    return make(c.policy, settings)


def clip_bins(c: Config, policy: Policy) -> list[list[int]]:
    """The bins of a policy's positions that have clips of their own; none where all share one."""
    return position_bins(policy.minimum, policy.steps - policy.window, c.is_bins) if c.clip_by == "position" else []


def start_for(c: Config, listing: Listing) -> Start | None:
    """The set of --init or --ckptname, if any, which must fit listed data.

    Raises:
        UserError: naming the flag.
    """
    if c.start_set is None:
        return None
    flag, path = c.start_set
    target = Target(c.dataset, listing.image_shape, listing.class_names)
    return read_start(Path(path), target, c.counts(listing.class_names), flag)


def _given(start: Start | None, real: RealData) -> tuple[_Given | None, list[str]]:
    """Images and labels of the set that the run begins with, under its preprocessing, and lines about them."""
    if start is None:
        return None, []
    images, line = start.images_under(real.preprocess)
    return (images, start.labels, start.counts), [*start.lines, *([] if line is None else [line])]


def _block_start(c: Config, real: RealData, given: _Given | None, block: int) -> tuple[Tensor, Tensor]:
    """Images and labels with which a block starts: noise or real images and one-hot labels, or its part of a set."""
    first, end = block * c.block_size, (block + 1) * c.block_size
    counts, gen = c.counts(real.class_names).part(first, end), generator(block_seed(c.seed, block), "synthetic images")
    images, labels = noise_images(counts.total, real.image_shape, gen), one_hot_labels(counts)
    if c.init == "real":
        images = real.train.batch(draw_per_class(real.train.labels.cpu(), counts, gen))
    if given is not None:
        *tensors, has = given
        rows, own = has.rows([range(number)[first:end] for number in has.numbers]), has.part(first, end)
        images, labels = (
            filled(start, tensor[rows], counts, own) for start, tensor in zip((images, labels), tensors, strict=True)
        )
    return images, labels


def _new_set(c: Config, real: RealData, given: _Given | None, device: torch.device) -> SyntheticSet:
    """The synthetic set before the first step."""
    images, labels = _block_start(c, real, given, 0)
    return SyntheticSet(
        images.to(device),
        labels.to(device),
        learn_labels=c.train_y,
        lr=c.lr,
        label_lr=c.lr / c.label_lr_scale,
        optimizer=c.outer_optim,
        eps=c.eps,
        weight_decay=c.wd,
        ema_decay=c.clip_coef,
        robust=c.clip_norms == "applied",
        learn_images=not c.freeze_data,
        normalise=c.normalises,
        blocks=blocks_of(c, real.num_classes),
        average=c.iterate_average,
    )
