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

_CLOSE = 1e-4
"""Of a tensor's largest value, what two fits of one preprocessing may differ by: each device rounds differently."""


@dataclass(frozen=True)
class Start:
    """A set that fits the run's data; its images are still as the file has them."""

    path: Path
    images: Tensor
    """(K * n, C, H, W), sorted by class: uint8 pixels, or float32 as networks saw them; n is at most the run's images
    per class."""
    labels: Tensor
    """(K * n, K) float32 class weights."""
    made: Preprocess | None
    """The preprocessing that the images were made under, None where the file does not say."""
    lines: list[str]
    """What was not plain."""
    flag: str = "--init"
    """What named it."""

    def images_under(self, preprocess: Preprocess) -> tuple[Tensor, str | None]:
        """(K * n, C, H, W) float32 images as the run's networks see them, and a line on what was done.

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


def filled(start: Tensor, given: Tensor, classes: int) -> Tensor:
    """``start`` (K * per_class, ...) with the first n rows of each of K classes replaced by ``given`` (K * n, ...)."""
    both = start.unflatten(0, (classes, -1)).clone()
    both[:, : len(given) // classes] = given.unflatten(0, (classes, -1))
    result: Tensor = both.flatten(0, 1)
    return result


def read_start(path: Path, target: Target, per_class: int, flag: str = "--init") -> Start:
    """Read a set in any form that ``open_stored`` reads, ours or another program's, for a run on ``target``.

    Our own say all that is needed. Of others, floating-point images are taken as the run's networks see them and
    uint8 ones, such as image folders, as pixels; ``labels.interpreted`` says what their labels are; images without
    labels are taken as sorted by class.

    Args:
        path: the file or folder.
        target: the run's data.
        per_class: the run's images of each class; the set may have fewer, the same number of each.
        flag: what names the set, for messages.

    Raises:
        UserError: the set is missing, damaged or of other classes, shapes or numbers.
    """
    try:
        stored = open_stored(path, needs_labels=False)
        start = _ours(stored, path, target, per_class) if stored.ours else _foreign(stored, path, target, per_class)
    except UnclearLabels as error:
        raise UserError(f"{flag} {path}: labels that may be logits, centred or weights; store class weights, none "
                        "below 0") from error  # fmt: skip
    except UserError as error:
        raise UserError(f"{flag} {error}") from error
    has = len(start.images) // len(target.class_names)
    more = f"{path}: {has} image(s) of each class; the other {per_class - has} start as noise"
    return replace(start, flag=flag, lines=[*start.lines, *([more] if has < per_class else [])])


def _ours(stored: Stored, path: Path, target: Target, per_class: int) -> Start:
    distilled = from_stored(stored, path)
    expected, found = (len(target.class_names) * per_class, *target.shape), tuple(distilled.images.shape)
    if found[1:] != expected[1:] or found[0] > expected[0]:
        raise UserError(
            f"{path}: needs images of shape {expected}, found {found}; give a set of the same data set, --im_size and "
            "--num_per_class"
        )
    distilled = with_classes_of(distilled, target.class_names)
    return Start(path, distilled.images, distilled.labels, distilled.preprocess, [])


def _foreign(stored: Stored, path: Path, target: Target, per_class: int) -> Start:
    classes, images = len(target.class_names), stored.tensors["images"]
    if len(images) % classes or len(images) > classes * per_class:
        raise UserError(
            f"{path}: {len(images)} images, not {per_class} or fewer of each of {classes} classes; give another "
            "--num_per_class or set"
        )
    found = understood(stored, path, target, pixels=not images.is_floating_point(), white=255)
    if not found.by_class:
        count = len(images) // classes
        raise UserError(f"{path}: not {count} images of each class by their heaviest label; give another set")
    return Start(path, found.images.contiguous(), found.weights, None, found.lines)
