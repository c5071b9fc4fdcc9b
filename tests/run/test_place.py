"""Places that schedulers give processes through their environment: joined, or refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ROOT, TINY, refused, reserved_port, start
from test_distributed import FEW, assert_two_processes_ran

from framework.config.bptt import DEFAULTS, Config
from framework.dry_run import preview
from framework.errors import UserError
from framework.run.place import Place, find_place

MEET = {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}
TORCH = {"RANK": "1", "WORLD_SIZE": "4", **MEET}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
BY_HAND = Config(world_size=2, rank=1, dist_url="tcp://h:1")
URL = "tcp://host:29500"


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (MEET, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (TORCH, Place(1, 4, None, URL)),
        ({**TORCH, "LOCAL_RANK": "1"}, Place(1, 4, 1, URL)),
        ({**TORCH, "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, Place(1, 4, 1, "env://")),
        ({**TORCH, "MASTER_ADDR": "fe80::1"}, Place(1, 4, None, "tcp://[fe80::1]:29500")),
        ({**SLURM, **TORCH}, Place(1, 4, None, URL)),
        ({**SLURM, **MEET}, Place(5, 8, 1, URL)),
        ({**SLURM, **MEET, "CUDA_VISIBLE_DEVICES": "3"}, Place(5, 8, 0, URL)),
        ({**SLURM, **MEET, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Place(5, 8, 1, URL)),
        ({**SLURM, **MEET, "SLURM_NNODES": "8", "SLURM_LOCALID": "0"}, Place(5, 8, None, URL)),
        ({**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({name: value for name, value in SLURM.items() if name != "SLURM_PROCID"}, None),
        ({**MPI, **MEET}, Place(1, 2, 1, URL)),
    ],
)
def test_a_place_is_read(environment: dict[str, str], place: Place | None) -> None:
    assert find_place(DEFAULTS, environment) == place


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0"}, "has RANK but no WORLD_SIZE: set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE but no RANK"),
        ({**TORCH, "MASTER_ADDR": ""}, "no MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "h"}, "no MASTER_PORT"),
        ({**TORCH, "RANK": "4"}, "RANK=4 of the environment is not below WORLD_SIZE=4"),
        ({**TORCH, "RANK": "-1"}, "RANK=-1 of the environment: give a whole number"),
        ({**TORCH, "WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({**TORCH, "MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({**TORCH, "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        (
            SLURM,
            r"task 5 of 8 \(SLURM_PROCID, SLURM_NTASKS\) has no MASTER_ADDR .* scripts/slurm.sh .* unset SLURM_PROC",
        ),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "6"}, r"task 5 of 6 \(SLURM_PROCID, SLURM_STEP_NUM_TASKS\)"),
        (MPI, "task 1 of 2 .* unset OMPI_COMM_WORLD_RANK"),
    ],
)
def test_variables_that_cannot_be_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_place(DEFAULTS, environment)


def test_a_place_by_hand_must_not_be_contradicted_by_torchs_variables() -> None:
    """What Kubernetes' users write already: --world_size $WORLD_SIZE --rank $RANK."""
    assert find_place(BY_HAND, {"RANK": "1", "WORLD_SIZE": "2", **MEET}) is None
    assert find_place(BY_HAND, SLURM) is None
    with pytest.raises(UserError, match="--world_size 2 --rank 1 contradicts WORLD_SIZE=4 RANK=1"):
        find_place(BY_HAND, TORCH)


def test_the_dry_run_tells_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, **MEET}.items():
        monkeypatch.setenv(name, value)
    assert "process 5 of 8, which meet at tcp://host:29500\n" in preview(Config(device="cpu"))
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UserError, match="SLURM_PROCID=5"):
        preview(Config(device="cpu"))


def test_kubernetes_pods_join_each_other(tmp_path: Path) -> None:
    with reserved_port() as port:
        meet = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        pods = [start(*FEW, "--save_dir", tmp_path, env={**meet, "RANK": str(rank)}) for rank in range(2)]
        assert_two_processes_ran(tmp_path, *pods)


def test_tasks_of_slurm_that_cannot_meet_train_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    (line,) = refused([*TINY, "--save_dir", str(tmp_path / "run")], capsys).splitlines()
    assert line.startswith("main.py: error: task 5 of 8 (SLURM_PROCID, SLURM_NTASKS) has no MASTER_ADDR")
    assert not (tmp_path / "run").exists()


def test_the_script_for_slurm_starts_tasks_that_meet(tmp_path: Path) -> None:
    """By stand-ins for its two programs, which set what SLURM sets."""
    programs = {
        "scontrol": "echo localhost; echo other",
        "srun": "export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1\n"
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with reserved_port() as port:
        own = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": str(port - 20000)}
        environment = {**os.environ, **own, "PYTHON": sys.executable, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        # The script's ports end where those that the system assigns begin.
        script = (ROOT / "scripts" / "slurm.sh").read_text().replace("% 12000", "% 60000")
        command = ["bash", "-c", script, "slurm.sh", *FEW, "--save_dir", str(tmp_path / "run")]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert_two_processes_ran(tmp_path / "run", process)


def test_an_address_of_nodes_is_not_read_by_a_run_on_one(tmp_path: Path) -> None:
    flags = ["--mp_distributed", "--nproc", "2", "--dist-url", "tcp://no.such.host.invalid:1"]
    process = start(*FEW, *flags, "--save_dir", tmp_path)
    assert_two_processes_ran(tmp_path, process)
