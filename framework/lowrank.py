"""Low-rank Hessian approximation (LRHA) by randomised subspace iteration.

Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.3; used by AT-BPTT (arXiv 2510.04838) in place
of the Hessians of a window. A factorisation of rank k with s extra samples and q power iterations takes
(k + s)(q + 2) Hessian-vector products, O(P (k + s)^2) more operations, and keeps P k + k numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How the Hessians of a window are approximated.

    Args:
        rank: k.
        oversampling: s.
        power_iterations: q.
        refresh: window steps that share one factorisation; 0: all of them.
        metric: factorise H itself (``plain``), or D^1/2 H D^1/2 (``adam``), with D the inner optimiser's
            diagonal step.
        cotangent: sample H's action on the vector it will be applied to, too, and keep both directions.
    """

    rank: int = 8
    oversampling: int = 4
    power_iterations: int = 2
    refresh: int = 5
    metric: str = "plain"
    cotangent: bool = True

    def products(self) -> int:
        """Hessian-vector products of one factorisation."""
        return (self.rank + self.oversampling) * (self.power_iterations + 2) + 3 * self.cotangent


@dataclass(frozen=True)
class Factors:
    """S^-1 Q diag(values) Q^T S^-1, an approximation of the Hessian; S = D^1/2, or the identity."""

    basis: Tensor  # (P, k) Q, orthonormal
    values: Tensor  # (k,)
    scale: Tensor | None = None  # (P,) diagonal of S

    def __matmul__(self, w: Tensor) -> Tensor:
        """The product with w (P,)."""
        if self.scale is not None:
            w = w / self.scale
        product = self.basis @ (self.values * (self.basis.T @ w))
        return product if self.scale is None else product / self.scale


def factorise(
    products: Callable[[Tensor], Tensor], samples: Tensor, recipe: Recipe, *,
    scale: Tensor | None = None, cotangent: Tensor | None = None,
) -> Factors:  # fmt: skip
    """Approximate a symmetric matrix H (P, P) that is known by its products.

    Args:
        products: rows v (n, P) to rows H v (n, P).
        samples: (P, k + s) standard normal.
        recipe: what to do.
        scale: (P,) diagonal of S; None: the identity.
        cotangent: w (P,); both w and H w are then kept in the basis, so that the product with w is exact.
    """

    def times(columns: Tensor) -> Tensor:
        """S H S times columns (P, n)."""
        if scale is None:
            return products(columns.T.contiguous()).T
        return products((columns * scale.unsqueeze(1)).T.contiguous()).T * scale.unsqueeze(1)

    basis = torch.linalg.qr(times(samples)).Q
    for _ in range(recipe.power_iterations):
        basis = torch.linalg.qr(times(basis)).Q
    extra = 0
    if cotangent is not None:
        w = (cotangent if scale is None else cotangent / scale).unsqueeze(1)
        w = w / torch.linalg.vector_norm(w)
        basis, extra = torch.linalg.qr(torch.cat([w, times(w), basis], dim=1)).Q, 2
    core = basis.T @ times(basis)
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    if extra:
        return Factors(basis @ vectors, values, scale)
    largest = values.abs().topk(min(recipe.rank, len(values))).indices
    return Factors(basis @ vectors[:, largest], values[largest], scale)
