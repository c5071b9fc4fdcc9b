"""Every network by its name in ``--arch``."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from framework.networks.convolutional import ResNet18, alexnet, convnet, vgg11
from framework.networks.layers import Spec
from framework.networks.vit import ViT


@dataclass(frozen=True)
class Architecture:
    """How a network is made, its own values of the flags, and their limits.

    ``smallest`` gives the pixels of an image that is not worn down before the last norm: an instance norm of maps of
    one pixel returns constants.
    """

    make: Callable[[Spec], nn.Module]
    width: int
    depth: int
    norm: str
    act: str
    pool: str
    smallest: Callable[[Spec], int]
    deepest: int | None = None


_CONVNET = Architecture(convnet, 128, 3, "instance", "relu", "avg", lambda s: 2 if s.pool == "none" else 2**s.depth)
_REGISTRY = {
    "convnet": _CONVNET,
    "convnet4": replace(_CONVNET, depth=4),
    "convnet5": replace(_CONVNET, depth=5),
    "vgg11": Architecture(
        vgg11, 64, 5, "instance", "relu", "max", lambda s: 2 if s.pool == "none" else 2 ** (s.depth - 1) + 1, 5
    ),
    "alexnet": Architecture(
        alexnet, 128, 5, "none", "relu", "max", lambda s: 2 if s.pool == "none" else 2 ** min(s.depth, 3), 5
    ),
    "resnet18": Architecture(ResNet18, 64, 2, "instance", "relu", "avg", lambda s: 9),
    "vit": Architecture(ViT, 128, 4, "layer", "gelu", "avg", lambda s: 3),
}
ARCHITECTURES = tuple(_REGISTRY)


def build(
    arch: str,
    channels: int,
    image_size: int,
    num_classes: int,
    *,
    width: int | None = None,
    depth: int | None = None,
    norm: str | None = None,
    act: str | None = None,
    pool: str | None = None,
) -> nn.Module:
    """Build the network named ``arch``; what is not given is the network's own.

    Args:
        arch: of ``ARCHITECTURES``.
        channels: of images.
        image_size: height and width in pixels.
        num_classes: outputs.
        width, depth: size; each network says what of.
        norm, act, pool: of ``NORMS``, ``ACTIVATIONS`` and ``POOLS``.

    Returns:
        A module with ``forward`` (logits) and ``embed`` (features).

    Raises:
        KeyError: unknown name.
        ValueError: the image is too small, or the network cannot have this width or depth; names the flag.
    """
    own = _REGISTRY[arch]
    spec = Spec(
        channels,
        image_size,
        num_classes,
        own.width if width is None else width,
        own.depth if depth is None else depth,
        norm or own.norm,
        act or own.act,
        pool or own.pool,
    )
    if own.deepest is not None and spec.depth > own.deepest:
        raise ValueError(f"--arch {arch} is at most {own.deepest} deep: lower --depth {spec.depth}")
    smallest = own.smallest(spec)
    if image_size < smallest:
        raise ValueError(
            f"--arch {arch} of depth {spec.depth} needs images of at least {smallest} pixels, not {image_size}: lower "
            "--depth or raise --im_size"
        )
    with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global stream; leave it alone
        return own.make(spec)


def activation_floats(module: nn.Module, channels: int, side: int) -> int:
    """Numbers that one image's forward pass writes, summed over layers. ``module`` must be on ``meta``."""
    total = 0

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if not list(layer.children())]
    module(torch.empty(1, channels, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return total
