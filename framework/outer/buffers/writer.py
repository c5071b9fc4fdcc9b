"""Writing experts: each by itself as soon as it is trained, then into files of several."""

from dataclasses import asdict
from pathlib import Path

import torch

from framework.errors import UserError
from framework.files import EXPERTS, FolderLock, file_checksum, write_atomically, write_json
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.outer.buffers.layout import FOLDER, file_name, to_file
from framework.outer.buffers.record import differences, read_experts
from framework.outer.matching.experts import Expert
from framework.records import ExpertCurve, ExpertFile, Experts, ExpertSource, ExpertTraining


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
    none is lost, however the process ends, and a run goes on with those that are missing. Files hold experts in the
    order of their numbers, whichever process ends one first: what is distilled from them must not depend on that.

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
        return self._missing(self._loose())

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

    def _missing(self, loose: list[int]) -> list[int]:
        """Experts that are neither in files nor among ``loose``."""
        done = self._filed | set(loose)
        return [number for number in range(self.count) if number not in done]

    def _resume(self) -> None:
        record = read_experts(self.folder)
        if record is None:
            if any(self.folder.glob("replay_buffer_*.pt")) or self._loose():
                raise UserError(
                    f"{FOLDER} {self.folder}: has experts but no {EXPERTS}, so they are another program's; "
                    "choose another folder"
                )
            return
        found = differences(record.source, self.source) + differences(record.training, self.training)
        if found:
            raise UserError(
                f"{FOLDER} {self.folder}: has experts that were trained otherwise: {'; '.join(found)}; "
                "give these flags, or choose another folder"
            )
        self._curves, self._files = record.curves, record.files

    def _save(self) -> None:
        facts = environment(self.network.device)
        record = Experts(self.source, self.training, len(self._filed), self._curves, self._files, **facts)
        write_json(self.folder / EXPERTS, asdict(record))

    def collect(self) -> None:
        """Move experts into files as long as one is full, or all are there."""
        loose = self._loose()  # a single look: other processes keep more of them meanwhile
        missing = self._missing(loose)
        ready = [number for number in loose if not missing or number < missing[0]]
        for first in range(0, len(ready), self.interval):
            numbers = ready[first : first + self.interval]
            if len(numbers) == self.interval or not missing:
                self._move(numbers)

    def _move(self, numbers: list[int]) -> None:
        """Move these experts into the next file."""
        experts = [self._load(number) for number in numbers]
        path = self.folder / file_name(len(self._files))
        content = [to_file(expert.trajectory, self.network) for expert in experts]
        write_atomically(path, lambda file: torch.save(content, file))
        self._files.append(ExpertFile(path.name, numbers, file_checksum(path)))
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
