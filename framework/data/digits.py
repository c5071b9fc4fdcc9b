"""The data set that comes with the program: the test half of UCI's handwritten digits, as in scikit-learn.

``digits.npz`` beside this file has 1,797 images of 8x8 grey levels 0..16, their labels, and the indices of a fixed
stratified split. scikit-learn has the same images; importing it takes as long as PyTorch.
"""

from pathlib import Path

import numpy as np
import torch

from framework.data.parts import ArrayPart, Source

GREYS = 16  # the whitest


def read_digits(root: Path, size: int) -> Source:
    """8x8 grey digits: 1,437 training and 360 test images. ``root`` is not looked at. Levels become 0..255.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (CC BY 4.0).
    """
    with np.load(Path(__file__).with_suffix(".npz")) as file:
        pixels = torch.from_numpy(np.rint(file["pixels"] * (255 / GREYS)).astype(np.uint8)).unsqueeze(1)
        labels = torch.from_numpy(file["labels"].astype(np.int64))
        halves = [torch.from_numpy(file[half].astype(np.int64)) for half in ("train", "test")]
    train, test = (ArrayPart(pixels[half], labels[half], size) for half in halves)
    return Source(tuple(map(str, range(10))), train, None, test)
