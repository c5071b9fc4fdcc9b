"""AT-BPTT++'s policy against its equations in plain Python, and how a method asks it."""

import json
import math
from typing import Any

import pytest
import torch
from cli import difference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_method import STEPS, at, epoch, method
from torch import Tensor

from framework.errors import UserError
from framework.outer.engines.kept_factors import KeptFactors
from framework.outer.policies.at_bptt_pp import ATBPTTPP
from framework.outer.policies.policy import Window
from framework.rng import generator
from framework.run.distributed import Comm

EPS = 1e-8


def standardised(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / (deviation + EPS) for v in values]


class Equations:
    """The selector as the sources write it, one number at a time; it is told which step was drawn."""

    def __init__(self, steps: int, window: int, radius: int, kl: float, rho: float, tau: float) -> None:
        self.steps, self.window, self.radius, self.kl, self.rho, self.tau = steps, window, radius, kl, rho, tau
        self.reference = [1 / steps] * steps
        self.means: list[float] = []
        self.before: list[float] | None = None

    def update(self, norms: list[float]) -> None:
        self.n = [math.sqrt(norm**2 + 1e-12) for norm in norms]
        self.v = [0.0] + [abs(after - before) for before, after in zip(self.n, self.n[1:], strict=False)]
        self.means.append(math.fsum(self.n) / self.steps)
        low, high = min(self.means), max(self.means)
        self.beta = 1.0 if high - low < EPS else 2 * (self.means[-1] - low) / (high - low + EPS) - 1
        advantages = standardised(self.n)
        weights = [
            max(reference, EPS) * math.exp(self.beta * a / self.kl)
            for reference, a in zip(self.reference, advantages, strict=True)
        ]
        self.policy = [weight / math.fsum(weights) for weight in weights]
        mixed = zip(self.reference, self.policy, strict=True)
        self.reference = [(1 - self.rho) * reference + self.rho * new for reference, new in mixed]

    def window_at(self, t: int) -> Window:
        eta = 1 / (1 + math.exp(-standardised(self.v)[t] / self.tau))
        length = math.floor(self.window - self.radius + 2 * self.radius * eta + 0.5)
        length = max(length, 1, self.window - self.radius)
        length = min(length, self.steps, self.window + self.radius, t + 1)
        return Window(t + 1 - length, length)

    def drift_at(self, t: int) -> float:
        drift = 1.0 if self.before is None else self.v[t] / (self.before[t] + EPS)
        self.before = self.n
        return drift


@pytest.mark.parametrize(
    ("radius", "kl", "rho", "tau"), [(3, 1.0, 0.05, 1.0), (9, 0.3, 0.5, 0.2), (0, 4.0, 1.0, 5.0), (3, 0.05, 0.9, 0.05)]
)
def test_it_follows_its_equations(radius: int, kl: float, rho: float, tau: float) -> None:
    policy = ATBPTTPP(12, 5, 1, radius=radius, kl_weight=kl, reference_rate=rho, length_temperature=tau)
    oracle = Equations(12, 5, radius, kl, rho, tau)
    gen = generator(0, "norms")
    betas = []
    for call in range(40):
        scale = 3 * abs(math.sin(call)) + 0.1
        norms = (scale * torch.rand(12, generator=gen, dtype=torch.float64)).tolist()
        chosen = policy.choose(lambda norms=norms: norms)  # type: ignore[misc]
        oracle.update(norms)
        t = sum(chosen) - 1
        assert policy.chances == pytest.approx(oracle.policy, rel=1e-9)
        assert policy.reference == pytest.approx(oracle.reference, rel=1e-9)
        assert policy.beta == pytest.approx(oracle.beta, rel=1e-9)
        assert chosen == oracle.window_at(t)
        assert policy.drift == pytest.approx(oracle.drift_at(t), rel=1e-9)
        betas.append(policy.beta)
    assert betas[0] == 1
    assert min(betas) < -0.9
    assert len({round(beta, 6) for beta in betas}) > 20


def test_beta_by_hand() -> None:
    policy, betas = ATBPTTPP(2, 1, radius=0), []
    for mean in (3.0, 3.0, 1.0, 2.0, 2.5, 5.0, 0.0):
        policy.choose(lambda mean=mean: [mean, mean])  # type: ignore[misc]
        betas.append(policy.beta)
    assert betas == pytest.approx([1, 1, -1, 0, 0.5, 1, -1], abs=1e-5)


def test_the_window_ends_at_a_step_drawn_from_the_policy() -> None:
    norms = [0.3, 2.0, 1.1, 0.0, 2.5, 1.7, 0.9, 0.2]
    policy = ATBPTTPP(8, 3, radius=2, reference_rate=0.0, kl_weight=0.8)  # the same means, so beta is 1 throughout
    last = [sum(policy.choose(lambda: norms)) - 1 for _ in range(4000)]
    weights = [math.exp(a / 0.8) for a in standardised(norms)]
    expected = [4000 * weight / math.fsum(weights) for weight in weights]
    assert chisquare([last.count(t) for t in range(8)], expected).pvalue > 1e-3


def test_what_is_preferred_does_not_depend_on_the_scale_of_norms() -> None:
    norms = [5.0, 2.0, 1.0, 0.5]
    one, other = ATBPTTPP(4, 2, radius=1), ATBPTTPP(4, 2, radius=1)
    windows = [(one.choose(lambda: norms), other.choose(lambda: [1000 * n for n in norms])) for _ in range(20)]
    assert all(a == b for a, b in windows)
    assert one.chances == pytest.approx(other.chances, rel=1e-6)


@st.composite
def policies(draw: st.DrawFn) -> tuple[ATBPTTPP, list[float]]:
    """Any policy, and any finite norms that float32 can hold."""
    steps = draw(st.integers(1, 40))
    policy = ATBPTTPP(
        steps,
        draw(st.integers(1, steps)),
        draw(st.integers(0, 99)),
        radius=draw(st.integers(0, 60)),
        kl_weight=draw(st.floats(1e-6, 1e6)),
        reference_rate=draw(st.sampled_from([0.0, 0.05, 1.0])),
        length_temperature=draw(st.floats(1e-9, 1e6)),
    )
    one = st.one_of(st.just(0.0), st.floats(0, 3e38), st.floats(0.1, 10), st.floats(0, 1e-30))
    return policy, draw(st.lists(one, min_size=steps, max_size=steps))


@given(policies())
@settings(max_examples=150, deadline=None)
def test_windows_stay_in_bounds_and_w_never_changes(case: tuple[ATBPTTPP, list[float]]) -> None:
    policy, norms = case
    window, radius = policy.window, policy.radius
    for scale in (1.0, 0.5, 2.0):
        chosen = policy.choose(lambda scale=scale: [scale * n for n in norms])  # type: ignore[misc]
        assert chosen.start >= 0
        assert sum(chosen) <= policy.steps
        assert 1 <= chosen.length <= min(policy.steps, window + radius)
        assert chosen.length >= min(max(1, window - radius), sum(chosen))
        assert policy.window == window, "ancestors' fault 1"
        assert -1 <= policy.beta <= 1
        assert math.fsum(policy.chances) == pytest.approx(1)
        assert policy.drift is not None
        assert policy.drift >= 0
    assert all(set(values) <= {x for x in values if math.isfinite(x)} for values in policy.curves().values())


def test_what_it_shows() -> None:
    policy = ATBPTTPP(4, 2, radius=1)
    assert policy.curves() == {}
    assert policy.state() == {"stage": "large norms", "beta": 1.0}
    policy.choose(lambda: [4.0, 3.0, 2.0, 1.0])
    policy.choose(lambda: [2.0, 1.5, 1.0, 0.5])
    assert policy.state()["stage"] == "small norms"
    assert set(policy.curves()) == {"gradient norm", "variation", "probability", "reference"}
    assert all(len(values) == 4 for values in policy.curves().values())
    json.dumps(policy.state())


def test_a_norm_that_is_not_finite_names_its_step() -> None:
    with pytest.raises(UserError, match="inner step 2 of 4: lower --inner_lr"):
        ATBPTTPP(4, 2, radius=1).choose(lambda: [1.0, 2.0, math.nan, 1.0])


# ---- in a method -----------------------------------------------------------------------------------


def test_the_probe_and_the_first_network_of_a_step_start_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    m, starts, lengths = method("at-bptt-pp", meta_batch=2), [], []
    probe, train = m.engine.loop.probe_norms, m.engine.loop.train

    def probed(theta: Tensor, images: Tensor, labels: Tensor, plan: Any) -> list[float]:
        starts.append(theta)
        lengths.append(len(plan))
        norms: list[float] = probe(theta, images, labels, plan)
        starts.pop()  # what training inside the probe has added
        return norms

    monkeypatch.setattr(m.engine.loop, "probe_norms", probed)
    monkeypatch.setattr(m.engine.loop, "train", lambda state, *more: starts.append(state.theta) or train(state, *more))
    for step, _ in enumerate(epoch(m)):
        own, first, second = starts[3 * step : 3 * step + 3]
        assert torch.equal(own, first)
        assert not torch.equal(first, second)
        assert torch.equal(first, m.network.init(generator(0, "network", 0, step)))
    assert lengths == [8] * STEPS, "once per outer step, over all of T"


@pytest.mark.parametrize("left_at", [0, 2, STEPS])
def test_an_epoch_is_taken_up_where_it_was_left(left_at: int) -> None:
    whole, again = method("at-bptt-pp"), method("at-bptt-pp")
    expected = [proposal.facts for proposal in epoch(whole)]
    assert len({(facts["window_start"], facts["window_length"]) for facts in expected}) > 1
    assert {"beta", "drift", "stage"} <= expected[0].keys()
    left = at(left_at, "at-bptt-pp", False)
    again.load_state_dict(json.loads(json.dumps(left.state_dict())))
    again.set.load_state_dict(left.set.state_dict())
    assert [proposal.facts for proposal in epoch(again, first=left_at)] == expected[left_at:]
    assert difference(again.set.state_dict(), whole.set.state_dict()) is None
    assert again.close_epoch(0.5, 0.5) == whole.close_epoch(0.5, 0.5)
    assert again.state_dict() == whole.state_dict()


def test_every_rank_is_told_the_window_and_its_drift() -> None:
    class Second(Comm):
        def from_main(self, value: Any) -> Any:
            assert value is None, "it has not asked"
            return Window(2, 3), 1.0, 0.25, None, None

    begun = []

    class Kept(KeptFactors):
        def begin(self, step: int, drift: float | None) -> None:
            begun.append((step, drift))

    m = method("at-bptt-pp", peers=Second(1, 2))
    m.kept = Kept(None, m.peers)  # type: ignore[arg-type]
    proposal = next(m.proposals(0, 0))
    assert (proposal.facts["window_start"], proposal.facts["window_length"]) == (2, 3)
    assert begun == [(0, 0.25)]
