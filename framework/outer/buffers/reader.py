"""Reading experts, ours and other programs', a snapshot at a time."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import UserError
from framework.files import EXPERTS, file_checksum
from framework.networks.flat import FlatNetwork
from framework.outer.buffers.layout import FOLDER, Snapshots, file_name, layout
from framework.outer.buffers.record import read_experts


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
    def provenance(self) -> dict[str, Any]:
        """What a set that was learnt from these experts says of them; nothing where nobody knows."""
        return {} if self.record is None else {"experts": asdict(self.record.training)}

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
        if file_checksum(path) != sums[path.name]:
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
