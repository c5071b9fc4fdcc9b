"""This process's place among others, where a scheduler's environment gives it one."""

from collections.abc import Mapping
from dataclasses import dataclass

from framework.config.common import Common
from framework.errors import UserError


@dataclass(frozen=True)
class Place:
    """One of several processes or nodes.

    Args:
        rank: its number.
        size: how many there are.
        local_rank: the process's number on its node; None where the place is a whole node's.
        url: where all meet.
    """

    rank: int
    size: int
    local_rank: int | None
    url: str


@dataclass(frozen=True)
class Starter:
    """A program that starts several tasks and numbers them in the environment; the variables' names."""

    name: str
    rank: str
    size: tuple[str, ...]  # the first that is there counts
    local_rank: str
    nodes: tuple[str, ...] = ()


STARTERS = (
    # A step may have fewer tasks than its job.
    Starter("SLURM", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_LOCALID",
            ("SLURM_STEP_NUM_NODES", "SLURM_NNODES")),
    Starter("Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_LOCAL_RANK"),
)  # fmt: skip


def find_place(config: Common, environment: Mapping[str, str]) -> Place | None:
    """The place that torch's variables, or those of a ``Starter``, give this process; None where it is alone.

    RANK and WORLD_SIZE count processes where LOCAL_RANK is there too, as torchrun sets it; without it they count
    nodes, as Kubernetes' operator means them, and each may start several processes. ``--world_size`` above 1 is a place
    given by hand, which they must not contradict.

    Raises:
        UserError: the variables are incomplete, damaged, or contradict the flags.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _by_torch(config, environment)
    started = next((starter for starter in STARTERS if starter.rank in environment), None)
    return None if started is None or config.world_size > 1 else _by_starter(started, environment)


def _by_torch(config: Common, environment: Mapping[str, str]) -> Place | None:
    if environment.get("WORLD_SIZE", "").strip() == "1":
        return None
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise UserError(
                f"the environment has {'WORLD_SIZE' if 'WORLD_SIZE' in environment else 'RANK'} but no {name}: set "
                "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for a run of several processes, or unset them all"
            )
    rank, size = _place_of("RANK", "WORLD_SIZE", environment)
    if config.world_size > 1:
        if (config.rank, config.world_size) != (rank, size):
            raise UserError(
                f"--world_size {config.world_size} --rank {config.rank} contradicts WORLD_SIZE={size} RANK={rank} of "
                "the environment: leave out the flags, or unset the variables"
            )
        return None
    local_rank = _number("LOCAL_RANK", environment) if "LOCAL_RANK" in environment else None
    return Place(rank, size, local_rank, "env://" if "TORCHELASTIC_RUN_ID" in environment else _url(environment))


def _by_starter(starter: Starter, environment: Mapping[str, str]) -> Place | None:
    """One task of several; where there is one task on each node it stands for the node."""
    size_name = next((name for name in starter.size if name in environment), None)
    if size_name is None or _number(size_name, environment) < 2:
        return None
    rank, size = _place_of(starter.rank, size_name, environment)
    if not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise UserError(
            f"task {rank} of {size} ({starter.rank}, {size_name}) has no MASTER_ADDR and MASTER_PORT to meet the "
            f"others at: export both as scripts/slurm.sh does, or, for a run of its own in each task, unset "
            f"{starter.rank}"
        )
    url = _url(environment)
    nodes = next((_number(name, environment) for name in starter.nodes if name in environment), None)
    if nodes == size:
        return Place(rank, size, None, url)
    # A scheduler may show each task its own device alone, which then is number 0.
    own_device = len(environment.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    local_rank = 0 if own_device or starter.local_rank not in environment else _number(starter.local_rank, environment)
    return Place(rank, size, local_rank, url)


def _place_of(rank_name: str, size_name: str, environment: Mapping[str, str]) -> tuple[int, int]:
    rank, size = _number(rank_name, environment), _number(size_name, environment)
    if rank >= size:
        raise UserError(f"{rank_name}={rank} of the environment is not below {size_name}={size}: both count from 0")
    return rank, size


def _number(name: str, environment: Mapping[str, str]) -> int:
    text = environment.get(name, "").strip()
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{name}={text} of the environment: give a whole number, or unset it")
    return int(text)


def _url(environment: Mapping[str, str]) -> str:
    host = environment["MASTER_ADDR"].strip()
    if ":" in host and not host.startswith("["):  # an address of IPv6
        host = f"[{host}]"
    return f"tcp://{host}:{_number('MASTER_PORT', environment)}"
