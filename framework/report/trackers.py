"""Experiment trackers that a run's metrics go to besides its own files: Weights & Biases, trackio."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from framework.errors import UserError, one_line
from framework.files import finite

PROJECT = "at-bptt"
COLUMNS = 10  # of a picture's tiles


def tiled(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] in rows of ``COLUMNS``, as one (R H, S W, 3) uint8."""
    count, _, height, width = images.shape
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    pixels = images.expand(-1, 3, -1, -1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = pixels
    return sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


class Tracker:
    """A run of a tracker's project; each start of a run, a resumed one too, is one there.

    A tracker that fails later is told of on stderr and left alone from then on: it must not end a run.

    Args:
        package: ``wandb`` or ``trackio``, whose functions have the same names.
        name: of the run.
        config: its flags.
        folder: where wandb keeps its files.

    Raises:
        UserError: it cannot be started.
    """

    def __init__(self, package: str, name: str, config: dict[str, Any], folder: Path) -> None:
        self.package, self._works = package, True
        own = {"dir": str(folder)} if package == "wandb" else {}
        try:
            self._module = import_module(package)
            self._module.init(project=PROJECT, name=name, config=finite(config), **own)
        except Exception as error:  # a tracker's own, of which no list exists
            raise UserError(
                f"--track {package}: cannot be started ({one_line(error)}); log in there, or leave it out"
            ) from error

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Send numbers of an outer step."""
        self._try(lambda: self._module.log(values, step=step))

    def picture(self, name: str, images: Tensor, step: int) -> None:
        """Send images (N, C, H, W) in [0, 1] as one picture."""
        self._try(lambda: self._module.log({name: self._module.Image(tiled(images))}, step=step))

    def close(self) -> None:
        """Wait until all is sent."""
        self._try(lambda: self._module.finish())

    def _try(self, call: Callable[[], object]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:  # see above
            self._works = False
            print(f"--track {self.package}: {one_line(error)}; nothing more is sent there", file=sys.stderr)
