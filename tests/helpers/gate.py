"""The gate of a change that must change nothing: the same runs in two checkouts, compared bit for bit.

    python tests/helpers/gate.py record OUT [--checkout DIR]    the runs' folders, made by that checkout (default: this)
    python tests/helpers/gate.py compare OUT OUT                exit code 1 and the first difference of every run

Three epochs of digits for every engine under RaT-BPTT and AT-BPTT, with learnt labels, with two processes, and of a
small image folder with patch-wise semantic preservation. Compared are ``last.pt``, ``distilled.safetensors`` and the
records of ``metrics.jsonl``, all but times and memory. Where a change moves a value to another place of a checkpoint,
``MOVED`` says so.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

EPOCHS = [
    *("--depth", "1", "--width", "4", "--device", "cpu", "--seed", "3", "--deterministic", "--epochs", "3"),
    *("--inner_optim", "Adam", "--inner_lr", "0.01", "--batch_size", "300", "--lr", "0.01", "--print_freq", "1"),
    *("--window", "4", "--totwindow", "9", "--ddtype", "curriculum", "--cctype", "2", "--test_freq", "2"),
    *("--num_train_eval", "2", "--eval_steps", "4", "8", "--baselines", "random", "full"),
]
AT_BPTT = ["-d", "2", "--early_patience", "1", "--middle_patience", "1", "--early_gain", "99", "--middle_gain", "99"]
LABELS = ["--train_y", "--num_per_class", "2", "--label_lr_scale", "2"]
RUNS = {
    **{f"rat-bptt-{engine}": ["--engine", engine] for engine in ("replay", "higher", "lowrank")},
    **{f"at-bptt-{engine}": ["--engine", engine, *AT_BPTT] for engine in ("replay", "higher", "lowrank")},
    "labels-replay": ["--engine", "replay", *AT_BPTT, *LABELS],
    "labels-higher": ["--engine", "higher", "--inner_optim", "SGD", *LABELS],
    "psp": ["--dataset", "imagefolder", "--root", "images", "--im_size", "8", "--batch_size", "8",
            "--psp_patches", "2", "--psp_lambda", "0.1", "--val_fraction", "0.25", *AT_BPTT],
    "two-processes": ["--mp_distributed", "--nproc", "2", *AT_BPTT, *LABELS],
}  # fmt: skip
MOVED = {
    "/last.pt/policy": "/last.pt/method/policy",
    "/last.pt/progress/window": "/last.pt/method/window",
    "/last.pt/progress/window_step": "/last.pt/method/window_step",
}
"""Old place of a value -> new place: methods own their windows."""

ASIDE = {"seconds", "cpu_seconds", "seconds_per_step", "peak_memory_mb", "peak_memory_mib", "config"}
"""Keys that are not compared: times, memory, and the flags, which hold the folder's name."""


def make_images(root: Path) -> None:
    """Three classes of tiny pictures, the same at every call."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for label in range(3):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(80 * label, 80 * label + 90, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def record(out: Path) -> None:
    """Make every run below ``out``, with the checkout in the current folder."""
    sys.path.insert(0, os.getcwd())
    from main import main

    out.mkdir(parents=True)
    make_images(out / "images")
    for name, flags in RUNS.items():
        given = [str(out / "images") if flag == "images" else flag for flag in flags]
        code = main(["--dataset", "digits", *EPOCHS, *given, "--save_dir", str(out / name)])
        if code != 0:
            sys.exit(f"{name}: exit code {code}")


def load(folder: Path) -> dict[str, Any]:
    """What is compared of a run's folder."""
    import torch
    from safetensors.torch import load_file

    checkpoint = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {"last.pt": checkpoint, "distilled.safetensors": load_file(folder / "distilled.safetensors")}
    leaves: dict[str, Any] = {}
    flatten({**found, "metrics.jsonl": records}, "", leaves)
    return leaves


def flatten(value: Any, where: str, leaves: dict[str, Any]) -> None:
    """Put every leaf of nested dictionaries and lists into ``leaves``, by its path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if key not in ASIDE:
                flatten(entry, f"{where}/{key}", leaves)
    elif isinstance(value, list | tuple):
        leaves[f"{where}/length"] = len(value)
        for i, entry in enumerate(value):
            flatten(entry, f"{where}/{i}", leaves)
    else:
        leaves[where] = value


def moved(place: str) -> str:
    """Where a value of the older checkout stands in the newer one."""
    old = next((old for old in MOVED if place == old or place.startswith(old + "/")), None)
    return place if old is None else MOVED[old] + place[len(old) :]


def same(one: Any, two: Any) -> bool:
    """Bit for bit; NaN equals NaN."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
    return type(one) is type(two) and (one == two or (one != one and two != two))


def compare(one: Path, two: Path) -> int:
    """Print a line per run; returns the exit code."""
    code = 0
    for name in RUNS:
        old = {moved(place): value for place, value in load(one / name).items()}
        new = load(two / name)
        missing = [place for place in (*old, *new) if place not in old or place not in new]
        differing = [place for place in old if place in new and not same(old[place], new[place])]
        verdict = f"{len(old)} values equal"
        if missing or differing:
            verdict, code = (
                f"DIFFERS at {(differing or missing)[0]} ({len(differing)} values, {len(missing)} places)",
                1,
            )
        print(f"{name}: {verdict}")
    return code


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[2])
    comparing = verbs.add_parser("compare")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("two", type=Path)
    a = parser.parse_args()
    if a.verb == "compare":
        return compare(a.one, a.two)
    os.environ["OMP_NUM_THREADS"] = "1"  # sums depend on how many threads share them
    out = a.out.resolve()
    os.chdir(a.checkout)
    record(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
