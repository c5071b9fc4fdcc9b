"""Patch-wise semantic preservation, for high resolution (METHOD section 4; AT-BPTT, arXiv 2510.04838).

A synthetic image is a grid of n x n patches. At every outer step one patch of each class is optimised and the others
are kept; and lambda * L_align is added to the outer loss:

    L_align = mean over classes c of  |mu_c(x) - mu_c(r)|^2 + mean over positions p of |mu_cp(x) - mu_cp(r)|^2

with mu_c the centroid of the features phi of a class's synthetic (x) or real (r) images, and mu_cp that of their
patches at position p, enlarged to the network's input. phi is the inner network that the outer step has just trained.

Every outer step trains a network of its own, whose features have nothing in common with those of the one before. So
real centroids are of the step's real batch, under the step's phi, not averaged over steps: a squared distance's
gradient is linear in the centroid, and its mean over real batches is that towards the centroid of all real images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.networks.flat import FlatNetwork
from framework.rng import generator

CHUNK = 256  # images embedded at a time


@dataclass(frozen=True)
class Pull:
    """What one outer step's alignment asks of the synthetic images.

    ``loss`` is lambda times the mean over classes of the squared distance of whole images plus that of the active
    patches, (); ``gradient`` is lambda times L_align's, (N, C, H, W), zero outside ``mask``, the active patches,
    (N, 1, H, W) bool.
    """

    loss: Tensor
    gradient: Tensor
    mask: Tensor


@dataclass(frozen=True)
class PatchAlignment:
    """The patches of ``--psp_patches`` and the loss of ``--psp_lambda``.

    Args:
        patches: n, a divisor of the image's side.
        weight: lambda.
        num_classes: K.
        seed: of the order in which patches are optimised.
    """

    patches: int
    weight: float
    num_classes: int
    seed: int

    def active(self, step: int) -> Tensor:
        """The position, row by row in 0..n*n-1, that outer step ``step`` optimises in each class: (K,) int64.

        Every n*n steps each class goes through all positions, in an order of its own that is drawn anew each time.
        """
        count = self.patches**2
        cycle, turn = divmod(step, count)
        drawn = torch.rand(self.num_classes, count, generator=generator(self.seed, "patches", cycle))
        return drawn.argsort(1)[:, turn]

    def patch(self, images: Tensor, positions: Tensor) -> Tensor:
        """Cut one patch out of each image: (B, C, H, W) and (B,) -> (B, C, H/n, W/n)."""
        grid: Tensor = images.unflatten(3, (self.patches, -1)).unflatten(2, (self.patches, -1))
        every = torch.arange(len(images), device=images.device)
        return grid[every, :, positions // self.patches, :, positions % self.patches]

    def mask(self, images: Tensor, positions: Tensor) -> Tensor:
        """Where the patches at ``positions`` (B,) of images (B, C, H, W) are: (B, 1, H, W) bool."""
        n, side = self.patches, images.shape[-1] // self.patches
        cells = positions.unsqueeze(1) == torch.arange(n * n, device=images.device)
        return cells.view(-1, 1, n, n).repeat_interleave(side, 2).repeat_interleave(side, 3)

    @torch.no_grad()
    def pull(
        self, network: FlatNetwork, theta: Tensor, images: Tensor, real: Tensor, labels: Tensor, step: int
    ) -> Pull:
        """L_align and its gradient towards the patches that outer step ``step`` optimises.

        The other positions' distances do not depend on those pixels, so they are not computed. Classes that the real
        batch lacks are left out.

        Args:
            network, theta: phi is ``network.embed(theta, .)``.
            images: (N, C, H, W), synthetic, as many of each class, sorted by class.
            real: (B, C, H, W).
            labels: (B,) classes of ``real``.
            step: number of the outer step.
        """
        active = self.active(step).to(images.device)
        per_class = len(images) // self.num_classes
        classes = torch.arange(self.num_classes, device=images.device).repeat_interleave(per_class)
        here, there = active[classes], active[labels]
        present = self._counts(labels) > 0
        loss, gradient = images.new_zeros(()), torch.zeros_like(images)

        def whole(images: Tensor, positions: Tensor) -> Tensor:
            return network.embed(theta, images)

        def patch(images: Tensor, positions: Tensor) -> Tensor:
            size = images.shape[-2:]
            enlarged = F.interpolate(self.patch(images, positions), size, mode="bilinear", align_corners=False)
            return network.embed(theta, enlarged)

        chunk = CHUNK if network.per_sample else max(len(images), len(real))
        for phi, share in ((whole, 1.0), (patch, 1 / self.patches**2)):
            ours = self._centroids(torch.cat([phi(*part) for part in _split(chunk, images, here)]), classes)
            theirs = self._centroids(torch.cat([phi(*part) for part in _split(chunk, real, there)]), labels)
            gap = (ours - theirs) * present.unsqueeze(1)
            scale = self.weight / present.sum().to(images.dtype)
            loss += scale * gap.square().sum()
            cotangent = 2 * scale * share * gap[classes] / per_class
            for part, positions, c, total in _split(chunk, images, here, cotangent, gradient):
                with torch.enable_grad():
                    leaf = part.detach().requires_grad_()
                    total += torch.autograd.grad(phi(leaf, positions), leaf, c)[0]
        mask = self.mask(images, here)
        return Pull(loss, gradient * mask, mask)

    def _counts(self, classes: Tensor) -> Tensor:
        return classes.new_zeros(self.num_classes).index_add_(0, classes, torch.ones_like(classes))

    def _centroids(self, features: Tensor, classes: Tensor) -> Tensor:
        """Mean features (K, F) of each class, zero where it has none."""
        sums = features.new_zeros(self.num_classes, features.shape[1]).index_add_(0, classes, features)
        return sums / self._counts(classes).clamp_min(1).unsqueeze(1)


def _split(chunk: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of tensors of the same length, side by side."""
    return zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
