"""Named random streams.

Every random choice of a run is drawn from a generator that is *derived*, not carried: the same
seed and key always give the same stream. So nothing about randomness has to be saved for an exact
resume, ranks cannot share a stream by accident, and no library's global state is ever touched.

All draws happen on the CPU and are moved to the device afterwards, so a run draws the same numbers
on every device.
"""

import hashlib

import torch


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a fresh CPU generator for ``key`` under ``seed``.

    Args:
        seed: the run's ``--seed``.
        key: what the stream is for, for example ``("trajectory", rank, outer_step)``. Distinct keys
            give independent streams; ``("a", 12)`` and ``("a1", 2)`` are distinct.
    """
    return torch.Generator().manual_seed(int.from_bytes(_digest(seed, *key), "little", signed=True))


def derived_seed(seed: int, *key: str | int) -> int:
    """A seed of its own for a part of a run, at least 0; see ``generator``."""
    return int.from_bytes(_digest(seed, *key), "little") >> 1


def _digest(*key: str | int) -> bytes:
    return hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
