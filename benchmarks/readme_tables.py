"""Put the figures of benchmarks/results into docs, and the zoo's table into README.md, between markers.

python benchmarks/readme_tables.py [--check]
"""

from collections.abc import Callable
from typing import Any

import speedrun
from common import RESULTS, ROOT, Parser, markdown, ran_on, run
from framework.evaluation.names import LABELS
from framework.files import read_json, write_text
from framework.report import zoo
from framework.zoo import cards
from study import percent

SOURCES = ("metagrad_cpu.json", "metagrad_cpu_100.json", "metagrad_cpu_large.json")  # other machines' stand beside them
VARIANTS = {
    "ancestor": "ancestors' way",
    "ancestor, memory kept": "ancestors' way, freed memory kept",
    "higher": "`higher`",
    "replay": "replay",
    "replay, compile": "replay, compiled",
    "replay, compile, bf16": "replay, compiled, bf16",
}
GPU_SOURCES = ("metagrad_h100.json", "metagrad_h100_compiled.json", "metagrad_h100_10.json")
GPU_VARIANTS = {
    "ancestor": "ancestors' way, float32",
    "ancestor, tf32": "the same in TF32, as PyTorch's defaults have it",
    "higher": "`higher`",
    "replay": "replay, `--accelerate none`",
    "replay, graphs": "replay, `--accelerate graphs`",
    "replay, graphs, tf32": "the same, `--precision tf32`",
    "replay, graphs, bf16": "the same, `--precision bf16`",
    "replay, graphs, compile, tf32": "`--accelerate both --precision tf32`",
}


def cell(case: dict[str, Any], variant: str) -> str:
    """Seconds, how many times faster, MiB, and their share, as far as they were measured."""
    measured, base = case["variants"].get(variant), case["variants"].get("ancestor")
    if measured is None:
        return str(case["left out"].get(variant, "not run"))
    compared, digits = base is not None and variant != "ancestor", 1 if measured["all"] >= 2 else 2
    text = f"{measured['all']:.{digits}f} s" + (f" ({base['all'] / measured['all']:.2f}x)" if compared else "")
    if "peak MiB" in measured:
        share = f" ({100 * measured['peak MiB'] / base['peak MiB']:.1f} %)" if compared else ""
        text += f", {measured['peak MiB']:,.0f} MiB{share}"
    return text


def metagrad() -> str:
    """The comparison of engines: seconds and additional peak memory of an outer step, and ratios."""
    files = [read_json(RESULTS / name) for name in SOURCES]
    cases = [case for results in files for case in results["cases"]]
    cases.sort(key=lambda case: (case["images"], case["window"]))
    rows = [[f"{c['images']}, {c['window']}", *(cell(c, variant) for variant in VARIANTS)] for c in cases]
    table = markdown(["images per step, window", *VARIANTS.values()], rows)
    runs = ", ".join(
        f"{name} (at most {results['repeats']} run{'s' * (results['repeats'] > 1)} each)"
        for name, results in zip(SOURCES, files, strict=True)
    )
    return f"{table}\n\n{ran_on(files[0])}. Medians of runs in turn: {runs}."


def gpu() -> str:
    """The same on a GPU, a column for each comparison."""
    files = [read_json(RESULTS / name) for name in GPU_SOURCES]
    cases = [case for results in files for case in results["cases"]]
    rows = [[title, *(cell(case, variant) for case in cases)] for variant, title in GPU_VARIANTS.items()]
    table = markdown(["images per step, window", *(f"{c['images']}, {c['window']}" for c in cases)], rows)
    return f"{table}\n\n{ran_on(files[0])}. Medians of runs in turn, a column each: {', '.join(GPU_SOURCES)}."


SCOREBOARDS = {
    "digits": "digits", "digits_10": "digits", "mnist": "MNIST", "mnist_10": "MNIST", "fashion": "Fashion-MNIST",
    "fashion_10": "Fashion-MNIST", "cifar10": "CIFAR-10 as JPEG", "cifar10_10": "CIFAR-10 as JPEG",
}  # fmt: skip


def scoreboard(name: str, title: str) -> str:
    """A study of methods at equal time: a row for each method and choice of real images, a column for kinds of labels.

    Args:
        name: of its file.
        title: the real images.
    """
    file = f"scoreboard_methods_{name}"
    results = read_json(RESULTS / f"{file}.json")
    found: dict[str, dict[str, Any]] = {}
    for row in results["rows"]:
        found.setdefault(row["method"], {})[row["labels"]] = row
    lines = []
    for method, by_labels in found.items():
        own = by_labels[next(kind for kind in LABELS if kind in by_labels)]
        distilled = "seconds" in own
        who = method if distilled else own["name"].partition(" (")[0]
        if own.get("experts, seconds"):
            who += f" (experts: {own['experts, seconds']:.0f} s)"
        figures = {kind: percent(row["test accuracy"], digits=1) for kind, row in by_labels.items()}
        hard = figures["hard"] if "learnt" in by_labels else "the same"
        cells = [who, figures[own["labels"]], hard, figures.get("teacher", "")]
        # Methods first, each part from good to bad; the whole training set, which is no choice of images, last.
        lines.append((not distilled, method == "full", -own["test accuracy"]["mean"], cells))
    most, networks = (max(row[name] for row in results["rows"]) for name in ("n", "networks"))
    what = f"{title}, {results['images per class']} per class, {results['seconds']:g} s"
    head = [what, "their own labels", "hard labels", "a teacher's labels"]
    table = markdown(head, [cells for *_, cells in sorted(lines)])
    seeds = f"{most} seed{'s' * (most > 1)} of {networks} networks" + (", a probe" if most < 3 else "")
    return f"{table}\n\n{seeds}; {ran_on(results)}; `{file}.json`: `{results['command']}`"


def scoreboards() -> str:
    """All of these studies."""
    return "\n\n".join(scoreboard(*named) for named in SCOREBOARDS.items())


def continuals() -> str:
    """The studies of continual learning."""
    return "\n\n".join((RESULTS / f"continual_{name}.md").read_text().rstrip() for name in ("digits", "mnist"))


def zoo_table() -> str:
    """The zoo's sets, as ``main.py zoo`` lists them."""
    return zoo.table({name: cards.read_card(name) for name in cards.names()})


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "metagrad": ("docs/engines.md", metagrad),
    "gpu": ("docs/engines.md", gpu),
    "tracks": ("docs/speedrun.md", speedrun.tracks_table),
    "records": ("docs/speedrun.md", lambda: speedrun.table(speedrun.read_records())),
    "scoreboards": ("docs/scoreboard.md", scoreboards),
    "continual": ("docs/evaluation.md", continuals),
    "zoo": ("README.md", zoo_table),
}
"""By the name in its markers: the page, and what makes the table."""


def updated(page: str, name: str, block: str) -> str:
    """The page's text with a table in its markers."""
    start, end = f"<!-- {name}: benchmarks/readme_tables.py -->", f"<!-- /{name} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n{block}\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Rewrite the pages, or with --check only say whether all are up to date."""
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a page differs; change nothing")
    check, differs = parser.parse_args().check, False
    for name, (page, table) in TABLES.items():
        path = ROOT / page
        old = path.read_text()
        new = updated(old, name, table())
        differs |= old != new
        if not check and old != new:
            write_text(path, new)
    return int(check and differs)


if __name__ == "__main__":
    run(main)
