"""The set that a run starts from, in the run's own preprocessing: ``--init SET``."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from framework.data.preprocess import Preprocess
from framework.distilled.foreign import Target, understood
from framework.distilled.formats import Stored
from framework.distilled.labels import UnclearLabels, with_classes_of
from framework.distilled.load import from_stored, open_stored
from framework.errors import UserError
from framework.inner.counts import Counts

_CLOSE = 1e-4
"""Of a tensor's largest value, what two fits of one preprocessing may differ by: each device rounds differently."""


@dataclass(frozen=True)
class Start:
    """A set that fits the run's data; its images are still as the file has them."""

    path: Path
    images: Tensor
    """(N, C, H, W), sorted by class: uint8 pixels, or float32 as networks saw them."""
    labels: Tensor
    """(N, K) float32 class weights."""
    counts: Counts
    """Images of each class."""
    made: Preprocess | None
    """The preprocessing that the images were made under, None where the file does not say."""
    lines: list[str]
    """What was not plain."""
    flag: str = "--init"
    """What named it."""

    def images_under(self, preprocess: Preprocess) -> tuple[Tensor, str | None]:
        """(N, C, H, W) float32 images as the run's networks see them, and a line on what was done.

        From one preprocessing to another they go through natural colours that are neither clipped nor rounded.

        Raises:
            UserError: the result is not finite.
        """
        if self.images.dtype == torch.uint8:
            return preprocess(self.images), f"{self.path}: pixels, to which the run's {preprocess.kind} is applied"
        if self.made is None:
            taken = f"its images are taken as already under the run's {preprocess.kind}"
            return self.images, f"{self.path}: does not say its preprocessing; {taken}"
        if _same(self.made, preprocess):
            return self.images, None
        try:
            images = preprocess.of_natural(self.made.inverse(self.images, clip=False))
        except UserError as error:
            raise UserError(f"{self.flag} {self.path}: {error}") from error
        return images, f"{self.path}: {_conversion(self.made.kind, preprocess.kind)}"


def _same(one: Preprocess, other: Preprocess) -> bool:
    """Whether they are one preprocessing but for rounding."""
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape
        and (ours[name] - theirs[name]).abs().max() <= _CLOSE * ours[name].abs().max()
        for name in ours
    )


def _conversion(made: str, now: str) -> str:
    """What was done to the images, and what that lost."""
    done = f"made under {made}, converted to the run's {now}"
    if made == now:
        done = f"made under {made} of other training images or settings, converted to the run's"
    if now == "zca":
        return f"{done}; lost: each image's own mean and norm, as zca normalises images one by one"
    if made == "zca":
        return f"{done}; each image has the training images' average mean and norm, as zca keeps neither"
    return done


def filled(start: Tensor, given: Tensor, counts: Counts, has: Counts) -> Tensor:
    """``start`` with the first rows of each class replaced by ``given``; they have ``counts`` and ``has`` of each."""
    result = start.clone()
    result[counts.rows([range(number) for number in has.numbers])] = given
    return result


def read_start(path: Path, target: Target, counts: Counts, flag: str = "--init") -> Start:
    """Read a set in any form that ``open_stored`` reads, ours or another program's, for a run on ``target``.

    Our own say all that is needed. Of others, floating-point images are taken as the run's networks see them and
    uint8 ones, such as image folders, as pixels; ``labels.interpreted`` says what their labels are; images without
    labels are taken as sorted by class.

    Args:
        path: the file or folder.
        target: the run's data.
        counts: the run's images of each class; the set may have fewer.
        flag: what names the set, for messages.

    Raises:
        UserError: the set is missing, damaged or of other classes, shapes or numbers.
    """
    try:
        stored = open_stored(path, needs_labels=False)
        start = _ours(stored, path, target, counts) if stored.ours else _foreign(stored, path, target, counts)
        _check_fits(start, target, counts)
    except UnclearLabels as error:
        raise UserError(f"{flag} {path}: labels that may be logits, centred or weights; store class weights, none "
                        "below 0") from error  # fmt: skip
    except UserError as error:
        raise UserError(f"{flag} {error}") from error
    lacking, of_each = counts.total - start.counts.total, start.counts.same and counts.same
    has = f"{start.counts.text if of_each else len(start.images)} image(s){' of each class' if of_each else ''}"
    more = f"{path}: {has}; the other {lacking // (counts.num_classes if of_each else 1)} start as noise"
    return replace(start, flag=flag, lines=[*start.lines, *([more] if lacking else [])])


def _check_fits(start: Start, target: Target, counts: Counts) -> None:
    """Check that the set has no more images of any class than the run.

    Raises:
        UserError: naming the class.
    """
    for name, has, most in zip(target.class_names, start.counts.numbers, counts.numbers, strict=True):
        if has > most:
            raise UserError(f"{start.path}: has {has} image(s) of class {name}, and the run {most}; give another "
                            "--num_per_class or set")  # fmt: skip


def _ours(stored: Stored, path: Path, target: Target, counts: Counts) -> Start:
    distilled = from_stored(stored, path)
    expected, found = (counts.total, *target.shape), tuple(distilled.images.shape)
    if found[1:] != expected[1:] or found[0] > expected[0]:
        raise UserError(
            f"{path}: needs images of shape {expected}, found {found}; give a set of the same data set, --im_size and "
            "--num_per_class"
        )
    distilled = with_classes_of(distilled, target.class_names)
    return Start(path, distilled.images, distilled.labels, distilled.counts, distilled.preprocess, [])


def _foreign(stored: Stored, path: Path, target: Target, counts: Counts) -> Start:
    """Where the run has as many images of each class, so must the set; else its heaviest labels tell how many."""
    classes, images = len(target.class_names), stored.tensors["images"]
    if (counts.same and len(images) % classes) or len(images) > counts.total:
        raise UserError(
            f"{path}: {len(images)} images, not {counts.text} or fewer of each of {classes} classes; give another "
            "--num_per_class or set"
        )
    found = understood(stored, path, target, pixels=not images.is_floating_point(), white=255)
    heaviest = found.weights.argmax(1)
    if counts.same and not found.by_class:
        count = len(images) // classes
        raise UserError(f"{path}: not {count} images of each class by their heaviest label; give another set")
    if not torch.equal(heaviest, heaviest.sort().values):
        raise UserError(f"{path}: not in order of the classes by their heaviest label; give another set")
    has = Counts(tuple(heaviest.bincount(minlength=classes).tolist()))
    return Start(path, found.images.contiguous(), found.weights, has, None, found.lines)
