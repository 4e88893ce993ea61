"""The primitives, each beside the same function in other code."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroLinear, SimpleConv
from torch_geometric.utils import scatter

from gsym import kernels
from gsym.kernels import Segments
from gsym_bench.kernels.bars import Size
from gsym_bench.kernels.work import (
    COMPILED,
    DIM,
    OURS,
    READING,
    Peer,
    Work,
    compiled_peer,
    generator,
    peer_of,
    random_edges,
    signal,
    sorted_index,
)


def reduction(
    reduce: str, index: Callable[..., Tensor] = sorted_index
) -> Callable[[Size, torch.device], Work]:
    ours = {
        "sum": kernels.segment_sum,
        "mean": kernels.segment_mean,
        "max": kernels.segment_max,
    }[reduce]

    def make(size: Size, device: torch.device) -> Work:
        n, k, channels, _ = size
        row = index(device, n, k)
        segments = Segments.from_index(row, k)
        pointers = segments.pointers.long()  # what the peers want
        x = signal(device, n, channels)

        def eager(x: Tensor) -> Tensor:
            out = x.new_zeros(k, channels)
            if reduce == "sum":
                return out.index_add(0, row, x)
            how = {"mean": "mean", "max": "amax"}[reduce]
            return out.scatter_reduce(
                0, row[:, None].expand_as(x), x, reduce=how, include_self=False
            )

        peers = {
            OURS: peer_of(lambda x: ours(x, segments), x),
            "index_add" if reduce == "sum" else "scatter_reduce": peer_of(eager, x),
            COMPILED: compiled_peer(eager, x),
        }
        # For a maximum PyG calls scatter_reduce, and segment_reduce has no empty segments.
        if reduce != "max":
            peers["PyG scatter"] = peer_of(lambda x: scatter(x, row, dim_size=k, reduce=reduce), x)
            peers["segment_reduce"] = peer_of(
                lambda x: torch.segment_reduce(x, reduce, offsets=pointers, axis=0, initial=0),
                x,
            )
        if reduce == "sum":  # what reads as much and writes nothing
            peers[READING] = Peer(lambda: x.detach().sum(), same=False)
        if find_spec("torch_scatter"):
            import torch_scatter

            peers["torch-scatter"] = peer_of(
                lambda x: torch_scatter.segment_csr(x, pointers, reduce=reduce), x
            )
        return Work(peers, moved=(n + k) * channels * 4 + 8 * k)

    return make


def segment_gather(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    row = sorted_index(device, n, k)
    segments = Segments.from_index(row, k)
    y = signal(device, k, channels)

    def eager(y: Tensor) -> Tensor:
        return y.index_select(0, row)

    peers = {
        OURS: peer_of(lambda y: kernels.segment_gather(y, segments), y),
        "index_select": peer_of(eager, y),
        COMPILED: compiled_peer(eager, y),
    }
    return Work(peers, moved=(n + k) * channels * 4 + 8 * n)


def gather_segment_sum(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    # Distinct and sorted, as torch.sparse wants its entries, hence fewer than n.
    pairs = torch.randint(k * k, (n,), generator=generator()).unique().to(device)
    target, source = pairs // k, pairs % k
    edge_index = torch.stack([source, target])
    read, written = (Segments.from_index(index, k) for index in (source, target))
    ones = torch.ones(target.numel(), device=device)
    matrix = torch.sparse_csr_tensor(
        written.pointers.long(), source, ones, (k, k), check_invariants=True
    )
    x = signal(device, k, channels)
    conv = SimpleConv(aggr="sum")

    def eager(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape).index_add(0, target, x.index_select(0, source))

    peers = {
        OURS: peer_of(lambda x: kernels.gather_segment_sum(x, read, written), x),
        "index_add": peer_of(eager, x),
        COMPILED: compiled_peer(eager, x),
        "torch.sparse": peer_of(lambda x: matrix @ x, x),
        "PyG scatter": peer_of(lambda x: scatter(x.index_select(0, source), target, dim_size=k), x),
        "PyG MessagePassing": peer_of(lambda x: conv(x, edge_index), x),
    }
    return Work(peers, moved=2 * k * channels * 4 + 8 * target.numel())


def indexed_linear(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    row = sorted_index(device, n, k)
    segments = Segments.from_index(row, k)
    tiles = kernels.Tiles(segments, channels, channels)
    x = signal(device, n, channels)
    linear = HeteroLinear(channels, channels, k, is_sorted=True, bias=False).to(device)
    with torch.no_grad():
        linear.weight.normal_()
    sizes = segments.pointers.diff().tolist()

    def loop(x: Tensor) -> Tensor:
        return torch.cat([part @ linear.weight[i] for i, part in enumerate(x.split(sizes))])

    peers = {
        OURS: peer_of(lambda x: kernels.indexed_linear(x, linear.weight, tiles), x),
        "loop": peer_of(loop, x),
        "PyG HeteroLinear": peer_of(lambda x: linear(x, row), x),
        COMPILED: compiled_peer(loop, x),
    }
    peers = {name: Peer(peer.call, peer.inputs, (linear.weight,)) for name, peer in peers.items()}
    moved = (2 * n * channels + k * channels**2) * 4
    return Work(peers, moved, flops=2 * n * channels**2)


def grouped_linear(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    x = signal(device, k, n // k, channels)
    weight = signal(device, k, channels, channels, seed=1)
    shared = signal(device, k, channels, seed=2)

    def eager(x: Tensor, weight: Tensor, shared: Tensor) -> Tensor:
        return x @ weight + shared[:, None]

    peers = {
        OURS: peer_of(kernels.grouped_linear, x, weight, shared),
        "matmul": peer_of(eager, x, weight, shared),
        COMPILED: compiled_peer(eager, x, weight, shared),
    }
    moved = (2 * n * channels + k * channels**2) * 4
    return Work(peers, moved, flops=2 * n * channels**2)


def row_mlp(size: Size, device: torch.device) -> Work:
    """Two parts of a row to a hidden layer and back, as the node networks of EGNN."""
    n, _, c, _ = size
    x, beside = (signal(device, n, c, seed=seed) for seed in range(2))
    shapes = (1, 2 * c, c), (1, c), (1, c, c), (1, c)
    weights = [signal(device, *shape, seed=2 + i) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        for weight in weights:
            weight /= c**0.5

    def ours(x: Tensor, beside: Tensor, w: Tensor, b: Tensor, v: Tensor, a: Tensor) -> Tensor:
        return kernels.row_mlp(x, (w, b), (v, a), beside)

    def eager(x: Tensor, beside: Tensor, w: Tensor, b: Tensor, v: Tensor, a: Tensor) -> Tensor:
        hidden = torch.addmm(b[0], torch.cat([x, beside], dim=-1), w[0])
        return torch.addmm(a[0], nn.functional.silu(hidden), v[0])

    return Work(_three(ours, eager, x, beside, *weights), 3 * n * c * 4, flops=6 * n * c * c)


def linear_pair(size: Size, device: torch.device) -> Work:
    n, _, c, _ = size
    x, shapes = signal(device, n, c), ((1, c, c), (1, c), (1, c, c))
    weights = [signal(device, *shape, seed=1 + i) for i, shape in enumerate(shapes)]

    def eager(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return torch.addmm(b[0], x, w[0]), x @ v[0]

    peers = _three(kernels.linear_pair, eager, x, *weights)
    return Work(peers, 3 * n * c * 4, flops=4 * n * c * c)


def _three(ours: Callable[..., Any], eager: Callable[..., Any], *x: Tensor) -> dict[str, Peer]:
    return {
        OURS: peer_of(ours, *x),
        "eager": peer_of(eager, *x),
        COMPILED: compiled_peer(eager, *x),
    }


def permute_rows(size: Size, device: torch.device) -> Work:
    n, _, channels, _ = size
    order = torch.randperm(n, generator=generator()).to(device)
    inverse = torch.argsort(order)
    x = signal(device, n, channels)

    def eager(x: Tensor) -> Tensor:
        return x.index_select(0, order)

    peers = {
        OURS: peer_of(lambda x: kernels.permute_rows(x, order, inverse), x),
        "index_select": peer_of(eager, x),
        COMPILED: compiled_peer(eager, x),
    }
    return Work(peers, moved=2 * n * channels * 4 + 8 * n)


def edge_mlp_sum(size: Size, device: torch.device) -> Work:
    n, k, h, _ = size
    j, i = random_edges(device, size)
    source, target = (Segments.from_index(index, k) for index in (j, i))
    shapes = (k, h), (k, h), (k, DIM), (h, h), (h,), (h,), (h, h), (h,), (1, h)
    tensors = [signal(device, *shape, seed=i) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        for weight in tensors[3:]:
            weight /= h**0.5

    def ours(
        p: Tensor, q: Tensor, pos: Tensor, w: Tensor, b: Tensor, distance: Tensor, *coord: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        c, c_0, last = coord
        return kernels.edge_mlp_sum(
            *(p, q, source, target, w, b), pos=pos, distance=distance, coord=(c, c_0, last)
        )

    def eager(
        p: Tensor, q: Tensor, pos: Tensor, w: Tensor, b: Tensor, distance: Tensor, *coord: Tensor
    ) -> tuple[Tensor, ...]:
        f = nn.functional
        r = pos.index_select(0, i) - pos.index_select(0, j)
        hidden = p.index_select(0, i) + q.index_select(0, j)
        hidden = hidden + r.square().sum(-1, keepdim=True) * distance
        message = f.silu(f.linear(f.silu(hidden), w, b))
        move = r * f.linear(f.silu(f.linear(message, coord[0], coord[1])), coord[2])
        degree = target.pointers.diff().clamp(min=1)[:, None]
        y = p.new_zeros(p.shape).index_add(0, i, message)
        return y, pos.new_zeros(pos.shape).index_add(0, i, move) / degree

    peers = _three(ours, eager, *tensors)
    moved = (3 * k * h + 2 * k * DIM) * 4 + 16 * n
    return Work(peers, moved, flops=edge_flops(n, h))


def edge_flops(n: int, h: int) -> float:
    """Two products of width h per edge and one to a number, the first map split by ends."""
    return n * (4 * h * h + 2 * h)
