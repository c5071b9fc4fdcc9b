"""From flags to objects: runs of trajectory matching, and what they share with the training of their experts."""

import torch
from torch import Tensor

from framework.assemble.boosting import blocks_of, boosted
from framework.assemble.common import Parts, bare_network, check_packages, execution_for, listed, read_data, work_of
from framework.config.matching import FtdConfig, Matching
from framework.data.load import Listing
from framework.data.registry import DatasetInfo
from framework.data.splits import RealData, draw_per_class
from framework.errors import UserError
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import PlainSGD
from framework.inner.plan import ShuffledSampler
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build, same_maker, specify
from framework.outer.blocks import block_seed
from framework.outer.buffers.reader import Buffer
from framework.outer.buffers.record import compare, rows_checksum, weighted_norms
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.matching.ftd import Starts, TrajectoryMatching
from framework.outer.matching.matched import MatchedSet
from framework.outer.synthetic import one_hot_labels
from framework.records import ExpertSource
from framework.rng import generator
from framework.run.distributed import Comm
from framework.run.memory import Problem


def assemble_matching(c: FtdConfig, comm: Comm, device: torch.device) -> Parts:
    """Open the experts, load the data and build the rest.

    Raises:
        UserError: experts or data cannot be read, or flags do not fit them.
    """
    check_packages(c)
    listing = listed(c, comm)
    network = network_for(c, listing.info, len(listing.class_names), device)
    experts = open_experts(c, network)
    real = read_data(listing, comm, device)
    told = compare(experts.folder, experts.record, expert_source(c, listing, real))
    starts = _starts(c, real, network, experts, told)
    classes, (channels, side, _) = real.num_classes, real.image_shape
    learnt = _new_set(c, classes, starts[0], device)
    bare = bare_network(c, channels, side, classes)
    execution = execution_for(c, device, work_of(bare, channels, side, *c.differentiated(classes)))
    loop = InnerLoop(network, PlainSGD(), execution)
    augmentation = Augmentation("none" if c.no_aug else c.strategy, False, side)

    def sampler_of(per_class: int) -> ShuffledSampler:
        return ShuffledSampler(classes * per_class, c.student_batch(classes, per_class), augmentation)

    def method_for(block: int) -> TrajectoryMatching:
        return TrajectoryMatching(
            engine=Replay(loop) if c.hessian == "exact" else LowRank(loop, Recipe(rank=0)),
            sampler=sampler_of(c.block_size * (block + 1)),
            set=learnt,
            experts=experts,
            starts=Starts(c.min_start_epoch, c.current_max_start_epoch or c.max_start_epoch, c.max_start_epoch,
                          c.expansion_end or 0),
            span=c.expert_epochs,
            steps=c.syn_steps,
            threshold=c.threshold or float("inf"),
            iterations=c.iterations_per_epoch,
            peers=comm,
            seed=block_seed(c.seed, block),
        )  # fmt: skip

    method = boosted(c, learnt, starts.__getitem__, method_for)
    memory = Problem(bare, channels, side, classes, len(real.train), execution, comm.size)
    sampler = sampler_of(c.num_per_class)
    lines = told + _description(c, experts, loop, real)
    return Parts(real, loop, sampler, learnt, method, memory, lines, experts.provenance)


def _description(c: FtdConfig, experts: Buffer, loop: InnerLoop, real: RealData) -> list[str]:
    """What a run says at its start."""
    images = c.num_per_class * real.num_classes
    validation = 0 if real.val is None else len(real.val)
    lines = [
        f"{c.method(experts.provenance)} on {c.dataset_label} ({loop.execution}), {loop.network.device}: {images} "
        f"synthetic images, {len(experts)} experts of {experts.epochs} epochs in {experts.folder}, {validation} real "
        f"images for validation, {c.total_iterations} iterations, {loop.network.size:,} parameters; {c.folder}"
    ]
    if c.boosting:
        lines.append(f"boosting: {c.boosting}")
    if loop.execution.compile:
        lines.append("compiling the student's steps: the first iteration takes half a minute longer or more")
    return lines


def network_for(c: Matching, info: DatasetInfo, classes: int, device: torch.device) -> FlatNetwork:
    """The network that the flags describe, for a data set of so many classes."""
    return FlatNetwork(build(c.arch, info.channels, info.image_size, classes, **c.network), device)


def open_experts(c: FtdConfig, network: FlatNetwork) -> Buffer:
    """The experts, which must have been trained for long enough.

    Raises:
        UserError: they cannot be read, are of another network, or too short.
    """
    experts = Buffer(c.buffer_folder, network, max_files=c.max_files, max_experts=c.max_experts)
    last = c.max_start_epoch - 1 + c.expert_epochs
    if last > experts.epochs:
        raise UserError(
            f"--max_start_epoch {c.max_start_epoch} - 1 + --expert_epochs {c.expert_epochs} reaches epoch {last}, and "
            f"the experts in {experts.folder} were trained for {experts.epochs}: lower one of them, or train experts "
            f"by main.py buffer --train_epochs {last}"
        )
    return experts


def expert_source(c: Matching, listing: Listing, real: RealData) -> ExpertSource:
    """What experts of these flags are trained on, for the comparison with those in a folder."""
    channels, side, _ = real.image_shape
    return ExpertSource(
        dataset=real.identity or c.dataset,
        class_names=list(real.class_names),
        preprocess=real.preprocess.kind,
        preprocess_norms=weighted_norms(real.preprocess.tensors()),
        arch=same_maker(c.arch),
        spec=specify(c.arch, channels, side, real.num_classes, **c.network),
        validation=rows_checksum(listing.val),
    )


# ---- the start -------------------------------------------------------------------------------------------


def _starts(
    c: FtdConfig, real: RealData, network: FlatNetwork, experts: Buffer, told: list[str]
) -> list[tuple[Tensor, Tensor]]:
    """With what each block starts; of a run that is not boosted there is one. Blocks share no real image.

    Returns:
        Of each, images (K * b, C, H, W), and labels (K * b, K): class weights, or logits of soft labels.
    """
    starts, taken = [], torch.empty(0, dtype=torch.int64)
    for block in range(len(c.block_epochs)):
        gen = generator(block_seed(c.seed, block), "synthetic images")
        labels = one_hot_labels(Counts.equal(real.num_classes, c.block_size))
        if c.pix_init == "noise":
            images = torch.randn(len(labels), *real.image_shape, generator=gen).to(network.device)
        else:
            drawn = _drawn(c, real, network, experts, gen, taken)
            images, taken = real.train.batch(drawn), torch.cat([taken, drawn])
        if c.soft_labels:
            labels = _soft_labels(network, experts, images, labels.argmax(1), c.pix_init, told)
        starts.append((images, labels))
    return starts


def _drawn(
    c: FtdConfig, real: RealData, network: FlatNetwork, experts: Buffer, gen: torch.Generator, taken: Tensor
) -> Tensor:
    """Indices (K * b,) of real images, sorted by class, none of those that are ``taken``."""
    if c.pix_init == "samples_predicted_correctly":
        return _classified(c, real, network, experts, gen, taken)
    labels = real.train.labels.cpu()
    free = torch.ones_like(labels, dtype=torch.bool).index_fill_(0, taken, value=False).nonzero().squeeze(1)
    return free[draw_per_class(labels[free], Counts.equal(real.num_classes, c.block_size), gen)]


def _new_set(c: FtdConfig, num_classes: int, start: tuple[Tensor, Tensor], device: torch.device) -> MatchedSet:
    """The synthetic set before the first iteration."""
    images, labels = start
    return MatchedSet(
        images,
        labels.to(device),
        c.lr_teacher,
        lr_images=c.lr_img,
        lr_step_size=c.lr_lr,
        lr_labels=c.lr_y if c.soft_labels else None,
        momentum_labels=c.momentum_y,
        ema_decay=c.ema_decay,
        blocks=blocks_of(c, num_classes),
    )


@torch.no_grad()
def _logits(network: FlatNetwork, theta: Tensor, images: Tensor) -> Tensor:
    """(N, K) on the CPU, of an expert; batch norm takes the batch's statistics, as no others are kept."""
    return network(theta.to(network.device), images).cpu()


def _classified(
    c: FtdConfig, real: RealData, network: FlatNetwork, experts: Buffer, gen: torch.Generator, taken: Tensor
) -> Tensor:
    """Indices (K * b,), sorted by class, of training images that an expert classifies correctly (DATM).

    The first expert's, in random order; where a class has too few of them, the next expert's follow.

    Raises:
        UserError: all experts together classify too few images of a class.
    """
    labels = real.train.labels.cpu()
    order = torch.randperm(len(labels), generator=gen)
    chosen: list[list[int]] = [[] for _ in range(real.num_classes)]
    for expert in range(len(experts)):
        theta = experts.snapshot(expert, experts.epochs)
        guesses = torch.cat([_logits(network, theta, batch).argmax(1) for batch in real.train.chunks(1000)])
        guesses[taken] = -1
        right = order[(guesses == labels)[order]]
        for k, found in enumerate(chosen):
            more = [i for i in right[labels[right] == k].tolist() if i not in found]
            found += more[: c.block_size - len(found)]
        if all(len(found) == c.block_size for found in chosen):
            return torch.tensor([i for found in chosen for i in found])
    short = next(k for k, found in enumerate(chosen) if len(found) < c.block_size)
    right_of_class = len(chosen[short]) + len(taken) // real.num_classes
    raise UserError(
        f"--pix_init samples_predicted_correctly: the experts classify {right_of_class} images of class "
        f"{real.class_names[short]} correctly, fewer than --ipc {c.num_per_class}; give --pix_init real"
    )


def _soft_labels(
    network: FlatNetwork, experts: Buffer, images: Tensor, classes: Tensor, init: str, told: list[str]
) -> Tensor:
    """Logits (N, K) of the soft labels at the start (DATM).

    Of images that experts classify correctly, the mean over the experts that do; else those of the first expert.
    """
    logits = _logits(network, experts.snapshot(0, experts.epochs), images)
    if init != "samples_predicted_correctly":
        return logits
    total, count, everybody = torch.zeros_like(logits), torch.zeros(len(logits), 1), torch.zeros_like(logits)
    for expert in range(len(experts)):
        logits = _logits(network, experts.snapshot(expert, experts.epochs), images)
        right = (logits.argmax(1) == classes).float().unsqueeze(1)
        total, count, everybody = total + right * logits, count + right, everybody + logits / len(experts)
    if missed := int((count == 0).sum()):
        told.append(f"{missed} image(s) are classified correctly by no expert: their soft labels start as the mean of "
                    "all experts' logits")  # fmt: skip
    return torch.where(count > 0, total / count.clamp_min(1), everybody)
