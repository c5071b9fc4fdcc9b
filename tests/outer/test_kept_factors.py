"""Factors kept across outer steps: when they are made, and both uses against hand-unrolled loops in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cli import TINY, difference
from problems import CPU, Problem, make_problem, relative_error
from test_method import STEPS, epoch, method
from torch import Tensor

from framework.distill_higher import BackpropThroughTime, Higher, make_engine, outer_gradient
from framework.inner.augment import apply
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, Optimizer, State, Transformed
from framework.outer.engines.engine import MetaGradient
from framework.outer.engines.kept_factors import KeptFactors, KeptHessian, KeptRecipe, LowRankSteps, reshaped
from framework.outer.engines.lowrank import Factors, Recipe
from framework.outer.policies.policy import Window
from framework.rng import generator
from framework.run import checkpoint
from framework.run.distributed import Comm
from main import main

RULES = [Adam(1e-2), SGD(0.1)]
RANK, WINDOW = 5, Window(3, 5)
MODES = ["hessian", "gradient"]


def small() -> Problem:
    return make_problem(8, "flip_rotate_mixup", compose=True, channels=1, side=4, width=2, depth=1)


def recipe(size: int, blend: float, mode: str) -> KeptRecipe:
    """As many samples as parameters: the factors are then those of the exact eigen-decomposition."""
    return KeptRecipe(Recipe(RANK, size - RANK, 1, cotangent=False), blend=blend, mode=mode)


def solve(p: Problem, rule: Optimizer, kept: KeptFactors, step: int = 0) -> MetaGradient:
    engine = make_engine("lowrank", InnerLoop(p.network, rule), kept=kept)
    kept.begin(step, None)
    return outer_gradient(engine, [p.theta], p.synthetic, [p.plan], WINDOW, p.real)


def loss_at(p: Problem, theta: Tensor, images: Tensor, labels: Tensor, t: int) -> Tensor:
    batch = p.plan.indices[t]
    x, y = apply(images[batch], labels[batch], p.plan.draw.at(t))
    return F.cross_entropy(p.network(theta, x), y)


def leading(p: Problem, theta: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The eigenvectors (P, k) and eigenvalues of the Hessian of batch t that are largest by magnitude."""
    leaf = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_at(p, leaf, p.images.detach(), p.labels.detach(), t), leaf, create_graph=True)
    h = torch.stack([torch.autograd.grad(g[i], leaf, retain_graph=True)[0] for i in range(len(g))])
    values, vectors = torch.linalg.eigh((h + h.T) / 2)
    largest = values.abs().argsort(descending=True)[:RANK]
    return vectors[:, largest], values[largest]


def unrolled(p: Problem, rule: Optimizer, blend: float, mode: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients by one graph of the whole window, the factors being constants in it."""
    state = InnerLoop(p.network, rule).train(State.fresh(p.theta), p.images, p.labels, p.plan[: WINDOW.start])
    vectors, values = leading(p, state.theta, WINDOW.start)
    images, labels = p.images.detach().requires_grad_(), p.labels.detach().requires_grad_()
    state = State(state.theta.requires_grad_(), state.m, state.v, state.t)
    for t in range(WINDOW.start, sum(WINDOW)):

        def gradient(theta: Tensor, t: int = t) -> Tensor:
            return torch.autograd.grad(loss_at(p, theta, images, labels, t), theta, create_graph=True)[0]

        g = gradient(state.theta)
        if mode == "hessian":
            # With the same value, but a derivative towards theta that is that of the factors.
            fixed = state.theta.detach().requires_grad_()
            change = state.theta - state.theta.detach()
            g = (1 - blend) * g + blend * (gradient(fixed) + (vectors * values) @ (vectors.T @ change))
        else:
            image = (vectors * (values / values.abs().max())) @ (vectors.T @ g)
            g = (1 - blend) * g + blend * image * (g.norm() / image.norm())
        state = rule.step(state, g)
    x, y = apply(p.real.images, p.real.labels, p.real.draw)
    loss = F.cross_entropy(p.network(state.theta, x), y)
    return loss.detach(), torch.autograd.grad(loss, [images, labels])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("blend", [1.0, 0.6])
def test_both_uses_equal_a_hand_unrolled_loop(rule: Optimizer, mode: str, blend: float) -> None:
    p = small()
    result = solve(p, rule, KeptFactors(recipe(p.network.size, blend, mode), Comm()))
    loss, (images, labels) = unrolled(p, rule, blend, mode)
    assert float(result.loss) == pytest.approx(float(loss), rel=1e-9)
    assert relative_error(result.grads.images, images) < 1e-7
    assert result.grads.labels is not None
    assert relative_error(result.grads.labels, labels) < 1e-7


@pytest.mark.parametrize("mode", MODES)
def test_without_any_share_of_them_the_meta_gradient_is_exact(mode: str) -> None:
    p = small()
    exact = outer_gradient(Higher(InnerLoop(p.network, RULES[0])), [p.theta], p.synthetic, [p.plan], WINDOW, p.real)
    result = solve(p, RULES[0], KeptFactors(recipe(p.network.size, 0.0, mode), Comm()))
    assert relative_error(result.grads.images, exact.grads.images) < 1e-9
    assert float(result.loss) == pytest.approx(float(exact.loss), rel=1e-12)


def test_inner_steps_are_altered_by_the_public_codes_use_alone() -> None:
    p = small()
    losses = [float(solve(p, RULES[0], KeptFactors(recipe(p.network.size, 1.0, mode), Comm())).loss) for mode in MODES]
    exact = outer_gradient(Higher(InnerLoop(p.network, RULES[0])), [p.theta], p.synthetic, [p.plan], WINDOW, p.real)
    assert losses[0] == pytest.approx(float(exact.loss), rel=1e-12)
    assert abs(losses[1] - float(exact.loss)) > 1e-4


def test_a_reshaped_gradient_keeps_its_norm_and_turns_round_along_negative_curvature() -> None:
    factors = Factors(torch.eye(4, 2, dtype=torch.float64), torch.tensor([-2.0, 1.0], dtype=torch.float64))
    g = torch.tensor([3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    image = torch.tensor([-3.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(reshaped(factors, 1.0, g), image * g.norm() / image.norm())
    torch.testing.assert_close(reshaped(factors, 0.25, g), 0.75 * g + 0.25 * image * g.norm() / image.norm())
    flat = Factors(factors.basis, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(reshaped(flat, 1.0, g), torch.zeros_like(g))
    assert bool(reshaped(factors, 1.0, torch.zeros_like(g)).isfinite().all())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_transformed_rules_pullback_is_its_steps_vector_jacobian_product(rule: Optimizer) -> None:
    gen = generator(0, "transformed")

    def vector() -> Tensor:
        return torch.randn(20, generator=gen, dtype=torch.float64)

    whole = Transformed(rule, lambda g: g * g.norm() + g.roll(1))
    leaves = [tensor.requires_grad_() for tensor in (vector(), vector(), vector().square(), vector())]
    theta, m, v, grad = leaves
    new = whole.step(State(theta, m, v, 6), grad)
    cotangents = [vector(), vector(), vector() if isinstance(rule, Adam) else torch.zeros(20, dtype=torch.float64)]
    expected = torch.autograd.grad([new.theta, new.m, new.v], leaves, cotangents, allow_unused=True)
    with torch.no_grad():
        back, w = whole.pullback(State(*cotangents), new.detach(), grad.detach())
    for value, reference in zip((back.theta, back.m, back.v, w), expected, strict=True):
        torch.testing.assert_close(value, torch.zeros_like(value) if reference is None else reference)
    assert torch.equal(whole.step_sizes(new.detach()), rule.step_sizes(new.detach()))


# ---- when they are made ----------------------------------------------------------------------------


def made(values: float, rank: int = 2) -> Factors:
    return Factors(torch.eye(6, rank, dtype=torch.float64), torch.full((rank,), values, dtype=torch.float64))


def test_they_are_made_at_first_on_drift_and_by_period() -> None:
    kept, like, at = KeptFactors(KeptRecipe(delta=0.2, period=4), Comm()), torch.zeros(6, dtype=torch.float64), []
    for step, drift in enumerate([None, 0.1, 0.2, 0.19, 0.0, None, 9.0, 0.0, 0.0], start=2):
        kept.begin(step, drift)
        for network in range(2):  # the second one of a step takes the first one's
            kept.current(lambda _, key=(step, network): at.append(key) or made(1.0), like)  # type: ignore[misc]
        assert kept.age == step - at[-1][0]
    assert at == [(2, 0), (4, 0), (8, 0)]  # no factors; the period and a drift at its threshold; the period and a drift


def test_those_of_a_network_that_diverged_are_made_again() -> None:
    kept, like = KeptFactors(KeptRecipe(), Comm()), torch.zeros(6, dtype=torch.float64)
    kept.begin(1, None)
    kept.current(lambda _: made(float("nan")), like)
    kept.begin(2, None)
    assert kept.due
    kept.current(lambda _: made(1.0), like)
    kept.begin(3, None)
    assert not kept.due


def test_a_hessian_that_is_not_finite_has_factors_that_are_not_and_raises_nothing() -> None:
    p = small()
    p.theta = torch.full_like(p.theta, float("inf"))
    result = solve(p, RULES[0], kept := KeptFactors(recipe(p.network.size, 1.0, "hessian"), Comm()))
    assert not result.grads.images.isfinite().all()
    kept.begin(1, None)
    assert kept.due


def test_samples_depend_on_seed_and_step_alone() -> None:
    def samples(step: int, seed: int) -> Tensor:
        seen = []
        kept = KeptFactors(KeptRecipe(), Comm(), seed)
        kept.begin(step, None)
        kept.current(lambda omega: seen.append(omega) or made(1.0), torch.zeros(6, dtype=torch.float64))
        return seen[0]

    assert samples(3, 0).shape == (6, 36)
    assert torch.equal(samples(3, 0), samples(3, 0))
    assert not torch.equal(samples(3, 0), samples(4, 0))
    assert not torch.equal(samples(3, 0), samples(3, 1))


def test_rank_0_makes_them_and_the_others_are_told() -> None:
    told: list[Any] = []

    class First(Comm):
        def from_main(self, value: Any) -> Any:
            told.append(value)
            return value

    class Second(Comm):
        def from_main(self, value: Any) -> Any:
            assert value is None
            return told[0]

    like = torch.zeros(6, dtype=torch.float64)
    one, two = KeptFactors(KeptRecipe(), First(0, 2)), KeptFactors(KeptRecipe(), Second(1, 2))
    for kept in (one, two):
        kept.begin(0, 1.0)
    first = one.current(lambda _: made(3.0), like)
    assert torch.equal(two.current(lambda _: 1 / 0, like).values, first.values)  # type: ignore[arg-type,return-value]
    two.begin(1, 0.0)
    assert not two.due


def with_kept(policy: str, mode: str) -> BackpropThroughTime:
    """A small method that keeps factors for at most three outer steps."""
    m = method(policy)
    m.kept = KeptFactors(KeptRecipe(Recipe(3, 1, 1, cotangent=False), delta=1e9, period=3, mode=mode), m.peers)
    m.engine = (KeptHessian if mode == "hessian" else LowRankSteps)(m.engine.loop, m.kept)
    return m


@pytest.mark.parametrize("policy", ["at-bptt-pp", "rat-bptt"])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_goes_on_goes_on_with_the_factors_it_had(policy: str, mode: str, tmp_path: Path) -> None:
    whole, left, again = (with_kept(policy, mode) for _ in range(3))
    ages = [proposal.facts["factors_age"] for proposal in epoch(whole)]
    assert ages == [0, 1, 2, 0, 1]
    assert len(ages) == STEPS
    for _, proposal in zip(range(2), left.proposals(0, 0), strict=False):
        left.set.update(proposal.grads)
    torch.save({"method": left.state_dict(), "set": left.set.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["method"])
    again.set.load_state_dict(state["set"])
    assert [proposal.facts["factors_age"] for proposal in epoch(again, first=2)] == ages[2:]
    assert difference(again.set.state_dict(), whole.set.state_dict()) is None
    assert difference(again.state_dict(), whole.state_dict()) is None


def test_factors_cost_their_products_where_they_are_made() -> None:
    p = small()
    for mode in MODES:
        kept = KeptFactors(recipe(p.network.size, 1.0, mode), Comm())
        costs = [solve(p, RULES[0], kept, step).cost for step in (1, 2)]
        assert [cost.products for cost in costs] == [5 + 3 * p.network.size, 5]
        assert [cost.gradients for cost in costs] == [6, 5]
    assert p.network.device == CPU


def test_a_run_resumes_to_the_last_bit(tmp_path: Path) -> None:
    run = [*TINY, "--ddtype", "at_bptt_pp", "--window", "3", "--totwindow", "6", "--window_radius", "2", "--train_y"]
    run += ["--cr_rank", "3", "--cr_oversample", "1", "--cr_power_iter", "1", "--cr_period", "9", "--cr_delta", "0.7"]
    run += ["--batch_size", "600", "--num_train_eval", "1", "--eval_steps", "2", "--test_freq", "2"]
    for name, epochs in (("whole", "2"), ("parts", "1"), ("parts", "2")):
        assert main([*run, "--epochs", epochs, "--save_dir", str(tmp_path / name), "--resume"]) == 0
    whole, parts = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert difference(whole["set"], parts["set"]) is None
    assert difference(whole["method"], parts["method"]) is None
    norms = whole["set"]["images"].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(10), rtol=0, atol=1e-6)
