"""From flags to objects: everything a run is made of."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from framework.config import Config, resolve_patience
from framework.data.load import DataSpec, Listing, list_data, load_listed
from framework.data.splits import RealData, Split, require_random_real
from framework.distill_higher import BackpropThroughTime, make_engine
from framework.distilled.foreign import Target
from framework.distilled.start import read_start
from framework.errors import UserError
from framework.inner.augment import Augmentation
from framework.inner.execution import choose
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import make_optimizer
from framework.inner.plan import ClassSampler
from framework.networks.flat import FlatNetwork, activation_floats
from framework.networks.registry import build, build_bare
from framework.outer.lowrank import Recipe
from framework.outer.method import Method
from framework.outer.patches import PatchAlignment
from framework.outer.policies.policy import Policy
from framework.outer.policies.registry import Settings, make
from framework.outer.synthetic import SyntheticSet, noise_images, one_hot_labels
from framework.rng import generator
from framework.run.distributed import Comm
from framework.run.memory import Problem


@dataclass(frozen=True)
class Parts:
    """What one worker works with."""

    real: RealData
    loop: InnerLoop
    sampler: ClassSampler  # of synthetic batches
    set: SyntheticSet
    method: Method
    memory: Problem
    description: list[str]  # lines to say at the start

    @property
    def network(self) -> FlatNetwork:
        """The inner network."""
        return self.loop.network

    @property
    def selection(self) -> Split:
        """The images that choose snapshot and length: a validation split, or under --select test the test set."""
        return self.real.test if self.real.val is None else self.real.val


def assemble(c: Config, comm: Comm, device: torch.device) -> Parts:
    """Load the data and build the rest.

    Raises:
        UserError: the data cannot be read, or flags do not fit it.
    """
    check_packages(c)
    real = _load_data(c, comm, device)
    classes, (channels, side, _) = real.num_classes, real.image_shape
    batch_size = min(c.batch_size, len(real.train))
    bare = bare_network(c, channels, side, classes)
    execution = _execution(c, real, bare, batch_size, device)
    network = FlatNetwork(build(c.arch, channels, side, classes, **c.network), device)
    loop = InnerLoop(network, make_optimizer(c.inner_optim, c.inner_lr), execution)
    synthetic, lines = _new_set(c, real, device)
    sampler = ClassSampler(
        num_classes=classes,
        per_class=c.num_per_class,
        classes_per_step=c.task_sampler_nc or classes,
        batch_per_class=c.batch_per_class,
        augmentation=Augmentation(c.syn_strategy, c.comp_aug, side),
    )
    method = BackpropThroughTime(
        engine=make_engine(c.engine_name, loop, lowrank_recipe(c)),
        sampler=sampler,
        policy=make_policy(c),
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
    )
    memory = Problem(bare, channels, side, classes, len(real.train), execution, comm.size)
    return Parts(real, loop, sampler, synthetic, method, memory, lines + _description(c, real, loop, method))


def _description(c: Config, real: RealData, loop: InnerLoop, method: BackpropThroughTime) -> list[str]:
    """What a run says at its start."""
    lines, validation = [], 0 if real.val is None else len(real.val)
    if c.batch_size > method.batch_size:
        lines.append(f"--batch_size {c.batch_size}: only {method.batch_size} real training images; using all")
    lines.append(
        f"{c.policy} on {c.dataset}, engine {c.engine_name} ({loop.execution}), {loop.network.device}: "
        f"{len(method.set.images)} synthetic images, {len(real.train)} real (and {validation} for validation), "
        f"{method.steps_per_epoch} outer steps per epoch, {loop.network.size:,} parameters; {c.folder}"
    )
    if loop.execution.compile:
        lines.append("compiling the inner steps: the first outer step takes half a minute longer or more")
    return lines


def execution_for(c: Config, device: torch.device, activations: int, image_steps: float) -> Execution:
    """How to compute, which may depend on how much there is to compute.

    Args:
        c: the flags.
        device: where the run will be.
        activations: numbers that one image's forward pass writes.
        image_steps: differentiated inner steps of the whole run, times images per step.

    Raises:
        UserError: what the flags ask for does not exist on the device.
    """
    return choose(
        c.accelerate, device, work=image_steps * activations, per_sample=c.norm != "batch",
        replayed=c.engine_name != "higher", chunk=c.chunk, precision=c.precision, channels_last=c.channels_last,
    )  # fmt: skip


def _execution(c: Config, real: RealData, bare: nn.Module, batch_size: int, device: torch.device) -> Execution:
    channels, side, _ = real.image_shape
    outer_steps = (c.epochs - c.start_epoch) * (len(real.train) // batch_size)
    image_steps = outer_steps * c.longest_window * c.inner_batch(real.num_classes) * c.meta_batch
    return execution_for(c, device, activation_floats(bare, channels, side), image_steps)


def bare_network(c: Config, channels: int, side: int, classes: int) -> nn.Module:
    """The network on ``meta``: shapes without memory."""
    return build_bare(c.arch, channels, side, classes, **c.network)


def check_against_data(c: Config, num_classes: int | None, image_size: int) -> None:
    """Check what needs the data set's classes (None: not known yet) and image size in pixels.

    Raises:
        UserError: naming the flag.
    """
    if num_classes is not None and c.task_sampler_nc is not None and c.task_sampler_nc > num_classes:
        raise UserError(f"--task_sampler_nc {c.task_sampler_nc} is more than the {num_classes} classes of {c.dataset}: "
                        f"give at most {num_classes}")  # fmt: skip
    if c.psp_patches and image_size % c.psp_patches:
        raise UserError(f"--psp_patches {c.psp_patches} does not divide images of {image_size} pixels: change it or "
                        "--im_size")  # fmt: skip
    try:
        bare_network(c, 3, image_size, num_classes or 2)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_listing(c: Config, listing: Listing, processes: int = 1) -> None:
    """Check all that flags and a listed data set tell before an image is decoded.

    Raises:
        UserError: naming the flag.
    """
    check_against_data(c, len(listing.class_names), listing.info.image_size)
    if "random" in c.baselines:
        require_random_real(listing.counts, listing.class_names, c.num_per_class)
    if (batch_size := min(c.batch_size, len(listing.train))) < processes:
        raise UserError(f"--batch_size {batch_size} cannot be shared by {processes} processes: raise it")
    if c.ckptname != "none":
        shape = (listing.info.channels, listing.info.image_size, listing.info.image_size)
        read_start(Path(c.ckptname), Target(c.dataset, shape, listing.source.class_names), c.num_per_class)


def check_packages(c: Config) -> None:
    """Check that packages which only some flags need are there.

    Raises:
        UserError: naming the flag.
    """
    if c.wandb and find_spec("wandb") is None:
        raise UserError("--wandb needs the package: pip install wandb, or drop the flag")


def lowrank_recipe(c: Config) -> Recipe:
    """How ``--engine lowrank`` approximates Hessians."""
    return Recipe(c.lowrank_rank, c.lowrank_oversampling, c.lowrank_power_iters, c.lowrank_refresh, c.lowrank_metric,
                  not c.lowrank_random)  # fmt: skip


def make_policy(c: Config) -> Policy:
    """The truncation policy that the flags ask for."""
    early, middle = (resolve_patience(text, c.totwindow, c.epochs) for text in (c.early_patience, c.middle_patience))
    settings = Settings(
        steps=c.totwindow,
        window=c.window,
        minimum=c.minwindow,
        seed=c.seed,
        every_step=c.complete_random,
        radius=c.d or 0,
        tau=c.tau,
        weight=c.window_weight,
        rule=c.window_rule,
        gains=(c.early_gain, c.middle_gain),
        patience=(early, middle),
        probe_every=c.probe_every,
    )
    return make(c.policy, settings)


def data_spec(c: Config) -> DataSpec:
    """What a run's flags have loaded."""
    return DataSpec(
        c.dataset,
        Path(c.root),
        zca=c.zca,
        zca_reg=c.zca_reg,
        zca_pixels=c.zca_pixels,
        im_size=c.im_size,
        val_fraction=c.val_fraction if c.select == "val" else 0.0,
        limit_train=c.limit_train,
        workers=c.workers,
        data_cache=c.data_cache,
        cache_dir=None if c.cache_dir is None else Path(c.cache_dir),
    )


def _load_data(c: Config, comm: Comm, device: torch.device) -> RealData:
    """Rank 0 reads first, so that downloads and caches are made once."""
    for turn in (True, False):
        if comm.main is turn:
            listing = list_data(data_spec(c))
            check_listing(c, listing, comm.size)
            real = load_listed(listing, device, progress=comm.main)
        comm.barrier()
    return real


def _new_set(c: Config, real: RealData, device: torch.device) -> tuple[SyntheticSet, list[str]]:
    """The synthetic set before the first step: noise and one-hot labels, or those of --ckptname; lines about these."""
    classes = real.num_classes
    images = noise_images(classes, c.num_per_class, real.image_shape, generator(c.seed, "synthetic images"))
    labels, lines = one_hot_labels(classes, c.num_per_class), []
    if c.ckptname != "none":
        target = Target(real.name, real.image_shape, real.class_names)
        start = read_start(Path(c.ckptname), target, c.num_per_class)
        images, line = start.images_under(real.preprocess)
        labels, lines = start.labels, [*start.lines, *([] if line is None else [line])]
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
    )
    return synthetic, lines
