"""The typed schema of what a run leaves behind as JSON, and how it is read back.

Written by ``files.write_json``, in which NaN becomes null; read by ``report.folder``, and what stands beside experts
by ``outer.buffers``.
"""

import dataclasses
import math
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from framework.errors import UserError
from framework.networks.spec import Spec

METRICS = ("top1", "top5", "ece", "loss")
"""Of ``Scores``: fractions, and the mean cross-entropy in nats."""


@dataclass(frozen=True)
class Scores:
    """Means over networks, each with its sample standard deviation (None: of one network, or not finite)."""

    top1: float
    top1_std: float | None
    top5: float
    top5_std: float | None
    ece: float
    ece_std: float | None
    loss: float
    loss_std: float | None


@dataclass(frozen=True)
class Entry:
    """One evaluation of a run: fresh networks trained on the set of that epoch."""

    epoch: int
    split: str  # what selected: val or test
    lengths: list[int]  # inner steps
    scores: list[Scores]  # after each of these
    best_length: int
    accuracy: float  # there, a fraction
    form: str = ""  # of the set, where a method has it in several, as its images and their moving average

    @property
    def best(self) -> Scores:
        """The scores after ``best_length`` steps."""
        return self.scores[self.lengths.index(self.best_length)]


@dataclass(frozen=True)
class Row(Scores):
    """A row of a result table: what networks were trained on, and how they did on the test images."""

    name: str
    networks: int
    steps: int
    bits_per_class: float | None = None  # of what they were trained on; see ``evaluation.bits``


Results = dict[str, Row]
"""Rows by what they were trained on: ``distilled``, and the names of baselines."""


@dataclass(frozen=True)
class Summary:
    """``summary.json``: a finished run."""

    dataset: str
    policy: str
    seed: int
    epochs: int
    outer_steps: int
    best_epoch: int
    select: str
    results: Results
    seconds: float
    processes: int
    execution: str
    device: str
    torch: str
    python: str
    peak_memory_mib: float
    files: dict[str, str]
    gave_up: int | None = None  # the epoch after which --patience ended it
    prefixes: Results | None = None  # of a boosted run, by images per class; the last is the whole set


@dataclass(frozen=True)
class Origin:
    """Of a set that ``main.py evaluate`` judged, what a leaderboard says of it, and how it is judged again."""

    arch: str  # its own network
    method: str
    per_class: int
    hard: bool  # its own labels are one-hot
    command: str
    spread: str | None = None  # where classes have not as many images, how many they have, for people


@dataclass(frozen=True)
class Judgement:
    """``<recipe>.json`` of ``main.py evaluate``: several networks, several training sets."""

    source: str
    dataset: str
    recipe: str
    recipe_text: str
    lengths: list[int]
    select: str
    seed: int
    results: dict[str, Results]  # by network
    seconds: float
    device: str
    torch: str
    python: str
    peak_memory_mib: float
    prefixes: list[int] | None = None  # images per class of those that were evaluated, instead of the whole set
    origin: Origin | None = None  # None: of an older version

    @property
    def file_name(self) -> str:
        """Of its files, without a suffix."""
        return self.recipe if self.prefixes is None else f"{self.recipe}_prefixes"


@dataclass(frozen=True)
class Standing:
    """A row of a leaderboard: a set under a recipe. Accuracies are fractions of the real test images."""

    dataset: str
    set: str
    method: str
    per_class: int
    recipe: str
    select: str  # what chose training lengths, and of a run's own table the snapshot: val or test
    arch: str
    accuracy: float | None  # with the set's own labels; None: was not evaluated
    deviation: float | None
    networks: int | None
    hard: float | None  # with one-hot labels
    hard_deviation: float | None
    cross: float | None  # mean over networks of other architectures
    cross_archs: list[str]
    real: float | None  # of the best as many real images, whose name is the next
    real_name: str | None
    bits_per_class: float | None
    hours: float | None  # of the run that made the set
    command: str  # that makes the row again
    spread: str | None = None  # see ``Origin``; ``per_class`` is then the mean, rounded down

    @property
    def per_class_text(self) -> str:
        """Images per class, for people."""
        return self.spread or str(self.per_class)


@dataclass(frozen=True)
class CardScore:
    """Of a set of the zoo: how networks did that were trained on it by a recipe.

    Accuracies are fractions of the real test images, means over networks with sample standard deviations.
    """

    accuracy: float
    deviation: float | None
    hard: float | None  # with one-hot labels; None: the set's own are one-hot
    hard_deviation: float | None
    random: float | None  # of as many random real images, another draw for each network
    random_deviation: float | None
    networks: int
    steps: int
    recipe: str  # in words
    command: str  # that finds these figures again


@dataclass(frozen=True)
class Card:
    """``NAME.json`` beside a set of the zoo: what it is and how it was made."""

    dataset: str
    data: str  # where the real images are from, and what was done to them
    licence: str  # of these
    method: str
    per_class: int
    images: int
    learnt_labels: bool
    arch: str
    commands: list[str]  # that made it, in their order; ROOT is the folder of the data
    seed: int
    epochs: int
    outer_steps: int
    best_epoch: int
    select: str  # what chose snapshot and length: val or test
    recipe: str  # its own, of ``scores``
    scores: dict[str, CardScore]  # by recipe
    bits_per_class: float
    hours: float  # that the commands took, on the device
    device: str
    version: str  # of this program
    torch: str
    python: str
    checksum: str  # of the set's file: blake2b of 16 bytes, hexadecimal


@dataclass(frozen=True)
class TeacherSource:
    """What a teacher was trained on and how, and which network it is; where all is the same, so is the teacher."""

    dataset: str
    identity: str | None  # of one's own data, what changes with what they hold
    class_names: list[str]  # in label order
    preprocess: str  # kind
    preprocess_norms: dict[str, float]  # as in ``ExpertSource``
    images: str  # checksum of which images of the training part
    arch: str
    spec: Spec
    steps: int
    recipe: str  # for people


@dataclass(frozen=True)
class TeacherRecord:
    """What stands beside a teacher's weights."""

    source: TeacherSource
    accuracy: float  # on the real test images, a fraction
    checksum: str  # of the weights' file: blake2b of 16 bytes, hexadecimal
    seconds: float
    device: str
    torch: str
    python: str
    peak_memory_mib: float


@dataclass(frozen=True)
class ExpertSource:
    """What experts were trained on, and which network they are."""

    dataset: str
    class_names: list[str]  # in label order
    preprocess: str  # kind
    preprocess_norms: dict[str, float]  # of its tensors, by name; see ``outer.buffers.record.weighted_norms``
    arch: str  # of ``networks.registry.ARCHITECTURES``, by ``same_maker``
    spec: Spec
    validation: str | None  # checksum of which images were held out; None: experts saw all training images


@dataclass(frozen=True)
class ExpertTraining:
    """How experts were trained; see ``outer.matching.experts.ExpertRecipe``."""

    lr: float
    momentum: float
    weight_decay: float
    batch: int
    epochs: int
    decay: bool
    rho: float
    alpha: float
    adaptive: bool
    augmentation: str
    images: int  # that they were trained on
    seed: int


@dataclass(frozen=True)
class ExpertCurve:
    """How one expert learnt: means over each epoch's augmented training images."""

    number: int
    losses: list[float]
    accuracies: list[float]


@dataclass(frozen=True)
class ExpertFile:
    """A file of experts."""

    name: str
    experts: list[int]  # their numbers, in the file's order
    checksum: str  # blake2b of 16 bytes, hexadecimal


@dataclass(frozen=True)
class Experts:
    """``experts.json``: what stands beside files of experts."""

    source: ExpertSource
    training: ExpertTraining
    count: int  # experts in all files
    curves: list[ExpertCurve]  # of these
    files: list[ExpertFile]
    device: str
    torch: str
    python: str
    peak_memory_mib: float


R = TypeVar("R")


def read_record(kind: type[R], value: Any, source: Path) -> R:
    """A record from parsed JSON; keys that it does not know are left out.

    Raises:
        UserError: a key is missing or of another type; names the file and the key.
    """
    try:
        record: R = _read(kind, value, kind.__name__)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: damaged or of another version ({error}); restore it from a copy") from error
    return record


def _read(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{where} is no object")
        hints = get_type_hints(kind)
        optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
        if missing := sorted(hints.keys() - value.keys() - optional):
            raise TypeError(f"lacks {', '.join(missing)}")
        make: Any = kind
        return make(**{name: _read(hint, value[name], name) for name, hint in hints.items() if name in value})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _read(arguments[0], value, where)
    if origin is list and isinstance(value, list):
        return [_read(arguments[0], entry, where) for entry in value]
    if origin is dict and isinstance(value, dict):
        return {str(key): _read(arguments[1], entry, f"{where}, {key}") for key, entry in value.items()}
    if kind is float and value is None:  # how JSON has NaN
        return math.nan
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if origin is None and type(value) is kind:
        return value
    raise TypeError(f"{where} is {value!r}")
