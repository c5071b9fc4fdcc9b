"""Plans: every random choice of a trajectory, and the samplers that draw them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from framework.inner.augment import Augmentation, Augmenter, Draw
from framework.inner.counts import Counts


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
        counts: images of each of K classes.
        classes_per_step: classes drawn per step without replacement (``--task_sampler_nc``); all of them where they
            have not as many images each, as batches are of one size.
        batch_per_class: images drawn of each of them without replacement; all images of a class that has fewer.
        augmentation: of each batch.
    """

    counts: Counts
    classes_per_step: int
    batch_per_class: int
    augmentation: Augmentation

    def __post_init__(self) -> None:
        assert self.counts.same or self.classes_per_step == self.num_classes, "validated with the flags"

    @property
    def num_classes(self) -> int:
        """K."""
        return self.counts.num_classes

    def of(self, counts: Counts) -> "ClassSampler":
        """The sampler of another set, of which a batch has no more than there are."""
        return replace(self, counts=counts, batch_per_class=min(self.batch_per_class, counts.largest))

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches, each of as many images, on the CPU."""
        if self.classes_per_step == self.num_classes:
            classes = torch.arange(self.num_classes).expand(steps, -1)
        else:
            classes = torch.rand(steps, self.num_classes, generator=gen).topk(self.classes_per_step).indices
        numbers, offsets = torch.tensor(self.counts.numbers), torch.tensor(self.counts.offsets)
        scores = torch.rand(steps, classes.shape[1], self.counts.largest, generator=gen)
        absent = torch.arange(self.counts.largest) >= numbers[classes].unsqueeze(-1)
        members = scores.masked_fill(absent, -1).topk(self.batch_per_class).indices  # what is absent comes last
        drawn = torch.arange(self.batch_per_class) < numbers[: self.classes_per_step].unsqueeze(1)
        indices = (offsets[classes].unsqueeze(-1) + members)[:, drawn]
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
