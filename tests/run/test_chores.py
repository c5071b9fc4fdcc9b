"""Chores take no more than their share of the time."""

import pytest

from framework.run.chores import Seldom


class Clock:
    """Moves only when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost", [0.001, 0.5, 30.0])
@pytest.mark.parametrize("share", [0.01, 0.002])
def test_a_chore_takes_at_most_its_share(cost: float, share: float) -> None:
    clock = Clock()
    seldom = Seldom(share, clock=clock)
    assert seldom.due()
    spent, began = 0.0, clock.now
    for _ in range(20_000):
        clock.now += 1.0  # a step
        if seldom.due():
            with seldom.doing():
                clock.now += cost
            spent += cost
            until = clock.now + cost / share - 1e-6
    assert spent > 0
    elapsed = max(clock.now, until) - began
    assert spent <= share * elapsed + share * cost


def test_between_two_there_is_at_least_the_pause() -> None:
    clock = Clock()
    seldom = Seldom(0.5, pause=120.0, clock=clock)
    with seldom.doing():
        clock.now += 0.01
    clock.now += 119.9
    assert not seldom.due()
    clock.now += 0.2
    assert seldom.due()


def test_a_chore_that_fails_is_due_again() -> None:
    seldom = Seldom(0.001, clock=Clock())
    with pytest.raises(OSError, match="full"), seldom.doing():
        raise OSError("full")
    assert seldom.due()
