"""A distilled set as something to use: its images and labels, and all that training on it takes."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from framework import formats, networks
from framework.augment import Augmentation, apply
from framework.config import FLAGS, Config, UserError
from framework.data import Preprocess, RealData, Zca
from framework.formats import Stored
from framework.report import natural_images
from framework.rng import generator
from framework.synthetic import ClassSampler

SET = "distilled.safetensors"


@dataclass(frozen=True)
class Distilled:
    """A distilled set and how it is meant to be used; see ``load_distilled``."""

    source: Path
    images: Tensor
    """(N, C, H, W) float32 as networks see them, N / K of each class, sorted by class."""
    labels: Tensor
    """(N, K) float32 class weights: one-hot, or learnt."""
    class_names: tuple[str, ...]
    """In label order."""
    preprocess: Preprocess
    """Call it on uint8 pixels to get what networks see; ``inverse`` goes back to natural colours."""
    config: Config
    """The run's flags, the inner recipe among them."""
    provenance: dict[str, Any]
    """Where the set comes from: epoch, accuracy, device, versions, and ``best_length``, the steps to train for."""

    @property
    def dataset(self) -> TensorDataset:
        """Images (C, H, W) with their class weights (K,), for any data loader."""
        return TensorDataset(self.images, self.labels)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def steps(self) -> int:
        """The training length that was selected with the set, in inner steps."""
        return int(self.provenance.get("best_length", self.config.eval_steps[-1]))

    @property
    def augmentation(self) -> Augmentation:
        """Of synthetic batches."""
        return Augmentation(self.config.syn_strategy, self.config.comp_aug, self.images.shape[-1])

    @property
    def hard_labels(self) -> Tensor | None:
        """(N,) class numbers where every label is exactly one-hot, else None."""
        numbers = self.labels.argmax(1)
        return numbers if torch.equal(F.one_hot(numbers, self.num_classes).float(), self.labels) else None

    @property
    def sampler(self) -> ClassSampler:
        """Draws batches of the set as the inner loop did."""
        return ClassSampler(
            num_classes=self.num_classes,
            per_class=len(self.images) // self.num_classes,
            classes_per_step=self.config.task_sampler_nc or self.num_classes,
            batch_per_class=self.config.batch_per_class,
            augmentation=self.augmentation,
        )

    def batches(self, steps: int | None = None, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches of images (B, C, H, W) and class weights (B, K), one per inner step.

        Args:
            steps: how many (default: the property ``steps``).
            seed: of every choice.
        """
        plan = self.sampler.plan(self.steps if steps is None else steps, generator(seed, "batches"))
        for t in range(len(plan)):
            yield apply(self.images[plan.indices[t]], self.labels[plan.indices[t]], plan.draw.at(t))

    def network(self) -> nn.Module:
        """A fresh network of the architecture that the set was made for."""
        channels, side = self.images.shape[1:3]
        return networks.build(self.config.arch, channels, side, self.num_classes, **network_options(self.config))

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The inner loop's optimiser."""
        if self.config.inner_optim == "Adam":
            return torch.optim.Adam(parameters, lr=self.config.inner_lr)
        return torch.optim.SGD(parameters, lr=self.config.inner_lr, momentum=0.9, weight_decay=5e-4)

    @cached_property
    def pictures(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1]: the images as a person would see them; see ``report.natural_images``."""
        return natural_images(self.images, self.preprocess, _contrast(self.preprocess, self.config.zca_reg))

    def stored(self, *, numbers: bool = True) -> Stored:
        """What a file of the set holds; ``numbers``: one-hot labels as class numbers, as others expect them."""
        hard = self.hard_labels if numbers else None
        labels = self.labels if hard is None else hard
        return Stored(
            {"images": self.images, "labels": labels, **self.preprocess.tensors()},
            {"class_names": json.dumps(self.class_names), "provenance": json.dumps(self.provenance)},
        )


def load_distilled(path: str | Path) -> Distilled:
    """Open a distilled set with all that training on it takes.

    Args:
        path: a run's folder, its ``distilled.safetensors``, or what ``main.py export`` made of it (``.pt``, ``.npz``,
            ``.h5``).

    Raises:
        UserError: there is no set, the file is damaged, or it was written by another program and so does
            not say how its images were made.
    """
    return from_stored(open_stored(Path(path)), Path(path))


def from_stored(stored: Stored, path: Path) -> Distilled:
    """The set in one of our own files; see ``load_distilled``."""
    if not stored.ours:
        raise UserError(
            f"{path}: a file of another program, which says nothing of data set and preprocessing; main.py evaluate "
            "takes it with --dataset and --preprocess"
        )
    try:
        class_names = tuple(json.loads(stored.metadata["class_names"]))
        provenance = json.loads(stored.metadata["provenance"])
        config = config_from(provenance["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged metadata ({error}); restore it from a copy") from error
    images, labels = stored.tensors["images"].float(), class_weights(stored.tensors["labels"], len(class_names), path)
    preprocess = Preprocess.from_tensors(stored.tensors)
    return Distilled(path, images, labels, class_names, preprocess, config, provenance)


def open_stored(path: Path, labels: Path | None = None) -> Stored:
    """Read a set; ``path`` may also be a run's folder. See ``formats.read``."""
    if path.is_dir() and (path / SET).exists():
        return formats.read(path / SET)
    if path.is_dir() and (path / "config.json").exists():
        raise UserError(f"{path}: a run without {SET}; it is written at the first evaluation, continue with --resume")
    return formats.read(path, labels)


def from_foreign(stored: Stored, path: Path, real: RealData, config: Config, *, pixels: bool) -> Distilled:
    """A set of another program, for the real data that it was made from.

    Sets with class numbers are sorted by class; sets with class weights are taken to be sorted, as is usual
    where labels are learnt.

    Args:
        stored: its file's content.
        path: for messages.
        real: with the preprocessing that the set is to be seen in.
        config: the inner recipe to use.
        pixels: the images are pixels, 0..255 or floating point in [0, 1] (which are rounded to 8 bits), to be
            preprocessed like the real ones.

    Raises:
        UserError: shapes or labels do not fit the data set.
    """
    images, labels = stored.tensors["images"], stored.tensors["labels"]
    shape, (channels, height, width) = tuple(images.shape[1:]), real.image_shape
    if shape != real.image_shape and shape == (height, width, channels):
        images = images.permute(0, 3, 1, 2)
    elif shape == (1, height, width) and channels == 3 and pixels:
        images = images.expand(-1, 3, -1, -1)
    elif shape != real.image_shape:
        raise UserError(
            f"{path}: images are {' x '.join(map(str, shape))}, those of {real.name} {channels} x {height} x {width}; "
            "give another --dataset or --im_size"
        )
    if "folders" in stored.metadata:
        labels = _folder_classes(json.loads(stored.metadata["folders"]), real.class_names, path)[labels]
    if len(images) != len(labels):
        raise UserError(f"{path}: {len(images)} images but {len(labels)} labels; give the files of one set")
    weights = class_weights(labels, real.num_classes, path)
    if labels.ndim == 1:
        order = weights.argmax(1).argsort(stable=True)
        images, weights = images[order], weights[order]
    if pixels:
        low, high = (0, 1) if images.is_floating_point() else (0, 255)
        if images.min() < low or images.max() > high:
            raise UserError(
                f"{path}: --preprocess pixels, but values are outside {low}..{high}; say how they were made"
            )
        images = real.preprocess((images * (255 / high)).round().to(torch.uint8))
    return Distilled(path, images.float().contiguous(), weights, real.class_names, real.preprocess, config, {})


def _folder_classes(folders: list[str], class_names: tuple[str, ...], path: Path) -> Tensor:
    """The class of each folder: by its name, else by the number in front."""
    if set(folders) <= set(class_names):
        return torch.tensor([class_names.index(name) for name in folders])
    numbers = [name.partition("_")[0] for name in folders]
    if all(number.isdecimal() and int(number) < len(class_names) for number in numbers):
        return torch.tensor([int(number) for number in numbers])
    raise UserError(f"{path}: folders are named neither like classes nor by their numbers; rename them 0, 1, 2, ...")


def class_weights(labels: Tensor, num_classes: int, path: Path) -> Tensor:
    """(N, K) float32 class weights, from those or from (N,) class numbers.

    Raises:
        UserError: they do not fit the number of classes.
    """
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return labels.float()
    numbers = labels.flatten() if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if numbers.ndim != 1 or not torch.equal(numbers.double(), numbers.double().round()):
        raise UserError(f"{path}: labels of shape {tuple(labels.shape)}; there are {num_classes} classes")
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= num_classes:
        raise UserError(f"{path}: labels are not all in 0..{num_classes - 1}; check --dataset")
    return F.one_hot(numbers.long(), num_classes).float()


def config_from(values: dict[str, Any]) -> Config:
    """The configuration that a file holds; flags that are younger than the file have their defaults.

    Raises:
        KeyError: a flag that this version does not know.
    """
    unknown = values.keys() - FLAGS.keys()
    if unknown:
        raise KeyError(f"unknown flags {', '.join(sorted(unknown))}, of another version")
    flags: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Config(**flags)


def network_options(config: Config) -> dict[str, Any]:
    """Everything but the name that builds the run's network: all other flags of that group."""
    return {name: getattr(config, name) for name, flag in FLAGS.items() if flag.group == "network" and name != "arch"}


def _contrast(preprocess: Preprocess, zca_reg: float) -> float:
    """The standard deviation of real preprocessed images, which ``natural_images`` stretches to.

    Standardising makes it 1. With ZCA the images have norm 1 before they are whitened, so their D eigenvalues sum
    to 1; the whitened covariance I - reg / D W^2 has the mean diagonal 1 - reg / D^2 ||W||^2.
    """
    if not isinstance(preprocess, Zca):
        return 1.0
    size = len(preprocess.whiten)
    return float((1 - zca_reg * preprocess.whiten.double().square().sum() / size**2).sqrt())
