"""What one step of the window costs at least on a device of known speed: a count, not a measurement.

    python benchmarks/floor.py --out DIR [--images 10 100] [--tflops 67 494 --tb 4.8]

Runs each engine's outer step (that of benchmarks/metagrad.py, whole batches) on the "meta" device, which computes
nothing, and counts per inner step of the window, its share of the backward sweep included: kernels (operations that are
not mere views), bytes that they read and write, floating-point operations of convolutions and matrix products. The
floor is the sum over kernels of the longer of arithmetic and memory time, without any time to launch them. The ceilings
are a data sheet's: by default an NVIDIA H200's float32 and dense TF32. Writes DIR/floor.json and DIR/floor.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.utils._pytree as pytree
from metagrad import ENGINES, PREFIX, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from framework.distill_higher import outer_gradient
from framework.inner.kernels import CHUNK, Execution
from framework.outer.policies.policy import Window

# Operations that launch nothing.
FREE = tuple(f"aten.{name}" for name in ("alias", "detach", "empty", "new_empty", "view", "_unsafe_view"))


class Count(TorchDispatchMode):
    """Notes the floating-point operations and the bytes of every kernel."""

    def __init__(self) -> None:
        super().__init__()
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
    with Count() as count:
        outer_gradient(ENGINES[engine](p.network, Execution(chunk=CHUNK["cuda"])), [p.theta], p.images, p.labels,
                       [p.plan], Window(PREFIX, window), p.real)  # fmt: skip
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


def main() -> None:
    """Count, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=int, nargs="+", default=[10, 100, 500], help="synthetic images per step")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="NAME", default=["replay", "higher"])
    parser.add_argument("--width", type=int, default=128, help="of the ConvNet")
    parser.add_argument("--tflops", type=float, nargs="+", default=[67.0, 494.0], help="10^12 operations per second")
    parser.add_argument("--tb", type=float, default=4.8, help="10^12 bytes of memory per second")
    a = parser.parse_args()
    results: dict[str, Any] = {"terabytes per second": a.tb, "width": a.width, "torch": torch.__version__}
    results["cases"] = []
    floors = [f"floor at {rate:g}" for rate in a.tflops]
    head = ["images", "engine", "kernels", "GB", "GFLOP", *(f"{floor} TFLOP/s, ms" for floor in floors)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for images in a.images:
        for engine in a.engines:
            c = per_step(engine, images, a.width, a.tflops, a.tb)
            results["cases"].append({"images": images, "engine": engine, **c})
            cells = [f"{images}", engine, f"{c['kernels']:.0f}", f"{c['bytes'] / 1e9:.2f}", f"{c['flops'] / 1e9:.1f}"]
            cells += [f"{1e3 * c[floor]:.2f}" for floor in floors]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Per inner step of the window, torch {torch.__version__}, {a.tb:g} TB/s."]
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "floor.json").write_text(json.dumps(results, indent=2) + "\n")
    (a.out / "floor.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
