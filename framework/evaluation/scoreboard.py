"""The rows of an evaluation: a set under several labels, with and without augmentation, and real images beside it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from framework.data.splits import RealData
from framework.distilled.set import Distilled
from framework.evaluation.baselines import BASELINES
from framework.evaluation.bits import bits_per_class
from framework.evaluation.coresets import coreset
from framework.evaluation.evaluator import Candidate, TrainingSet
from framework.evaluation.recipes import Recipe
from framework.evaluation.teacher import Teacher
from framework.inner.augment import Augmentation
from framework.inner.plan import Sampler

OWN = "distilled"
"""The row of a set with its own labels, and the random stream of all rows of a set: the same fresh networks, whatever
the labels."""


@dataclass(frozen=True)
class Wanted:
    """Which rows are wanted.

    Args:
        labels: of ``names.LABELS``.
        strategies: of ``names.STRATEGIES``.
        baselines: of ``names.BASELINES``.
        runs: networks for each row.
        seed: of random draws of images.
    """

    labels: Sequence[str]
    strategies: Sequence[str]
    baselines: Sequence[str]
    runs: int
    seed: int


def set_rows(
    distilled: Distilled, real: RealData, recipe: Recipe, wanted: Wanted, teacher: Teacher | None, size: int | None
) -> dict[str, Candidate]:
    """A row for each kind of labels: the images of ``distilled``, in the data's preprocessing.

    Args:
        distilled: the set, or the first ``size`` images of each class of one.
        real: the data.
        recipe: how networks are trained.
        wanted: which rows.
        teacher: of the labels of that name.
        size: see above; None: it is no part of another.
    """
    device = real.train.labels.device
    images = distilled.images.to(device)
    part = "" if size is None else f", the first {size} of each class"
    value_bits, weight_bits = distilled.stored_bits
    rows = {}
    for kind in wanted.labels:
        labels = labels_of(kind, distilled.labels.to(device), images, teacher)
        # What a teacher says is in single precision, whatever the file has.
        bits = bits_per_class(
            images.shape, labels, real.preprocess, value_bits, 32 if kind == "teacher" else weight_bits
        )
        data = [TrainingSet(images, labels, recipe.sampler)] * wanted.runs
        rows[ROW_OF[kind]] = Candidate(f"distilled images{TEXT_OF[kind]}{part}", data, recipe.lengths, bits, OWN)
    return rows


ROW_OF = {"learnt": OWN, "hard": "hard", "teacher": "teacher"}
TEXT_OF = {"learnt": "", "hard": ", hard labels", "teacher": ", a teacher's labels"}


def labels_of(kind: str, labels: Tensor, images: Tensor, teacher: Teacher | None) -> Tensor:
    """Labels (N, K) of a kind of ``names.LABELS``, from a set's own (N, K) or its images (N, C, H, W)."""
    if kind == "hard":
        return F.one_hot(labels.argmax(1), labels.shape[1]).to(labels.dtype)
    if kind == "teacher":
        assert teacher is not None, "it is trained before"
        return teacher.labels(images)
    return labels


def baseline_rows(
    distilled: Distilled,
    real: RealData,
    recipe: Recipe,
    wanted: Wanted,
    chosen: dict[str, list[Tensor]],
) -> dict[str, Candidate]:
    """The rows of real images, as many as the set has.

    Args:
        distilled, real, recipe, wanted: see ``set_rows``.
        chosen: by coreset and class, (n,) int64: its images, the first chosen first, n at least the set's.
    """
    counts, rows = distilled.counts, {}
    for name in wanted.baselines:
        if name in chosen:
            own = [images[:number] for images, number in zip(chosen[name], counts.numbers, strict=True)]
            row = coreset(name, own, real, recipe.sampler, wanted.runs, recipe.lengths)
        else:
            row = BASELINES[name](real, counts, recipe.sampler, wanted.runs, recipe.lengths, wanted.seed)
        data = row.sets[0]
        rows[name] = replace(row, bits_per_class=bits_per_class(data.images.shape, data.labels, real.preprocess))
    return rows


def by_strategy(rows: dict[str, Candidate], strategies: Sequence[str], side: int) -> dict[str, Candidate]:
    """Every row under every strategy, from the same fresh networks; images are of ``side`` pixels."""
    result = {}
    for name, row in rows.items():
        stream = row.stream or name
        if "run" in strategies:
            result[name] = replace(row, stream=stream)
        if "none" in strategies:
            sets = [replace(data, sampler=unaugmented(data.sampler, side)) for data in row.sets]
            result[f"{name} none"] = replace(row, name=f"{row.name}, no augmentation", sets=sets, stream=stream)
    return result


def unaugmented(sampler: Sampler, side: int) -> Sampler:
    """The same batches as they are."""
    fields: Any = sampler  # every sampler is a dataclass
    bare: Sampler = dataclasses.replace(fields, augmentation=Augmentation("none", False, side))
    return bare
