"""Put the figures of benchmarks/results into docs/engines.md, between its markers.

python benchmarks/readme_tables.py [--check]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("metagrad_cpu.json", "metagrad_cpu_100.json", "metagrad_cpu_large.json")  # other machines' stand beside them
VARIANTS = {
    "ancestor": "ancestors' way",
    "ancestor, memory kept": "ancestors' way, freed memory kept",
    "higher": "`higher`",
    "replay": "replay",
    "replay, compile": "replay, compiled",
    "replay, compile, bf16": "replay, compiled, bf16",
}
START, END = "<!-- metagrad: benchmarks/readme_tables.py -->", "<!-- /metagrad -->"


def cell(case: dict[str, Any], variant: str) -> str:
    """Seconds, how many times faster, MiB, and their share, as far as they were measured."""
    measured, base = case["variants"].get(variant), case["variants"].get("ancestor")
    if measured is None:
        return case["left out"].get(variant, "not run")
    seconds, mib = f"{measured['all']:.1f} s", f"{measured['peak MiB']:,.0f} MiB"
    if base is None or variant == "ancestor":
        return f"{seconds}, {mib}"
    share = 100 * measured["peak MiB"] / base["peak MiB"]
    return f"{seconds} ({base['all'] / measured['all']:.2f}x), {mib} ({share:.1f} %)"


def metagrad(files: list[dict[str, Any]]) -> str:
    """The comparison of engines: seconds and additional peak memory of an outer step, and ratios."""
    lines = [
        "| images per step, window | " + " | ".join(VARIANTS.values()) + " |",
        "| --- " * (len(VARIANTS) + 1) + "|",
    ]
    for case in sorted(
        (case for results in files for case in results["cases"]), key=lambda c: (c["images"], c["window"])
    ):
        cells = [f"{case['images']}, {case['window']}", *(cell(case, variant) for variant in VARIANTS)]
        lines.append("| " + " | ".join(cells) + " |")
    runs = ", ".join(
        f"{name} (at most {results['repeats']} run{'s' * (results['repeats'] > 1)} each)"
        for name, results in zip(SOURCES, files, strict=True)
    )
    lines += ["", f"{files[0]['device']}, torch {files[0]['torch']}. Medians of runs in turn: {runs}."]
    return "\n".join(lines)


def updated(page: str) -> str:
    """The page's text with the figures as the files have them."""
    folder = ROOT / "benchmarks" / "results"
    block = metagrad([json.loads((folder / name).read_text()) for name in SOURCES])
    before, rest = page.split(START)
    return f"{before}{START}\n{block}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrite the page, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the page differs; change nothing")
    check = parser.parse_args().check
    path = ROOT / "docs" / "engines.md"
    old, new = path.read_text(), updated(path.read_text())
    if not check:
        path.write_text(new)
    return int(check and old != new)


if __name__ == "__main__":
    sys.exit(main())
