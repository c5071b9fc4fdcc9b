"""Put the figures of benchmarks/results into docs/engines.md, between its markers.

python benchmarks/readme_tables.py [--check]
"""

from typing import Any

from common import RESULTS, ROOT, Parser, markdown, ran_on, run
from framework.files import read_json, write_text

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
        return str(case["left out"].get(variant, "not run"))
    seconds, mib = f"{measured['all']:.1f} s", f"{measured['peak MiB']:,.0f} MiB"
    if base is None or variant == "ancestor":
        return f"{seconds}, {mib}"
    share = 100 * measured["peak MiB"] / base["peak MiB"]
    return f"{seconds} ({base['all'] / measured['all']:.2f}x), {mib} ({share:.1f} %)"


def metagrad(files: list[dict[str, Any]]) -> str:
    """The comparison of engines: seconds and additional peak memory of an outer step, and ratios."""
    cases = [case for results in files for case in results["cases"]]
    cases.sort(key=lambda case: (case["images"], case["window"]))
    rows = [[f"{c['images']}, {c['window']}", *(cell(c, variant) for variant in VARIANTS)] for c in cases]
    table = markdown(["images per step, window", *VARIANTS.values()], rows)
    runs = ", ".join(
        f"{name} (at most {results['repeats']} run{'s' * (results['repeats'] > 1)} each)"
        for name, results in zip(SOURCES, files, strict=True)
    )
    return f"{table}\n\n{ran_on(files[0])}. Medians of runs in turn: {runs}."


def updated(page: str) -> str:
    """The page's text with the figures as the files have them."""
    block = metagrad([read_json(RESULTS / name) for name in SOURCES])
    before, rest = page.split(START)
    return f"{before}{START}\n{block}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrite the page, or with --check only say whether it is up to date."""
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the page differs; change nothing")
    check = parser.parse_args().check
    path = ROOT / "docs" / "engines.md"
    old, new = path.read_text(), updated(path.read_text())
    if not check:
        write_text(path, new)
    return int(check and old != new)


if __name__ == "__main__":
    run(main)
