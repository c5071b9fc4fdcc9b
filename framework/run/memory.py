"""Memory: what a step needs, by estimate, and what to lower where it runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from framework.config.bptt import Config
from framework.config.distilling import Distilling
from framework.config.matching import FtdConfig
from framework.errors import UserError
from framework.flags import option
from framework.inner.kernels import Execution
from framework.networks.flat import activation_floats
from framework.outer.engines.replay import kept_vectors, segment

# Measured by benchmarks/memory_estimate.py, as multiples of the floats that one forward pass writes.
WINDOW_GRAPH = 1.5  # higher: kept for every differentiated step and image


STEP_GRAPH = 3.5  # replay: at the peak of one step's second derivative, for every image of a chunk


REAL_GRAPH = 2.0  # at the peak of the real batch's gradient, for every image differentiated at a time


WINDOW_PARAMETERS = 12  # higher: vectors of theta's size per differentiated step


def window_bytes(
    engine: str, module: nn.Module, channels: int, side: int, length: int, batch: int, chunk: int, samples: int = 0
) -> float:
    """Estimated additional peak memory of ``length`` differentiated steps on ``batch`` images.

    Args:
        engine: ``higher``, ``replay``, ``lowrank``, or ``matching``: replay whose optimiser keeps nothing.
        module: the network, on ``meta``.
        channels, side: of its images.
        length: of the window.
        batch: synthetic images per step.
        chunk: images differentiated at a time.
        samples: columns of a low-rank factorisation.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    floats = activation_floats(module, channels, side)
    if engine == "higher":
        return 4 * length * (WINDOW_GRAPH * floats * batch + WINDOW_PARAMETERS * parameters)
    vectors = kept_vectors(length, segment(length), 1 if engine == "matching" else 3) + 4 * samples
    return 4 * (STEP_GRAPH * floats * min(batch, chunk) + vectors * parameters)


@dataclass(frozen=True)
class Problem:
    """What a run's memory depends on beside its flags.

    Args:
        module: the network, on ``meta``.
        channels, side: of its images.
        classes: of the data set.
        real: training images.
        execution: of the run.
        processes: that share the real batch.
    """

    module: nn.Module
    channels: int
    side: int
    classes: int
    real: int
    execution: Execution
    processes: int = 1


def step_bytes(config: Distilling, problem: Problem) -> tuple[float, float]:
    """Estimated additional peak memory of one process's outer step: of its window, and of its real batch."""
    p, whole = problem, config.norm == "batch"
    if isinstance(config, FtdConfig):
        batch = config.student_batch(p.classes)
        chunk = batch if whole else p.execution.chunk
        return window_bytes("matching", p.module, p.channels, p.side, config.syn_steps, batch, chunk), 0.0
    assert isinstance(config, Config), "every kind of run has its own estimate"
    return _window_and_real_bytes(config, problem)


def _window_and_real_bytes(config: Config, problem: Problem) -> tuple[float, float]:
    c, p, execution = config, problem, problem.execution
    batch = c.inner_batch(p.classes)
    real_batch = max(1, min(c.batch_size, p.real) // p.processes)
    whole = c.norm == "batch"
    at_once = c.meta_batch if execution.together else 1
    window = window_bytes(
        c.engine_name, p.module, p.channels, p.side, c.longest_window, batch, batch if whole else execution.chunk,
        c.factor_columns,
    )  # fmt: skip
    if c.policy == "rat-pool":
        parameters = sum(parameter.numel() for parameter in p.module.parameters())
        window += 4 * 3 * parameters * c.pool_size * c.meta_batch / at_once
    images = real_batch if whole or c.engine_name == "higher" else min(real_batch, execution.chunk)
    return at_once * window, at_once * 4 * REAL_GRAPH * images * activation_floats(p.module, p.channels, p.side)


def size_text(count: float) -> str:
    """``count`` bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


HALVED = (
    "batch_size", "batch_per_class", "task_sampler_nc", "d", "window_radius", "window", "totwindow", "cr_rank",
    "batch_syn", "syn_steps",
)  # fmt: skip
ELSEWHERE = "while loading or building: lower --limit_train, --im_size, --num_per_class or --width, or free memory"
WORTH_IT = 0.9  # a change is named only if it leaves at most this share of the memory
# How PyTorch says it on the CPU, where it has no exception of its own.
_ON_CPU = ("not enough memory", "can't allocate memory", "DefaultCPUAllocator", "std::bad_alloc")


class OutOfMemory(UserError):
    """An allocation failed. Where the state in memory is still that of the last step, it can be saved."""


@contextmanager
def explained(advice: Callable[[], str]) -> Iterator[None]:
    """Turn a failed allocation into ``OutOfMemory`` with ``advice``, on the CPU and on CUDA."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        lines = str(error).strip().splitlines() or ["out of memory"]
        text = next((line for line in lines if any(words in line for words in _ON_CPU)), lines[0])
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in text for words in _ON_CPU):
            raise
    # Out of the handler, which would keep every frame's tensors alive while the run saves.
    raise OutOfMemory(f"out of memory ({text.partition('. ')[0].strip()}): {advice()}")


def needed(config: Distilling, problem: Problem) -> float:
    """Estimated peak bytes of one process's outer step, within a factor of two."""
    return sum(step_bytes(config, problem))


def advice(config: Distilling, problem: Problem, device: torch.device) -> str:
    """What would lower the memory of an outer step on ``device``, most effective first."""
    execution, now = problem.execution, needed(config, problem)
    found = []
    if isinstance(config, Config) and config.engine_name == "higher":
        found.append((needed(replace(config, engine="replay"), problem), "--engine replay"))
    else:
        chunk = max(1, execution.chunk // 2)
        smaller = needed(config, replace(problem, execution=replace(execution, chunk=chunk)))
        found.append((smaller, f"--chunk {chunk} (now {execution.chunk}), which --resume may change"))
    for name in HALVED:
        value = getattr(config, name, None)
        if not value or value < 2 or (name == "totwindow" and config.policy != "bptt"):
            continue
        lower = {name: value // 2}
        if isinstance(config, Config) and name == "totwindow":
            lower["window"] = min(config.window, value // 2)
        found.append((needed(replace(config, **lower), problem), f"{option(name)} {value // 2} (now {value})"))
    better = [f"{text}: {size_text(size)}" for size, text in sorted(found) if size <= WORTH_IT * now]
    if problem.processes > 1 and device.type == "cpu":
        better.append(f"--nproc {problem.processes // 2}")
    better.append("a smaller --width or --im_size")
    return f"an outer step needs about {size_text(now)} here. Try {'; or '.join(better)}"
