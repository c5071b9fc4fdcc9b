"""Blocks of a synthetic set that is learnt block by block (Boost-DD; RaT-BPTT, ICLR 2024, section 5).

A set is sorted by class, and block j is the images j * b .. (j + 1) * b - 1 of each class. So the first blocks of every
class, a prefix, are a set of their own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framework.rng import derived_seed


def block_seed(seed: int, block: int) -> int:
    """The seed of all that a block draws; the first block's is the run's, so one block is an ordinary run."""
    return derived_seed(seed, "block", block) if block else seed


def prefix_rows(num_classes: int, images: int, per_class: int) -> Tensor:
    """Indices (num_classes * per_class,) of the first ``per_class`` images of each class of a class-sorted set.

    Args:
        num_classes: K.
        images: of the whole set, a multiple of K and at least K * per_class.
        per_class: of each class.
    """
    rows: Tensor = torch.arange(images).unflatten(0, (num_classes, -1))[:, :per_class].flatten()
    return rows


@dataclass(frozen=True)
class Blocks:
    """How a class-sorted set grows.

    Args:
        classes: K.
        size: b, images of each class that a block has.
        beta: blocks before the newest learn at this share of their learning rate; 0: they are frozen.
    """

    classes: int
    size: int
    beta: float

    def count(self, tensor: Tensor) -> int:
        """Blocks of a tensor (K * b * blocks, ...)."""
        return len(tensor) // (self.classes * self.size)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Views (K, b, ...) of the blocks of a tensor (K * b * blocks, ...), the oldest first."""
        by_class = tensor.unflatten(0, (self.classes, -1))
        return [by_class.narrow(1, j * self.size, self.size) for j in range(self.count(tensor))]

    def joined(self, old: Tensor, new: Tensor) -> Tensor:
        """A tensor with a block (K * b, ...) behind its own, sorted by class."""
        parts = (tensor.unflatten(0, (self.classes, -1)) for tensor in (old, new))
        return torch.cat(list(parts), 1).flatten(0, 1)

    def rates(self, count: int) -> list[float]:
        """The share of the learning rate at which each of ``count`` blocks learns."""
        return [self.beta] * (count - 1) + [1.0]

    def learning(self, tensor: Tensor) -> Tensor:
        """Which rows of a tensor (K * b * blocks, ...) are not frozen: (K * b * blocks, 1, ...) bool."""
        found = torch.zeros(len(tensor), *[1] * (tensor.dim() - 1), dtype=torch.bool, device=tensor.device)
        for block, rate in zip(self.split(found), self.rates(self.count(tensor)), strict=True):
            block.fill_(rate > 0)
        return found

    def learnt_alone(self, tensor: Tensor) -> Tensor:
        """A gradient (K * b * blocks, ...) with zeros for frozen blocks, whatever theirs is."""
        if self.beta or self.count(tensor) == 1:
            return tensor
        return torch.where(self.learning(tensor), tensor, torch.zeros_like(tensor))


@torch.no_grad()
def move_average(average: Tensor, tensor: Tensor, weight: float, blocks: Blocks | None) -> None:
    """Move an average of a learnt tensor (N, ...) towards it by ``weight``; that of a frozen block stays as it is."""
    if blocks is None:
        average.lerp_(tensor, weight)
        return
    for mean, block, rate in zip(
        blocks.split(average), blocks.split(tensor), blocks.rates(blocks.count(tensor)), strict=True
    ):
        if rate:
            mean.lerp_(block, weight)


class Parameters:
    """Learnt tensors as an optimiser is given them: one parameter for each block, in the tensors' own memory.

    So each block has a learning rate, moments and a number of steps of its own. Frozen blocks are in no group: nothing
    moves them, weight decay neither.

    Args:
        tensors: by their names; changed in place by the optimiser.
        blocks: None: each tensor is one parameter.
    """

    def __init__(self, tensors: dict[str, Tensor], blocks: Blocks | None = None) -> None:
        self.blocks = blocks
        self.parts = {name: self._parts(tensor) for name, tensor in tensors.items()}

    def _parts(self, tensor: Tensor) -> list[Tensor]:
        if self.blocks is None:
            return [tensor]
        return [view.requires_grad_() for view in self.blocks.split(tensor.detach())]

    def groups(self, options: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """The optimiser's groups, one for each tensor and block that learns.

        Args:
            options: by the tensors' names, ``lr`` among them.
        """
        return [
            {"params": [part], **options[name], "lr": rate * options[name]["lr"]}
            for name, parts in self.parts.items()
            for part, rate in zip(parts, self.rates(len(parts)), strict=True)
            if rate
        ]

    def rates(self, count: int) -> list[float]:
        """See ``Blocks``."""
        return [1.0] if self.blocks is None else self.blocks.rates(count)

    def set_grads(self, grads: dict[str, Tensor]) -> None:
        """Give every parameter its part of the gradients, which are in the tensors' shapes."""
        for name, parts in self.parts.items():
            split = [grads[name]] if self.blocks is None else self.blocks.split(grads[name])
            for part, gradient in zip(parts, split, strict=True):
                part.grad = gradient

    def clear_grads(self) -> None:
        """Let go of all gradients."""
        for parts in self.parts.values():
            for part in parts:
                part.grad = None

    def inherit(self, optimizer: torch.optim.Optimizer, older: "Parameters", state: dict[Tensor, Any]) -> None:
        """Let the blocks that were there before keep their moments and numbers of steps, where they still learn.

        Args:
            optimizer: of these parameters.
            older: the parameters before the newest block came.
            state: of their optimiser.
        """
        learning = {id(part) for group in optimizer.param_groups for part in group["params"]}
        for name, parts in older.parts.items():
            for old, new in zip(parts, self.parts[name], strict=False):
                if old in state and id(new) in learning:
                    optimizer.state[new] = state[old]
