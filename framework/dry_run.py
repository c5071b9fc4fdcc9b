"""What a run would be, told without running it: ``--dry_run``."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from framework.assemble.bptt import start_for
from framework.assemble.common import (
    bare_network,
    check_against_data,
    check_listing,
    check_packages,
    data_spec,
    execution_for,
    work_of,
)
from framework.assemble.experts import expert_execution, expert_recipe, side_by_side
from framework.assemble.matching import network_for, open_experts
from framework.config.bptt import Config
from framework.config.common import Common
from framework.config.distilling import Distilling
from framework.config.matching import BufferConfig, FtdConfig
from framework.data.load import list_data, streams
from framework.data.registry import DatasetInfo, at_hand, describe
from framework.data.splits import Split
from framework.distilled.load import open_stored
from framework.errors import UserError
from framework.files import cache_folder, can_hold
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts, numbers_of, text_of
from framework.inner.execution import Work
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import PlainSGD
from framework.inner.plan import ShuffledSampler
from framework.networks.flat import FlatNetwork, activation_floats
from framework.outer.buffers.layout import file_name
from framework.outer.engines.replay import Replay
from framework.outer.matching.experts import ExpertTrainer
from framework.outer.matching.ftd import match
from framework.outer.synthetic import Synthetic, one_hot_labels
from framework.rng import generator
from framework.run.checkpoint import find_run
from framework.run.distributed import resolve_device
from framework.run.memory import REAL_GRAPH, Problem, size_text, step_bytes
from framework.run.place import find_place
from framework.trial import seconds_of, tried


@dataclass(frozen=True)
class _Outlook:
    """What is known before a run."""

    device: torch.device
    info: DatasetInfo
    classes: int
    module: nn.Module  # on ``meta``
    train: int | None  # real images that are trained on, if they can be told

    def work(self, steps: int, images: int) -> Work:
        """What so many differentiated steps of so many images are."""
        return work_of(self.module, self.info.channels, self.info.image_size, steps, images)

    @property
    def parameters(self) -> int:
        """P."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def preview(config: Common) -> str:
    """The resolved configuration, what the run does, and an estimate of memory, disk and time, as text."""
    c = config
    place, saved = find_place(c, os.environ), None
    device = resolve_device(c.device_name, 0 if place is None else place.local_rank or 0)
    if isinstance(c, Distilling):
        can_hold(c.folder)
        saved = find_run(c.folder, c)
        check_packages(c)
    info = _described(c, 1 if place is None else place.size)
    classes = info.num_classes or 10
    train = None if info.train_size is None else c.train_sizes(info.train_size)[1]
    outlook = _Outlook(device, info, classes, bare_network(c, info.channels, info.image_size, classes), train)
    shape = f"{info.channels} x {info.image_size} x {info.image_size} images"
    data, streamed = _data_bytes(c, outlook)
    if isinstance(c, FtdConfig):
        method, *own = _ftd(c, outlook, data)
    elif isinstance(c, BufferConfig):
        method, *own = _buffer(c, outlook, data)
    else:
        assert isinstance(c, Config), "every kind of run has its own preview"
        method, *own = _bptt(c, outlook, data)
        if c.trial and not c.eval_only:
            own += tried(c, info, classes, train, device, 0 if saved is None else saved["progress"]["epoch"])
    lines = [c.to_json(), "", method, f"device: {device}"]
    if isinstance(c, Distilling) and c.eval_only:
        lines.append("--eval_only: one evaluation, and none of the steps below")
    lines.append(f"network: {c.arch}, {outlook.parameters:,} parameters, {shape}")
    if info.num_classes is None:
        lines.append(f"classes: unknown, --root {c.root} is not here; the estimate assumes {classes}")
    lines += streamed + own
    if place is not None:
        what = "node" if place.local_rank is None else "process"
        lines.append(f"{what} {place.rank} of {place.size}, which meet at {place.url}")
    lines.append(f"folder: {c.folder}")
    return "\n".join(lines)


def _data_bytes(c: Common, o: _Outlook) -> tuple[float, list[str]]:
    """What real images take on the device, and a line where they are streamed to it instead."""
    if o.info.train_size is None or o.train is None:
        return 0, []
    images = o.train + o.info.train_size - c.train_sizes(o.info.train_size)[0] + (o.info.test_size or 0)
    pixels = images * o.info.channels * o.info.image_size**2
    if streams(c.data_cache, images, o.info, o.device):
        return 0, [f"data: streamed from {c.cache_dir or cache_folder()}, {size_text(pixels)} once decoded"]
    return 4 * pixels, []


def _memory(sizes: dict[str, float]) -> str:
    shown = [f"{name} {size_text(size)}" for name, size in (sizes | {"together": sum(sizes.values())}).items()]
    return f"memory, within a factor of two: {', '.join(shown)}"


def _bptt(c: Config, o: _Outlook, data: float) -> list[str]:
    lines = [f"method: {c.policy}, at most {c.longest_window} of {c.totwindow} inner steps differentiated"]
    lines += _boosting(c)
    real_batch, steps = c.batch_size, 0
    if o.train is None:
        lines.append("steps per epoch: unknown until --root is here")
    else:
        real_batch = min(c.batch_size, o.train)
        steps = max(1, o.train // real_batch)
        total = steps * (c.total_epochs - c.start_epoch)
        about = f"{o.train:,} real images, {real_batch} per step"
        lines.append(f"steps per epoch: about {steps} ({about}), {total:,} in all")
    work = o.work(*c.differentiated(o.classes, steps))
    execution = execution_for(c, o.device, work, c.engine_name != "higher")
    lines.append(f"engine: {c.engine_text} ({execution})")
    problem = Problem(o.module, o.info.channels, o.info.image_size, o.classes, real_batch, execution)
    window, real = step_bytes(c, problem)
    return [*lines, _memory({"window": window, "real batch": real, "data": data})]


def _boosting(c: Distilling) -> list[str]:
    """The blocks of a boosted run: which images of each class each of them has, and its epochs or iterations."""
    if not c.boost_block:
        return []
    each, unit = (c.iterations_per_epoch, "iterations") if isinstance(c, FtdConfig) else (1, "epochs")
    size, lines = c.boost_block, [f"boosting: {c.boosting}"]
    for block, epochs in enumerate(c.block_epochs):
        images = f"{block * size + 1} to {(block + 1) * size}"
        lines.append(f"  block {block + 1}: image(s) {images} of each class, {epochs * each:,} {unit}")
    return lines


def _ftd(c: FtdConfig, o: _Outlook, data: float) -> list[str]:
    batch = c.student_batch(o.classes)
    network = network_for(c, o.info, o.classes, o.device)
    experts = open_experts(c, network) if (c.buffer_folder / file_name(0)).exists() else None
    method = c.facts({} if experts is None else experts.provenance)["method"]
    lines = [f"method: {method}; {batch} synthetic images per step, {c.total_iterations:,} iterations", *_boosting(c)]
    if experts is not None:
        lines.append(f"experts: {len(experts)} of {experts.epochs} epochs in {experts.folder}")
    else:
        lines.append(f"experts: none yet in {c.buffer_folder}; main.py buffer trains them")
    execution = execution_for(c, o.device, o.work(*c.differentiated(o.classes)))
    lines.append(f"engine: replay ({execution})")
    problem = Problem(o.module, o.info.channels, o.info.image_size, o.classes, 0, execution)
    student, _ = step_bytes(c, problem)
    lines.append(_memory({"student": student, "data": data}))
    seconds = _student_seconds(c, o, network, replace(execution, compile=False, graphs=False))
    return [*lines, _time("an iteration", seconds, c.total_iterations, "step by step, without evaluations")]


def _student_seconds(c: FtdConfig, o: _Outlook, network: FlatNetwork, execution: Execution) -> float:
    """Seconds of an iteration, from one student step on noise."""
    gen = generator(0, "trial")
    counts = Counts.equal(o.classes, c.num_per_class)
    images = torch.randn(counts.total, o.info.channels, o.info.image_size, o.info.image_size, generator=gen)
    labels = one_hot_labels(counts)
    sampler = ShuffledSampler(
        counts.total, c.student_batch(o.classes), Augmentation(c.strategy, False, o.info.image_size)
    )
    synthetic = Synthetic(images.to(o.device), labels.to(o.device), c.soft_labels)
    start, target, step_size = network.init(gen), network.init(gen), torch.tensor(c.lr_teacher, device=o.device)
    engine, plan = Replay(InnerLoop(network, PlainSGD(), execution)), sampler.plan(1, gen).to(o.device)
    return c.syn_steps * seconds_of(lambda: match(engine, start, target, synthetic, step_size, plan), o.device)


def _buffer(c: BufferConfig, o: _Outlook, data: float) -> list[str]:
    step = f"rho {c.rho:g}, alpha {c.alpha:g}" if c.rho else "plain SGD"
    lines = [f"method: {c.num_experts} experts of {c.train_epochs} epochs, batches of {c.batch_train}, {step}"]
    beside, execution = side_by_side(c, o.device), expert_execution(c, o.device)
    lines.append(f"arithmetic: {execution}, {beside} expert(s) at once")
    disk = 4.0 * o.parameters * (c.train_epochs + 1)
    lines.append(f"disk: {size_text(disk)} an expert, {size_text(disk * c.num_experts)} in all, in {c.folder}")
    batch = min(c.batch_train, o.train or c.batch_train)
    floats = activation_floats(o.module, o.info.channels, o.info.image_size)
    lines.append(_memory({"experts": beside * 4 * REAL_GRAPH * min(batch, execution.chunk) * floats, "data": data}))
    if o.train is None:
        return [*lines, "time: unknown until --root is here"]
    seconds = _expert_step_seconds(c, o, batch, beside, replace(execution, compile=False, graphs=False))
    return [*lines, _time("an expert's epoch", seconds * -(-o.train // batch), c.num_experts * c.train_epochs,
                          "one process, step by step")]  # fmt: skip


def _expert_step_seconds(c: BufferConfig, o: _Outlook, batch: int, beside: int, execution: Execution) -> float:
    """Seconds of one step of one expert, from a step of ``beside`` of them on noise."""
    gen = generator(0, "trial")
    images = torch.randn(batch, o.info.channels, o.info.image_size, o.info.image_size, generator=gen)
    noise = Split(images.to(o.device), torch.randint(o.classes, (batch,), generator=gen).to(o.device))
    recipe = replace(expert_recipe(c, o.info.image_size), epochs=1, batch=batch)
    trainer = ExpertTrainer(network_for(c, o.info, o.classes, o.device), noise, o.classes, recipe, execution)
    return seconds_of(lambda: trainer.train(range(beside)), o.device) / beside


def _time(what: str, seconds: float, count: int, note: str) -> str:
    return f"time, from a trial on noise: {seconds:.3g} s for {what}, {seconds * count / 3600:.3g} h in all ({note})"


def _described(c: Common, processes: int) -> DatasetInfo:
    """What is known of the data: all that its files tell where they are at hand, else what is published of it.

    Raises:
        UserError: files or flags are wrong.
    """
    if at_hand(c.dataset, Path(c.root)):
        listing = list_data(data_spec(c))
        check_listing(c, listing, processes)
        if isinstance(c, Config):
            start_for(c, listing)
        source, classes = listing.source, len(listing.class_names)
        counts = (len(source.train.labels), len(source.test.labels))
        return replace(listing.info, num_classes=classes, train_size=counts[0], test_size=counts[1])
    info = describe(c.dataset, Path(c.root), c.im_size)
    check_against_data(c, info.num_classes, info.image_size)
    if isinstance(c, Config) and c.start_set is not None:
        open_stored(Path(c.start_set[1]), needs_labels=False)  # whether it fits is known once the data are here
    if info.num_classes is not None and info.train_size is not None:
        _check_sizes(c, info.num_classes, c.train_sizes(info.train_size)[1])
    return info


def _check_sizes(c: Common, classes: int, train: int) -> None:
    """Check what the number of training images tells, without that of each class.

    Raises:
        UserError: they are too few.
    """
    if train < classes:
        raise UserError(f"--limit_train {c.limit_train}: it takes at least one image for each of {classes} classes")
    if (asked := c.real_per_class) is not None and train < sum(numbers_of(asked[1], classes)):
        raise UserError(
            f"{asked[0]}: {train:,} real training images are fewer than --num_per_class {text_of(asked[1])} for "
            f"{classes} classes; leave it out or lower the number"
        )
