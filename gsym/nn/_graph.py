"""What a layer derives from its graph: prepared at first use, recognised ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gsym._validate import GraphError, SignalError, check_edge_index_type, is_wrapper

T = TypeVar("T")


@dataclass
class _Seen:
    given: Tensor  # the caller's edge_index, recognised as long as its version stands
    version: int | None
    edge_index: Tensor  # its values, by which an equal one is recognised
    num_nodes: int
    copies: int  # how many copies of the graph edge_index holds

    def is_same(self, edge_index: Tensor, plain: Tensor) -> bool:
        """Whether the graph is this one; ``plain`` is the tensor within a wrapper."""
        if torch.compiler.is_compiling():
            return edge_index is self.given
        if edge_index is self.given and self.version == _version(edge_index) is not None:
            return True
        seen = self.edge_index
        return plain.device == seen.device and torch.equal(plain, seen)


class LastGraph(Generic[T]):
    """Keeps what was built for the last graph seen.

    The very tensor is recognised for free, a copy of it by comparing values. Under
    ``torch.compile(fullgraph=True)`` the graph must have been seen before.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None
        self._built: T | None = None

    def get(
        self,
        edge_index: Tensor,
        x: Tensor,
        batch_size: int | None,
        build: Callable[[Tensor, int], T],
    ) -> T:
        """What ``build`` makes of one copy of the graph and its number of nodes.

        Args:
            edge_index: The graph, or with ``batch_size`` as many stacked copies of it.
            x: The signal ``[..., n, c]`` it belongs to.
            batch_size: Number of stacked graphs, if they are stacked.
            build: Called on a graph other than the last; it checks the values.
        """
        plain = check_edge_index_type(edge_index)
        if edge_index.device != x.device:
            raise GraphError(
                f"edge_index is on {edge_index.device} but x on {x.device}; move one of them"
            )
        n, seen, built = x.size(-2), self._seen, self._built
        if (
            seen is not None
            and built is not None
            and seen.num_nodes == n
            and seen.copies in (1, batch_size)
            and seen.is_same(edge_index, plain)
        ):
            if edge_index is not seen.given and not torch.compiler.is_compiling():
                self._seen = replace(seen, given=edge_index, version=_version(edge_index))
            return built
        if torch.compiler.is_compiling():
            raise GraphError("call the layer once on this graph before it is compiled")
        if plain.is_meta:
            raise GraphError(
                "edge_index is on meta and has no values to prepare; move it and x to the device "
                "of the layer"
            )
        with torch.inference_mode(False):
            one = _first_copy(plain, n, batch_size)
            copies = 1 if one is plain or batch_size is None else batch_size
            built = build(one, n)
            self._seen = _Seen(edge_index, _version(edge_index), plain.clone(), n, copies)
            self._built = built
        return built


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


def _version(tensor: Tensor) -> int | None:
    """How often the tensor was changed in place, if that is counted.

    Nobody counts for inference tensors, and a wrapper and what it wraps count each for itself.
    """
    return None if tensor.is_inference() or is_wrapper(tensor) else tensor._version


def _first_copy(edge_index: Tensor, n: int, batch_size: int | None) -> Tensor:
    """The graph itself, or its first copy in a stacked batch of equal graphs."""
    if batch_size is None or edge_index.numel() == 0 or int(edge_index.max()) < n:
        return edge_index
    copies, rest = divmod(edge_index.size(1), batch_size)
    one = edge_index[:, :copies]
    offset = torch.arange(batch_size, device=edge_index.device)[:, None, None] * n
    stacked = (one + offset).transpose(0, 1).reshape(2, -1)
    if rest or not torch.equal(stacked, edge_index):
        raise GraphError(
            f"with batch_size={batch_size}, edge_index must hold one graph on {n} nodes or "
            f"{batch_size} equal copies of it, as PyG's DataLoader stacks them"
        )
    return one
