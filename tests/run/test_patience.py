"""A run that ends where evaluations are no better: ``--patience``."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import TINY, difference, refused, state_of

from framework.evaluation.selection import Assessor, select_best
from framework.outer.method import Snapshot
from framework.records import Entry, Scores
from framework.report.folder import RunFolder
from framework.run.progress import Progress
from main import main

FLAGS = [*TINY, "--batch_size", "1200", "--epochs", "9", "--eval_steps", "2", "--num_train_eval", "1"]
ACCURACIES = (0.3, 0.5, 0.5, 0.4, 0.6, 0.1, 0.6, 0.2, 0.9)  # of each epoch

SCORES = Scores(0.5, None, 0.9, None, 0.1, None, 1.0, None)
SNAPSHOT = Snapshot(torch.zeros(1), torch.zeros(1))


def noted(*evaluations: tuple[int, str, float]) -> Progress:
    """After evaluations, each an epoch, the form of the set and its accuracy."""
    progress = Progress(0)
    for epoch, form, accuracy in evaluations:
        entry = Entry(epoch, "val", [1], [SCORES], 1, accuracy, form)
        progress.history.append(entry)
        progress.best = select_best(progress.best, entry, SNAPSHOT)
    return progress


def test_fruitless_evaluations_are_counted() -> None:
    assert noted().fruitless == 0
    counts = [noted(*((e, "", a) for e, a in enumerate(ACCURACIES[:n], 1))).fruitless for n in range(1, 10)]
    assert counts == [0, 0, 1, 2, 0, 1, 2, 3, 0]
    assert [noted((1, "", 0.5), (2, "", 0.5)).gave_up(patience) for patience in (0, 1, 2)] == [False, True, False]


def test_all_forms_of_a_set_are_one_evaluation() -> None:
    first = [(5, "", 0.2), (5, "average", 0.4)]
    assert noted(*first).fruitless == 0
    assert noted(*first, (10, "", 0.3), (10, "average", 0.4)).fruitless == 1
    assert noted(*first, (10, "", 0.5), (10, "average", 0.4)).fruitless == 0


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations have the accuracies of ``ACCURACIES``."""
    evaluate = Assessor.evaluate

    def scripted(self: Assessor, epoch: int, form: str, snapshot: Snapshot) -> Entry:
        return replace(evaluate(self, epoch, form, snapshot), accuracy=ACCURACIES[epoch - 1])

    monkeypatch.setattr(Assessor, "evaluate", scripted)


@pytest.mark.usefixtures("scripted")
def test_a_run_ends_by_patience_and_goes_on_with_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert main([*FLAGS, "--patience", "2", "--save_dir", str(stopped)]) == 0
    said = capsys.readouterr()
    assert "--patience 2: 2 evaluation(s) in a row were no better; ending after epoch 4 of 9" in said.err
    assert "Ended by --patience after epoch 4 of 9.\n" in said.out
    summary = RunFolder(stopped).summary
    assert summary is not None
    assert (summary.gave_up, summary.best_epoch, summary.epochs, summary.outer_steps) == (4, 2, 9, 4)
    assert (stopped / "distilled.safetensors").exists() and (stopped / "accuracy.png").exists()
    assert RunFolder(stopped).facts["selected"] == "epoch 2 of 4, on val; ended by --patience, 9 epochs were asked for"
    # Resumed as it was, it has nothing to do; with more patience, it goes on as if it had had that from the start.
    before = (stopped / "summary.json").stat().st_mtime_ns
    assert main([*FLAGS, "--patience", "2", "--save_dir", str(stopped), "--resume"]) == 0
    assert (stopped / "summary.json").stat().st_mtime_ns == before
    assert main([*FLAGS, "--patience", "3", "--save_dir", str(stopped), "--resume"]) == 0
    assert main([*FLAGS, "--patience", "3", "--save_dir", str(whole)]) == 0
    assert difference(state_of(stopped), state_of(whole)) is None
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (stopped, whole)]
    assert [(s["gave_up"], s["best_epoch"], s["results"]["distilled"]["top1"]) for s in summaries] == 2 * [
        (8, 5, summaries[0]["results"]["distilled"]["top1"])
    ]


@pytest.mark.usefixtures("scripted")
def test_with_enough_patience_a_run_goes_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLAGS, "--patience", "4", "--save_dir", str(tmp_path)]) == 0
    summary = RunFolder(tmp_path).summary
    assert summary is not None and (summary.gave_up, summary.best_epoch) == (None, 9)
    assert "--patience" not in "".join(capsys.readouterr())
    assert "--patience -1: give a value of at least 0" in refused(["--patience", "-1"], capsys)
