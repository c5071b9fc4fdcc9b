"""What are the first images of a boosted set worth, against a set distilled at their number?

    python benchmarks/boosting_study.py --out DIR --block 1 --sizes 1 2 5 10 --block_epochs E --seeds 0 1 2 -- FLAGS

For each seed and each size n, in images per class, test accuracy in percent of fresh networks trained on

* boosted: the first n images of each class of one boosted set of max(sizes), learnt in blocks of ``--block``;
* direct: a set distilled at that size with as many outer steps as the boosted prefix has had, n / block * E epochs;
* subset: n random images of each class of the unboosted set of max(sizes), the mean over ``--draws`` subsets;
* real: n random real images of each class, drawn anew for each network.

FLAGS are of main.py, for every run; where ``--batch_per_class`` is more than there are images, it is lowered. Every run
has a folder of its own below DIR; a study that was stopped (by hand, or by ``--minutes``) continues where it was when
started again. Ends in DIR/results.json, results.md and results.png. Used by ``scripts/boosting.sh``.

A boosted prefix is as the last step of its blocks left it, but for the largest; of a direct set the best snapshot by
validation images is taken, as of any run. Training lengths are chosen on validation images.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from common import Parser, at_least, markdown, portable, ran_on, run, threads_each, write_results
from framework.assemble.common import data_spec
from framework.config.bptt import Config, parse
from framework.data.load import list_data, load_listed
from framework.data.splits import RealData
from framework.distilled.load import load_distilled
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation import judge
from framework.evaluation.recipes import make_recipe
from framework.files import make_folder, read_json, write_json
from framework.inner.execution import configure_process
from framework.records import Judgement, read_record
from framework.report.plots import save_figure
from framework.rng import generator
from runs import do_all
from study import Job, distil, mean_and_deviation, percent

KINDS = {
    "boosted": "boosted, its first images",
    "direct": "distilled at that size",
    "subset": "random subsets of the largest",
    "real": "random real images",
}
"""Columns of the table."""


@dataclass(frozen=True)
class Study:
    """What is asked for.

    Args:
        out: folder of the results.
        block: images per class of a block.
        beta: of the boosted run.
        sizes: images per class, multiples of ``block``, increasing.
        epochs: of each block.
        seeds: of the runs.
        draws: subsets of each size and seed.
        common: flags of main.py.
    """

    out: Path
    block: int
    beta: float
    sizes: list[int]
    epochs: int
    seeds: list[int]
    draws: int
    common: list[str]

    @property
    def jobs(self) -> list[Job]:
        """All distillations, seed by seed."""
        return [job for seed in self.seeds for job in (self.boosted(seed), *(self.direct(n, seed) for n in self.sizes))]

    def boosted(self, seed: int) -> Job:
        """The run in blocks."""
        flags = ["--boost_block", str(self.block), "--boost_beta", f"{self.beta:g}", "--epochs", str(self.epochs)]
        return self._job(f"boosted_block{self.block}_beta{self.beta:g}", self.sizes[-1], seed, flags)

    def direct(self, size: int, seed: int) -> Job:
        """The run at one size, all images at once."""
        flags = ["--epochs", str(size // self.block * self.epochs), "--baselines", "random"]
        return self._job(f"direct_{size}", size, seed, flags)

    def _job(self, name: str, size: int, seed: int, flags: list[str]) -> Job:
        asked = _config(self.common).batch_per_class
        batch = ["--batch_per_class", str(min(asked, size))]
        return Job(
            name, seed, [*self.common, "--num_per_class", str(size), *batch, *flags], self.out / name / f"seed{seed}"
        )


def _config(common: list[str]) -> Config:
    """The common flags, with a size that any batch fits."""
    return parse([*common, "--num_per_class", str(10**6)])[0]


# ---- random subsets --------------------------------------------------------------------------------


def subset_file(s: Study, size: int, seed: int, draw: int) -> Path:
    """Where a subset's scores are kept."""
    return s.out / "subsets" / f"seed{seed}" / f"{size}_{draw}.json"


def judge_subsets(s: Study, seed: int, deadline: float) -> None:
    """Judge what is missing of a seed's random subsets, until the deadline."""
    missing = [(n, d) for n in s.sizes for d in range(s.draws) if not subset_file(s, n, seed, d).exists()]
    whole = s.direct(s.sizes[-1], seed)
    if whole.summary is None or not missing:
        return
    distilled = load_distilled(whole.folder)
    device = torch.device("cpu")
    configure_process(device, "float32")
    real = load_listed(list_data(data_spec(distilled.config)), device, preprocess=distilled.preprocess)
    for size, draw in missing:
        if time.monotonic() > deadline:
            return
        order = torch.randperm(distilled.per_class, generator=generator(seed, "subset", size, draw))
        file = subset_file(s, size, seed, draw)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(judged(distilled.subset(order[:size]), real, seed)))


def judged(subset: Distilled, real: RealData, seed: int) -> Judgement:
    """A set's scores by its own recipe and as many of its own networks as its run has trained."""
    recipe, config = make_recipe("inner", subset, None), subset.config
    network = judge.build(config.arch, subset, None, real.train.labels.device)
    rows = judge.candidates(subset.images, subset.labels, subset.counts, real, recipe, (), config.num_train_eval, seed)
    return judge.evaluate(subset, real, [judge.Trial(recipe, rows)], {config.arch: network}, seed, lambda steps: None)


# ---- results ---------------------------------------------------------------------------------------


def of_seed(s: Study, size: int, seed: int) -> dict[str, float | None]:
    """Test accuracy (a fraction) by ``KINDS`` at one size; None where it is not known yet."""
    boosted, direct = s.boosted(seed).summary, s.direct(size, seed).summary
    files = [file for draw in range(s.draws) if (file := subset_file(s, size, seed, draw)).exists()]
    scores = [read_record(Judgement, read_json(file), file) for file in files]
    subsets = [row["distilled"].top1 for judgement in scores for row in judgement.results.values()]
    return {
        "boosted": boosted.prefixes[str(size)].top1 if boosted and boosted.prefixes else None,
        "direct": direct.results["distilled"].top1 if direct else None,
        "subset": statistics.fmean(subsets) if len(subsets) == s.draws else None,
        "real": direct.results["random"].top1 if direct else None,
    }


def collect(s: Study) -> dict[str, Any]:
    """What is known so far: by size and kind, over the seeds that have it."""
    sizes: dict[str, Any] = {}
    for size in s.sizes:
        found = [of_seed(s, size, seed) for seed in s.seeds]
        values = {kind: [value for row in found if (value := row[kind]) is not None] for kind in KINDS}
        sizes[str(size)] = {
            kind: {"n": len(known), "per seed": known, **mean_and_deviation(known)}
            for kind, known in values.items()
            if known
        }
    done = [summary for job in s.jobs if (summary := job.summary)]
    about = {key: getattr(done[0], key) for key in ("dataset", "device", "torch", "python")} if done else {}
    steps = {job.variant: summary.outer_steps for job in s.jobs if (summary := job.summary)}
    seconds = {job.variant: summary.seconds for job in s.jobs if (summary := job.summary)}
    asked = {"block": s.block, "beta": s.beta, "epochs of a block": s.epochs, "draws": s.draws, "seeds": s.seeds}
    return {**about, **asked, "outer steps": steps, "seconds": seconds, "flags": portable(s.common), "sizes": sizes}


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each size, a column for each kind."""
    rows = [
        [size, *(percent(found[kind]) if kind in found else "" for kind in KINDS)]
        for size, found in results["sizes"].items()
    ]
    text = markdown(["images per class", *KINDS.values()], rows)
    if "device" in results:
        text += (
            f"\n\nTest accuracy (%); ± is the deviation over {len(results['seeds'])} seeds (of each seed's mean over "
            f"{results['draws']} subsets). {results['dataset']}, blocks of {results['block']}, beta "
            f"{results['beta']:g}, {results['epochs of a block']} epochs each; {ran_on(results)}."
        )
    return text


def picture(results: dict[str, Any], path: Path) -> None:
    """Accuracy over images per class, a curve for each kind, deviations over seeds as bars."""
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    for kind, name in KINDS.items():
        points = [(int(size), found[kind]) for size, found in results["sizes"].items() if kind in found]
        means, deviations = [p["mean"] for _, p in points], [p["deviation"] or 0.0 for _, p in points]
        ax.errorbar([size for size, _ in points], means, deviations, marker="o", capsize=3, label=name)
    ax.set_xscale("log")
    ax.set_xticks([int(size) for size in results["sizes"]], list(results["sizes"]))
    ax.set_xticks([], minor=True)
    ax.set_xlabel("images per class")
    ax.set_ylabel("test accuracy (%)")
    ax.legend()
    ax.grid(alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    """Parse, run what is missing, collect."""
    parser = Parser(__doc__)
    parser.add_out()
    parser.add_argument("--block", type=at_least(1), default=1, help="images per class of a block")
    parser.add_argument("--beta", type=float, default=0.0, help="of finished blocks, as --boost_beta")
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=[1, 2, 5, 10], help="images per class")
    parser.add_argument("--block_epochs", type=at_least(1), required=True, help="epochs of each block")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=at_least(1), default=5, help="random subsets of each size and seed")
    parser.add_runs()
    a = parser.parse_args()
    sizes = sorted(set(a.sizes))
    if wrong := [size for size in sizes if size % a.block]:
        raise UserError(f"--sizes {wrong[0]}: no multiple of --block {a.block}; give whole blocks")
    out = a.out.resolve()
    make_folder(out, "--out")
    s = Study(out, a.block, a.beta, sizes, a.block_epochs, a.seeds, a.draws, a.common)
    deadline = time.monotonic() + 60 * a.minutes
    threads = threads_each(a.jobs)
    do_all(lambda job: distil(job, deadline, threads), s.jobs, a.jobs)
    for seed in s.seeds:
        judge_subsets(s, seed, deadline)
    results = collect(s)
    write_results(out, "results", results, table(results))
    picture(results, out / "results.png")
    print(table(results))
    missing = sum(job.summary is None for job in s.jobs)
    missing += sum(not subset_file(s, n, seed, d).exists() for n in sizes for seed in s.seeds for d in range(s.draws))
    if missing:
        print(f"{missing} runs and subsets are not finished: start the same command again to continue")


if __name__ == "__main__":
    run(main)
