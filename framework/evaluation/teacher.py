"""A teacher: a network that is trained once on all real training images, and kept for later evaluations."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from framework.data.registry import kind_of
from framework.data.splits import RealData
from framework.errors import UserError, one_line
from framework.evaluation.evaluator import Evaluator, TrainingSet
from framework.evaluation.recipes import DC_BATCH, DC_LR, DecayedSGD, siamese_augmentation
from framework.evaluation.scores import score
from framework.files import file_checksum, folder_for, read_json, write_json
from framework.inner.loop import InnerLoop
from framework.inner.names import MOMENTUM, WEIGHT_DECAY
from framework.inner.plan import UniformSampler
from framework.machine import environment
from framework.networks.flat import FlatNetwork
from framework.networks.spec import Spec
from framework.outer.buffers.record import weighted_norms
from framework.records import TeacherRecord, TeacherSource, read_record
from framework.run.checkpoint import save_tensors

CHUNK = 1000  # images seen at a time
SEED = 0  # of every teacher: there is one for all evaluations, whatever their seeds


@dataclass(frozen=True)
class Pupil:
    """A network that may become a teacher.

    Args:
        arch: of ``networks.registry.ARCHITECTURES``.
        spec: what it is built from.
        network: f.
        steps: to train it for.
    """

    arch: str
    spec: Spec
    network: FlatNetwork
    steps: int

    @property
    def rule(self) -> DecayedSGD:
        """SGD as in dataset condensation's evaluation, a tenth of the rate in the second half."""
        return DecayedSGD(DC_LR, decay_at=self.steps // 2)

    def training_set(self, real: RealData) -> TrainingSet:
        """All real training images, in uniform batches with DSA's augmentation."""
        count = len(real.train)
        sampler = UniformSampler(count, min(DC_BATCH, count), siamese_augmentation(real.name, real.image_shape[-1]))
        return TrainingSet(real.train.images, F.one_hot(real.train.labels, real.num_classes).float(), sampler)

    def trained(self, real: RealData, steps: int, tick: Callable[[int], None], *key: str | int) -> Tensor:
        """Parameters of a fresh network after so many steps, with running statistics where there are any: (P + R,)."""
        evaluator = Evaluator(InnerLoop(self.network, self.rule), SEED, tick)
        return next(evaluator.thetas(self.training_set(real), (steps,), *key))

    def source(self, real: RealData, images: str) -> TeacherSource:
        """What the teacher of this data is; ``images``: checksum of which images train."""
        augmentation = siamese_augmentation(real.name, real.image_shape[-1])
        return TeacherSource(
            dataset=kind_of(real.name),
            identity=real.identity,
            class_names=list(real.class_names),
            preprocess=real.preprocess.kind,
            preprocess_norms=weighted_norms(real.preprocess.tensors()),
            images=images,
            arch=self.arch,
            spec=self.spec,
            steps=self.steps,
            recipe=f"SGD {DC_LR:g}, momentum {MOMENTUM}, weight decay {WEIGHT_DECAY:g}, a tenth of the rate in the "
            f"second half; batches of {DC_BATCH}; {augmentation}",
        )


@contextmanager
def evaluating(network: FlatNetwork) -> Iterator[FlatNetwork]:
    """The network in evaluation mode, without gradients."""
    network.module.eval()
    try:
        with torch.no_grad():
            yield network
    finally:
        network.module.train()


@dataclass(frozen=True)
class Teacher:
    """A network trained on all real training images.

    Args:
        pupil: the network and how it was trained.
        theta: (P + R,) its parameters and running statistics, on the device.
        accuracy: on the real test images, a fraction.
    """

    pupil: Pupil
    theta: Tensor
    accuracy: float

    def labels(self, images: Tensor) -> Tensor:
        """Its softmax for images (N, C, H, W) as they are, without augmentation: (N, K)."""
        with evaluating(self.pupil.network) as network:
            return torch.cat([network(self.theta, part).softmax(1) for part in images.split(CHUNK)])

    def features(self, images: Tensor) -> Tensor:
        """What its last layer sees of images (N, C, H, W): (N, F)."""
        with evaluating(self.pupil.network) as network:
            return torch.cat([network.embed(self.theta, part) for part in images.split(CHUNK)])


def weights_file(folder: Path, source: TeacherSource) -> Path:
    """Where a teacher's weights are; its record is beside them, as JSON.

    The name has the norms of the preprocessing in few digits: machines round differently.
    """
    about = dataclasses.asdict(source)
    about["preprocess_norms"] = {name: f"{norm:.4g}" for name, norm in source.preprocess_norms.items()}
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    return folder / f"{source.dataset}-{source.preprocess}-{source.arch}-{digest}.safetensors"


def find_or_train(
    pupil: Pupil, real: RealData, images: str, folder: Path, tick: Callable[[int], None]
) -> tuple[Teacher, Path, bool]:
    """The teacher that a folder keeps, or a new one, which is kept there.

    Args:
        pupil: the network.
        real: the data.
        images: checksum of which images of the training part train.
        folder: of teachers; made where it is missing.
        tick: called with the number of steps just taken.

    Returns:
        The teacher, the file of its weights, and whether it was trained now.

    Raises:
        UserError: what the folder keeps is damaged, or it cannot be made or written.
    """
    source = pupil.source(real, images)
    path = weights_file(folder, source)
    if (record := path.with_suffix(".json")).exists():
        return _read(pupil, path, record), path, False
    with folder_for(folder, "--teacher_dir"):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"--teacher_dir {folder}: cannot write there; choose another")
        began = time.monotonic()
        theta = pupil.trained(real, pupil.steps, tick, "teacher")
        accuracy = score(pupil.network, theta, real.test).top1
        save_tensors(path, {"theta": theta.cpu()}, {})
        about = TeacherRecord(
            source, accuracy, file_checksum(path), time.monotonic() - began, **environment(pupil.network.device)
        )
        write_json(record, dataclasses.asdict(about))
    return Teacher(pupil, theta, accuracy), path, True


def _read(pupil: Pupil, path: Path, record: Path) -> Teacher:
    """A kept teacher.

    Raises:
        UserError: its files are damaged.
    """
    again = f"delete {record.name} there, and it is trained again"
    try:
        about = read_record(TeacherRecord, read_json(record), record)
        if file_checksum(path) != about.checksum:
            raise UserError(f"{path}: not the weights that {record.name} has the checksum of")
        theta = load_file(path)["theta"]
        if theta.shape != (pupil.network.size + len(pupil.network.fresh_statistics()),):
            raise UserError(f"{path}: weights of shape {tuple(theta.shape)}, of another network")
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); {again}") from error
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; {again}") from error
    return Teacher(pupil, theta.to(pupil.network.device, pupil.network.dtype), about.accuracy)
