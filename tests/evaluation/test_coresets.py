"""Coresets against brute force on about fifty points, and as rows of ``main.py evaluate``."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cli import refused
from loading import loaded
from problems import CPU
from torch import Tensor

from framework import load_distilled
from framework.data.preprocess import Standardise
from framework.data.splits import RealData, Split
from framework.distilled.formats import write_safetensors
from framework.evaluation.coresets import (
    EL2N_NETWORKS,
    choose,
    early_errors,
    early_steps,
    error_norms,
    greedy_k_centre,
    herding,
    smallest,
)
from framework.evaluation.evaluator import Evaluator
from framework.evaluation.teacher import Pupil, Teacher
from framework.inner.counts import Counts
from framework.inner.loop import InnerLoop
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build, specify
from framework.rng import generator
from main import main

Points = npt.NDArray[np.float64]
POINTS, CHOSEN = 50, 12


def points(seed: int, count: int = POINTS) -> Tensor:
    """Two clusters and an outlier, positive as features after a ReLU are."""
    gen = generator(seed, "points")
    x = torch.randn(count, 4, generator=gen, dtype=torch.float64)
    x[: count // 2] += 3
    x[-1] *= 5
    return x.abs()


# ---- brute force -----------------------------------------------------------------------------------


def radius(x: Points, centres: tuple[int, ...]) -> float:
    """How far the farthest point is from its nearest centre."""
    return max(min(math.dist(point, x[c]) for c in centres) for point in x)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_k_centre_takes_the_farthest_point_each_time(seed: int) -> None:
    x = points(seed)
    found, own = greedy_k_centre(x, CHOSEN).tolist(), x.numpy()
    mean = own.mean(0)
    expected = [min(range(POINTS), key=lambda i: math.dist(own[i], mean))]
    while len(expected) < CHOSEN:
        expected.append(max(range(POINTS), key=lambda i: min(math.dist(own[i], own[c]) for c in expected)))
    assert found == expected


@pytest.mark.parametrize("seed", range(3))
def test_greedy_k_centre_is_within_twice_the_best_radius(seed: int) -> None:
    x = points(seed, 16)
    best = min(radius(x.numpy(), centres) for centres in itertools.combinations(range(16), 3))
    assert radius(x.numpy(), tuple(greedy_k_centre(x, 3).tolist())) <= 2 * best


@pytest.mark.parametrize("seed", range(4))
def test_herding_brings_the_mean_as_near_as_one_more_point_can(seed: int) -> None:
    x = points(seed)
    found = herding(x, CHOSEN).tolist()
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    mean, expected = unit.mean(0), []
    for _ in range(CHOSEN):
        rest = [i for i in range(POINTS) if i not in expected]
        expected.append(min(rest, key=lambda i: math.dist(unit[[*expected, i]].mean(0), mean)))
    assert found == expected


def test_no_point_is_chosen_twice_and_all_can_be() -> None:
    twins = torch.ones(6, 3)
    twins[4:] = 2
    for choice in (greedy_k_centre(twins, 6), herding(twins, 6), smallest(torch.ones(6), 6)):
        assert sorted(choice.tolist()) == list(range(6))


def test_errors_are_those_of_the_paper_and_the_smallest_are_kept() -> None:
    gen = generator(0, "el2n")
    logits = 2 * torch.randn(POINTS, 5, generator=gen, dtype=torch.float64)
    labels = torch.randint(5, (POINTS,), generator=gen)
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(map(math.exp, row))
        expected.append(math.dist([math.exp(z) / total for z in row], [float(k == label) for k in range(5)]))
    scores = error_norms(logits, labels)
    assert scores.tolist() == pytest.approx(expected, rel=1e-12)
    assert smallest(scores, CHOSEN).tolist() == sorted(range(POINTS), key=lambda i: expected[i])[:CHOSEN]


# ---- of real data ----------------------------------------------------------------------------------


@pytest.fixture
def real() -> RealData:
    """Fifty images of two unequal classes."""
    gen = generator(0, "real")
    train = Split(torch.randn(50, 1, 8, 8, generator=gen), (torch.arange(50) % 5 == 0).long())
    return RealData("digits", ("a", "b"), train, None, train, Standardise(torch.zeros(1), torch.ones(1)))


@pytest.fixture
def teacher() -> Teacher:
    about = {"width": 4, "depth": 1}
    network = FlatNetwork(build("convnet", 1, 8, 2, **about), CPU)
    pupil = Pupil("convnet", specify("convnet", 1, 8, 2, **about), network, 40)
    return Teacher(pupil, network.init(generator(1)), 0.5)


def test_coresets_are_chosen_within_each_class_by_what_the_teacher_sees(real: RealData, teacher: Teacher) -> None:
    module = build("convnet", 1, 8, 2, width=4, depth=1).eval()
    torch.nn.utils.vector_to_parameters(teacher.theta, module.parameters())
    with torch.no_grad():
        features = module.embed(real.train.images)
    for name, rule in (("kcentre", greedy_k_centre), ("herding", herding)):
        found = choose(name, teacher, real, Counts((4, 3)), lambda steps: None)
        assert list(map(len, found)) == [4, 3]
        for k, row in enumerate(found):
            members = (real.train.labels == k).nonzero().flatten()
            assert row.tolist() == members[rule(features[members], len(row))].tolist()
        fewer = choose(name, teacher, real, Counts((2, 2)), lambda steps: None)
        assert [row[:2].tolist() for row in found] == [row.tolist() for row in fewer]


def test_early_errors_are_a_mean_over_networks_early_in_training(real: RealData, teacher: Teacher) -> None:
    pupil, ticks = teacher.pupil, []
    assert early_steps(pupil) == 4
    found = early_errors(pupil, real, ticks.append)
    assert sum(ticks) == 4 * EL2N_NETWORKS
    total = np.zeros(50)
    judge = Evaluator(InnerLoop(pupil.network, pupil.rule), 0)
    for i in range(EL2N_NETWORKS):
        (theta,) = judge.thetas(pupil.training_set(real), (4,), "el2n", i)
        with torch.no_grad():
            shares = pupil.network(theta, real.train.images).softmax(1).numpy()
        total += [math.dist(row, np.eye(2)[k]) for row, k in zip(shares, real.train.labels, strict=True)]
    assert found.tolist() == pytest.approx((total / EL2N_NETWORKS).tolist(), abs=1e-6)
    picked = choose("el2n", teacher, real, Counts((3, 2)), lambda steps: None)
    for k, (row, number) in enumerate(zip(picked, (3, 2), strict=True)):
        members = [i for i in range(50) if real.train.labels[i] == k]
        assert row.tolist() == sorted(members, key=lambda i: found[i])[:number]


# ---- as rows ---------------------------------------------------------------------------------------

BUDGET = ["--num_train_eval", "2", "--eval_steps", "3", "--device", "cpu", "--teacher_steps", "10"]


def test_every_baseline_is_a_row_of_as_many_images(run: Path, tmp_path: Path) -> None:
    """Of a set of two images per class, whose prefixes have the first of them."""
    distilled = load_distilled(run)
    content = distilled.stored(numbers=False)
    for name in ("images", "labels"):
        content.tensors[name] = content.tensors[name].repeat_interleave(2, 0)
    write_safetensors(content, path := tmp_path / "two.safetensors")
    folder = ["--teacher_dir", str(tmp_path / "teachers"), "--output", str(tmp_path / "out")]
    wanted = ["--baselines", "full", "el2n", "kcentre", "random", "herding"]
    assert main(["evaluate", str(path), *BUDGET, *folder, *wanted]) == 0
    rows = json.loads((tmp_path / "out" / "inner.json").read_text())["results"]["convnet"]
    assert list(rows) == ["distilled", "full", "el2n", "kcentre", "random", "herding"]
    assert [row["name"].partition(" ")[0] for row in rows.values()] == ["20", "1,295", *["20"] * 4]
    assert len({row["loss"] for row in rows.values()}) == 6
    for name, row in rows.items():
        pixels = {"distilled": 20 * 32, "full": 1295 * 8}.get(name, 20 * 8) * 64
        assert row["bits_per_class"] == (pixels + {"full": 1295}.get(name, 20) * 4 + 64) / 10
    prefixes = ["--prefix", "1", "2", "--baselines", "herding", "el2n"]
    streamed = ["--data_cache", "disk", "--cache_dir", str(tmp_path / "cache")]
    assert main(["evaluate", str(path), *BUDGET, *folder, *prefixes, *streamed]) == 0
    parts = json.loads((tmp_path / "out" / "inner_prefixes.json").read_text())["results"]["convnet"]
    assert list(parts) == [f"{name} {size}" for size in (1, 2) for name in ("distilled", "herding", "el2n")]
    assert (parts["herding 2"], parts["el2n 2"]) == (rows["herding"], rows["el2n"])


def test_too_few_real_images_for_a_coreset_are_told_before_any_is_decoded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = load_distilled(run).stored(numbers=False)
    most = int(loaded("digits").train.labels.bincount().max())
    for name in ("images", "labels"):
        content.tensors[name] = content.tensors[name].repeat_interleave(most, 0)
    write_safetensors(content, path := tmp_path / "many.safetensors")
    error = refused(["evaluate", str(path), "--device", "cpu", "--baselines", "herding"], capsys)
    assert "--baselines herding: class " in error
    assert error.count("\n") == 1


def test_a_set_without_a_number_of_images_per_class_has_no_such_row(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled = load_distilled(run)
    labels = torch.tensor([0, *range(10)])
    torch.save((distilled.images[labels], labels), path := tmp_path / "uneven.pt")
    flags = ["--dataset", "digits", "--preprocess", "standardise", "--recipe", "dc", "--device", "cpu"]
    error = refused(["evaluate", str(path), *flags, "--baselines", "random"], capsys)
    assert "--baselines random: takes as many real images of each class, and " in error
    assert error.endswith("uneven.pt has 11 of 10 classes; leave it out\n")
    assert error.count("\n") == 1
