"""Real data for tests."""

from pathlib import Path
from typing import Any

import torch

from framework.data.load import DataSpec, load
from framework.data.preprocess import Preprocess
from framework.data.splits import RealData


def loaded(
    name: str,
    root: Path | str = "unused",
    *,
    device: str | torch.device = "cpu",
    preprocess: Preprocess | None = None,
    progress: bool = False,
    **about: Any,
) -> RealData:
    """Load a data set; ``about`` is the rest of its ``DataSpec``."""
    return load(DataSpec(name, Path(root), **about), torch.device(device), preprocess=preprocess, progress=progress)
