"""Processes: devices by name, ranks that agree with one process, runs of two processes."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cli import HANGS, ROOT, TINY, difference, reserved_port, run_signalled, start, torchrun
from problems import make_problem
from torch.multiprocessing.spawn import start_processes
from tries import tried

from framework import base, distill_higher
from framework.config.bptt import Config, parse
from framework.distill_higher import outer_gradient
from framework.errors import UserError
from framework.inner.loop import InnerLoop
from framework.inner.optimizers import Adam
from framework.outer.engines.engine import MetaGradient
from framework.outer.engines.replay import Replay
from framework.outer.policies.policy import Window
from framework.outer.synthetic import Grads, SyntheticSet
from framework.run import checkpoint
from framework.run.distributed import Comm, resolve_device
from framework.run.launch import join, leave
from main import main


def test_one_process_needs_no_messages() -> None:
    comm = Comm()
    tensors = [torch.ones(3)]
    assert comm.main
    assert comm.average(tensors) is tensors
    assert comm.from_main("x") == "x"
    assert comm.gather(5) == [5]


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "nonsense", "cpu:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="--device"):
        resolve_device(name)


def test_auto_is_a_device_that_exists() -> None:
    torch.ones(1, device=resolve_device("auto"))


# ---- what ranks say to each other, in one start of four processes ----------------------------------

FEW = [*TINY, "--epochs", "1", "--num_train_eval", "1", "--eval_steps", "2"]


def part(rank: int) -> MetaGradient:
    """The meta-gradient of one rank: a network and a share of the real images of its own."""
    p = make_problem(5, seed=rank)
    shared = make_problem(5)  # the synthetic set, which all hold
    engine = Replay(InnerLoop(p.network, Adam(0.01)))
    return outer_gradient(engine, [p.theta], shared.synthetic, [p.plan], Window(2, 3), p.real)


def flat(result: MetaGradient) -> list[torch.Tensor]:
    assert result.grads.labels is not None
    return [result.loss, result.grads.images, result.grads.labels]


def averaging(config: Config, comm: Comm, device: torch.device) -> int:
    told = comm.from_main([1, 2] if comm.main else None)
    gathered = comm.gather(comm.rank * 10)
    averaged = comm.average(flat(part(comm.rank)))
    comm.verify(averaged, "the average")
    alone = averaged[1].clone()
    alone[0, 0, 0, 0] += 1e-15 * (comm.rank == 1)
    said = ""
    try:
        comm.verify([alone], "the set")
    except UserError as error:
        said = str(error)
    comm.barrier()
    state = {"averaged": averaged, "told": told, "gathered": gathered, "said": said}
    checkpoint.save(config.folder / f"{comm.size}-{comm.rank}.pt", state)
    return 0


def spoiling(config: Config, comm: Comm, device: torch.device) -> int:
    """A run in which rank 1's second meta-gradient is NaN."""
    original, calls = distill_higher.outer_gradient, iter(range(1, 1000))

    def spoiled(*args: Any) -> MetaGradient:
        result = original(*args)
        factor = float("nan") if comm.rank == 1 and next(calls) == 2 else 1.0
        return replace(result, grads=Grads(result.grads.images * factor, None))

    with patch.object(distill_higher, "outer_gradient", spoiled):
        return base.main_worker(config, comm, device)


def diverging(config: Config, comm: Comm, device: torch.device) -> int:
    """A run in which rank 1's synthetic set is off by a bit after the first step."""
    original = SyntheticSet.update

    def update(self: SyntheticSet, grads: dict[str, torch.Tensor], *rest: Any) -> Any:
        result = original(self, grads, *rest)
        with torch.no_grad():
            self.images[0, 0, 0, 0] += 1e-6 * comm.rank
        return result

    with patch.object(SyntheticSet, "update", update):
        return base.main_worker(config, comm, device)


def everything(local_rank: int, urls: list[str], folder: Path) -> None:
    def config(name: str) -> Config:
        return parse([*FEW, "--save_dir", str(folder / name)])[0]

    join(averaging, parse(["--device", "cpu", "--save_dir", str(folder)])[0], local_rank, local_rank, 4, urls[0])
    if local_rank < 2:
        join(averaging, parse(["--device", "cpu", "--save_dir", str(folder)])[0], local_rank, local_rank, 2, urls[1])
        join(spoiling, config("spoilt"), local_rank, local_rank, 2, urls[2])
        try:
            join(diverging, config("diverged"), local_rank, local_rank, 2, urls[3])
        except UserError as error:
            (folder / f"diverged{local_rank}.txt").write_text(str(error))
    leave(0)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    urls = [f"file://{folder}/meet{number}" for number in range(4)]
    start_processes(everything, args=(urls, folder), nprocs=4, start_method="spawn")
    return folder


@pytest.mark.parametrize("size", [2, 4])
def test_the_average_of_ranks_is_that_of_one_process(size: int, four: Path) -> None:
    parts = [flat(part(rank)) for rank in range(size)]
    expected = [torch.stack(tensors).mean(0) for tensors in zip(*parts, strict=True)]
    for rank in range(size):
        state = checkpoint.load(four / f"{size}-{rank}.pt")
        for ours, theirs in zip(state["averaged"], expected, strict=True):
            assert ours.dtype == torch.float64
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-10
        assert state["told"] == [1, 2]
        assert state["gathered"] == [10 * other for other in range(size)]


def test_sets_that_differ_by_a_bit_stop_the_run_on_every_rank(four: Path) -> None:
    for rank in range(2):
        assert "the set of rank 1 differs from rank 0's" in checkpoint.load(four / f"2-{rank}.pt")["said"]
    tried()
    for rank in range(2):
        (line,) = (four / f"diverged{rank}.txt").read_text().splitlines()
        assert "after epoch 1, the synthetic set of rank 1 differs" in line
    assert not (four / "diverged" / "last.pt").exists(), "what is wrong is not saved"
    tried()


def test_all_ranks_skip_a_step_that_one_of_them_spoils(four: Path) -> None:
    progress = checkpoint.load(four / "spoilt" / "last.pt")["progress"]
    assert (progress["step"], progress["skipped_in_run"]) == (4, 1)
    assert progress["best"]["images"].isfinite().all()


# ---- whole runs ------------------------------------------------------------------------------------

TWO = ["--mp_distributed", "--nproc", "2"]


def test_two_processes_killed_stopped_and_resumed_end_bit_identical(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rank killed with -9 ends the job, SIGTERM to the parent stops it; either way nothing is lost."""
    flags = [*TINY, *TWO, "-d", "2", "--num_train_eval", "3", "--ckpt_minutes", "1e-9"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*flags, "--save_dir", str(whole)]) == 0

    ended = run_signalled("SIGKILL to rank 1", "after", 2, *flags, "--save_dir", parts)
    tried()
    assert ended.returncode == 2, ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if "error:" in line)
    assert re.search(r"rank 1 \(process \d+\) was killed by SIGKILL", line)
    assert "Traceback" not in ended.stderr

    ended = run_signalled("SIGTERM to the parent", "after", 6, *flags, "--save_dir", parts, "--resume")
    tried()
    assert ended.returncode == 143, ended.stderr
    assert "stopped by SIGTERM" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert checkpoint.load(parts / "last.pt")["progress"]["step"] == 7, "noticed by all after the next step"

    assert main([*flags, "--save_dir", str(parts), "--resume"]) == 0
    one, two = (checkpoint.load(folder / "last.pt") for folder in (whole, parts))
    assert difference(one["set"], two["set"]) is None
    assert difference(one["method"], two["method"]) is None
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["results"]["distilled"]["networks"] == 3

    # Another number of processes goes on from the same state, and says what is new.
    capfd.readouterr()
    shutil.copytree(whole, tmp_path / "alone")
    one_process = [*TINY, "-d", "2", "--num_train_eval", "3", "--save_dir", str(tmp_path / "alone"), "--resume"]
    assert main([*one_process, "--epochs", "4"]) == 0
    assert "saved by 2 process(es), continued by 1" in capfd.readouterr().out
    assert checkpoint.load(tmp_path / "alone" / "last.pt")["processes"] == 1


def assert_two_processes_ran(folder: Path, *processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        _, err = process.communicate(timeout=HANGS)
        assert process.returncode == 0, err
    assert json.loads((folder / "summary.json").read_text())["processes"] == 2


def test_a_process_that_fails_among_others_leaves_with_its_own_exit_code(tmp_path: Path) -> None:
    """Some versions of PyTorch abort a process that ends while it still has a process group."""
    program = f"""
import atexit, os, torch.distributed as dist
from framework.run.launch import leave
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
atexit.register(os.abort)
print("last words", end="")
leave(3)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, "last words")


def test_torchrun_on_one_node(tmp_path: Path) -> None:
    """Boosted: checksums of the set are compared after each block's epoch."""
    boosted = ["--num_per_class", "2", "--boost_block", "1", "--boost_beta", "0.5", "--train_y"]
    run = ["main.py", *FEW, *boosted, "--save_dir", tmp_path]
    assert_two_processes_ran(tmp_path, torchrun("--standalone", "--nproc-per-node", "2", *run))


def test_torchrun_on_two_nodes(tmp_path: Path) -> None:
    run = ["main.py", *FEW, "--save_dir", tmp_path]
    with reserved_port() as port:
        where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        assert_two_processes_ran(tmp_path, *(torchrun(*where, "--node-rank", str(rank), *run) for rank in range(2)))


def test_two_nodes_started_by_hand(tmp_path: Path) -> None:
    with reserved_port() as port:
        url = f"tcp://127.0.0.1:{port}"
        flags = [*FEW, "--world_size", "2", "--dist-url", url, "--save_dir", tmp_path]
        assert_two_processes_ran(tmp_path, *(start(*flags, "--rank", str(rank)) for rank in range(2)))


def test_a_mistake_in_a_run_of_two_processes_exits_with_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--mp_distributed", "--nproc", "2", "--depth", "4", "--save_dir", str(tmp_path / "run")]) == 2
    out, err = capfd.readouterr()
    assert "--depth" in out + err
    assert "Traceback" not in out + err
