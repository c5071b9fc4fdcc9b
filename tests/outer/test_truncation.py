"""Truncation policies: bounds for every setting, each policy's own rule, exact state."""

import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from framework.assemble.bptt import make_policy
from framework.config.bptt import AUTOMATIC, Config, parse, resolve_patience
from framework.errors import UserError
from framework.outer.policies.at_bptt import ATBPTT
from framework.outer.policies.plain import BPTT, Forward
from framework.outer.policies.policy import Policy, Window, no_probe
from framework.outer.policies.rat_bptt import RaTBPTT
from framework.outer.policies.registry import POLICIES
from framework.outer.policies.stages import STAGES, Stages

Setting = tuple[int, int, int]


@st.composite
def settings_of(draw: st.DrawFn) -> Setting:
    """Any valid T, W, minwindow."""
    steps = draw(st.integers(1, 400))
    window = draw(st.integers(1, steps))
    return steps, window, draw(st.integers(0, steps - window))


def make(name: str, setting: Setting, seed: int = 0, **flags: Any) -> Policy:
    steps, window, minimum = setting
    d = {"d": 7} if name in AUTOMATIC else {}
    flags = {**d, **flags}
    return make_policy(
        Config(truncation=name, totwindow=steps, window=window, minwindow=minimum, seed=seed, **flags), 10, 200
    )


def ramp(policy: Policy) -> list[float]:
    """A probe's norms that differ at every step and vary ever more."""
    return [t**2 / 100 for t in range(policy.steps)]


def windows(policy: Policy, count: int) -> Iterator[Window]:
    """What a run of epochs with a loss and an accuracy that never improve would see."""
    for _ in range(count):
        window = policy.choose(lambda: ramp(policy))
        yield window
        policy.learn(norm=1.0)
        policy.learn_lags([0.5**lag for lag in range(window.length)])
        policy.observe(loss=1.0, accuracy=0.5)


@pytest.mark.parametrize("name", POLICIES)
@given(setting=settings_of(), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_windows_are_within_bounds_and_w_never_changes(name: str, setting: Setting, seed: int) -> None:
    steps, window, minimum = setting
    policy = make(name, setting, seed)
    for chosen in windows(policy, 200 if name == "forward" else 15 if name == "rat-bias" else 5):
        assert chosen.start >= (minimum if POLICIES[name].places else 0)
        assert chosen.length >= 1
        assert chosen.start + chosen.length <= steps
        if name != "bptt":
            assert policy.window == window
        if name == "rat-bias":
            assert chosen.length <= window
        elif name != "bptt" and not (POLICIES[name].resizes or POLICIES[name].learns):
            assert chosen.length == window


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bptt", (0, 200)), ("t-bptt", (0, 60)), ("fixed", (140, 60)), ("forward", (20, 60))],
)
def test_first_window_of_the_deterministic_policies(name: str, expected: tuple[int, int]) -> None:
    assert make(name, (200, 60, 20)).choose() == expected


def test_rat_bptt_is_uniform_with_both_ends_included() -> None:
    policy = RaTBPTT(30, 10, 5)
    starts = [policy.choose().start for _ in range(4000)]
    counts = [starts.count(start) for start in range(5, 21)]
    assert sum(counts) == 4000
    assert chisquare(counts).pvalue > 1e-3


def test_complete_random_asks_for_a_window_at_every_step() -> None:
    """Ancestors' fault 5: --complete_random did nothing."""
    assert make("rat-bptt", (9, 2, 0), complete_random=True).every_step
    assert not make("rat-bptt", (9, 2, 0)).every_step


def test_forward_moves_after_sixty_stale_epochs_and_stops_at_the_end() -> None:
    policy = Forward(200, 60, 10)
    starts = [window.start for window in windows(policy, 400)]
    # the first epoch at a position sets its best loss, sixty more without a better one move the window
    assert starts[:61] == [10] * 61
    assert starts[61:122] == [70] * 61
    assert starts[122:183] == [130] * 61
    assert set(starts[183:]) == {140}


def test_forward_stays_while_the_loss_improves() -> None:
    policy = Forward(200, 60)
    for epoch in range(500):
        assert policy.choose().start == 0
        policy.observe(loss=1 / (1 + epoch // 60), accuracy=0.0)  # better every 60th epoch: never 60 stale ones


def test_a_new_position_starts_with_a_clean_record() -> None:
    """Ancestors' fault 6: losses at windows in different places are not comparable."""
    policy = Forward(200, 60)
    policy.observe(loss=0.1, accuracy=0.0)
    for _ in range(60):
        policy.observe(loss=0.5, accuracy=0.0)
    assert policy.choose().start == 60
    policy.observe(loss=0.5, accuracy=0.0)  # worse than anything at 0, but the best seen here
    assert policy.state_dict()["stale"] == 0


@pytest.mark.parametrize("name", POLICIES)
@given(setting=settings_of(), before=st.integers(0, 130), after=st.integers(1, 70))
@settings(max_examples=25, deadline=None)
def test_a_restored_policy_continues_exactly(name: str, setting: Setting, before: int, after: int) -> None:
    original = make(name, setting)
    list(windows(original, before))
    restored = make(name, setting)
    restored.load_state_dict(json.loads(json.dumps(original.state_dict())))
    assert list(windows(original, after)) == list(windows(restored, after))


def test_seeds_give_different_sequences() -> None:
    one, two = (list(windows(make("rat-bptt", (200, 10, 0), seed), 10)) for seed in (0, 1))
    assert one != two


def test_a_window_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        BPTT(5, 5).choose().length = 3  # type: ignore[misc]


# ---- AT-BPTT ---------------------------------------------------------------------------------------

NORMS = st.one_of(
    st.just(0.0), st.floats(0, 1e308), st.floats(0, 1e-300), st.floats(0.1, 10), st.sampled_from([1.0, 5e-324, 1e308])
)


@st.composite
def automatic(draw: st.DrawFn) -> tuple[ATBPTT, list[float]]:
    """Any AT-BPTT policy in any stage, with any finite norms."""
    steps = draw(st.integers(1, 60))
    window = draw(st.integers(1, steps))
    policy = ATBPTT(
        steps,
        window,
        draw(st.integers(0, steps - window)),
        draw(st.integers(0, 99)),
        radius=draw(st.integers(0, 80)),
        tau=draw(st.floats(1e-6, 1e6)),
        measure=draw(st.sampled_from(["rank", "softmax"])),
        rule=draw(st.sampled_from(["adaptive", "public"])),
        anchor=draw(st.sampled_from(["first", "centre", "last"])),
        scale=draw(st.sampled_from(["raw", "standard"])),
        late=draw(st.sampled_from(["inverse", "mirror"])),
        reweight=draw(st.booleans()),
        move=draw(st.booleans()),
        resize=draw(st.booleans()),
    )
    policy.stages.now = draw(st.integers(0, 2))
    same = draw(st.booleans())
    norms = [draw(NORMS)] * steps if same else draw(st.lists(NORMS, min_size=steps, max_size=steps))
    return policy, norms


@given(case=automatic())
@settings(max_examples=400, deadline=None)
def test_at_bptt_stays_in_bounds_for_all_settings_and_norms(case: tuple[ATBPTT, list[float]]) -> None:
    policy, norms = case
    window = policy.window
    for _ in range(5):
        chosen = policy.choose(lambda: norms)
        assert policy.minimum <= chosen.start
        assert chosen.length >= 1
        assert chosen.start + chosen.length <= policy.steps
        assert policy.window == window, "ancestors' fault 1: the choice overwrote W"
    if policy.norms is not None:
        assert policy.probabilities().sum() == pytest.approx(1)
        assert (policy.eta() >= 0).all()
        assert policy.eta().max() == 1


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_positions_follow_the_formula(stage: int, tau: float) -> None:
    """Early P(t) ~ exp(n/tau), middle uniform, late P(t) ~ exp(-n/tau) (ancestors' faults 3 and 4)."""
    norms = [0.3, 2.0, 1.1, 0.0, 2.5, 1.7, 0.9, 0.2]
    policy = ATBPTT(8, 1, radius=0, tau=tau)
    policy.stages.now = stage
    starts = [policy.choose(lambda: norms).start for _ in range(6000)]
    weight = [math.exp((1, 0, -1)[stage] * n / tau) for n in norms]
    expected = [6000 * w / math.fsum(weight) for w in weight]
    assert chisquare([starts.count(t) for t in range(8)], expected).pvalue > 1e-4
    assert (starts.count(4) > starts.count(3)) == (stage == 0) or stage == 1


@pytest.mark.parametrize(
    ("anchor", "expected"),
    [
        # T 10, W 4: the window of every step drawn, moved into the trajectory; cut where its last step is the one drawn
        ("first", [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4), (6, 4), (6, 4), (6, 4)]),
        ("centre", [(0, 4), (0, 4), (0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4), (6, 4)]),
        ("last", [(0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4)]),
    ],
)
def test_the_anchor_says_which_step_of_the_window_was_drawn(anchor: str, expected: list[Window]) -> None:
    policy = ATBPTT(10, 4, radius=0, anchor=anchor)
    assert [policy.around(t, 4) for t in range(10)] == expected
    policy.late = "mirror"
    assert [policy.around(t, 4) for t in range(10)] == expected, "nothing is mirrored before the late stage"
    policy.stages.now = 2
    mirrored = [(10 - start - length, length) for start, length in expected]
    assert [policy.around(t, 4) for t in range(10)] == mirrored


@pytest.mark.parametrize(("anchor", "expected"), [("first", (5, 4)), ("centre", (3, 4)), ("last", (3, 3))])
def test_a_minimum_holds_for_every_anchor(anchor: str, expected: Window) -> None:
    assert ATBPTT(10, 4, 3, radius=0, anchor=anchor).around(5, 4) == expected
    assert ATBPTT(10, 4, 3, radius=0, anchor="last").around(0, 4) == (3, 1)


def test_mirrored_late_positions_are_the_early_ones_reflected() -> None:
    """The public code: the window starts T - t - M into the trajectory, t as likely as early on."""
    norms = [4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1]
    early, late = (ATBPTT(8, 2, radius=0, late="mirror") for _ in range(2))
    late.stages.now = 2
    pairs = [(early.choose(lambda: norms), late.choose(lambda: norms)) for _ in range(200)]
    assert all(after.start == 8 - 2 - before.start for before, after in pairs)
    assert len({after.start for _, after in pairs}) > 3
    assert late.probabilities() == pytest.approx(early.probabilities())


@pytest.mark.parametrize("norms", [[3.0, 1.0, 2.0, 6.0], [1e308, 0.0, 1e307, 1e308], [5e-324, 0.0, 0.0, 0.0]])
def test_standard_norms_have_mean_0_and_deviation_1(norms: list[float]) -> None:
    exact = [Fraction(norm) for norm in norms]
    mean = sum(exact) / 4
    unit = max(exact)  # a scale, so that the square root below neither overflows nor vanishes
    deviation = math.sqrt(sum(((n - mean) / unit) ** 2 for n in exact) / 4)
    weight = [math.exp(-float((n - mean) / unit) / deviation / 2.0) for n in exact]
    policy = ATBPTT(4, 1, radius=0, scale="standard", tau=2.0)
    policy.stages.now = 2
    policy.choose(lambda: norms)
    assert policy.probabilities() == pytest.approx([w / math.fsum(weight) for w in weight], rel=1e-12)


def test_equal_norms_are_standardised_to_zero() -> None:
    policy = ATBPTT(4, 1, radius=0, scale="standard")
    policy.choose(lambda: [0.1] * 4)
    assert policy.probabilities().tolist() == [0.25] * 4


def test_a_plateau_of_means_sees_through_jumps_that_consecutive_epochs_do_not() -> None:
    """Accuracy that jumps by 10 points with the window's place, and rises by nothing: a plateau only by its mean."""
    jumps = [0.5, 0.6] * 20
    by_mean, by_epoch = (Stages((1.5, 1.0), (4, 2), plateau) for plateau in ("mean", "consecutive"))
    for accuracy in jumps[:7]:
        by_mean.observe(accuracy)
    assert by_mean.now == 0, "four epochs, and three of the four before them"
    by_mean.observe(jumps[7])
    assert by_mean.now == 1
    for accuracy in jumps[8:12]:
        by_mean.observe(accuracy)
    assert by_mean.now == 2, "two and two epochs of the middle stage alone"
    for accuracy in jumps:
        by_epoch.observe(accuracy)
    assert by_epoch.now == 0


def test_a_mean_that_rises_by_the_gain_is_progress() -> None:
    stages = Stages((1.5, 1.0), (3, 3), "mean")
    for epoch in range(60):
        stages.observe(0.2 + 0.00501 * epoch)  # three epochs on, the mean of three is 1.503 points higher
    assert stages.now == 0


@pytest.mark.parametrize(("epochs", "warned"), [(2000, False), (2001, True)])
def test_a_share_of_very_many_epochs_is_warned_of(epochs: int, warned: bool) -> None:
    flags = f"--ddtype curriculum --cctype 2 -d 2 --epochs {epochs} --early_patience 0.05E"
    assert any("--early_patience 0.05E is" in warning for warning in parse(flags.split())[1]) == warned


@pytest.mark.parametrize("weight", ["rank", "softmax"])
def test_lengths_follow_the_variation_at_the_step_drawn(weight: str) -> None:
    norms = [1.0, 1.0, 3.0, 2.5, 2.0, 6.0]
    variation = [0.0, 0.0, 2.0, 0.5, 0.5, 4.0]
    if weight == "rank":  # values strictly below, over the most there can be
        eta = [sum(other < v for other in variation) / 5 for v in variation]
    else:
        eta = [math.exp(v - 4.0) for v in variation]
    policy = ATBPTT(6, 4, radius=3, measure=weight)
    assert policy.choose(lambda: norms).length in range(1, 7)
    assert policy.eta() == pytest.approx(eta)
    lengths = {policy._length(t) for t in range(6)}
    assert lengths == {min(6, max(1, math.floor(4 - 3 + 6 * e + 0.5))) for e in eta}


def test_the_public_rule_uses_w_plus_d_then_w_minus_d() -> None:
    policy = ATBPTT(200, 40, radius=10, rule="public")
    early = {policy.choose(lambda: ramp(policy)).length for _ in range(50)}
    policy.stages.now = 1
    assert {policy.choose(no_probe).length for _ in range(20)} == {50}
    policy.stages.now = 2
    assert {policy.choose(lambda: ramp(policy)).length for _ in range(20)} == {30}
    assert early <= set(range(30, 51))


def test_the_probe_runs_only_when_needed() -> None:
    """Ancestors' fault 5: it also ran when no policy needed it."""
    calls = []

    def probe() -> list[float]:
        calls.append(1)
        return [1.0] * 20

    policy = ATBPTT(20, 5, radius=2, rule="public", probe_every=3)
    for _ in range(7):
        policy.choose(probe)
    assert len(calls) == 3, "epochs 0, 3 and 6"
    policy.stages.now = 1
    policy.norms = None
    policy.choose(probe)
    assert len(calls) == 3, "uniform position, fixed length: nothing to look at"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_names_its_step(value: float) -> None:
    norms = [1.0, 2.0, value, 1.0]
    with pytest.raises(UserError, match="inner step 2"):
        ATBPTT(4, 2, radius=1).choose(lambda: norms)


@given(steps=st.integers(1, 1000))
@settings(deadline=None)
def test_every_stage_is_reached_for_every_t(steps: int) -> None:
    """Ancestors' fault 2: 0.125 * 300 = 37.5 was never equal to a counter."""
    policy = make("at-bptt", (steps, 1, 0))
    early, middle = math.ceil(round(0.15 * steps, 6)), math.ceil(round(0.125 * steps, 6))
    stages = []
    for _ in range(early + middle + 2):
        stages.append(policy.state()["stage"])
        policy.observe(loss=1.0, accuracy=0.5)
    # The first epoch has none before it to compare with.
    assert stages == ["early"] * (early + 1) + ["middle"] * middle + ["late"]


def test_progress_resets_the_counter_and_thresholds_are_points() -> None:
    policy = ATBPTT(10, 2, radius=1, stages=Stages(gains=(1.5, 1.0), patience=(2, 2)))
    accuracies = [0.10, 0.11, 0.13, 0.14, 0.15]  # gains of 1, 2, 1, 1 points
    stages = []
    for accuracy in accuracies:
        policy.observe(loss=0.0, accuracy=accuracy)
        stages.append(policy.stages.now)
    assert stages == [0, 0, 0, 0, 1]
    for accuracy, stage in ((0.165, 1), (0.17, 1), (0.185, 1), (0.19, 1), (0.195, 2), (0.9, 2), (0.1, 2)):
        policy.observe(loss=0.0, accuracy=accuracy)  # 1.5 resets, 0.5 counts, 1.5 resets, 0.5, 0.5: late for good
        assert policy.stages.now == stage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("0.15T", 30),
        ("0.125T", 25),
        ("0.05E", 50),
        ("0.0T", 1),
        ("0.0001E", 1),
        ("0.07E", 70),
        ("1.5T", 300),
    ],
)
def test_patience_in_epochs(text: str, expected: int) -> None:
    assert resolve_patience(text, steps=200, epochs=1000) == expected


@pytest.mark.parametrize("text", ["T", "-1", "5%", "1e3", "0.1X"])
def test_patience_of_another_form(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        resolve_patience(text, 10, 10)


@given(case=automatic(), before=st.integers(0, 12), after=st.integers(1, 12), every=st.integers(1, 4),
       plateau=st.sampled_from(["consecutive", "mean"]))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_a_restored_at_bptt_continues_exactly(
    case: tuple[ATBPTT, list[float]], before: int, after: int, every: int, plateau: str
) -> None:
    original, norms = case
    original.probe_every = every
    original.stages.plateau, original.stages.patience = plateau, (2, 1)
    gen = np.random.default_rng(0)

    def go(policy: ATBPTT, count: int, seed: int) -> list[tuple[Window, int]]:
        rng = np.random.default_rng(seed)
        result = []
        for _ in range(count):
            result.append((policy.choose(lambda: norms), policy.stages.now))
            policy.observe(loss=0.0, accuracy=float(rng.random()))
        return result

    go(original, before, int(gen.integers(99)))
    restored = ATBPTT(
        original.steps, original.window, original.minimum, original.seed, radius=original.radius, tau=original.tau,
        measure=original.measure, rule=original.rule, anchor=original.anchor, scale=original.scale, late=original.late,
        probe_every=every, move=original.move, resize=original.resize, stages=Stages((1.5, 1.0), (2, 1), plateau),
    )  # fmt: skip
    restored.load_state_dict(json.loads(json.dumps(original.state_dict())))
    assert go(original, after, 5) == go(restored, after, 5)


def test_ablations_switch_one_half_off() -> None:
    positions, lengths = make("at-bptt-positions", (100, 20, 0)), make("at-bptt-windows", (100, 20, 0))
    norms = [0.0] * 99 + [50.0]
    assert {positions.choose(lambda: norms) for _ in range(20)} == {Window(80, 20)}
    chosen = [lengths.choose(lambda: norms) for _ in range(50)]
    assert lengths.curves()["probability"] == [1 / 100] * 100, "what is shown is what was drawn from"
    assert len({window.start for window in chosen}) > 10
    assert {window.length for window in chosen} <= {13, 27}


def test_the_flags_reach_the_policy() -> None:
    policy = make("at-bptt", (200, 40, 3), d=9, tau=2.5, window_weight="softmax", window_rule="public", early_gain=3.0,
                  middle_gain=2.0, early_patience="4", middle_patience="0.05E", probe_every=6, epochs=400,
                  truncation_anchor="last", norm_scale="standard", late="mirror",
                  plateau="mean", reweight=True)  # fmt: skip
    assert isinstance(policy, ATBPTT)
    assert (policy.radius, policy.tau, policy.measure, policy.rule) == (9, 2.5, "softmax", "public")
    assert policy.reweight
    assert (policy.anchor, policy.scale, policy.late, policy.probe_every) == ("last", "standard", "mirror", 6)
    stages = policy.stages
    assert (stages.gains, stages.patience, stages.plateau) == ((3.0, 2.0), (4, 20), "mean")
    assert policy.state() == {"stage": STAGES[0], "stage_number": 1, "stale_epochs": 0}


@pytest.mark.parametrize("name", POLICIES)
def test_a_state_of_another_policy_or_version_is_refused(name: str) -> None:
    one = make(name, (30, 10, 5))
    state = one.state_dict()
    with pytest.raises(ValueError, match="a_key_of_the_future"):
        one.load_state_dict({**state, "a_key_of_the_future": 1})
    with pytest.raises(ValueError, match="draws"):
        one.load_state_dict({key: value for key, value in state.items() if key != "draws"})
    assert one.state_dict() == state
