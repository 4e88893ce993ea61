"""Memory for large results, from huge pages where the system gives them to those who ask.

A fresh page costs a fault, and to take one for every 4 KiB of a result takes longer than to fill
it. With huge pages there is one for every 2 MiB.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MADV_HUGEPAGE = 14


def new_empty(x: Tensor, *shape: int) -> Tensor:
    """As ``x.new_empty(shape)``, for a result that is about to be written as a whole."""
    result = x.new_empty(shape)
    if result.device.type == "cpu" and result.nbytes >= 2**22:
        advise = _advice()
        if advise is not None:
            advise(result.data_ptr(), result.nbytes)
    return result


def new_zeros(x: Tensor, *shape: int) -> Tensor:
    """As ``x.new_zeros(shape)``."""
    return new_empty(x, *shape).zero_()


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """As ``x.index_select(-2, index)``."""
    out = new_empty(x, *x.shape[:-2], index.numel(), x.size(-1))
    return torch.index_select(x.contiguous(), -2, index, out=out)


@cache
def _advice() -> Callable[[int, int], None] | None:
    """What asks for huge pages within some bytes of memory, if the system has any."""
    page = 0
    with suppress(OSError, ValueError):
        page = int(_SIZE.read_text())
    if page < 1:
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def advise(start: int, size: int) -> None:
        # Whole pages only: a result must not take more memory than it has numbers.
        first, end = -(-start // page) * page, (start + size) // page * page
        if first < end:
            madvise(first, end - first, _MADV_HUGEPAGE)  # a refusal costs time, nothing else

    return advise
