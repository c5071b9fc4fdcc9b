"""What all data of one's own must be, in whatever form they come: their classes, and a test part."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from framework.data.splits import TEST_SHARE, test_split
from framework.errors import UserError


class Labels(NamedTuple):
    """The labels of a part."""

    name: str
    """What they are called, for messages."""
    numbers: torch.Tensor
    """(N,) int64."""


def class_names(labels: Mapping[str, Labels], names: Sequence[str] | None, where: object) -> tuple[str, ...]:
    """The classes, in label order: as they are named, or their numbers.

    Args:
        labels: of each part, ``train`` among them.
        names: of the classes, where the data have them.
        where: the data, for messages.

    Raises:
        UserError: there is one class only, two of one name, one without images in a part, or a label that is none.
    """
    train = labels["train"]
    count = len(train.numbers.unique()) if names is None else len(names)
    if count < 2:
        raise UserError(f"{where}: {count} class(es), but it takes at least 2 to classify")
    if names is not None and len({*names}) < count:
        raise UserError(f"{where}: two classes have the same name; rename one")
    for name, numbers in labels.values():
        found = numbers.unique()
        if strange := [k for k in found.tolist() if not 0 <= k < count]:
            raise UserError(
                f"{where}: {name} holds {strange[0]}, and there are {count} classes "
                f"{'with names' if names else 'in training'}; number them 0..{count - 1} without a gap"
            )
        if len(found) < count:
            absent = min({*range(count)} - {*found.tolist()})
            shown = absent if names is None else names[absent]
            raise UserError(f"{where}: {name} has no image of class {shown}; add some, or leave the class out")
    return tuple(map(str, range(count))) if names is None else tuple(names)


def rows_and_lines(
    labels: Mapping[str, Labels], names: tuple[str, ...], where: object
) -> tuple[dict[str, tuple[str, torch.Tensor]], list[str]]:
    """Of each part of the data as they are used: whose rows, and which (N,) int64; and a line on what was not plain.

    Without a test part, a fifth of each class of the training part is taken for it.

    Raises:
        UserError: a class has one image only, which cannot be in two parts.
    """
    rows = {part: (part, torch.arange(len(numbers))) for part, (_, numbers) in labels.items()}
    if "test" in rows:
        return rows, []
    train, test = test_split(labels["train"].numbers, names, where)
    line = f"{where}: no test part; a fixed {TEST_SHARE:.0%} of each class, {len(test):,} images, are the test images"
    return rows | {"train": ("train", train), "test": ("train", test)}, [line]
