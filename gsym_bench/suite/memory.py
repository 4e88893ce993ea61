"""Peak memory of a stretch of work: what the device says, or the resident set of the process."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")


def peak_memory(device: torch.device) -> Callable[[], float]:
    """Start to measure; the returned function gives the peak since then, in MiB above the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        _return_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")
        resident = _status_mib("VmRSS")
        return lambda: _status_mib("VmHWM") - resident
    except OSError:
        if sys.platform == "win32":
            return lambda: math.nan
        # Elsewhere the high-water mark cannot be reset: work below an earlier peak reads 0.
        mark = _max_resident_mib()
        return lambda: _max_resident_mib() - mark


def in_new_process(work: Callable[..., Result], *args: object) -> Result:
    """Run the function in a process of its own, where nothing earlier is left in memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def _return_freed_memory() -> None:
    # Memory that the allocator keeps would be used again without raising the resident set.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Tell the C library to use freed memory again instead of returning it, if it can be told.

    A fresh large tensor costs a page fault per page, often more than the arithmetic on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    mmap_max, trim_threshold = -4, -1
    return mallopt is not None and bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def _status_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def _max_resident_mib() -> float:
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
