"""The synthetic set: its images and labels, how batches of it are drawn, how it is updated."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.augment import Augmentation, Draw


class Grads(NamedTuple):
    """The meta-gradient, in the shapes of the synthetic set; ``labels`` is None where they are fixed."""

    images: Tensor
    labels: Tensor | None


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
    augmentation: Augmentation

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches, on the CPU."""
        indices = torch.randint(self.size, (steps, self.batch), generator=gen)
        return Plan(indices, self.augmentation.draw(steps, self.batch, gen))


class SyntheticSet:
    """Learnt images and labels with their optimiser and gradient clip.

    Args:
        images: (K * ipc, C, H, W), sorted by class.
        labels: (K * ipc, K) class weights.
        learn_labels: also update ``labels``.
        lr: of the images.
        label_lr: of the labels.
        optimizer: ``Adam`` or ``SGD`` (momentum 0.9).
        eps: Adam's.
        weight_decay: of images and labels.
        ema_decay: of the moving average of the meta-gradient's norm that sets the clip.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        learn_labels: bool,
        lr: float,
        label_lr: float,
        optimizer: str = "Adam",
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ema_decay: float = 0.9,
    ) -> None:
        self.images = images.clone().requires_grad_()
        self.labels = labels.clone().requires_grad_(learn_labels)
        self.learn_labels = learn_labels
        self.ema_decay = ema_decay
        self.norm_ema: Tensor | None = None  # () moving average of the meta-gradient's norm
        groups: list[dict[str, Any]] = [{"params": [self.images], "lr": lr}]
        if learn_labels:
            groups.append({"params": [self.labels], "lr": label_lr})
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(groups, eps=eps, weight_decay=weight_decay)
            if optimizer == "Adam"
            else torch.optim.SGD(groups, momentum=0.9, weight_decay=weight_decay)
        )

    @torch.no_grad()
    def update(self, grads: Grads, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip the meta-gradient to twice the moving average of its norm, step, keep labels >= 0.

        Pixels outside ``mask``, if given, keep their values; a momentum would go on moving them without a gradient.

        The norm is that of images' and labels' gradient together; the average includes it before it
        sets the clip, and starts at the first norm. Nothing here waits for the device.

        Returns:
            The norm before clipping and the factor (at most 1) applied, both ().
        """
        gradients = [gradient for gradient in grads if gradient is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        decay = self.ema_decay
        self.norm_ema = norm.clone() if self.norm_ema is None else decay * self.norm_ema + (1 - decay) * norm
        factor = (2 * self.norm_ema / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
        self.images.grad = grads.images * factor
        if self.learn_labels:
            assert grads.labels is not None, "engines return labels' gradient when labels are learnt"
            self.labels.grad = grads.labels * factor
        before = self.images.detach().clone() if mask is not None else self.images
        self.optimizer.step()
        self.optimizer.zero_grad()
        if mask is not None:
            self.images.copy_(torch.where(mask, self.images, before))
        if self.learn_labels:
            self.labels.clamp_(min=0)
        return norm, factor

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of images and labels on the CPU; never an alias of the live set."""
        return {"images": self.images.detach().cpu().clone(), "labels": self.labels.detach().cpu().clone()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        return {**self.snapshot(), "optimizer": deepcopy(self.optimizer.state_dict()), "norm_ema": self.norm_ema}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.images.copy_(state["images"])
        self.labels.copy_(state["labels"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        ema = state["norm_ema"]
        self.norm_ema = None if ema is None else ema.to(self.images.device)


def noise_images(num_classes: int, per_class: int, shape: tuple[int, int, int], gen: torch.Generator) -> Tensor:
    """Gaussian noise, every image scaled to Euclidean norm 1: (num_classes * per_class, C, H, W) float32."""
    flat = torch.randn(num_classes * per_class, *shape, generator=gen).flatten(1)
    return F.normalize(flat).view(-1, *shape)


def one_hot_labels(num_classes: int, per_class: int) -> Tensor:
    """Class-sorted one-hot labels: (num_classes * per_class, num_classes) float32."""
    return F.one_hot(torch.arange(num_classes).repeat_interleave(per_class), num_classes).float()
