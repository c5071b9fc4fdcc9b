"""The flat parameter vector through which the inner loop sees a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from framework.networks.layers import BatchNorm
from framework.networks.vit import Positions

POSITION_DEVIATION = 0.02  # of a ViT's fresh position embeddings, as in the paper's code


class _Embed(nn.Module):
    """A network whose output is its features."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module.embed(images)  # type: ignore[operator,no-any-return]


class FlatNetwork:
    """A network as a pure function of one flat parameter vector theta (P,).

    Args:
        module: built from layers that ``_init_rule`` knows; its only buffers are batch norms' running statistics.
        device: where theta and the images live.
        dtype: of theta.
    """

    CONSTANTS = False
    """Whether there may be other buffers, which never change."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.module = module.to(device=device, dtype=dtype).train()
        self.device, self.dtype = device, dtype
        named = dict(self.module.named_parameters())
        self.names = list(named)
        self.shapes = [parameter.shape for parameter in named.values()]
        self.sizes = [parameter.numel() for parameter in named.values()]
        self.size = sum(self.sizes)
        self._batch_norms = [layer for layer in self.module.modules() if isinstance(layer, BatchNorm)]
        running = {id(buffer) for layer in self._batch_norms for buffer in layer.buffers()}
        buffers = dict(self.module.named_buffers())
        self._buffers = {name: buffer for name, buffer in buffers.items() if id(buffer) in running}
        if len(self._buffers) != len(buffers) and not self.CONSTANTS:
            raise ValueError("only framework.networks.layers.BatchNorm may have buffers here")
        self._buffer_sizes = [buffer.numel() for buffer in self._buffers.values()]
        self._tracked: Tensor | None = None  # (R,) running statistics while ``tracking``
        self._centre, self._bound = self._init_rule()

    @property
    def per_sample(self) -> bool:
        """Whether, in training, the output for an image is independent of the others in its batch."""
        return not self._batch_norms

    def _init_rule(self) -> tuple[Tensor, Tensor]:
        """Per parameter, the centre and half-width of PyTorch's default initial distribution.

        ``reset_parameters`` of Conv2d and Linear draws weights and biases uniformly within
        1 / sqrt(fan_in); norms start at the constants scale 1, shift 0. Position embeddings, which have no default,
        are uniform with the deviation of the paper's.
        """
        centre: dict[str, float] = {}
        bound: dict[str, float] = {}
        for prefix, layer in self.module.named_modules():
            for name, parameter in layer.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    centre[full], bound[full] = 0.0, layer.weight[0].numel() ** -0.5
                elif isinstance(layer, nn.GroupNorm | BatchNorm):
                    centre[full], bound[full] = (1.0 if name == "weight" else 0.0), 0.0
                elif isinstance(layer, Positions):
                    centre[full], bound[full] = 0.0, 3**0.5 * POSITION_DEVIATION
                else:
                    raise ValueError(f"no rule to initialise {full} ({type(layer).__name__}, {tuple(parameter.shape)})")
        sizes = torch.tensor(self.sizes)
        return (
            torch.tensor([centre[n] for n in self.names]).repeat_interleave(sizes),
            torch.tensor([bound[n] for n in self.names]).repeat_interleave(sizes),
        )

    def init(self, gen: torch.Generator) -> Tensor:
        """Parameters of a fresh random network, PyTorch's default initialisation: (P,) on the device."""
        uniform = torch.rand(self.size, generator=gen) * 2 - 1
        return (self._centre + self._bound * uniform).to(self.device, self.dtype)

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Views of theta (P,) in the parameters' shapes, in the order of ``named_parameters``."""
        return [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True)]

    def fresh_statistics(self) -> Tensor:
        """Running statistics before the first step: (R,), empty without batch norm."""
        flat = [buffer.flatten() for buffer in self._buffers.values()]
        return torch.cat([torch.empty(0, device=self.device, dtype=self.dtype), *flat])

    @contextmanager
    def tracking(self, statistics: Tensor) -> Iterator[None]:
        """While open, each call in training mode moves the running statistics (R,), in place, towards its batch's.

        Elsewhere training leaves no trace. A network is evaluated with ``torch.cat([theta, statistics])``.
        """
        self._track(statistics)
        try:
            yield
        finally:
            self._track(None)

    def _track(self, statistics: Tensor | None) -> None:
        self._tracked = statistics
        for layer in self._batch_norms:
            layer.tracking = statistics is not None

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits (B, K) for images (B, C, H, W) of the network with parameters theta.

        Args:
            theta: (P,), in evaluation mode followed by the running statistics: (P + R,).
            images: preprocessed.
        """
        return self._call(self.module, "", theta, images)

    def embed(self, theta: Tensor, images: Tensor) -> Tensor:
        """Features (B, F) before the last linear layer; otherwise as a call."""
        return self._call(_Embed(self.module), "module.", theta, images)

    def _call(self, module: nn.Module, prefix: str, theta: Tensor, images: Tensor) -> Tensor:
        statistics = self._tracked
        if not self.module.training:
            theta, statistics = theta.split([self.size, sum(self._buffer_sizes)])
        values = dict(zip(self.names, self.unflatten(theta), strict=True))
        if statistics is not None and self._buffers:
            values |= dict(zip(self._buffers, statistics.split(self._buffer_sizes), strict=True))
        return functional_call(  # type: ignore[no-any-return]
            module, {prefix + name: value for name, value in values.items()}, (images,)
        )


def layers(module: nn.Module) -> list[nn.Module]:
    """Modules that have no others inside."""
    return [layer for layer in module.modules() if not list(layer.children())]


def activation_floats(module: nn.Module, channels: int, side: int) -> int:
    """Numbers that one image's forward pass writes, summed over layers. ``module`` may be on ``meta``."""
    total = 0

    def count(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    # With memory, whatever is in it: the first norm on ``meta`` takes seconds, for what it imports.
    module = deepcopy(module).to_empty(device="cpu").float()
    for layer in layers(module):
        layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.empty(1, channels, side, side))
    return total
