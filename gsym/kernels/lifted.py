"""Maps on ego-networks that all share their weights, without a tensor of all their pairs.

A pair of the graph lies in many subgraphs. What a map makes of the pair itself is the same in all
of them, so it commutes with lifting and averaging; what rows, columns and subgraphs add is averaged
from their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gsym.kernels import _plain
from gsym.kernels._autograd import Context, Grads, derive, operator
from gsym.kernels._backends import BACKENDS, STATE, choose
from gsym.kernels.ops import gather_segment_sum, segment_gather, segment_mean, segment_sum
from gsym.kernels.segments import Segments
from gsym.kernels.subgraphs import Subgraphs
from gsym.kernels.transforms import undisturbed

# Tensors of the maps of pairs, the pairs themselves among them.
_OF_PAIRS = 10


class LiftedTables(NamedTuple):
    """Subgraphs, their nodes and pairs among those of a graph, and which sums go where.

    A pair of indices holds what every entry reads, and where it goes.

    Attributes:
        subgraphs: The subgraphs, with all ordered pairs.
        node: Node of the graph of every node of a subgraph.
        pair: Pair of the graph of every pair of a subgraph.
        ends: From pairs of the graph to the row and to the column of every node of a subgraph.
        loop: From pairs (i, i) to their nodes.
        owner: Subgraph of every pair of a subgraph.
        to_pair: From node parts of row, column and (i, i), then pairs the other way round, then
            nodes of subgraphs as row and as column, to pairs.
        pair_weight: Factor of every entry: shares of a mean for what comes from subgraphs.
        node_to_pair: From node parts as above, then subgraphs, to pairs.
        node_weight: Factor of every entry.
        times: Subgraphs that hold every node, at least 1, ``[n, 1]``.
        held: 1 for nodes in any subgraph, ``[n, 1]``.
        blocks: int32 tables of compiled loops, see ``cpp/lifted.py``; ``None`` where a subgraph
            has too many pairs for a single thread.
    """

    subgraphs: Subgraphs
    node: Segments
    pair: Segments
    ends: tuple[Segments, Segments]
    loop: tuple[Segments, Segments]
    owner: Segments
    to_pair: tuple[Segments, Segments]
    pair_weight: Tensor
    node_to_pair: tuple[Segments, Segments]
    node_weight: Tensor
    times: Tensor
    held: Tensor
    blocks: tuple[Tensor, ...] | None

    @classmethod
    def build(
        cls, sub: Subgraphs, node: Segments, pair: Segments, first: Tensor, second: Tensor
    ) -> LiftedTables:
        """All of them, which cost a few sorts of pairs.

        Args:
            sub: The subgraphs.
            node: As above.
            pair: As above.
            first: First node of every pair of the graph; pairs are sorted by it, then by the other.
            second: Second node of every pair of the graph.
        """
        n, f, b, u = node.num_segments, first.numel(), sub.num_subgraphs, sub.num_nodes
        place, entry = pair.index.long(), sub.subgraph.index.long()
        every, share = torch.arange(f, device=first.device), 1 / torch.bincount(place).double()
        loops = (first == second).nonzero()[:, 0]
        swap = torch.searchsorted(first * n + second, second * n + first)
        nodes = [first, n + second, 2 * n + first[loops]]
        whole, part = share.new_ones(2 * f + loops.numel()), share[place]
        count = torch.bincount(node.index.long(), minlength=n)[:, None]
        at_nodes = [every, every, loops]
        by_pair = [*nodes, 3 * n + swap, 3 * n + f + sub.row, 3 * n + f + u + sub.col]
        by_node = [*nodes, 3 * n + entry[sub.row]]
        return cls(
            subgraphs=sub,
            node=node,
            pair=pair,
            ends=(
                Segments(torch.cat([place, place]), f),
                Segments(torch.cat([2 * sub.row, 2 * sub.col + 1]), 2 * u),
            ),
            loop=(Segments(loops, f), Segments(first[loops], n)),
            owner=Segments(entry[sub.row], b),
            to_pair=(
                Segments(torch.cat(by_pair), 3 * n + f + 2 * u),
                Segments(torch.cat([*at_nodes, every, place, place]), f),
            ),
            pair_weight=torch.cat([whole, torch.ones_like(share), part, part]),
            node_to_pair=(
                Segments(torch.cat(by_node), 3 * n + b),
                Segments(torch.cat([*at_nodes, place]), f),
            ),
            node_weight=torch.cat([whole, part]),
            times=count.clamp(min=1),
            held=count > 0,
            blocks=_blocks(sub, node, pair, first, second, swap),
        )

    @classmethod
    def from_blocks(cls, blocks: Sequence[Tensor]) -> LiftedTables:
        """Those of the tables that compiled loops take."""
        first, second, _, loop, _, first_entry, _, node, _, place, *_ = (t.long() for t in blocks)
        return cls.build(
            Subgraphs.from_sizes(first_entry.diff()),
            Segments(node, loop.numel()),
            Segments(place, first.numel()),
            first,
            second,
        )


def _blocks(
    sub: Subgraphs, node: Segments, pair: Segments, first: Tensor, second: Tensor, swap: Tensor
) -> tuple[Tensor, ...] | None:
    if sub.blocks is None:
        return None
    first_entry, first_place = sub.blocks[5:]
    loop = torch.full((node.num_segments,), -1, device=first.device)
    loops = (first == second).nonzero()[:, 0]
    loop[first[loops]] = loops
    by_first = torch.searchsorted(first, torch.arange(loop.numel() + 1, device=first.device))
    order = pair.order.long()
    tables = (
        *(first, second, swap, loop, by_first, first_entry, first_place),
        *(node.index, sub.subgraph.index, pair.index),
        *(node.pointers, node.order, pair.pointers, sub.row[order], sub.col[order]),
    )
    return tuple(table.to(torch.int32).contiguous() for table in tables)


class LiftedMaps(NamedTuple):
    """Weights of the maps from pairs or from nodes to both, as those of :mod:`gsym.nn.subgraph`.

    All have a leading axis of one kind and colour; biases may be missing.
    """

    node: Tensor
    graph: Tensor
    bias: Tensor | None
    loop_bias: Tensor | None
    to_node: Tensor
    graph_to_node: Tensor
    node_bias: Tensor | None
    pair: Tensor | None = None
    swap: Tensor | None = None


def lifted_maps(
    pair: Tensor,
    from_pairs: LiftedMaps,
    node: Tensor | None,
    from_nodes: LiftedMaps | None,
    tables: LiftedTables,
) -> tuple[Tensor, Tensor]:
    """Maps on every subgraph, averaged over all that hold a pair or a node.

    Args:
        pair: ``[f, c]``.
        from_pairs: Its maps.
        node: ``[n, e]``, or ``None``.
        from_nodes: Its maps, with ``node``.
        tables: Where all lie.

    Returns:
        ``[f, d]`` and ``[n, d]``; with ``node`` the results of both maps side by side.
    """
    tensors = [pair, *from_pairs]
    if node is not None and from_nodes is not None:
        tensors += [node, *from_nodes[:7]]
    chosen, given = (
        choose("auto", "lifted_maps", pair.device.type),
        [t for t in tensors if t is not None],
    )
    if (
        tables.blocks is not None
        and len(given) == len(tensors)
        and chosen.takes("lifted_maps", *given)
    ):
        if STATE.record is not None:
            STATE.record.append(chosen.name)
        found: tuple[Tensor, Tensor] = lifted_average(given, list(tables.blocks), chosen.name)
        return found
    return _compose(tensors, tables, "auto")


@operator(None)
def lifted_average(
    tensors: list[Tensor], tables: list[Tensor], backend: str
) -> tuple[Tensor, Tensor]:
    """:func:`lifted_maps` of both tensors, each with its maps behind it.

    Args:
        tensors: ``pair`` and nine weights, then ``node`` and seven, or none.
        tables: ``LiftedTables.blocks``.
        backend: One that takes them.
    """
    found: tuple[Tensor, Tensor] = BACKENDS[backend].loops.lifted_maps(tensors, tables)
    return found


@lifted_average.fake
def _(tensors: list[Tensor], tables: list[Tensor], backend: str) -> tuple[Tensor, Tensor]:
    x, bias = tensors[0], tensors[3]
    width = bias.size(-1) * (1 if len(tensors) == _OF_PAIRS else 2)
    return x.new_empty(x.size(0), width), x.new_empty(tables[3].size(0), width)


@lifted_average.gradient()
def _(ctx: Context, *grads: Tensor) -> Grads:
    if torch.is_grad_enabled():
        return _derive(grads, ctx.saved_tensors, *ctx.rest)
    wanted = ctx.needs_input_grad[0]
    wanted = wanted if isinstance(wanted, bool) else wanted[0]
    found = lifted_average_grads(*grads, list(ctx.saved_tensors), *ctx.rest, wanted)
    return found if wanted else [None, *found]


@operator(2, parts=True)
def lifted_average_grads(
    by_pair: Tensor,
    by_node: Tensor,
    tensors: list[Tensor],
    tables: list[Tensor],
    backend: str,
    wanted: bool,
) -> list[Tensor]:
    """The gradient of every tensor of :func:`lifted_average`, in their order.

    That of the pairs, which are dear, is left out where it is not ``wanted``.
    """
    run = BACKENDS[backend].loops.lifted_maps_grads
    found: list[Tensor] = run(tensors, tables, by_pair, by_node, wanted)
    return found


@lifted_average_grads.fake
def _(
    by_pair: Tensor,
    by_node: Tensor,
    tensors: list[Tensor],
    tables: list[Tensor],
    backend: str,
    wanted: bool,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (tensors if wanted else tensors[1:])]


@lifted_average_grads.plain
def _(
    by_pair: Tensor,
    by_node: Tensor,
    tensors: list[Tensor],
    tables: list[Tensor],
    backend: str,
    wanted: bool,
) -> list[Tensor]:
    found = _derive((by_pair, by_node), tensors, tables, backend)
    return found if wanted else found[1:]


def graph_sums(x: Tensor, tables: LiftedTables) -> Tensor:
    """Trace over m and total over its square, of pairs ``[f, c]`` on subgraphs of m nodes.

    Returns:
        Both side by side, ``[b, 2c]``.
    """
    chosen = choose("auto", "graph_sums", x.device.type)
    if tables.blocks is not None and chosen.takes("graph_sums", x):
        if STATE.record is not None:
            STATE.record.append(chosen.name)
        found: Tensor = subgraph_sums(x, list(tables.blocks), chosen.name)
        return found
    sub = tables.subgraphs
    size = sub.size.to(x.dtype)
    diagonal = gather_segment_sum(x, *tables.loop)
    trace = gather_segment_sum(diagonal, tables.node, sub.subgraph)
    total = gather_segment_sum(x, tables.pair, tables.owner) / size
    return torch.cat([trace, total], dim=1) / size


@operator(1)
def subgraph_sums(x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """:func:`graph_sums` by a back-end that can."""
    found: Tensor = BACKENDS[backend].loops.graph_sums(x, tables)
    return found


@subgraph_sums.fake
def _(x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return x.new_empty(tables[5].size(0) - 1, 2 * x.size(-1))


@subgraph_sums.plain
def _(x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    loop, owner, place, place_owner, size = _places(tables, x.dtype)
    trace = _plain.add(_plain.take(x, loop), owner, size.size(0))
    total = _plain.add(_plain.take(x, place), place_owner, size.size(0)) / size
    return torch.cat([trace, total], dim=-1) / size


@subgraph_sums.gradient(lambda tensors, output: ())
def _(ctx: Context, grad: Tensor) -> Grads:
    return (subgraph_spread(grad, *ctx.rest),)


@operator(1)
def subgraph_spread(grad: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """The adjoint of :func:`subgraph_sums`."""
    found: Tensor = BACKENDS[backend].loops.graph_spread(grad, tables)
    return found


@subgraph_spread.fake
def _(grad: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return grad.new_empty(tables[0].size(0), grad.size(-1) // 2)


@subgraph_spread.plain
def _(grad: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    loop, owner, place, place_owner, size = _places(tables, grad.dtype)
    trace, total = (grad / size).chunk(2, dim=-1)
    count = tables[0].size(0)
    every = _plain.add(_plain.take(total / size, place_owner), place, count)
    return every + _plain.add(_plain.take(trace, owner), loop, count)


@subgraph_spread.gradient(lambda tensors, output: ())
def _(ctx: Context, grad: Tensor) -> Grads:
    return (subgraph_sums(grad, *ctx.rest),)


def _places(tables: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The pair (i, i) and the subgraph of every entry, the pair and the subgraph of every place.

    Last the sizes of subgraphs, at least 1, ``[b, 1]``.
    """
    loop, first_entry, first_place, node, owner, place = (
        tables[i].long() for i in (3, 5, 6, 7, 8, 9)
    )
    size = first_entry.diff().clamp(min=1)[:, None].to(dtype)
    return loop[node], owner, place, torch.repeat_interleave(first_place.diff()), size


def _derive(
    grads: Sequence[Tensor], tensors: Sequence[Tensor], tables: list[Tensor], backend: str
) -> list[Tensor]:
    """The gradient through primitives, which has one itself."""
    with undisturbed():
        lifted = LiftedTables.from_blocks(tables)
    return derive(lambda views: _compose(views, lifted, backend), tensors, grads)


def _compose(
    tensors: Sequence[Tensor | None], tables: LiftedTables, backend: str
) -> tuple[Tensor, Tensor]:
    """:func:`lifted_average` in primitives; biases may be missing."""
    verbs = _Verbs(backend)
    x, *weights = tensors[:_OF_PAIRS]
    found = [_pairs_to_both(verbs, x, LiftedMaps(*weights), tables)]  # type: ignore[arg-type]
    if len(tensors) > _OF_PAIRS:
        x, *weights = tensors[_OF_PAIRS:]
        found.append(_nodes_to_both(verbs, x, LiftedMaps(*weights), tables))  # type: ignore[arg-type]
    pairs, nodes = zip(*found, strict=True)
    return torch.cat(pairs, dim=-1), torch.cat(nodes, dim=-1)


class _Verbs:
    """Primitives on one back-end."""

    def __init__(self, backend: str) -> None:
        self.sum = partial(segment_sum, backend=backend)
        self.mean = partial(segment_mean, backend=backend)
        self.gather = partial(segment_gather, backend=backend)
        self.gather_sum = partial(gather_segment_sum, backend=backend)


def _pairs_to_both(
    verbs: _Verbs, x: Tensor, maps: LiftedMaps, tables: LiftedTables
) -> tuple[Tensor, Tensor]:
    """What pairs ``x [f, c]`` give to pairs and nodes, averaged over subgraphs."""
    sub = tables.subgraphs
    c, d = x.size(1), maps.to_node.size(-1)
    sums = verbs.gather_sum(x, *tables.ends).view(-1, 2 * c) / sub.node_size.to(x.dtype)
    diagonal = verbs.gather_sum(x, *tables.loop)
    total = verbs.sum(sums, sub.subgraph)[:, :c]
    trace = verbs.gather_sum(diagonal, tables.node, sub.subgraph)
    graph = torch.cat([trace, total], dim=1) / sub.size.to(x.dtype)
    mine, node_weight, graph_weight = _weights(maps)
    shared = graph @ graph_weight
    # Two products: a part of one would cost its gradient a tensor of zeros.
    by_row = sums @ mine[c:, :d] + verbs.gather(shared[:, :d], sub.subgraph)
    by_col = sums @ mine[c:, d : 2 * d]
    own = torch.cat([diagonal, verbs.mean(sums, tables.node)], dim=1)
    loop, node = _of_nodes(verbs, own @ node_weight, shared, maps, tables)
    row, col = (diagonal @ mine[:c, : 2 * d]).split(d, dim=1)
    assert maps.pair is not None and maps.swap is not None
    turned = x @ maps.swap[0]
    source = torch.cat([_biased(row, maps.bias), col, loop, turned, by_row, by_col])
    pair = verbs.gather_sum(source, *tables.to_pair, tables.pair_weight.to(x.dtype))
    return torch.addmm(pair, x, maps.pair[0]), node


def _nodes_to_both(
    verbs: _Verbs, x: Tensor, maps: LiftedMaps, tables: LiftedTables
) -> tuple[Tensor, Tensor]:
    """What nodes ``x [n, c]`` give to pairs and nodes, averaged over subgraphs."""
    sub, d = tables.subgraphs, maps.to_node.size(-1)
    graph = verbs.gather_sum(x, tables.node, sub.subgraph) / sub.size.to(x.dtype)
    mine, node_weight, graph_weight = _weights(maps)
    shared = graph @ graph_weight
    loop, node = _of_nodes(verbs, x @ node_weight, shared, maps, tables)
    row, col = (x @ mine[:, : 2 * d]).split(d, dim=1)
    source = torch.cat([_biased(row, maps.bias), col, loop, shared[:, :d]])
    weight = tables.node_weight.to(x.dtype)
    return verbs.gather_sum(source, *tables.node_to_pair, weight), node


def _weights(maps: LiftedMaps) -> tuple[Tensor, ...]:
    """Those of nodes to pairs; to (i, i) and to nodes side by side; and those of subgraphs."""
    mine, ours = maps.node[0], maps.to_node[0]
    both = torch.cat([mine[:, 2 * ours.size(-1) :], ours], dim=1)
    return mine, both, torch.cat([maps.graph[0], maps.graph_to_node[0]], dim=1)


def _of_nodes(
    verbs: _Verbs, own: Tensor, shared: Tensor, maps: LiftedMaps, tables: LiftedTables
) -> tuple[Tensor, Tensor]:
    """What nodes give to their pair (i, i), and the new values of nodes."""
    d = maps.to_node.size(-1)
    means = verbs.gather_sum(shared[:, d:], tables.subgraphs.subgraph, tables.node)
    loop, node = (own + means / tables.times.to(own.dtype)).split(d, dim=1)
    held = tables.held.to(own.dtype)
    return _biased(loop, maps.loop_bias), _biased(node, maps.node_bias) * held


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias[0]
