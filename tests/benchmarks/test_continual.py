"""The study of continual learning: its tasks, memories and scores, and that it continues."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cli import TINY
from studies import StudyHere

import continual
from continual import Memories, Study, accuracies, collect, joined, load_tasks, table
from framework.assemble.common import data_spec
from framework.config.bptt import parse
from framework.data.load import list_data
from framework.data.splits import Split
from framework.distilled.load import load_distilled
from framework.errors import UserError
from framework.evaluation.evaluator import Evaluator, TrainingSet
from framework.evaluation.scores import Score
from framework.files import write_json

FLAGS = [*TINY, "--num_train_eval", "2", "--eval_steps", "3", "--test_freq", "9", "--epochs", "1"]
FLAGS += ["--batch_per_class", "3"]


def of(out: Path, classes: int = 5, sizes: list[int] | None = None, common: list[str] | None = None) -> Study:
    return Study(out, classes, sizes or [1], 3, [0], common or FLAGS)


def of_tasks(out: Path, classes: int = 5) -> Study:
    s = of(out, classes)
    s.claim()
    return s


def test_tasks_have_each_image_once_where_all_classes_at_once_have_it(tmp_path: Path) -> None:
    s = of_tasks(tmp_path, 2)
    assert [list(task) for task in s.tasks] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    whole = s.listing
    assert whole.val is not None
    parts = {"train": (whole.source.train, whole.train), "val": (whole.source.train, whole.val)}
    parts["test"] = (whole.source.test, torch.arange(len(whole.source.test.labels)))
    files = [np.load(s.task_file(task)) for task in range(5)]
    for name, (part, rows) in parts.items():
        pixels, labels = part.read(rows).squeeze(1), part.labels[rows]
        expected = sorted((int(k), image.numpy().tobytes()) for k, image in zip(labels, pixels, strict=True))
        found = [
            (2 * task + int(k), image.tobytes())
            for task, file in enumerate(files)
            for k, image in zip(file[f"y_{name}"], file[f"x_{name}"][..., 0], strict=True)
        ]
        assert sorted(found) == expected
    listed = list_data(data_spec(parse(s.of_task(1, 1, 0).flags)[0]))
    assert listed.class_names == ("2", "3")
    assert listed.counts.tolist() == whole.counts[2:4].tolist()


def test_classes_of_later_tasks_come_after_those_of_earlier_ones() -> None:
    one = Split(torch.zeros(3, 1, 2, 2), torch.tensor([1, 0, 1]))
    two = Split(torch.ones(2, 1, 2, 2), torch.tensor([1, 0]))
    both = joined([one, two], 2)
    assert both.labels.tolist() == [1, 0, 1, 3, 2]
    assert both.batch(torch.arange(5))[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1]


def test_a_memory_of_real_images_has_n_of_each_class_of_its_task(tmp_path: Path) -> None:
    s = of_tasks(tmp_path)
    tasks = load_tasks(s, torch.device("cpu"))
    with patch.object(continual, "FEATURE_STEPS", 2):
        memories = {kind: Memories(s, tasks, 0).of(kind, 2) for kind in ("random", "herding", "kcentre")}
    for kind, (first, second) in memories.items():
        for t, split in enumerate(first):
            assert split.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
            for image, label in zip(split.images, split.labels, strict=True):
                same = [torch.equal(image, other) for other in tasks[t].train.images[tasks[t].train.labels == label]]
                assert any(same)
            assert len({image.numpy().tobytes() for image in split.images}) == 10
            # Only what is drawn differs between networks.
            assert torch.equal(split.images, second[t].images) == (kind != "random")
    (all_of_it, *_) = Memories(s, tasks, 0).of("full", None)
    assert [len(split) for split in all_of_it] == [int(s.listing.counts[own.start : own.stop].sum()) for own in s.tasks]


def test_networks_learn_from_the_memory_alone_and_are_tested_on_all_classes_seen(tmp_path: Path) -> None:
    s = of_tasks(tmp_path, 2)
    tasks = load_tasks(s, torch.device("cpu"))
    calls: list[tuple[Evaluator, TrainingSet, tuple[int, ...], Split, tuple[str | int, ...]]] = []

    def evaluate(
        self: Evaluator, data: TrainingSet, lengths: tuple[int, ...], split: Split, *key: str | int
    ) -> list[Score]:
        calls.append((self, data, lengths, split, key))
        return [Score(len(calls) / 100, 0, 0, 0)]

    with patch.object(Evaluator, "evaluate", evaluate):
        memories = Memories(s, tasks, 0)
        found = accuracies(s, tasks, memories.of("random", 3), 3, 0)
        keys = [key for *_, key in calls]
        assert found == [[(2 * t + 1) / 100, (2 * t + 2) / 100] for t in range(5)]
        accuracies(s, tasks, memories.of("full", None), None, 0)
    assert [key for *_, key in calls[10:]] == keys, "the same networks whatever the memory"
    assert len(set(keys)) == 10
    whole = s.listing.source.test.labels
    for t, (evaluator, data, lengths, split, _) in enumerate(calls[:10:2], 1):
        assert lengths == (3,)
        assert split.labels.bincount().tolist() == whole.bincount()[: 2 * t].tolist()
        assert data.labels.argmax(1).tolist() == [k for k in range(2 * t) for _ in range(3)]
        assert (
            evaluator.network(evaluator.network.init(torch.Generator()), split.batch(torch.arange(1))).shape[1] == 2 * t
        )
        plan = data.sampler.plan(4, torch.Generator())
        for batch in plan.indices:
            assert data.labels[batch].sum(0).tolist() == [3] * 2 * t


def test_a_study_is_made_continued_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    words = ["--out", str(out), "--sizes", "1", "--classes", "5", "--steps", "3", "--seeds", "0"]
    run = StudyHere(continual, words, FLAGS, capsys)
    with run.ready(), patch.object(continual, "FEATURE_STEPS", 2):
        assert "9 runs and rows are not finished" in run("--minutes", "0")
        assert "not finished" not in run()
        assert run.started == ["task0_1, seed 0", "task1_1, seed 0", "joint_1, seed 0"]
        scores = {file.stem: file.read_text() for file in (out / "scores" / "seed0").iterdir()}
        (out / "scores" / "seed0" / "random_1.json").unlink()
        run()
    assert len(run.started) == 3, "finished runs are not touched"
    assert scores.keys() == {"distilled_1", "random_1", "herding_1", "kcentre_1", "joint_1", "full"}
    assert {file.stem: file.read_text() for file in (out / "scores" / "seed0").iterdir()} == scores
    results = json.loads((out / "results.json").read_text())
    assert results["outer steps"] == {"task0_1": 2, "task1_1": 2, "joint_1": 4}
    for row in results["rows"]:
        name = row["memory"] if row["size"] is None else f"{row['memory']}_{row['size']}"
        after = [100 * sum(networks) / 2 for networks in json.loads(scores[name])]
        assert [column["mean"] for column in row["after each task"]] == pytest.approx(after)
        assert row["mean"]["mean"] == pytest.approx(sum(after) / 2)
    assert (
        (out / "results.md").read_text().startswith("| images per class | memory | 5 classes | 10 classes | mean | n |")
    )
    # Each task's set was standardised by its own images; in the memory all are by the first task's.
    s = of(out)
    tasks = load_tasks(s, torch.device("cpu"))
    (memory, _) = Memories(s, tasks, 0).of("distilled", 1)
    first = tasks[0].preprocess.tensors()
    for task, split in enumerate(memory):
        own = load_distilled(s.of_task(task, 1, 0).folder)
        made = own.preprocess.tensors()
        mean, std, mean_0, std_0 = (
            t["preprocess.standardise." + n].double() for t in (made, first) for n in ("mean", "std")
        )
        expected = (own.images.double() * std + mean - mean_0) / std_0
        assert torch.allclose(split.images.double(), expected, atol=1e-5)
        assert split.labels.tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(load_distilled(s.of_task(1, 1, 0).folder).images, memory[1].images)
    whole = load_distilled(s.joint(1, 0).folder)
    (parts, _) = Memories(s, tasks, 0).of("joint", 1)
    expected = tasks[0].preprocess.of_natural(whole.preprocess.inverse(whole.images, clip=False))
    assert torch.equal(torch.cat([part.images for part in parts]), expected)


def test_the_table_is_over_the_seeds_that_are_there(tmp_path: Path) -> None:
    s = Study(tmp_path, 5, [1], 3, [0, 1, 2], FLAGS)
    for seed, values in ((0, [[0.5, 0.7], [0.2, 0.4]]), (2, [[0.8, 0.8], [0.5, 0.5]])):
        file = s.score_file("random", 1, seed)
        file.parent.mkdir(parents=True)
        write_json(file, values)
    (row,) = collect(s)["rows"]
    assert row["per seed"] == {0: pytest.approx([0.6, 0.3]), 2: pytest.approx([0.8, 0.5])}
    assert "| 1 | random real images | 70.00 ± 14.14 | 40.00 ± 14.14 | 55.00 ± 14.14 | 2 |" in table(collect(s))


@pytest.mark.parametrize(
    ("study_of", "message"),
    [
        ({"classes": 3}, "--classes 3: does not divide the 10 classes of digits"),
        ({"sizes": [1, 500]}, "--sizes: class 0 has only"),
        ({"common": [*FLAGS, "--zca"]}, "--zca: a memory is of standardised images"),
        ({"common": [*FLAGS, "--train_y"]}, "--train_y: a memory is of standardised images"),
    ],
)
def test_what_does_not_go_is_one_line(study_of: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        of(tmp_path, **study_of).check()  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_of_one_study(tmp_path: Path) -> None:
    of_tasks(tmp_path)
    of(tmp_path, sizes=[1, 2]).claim()
    with pytest.raises(UserError, match="holds a study of other flags"):
        of(tmp_path, classes=2).claim()
