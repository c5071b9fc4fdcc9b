"""Plans: every random choice of a trajectory, and the samplers that draw them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from framework.inner.augment import Augmentation, Augmenter, Draw


@dataclass(frozen=True)
class Plan:
    """Every random choice of a trajectory: batch ``t`` is images ``indices[t]`` augmented by ``draw.at(t)``."""

    indices: Tensor  # (T, B) int64
    draw: Draw

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, steps: slice) -> "Plan":
        """The plan of a contiguous part of the trajectory."""
        return Plan(self.indices[steps], self.draw.map(lambda tensor: tensor[steps]))

    @classmethod
    def side_by_side(cls, plans: Sequence["Plan"]) -> "Plan":
        """The plan of several networks' trajectories: each batch is theirs one after the other."""
        if len(plans) == 1:
            return plans[0]
        draws = [plan.draw for plan in plans]
        merged: dict[str, Tensor] = {}
        for field in fields(Draw):
            values = [getattr(draw, field.name) for draw in draws]
            if values[0] is None:
                continue
            if field.name == "mix_weight":  # one for each batch
                values = [v.unsqueeze(1).expand(plan.indices.shape) for v, plan in zip(values, plans, strict=True)]
            if field.name == "mix_partner":  # positions in the batch
                values = [value + i * value.shape[1] for i, value in enumerate(values)]
            merged[field.name] = torch.cat(values, dim=1)
        return cls(torch.cat([plan.indices for plan in plans], dim=1), Draw(**merged))

    def to(self, device: torch.device) -> "Plan":
        """Move all choices to ``device`` at once."""
        return Plan(self.indices.to(device, non_blocking=True), self.draw.to(device))


class Sampler(Protocol):
    """Draws batches of a set."""

    @property
    def augmentation(self) -> Augmenter:
        """Of each batch."""

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches, on the CPU."""


@dataclass(frozen=True)
class ClassSampler:
    """Draws batches from a class-sorted set (METHOD section 1; RaT-BPTT, appendix on hyper-parameters).

    Args:
        num_classes: K.
        per_class: images of each class; image ``i`` of class ``c`` has index ``c * per_class + i``.
        classes_per_step: classes drawn per step without replacement (``--task_sampler_nc``).
        batch_per_class: images drawn of each of them without replacement.
        augmentation: of each batch.
    """

    num_classes: int
    per_class: int
    classes_per_step: int
    batch_per_class: int
    augmentation: Augmentation

    def of(self, per_class: int) -> "ClassSampler":
        """The sampler of a set of ``per_class`` images of each class, of which a batch has no more than there are."""
        return replace(self, per_class=per_class, batch_per_class=min(self.batch_per_class, per_class))

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches of ``classes_per_step * batch_per_class`` images, on the CPU."""
        if self.classes_per_step == self.num_classes:
            classes = torch.arange(self.num_classes).expand(steps, -1)
        else:
            classes = torch.rand(steps, self.num_classes, generator=gen).topk(self.classes_per_step).indices
        members = torch.rand(steps, classes.shape[1], self.per_class, generator=gen).topk(self.batch_per_class).indices
        indices = (classes.unsqueeze(-1) * self.per_class + members).flatten(1)
        return Plan(indices, self.augmentation.draw(steps, indices.shape[1], gen))


@dataclass(frozen=True)
class UniformSampler:
    """Draws batches uniformly with replacement; for training on a whole real set.

    Args:
        size: number of images.
        batch: images per step.
        augmentation: of each batch.
    """

    size: int
    batch: int
    augmentation: Augmenter

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches, on the CPU."""
        indices = torch.randint(self.size, (steps, self.batch), generator=gen)
        return Plan(indices, self.augmentation.draw(steps, self.batch, gen))


@dataclass(frozen=True)
class ShuffledSampler:
    """Draws batches from one permutation of the set after the other, as trajectory matching does.

    Cazenavette et al. 2022 (arXiv 2203.11932), algorithm 1, draw from a new permutation when fewer images than a
    batch are left of the last, and then take those few as a smaller batch; here the next permutation fills it up. Where
    the batch divides the set, both are the same.

    Args:
        size: number of images.
        batch: images per step.
        augmentation: of each batch.
    """

    size: int
    batch: int
    augmentation: Augmenter

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches, on the CPU."""
        permutations = -(-steps * self.batch // self.size)
        order = torch.rand(permutations, self.size, generator=gen).argsort(1).flatten()
        indices = order[: steps * self.batch].view(steps, self.batch)
        return Plan(indices, self.augmentation.draw(steps, self.batch, gen))
