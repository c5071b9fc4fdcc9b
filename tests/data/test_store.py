"""Decoded images on disk: what is read back, after interruptions, damage and company."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli import HANGS, ROOT
from PIL import Image

from framework.data import parts, store
from framework.data.digits import read_digits
from framework.data.folders import read_imagefolder
from framework.data.parts import FilePart, Part, decode_image
from framework.data.store import StoredImages, open_store
from framework.errors import UserError

SHAPE = (3, 6, 6)
COUNT, BLOCK = 22, 4  # six blocks, of which the last holds two images


def write_tree(root: Path, count: int = COUNT // 2) -> Path:
    """An image folder of two classes, every image another one."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(
                    root / part / name / f"{i:03}.png"
                )
    return root


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FilePart:
    monkeypatch.setattr(store, "_BLOCK", BLOCK)
    part = read_imagefolder(write_tree(tmp_path / "data"), 6).train
    assert isinstance(part, FilePart)
    return part


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that have been decoded."""
    files: list[str] = []
    decode = decode_image
    monkeypatch.setattr(parts, "decode_image", lambda path, size: files.append(path) or decode(path, size))
    return files


def opened(part: Part, folder: Path, shape: tuple[int, int, int] = SHAPE) -> StoredImages:
    return open_store(part, "tree", shape, folder)


def everything(part: Part) -> torch.Tensor:
    return part.read(torch.arange(len(part.labels)))


def files_of(folder: Path) -> tuple[Path, Path]:
    """The pixels and the checksums of the only store there is."""
    (pixels,), (sums,) = folder.glob("*.uint8"), folder.glob("*.crc")
    return pixels, sums


# ---- what is read back


def test_stored_images_are_those_of_the_part(part: FilePart, tmp_path: Path) -> None:
    stored, expected = opened(part, tmp_path / "cache"), everything(part)
    assert (stored.shape, len(stored)) == (expected.shape, COUNT)
    assert torch.equal(stored[:], expected)
    assert torch.equal(stored[3:9], expected[3:9])
    rows = torch.tensor([21, 0, 7, 7])
    assert torch.equal(stored[rows], expected[rows])
    some = stored.take(torch.tensor([5, 2, 20]))
    assert some.shape == (3, *SHAPE)
    assert torch.equal(some[torch.tensor([2, 0])], expected[[20, 5]])
    assert torch.equal(some[1:], expected[[2, 20]])
    assert some[:0].shape == (0, *SHAPE)


def test_arrays_are_stored_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BLOCK", 100)
    digits = read_digits(tmp_path, 12).test
    assert torch.equal(opened(digits, tmp_path, (1, 12, 12))[:], everything(digits))


def test_what_was_read_can_be_changed_without_changing_the_store(part: FilePart, tmp_path: Path) -> None:
    stored = opened(part, tmp_path)
    stored[:].zero_()
    stored[torch.tensor([1])].zero_()
    assert torch.equal(stored[:], everything(part))


def test_a_store_is_decoded_once(part: FilePart, tmp_path: Path, decoded: list[str]) -> None:
    opened(part, tmp_path)
    assert sorted(decoded) == sorted(part.paths)
    opened(part, tmp_path)
    assert len(decoded) == COUNT


def test_another_size_or_a_changed_file_is_another_store(part: FilePart, tmp_path: Path) -> None:
    first = opened(part, tmp_path / "cache")
    before = first[:]
    opened(read_imagefolder(tmp_path / "data", 5).train, tmp_path / "cache", (3, 5, 5))
    Image.new("RGB", (6, 6), (1, 2, 3)).save(part.paths[7])
    changed = opened(part, tmp_path / "cache")
    assert changed[torch.tensor([7])].flatten(2).unique(dim=2).flatten().tolist() == [1, 2, 3]
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 3
    # Whoever has the old one open still reads the old one.
    assert torch.equal(first[:], before)


# ---- interruptions and damage

CHILD = """
import os, signal, sys
from pathlib import Path
from framework.data import folders, parts, store
store._BLOCK, last = int(sys.argv[3]), int(sys.argv[4])
decode, decoded = parts.decode_image, []
def until_killed(path, size):
    if len(decoded) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    decoded.append(path)
    return decode(path, size)
parts.decode_image = until_killed
part = folders.read_imagefolder(Path(sys.argv[1]), 6).train
stored = store.open_store(part, "tree", (3, 6, 6), Path(sys.argv[2]), workers=1, progress=True)
print(len(decoded), stored[:].sum().item())
"""


def child(data: Path, folder: Path, last: int = COUNT) -> "subprocess.Popen[str]":
    """A process that fills a store and is killed if it decodes more than ``last`` images."""
    command = [sys.executable, "-c", CHILD, str(data), str(folder), str(BLOCK), str(last)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_writer_leaves_what_it_finished(part: FilePart, tmp_path: Path, decoded: list[str]) -> None:
    folder = tmp_path / "cache"
    process = child(tmp_path / "data", folder, last=2 * BLOCK + 1)  # within the third block
    said = process.communicate(timeout=HANGS)
    assert process.returncode == -signal.SIGKILL, said
    pixels, _ = files_of(folder)
    assert pixels.stat().st_size == COUNT * 108  # full length, mostly a hole: not to be taken for complete
    stored = opened(part, folder)
    assert torch.equal(stored[:], everything(part))
    again = [path for path in part.paths if path in decoded[: COUNT - 2 * BLOCK]]
    assert again == list(part.paths[2 * BLOCK :])


def test_interrupting_between_pixels_and_checksum_loses_one_block(
    part: FilePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    class Stop(BaseException):
        pass

    calls: list[bytes] = []

    def interrupted(content: bytes) -> int:
        calls.append(content)
        if len(calls) == 3:
            raise Stop
        return zlib.crc32(content)

    with monkeypatch.context() as context:
        context.setattr(store, "zlib", SimpleNamespace(crc32=interrupted))
        with pytest.raises(Stop):
            opened(part, tmp_path)
    decoded.clear()
    assert torch.equal(opened(part, tmp_path)[:], everything(part))
    assert sorted(decoded[: COUNT - 2 * BLOCK]) == sorted(part.paths[2 * BLOCK :])


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


LENGTH = BLOCK * 108  # bytes of a block


@pytest.mark.parametrize(
    ("damage", "blocks"),
    [
        (lambda pixels, sums: flip(pixels, 0), [0]),
        (lambda pixels, sums: flip(pixels, -1), [5]),
        (lambda pixels, sums: (flip(pixels, LENGTH), flip(pixels, 4 * LENGTH - 1)), [1, 3]),
        (lambda pixels, sums: flip(sums, 9), [2]),
        (lambda pixels, sums: os.truncate(pixels, 3 * LENGTH + 7), [3, 4, 5]),
        (lambda pixels, sums: os.truncate(pixels, 0), [0, 1, 2, 3, 4, 5]),
        (lambda pixels, sums: os.truncate(sums, 18), [4, 5]),
        (lambda pixels, sums: sums.write_bytes(b"\0" * 24), [0, 1, 2, 3, 4, 5]),
        (lambda pixels, sums: pixels.unlink(), [0, 1, 2, 3, 4, 5]),
        (lambda pixels, sums: sums.unlink(), [0, 1, 2, 3, 4, 5]),
        (lambda pixels, sums: pixels.write_bytes(pixels.read_bytes() + b"x"), []),
        (lambda pixels, sums: sums.write_bytes(sums.read_bytes() + b"x"), []),
    ],
)
def test_damage_is_noticed_and_only_what_is_damaged_is_decoded_again(
    part: FilePart, tmp_path: Path, decoded: list[str], damage: Callable[[Path, Path], object], blocks: list[int]
) -> None:
    opened(part, tmp_path)
    whole = [path.read_bytes() for path in files_of(tmp_path)]
    decoded.clear()
    damage(*files_of(tmp_path))
    stored = opened(part, tmp_path)
    assert sorted(decoded) == sorted(p for block in blocks for p in part.paths[block * BLOCK : (block + 1) * BLOCK])
    assert torch.equal(stored[:], everything(part))
    assert [path.read_bytes() for path in files_of(tmp_path)] == whole


def test_an_unreadable_image_is_named_and_its_store_is_not_taken_for_complete(part: FilePart, tmp_path: Path) -> None:
    before = os.stat(part.paths[9])
    content = Path(part.paths[9]).read_bytes()
    Path(part.paths[9]).write_bytes(bytes(len(content)))
    os.utime(part.paths[9], ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UserError, match=r"cat/009\.png: not a readable image"):
            opened(part, tmp_path)


# ---- company


WAITING = "another process is at work on it; waiting"


@contextmanager
def lock_held(part: FilePart, folder: Path, tmp_path: Path) -> Iterator[None]:
    """The store of ``part`` in ``folder`` held as if another process were writing it."""
    opened(part, tmp_path / "names")
    (named,) = (tmp_path / "names").glob("*.lock")
    folder.mkdir(exist_ok=True)
    with open(folder / named.name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_processes_share_the_work_and_the_store(part: FilePart, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with lock_held(part, folder, tmp_path):
        processes = [child(tmp_path / "data", folder) for _ in range(2)]
        for process in processes:  # both find the store empty and held, and go for it together
            assert process.stderr is not None
            assert any(WAITING in line for line in process.stderr)
    said = [process.communicate(timeout=HANGS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    counts, totals = zip(*(map(int, out.split()) for out, _ in said), strict=True)
    assert sum(counts) == COUNT
    assert set(totals) == {int(everything(part).sum())}
    assert torch.equal(opened(part, folder)[:], everything(part))


def test_a_store_that_is_being_written_is_waited_for(
    part: FilePart, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results, said = tmp_path / "cache", [], ""

    def read() -> None:
        results.append(open_store(part, "tree", SHAPE, folder, progress=True))

    waiting = threading.Thread(target=read)
    with lock_held(part, folder, tmp_path):
        waiting.start()
        while WAITING not in said and waiting.is_alive():
            time.sleep(0.01)
            said += capsys.readouterr().err
        assert WAITING in said
        assert results == []
    waiting.join()
    assert torch.equal(results[0][:], everything(part))


# ---- mistakes


def test_a_folder_that_cannot_be_used_is_a_user_error(part: FilePart, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--cache_dir .*/file: cannot keep decoded images there \(.*\); give") as error:
        opened(part, tmp_path / "file")
    assert "\n" not in str(error.value)


def test_too_small_a_disk_is_noticed_before_anything_is_decoded(
    part: FilePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    usage = store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=COUNT * 108 - 1))
    with pytest.raises(
        UserError, match=r"--cache_dir .*: decoded images need 0\.0 GB there, .* free; free space, give"
    ):
        opened(part, tmp_path)
    assert decoded == []
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=COUNT * 108))
    opened(part, tmp_path)


def test_a_disk_that_fills_up_is_a_user_error(part: FilePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._Store, "write", full)
    with pytest.raises(UserError, match=r"--cache_dir .*\(No space left on device\)"):
        opened(part, tmp_path)
