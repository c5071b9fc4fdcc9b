"""How many real images per second reach the training loop: the cache on disk against a per-sample loader.

Reads whole epochs of shuffled batches of ROOT/train/CLASS/* as standardised float32 on the device, all ways in turn:

    python benchmarks/data_loading.py --root ROOT --out DIR

``cache`` is ``--data_cache disk`` (memory-mapped uint8, batches by index), ``device`` is ``--data_cache device``, and
``loader`` is torchvision's ImageFolder with a DataLoader, which decodes every image again whenever it is wanted.
Writes DIR/data_loading.json and DIR/data_loading.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from common import Parser, at_least, markdown, ran_on, run, write_results
from framework.data.load import DataSpec, load
from framework.data.splits import RealData, Split, epoch_batches
from framework.files import make_folder
from framework.machine import environment
from framework.rng import generator
from framework.run.distributed import resolve_device

Way = Callable[[int], Iterator[Tensor]]
"""The batches of an epoch, by its number."""


def images_per_second(batches: Iterator[Tensor], device: torch.device) -> float:
    """Read one epoch; every batch is touched, as a training step would."""
    total, count = torch.zeros((), device=device), 0
    began = time.perf_counter()
    for images in batches:
        total += images.sum()
        count += len(images)
    total.item()  # waits for the device
    return count / (time.perf_counter() - began)


def timed_load(spec: DataSpec, how: str, device: torch.device) -> tuple[RealData, float]:
    """The data set with ``--data_cache how``, and the seconds until it was there."""
    began = time.perf_counter()
    real = load(replace(spec, data_cache=how), device, progress=False)
    return real, time.perf_counter() - began


def by_index(split: Split, batch_size: int) -> Way:
    """Our own way: batches drawn by their indices."""
    return lambda epoch: split.batches(epoch_batches(len(split), batch_size, generator(0, "benchmark", epoch)))


def by_sample(images: ImageFolder, batch_size: int, workers: int, device: torch.device) -> Way:
    """torchvision's way: every image is opened, decoded and transformed when it is drawn."""
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,  # not started anew for every epoch
        pin_memory=device.type == "cuda",
    )
    return lambda epoch: (batch.to(device, non_blocking=True) for batch, _ in loader)


def per_sample_images(root: Path, cached: RealData, im_size: int) -> ImageFolder:
    """The training images with the same resizing and standardisation as ours."""
    mean, std = (t.tolist() for t in cached.preprocess.tensors().values())
    steps = [transforms.Resize(im_size), transforms.CenterCrop(im_size), transforms.ToTensor()]
    return ImageFolder(str(root / "train"), transforms.Compose([*steps, transforms.Normalize(mean, std)]))


def measure(ways: dict[str, Way], epochs: int, device: torch.device) -> dict[str, list[float]]:
    """Images per second of each way, in turn; the first epoch is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(1 + epochs):
        for name, batches in ways.items():
            rates[name].append(images_per_second(batches(epoch), device))
            print(f"epoch {epoch}, {name}: {rates[name][-1]:,.0f} images/s", flush=True)
    return {name: values[1:] for name, values in rates.items()}


def compare(a: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """All figures; ``folder`` is for the cache."""
    spec = DataSpec("imagefolder", a.root, im_size=a.im_size, val_fraction=0, cache_dir=folder)
    cached, decoding = timed_load(spec, "disk", device)
    _, opening = timed_load(spec, "disk", device)
    held, _ = timed_load(spec, "device", device)
    files = per_sample_images(a.root, cached, a.im_size)
    ways = {"cache": by_index(cached.train, a.batch_size), "device": by_index(held.train, a.batch_size)}
    for workers in (0, a.workers):
        ways[f"loader, {workers} workers"] = by_sample(files, a.batch_size, workers, device)
    rates = measure(ways, a.epochs, device)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "images": len(cached.train),
        "image_size": a.im_size,
        "batch_size": a.batch_size,
        "epochs": a.epochs,
        "seconds until the cache is there": decoding,
        "seconds to open it again": opening,
        "images per second": medians,
        "cache against loader": {n: medians["cache"] / m for n, m in medians.items() if n.startswith("loader")},
        "every epoch": rates,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        **environment(device),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each way."""
    medians = results["images per second"]
    rows = [
        (name, f"{medians[name]:,.0f}", f"{min(values):,.0f} .. {max(values):,.0f}",
         f"{medians['cache'] / medians[name]:.2f}")
        for name, values in results["every epoch"].items()
    ]  # fmt: skip
    note = (
        f"{results['images']:,} images at {results['image_size']} pixels, batches of {results['batch_size']}, "
        f"{results['epochs']} epochs of each way in turn; {ran_on(results)}, {results['cores']} cores. Making the "
        f"cache (with the test images) took {results['seconds until the cache is there']:.1f} s, opening and checking "
        f"it again {results['seconds to open it again']:.1f} s."
    )
    return markdown(("way", "images/s, median", "lowest .. highest", "cache is faster by"), rows) + f"\n\n{note}"


def main() -> None:
    """Parse, measure, write."""
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="image folder: train/CLASS/* and test/CLASS/*")
    parser.add_out()
    parser.add_argument("--im_size", type=at_least(1), default=32)
    parser.add_argument("--batch_size", type=at_least(1), default=500)
    parser.add_argument("--epochs", type=at_least(1), default=5, help="measured epochs of each way, after one that is "
                        "not")  # fmt: skip
    parser.add_argument(
        "--workers", type=at_least(1), default=os.cpu_count(), help="processes of the per-sample loader"
    )
    parser.add_device()
    a = parser.parse_args()
    device = resolve_device(a.device)
    make_folder(a.out, "--out")
    with tempfile.TemporaryDirectory() as folder:
        results = compare(a, device, Path(folder))
    write_results(a.out, "data_loading", results, table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
