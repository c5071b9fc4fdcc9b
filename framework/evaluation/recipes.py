"""Recipes: how a fresh network is trained on a distilled set when the set is judged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from framework.assemble.experts import training_augmentation
from framework.config.matching import STRATEGY as DC_STRATEGY
from framework.config.matching import FtdConfig
from framework.data.registry import known
from framework.distilled.labels import sorted_by_class
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.inner.augment import Augmentation, Augmenter
from framework.inner.names import MOMENTUM, WEIGHT_DECAY
from framework.inner.optimizers import SGD, Optimizer, State, make_optimizer
from framework.inner.plan import Plan, Sampler, UniformSampler

PAPERS_LENGTHS = (300, 600, 1000, 3000)


DC_EPOCHS, DC_BATCH, DC_LR = 1000, 256, 0.01


@dataclass(frozen=True)
class Recipe:
    """How networks are trained on one set."""

    name: str
    rule: Optimizer
    sampler: Sampler
    lengths: tuple[int, ...]
    """Training lengths in steps; the best is chosen on the selection split."""
    text: str
    """For people."""


@dataclass(frozen=True)
class DecayedSGD(SGD):
    """SGD whose learning rate falls to a tenth after ``decay_at`` steps, with a fresh momentum buffer.

    Dataset condensation makes a new optimiser there (its ``evaluate_synset``), which forgets the momentum. For
    evaluation alone: ``pullback`` knows nothing of the decay.
    """

    decay_at: int = 0

    def step(self, state: State, grad: Tensor) -> State:
        """One update; see ``SGD.step``."""
        # Without a branch: in a captured graph the step's number is a tensor.
        lr = self.lr / (1 + 9 * (state.t >= self.decay_at))
        m = self.momentum * (state.m * (state.t != self.decay_at)) + grad + self.weight_decay * state.theta
        return State(state.theta - lr * m, m, state.v, state.t + 1)


@dataclass(frozen=True)
class EpochSampler:
    """Draws batches as a shuffling data loader does: every image once per epoch, in near-equal batches.

    Args:
        size: number of images.
        batches: per epoch.
        augmentation: of each batch.
    """

    size: int
    batches: int
    augmentation: Augmenter

    def plan(self, steps: int, gen: torch.Generator) -> Plan:
        """Draw all choices of ``steps`` batches, on the CPU; what an epoch's equal batches leave over is dropped."""
        batch, epochs = self.size // self.batches, -(-steps // self.batches)
        order = torch.rand(epochs, self.size, generator=gen).argsort(1)[:, : batch * self.batches]
        return Plan(order.reshape(-1, batch)[:steps], self.augmentation.draw(steps, batch, gen))


def make_recipe(
    name: str, distilled: Distilled, eval_steps: tuple[int, ...] | None, inner_lr: float | None = None
) -> Recipe:
    """The recipe for a set.

    ``dc`` is the evaluation of dataset condensation (Zhao, Mopuri and Bilen 2021, arXiv 2006.05929), with the
    augmentation and the 1000 epochs of DSA (Zhao and Bilen 2021, arXiv 2102.08259), which MTT (Cazenavette et al.
    2022, arXiv 2203.11932) and its successors kept: learning rate 0.01, momentum 0.9, weight decay 5e-4, batches of
    at most 256 images, epochs 0 to 1000, of which those after number 501 run at a tenth of the rate; one operation
    of colour, crop, cut-out, flip, scale and rotation drawn per batch, without the flip for digits. ``mtt`` is the same
    with the step size that was learnt with the set, and with the run's own epochs, batch and augmentation.

    Args:
        name: one of ``names.RECIPES``.
        distilled: the set.
        eval_steps: training lengths instead of the recipe's own.
        inner_lr: the learning rate instead of the recipe's own, or of one that was learnt with the set.

    Raises:
        UserError: the recipe does not fit the set.
    """
    given_lr = distilled.learnt_lr if inner_lr is None else inner_lr
    c, images, side = distilled.config, len(distilled.images), distilled.images.shape[-1]
    if name == "mtt" and given_lr is None:
        raise UserError(
            f"--recipe mtt trains by a learnt learning rate, and {distilled.source} has none; give --inner_lr, or "
            "--recipe dc"
        )
    if name == "mtt" and isinstance(c, FtdConfig):
        return matching_recipe(c, images, side, given_lr or c.lr_teacher, eval_steps)
    if name in ("dc", "mtt"):
        augmentation = siamese_augmentation(c.dataset, side)
        return _decayed(name, images, augmentation, given_lr or DC_LR, DC_EPOCHS, DC_BATCH, eval_steps)
    equal, _ = sorted_by_class(distilled.labels)
    if distilled.hard_labels is not None and not equal and distilled.numbers is None:
        raise UserError(
            f"--recipe {name} draws batches by class, and {distilled.source} has not as many images of each; give "
            "--recipe dc"
        )
    lengths = eval_steps or (PAPERS_LENGTHS if name == "papers" else c.eval_steps)
    lr = c.inner_lr if given_lr is None else given_lr
    drawn = f"{'' if distilled.counts.same else 'at most '}{c.batch_per_class} image(s) of a class drawn per step"
    sampler: Sampler = distilled.sampler
    if not distilled.by_class:
        batch = min(images, c.batch_per_class * (c.task_sampler_nc or distilled.num_classes))
        sampler = UniformSampler(images, batch, distilled.augmentation)
        drawn = f"{batch} image(s) drawn per step, of any class"
    root = f", eps_root {c.eps_root:g}" if c.eps_root else ""
    text = f"{c.inner_optim} {lr:g}{root}; {c.syn_strategy}; {drawn}"
    return Recipe(name, make_optimizer(c.inner_optim, lr, c.eps_root), sampler, lengths, text)


def siamese_augmentation(dataset: str, side: int) -> Augmentation:
    """DSA's: one operation drawn per batch, without the flip where a mirrored image is of another class or of none."""
    strategy = DC_STRATEGY.replace("_flip", "") if known(dataset).upright else DC_STRATEGY
    return Augmentation(strategy, False, side)


def matching_recipe(
    c: FtdConfig, images: int, side: int, lr: float, eval_steps: tuple[int, ...] | None = None
) -> Recipe:
    """The recipe ``mtt`` of a run of trajectory matching; see ``make_recipe``.

    Without ``--dsa`` networks are trained as experts are, with the augmentation of dataset condensation.

    Args:
        c: its flags.
        images: of the set.
        side: of an image, in pixels.
        lr: the learnt step size.
        eval_steps: one training length instead of the recipe's own.
    """
    return _decayed("mtt", images, training_augmentation(c, side), lr, c.epoch_eval_train, c.batch_train, eval_steps)


def _decayed(
    name: str, images: int, augmentation: Augmenter, lr: float, epochs: int, batch: int,
    eval_steps: tuple[int, ...] | None,
) -> Recipe:  # fmt: skip
    batches = -(-images // batch)
    if eval_steps is not None and len(eval_steps) > 1:
        raise UserError(f"--recipe {name} has one training length, at which its decay is aimed; give one --eval_steps")
    total = (epochs + 1) * batches if eval_steps is None else eval_steps[0]
    decay_at = (epochs // 2 + 2) * batches if eval_steps is None else total // 2
    sampler = EpochSampler(images, batches, augmentation)
    rate = f"a tenth of the rate from step {decay_at:,} on"
    text = f"SGD {lr:g}, momentum {MOMENTUM}, weight decay {WEIGHT_DECAY:g}, {rate}; {augmentation}"
    return Recipe(name, DecayedSGD(lr, decay_at=decay_at), sampler, (total,), text)
