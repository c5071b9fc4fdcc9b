"""Kept networks: where their windows lie, that each goes on from where it was, and that a run resumes exactly."""

import io
from collections import Counter
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from cli import difference
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_problem, relative_error
from test_method import STEPS, method

from framework.assemble.bptt import make_policy
from framework.config.bptt import parse
from framework.data.splits import epoch_batches
from framework.distill_higher import BackpropThroughTime, Higher, outer_gradient
from framework.inner.kernels import Execution
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, State, apart
from framework.outer.engines.engine import RealBatch
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.importance import bin_of, pool_prefix
from framework.outer.method import Proposal
from framework.outer.policies import rat_pool
from framework.outer.policies.policy import Window
from framework.outer.policies.rat_is import ImportanceSampled
from framework.outer.policies.rat_pool import Pool
from framework.outer.pool import NetworkPool
from framework.outer.synthetic import Synthetic, joint_norm
from framework.rng import generator
from framework.run.distributed import Comm


def pooled(peers: Comm | None = None, size: int = 2, by_importance: bool = False, **about: Any) -> BackpropThroughTime:
    """T 8, W 3, two kept networks or more."""
    m = method("rat-pool", peers=peers or Comm(), **about)
    m.policy = Pool(8, 3, size=size, importance=ImportanceSampled(8, 3, bins=2) if by_importance else None)
    m.pool = NetworkPool(m.peers)
    return m


def take(m: BackpropThroughTime, epoch: int, first: int = 0, count: int = STEPS) -> list[Proposal]:
    """Apply ``count`` proposals of an epoch."""
    taken = []
    for _, proposal in zip(range(count), m.proposals(epoch, first), strict=False):
        m.set.update(proposal.grads)
        m.applied(joint_norm(proposal.grads).item())
        taken.append(proposal)
    return taken


@pytest.mark.parametrize(("steps", "window", "minimum"), [(20, 4, 0), (21, 5, 3), (6, 4, 0), (9, 4, 5), (7, 1, 2)])
def test_windows_start_uniformly_and_prefixes_are_as_short_as_said(steps: int, window: int, minimum: int) -> None:
    policy, positions = Pool(steps, window, minimum, size=3), steps - window - minimum + 1
    at, starts, prefix = [-1] * 3, Counter[int](), 0
    for draw in range(6000):
        start, length = policy.choose()
        assert (policy.slot, length) == (draw % 3, window)
        if at[policy.slot] != start:
            assert at[policy.slot] in (-1, *range(steps - window + 1, steps + 1))  # no window is left in it
            if draw >= 3:
                assert minimum <= start < minimum + window
                prefix += start
        at[policy.slot] = start + window
        starts[start] += 1
    assert set(starts) == set(range(minimum, steps - window + 1))
    for count in starts.values():
        assert abs(count - 6000 / positions) < 5 * (6000 / positions) ** 0.5 + 3
    assert prefix / 6000 == pytest.approx(pool_prefix(minimum, steps - window, window), rel=0.1)


def test_first_networks_have_ages_spread_over_all_positions() -> None:
    policy = Pool(100, 10, 1, size=9)
    starts = [policy.choose().start for _ in range(9)]
    assert [(start - 1) // 10 for start in starts] == list(range(9))


def batch_of(m: BackpropThroughTime, epoch: int, number: int) -> RealBatch:
    """The real images of an epoch's step."""
    drawn = epoch_batches(31, 6, generator(0, "real order", epoch))[number]
    draw = m.augmentation.draw(1, 6, generator(0, "real batch", 0, epoch * STEPS + number)).at(0)
    return RealBatch(m.train.batch(drawn), torch.eye(3)[m.train.labels[drawn]].double(), draw)


def test_each_network_goes_on_from_where_its_last_window_left_it() -> None:
    """Against ``higher`` on networks that the plain loop alone has trained, on the set as it was at each step."""
    m, own, fresh = pooled(), dict[int, State](), 0
    loop = m.engine.loop
    for step in range(3 * STEPS):
        epoch, number = divmod(step, STEPS)
        images, labels = m.set.images.detach().clone(), m.set.labels.detach().clone()
        (proposal,) = take(m, epoch, number, 1)
        start = proposal.facts["window_start"]
        assert proposal.facts["network"] == step % 2
        state = own.get(step % 2)
        if state is None or state.t != start:
            state, fresh = State.fresh(m.network.init(generator(0, "network", 0, step))), fresh + 1
        ahead = Window(start - state.t, 3)
        plan = m.sampler.plan(sum(ahead), generator(0, "trajectory", 0, step))
        synthetic = Synthetic(images, labels, learn_labels=True)
        expected = outer_gradient(Higher(loop), [state], synthetic, [plan], ahead, batch_of(m, epoch, number))
        assert relative_error(proposal.grads["images"], expected.grads.images) < 1e-9
        own[step % 2] = loop.train(state, images, labels, plan)
        assert relative_error(expected.state.theta, own[step % 2].theta) < 1e-12
    assert 2 < fresh < 3 * STEPS / 1.5


@pytest.mark.parametrize("rule", [Adam(0.01), SGD(0.1)], ids=["Adam", "SGD"])
def test_engines_return_the_state_after_the_window(rule: Adam | SGD) -> None:
    problems = [make_problem(5, seed=seed) for seed in (0, 1)]
    p = problems[0]
    execution = Execution(together=True)
    loop = InnerLoop(p.network, rule, execution)
    starts = [loop.train(State.fresh(q.theta), p.images, p.labels, q.plan[:2]) for q in problems]
    ends = [loop.train(s, p.images, p.labels, q.plan[2:]) for s, q in zip(starts, problems, strict=True)]
    plans = [q.plan[2:] for q in problems]
    for engine in (Replay(loop), Higher(loop), LowRank(loop, Recipe(2))):
        result = outer_gradient(engine, starts, p.synthetic, plans, Window(0, 3), p.real)
        for found, expected in zip(apart(result.state), ends, strict=True):
            assert found.t == expected.t == 5
            for name in ("theta", "m", "v"):
                assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("meta_batch", "by_importance"), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize("left_at", [0, 1, 3, STEPS])
def test_a_run_is_taken_up_where_it_was_left(left_at: int, meta_batch: int, by_importance: bool) -> None:
    whole, left, again = (pooled(meta_batch=meta_batch, by_importance=by_importance) for _ in range(3))
    expected = take(whole, 0)
    take(left, 0, 0, left_at)
    file = io.BytesIO()
    torch.save((left.state_dict(), left.set.state_dict()), file)
    file.seek(0)
    state, learnt = torch.load(file, weights_only=True)
    again.load_state_dict(state)
    again.set.load_state_dict(learnt)
    for one, two in zip(take(again, 0, left_at, STEPS - left_at), expected[left_at:], strict=True):
        assert one.facts == two.facts
        assert difference(one.grads, two.grads) is None
    assert difference(again.state_dict(), whole.state_dict()) is None
    assert difference(again.set.state_dict(), whole.set.state_dict()) is None


def known(moments: list[float], size: int, steps: int = 40, window: int = 4) -> Pool:
    """A pool of T 40, W 4 whose bins of positions have these moments."""
    importance = ImportanceSampled(steps, window, 1, bins=len(moments))
    importance.moments, importance.samples = moments, [2] * len(moments)
    return Pool(steps, window, 1, size=size, importance=importance)


@given(moments=st.lists(st.floats(1e-12, 1e6), min_size=5, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_expectation_over_the_draw_is_the_mean_over_the_networks(moments: list[float], seed: int) -> None:
    """By enumeration in float64: every network once, with its chance and its weight; chances by the formula."""
    policy, gen = known(moments, 7), np.random.default_rng(seed)
    policy.seed = seed
    for _ in range(30):
        gradients, before = gen.normal(size=(7, 5)), list(policy.ends)
        start = policy.choose().start
        assert policy.slot is not None and policy.importance is not None
        starts = [start if slot == policy.slot else end for slot, end in enumerate(policy.ends)]
        roots = np.sqrt([moments[bin_of(policy.importance.bins, each)] for each in starts])
        chances = 0.8 * roots / roots.sum() + 0.2 / 7
        assert policy.weight == pytest.approx(1 / (7 * chances[policy.slot]), rel=1e-12)
        expectation = sum(p * (1 / (7 * p)) * each for p, each in zip(chances, gradients, strict=True))
        assert expectation == pytest.approx(gradients.mean(0), rel=1e-12, abs=1e-12)
        assert chances.sum() == pytest.approx(1, rel=1e-12)
        assert start in policy.importance.bins[policy.importance.bin]
        for old, now in zip(before, starts, strict=True):
            assert now == old or old == -1 or (old > 36 and 1 <= now < 5)  # what is fresh waits where it is to start


def test_the_expectation_of_what_is_proposed_is_the_mean_of_every_networks_meta_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By enumeration in float64, with each network forced in turn, of the run as it stands after some steps."""
    m = pooled(size=3, by_importance=True)
    take(m, 0)
    take(m, 1)
    chances: list[float] = []
    weighted, plain = [], []
    for slot in range(3):
        again = deepcopy(m)
        assert isinstance(again.policy, Pool) and again.policy.importance is not None
        again.policy.importance.moments, again.policy.importance.samples = [9.0, 1.0], [2, 2]

        def forced(p: Any, gen: Any, slot: int = slot) -> int:
            chances.append(float(p[slot]))
            return slot

        monkeypatch.setattr(rat_pool, "sample", forced)
        proposal = next(again.proposals(2, 0))
        assert proposal.facts["network"] == slot
        weight = proposal.facts["weight"]
        assert weight == again.policy.weight
        weighted.append(chances[-1] * proposal.grads["images"])
        plain.append(proposal.grads["images"] / weight)
        again.applied(3.0 * weight)
        assert again.policy.importance.moments[again.policy.importance.bin] == pytest.approx(
            0.9 * [9.0, 1.0][again.policy.importance.bin] + 0.1 * 9
        )
    assert sum(chances) == pytest.approx(1, rel=1e-12)
    assert len(set(chances)) > 1
    assert relative_error(torch.stack(weighted).sum(0), torch.stack(plain).mean(0)) < 1e-12


def test_every_position_is_visited_as_often_and_those_that_are_seldom_drawn_are_waited_at() -> None:
    policy, starts, weights = known([16.0, 1.0, 1.0], 8), Counter[int](), dict[int, list[float]]()
    for _ in range(9000):
        start = policy.choose().start
        starts[start] += 1
        weights.setdefault((start - 1) // 12, []).append(policy.weight)
    assert set(starts) == set(range(1, 37))
    for count in starts.values():
        assert abs(count - 250) < 5 * 250**0.5
    assert np.mean(weights[1]) > 2 * np.mean(weights[0])
    assert max(map(max, weights.values())) <= 1 / 0.2 + 1e-9


def test_networks_are_drawn_alike_until_every_bin_has_two_samples() -> None:
    policy = known([16.0, 1.0, 1.0], 8)
    assert policy.importance is not None
    policy.importance.samples = [2, 2, 1]
    assert {(policy.choose(), policy.weight)[1] for _ in range(20)} == {1.0}


def test_the_networks_of_a_step_that_was_not_applied_are_replaced() -> None:
    m = pooled()
    first = next(m.proposals(0, 0))  # skipped: nobody says that it was applied
    start = first.facts["window_start"]
    again = pooled()
    again.load_state_dict(m.state_dict())  # which is not forgotten in between
    for run in (m, again):
        take(run, 0, 1, 1)
        assert run.pool is not None and list(run.pool.kept) == [1]
        (third,) = take(run, 0, 2, 1)
        assert third.facts["network"] == 0
        assert third.facts["window_start"] in range(3)
        state = run.pool.kept[0][0][0]
        assert state.t == third.facts["window_start"] + 3
    assert start in range(3)


class Two(Comm):
    """Rank 0 or 1 of two, whose fellow has networks of zeros."""

    def gather(self, value: Any) -> list[Any]:
        fellow = [State(*(torch.zeros_like(t) for t in (s.theta, s.m, s.v)), s.t) for s in value]
        return [value, fellow] if self.rank == 0 else [fellow, value]

    def from_main(self, value: Any) -> Any:
        return (Window(1, 3), 1.0, None, 1, None) if value is None else value


def test_rank_0_keeps_the_networks_of_all_ranks() -> None:
    main, other = pooled(Two(0, 2)), pooled(Two(1, 2))
    for m in (main, other):
        take(m, 0, 0, 1)
        assert m.pool is not None
    assert main.pool is not None and other.pool is not None
    assert set(main.pool.kept[0]) == {0, 1}
    assert set(other.pool.kept[1]) == {1}, "it was told the slot, and keeps its own"
    restored = pooled(Two(1, 2))
    restored.load_state_dict(main.state_dict())
    assert restored.pool is not None
    end = main.pool.kept[0][0][0].t
    (state,) = restored.pool.at(0, end, torch.device("cpu")) or []
    assert not state.theta.any()
    assert restored.pool.at(0, end - 1, torch.device("cpu")) is None
    alone = pooled(Comm(2, 3))  # of a rank that was not there
    alone.load_state_dict(main.state_dict())
    assert alone.pool is not None and alone.pool.at(0, end, torch.device("cpu")) is None


def test_the_flags_make_a_pool_of_their_size() -> None:
    config = parse(["--truncation", "rat-pool", "--window", "4", "--pool_size", "3", "--minwindow", "2"])[0]
    policy = make_policy(config, 10, 100)
    assert isinstance(policy, Pool)
    assert (len(policy.ends), policy.minimum, policy.window, policy.importance) == (3, 2, 4, None)
    line = "--truncation rat-pool --window 4 --pool_choice importance --is_bins 3 --is_decay 0.7 --is_uniform 0.5"
    policy = make_policy(parse(line.split())[0], 10, 100)
    assert isinstance(policy, Pool) and policy.importance is not None
    assert (len(policy.importance.bins), policy.importance.decay, policy.importance.uniform) == (3, 0.7, 0.5)
