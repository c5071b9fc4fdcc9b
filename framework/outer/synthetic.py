"""The synthetic set: what is learnt, how it starts, how it is updated."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.inner.counts import Counts
from framework.inner.names import MOMENTUM
from framework.outer.blocks import Blocks, Parameters, move_average
from framework.outer.method import Snapshot

RAW, AVERAGE = "raw", "average"
"""The forms in which a set is judged whose average is kept."""


@dataclass(frozen=True)
class Synthetic:
    """A synthetic set as engines see it; no gradient flows into these tensors by themselves."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N, K) class weights
    learn_labels: bool = False  # whether the gradient towards labels is wanted


class Grads(NamedTuple):
    """The meta-gradient, in the shapes of the synthetic set; ``labels`` is None where they are fixed."""

    images: Tensor
    labels: Tensor | None


class SyntheticSet:
    """Learnt images and labels with their optimiser and gradient clip.

    Args:
        images: (N, C, H, W), sorted by class.
        labels: (N, K) class weights.
        learn_labels: also update ``labels``.
        lr: of the images.
        label_lr: of the labels.
        optimizer: ``Adam`` or ``SGD`` (momentum 0.9).
        eps: Adam's.
        weight_decay: of images and labels.
        ema_decay: of the moving average of the meta-gradient's norm that sets the clip.
        robust: norms enter that average as they are applied, after it has set the clip.
        learn_images: also update ``images``; one of both is learnt.
        normalise: scale every image that a step has moved back to Euclidean norm 1 (AT-BPTT++'s public code).
        blocks: how the set is to ``grow``, where it does; it starts with one block.
        average: eta; also keep the average over the steps so far of what is learnt, in which step t counts as
            t (t + 1) ... (t + eta - 1) does, about t^eta. None: no average.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        learn_labels: bool,
        lr: float,
        label_lr: float,
        optimizer: str = "Adam",
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ema_decay: float = 0.9,
        robust: bool = False,
        learn_images: bool = True,
        normalise: bool = False,
        blocks: Blocks | None = None,
        average: float | None = None,
    ) -> None:
        assert learn_images or learn_labels, "validated with the flags"
        self.learn_images, self.learn_labels = learn_images, learn_labels
        self.normalise = normalise and learn_images
        self.ema_decay, self.robust = ema_decay, robust
        self.blocks = blocks
        self.average = average
        self.lr = {"images": {"lr": lr}, "labels": {"lr": label_lr}}
        self.make_optimizer: Callable[..., torch.optim.Optimizer] = (
            partial(torch.optim.Adam, eps=eps, weight_decay=weight_decay)
            if optimizer == "Adam"
            else partial(torch.optim.SGD, momentum=MOMENTUM, weight_decay=weight_decay)
        )
        self._hold(images, labels)

    def _hold(self, images: Tensor, labels: Tensor) -> None:
        """Learn copies of these from now on, with nothing known of their gradients."""
        self.images = images.clone().requires_grad_(self.learn_images)
        self.labels = labels.clone().requires_grad_(self.learn_labels)
        self.norm_emas: dict[int, Tensor] = {}  # () moving average of the meta-gradient's norm, by number of the clip
        self.parameters = Parameters(self.learnt, self.blocks)
        self.optimizer = self.make_optimizer(self.parameters.groups(self.lr))
        self.averages = {} if self.average is None else {n: t.detach().clone() for n, t in self.learnt.items()}
        self.averaged = 0  # steps since the newest block's start

    @torch.no_grad()
    def grow(self, images: Tensor, labels: Tensor) -> None:
        """Add a block, which starts with no moments; the clips' averages start anew. See ``boosting.Growing``.

        Args:
            images: (K * b, C, H, W), sorted by class.
            labels: (K * b, K) class weights.
        """
        assert self.blocks is not None, "a set without blocks does not grow"
        older, state, device, averages = self.parameters, self.optimizer.state, self.images.device, self.averages
        self._hold(
            self.blocks.joined(self.images.detach(), images.to(device)),
            self.blocks.joined(self.labels.detach(), labels.to(device)),
        )
        self.parameters.inherit(self.optimizer, older, state)
        for name, average in averages.items():
            self.averages[name] = self.blocks.joined(average, {"images": images, "labels": labels}[name].to(device))

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """See ``LearntSet``: none is learnt."""
        return ()

    @property
    def now(self) -> Synthetic:
        """The set as it is, in the memory of the live tensors."""
        return Synthetic(self.images.detach(), self.labels.detach(), self.learn_labels)

    @property
    def learnt(self) -> dict[str, Tensor]:
        """The tensors that are learnt, by their names."""
        both = {"images": (self.images, self.learn_images), "labels": (self.labels, self.learn_labels)}
        return {name: tensor for name, (tensor, learnt) in both.items() if learnt}

    @torch.no_grad()
    def update(self, grads: dict[str, Tensor], mask: Tensor | None = None, clip: int = 0) -> dict[str, Tensor]:
        """Clip the meta-gradient to twice the moving average of its norm, step, keep labels >= 0.

        Pixels outside ``mask``, if given, keep their values, but for ``normalise``; a momentum would go on moving them
        without a gradient.

        The norm is that of images' and labels' gradient together, as it is given, with a policy's weight; the average
        starts at the first norm, and includes each before it sets the clip, so that 2 (1 - ``ema_decay``) of an outlier
        are left, however large it is. Where ``robust``, the clip is twice the average of the steps before, which then
        takes note of the norm that was applied. Nothing here waits for the device.

        Args:
            grads: towards each tensor of ``learnt``, by its name.
            mask: bool, broadcast to the images.
            clip: whose average it is; each number has its own.

        Returns:
            ``clip_factor`` (), at most 1: what the meta-gradient was multiplied by.
        """
        norm, decay = joint_norm(grads), self.ema_decay
        earlier = self.norm_emas.get(clip)
        known = earlier if self.robust else None
        counted = norm if known is None else norm.minimum(2 * known)
        average = norm.clone() if earlier is None else decay * earlier + (1 - decay) * counted
        self.norm_emas[clip] = average
        limit = 2 * (average if known is None else known)
        factor = (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
        self.parameters.set_grads({name: gradient * factor for name, gradient in grads.items()})
        before = self.images.detach().clone() if mask is not None else self.images
        self.optimizer.step()
        self.parameters.clear_grads()
        if mask is not None:
            self.images.copy_(torch.where(mask, self.images, before))
        if self.normalise:
            self._normalise_images(mask)
        if self.learn_labels:
            self.labels.clamp_(min=0)
        self._average()
        return {"clip_factor": factor}

    def _average(self) -> None:
        """Polynomial-decay averaging (Shamir and Zhang, ICML 2013, arXiv 1212.1824, section 4)."""
        if self.average is None:
            return
        self.averaged += 1
        weight = (self.average + 1) / (self.averaged + self.average)
        for name, tensor in self.learnt.items():
            move_average(self.averages[name], tensor, weight, self.blocks)

    def _normalise_images(self, mask: Tensor | None) -> None:
        """Scale images back to norm 1, all of whose pixels change by that; but not those that may not move at all."""
        scaled = F.normalize(self.images.flatten(1)).view_as(self.images)
        if mask is not None:
            moved = mask.expand_as(self.images).flatten(1).any(1).view(-1, *[1] * (self.images.dim() - 1))
            scaled = torch.where(moved, scaled, self.images)
        if self.blocks is not None:
            scaled = torch.where(self.blocks.learning(self.images), scaled, self.images)
        self.images.copy_(scaled)

    def snapshots(self) -> dict[str, Snapshot]:
        """See ``LearntSet``: one, without a name; or the set as it is, and its average."""
        now = {"images": self.images, "labels": self.labels}
        forms = {"": now} if self.average is None else {RAW: now, AVERAGE: now | self.averages}
        return {form: Snapshot(copied(s["images"]), copied(s["labels"])) for form, s in forms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        tensors = {"images": copied(self.images), "labels": copied(self.labels)}
        averages = {name: copied(average) for name, average in self.averages.items()}
        return {
            **tensors,
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "norm_emas": dict(self.norm_emas),
            **({"averages": averages, "averaged": self.averaged} if averages else {}),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, with as many blocks as there were then."""
        if self.blocks is not None:
            self._hold(*(state[name].to(self.images.device) for name in ("images", "labels")))
        self.images.copy_(state["images"])
        self.labels.copy_(state["labels"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        averages = state["norm_emas"] if "norm_emas" in state else {0: state["norm_ema"]}  # of versions with one clip
        self.norm_emas = {clip: ema.to(self.images.device) for clip, ema in averages.items() if ema is not None}
        if self.average is not None:
            self.averages = {name: average.to(self.images.device) for name, average in state["averages"].items()}
            self.averaged = state["averaged"]


def copied(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that is being learnt, on the CPU, in memory of their own."""
    return tensor.detach().cpu().clone()


def joint_norm(grads: dict[str, Tensor]) -> Tensor:
    """The Euclidean norm () of all gradients together."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in grads.values()]
    joint: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return joint


def noise_images(count: int, shape: tuple[int, int, int], gen: torch.Generator) -> Tensor:
    """Gaussian noise, every image scaled to Euclidean norm 1: (count, C, H, W) float32."""
    flat = torch.randn(count, *shape, generator=gen).flatten(1)
    return F.normalize(flat).view(-1, *shape)


def one_hot_labels(counts: Counts) -> Tensor:
    """Class-sorted one-hot labels: (N, K) float32."""
    return F.one_hot(torch.tensor(counts.classes), counts.num_classes).float()
