"""Windows as short as a bias allows: contributions by lag, the length that follows from them, and the roulette."""

import io
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cli import difference
from problems import Problem, emulate, make_problem, relative_error
from scipy.stats import chisquare
from test_method import STEPS, method
from torch import Tensor

from framework.assemble.bptt import make_policy
from framework.config.bptt import parse
from framework.distill_higher import BackpropThroughTime, outer_gradient
from framework.errors import UserError
from framework.inner.augment import apply
from framework.inner.graphs import Captured
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, Optimizer, State
from framework.outer.engines.engine import Engine, Lags
from framework.outer.engines.kept_factors import KeptFactors, KeptHessian, KeptRecipe, LowRankSteps
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.method import Proposal
from framework.outer.policies.policy import Window
from framework.outer.policies.rat_bias import REFRESH, LengthByBias
from framework.outer.policies.rat_bptt import RaTBPTT
from framework.outer.synthetic import joint_norm
from framework.run.distributed import Comm

RULES = [Adam(1e-2), SGD(0.1)]


# ---- contributions by lag --------------------------------------------------------------------------


def contributions(p: Problem, rule: Optimizer, window: Window) -> tuple[list[Tensor], list[Tensor]]:
    """Of each lag, towards images and labels: every step unrolled by autograd alone, on a copy of its own."""
    loop = InnerLoop(p.network, rule)
    state = loop.train(State.fresh(p.theta), p.images, p.labels, p.plan[: window.start])
    state = State(state.theta.requires_grad_(), state.m, state.v, state.t)
    images, labels = ([tensor.detach().clone().requires_grad_() for _ in range(window.length)]
                      for tensor in (p.images, p.labels))  # fmt: skip
    plan = p.plan[window.start : sum(window)]
    for t, (x, y) in enumerate(zip(images, labels, strict=True)):
        drawn = plan.indices[t]
        augmented, targets = apply(x[drawn], y[drawn], plan.draw.at(t))
        loss = F.cross_entropy(p.network(state.theta, augmented), targets)
        state = rule.step(state, torch.autograd.grad(loss, state.theta, create_graph=True)[0])
    real = apply(p.real.images, p.real.labels, p.real.draw)
    found = torch.autograd.grad(F.cross_entropy(p.network(state.theta, real[0]), real[1]), [*images, *labels])
    return list(reversed(found[: window.length])), list(reversed(found[window.length :]))


@pytest.mark.parametrize("lags", [Lags(5), Lags(2, 1.7), Lags(0, 3.0)])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_contributions_are_those_of_each_step_unrolled(rule: Optimizer, lags: Lags) -> None:
    p, window = make_problem(9, "flip_rotate_mixup", compose=True, batch_per_class=2, ipc=3), Window(4, 5)
    result = outer_gradient(
        Replay(InnerLoop(p.network, rule)), [p.theta], p.synthetic, [p.plan], window, p.real, lags=lags
    )
    images, labels = contributions(p, rule, window)
    assert result.lags is not None
    assert result.lags.labels is not None
    assert result.grads.labels is not None
    for told, grad, expected in (
        (result.lags.images, result.grads.images, images),
        (result.lags.labels, result.grads.labels, labels),
    ):
        assert relative_error(told, torch.stack([each.square().sum() for each in expected])) < 1e-9
        weights = [lags.growth ** max(k + 1 - lags.certain, 0) for k in range(5)]
        weighted = torch.stack([w * each for w, each in zip(weights, expected, strict=True)]).sum(0)
        assert relative_error(grad, weighted) < 1e-9


def test_asking_changes_not_a_bit_and_nothing_is_told_unasked() -> None:
    p = make_problem(9)
    engine = Replay(InnerLoop(p.network, Adam(1e-2)))
    asked, unasked = (
        outer_gradient(engine, [p.theta], p.synthetic, [p.plan], Window(4, 5), p.real, lags=lags)
        for lags in (Lags(5), None)
    )
    assert torch.equal(asked.grads.images, unasked.grads.images)
    assert unasked.lags is None


def test_steps_that_are_graphs_tell_the_same() -> None:
    """A graph overwrites what it returned before at every step."""
    p = make_problem(9)
    plain, captured = (InnerLoop(p.network, Adam(1e-2)) for _ in range(2))
    for key, function in captured._back.items():
        captured._back[key] = Captured(function, emulate)  # type: ignore[index]
    one, two = (
        outer_gradient(Replay(loop), [p.theta], p.synthetic, [p.plan], Window(4, 5), p.real, lags=Lags(2, 1.7))
        for loop in (plain, captured)
    )
    assert one.lags is not None
    assert two.lags is not None
    assert relative_error(two.lags.images, one.lags.images) < 1e-12
    assert relative_error(two.grads.images, one.grads.images) < 1e-12


@pytest.mark.parametrize("together", [False, True])
def test_several_networks_tell_the_mean_of_their_squares(together: bool) -> None:
    problems = [make_problem(7, batch_per_class=2, ipc=3, seed=seed) for seed in range(3)]
    p, window, lags = problems[0], Window(3, 4), Lags(2, 1.5)
    plans = [q.plan for q in problems]
    engine = Replay(InnerLoop(p.network, Adam(1e-2), Execution(chunk=2, together=together)))
    thetas = [q.theta for q in problems]
    result = outer_gradient(engine, thetas, p.synthetic, plans, window, p.real, lags=lags)
    alone = [
        outer_gradient(engine, [theta], p.synthetic, [plan], window, p.real, lags=lags)
        for theta, plan in zip(thetas, plans, strict=True)
    ]
    for name in ("images", "labels"):
        each = [getattr(one.lags, name) for one in alone]
        assert relative_error(getattr(result.lags, name), torch.stack(each).mean(0)) < 1e-9
        grads = [getattr(one.grads, name) for one in alone]
        assert relative_error(getattr(result.grads, name), torch.stack(grads).mean(0)) < 1e-9


def kept(mode: str) -> KeptFactors:
    factors = KeptFactors(KeptRecipe(Recipe(2, 1, 1, cotangent=False), mode=mode), Comm())
    factors.begin(0, None)
    return factors


@pytest.mark.parametrize("name", ["lowrank", "kept hessian", "kept gradient"])
def test_every_engine_that_walks_back_tells_them(name: str) -> None:
    p = make_problem(4)
    loop = InnerLoop(p.network, Adam(1e-2))
    engine: Engine = {
        "lowrank": lambda: LowRank(loop, Recipe(2)),
        "kept hessian": lambda: KeptHessian(loop, kept("hessian")),
        "kept gradient": lambda: LowRankSteps(loop, kept("gradient")),
    }[name]()
    result = outer_gradient(engine, [p.theta], p.synthetic, [p.plan], Window(3, 1), p.real, lags=Lags(0, 2.0))
    assert result.lags is not None
    assert float(result.lags.images[0]) == pytest.approx(float((result.grads.images / 2).square().sum()), rel=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(("certain", "q"), [(1, 0.3), (2, 0.6), (4, 0.9), (2, 1.0)])
def test_the_expectation_over_the_roulette_is_the_gradient_of_the_longest_window(
    rule: Optimizer, certain: int, q: float
) -> None:
    """By enumeration in float64 of all lengths, each with the chance that the policy stops there."""
    p, end, longest = make_problem(10), 10, 6
    engine = Replay(InnerLoop(p.network, rule))

    def gradient(length: int, lags: Lags) -> Tensor:
        window = Window(end - length, length)
        return outer_gradient(engine, [p.theta], p.synthetic, [p.plan], window, p.real, lags=lags).grads.images

    full, expectation, total = gradient(longest, Lags(longest)), torch.zeros_like(p.images.detach()), 0.0
    for length in range(certain, longest + 1):
        chance = q ** (length - certain) * (1 - q if length < longest else 1)
        expectation += chance * gradient(length, Lags(certain, 1 / q))
        total += chance
    assert total == pytest.approx(1, rel=1e-12)
    assert relative_error(expectation, full) < 1e-12
    if q < 1:
        assert relative_error(gradient(certain, Lags(certain)), full) > 1e-3, "there was something to correct"


# ---- the policy ------------------------------------------------------------------------------------


def taught(norms: list[float], norm: float = 10.0, **about: Any) -> LengthByBias:
    """A policy with T 30, W as many as there are norms, minimum 3, that has seen as many windows as need be of W."""
    policy = LengthByBias(30, len(norms), 3, **about)
    for _ in range(REFRESH):
        assert policy.choose().length == len(norms)
        policy.learn(norm)
        policy.learn_lags(norms)
    return policy


@pytest.mark.parametrize(
    ("norms", "norm", "bias", "expected"),
    [
        ([8 * 0.5**k for k in range(10)], 11.0, 0.1, 4),  # 16 / 2^L <= 1.1
        ([8 * 0.5**k for k in range(10)], 9.0, 0.1, 5),  # 16 / 2^L <= 0.9
        ([8 * 0.5**k for k in range(10)], 9.0, 2.0, 1),  # 16 / 2^L <= 18 for any L: one step is the least
        ([8 * 0.5**k for k in range(10)], 9.0, 1e-4, 10),  # L = 15: W is the most
        ([8 * 0.5**k if k != 4 else 0.0 for k in range(10)], 9.0, 0.1, 5),  # one that is 0 has no logarithm
        ([0.5, 1.0, *(8 * 0.5**k for k in range(2, 10))], 9.0, 0.1, 5),  # what rises at first is no decay
        ([1.0] * 10, 10.0, 0.5, 10),  # beta 1
        ([2.0**k for k in range(10)], 10.0, 0.5, 10),  # beta 2
        ([8.0] + [0.0] * 9, 10.0, 0.5, 10),  # nothing to fit
        ([8 * 0.5**k for k in range(10)], 0.0, 0.5, 10),  # no gradient
    ],
)
def test_the_length_is_the_least_whose_bias_is_tolerated(
    norms: list[float], norm: float, bias: float, expected: int
) -> None:
    policy = taught(norms, norm, bias=bias)
    windows = [policy.choose() for _ in range(2 * REFRESH)]
    for number, window in enumerate(windows, 1):
        assert window.length == (10 if number % REFRESH == 0 else expected)
        assert 3 + 10 <= sum(window) <= 30
        assert window.start >= 3


def test_the_fit_is_recorded_and_averages_decay() -> None:
    policy = taught([8 * 0.5**k for k in range(10)], decay=0.75)
    assert policy.state()["beta"] == pytest.approx(0.5, rel=1e-12)
    fit = policy.fit()
    assert fit is not None
    assert math.exp(fit[0]) == pytest.approx(8, rel=1e-12)
    policy.learn(2.0)
    policy.learn_lags([4.0, 2.0])
    assert policy.norm == pytest.approx(0.75 * 10 + 0.25 * 2)
    assert policy.lags == pytest.approx([7.0, 3.5, *(8 * 0.5**k for k in range(2, 10))])
    assert LengthByBias(30, 10).state() == {}


def test_windows_end_where_those_of_rat_bptt_do() -> None:
    policy, rat = taught([8 * 0.5**k for k in range(10)]), RaTBPTT(30, 10, 3)
    ends = Counter(sum(policy.choose()) for _ in range(4000))
    assert set(ends) == {sum(rat.choose()) for _ in range(4000)} == set(range(13, 31))
    assert chisquare(list(ends.values())).pvalue > 1e-3


def test_the_roulette_goes_on_with_its_probability() -> None:
    policy = taught([8 * 0.5**k for k in range(8)], 9.0, roulette=0.6)
    assert policy.growth == 1 / 0.6
    lengths = Counter[int]()
    for _ in range(4000):
        window = policy.choose()
        if policy.draws % REFRESH:
            assert policy.certain == 5
            lengths[window.length] += 1
        else:
            assert (policy.certain, window.length) == (8, 8)
    chances = {5: 0.4, 6: 0.24, 7: 0.144, 8: 0.216}
    assert set(lengths) == set(chances)
    assert chisquare([lengths[n] for n in chances], [3600 * chance for chance in chances.values()]).pvalue > 1e-3
    level = taught([1.0] * 8, roulette=0.6)  # beta 1: no roulette
    assert {(level.choose().length, level.certain) for _ in range(20)} == {(8, 8)}


# ---- in a run --------------------------------------------------------------------------------------


def biased(peers: Comm | None = None, **about: Any) -> BackpropThroughTime:
    """T 12, W 6, a bias that leaves a step or two."""
    m = method("rat-bias", peers=peers or Comm(), **about)
    m.policy = LengthByBias(12, 6, 1, bias=0.5, roulette=0.4)
    m.engine = Replay(InnerLoop(m.network, SGD(0.5, momentum=0.0, weight_decay=1.0)))  # contributions decay
    return m


def take(m: BackpropThroughTime, first: int, count: int) -> list[Proposal]:
    """Apply ``count`` proposals from a step of the run on."""
    taken = []
    for step in range(first, first + count):
        proposal = next(m.proposals(step // STEPS, step % STEPS))
        m.set.update(proposal.grads)
        m.applied(joint_norm(proposal.grads).item())
        taken.append(proposal)
    return taken


def test_the_policy_learns_of_what_is_learnt_alone() -> None:
    m = biased()
    (proposal,) = take(m, 0, 1)
    assert isinstance(m.policy, LengthByBias)
    assert proposal.facts["window_length"] == len(m.policy.lags) == 6
    assert m.policy.norm == pytest.approx(float(joint_norm(proposal.grads)))
    images = biased()
    images.set.learn_labels = False
    only = next(images.proposals(0, 0))
    assert set(only.grads) == {"images"}
    images.applied(1.0)
    assert isinstance(images.policy, LengthByBias)
    assert all(one < both for one, both in zip(images.policy.lags, m.policy.lags, strict=True))


@pytest.mark.parametrize("meta_batch", [1, 2])
@pytest.mark.parametrize("left_at", [0, 1, REFRESH, REFRESH + 3])
def test_a_run_is_taken_up_where_it_was_left(left_at: int, meta_batch: int) -> None:
    whole, left, again = (biased(meta_batch=meta_batch) for _ in range(3))
    count = REFRESH + 6
    expected = take(whole, 0, count)
    assert len({p.facts["window_length"] for p in expected}) > 1
    assert "beta" not in expected[0].facts
    assert 0 < expected[-1].facts["beta"] < 1
    take(left, 0, left_at)
    if left_at:
        next(left.proposals(left_at // STEPS, left_at % STEPS))  # chosen, and then interrupted
    file = io.BytesIO()
    torch.save((left.state_dict(), left.set.state_dict()), file)
    file.seek(0)
    state, learnt = torch.load(file, weights_only=True)
    again.load_state_dict(state)
    again.set.load_state_dict(learnt)
    for one, two in zip(take(again, left_at, count - left_at), expected[left_at:], strict=True):
        assert one.facts == two.facts
        assert difference(one.grads, two.grads) is None
    assert difference(again.state_dict(), whole.state_dict()) is None
    assert difference(again.set.state_dict(), whole.set.state_dict()) is None


def test_a_restored_policy_continues_exactly() -> None:
    one = taught([8 * 0.5**k for k in range(8)], roulette=0.5)
    two = LengthByBias(30, 8, 3, roulette=0.5)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(2 * REFRESH):
        window = one.choose()
        assert window == two.choose()
        for policy in (one, two):
            policy.learn(3.0)
            policy.learn_lags([0.3**k for k in range(window.length)])
        assert one.state_dict() == two.state_dict()


class Told(Comm):
    """Rank 1 of two: rank 0 has chosen a window of three steps, the last one certain; its lags are twice as large."""

    def from_main(self, value: Any) -> Any:
        assert value is None, "it has not asked"
        return Window(4, 3), 1.0, None, None, 1

    def gather(self, value: Any) -> list[Any]:
        return [[4 * square for square in value], value]


def test_other_ranks_are_told_what_is_certain_and_norms_are_root_mean_squares_over_ranks() -> None:
    m = biased(Told(1, 2))
    proposal = next(m.proposals(0, 0))
    assert m.policy.certain == 1
    assert m.lags is not None
    m.applied(1.0)
    assert isinstance(m.policy, LengthByBias)
    assert m.policy.lags == pytest.approx([math.sqrt(2.5 * square) for square in m.lags.tolist()])
    plain = biased(Told(1, 2))
    plain.policy.growth = 1.0
    assert difference(next(plain.proposals(0, 0)).grads, proposal.grads) is not None, "two lags count for more"


def test_the_flags_reach_the_policy_and_the_reference_engine_is_refused() -> None:
    line = "--truncation rat-bias --window 4 --minwindow 2 --bias 0.3 --bias_roulette 0.5 --is_decay 0.7"
    policy = make_policy(parse(line.split())[0], 10, 100)
    assert isinstance(policy, LengthByBias)
    assert (policy.bias, policy.roulette, policy.decay) == (0.3, 0.5, 0.7)
    assert (policy.window, policy.minimum) == (4, 2)
    with pytest.raises(UserError) as error:
        parse([*line.split(), "--engine", "higher"])
    assert str(error.value) == (
        "--truncation rat-bias needs what each step contributes, which --engine higher does not tell: give --engine "
        "replay or lowrank"
    )
