"""Faults, each really caused: what is left afterwards, what is said, and that the run goes on from there."""

import io
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
import torch.nn.functional as F
from cli import TINY, difference
from tries import tried

from framework import distill_higher
from framework.config.bptt import parse
from framework.errors import UserError
from framework.files import FolderLock
from framework.inner.augment import sample_bilinearly
from framework.outer.engines.engine import MetaGradient
from framework.outer.synthetic import Grads
from framework.run import checkpoint
from framework.run.checkpoint import find_run, save_run
from main import main

SMALL = [*TINY, "--num_train_eval", "1", "--eval_steps", "2", "--test_freq", "9"]  # four outer steps per epoch
EVERY_STEP = ["--ckpt_minutes", "1e-9"]  # a checkpoint
RESUME = parse([*SMALL, "--resume"])[0]


def run(folder: Path, *flags: str) -> int:
    return main([*SMALL, "--save_dir", str(folder), *flags])


def state_of(folder: Path) -> dict[str, Any]:
    """The last checkpoint; faults cost records."""
    return cli.state_of(folder, "records")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error that was told."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """``at_step(n, what)`` has ``what`` happen just before outer step n's meta-gradient, once."""

    def arrange(step: int, what: Callable[[], object]) -> None:
        original, calls = distill_higher.outer_gradient, iter(range(1, 1000))

        def outer_gradient(*args: Any) -> MetaGradient:
            if next(calls) == step:
                what()
            return original(*args)

        monkeypatch.setattr(distill_higher, "outer_gradient", outer_gradient)

    return arrange


# ---- processes that are killed while they write ----------------------------------------------------


def write_for_ever(folder: Path, pipe: int) -> None:
    """Save checkpoints 0, 1, 2 ..., and say so, in one byte, after each."""
    with FolderLock(folder) as lock:
        lock.make()
        for number in range(10**9):
            # Small enough that PyTorch uses no threads, of which a forked process has none.
            state = {"config": RESUME.to_json(), "number": number, "tensor": torch.full((30_000,), float(number))}
            save_run(folder, state)
            os.write(pipe, b".")


def kill_while_writing(folder: Path, times: int) -> None:
    """Kill a writer at random moments; check each time that what it said was saved can be read."""
    moments = random.Random(0)
    for _ in range(times):
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                write_for_ever(folder, writer)
            finally:
                os._exit(1)
        os.close(writer)
        said = len(os.read(reader, 1))  # it is at work
        time.sleep(moments.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
        tried()
        while more := os.read(reader, 1000):
            said += len(more)
        os.close(reader)
        found = find_run(folder, RESUME)
        assert found is not None
        assert found["number"] in (said - 1, said), "no checkpoint that was reported is lost"
        assert torch.equal(found["tensor"], torch.full((30_000,), float(found["number"])))


def test_kill_9_at_50_moments_of_writing_checkpoints(tmp_path: Path) -> None:
    kill_while_writing(tmp_path, 50)
    with FolderLock(tmp_path) as lock:  # the killed process's lock is gone
        lock.make()
    assert not list(tmp_path.glob(".*.tmp"))


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(state: Any, file: Any, save: Callable[..., None] = torch.save) -> None:
    """A ``torch.save`` that is killed half-way."""
    content = io.BytesIO()
    save(state, content)
    file.write(content.getvalue()[: len(content.getvalue()) // 2])
    file.flush()
    die()


def die_at_rename(number: int, before: bool) -> Callable[..., None]:
    """An ``os.replace`` that is killed before or after its ``number``-th call."""
    replace_file, calls = os.replace, iter(range(1, 1000))

    def rename(*paths: Path) -> None:
        last = next(calls) == number
        if last and before:
            die()
        replace_file(*paths)
        if last:
            die()

    return rename


@pytest.mark.parametrize(
    ("module", "name", "killer", "files"),
    [
        (torch, "save", half_written, {"last.pt": 1, "previous.pt": 0}),
        (os, "fsync", die, {"last.pt": 1, "previous.pt": 0}),
        (os, "replace", die_at_rename(1, before=True), {"last.pt": 1, "previous.pt": 0}),
        (os, "replace", die_at_rename(2, before=True), {"previous.pt": 1}),
        (os, "replace", die_at_rename(2, before=False), {"last.pt": 2, "previous.pt": 1}),
    ],
    ids=["half written", "not on the disk yet", "before the renames", "between the renames", "after the renames"],
)
def test_kill_9_within_writing_a_checkpoint(
    module: Any, name: str, killer: Callable[..., None], files: dict[str, int], tmp_path: Path
) -> None:
    """Two checkpoints are saved, 0 and 1; the process dies while it saves the next one."""
    process = os.fork()
    if process == 0:
        try:
            for number in range(3):
                if number == 2:
                    setattr(module, name, killer)
                checkpoint.save_run(tmp_path, {"config": RESUME.to_json(), "number": number})
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert {path.name: checkpoint.load(path)["number"] for path in tmp_path.glob("*.pt")} == files
    assert bool(list(tmp_path.glob(".*.tmp"))) == (files.get("last.pt") != 2)
    found = checkpoint.find_run(tmp_path, RESUME)
    assert found is not None
    assert found["number"] == max(files.values())
    with FolderLock(tmp_path) as lock:
        lock.make()  # removes what is half written
    assert {path.name for path in tmp_path.iterdir()} == {".lock", *files}


# ---- damaged checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_the_checkpoint_before_stands_in_for_a_damaged_one(
    how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = folder / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content if how == "flipped" else content[:-1])
    if how == "missing":
        last.unlink()
    assert run(folder, "--resume") == 0
    assert f"continuing from {folder / 'previous.pt'}" in capsys.readouterr().out
    assert difference(state_of(whole), state_of(folder)) is None


# ---- two runs in one folder ------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_the_second_run_in_a_folder_is_refused(
    flags: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    with FolderLock(whole):
        assert run(whole, *flags) == 2
    assert "another run is writing there" in error_line(capsys)
    assert before == {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    assert run(whole, "--resume") == 0  # the folder is free again


def test_of_two_new_runs_that_start_together_one_is_refused(tmp_path: Path) -> None:
    first, second = (FolderLock(tmp_path / "run") for _ in range(2))
    with first, second:  # neither sees a folder to hold yet
        first.make()
        with pytest.raises(UserError, match="another run is writing there"):
            second.make()
    with FolderLock(tmp_path / "other") as late:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "last.pt").touch()  # by a run that has ended meanwhile
        with pytest.raises(UserError, match="already holds a run"):
            late.make()


# ---- disks and folders -----------------------------------------------------------------------------


def fill_disk(folder: Path) -> None:
    """The kernel's own "no space left": the next checkpoint's temporary file is /dev/full."""
    (folder / f".last.pt.{os.getpid()}.tmp").symlink_to("/dev/full")


def shrink_quota() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def ordinary_user() -> Iterator[None]:
    """No write permission stops the superuser."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("fault", ["full disk", "quota", "read-only folder", "folder removed"])
def test_a_folder_that_cannot_be_written_while_running(
    fault: str,
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
    at_step: Callable[[int, Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit 2, the last good state kept; once mended, the run ends as if nothing had been."""
    tmp_path = tmp_path_factory.mktemp("run")
    folder, moved = tmp_path / "run", tmp_path / "moved"
    os.chmod(tmp_path, 0o777)
    for parent in tmp_path.parents[:4]:  # pytest's, closed to others
        if parent.owner() == tmp_path.owner() and parent.name.startswith(("pytest-", "popen-")):
            os.chmod(parent, 0o755)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    causes: dict[str, Callable[[], object]] = {
        "full disk": lambda: fill_disk(folder),
        "quota": shrink_quota,
        "read-only folder": lambda: folder.chmod(0o555),
        "folder removed": lambda: folder.rename(moved),
    }
    at_step(6, causes[fault])
    try:
        with ordinary_user():
            code = run(folder, *EVERY_STEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    if fault == "folder removed":
        moved.rename(folder)
    folder.chmod(0o755)
    assert code == 2
    assert "cannot write" in error_line(capsys)
    assert state_of(folder)["progress"]["step"] == 5, "saved just before the fault"
    assert not list(folder.glob(".*.tmp"))
    with ordinary_user():
        assert run(folder, "--resume") == 0
    assert difference(state_of(whole), state_of(folder)) is None


# ---- meta-gradients that are not finite ------------------------------------------------------------


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, range], None]:
    """``spoil(value, steps)`` puts ``value`` into one entry of those outer steps' meta-gradients."""
    original = distill_higher.outer_gradient

    def arrange(value: float, steps: range) -> None:
        calls = iter(range(1, 1000))

        def outer_gradient(*args: Any) -> MetaGradient:
            result = original(*args)
            if next(calls) not in steps:
                return result
            images = result.grads.images.clone()
            images[3, 0, 2, 2] = value
            return replace(result, grads=Grads(images, None))

        monkeypatch.setattr(distill_higher, "outer_gradient", outer_gradient)

    return arrange


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])  # the square of 1e30 is infinite in float32
def test_a_meta_gradient_that_is_not_finite_is_skipped_counted_and_reported(
    value: float, tmp_path: Path, spoil: Callable[[float, range], None], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(value, range(3, 5))
    assert run(tmp_path) == 0
    assert "step 4 skipped: its meta-gradient is not finite" in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [record["step"] for record in records if record["kind"] == "skipped"]
    assert skipped == [3, 4]
    for _ in skipped:
        tried()
    assert [record["skipped"] for record in records if record["kind"] == "epoch"] == [2, 0, 0]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [1, 2, *range(5, 13)]
    (epoch,) = (r for r in records if r["kind"] == "epoch" and r["epoch"] == 1)
    assert epoch["loss"] == pytest.approx((steps[0]["loss"] + steps[1]["loss"]) / 2)
    state = state_of(tmp_path)
    assert state["progress"]["skipped_in_run"] == 2
    assert state["set"]["optimizer"]["state"][0]["step"] == 10
    assert state["set"]["images"].isfinite().all()


def test_too_many_in_a_row_end_the_run_with_the_last_good_state(
    tmp_path: Path, spoil: Callable[[float, range], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "good", "--epochs", "1") == 0
    spoil(float("nan"), range(5, 100))
    assert run(tmp_path / "run", "--max_bad_steps", "3") == 2
    line = error_line(capsys)
    assert "3 outer steps in a row" in line
    assert "--inner_lr" in line
    good, kept = (state_of(tmp_path / name) for name in ("good", "run"))
    assert difference(good["set"], kept["set"]) is None
    assert (kept["progress"]["step"], kept["progress"]["epoch"]) == (7, 1)
    spoil(float("nan"), range(0))
    assert run(tmp_path / "run", "--resume") == 0  # other networks and batches: a new chance


def test_skipped_steps_that_are_not_in_a_row_do_not_end_a_run(
    tmp_path: Path, spoil: Callable[[float, range], None]
) -> None:
    spoil(float("nan"), range(1, 100, 2))
    assert run(tmp_path, "--max_bad_steps", "2") == 0
    assert state_of(tmp_path)["progress"]["skipped_in_run"] == 6


# ---- memory ----------------------------------------------------------------------------------------


def on_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize(
    ("engine", "allocate"),
    [("higher", on_cuda), ("replay", lambda: torch.empty(2**50)), ("higher", lambda: bytearray(2**50))],
    ids=["CUDA", "PyTorch on the CPU", "Python"],
)
def test_out_of_memory_says_what_to_lower_and_keeps_the_last_state(
    engine: str,
    allocate: Callable[[], object],
    tmp_path: Path,
    at_step: Callable[[int, Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--engine", engine, "--epochs", "1", "--test_freq", "1", "--num_per_class", "4", "--batch_per_class", "4"]
    assert run(tmp_path / "whole", *flags) == 0
    at_step(3, allocate)
    assert run(tmp_path / "run", *flags) == 2
    line = error_line(capsys)
    assert "out of memory" in line
    assert "--batch_per_class 2 (now 4)" in line
    assert ("--window 1 (now 3)" in line) == (engine == "higher"), "where it would help"
    assert ("--engine replay" in line) == (engine == "higher")
    assert state_of(tmp_path / "run")["progress"]["step"] == 2
    monkeypatch.undo()
    assert run(tmp_path / "run", *flags, "--resume") == 0
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "run")) is None


def test_other_errors_of_the_engine_are_not_taken_for_it(
    tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    at_step(2, lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run(tmp_path)


# ---- determinism -----------------------------------------------------------------------------------


def test_deterministic_runs_agree_and_leave_pytorch_as_it_was(whole: Path, tmp_path: Path) -> None:
    seen = []
    original = distill_higher.outer_gradient

    def outer_gradient(*args: Any) -> MetaGradient:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill_higher, "outer_gradient", outer_gradient)
        assert run(tmp_path / "one", "--deterministic") == 0
    assert run(tmp_path / "two", "--deterministic") == 0
    assert seen == [True] * 12
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert difference(state_of(tmp_path / "one"), state_of(tmp_path / "two")) is None
    assert difference(state_of(tmp_path / "one"), state_of(whole)) is None, (
        "on the CPU the default is deterministic too"
    )


def test_the_deterministic_sampler_is_grid_sample() -> None:
    gen = torch.Generator().manual_seed(0)
    images = torch.randn(5, 2, 6, 7, generator=gen, dtype=torch.float64, requires_grad=True)
    affine = torch.eye(2, 3, dtype=torch.float64) + 0.4 * torch.randn(5, 2, 3, generator=gen, dtype=torch.float64)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    ours, theirs = sample_bilinearly(images, grid), F.grid_sample(images, grid, align_corners=False)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, generator=gen, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), images)[0] for out in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)
