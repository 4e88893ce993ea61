"""The primitive of tensors on subgraphs, checked like those of :mod:`gsym.kernels.ops`."""

from __future__ import annotations

from torch import Tensor

from gsym.kernels import _pairs
from gsym.kernels._call import run
from gsym.kernels._checks import check_device, check_floating, check_shape, in_one_type
from gsym.kernels._subgraph_maps import Weights
from gsym.kernels.subgraphs import Subgraphs

_ORDERS = ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2))


def subgraph_linear(
    x: Tensor,
    subgraphs: Subgraphs,
    orders: tuple[int, int],
    graph: Tensor,
    node: Tensor | None = None,
    pair: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    loop_bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""Linear map of tensors on subgraphs that commutes with exchanging nodes of one colour.

    Order 0 has a row per subgraph, order 1 one per node, order 2 one per listed pair. From pairs to
    pairs, of one colour and kind, with means over the m nodes of the subgraph,

    .. math::
        y_{ij} = x_{ij} P + x_{ji} Q + (u_i N + t G)_1 + (u_j N)_2 + [i = j] (u_i N + t G)_3 + b,

    :math:`u_i` being the diagonal, the mean of the row and that of the column of i concatenated,
    and t the trace over m and the total over :math:`m^2`; the numbers mean parts of columns. With
    q colours sums are taken by colour, and every part of a result stands once per colour, see
    :func:`gsym.kernels.reference.subgraph_linear`. With k kinds every subgraph takes the weights of
    its own.

    Args:
        x: ``[..., n, in]`` of order 1, ``[..., p, in]`` of order 2.
        subgraphs: Their nodes and pairs.
        orders: Order of ``x`` and of the result.
        graph: G, ``[k, u in, v out]``; u is q of order 1 and q + q^2 of order 2, v is 1, q and
            q (q + 1) to order 0, 1 and 2.
        node: N, ``[k q, u in, v out]``; u is 1 of order 1 and 1 + 2q of order 2, v is 1 and 2q + 1
            to order 1 and 2. None to order 0.
        pair: P and Q, ``[k q^2, in, out]`` each, from pairs to pairs alone.
        bias: Added to subgraphs by kind, ``[k, out]``, to nodes by colour, ``[k q, out]``, or to
            pairs by both colours, ``[k q^2, out]``.
        loop_bias: Added to the pairs (i, i) by colour, ``[k q, out]``; goes with ``bias``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        ``[..., b, out]``, ``[..., n, out]`` or ``[..., p, out]``.

    Raises:
        ValueError: Orders that are none, sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, mixed types, outside of autocast, or
            ``subgraphs`` that are none.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        From pairs to pairs two products of all pairs. Compiled for the CPU, ``x`` is read once and
        nothing else of its size is made, in the gradient neither.

    Example:
        >>> subgraphs = gsym.nn.Subgraphs.from_sizes([2, 3])
        >>> graph, node = torch.ones(1, 8, 4), torch.ones(1, 12, 4)
        >>> subgraph_linear(torch.ones(13, 4), subgraphs, (2, 1), graph, node).shape
        torch.Size([5, 4])
    """
    if not isinstance(subgraphs, Subgraphs):
        raise TypeError(
            f"subgraphs must be Subgraphs; got {type(subgraphs).__name__}; make them with "
            "gsym.nn.Subgraphs.from_sizes or from_batch"
        )
    if orders not in _ORDERS:
        raise ValueError(f"orders must be 1 or 2, then 0, 1 or 2; got {orders!r}")
    check_floating("x", x)
    rows = subgraphs.num_pairs if orders[0] == 2 else subgraphs.num_nodes
    if x.dim() < 2 or x.size(-2) != rows:
        raise ValueError(f"x must be [..., {rows}, in]; got {list(x.shape)}")
    check_device("the tables of subgraphs", subgraphs.row, "x", x)
    own, swap = (None, None) if pair is None else pair
    held = Weights(graph, node, own, swap, bias, loop_bias)
    x, *values = in_one_type("x", x, held._asdict())
    weights = Weights(*values)
    _check_weights(weights, x.size(-1), subgraphs, orders)
    return run(_pairs.subgraph_linear, backend, False, x, subgraphs, orders, weights)


def _check_weights(weights: Weights, c: int, subgraphs: Subgraphs, orders: tuple[int, int]) -> None:
    """Exactly the weights that these orders have, in their shapes."""
    q, k = subgraphs.num_colours, subgraphs.num_kinds
    node_in, graph_in = (1 + 2 * q, q + q * q) if orders[0] == 2 else (1, q)
    node_out, graph_out = {0: (0, 1), 1: (1, q), 2: (2 * q + 1, q * (q + 1))}[orders[1]]
    if weights.graph.dim() != 3 or weights.graph.size(2) % graph_out:
        raise ValueError(
            f"graph must be [{k}, {graph_in * c}, {graph_out} out]; got {list(weights.graph.shape)}"
        )
    d = weights.graph.size(2) // graph_out
    pairs = (k * q * q, c, d) if orders == (2, 2) else None
    shapes = {
        "graph": (k, graph_in * c, graph_out * d),
        "node": (k * q, node_in * c, node_out * d) if node_out else None,
        "pair": pairs,
        "swap": pairs,
        "bias": (k * q ** orders[1], d),
        "loop_bias": (k * q, d) if orders[1] == 2 else None,
    }
    without_bias = weights.bias is None and weights.loop_bias is None
    for name, value in weights._asdict().items():
        shape = shapes[name]
        if without_bias and name.endswith("bias"):
            continue
        if (value is None) != (shape is None):
            wanted = "none" if shape is None else list(shape)
            came = "none" if value is None else list(value.shape)
            raise ValueError(
                f"from order {orders[0]} to {orders[1]} {name} must be {wanted}; got {came}"
            )
        if shape is not None:
            check_shape(name, value, shape)
