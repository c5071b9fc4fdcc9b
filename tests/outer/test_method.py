"""The BPTT method behind the seam: what it proposes, that it can be left and taken up at any step."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cli import difference
from problems import CPU, make_problem

from framework import distill_higher
from framework.data.splits import Split, epoch_batches
from framework.distill_higher import BackpropThroughTime, outer_gradient
from framework.inner.augment import Augmentation
from framework.inner.counts import Counts
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Adam
from framework.inner.plan import ClassSampler
from framework.outer.engines.engine import RealBatch
from framework.outer.engines.replay import Replay
from framework.outer.method import Proposal
from framework.outer.patches import PatchAlignment
from framework.outer.policies.policy import Policy, Window
from framework.outer.policies.registry import Settings, make
from framework.outer.synthetic import Synthetic, SyntheticSet, joint_norm
from framework.rng import generator
from framework.run.distributed import Comm

STEPS = 5  # outer steps of an epoch


def method(policy: str = "rat-bptt", *, every_step: bool = False, seed: int = 0, **about: Any) -> BackpropThroughTime:
    """A small method on random data, in float64."""
    p = make_problem(1)
    gen = generator(1, "real")
    train = Split(torch.randn(31, 2, 8, 8, generator=gen, dtype=torch.float64), torch.arange(31) % 3)
    plain = Augmentation("flip_rotate", False, 8)
    settings = Settings(8, 3, seed=seed, every_step=every_step, radius=2, patience=(1, 1), gains=(99.0, 99.0))
    learnt = SyntheticSet(p.images.detach(), p.labels.detach(), learn_labels=True, lr=0.1, label_lr=0.1)
    return BackpropThroughTime(
        engine=Replay(InnerLoop(p.network, Adam(0.01))), sampler=ClassSampler(Counts.equal(3, 2), 3, 1, plain),
        policy=make(policy, settings), set=learnt, train=train, num_classes=3, augmentation=plain,
        **{"batch_size": 6, "meta_batch": 1, "peers": Comm(), "seed": seed, **about},
    )  # fmt: skip


def epoch(m: BackpropThroughTime, number: int = 0, first: int = 0) -> Iterator[Proposal]:
    """The epoch's proposals, each applied before the next is asked for."""
    for proposal in m.proposals(number, first):
        yield proposal
        m.set.update(proposal.grads, proposal.mask)


def test_a_proposal_is_the_meta_gradient_of_its_window_and_batch() -> None:
    m = method()
    images, labels = m.set.images.detach().clone(), m.set.labels.detach().clone()
    proposal = next(m.proposals(0, 0))
    assert m.window is not None
    start, length = m.window
    assert (proposal.facts["window_start"], proposal.facts["window_length"]) == (start, length)
    batch = epoch_batches(31, 6, generator(0, "real order", 0))[0]
    draw = m.augmentation.draw(1, 6, generator(0, "real batch", 0, 0)).at(0)
    real = RealBatch(m.train.batch(batch), torch.eye(3)[m.train.labels[batch]].double(), draw)
    plan = m.sampler.plan(start + length, generator(0, "trajectory", 0, 0))
    theta = m.network.init(generator(0, "network", 0, 0))
    expected = outer_gradient(m.engine, [theta], Synthetic(images, labels, True), [plan], Window(start, length), real)
    assert expected.grads.labels is not None
    found = {"images": expected.grads.images, "labels": expected.grads.labels}
    assert difference(proposal.grads, found) is None
    assert torch.equal(proposal.loss, expected.loss)


def at(step: int, policy: str, every_step: bool) -> BackpropThroughTime:
    """A method after ``step`` applied steps."""
    m = method(policy, every_step=every_step)
    for _, proposal in zip(range(step), m.proposals(0, 0), strict=False):
        m.set.update(proposal.grads)
    return m


@pytest.mark.parametrize("policy", ["rat-bptt", "at-bptt"])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("left_at", range(STEPS + 1))
def test_an_epoch_is_taken_up_where_it_was_left(policy: str, every_step: bool, left_at: int) -> None:
    whole, again = (method(policy, every_step=every_step) for _ in range(2))
    expected = [proposal.facts for proposal in epoch(whole)]
    assert len(expected) == whole.steps_per_epoch == STEPS
    left = at(left_at, policy, every_step)
    again.load_state_dict(left.state_dict())
    again.set.load_state_dict(left.set.state_dict())
    assert [proposal.facts for proposal in epoch(again, first=left_at)] == expected[left_at:]
    assert difference(again.set.state_dict(), whole.set.state_dict()) is None
    assert again.close_epoch(0.5, 0.5) == whole.close_epoch(0.5, 0.5)
    assert again.state_dict() == whole.state_dict()


class Counted(Policy):
    """Counts how often it is asked."""

    name = "counted"
    asked = 0

    def choose(self, probe: Any = None) -> Window:
        self.asked += 1
        return Window(self.asked % 3, 2)


@pytest.mark.parametrize("every_step", [False, True])
def test_a_policy_is_asked_once_an_epoch_or_once_a_step(every_step: bool) -> None:
    m = method()
    m.policy = counted = Counted(8, 2)
    counted.every_step = every_step
    for number in range(2):
        facts = [p.facts["window_start"] for p in epoch(m, number)]
        assert counted.asked == (number + 1) * (STEPS if every_step else 1)
        assert len(set(facts)) == (3 if every_step else 1)
        m.close_epoch(0.5, 0.5)


def test_a_step_that_fails_does_not_ask_the_policy_again(monkeypatch: pytest.MonkeyPatch) -> None:
    m = method()
    m.policy = counted = Counted(8, 2)
    with monkeypatch.context() as patch:
        patch.setattr(distill_higher, "outer_gradient", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(m.proposals(0, 0))
    assert counted.asked == 1
    next(m.proposals(0, 0))
    assert counted.asked == 1


def test_only_rank_0_asks_and_every_rank_is_told() -> None:
    class Second(Comm):
        def from_main(self, value: Any) -> Any:
            assert value is None, "it has not asked"
            return Window(1, 2), 2.5, None, None, None

    m = method(peers=Second(1, 2))
    m.policy = counted = Counted(8, 2)
    proposal = next(m.proposals(0, 0))
    assert counted.asked == 0
    assert (proposal.facts["window_start"], proposal.facts["window_length"]) == (1, 2)


def test_patches_mask_the_proposal_and_report_their_alignment() -> None:
    m = method(alignment=PatchAlignment(2, 0.5, 3, 0))
    proposal = next(m.proposals(0, 0))
    assert proposal.mask is not None
    assert not (proposal.grads["images"] * ~proposal.mask).any()
    assert proposal.facts["alignment"] > 0
    assert joint_norm(proposal.grads) > 0
    assert m.network.device == CPU


def test_an_epoch_without_a_finite_loss_teaches_the_policy_nothing() -> None:
    m = method("at-bptt")
    list(epoch(m))
    before = m.policy.state_dict()
    m.close_epoch(float("nan"), float("nan"))
    assert m.policy.state_dict() == before
    list(epoch(m, 1))
    m.close_epoch(1.0, 0.5)
    assert m.policy.state_dict() != before
