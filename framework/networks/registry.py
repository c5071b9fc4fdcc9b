"""Every network by its name in ``--arch``.

Its module is imported when the network is built: the names are needed where PyTorch is not, as in ``--help``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from framework.networks.spec import Spec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """How a network is made, its own values of the flags, and their limits.

    ``make`` names what makes a module from a ``Spec``, as ``module:name`` in this package. ``smallest`` gives the
    pixels of an image that is not worn down before the last norm: an instance norm of maps of one pixel returns
    constants.
    """

    make: str
    width: int
    depth: int
    norm: str
    act: str
    pool: str
    smallest: Callable[[Spec], int]
    deepest: int | None = None

    def check(self, arch: str, spec: Spec) -> None:
        """Raise ``ValueError`` where the network of this name cannot have the depth, or its images are too small."""
        if self.deepest is not None and spec.depth > self.deepest:
            raise ValueError(f"--arch {arch} is at most {self.deepest} deep: lower --depth {spec.depth}")
        smallest = self.smallest(spec)
        if spec.image_size < smallest:
            raise ValueError(
                f"--arch {arch} of depth {spec.depth} needs images of at least {smallest} pixels, not "
                f"{spec.image_size}: lower --depth or raise --im_size"
            )


_CONVNET = Architecture(
    "convolutional:convnet", 128, 3, "instance", "relu", "avg", lambda s: 2 if s.pool == "none" else 2**s.depth
)
_REGISTRY = {
    "convnet": _CONVNET,
    "convnet4": replace(_CONVNET, depth=4),
    "convnet5": replace(_CONVNET, depth=5),
    "vgg11": Architecture(
        "convolutional:vgg11",
        64,
        5,
        "instance",
        "relu",
        "max",
        lambda s: 2 if s.pool == "none" else 2 ** (s.depth - 1) + 1,
        5,
    ),
    "alexnet": Architecture(
        "convolutional:alexnet",
        128,
        5,
        "none",
        "relu",
        "max",
        lambda s: 2 if s.pool == "none" else 2 ** min(s.depth, 3),
        5,
    ),
    "resnet18": Architecture("convolutional:ResNet18", 64, 2, "instance", "relu", "avg", lambda s: 9),
    "vit": Architecture("vit:ViT", 128, 4, "layer", "gelu", "avg", lambda s: 3),
}
ARCHITECTURES = tuple(_REGISTRY)


def same_maker(arch: str) -> str:
    """The first name of the networks that differ from this one by their own values alone: convnet for convnet4."""
    return next(name for name, own in _REGISTRY.items() if own.make == _REGISTRY[arch].make)


def specify(
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
) -> Spec:
    """What the network named ``arch`` is built from; what is not given is the network's own.

    Args:
        arch: of ``ARCHITECTURES``.
        channels: of images.
        image_size: height and width in pixels.
        num_classes: outputs.
        width, depth: size; each network says what of.
        norm, act, pool: of ``NORMS``, ``ACTIVATIONS`` and ``POOLS``.

    Raises:
        KeyError: unknown name.
        ValueError: the image is too small, or the network cannot have this depth; names the flag.
    """
    own = _REGISTRY[arch]
    size = (own.width if width is None else width, own.depth if depth is None else depth)
    spec = Spec(channels, image_size, num_classes, *size, norm or own.norm, act or own.act, pool or own.pool)
    own.check(arch, spec)
    return spec


def build(arch: str, channels: int, image_size: int, num_classes: int, **options: Any) -> "nn.Module":
    """Build the network named ``arch``; arguments are those of ``specify``.

    Returns:
        A module with ``forward`` (logits) and ``embed`` (features).

    Raises:
        KeyError: unknown name.
        ValueError: the image is too small, or the network cannot have this width or depth; names the flag.
    """
    spec = specify(arch, channels, image_size, num_classes, **options)
    import torch

    with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global stream; leave it alone
        module: nn.Module = resolve_name(f"framework.networks.{_REGISTRY[arch].make}")(spec)
        return module


def build_bare(arch: str, channels: int, image_size: int, num_classes: int, **options: Any) -> "nn.Module":
    """The network on ``meta``: shapes without memory. Arguments and errors are those of ``build``.

    Raises:
        ValueError: also where no tensor can have such a size; names the flag.
    """
    import torch

    try:
        with torch.device("meta"):
            return build(arch, channels, image_size, num_classes, **options)
    except (TypeError, RuntimeError, OverflowError) as error:  # how PyTorch says it, by where the number overflows
        sizes = " ".join(f"--{name} {options[name]}" for name in ("width", "depth") if options.get(name) is not None)
        raise ValueError(f"{sizes}: no network can be that large; lower it") from error
