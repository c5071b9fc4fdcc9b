"""The global random streams, which nothing in this project may read or move."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _states() -> tuple[object, ...]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    return random.getstate(), repr(legacy), bytes(torch.get_rng_state().numpy())


def stir(seed: int) -> None:
    """Put every global stream elsewhere, so that a function that reads one gives another result."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def untouched() -> Iterator[None]:
    """Assert that a block leaves every global stream where it was."""
    before = _states()
    yield
    assert _states() == before
