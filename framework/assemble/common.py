"""What every kind of run is made of, from its flags: the data, the network's shapes, and what is checked of them."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.config.common import Common
from framework.config.distilling import Distilling
from framework.data.load import DataSpec, Listing, list_data, load_listed
from framework.data.registry import Reading
from framework.data.splits import RealData, Split, require_random_real
from framework.errors import UserError
from framework.inner.counts import counts_of
from framework.inner.execution import Work, choose
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.plan import Sampler
from framework.networks.flat import FlatNetwork, activation_floats, layers
from framework.networks.registry import build_bare
from framework.outer.method import LearntSet, Method
from framework.run.distributed import Comm
from framework.run.memory import Problem


@dataclass(frozen=True)
class Parts:
    """What one worker works with."""

    real: RealData
    loop: InnerLoop
    sampler: Sampler  # of synthetic batches
    set: LearntSet
    method: Method
    memory: Problem
    description: list[str]  # lines to say at the start
    provenance: dict[str, Any] = field(default_factory=dict)  # what sets of the run say of themselves beside its flags

    @property
    def network(self) -> FlatNetwork:
        """The inner network."""
        return self.loop.network

    @property
    def selection(self) -> Split:
        """The images that choose snapshot and length: a validation split, or under --select test the test set."""
        return self.real.test if self.real.val is None else self.real.val


def bare_network(c: Common, channels: int, side: int, classes: int) -> nn.Module:
    """The network on ``meta``: shapes without memory."""
    return build_bare(c.arch, channels, side, classes, **c.network)


def work_of(bare: nn.Module, channels: int, side: int, steps: int, images: int) -> Work:
    """What so many differentiated steps of so many images are for a network."""
    return Work(steps, images, activation_floats(bare, channels, side), len(layers(bare)))


def execution_for(c: Common, device: torch.device, work: Work, replayed: bool = True) -> Execution:
    """How to compute, which may depend on how much there is to compute.

    Args:
        c: the flags.
        device: where the run will be.
        work: what there is to compute.
        replayed: each step is differentiated by itself.

    Raises:
        UserError: what the flags ask for does not exist on the device.
    """
    return choose(
        c.accelerate, device, work, per_sample=c.norm != "batch", replayed=replayed, chunk=c.chunk,
        precision=c.precision, channels_last=c.channels_last,
    )  # fmt: skip


def check_against_data(
    c: Common, num_classes: int | None, image_size: int, train: int | None = None, processes: int = 1
) -> None:
    """Check what needs the data set's numbers, those of ``Common.check_data``; None: not known yet.

    Raises:
        UserError: naming the flag.
    """
    c.check_data(num_classes, image_size, train, processes)
    try:
        bare_network(c, 3, image_size, num_classes or 2)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_listing(c: Common, listing: Listing, processes: int = 1) -> None:
    """Check all that flags and a listed data set tell before an image is decoded.

    Raises:
        UserError: naming the flag.
    """
    if isinstance(c, Distilling):
        c.counts(listing.class_names)  # before their number is checked, as this names the class that is amiss
    check_against_data(c, len(listing.class_names), listing.info.image_size, len(listing.train), processes)
    if (asked := c.real_per_class) is not None:
        flag, per_class = asked
        require_random_real(listing.counts, listing.class_names, counts_of(per_class, listing.class_names), flag)


def check_packages(c: Distilling) -> None:
    """Check that packages which only some flags need are there.

    Raises:
        UserError: naming the flag.
    """
    for name in c.trackers:
        if find_spec(name) is None:
            raise UserError(f"--track {name} needs the package: pip install {name}, or leave it out")


def data_spec(c: Common) -> DataSpec:
    """What a run's flags have loaded."""
    return DataSpec(
        c.dataset,
        Path(c.root),
        zca=c.whitening == "zca",
        zca_reg=c.zca_reg,
        zca_pixels=c.whitening == "zca_pixels",
        im_size=c.im_size,
        val_fraction=c.val_fraction if c.select == "val" else 0.0,
        limit_train=c.limit_train,
        workers=c.workers,
        data_cache=c.data_cache,
        cache_dir=None if c.cache_dir is None else Path(c.cache_dir),
        reading=Reading(c.pixel_range, c.hf_image, c.hf_label),
    )


def listed(c: Common, comm: Comm) -> Listing:
    """A run's data on every rank, listed and checked; rank 0 comes first, so that downloads are made once.

    Raises:
        UserError: they cannot be listed, or flags do not fit them.
    """
    for turn in (True, False):
        if comm.main is turn:
            listing = list_data(data_spec(c))
            check_listing(c, listing, comm.size)
        comm.barrier()
    return listing


def read_data(listing: Listing, comm: Comm, device: torch.device) -> RealData:
    """Listed data, read on every rank; rank 0 comes first, so that caches are made once.

    Raises:
        UserError: see ``load_listed``.
    """
    for turn in (True, False):
        if comm.main is turn:
            real = load_listed(listing, device, progress=comm.main)
        comm.barrier()
    return real
