"""What one step of the window costs at least on a device of known speed: a count, not a measurement.

    python benchmarks/floor.py --out DIR [--images 10 100] [--tflops 67 494 --tb 4.8]

Runs each engine's outer step (that of benchmarks/metagrad.py, whole batches) on the "meta" device, which computes
nothing, and counts per inner step of the window, its share of the backward sweep included: kernels (operations that are
not mere views), bytes that they read and write, floating-point operations of convolutions and matrix products. The
floor is the sum over kernels of the longer of arithmetic and memory time, without any time to launch them. The ceilings
are a data sheet's: by default an NVIDIA H200's float32 and dense TF32. Writes DIR/floor.json and DIR/floor.md.
"""

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from common import RESULTS, Parser, at_least, markdown, run, write_results
from framework.distill_higher import outer_gradient
from framework.files import make_folder
from framework.inner.kernels import Execution
from framework.inner.names import CHUNK
from framework.outer.policies.policy import Window
from metagrad import ENGINES, PREFIX, make

# Operations that launch nothing.
FREE = tuple(f"aten.{name}" for name in ("alias", "detach", "empty", "new_empty", "view", "_unsafe_view"))


class Count(TorchDispatchMode):
    """Notes the floating-point operations and the bytes of every kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.kernels: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.is_view or str(function).startswith(FREE):
            return result
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        count = flop_registry.get(function.overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        self.kernels.append((flops, size))
        return result


def kernels(engine: str, images: int, window: int, width: int) -> list[tuple[int, int]]:
    """Floating-point operations and bytes of each kernel of an outer step."""
    p = make(images, window, 10, width, torch.device("meta"), torch.float32)
    count = Count()
    with count:
        how = ENGINES[engine](p.network, Execution(chunk=CHUNK))
        outer_gradient(how, [p.theta], p.synthetic, [p.plan], Window(PREFIX, window), p.real)
    return count.kernels


def per_step(engine: str, images: int, width: int, tflops: list[float], tb: float) -> dict[str, float]:
    """The counts of one more step of the window, and its floor in seconds at each of the rates of arithmetic."""
    few, many = 4, 8

    def sums(window: int) -> dict[str, float]:
        all_kernels = kernels(engine, images, window, width)
        result: dict[str, float] = {"kernels": len(all_kernels)}
        result["flops"], result["bytes"] = (float(sum(column)) for column in zip(*all_kernels, strict=True))
        for rate in tflops:
            result[f"floor at {rate:g}"] = sum(max(f / rate, size / tb) for f, size in all_kernels) / 1e12
        return result

    less, more = sums(few), sums(many)
    return {name: (more[name] - less[name]) / (many - few) for name in less}


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each number of images and engine."""
    floors = [key for key in results["cases"][0] if key.startswith("floor at ")]
    head = ["images", "engine", "kernels", "GB", "GFLOP", *(f"{floor} TFLOP/s, ms" for floor in floors)]
    rows = [
        [c["images"], c["engine"], f"{c['kernels']:.0f}", f"{c['bytes'] / 1e9:.2f}", f"{c['flops'] / 1e9:.1f}",
         *(f"{1e3 * c[floor]:.2f}" for floor in floors)]
        for c in results["cases"]
    ]  # fmt: skip
    note = f"Per inner step of the window, torch {results['torch']}, {results['terabytes per second']:g} TB/s."
    return markdown(head, rows) + f"\n\n{note}"


def main() -> None:
    """Count, and write a table."""
    parser = Parser(__doc__)
    parser.add_out(RESULTS)
    parser.add_argument(
        "--images", type=at_least(10), nargs="+", default=[10, 100, 500], help="synthetic images per step"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="NAME", default=["replay", "higher"])
    parser.add_argument("--width", type=at_least(1), default=128, help="of the ConvNet")
    parser.add_argument("--tflops", type=float, nargs="+", default=[67.0, 494.0], help="10^12 operations per second")
    parser.add_argument("--tb", type=float, default=4.8, help="10^12 bytes of memory per second")
    a = parser.parse_args()
    make_folder(a.out, "--out")
    results = {
        "terabytes per second": a.tb,
        "width": a.width,
        "torch": torch.__version__,
        "cases": [
            {"images": images, "engine": engine, **per_step(engine, images, a.width, a.tflops, a.tb)}
            for images in a.images
            for engine in a.engines
        ],
    }
    write_results(a.out, "floor", results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
