"""Windows by importance sampling: without bias, never dearer than uniform ones, and exact to save and restore."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_method import method

from framework.assemble.bptt import clip_bins, make_policy
from framework.config.bptt import parse
from framework.outer.importance import best_chances, bin_of, gains
from framework.outer.policies.at_bptt import ATBPTT
from framework.outer.policies.rat_is import ImportanceSampled
from framework.outer.policies.stages import LATE

MOMENTS = st.lists(st.floats(1e-12, 1e6), min_size=9, max_size=9)


def taught(moments: list[float], **about: float) -> ImportanceSampled:
    """A policy over positions 3 .. 40 that knows the moments of its nine bins."""
    policy = ImportanceSampled(50, 10, 3, **about)  # type: ignore[arg-type]
    for k, moment in enumerate(moments):
        policy.bin = k
        for _ in range(2):
            policy.learn(moment**0.5)
    return policy


@given(moments=MOMENTS, seed=st.integers(0, 99))
def test_the_expectation_over_positions_is_rat_bptts(moments: list[float], seed: int) -> None:
    """By enumeration in float64: every position once, with its chance and its weight."""
    policy = taught(moments)
    gradients = np.random.default_rng(seed).normal(size=(38, 5))  # a meta-gradient of each position
    chances, expectation, total = policy.chances(), np.zeros(5), 0.0
    for k, part in enumerate(policy.bins):
        for position in part:
            chance = chances[k] / len(part)
            expectation += chance * (1 / (38 * chance)) * gradients[position - 3]
            total += chance
    assert total == pytest.approx(1, rel=1e-12)
    assert expectation == pytest.approx(gradients.mean(0), rel=1e-12, abs=1e-12)
    for _ in range(20):  # and those are the weights and places that it hands out
        window = policy.choose()
        (k,) = (k for k, part in enumerate(policy.bins) if window.start in part)
        assert policy.weight == pytest.approx(len(policy.bins[k]) / (38 * chances[k]), rel=1e-12)
        assert policy.weight <= 1 / 0.2 + 1e-9
        assert window.length == 10


def test_positions_are_drawn_with_their_chances() -> None:
    policy = taught([9.0, 4.0, *[1.0] * 7])
    chances, starts = policy.chances(), [policy.choose().start for _ in range(4000)]
    for part, chance in zip(policy.bins, chances, strict=True):
        share = np.mean([start in part for start in starts])
        assert abs(share - chance) < 5 * (chance * (1 - chance) / 4000) ** 0.5
    assert set(starts) == set(range(3, 41))


@given(moments=MOMENTS, slope=st.floats(0, 10), uniform=st.floats(0.0, 1.0))
def test_second_moment_times_cost_is_never_above_that_of_uniform_positions(
    moments: list[float], slope: float, uniform: float
) -> None:
    m, sizes = np.array(moments), np.full(9, 4.0)
    costs = 1 + slope * np.arange(9)

    def product(chances: np.ndarray) -> float:
        """[sum m / (P^2 p)] [sum p c], of positions in bins of equal chance."""
        return float((sizes**2 * m / chances).sum() / sizes.sum() ** 2 * (chances * costs).sum())

    rat, best = product(sizes / sizes.sum()), best_chances(m, costs, sizes, 0.0)
    assert rat == pytest.approx(m.mean() * costs.mean())
    assert product(best) == pytest.approx(np.sqrt(m * costs).mean() ** 2)
    assert product(best) <= rat * (1 + 1e-12)
    if uniform > 0:
        mixed = best_chances(m, costs, sizes, uniform)
        assert (sizes / sizes.sum() / mixed).max() <= 1 / uniform * (1 + 1e-12)


def test_gains_by_hand() -> None:
    """Two positions, one of four times the norm, at the same cost: p = 4/5, 1/5 against 1/2, 1/2."""
    sizes = np.ones(2)
    found = gains(np.array([16.0, 1.0]), np.array([3.0, 3.0]), sizes, 0.2)
    assert found["best"] == pytest.approx(8.5 / (2.5**2))
    assert found["by norm"] == found["rat-is"] < found["best"]
    flat = gains(np.full(5, 2.0), np.full(5, 7.0), np.array([3.0, 3, 3, 2, 2]), 0.2)
    assert flat == pytest.approx({"rat-is": 1, "by norm": 1, "best": 1})
    # Chances made for the wrong moments, p = 4/5, 1/5, where truly the second is large: they lose.
    wrong = gains(np.array([16.0, 1.0]), np.array([3.0, 3.0]), sizes, 0.2, np.array([1.0, 16.0]))
    assert wrong["best"] == pytest.approx((1 + 16) / 2 / ((1 / 0.8 + 16 / 0.2) / 4))


@given(moments=MOMENTS, others=MOMENTS, slope=st.floats(0, 10))
def test_gains_are_those_of_a_sum_over_positions(moments: list[float], others: list[float], slope: float) -> None:
    bins = [list(range(k * 5, k * 5 + (5 if k % 2 else 4))) for k in range(9)]
    sizes = np.array([float(len(part)) for part in bins])
    costs = 1 + slope * np.arange(9.0)
    weights = np.sqrt(np.array(moments) / costs) * sizes
    chances, positions, moment, cost = weights / weights.sum(), sizes.sum(), 0.0, 0.0
    rat_moment = rat_cost = 0.0
    for k, part in enumerate(bins):
        for _ in part:
            p = 0.8 * chances[k] / len(part) + 0.2 / positions
            moment, cost = moment + p * others[k] / (positions * p) ** 2, cost + p * costs[k]
            rat_moment, rat_cost = rat_moment + others[k] / positions, rat_cost + costs[k] / positions
    found = gains(np.array(moments), costs, sizes, 0.2, np.array(others))
    assert found["rat-is"] == pytest.approx(rat_moment * rat_cost / (moment * cost), rel=1e-9)


def test_positions_are_uniform_until_every_bin_has_two_samples_and_averages_decay() -> None:
    policy = ImportanceSampled(20, 2, bins=3, decay=0.5)
    assert [len(part) for part in policy.bins] == [7, 6, 6]
    for k, norms in enumerate(([2.0, 4.0], [1.0, 1.0], [3.0])):
        policy.bin = k
        for norm in norms:
            policy.learn(norm)
    assert policy.chances() == pytest.approx(np.array([7, 6, 6]) / 19)
    policy.learn(1.0)
    assert policy.moments == pytest.approx([0.5 * 4 + 0.5 * 16, 1.0, 0.5 * 9 + 0.5 * 1])
    assert policy.chances() == pytest.approx(best_chances(np.array([10, 1, 5.0]), policy.costs, policy.sizes, 0.2))


def test_fewer_positions_than_bins_and_gradients_of_zero() -> None:
    policy = ImportanceSampled(5, 5)
    for _ in range(4):
        assert tuple(policy.choose()) == (0, 5)
        assert policy.weight == 1
        policy.learn(0.0)


def test_costs_are_counted_in_passes_by_the_flags() -> None:
    flags = "--truncation rat-is --window 4 --totwindow 12 --batch_per_class 2 --num_per_class 2 --is_bins 3"
    policy = make_policy(parse(flags.split())[0], num_classes=10, real_batch=100)
    assert isinstance(policy, ImportanceSampled)
    inner = 20
    assert policy.costs == pytest.approx([3 * inner * n + 12 * inner * 4 + 3 * 100 for n in (1, 4, 7)])


def test_a_restored_policy_continues_exactly() -> None:
    one = taught([float(k + 1) for k in range(9)])
    one.choose()
    two = ImportanceSampled(50, 10, 3)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for norm in (0.5, 3.0, 2.0):
        for policy in (one, two):
            policy.learn(norm)
        assert one.choose() == two.choose()
        assert one.state_dict() == two.state_dict()


def test_the_method_weights_its_proposal_and_tells_the_policy_the_unweighted_norm() -> None:
    plain, weighted = method("rat-is"), method("rat-is")
    one = next(plain.proposals(0, 0))
    weighted._window(0)
    weighted.policy.weight = 2.5
    two = next(weighted.proposals(0, 0))
    for name, gradient in one.grads.items():
        assert (two.grads[name] == 2.5 * gradient).all()
    assert two.facts["weight"] == 2.5
    weighted.applied(5.0)
    assert isinstance(weighted.policy, ImportanceSampled)
    assert weighted.policy.moments[weighted.policy.bin] == 4.0


@pytest.mark.parametrize(
    ("flags", "first", "last", "bins"),
    [
        ("--truncation rat-bptt --minwindow 2", 2, 16, 5),
        ("--truncation at-bptt -d 2 --minwindow 2", 2, 16, 5),
        ("--truncation at-bptt-pp --minwindow 2", 0, 16, 5),  # it does not read --minwindow
        ("--truncation fixed", 0, 16, 5),
        ("--truncation bptt", 0, 0, 1),
    ],
)
def test_bins_of_clips_are_those_of_importance_sampling(flags: str, first: int, last: int, bins: int) -> None:
    config = parse([*flags.split(), "--window", "4", "--clip_by", "position", "--is_bins", "5"])[0]
    policy = make_policy(config, 10, 100)
    found = clip_bins(config, policy)
    assert [start for part in found for start in part] == list(range(first, last + 1))
    assert len(found) == bins
    if last:
        assert found == ImportanceSampled(20, 4, first, bins=5).bins
    for number, part in enumerate(found):
        assert {bin_of(found, start) for start in part} == {number}
    assert bin_of(found, 19) == len(found) - 1  # the start of a window that has become shorter
    assert clip_bins(replace(config, clip_by="all"), policy) == []


def test_the_method_names_the_clip_of_each_proposal() -> None:
    apart, together = method("rat-bptt", every_step=True, clip_bins=[[0, 1], [2, 3], [4, 5]]), method("rat-bptt")
    proposals = [*apart.proposals(0, 0), *apart.proposals(1, 0)]
    assert [p.clip for p in proposals] == [p.facts["window_start"] // 2 for p in proposals]
    assert len({p.clip for p in proposals}) > 1
    assert {p.clip for p in together.proposals(0, 0)} == {0}


def test_reweighted_at_bptt_has_the_expectation_of_uniform_steps() -> None:
    norms = [3.0, 1.0, 0.5, 0.2, 0.1]
    policy = ATBPTT(5, 1, radius=0, reweight=True)
    policy.stages.now = LATE
    gradients = np.arange(1.0, 6.0) ** 2
    seen = {}
    for _ in range(300):
        window = policy.choose(lambda: norms)
        seen[window.start] = policy.probabilities()[window.start] * policy.weight * gradients[window.start]
    assert set(seen) == set(range(5))
    assert sum(seen.values()) == pytest.approx(gradients.mean(), rel=1e-12)
