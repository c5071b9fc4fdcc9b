"""What a set's labels mean, whose classes they are, and in which order: the one place where it is decided."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.distilled.set import Distilled
from framework.errors import UserError

TOLERANCE = 1e-3
"""Of the sum of a row of floating-point labels, which files may hold in half precision."""


def match_classes(theirs: Sequence[str], data: Sequence[str], source: object) -> list[int]:
    """For each of the data's classes, its place among ``theirs``; the names decide, not the order.

    Args:
        theirs: class names of a set or checkpoint, in label order.
        data: class names of the real data, in label order.
        source: what has ``theirs``, for the message.

    Raises:
        UserError: they are not the same classes; it lists the difference.
    """
    if tuple(theirs) == tuple(data):
        return list(range(len(data)))
    if sorted(theirs) != sorted(data) or len(set(data)) < len(data):
        only = [f"{who} {_listed(names)}" for who, names in _difference(theirs, data) if names]
        raise UserError(
            f"{source}: its classes are not the data's ({'; '.join(only) or 'names occur twice'}); give the data that "
            "it was made from, by --root"
        )
    return [list(theirs).index(name) for name in data]


def _difference(theirs: Sequence[str], data: Sequence[str]) -> list[tuple[str, list[str]]]:
    return [
        ("only there:", [name for name in theirs if name not in data]),
        ("only in the data:", [name for name in data if name not in theirs]),
    ]


def _listed(names: list[str], most: int = 5) -> str:
    """The first few names, in quotes, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def with_classes_of(distilled: Distilled, data: Sequence[str]) -> Distilled:
    """The set with its classes in the data's order, its images sorted by class still.

    Raises:
        UserError: see ``match_classes``.
    """
    order = match_classes(distilled.class_names, data, distilled.source)
    if order == sorted(order):
        return distilled
    counts = distilled.counts
    by_class = torch.arange(counts.total).split(counts.numbers)
    rows = torch.cat([by_class[k] for k in order])
    numbers = None if distilled.numbers is None else tuple(distilled.numbers[k] for k in order)
    labels = distilled.labels[rows][:, order]
    return replace(distilled, images=distilled.images[rows], labels=labels, class_names=tuple(data), numbers=numbers)


def class_weights(labels: Tensor, num_classes: int, path: Path) -> Tensor:
    """(N, K) float32 class weights, from those or from (N,) class numbers.

    Raises:
        UserError: they do not fit the number of classes.
    """
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return labels.float()
    numbers = labels.flatten() if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if numbers.ndim != 1 or not torch.equal(numbers.double(), numbers.double().round()):
        raise UserError(f"{path}: labels of shape {tuple(labels.shape)}; there are {num_classes} classes")
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= num_classes:
        raise UserError(f"{path}: labels are not all in 0..{num_classes - 1}; check --dataset")
    return F.one_hot(numbers.long(), num_classes).float()


class UnclearLabels(UserError):
    """Labels of another program whose numbers do not tell their kind."""


def interpreted(labels: Tensor, num_classes: int, kind: str, path: Path) -> tuple[Tensor, str | None]:
    """(N, K) float32 class weights from labels of another program, and a line that says what was taken and why.

    ``weights`` are taken as they are; ``logits`` by a softmax, as DATM does (Guo et al. 2024, arXiv 2310.05773);
    ``log`` are exponentiated, as DD-Ranking's softmax does with logarithms; ``centred`` get 1 / K added (FRePo,
    Zhou et al. 2022, arXiv 2206.00719). ``auto`` takes what the numbers leave no doubt about.

    Raises:
        UserError: the labels do not fit the number of classes.
        UnclearLabels: ``auto`` cannot tell their kind.
    """
    weights = class_weights(labels, num_classes, path)
    if labels.ndim != 2 or labels.shape[1] != num_classes:
        if kind not in ("auto", "weights"):
            raise UserError(f"--label_kind {kind}: {path} has class numbers; leave it out")
        return weights, None
    line = None
    if kind == "auto":
        kind, why = _kind(weights, path)
        line = None if kind == "weights" else f"{path}: labels taken as --label_kind {kind}: {why}"
    if kind == "logits":
        return weights.softmax(1), line
    if kind == "log":
        return weights.exp(), line
    return (weights + 1 / num_classes if kind == "centred" else weights), line


def _kind(labels: Tensor, path: Path) -> tuple[str, str]:
    """The kind of (N, K) labels, and what tells it."""
    sums, classes = labels.double().sum(1), labels.shape[1]
    if (labels >= 0).all():
        return "weights", "none is below 0"
    if (labels <= TOLERANCE).all() and ((labels.double().exp().sum(1) - 1).abs() < TOLERANCE).all():
        return "log", "the exponentials of each row add up to 1"
    if (labels + 1 / classes - F.one_hot(labels.argmax(1), classes)).abs().max() < TOLERANCE:
        return "centred", f"each row is one-hot less 1/{classes}"
    raise UnclearLabels(
        f"{path}: labels from {labels.min():.3g} to {labels.max():.3g} whose rows add up to {sums.min():.3g} to "
        f"{sums.max():.3g} may be several kinds; say which: --label_kind logits (DATM), centred (KIP, FRePo, RFAD), "
        "log or weights"
    )


def sorted_by_class(weights: Tensor) -> tuple[bool, Tensor]:
    """Whether a set has as many images of each class by their heaviest weights, and the order (N,) that sorts it so."""
    heaviest = weights.argmax(1)
    equal = heaviest.bincount(minlength=weights.shape[1]).unique().numel() == 1
    return equal, heaviest.argsort(stable=True)
