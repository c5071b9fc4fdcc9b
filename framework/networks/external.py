"""Networks of the package timm, for evaluation: they judge sets, and no set is distilled with them.

timm is imported when one is asked for; no other part of the program needs it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import one_line
from framework.networks.flat import FlatNetwork
from framework.networks.layers import BatchNorm


class ExternalNetwork(FlatNetwork):
    """A network that initialises itself, as a function of theta.

    Args:
        make: makes a fresh module from PyTorch's global random stream.
        device, dtype: see ``FlatNetwork``.
    """

    CONSTANTS = True

    def __init__(self, make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._make = make
        super().__init__(_seeded(make, 0), device, dtype)

    def _init_rule(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0)  # not used

    def init(self, gen: torch.Generator) -> Tensor:
        """Parameters as the network's own code draws them, from a seed that ``gen`` draws: (P,) on the device."""
        module = _seeded(self._make, int(torch.randint(2**31, (), generator=gen)))
        flat = nn.utils.parameters_to_vector(module.parameters())
        return flat.detach().to(self.device, self.dtype)


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What ``make`` makes after a seed; the global stream stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def build_external(
    name: str, channels: int, image_size: int, num_classes: int, device: torch.device
) -> ExternalNetwork:
    """The model of timm with this name, without pretrained weights, for images of any size that it takes.

    Dropout and stochastic depth are off. Running statistics of batch norm are kept as ``layers.BatchNorm`` keeps them.

    Args:
        name: of ``timm.list_models()``.
        channels: of images.
        image_size: height and width in pixels.
        num_classes: outputs.
        device: where theta and the images live.

    Raises:
        ValueError: timm is not installed or has no such model; the model does not take such images, keeps other
            statistics, or draws random numbers while it is trained.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError("needs the package: pip install timm") from error
    settings = {"pretrained": False, "num_classes": num_classes, "in_chans": channels}

    def make() -> nn.Module:
        try:
            module: nn.Module = timm.create_model(name, img_size=image_size, **settings)
        except TypeError:  # of models that take any size, and do not want to be told
            module = timm.create_model(name, **settings)
        return _adapted(module)

    where = f"images of {channels} x {image_size} x {image_size}"
    try:
        network = ExternalNetwork(make, device)
    except UnfitError:
        raise
    except Exception as error:  # whatever a model makes of settings that it does not know
        raise ValueError(f"timm cannot make it for {where} ({one_line(error)})") from error
    _try(network, (2, channels, image_size, image_size), num_classes, where)
    return network


DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class UnfitError(ValueError):
    """A model that cannot be trained here as it is."""


def _adapted(module: nn.Module) -> nn.Module:
    """The module with our batch norm instead of PyTorch's and timm's, and without dropout.

    Raises:
        UnfitError: its batch norm is not the usual one.
    """
    for layer in module.modules():
        if isinstance(layer, DROPOUT):
            layer.p = 0.0
        for share in ("drop_prob", "drop_rate"):  # of timm's layers
            if isinstance(getattr(layer, share, None), float):
                setattr(layer, share, 0.0)
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                setattr(parent, name, _batch_norm(layer))
    return module


def _batch_norm(layer: Any) -> nn.Module:
    """Our batch norm for one of PyTorch's, with what timm's own has after it: dropout, which is off, and activation."""
    usual = (layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    if usual != (BatchNorm.EPS, BatchNorm.MOMENTUM, True, True):
        raise UnfitError(
            f"its batch norm has eps {layer.eps:g} and momentum {layer.momentum}; running statistics are kept with "
            f"{BatchNorm.EPS:g} and {BatchNorm.MOMENTUM} alone"
        )
    ours = BatchNorm(layer.num_features)
    ours.load_state_dict({name: value for name, value in layer.state_dict().items() if name in ours.state_dict()})
    after = [getattr(layer, part) for part in ("drop", "act") if isinstance(getattr(layer, part, None), nn.Module)]
    return nn.Sequential(ours, *after) if after else ours


def _try(network: FlatNetwork, shape: tuple[int, ...], num_classes: int, where: str) -> None:
    """Pass images through a network twice, in training and in evaluation mode.

    Raises:
        ValueError: it does not take them, changes something that is not kept, or does not answer the same again.
    """
    gen = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=gen).to(network.device)
    theta = network.init(gen)
    before = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            one, two = network(theta, images), network(theta, images)
            network.module.eval()
            last = network(torch.cat([theta, network.fresh_statistics()]), images)
    except Exception as error:  # whatever it fails with in layers that do not fit the size
        raise ValueError(f"it does not take {where} ({one_line(error)})") from error
    finally:
        network.module.train()
    if not one.shape == last.shape == (len(images), num_classes):
        raise ValueError(f"it gives {tuple(one.shape)} for {len(images)} images, not logits of {num_classes} classes")
    if not all(torch.equal(buffer, before[name]) for name, buffer in network.module.named_buffers()):
        raise ValueError("it has running statistics that cannot be kept")
    if not torch.equal(one, two):
        raise ValueError("it draws random numbers while it is trained, which could not be repeated")
