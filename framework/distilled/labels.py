"""What a set's labels mean: whose classes they are of, and in which order they stand."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from framework.distilled.set import Distilled
from framework.errors import UserError


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
    rows = torch.arange(len(distilled.images)).unflatten(0, (len(order), -1))[order].flatten()
    labels = distilled.labels[rows][:, order]
    return replace(distilled, images=distilled.images[rows], labels=labels, class_names=tuple(data))
