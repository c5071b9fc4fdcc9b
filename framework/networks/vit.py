"""A small Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) as inner network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.networks.layers import activation, norm_layer
from framework.networks.spec import Spec

HEADS = 4
GRID = 8  # at most this many patches a side
MLP_RATIO = 4


class Positions(nn.Module):
    """A learnt vector for each of ``count`` places, added to the token that stands there."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(count, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, count, width) -> the same shape."""
        return tokens + self.table


class _TokenNorm(nn.Module):
    """A norm of (B, N, W) tokens: ``layer`` and ``group`` within each token, ``batch`` over all tokens of the batch."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.norm = norm_layer(spec.norm, spec.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens.flatten(0, 1)).view_as(tokens)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Multi-head self-attention of (B, N, W) tokens.

    Written out, because the fused kernels of ``scaled_dot_product_attention`` have no second derivative.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.inputs(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, W / heads)
        weights = self.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        return self.output((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """Attention and a two-layer perceptron, each on its normalised input (pre-norm) and added to it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.attention = nn.Sequential(_TokenNorm(spec), _Attention(spec.width))
        hidden = MLP_RATIO * spec.width
        self.mlp = nn.Sequential(
            _TokenNorm(spec), nn.Linear(spec.width, hidden), activation(spec.act), nn.Linear(hidden, spec.width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.mlp(tokens)  # type: ignore[no-any-return]


class ViT(nn.Module):
    """``depth`` pre-norm layers over patches that follow from the image size: the finest grid of at most 8 x 8.

    Patches have at least 2 pixels a side; where they do not tile the image exactly, it is padded with zeros at the
    right and the bottom. ``width`` is that of a token. ``pool`` says what becomes of the last tokens: their mean
    (``avg``), their maximum (``max``), or (``none``) that of a class token alone.

    Raises:
        ValueError: the heads do not divide the width, or the norm is one of single channels.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if spec.width % HEADS:
            raise ValueError(f"--arch vit has {HEADS} heads, which --width {spec.width} is no multiple of: change it")
        if spec.norm == "instance":
            raise ValueError("--norm instance: a token of --arch vit has one value per channel; give layer or another")
        patch = max(2, -(-spec.image_size // GRID))
        grid = -(-spec.image_size // patch)
        self.padding = grid * patch - spec.image_size
        self.pool = spec.pool
        self.patches = nn.Conv2d(spec.channels, spec.width, patch, stride=patch)
        self.positions = Positions(grid * grid + (spec.pool == "none"), spec.width)
        self.layers = nn.Sequential(*(_Layer(spec) for _ in range(spec.depth)), _TokenNorm(spec))
        self.classifier = nn.Linear(spec.width, spec.num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the linear layer: (B, C, H, W) -> (B, width)."""
        tokens = self.patches(F.pad(images, (0, self.padding, 0, self.padding))).flatten(2).transpose(1, 2)
        if self.pool == "none":
            tokens = F.pad(tokens, (0, 0, 1, 0))  # the class token, which is its learnt position alone
        tokens = self.layers(self.positions(tokens))
        if self.pool == "none":
            return tokens[:, 0]  # type: ignore[no-any-return]
        return tokens.mean(1) if self.pool == "avg" else tokens.amax(1)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, C, H, W) -> (B, K)."""
        return self.classifier(self.embed(images))  # type: ignore[no-any-return]
