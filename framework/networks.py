"""Inner networks, and the flat parameter vector through which the inner loop sees them.

A network is built once per run. A fresh one is a fresh vector: ``FlatNetwork.init`` draws all
parameters of a new random network with one call, from an explicit generator.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call


class ConvNet(nn.Module):
    """The data distillation literature's ConvNet: ``depth`` blocks of convolution, norm, ReLU, pooling.

    Blocks are a 3x3 convolution with ``width`` channels, instance norm with learnt scale and shift,
    ReLU and 2x2 average pooling; then one linear layer (Gidaris and Komodakis 2018; used by dataset
    condensation, arXiv 2006.05929, and its successors). The convolutions have no bias: an instance
    norm removes it exactly, and in float32 its vanishing gradient would only add noise.

    Args:
        channels: image channels.
        image_size: height and width in pixels, at least ``2 ** depth``.
        num_classes: outputs.
        width: channels of each convolution.
        depth: number of blocks.
    """

    def __init__(self, channels: int, image_size: int, num_classes: int, *, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        side = image_size >> depth
        if side < 1:
            raise ValueError(f"a ConvNet of depth {depth} needs images of at least {2**depth} pixels, not {image_size}")
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(width, width),  # one group per channel: instance norm, without running statistics
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side * side, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the linear layer: (B, C, H, W) -> (B, F)."""
        return self.features(images).flatten(1)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, C, H, W) -> (B, K)."""
        return self.classifier(self.embed(images))  # type: ignore[no-any-return]


DEPTHS = {"convnet": 3, "convnet4": 4}


def build(
    arch: str, channels: int, image_size: int, num_classes: int, *, width: int = 128, depth: int | None = None
) -> nn.Module:
    """Build the network named ``arch``.

    Raises:
        KeyError: unknown name.
        ValueError: the image is too small for the depth.
    """
    named_depth = DEPTHS[arch]
    with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global stream; leave it alone
        return ConvNet(channels, image_size, num_classes, width=width, depth=depth or named_depth)


class FlatNetwork:
    """A network as a pure function of one flat parameter vector theta (P,).

    Args:
        module: built from ``nn.Conv2d``, ``nn.Linear`` and normalisation layers, without buffers.
        device: where theta and the images live.
        dtype: of theta.
    """

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.module = module.to(device=device, dtype=dtype).train()
        self.device, self.dtype = device, dtype
        if any(True for _ in module.buffers()):
            raise ValueError("networks with buffers (batch norm's running statistics) are not supported here")
        named = dict(self.module.named_parameters())
        self.names = list(named)
        self.shapes = [parameter.shape for parameter in named.values()]
        self.sizes = [parameter.numel() for parameter in named.values()]
        self.size = sum(self.sizes)
        self._centre, self._bound = self._init_rule()

    def _init_rule(self) -> tuple[Tensor, Tensor]:
        """Per parameter, the centre and half-width of PyTorch's default initial distribution.

        ``reset_parameters`` of Conv2d and Linear draws weights and biases uniformly within
        1 / sqrt(fan_in); norms start at the constants scale 1, shift 0.
        """
        centre: dict[str, float] = {}
        bound: dict[str, float] = {}
        for prefix, layer in self.module.named_modules():
            for name, parameter in layer.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    centre[full], bound[full] = 0.0, layer.weight[0].numel() ** -0.5
                elif isinstance(layer, nn.GroupNorm):
                    centre[full], bound[full] = (1.0 if name == "weight" else 0.0), 0.0
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

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits (B, K) of the network with parameters theta (P,) for images (B, C, H, W)."""
        return functional_call(  # type: ignore[no-any-return]
            self.module, dict(zip(self.names, self.unflatten(theta), strict=True)), (images,)
        )
