"""What a policy's average is worth: against the enumeration of all that can happen."""

import itertools

import numpy as np
import pytest

from prospects import Choice, Moments, prospect

SAMPLES = np.random.default_rng(0).normal(size=(3, 2, 4)) + 1  # of each of K windows, what G can be, each as likely
K = len(SAMPLES)
MEANS = SAMPLES.mean(1)
MOMENTS = Moments(MEANS @ MEANS.T, (SAMPLES**2).sum(2).mean(1))
COSTS = np.array([1.0, 2.0, 5.0])
CHANCES = np.array([0.2, 0.5, 0.3])
TARGET = np.full(K, 1 / K)


def averages(choice: Choice, weights: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Chance and value of the average of two outer steps, of one window where it is held."""
    found = []
    for first, second in itertools.product(range(K), repeat=2):
        if choice.held == 2 and first != second:
            continue
        chance = choice.chances[first] * (1 if choice.held == 2 else choice.chances[second]) / 4
        for a, b in itertools.product(range(2), repeat=2):
            value = (weights[first] * SAMPLES[first, a] + weights[second] * SAMPLES[second, b]) / 2
            found.append((chance, value))
    return found


@pytest.mark.parametrize("held", [1, 2])
@pytest.mark.parametrize("weights", [np.ones(K), TARGET / CHANCES, np.array([3.0, 0.5, 1.0])])
def test_error_and_cosine_are_those_of_all_that_can_happen(held: int, weights: np.ndarray) -> None:
    choice = Choice(CHANCES, CHANCES * weights, CHANCES * weights**2, held)
    goal = TARGET @ MEANS
    all_of_them = averages(choice, weights)
    assert sum(chance for chance, _ in all_of_them) == pytest.approx(1, rel=1e-12)
    error = sum(chance * ((value - goal) ** 2).sum() for chance, value in all_of_them)
    length = sum(chance * (value**2).sum() for chance, value in all_of_them)
    inner = sum(chance * value @ goal for chance, value in all_of_them)
    cost = CHANCES @ COSTS
    found = prospect(choice, TARGET, MOMENTS, COSTS, 2 * cost)
    assert found.cost == cost
    assert found.error * (goal @ goal) == pytest.approx(error, rel=1e-12)
    assert found.cosine == pytest.approx(inner / (length * (goal @ goal)) ** 0.5, rel=1e-12)


def test_importance_keeps_the_expectation_of_uniform_windows_and_is_never_worse_for_its_cost() -> None:
    windows = [0, 2]
    uniform = Choice.uniform(windows, K)
    chosen = Choice.important(windows, MOMENTS.squares, COSTS, 0.0)
    assert chosen.first == pytest.approx(uniform.first, rel=1e-12)
    assert chosen.chances.sum() == pytest.approx(1, rel=1e-12)
    assert chosen.chances[1] == 0
    assert chosen.chances @ COSTS * (chosen.second @ MOMENTS.squares) <= uniform.chances @ COSTS * (
        uniform.second @ MOMENTS.squares
    )


def test_a_target_that_is_lost_in_noise_is_said_to_be() -> None:
    lost = Moments(-np.eye(K), MOMENTS.squares)
    found = prospect(Choice.uniform([0], K), TARGET, lost, COSTS, 1.0)
    assert found.cost == 1
    assert np.isnan([found.bias, found.variance, found.cosine, found.error]).all()
