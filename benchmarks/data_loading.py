"""How many real images per second reach the training loop: the cache on disk against a per-sample loader.

Reads whole epochs of shuffled batches of ROOT/train/CLASS/* as standardised float32 on the device, all ways in turn:

    python benchmarks/data_loading.py --root ROOT --output DIR

``cache`` is ``--data_cache disk`` (memory-mapped uint8, batches by index), ``device`` is ``--data_cache device``, and
``loader`` is torchvision's ImageFolder with a DataLoader, which decodes every image again whenever it is wanted.
Writes DIR/data_loading.json and DIR/data_loading.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from framework.data import load
from framework.data.splits import Split, epoch_batches
from framework.machine import environment
from framework.rng import generator
from framework.run.distributed import resolve_device


def images_per_second(batches: Iterator[torch.Tensor], device: torch.device) -> float:
    """Read one epoch; every batch is touched, as a training step would."""
    total, count = torch.zeros((), device=device), 0
    began = time.perf_counter()
    for images in batches:
        total += images.sum()
        count += len(images)
    total.item()  # waits for the device
    return count / (time.perf_counter() - began)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="image folder: train/CLASS/* and test/CLASS/*")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--im_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5, help="measured epochs of each way, after one that is not")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the per-sample loader")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    device = resolve_device(a.device)

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "device": device,
            "im_size": a.im_size,
            "val_fraction": 0,
            "cache_dir": Path(folder),
            "progress": False,
        }
        began = time.perf_counter()
        cached = load.load("imagefolder", a.root, data_cache="disk", **options)
        decoding = time.perf_counter() - began
        began = time.perf_counter()
        load.load("imagefolder", a.root, data_cache="disk", **options)
        opening = time.perf_counter() - began
        held = load.load("imagefolder", a.root, data_cache="device", **options)

        mean, std = (t.tolist() for t in cached.preprocess.tensors().values())
        steps = [transforms.Resize(a.im_size), transforms.CenterCrop(a.im_size), transforms.ToTensor()]
        folder_set = ImageFolder(str(a.root / "train"), transforms.Compose([*steps, transforms.Normalize(mean, std)]))

        def by_index(split: Split, epoch: int) -> Iterator[torch.Tensor]:
            return split.batches(epoch_batches(len(split), a.batch_size, generator(0, "benchmark", epoch)))

        def loader(workers: int) -> DataLoader[Any]:
            return DataLoader(
                folder_set,
                a.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=workers,
                persistent_workers=workers > 0,  # not started anew for every epoch
                pin_memory=device.type == "cuda",
            )

        def by_sample(loader: DataLoader[Any]) -> Iterator[torch.Tensor]:
            return (images.to(device, non_blocking=True) for images, _ in loader)

        alone, helped = loader(0), loader(a.workers)
        ways = {
            "cache": lambda epoch: by_index(cached.train, epoch),
            "device": lambda epoch: by_index(held.train, epoch),
            "loader, 0 workers": lambda _: by_sample(alone),
            f"loader, {a.workers} workers": lambda _: by_sample(helped),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for epoch in range(1 + a.epochs):
            for name, batches in ways.items():
                rates[name].append(images_per_second(batches(epoch), device))
                print(f"epoch {epoch}, {name}: {rates[name][-1]:,.0f} images/s", flush=True)

    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    images = len(cached.train)
    results = {
        "images": images,
        "image_size": a.im_size,
        "batch_size": a.batch_size,
        "epochs": a.epochs,
        "seconds until the cache is there": decoding,
        "seconds to open it again": opening,
        "images per second": medians,
        "cache against loader": {n: medians["cache"] / m for n, m in medians.items() if n.startswith("loader")},
        "every epoch": {name: values[1:] for name, values in rates.items()},
        "threads": torch.get_num_threads(),
        **environment(device),
    }
    lines = ["| way | images/s, median | lowest .. highest | cache is faster by |", "| --- | --- | --- | --- |"]
    for name, values in rates.items():
        low, high, ratio = min(values[1:]), max(values[1:]), medians["cache"] / medians[name]
        lines.append(f"| {name} | {medians[name]:,.0f} | {low:,.0f} .. {high:,.0f} | {ratio:.2f} |")
    lines += [
        "",
        f"{images:,} images at {a.im_size} pixels, batches of {a.batch_size}, {a.epochs} epochs of each way in turn; "
        f"{results['device']}, torch {results['torch']}, {os.cpu_count()} cores. Making the cache (with the test "
        f"images) took {decoding:.1f} s, opening and checking it again {opening:.1f} s.",
    ]
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "data_loading.json").write_text(json.dumps(results, indent=2) + "\n")
    (a.output / "data_loading.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
