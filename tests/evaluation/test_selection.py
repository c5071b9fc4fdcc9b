"""Which snapshot is kept."""

import math

import torch

from framework.evaluation.selection import select_best
from framework.outer.method import Snapshot
from framework.records import Entry, Scores


def entry(epoch: int, accuracy: float) -> Entry:
    return Entry(epoch, "val", [60], [Scores(accuracy, None, 1.0, None, 0.1, None, 0.5, None)], 60, accuracy)


def test_the_best_snapshot_is_kept_and_the_earlier_among_equals() -> None:
    best = None
    for epoch, accuracy in enumerate([0.3, 0.5, 0.5, math.nan, 0.4]):
        images = torch.full((1,), float(epoch))
        best = select_best(best, entry(epoch, accuracy), Snapshot(images, -images))
    assert best is not None
    assert (best.epoch, best.accuracy, best.images.item(), best.labels.item()) == (1, 0.5, 1.0, -1.0)
    assert best.facts == {"epoch": 1, "split": "val", "best_length": 60, "accuracy": 0.5}
