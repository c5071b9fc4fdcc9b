"""What a distilled set is compared with: real images, trained on in the same way."""

import torch.nn.functional as F

from framework.data.splits import RealData, draw_per_class, require_random_real
from framework.evaluation.evaluator import Candidate, TrainingSet
from framework.inner.counts import Counts
from framework.inner.plan import Sampler, UniformSampler
from framework.outer.synthetic import one_hot_labels
from framework.rng import generator

FULL_SET_BATCH = 256  # real images per step when a network is trained on the whole real set


def random_real(
    real: RealData, counts: Counts, sampler: Sampler, networks: int, lengths: tuple[int, ...], seed: int
) -> Candidate:
    """As many real images as the distilled set has, drawn anew for each network; same recipe.

    Args:
        real: to draw from.
        counts: images of each class.
        sampler: of batches of the distilled set.
        networks: to be trained.
        lengths: in steps.
        seed: of the draws.

    Raises:
        UserError: a class has fewer real images than the distilled set.
    """
    labels, sets = real.train.labels.cpu(), []
    require_random_real(labels.bincount(minlength=real.num_classes), real.class_names, counts)
    for i in range(networks):
        gen = generator(seed, "random real images", i)
        images = real.train.batch(draw_per_class(labels, counts, gen))
        sets.append(TrainingSet(images, one_hot_labels(counts).to(images.device), sampler))
    return Candidate("random real images (another draw for each network)", sets, lengths)


def full_real(
    real: RealData, counts: Counts, sampler: Sampler, networks: int, lengths: tuple[int, ...], seed: int
) -> Candidate:
    """The whole real training set in uniform batches of 256; same optimiser, augmentation and lengths.

    Arguments are those of ``random_real``.
    """
    labels = F.one_hot(real.train.labels, real.num_classes).float()
    uniform = UniformSampler(len(labels), FULL_SET_BATCH, sampler.augmentation)
    data = TrainingSet(real.train.images, labels, uniform)
    return Candidate("real images: the whole training set", [data] * networks, lengths)


BASELINES = {"random": random_real, "full": full_real}
