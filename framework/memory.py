"""Out of memory: what to lower, and by how much."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch

from framework.assemble import Parts
from framework.config import Config, UserError
from framework.kernels import Execution
from framework.preview import size_text, step_bytes

HALVED = ("batch_size", "batch_per_class", "task_sampler_nc", "d", "window", "totwindow")
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


def needed(config: Config, parts: Parts, processes: int, execution: Execution) -> float:
    """Estimated peak bytes of one process's outer step, within a factor of two."""
    module = deepcopy(parts.network.module).to("meta")
    channels, side, _ = parts.real.image_shape
    share = max(1, min(config.batch_size, len(parts.real.train)) // processes)
    return sum(step_bytes(config, execution, module, channels, side, parts.real.num_classes, share))


def advice(config: Config, parts: Parts, processes: int) -> str:
    """What would lower the memory of an outer step, most effective first."""
    execution = parts.loop.execution
    now = needed(config, parts, processes, execution)
    found = []
    if config.engine_name == "higher":
        found.append((needed(replace(config, engine="replay"), parts, processes, execution), "--engine replay"))
    else:
        chunk = max(1, execution.chunk // 2)
        smaller = needed(config, parts, processes, replace(execution, chunk=chunk))
        found.append((smaller, f"--chunk {chunk} (now {execution.chunk}), which --resume may change"))
    for name in HALVED:
        value = getattr(config, name)
        if not value or value < 2 or (name == "totwindow" and config.policy != "bptt"):
            continue
        lower = {name: value // 2} | ({"window": min(config.window, value // 2)} if name == "totwindow" else {})
        option = f"--{name}" if len(name) > 1 else f"-{name}"
        found.append(
            (needed(replace(config, **lower), parts, processes, execution), f"{option} {value // 2} (now {value})")
        )
    better = [f"{text}: {size_text(size)}" for size, text in sorted(found) if size <= WORTH_IT * now]
    if processes > 1 and parts.network.device.type == "cpu":
        better.append(f"--nproc {processes // 2}")
    better.append("a smaller --width or --im_size")
    return f"an outer step needs about {size_text(now)} here. Try {'; or '.join(better)}"
