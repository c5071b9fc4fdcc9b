"""The study of boosting: which runs it makes, its table and picture, and that it continues."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from cli import TINY
from studies import StudyHere

import boosting_study
from boosting_study import Study, collect, subset_file, table
from framework.config.bptt import parse
from framework.distilled.load import load_distilled
from framework.errors import UserError
from framework.report.folder import RunFolder

COMMON = [*TINY, "--num_train_eval", "1", "--eval_steps", "3", "--test_freq", "9", "--batch_per_class", "5"]


def of(out: Path, seeds: list[int] | None = None) -> Study:
    return Study(out, 1, 0.0, [1, 2], 1, seeds or [0], 2, COMMON)


def test_direct_runs_take_as_many_outer_steps_as_their_prefix(tmp_path: Path) -> None:
    s = Study(tmp_path, 2, 0.5, [2, 6], 3, [0, 1], 2, COMMON)
    assert [(job.variant, job.seed) for job in s.jobs] == [
        (name, seed) for seed in (0, 1) for name in ("boosted_block2_beta0.5", "direct_2", "direct_6")
    ]
    boosted, two, six = (parse(job.flags)[0] for job in s.jobs[:3])
    assert (boosted.block_epochs, boosted.boost_beta, boosted.batch_per_class) == ((3, 3, 3), 0.5, 5)
    assert (two.total_epochs, six.total_epochs) == (3, 9)
    assert (two.batch_per_class, six.batch_per_class) == (2, 5)


def test_a_study_is_made_continued_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    words = ["--out", str(out), "--sizes", "2", "1", "--block_epochs", "1", "--seeds", "0", "--draws", "2"]
    run = StudyHere(boosting_study, words, COMMON, capsys)
    with run.ready():
        assert "7 runs and subsets are not finished" in run("--minutes", "0")
        assert "not finished" not in run()
        assert len(run.started) == 3
        run()
        assert len(run.started) == 3, "finished runs are not touched"
    results = json.loads((out / "results.json").read_text())
    boosted, one = (RunFolder(out / name / "seed0").summary for name in ("boosted_block1_beta0", "direct_1"))
    assert boosted is not None and boosted.prefixes is not None
    assert one is not None
    first = results["sizes"]["1"]
    assert first["boosted"]["per seed"] == [boosted.prefixes["1"].top1]
    assert first["direct"]["per seed"] == [one.results["distilled"].top1]
    assert first["real"]["per seed"] == [one.results["random"].top1]
    assert results["outer steps"]["boosted_block1_beta0"] == results["outer steps"]["direct_2"] == 8
    scores = [json.loads(subset_file(of(out), 1, 0, draw).read_text()) for draw in (0, 1)]
    tops = [score["results"]["convnet"]["distilled"]["top1"] for score in scores]
    assert first["subset"]["mean"] == pytest.approx(100 * sum(tops) / 2)
    assert (out / "results.png").stat().st_size > 0
    assert (out / "results.md").read_text().startswith("| images per class | boosted, its first images |")
    # Two seeds are asked for, and one of them is there.
    more = collect(of(out, [0, 1]))
    assert more["sizes"]["2"]["direct"]["n"] == 1
    assert "| 2 |" in table(more)
    # Subsets are parts of the unboosted set.
    whole = load_distilled(out / "direct_2" / "seed0")
    part = whole.subset(torch.tensor([1]))
    assert torch.equal(part.images, whole.images[1::2])


def test_sizes_are_whole_blocks(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--block", "2", "--sizes", "2", "3", "--block_epochs", "1"]
    with patch.object(sys, "argv", ["boosting_study.py", *words]), pytest.raises(UserError, match="--sizes 3: no mult"):
        boosting_study.main()
