"""Accuracy against wall time of the runs that scripts/gpu_bench.sh timed: a table and a plot.

python benchmarks/timed_distillation.py OUT_DIR
"""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common import Parser, markdown, run, write_results
from framework.errors import UserError
from framework.report.folder import read_metrics
from framework.report.plots import save_figure

NAMES = {"auto": "our default", "higher": "reference engine"}
NOTHING = "nothing: cut short before its first metrics"


def summary(records: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What a run has come to, from its metrics by kind; ``left out`` says why there is nothing."""
    steps, evaluations = records.get("step", []), records.get("evaluation", [])
    result = {
        "outer steps": steps[-1]["step"] if steps else 0,
        "median seconds per step": statistics.median(s["seconds_per_step"] for s in steps) if steps else None,
        "accuracy over seconds": [(e["seconds"], 100 * e["accuracy"]) for e in evaluations],
    }
    return result if records else {**result, "left out": NOTHING}


def row(engine: str, result: dict[str, Any]) -> list[object]:
    """The table's row of one engine."""
    if "left out" in result:
        return [NAMES[engine], result["left out"]]
    pace, points = result["median seconds per step"], result["accuracy over seconds"]
    last = [f"{points[-1][1]:.1f}", f"{points[-1][0]:.0f}"] if points else ["none yet"]
    return [NAMES[engine], result["outer steps"], "" if pace is None else f"{pace:.3f}", *last]


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy over seconds, a line for each engine that was evaluated."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for engine, result in results.items():
        if result["accuracy over seconds"]:
            axes.plot(*zip(*result["accuracy over seconds"], strict=True), "o-", label=NAMES[engine])
    axes.set_xlabel("seconds")
    axes.set_ylabel("validation accuracy (%)")
    if axes.lines:
        axes.legend()
    save_figure(figure, path)


def main() -> None:
    """Write OUT_DIR/distillation.json, .md and .png."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    out = parser.parse_args().out
    files = {engine: out / f"distil_{engine}.jsonl" for engine in NAMES}
    for path in files.values():
        if not path.exists():
            raise UserError(f"{path}: not there; run scripts/gpu_bench.sh first")
    results = {engine: summary(read_metrics(path)) for engine, path in files.items()}
    rows = [row(engine, result) for engine, result in results.items()]
    text = markdown(("engine", "outer steps", "s per step", "last accuracy %", "at s"), rows)
    plot(results, out / "distillation.png")
    write_results(out, "distillation", results, text)
    print(text)


if __name__ == "__main__":
    run(main)
