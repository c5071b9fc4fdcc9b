"""What all networks are built of: norms, activations, pooling, by the names of their flags."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.networks.spec import ACTIVATIONS

GROUPS = 4  # of --norm group, as in dataset condensation (arXiv 2006.05929)


def activation(name: str) -> nn.Module:
    """The activation of ``--act``, of ``spec.ACTIVATIONS``."""
    layer: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return layer


class BatchNorm(nn.Module):
    """Batch norm (arXiv 1502.03167) of (B, C, ...) over all but C, with learnt scale and shift.

    In training mode a pure function of the batch, through whose statistics gradients flow. The running statistics,
    which evaluation mode uses, move only while ``tracking``, and then as ``nn.BatchNorm2d``'s do (momentum 0.1,
    unbiased variance): a step that a meta-gradient engine runs twice must not count twice.
    """

    MOMENTUM, EPS = 0.1, 1e-5
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.tracking = False

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, normalised."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.EPS)
        if self.tracking:
            variance, mean = torch.var_mean(x.detach().transpose(0, 1).flatten(1), dim=1)
            self.running_mean.lerp_(mean, self.MOMENTUM)
            self.running_var.lerp_(variance, self.MOMENTUM)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.EPS)


def norm_layer(norm: str, channels: int) -> nn.Module:
    """The norm of ``--norm`` for (B, channels, ...) maps.

    ``instance`` takes each channel's statistics alone, ``group`` those of ``GROUPS`` groups of channels, ``layer`` of
    all channels together, each within one image; ``batch`` each channel's over the batch.

    Raises:
        ValueError: the channels cannot be grouped.
    """
    if norm == "group" and channels % GROUPS:
        raise ValueError(f"--norm group makes {GROUPS} groups, --width gives a layer of {channels} channels: change it")
    groups = {"instance": channels, "group": GROUPS, "layer": 1}
    if norm in groups:
        return nn.GroupNorm(groups[norm], channels)
    return BatchNorm(channels) if norm == "batch" else nn.Identity()


def bias_before(norm: str) -> bool:
    """Whether a convolution before this norm has a bias.

    A norm of single channels removes it exactly, and in float32 its vanishing gradient would only add noise.
    """
    return norm not in ("instance", "batch")
