"""``experts.json``: what experts were trained on and how, and whether that fits a run."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import UserError
from framework.files import EXPERTS, read_json
from framework.outer.buffers.layout import FOLDER
from framework.records import Experts, ExpertSource, read_record

TOLERANCE = 1e-5  # between norms of preprocessing tensors that were fitted to the same images on different machines

FLAGS = {
    "dataset": "--dataset", "class_names": "--dataset", "preprocess": "--zca", "preprocess_norms": "--val_fraction",
    "arch": "--arch", "channels": "--dataset", "image_size": "--im_size", "num_classes": "--dataset",
    "width": "--width", "depth": "--depth", "norm": "--norm", "act": "--act", "pool": "--pool",
    "validation": "--val_fraction", "lr": "--lr_teacher", "momentum": "--mom", "weight_decay": "--l2",
    "batch": "--batch_train", "epochs": "--train_epochs", "decay": "--decay", "rho": "--rho", "alpha": "--alpha",
    "adaptive": "--adaptive", "augmentation": "--dsa", "images": "--limit_train", "seed": "--seed",
}  # fmt: skip
"""Which flag mends a difference, by the field of ``ExpertSource``, its ``Spec`` or ``ExpertTraining``."""


def weighted_norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """A number for each tensor that tells others from it, but hardly depends on how a machine rounds.

    The Euclidean norm, with rows weighted from 1 to 2 so that their order counts; in float64.
    """

    def norm(tensor: Tensor) -> float:
        rows = tensor.reshape(len(tensor) if tensor.ndim else 1, -1)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu()
        return float((norms * torch.linspace(1, 2, len(norms), dtype=torch.float64)).norm())

    return {name: norm(tensor) for name, tensor in tensors.items()}


def rows_checksum(rows: Tensor | None) -> str | None:
    """Of which images a part of the data has, (N,) int64 on the CPU, as ``ExpertSource.validation`` holds it."""
    return None if rows is None else hashlib.blake2b(rows.contiguous().numpy().data, digest_size=16).hexdigest()


def read_experts(folder: Path) -> Experts | None:
    """What stands beside a folder's files; None where nothing does.

    Raises:
        UserError: it is damaged.
    """
    path = folder / EXPERTS
    return read_record(Experts, read_json(path), path) if path.exists() else None


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(math.isclose(one[key], two[key], rel_tol=TOLERANCE) for key in one)
    return bool(one == two)


UNSPOKEN = {
    "class_names": "other class names",
    "preprocess_norms": "other values of the preprocessing",
    "validation": "other validation images",
}
"""Differences whose values would tell nobody anything."""


def differences(found: Any, wanted: Any, *skip: str) -> list[str]:
    """Each field in which two records of one kind differ: what was found, what is wanted, and the flag."""
    result = []
    for name in (field.name for field in fields(found) if field.name not in skip):
        one, two = getattr(found, name), getattr(wanted, name)
        if name == "spec":
            result += differences(one, two)
        elif name == "preprocess_norms" and found.preprocess != wanted.preprocess:
            continue  # they are of other tensors altogether
        elif not _same(one, two):
            text = UNSPOKEN.get(name, f"{name.replace('_', ' ')} {one}, not {two}")
            result.append(f"{text} ({FLAGS[name]})")
    return result


def compare(folder: Path, record: Experts | None, wanted: ExpertSource) -> list[str]:
    """Check that a folder's experts fit a run.

    Args:
        folder: for messages.
        record: its ``experts.json``, as ``read_experts`` gives it.
        wanted: what the run trains on.

    Returns:
        Lines to be told: what is taken for granted, and whether the experts have seen the validation images.

    Raises:
        UserError: they do not; names each difference and the flag that mends it.
    """
    if record is None:
        return [
            f"{folder}: no {EXPERTS}; its experts are taken to be of {wanted.dataset} with its classes in their usual "
            f"order, preprocessed by {wanted.preprocess}, and to have seen all training images, those of validation too"
        ]
    if found := differences(record.source, wanted, "validation"):
        raise UserError(
            f"{folder / EXPERTS}: its experts are of other data or of another network: {'; '.join(found)}; "
            f"give these flags, or another {FOLDER}"
        )
    if wanted.validation in (None, record.source.validation):
        return []
    return [f"{folder}: its experts were trained on validation images of this run; what those select is not held out"]
