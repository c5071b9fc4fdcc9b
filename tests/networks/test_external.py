"""Models of timm as judges: a stand-in for the package has one model of each kind, good and bad."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cli import refused
from problems import CPU
from streams import untouched
from torch import Tensor, nn

from framework.data.splits import Split
from framework.evaluation.evaluator import Evaluator, TrainingSet
from framework.evaluation.scores import score
from framework.inner.augment import Augmentation, apply
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Adam
from framework.inner.plan import UniformSampler
from framework.networks.external import build_external
from framework.rng import generator
from main import main

CLASSES, SIDE = 3, 4


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: dropout and activation are its own layers."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def plain(classes: int, channels: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    convolution = nn.Conv2d(channels, 5, 3, padding=1, bias=False)  # Adam would follow the rounding of its gradient
    body = [convolution, norm(5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Dropout(0.3), nn.Linear(20, classes))


class Sized(nn.Module):
    """Wants to know the images' size; has a parameter and a constant of its own."""

    index: Tensor

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(channels * size * size))
        self.register_buffer("index", torch.arange(channels * size * size).flip(0))
        self.head = nn.Linear(channels * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.flatten(1) + self.position)[:, self.index])


class Counting(Sized):
    """Keeps a statistic that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        self.index += 0 if not self.training else torch.ones_like(self.index)
        return self.head(x.flatten(1))


class Noisy(Sized):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) + torch.rand_like(self.position))


def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int, **more: Any) -> nn.Module:
    assert not pretrained
    if kind := {"sized": Sized, "counting": Counting, "noisy": Noisy}.get(name):
        return kind(num_classes, in_chans, more["img_size"])
    if more:
        raise TypeError(f"unexpected keyword argument {next(iter(more))!r}")
    if name == "deep":
        return nn.Sequential(nn.MaxPool2d(64), nn.Flatten(), nn.Linear(in_chans, num_classes))
    norms = {"plain": nn.BatchNorm2d, "norm-act": NormAct, "eps": lambda c: nn.BatchNorm2d(c, eps=1e-3)}
    if name == "features":
        return nn.Sequential(*list(plain(num_classes, in_chans))[:-1])
    if name not in norms:
        raise RuntimeError(f"Unknown model ({name})")
    return plain(num_classes, in_chans, norms[name])


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("timm")
    package.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", package)


@pytest.mark.parametrize("name", ["plain", "norm-act", "sized"])
def test_a_model_is_trained_as_pytorch_trains_it_without_dropout(name: str) -> None:
    """Against PyTorch's own batch norm and optimiser, and scored on the running statistics."""
    gen = generator(0, "data")
    images, labels = torch.randn(12, 2, SIDE, SIDE, generator=gen), torch.eye(CLASSES).repeat(4, 1)
    data = TrainingSet(images, labels, UniformSampler(12, 6, Augmentation("flip", False, SIDE)))
    split = Split(torch.randn(20, 2, SIDE, SIDE, generator=gen), torch.randint(CLASSES, (20,), generator=gen))
    with untouched():
        network = build_external(name, 2, SIDE, CLASSES, CPU)
        found = Evaluator(InnerLoop(network, Adam(1e-2)), 0).evaluate(data, (3, 8), split, "a")

    gen = generator(0, "evaluation", "a")
    start = network.init(gen)
    plan = data.sampler.plan(50, gen)  # evaluation draws fifty steps at a time
    reference = create_model(name, False, CLASSES, 2, **({"img_size": SIDE} if name == "sized" else {}))
    for layer in reference.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    nn.utils.vector_to_parameters(start, reference.parameters())
    optimizer = torch.optim.Adam(reference.parameters(), 1e-2)
    for t in range(8):
        x, y = apply(images[plan.indices[t]], labels[plan.indices[t]], plan.draw.at(t))
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference.train()(x), y).backward()
        optimizer.step()
        if t + 1 in (3, 8):
            with torch.no_grad():
                expected = nn.functional.cross_entropy(reference.eval()(split.images), split.labels)
            assert found[(3, 8).index(t + 1)].loss == pytest.approx(float(expected), rel=1e-4)


def test_a_fresh_model_is_what_its_own_code_draws_and_depends_on_the_generator_alone() -> None:
    network = build_external("norm-act", 1, SIDE, CLASSES, CPU)
    one, again, other = (network.init(generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    norm = dict(zip(network.names, network.unflatten(one), strict=True))
    assert [float(norm[name].mean()) for name in ("1.0.weight", "1.0.bias")] == [1.0, 0.0]
    assert norm["0.weight"].abs().max() < 9**-0.5, "as a convolution of PyTorch starts"


def test_a_model_judges_a_set_beside_our_networks(run: Path, tmp_path: Path) -> None:
    flags = ["--num_train_eval", "2", "--eval_steps", "3", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(run), *flags, "--eval_arch", "convnet", "timm:plain"]) == 0
    assert "| timm:plain | 10 distilled images |" in (tmp_path / "out" / "inner.md").read_text()


MISFITS = {
    "nosuch": "timm cannot make it for images of 1 x 4 x 4 (Unknown model (nosuch))",
    "deep": "it does not take images of 1 x 4 x 4 (",
    "features": "it gives (2, 20) for 2 images, not logits of 3 classes",
    "eps": "its batch norm has eps 0.001 and momentum 0.1; running statistics are kept with 1e-05 and 0.1 alone",
    "counting": "it has running statistics that cannot be kept",
    "noisy": "it draws random numbers while it is trained",
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_model_that_does_not_fit_says_so_before_training(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(MISFITS[name])):
        build_external(name, 1, SIDE, CLASSES, CPU)


def test_mistakes_are_told_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    command = ["evaluate", str(run), "--device", "cpu", "--eval_arch"]
    errors = [refused([*command, name], capsys) for name in ("timm:deep", "tinm:plain")]
    monkeypatch.setitem(sys.modules, "timm", None)
    errors.append(refused([*command, "timm:plain"], capsys))
    for error, message in zip(errors, (
        "--eval_arch timm:deep: it does not take images of 1 x 8 x 8", "--eval_arch: invalid choice: 'tinm:plain'",
        "--eval_arch timm:plain: needs the package: pip install timm; leave it out",
    ), strict=True):  # fmt: skip
        assert message in error
        assert error.count("\n") == 1
    assert sorted(run.rglob("*")) == before


def test_scores_after_training_leave_the_model_in_training_mode() -> None:
    network = build_external("plain", 1, SIDE, CLASSES, CPU)
    theta = torch.cat([network.init(generator(0)), network.fresh_statistics()])
    split = Split(torch.zeros(2, 1, SIDE, SIDE), torch.zeros(2, dtype=torch.int64))
    assert score(network, theta, split) == score(network, theta, split)
    assert network.module.training
