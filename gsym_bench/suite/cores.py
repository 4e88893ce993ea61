"""Threads of a process, and how many processes share the cores of this machine."""

from __future__ import annotations

import os

import psutil
import scipy.linalg  # noqa: F401  loads its BLAS, so that the limit reaches it
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

# Bytes that the largest net needs while it is trained, with all that its process has loaded.
_LARGEST_CELL = 3 * 2**30


def use_threads(number: int) -> None:
    """Give torch and every BLAS that this process has loaded so many threads.

    NumPy and SciPy bring pools of their own, of one thread per core. Workers that each wait for
    threads on every core take many times as long as with one thread each.
    """
    torch.set_num_threads(number)
    threadpool_limits(number)


def usable_cores() -> int:
    """Cores that this process may use."""
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count()
    return cores or 1


def share_cores(workers: int | None) -> int:
    """Set the threads of this process and of its workers; say how many workers there are.

    Cells are small, so that a second thread helps a cell less than a second cell helps a run: by
    default every core has a worker of one thread, as far as memory goes. With a number of workers
    they share the cores. ``OMP_NUM_THREADS`` comes first: it says how many threads a worker has.
    """
    cores = usable_cores()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads):
        use_threads(torch.get_num_threads())
    else:
        use_threads(1 if workers is None else max(1, cores // max(1, workers)))
    if workers is not None:
        return workers
    most = psutil.virtual_memory().available // _LARGEST_CELL
    return int(max(1, min(cores // torch.get_num_threads(), most)))
