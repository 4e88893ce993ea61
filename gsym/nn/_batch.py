"""PyG's stacked batches: graphs one below the other, apart for the layer."""

from __future__ import annotations

import torch
from torch import Tensor

from gsym.errors import SignalError


def unstack(x: Tensor, batch_size: int, num_nodes: int | None) -> Tensor:
    """PyG's stacked batch ``[b*n, c]`` of one graph as ``[b, n, c]``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [b*n, c]; got {type(x).__name__}")
    if x.dim() != 2:
        raise SignalError(f"with batch_size, x must be [b*n, c]; got {list(x.shape)}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | torch.SymInt):
        raise TypeError(f"batch_size must be a number of graphs; got {batch_size!r:.80}")
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


def count_graphs(
    x: Tensor, batch: Tensor | None, batch_size: int | None, num_nodes: int | None
) -> int | None:
    """How many graphs of one size are stacked in ``x``, or None where none are.

    Args:
        x: The signal.
        batch: PyG's vector, the graph of every row. Its values are compared where that is free of
            a device sync and else asserted where they lie; the number of graphs is read from it
            if neither of the others gives it.
        batch_size: The number of graphs, if the caller says it.
        num_nodes: Nodes of each graph, if a group fixes them.
    """
    if batch is None:
        return batch_size
    check_batch(batch, x)
    rows, compiled = x.size(0), torch.compiler.is_compiling()
    if batch_size is not None:
        count = batch_size
    elif num_nodes is not None:
        count = rows // num_nodes
    elif compiled:
        raise SignalError(
            "in compiled code the number of graphs cannot be read from batch; pass batch_size= too"
        )
    else:
        count = int(batch.max()) + 1 if rows else 0
    size = num_nodes if num_nodes is not None else rows // max(count, 1)
    fits = count * size == rows
    if fits and rows:
        expected = torch.arange(rows, device=batch.device) // size
        if compiled or batch.is_cuda:
            torch._assert_async((batch == expected).all(), _UNEQUAL)
            return count
        fits = torch.equal(batch, expected)
    if not fits:
        raise SignalError(_what_is_unequal(batch, num_nodes, batch_size))
    return count


def count_blocks(source: Tensor, target: Tensor, num_nodes: int) -> int:
    """Into how many runs of consecutive nodes a graph falls apart, each with its edges.

    PyG stacks graphs so. A node without an edge to another makes no run: one graph may have many.
    """
    low, high = torch.minimum(source, target), torch.maximum(source, target)
    ends = torch.stack([low, high])[:, low < high]
    if not ends.numel():
        return 1
    # How many edges cross the border before every node: none, where a run begins.
    step = torch.ones_like(ends[0])
    crossed = ends.new_zeros(num_nodes + 1).index_add(0, ends[0] + 1, step)
    crossed = crossed.index_add(0, ends[1] + 1, -step).cumsum(0)
    run = (crossed == 0).cumsum(0)
    return int(torch.unique(run[ends[0]]).numel())


def refuse_stacked(x: Tensor, num_blocks: int) -> None:
    """Refuse graphs that are evidently stacked where the caller did not say so."""
    if num_blocks > 1:
        raise SignalError(
            f"x {list(x.shape)} looks like {num_blocks} stacked graphs: no edge of edge_index runs "
            f"between {num_blocks} blocks of consecutive nodes; a layer with group=None pools over "
            "all nodes of a graph, so pass batch= (PyG's vector) or batch_size=; batch_size=1 "
            "says that all is one graph"
        )


_UNEQUAL = "batch must number graphs of one size, in order: 0, ..., 0, 1, ..., 1, and so on"


def _what_is_unequal(batch: Tensor, num_nodes: int | None, batch_size: int | None) -> str:
    if torch.compiler.is_compiling():
        return _UNEQUAL
    sorted_ = bool((batch.diff() >= 0).all())
    numbers, sizes = torch.unique_consecutive(batch, return_counts=True)
    found = sizes.unique().tolist()
    if not sorted_:
        return "batch must be sorted, the nodes of each graph one below the other"
    if batch_size is not None and numbers.numel() != batch_size:
        return f"batch names {numbers.numel()} graphs but batch_size is {batch_size}"
    if num_nodes is not None and found != [num_nodes]:
        some = ", ".join(map(str, [size for size in found if size != num_nodes][:5]))
        return f"the group acts on {num_nodes} nodes, but batch has graphs of {some} nodes"
    if len(found) > 1:
        return (
            f"batch has graphs of {found[0]} and of {found[-1]} nodes; the layer pools over the "
            "nodes of each graph and takes graphs of one size; call it on each size by itself"
        )
    return _UNEQUAL


def check_batch(batch: object, x: Tensor) -> None:
    """Check type and shape of PyG's vector against the stacked signal, without its values."""
    if not isinstance(batch, Tensor):
        raise TypeError(f"batch must be a tensor [b*n]; got {type(batch).__name__}")
    if not isinstance(x, Tensor) or x.dim() != 2:
        came = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise SignalError(f"with batch, x must be [b*n, c]; got {came}")
    if batch.dtype != torch.int64 or batch.shape != x.shape[:1]:
        raise SignalError(
            f"batch must be int64 [{x.size(0)}], the graph of every row of x; got {batch.dtype} "
            f"{list(batch.shape)}"
        )
    if batch.device != x.device:
        raise SignalError(f"batch is on {batch.device} but x on {x.device}; move one of them")
