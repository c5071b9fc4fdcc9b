"""How an expert is laid out in a file."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from framework.networks.flat import FlatNetwork

FOLDER = "--buffer_path"

Snapshots = list[list[Tensor]]  # one expert's


def file_name(number: int) -> str:
    """Of a file of experts."""
    return f"replay_buffer_{number}.pt"


class Slot(NamedTuple):
    """A parameter in a file."""

    shape: torch.Size
    ours: bool  # whether our network has it


def layout(network: FlatNetwork) -> list[Slot]:
    """The parameters of a snapshot in a file, in their order."""
    slots = []
    for layer in network.module.modules():
        slots += [Slot(parameter.shape, True) for parameter in layer.parameters(recurse=False)]
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            slots.append(Slot(torch.Size([layer.out_channels]), False))
    return slots


def to_file(trajectory: Tensor, network: FlatNetwork) -> Snapshots:
    """An expert (epochs + 1, P) as lists of tensors, each in memory of its own."""
    slots = layout(network)
    result = []
    for theta in trajectory:
        own = iter(network.unflatten(theta))
        result.append([next(own).clone() if slot.ours else torch.zeros(slot.shape) for slot in slots])
    return result
