"""One worker of ``main.py buffer``: it trains its share of the experts and keeps each as soon as it is done."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from tqdm import tqdm

from framework.assemble.common import listed, read_data
from framework.assemble.experts import expert_execution, expert_recipe, side_by_side
from framework.assemble.matching import expert_source, network_for
from framework.config.matching import BufferConfig
from framework.outer.buffers.writer import BufferWriter, keep
from framework.outer.matching.experts import Expert, ExpertTrainer
from framework.report.tables import duration
from framework.run.distributed import Comm, PeerLost
from framework.run.interrupt import Interrupted, StopRequest
from framework.run.memory import explained

ADVICE = (
    "lower --side_by_side, --chunk, --batch_train or --width; finished experts are kept, and the same command goes on"
)


def main_worker(c: BufferConfig, comm: Comm, device: torch.device) -> int:
    """Train the experts that are missing in the folder. Returns the exit code.

    Raises:
        UserError: the data cannot be read, flags do not fit them, the folder holds other experts, or one diverges.
    """
    began = time.monotonic()
    listing = listed(c, comm)
    network = network_for(c, listing.info, len(listing.class_names), device)
    with explained(lambda: ADVICE), ExitStack() as stack:
        real = read_data(listing, comm, device)
        recipe, execution = expert_recipe(c, real.image_shape[-1]), expert_execution(c, device)
        trainer = ExpertTrainer(network, real.train, real.num_classes, recipe, execution, c.seed)
        writer = None
        if comm.main:
            source, training = expert_source(c, listing, real), recipe.record(len(real.train), c.seed)
            writer = BufferWriter(c.folder, network, source, training, c.num_experts, c.save_interval)
            stack.enter_context(writer)
        missing = comm.from_main(writer.missing if writer is not None else [])
        mine = missing[comm.rank :: comm.size]
        if comm.main:
            print(
                f"{c.num_experts - len(missing)} of {c.num_experts} experts are in {c.folder}; training the others on "
                f"{len(real.train):,} images of {c.dataset_label} ({execution}), {device}", flush=True
            )  # fmt: skip
        try:
            with StopRequest() as stop:
                for expert in _trained(trainer, mine, side_by_side(c, device), comm, stop):
                    keep(c.folder, expert) if writer is None else writer.add(expert)
                comm.barrier()
        except (Interrupted, PeerLost) as reason:
            if comm.main:
                print(f"stopped by {reason}: finished experts are kept; the same command goes on", flush=True)
            return reason.exit_code
        if writer is not None:
            writer.collect()
            ends = [curve.accuracies[-1] for curve in writer.curves]
            print(
                f"{len(ends)} experts in {c.folder}: accuracy on their last epoch's augmented training images "
                f"{100 * sum(ends) / len(ends):.1f} % on average; {duration(time.monotonic() - began)}", flush=True
            )  # fmt: skip
    return 0


def _trained(
    trainer: ExpertTrainer, numbers: list[int], at_once: int, comm: Comm, stop: StopRequest
) -> Iterator[Expert]:
    """The experts of these numbers, in groups of ``at_once``, with a progress bar."""
    recipe = trainer.recipe
    steps = recipe.epochs * -(-len(trainer.train_split) // recipe.batch)
    groups = [numbers[i : i + at_once] for i in range(0, len(numbers), at_once)]
    with tqdm(
        total=steps * len(numbers), desc="experts", unit="step", dynamic_ncols=True, disable=not comm.main
    ) as bar:
        for group in groups:

            def tick(count: int = len(group)) -> None:
                bar.update(count)
                stop.check(comm, collective=False)

            yield from trainer.train(group, tick)
