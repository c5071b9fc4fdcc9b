"""From flags to objects: the training of experts."""

from dataclasses import replace

import torch

from framework.assemble.common import execution_for
from framework.config.matching import BufferConfig, Matching
from framework.inner.augment import Augmentation, Augmenter, CondensationAugmentation
from framework.inner.execution import Work
from framework.inner.kernels import Execution
from framework.outer.matching.experts import ExpertRecipe, Sharpness

SIDE_BY_SIDE = {"cuda": 4}
"""Experts that are trained at once where no flag says it; elsewhere one (benchmarks/experts.py)."""


def training_augmentation(c: Matching, side: int) -> Augmenter:
    """Of experts' batches, and of the networks that judge a set: by --dsa, else that of dataset condensation."""
    return Augmentation(c.strategy, False, side) if c.dsa else CondensationAugmentation(side)


def expert_recipe(c: BufferConfig, side: int) -> ExpertRecipe:
    """How experts are trained on images of ``side`` pixels."""
    return ExpertRecipe(
        lr=c.lr_teacher,
        momentum=c.mom,
        weight_decay=c.l2,
        batch=c.batch_train,
        epochs=c.train_epochs,
        decay=c.decay,
        sharpness=Sharpness(c.rho, c.alpha, c.adaptive),
        augmentation=training_augmentation(c, side),
    )


def expert_execution(c: BufferConfig, device: torch.device) -> Execution:
    """How experts' gradients are computed: a batch at once, unless --chunk says otherwise.

    First derivatives need little memory, and experts' steps are compiled only where --accelerate asks for it.

    Raises:
        UserError: what the flags ask for does not exist on the device.
    """
    execution = execution_for(c, device, Work())
    return execution if c.chunk else replace(execution, chunk=c.batch_train)


def side_by_side(c: BufferConfig, device: torch.device) -> int:
    """Experts that one process trains at once."""
    return c.side_by_side or SIDE_BY_SIDE.get(device.type, 1)
