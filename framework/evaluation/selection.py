"""The evaluations of a run: of every epoch that is due, of the selected snapshot, and the final table."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from framework import files
from framework.assemble.common import Parts
from framework.config.distilling import Distilling
from framework.config.matching import FtdConfig
from framework.distilled.pictures import image_grid, natural_images
from framework.evaluation.evaluator import Candidate, Evaluator, TrainingSet
from framework.evaluation.judge import candidates, judge
from framework.evaluation.recipes import Recipe, matching_recipe
from framework.evaluation.scores import Evaluation
from framework.files import write_json
from framework.inner.counts import Counts
from framework.inner.plan import ClassSampler
from framework.machine import environment
from framework.outer.method import Snapshot
from framework.records import Entry, Results, Row, Summary
from framework.report.folder import RunFolder
from framework.report.plots import prefix_plot
from framework.run import checkpoint
from framework.run.chores import Seldom
from framework.run.clock import Clock
from framework.run.distributed import Comm
from framework.run.progress import Best, Progress

EXPORTS_SHARE = 0.001  # of a run's time


class Assessor:
    """Evaluates synthetic sets of one run.

    Args:
        config: the run's flags.
        comm: networks are shared out among its ranks.
        parts: what the run is made of.
        check: called between inner steps; may raise to stop.
    """

    def __init__(self, config: Distilling, comm: Comm, parts: Parts, check: Callable[[], None]) -> None:
        self.config, self.comm, self.parts, self.check = config, comm, parts, check
        self.device = parts.network.device
        self.loop = parts.loop.for_evaluation()
        self.exports = Seldom(EXPORTS_SHARE)
        self.exported: Best | None = None  # what the folder has, as far as this process knows
        self.bar: tqdm[Any] | None = None

    def evaluate(self, epoch: int, form: str, snapshot: Snapshot) -> Entry:
        """Train ``--num_train_eval`` fresh networks on a set and score them on the selection split.

        Args:
            epoch: that the set is of.
            form: its name among the forms of this set, if there are several.
            snapshot: the set.
        """
        c, recipe = self.config, self._recipe(snapshot)
        current, evaluator = self._training_set(snapshot, recipe), self._evaluator(recipe)
        mine = range(self.comm.rank, c.num_train_eval, self.comm.size)
        key = ("epoch", epoch, *((form,) if form else ()))
        with self._bar(f"evaluating epoch {epoch}{form and f', {form} images'}", len(mine) * recipe.lengths[-1]):
            rows = [evaluator.evaluate(current, recipe.lengths, self.parts.selection, *key, i) for i in mine]
        evaluation = Evaluation(recipe.lengths, [row for part in self.comm.gather(rows) for row in part])
        chosen = evaluation.best_length()
        scores = [evaluation.summary(length) for length in recipe.lengths]
        return Entry(epoch, c.select, list(recipe.lengths), scores, chosen, evaluation.mean(chosen), form)

    def _recipe(self, snapshot: Snapshot) -> Recipe:
        """How networks are trained on a set of this run."""
        c, parts = self.config, self.parts
        if isinstance(c, FtdConfig):
            assert snapshot.step_size is not None, "it is learnt"
            return matching_recipe(c, len(snapshot.images), snapshot.images.shape[-1], snapshot.step_size)
        assert isinstance(parts.sampler, ClassSampler), "it draws by class"
        sampler = parts.sampler.of(self._counts(snapshot))
        return Recipe("inner", self.loop.rule, sampler, c.eval_steps, "the inner loop's own")

    def _counts(self, snapshot: Snapshot) -> Counts:
        """Images of each class of a set of this run, which may be one of a boosted run that is to grow."""
        names, images = self.parts.real.class_names, len(snapshot.images)
        whole = self.config.counts(names)
        return whole if images == whole.total else Counts.equal(len(names), images // len(names))

    def _evaluator(self, recipe: Recipe) -> Evaluator:
        return Evaluator(self.loop.with_rule(recipe.rule), self.config.seed, tick=self._tick)

    def _training_set(self, snapshot: Snapshot, recipe: Recipe) -> TrainingSet:
        return TrainingSet(snapshot.images.to(self.device), snapshot.labels.to(self.device), recipe.sampler)

    def export(self, best: Best, folder: Path, *, now: bool) -> None:
        """Write the selected snapshot as a checkpoint, as safetensors and as a picture, if it is not there.

        Args:
            best: the snapshot.
            folder: the run's.
            now: even if it was done just before.
        """
        if best is not self.exported and (now or self.exports.due()):
            with self.exports.doing():
                self._export(best, folder)
            self.exported = best

    def _export(self, best: Best, folder: Path) -> None:
        c, real = self.config, self.parts.real
        tensors = {"images": best.images, "labels": best.labels}
        checkpoint.save(folder / files.BEST, {"config": c.to_json(), **best.facts, **tensors})
        provenance = {"dataset": c.dataset_label, "config": json.loads(c.to_json()), **environment(self.device)}
        provenance |= self._blocks(best) | self.parts.provenance
        checkpoint.save_tensors(
            folder / files.SET,
            {**tensors, **real.preprocess.tensors()},
            {"class_names": json.dumps(real.class_names), "provenance": json.dumps({**best.facts, **provenance})},
        )
        labels = best.labels if c.train_y else None
        counts = self._counts(best.snapshot)
        image_grid(self.pictures(best.images), real.class_names, folder / files.PICTURE, labels, counts=counts)

    def _blocks(self, best: Best) -> dict[str, Any]:
        """What a boosted set says of its blocks: their size, how many there are, and how many there will be.

        With a learnt step size, also what it was when each block but the last was finished.
        """
        c, block = self.config, self.config.boost_block
        if not block:
            return {}
        count = len(best.images) // (self.parts.real.num_classes * block)
        sizes = list(self.parts.set.step_sizes)[: count - 1]
        about = {"block_size": block, "blocks": count, "blocks_in_all": len(c.block_epochs)}
        return about | ({"step_sizes": sizes} if sizes else {})

    def pictures(self, images: Tensor) -> Tensor:
        """Distilled images as a person would see them; see ``pictures.natural_images``."""
        train = self.parts.real.train
        contrast = float(train.batch(torch.arange(min(1000, len(train)))).std())
        return natural_images(images.detach().to(self.device), self.parts.real.preprocess, contrast)

    def final_results(self, best: Best) -> Results:
        """The final table: the selected snapshot and the baselines, on the test set.

        The snapshot's training length was selected with it; a baseline's is chosen on the same split.
        """
        c, parts, recipe = self.config, self.parts, self._recipe(best.snapshot)
        images, labels = best.images.to(self.device), best.labels.to(self.device)
        counts = self._counts(best.snapshot)
        rows = candidates(images, labels, counts, parts.real, recipe, c.baselines, c.num_train_eval, c.seed)
        name = f"distilled images{best.form and f' ({best.form})'}"
        rows["distilled"] = replace(rows["distilled"], name=name, lengths=(best.best_length,))
        with self._bar("final table", sum(len(row.sets) * row.lengths[-1] for row in rows.values())):
            return judge(self._evaluator(recipe), rows, parts.selection, parts.real.test, "final")

    def prefix_results(self, best: Best, whole: Row) -> Results | None:
        """Of a boosted run, the row of every prefix of blocks, by its images per class; ``whole`` is the last one's.

        Fresh networks are trained on the prefix alone, by the run's recipe, from the same initial parameters for each;
        their length is chosen on the split that selects. The networks see no other image of the set.
        """
        c, classes = self.config, self.parts.real.num_classes
        if not c.boost_block:
            return None
        results, per_class = {}, len(best.images) // classes
        for size in range(c.boost_block, per_class, c.boost_block):
            prefix = best.snapshot.prefix(classes, size)
            if sizes := self.parts.set.step_sizes:
                prefix = replace(prefix, step_size=sizes[size // c.boost_block - 1])
            recipe = self._recipe(prefix)
            row = Candidate("distilled images", [self._training_set(prefix, recipe)] * c.num_train_eval, recipe.lengths)
            with self._bar(f"the first {size} of each class", c.num_train_eval * recipe.lengths[-1]):
                judged = judge(self._evaluator(recipe), {"distilled": row}, self.parts.selection, self.parts.real.test,
                               "final")  # fmt: skip
            results[str(size)] = judged["distilled"]
        return results | {str(per_class): whole}

    def summarise(self, folder: Path, progress: Progress, clock: Clock) -> Summary:
        """``summary.json``: made once, by the only use of the test set."""
        c, there = self.config, RunFolder(folder).summary
        epochs = progress.epoch if c.eval_only else c.total_epochs
        same = there is not None and (there.epochs, there.outer_steps) == (epochs, progress.step)
        if there is not None and same and {"distilled", *c.baselines} <= there.results.keys():
            return there
        assert progress.best is not None, "the last epoch is always evaluated"
        results = self.final_results(progress.best)
        prefixes = self.prefix_results(progress.best, results["distilled"])
        if prefixes is not None:
            prefix_plot(prefixes, folder / files.PREFIXES)
        shown = {
            "picture": files.PICTURE, "curves": files.CURVES, "windows": files.WINDOWS, "matching": files.MATCHING,
            "prefixes": files.PREFIXES, "distilled set": files.SET,
        }  # fmt: skip
        summary = Summary(
            dataset=c.dataset_label,
            policy=c.method(self.parts.provenance),
            seed=c.seed,
            epochs=epochs,
            outer_steps=progress.step,
            best_epoch=progress.best.epoch,
            select=c.select,
            results=results,
            seconds=clock.seconds,
            processes=self.comm.size,
            execution=str(self.parts.loop.execution),
            gave_up=progress.epoch if progress.epoch < epochs else None,
            prefixes=prefixes,
            files={what: str(folder / name) for what, name in shown.items() if (folder / name).exists()},
            **environment(self.device),
        )
        write_json(folder / files.SUMMARY, dataclasses.asdict(summary))
        return summary

    def _bar(self, text: str, total: int) -> "tqdm[Any]":
        self.bar = tqdm(
            total=total, desc=text, unit="inner step", leave=False, dynamic_ncols=True, disable=not self.comm.main
        )
        return self.bar

    def _tick(self, steps: int) -> None:
        if self.bar is not None:
            self.bar.update(steps)
        self.check()


def select_best(best: Best | None, entry: Entry, snapshot: Snapshot) -> Best:
    """The better of the best snapshot so far and this one; the earlier among equals.

    A set that has grown takes the place of a smaller one: what is selected are all blocks that the run has come to.
    """
    same_size = best is not None and len(best.images) == len(snapshot.images)
    if best is not None and same_size and not entry.accuracy > best.accuracy:
        return best
    facts = (entry.epoch, entry.split, entry.best_length, entry.accuracy)
    return Best(*facts, snapshot.images, snapshot.labels, entry.form, snapshot.step_size)
