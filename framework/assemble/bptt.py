"""From flags to objects: a run of back-propagation through time."""

from pathlib import Path

import torch
from torch import nn

from framework.assemble.common import Parts, bare_network, check_packages, execution_for, listed, read_data
from framework.config.bptt import LEARNING, Config, resolve_patience
from framework.data.load import Listing
from framework.data.splits import RealData, draw_per_class
from framework.distill_higher import BackpropThroughTime, make_engine
from framework.distilled.foreign import Target
from framework.distilled.start import Start, filled, read_start
from framework.inner.augment import Augmentation
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import make_optimizer
from framework.inner.plan import ClassSampler
from framework.networks.flat import FlatNetwork, activation_floats
from framework.networks.registry import build
from framework.outer.kept_factors import KeptFactors, KeptRecipe
from framework.outer.lowrank import Recipe
from framework.outer.patches import PatchAlignment
from framework.outer.policies.policy import Policy
from framework.outer.policies.registry import Settings, make
from framework.outer.synthetic import SyntheticSet, noise_images, one_hot_labels
from framework.rng import generator
from framework.run.distributed import Comm
from framework.run.memory import Problem


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
    batch_size = min(c.batch_size, len(real.train))
    bare = bare_network(c, channels, side, classes)
    execution = _execution(c, real, bare, batch_size, device)
    network = FlatNetwork(build(c.arch, channels, side, classes, **c.network), device)
    loop = InnerLoop(network, make_optimizer(c.inner_optim, c.inner_lr), execution)
    synthetic, lines = _new_set(c, real, start, device)
    sampler = ClassSampler(
        num_classes=classes,
        per_class=c.num_per_class,
        classes_per_step=c.task_sampler_nc or classes,
        batch_per_class=c.batch_per_class,
        augmentation=Augmentation(c.syn_strategy, c.comp_aug, side),
    )
    kept = KeptFactors(kept_recipe(c), comm, c.seed) if c.keeps_factors else None
    method = BackpropThroughTime(
        engine=make_engine(c.engine_name, loop, lowrank_recipe(c), kept),
        sampler=sampler,
        policy=make_policy(c, classes, batch_size),
        set=synthetic,
        train=real.train,
        num_classes=classes,
        augmentation=Augmentation(c.real_strategy, c.comp_aug_real, side),
        batch_size=batch_size,
        meta_batch=c.meta_batch,
        peers=comm,
        seed=c.seed,
        start_epoch=c.start_epoch,
        alignment=PatchAlignment(c.psp_patches, c.psp_lambda, classes, c.seed) if c.psp_patches else None,
        kept=kept,
    )
    memory = Problem(bare, channels, side, classes, len(real.train), execution, comm.size)
    return Parts(real, loop, sampler, synthetic, method, memory, lines + _description(c, real, loop, method))


def _description(c: Config, real: RealData, loop: InnerLoop, method: BackpropThroughTime) -> list[str]:
    """What a run says at its start."""
    lines, validation = [], 0 if real.val is None else len(real.val)
    if c.batch_size > method.batch_size:
        lines.append(f"--batch_size {c.batch_size}: only {method.batch_size} real training images; using all")
    lines.append(
        f"{c.policy} on {c.dataset_label}, engine {c.engine_text} ({loop.execution}), {loop.network.device}: "
        f"{len(method.set.images)} synthetic images, {len(real.train)} real (and {validation} for validation), "
        f"{method.steps_per_epoch} outer steps per epoch, {loop.network.size:,} parameters; {c.folder}"
    )
    if loop.execution.compile:
        lines.append("compiling the inner steps: the first outer step takes half a minute longer or more")
    return lines


def _execution(c: Config, real: RealData, bare: nn.Module, batch_size: int, device: torch.device) -> Execution:
    channels, side, _ = real.image_shape
    outer_steps = (c.epochs - c.start_epoch) * (len(real.train) // batch_size)
    image_steps = outer_steps * c.longest_window * c.inner_batch(real.num_classes) * c.meta_batch
    return execution_for(c, device, activation_floats(bare, channels, side), image_steps, c.engine_name != "higher")


def lowrank_recipe(c: Config) -> Recipe:
    """How ``--engine lowrank`` approximates Hessians."""
    return Recipe(c.lowrank_rank, c.lowrank_oversampling, c.lowrank_power_iters, c.lowrank_refresh, c.lowrank_metric,
                  not c.lowrank_random)  # fmt: skip


def kept_recipe(c: Config) -> KeptRecipe:
    """How factors are made, kept and used under --cr_lrha."""
    factors = Recipe(c.cr_rank, c.cr_oversample, c.cr_power_iter, cotangent=False)
    return KeptRecipe(factors, c.cr_delta, c.cr_period, c.cr_blend, c.cr_mode)


def make_policy(c: Config, num_classes: int, real_batch: int) -> Policy:
    """The truncation policy that the flags ask for.

    Args:
        c: these.
        num_classes: of the data.
        real_batch: real images of an outer step.
    """
    inner = c.inner_batch(num_classes)
    early, middle = (resolve_patience(text, c.totwindow, c.epochs) for text in (c.early_patience, c.middle_patience))
    settings = Settings(
        steps=c.totwindow,
        window=c.window,
        minimum=c.minwindow,
        seed=c.seed,
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
        bin_decay=c.is_decay,
        uniform=c.is_uniform,
        # Passes over an image: 3 for a gradient, 12 for a differentiated step.
        cost=(3.0 * inner, 12.0 * inner * c.window + 3.0 * real_batch),
        kl_weight=c.selector_kl,
        reference_rate=c.selector_ref_ema,
        length_temperature=c.selector_tau_w,
    )
    return make(c.policy, settings)


def start_for(c: Config, listing: Listing) -> Start | None:
    """The set of --init or --ckptname, if any, which must fit listed data.

    Raises:
        UserError: naming the flag.
    """
    if c.start_set is None:
        return None
    flag, path = c.start_set
    target = Target(c.dataset, listing.image_shape, listing.class_names)
    return read_start(Path(path), target, c.num_per_class, flag)


def _new_set(c: Config, real: RealData, start: Start | None, device: torch.device) -> tuple[SyntheticSet, list[str]]:
    """The synthetic set before the first step, from noise, real images or a set; lines about the last."""
    classes, gen = real.num_classes, generator(c.seed, "synthetic images")
    labels, lines = one_hot_labels(classes, c.num_per_class), []
    if c.init == "real":
        images = real.train.batch(draw_per_class(real.train.labels.cpu(), classes, c.num_per_class, gen))
    else:
        images = noise_images(classes, c.num_per_class, real.image_shape, gen)
    if start is not None:
        given, line = start.images_under(real.preprocess)
        images, labels = filled(images, given, classes), filled(labels, start.labels, classes)
        lines = [*start.lines, *([] if line is None else [line])]
    synthetic = SyntheticSet(
        images.to(device),
        labels.to(device),
        learn_labels=c.train_y,
        lr=c.lr,
        label_lr=c.lr / c.label_lr_scale,
        optimizer=c.outer_optim,
        eps=c.eps,
        weight_decay=c.wd,
        ema_decay=c.clip_coef,
        learn_images=not c.freeze_data,
        normalise=c.normalises,
    )
    return synthetic, lines
