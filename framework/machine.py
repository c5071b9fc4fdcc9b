"""The machine that a figure depends on: device, versions, memory."""

import platform
import sys
from typing import Any

import psutil
import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions and peak memory so far: what a figure depends on."""
    name = f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peak_memory_mib": peak_memory_mib(device),
    }


def peak_memory_mib(device: torch.device) -> float:
    """MiB: the device's allocations on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on ``device``, or None where that is unknown (MPS)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None
