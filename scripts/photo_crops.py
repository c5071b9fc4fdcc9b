"""Cut real photographs that scikit-learn and scikit-image ship into an image folder, one class per photograph.

    python scripts/photo_crops.py ROOT [--side 128] [--train 40] [--test 20]

Writes ROOT/{train,test}/<photograph>/*.png. Photographs are scaled to twice the side; training crops come from their
left half, test crops from the right one, so that no pixel is in both. Needs both of them (requirements-dev.txt);
nothing is downloaded.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": data.astronaut,
    "cat": data.chelsea,
    "coffee": data.coffee,
    "flower": lambda: load_sample_image("flower.jpg"),
    "galaxies": data.hubble_deep_field,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "retina": data.retina,
    "rocket": data.rocket,
    "temple": lambda: load_sample_image("china.jpg"),
    "tissue": data.immunohistochemistry,
}


def main() -> None:
    """Write the folder; the same arguments always give the same files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", type=Path)
    parser.add_argument("--side", type=int, default=128, help="pixels a side")
    parser.add_argument("--train", type=int, default=40, help="training crops of each photograph")
    parser.add_argument("--test", type=int, default=20, help="test crops of each photograph")
    a = parser.parse_args()
    random = np.random.default_rng(0)
    for name, load in PHOTOGRAPHS.items():
        photograph = Image.fromarray(load())
        scale = 2 * a.side / photograph.height
        photograph = np.asarray(photograph.resize((round(photograph.width * scale), 2 * a.side)))
        middle = photograph.shape[1] // 2
        for part, pixels, count in (
            ("train", photograph[:, :middle], a.train),
            ("test", photograph[:, middle:], a.test),
        ):
            folder = a.root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                top, left = (int(random.integers(0, length - a.side + 1)) for length in pixels.shape[:2])
                crop = pixels[top : top + a.side, left : left + a.side]
                Image.fromarray(crop).save(folder / f"{i:03}.png")


if __name__ == "__main__":
    main()
