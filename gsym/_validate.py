"""Input validation shared by all subpackages.

An error says what was expected, what came and what to do.
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor

from gsym.errors import GraphError, GroupError, PartitionError, SignalError

IntegerArray = Tensor | np.ndarray | Sequence[int]


def optional_module(name: str, package: str, extra: str, what: str) -> ModuleType:
    """Import a module on first use, or say which extra of gsym to install.

    Args:
        name: Module to import.
        package: Distribution that holds it.
        extra: Extra of gsym that installs it.
        what: What the caller asked for, as the error names it.

    Raises:
        ImportError: The module is not installed.
    """
    try:
        return import_module(name)
    except ImportError as cause:
        raise ImportError(
            f"{what} needs {package}; install it with: pip install 'gsym[{extra}]'"
        ) from cause


def warn(message: str) -> None:
    """Warn at the line that called into gsym."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("gsym."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_dense(name: str, tensor: Tensor, error: type[ValueError], *, values: bool) -> None:
    """Refuse a tensor that has no plain numbers: nested, sparse, quantised, or on meta.

    The last has shapes all the same, which is enough where ``values`` are not read.
    """
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
        raise error(f"{name} must be a dense tensor; got {kind}; use .to_dense() or padding")
    if tensor.is_quantized:
        raise error(f"{name} must hold plain numbers; got {tensor.dtype}; use .dequantize()")
    if values and tensor.is_meta:
        raise error(f"{name} must have values to read; got a tensor on meta; move it to a device")


def integer_tensor(values: object, what: str, error: type[ValueError]) -> Tensor:
    """Copy ``values`` to a new int64 tensor on the CPU, or say why that cannot be done."""
    refuse_masked(values, what, error)
    if isinstance(values, Tensor):
        check_dense(what, values, error, values=True)
    if isinstance(values, list | tuple):
        kinds = set(map(type, values))
        if len(kinds) > 1 and kinds & {bool, np.bool_}:
            raise error(f"{what} must be integers; got a boolean among them: {values!r:.80}")
    try:
        # torch takes no array that runs backwards.
        plain = np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
        tensor = torch.as_tensor(plain)
    except (ValueError, TypeError, RuntimeError) as cause:
        raise error(
            f"{what} must be a rectangular array of integers; got {values!r:.80}"
        ) from cause
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=torch.int64)
    if tensor.dtype not in _INTEGER_DTYPES:
        hint = ""
        if tensor.is_floating_point():
            bad = (~torch.isfinite(tensor)) | (tensor != tensor.round())
            if bad.any():
                first = int(bad.flatten().nonzero()[0])
                hint = f" (entry {first} is {float(tensor.flatten()[first])})"
        raise error(
            f"{what} must be integers; got dtype {tensor.dtype}{hint}; convert with .long()"
        )
    return tensor.detach().to(device="cpu", dtype=torch.int64, copy=True)


def refuse_masked(values: object, what: str, error: type[ValueError]) -> None:
    """Refuse a masked array, whose gaps would count as the numbers beneath them."""
    if isinstance(values, np.ma.MaskedArray):
        raise error(
            f"{what} must have no gaps; got a masked array with {np.ma.count_masked(values)} gaps; "
            "fill them with .filled(value), or take .data if the mask means nothing"
        )


def check_whole(value: object, what: str, error: type[ValueError] = ValueError) -> int:
    """Return a whole number as an ``int``; a boolean is none."""
    if isinstance(value, bool):
        raise error(f"{what} must be a whole number; got {value}")
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError:
        raise error(f"{what} must be a whole number; got {value!r:.80}") from None


def check_widths(least: int = 1, **widths: object) -> None:
    """Check numbers of channels and the like: whole numbers, ``least`` or more."""
    for name, value in widths.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number of at least {least}; got {value!r:.80}")
        if not least <= value < 2**31:
            raise ValueError(f"{name} must be at least {least} and below 2^31; got {value}")


def check_labels(labels: object, num_nodes: int | None = None) -> Tensor:
    """Return ``labels`` as int64 ``[n]``, every label from 0 to the largest being used."""
    tensor = integer_tensor(labels, "labels", PartitionError)
    if tensor.dim() != 1:
        raise PartitionError(
            f"labels must be one-dimensional, one per node; got shape {list(tensor.shape)}"
        )
    if tensor.numel() == 0:
        raise PartitionError("a partition needs at least one node; got no labels")
    if num_nodes is not None and tensor.numel() != num_nodes:
        raise PartitionError(
            f"expected one label for each of {num_nodes} nodes; got {tensor.numel()}"
        )
    if tensor.min() < 0:
        first = int((tensor < 0).nonzero()[0])
        raise PartitionError(
            f"labels must not be negative; node {first} has label {int(tensor[first])}; "
            "renumber with Partition.from_labels(labels, relabel=True)"
        )
    highest = int(tensor.max())
    used = torch.zeros(min(highest, tensor.numel()) + 1, dtype=torch.bool)
    used[tensor[tensor < used.numel()]] = True
    if highest >= tensor.numel() or not bool(used.all()):
        gap = int((~used).nonzero()[0])
        raise PartitionError(
            f"labels must be 0 to k-1 without a gap; no node has label {gap} although the largest "
            f"is {highest}; renumber with Partition.from_labels(labels, relabel=True)"
        )
    return tensor


def check_permutation(perm: object, num_nodes: int, what: str = "perm") -> Tensor:
    """Return ``perm`` as int64 ``[n]``, ``perm[i]`` being the image of ``i``."""
    tensor = integer_tensor(perm, what, GroupError)
    if tensor.dim() != 1 or tensor.numel() != num_nodes:
        raise GroupError(
            f"{what} must list the images of {num_nodes} nodes; got shape {list(tensor.shape)}"
        )
    inside = (tensor >= 0) & (tensor < num_nodes)
    if not bool(inside.all()):
        first = int((~inside).nonzero()[0])
        raise GroupError(
            f"{what} sends node {first} to {int(tensor[first])}, outside 0..{num_nodes - 1}"
        )
    counts = torch.bincount(tensor, minlength=num_nodes)
    if not bool((counts == 1).all()):
        repeated = int((counts > 1).nonzero()[0])
        raise GroupError(
            f"{what} is not a permutation: {int(counts[repeated])} nodes have the image {repeated}"
        )
    return tensor


_TO_EDGE_INDEX = (
    "; convert an adjacency whose rows send with torch_geometric.utils.to_edge_index(adj)[0]"
)


def is_wrapper(edge_index: Tensor) -> bool:
    """Whether this is a ``torch_geometric.EdgeIndex`` or the like, around the tensor that counts.

    Known by its method, for PyG is not to be imported for it.
    """
    return hasattr(edge_index, "as_tensor")


def check_edge_index_type(edge_index: object) -> Tensor:
    """Return ``edge_index`` once it is known to be int64 ``[2, e]``; reads no value.

    What wraps a tensor without memory of its own, as ``torch_geometric.EdgeIndex`` does, is
    unwrapped; others are returned as they came.
    """
    if not isinstance(edge_index, Tensor):
        name = type(edge_index).__name__
        hint = _TO_EDGE_INDEX if name == "SparseTensor" else ""
        raise TypeError(f"edge_index must be a tensor [2, e]; got {name}{hint}")
    if edge_index.layout is not torch.strided:
        raise GraphError(
            f"edge_index must be a dense tensor [2, e]; got layout {edge_index.layout} and shape "
            f"{list(edge_index.shape)}{_TO_EDGE_INDEX}"
        )
    tensor: Any = edge_index
    if is_wrapper(edge_index):
        tensor = tensor.as_tensor()
    check_dense("edge_index", tensor, GraphError, values=False)
    if tensor.dim() != 2 or tensor.size(0) != 2:
        hint = "; transpose it" if tensor.dim() == 2 and tensor.size(1) == 2 else ""
        raise GraphError(f"edge_index must have shape [2, e]; got {list(tensor.shape)}{hint}")
    if tensor.dtype != torch.int64:
        raise GraphError(
            f"edge_index must have dtype torch.int64; got {tensor.dtype}; "
            "convert with edge_index.long()"
        )
    return tensor


def check_edge_index(edge_index: object, num_nodes: int) -> Tensor:
    """Return ``edge_index`` once it is known to be int64 ``[2, e]`` within range.

    Unwraps what :func:`check_edge_index_type` does. Reads the values, so it belongs where a graph
    is prepared and never into every forward pass.
    """
    edge_index = check_edge_index_type(edge_index)
    check_dense("edge_index", edge_index, GraphError, values=True)
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            bad = low if low < 0 else high
            edge = int((edge_index == bad).any(dim=0).nonzero()[0])
            raise GraphError(
                f"edge_index must lie in 0..{num_nodes - 1}; edge {edge} names node {bad}"
            )
    return edge_index


def check_edge_weight(edge_weight: object, edges: int, copies: int = 1) -> Tensor | None:
    """Return ``edge_weight`` as it came, once it is known to be one number per edge.

    With ``copies`` of the graph, one number per edge of each copy will do as well.
    """
    if edge_weight is None:
        return None
    if not isinstance(edge_weight, Tensor) or not edge_weight.is_floating_point():
        came = getattr(edge_weight, "dtype", type(edge_weight).__name__)
        raise TypeError(f"edge_weight must be a floating-point tensor [e]; got {came}")
    check_dense("edge_weight", edge_weight, GraphError, values=False)
    if edge_weight.shape not in ((edges,), (copies * edges,)):
        raise GraphError(
            f"edge_weight must hold one number for each of {edges} edges; "
            f"got shape {list(edge_weight.shape)}"
        )
    return edge_weight


def check_num_nodes(num_nodes: object) -> int:
    """Return the number of nodes of a graph, once it is known to be 1 or more."""
    if not isinstance(num_nodes, int | np.integer) or isinstance(num_nodes, bool):
        raise TypeError(
            f"num_nodes must be an int, the number of nodes of the graph; got {num_nodes!r:.80}"
        )
    if num_nodes < 1:
        raise GraphError(f"a graph needs at least one node; got num_nodes={num_nodes}")
    return int(num_nodes)


def check_finite_weight(edge_weight: Tensor | None) -> None:
    """Check that every edge has a number for a weight."""
    if edge_weight is None:
        return
    check_dense("edge_weight", edge_weight, GraphError, values=True)
    finite = torch.isfinite(edge_weight)
    if not bool(finite.all()):
        edge = int((~finite).nonzero()[0])
        raise GraphError(
            f"edge_weight must be finite; the weight of edge {edge} is {float(edge_weight[edge])}"
        )


def check_node_labels(node_labels: object, num_nodes: int) -> Tensor:
    """Return ``node_labels`` as int64 ``[n]``, any integers."""
    tensor = integer_tensor(node_labels, "node_labels", GraphError)
    if tensor.shape != (num_nodes,):
        raise GraphError(
            f"node_labels must hold one integer for each of {num_nodes} nodes; "
            f"got shape {list(tensor.shape)}"
        )
    return tensor


def check_signal(x: Tensor, num_nodes: int | None, channels: int) -> None:
    """Check type and shape of a signal ``[..., n, c]`` without reading its values."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [..., n, c]; got {type(x).__name__}")
    if not x.is_floating_point():
        raise SignalError(f"x must be floating point; got {x.dtype}; convert with x.float()")
    check_dense("x", x, SignalError, values=False)
    if x.dim() < 2:
        raise SignalError(f"x must have shape [..., n, {channels}]; got {list(x.shape)}")
    if num_nodes is not None and x.size(-2) != num_nodes:
        hint = ""
        if x.size(-2) % num_nodes == 0:
            hint = (
                "; for PyG's stacked batch pass batch= or batch_size=, or reshape with "
                f"x.view(-1, {num_nodes}, x.size(-1))"
            )
        raise SignalError(
            f"the group acts on {num_nodes} nodes but x has {x.size(-2)} on axis -2{hint}"
        )
    if x.size(-1) != channels:
        raise SignalError(f"the layer takes {channels} channels but x has {x.size(-1)} on axis -1")


def reads_for_free(tensor: Tensor) -> bool:
    """Whether values can be looked at: they are no device sync away, and nobody traces or maps."""
    return (
        not torch.compiler.is_compiling()
        and tensor.device.type == "cpu"
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._len_torch_dispatch_stack()
    )


def check_positions(
    pos: Tensor, x: Tensor, dim: int | None, what: str = "pos", *, values: bool = True
) -> None:
    """Check coordinates ``[..., n, d]`` against the signal they belong to.

    Reads the values, if they are wanted, only where that is free of a device sync and of a graph
    break.
    """
    if not isinstance(pos, Tensor):
        raise TypeError(f"{what} must be a tensor [..., n, d]; got {type(pos).__name__}")
    check_dense(what, pos, SignalError, values=False)
    if pos.dim() < 2 or pos.shape[:-1] != x.shape[:-1]:
        raise SignalError(
            f"{what} must be [..., n, d] with the leading axes of x, {list(x.shape[:-1])}; "
            f"got {list(pos.shape)}"
        )
    if dim is not None and pos.size(-1) != dim:
        raise SignalError(
            f"the layer takes {dim} coordinates but {what} has {pos.size(-1)} on axis -1"
        )
    if pos.device != x.device:
        raise SignalError(f"{what} is on {pos.device} but x on {x.device}; move one of them")
    if not values or not reads_for_free(pos):
        return
    # A sum is far cheaper than what follows. It is finite only if all its terms are; large ones may
    # overflow, hence the rest.
    if pos.is_floating_point() and math.isfinite(pos.detach().sum()):
        return
    finite = torch.isfinite(pos.detach())
    if not bool(finite.all()):
        *sample, node, axis = (~finite).nonzero()[0].tolist()
        where = f" of sample {sample}" if sample else ""
        value = float(pos[(*sample, node, axis)])
        raise SignalError(
            f"{what} must be finite; coordinate {axis} of node {node}{where} is {value}"
        )


def check_like_weights(weight: Tensor | None, **tensors: Tensor | None) -> None:
    """Check that the tensors lie and have the type of a weight, if the layer has a plain one.

    Autocast may mix the types that it casts, which float64 and integers are not.
    """
    if weight is None:
        return
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        # A single number on the CPU goes along with tensors on any device.
        if tensor.device != weight.device and (tensor.dim() or tensor.device.type != "cpu"):
            raise SignalError(
                f"{name} is on {tensor.device} but the weights of the layer on {weight.device}; "
                f"move one with {name}.to({str(weight.device)!r}) or "
                f"layer.to({str(tensor.device)!r})"
            )
        if tensor.dtype == weight.dtype:
            continue
        floating = tensor.is_floating_point()
        double = torch.float64 in (tensor.dtype, weight.dtype)
        autocast = _is_autocast(tensor.device.type)
        if autocast and floating and not double:
            continue
        ways = f"{name}.to({weight.dtype})" + (f" or layer.to({tensor.dtype})" if floating else "")
        mixed = ", which autocast does not mix" if autocast else ""
        raise SignalError(
            f"{name} has dtype {tensor.dtype} but the weights of the layer {weight.dtype}{mixed}; "
            f"convert with {ways}"
        )


def _is_autocast(device: str) -> bool:
    """Whether types are cast on this kind of device; some, such as meta, know no autocast."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_edge_attr(edge_attr: Tensor | None, x: Tensor, num_edges: int, edge_dim: int) -> None:
    """Check edge attributes ``[e, a]`` or, with the leading axes of ``x``, ``[..., e, a]``."""
    if edge_attr is None:
        if edge_dim:
            raise GraphError(f"the layer takes edge_attr [e, {edge_dim}] (edge_dim); got None")
        return
    if not isinstance(edge_attr, Tensor):
        raise TypeError(f"edge_attr must be a tensor [e, a]; got {type(edge_attr).__name__}")
    if not edge_dim and edge_attr.shape[-1:] != (0,):
        raise GraphError("edge_attr was given to a layer without; build it with edge_dim=")
    check_dense("edge_attr", edge_attr, GraphError, values=False)
    one = (num_edges, edge_dim)
    if edge_attr.shape not in (one, (*x.shape[:-2], *one)):
        raise GraphError(
            f"edge_attr must hold {edge_dim} numbers for each of {num_edges} edges, "
            f"{list(one)}, or that after the leading axes of x; got {list(edge_attr.shape)}"
        )


def check_segment_index(index: object, num_segments: object) -> int:
    """Return the number of segments as an ``int``, once the index is int64 or int32 ``[e]``.

    Reads no value of the index.
    """
    if not isinstance(index, Tensor):
        raise TypeError(f"a segment index must be a tensor [e]; got {type(index).__name__}")
    if index.dtype not in (torch.int64, torch.int32) or index.dim() != 1:
        raise ValueError(
            f"a segment index must be int64 or int32 [e]; got {index.dtype} {list(index.shape)}"
        )
    check_dense("a segment index", index, ValueError, values=True)
    count = check_whole(num_segments, "num_segments")
    if count < 0:
        raise ValueError(f"num_segments must not be negative; got {count}")
    return count


def check_clamp(clamp: float | None) -> None:
    """Refuse a longest move whose square float32 does not hold."""
    if clamp is None:
        return
    if isinstance(clamp, bool) or not isinstance(clamp, int | float):
        raise TypeError(f"clamp must be a length between 1e-15 and 1e15; got {clamp!r:.80}")
    if not 1e-15 <= clamp <= 1e15:
        raise ValueError(f"clamp must be a length between 1e-15 and 1e15; got {clamp}")


def as_samples(values: object, what: str = "x") -> np.ndarray:
    """Real numbers of any kind of array as ``[samples, n, c]``; ``[samples, n]`` is one channel."""
    refuse_masked(values, what, SignalError)
    if isinstance(values, Tensor):
        check_dense(what, values, SignalError, values=True)
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError) as cause:
        came = getattr(values, "dtype", type(values).__name__)
        raise SignalError(
            f"{what} must be real numbers [samples, nodes, channels]; got {came}"
        ) from cause
    given = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        hint = f"; one signal is {what}[None]" if array.ndim == 1 else ""
        raise SignalError(
            f"{what} must be [samples, nodes, channels] or [samples, nodes], none of them 0; "
            f"got shape {list(given)}{hint}"
        )
    return array


def check_samples(values: object, what: str = "x") -> np.ndarray:
    """Signals as :func:`as_samples` reads them, in float64 and finite.

    Reads the values: belongs where data come in, never into a forward pass.
    """
    array = as_samples(values, what)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=(0, 2)))
    if bad.size:
        first = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        raise SignalError(
            f"{what} must be finite; NaN or infinity at {bad.size} of {array.shape[1]} nodes "
            f"({first}); fill the gaps or leave out the samples"
        )
    array = array.astype(np.float64)
    peak = float(np.abs(array).max())
    if peak and not 1e-75 < peak < 1e75:
        raise SignalError(
            f"{what} reaches {peak:.3g} at most, whose squares float64 cannot work with; rescale it"
        )
    return array
