"""The low-rank Hessian: exact where it can be, within its bound elsewhere, and at the stated cost."""

import math
from typing import Any

import pytest
import torch
from problems import Problem, make_problem, relative_error
from torch import Tensor

from framework.distill_higher import Higher, outer_gradient
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, State
from framework.outer.engines.engine import MetaGradient
from framework.outer.engines.lowrank import LowRank, Recipe, factorise
from framework.outer.engines.replay import Replay
from framework.outer.policies.policy import Window
from framework.rng import generator

GEN = "low-rank tests"
WINDOW = Window(3, 6)


def random(*values: Any) -> Recipe:
    """Random samples alone."""
    return Recipe(*values, cotangent=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, GEN), dtype=torch.float64)


def symmetric(size: int, rank: int) -> Tensor:
    q = torch.linalg.qr(normal(size, rank)).Q
    return (q * torch.linspace(-3, 5, rank, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize("recipe", [random(6, 0, 0), random(6, 4, 0), random(8, 2, 2), random(10, 10, 1)])
def test_a_matrix_of_low_rank_is_reproduced(recipe: Recipe) -> None:
    h = symmetric(40, 6)
    factors = factorise(lambda v: v @ h, normal(40, recipe.rank + recipe.oversampling, seed=1), recipe)
    w = normal(40, seed=2)
    assert relative_error(factors @ w, h @ w) < 1e-10
    assert relative_error(factors.basis.T @ factors.basis, torch.eye(recipe.rank, dtype=torch.float64)) < 1e-12


def test_a_scaled_matrix_of_low_rank_is_reproduced() -> None:
    h, scale = symmetric(40, 6), torch.rand(40, generator=generator(3, GEN), dtype=torch.float64) + 0.1
    factors = factorise(lambda v: v @ h, normal(40, 10, seed=1), random(6, 4, 1), scale=scale)
    w = normal(40, seed=2)
    assert relative_error(factors @ w, h @ w) < 1e-9


def test_the_cotangents_own_product_is_exact() -> None:
    h = symmetric(40, 40)
    w, scale = normal(40, seed=2), torch.rand(40, generator=generator(3, GEN), dtype=torch.float64) + 0.1
    for s in (None, scale):
        factors = factorise(
            lambda v: v @ h, normal(40, 5, seed=1), Recipe(4, 1, 0, cotangent=True), scale=s, cotangent=w
        )
        assert relative_error(factors @ w, h @ w) < 1e-10
        assert relative_error(factors @ normal(40, seed=7), h @ normal(40, seed=7)) > 0.1


def hessian_of(p: Problem) -> Tensor:
    """The Hessian (P, P) of the first batch's loss, by differentiating the gradient row by row."""
    loop = InnerLoop(p.network, Adam(1e-2))
    x, y = loop.batch(
        p.theta, p.images[p.plan.indices[0]].detach(), p.labels[p.plan.indices[0]].detach(), p.plan.draw.at(0)
    )
    return loop.kernels.hessian_products(p.theta, x, y, torch.eye(p.network.size, dtype=torch.float64))


def test_the_error_obeys_the_randomised_svds_bound() -> None:
    """Halko et al. 2011, theorem 10.6: in expectation |H - Q Q' H| is within a factor of the (k+1)st singular value.

    Without truncation to k, the two-sided projection at most doubles it.
    """
    p = make_problem(1, "none", width=4, depth=1, side=4)
    h = hessian_of(p)
    assert relative_error(h, h.T) < 1e-10
    singular = torch.linalg.svdvals(h)
    rank, extra = 6, 6
    e, tail = math.e, float(singular[rank:].square().sum().sqrt())
    bound = (1 + (rank / (extra - 1)) ** 0.5) * float(singular[rank]) + e * (rank + extra) ** 0.5 / extra * tail
    errors = []
    for seed in range(20):
        recipe = random(rank + extra, 0, 0)
        factors = factorise(lambda v: v @ h, normal(len(h), rank + extra, seed=seed), recipe)
        approximation = (factors.basis * factors.values) @ factors.basis.T
        errors.append(float(torch.linalg.matrix_norm(h - approximation, 2)))
    assert sum(errors) / len(errors) < 2 * bound
    assert min(errors) > float(singular[rank + extra]) * (1 - 1e-9)  # no rank does better


def test_power_iterations_approach_the_best_of_its_rank() -> None:
    p = make_problem(1, "none", width=4, depth=1, side=4)
    h = hessian_of(p)
    best = float(torch.linalg.svdvals(h)[6])
    excess = []
    for power in (0, 2, 20):
        factors = factorise(lambda v: v @ h, normal(len(h), 10), random(6, 4, power))
        error = torch.linalg.matrix_norm(h - (factors.basis * factors.values) @ factors.basis.T, 2)
        excess.append(float(error) / best - 1)
    assert excess[0] > excess[1] > -1e-9
    assert abs(excess[2]) < 1e-3


@pytest.mark.parametrize("recipe", [random(5, 2, 0), random(5, 2, 3), Recipe(5, 2, 1, cotangent=True)])
def test_a_factorisation_costs_the_products_it_says(recipe: Recipe) -> None:
    counted = []

    def products(vectors: Tensor) -> Tensor:
        counted.append(len(vectors))
        return vectors * torch.linspace(1, 2, 30, dtype=torch.float64)

    factors = factorise(products, normal(30, 7), recipe, cotangent=normal(30) if recipe.cotangent else None)
    assert sum(counted) == recipe.products()
    if not recipe.cotangent:
        assert factors.basis.shape == (30, recipe.rank)


def solve(p: Problem, recipe: Recipe, rule: Adam | SGD, window: Window = WINDOW) -> MetaGradient:
    engine = LowRank(InnerLoop(p.network, rule), recipe)
    return outer_gradient(engine, [p.theta], p.synthetic, [p.plan], window, p.real)


RULES_METRICS = [(rule, metric) for rule in (Adam(1e-2), SGD(0.1)) for metric in ("plain", "adam")]


@pytest.mark.parametrize(("rule", "metric"), [*RULES_METRICS, (Adam(1e-2, eps_root=1e-4), "adam")])
def test_with_full_rank_at_every_step_the_meta_gradient_is_exact(rule: Adam | SGD, metric: str) -> None:
    p = make_problem(9, width=2, depth=1, side=4, channels=1)
    loop = InnerLoop(p.network, rule)
    exact = outer_gradient(Higher(loop), [p.theta], p.synthetic, [p.plan], Window(3, 6), p.real)
    result = solve(p, random(p.network.size, 0, 0, 1, metric), rule)
    assert relative_error(result.grads.images, exact.grads.images) < 1e-7
    assert result.grads.labels is not None and exact.grads.labels is not None
    assert relative_error(result.grads.labels, exact.grads.labels) < 1e-7
    assert float(result.loss) == float(solve(p, Recipe(2), rule).loss)  # inner steps are not altered


def test_keeping_the_cotangent_at_every_step_is_exact() -> None:
    p = make_problem(9, width=2, depth=1, side=4, channels=1)
    exact = outer_gradient(
        Replay(InnerLoop(p.network, Adam(1e-2))), [p.theta], p.synthetic, [p.plan], Window(3, 6), p.real
    )
    result = solve(p, Recipe(2, 1, 0, 1, "adam", cotangent=True), Adam(1e-2))
    assert relative_error(result.grads.images, exact.grads.images) < 1e-8


def test_rank_zero_leaves_the_hessian_out() -> None:
    """Against a hand-unrolled backward pass whose cotangent never meets H."""
    p, rule, window = make_problem(6, "none", width=2, depth=1, side=4, soft=False), SGD(0.1), Window(2, 4)
    loop = InnerLoop(p.network, rule)
    states, state = [], loop.train(State.fresh(p.theta), p.images, p.labels, p.plan[:2])
    for t in range(2, 6):
        states.append(state)
        state, _ = loop.step(state, p.images.detach(), p.labels, p.plan, t)
    u = loop.judge(state, p.real.images, p.real.labels, p.real.draw)[2]
    momentum, total = torch.zeros_like(u), torch.zeros_like(p.images)
    for t in reversed(range(4)):
        w = momentum - rule.lr * u
        images = p.images.detach().requires_grad_()
        theta = states[t].theta.clone().requires_grad_()
        batch = p.plan.indices[2 + t]
        loss = torch.nn.functional.cross_entropy(p.network(theta, images[batch]), p.labels[batch])
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        total += torch.autograd.grad(g, images, w)[0]
        u, momentum = u + rule.weight_decay * w, rule.momentum * w
    assert relative_error(solve(p, Recipe(0), rule, window).grads.images, total) < 1e-10


@pytest.mark.parametrize(("refresh", "rebuilds"), [(1, 6), (2, 3), (4, 2), (0, 1), (100, 1)])
def test_factors_are_rebuilt_as_often_as_asked(refresh: int, rebuilds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p, made = make_problem(9, width=2, depth=1, side=4), []
    whole = LowRank._factorise
    monkeypatch.setattr(LowRank, "_factorise", lambda *a: made.append(1) or whole(*a))
    recipe = random(3, 1, 1, refresh)
    cost = solve(p, recipe, Adam(1e-2)).cost
    assert len(made) == rebuilds
    assert cost.products == 6 + rebuilds * 4 * 3
    assert recipe.products() == 4 * 3
