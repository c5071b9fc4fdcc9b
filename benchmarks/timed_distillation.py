"""Accuracy against wall time of the runs that scripts/gpu_bench.sh timed: a table and a plot.

python benchmarks/timed_distillation.py OUT_DIR
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"auto": "our default", "higher": "reference engine"}


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of a run's metrics by kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        kinds.setdefault(record["kind"], []).append(record)
    return kinds


def main() -> int:
    """Write OUT_DIR/distillation.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    out = parser.parse_args().out
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    results, lines = {}, ["| engine | outer steps | s per step | last accuracy % | at s |", "| --- " * 5 + "|"]
    for engine, name in NAMES.items():
        path = out / f"distil_{engine}.jsonl"
        if not path.exists():
            print(f"{path}: not there; run scripts/gpu_bench.sh first", file=sys.stderr)
            return 2
        kinds = read(path)
        steps, evaluations = kinds.get("step", []), kinds.get("evaluation", [])
        points = [(e["seconds"], 100 * e["accuracy"]) for e in evaluations]
        pace = sorted(s["seconds_per_step"] for s in steps)[len(steps) // 2] if steps else None
        results[engine] = {"outer steps": steps[-1]["step"] if steps else 0, "median seconds per step": pace,
                           "accuracy over seconds": points}  # fmt: skip
        last = f"{points[-1][1]:.1f} | {points[-1][0]:.0f}" if points else "none yet | "
        lines.append(f"| {name} | {results[engine]['outer steps']} | {pace or 0:.3f} | {last} |")
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("validation accuracy (%)")
    axes.legend()
    figure.savefig(out / "distillation.png", dpi=110)
    (out / "distillation.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "distillation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
