"""A RaT-BPTT run's folder made up for ``main.py advise``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from framework.config.bptt import Config

CONFIG = Config(truncation="rat-bptt", window=2, totwindow=4, batch_size=100)
"""On digits: three positions, ten images an inner step, 120 + 300 + 60 N passes."""


def write_run(
    folder: Path,
    norms: list[float],
    *,
    rounds: int = 4,
    factors: dict[int, float] | None = None,
    records: dict[str, Any] | None = None,
    **flags: Any,
) -> None:
    """Write flags and metrics of windows that start at 0, 1, ... in turn.

    Args:
        folder: where.
        norms: of each outer step; those of a round are repeated in the next.
        rounds: how often.
        factors: of the clip by position, where it is not 1.
        records: more of every record.
        flags: those that differ from ``CONFIG``.
    """
    (folder / "config.json").write_text(replace(CONFIG, **flags).to_json())
    with open(folder / "metrics.jsonl", "w") as file:
        for step, norm in enumerate(rounds * norms, 1):
            start = (step - 1) % 3
            facts = {"window_start": start, "window_length": 2, "meta_gradient_norm": norm, "seconds_per_step": 0.5}
            facts["clip_factor"] = (factors or {}).get(start, 1.0)
            file.write(json.dumps({"kind": "step", "step": step, **facts, **(records or {})}) + "\n")
        file.write('{"kind": "epoch", "step"')  # a run that still goes on
