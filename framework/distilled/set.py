"""A distilled set as something to use: its images and labels, and all that training on it takes."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from framework.config.distilling import Distilling
from framework.data.preprocess import Preprocess, Zca, ZcaPixels
from framework.distilled.formats import Stored
from framework.errors import UserError
from framework.inner.augment import Augmentation, apply
from framework.inner.counts import Counts
from framework.inner.names import MOMENTUM, WEIGHT_DECAY
from framework.inner.optimizers import Adam, ModuleAdam
from framework.inner.plan import ClassSampler
from framework.networks import registry
from framework.rng import derived_seed, generator

OF_THE_WHOLE = (
    "best_length", "accuracy", "step_size", "step_sizes", "block_size", "blocks", "blocks_in_all"
)  # fmt: skip
"""What a set's provenance says of all of its images, and not of some."""


@dataclass(frozen=True)
class Distilled:
    """A distilled set and how it is meant to be used; see ``load_distilled``."""

    source: Path
    images: Tensor
    """(N, C, H, W) float32 as networks see them, sorted by class (else ``by_class`` is False)."""
    labels: Tensor
    """(N, K) float32 class weights: one-hot, or learnt."""
    class_names: tuple[str, ...]
    """In label order."""
    preprocess: Preprocess
    """Call it on uint8 pixels to get what networks see; ``inverse`` goes back to natural colours."""
    config: Distilling
    """The run's flags, the inner recipe among them."""
    provenance: dict[str, Any]
    """Where the set comes from: epoch, accuracy, device, versions, and ``best_length``, the steps to train for."""
    by_class: bool = True
    """Batches can be drawn by class: it is known how many images there are of each."""
    learnt_lr: float | None = None
    """The learning rate that was learnt with the images, if any."""
    stored_bits: tuple[int, int] = (32, 32)
    """Of a value of an image, and of a class weight, in the set's file; of a pixel 8."""
    numbers: tuple[int, ...] | None = None
    """Images of each class; None: N / K."""

    @property
    def per_class(self) -> int:
        """Images of each class, in the mean and rounded down where classes have not as many."""
        return len(self.images) // self.num_classes

    @property
    def counts(self) -> Counts:
        """Images of each class; meaningless where ``by_class`` is False."""
        return Counts.equal(self.num_classes, self.per_class) if self.numbers is None else Counts(self.numbers)

    @property
    def block_size(self) -> int | None:
        """Images of each class that a boosted set's blocks have: the first blocks are sets of their own."""
        return self.provenance.get("block_size")

    @property
    def method(self) -> str:
        """The name of the method that made it, for people."""
        return self.config.method(self.provenance) if self.provenance else "of another program"

    @property
    def lacks(self) -> str:
        """Of a boosted run that has not ended, which blocks the set has, for people; empty where it has all."""
        blocks, in_all = self.provenance.get("blocks", 1), self.provenance.get("blocks_in_all", 1)
        if blocks >= in_all:
            return ""
        return f"{self.source}: has block 1 to {blocks} of {in_all}; the run that learns the others has not ended"

    def prefix(self, per_class: int) -> "Distilled":
        """The first ``per_class`` images of each class, as a set of its own.

        Of a boosted set with a learnt step size, a prefix of whole blocks has that of the time when it was finished.

        Raises:
            UserError: there are not so many, or the set is not sorted by class.
        """
        if not (self.by_class and self.counts.same):
            raise UserError(
                f"{self.source}: has not as many images of each class, and so no prefixes; give a set that has"
            )
        if not 1 <= per_class <= self.per_class:
            raise UserError(f"{self.source}: has {self.per_class} image(s) of each class; give at most that many")
        return self if per_class == self.per_class else self.subset(torch.arange(per_class))

    def subset(self, places: Tensor) -> "Distilled":
        """The images at ``places`` (n,) among those of each class, in that order, as a set of its own.

        Each class must have as many.
        """
        assert self.counts.same, "checked before"
        count = len(places)
        rows = torch.arange(len(self.images)).unflatten(0, (self.num_classes, -1))[:, places].flatten()
        config, step_size = self.config.of_size(count), self._step_size(count)
        known = {name: value for name, value in self.provenance.items() if name not in OF_THE_WHOLE}
        own = {"config": json.loads(config.to_json()), "step_size": step_size, "subset": places.tolist()}
        return replace(
            self, images=self.images[rows], labels=self.labels[rows], config=config, learnt_lr=step_size, numbers=None,
            provenance=known | {name: value for name, value in own.items() if value is not None},
        )  # fmt: skip

    def _step_size(self, per_class: int) -> float | None:
        """The learnt rate when the blocks with so many images of each class were finished, else the set's."""
        earlier = self.provenance.get("step_sizes", ())
        if self.block_size is None or per_class % self.block_size or per_class // self.block_size > len(earlier):
            return self.learnt_lr
        return float(earlier[per_class // self.block_size - 1])

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
            counts=self.counts,
            classes_per_step=self.config.task_sampler_nc or self.num_classes,
            batch_per_class=min(self.config.batch_per_class, self.counts.largest),
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
        return registry.build(self.config.arch, channels, side, self.num_classes, **self.config.network)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The inner loop's optimiser, at the learnt rate where there is one."""
        lr = self.config.inner_lr if self.learnt_lr is None else self.learnt_lr
        if self.config.eps_root:
            return ModuleAdam(parameters, Adam(lr, eps_root=self.config.eps_root))
        if self.config.inner_optim == "Adam":
            return torch.optim.Adam(parameters, lr=lr)
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def trained_network(self, steps: int | None = None, seed: int = 0) -> nn.Module:
        """A fresh network that was trained on the set's ``batches`` by its ``optimizer``, in evaluation mode.

        Args:
            steps: how many (default: the property ``steps``).
            seed: of its initial parameters and of the batches.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "network"))
            network = self.network()
        optimizer = self.optimizer(network.parameters())
        for images, weights in self.batches(steps, seed):
            optimizer.zero_grad()
            F.cross_entropy(network(images), weights).backward()
            optimizer.step()
        return network.eval()

    def accuracy(self, network: nn.Module, root: str | Path | None = None) -> float:
        """The fraction of the real test images that a network classifies correctly.

        Args:
            network: from (B, C, H, W) images as networks see them to (B, K) logits, on the CPU.
            root: folder of the data set's files (default: the run's).

        Raises:
            UserError: they are not there, or have other classes.
        """
        from framework.assemble.common import data_spec  # late: to train on a set, no real images are needed
        from framework.data.load import list_data
        from framework.distilled.labels import match_classes

        listing = list_data(data_spec(self.config if root is None else replace(self.config, root=str(root))))
        test = listing.source.test
        labels = torch.tensor(match_classes(self.class_names, listing.class_names, self.source))[test.labels]
        guesses = []
        with torch.no_grad():
            for rows in torch.arange(len(labels)).split(1000):
                pixels = test.read(rows, listing.spec.workers, False)
                guesses.append(network(self.preprocess(pixels)).argmax(1))
        return float((torch.cat(guesses) == labels).float().mean())

    @cached_property
    def pictures(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1]: the images as a person would see them; see ``report.natural_images``."""
        from framework.distilled.pictures import natural_images  # late: it needs a drawing library, training does not

        return natural_images(self.images, self.preprocess, _contrast(self.preprocess, self.config.zca_reg))

    def stored(self, *, numbers: bool = True) -> Stored:
        """What a file of the set holds; ``numbers``: one-hot labels as class numbers, as others expect them."""
        hard = self.hard_labels if numbers else None
        labels = self.labels if hard is None else hard
        return Stored(
            {"images": self.images, "labels": labels, **self.preprocess.tensors()},
            {"class_names": json.dumps(self.class_names), "provenance": json.dumps(self.provenance)},
        )


def _contrast(preprocess: Preprocess, zca_reg: float) -> float:
    """The standard deviation of real preprocessed images, which ``natural_images`` stretches to.

    Standardising makes it 1. ZCA with the matrix W = (S + r)^-1/2 makes the covariance S that it was fitted to
    I - r W^2, which has the mean diagonal 1 - r ||W||^2 / D. ``ZcaPixels`` has r = eps; under ``Zca`` the images have
    norm 1 before they are whitened, so that their D eigenvalues sum to 1, and r is reg / D.
    """
    if not isinstance(preprocess, Zca | ZcaPixels):
        return 1.0
    size = len(preprocess.whiten)
    added = zca_reg / size if isinstance(preprocess, Zca) else ZcaPixels.EPS
    return float((1 - added * preprocess.whiten.double().square().sum() / size).sqrt())
