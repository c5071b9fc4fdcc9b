"""Low-rank Hessian approximation (LRHA) by randomised subspace iteration.

Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.3; used by AT-BPTT (arXiv 2510.04838) in place
of the Hessians of a window. A factorisation of rank k with s extra samples and q power iterations takes
(k + s)(q + 2) Hessian-vector products, O(P (k + s)^2) more operations, and keeps P k + k numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from framework.inner.loop import InnerLoop, Step
from framework.inner.optimizers import State
from framework.outer.engines.engine import Cost
from framework.outer.engines.replay import Replay
from framework.rng import generator


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

    @property
    def columns(self) -> int:
        """k + s: random samples of one factorisation."""
        return self.rank + self.oversampling

    def products(self) -> int:
        """Hessian-vector products of one factorisation."""
        return self.columns * (self.power_iterations + 2) + 3 * self.cotangent


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

    Returns:
        The factors; their values are NaN where a product is not finite.
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
    if not core.isfinite().all():  # of a network that has diverged: some eigensolvers would raise
        return Factors(basis, core.new_full((len(core),), torch.nan), scale)
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    if extra:
        return Factors(basis @ vectors, values, scale)
    largest = values.abs().topk(min(recipe.rank, len(values))).indices
    return Factors(basis @ vectors[:, largest], values[largest], scale)


class LowRank(Replay):
    """Replay with the Hessians of the window replaced by low-rank factors (LRHA); the mixed partials stay exact.

    Inner steps are not altered: factors serve the backward sweep alone. With ``recipe.rank`` 0 the Hessian is left out.
    ``benchmarks/lrha_quality.py`` measures how good the result is.

    Args:
        loop: the inner loop.
        recipe: of the factors.
    """

    def __init__(self, loop: InnerLoop, recipe: Recipe | None = None) -> None:
        super().__init__(loop)
        self.together = False
        self.recipe = recipe or Recipe()

    def _step_back(self, learn_labels: bool) -> Callable[..., tuple[State, Tensor, Any]]:
        loop, recipe = self.loop, self.recipe
        factors: Factors | None = None
        used = 0

        @torch.no_grad()
        def step_back(cotangent: State, step: Step) -> tuple[State, Tensor, Tensor | None]:
            nonlocal factors, used
            old, x, y, draw = step.old, step.images, step.labels, step.draw
            before, w = loop.rule.pullback(cotangent, step.new, step.gradient)
            _, dx, dy = loop.second_order(old.theta, w, x, y, draw, learn_labels, loop.is_low(old), hessian=False)
            if recipe.rank == 0:
                return before, dx, dy
            if factors is None or (recipe.refresh and used == recipe.refresh):
                factors, used = self._factorise(old, step.new, w, *loop.batch(old.theta, x, y, draw)), 0
            used += 1
            return replace(before, theta=before.theta + factors @ w), dx, dy

        return step_back

    def _factorise(self, old: State, new: State, w: Tensor, images: Tensor, labels: Tensor) -> Factors:
        """Factors of the Hessian at ``old`` on an augmented batch. The samples depend on the step's number alone."""
        recipe = self.recipe
        gen = generator(0, "low-rank samples", old.t)
        samples = torch.randn(w.numel(), recipe.columns, generator=gen, dtype=w.dtype).to(w.device)
        return factorise(
            lambda vectors: self.loop.kernels.hessian_products(old.theta, images, labels, vectors),
            samples,
            recipe,
            scale=self.loop.rule.step_sizes(new).sqrt() if recipe.metric == "adam" else None,
            cotangent=w if recipe.cotangent else None,
        )

    def _cost(self, length: int, vectors: int) -> Cost:
        rebuilds = 0 if self.recipe.rank == 0 else -(-length // (self.recipe.refresh or length))
        products = length + rebuilds * self.recipe.products()
        return Cost(length + rebuilds, products, vectors + 2 * self.recipe.columns, 1)
