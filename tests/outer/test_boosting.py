"""Boosting: blocks with rates, moments and steps of their own against PyTorch's optimisers, in float64."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from cli import difference
from problems import make_problem
from torch import Tensor

from framework.inner.counts import Counts
from framework.outer.blocks import Blocks, Parameters, block_seed, prefix_rows
from framework.outer.boosting import Boosting
from framework.outer.matching.matched import EMA, MatchedSet
from framework.outer.method import Proposal, Snapshot
from framework.outer.synthetic import AVERAGE, RAW, SyntheticSet, noise_images, one_hot_labels
from framework.rng import generator

CLASSES, SIZE = 3, 2
LR = {"images": 0.05, "labels": 0.02}


def blocks(beta: float = 0.0) -> Blocks:
    return Blocks(CLASSES, SIZE, beta)


def start(block: int) -> tuple[Tensor, Tensor]:
    """A block's images and labels."""
    gen = generator(block, "start")
    labels = one_hot_labels(Counts.equal(CLASSES, SIZE)).double()
    return noise_images(CLASSES * SIZE, (1, 4, 4), gen).double(), labels + torch.rand(labels.shape, generator=gen)


def make_set(
    beta: float, optimizer: str = "Adam", weight_decay: float = 0.0, learn_labels: bool = True,
    average: float | None = None,
) -> SyntheticSet:  # fmt: skip
    return SyntheticSet(
        *start(0), learn_labels=learn_labels, lr=LR["images"], label_lr=LR["labels"], optimizer=optimizer, eps=1e-6,
        weight_decay=weight_decay, blocks=blocks(beta), average=average,
    )  # fmt: skip


make_averaged = partial(make_set, average=2.0)


def make_matched(beta: float) -> MatchedSet:
    return MatchedSet(
        *start(0), 0.1, lr_images=0.5, lr_step_size=1e-3, lr_labels=0.3, momentum_labels=0.8, ema_decay=0.7,
        blocks=blocks(beta),
    )  # fmt: skip


def gradients(of: SyntheticSet | MatchedSet, key: object) -> dict[str, Tensor]:
    """Random ones, in the shapes of what is learnt now."""
    gen = generator(5, str(key))
    return {name: torch.randn(tensor.shape, generator=gen, dtype=torch.float64) for name, tensor in of.learnt.items()}


def of_block(tensor: Tensor, block: int) -> Tensor:
    """By indices, not by views: images j * b .. of each class."""
    per_class = len(tensor) // CLASSES
    rows = [c * per_class + block * SIZE + i for c in range(CLASSES) for i in range(SIZE)]
    return tensor[torch.tensor(rows)]


# ---- order -----------------------------------------------------------------------------------------


def test_a_joined_block_lies_behind_the_others_within_each_class() -> None:
    old, new = torch.arange(6.0), 10 + torch.arange(6.0)
    assert blocks().joined(old, new).tolist() == [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15]
    first, second = blocks().split(blocks().joined(old, new))
    assert torch.equal(first.flatten(), old)
    assert torch.equal(second.flatten(), new)
    assert prefix_rows(3, 12, 2).tolist() == [0, 1, 4, 5, 8, 9]
    assert torch.equal(blocks().joined(old, new)[prefix_rows(3, 12, 2)], old)


def test_the_first_block_has_the_runs_seed_and_the_others_their_own() -> None:
    seeds = [block_seed(3, block) for block in range(4)]
    assert seeds[0] == 3
    assert len({*seeds, block_seed(4, 1)}) == 5
    assert min(seeds) >= 0


def test_a_frozen_blocks_gradient_does_not_count_even_where_it_is_not_finite() -> None:
    tensor = torch.ones(12)
    tensor[prefix_rows(3, 12, 2)] = float("nan")
    alone = blocks().learnt_alone(tensor)
    assert alone.tolist() == [0, 0, 1, 1] * 3
    assert blocks(0.5).learnt_alone(tensor) is tensor
    assert blocks().learnt_alone(tensor[:6]).isnan().any(), "of the only block all is learnt"


# ---- a set that grows ------------------------------------------------------------------------------


class Reference:
    """One optimiser of PyTorch for each tensor and block; a block's rate is lowered when the next one comes."""

    def __init__(self, beta: float, optimizer: str, weight_decay: float) -> None:
        self.beta, self.optimizer, self.weight_decay = beta, optimizer, weight_decay
        self.tensors: list[dict[str, Tensor]] = []
        self.optimizers: list[dict[str, torch.optim.Optimizer]] = []

    def add(self, images: Tensor, labels: Tensor) -> None:
        for optimizers in self.optimizers:
            for name, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = self.beta * LR[name]
        tensors = {"images": images.clone().requires_grad_(), "labels": labels.clone().requires_grad_()}
        self.tensors.append(tensors)
        self.optimizers.append({name: self._make([tensor], LR[name]) for name, tensor in tensors.items()})

    def _make(self, parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        if self.optimizer == "Adam":
            return torch.optim.Adam(parameters, lr=lr, eps=1e-6, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=self.weight_decay)

    def update(self, grads: dict[str, Tensor], factor: Tensor) -> None:
        for block, (tensors, optimizers) in enumerate(zip(self.tensors, self.optimizers, strict=True)):
            if self.beta == 0 and block < len(self.tensors) - 1:
                continue
            for name, tensor in tensors.items():
                tensor.grad = of_block(grads[name], block) * factor
                optimizers[name].step()
            tensors["labels"].data.clamp_(min=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_each_block_is_updated_as_by_an_optimiser_of_its_own(beta: float, optimizer: str, weight_decay: float) -> None:
    s, reference = make_set(beta, optimizer, weight_decay), Reference(beta, optimizer, weight_decay)
    reference.add(*start(0))
    for block in range(3):
        if block:
            s.grow(*start(block))
            reference.add(*start(block))
        for step in range(4):
            grads = gradients(s, (block, step))
            reference.update(grads, s.update(grads)["clip_factor"])
    for block, tensors in enumerate(reference.tensors):
        for name, tensor in tensors.items():
            found = of_block(getattr(s, name).detach(), block)
            torch.testing.assert_close(found, tensor.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_a_frozen_block_keeps_every_bit(optimizer: str) -> None:
    s = make_set(0.0, optimizer, weight_decay=0.5)
    s.update(gradients(s, 0))
    kept = s.images.detach().clone(), s.labels.clone().detach()
    for block in (1, 2):
        s.grow(*start(block))
        for step in range(3):
            s.update(gradients(s, (block, step)), mask=torch.ones(len(s.images), 1, 4, 1, dtype=torch.bool))
    assert torch.equal(of_block(s.images.detach(), 0), kept[0])
    assert torch.equal(of_block(s.labels.detach(), 0), kept[1])
    assert not torch.equal(of_block(s.images.detach(), 2), start(2)[0])


def test_a_frozen_block_is_not_scaled_back_to_norm_1_and_a_learning_one_is() -> None:
    """Of images that a set was started from, which have any norm."""
    for beta in (0.0, 0.5):
        s = SyntheticSet(*start(0), learn_labels=False, lr=0.1, label_lr=0.1, normalise=True, blocks=blocks(beta))
        s.images.data.mul_(3)
        kept = s.images.detach().clone()
        s.grow(*start(1))
        mask = torch.ones(len(s.images), 1, 4, 1, dtype=torch.bool)
        for given in (None, mask):
            s.update(gradients(s, 0), given)
        norms = [of_block(s.images.detach(), block).flatten(1).norm(dim=1) for block in (0, 1)]
        assert torch.allclose(norms[1], torch.ones_like(norms[1]))
        assert torch.equal(of_block(s.images.detach(), 0), kept) == (beta == 0)
        assert torch.allclose(norms[0], torch.ones_like(norms[0])) == (beta > 0)


def test_labels_alone_are_learnt_in_blocks() -> None:
    s = SyntheticSet(
        *start(0), learn_labels=True, learn_images=False, lr=0.1, label_lr=0.1, weight_decay=0.5, blocks=blocks()
    )
    s.update(gradients(s, 0))
    kept = s.labels.detach().clone()
    s.grow(*start(1))
    images = s.images.clone()
    s.update(gradients(s, 1))
    assert torch.equal(s.images, images)
    assert torch.equal(of_block(s.labels.detach(), 0), kept)
    assert not torch.equal(of_block(s.labels.detach(), 1), start(1)[1])


def test_rates_by_block_and_with_beta_1_all_are_equal() -> None:
    for beta, expected in ((1.0, [1.0, 1.0, 1.0]), (0.25, [0.25, 0.25, 1.0]), (0.0, [1.0])):
        s = make_set(beta)
        s.grow(*start(1))
        s.grow(*start(2))
        rates = [group["lr"] for group in s.optimizer.param_groups]
        assert rates == [rate * lr for lr in LR.values() for rate in expected]


def test_the_clips_average_starts_anew_with_a_block() -> None:
    s = make_set(0.0)
    s.update({name: 100 * gradient for name, gradient in gradients(s, 0).items()})
    s.grow(*start(1))
    small = gradients(s, 1)
    assert s.update(small)["clip_factor"] == 1
    large = {name: 1000 * gradient for name, gradient in small.items()}
    assert s.update(large)["clip_factor"] < 1, "measured by the average of this block's norms alone"


def test_a_set_that_is_one_block_is_updated_like_one_without_blocks() -> None:
    one, plain = make_set(0.0), make_set(0.0)
    plain.blocks = None
    plain._hold(*start(0))
    for step in range(5):
        for s in (one, plain):
            s.update(gradients(s, step))
    assert torch.equal(one.images, plain.images)
    assert torch.equal(one.labels, plain.labels)
    assert list(one.norm_emas) == [0]
    assert torch.equal(one.norm_emas[0], plain.norm_emas[0])


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("make", [make_set, make_averaged, make_matched])
def test_a_grown_set_is_restored_into_one_that_has_not_grown(make: Any, beta: float) -> None:
    whole, again = make(beta), make(beta)
    for block in range(3):
        if block:
            whole.grow(*start(block))
        for step in range(3):
            whole.update(gradients(whole, (block, step)))
        if block == 1:
            again.load_state_dict(whole.state_dict())
            assert difference(again.state_dict(), whole.state_dict()) is None
    again.grow(*start(2))
    for step in range(3):
        again.update(gradients(again, (2, step)))
    assert difference(again.state_dict(), whole.state_dict()) is None


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_each_block_has_an_average_of_its_own_steps_which_is_frozen_with_it(beta: float) -> None:
    s, moving = make_averaged(beta), []
    for step in range(3):
        s.update(gradients(s, step))
    kept = s.snapshots()[AVERAGE]
    s.grow(*start(1))
    for step in range(3):
        s.update(gradients(s, (1, step)))
        moving.append({name: tensor.detach().clone() for name, tensor in s.learnt.items()})
    after = s.snapshots()[AVERAGE]
    for name in ("images", "labels"):
        whole, first = getattr(after, name), getattr(kept, name)
        mean = sum(weight * step[name] for weight, step in zip((2, 6, 12), moving, strict=True)) / 20  # t (t + 1)
        assert torch.allclose(of_block(whole, 1), of_block(mean, 1), rtol=1e-12, atol=0)
        if beta:
            assert torch.allclose(of_block(whole, 0), of_block(mean, 0), rtol=1e-12, atol=0)
        else:
            assert torch.equal(of_block(whole, 0), first)


def test_matched_images_and_their_average_are_frozen_and_the_step_size_goes_on() -> None:
    s = make_matched(0.0)
    for step in range(3):
        s.update(gradients(s, step))
    kept = {form: snapshot.images for form, snapshot in s.snapshots().items()}
    labels, size, momentum = s.labels.detach().clone(), s.step_size.item(), s.step_size_optimizer.state_dict()
    s.grow(*start(1))
    assert (s.step_size.item(), s.step_sizes) == (size, (size,))
    assert difference(s.step_size_optimizer.state_dict(), momentum) is None
    for form in (RAW, EMA):
        assert torch.equal(of_block(s.snapshots()[form].images, 1), start(1)[0])
    for step in range(3):
        s.update(gradients(s, (1, step)))
    for form, snapshot in s.snapshots().items():
        assert torch.equal(of_block(snapshot.images, 0), kept[form])
        assert not torch.equal(of_block(snapshot.images, 1), start(1)[0])
        assert torch.equal(snapshot.prefix(CLASSES, SIZE).images, kept[form])
    assert torch.equal(of_block(s.labels.detach(), 0), labels)
    assert s.step_size.item() != size


def test_a_matched_block_follows_pytorchs_sgd_and_averages_like_a_set_without_blocks() -> None:
    beta = 0.4
    s = make_matched(beta)
    s.grow(*start(1))
    images = [start(block)[0].clone().requires_grad_() for block in (0, 1)]
    averages = [image.detach().clone() for image in images]
    sgd = torch.optim.SGD(
        [{"params": [image], "lr": 0.5 * rate} for image, rate in zip(images, (beta, 1.0), strict=True)], momentum=0.5
    )
    for step in range(4):
        grads = gradients(s, step) | {"step_size": torch.zeros((), dtype=torch.float64)}
        s.update(grads)
        for block, image in enumerate(images):
            image.grad = of_block(grads["images"], block)
        sgd.step()
        averages = [0.7 * a + 0.3 * image.detach() for a, image in zip(averages, images, strict=True)]
    for block in (0, 1):
        torch.testing.assert_close(of_block(s.images.detach(), block), images[block].detach(), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(of_block(s.average, block), averages[block], rtol=1e-13, atol=1e-15)


# ---- the method ------------------------------------------------------------------------------------


class Inner:
    """Proposes ones, and remembers what it was asked for."""

    remedy = "lower --lr"
    steps_per_epoch = 2

    def __init__(self, block: int, learnt: SyntheticSet, asked: list[tuple[int, int, int]]) -> None:
        self.block, self.set, self.asked, self.closed, self.norm = block, learnt, asked, 0, 0.0

    def proposals(self, epoch: int, first: int) -> Iterator[Proposal]:
        for step in range(first, self.steps_per_epoch):
            self.asked.append((self.block, epoch, step))
            grads = {name: torch.ones_like(tensor) for name, tensor in self.set.learnt.items()}
            yield Proposal(grads, torch.zeros(()), facts={"window": step})

    def applied(self, norm: float) -> None:
        self.norm = norm

    def close_epoch(self, loss: float, accuracy: float) -> dict[str, Any]:
        self.closed += 1
        return {"closed": self.closed}

    def curves(self) -> dict[str, list[float]]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"closed": self.closed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.closed = state["closed"]


def boosting(beta: float = 0.0) -> tuple[Boosting, list[tuple[int, int, int]]]:
    asked: list[tuple[int, int, int]] = []
    learnt = make_set(beta)
    return Boosting(learnt, (1, 2, 1), start, lambda block: Inner(block, learnt, asked)), asked


def learn(m: Boosting, epochs: range) -> list[dict[str, Any]]:
    """Epochs as the worker runs them; what was told of each."""
    told = []
    for epoch in epochs:
        for proposal in m.proposals(epoch, 0):
            m.set.update(proposal.grads)
        told.append(m.close_epoch(0.5, 0.5))
    return told


def test_each_block_has_epochs_of_its_own_and_an_own_method() -> None:
    m, asked = boosting()
    told = learn(m, range(4))
    assert asked == [(block, epoch, step) for block, epoch in ((0, 0), (1, 0), (1, 1), (2, 0)) for step in (0, 1)]
    assert [(facts["block"], facts["closed"]) for facts in told] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert len(m.set.images) == 3 * CLASSES * SIZE
    m.applied(2.5)
    assert isinstance(m.method, Inner)
    assert (m.method.block, m.method.norm) == (2, 2.5)


def test_a_block_comes_with_its_first_step_and_not_before() -> None:
    m, _ = boosting()
    learn(m, range(1))
    assert len(m.set.images) == CLASSES * SIZE, "what is evaluated and saved at the end of a block has no noise in it"
    proposal = next(m.proposals(1, 0))
    assert len(m.set.images) == 2 * CLASSES * SIZE
    assert proposal.facts == {"window": 0, "block": 2}
    for gradient in proposal.grads.values():
        assert torch.equal(of_block(gradient, 0), torch.zeros_like(of_block(gradient, 0)))
        assert torch.equal(of_block(gradient, 1), torch.ones_like(of_block(gradient, 1)))


def test_gradients_of_blocks_that_go_on_learning_are_passed_on() -> None:
    m, _ = boosting(0.5)
    learn(m, range(1))
    assert all((gradient == 1).all() for gradient in next(m.proposals(1, 0)).grads.values())


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
def test_it_is_left_and_taken_up_at_any_epoch(epochs: int) -> None:
    whole, again = boosting(0.5)[0], boosting(0.5)[0]
    learn(whole, range(epochs))
    again.set.load_state_dict(whole.set.state_dict())
    again.load_state_dict(whole.state_dict())
    assert learn(again, range(epochs, 4)) == learn(whole, range(epochs, 4))
    assert difference(again.set.state_dict(), whole.set.state_dict()) is None
    assert again.state_dict() == whole.state_dict()


def test_a_state_of_another_number_of_blocks_is_refused() -> None:
    whole, again = boosting()[0], boosting()[0]
    learn(whole, range(2))
    with pytest.raises(ValueError, match="block 2 of a set of 1"):
        again.load_state_dict(whole.state_dict())


# ---- prefixes --------------------------------------------------------------------------------------


def test_a_prefix_reads_no_other_image() -> None:
    images, labels = torch.randn(12, 1, 2, 2), torch.rand(12, 3)
    rows = prefix_rows(3, 12, 2)
    spoilt = torch.full_like(images, float("nan"))
    spoilt[rows] = images[rows]
    prefix = Snapshot(spoilt, labels).prefix(3, 2)
    assert torch.equal(prefix.images, images[rows])
    assert torch.equal(prefix.labels, labels[rows])


def test_parameters_share_the_memory_of_the_tensors() -> None:
    p = make_problem(1, ipc=2, classes=CLASSES)
    tensor = p.images.detach()
    (part,) = Parameters({"images": tensor}, blocks()).parts["images"]
    part.data.fill_(3)
    assert (tensor == 3).all()
