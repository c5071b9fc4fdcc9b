"""What importance sampling of window positions gains over uniform ones: bins of positions, costs, chances, gains.

Needs NumPy alone, so that ``main.py advise`` answers without PyTorch.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def position_bins(first: int, last: int, count: int) -> list[list[int]]:
    """Positions ``first`` .. ``last`` in order, in bins of nearly equal size: ``count``, or one for each position."""
    positions = np.arange(first, last + 1)
    return [part.tolist() for part in np.array_split(positions, min(count, len(positions)))]


def bin_of(bins: Sequence[Sequence[int]], start: int) -> int:
    """The number of the bin of a window's start; before the first or behind the last position, that of its end."""
    return max(bisect_right([part[0] for part in bins], start) - 1, 0)


def costs_in_passes(inner: int, window: int, real: int) -> tuple[float, float]:
    """A prefix step, and an outer step but for its prefix, in passes over an image: 3 make a gradient, 12 a
    differentiated step.

    Args:
        inner: synthetic images of an inner step.
        window: W.
        real: images of the outer step.
    """
    return 3.0 * inner, 12.0 * inner * window + 3.0 * real


def pool_prefix(first: int, last: int, window: int) -> float:
    """Prefix steps per outer step of networks that are kept and visit every W-th position: before the first alone.

    Args:
        first, last: positions.
        window: W.
    """
    positions = last - first + 1
    shifts = min(window, positions)  # each position is visited after one of them
    return (first + (shifts - 1) / 2) * shifts / positions


def best_chances(moments: Vector, costs: Vector, sizes: Vector, uniform: float) -> Vector:
    """The chances (K,) of bins of positions with which importance sampling tells most for its cost.

    With G(N) the meta-gradient of position N, drawn with the chance p(N) and weighted by 1 / (P p(N)), the second
    moment of the estimate times its expected cost is sum(m / p) sum(p c) / P^2, m(N) being E||G(N)||^2 and c(N) the
    cost. By Cauchy and Schwarz it is least at p ~ sqrt(m / c), and there never above that of uniform positions.

    Args:
        moments: (K,) m of each bin, at least one above 0.
        costs: (K,) c, above 0.
        sizes: (K,) positions in each.
        uniform: share that is left to uniform positions, so that no weight exceeds 1 / this.
    """
    best = sizes * np.sqrt(moments / costs)
    chances: Vector = (1 - uniform) * best / best.sum() + uniform * sizes / sizes.sum()
    return chances


def product(moments: Vector, costs: Vector, sizes: Vector, chances: Vector) -> float:
    """The second moment of the weighted estimate times its expected cost, with bins (K,) drawn by ``chances``."""
    return float((sizes**2 * moments / chances).sum() / sizes.sum() ** 2 * (chances * costs).sum())


def gains(
    moments: Vector, costs: Vector, sizes: Vector, uniform: float, judged_by: Vector | None = None
) -> dict[str, float]:
    """How many times less each policy's ``product`` is than that of uniform positions; see ``best_chances``.

    Args:
        moments, costs, sizes, uniform: see ``best_chances``; no moment is 0.
        judged_by: (K,) moments of other samples than those the chances are made from; by default the same ones, which
            makes gains of few samples too good.

    Returns:
        Of ``rat-is``; of chances that know no cost (``by norm``); and of the ``best`` without a uniform share.
    """
    truth, flat = moments if judged_by is None else judged_by, np.ones_like(costs)
    policies = {
        "rat-is": best_chances(moments, costs, sizes, uniform),
        "by norm": best_chances(moments, flat, sizes, uniform),
        "best": best_chances(moments, costs, sizes, 0.0),
    }
    rat = product(truth, costs, sizes, sizes / sizes.sum())
    return {name: rat / product(truth, costs, sizes, chances) for name, chances in policies.items()}
