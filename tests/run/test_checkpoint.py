"""Files are the old version or the new one, and reading one never runs code."""

import builtins
import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from cli import difference
from safetensors import safe_open
from safetensors.torch import load_file

from framework.config.bptt import DEFAULTS, parse
from framework.distilled import formats
from framework.errors import UserError
from framework.files import write_atomically, write_text
from framework.run import checkpoint
from framework.run.checkpoint import find_run, save_tensors

STATE = {
    "config": DEFAULTS.to_json(),
    "set": {"images": torch.randn(4, 1, 3, 3), "labels": torch.rand(4, 2).double(), "norm_ema": None},
    "history": [{"epoch": 1, "accuracy": 0.5, "lengths": [1, 2]}],
    "half": torch.arange(6, dtype=torch.int64).view(2, 3).T,
    "flag": True,
}
TENSORS = {"images": torch.randn(4, 1, 3, 3), "labels": torch.arange(6).view(2, 3).T}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    (line,) = str(error.value).splitlines()
    return line


# ---- writing ---------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    assert difference(checkpoint.load(tmp_path / "last.pt"), STATE) is None


def test_tensors_and_their_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "distilled.safetensors"
    save_tensors(path, TENSORS, {"class_names": "é"})
    assert difference(load_file(path), TENSORS) is None
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"class_names": "é"}


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", "é\n")
    assert (tmp_path / "x.json").read_bytes() == b"\xc3\xa9\n"


def full_disk(file: BinaryIO) -> None:
    file.write(b"half of the new")
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_on_a_full_disk(file: BinaryIO) -> None:
    file.write(b"half of the new")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe 0: ...")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize(
    ("write", "reason"), [(full_disk, "No space left on device"), (torch_on_a_full_disk, "unexpected pos 64")]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    write: Callable[[BinaryIO], None], reason: str, existing: bool, tmp_path: Path
) -> None:
    """Ancestors' fault 15: files were not written atomically."""
    path = tmp_path / "last.pt"
    if existing:
        path.write_bytes(b"old")
    with pytest.raises(UserError) as error:
        write_atomically(path, write)
    assert str(path) in one_line(error)
    assert reason in one_line(error)
    assert [entry.name for entry in tmp_path.iterdir()] == (["last.pt"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, write)
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=function: (calls.append(n), f(*a))[1])
    write_text(tmp_path / "x", "text")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("place", ["missing/last.pt", "."])
def test_a_place_that_cannot_be_written_is_a_user_error(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        checkpoint.save(tmp_path / place, STATE)
    assert f"cannot write {tmp_path / place}" in one_line(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/last.pt", "n" * 300])
def test_a_name_that_cannot_exist_is_a_user_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError):
        checkpoint.save(tmp_path / name, STATE)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, pickle.PicklingError])
def test_an_interrupted_write_leaves_no_temporary_file(interruption: type[BaseException], tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise interruption

    with pytest.raises(interruption):
        write_atomically(tmp_path / "last.pt", write)
    assert list(tmp_path.iterdir()) == []


# ---- reading ---------------------------------------------------------------------------------------


class Malicious:
    """Creates a file when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.open, (str(self.path), "w")


def test_the_malicious_pickle_would_do_harm(tmp_path: Path) -> None:
    """Otherwise the next test would hold nothing."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "harm"))).close()
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("writer", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))])
def test_a_malicious_pickle_is_refused_and_not_run(writer: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    """Ancestors' fault 28: ``torch.load`` without ``weights_only``."""
    path = tmp_path / "last.pt"
    writer({"config": Malicious(tmp_path / "harm")}, path)
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert str(path) in one_line(error)
    assert not (tmp_path / "harm").exists()


def damage(content: bytes, how: str) -> bytes:
    match how:
        case "empty":
            return b""
        case "text":
            return b"not a checkpoint\n"
        case "truncated":
            return content[: len(content) // 2]
        case "tail cut off":
            return content[:-1]
        case _:  # a flipped bit in the pickle that describes the tensors
            at = content.index(b"torch._utils")
            return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "tail cut off", "bit flipped"])
def test_a_damaged_checkpoint_is_refused(how: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert str(path) in one_line(error)


def test_a_bit_flipped_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"images": torch.full((1000,), 1.5)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((1000,), 1.5).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError):
        checkpoint.load(path)


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), "text", None])
def test_a_file_that_holds_something_else_is_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("name", ["missing", "."])
@pytest.mark.parametrize("read", [checkpoint.load, formats.read])
def test_what_is_no_file_is_refused_by_name(read: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in one_line(error)


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "tail cut off"])
def test_a_damaged_safetensors_file_is_refused(how: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {})
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(UserError) as error:
        formats.read(path)
    assert str(path) in one_line(error)


# ---- finding a run ---------------------------------------------------------------------------------


def test_an_empty_folder_holds_no_run(tmp_path: Path) -> None:
    assert find_run(tmp_path, DEFAULTS) is None
    assert find_run(tmp_path / "missing", parse(["--resume"])[0]) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "--resume|--save_dir"),
        ("--resume --lr 0.5 --num_per_class 3", "--lr was 0.01 and is 0.5|--num_per_class was 1 and is 3"),
    ],
)
def test_a_run_is_continued_only_when_asked_to_and_with_its_flags(line: str, words: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    with pytest.raises(UserError) as error:
        find_run(tmp_path, parse(line.split())[0])
    assert all(word in one_line(error) for word in [str(tmp_path), *words.split("|")])


def test_a_run_is_found_again(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    found = find_run(tmp_path, parse(["--resume", "--epochs", "500", "--print_freq", "3"])[0])
    assert difference(found, STATE) is None


@pytest.mark.parametrize("config", [None, 3, "", "[]", "3", "{", "null"])
def test_a_run_without_a_readable_configuration_is_refused(config: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"config": config} if config != "" else {})
    with pytest.raises(UserError, match="not a checkpoint of this program|no flags are there"):
        find_run(tmp_path, parse(["--resume"])[0])
