"""How many bits a training set takes: images, labels, and what brings other images into theirs."""

import math

import torch
from torch import Tensor

from framework.data.preprocess import Preprocess

PIXEL_BITS = 8
"""Of a value of a real image."""


def bits_per_class(
    shape: torch.Size, labels: Tensor, preprocess: Preprocess, value_bits: int = PIXEL_BITS, weight_bits: int = 32
) -> float:
    """Bits of a set over its number of classes K, none of them compressed.

    Images count at the precision of their file, pixels 8 bits. A label counts ceil(log2 K) bits where all are one-hot,
    else K weights. The preprocessing counts too, as no real image can be shown to a network without it: mean and
    deviation, or the whole matrix of a ZCA.

    Args:
        shape: (N, C, H, W) of the images.
        labels: (N, K) class weights.
        preprocess: of the set and the test images.
        value_bits: of each value of an image.
        weight_bits: of each class weight.
    """
    count, classes = labels.shape
    hard = bool((labels.amax(1) == 1).all() and (labels.count_nonzero(1) == 1).all())
    label = math.ceil(math.log2(classes)) if hard else classes * weight_bits
    decoder = sum(8 * tensor.element_size() * tensor.numel() for tensor in preprocess.tensors().values())
    return (shape.numel() * value_bits + count * label + decoder) / classes
