"""Truncation policies: bounds for every setting, each policy's own rule, exact state."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from framework.config import POLICIES
from framework.truncation import BPTT, Forward, Policy, RaTBPTT, Window, make_policy

Setting = tuple[int, int, int]


@st.composite
def settings_of(draw: st.DrawFn) -> Setting:
    """Any valid T, W, minwindow."""
    steps = draw(st.integers(1, 400))
    window = draw(st.integers(1, steps))
    return steps, window, draw(st.integers(0, steps - window))


def make(name: str, setting: Setting, seed: int = 0) -> Policy:
    steps, window, minimum = setting
    return make_policy(name, steps=steps, window=window, minimum=minimum, seed=seed)


def windows(policy: Policy, count: int) -> Iterator[Window]:
    """What a run of epochs with a loss that never improves would see."""
    for _ in range(count):
        yield policy.choose()
        policy.observe(loss=1.0, accuracy=0.5)


@pytest.mark.parametrize("name", POLICIES)
@given(setting=settings_of(), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_windows_are_within_bounds_and_w_never_changes(name: str, setting: Setting, seed: int) -> None:
    steps, window, minimum = setting
    policy = make(name, setting, seed)
    for chosen in windows(policy, 200 if name == "forward" else 5):
        assert chosen.start >= (minimum if name in ("forward", "rat-bptt") else 0)
        assert chosen.length >= 1
        assert chosen.start + chosen.length <= steps
        if name != "bptt":
            assert chosen.length == policy.window == window


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
    assert make_policy("rat-bptt", steps=9, window=2, minimum=0, seed=0, complete_random=True).every_step
    assert not make_policy("rat-bptt", steps=9, window=2, minimum=0, seed=0).every_step


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
