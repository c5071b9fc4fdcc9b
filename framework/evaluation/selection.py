"""Judging a run: periodic evaluation, the selected snapshot and its files, the final table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from framework import files
from framework.assemble import Parts
from framework.config import Config
from framework.distilled.pictures import image_grid, natural_images
from framework.evaluation.baselines import BASELINES
from framework.evaluation.evaluator import Candidate, Evaluator, TrainingSet
from framework.evaluation.scores import Evaluation
from framework.files import write_text
from framework.machine import environment
from framework.report.folder import read_summary
from framework.run import checkpoint
from framework.run.checkpoint import save_tensors
from framework.run.distributed import Comm
from framework.run.progress import Progress


class Assessor:
    """Evaluates synthetic sets of one run.

    Args:
        config: the run's flags.
        comm: networks are shared out among its ranks.
        parts: what the run is made of.
        check: called between inner steps; may raise to stop.
    """

    def __init__(self, config: Config, comm: Comm, parts: Parts, check: Callable[[], None]) -> None:
        self.config, self.comm, self.parts, self.check = config, comm, parts, check
        self.device = parts.network.device
        self.evaluator = Evaluator(parts.loop.for_evaluation(), config.seed, tick=self._tick)
        self.bar: tqdm[Any] | None = None

    def evaluate(self, epoch: int) -> dict[str, Any]:
        """Train ``--num_train_eval`` fresh networks on the current set and score them on the selection split.

        Returns:
            An entry of the run's history: ``epoch``, ``split``, ``lengths``, ``scores`` at each length,
            the ``best_length`` and the ``accuracy`` there.
        """
        c, s = self.config, self.parts.set
        current = TrainingSet(s.images.detach(), s.labels.detach(), self.parts.sampler)
        mine = range(self.comm.rank, c.num_train_eval, self.comm.size)
        with self._bar(f"evaluating epoch {epoch}", len(mine) * c.eval_steps[-1]):
            rows = [
                self.evaluator.evaluate(current, c.eval_steps, self.parts.selection, "epoch", epoch, i) for i in mine
            ]
        evaluation = Evaluation(c.eval_steps, [row for part in self.comm.gather(rows) for row in part])
        chosen = evaluation.best_length()
        return {
            "epoch": epoch,
            "split": c.select,
            "lengths": list(c.eval_steps),
            "scores": [evaluation.summary(length) for length in c.eval_steps],
            "best_length": chosen,
            "accuracy": evaluation.mean(chosen),
        }

    def export(self, best: dict[str, Any], folder: Path) -> None:
        """Write the selected snapshot as a checkpoint, as safetensors and as a picture."""
        c = self.config
        checkpoint.save(folder / files.BEST, {"config": c.to_json(), **best})
        provenance = {key: value for key, value in best.items() if not isinstance(value, Tensor)}
        provenance |= {"dataset": c.dataset, "config": json.loads(c.to_json()), **environment(self.device)}
        save_tensors(
            folder / files.SET,
            {"images": best["images"], "labels": best["labels"], **self.parts.real.preprocess.tensors()},
            {"class_names": json.dumps(self.parts.real.class_names), "provenance": json.dumps(provenance)},
        )
        labels = best["labels"] if c.train_y else None
        image_grid(self.pictures(best["images"]), self.parts.real.class_names, folder / files.PICTURE, labels)

    def pictures(self, images: Tensor) -> Tensor:
        """Distilled images as a person would see them; see ``natural_images``."""
        train = self.parts.real.train
        contrast = float(train.batch(torch.arange(min(1000, len(train)))).std())
        return natural_images(images.detach().to(self.device), self.parts.real.preprocess, contrast)

    def final_results(self, best: dict[str, Any]) -> dict[str, Any]:
        """The final table's rows: the selected snapshot and the baselines, on the test set.

        The snapshot's training length was selected with it; a baseline's is chosen on the same split.
        """
        c, parts = self.config, self.parts
        images, labels = (best[name].to(self.device) for name in ("images", "labels"))
        distilled = [TrainingSet(images, labels, parts.sampler)] * c.num_train_eval
        rows = {"distilled": Candidate("distilled images", distilled, (best["best_length"],))}
        for key in c.baselines:
            rows[key] = BASELINES[key](parts.real, parts.sampler, c.num_train_eval, c.eval_steps, c.seed)
        results = {}
        with self._bar("final table", sum(len(row.sets) * row.lengths[-1] for row in rows.values())):
            for key, row in rows.items():
                length, scores = self.evaluator.select_and_test(row, parts.selection, parts.real.test, "final", key)
                name = f"{len(row.sets[0].images):,} {row.name}"
                results[key] = {"name": name, "networks": len(row.sets), "steps": length, **scores.summary(length)}
        return results

    def summarise(self, folder: Path, progress: Progress, seconds: Callable[[], float]) -> dict[str, Any]:
        """``summary.json``: made once, by the only use of the test set."""
        c, path = self.config, folder / files.SUMMARY
        summary = read_summary(path)
        if summary.get("epochs") == c.epochs and {"distilled", *c.baselines} <= summary["results"].keys():
            return summary
        assert progress.best is not None, "the last epoch is always evaluated"
        results = self.final_results(progress.best)
        summary = {
            "dataset": c.dataset,
            "policy": c.policy,
            "seed": c.seed,
            "epochs": c.epochs,
            "outer_steps": progress.step,
            "best_epoch": progress.best["epoch"],
            "select": c.select,
            "results": results,
            "seconds": seconds(),
            "processes": self.comm.size,
            "execution": str(self.parts.loop.execution),
            **environment(self.device),
            "files": {
                "picture": str(folder / files.PICTURE),
                "curves": str(folder / files.CURVES),
                "windows": str(folder / files.WINDOWS),
                "distilled set": str(folder / files.SET),
            },
        }
        write_text(path, json.dumps(summary, indent=2) + "\n")
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


def select_best(
    best: dict[str, Any] | None, entry: dict[str, Any], snapshot: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """The better of the best snapshot so far and this one; the earlier among equals."""
    if best is not None and entry["accuracy"] <= best["accuracy"]:
        return best
    return {key: entry[key] for key in ("epoch", "split", "best_length", "accuracy")} | snapshot
