"""Processes: devices by name, ranks that agree with one process, runs of two processes."""

import json
from pathlib import Path

import pytest
import torch
from cli import TINY, difference
from torch.multiprocessing.spawn import start_processes

from framework import checkpoint
from framework.config import UserError
from framework.distributed import Comm, resolve_device
from framework.launch import free_port, join
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


def _talk(local_rank: int, url: str, folder: str) -> None:
    from framework.config import Config

    def worker(config: Config, comm: Comm, device: torch.device) -> int:
        gen = torch.Generator().manual_seed(comm.rank)
        parts = [
            torch.randn(4, 3, generator=gen, dtype=torch.float64),
            torch.randn((), generator=gen, dtype=torch.float64),
        ]
        averaged = comm.average([part.clone() for part in parts])
        told = comm.from_main([1, 2] if comm.main else None)
        gathered = comm.gather(comm.rank * 10)
        comm.barrier()
        torch.save(
            {"parts": parts, "averaged": averaged, "told": told, "gathered": gathered}, f"{folder}/{comm.rank}.pt"
        )
        return 0

    join(worker, Config(device="cpu"), local_rank, local_rank, 2, url)


def test_two_ranks_average_as_one_process_would(tmp_path: Path) -> None:
    start_processes(_talk, args=(f"tcp://127.0.0.1:{free_port()}", str(tmp_path)), nprocs=2, start_method="spawn")
    ranks = [checkpoint.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for i in (0, 1):
        expected = (ranks[0]["parts"][i] + ranks[1]["parts"][i]) / 2
        for rank in ranks:
            assert torch.allclose(rank["averaged"][i], expected, rtol=1e-15)
    assert ranks[0]["told"] == ranks[1]["told"] == [1, 2]
    assert ranks[0]["gathered"] == ranks[1]["gathered"] == [0, 10]


def test_a_run_of_two_processes_is_reproducible_and_resumable(tmp_path: Path) -> None:
    flags = [*TINY, "--mp_distributed", "--nproc", "2", "-d", "2", "--num_train_eval", "3"]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert main([*flags, "--epochs", "2", "--save_dir", whole]) == 0
    assert main([*flags, "--epochs", "1", "--save_dir", parts]) == 0
    assert main([*flags, "--epochs", "2", "--save_dir", parts, "--resume"]) == 0
    one, two = (checkpoint.load(Path(folder) / "last.pt") for folder in (whole, parts))
    assert difference(one["set"], two["set"]) is None
    assert difference(one["policy"], two["policy"]) is None
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["results"]["distilled"]["networks"] == 3


def test_a_mistake_in_a_run_of_two_processes_exits_with_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--mp_distributed", "--nproc", "2", "--depth", "4", "--save_dir", str(tmp_path / "run")]) == 2
    out, err = capfd.readouterr()
    assert "--depth" in out + err
    assert "Traceback" not in out + err
