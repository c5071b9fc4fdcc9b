"""A distilled set made up for tests."""

import json
from pathlib import Path

import torch

from framework.config import Config
from framework.data.preprocess import Preprocess, Standardise, Zca
from framework.distilled.set import Distilled

SIDE, CLASSES = 4, 3


def made_up(*, zca: bool = False, soft: bool = False, channels: int = 3, ipc: int = 2, scale: float = 0.4) -> Distilled:
    """A random set of ``CLASSES`` classes with a preprocessing fitted on random pixels."""
    gen = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (200, channels, SIDE, SIDE), generator=gen, dtype=torch.uint8)
    preprocess: Preprocess = Zca.fit(pixels, 0.1, torch.device("cpu")) if zca else Standardise.fit(pixels)
    labels = torch.eye(CLASSES).repeat_interleave(ipc, 0)
    if soft:
        labels = labels + torch.rand(labels.shape, generator=gen)
    images = scale * torch.randn(CLASSES * ipc, channels, SIDE, SIDE, generator=gen)
    config = Config(dataset="cifar10", zca=zca, train_y=soft, inner_lr=0.003, depth=1, width=4, eval_steps=(3, 5))
    provenance = {"epoch": 3, "best_length": 5, "config": json.loads(config.to_json())}
    return Distilled(Path("made-up"), images, labels, ("a cat", "b/../c", "<é>"), preprocess, config, provenance)
