"""Splits of a data set: what a run trains on, selects with and tests on, on the device or streamed to it.

What a split holds depends on the data and the flags, never on the run's seed: all runs share their validation images.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from framework.data.preprocess import Map, Pixels, Preprocess
from framework.errors import UserError
from framework.inner.counts import Counts
from framework.rng import generator

TEST_SHARE = 0.2
"""Of each class's images, where data come without a test part."""


@dataclass(frozen=True)
class StreamedImages:
    """Images that are read from disk, moved to the device and preprocessed when they are needed."""

    pixels: Pixels
    preprocess: Map
    """From (n, C, H, W) uint8 on the CPU to float32 on the device."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self.pixels.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, indices: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """See ``Split.batches``; the next batch is read by a thread while the caller works on this one."""
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for rows in indices:
                following = reader.submit(self.pixels.__getitem__, rows.cpu())
                if ahead is not None:
                    yield self.preprocess(ahead.result())
                ahead = following
            if ahead is not None:
                yield self.preprocess(ahead.result())


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of the data."""

    images: torch.Tensor | StreamedImages
    """(N, C, H, W) float32, preprocessed: all on the device, or streamed. Read them by ``batches``."""
    labels: torch.Tensor
    """(N,) int64 in 0..num_classes-1, on the device."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at ``indices`` (B,) int64: (B, C, H, W) float32 on the device."""
        return next(self.batches([indices]))

    def batches(self, indices: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """``batch`` of each of ``indices`` in turn."""
        if isinstance(self.images, StreamedImages):
            return self.images.batches(indices)
        images = self.images
        return (images[rows.to(images.device)] for rows in indices)

    def chunks(self, size: int) -> Iterator[torch.Tensor]:
        """All images in their order, ``size`` at a time."""
        if isinstance(self.images, StreamedImages):
            return self.images.batches(torch.arange(len(self)).split(size))
        return iter(self.images.split(size))


@dataclass(frozen=True)
class RealData:
    """A data set, split and preprocessed, on the device or streamed to it."""

    name: str
    class_names: tuple[str, ...]
    """In label order."""
    train: Split
    val: Split | None
    test: Split
    preprocess: Preprocess
    identity: str | None = None
    """Of one's own data: what changes with what they hold; None: their name says it all."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def epoch_batches(num_images: int, batch_size: int, gen: torch.Generator) -> torch.Tensor:
    """Return the indices of one random pass over ``num_images`` images, without replacement.

    The remainder that does not fill a batch is dropped. A set smaller than a batch is one batch, whole.

    Args:
        num_images: size of the set, at least 1.
        batch_size: images per step, at least 1.
        gen: CPU generator that the order is drawn from.

    Returns:
        (steps, min(batch_size, num_images)) int64 on the CPU, with steps = max(1, num_images // batch_size).
    """
    assert num_images > 0
    assert batch_size > 0
    size = min(batch_size, num_images)
    steps = num_images // size
    return torch.randperm(num_images, generator=gen)[: steps * size].view(steps, size)


def _rank_within_class(labels: torch.Tensor, num_classes: int, gen: torch.Generator) -> torch.Tensor:
    """Number the images of each class 0, 1, 2, ... in random order; (N,) int64 to (N,) int64."""
    order = torch.randperm(len(labels), generator=gen)
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.bincount(minlength=num_classes)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels)) - first.repeat_interleave(counts)
    return ranks


def validation_split(
    labels: torch.Tensor, class_names: tuple[str, ...], fraction: float, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending indices of the training and of the validation images, disjoint and stratified."""
    counts = labels.bincount(minlength=len(class_names))
    held_out = (counts.double() * fraction).round().long().clamp(min=1)
    if (held_out >= counts).any():
        short = int((held_out >= counts).nonzero()[0])
        raise UserError(
            f"--val_fraction {fraction}: class {class_names[short]} has {int(counts[short])} training image(s), "
            f"too few to leave some for training and some for validation; lower it, add images, or give 0"
        )
    ranks = _rank_within_class(labels, len(class_names), generator(0, "validation-split", name))
    is_val = ranks < held_out[labels]
    return (~is_val).nonzero().flatten(), is_val.nonzero().flatten()


def test_split(labels: torch.Tensor, class_names: tuple[str, ...], where: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices of training and of test images, for data that come without a test part.

    A fifth of each class, at least one image, are the test part: always the same images of the same labels.

    Args:
        labels: (N,) int64 in 0..K-1, each of them there.
        class_names: K of them.
        where: the data, for the message.

    Raises:
        UserError: a class has one image only.
    """
    counts = labels.bincount(minlength=len(class_names))
    if (counts < 2).any():
        short = class_names[int((counts < 2).nonzero()[0])]
        raise UserError(f"{where}: no test part, and class {short} has one image, which cannot be in two parts; add a "
                        "test part, or images")  # fmt: skip
    held_out = (counts.double() * TEST_SHARE).round().long().clamp(min=1)
    is_test = _rank_within_class(labels, len(class_names), generator(0, "test-split")) < held_out[labels]
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def require_random_real(
    counts: torch.Tensor, class_names: tuple[str, ...], wanted: Counts, flag: str = "--baselines random"
) -> None:
    """Check that every class has the real images that are to be drawn.

    Args:
        counts: (K,) int64: training images of each class.
        class_names: K of them.
        wanted: images of each class of the distilled set.
        flag: what asks for them.

    Raises:
        UserError: naming the first class that has fewer.
    """
    for count, name, ipc in zip(counts.tolist(), class_names, wanted.numbers, strict=True):
        if count < ipc:
            raise UserError(
                f"{flag}: class {name} has only {count} real image(s), fewer than the {ipc} distilled one(s) of a "
                "class; leave it out, or distil fewer"
            )


def draw_per_class(labels: torch.Tensor, counts: Counts, gen: torch.Generator) -> torch.Tensor:
    """Indices (counts.total,) int64, sorted by class, of random images without replacement.

    Args:
        labels: (N,) int64 on the CPU, of each class at least as many as are drawn.
        counts: images to draw of each class.
        gen: of the draws.
    """
    picks = []
    for k, number in enumerate(counts.numbers):
        members = (labels == k).nonzero().squeeze(1)
        picks.append(members[torch.randperm(len(members), generator=gen)[:number]])
    return torch.cat(picks)


def balanced_subset(labels: torch.Tensor, num_classes: int, limit: int, name: str) -> torch.Tensor:
    """Return ascending indices of ``limit`` images whose classes differ by one image at most.

    Where a class has too few images the others fill in, and all images are kept if there are not more.
    """
    if limit < num_classes:
        raise UserError(f"--limit_train {limit}: it takes at least one image for each of {num_classes} classes")
    gen = generator(0, "limit-train", name)
    ranks = _rank_within_class(labels, num_classes, gen)
    # Deal one image of each class, then a second one of each, ...; who is short in the last round is random.
    turn = torch.randperm(num_classes, generator=gen)
    return (ranks * num_classes + turn[labels]).argsort()[:limit].sort().values
