"""Scores of networks on real images, and their means over networks."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.data.splits import Split
from framework.networks.flat import FlatNetwork
from framework.records import METRICS, Scores

ECE_BINS = 15


@dataclass(frozen=True)
class Score:
    """A network on a split: fractions, and the mean cross-entropy in nats."""

    top1: float
    top5: float
    ece: float
    loss: float


@torch.no_grad()
def score(network: FlatNetwork, theta: Tensor, split: Split, batch_size: int = 1000) -> Score:
    """Score the network theta (P + R,) on every image of ``split``, in evaluation mode.

    ECE is the expected calibration error over 15 equal-width confidence bins (Guo et al. 2017,
    arXiv 1706.04599, eq. 3); top-5 is top-K where there are fewer than 5 classes.
    """
    network.module.eval()
    try:
        logits = torch.cat([network(theta, batch) for batch in split.chunks(batch_size)])
    finally:
        network.module.train()
    confidence, prediction = logits.softmax(1).max(1)
    correct = (prediction == split.labels).to(logits.dtype)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap = torch.zeros(ECE_BINS, dtype=logits.dtype, device=logits.device).index_add_(0, bins, correct - confidence)
    values = torch.stack([
        correct.mean(),
        (best == split.labels.unsqueeze(1)).any(1).to(logits.dtype).mean(),
        gap.abs().sum() / len(split),
        F.cross_entropy(logits, split.labels),
    ])  # fmt: skip
    return Score(*values.tolist())


@dataclass(frozen=True)
class Evaluation:
    """Scores of n networks at several training lengths: ``scores[network][length]``."""

    lengths: tuple[int, ...]
    scores: list[list[Score]]

    def values(self, length: int, metric: str = "top1") -> list[float]:
        """The metric of every network after ``length`` steps."""
        at = self.lengths.index(length)
        return [getattr(row[at], metric) for row in self.scores]

    def mean(self, length: int, metric: str = "top1") -> float:
        """Mean over networks."""
        return statistics.fmean(self.values(length, metric))

    def deviation(self, length: int, metric: str = "top1") -> float | None:
        """Sample standard deviation over networks; None for a single one."""
        values = self.values(length, metric)
        if not all(map(math.isfinite, values)):  # of a network that diverged; statistics.stdev would crash
            return math.nan
        return statistics.stdev(values) if len(values) > 1 else None

    def summary(self, length: int) -> Scores:
        """Mean and deviation of every metric after ``length`` steps."""
        values: dict[str, Any] = {metric: self.mean(length, metric) for metric in METRICS}
        deviations: dict[str, Any] = {f"{metric}_std": self.deviation(length, metric) for metric in METRICS}
        return Scores(**values, **deviations)

    def best_length(self) -> int:
        """The length of the highest mean accuracy, the shortest among equals."""
        return max(self.lengths, key=lambda length: (self.mean(length), -length))
