"""A per-layer cache of graph-derived tables, kept for the last graph seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gsym._validate import check_edge_index_type, is_wrapper
from gsym.errors import GraphError
from gsym.kernels.transforms import is_wrapped, undisturbed, without_wrappers

T = TypeVar("T")

_CHANGED = (
    "edge_index was changed in place after its graph had been prepared; make another tensor, or "
    "call the layer on it again outside of compiled code"
)


@dataclass(frozen=True)
class _Seen(Generic[T]):
    """A graph and what was built for it, which are replaced together or not at all."""

    values: Tensor  # a copy that nobody else can write to
    num_nodes: int
    copies: int  # how many copies of the graph edge_index holds
    built: T
    given: Tensor  # the caller's tensor; where values cannot be read for free, it selects this
    version: int | None
    address: int

    def is_same(self, edge_index: Tensor, plain: Tensor) -> bool:
        """Whether the graph is this one; ``plain`` is the tensor within a wrapper.

        Values decide. No counter sees what is written to memory shared with NumPy or with
        another process, through ``.data``, or before a copy was made.
        """
        if torch.compiler.is_compiling():
            return edge_index is self.given and _same_values(plain, self.values)
        if plain.device != self.values.device:
            return False
        if plain.device.type == "cpu" or not self._is_given(edge_index, plain):
            return torch.equal(plain, self.values)
        return _same_values(plain, self.values)

    def _is_given(self, edge_index: Tensor, plain: Tensor) -> bool:
        return (
            edge_index is self.given
            and self.version == _version(edge_index) is not None
            and self.address == plain.data_ptr()
        )


class LastGraph(Generic[T]):
    """Keeps what was built for the last graph seen, which is recognised by its values.

    Compiled code keeps the tables of the graph that was seen before; any other is an input of it.

    A cache hit is by identity, else by value. Where reading values would be a device sync, on CUDA
    and in compiled code, identity decides and an assertion on the device compares the values.
    Several threads may call one layer: they see a graph with its tables or miss it. Copies and
    pickles start empty.
    """

    def __init__(self) -> None:
        self._seen: _Seen[T] | None = None

    def __deepcopy__(self, memo: object) -> LastGraph[T]:
        return LastGraph()

    def __reduce__(self) -> tuple[Any, ...]:
        return LastGraph, ()

    def get(
        self,
        edge_index: Tensor,
        x: Tensor,
        batch_size: int | None,
        build: Callable[[Tensor, int], T],
        trace: Callable[[Tensor, int], T],
    ) -> T:
        """What ``build`` makes of one copy of the graph and its number of nodes.

        Args:
            edge_index: The graph, or with ``batch_size`` as many stacked copies of it.
            x: The signal ``[..., n, c]`` it belongs to.
            batch_size: Number of stacked graphs, if they are stacked.
            build: Called on a graph other than the last; it checks the values.
            trace: Called instead while a compiler traces a graph that was not seen before: it
                reads no value, so that the graph may be an input of the compiled program.
        """
        seen = self._seen
        plain = edge_index
        if (
            seen is None
            or type(edge_index) is not Tensor
            or edge_index.dtype != seen.values.dtype
            or edge_index.layout is not torch.strided
            or edge_index.shape != seen.values.shape
        ):
            plain = check_edge_index_type(edge_index)
        if not torch.compiler.is_compiling() and is_wrapped(plain):
            # torch.func wraps every tensor that is handed to it; the numbers lie within.
            plain = edge_index = without_wrappers(plain)
        if edge_index.device != x.device:
            raise GraphError(
                f"edge_index is on {edge_index.device} but x on {x.device}; move one of them"
            )
        n = x.size(-2)
        if (
            seen is not None
            and seen.num_nodes == n
            and seen.copies in (1, batch_size)
            and seen.is_same(edge_index, plain)
        ):
            if edge_index is not seen.given and not torch.compiler.is_compiling():
                # A whole new record, of what this call saw: another thread may have put its own.
                self._seen = replace(seen, **_identity(edge_index, plain))
            return seen.built
        if torch.compiler.is_compiling():
            if batch_size is not None:
                raise GraphError(
                    "compiled code cannot see whether edge_index holds one graph or its copies; "
                    "pass x as [b, n, c] with one graph, or call the layer once before"
                )
            return trace(plain, n)
        if plain.is_meta:
            raise GraphError(
                "edge_index is on meta and has no values to prepare; move it and x to the device "
                "of the layer"
            )
        with undisturbed():
            # What is built belongs to the copy, whatever is written to the original meanwhile.
            values = plain.clone()
            one = _first_copy(values, n, batch_size)
            copies = 1 if one is values or batch_size is None else batch_size
            built = build(one, n)
        self._seen = _Seen(values, n, copies, built, **_identity(edge_index, plain))
        return built


def _identity(edge_index: Tensor, plain: Tensor) -> dict[str, Any]:
    return {
        "given": edge_index,
        "version": _version(edge_index),
        "address": plain.data_ptr(),
    }


def _same_values(plain: Tensor, values: Tensor) -> bool:
    """Whether the shapes agree; that the values do is asserted where they lie."""
    if plain.shape != values.shape:
        return False
    torch._assert_async((plain == values).all(), _CHANGED)
    return True


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
