"""Put the figures of benchmarks/results into the README, between its markers.

python benchmarks/readme_tables.py [--check]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("metagrad_cpu.json", "metagrad_cpu_100.json")  # further machines' files stand beside them
START, END = "<!-- metagrad: benchmarks/readme_tables.py -->", "<!-- /metagrad -->"


def metagrad(files: list[dict[str, Any]]) -> str:
    """The comparison of engines: seconds and additional peak memory of an outer step, and ratios."""
    lines = [
        "| images per step | window | variant | seconds | times faster | peak MiB | of the ancestors' |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for results in files:
        for case in results["cases"]:
            base = case["variants"]["ancestor"]
            for name, e in case["variants"].items():
                faster, share = base["all"] / e["all"], e["peak MiB"] / base["peak MiB"]
                lines.append(f"| {case['images']} | {case['window']} | {name} | {e['all']:.1f} | {faster:.2f} "
                             f"| {e['peak MiB']:,.0f} | {100 * share:.1f} % |")  # fmt: skip
    first = files[0]
    place = ", ".join(str(first[key]) for key in ("device", "torch"))
    runs = ", ".join(
        f"{name} (at most {results['repeats']} runs each)" for name, results in zip(SOURCES, files, strict=True)
    )
    lines += ["", f"{place}. Medians, in turn: {runs}."]
    return "\n".join(lines)


def updated(readme: str) -> str:
    """The README's text with the figures as the files have them."""
    folder = ROOT / "benchmarks" / "results"
    block = metagrad([json.loads((folder / name).read_text()) for name in SOURCES])
    before, rest = readme.split(START)
    return f"{before}{START}\n{block}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrite README.md, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the README differs; change nothing")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    old, new = path.read_text(), updated(path.read_text())
    if not check:
        path.write_text(new)
    return int(check and old != new)


if __name__ == "__main__":
    sys.exit(main())
