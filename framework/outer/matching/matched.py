"""What trajectory matching learns: images, the step size of the student, and perhaps soft labels."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from framework.outer.blocks import Blocks, Parameters, move_average
from framework.outer.method import Rejected, Snapshot
from framework.outer.synthetic import RAW, Synthetic, copied

EMA = "EMA"
"""The form in which a set is judged besides ``RAW``: its images' moving average (Du et al. 2023, arXiv 2211.11004)."""
MOMENTUM = 0.5  # of images and step size, as in MTT (arXiv 2203.11932)


class MatchedSet:
    """Images, step size and soft labels with their optimisers, and the moving average of the images.

    Args:
        images: (K * ipc, C, H, W), sorted by class.
        labels: (K * ipc, K): class weights that stay as they are; or, with ``lr_labels``, logits of soft labels, as
            in DATM (Guo et al. 2024, arXiv 2310.05773).
        step_size: of the student's SGD, above 0, at the start.
        lr_images, lr_step_size: of SGD with momentum 0.5.
        lr_labels: of SGD on the logits; None: labels are fixed.
        momentum_labels: of that.
        ema_decay: d; after each step the average is d times itself plus 1 - d times the images.
        blocks: how the set is to ``grow``, where it does; it starts with one block.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        step_size: float,
        *,
        lr_images: float,
        lr_step_size: float,
        lr_labels: float | None = None,
        momentum_labels: float = 0.9,
        ema_decay: float = 0.999,
        blocks: Blocks | None = None,
    ) -> None:
        self.ema_decay = ema_decay
        self.blocks = blocks
        self.soft = lr_labels is not None
        self.options: dict[str, dict[str, Any]] = {
            "images": {"lr": lr_images, "momentum": MOMENTUM},
            "labels": {"lr": lr_labels, "momentum": momentum_labels},
        }
        exact = torch.float32 if images.device.type == "mps" else torch.float64  # steps of 1e-7 times a gradient
        self.step_size = torch.tensor(step_size, dtype=exact, device=images.device, requires_grad=True)
        self.step_size_optimizer = torch.optim.SGD([self.step_size], lr=lr_step_size, momentum=MOMENTUM)
        self.step_sizes: Sequence[float] = ()  # when a block was finished, of each
        self._hold(images, labels, images)

    def _hold(self, images: Tensor, labels: Tensor, average: Tensor) -> None:
        """Learn copies of these from now on, without momentum."""
        self.images = images.clone().requires_grad_()
        self.labels = labels.clone().requires_grad_(self.soft)
        self.average = average.clone()
        learnt = {name: tensor for name, tensor in self.learnt.items() if name != "step_size"}
        self.parameters = Parameters(learnt, self.blocks)
        self.optimizer = torch.optim.SGD(self.parameters.groups(self.options))

    @torch.no_grad()
    def grow(self, images: Tensor, labels: Tensor) -> None:
        """Add a block, whose average starts at its images; the step size goes on. See ``boosting.Growing``.

        Args:
            images: (K * b, C, H, W), sorted by class.
            labels: (K * b, K) class weights or logits, as those at the start.
        """
        assert self.blocks is not None, "a set without blocks does not grow"
        older, state, device = self.parameters, self.optimizer.state, self.images.device
        images, labels = images.to(device), labels.to(device)
        self.step_sizes = (*self.step_sizes, self.step_size.item())
        self._hold(
            self.blocks.joined(self.images.detach(), images),
            self.blocks.joined(self.labels.detach(), labels),
            self.blocks.joined(self.average, images),
        )
        self.parameters.inherit(self.optimizer, older, state)

    @property
    def now(self) -> Synthetic:
        """The set as the student sees it; of soft labels, the weights that the logits stand for."""
        labels = self.labels.detach()
        return Synthetic(self.images.detach(), labels.softmax(1) if self.soft else labels, self.soft)

    @property
    def learnt(self) -> dict[str, Tensor]:
        """See ``LearntSet``; ``labels`` are logits."""
        always = {"images": self.images, "step_size": self.step_size}
        return always | ({"labels": self.labels} if self.soft else {})

    def towards_logits(self, towards_weights: Tensor) -> Tensor:
        """The gradient (N, K) towards the logits, from that towards the weights in ``now``."""
        weights = self.now.labels
        centred: Tensor = towards_weights - (weights * towards_weights).sum(1, keepdim=True)
        return weights * centred

    @torch.no_grad()
    def update(self, grads: dict[str, Tensor], mask: Tensor | None = None, clip: int = 0) -> dict[str, Tensor]:
        """See ``LearntSet``. Nothing is clipped.

        Raises:
            Rejected: the step size would not be above 0; then the images stay too.
        """
        assert mask is None, "trajectory matching moves all pixels"
        before = self.step_size.clone(), deepcopy(self.step_size_optimizer.state_dict())
        self.parameters.set_grads(grads)
        self.step_size.grad = grads["step_size"]
        self.step_size_optimizer.step()
        if not (proposed := self.step_size.item()) > 0:
            self.step_size.copy_(before[0])
            self.step_size_optimizer.load_state_dict(before[1])
            raise Rejected(f"the step size would become {proposed:g}")
        self.optimizer.step()
        move_average(self.average, self.images, 1 - self.ema_decay, self.blocks)
        return {}

    def snapshots(self) -> dict[str, Snapshot]:
        """See ``LearntSet``: the images as they are, and their moving average, with the same labels and step size."""
        labels, step_size = copied(self.now.labels), self.step_size.item()
        return {
            RAW: Snapshot(copied(self.images), labels, step_size),
            EMA: Snapshot(copied(self.average), labels.clone(), step_size),
        }

    def state_dict(self) -> dict[str, Any]:
        """See ``LearntSet``."""
        tensors = {name: copied(getattr(self, name)) for name in ("images", "labels", "step_size", "average")}
        optimizers = {name: deepcopy(getattr(self, name).state_dict()) for name in ("optimizer", "step_size_optimizer")}
        return tensors | optimizers | ({} if self.blocks is None else {"step_sizes": self.step_sizes})

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``LearntSet``; there are as many blocks as there were then."""
        if self.blocks is not None:
            self._hold(*(state[name].to(self.images.device) for name in ("images", "labels", "average")))
            self.step_sizes = tuple(state["step_sizes"])
        for name in ("images", "labels", "step_size", "average"):
            getattr(self, name).copy_(state[name])
        for name in ("optimizer", "step_size_optimizer"):
            getattr(self, name).load_state_dict(deepcopy(state[name]))
