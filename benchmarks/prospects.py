"""What the average of a policy's meta-gradients is worth, from the moments of those of single windows.

Let G_k be the meta-gradient of window k of K: random, since network, trajectory and real batch are. A policy takes
window k with the chance p_k, at the cost c_k, and weights what it finds by w. All that counts of it are three sums for
each window: how often it is taken, and the means of w and of w^2 over all steps, in which other windows count as 0.
Needs NumPy alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from framework.outer.importance import Vector, best_chances


@dataclass(frozen=True)
class Moments:
    """Of the meta-gradients of K windows.

    Args:
        products: (K, K) E[G_j] . E[G_k].
        squares: (K,) E||G_k||^2.
    """

    products: Vector
    squares: Vector


@dataclass(frozen=True)
class Choice:
    """A policy, as its meta-gradients tell.

    Args:
        chances: (K,) p.
        first: (K,) the mean of w on window k, 0 elsewhere; p where nothing is weighted.
        second: (K,) that of w^2.
        held: outer steps for which one window is kept, which no average takes out.
    """

    chances: Vector
    first: Vector
    second: Vector
    held: int = 1

    @classmethod
    def unweighted(cls, chances: Vector, held: int = 1) -> Self:
        """All that it finds counts as it is."""
        return cls(chances, chances, chances, held)

    @classmethod
    def uniform(cls, windows: Sequence[int], of: int, held: int = 1) -> Self:
        """One of these windows, by their numbers among all."""
        chances = np.zeros(of)
        chances[list(windows)] = 1 / len(windows)
        return cls.unweighted(chances, held)

    @classmethod
    def important(cls, windows: Sequence[int], squares: Vector, costs: Vector, uniform: float) -> Self:
        """``best_chances`` for these windows, each weighted by what makes them as many in expectation.

        Args:
            windows: their numbers among the K.
            squares, costs: (K,) of all.
            uniform: see ``best_chances``.
        """
        own, count = list(windows), len(windows)
        best = best_chances(squares[own], costs[own], np.ones(count), uniform)
        chances, first, second = np.zeros((3, len(squares)))
        chances[own], first[own], second[own] = best, 1 / count, 1 / (count**2 * best)
        return cls(chances, first, second)


@dataclass(frozen=True)
class Prospect:
    """The mean of a policy's weighted meta-gradients over a budget, against a target, the gradient of an objective.

    Args:
        cost: of an outer step.
        bias: the distance of its expectation from the target, over the target's norm; 0 where the samples show none.
        variance: of the average, over the target's squared norm; with ``bias`` squared it is the squared error.
        cosine: between the average and the target, by their second moments.

    All but the cost are NaN where the target is lost in noise.
    """

    cost: float
    bias: float
    variance: float
    cosine: float

    @property
    def error(self) -> float:
        """The expected squared error, over the target's squared norm."""
        return self.bias**2 + self.variance


def prospect(choice: Choice, target: Vector, moments: Moments, costs: Vector, budget: float) -> Prospect:
    """What a budget buys.

    The variance of one step's estimate is that of the windows' expectations, which steps of one held window share, and
    that within windows, which they do not.

    Args:
        choice: the policy.
        target: (K,) the objective's gradient as a combination of the windows' expectations.
        moments: of the windows.
        costs: (K,) of an outer step with each of them.
        budget: in the costs' unit.
    """
    products, mean = moments.products, choice.first
    cost = float(choice.chances @ costs)
    own, size = float(mean @ products @ mean), float(target @ products @ target)
    if size <= 0:
        return Prospect(cost, np.nan, np.nan, np.nan)
    between = float(choice.second @ np.diag(products)) - own
    within = float(choice.second @ moments.squares) - own - between
    variance = max(within + choice.held * between, 0.0) * cost / budget
    away = mean - target
    bias = max(float(away @ products @ away), 0.0) ** 0.5
    length = own + variance
    cosine = float(mean @ products @ target) / (size * length) ** 0.5 if length > 0 else np.nan
    return Prospect(cost, bias / size**0.5, variance / size, cosine)
