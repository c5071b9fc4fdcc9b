"""How often a test has caused its fault: told to pytest's report, where benchmarks/faults.py reads it."""

_count = 0


def tried() -> None:
    """To be called whenever a fault was caused, by a test that causes it several times."""
    global _count
    _count += 1


def take() -> int:
    """The count since the last call."""
    global _count
    count, _count = _count, 0
    return count
