"""What labels of other programs mean, whose classes they are, and in which order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.distilled.formats import read
from framework.distilled.labels import interpreted, sorted_by_class
from framework.errors import UserError

SET = Path("set.pt")
WEIGHTS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
ONE_HOT = torch.eye(3)


@pytest.mark.parametrize(
    ("labels", "weights", "kind"),
    [
        (WEIGHTS, WEIGHTS, None),
        (WEIGHTS.half(), WEIGHTS, None),
        (WEIGHTS.log(), WEIGHTS, "log"),
        (ONE_HOT - 1 / 3, ONE_HOT, "centred"),
        (torch.tensor([0, 1, 2]), ONE_HOT, None),
    ],
)
def test_a_certain_kind_is_recognised_and_told(labels: Tensor, weights: Tensor, kind: str | None) -> None:
    found, line = interpreted(labels, 3, "auto", SET)
    assert torch.allclose(found, weights, atol=1e-3)
    assert (line is None) if kind is None else f"--label_kind {kind}" in (line or "")


def test_logits_are_not_guessed_but_given() -> None:
    logits = 5 * WEIGHTS.log() + 3
    with pytest.raises(
        UserError, match=r"say which: --label_kind logits \(DATM\), centred \(KIP, FRePo, RFAD\), log or"
    ):
        interpreted(logits, 3, "auto", SET)
    found, line = interpreted(logits, 3, "logits", SET)
    assert torch.equal(found, logits.softmax(1))
    assert line is None
    assert torch.equal(interpreted(logits, 3, "weights", SET)[0], logits)


def test_sets_are_sorted_by_their_heaviest_label() -> None:
    equal, order = sorted_by_class(WEIGHTS[[2, 0, 1]])
    assert equal
    assert order.tolist() == [1, 2, 0]
    assert not sorted_by_class(WEIGHTS[[0, 0, 1]])[0]


def test_results_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    """As dataset condensation writes ``res_DC_CIFAR10_ConvNet_10ipc.pt``."""
    images, labels = torch.randn(3, 1, 8, 8), torch.arange(3)
    scores = {"ConvNet": [np.float64(0.44), np.float32(0.5)]}
    torch.save({"data": [[images, labels]], "accs_all_exps": scores}, tmp_path / "res.pt")
    stored = read(tmp_path / "res.pt")
    assert torch.equal(stored.tensors["images"], images)
    assert torch.equal(stored.tensors["labels"], labels)
