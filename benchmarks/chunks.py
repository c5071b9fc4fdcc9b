"""How long derivatives take in chunks of so many images: the reason for ``--chunk auto``.

    python benchmarks/chunks.py --out DIR [--threads 1] [--chunks 10 25 50 100 200 400] [--repeats 5]

ConvNets of several widths on images of the size of digits, MNIST and CIFAR-10. ``gradient``: the loss's gradient on
``--real`` images, as of an outer step's real batch. ``products``: one inner step's second derivatives on 100 images, as
of a differentiated step. Medians of runs in turn (A B C A B C ...) on the CPU, after one that is not counted.

Writes DIR/chunks.json and DIR/chunks.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import RESULTS, Parser, at_least, markdown, ran_on, run, write_results
from framework.files import make_folder
from framework.inner.execution import auto_chunk, configure_process
from framework.inner.kernels import Execution, Kernels
from framework.machine import environment
from framework.networks.flat import FlatNetwork, activation_floats
from framework.networks.registry import build
from framework.rng import generator

SYNTHETIC, CLASSES = 100, 10


class Shape(NamedTuple):
    """Of images, and the ConvNet for them."""

    channels: int
    side: int
    depth: int
    width: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.side}x{self.side}, depth {self.depth}, width {self.width}"


SHAPES = (Shape(1, 8, 1, 64), Shape(1, 28, 3, 16), Shape(3, 32, 3, 32), Shape(3, 32, 3, 64), Shape(3, 32, 3, 128))


def images_and_labels(shape: Shape, count: int) -> tuple[Tensor, Tensor]:
    """Noise (N, C, H, W), and one-hot labels (N, K)."""
    noise = torch.randn(count, shape.channels, shape.side, shape.side, generator=generator(0, "images"))
    return noise, torch.eye(CLASSES)[torch.arange(count) % CLASSES]


def milliseconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def measure(shape: Shape, a: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds by chunk."""
    module, device = build("convnet", shape.channels, shape.side, CLASSES, depth=shape.depth, width=shape.width), "cpu"
    activations = activation_floats(module, shape.channels, shape.side)
    network = FlatNetwork(module, torch.device(device))
    theta = network.init(generator(0, "network"))
    w = torch.randn(theta.shape, generator=generator(0, "w"))
    real, synthetic = images_and_labels(shape, a.real), images_and_labels(shape, SYNTHETIC)
    times: dict[str, dict[int, list[float]]] = {what: {c: [] for c in a.chunks} for what in ("gradient", "products")}
    for _ in range(a.repeats + 1):
        for chunk in a.chunks:
            kernels = Kernels(network, Execution(chunk=chunk))
            times["gradient"][chunk].append(milliseconds(lambda k=kernels: k.gradient(theta, *real)))  # type: ignore[misc]
            times["products"][chunk].append(
                milliseconds(lambda k=kernels: k.products(theta, *synthetic, w, learn_labels=False))  # type: ignore[misc]
            )
    return {
        "shape": str(shape), "activations": activations, "auto": auto_chunk(network.device, activations),
        **{what: {c: statistics.median(runs[1:]) for c, runs in rows.items()} for what, rows in times.items()},
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each shape and kind of derivative."""
    chunks = results["chunks"]
    rows = [
        [entry["shape"], entry["auto"], what, *(f"{entry[what][c]:.0f}" for c in chunks)]
        for entry in results["shapes"]
        for what in ("gradient", "products")
    ]
    head = ["images, ConvNet", "auto", "ms of", *(f"chunk {c}" for c in chunks)]
    about = (
        f"{ran_on(results)}. gradient of {results['real']} images, second derivatives' products of {SYNTHETIC}; "
        f"medians of {results['repeats']} in turn."
    )
    return f"{markdown(head, rows)}\n\n{about}"


def main() -> None:
    """Measure each shape."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument("--chunks", type=at_least(1), nargs="+", default=[10, 25, 50, 100, 200, 400])
    parser.add_argument("--real", type=at_least(1), default=400, help="images of the gradient")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    a = parser.parse_args()
    make_folder(a.out, "--out")
    torch.set_num_threads(a.threads)
    device = torch.device("cpu")
    configure_process(device, "float32")
    results: dict[str, Any] = {
        **environment(device), "chunks": a.chunks, "real": a.real, "repeats": a.repeats, "shapes": [],
    }  # fmt: skip
    for shape in SHAPES:
        results["shapes"].append(measure(shape, a))
        write_results(a.out, "chunks", results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
