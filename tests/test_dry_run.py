"""The dry run: what it says, what it needs, and that it leaves nothing behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import COMMANDS, Command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from framework.config.bptt import DEFAULTS, parse
from framework.data.registry import DATASETS
from framework.data.subsets import SUBSETS
from framework.dry_run import preview
from framework.errors import UserError
from framework.networks.flat import activation_floats
from framework.networks.registry import build
from framework.run.memory import size_text, window_bytes
from main import main

MISSING = "/there/is/no/such/folder"


def meta(arch: str, channels: int, side: int, classes: int, width: int = 128) -> nn.Module:
    with torch.device("meta"):
        return build(arch, channels, side, classes, width=width)


def shown(line: str, root: str | Path = MISSING) -> str:
    return preview(parse([*line.split(), "--root", str(root)])[0])


# ---- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_example_command_is_explained_without_its_data(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.arguments, "--root", MISSING, "--dry_run"]) == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    assert not [fact for fact in (f"method: {command.policy},", *command.preview) if fact not in text], text
    assert list(tmp_path.iterdir()) == []


COUNTED = {"imagefolder", *SUBSETS}  # how many images there are is known from their files alone


@pytest.mark.parametrize("dataset", sorted(DATASETS.keys() - COUNTED))
def test_a_data_set_of_known_size_is_explained_without_its_files(dataset: str) -> None:
    text = shown(f"--dataset {dataset}")
    assert "unknown" not in text
    assert "steps per epoch: about" in text


def test_of_an_imagenet_subset_only_the_number_of_images_is_unknown(tmp_path: Path) -> None:
    text = shown("--dataset imagewoof --arch convnet4")
    assert "steps per epoch: unknown until --root is here" in text
    assert "classes: unknown" not in text
    assert "3 x 128 x 128 images" in text
    for part, count in (("train", 4), ("val", 1)):
        for wnid in SUBSETS["imagewoof"]:
            (tmp_path / part / wnid).mkdir(parents=True)
            for i in range(count):
                (tmp_path / part / wnid / f"{i}.JPEG").touch()
    assert "about 3 (36 real images, 10 per step)" in shown("--dataset imagewoof --batch_size 10", tmp_path)


def test_images_from_disk_are_not_counted_as_device_memory(tmp_path: Path) -> None:
    line = f"--dataset tiny-imagenet-200 --data_cache disk --cache_dir {tmp_path / 'cache'}"
    assert f"data: streamed from {tmp_path / 'cache'}, 1.35 GB once decoded" in shown(line)
    assert memory(line)["data"] == 0
    assert "data: streamed" not in shown("--dataset tiny-imagenet-200 --data_cache device")
    assert list(tmp_path.iterdir()) == []


def test_an_imagefolder_that_is_not_there_is_estimated_and_said_to_be() -> None:
    text = shown("--dataset imagefolder --task_sampler_nc 50")
    assert f"classes: unknown, --root {MISSING}" in text
    assert "steps per epoch: unknown" in text


def test_an_imagefolder_that_is_there_is_counted(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("test", 3)):
        for name in ("cat", "dog", "owl"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / part / name / f"{i}.png")
    text = shown("--dataset imagefolder --im_size 16 --batch_size 10 --epochs 4", tmp_path)
    assert "about 5 (54 real images, 10 per step), 20 in all" in text
    assert "unknown" not in text
    with pytest.raises(UserError, match="--task_sampler_nc 4 is more than the 3 classes"):
        shown("--dataset imagefolder --im_size 16 --task_sampler_nc 4", tmp_path)


def test_it_begins_with_the_whole_configuration() -> None:
    text = preview(DEFAULTS)
    config, end = json.JSONDecoder().raw_decode(text)
    assert config == json.loads(DEFAULTS.to_json())
    assert text[end:].startswith("\n\nmethod: bptt, ")
    assert text.endswith(f"folder: {DEFAULTS.folder}")


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        # digits have 1437 training images, of which 144 are kept apart
        ("--epochs 10", "about 6 (1,293 real images, 200 per step), 60 in all"),
        ("--epochs 10 --start_epoch 4", "about 6 (1,293 real images, 200 per step), 36 in all"),
        ("--epochs 10 --select test", "about 7 (1,437 real images, 200 per step), 70 in all"),
        ("--epochs 10 --val_fraction 0.5", "about 3 (718 real images, 200 per step), 30 in all"),
        ("--epochs 10 --limit_train 500", "about 2 (500 real images, 200 per step), 20 in all"),
        ("--epochs 10 --batch_size 5000", "about 1 (1,293 real images, 1293 per step), 10 in all"),
        ("--im_size 32 --arch convnet4", "1 x 32 x 32 images"),
        ("--depth 1 --width 4", "network: convnet, 694 parameters"),  # 36 + 8 + 650
        ("--window 5 --totwindow 9", "method: t-bptt, "),
        ("--device cpu", "device: cpu"),
    ],
)
def test_facts_follow_the_flags(line: str, fact: str) -> None:
    assert fact in shown(line)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--task_sampler_nc 11", "--task_sampler_nc 11"),
        ("--depth 4", "depth 4"),
        ("--device cuda:99", "--device cuda:99"),
        ("--device toaster", "--device toaster"),
    ],
)
def test_what_could_not_run_is_refused(line: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        shown(line)


# ---- memory ----------------------------------------------------------------------------------------


def test_activations_of_the_literatures_convnet_are_counted_by_hand() -> None:
    # Per block: convolution, norm and ReLU at full size, pooling at a quarter; then the logits.
    blocks = [3 * 128 * side**2 + 128 * (side // 2) ** 2 for side in (32, 16, 8)]
    assert activation_floats(meta("convnet", 3, 32, 10), 3, 32) == sum(blocks) + 10 == 559_114


@pytest.mark.parametrize(("channels", "side", "classes", "width"), [(1, 28, 10, 5), (3, 17, 4, 6)])
def test_activations_are_those_of_a_real_forward_pass(channels: int, side: int, classes: int, width: int) -> None:
    network = build("convnet", channels, side, classes, width=width)
    values, total = torch.zeros(1, channels, side, side), 0
    for layer in [*network.features, nn.Flatten(), network.classifier]:
        values = layer(values)
        total += 0 if isinstance(layer, nn.Flatten) else values.numel()
    probed = meta("convnet", channels, side, classes, width)
    assert activation_floats(probed, channels, side) == total
    assert not any(layer._forward_hooks for layer in probed.modules())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 1000))
def test_the_graph_of_the_window_grows_with_its_length_and_the_batch(length: int, batch: int) -> None:
    network = meta("convnet", 3, 32, 10, 16)

    def bytes_for(length: int, batch: int) -> float:
        return window_bytes("higher", network, 3, 32, length, batch, chunk=25)

    assert bytes_for(length, batch) == pytest.approx(length * bytes_for(1, batch))
    assert bytes_for(1, batch) - bytes_for(1, 0) == pytest.approx(batch * (bytes_for(1, 1) - bytes_for(1, 0)))
    # At least the activations themselves, and each step's own parameters.
    assert bytes_for(1, 1) - bytes_for(1, 0) >= 4 * activation_floats(network, 3, 32)
    assert bytes_for(1, 0) >= 4 * sum(parameter.numel() for parameter in network.parameters())


CHUNK = 25


def test_replay_keeps_vectors_for_every_step_and_activations_for_one_chunk() -> None:
    network = meta("convnet", 3, 32, 10, 16)
    parameters = sum(parameter.numel() for parameter in network.parameters())

    def bytes_for(length: int, batch: int) -> float:
        return window_bytes("replay", network, 3, 32, length, batch, CHUNK)

    # A gradient for each step; states of three vectors: 5 kept and 5 of a segment, against 3 (of up to 4 steps) and 4.
    assert bytes_for(20, 10) - bytes_for(10, 10) == pytest.approx(4 * parameters * (10 + 3 * ((4 + 5) - (3 + 4))))
    assert bytes_for(10, 20) > bytes_for(10, 10)
    assert bytes_for(10, CHUNK) == bytes_for(10, 100 * CHUNK)


def memory(line: str) -> dict[str, float]:
    """The dry run's estimates, in bytes."""
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    (text,) = (row.split(": ", 1)[1] for row in shown(line).splitlines() if row.startswith("memory, "))
    entries = (entry.rsplit(" ", 2) for entry in text.split(", "))
    return {name: float(number) * units[unit] for name, number, unit in entries}


@pytest.mark.parametrize(
    ("small", "large", "part"),
    [
        ("--window 10", "--window 20 --totwindow 21", "window"),
        ("--totwindow 20", "--totwindow 40 --truncation bptt", "window"),
        ("--num_per_class 5", "--num_per_class 5 --batch_per_class 5", "window"),
        ("--task_sampler_nc 5", "--task_sampler_nc 10", "window"),
        ("--width 32", "--width 64", "window"),
        ("--batch_size 100", "--batch_size 200", "real batch"),
        ("--dataset digits", "--dataset cifar10", "data"),
    ],
)
def test_the_estimate_grows_with_what_needs_memory(small: str, large: str, part: str) -> None:
    before, after = memory(f"--engine higher {small}"), memory(f"--engine higher {large}")
    assert after[part] > 1.05 * before[part]
    assert after["together"] > before["together"]
    for estimate in (before, after):
        parts = estimate["window"] + estimate["real batch"] + estimate["data"]
        assert estimate["together"] == pytest.approx(parts, rel=0.02)


def test_the_datas_memory_is_that_of_its_float32_images() -> None:
    assert memory("--dataset mnist")["data"] == pytest.approx(4 * 28**2 * 70_000, rel=0.01)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (123_456, "123 kB"),
        (2.5e15, "2.5e+03 TB"),
        (999_600, "1 MB"),
    ],
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--precision tf32 --device cpu", "--precision tf32"),
        ("--accelerate graphs --device cpu", "--accelerate graphs"),
        ("--accelerate both --device cpu", "--accelerate both"),
        ("--accelerate compile --norm batch --device cpu", "--accelerate compile"),
    ],
)
def test_what_a_device_cannot_do_is_refused(flags: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        preview(parse(flags.split())[0])


def test_a_long_run_on_a_cpu_is_compiled_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.inner.execution.has_compiler", lambda device: True)
    short, long = (preview(parse(["--device", "cpu", "--epochs", str(epochs)])[0]) for epochs in (1, 1_000_000))
    assert "compile" not in next(line for line in short.splitlines() if line.startswith("engine: "))
    assert "compile" in next(line for line in long.splitlines() if line.startswith("engine: "))
    monkeypatch.setattr("framework.inner.execution.has_compiler", lambda device: False)
    plain = preview(parse(["--device", "cpu", "--epochs", "1000000"])[0])
    assert "compile" not in next(line for line in plain.splitlines() if line.startswith("engine: "))
    with pytest.raises(UserError, match="C.. compiler"):
        preview(parse(["--device", "cpu", "--accelerate", "compile"])[0])
