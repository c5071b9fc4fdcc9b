"""The arithmetic of the inner loop: first and second derivatives of one batch's loss, and how they are carried out.

Everything that takes time passes through ``Kernels``: prefix, probe, window, backward sweep and the real batch. Batches
are differentiated in chunks, which bounds memory.

Several networks can share each call: then theta is (N, P), images are (N, B, C, H, W) and so on. Shapes below are
those of one network.
"""

import itertools
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.inner.programs import Compiled
from framework.networks.flat import FlatNetwork

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Execution:
    """How derivatives are computed. Apart from ``precision`` it changes results by rounding only.

    Args:
        chunk: images differentiated at a time, at most; batches of batch-normalised networks stay whole.
        precision: ``bf16`` computes layers of later inner steps in bfloat16; ``tf32`` is set on the device, not here.
        channels_last: memory format of images and activations.
        compile: make compiled programs of each chunk's derivatives.
        whole: make one of a whole inner step where its images fit in a chunk.
        graphs: replay whole inner steps as CUDA graphs.
        together: let several networks of an outer step share each call, instead of taking one after the other.
        forward_over_reverse: take second derivatives by a forward sweep over the gradient instead of a reverse one.
    """

    chunk: int = 25
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    whole: bool = False
    graphs: bool = False
    together: bool = False
    forward_over_reverse: bool = False

    def __str__(self) -> str:
        parts = [f"chunks of {self.chunk} images", self.precision]
        parts += [name for name in ("channels_last", "compile", "graphs", "together") if getattr(self, name)]
        return ", ".join(parts)


def has_compiler(device: torch.device) -> bool:
    """Whether ``torch.compile`` can generate code here.

    It needs a C++ compiler and Python's header, on CUDA also Triton, which knows devices from capability 7.0 on.
    """
    if device.type == "cuda":
        import importlib.util

        if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 0):
            return False
    if not os.access(Path(sysconfig.get_path("include"), "Python.h"), os.R_OK):
        return False
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


class Kernels:
    """Derivatives of f's mean cross-entropy on a batch.

    Args:
        network: f.
        execution: how.
    """

    def __init__(self, network: FlatNetwork, execution: Execution) -> None:
        self.network, self.execution = network, execution
        prepare: Callable[[Function], Function] = Compiled if execution.compile else lambda function: function
        products = self._forward_products if execution.forward_over_reverse else self._reverse_products
        self._first = {low: prepare(self._with(self._sums, low)) for low in (False, True)}
        flags = (False, True)
        self._second = {
            (low, *towards): prepare(self._with(products, low, *towards))
            for low, *towards in itertools.product(flags, flags, flags)
        }

    def gradient(
        self, theta: Tensor, images: Tensor, labels: Tensor, low: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, accuracy (a fraction) and the loss's gradient; detached.

        Args:
            theta: (P,).
            images: (B, C, H, W), augmented.
            labels: (B, K) class weights.
            low: in bfloat16.

        Returns:
            (), () and (P,).
        """
        totals: list[Tensor] = []
        for x, y in self._chunks(images, labels):
            sums = self._first[low](theta, x, y)
            totals = [total + part for total, part in zip(totals, sums, strict=True)] if totals else list(sums)
        loss, correct, gradient = (total / labels.shape[-2] for total in totals)
        return loss, correct, gradient

    def products(
        self, theta: Tensor, images: Tensor, labels: Tensor, w: Tensor, learn_labels: bool, low: bool = False,
        hessian: bool = True,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:  # fmt: skip
        """Second derivatives of the mean loss contracted with w (P,).

        Args:
            learn_labels: whether the product towards labels is wanted.
            hessian: whether H w is.

        Returns:
            H w (P,), and the mixed partials' products towards images (B, C, H, W) and labels (B, K), None if unwanted.
        """
        batch = labels.shape[-2]
        second = self._second[low, hessian, learn_labels]
        parts = [second(theta, x, y, w) for x, y in self._chunks(images, labels)]
        columns = iter(zip(*parts, strict=True))
        product = torch.stack(next(columns)).sum(0) / batch if hessian else None
        mixed_images = torch.cat(next(columns), -4).narrow(-4, 0, batch) / batch
        mixed_labels = torch.cat(next(columns), -2).narrow(-2, 0, batch) / batch if learn_labels else None
        return product, mixed_images, mixed_labels

    def hessian_products(self, theta: Tensor, images: Tensor, labels: Tensor, vectors: Tensor) -> Tensor:
        """H v for each row v of ``vectors`` (k, P): (k, P). One gradient serves all rows. One network only."""
        result = torch.zeros_like(vectors)
        for x, y in self._chunks(images, labels):
            with torch.enable_grad():
                leaf = theta.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self._loss(leaf, x, y), leaf, create_graph=True)
                for i, v in enumerate(vectors):
                    result[i] += torch.autograd.grad(gradient, leaf, v, retain_graph=True)[0]
        return result / labels.shape[-2]

    # ---- one chunk ---------------------------------------------------------------------------------

    def _chunks(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Equal chunks. Compiled code is made for one shape, so the last is filled up with images of weight 0."""
        batch, chunk = labels.shape[-2], self.execution.chunk
        count = -(-batch // chunk) if self.network.per_sample else 1
        size = -(-batch // count)
        missing = size * count - batch
        if missing and self.execution.compile:
            images, labels = F.pad(images, (0,) * 7 + (missing,)), F.pad(labels, (0, 0, 0, missing))
        return zip(images.split(size, -4), labels.split(size, -2), strict=True)

    def _with(self, function: Function, low: bool, *fixed: bool) -> Function:
        """``function`` with its last arguments fixed, in bfloat16 if ``low``."""

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            if not low:
                return function(*tensors, *fixed)
            # No cache of cast weights: it would outlive a captured graph's memory.
            with torch.autocast(self.network.device.type, torch.bfloat16, cache_enabled=False):
                return function(*tensors, *fixed)

        return run

    def _losses(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk's summed cross-entropy () of each network, and the logits (B, K)."""
        if self.execution.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        network = self.network if theta.dim() == 1 else torch.vmap(self.network)
        logits = network(theta, images).to(theta.dtype)
        return -(labels * logits.log_softmax(-1)).sum((-2, -1)), logits

    def _loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """() over all networks: their parameters being their own, its gradient holds each network's."""
        return self._losses(theta, images, labels)[0].sum()

    def _sums(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The chunk's sums: loss () and correct predictions () of each network, and the gradient (P,)."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            losses, logits = self._losses(leaf, images, labels)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        weight, target = labels.max(-1)
        correct = ((logits.detach().argmax(-1) == target) & (weight > 0)).to(theta.dtype).sum(-1)
        return losses.detach(), correct, gradient

    def _reverse_products(
        self, theta: Tensor, images: Tensor, labels: Tensor, w: Tensor, hessian: bool, learn_labels: bool
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = [theta.detach().requires_grad_(), images.detach().requires_grad_()]
            inputs.append(labels.detach().requires_grad_(learn_labels))
            (gradient,) = torch.autograd.grad(self._loss(*inputs), inputs[0], create_graph=True)
            towards = [inputs[i] for i, wanted in enumerate((hessian, True, learn_labels)) if wanted]
            return torch.autograd.grad(gradient, towards, w)

    def _forward_products(
        self, theta: Tensor, images: Tensor, labels: Tensor, w: Tensor, hessian: bool, learn_labels: bool
    ) -> tuple[Tensor, ...]:
        towards = tuple(i for i, wanted in enumerate((hessian, True, learn_labels)) if wanted)

        def gradients(at: Tensor) -> tuple[Tensor, ...]:
            return torch.func.grad(self._loss, argnums=towards)(at, images, labels)  # type: ignore[no-any-return]

        return torch.func.jvp(gradients, (theta.detach(),), (w,))[1]  # type: ignore[no-any-return]
