"""How many images of each class a synthetic set has: what ``--num_per_class`` asks for, and what a set has.

No PyTorch here: a mistake in a flag is told before that is imported.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from framework.errors import UserError, one_line

Asked = int | dict[str, int]
"""As many of each class, or the number of each, by the classes' names or by their indices as text."""

_COMMENT = re.compile(r"(^|\s)#.*")
_LINE = re.compile(r"(\S.*?)\s*[\s,]\s*([0-9]+)")


@dataclass(frozen=True)
class Counts:
    """Images of each class of a set that is sorted by class.

    Args:
        numbers: of each of K classes, in label order.
    """

    numbers: tuple[int, ...]

    @classmethod
    def equal(cls, num_classes: int, per_class: int) -> "Counts":
        """As many of each class."""
        return cls((per_class,) * num_classes)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.numbers)

    @cached_property
    def total(self) -> int:
        """Images in all."""
        return sum(self.numbers)

    @cached_property
    def largest(self) -> int:
        """Images of the class that has most."""
        return max(self.numbers)

    @property
    def same(self) -> bool:
        """Whether each class has as many."""
        return len(set(self.numbers)) == 1

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The index of each class's first image."""
        return (0, *accumulate(self.numbers[:-1]))

    @property
    def classes(self) -> list[int]:
        """The class of each image."""
        return [k for k, number in enumerate(self.numbers) for _ in range(number)]

    @property
    def text(self) -> str:
        """For people: ``10``, or ``1-10 (55 images)``."""
        return _text(self.numbers)

    def part(self, start: int, stop: int) -> "Counts":
        """Of a set that has but the images from ``start`` to before ``stop`` of each class, where a class has them."""
        return Counts(tuple(len(range(number)[start:stop]) for number in self.numbers))

    def rows(self, places: Sequence[Sequence[int]]) -> list[int]:
        """Indices of the images at ``places`` among those of each class, class by class."""
        return [first + place for first, own in zip(self.offsets, places, strict=True) for place in own]


# ---- what is asked for -----------------------------------------------------------------------------------


def images_per_class(text: str) -> Asked:
    """The value of the flag: a whole number, the object that ``config.json`` has, or the name of a file.

    The file has a line for each class: its name or index, white space or a comma, and its number of images; empty
    lines, and what follows a ``#`` at the start of a line or after white space, are left out.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or a class is given twice.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return _numbers_in_object(text) if text.startswith("{") else _numbers_in_file(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _numbers_in_object(text: str) -> Asked:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{text}: no object of classes and numbers ({one_line(error)}); give a file") from error
    return checked_numbers(value)


def _numbers_in_file(name: str) -> dict[str, int]:
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{name}: neither a whole number nor a file; give one of them") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({one_line(error)}); give a text file") from error
    numbers: dict[str, int] = {}
    for count, line in enumerate(lines, 1):
        if not (bare := _COMMENT.sub("", line).strip()):
            continue
        found = _LINE.fullmatch(bare)
        if found is None or int(found[2]) < 1:
            raise UserError(f"{name}: line {count} is {bare!r}; give a class and its number of images, 1 or more")
        if found[1] in numbers:
            raise UserError(f"{name}: line {count} gives class {found[1]} again; give each class once")
        numbers[found[1]] = int(found[2])
    if not numbers:
        raise UserError(f"{name}: no class is there; give a line for each, its name or index and a number")
    return numbers


def checked_numbers(value: Any) -> Asked:
    """What JSON holds, as ``images_per_class`` would have made it.

    Raises:
        UserError: it is something else.
    """
    if type(value) is int:
        return value
    if isinstance(value, dict) and value and all(type(number) is int and number > 0 for number in value.values()):
        return value
    raise UserError(f"{value!r}: a whole number expected, or one of at least 1 for each class")


def counts_of(asked: Asked, class_names: Sequence[str]) -> Counts:
    """What is asked for, for a data set's classes.

    Args:
        asked: where it has numbers for each class, they are named by all of their names, or else by all indices.
        class_names: in label order.

    Raises:
        UserError: classes are missing or unknown.
    """
    if isinstance(asked, int):
        return Counts.equal(len(class_names), asked)
    indices = list(map(str, range(len(class_names))))
    keys = indices if set(asked) == set(indices) and set(asked) != set(class_names) else list(class_names)
    how = f"give each of the {len(class_names)} classes once, all by name or all by index from 0"
    if unknown := [name for name in asked if name not in keys]:
        raise UserError(f"--num_per_class: the data have no class {unknown[0]}; {how}")
    if missing := [name for name in keys if name not in asked]:
        raise UserError(f"--num_per_class: no number for class {missing[0]}; {how}")
    return Counts(tuple(asked[key] for key in keys))


def numbers_of(asked: Asked, num_classes: int) -> list[int]:
    """Images of each of so many classes, in any order; where it says itself how many classes there are, of those."""
    return [asked] * num_classes if isinstance(asked, int) else list(asked.values())


def most(asked: Asked) -> int:
    """Images of the class that is to have most."""
    return max(numbers_of(asked, 1))


def text_of(asked: Asked) -> str:
    """For people: ``10``, or ``1-10 (55 images)``."""
    return _text(numbers_of(asked, 1))


def _text(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(high) if low == high else f"{low}-{high} ({sum(numbers)} images)"
