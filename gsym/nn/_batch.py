"""PyG's stacked batches: graphs one below the other, apart for the layer."""

from __future__ import annotations

from torch import Tensor

from gsym._validate import SignalError


def unstack(x: Tensor, batch_size: int, num_nodes: int | None) -> Tensor:
    """PyG's stacked batch ``[b*n, c]`` of one graph as ``[b, n, c]``."""
    if x.dim() != 2:
        raise SignalError(f"with batch_size, x must be [b*n, c]; got {list(x.shape)}")
    if batch_size == 0 and x.size(0) == 0:
        return x.view(0, num_nodes or 0, x.size(1))
    if batch_size < 1 or x.size(0) % batch_size:
        raise SignalError(f"x has {x.size(0)} rows, not a multiple of batch_size={batch_size}")
    return x.reshape(batch_size, -1, x.size(1))


def unstack_rows(rows: Tensor | None, batch_size: int | None, count: int) -> Tensor | None:
    """Stacked rows ``[b*r, c]`` as ``[b, r, c]``, ``count`` being r; others as they came."""
    if batch_size is None or not isinstance(rows, Tensor):
        return rows
    if rows.dim() != 2 or rows.size(0) != batch_size * count:
        return rows
    return rows.view(batch_size, count, rows.size(1))
