"""The definition of every primitive, in plain short torch: what the fast paths are tested against.

All are meant for float64 and differentiable to any order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels._subgraph_maps import Weights
from gsym.kernels.clusters import Clusters
from gsym.kernels.edges import EdgeStage
from gsym.kernels.segments import Segments, Tiles
from gsym.kernels.subgraphs import Subgraphs


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    """Row ``s`` of the result is the sum of the rows of ``x`` whose ``index`` is ``s``."""
    every = torch.arange(segments.num_segments, device=x.device)
    member = (segments._index[:, None] == every).to(x.dtype)
    return torch.einsum("es,...ec->...sc", member, x)


def segment_mean(x: Tensor, segments: Segments) -> Tensor:
    """Row ``s`` is the mean of those rows, 0 if there are none."""
    counts = torch.bincount(segments._index, minlength=segments.num_segments).clamp(min=1)
    return segment_sum(x / counts[segments._index, None], segments).to(x.dtype)


def segment_max(x: Tensor, segments: Segments) -> Tensor:
    """Row ``s`` is the entrywise maximum of those rows, 0 if there are none."""
    parts = [x[..., segments._index == s, :] for s in range(segments.num_segments)]
    maxima = [part.amax(-2) if part.size(-2) else part.sum(-2) for part in parts]
    return torch.stack(maxima, dim=-2) if maxima else x[..., :0, :]


def segment_gather(y: Tensor, segments: Segments) -> Tensor:
    """Row ``e`` of the result is row ``index[e]`` of ``y``."""
    return y[..., segments._index, :]


def gather_segment_sum(
    x: Tensor, source: Segments, segments: Segments, weight: Tensor | None = None
) -> Tensor:
    """Row ``s`` sums ``weight[e] * x[source[e]]`` over the entries ``e`` whose ``index`` is s."""
    sent = x[..., source._index, :]
    return segment_sum(sent if weight is None else sent * weight[..., None], segments)


def indexed_linear(x: Tensor, weight: Tensor, tiles: Tiles, shared: Tensor | None = None) -> Tensor:
    """Row ``r`` of the result is row ``r`` of ``x`` times its matrix, plus its row of shared."""
    index = tiles.segments._index
    weight = weight.expand(tiles.segments.num_segments, -1, -1)
    y = torch.einsum("...ri,rio->...ro", x, weight[index])
    return y if shared is None else y + shared[..., index, :]


def grouped_linear(x: Tensor, weight: Tensor, shared: Tensor | None = None) -> Tensor:
    """Group ``g`` of the result is group ``g`` of ``x`` times its matrix, plus its row."""
    y = torch.einsum("...gri,gio->...gro", x, weight.expand(x.size(-3), -1, -1))
    return y if shared is None else y + shared[..., None, :]


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor | None,
    bias: Tensor,
    clusters: Clusters,
    is_sorted: bool = False,
) -> Tensor:
    """Each row times the matrix of its cluster, plus a linear map of all cluster means."""
    k, shared = clusters.num_clusters, bias
    index = clusters.segments._index
    index = index.sort().values if is_sorted else index
    if matrix is not None:
        means = segment_mean(x, Segments(index, k))
        shared = (means.flatten(-2) @ matrix).unflatten(-1, (k, bias.size(-1))) + bias
    own = torch.einsum("...ri,rio->...ro", x, weight.expand(k, -1, -1)[index])
    return own + shared[..., index, :]


def row_mlp(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    extra: Tensor | None = None,
) -> Tensor:
    """Two linear maps of every row, and of its extra features, with SiLU between."""
    rows = x if extra is None else torch.cat([x, extra], dim=-1)
    return F.silu(rows @ first[0][0] + first[1][0]) @ last[0][0] + last[1][0]


def linear_pair(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two linear maps of every row, of which the first has a bias."""
    return x @ weight[0] + bias[0], x @ other[0]


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Row ``i`` of the result is row ``order[i]`` of ``x``."""
    return x[..., order, :]


def edge_mlp_sum(
    stage: EdgeStage, source: Segments, segments: Segments
) -> tuple[Tensor, Tensor | None]:
    """Sums over the incoming edges of every node, of messages and of coordinate moves.

    With r = pos[i] - pos[j] on the edge from j to i, m = silu(W silu(receiver[i] + sender[j] +
    |r|^2 distance + A edge_attr) + b), times sigmoid(gate m) if there is a gate; the move is
    r * coord(m), coord having one hidden layer. Weights are stored as ``nn.Linear`` does.
    """
    given, options = stage.tensors, stage.options
    i, j = segments._index, source._index
    hidden = given["receiver"][..., i, :] + given["sender"][..., j, :]
    if "attr" in given:
        hidden = hidden + F.linear(given["attr"], given["attr_weight"])
    if "pos" in given and "distance" in given:
        r = given["pos"][..., i, :] - given["pos"][..., j, :]
        s = r.square().sum(-1, keepdim=True)
        hidden = hidden + (s * given["distance"]).to(hidden.dtype)
    message = F.silu(F.linear(F.silu(hidden), given["weight"], given["bias"]))
    if "gate" in given:
        message = message * F.linear(message, given["gate"], given["gate_bias"]).sigmoid()
    total = segment_sum(message, segments)
    if not stage.moves:
        return total, None
    if options.normalize:
        length = s.detach().sqrt()
        r = r / torch.where(length == 0, 1, length + 1e-8)
    inner = F.silu(F.linear(message, given["coord"], given["coord_bias"]))
    size = F.linear(inner, given["coord_last"])
    move = r * (size.tanh() if options.tanh else size)
    if options.clamp is not None:
        longest = options.clamp
        move = move * longest / move.square().sum(-1, keepdim=True).clamp(min=longest**2).sqrt()
    return total, segment_mean(move, segments) if options.mean else segment_sum(move, segments)


def subgraph_linear(
    x: Tensor, subgraphs: Subgraphs, orders: tuple[int, int], weights: Weights
) -> Tensor:
    """Dense tensors, one subgraph at a time: sums by colour, times weights, added to each entry."""
    q, owner = subgraphs.num_colours, subgraphs.subgraph.index.long()
    of_pair = owner[subgraphs.row]
    parts = []
    for s, kind in enumerate(subgraphs.kind.index.tolist()):
        nodes, pairs = (owner == s).nonzero()[:, 0], (of_pair == s).nonzero()[:, 0]
        tint = subgraphs.colour.index.long()[nodes]
        shade = tint - kind * q
        colour = F.one_hot(shade, q).to(x.dtype)
        ends = subgraphs.row, subgraphs.col
        row, col = (end[pairs] - (nodes[0] if len(nodes) else 0) for end in ends)
        m, given = len(nodes), (tint, shade, colour, row, col)
        part = x[..., pairs if orders[0] == 2 else nodes, :]
        if orders[0] == 2:
            dense = x.new_zeros(*x.shape[:-2], m, m, x.size(-1))
            dense[..., row, col, :] = part
            part = dense
        parts.append(_map(part, kind, given, orders, weights))
    if not parts:
        width = weights.graph.size(2) // {0: 1, 1: q, 2: q * (q + 1)}[orders[1]]
        return x[..., :0, :1].expand(*x.shape[:-2], 0, width)
    y = torch.cat(parts, dim=-2)
    if orders[1] == 2:  # back to the order of the pairs
        y = y[..., torch.argsort(torch.argsort(of_pair, stable=True)), :]
    return y


def _map(
    x: Tensor, kind: int, given: tuple[Tensor, ...], orders: tuple[int, int], w: Weights
) -> Tensor:
    """One subgraph, ``[..., m, c]`` or ``[..., m, m, c]``."""
    tint, shade, colour, row, col = given
    m, q = colour.shape
    size = max(m, 1)
    if orders[0] == 1:
        node, graph = x, (colour.t() @ x / size).flatten(-2)
    else:
        diagonal = x.diagonal(dim1=-3, dim2=-2).transpose(-1, -2)
        rows = torch.einsum("...ijc,jb->...ibc", x, colour) / size
        cols = torch.einsum("...ijc,ia->...jac", x, colour) / size
        total = torch.einsum("...ibc,ia->...abc", rows, colour) / size
        trace = colour.t() @ diagonal / size
        node = torch.cat([diagonal, rows.flatten(-2), cols.flatten(-2)], dim=-1)
        graph = torch.cat([trace.flatten(-2), total.flatten(-3)], dim=-1)
    shared = graph @ w.graph[kind]
    if orders[1] == 0:
        return (shared if w.bias is None else shared + w.bias[kind])[..., None, :]
    assert w.node is not None
    own = torch.einsum("...ic,icd->...id", node, w.node[tint])
    shared = shared.unflatten(-1, (q, -1))[..., shade, :]
    if orders[1] == 1:
        return own + shared if w.bias is None else own + shared + w.bias[tint]
    d = own.size(-1) // (2 * q + 1)
    by_row = (own[..., : q * d] + shared[..., : q * d]).unflatten(-1, (q, d))
    by_col = own[..., q * d : 2 * q * d].unflatten(-1, (q, d))
    loop = own[..., 2 * q * d :] + shared[..., q * d :]
    y = by_row[..., row, shade[col], :] + by_col[..., col, shade[row], :]
    matrix = tint[row] * q + shade[col]
    if w.bias is not None and w.loop_bias is not None:
        y, loop = y + w.bias[matrix], loop + w.loop_bias[tint]
    y = y + loop[..., row, :] * (row == col)[:, None]
    if w.pair is None or w.swap is None:
        return y
    y = y + torch.einsum("...pc,pcd->...pd", x[..., row, col, :], w.pair[matrix])
    return y + torch.einsum("...pc,pcd->...pd", x[..., col, row, :], w.swap[matrix])
