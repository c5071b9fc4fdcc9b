"""Whose classes a set's labels are of: matched with the data's by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import TINY, refused
from sets import made_up

from framework import load_distilled
from framework.distilled import labels
from framework.distilled.formats import write_safetensors
from framework.errors import UserError
from framework.run import checkpoint

EVALUATE = ["--num_train_eval", "1", "--eval_steps", "3", "--device", "cpu"]


def test_classes_are_matched_by_name() -> None:
    ours = made_up(soft=True)
    names = ours.class_names
    moved = labels.with_classes_of(ours, (names[2], names[0], names[1]))
    assert torch.equal(moved.images, ours.images[[4, 5, 0, 1, 2, 3]])
    assert torch.equal(moved.labels, ours.labels[[4, 5, 0, 1, 2, 3]][:, [2, 0, 1]])
    assert labels.with_classes_of(ours, names) is ours


@pytest.mark.parametrize("data", [("cat", "dog", "barn_owl"), ("cat", "dog", "owl", "barn_owl")])
def test_other_classes_are_listed(data: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="barn_owl"):
        labels.match_classes(("cat", "dog", "owl"), data, "set")


def test_evaluate_refuses_a_set_of_other_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = load_distilled(run)
    other = replace(ours, class_names=("naught", *ours.class_names[1:]))
    write_safetensors(other.stored(), tmp_path / "other.safetensors")
    assert "'naught'" in refused(["evaluate", str(tmp_path / "other.safetensors"), *EVALUATE], capsys)
    assert not list(tmp_path.glob("*.evaluation"))


def test_resume_refuses_data_of_other_classes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.glob("*.pt"):
        state = checkpoint.load(path)
        if "class_names" in state:
            checkpoint.save(path, {**state, "class_names": ["naught", *state["class_names"][1:]]})
    flags = [*TINY, "--epochs", "2", "--baselines", "random", "full", "--resume", "--save_dir", str(run)]
    line = refused(flags, capsys)
    assert "--resume" in line and "'naught'" in line
