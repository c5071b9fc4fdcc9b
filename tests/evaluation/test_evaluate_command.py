"""``main.py evaluate``: recipes against PyTorch, sets of other programs, the table."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cli import ROOT, TINY, refused
from loading import loaded
from PIL import Image
from problems import CPU
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from framework import load_distilled
from framework.config.bptt import FLAGS, Config
from framework.config.common import parse_as
from framework.config.matching import FtdConfig
from framework.data.digits import read_digits
from framework.data.preprocess import Standardise, Zca, ZcaPixels
from framework.data.splits import RealData
from framework.distilled.foreign import Target, from_foreign, preprocessed
from framework.distilled.formats import write_safetensors
from framework.distilled.load import open_stored
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation import judge
from framework.evaluation.evaluator import Evaluator, TrainingSet
from framework.evaluation.recipes import DecayedSGD, EpochSampler, make_recipe, matching_recipe
from framework.evaluation.scores import score
from framework.inner.augment import Augmentation, CondensationAugmentation
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import SGD, Adam, State
from framework.inner.plan import UniformSampler
from framework.networks.flat import FlatNetwork
from framework.records import Judgement, Row
from framework.report.tables import percent, top1_rows
from framework.rng import generator
from main import main

EVALUATE = ["--num_train_eval", "2", "--eval_steps", "3", "6", "--device", "cpu"]


def evaluated(path: Path, *arguments: str, output: Path | None = None) -> dict[str, Any]:
    """Run the command and read its JSON."""
    folder = output or (path / "evaluation" if path.is_dir() else Path(f"{path}.evaluation"))
    assert main(["evaluate", str(path), *arguments, *(["--output", str(output)] if output else [])]) == 0
    name = arguments[arguments.index("--recipe") + 1] if "--recipe" in arguments else "inner"
    return json.loads((folder / f"{name}.json").read_text())


# ---- recipes ---------------------------------------------------------------------------------------


def test_the_decaying_sgd_is_pytorchs_with_a_new_optimiser_at_the_decay() -> None:
    """Dataset condensation's ``evaluate_synset``, in float64."""
    gen = generator(0, "sgd")
    start = torch.randn(7, generator=gen, dtype=torch.float64)
    gradients = torch.randn(9, 7, generator=gen, dtype=torch.float64)
    state = State.fresh(start)
    parameter = torch.nn.Parameter(start.clone())
    options = {"momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD([parameter], lr=0.01, **options)
    for t, gradient in enumerate(gradients):
        if t == 4:
            optimizer = torch.optim.SGD([parameter], lr=0.001, **options)
        parameter.grad = gradient.clone()
        optimizer.step()
        state = DecayedSGD(0.01, decay_at=4).step(state, gradient)
        assert torch.allclose(state.theta, parameter.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("size", "batches", "batch"), [(10, 1, 10), (500, 2, 250), (7, 2, 3)])
def test_an_epoch_draws_every_image_once(size: int, batches: int, batch: int) -> None:
    plan = EpochSampler(size, batches, Augmentation("none", False, 8)).plan(5 * batches - 1, generator(0))
    assert plan.indices.shape == (5 * batches - 1, batch)
    for epoch in range(4):
        drawn = plan.indices[epoch * batches : (epoch + 1) * batches].flatten()
        assert len(drawn.unique()) == len(drawn) == batches * batch
    assert not torch.equal(plan.indices[0], plan.indices[batches])
    assert plan.indices.unique().numel() == size


@pytest.mark.parametrize(("ipc", "steps", "decay", "batch"), [(1, 1001, 502, 10), (50, 2002, 1004, 250)])
def test_the_dc_recipe_has_the_published_numbers(
    ipc: int, steps: int, decay: int, batch: int, finished_run: Path
) -> None:
    few = load_distilled(finished_run)
    distilled = replace(few, images=few.images.repeat(ipc, 1, 1, 1), labels=few.labels.repeat(ipc, 1))
    recipe = make_recipe("dc", distilled, None)
    assert recipe.rule == DecayedSGD(0.01, 0.9, 5e-4, decay_at=decay)
    assert recipe.lengths == (steps,)
    plan = recipe.sampler.plan(3, generator(0))
    assert plan.indices.shape == (3, batch)
    assert recipe.sampler.augmentation.operations == ("color", "crop", "cutout", "scale", "rotate")  # digits
    cifar = replace(distilled, config=replace(distilled.config, dataset="cifar10"))
    assert "flip" in make_recipe("dc", cifar, None).sampler.augmentation.operations
    assert make_recipe("dc", cifar, (40,)).rule == DecayedSGD(0.01, decay_at=20)


@pytest.mark.parametrize(("flags", "augmentation"), [("", Augmentation), ("--dsa False", CondensationAugmentation)])
def test_networks_of_trajectory_matching_are_augmented_as_its_experts_are(flags: str, augmentation: type) -> None:
    c = parse_as(["--dataset", "cifar10", *flags.split()], FtdConfig)[0]
    sampler = matching_recipe(c, 10, 32, 0.01).sampler
    assert isinstance(sampler, EpochSampler)
    assert isinstance(sampler.augmentation, augmentation)


def test_inner_and_papers_are_the_runs_own_recipe(finished_run: Path) -> None:
    distilled = load_distilled(finished_run)
    inner, papers = (make_recipe(name, distilled, None) for name in ("inner", "papers"))
    assert inner.rule == papers.rule == Adam(0.01)
    assert inner.sampler == papers.sampler == distilled.sampler
    assert inner.lengths == (4, 8)
    assert papers.lengths == (300, 600, 1000, 3000)
    sgd = replace(distilled, config=replace(distilled.config, inner_optim="SGD", inner_lr=0.1))
    assert make_recipe("inner", sgd, (5,)).rule == SGD(0.1)
    rooted = replace(distilled, config=replace(distilled.config, inner_eps_root=1e-6))
    for name, rule in (("inner", Adam(0.01, eps_root=1e-6)), ("papers", Adam(0.01, eps_root=1e-6))):
        assert make_recipe(name, rooted, None).rule == rule
        assert "Adam 0.01, eps_root 1e-06;" in make_recipe(name, rooted, None).text
    assert make_recipe("dc", rooted, None).rule == make_recipe("dc", distilled, None).rule


# ---- a run of ours ---------------------------------------------------------------------------------


def test_the_row_of_the_distilled_set_is_what_an_evaluator_finds(run: Path) -> None:
    found = evaluated(run, *EVALUATE, "--seed", "3")
    distilled = load_distilled(run)
    c = distilled.config
    real = loaded(c.dataset, Path(c.root), val_fraction=c.val_fraction)
    network = FlatNetwork(distilled.network(), CPU)
    judge, own = (
        Evaluator(InnerLoop(network, Adam(0.01)), 3),
        TrainingSet(distilled.images, distilled.labels, distilled.sampler),
    )
    thetas = [list(judge.thetas(own, (3, 6), "evaluate", "inner", "convnet", "distilled", i)) for i in range(2)]
    val = [np.mean([score(network, row[at], real.val).top1 for row in thetas]) for at in range(2)]
    at = int(val[1] > val[0])
    test = [score(network, row[at], real.test).top1 for row in thetas]
    row = found["results"]["convnet"]["distilled"]
    assert row["steps"] == (3, 6)[at]
    assert row["top1"] == pytest.approx(np.mean(test), abs=1e-12)
    assert row["top1_std"] == pytest.approx(np.std(test, ddof=1), abs=1e-12)
    assert (found["dataset"], found["select"], row["networks"]) == ("digits", "val", 2)


@pytest.mark.parametrize("recipe", ["inner", "dc"])
def test_rows_and_networks_do_not_disturb_each_other(recipe: str, run: Path, tmp_path: Path) -> None:
    steps = ["--eval_steps", "4", "--num_train_eval", "2", "--recipe", recipe]
    alone = evaluated(run, *steps)
    others = ["--eval_arch", *FLAGS["arch"].choices[:1], "--baselines", "random", "full"]
    both = evaluated(run, *steps, *others, output=tmp_path / "both")
    assert both["results"]["convnet"]["distilled"] == alone["results"]["convnet"]["distilled"]
    assert both["results"]["convnet"].keys() == {"distilled", "random", "full"}
    names = [row["name"] for row in both["results"]["convnet"].values()]
    assert names[0] == "10 distilled images"
    assert names[1].startswith("10 random real images")
    assert names[2].startswith("1,295 real images")


def test_another_network_is_built_with_its_own_settings(run: Path) -> None:
    distilled = load_distilled(run)
    own = judge.build("convnet", distilled, 7, CPU)
    assert own.size == sum(p.numel() for p in distilled.network().parameters())
    elsewhere = replace(distilled, config=replace(distilled.config, arch="convnet4"))
    other = judge.build("convnet", elsewhere, 7, CPU)
    assert other.module.classifier.in_features == 7  # 8 pixels, three blocks
    with pytest.raises(UserError, match="--eval_arch convnet4: .* leave it out"):
        judge.build("convnet4", distilled, None, CPU)


def test_table_json_and_tensorboard_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run, *EVALUATE, "--baselines", "random")
    printed, text = capsys.readouterr().out, (run / "evaluation" / "inner.md").read_text()
    assert text.strip() in printed
    events = EventAccumulator(str(run / "evaluation" / "tensorboard" / "inner")).Reload()
    for key, row in found["results"]["convnet"].items():
        assert f"| {row['name']} | {percent(row['top1'], row['top1_std'])} |" in text
        (event,) = events.Scalars(f"convnet/{key}/top1")
        assert event.step == row["steps"]
        assert event.value == pytest.approx(row["top1"], abs=1e-7)


def test_the_table_has_a_column_for_every_network() -> None:
    def row(name: str, top1: float) -> Row:
        return Row(top1, 0.01, top1, 0.01, top1, 0.01, top1, 0.01, name=name, networks=5, steps=9)

    results = {arch: {"a": row("A", x), "b": row("B", x / 2)} for arch, x in (("convnet", 0.6), ("vgg11", 0.4))}
    header, rows = top1_rows(
        Judgement("", "digits", "inner", "", [9], "val", 0, results, 1.0, "cpu", "2", "3", 1.0),
    )
    assert header == ["top-1 %, trained on", "convnet", "vgg11"]
    assert rows == [["A", "60.0 ± 1.0", "40.0 ± 1.0"], ["B", "30.0 ± 1.0", "20.0 ± 1.0"]]


def test_a_run_that_selected_on_the_test_set_stays_marked(tmp_path: Path) -> None:
    folder = tmp_path / "optimistic"
    assert main([*TINY, "--epochs", "1", "--select", "test", "--save_dir", str(folder)]) == 0
    found = evaluated(folder, *EVALUATE)
    assert found["select"] == "test"
    assert "ON THE TEST SET" in (folder / "evaluation" / "inner.md").read_text()


# ---- sets of other programs ------------------------------------------------------------------------

FOREIGN = ["--dataset", "digits", "--preprocess", "standardise"]


@pytest.fixture(scope="module")
def digits() -> RealData:
    return loaded("digits")


def shuffled(distilled: Distilled) -> tuple[Tensor, Tensor]:
    """Images and class numbers in another order than by class."""
    order = torch.randperm(len(distilled.images), generator=generator(0, "shuffle"))
    return distilled.images[order], distilled.hard_labels[order]


def as_pair(images: Tensor, labels: Tensor, path: Path) -> Path:
    torch.save((images, labels), path / "set.pt")
    return path / "set.pt"


def as_dictionary(images: Tensor, labels: Tensor, path: Path) -> Path:
    torch.save({"data": images, "label": labels, "accuracy": 0.5}, path / "set.pt")
    return path / "set.pt"


def as_condensation(images: Tensor, labels: Tensor, path: Path) -> Path:
    torch.save({"data": [[images * 0, labels], [images, labels]], "accs_all_exps": {}}, path / "set.pt")
    return path / "set.pt"


def as_h5(images: Tensor, labels: Tensor, path: Path) -> Path:
    with h5py.File(path / "set.h5", "w") as file:
        file["data"], file["label"] = images.numpy(), labels.numpy().astype(np.float32)
    return path / "set.h5"


def as_npz(images: Tensor, labels: Tensor, path: Path) -> Path:
    np.savez(path / "set.npz", x=images.permute(0, 2, 3, 1).numpy(), y=labels.numpy())  # channels last
    return path / "set.npz"


def as_target(real: RealData) -> Target:
    return Target(real.name, real.image_shape, real.class_names)


@pytest.mark.parametrize("write", [as_pair, as_dictionary, as_condensation, as_h5, as_npz])
def test_a_set_of_another_program_is_understood(
    write: Callable[[Tensor, Tensor, Path], Path], digits: RealData, finished_run: Path, tmp_path: Path
) -> None:
    original = load_distilled(finished_run)
    path = write(*shuffled(original), tmp_path)
    found = from_foreign(open_stored(path), path, as_target(digits), original.config, pixels=False)
    assert torch.equal(found.images, original.images)
    assert torch.equal(found.labels, original.labels)
    assert found.class_names == original.class_names


@pytest.mark.parametrize("names", [[str(k) for k in range(10)], [f"{k:05d}_n{9 - k}" for k in range(10)]])
def test_an_image_folder_is_understood(names: list[str], digits: RealData, tmp_path: Path) -> None:
    gen = generator(0, "pixels")
    pixels = torch.randint(256, (20, 1, 8, 8), generator=gen, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / names[i // 2]).mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / names[i // 2] / f"{i:02d}.png")
    config = Config(dataset="digits")
    found = from_foreign(open_stored(tmp_path), tmp_path, as_target(digits), config, pixels=True)
    found = preprocessed(found, digits.preprocess)
    assert torch.equal(found.images, digits.preprocess(pixels))
    assert found.hard_labels.tolist() == [k for k in range(10) for _ in range(2)]


def test_what_systems_leave_in_an_image_folder_is_skipped_and_no_other_file(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
        for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
            (tmp_path / name / junk).write_bytes(b"junk")
    assert len(open_stored(tmp_path).tensors["images"]) == 2
    (tmp_path / "dog" / "notes.txt").write_text("which dog this is")
    with pytest.raises(UserError, match=r"dog/notes\.txt: not a readable image \(.*\); replace or remove it$"):
        open_stored(tmp_path)


def test_a_set_may_be_judged_on_images_from_the_disk(run: Path, tmp_path: Path) -> None:
    """With --data_cache and --cache_dir as in a run, instead of the run's own."""
    streamed = evaluated(run, *EVALUATE, "--data_cache", "disk", "--cache_dir", str(tmp_path / "cache"))
    assert [path.suffix for path in sorted((tmp_path / "cache").glob("images-*"))].count(".uint8") == 2
    assert streamed["results"] == evaluated(run, *EVALUATE, output=tmp_path / "held")["results"]


def test_pixels_in_0_to_1_are_those_in_0_to_255(digits: RealData, tmp_path: Path) -> None:
    pixels = torch.randint(256, (10, 1, 8, 8), generator=generator(0), dtype=torch.uint8)
    config = Config(dataset="digits")
    found = []
    for name, images in (("a", pixels), ("b", pixels.float() / 255)):
        torch.save((images, torch.arange(10)), tmp_path / f"{name}.pt")
        stored = open_stored(tmp_path / f"{name}.pt")
        read = from_foreign(stored, tmp_path, as_target(digits), config, pixels=True)
        found.append(preprocessed(read, digits.preprocess).images)
    assert torch.allclose(*found, rtol=0, atol=1e-6)
    torch.save((pixels.float() / 100, torch.arange(10)), tmp_path / "c.pt")
    with pytest.raises(UserError, match="which may be of 0..1 or 0..255"):
        from_foreign(open_stored(tmp_path / "c.pt"), tmp_path, as_target(digits), config, pixels=True)


def test_learnt_labels_of_another_program_keep_their_order(digits: RealData, tmp_path: Path) -> None:
    gen = generator(0)
    weights = torch.rand(20, 10, generator=gen) + 2 * torch.eye(10).repeat_interleave(2, 0)
    path = as_pair(torch.randn(20, 1, 8, 8, generator=gen), weights, tmp_path)
    found = from_foreign(
        open_stored(path), path, as_target(digits), Config(dataset="digits"), pixels=False, label_kind="weights"
    )
    assert torch.equal(found.labels, weights)


def test_soft_labels_out_of_order_are_sorted_by_the_heaviest(
    digits: RealData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (torch.eye(10) * 5).softmax(1).repeat(2, 1)  # 0..9, 0..9
    images = torch.arange(20.0).view(20, 1, 1, 1).expand(-1, 1, 8, 8)
    path = as_pair(images, weights, tmp_path)
    found = from_foreign(open_stored(path), path, as_target(digits), Config(dataset="digits"), pixels=False)
    assert found.images[:4, 0, 0, 0].tolist() == [0, 10, 1, 11]
    assert found.labels.argmax(1).tolist() == [k for k in range(10) for _ in range(2)]
    assert "sorted by the heaviest label" in capsys.readouterr().err


def test_soft_labels_of_uneven_classes_are_drawn_uniformly(
    digits: RealData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (torch.eye(10) * 5).softmax(1)[[0, 0, *range(1, 10)]]
    path = as_pair(torch.randn(11, 1, 8, 8, generator=generator(0)), weights, tmp_path)
    found = from_foreign(open_stored(path), path, as_target(digits), Config(dataset="digits"), pixels=False)
    recipe = make_recipe("inner", found, (5,), inner_lr=0.25)
    assert isinstance(recipe.sampler, UniformSampler)
    assert recipe.sampler.size == 11
    assert "drawn uniformly" in capsys.readouterr().err


def test_a_learnt_learning_rate_is_taken_in_every_recipe(finished_run: Path) -> None:
    distilled = load_distilled(finished_run)
    assert make_recipe("dc", distilled, (20,), 0.25).rule == DecayedSGD(0.25, decay_at=10)
    assert make_recipe("inner", distilled, None, 0.25).rule == make_recipe("papers", distilled, None, 0.25).rule
    assert make_recipe("inner", distilled, None, 0.25).rule == Adam(0.25)


def test_the_same_set_gives_the_same_result_as_ours_and_as_theirs(run: Path, tmp_path: Path) -> None:
    """Of the recipe, only what a foreign file cannot say differs: so it is given to both."""
    original = load_distilled(run)
    mean, std = (str(float(t)) for t in original.preprocess.tensors().values())
    assert_judged_alike(original, tmp_path, *FOREIGN, "--mean", mean, "--std", std)


def assert_judged_alike(original: Distilled, tmp_path: Path, *foreign: str) -> None:
    """As it is, and as a pair of tensors of which ``foreign`` says what it is."""
    steps = ["--eval_steps", "20", "--recipe", "dc", "--num_train_eval", "2", "--eval_arch", "convnet"]
    path = as_pair(original.images, original.hard_labels, tmp_path)
    theirs = evaluated(path, *steps, "--width", "4", *foreign)
    deeper = replace(original.config, depth=None)
    stored = original.stored(numbers=False)
    stored.metadata["provenance"] = json.dumps({**original.provenance, "config": json.loads(deeper.to_json())})
    write_safetensors(stored, tmp_path / "ours.safetensors")
    ours = evaluated(tmp_path / "ours.safetensors", *steps)
    for metric, value in ours["results"]["convnet"]["distilled"].items():
        assert theirs["results"]["convnet"]["distilled"][metric] == (
            pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
        )


def test_whitened_sets_are_judged_on_whitened_images(run: Path, tmp_path: Path) -> None:
    original = load_distilled(run)
    path = as_pair(original.images, original.hard_labels, tmp_path)
    zca = ["--dataset", "digits", "--preprocess", "zca", "--zca_reg", "0.2", *EVALUATE, "--eval_arch", "convnet"]
    plain = [*FOREIGN, *EVALUATE, "--eval_arch", "convnet"]
    pixels = ["--dataset", "digits", "--preprocess", "zca_pixels", *EVALUATE, "--eval_arch", "convnet"]
    found = [evaluated(path, *flags, "--width", "4") for flags in (zca, pixels, plain)]
    assert len({result["results"]["convnet"]["distilled"]["loss"] for result in found}) == 3


def test_a_set_of_whitened_pixels_is_ours_and_another_programs_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, stopped and continued; its set judged as it is and as a pair of tensors that says nothing of itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = [*TINY, "--zca_pixels"]
    assert main([*line, "--save_dir", str(tmp_path / "whole")]) == 0
    assert main([*line, "--save_dir", str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert main([*line, "--save_dir", str(tmp_path / "run"), "--resume"]) == 0
    original = load_distilled(tmp_path / "run")
    assert isinstance(original.preprocess, ZcaPixels)
    assert torch.equal(original.images, load_distilled(tmp_path / "whole").images)
    assert_judged_alike(original, tmp_path, "--dataset", "digits", "--preprocess", "zca_pixels")


def test_images_and_labels_may_be_two_files(run: Path, tmp_path: Path) -> None:
    original = load_distilled(run)
    torch.save(original.images, tmp_path / "images.pt")
    torch.save(original.hard_labels, tmp_path / "labels.pt")
    found = open_stored(tmp_path / "images.pt", tmp_path / "labels.pt")
    assert torch.equal(found.tensors["images"], original.images)
    assert torch.equal(found.tensors["labels"], original.hard_labels)


@pytest.fixture
def other_digits(tmp_path: Path) -> Callable[[list[str]], str]:
    """What writes the digits into a file, with their classes in another order and under these names: ``npz:FILE``."""
    source, arrays = read_digits(ROOT, 8), {}
    for name, part in (("train", source.train), ("test", source.test)):
        arrays[f"x_{name}"] = part.read(torch.arange(len(part.labels))).squeeze(1).numpy()
        arrays[f"y_{name}"] = 9 - part.labels.numpy()

    def write(names: list[str]) -> str:
        np.savez(tmp_path / "other.npz", **arrays, class_names=names)
        return f"npz:{tmp_path / 'other.npz'}"

    return write


def test_a_set_of_this_program_is_judged_on_other_real_images_of_its_classes(
    other_digits: Callable[[list[str]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes are found by their names: by their numbers no answer would be right. In a folder of its own."""
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", other_digits(list("9876543210")), "--num_train_eval", "1", "--eval_steps", "120"]
    assert main(["evaluate", "zoo:digits-ipc1", *flags, "--device", "cpu"]) == 0
    assert [path.name for path in tmp_path.glob("zoo*")] == ["zoo-digits-ipc1.evaluation-on-npz-other"]
    found = json.loads((tmp_path / "zoo-digits-ipc1.evaluation-on-npz-other" / "inner.json").read_text())
    assert found["dataset"] == "npz-other"
    assert found["results"]["convnet"]["distilled"]["top1"] > 0.8


def test_classes_that_one_of_both_only_numbers_are_taken_in_order(
    run: Path, other_digits: Callable[[list[str]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*EVALUATE, "--dataset", other_digits(list("abcdefghij"))]
    assert main(["evaluate", str(run), *flags]) == 0
    assert f"{run}: its classes are numbers; 0 is taken for 'a', and so on in order" in capsys.readouterr().err


MISTAKES = {
    "no data set": (["{pt}"], "set.pt: a file of another program does not say its dataset; give --dataset"),
    "no preprocessing": (["{pt}", "--dataset", "digits"], "give --preprocess"),
    "another data set": (
        ["{pt}", "--dataset", "mnist", "--preprocess", "standardise", "--root", "{root}"],
        "images are 1 x 8 x 8, those of mnist 1 x 28 x 28; give another --dataset or --im_size",
    ),
    "another size": (["{pt}", *FOREIGN, "--im_size", "16"], "images are 1 x 8 x 8, those of digits 1 x 16 x 16"),
    "half of the statistics": (["{pt}", *FOREIGN, "--mean", "0.5"], "--mean and --std belong together"),
    "statistics for ZCA": (
        ["{pt}", "--dataset", "digits", "--preprocess", "zca", "--mean", "0.5", "--std", "1"],
        "with --preprocess standardise",
    ),
    "too many statistics": (["{pt}", *FOREIGN, "--mean", "0", "0", "--std", "1", "1"], "digits has 1 channel(s)"),
    "a flag that is known": (["{run}", "--zca_reg", "0.2"], "--zca_reg: {run} is a file of this program and says that"),
    "another flag that is known": (
        ["{run}", "--dataset", "mnist", "--preprocess", "zca"],
        "--preprocess: {run} is a file of this program",
    ),
    "a column of no table": (["{run}", "--hf_image", "image"], "--hf_image: {run} is a file of this program"),
    "other real images of other channels": (
        ["{run}", "--dataset", "cifar10", "--root", "{root}"],
        "images are 1 x 8 x 8, those of cifar10 3 x 8 x 8; give another --dataset",
    ),
    "other real images of other classes": (
        ["{run}", "--dataset", "npz:{pets}"],
        "its classes are not the data's (only there: '0', ",
    ),
    "a regularisation for nothing": (["{pt}", *FOREIGN, "--zca_reg", "0.2"], "--zca_reg is not read by"),
    "a negative seed": (["{run}", "--seed", "-1"], "--seed: '-1' is not a whole number"),
    "an output that is a file": (["{run}", "--output", "{run}/config.json"], "config.json: cannot make this folder"),
    "lengths in disorder": (["{run}", "--eval_steps", "5", "3"], "--eval_steps 5 3: give increasing lengths"),
    "lengths for dc": (["{run}", "--recipe", "dc", "--eval_steps", "3", "5"], "--recipe dc has one training length"),
    "no steps": (["{run}", "--eval_steps", "0"], "'0' is not a positive whole number"),
    "an unknown network": (["{run}", "--eval_arch", "transformer9000"], "--eval_arch: invalid choice"),
    "an unknown device": (["{run}", "--device", "abacus"], "abacus"),
    "no labels": (["{lonely}", *FOREIGN], "holds one tensor, the images; give --labels FILE"),
    "a pickle": (
        ["{pickle}", *FOREIGN],
        "pickle.pt: holds pathlib.PosixPath, which is not read from foreign files; save tensors only",
    ),
    "unequal classes": (["{unequal}", *FOREIGN], "has not as many images of each; give --recipe dc"),
    "labels out of range": (["{range}", *FOREIGN], "labels are not all in 0..9"),
    "labels of a folder": (["{folder}", "--labels", "{lonely}", *FOREIGN], "only a .pt file of images has"),
    "a missing file": (["{run}/none.pt"], "no such file"),
    "a run without a set": (["{empty}"], "a run without distilled.safetensors"),
    "too small": (["{run}", "--eval_arch", "convnet4"], "--eval_arch convnet4: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(
    mistake: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = load_distilled(run)
    images, labels = original.images, original.hard_labels
    torch.save((images, labels), tmp_path / "set.pt")
    torch.save(images, tmp_path / "lonely.pt")
    torch.save({"images": Path("not a tensor"), "labels": labels}, tmp_path / "pickle.pt")
    torch.save((images[:9], labels[:9]), tmp_path / "unequal.pt")
    torch.save((images, labels + 1), tmp_path / "range.pt")
    (tmp_path / "folder" / "0").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    few, pets = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "pets.npz", x_train=few, y_train=pets, x_test=few, y_test=pets, class_names=["cat", "dog"])
    (tmp_path / "empty" / "config.json").write_text("{}")
    names = {name: tmp_path / f"{name}.pt" for name in ("lonely", "pickle", "unequal", "range")}
    arguments, message = MISTAKES[mistake]
    given = {**names, **{name: tmp_path / name for name in ("empty", "folder")}}
    given |= {"pt": tmp_path / "set.pt", "run": run, "root": tmp_path / "nowhere", "pets": tmp_path / "pets.npz"}
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.download", _no_network)
    error = refused(["evaluate", *(argument.format(**given) for argument in arguments)], capsys)
    assert message.format(**given) in error
    assert error.startswith("main.py")
    assert error.count("\n") == 1
    assert sorted(path for path in tmp_path.rglob("*")) == before


def _no_network(self: object) -> None:
    raise AssertionError("a download")


# ---- what it stands on -----------------------------------------------------------------------------


@pytest.mark.parametrize("zca", [False, True])
def test_real_data_are_loaded_in_a_given_preprocessing(zca: bool, tmp_path: Path) -> None:
    own = loaded("digits", zca=zca, cache_dir=tmp_path)
    given = Standardise(torch.tensor([0.1]), torch.tensor([2.0]))
    other = loaded("digits", zca=zca, preprocess=given, cache_dir=tmp_path)
    assert other.preprocess is given
    back = own.preprocess.inverse(own.test.images) if not zca else None
    assert back is None or torch.allclose(given.inverse(other.test.images), back, rtol=0, atol=1e-5)
    again = loaded("digits", zca=not zca, preprocess=own.preprocess, cache_dir=tmp_path)
    assert torch.equal(again.test.images, own.test.images)


def test_the_inverse_without_clipping_is_exact_outside_0_and_1() -> None:
    pixels = torch.randint(256, (50, 3, 4, 4), generator=generator(0), dtype=torch.uint8)
    for preprocess in (Standardise.fit(pixels), Zca.fit(pixels, 0.1, CPU), ZcaPixels.fit(pixels, CPU)):
        images = 5 * torch.randn(4, 3, 4, 4, generator=generator(1))
        free, clipped = (preprocess.inverse(images, clip=clip) for clip in (False, True))
        assert free.min() < 0
        assert free.max() > 1
        assert torch.equal(free.clamp(0, 1), clipped)
