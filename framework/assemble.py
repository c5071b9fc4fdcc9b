"""From flags to objects: everything a run is made of."""

from dataclasses import dataclass
from pathlib import Path

import torch

from framework import checkpoint, data, networks
from framework.augment import Augmentation
from framework.config import Config, UserError, check_against_data
from framework.data import RealData
from framework.distill_higher import make_engine
from framework.distributed import Comm
from framework.engines import Engine
from framework.execution import choose
from framework.inner import InnerLoop, make_optimizer
from framework.kernels import Execution
from framework.networks import FlatNetwork
from framework.patches import PatchAlignment
from framework.rng import generator
from framework.synthetic import ClassSampler, SyntheticSet, noise_images, one_hot_labels
from framework.truncation import Policy, make_policy


@dataclass(frozen=True)
class Parts:
    """What one worker works with."""

    real: RealData
    loop: InnerLoop
    engine: Engine
    sampler: ClassSampler  # of synthetic batches
    real_augmentation: Augmentation
    policy: Policy
    set: SyntheticSet
    batch_size: int  # real images per outer step, over all ranks
    alignment: PatchAlignment | None  # patch-wise semantic preservation

    @property
    def network(self) -> FlatNetwork:
        """The inner network."""
        return self.loop.network

    @property
    def steps_per_epoch(self) -> int:
        """Outer steps of one pass over the real training images."""
        return len(self.real.train) // self.batch_size

    @property
    def selection(self) -> data.Split:
        """The images that choose snapshot and length: a validation split, or under --select test the test set."""
        return self.real.test if self.real.val is None else self.real.val


def assemble(config: Config, comm: Comm, device: torch.device) -> Parts:
    """Load the data and build the rest.

    Raises:
        UserError: the data cannot be read, or flags do not fit it.
    """
    c = config
    real = _load_data(c, comm, device)
    classes, (channels, side, _) = real.num_classes, real.image_shape
    check_against_data(c, classes, side)
    batch_size = min(c.batch_size, len(real.train))
    if batch_size < comm.size:
        raise UserError(f"--batch_size {batch_size} cannot be shared by {comm.size} processes: raise it")
    network = FlatNetwork(networks.build(c.arch, channels, side, classes, **c.network), device)
    loop = InnerLoop(network, make_optimizer(c.inner_optim, c.inner_lr), _execution(c, real, batch_size, device))
    return Parts(
        real=real,
        loop=loop,
        engine=make_engine(c.engine_name, loop, c.lowrank),
        sampler=ClassSampler(
            num_classes=classes,
            per_class=c.num_per_class,
            classes_per_step=c.task_sampler_nc or classes,
            batch_per_class=c.batch_per_class,
            augmentation=Augmentation(c.syn_strategy, c.comp_aug, side),
        ),
        real_augmentation=Augmentation(c.real_strategy, c.comp_aug_real, side),
        policy=make_policy(c),
        set=_new_set(c, real, device),
        batch_size=batch_size,
        alignment=PatchAlignment(c.psp_patches, c.psp_lambda, classes, c.seed) if c.psp_patches else None,
    )


def _execution(c: Config, real: RealData, batch_size: int, device: torch.device) -> Execution:
    """How to compute, which may depend on how much there is to compute."""
    classes, (channels, side, _) = real.num_classes, real.image_shape
    with torch.device("meta"):
        module = networks.build(c.arch, channels, side, classes, **c.network)
    outer_steps = (c.epochs - c.start_epoch) * (len(real.train) // batch_size)
    image_steps = outer_steps * c.longest_window * c.inner_batch(classes) * c.meta_batch
    return choose(c, device, networks.activation_floats(module, channels, side), image_steps)


def _load_data(c: Config, comm: Comm, device: torch.device) -> RealData:
    """Rank 0 reads first, so that downloads and caches are made once."""
    for turn in (True, False):
        if comm.main is turn:
            real = data.load_for(c, device, progress=comm.main)
        comm.barrier()
    return real


def _new_set(c: Config, real: RealData, device: torch.device) -> SyntheticSet:
    """The synthetic set before the first step: noise and one-hot labels, or those of --ckptname."""
    classes = real.num_classes
    images = noise_images(classes, c.num_per_class, real.image_shape, generator(c.seed, "synthetic images"))
    labels = one_hot_labels(classes, c.num_per_class)
    if c.ckptname != "none":
        loaded = checkpoint.load_tensors(Path(c.ckptname))
        for name, expected in (("images", images), ("labels", labels)):
            found = tuple(loaded[name].shape) if name in loaded else "none"
            if found != tuple(expected.shape):
                raise UserError(
                    f"--ckptname {c.ckptname}: needs {name} of shape {tuple(expected.shape)}, found {found}; "
                    "give a set of the same data set and --num_per_class"
                )
            if not loaded[name].isfinite().all():
                raise UserError(f"--ckptname {c.ckptname}: {name} hold NaN or infinity; give another file")
        images, labels = loaded["images"].float(), loaded["labels"].float()
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
    )
