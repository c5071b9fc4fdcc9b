"""Files of experts, in the form that MTT and FTD write and read: ``replay_buffer_0.pt``, ``replay_buffer_1.pt``, ...

A file is a list of experts; an expert is a list of snapshots, the fresh parameters and those after each epoch; a
snapshot is a list of parameters in the module's order, as float32 tensors. Their convolutions have a bias each. Ours
before a norm of single channels have none: such a norm removes it exactly, so it is zero in what we write and left
out of what we read.

Beside its files ours keeps ``experts.json`` (``records.Experts``), and each expert by itself until its file is full.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.files import EXPERTS, FolderLock, read_json, write_atomically, write_json
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.outer.experts import Expert
from framework.records import ExpertCurve, ExpertFile, Experts, ExpertSource, ExpertTraining, read_record

FOLDER = "--buffer_path"
TOLERANCE = 1e-5  # between norms of preprocessing tensors that were fitted to the same images on different machines

Snapshots = list[list[Tensor]]  # one expert's

FLAGS = {
    "dataset": "--dataset", "class_names": "--dataset", "preprocess": "--zca", "preprocess_norms": "--val_fraction",
    "arch": "--arch", "channels": "--dataset", "image_size": "--im_size", "num_classes": "--dataset",
    "width": "--width", "depth": "--depth", "norm": "--norm", "act": "--act", "pool": "--pool",
    "validation": "--val_fraction", "lr": "--lr_teacher", "momentum": "--mom", "weight_decay": "--l2",
    "batch": "--batch_train", "epochs": "--train_epochs", "decay": "--decay", "rho": "--rho", "alpha": "--alpha",
    "adaptive": "--adaptive", "augmentation": "--dsa", "images": "--limit_train", "seed": "--seed",
}  # fmt: skip
"""Which flag mends a difference, by the field of ``ExpertSource``, its ``Spec`` or ``ExpertTraining``."""


def file_name(number: int) -> str:
    """Of a file of experts."""
    return f"replay_buffer_{number}.pt"


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


def _file_checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# ---- the order of parameters -----------------------------------------------------------------------------


class _Slot(NamedTuple):
    """A parameter in a file."""

    shape: torch.Size
    ours: bool  # whether our network has it


def layout(network: FlatNetwork) -> list[_Slot]:
    """The parameters of a snapshot in a file, in their order."""
    slots = []
    for layer in network.module.modules():
        slots += [_Slot(parameter.shape, True) for parameter in layer.parameters(recurse=False)]
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            slots.append(_Slot(torch.Size([layer.out_channels]), False))
    return slots


def _to_file(trajectory: Tensor, network: FlatNetwork) -> Snapshots:
    """An expert (epochs + 1, P) as lists of tensors, each in memory of its own."""
    slots = layout(network)
    result = []
    for theta in trajectory:
        own = iter(network.unflatten(theta))
        result.append([next(own).clone() if slot.ours else torch.zeros(slot.shape) for slot in slots])
    return result


# ---- experts.json ----------------------------------------------------------------------------------------


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


def _differences(found: Any, wanted: Any, *skip: str) -> list[str]:
    """Each field in which two records of one kind differ: what was found, what is wanted, and the flag."""
    result = []
    for name in (field.name for field in fields(found) if field.name not in skip):
        one, two = getattr(found, name), getattr(wanted, name)
        if name == "spec":
            result += _differences(one, two)
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
    if differences := _differences(record.source, wanted, "validation"):
        raise UserError(
            f"{folder / EXPERTS}: its experts are of other data or of another network: {'; '.join(differences)}; "
            f"give these flags, or another {FOLDER}"
        )
    if wanted.validation in (None, record.source.validation):
        return []
    return [f"{folder}: its experts were trained on validation images of this run; what those select is not held out"]


# ---- writing ---------------------------------------------------------------------------------------------


def _loose_path(folder: Path, number: int) -> Path:
    return folder / f"expert_{number:05}.pt"


def keep(folder: Path, expert: Expert) -> None:
    """Keep a finished expert in a file of its own, from where a ``BufferWriter`` takes it; for any process of the run.

    Raises:
        UserError: it cannot be written.
    """
    content = {"trajectory": expert.trajectory.clone(), "losses": expert.losses, "accuracies": expert.accuracies}
    write_atomically(_loose_path(folder, expert.number), lambda file: torch.save(content, file))


class BufferWriter:
    """A folder that experts are written into, held by one process while it is open.

    A finished expert is kept in a file of its own at once, and moves into the next file of experts with others. So
    none is lost, however the process ends, and a run goes on with those that are missing.

    Args:
        folder: made if need be.
        network: of the experts.
        source: what they are trained on.
        training: how.
        count: experts wanted.
        interval: experts in a file; the last may have fewer.
    """

    def __init__(
        self,
        folder: Path,
        network: FlatNetwork,
        source: ExpertSource,
        training: ExpertTraining,
        count: int,
        interval: int,
    ) -> None:
        self.folder, self.network, self.source, self.training = folder, network, source, training
        self.count, self.interval = count, interval
        self._curves: list[ExpertCurve] = []
        self._files: list[ExpertFile] = []
        self._lock = FolderLock(folder, FOLDER)

    def __enter__(self) -> "BufferWriter":
        """Open the folder; finished experts of a process that was killed are found.

        Raises:
            UserError: it holds experts that were trained otherwise, another process writes there, or nobody can.
        """
        self._resume()  # first of all: who is refused writes nothing, not even a lock
        try:
            self._lock.make()
            self._resume()
            if not (self.folder / EXPERTS).exists():
                self._save()
            for number in self._loose():
                if number in self._filed:
                    _loose_path(self.folder, number).unlink()
            self.collect()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()

    @property
    def missing(self) -> list[int]:
        """The numbers of experts that are still to be trained."""
        done = self._filed | set(self._loose())
        return [number for number in range(self.count) if number not in done]

    @property
    def curves(self) -> list[ExpertCurve]:
        """How the experts in files learnt."""
        return self._curves

    def add(self, expert: Expert) -> None:
        """Keep a finished expert.

        Raises:
            UserError: it cannot be written.
        """
        keep(self.folder, expert)
        self.collect()

    @property
    def _filed(self) -> set[int]:
        return {number for file in self._files for number in file.experts}

    def _loose(self) -> list[int]:
        """Experts that are in no file of several yet."""
        numbers = (path.stem.removeprefix("expert_") for path in self.folder.glob("expert_*.pt"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _resume(self) -> None:
        record = read_experts(self.folder)
        if record is None:
            if any(self.folder.glob("replay_buffer_*.pt")) or self._loose():
                raise UserError(
                    f"{FOLDER} {self.folder}: has experts but no {EXPERTS}, so they are another program's; "
                    "choose another folder"
                )
            return
        differences = _differences(record.source, self.source) + _differences(record.training, self.training)
        if differences:
            raise UserError(
                f"{FOLDER} {self.folder}: has experts that were trained otherwise: {'; '.join(differences)}; "
                "give these flags, or choose another folder"
            )
        self._curves, self._files = record.curves, record.files

    def _save(self) -> None:
        facts = environment(self.network.device)
        record = Experts(self.source, self.training, len(self._filed), self._curves, self._files, **facts)
        write_json(self.folder / EXPERTS, asdict(record))

    def collect(self) -> None:
        """Move experts into files as long as one is full, or all are there."""
        while (loose := self._loose()) and (len(loose) >= self.interval or not self.missing):
            experts = [self._load(number) for number in loose[: self.interval]]
            path = self.folder / file_name(len(self._files))
            content = [_to_file(expert.trajectory, self.network) for expert in experts]
            write_atomically(path, lambda file, content=content: torch.save(content, file))  # type: ignore[misc]
            numbers = [expert.number for expert in experts]
            self._files.append(ExpertFile(path.name, numbers, _file_checksum(path)))
            self._curves += [ExpertCurve(expert.number, expert.losses, expert.accuracies) for expert in experts]
            self._save()  # from here on they count as filed
            for number in numbers:
                _loose_path(self.folder, number).unlink()

    def _load(self, number: int) -> Expert:
        path = _loose_path(self.folder, number)
        try:
            expert = Expert(number, **torch.load(path, weights_only=True))
            if expert.trajectory.shape != (self.training.epochs + 1, self.network.size):
                raise ValueError("another shape")
        except Exception as error:  # zip, pickle and OS errors alike mean that the file cannot be used
            raise UserError(
                f"{path}: damaged ({type(error).__name__}); delete it, and this expert is trained again"
            ) from error
        return expert


# ---- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where an expert is."""

    path: Path
    number: int  # in the file
    snapshots: Snapshots  # mapped, not read


class Buffer:
    """A folder's experts, read a snapshot at a time.

    Args:
        folder: with ``replay_buffer_0.pt`` and so on.
        network: that they are to be.
        max_files: take so many files at most.
        max_experts: take so many experts of each file at most.

    Raises:
        UserError: no files, gaps between them, damaged or unsuitable ones; names file and remedy.
    """

    def __init__(
        self, folder: Path, network: FlatNetwork, *, max_files: int | None = None, max_experts: int | None = None
    ) -> None:
        self.folder, self.network = folder, network
        self.record = read_experts(folder)
        self._slots = layout(network)
        self._places: list[_Place] = []
        for path in self._paths(max_files):
            self._check_checksum(path)
            experts = _open(path)
            self._places += [_Place(path, i, experts[i]) for i in range(len(experts))[:max_experts]]
        for place in self._places:
            self._check_shapes(place)

    def __len__(self) -> int:
        """How many experts there are."""
        return len(self._places)

    @property
    def epochs(self) -> int:
        """How many epochs each was trained: snapshots 0 to ``epochs``."""
        return len(self._places[0].snapshots) - 1

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """An expert's parameters after so many epochs: (P,) float32 on the CPU.

        Raises:
            UserError: they are not finite.
        """
        place = self._places[expert]
        parts = [
            tensor.detach().flatten().float()
            for tensor, slot in zip(place.snapshots[epoch], self._slots, strict=True)
            if slot.ours
        ]
        theta = torch.cat(parts)
        if not theta.isfinite().all():
            raise UserError(
                f"{place.path}: expert {place.number} is infinite or NaN after epoch {epoch}; train it again with a "
                "lower --lr_teacher"
            )
        return theta

    def segment(self, expert: int, start: int, epochs: int) -> tuple[Tensor, Tensor]:
        """Where a piece of an expert's trajectory begins and ends, each (P,) float32 on the CPU.

        Args:
            expert: which.
            start: epochs before the piece.
            epochs: its length, at least 1.

        Raises:
            UserError: one is not finite; or they are equal, so that no distance can be measured in theirs.
        """
        first, last = self.snapshot(expert, start), self.snapshot(expert, start + epochs)
        if torch.equal(first, last):
            place = self._places[expert]
            raise UserError(
                f"{place.path}: expert {place.number} is the same after epochs {start} and {start + epochs}, as if it "
                "had not been trained; make the experts again with main.py buffer"
            )
        return first, last

    def _paths(self, most: int | None) -> list[Path]:
        """The files, from 0 up."""
        if not self.folder.is_dir():
            raise UserError(f"{FOLDER} {self.folder}: no such folder; give one with {file_name(0)}")
        stems = (path.stem.removeprefix("replay_buffer_") for path in self.folder.glob("replay_buffer_*.pt"))
        there = {int(stem) for stem in stems if stem.isdecimal() and stem == str(int(stem))}
        listed = len(self.record.files) if self.record is not None else 0
        expected = range(max([*(number + 1 for number in there), listed], default=0))[:most]
        if not expected:
            raise UserError(
                f"{FOLDER} {self.folder}: no {file_name(0)}; make experts with main.py buffer, or give the folder that "
                "has them"
            )
        for number in expected:
            if number not in there:
                fewer = f", or give --max_files {number}" if number else ""
                raise UserError(
                    f"{self.folder / file_name(number)}: missing, while later ones are there or listed; "
                    f"restore it{fewer}"
                )
        return [self.folder / file_name(number) for number in expected]

    def _check_checksum(self, path: Path) -> None:
        if self.record is None:
            return
        sums = {file.name: file.checksum for file in self.record.files}
        if path.name not in sums:
            raise UserError(
                f"{path}: not listed in {EXPERTS}; give the command again that makes these experts, which writes both"
            )
        if _file_checksum(path) != sums[path.name]:
            raise UserError(f"{path}: damaged, its checksum is not that of {EXPERTS}; restore it from a copy")

    def _check_shapes(self, place: _Place) -> None:
        """Whether an expert is of this network, and as long as the first."""
        where = f"{place.path}: expert {place.number}"
        remedy = "give the --model, --dataset and --im_size that it was trained with"
        classes = self._slots[-1].shape[0]
        for snapshot in place.snapshots:
            if len(snapshot) != len(self._slots):
                raise UserError(
                    f"{where} has {len(snapshot)} parameters, this network of {classes} classes "
                    f"{len(self._slots)}; {remedy}"
                )
            for i, (tensor, slot) in enumerate(zip(snapshot, self._slots, strict=True)):
                if tensor.shape != slot.shape:
                    raise UserError(
                        f"{where} has {_by(tensor.shape)} as parameter {i}, this network of {classes} classes "
                        f"{_by(slot.shape)}; {remedy}"
                    )
        if len(place.snapshots) != self.epochs + 1:
            raise UserError(
                f"{where} has {len(place.snapshots)} snapshots, those before it {self.epochs + 1}; "
                "keep experts of different length in folders of their own"
            )


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _open(path: Path) -> list[Snapshots]:
    """A file's experts, mapped into memory; no code of it is run.

    Raises:
        UserError: it holds anything but lists of lists of tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zip, pickle and OS errors alike mean that the file cannot be used
        raise UserError(
            f"{path}: damaged, or not made of tensors alone ({type(error).__name__}); restore it, or make "
            "it again with main.py buffer"
        ) from error

    def nested(value: Any, depth: int) -> bool:
        if depth == 0:
            plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
            return plain and value.is_floating_point()
        return isinstance(value, list) and len(value) > 0 and all(nested(entry, depth - 1) for entry in value)

    if not nested(content, 3) or any(len(snapshots) < 2 for snapshots in content):
        raise UserError(
            f"{path}: not a list of experts, each a list of two or more snapshots, each a list of tensors; "
            "give files of main.py buffer, of MTT or of FTD"
        )
    return content  # type: ignore[no-any-return]
