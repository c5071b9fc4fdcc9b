"""Which snapshot is kept."""

import torch

from framework.evaluation.selection import select_best


def entry(epoch: int, accuracy: float) -> dict[str, object]:
    return {"epoch": epoch, "accuracy": accuracy, "split": "val", "best_length": 60, "lengths": [60], "scores": [{}]}


def test_the_best_snapshot_is_kept_and_the_earlier_among_equals() -> None:
    best = None
    for epoch, accuracy in enumerate([0.3, 0.5, 0.5, 0.4]):
        best = select_best(best, entry(epoch, accuracy), {"images": torch.full((1,), float(epoch))})
    assert best is not None
    assert (best["epoch"], best["accuracy"], best["images"].item()) == (1, 0.5, 1.0)
    assert best.keys() == {"epoch", "split", "best_length", "accuracy", "images"}
