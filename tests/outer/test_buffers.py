"""Files of experts: round trips, others' files, unfinished folders, and one line for each fault."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from problems import CPU
from torch import Tensor, nn

from framework.data.preprocess import Standardise, Zca
from framework.errors import UserError
from framework.files import EXPERTS, read_json, write_json
from framework.inner.augment import Augmentation
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build, same_maker, specify
from framework.outer.buffers import writer as writing
from framework.outer.buffers.layout import file_name, layout
from framework.outer.buffers.reader import Buffer
from framework.outer.buffers.record import FLAGS, TOLERANCE, compare, read_experts, rows_checksum, weighted_norms
from framework.outer.buffers.writer import BufferWriter, keep
from framework.outer.matching.experts import Expert, ExpertRecipe, Sharpness
from framework.records import Experts, ExpertSource, read_record
from framework.rng import generator

CLASSES, SIDE, WIDTH, DEPTH, EPOCHS = 3, 8, 8, 2, 2
SHAPES = [(8, 2, 3, 3), (8,), (8,), (8,), (8, 8, 3, 3), (8,), (8,), (8,), (3, 32), (3,)]

RECIPE = ExpertRecipe(0.01, 0.0, 0.0, 8, EPOCHS, False, Sharpness(), Augmentation("flip_rotate", False, SIDE))
TRAINING = RECIPE.record(images=22, seed=0)
SPEC = specify("convnet", 2, SIDE, CLASSES, width=WIDTH, depth=DEPTH)
SOURCE = ExpertSource("digits", ["a", "b", "c"], "standardise", {"mean": 1.5, "std": 0.25}, "convnet", SPEC, None)


def network(norm: str = "instance", classes: int = CLASSES, width: int = WIDTH) -> FlatNetwork:
    return FlatNetwork(build("convnet", 2, SIDE, classes, width=width, depth=DEPTH, norm=norm), CPU)


NETWORK = network()


def expert(number: int, epochs: int = EPOCHS) -> Expert:
    """A made-up trajectory."""
    gen = generator(number, "made up")
    trajectory = torch.stack([NETWORK.init(gen) for _ in range(epochs + 1)])
    return Expert(number, trajectory, [2.0 - 0.1 * e + number for e in range(epochs)], [0.1 * e for e in range(epochs)])


def writer(folder: Path, count: int = 5, interval: int = 2) -> BufferWriter:
    return BufferWriter(folder, NETWORK, SOURCE, TRAINING, count, interval)


def write(folder: Path, count: int = 5, interval: int = 2) -> None:
    with writer(folder, count, interval) as open_folder:
        for number in open_folder.missing:
            open_folder.add(expert(number))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def message(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- the reference: a ConvNet of the literature, with a bias in each convolution ------------------------


class Reference(nn.Module):
    """As in dataset condensation's code: convolution, norm, activation, pooling; twice; then a linear layer."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (2, WIDTH):
            layers.append(nn.Conv2d(channels, WIDTH, 3, padding=1))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(WIDTH))
            elif norm != "none":
                layers.append(nn.GroupNorm({"instance": WIDTH, "group": 4, "layer": 1}[norm], WIDTH))
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(WIDTH * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.classifier(self.features(images).flatten(1))
        return result


def references(norm: str = "instance", snapshots: int = 3) -> list[Reference]:
    """Networks with all parameters away from their defaults."""
    gen, result = generator(0, "reference", norm), []
    for _ in range(snapshots):
        net = Reference(norm)
        for p in net.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=gen)
        result.append(net)
    return result


def foreign(
    folder: Path, norm: str = "instance", *, number: int = 0, parameters: bool = False, experts: int = 2
) -> None:
    """A file as MTT's buffer.py writes it."""
    kinds: Any = (lambda p: nn.Parameter(p.detach())) if parameters else (lambda p: p.detach())
    content = [[[kinds(p) for p in net.parameters()] for net in references(norm)] for _ in range(experts)]
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / file_name(number))


IMAGES = torch.randn(5, 2, SIDE, SIDE, generator=generator(0, "images"))


@pytest.mark.parametrize("parameters", [False, True])
@pytest.mark.parametrize("norm", ["instance", "batch", "none", "group", "layer"])
def test_others_experts_are_read_with_their_logits(norm: str, parameters: bool, tmp_path: Path) -> None:
    foreign(tmp_path, norm, parameters=parameters)
    net = network(norm)
    buffer = Buffer(tmp_path, net)
    assert (len(buffer), buffer.epochs, buffer.record) == (2, 2, None)
    for epoch, reference in enumerate(references(norm)):
        theta = buffer.snapshot(1, epoch)
        assert theta.shape == (net.size,)
        assert theta.dtype == torch.float32
        assert not theta.requires_grad
        assert (net(theta, IMAGES) - reference.train()(IMAGES)).abs().max() < 1e-5


def test_tensors_saved_on_a_gpu_are_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        foreign(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / file_name(0))
    theta = Buffer(tmp_path, NETWORK).snapshot(0, 1)
    assert theta.device == CPU
    assert (NETWORK(theta, IMAGES) - references()[1](IMAGES)).abs().max() < 1e-5


# ---- round trips ---------------------------------------------------------------------------------------


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b")
    buffer = Buffer(tmp_path / "a" / "b", NETWORK)
    assert (len(buffer), buffer.epochs) == (5, EPOCHS)
    for number in range(5):
        for epoch in range(EPOCHS + 1):
            assert torch.equal(buffer.snapshot(number, epoch), expert(number).trajectory[epoch])
    first, last = buffer.segment(3, 0, 2)
    assert torch.equal(first, expert(3).trajectory[0])
    assert torch.equal(last, expert(3).trajectory[2])


def test_others_read_our_files_as_nested_lists(tmp_path: Path) -> None:
    write(tmp_path)
    for number, experts in enumerate((2, 2, 1)):
        content = torch.load(tmp_path / file_name(number), weights_only=True)
        assert type(content) is list and len(content) == experts
        for i, trajectory in enumerate(content):
            assert type(trajectory) is list and len(trajectory) == EPOCHS + 1
            for epoch, snapshot in enumerate(trajectory):
                assert type(snapshot) is list
                assert [tuple(p.shape) for p in snapshot] == SHAPES
                assert {(p.dtype, p.device, p.is_contiguous()) for p in snapshot} == {(torch.float32, CPU, True)}
                reference = Reference("instance")
                for p, value in zip(reference.parameters(), snapshot, strict=True):
                    p.data = value
                theta = expert(2 * number + i).trajectory[epoch]
                assert (reference(IMAGES) - NETWORK(theta, IMAGES)).abs().max() < 1e-5
        pointers = [p.untyped_storage().data_ptr() for trajectory in content for s in trajectory for p in s]
        assert len(set(pointers)) == len(pointers)  # no tensor lies in another's memory


def test_what_stands_beside_the_files(tmp_path: Path) -> None:
    write(tmp_path)
    assert names(tmp_path) == [EXPERTS, *map(file_name, range(3))]
    record = read_experts(tmp_path)
    assert record is not None
    assert (record.source, record.training, record.count) == (SOURCE, TRAINING, 5)
    assert [file.experts for file in record.files] == [[0, 1], [2, 3], [4]]
    assert [file.name for file in record.files] == [file_name(n) for n in range(3)]
    assert [(curve.number, curve.losses, curve.accuracies) for curve in record.curves] == [
        (n, expert(n).losses, expert(n).accuracies) for n in range(5)
    ]
    assert (record.training.rho, record.training.alpha, record.training.adaptive) == (0.01, 0.3, True)
    assert (record.training.augmentation, record.torch) == ("flip_rotate", torch.__version__)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    wide = FlatNetwork(build("convnet", 2, SIDE, CLASSES, width=256, depth=2), CPU)
    shapes = [slot.shape for slot in layout(wide)]
    snapshot = 4 * sum(shape.numel() for shape in shapes)
    torch.save([[[torch.rand(shape) for shape in shapes] for _ in range(25)]], tmp_path / file_name(0))
    process = psutil.Process()
    before = process.memory_info().rss
    buffer = Buffer(tmp_path, wide)
    buffer.snapshot(0, 3)
    assert process.memory_info().rss - before < 8 * snapshot  # of 25


def test_first_files_and_first_experts_of_each(tmp_path: Path) -> None:
    write(tmp_path)

    def taken(**limits: int) -> list[int]:
        buffer = Buffer(tmp_path, NETWORK, **limits)
        all_experts = {tuple(expert(n).trajectory[0][:5].tolist()): n for n in range(5)}
        return [all_experts[tuple(buffer.snapshot(i, 0)[:5].tolist())] for i in range(len(buffer))]

    assert taken() == [0, 1, 2, 3, 4]
    assert taken(max_files=2) == [0, 1, 2, 3]
    assert taken(max_experts=1) == [0, 2, 4]
    assert taken(max_files=2, max_experts=1) == [0, 2]
    assert taken(max_files=9, max_experts=9) == [0, 1, 2, 3, 4]


# ---- unfinished folders --------------------------------------------------------------------------------


def test_a_finished_expert_is_kept_at_once(tmp_path: Path) -> None:
    with writer(tmp_path) as folder:
        assert folder.missing == [0, 1, 2, 3, 4]
        folder.add(expert(0))
        assert folder.missing == [1, 2, 3, 4]
        assert names(tmp_path) == ["expert_00000.pt", EXPERTS]
        folder.add(expert(1))
        assert names(tmp_path) == [EXPERTS, file_name(0)]
        folder.add(expert(3))
    with writer(tmp_path) as folder:  # as after a kill
        assert folder.missing == [2, 4]
        folder.add(expert(4))
        assert names(tmp_path) == ["expert_00003.pt", "expert_00004.pt", EXPERTS, file_name(0)]  # 2 comes first
        folder.add(expert(2))
        assert folder.missing == []
    assert names(tmp_path) == [EXPERTS, *map(file_name, range(3))]
    record = read_experts(tmp_path)
    assert record is not None
    assert [file.experts for file in record.files] == [[0, 1], [2, 3], [4]]
    assert torch.equal(Buffer(tmp_path, NETWORK).snapshot(2, 1), expert(2).trajectory[1])


def test_an_expert_kept_meanwhile_splits_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process keeps the last one while the first ones are being collected."""
    look = BufferWriter._loose

    def look_and_keep(folder: BufferWriter) -> list[int]:
        seen = look(folder)
        if seen == [0, 1]:
            keep(folder.folder, expert(2))
        return seen

    with writer(tmp_path, 3, 3) as folder:
        folder.add(expert(0))
        keep(tmp_path, expert(1))
        with monkeypatch.context() as patched:
            patched.setattr(BufferWriter, "_loose", look_and_keep)
            folder.collect()
        folder.collect()
    record = read_experts(tmp_path)
    assert record is not None
    assert [file.experts for file in record.files] == [[0, 1, 2]]


def test_an_experts_own_file_holds_no_other(tmp_path: Path) -> None:
    """Those trained side by side are views of one tensor, which must not be written with each."""
    both = torch.stack([expert(n).trajectory for n in range(100)])
    with writer(tmp_path, 100, 100) as folder:
        folder.add(replace(expert(0), trajectory=both[0]))
        assert (tmp_path / "expert_00000.pt").stat().st_size < 2 * 4 * both[0].numel()


@pytest.mark.parametrize("moment", ["file", "record", "removal"])
def test_a_kill_while_experts_move_loses_none(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    def write_until_killed() -> None:
        with monkeypatch.context() as patch, writer(tmp_path, 4) as folder:
            folder.add(expert(0))
            if moment == "file":  # between writing the file and listing it
                patch.setattr(writing, "write_json", die)
            elif moment == "record":  # before the file is written
                patch.setattr(folder, "_load", die)
            else:  # between listing the file and removing the experts' own
                patch.setattr(Path, "unlink", lambda path, **_: die() if path.suffix == ".pt" else os.unlink(path))
            folder.add(expert(1))

    with pytest.raises(Killed):
        write_until_killed()
    with writer(tmp_path, 4) as folder:
        assert folder.missing == [2, 3]
        assert names(tmp_path) == [EXPERTS, file_name(0)]
        folder.add(expert(2))
        folder.add(expert(3))
    buffer = Buffer(tmp_path, NETWORK)
    assert [bool(torch.equal(buffer.snapshot(n, 2), expert(n).trajectory[2])) for n in range(4)] == [True] * 4


def test_more_or_fewer_experts_later(tmp_path: Path) -> None:
    write(tmp_path, count=3)
    assert names(tmp_path) == [EXPERTS, file_name(0), file_name(1)]
    before = (tmp_path / file_name(1)).read_bytes()
    write(tmp_path, count=6)
    assert (tmp_path / file_name(1)).read_bytes() == before
    record = read_experts(tmp_path)
    assert record is not None
    assert [file.experts for file in record.files] == [[0, 1], [2], [3, 4], [5]]
    with writer(tmp_path, count=2) as folder:
        assert folder.missing == []
    with writer(tmp_path / "short") as folder:
        folder.add(expert(0))
    write(tmp_path / "short", count=1)
    assert names(tmp_path / "short") == [EXPERTS, file_name(0)]


def test_a_finished_folder_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix in (".pt", ".json")}
    write(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix in (".pt", ".json")}


OTHERS = [
    (replace(SOURCE, dataset="mnist"), TRAINING, "dataset digits, not mnist (--dataset)"),
    (SOURCE, replace(TRAINING, rho=0.02, seed=1), "rho 0.01, not 0.02 (--rho); seed 0, not 1 (--seed)"),
    (SOURCE, replace(TRAINING, epochs=3), "epochs 2, not 3 (--train_epochs)"),
    (SOURCE, replace(TRAINING, augmentation="condensation"), "augmentation flip_rotate, not condensation (--dsa)"),
    (replace(SOURCE, validation="ab"), TRAINING, "other validation images (--val_fraction)"),
    (replace(SOURCE, spec=replace(SPEC, width=16)), TRAINING, "width 8, not 16 (--width)"),
]


@pytest.mark.parametrize(("source", "training", "differences"), OTHERS, ids=[text for *_, text in OTHERS])
def test_experts_trained_otherwise_are_not_continued(
    source: ExpertSource, training: Any, differences: str, tmp_path: Path
) -> None:
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    text = message(BufferWriter(tmp_path, NETWORK, source, training, 9, 2).__enter__)
    assert text == (
        f"--buffer_path {tmp_path}: has experts that were trained otherwise: {differences}; give these flags, or "
        "choose another folder"
    )
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_nothing_is_written_among_others_experts(tmp_path: Path) -> None:
    foreign(tmp_path)
    assert message(writer(tmp_path).__enter__) == (
        f"--buffer_path {tmp_path}: has experts but no experts.json, so they are another program's; choose another "
        "folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == [file_name(0)]


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with writer(tmp_path):
        assert message(writer(tmp_path).__enter__) == (
            f"{tmp_path}: another run is writing there; wait for its end, or choose another --buffer_path"
        )
    with writer(tmp_path):
        pass


def test_a_damaged_expert_can_be_trained_again(tmp_path: Path) -> None:
    with writer(tmp_path) as folder:
        folder.add(expert(0))
    path = tmp_path / "expert_00000.pt"
    path.write_bytes(path.read_bytes()[:100])
    with writer(tmp_path) as folder:
        text = message(folder.add, expert(1))
        assert re.fullmatch(
            rf"{re.escape(str(path))}: damaged \(\w+\); delete it, and this expert is trained again", text
        )
        path.unlink()
        assert folder.missing == [0, 2, 3, 4]
        folder.add(expert(0))
    assert len(Buffer(tmp_path, NETWORK)) == 2


# ---- faults of folders and files -----------------------------------------------------------------------


def test_folders_without_experts(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert message(Buffer, none, NETWORK) == f"--buffer_path {none}: no such folder; give one with replay_buffer_0.pt"
    assert message(Buffer, tmp_path, NETWORK) == (
        f"--buffer_path {tmp_path}: no replay_buffer_0.pt; make experts with main.py buffer, or give the folder that "
        "has them"
    )


@pytest.mark.parametrize(("gap", "there", "remedy"), [(1, (0, 2), ", or give --max_files 1"), (0, (1,), "")])
def test_gaps_between_files_are_told(gap: int, there: tuple[int, ...], remedy: str, tmp_path: Path) -> None:
    for number in there:
        foreign(tmp_path, number=number)
    (tmp_path / "replay_buffer_00.pt").touch()  # nobody's name
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{tmp_path / file_name(gap)}: missing, while later ones are there or listed; restore it{remedy}"
    )
    if gap:
        assert len(Buffer(tmp_path, NETWORK, max_files=1)) == 2


def test_a_listed_file_that_is_missing_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / file_name(2)).unlink()
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{tmp_path / file_name(2)}: missing, while later ones are there or listed; restore it, or give --max_files 2"
    )


def test_our_files_are_held_to_their_checksums(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / file_name(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{path}: damaged, its checksum is not that of experts.json; restore it from a copy"
    )
    assert len(Buffer(tmp_path, NETWORK, max_files=1)) == 2


def test_a_file_that_is_not_listed_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    foreign(tmp_path, number=3)
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{tmp_path / file_name(3)}: not listed in experts.json; give the command again that makes these experts, "
        "which writes both"
    )


class Unsafe:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("made by a pickle",))


@pytest.mark.parametrize("kind", ["cut short", "no file of torch", "code", "old format"])
def test_files_that_cannot_be_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    foreign(tmp_path)
    path = tmp_path / file_name(0)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "no file of torch":
        path.write_text("hello")
    elif kind == "code":
        torch.save([[[Unsafe()]]], path)
    else:
        torch.save([[[torch.zeros(3)]]], path, _use_new_zipfile_serialization=False)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: damaged, or not made of tensors alone \(\w+\); restore it, or make it again with "
        "main.py buffer",
        message(Buffer, tmp_path, NETWORK),
    )
    assert not (tmp_path / "made by a pickle").exists()


SNAPSHOT = [torch.rand(shape) for shape in SHAPES]
MALFORMED = {
    "a tensor": torch.zeros(3), "a dictionary": {"theta": torch.zeros(3)}, "no experts": [], "no snapshots": [[]],
    "one snapshot": [[SNAPSHOT]], "numbers": [[[1.0], [2.0]]],
    "whole numbers": [[[torch.ones(3, dtype=torch.int64)]] * 2],
    "one list too few": [[torch.zeros(3), torch.ones(3)]], "nowhere": [[[torch.ones(3, device="meta")]] * 2],
    "sparse": [[[torch.eye(3).to_sparse()]] * 2],
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_files_of_another_structure(kind: str, tmp_path: Path) -> None:
    torch.save(MALFORMED[kind], tmp_path / file_name(0))
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{tmp_path / file_name(0)}: not a list of experts, each a list of two or more snapshots, each a list of "
        "tensors; give files of main.py buffer, of MTT or of FTD"
    )


def test_experts_of_another_network(tmp_path: Path) -> None:
    foreign(tmp_path)
    where = f"{tmp_path / file_name(0)}: expert 0 has"
    remedy = "give the --model, --dataset and --im_size that it was trained with"
    assert message(Buffer, tmp_path, network(width=16)) == (
        f"{where} 8 x 2 x 3 x 3 as parameter 0, this network of 3 classes 16 x 2 x 3 x 3; {remedy}"
    )
    assert message(Buffer, tmp_path, network(classes=10)) == (
        f"{where} 3 x 32 as parameter 8, this network of 10 classes 10 x 32; {remedy}"
    )
    assert message(Buffer, tmp_path, network("none")) == (
        f"{where} 10 parameters, this network of 3 classes 6; {remedy}"
    )


def test_every_snapshot_is_held_to_its_shapes(tmp_path: Path) -> None:
    other = [*SNAPSHOT[:-1], torch.rand(4)]
    torch.save([[SNAPSHOT] * 3, [SNAPSHOT, SNAPSHOT, other]], tmp_path / file_name(0))
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{tmp_path / file_name(0)}: expert 1 has 4 as parameter 9, this network of 3 classes 3; "
        "give the --model, --dataset and --im_size that it was trained with"
    )


def test_experts_of_different_length(tmp_path: Path) -> None:
    torch.save([[SNAPSHOT] * 3], tmp_path / file_name(0))
    torch.save([[SNAPSHOT] * 3, [SNAPSHOT] * 2], tmp_path / file_name(1))
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{tmp_path / file_name(1)}: expert 1 has 2 snapshots, those before it 3; keep experts of different length in "
        "folders of their own"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_told_when_they_are_read(value: float, tmp_path: Path) -> None:
    torch.save([[SNAPSHOT, SNAPSHOT, [*SNAPSHOT[:-1], torch.tensor([0.0, value, 0.0])]]], tmp_path / file_name(0))
    buffer = Buffer(tmp_path, NETWORK)
    buffer.snapshot(0, 1)
    where = f"{tmp_path / file_name(0)}: expert 0"
    text = f"{where} is infinite or NaN after epoch 2; train it again with a lower --lr_teacher"
    assert message(buffer.snapshot, 0, 2) == text
    assert message(buffer.segment, 0, 0, 2) == text


def test_experts_that_never_moved_are_told_when_they_are_met(tmp_path: Path) -> None:
    """FTD's faults: snapshots that are all the last one make theta_0 = theta*, and the loss 0 / 0."""
    torch.save([[SNAPSHOT] * 3], tmp_path / file_name(0))
    assert message(Buffer(tmp_path, NETWORK).segment, 0, 0, 2) == (
        f"{tmp_path / file_name(0)}: expert 0 is the same after epochs 0 and 2, as if it had not been trained; make "
        "the experts again with main.py buffer"
    )


# ---- whether experts fit a run -------------------------------------------------------------------------


def record(**source: Any) -> Experts:
    return Experts(replace(SOURCE, **source), TRAINING, 0, [], [], "cpu", "2", "3", 1.0)


def test_experts_of_the_same_data_and_network_fit() -> None:
    assert compare(Path("x"), record(), SOURCE) == []
    close = {"mean": 1.5 * (1 + 1e-7), "std": 0.25}  # another machine's rounding
    assert compare(Path("x"), record(preprocess_norms=close), SOURCE) == []
    assert compare(Path("x"), record(validation="ab"), SOURCE) == []
    assert compare(Path("x"), record(validation="ab"), replace(SOURCE, validation="ab")) == []


MISMATCHES = [
    ({"dataset": "mnist"}, "dataset mnist, not digits (--dataset)"),
    ({"class_names": ["a", "c", "b"]}, "other class names (--dataset)"),
    ({"preprocess": "zca", "preprocess_norms": {"whiten": 1.0}}, "preprocess zca, not standardise (--zca)"),
    ({"preprocess_norms": {"mean": 1.501, "std": 0.25}}, "other values of the preprocessing (--val_fraction)"),
    ({"arch": "vgg11"}, "arch vgg11, not convnet (--arch)"),
    ({"spec": replace(SPEC, depth=3, norm="batch", act="gelu", pool="max")},
     "depth 3, not 2 (--depth); norm batch, not instance (--norm); act gelu, not relu (--act); "
     "pool max, not avg (--pool)"),
    ({"spec": replace(SPEC, image_size=16)}, "image size 16, not 8 (--im_size)"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "differences"), MISMATCHES, ids=[text for _, text in MISMATCHES])
def test_experts_of_other_data_or_another_network_do_not_fit(changes: dict[str, Any], differences: str) -> None:
    assert message(compare, Path("x"), record(**changes), SOURCE) == (
        f"x/experts.json: its experts are of other data or of another network: {differences}; give these flags, or "
        "another --buffer_path"
    )


def test_what_is_taken_for_granted_is_said() -> None:
    assert compare(Path("x"), None, SOURCE) == [
        "x: no experts.json; its experts are taken to be of digits with its classes in their usual order, preprocessed "
        "by standardise, and to have seen all training images, those of validation too"
    ]
    assert compare(Path("x"), record(), replace(SOURCE, validation="ab")) == [
        "x: its experts were trained on validation images of this run; what those select is not held out"
    ]


def test_every_difference_has_its_flag() -> None:
    everything = {**vars(SOURCE), **vars(SPEC), **vars(TRAINING)}
    assert FLAGS.keys() == everything.keys() - {"spec"}


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / EXPERTS
    value = read_json(path)
    assert read_record(Experts, value, path).count == 5
    del value["training"]["rho"]
    write_json(path, value)
    assert message(Buffer, tmp_path, NETWORK) == (
        f"{path}: damaged or of another version (lacks rho); restore it from a copy"
    )
    path.write_text(json.dumps(value)[:50])
    assert message(writer(tmp_path).__enter__).startswith(f"{path}: cannot be read (")


def test_norms_tell_preprocessings_apart() -> None:
    gen = generator(0, "pixels")
    pixels = torch.randint(256, (300, 3, 4, 4), generator=gen, dtype=torch.uint8)
    for fit in (Standardise.fit, lambda images: Zca.fit(images, 0.1, CPU)):
        tensors = fit(pixels).tensors()
        whole, part, swapped = (
            weighted_norms(fit(images).tensors()) for images in (pixels, pixels[:270], pixels.flip(1))
        )
        rounded = weighted_norms({name: tensor * (1 + 1e-7) for name, tensor in tensors.items()})
        assert list(whole) == list(tensors)
        assert whole == pytest.approx(rounded, rel=1e-6)
        for other in (part, swapped):
            assert any(abs(other[name] / whole[name] - 1) > 2 * TOLERANCE for name in whole)
    assert weighted_norms({"x": torch.tensor([3.0, 4.0])})["x"] == pytest.approx((3**2 + 8**2) ** 0.5)


def test_checksums_of_held_out_images() -> None:
    rows = torch.tensor([1, 5, 9])
    first = rows_checksum(rows)
    assert first is not None and re.fullmatch("[0-9a-f]{32}", first)
    assert first == rows_checksum(rows.clone())
    assert first != rows_checksum(torch.tensor([1, 5, 8]))
    assert rows_checksum(None) is None


def test_networks_are_described_by_what_they_are_built_from() -> None:
    assert same_maker("convnet4") == same_maker("convnet") == "convnet"
    assert same_maker("vgg11") == "vgg11"
    assert specify("convnet4", 3, 32, 10) == specify("convnet", 3, 32, 10, depth=4)
    assert specify("convnet", 3, 32, 10) == specify("convnet", 3, 32, 10, width=128, norm="instance")
