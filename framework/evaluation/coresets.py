"""Coresets: real images chosen one by one, as a baseline for a distilled set of the same size.

All choose within each class, so that each class has as many images as in the set, and in an order: the first n images
of a choice are what a smaller budget would have chosen.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.data.splits import RealData
from framework.evaluation.evaluator import Candidate, TrainingSet
from framework.evaluation.teacher import CHUNK, Pupil, Teacher, evaluating
from framework.inner.counts import Counts
from framework.inner.plan import Sampler
from framework.outer.synthetic import one_hot_labels

EL2N_NETWORKS = 5
EL2N_SHARE = 10  # a tenth of a teacher's steps


def greedy_k_centre(features: Tensor, count: int) -> Tensor:
    """Images that no other is far from: each next one is that which is farthest from those chosen before.

    The greedy algorithm for k-centre of Sener and Savarese 2018 (arXiv 1708.00489, algorithm 1). Its result is at most
    twice as far from the farthest image as the best one. It starts from a pool that is labelled already, which is not
    there here: the first image is the one nearest to the mean.

    Args:
        features: (N, F).
        count: of images, at most N.

    Returns:
        (count,) int64, in the order of choice; the first among equals.
    """
    first = torch.linalg.vector_norm(features - features.mean(0), dim=1).argmin()
    chosen, nearest = [first], torch.full((len(features),), torch.inf, dtype=features.dtype, device=features.device)
    while len(chosen) < count:
        last = features[chosen[-1]]
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(features - last, dim=1))
        nearest[chosen[-1]] = -1  # even of two equal images, no one is chosen twice
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


def herding(features: Tensor, count: int) -> Tensor:
    """Images whose mean follows the mean of all: x_t = argmax <w_{t-1}, x>, w_t = w_{t-1} + mu - x_t, w_0 = mu.

    Welling 2009, "Herding dynamical weights to learn" (ICML), over the images that are not chosen yet. Features are
    scaled to norm 1, as in iCaRL (Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4), which brings the mean of those
    chosen as near to mu as one more image can: then both are the same choice.

    Args:
        features: (N, F).
        count: of images, at most N.

    Returns:
        (count,) int64, in the order of choice; the first among equals.
    """
    unit = F.normalize(features, dim=1)
    mean = unit.mean(0)
    weights, free, chosen = mean.clone(), torch.zeros(len(unit), dtype=unit.dtype, device=unit.device), []
    for _ in range(count):
        best = (unit @ weights + free).argmax()
        free[best] = -torch.inf
        weights = weights + mean - unit[best]
        chosen.append(best)
    return torch.stack(chosen)


def smallest(scores: Tensor, count: int) -> Tensor:
    """The places of the ``count`` smallest of (N,) scores, the smallest and among equals the first of them first."""
    return scores.argsort(stable=True)[:count]


def error_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N of each image, ||softmax(logits) - y||_2: (N, K) and (N,) class numbers to (N,).

    Paul, Ganguli and Dziugaite 2021 (arXiv 2107.07075), section 2.
    """
    errors = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return torch.linalg.vector_norm(errors, dim=1)  # type: ignore[no-any-return]


def early_steps(pupil: Pupil) -> int:
    """Steps after which EL2N is taken."""
    return max(1, pupil.steps // EL2N_SHARE)


def early_errors(pupil: Pupil, real: RealData, tick: Callable[[int], None]) -> Tensor:
    """EL2N of all training images, mean over ``EL2N_NETWORKS`` fresh networks early in training: (N,) on the device.

    The paper takes ten networks after a tenth of their epochs or less.
    """
    total = torch.zeros(len(real.train), device=real.train.labels.device)
    for i in range(EL2N_NETWORKS):
        theta = pupil.trained(real, early_steps(pupil), tick, "el2n", i)
        with evaluating(pupil.network) as network:
            logits = torch.cat([network(theta, part) for part in real.train.chunks(CHUNK)])
        total += error_norms(logits, real.train.labels)
    return total / EL2N_NETWORKS


def choose(name: str, teacher: Teacher, real: RealData, counts: Counts, tick: Callable[[int], None]) -> list[Tensor]:
    """The images of a coreset.

    ``kcentre`` and ``herding`` look at the teacher's features, without augmentation. ``el2n`` keeps the smallest
    errors, the images that are learnt first: the paper prunes these, as it keeps most images of a large set; of a few
    images per class the easy ones are the better choice (Sorscher et al. 2022, arXiv 2206.14486).

    Args:
        name: of ``names.CORESETS``.
        teacher: whose features count; ``el2n`` trains fresh networks like it.
        real: the data, at least ``counts`` training images of each class.
        counts: images of each class.
        tick: called with the number of steps just taken.

    Returns:
        (n,) int64 of each class: places among the training images, on the device, in the order of choice.
    """
    scores = early_errors(teacher.pupil, real, tick) if name == "el2n" else None
    result = []
    for k, number in enumerate(counts.numbers):
        members = (real.train.labels == k).nonzero().squeeze(1)
        if scores is not None:
            picked = smallest(scores[members], number)
        else:
            features = torch.cat([teacher.features(part) for part in real.train.batches(members.split(CHUNK))])
            picked = (greedy_k_centre if name == "kcentre" else herding)(features, number)
        result.append(members[picked])
    return result


NAMES = {
    "kcentre": "real images by greedy k-centre",
    "herding": "real images by herding",
    "el2n": "real images of the smallest EL2N",
}


def coreset(
    name: str, chosen: Sequence[Tensor], real: RealData, sampler: Sampler, networks: int, lengths: tuple[int, ...]
) -> Candidate:
    """The row of a coreset; all networks are trained on the same images.

    Args:
        name: of ``names.CORESETS``.
        chosen: of each class (n,) int64: places among the training images.
        real: the data.
        sampler: of batches of the distilled set.
        networks: to be trained.
        lengths: in steps.
    """
    images = real.train.batch(torch.cat(list(chosen)))
    labels = one_hot_labels(Counts(tuple(map(len, chosen)))).to(images.device)
    return Candidate(NAMES[name], [TrainingSet(images, labels, sampler)] * networks, lengths)
