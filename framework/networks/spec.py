"""What a network is built for and from; names of norms, activations and pooling as their flags have them."""

from dataclasses import dataclass

NORMS = ("instance", "batch", "group", "layer", "none")
ACTIVATIONS = {
    "relu": "ReLU",
    "leakyrelu": "LeakyReLU",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "gelu": "GELU",
    "silu": "SiLU",
}
"""By the name of the class in ``torch.nn``."""
POOLS = ("avg", "max", "none")


@dataclass(frozen=True)
class Spec:
    """What a network is built for and from."""

    channels: int  # of images
    image_size: int  # height and width in pixels
    num_classes: int
    width: int
    depth: int
    norm: str  # of NORMS
    act: str  # of ACTIVATIONS
    pool: str  # of POOLS
