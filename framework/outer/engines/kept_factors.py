"""Cache-and-refresh low-rank Hessians (CR-LRHA, AT-BPTT++): factors that are kept across outer steps.

They are those of ``outer.engines.lowrank``, of the Hessian at the first step of a window, and are rebuilt when there
are none, when the policy's drift reaches ``delta``, and at every outer step whose number ``period`` divides. In between
they serve other networks than the one that they were made from: that is the method. What they are used for differs:

* ``hessian``: H_t w of the backward recursion is replaced, as in AT-BPTT's paper; the inner steps stay as they are.
* ``gradient``: what the authors' public code does. The inner gradient of every differentiated step is replaced by its
  image under the factors, rescaled to its own norm, and differentiated through with the factors held constant. So the
  steps of the window differ from those of the prefix, the probe and every evaluation.

The public code multiplies by H in its power iterations without orthonormalising in between, which loses small
eigenvalues to rounding; here every product is orthonormalised (Halko, Martinsson and Tropp 2011, algorithm 4.4). And
there each process keeps factors of its own; here all have rank 0's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.inner.loop import InnerLoop, Step
from framework.inner.optimizers import State, Transformed
from framework.inner.plan import Plan
from framework.outer.engines.engine import Cost, Lags, Mark, MetaGradient, RealBatch, no_mark
from framework.outer.engines.lowrank import Factors, Recipe, factorise
from framework.outer.engines.replay import Replay, Trail
from framework.outer.method import Peers
from framework.outer.synthetic import Synthetic
from framework.rng import generator

EPS = 1e-8  # no norm and no largest eigenvalue is taken to be smaller


@dataclass(frozen=True)
class KeptRecipe:
    """How factors are made, for how long they are kept, and what they are used for.

    Args:
        factors: how they are made; ``refresh``, ``metric`` and ``cotangent`` are not read.
        delta: drift at which they are rebuilt.
        period: outer steps after which they are rebuilt at the latest.
        blend: share of what comes from them; the rest is the exact product or gradient.
        mode: ``hessian`` or ``gradient``; see the module.
    """

    factors: Recipe = field(default_factory=lambda: Recipe(32, 4, 2, cotangent=False))
    delta: float = 0.2
    period: int = 20
    blend: float = 1.0
    mode: str = "hessian"


class KeptFactors:
    """The factors that are kept, the same on all ranks.

    Args:
        recipe: when they are rebuilt.
        peers: rank 0 makes them, and the others are told.
        seed: of the random samples.
    """

    def __init__(self, recipe: KeptRecipe, peers: Peers, seed: int = 0) -> None:
        self.recipe, self.peers, self.seed = recipe, peers, seed
        self.factors: Factors | None = None
        self.made_at = -1  # outer step
        self.step = -1  # the outer step that goes on
        self.due = False

    def _usable(self) -> bool:
        """Whether there are any; those of a network that has diverged are of no use to the next."""
        return self.factors is not None and bool(self.factors.values.isfinite().all())

    def begin(self, step: int, drift: float | None) -> None:
        """Start an outer step, of which ``drift`` is the policy's; None: it measures none."""
        drifted = drift is not None and drift >= self.recipe.delta
        self.step, self.due = step, drifted or step % self.recipe.period == 0 or not self._usable()

    def current(self, make: Callable[[Tensor], Factors], like: Tensor) -> Factors:
        """The factors, rebuilt where that is due; every rank must ask.

        Args:
            make: them, on rank 0, from samples (P, k + s).
            like: (P,), whose size, type and device theirs are.
        """
        if self.due or self.factors is None:
            made = self._on_cpu(make(self._samples(like))) if self.peers.main else None
            self.factors = self.peers.from_main(made)
            self.made_at, self.due = self.step, False
        assert self.factors is not None
        self.factors = Factors(self.factors.basis.to(like.device), self.factors.values.to(like.device))
        return self.factors

    @property
    def age(self) -> int:
        """Outer steps since they were made."""
        return self.step - self.made_at

    def _samples(self, like: Tensor) -> Tensor:
        columns, gen = self.recipe.factors.columns, generator(self.seed, "kept factors", self.step)
        return torch.randn(like.numel(), columns, generator=gen, dtype=like.dtype).to(like.device)

    def _on_cpu(self, factors: Factors) -> Factors:
        """For a message; alone there is none."""
        return factors if self.peers.size == 1 else Factors(factors.basis.cpu(), factors.values.cpu())

    def state_dict(self) -> dict[str, Any]:
        """The factors, on the CPU, and when they were made."""
        basis, values = (None, None) if self.factors is None else (self.factors.basis.cpu(), self.factors.values.cpu())
        return {"basis": basis, "values": values, "made_at": self.made_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.factors = None if state["basis"] is None else Factors(state["basis"], state["values"])
        self.made_at = state["made_at"]


def window_factors(
    loop: InnerLoop, recipe: Recipe, state: State, synthetic: Synthetic, plan: Plan, samples: Tensor
) -> Factors:
    """Factors of the Hessian at ``state`` on the first batch of ``plan``, augmented, from ``samples`` (P, k + s)."""
    drawn = plan.indices[0]
    x, y = loop.batch(state.theta, synthetic.images[drawn], synthetic.labels[drawn], plan.draw.at(0))
    return factorise(lambda rows: loop.kernels.hessian_products(state.theta, x, y, rows), samples, recipe)


class KeptHessian(Replay):
    """Replay whose Hessians are the kept factors, blended with the exact ones; the mixed partials stay exact.

    Several networks of an outer step are taken one after the other, and the factors are of the first of rank 0.

    Args:
        loop: the inner loop.
        kept: the factors, and how they are used.
    """

    def __init__(self, loop: InnerLoop, kept: KeptFactors) -> None:
        super().__init__(loop)
        self.together = False
        self.kept = kept
        self.rebuilt = False  # in the last window

    def forward(self, state: State, synthetic: Synthetic, plan: Plan) -> Trail:
        """See ``Replay``; before it, the factors are rebuilt where they are due."""
        self.rebuilt = self.kept.due
        make = partial(window_factors, self.loop, self.kept.recipe.factors, state, synthetic, plan)
        self.kept.current(make, state.theta)
        return super().forward(state, synthetic, plan)

    def _step_back(self, learn_labels: bool) -> Callable[..., tuple[State, Tensor, Any]]:
        loop, factors, blend = self.loop, self.kept.factors, self.kept.recipe.blend
        assert factors is not None

        @torch.no_grad()
        def step_back(cotangent: State, step: Step) -> tuple[State, Tensor, Tensor | None]:
            old, x, y, draw = step.old, step.images, step.labels, step.draw
            before, w = loop.rule.pullback(cotangent, step.new, step.gradient)
            exact, dx, dy = loop.second_order(
                old.theta, w, x, y, draw, learn_labels, loop.is_low(old), hessian=blend < 1
            )
            product = factors @ w if exact is None else torch.lerp(exact, factors @ w, blend)
            return replace(before, theta=before.theta + product), dx, dy

        return step_back

    def _cost(self, length: int, vectors: int) -> Cost:
        return with_factors(super()._cost(length, vectors), self.kept.recipe.factors, self.rebuilt)


class LowRankSteps:
    """Replay through inner steps whose gradients are reshaped by the kept factors, as the public code takes them.

    Prefix, probe and evaluation take ordinary steps. Several networks are taken as in ``KeptHessian``.

    Args:
        loop: the inner loop.
        kept: the factors, and how they are used.
    """

    together = False

    def __init__(self, loop: InnerLoop, kept: KeptFactors) -> None:
        self.loop, self.kept = loop, kept

    def __call__(
        self,
        state: State,
        synthetic: Synthetic,
        plan: Plan,
        real: RealBatch,
        mark: Mark = no_mark,
        lags: Lags | None = None,
    ) -> MetaGradient:
        """See ``Engine``."""
        recipe, rebuilt = self.kept.recipe, self.kept.due
        make = partial(window_factors, self.loop, recipe.factors, state, synthetic, plan)
        factors = self.kept.current(make, state.theta)
        rule = Transformed(self.loop.rule, partial(reshaped, factors, recipe.blend))
        # A graph would hold these factors for ever.
        result = Replay(self.loop.with_rule(rule, graphs=False))(state, synthetic, plan, real, mark, lags)
        return replace(result, cost=with_factors(result.cost, recipe.factors, rebuilt))


def reshaped(factors: Factors, blend: float, gradient: Tensor) -> Tensor:
    """(1 - b) g + b c Q (L / |L|_max) Q^T g, with c such that the second term has the norm of g; all (P,).

    L has signs: along a direction of negative curvature the gradient is turned round.
    """
    image = factors @ gradient / factors.values.abs().max().clamp_min(EPS)
    norm, own = (torch.linalg.vector_norm(vector).clamp_min(EPS) for vector in (image, gradient))
    result: Tensor = (1 - blend) * gradient + blend * own / norm * image
    return result


def with_factors(cost: Cost, recipe: Recipe, rebuilt: bool) -> Cost:
    """The cost of a window together with that of keeping factors, and of rebuilding them."""
    products = cost.products + rebuilt * recipe.products()
    return replace(cost, gradients=cost.gradients + rebuilt, products=products, vectors=cost.vectors + recipe.rank)
