"""Networks of convolutions, in the small-image forms that the distillation literature evaluates.

These are the forms of dataset condensation (Zhao, Mopuri and Bilen 2021, arXiv 2006.05929) and its successors: no
strides or pooling before the first features, and one linear layer at the end.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from framework.networks.layers import activation, bias_before, norm_layer
from framework.networks.spec import Spec


class Block(NamedTuple):
    """Convolution, norm, activation and perhaps 2x2 pooling."""

    width: int
    kernel: int
    pooled: bool


class Stack(nn.Module):
    """Blocks one after the other, then one linear layer.

    Args:
        spec: what it is for; under pool ``none`` nothing is pooled.
        blocks: from first to last.
        ceil: pooling keeps an odd last row and column, instead of dropping them.
    """

    def __init__(self, spec: Spec, blocks: Sequence[Block], *, ceil: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = spec.channels, spec.image_size
        for width, kernel, pooled in blocks:
            bias = bias_before(spec.norm)
            layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=bias))
            if spec.norm != "none":
                layers.append(norm_layer(spec.norm, width))
            layers.append(activation(spec.act))
            if pooled and spec.pool != "none":
                layers.append((nn.AvgPool2d if spec.pool == "avg" else nn.MaxPool2d)(2, ceil_mode=ceil))
                side = (side + ceil) // 2
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * side * side, spec.num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the linear layer: (B, C, H, W) -> (B, F)."""
        return self.features(images).flatten(1)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, C, H, W) -> (B, K)."""
        return self.classifier(self.embed(images))  # type: ignore[no-any-return]


def convnet(spec: Spec) -> Stack:
    """The distillation literature's ConvNet (Gidaris and Komodakis 2018): ``depth`` blocks of ``width`` channels."""
    return Stack(spec, [Block(spec.width, 3, True)] * spec.depth)


def alexnet(spec: Spec) -> Stack:
    """The first ``depth`` of AlexNet's five convolutions, of 1, 3/2, 2, 3/2 and 3/2 times ``width`` channels."""
    w = spec.width
    wider = 3 * w // 2
    blocks = [Block(w, 5, True), Block(wider, 5, True), Block(2 * w, 3, False), Block(wider, 3, False)]
    return Stack(spec, [*blocks, Block(wider, 3, True)][: spec.depth])


def vgg11(spec: Spec) -> Stack:
    """The first ``depth`` of the five stages of VGG11 (Simonyan and Zisserman 2015, configuration A).

    Stages have 1, 2, 4, 8 and 8 times ``width`` channels. Pooling rounds up, so that 28 pixels too last five stages.
    """
    w = spec.width
    stages = [[w], [2 * w], [4 * w] * 2, [8 * w] * 2, [8 * w] * 2][: spec.depth]
    blocks = [Block(width, 3, i == len(stage) - 1) for stage in stages for i, width in enumerate(stage)]
    return Stack(spec, blocks, ceil=True)


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, spec: Spec, channels: int, width: int, stride: int) -> None:
        super().__init__()
        bias = bias_before(spec.norm)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=bias),
            norm_layer(spec.norm, width),
            activation(spec.act),
            nn.Conv2d(width, width, 3, padding=1, bias=bias),
            norm_layer(spec.norm, width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(projection, norm_layer(spec.norm, width))
        self.act = activation(spec.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet18 (He et al. 2016) with a 3x3 first convolution.

    Four stages of ``depth`` residual blocks with 1, 2, 4 and 8 times ``width`` channels, each but the first at half
    the resolution of the one before. ``pool`` says what becomes of the last maps: their mean (``avg``), their maximum
    (``max``), or all of them (``none``).
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        channels, side = spec.width, spec.image_size
        layers: list[nn.Module] = [
            nn.Conv2d(spec.channels, channels, 3, padding=1, bias=bias_before(spec.norm)),
            norm_layer(spec.norm, channels),
            activation(spec.act),
        ]
        for stage in range(4):
            for block in range(spec.depth):
                stride = 2 if stage and not block else 1
                width = spec.width << stage
                layers.append(_Residual(spec, channels, width, stride))
                channels, side = width, (side + stride - 1) // stride
        self.features = nn.Sequential(*layers)
        self.pool = spec.pool
        self.classifier = nn.Linear(channels * (side * side if spec.pool == "none" else 1), spec.num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the linear layer: (B, C, H, W) -> (B, F)."""
        maps: Tensor = self.features(images).flatten(2)
        if self.pool == "none":
            return maps.flatten(1)
        return maps.mean(2) if self.pool == "avg" else maps.amax(2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, C, H, W) -> (B, K)."""
        return self.classifier(self.embed(images))  # type: ignore[no-any-return]
