"""Meta-gradient engines: how the real loss is differentiated through the window's inner steps.

All engines have one signature and one result, so that any can stand in for any other; ``Higher``, in
``framework.distill_higher``, is the reference that the others are tested against.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from framework.inner.augment import Draw
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import State
from framework.inner.plan import Plan
from framework.outer.synthetic import Grads, Synthetic


@dataclass(frozen=True)
class RealBatch:
    """Real images that judge the trained inner network, and their augmentation."""

    images: Tensor  # (B, C, H, W)
    labels: Tensor  # (B, K) class weights
    draw: Draw


@dataclass(frozen=True)
class Lags:
    """Asks for the contributions of a window's steps by lag: step t of M has lag M - 1 - t, so the last one has 0.

    Args:
        certain: lags below it count once.
        growth: each lag from there on counts this many times what the one before it does; see ``LengthByBias``.
    """

    certain: int
    growth: float = 1.0


@dataclass(frozen=True)
class Cost:
    """The work of one window of M steps, in passes over an inner batch.

    Args:
        gradients: first derivatives taken.
        products: second derivatives contracted with a vector, after a gradient of their own.
        vectors: the most vectors of theta's size that are kept at once between steps.
        graphs: steps whose activations are kept at once.
    """

    gradients: int
    products: int
    vectors: int
    graphs: int


@dataclass(frozen=True)
class MetaGradient:
    """What one outer step returns; ``loss`` and ``accuracy`` (a fraction) are () on the device."""

    loss: Tensor
    accuracy: Tensor
    grads: Grads
    state: State  # at the end of the window; its tensors are (N, P) for several networks
    cost: Cost
    lags: Grads | None = None
    """Where ``Lags`` are asked for: the squared norm of each lag's contribution (M,) as it counts once, in float64; a
    mean over networks."""


Mark = Callable[[str], None]


def no_mark(phase: str) -> None:
    """Where nobody asks how long each phase takes."""


class Engine(Protocol):
    """Differentiates the real loss through ``len(plan)`` inner steps.

    ``loop`` takes the steps. ``together`` says whether several networks are to be differentiated at once.
    """

    loop: InnerLoop
    together: bool

    def __call__(
        self,
        state: State,
        synthetic: Synthetic,
        plan: Plan,
        real: RealBatch,
        mark: Mark = no_mark,
        lags: Lags | None = None,
    ) -> MetaGradient:
        """Return loss, accuracy and the gradient towards images and labels, averaged over networks.

        Args:
            state: where the window starts; no gradient flows into it.
            synthetic: the set to train on, and whether its labels are differentiated too.
            plan: the window's batches.
            real: the batch that defines the outer loss.
            mark: told the name of each phase (``window``, ``real``, ``backward``) when it is over.
            lags: asks for contributions by lag; not of ``Higher``, which does not walk back step by step.
        """
