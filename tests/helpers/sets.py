"""A distilled set and a summary made up for tests."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from framework.config.bptt import Config
from framework.data.preprocess import Preprocess, Standardise, Zca, ZcaPixels
from framework.distilled.set import Distilled
from framework.records import Row, Summary

SIDE, CLASSES = 4, 3


CPU = torch.device("cpu")
KINDS: dict[str, Callable[[torch.Tensor], Preprocess]] = {
    "standardise": Standardise.fit,
    "zca": lambda pixels: Zca.fit(pixels, 0.1, CPU),
    "zca_pixels": lambda pixels: ZcaPixels.fit(pixels, CPU),
}
"""Every preprocessing, fitted on uint8 pixels (N, C, H, W)."""


def made_up(
    kind: str = "standardise", *, soft: bool = False, channels: int = 3, ipc: int = 2, scale: float = 0.4
) -> Distilled:
    """A random set of ``CLASSES`` classes with a preprocessing fitted on random pixels."""
    gen = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (200, channels, SIDE, SIDE), generator=gen, dtype=torch.uint8)
    labels = torch.eye(CLASSES).repeat_interleave(ipc, 0)
    if soft:
        labels = labels + torch.rand(labels.shape, generator=gen)
    images = scale * torch.randn(CLASSES * ipc, channels, SIDE, SIDE, generator=gen)
    config = Config(
        dataset="cifar10", zca=kind == "zca", zca_pixels=kind == "zca_pixels", train_y=soft, inner_lr=0.003, depth=1,
        width=4, eval_steps=(3, 5),
    )  # fmt: skip
    provenance = {"epoch": 3, "best_length": 5, "config": json.loads(config.to_json())}
    names, preprocess = ("a cat", "b/../c", "<é>"), KINDS[kind](pixels)
    return Distilled(Path("made-up"), images, labels, names, preprocess, config, provenance)


def made_up_summary(select: str = "val", top1: float = 0.6123) -> Summary:
    """Of a finished run, with a row of several networks and one of a single network that diverged."""
    distilled = Row(top1, 0.0084, 0.95, 0.0, 0.0312, None, 1.5, 0.1, name="10 distilled images", networks=5, steps=300)
    random = replace(distilled, name="10 random real images", networks=1, steps=600, top1_std=None, loss=math.nan)
    return Summary(
        dataset="digits", policy="rat-bptt", seed=0, epochs=3, outer_steps=12, best_epoch=2, select=select,
        results={"distilled": distilled, "random": random}, seconds=1.5, processes=1, execution="chunks", device="cpu",
        torch="2", python="3", peak_memory_mib=10.0, files={"images": "save/x/distilled.safetensors"},
    )  # fmt: skip
