"""Layers and nets, each beside the same map in other code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import SimpleConv
from torch_geometric.utils import add_self_loops, coalesce

from gsym import ClusterGroup, Partition, PermutationGroup, Representation, kernels
from gsym.nn import (
    EGNNConv,
    EquivariantTensorLinear,
    GNet,
    GNetConv,
    OrbitLinear,
    PenguinConv,
    Subgraphs,
)
from gsym_bench.kernels.bars import DENSE_FORMS, FINEST, UNSIGNED, Size
from gsym_bench.kernels.groups import GROUPS
from gsym_bench.kernels.primitives import edge_flops
from gsym_bench.kernels.work import (
    COMPILED,
    DIM,
    OURS,
    Peer,
    Work,
    bind,
    compiled_late,
    generator,
    peers_of,
    random_edges,
    signal,
)
from gsym_bench.peers import (
    DenseClusterLinear,
    DenseOrbitLinear,
    NaiveClusterLinear,
    PlainEGNN,
    PlainPenguin,
    PyGEGNN,
    StackedPairs,
)


def _egnn_flops(size: Size) -> float:
    h = size.channels
    return edge_flops(size.n, h) + size.k * 2 * (2 * h * h + 3 * h * h)


def _egnn_moved(size: Size) -> float:
    return size.k * 2 * (size.channels + DIM) * 4 + 16 * size.n


def egnn_conv(size: Size, device: torch.device) -> Work:
    h = size.channels
    edge_index = random_edges(device, size)
    ours = EGNNConv(h, h, h).to(device)
    x, pos = signal(device, size.k, h), signal(device, size.k, DIM, seed=1)
    plain, pyg = PlainEGNN(ours), PyGEGNN(ours)
    peers = peers_of(
        {OURS: ours, "plain EGNN": plain, "PyG MessagePassing": pyg}, (x, pos), edge_index
    )
    peers[COMPILED] = bind(plain, compiled_late(plain), (x, pos), edge_index)
    return Work(peers, _egnn_moved(size), _egnn_flops(size))


def in_torch(
    make: Callable[[Size, torch.device], Work],
) -> Callable[[Size, torch.device], Work]:
    """The same case as it runs where there is no compiler, and nothing but torch."""

    def made(size: Size, device: torch.device) -> Work:
        work = make(size, device)
        ours = work.peers[OURS]

        def call() -> Tensor | tuple[Tensor, ...]:
            with kernels.backend("native"):
                return ours.call()

        return replace(work, peers={**work.peers, OURS: replace(ours, call=call)})

    return made


class _Stack(nn.Module):
    """Layers on features and coordinates in turn."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x, pos = layer(x, pos, edge_index)
        return x, pos


def n_body(depth: int) -> Callable[[Size, torch.device], Work]:
    """Complete graphs: stacked into one for the peers, as PyG's loader does."""

    def make(size: Size, device: torch.device) -> Work:
        h, batch = size.channels, size.batch
        nodes = size.k // batch
        one = (1 - torch.eye(nodes)).nonzero().t().flip(0).to(device)
        offset = torch.arange(batch, device=device)[:, None, None] * nodes
        stacked = (one + offset).transpose(0, 1).reshape(2, -1)
        convs = [EGNNConv(h, h, h).to(device) for _ in range(depth)]
        ours = _Stack(convs)
        plain, pyg = (_Stack([kind(conv) for conv in convs]) for kind in (PlainEGNN, PyGEGNN))
        x, pos = signal(device, batch, nodes, h), signal(device, batch, nodes, DIM, seed=1)
        flat = tuple(t.detach().flatten(0, 1).requires_grad_() for t in (x, pos))
        peers = peers_of({OURS: ours}, (x, pos), one)
        peers |= peers_of({"plain EGNN": plain, "PyG MessagePassing": pyg}, flat, stacked)
        peers[COMPILED] = bind(plain, compiled_late(plain), flat, stacked)
        if device.type == "cuda":
            graphed: Any = torch.cuda.make_graphed_callables(
                _Stack([PlainEGNN(conv) for conv in convs]), (*flat, stacked)
            )
            peers["CUDA graph"] = bind(graphed, graphed, flat, stacked)
        return Work(peers, depth * _egnn_moved(size), depth * _egnn_flops(size))

    return make


def penguin_conv(size: Size, device: torch.device) -> Work:
    h = size.channels
    edge_index = random_edges(device, size)
    ours = PenguinConv(h, h, h, dim=DIM).to(device)
    x, pos = signal(device, size.k, h), signal(device, size.k, DIM, seed=1)

    plain = PlainPenguin(ours)
    peers = peers_of({OURS: ours, "plain PEnGUiN": plain}, (x, pos), edge_index)
    peers[COMPILED] = bind(plain, compiled_late(plain), (x, pos), edge_index)
    flops = 2 * _egnn_flops(size) - size.n * 2 * h * (h + 1)
    return Work(peers, _egnn_moved(size), flops)


def _clusters(n: int, k: int) -> Partition:
    """Equal clusters of nodes in no order."""
    labels = torch.arange(n) % k
    return Partition(labels[torch.randperm(n, generator=generator())])


def _orbit_work(size: Size, peers: dict[str, Peer]) -> Work:
    n, k, c, batch = size
    moved = (2 * batch * n * c + k * k * c * c) * 4
    return Work(peers, moved, flops=2 * batch * (n + k * k) * c * c)


def orbit_linear(size: Size, device: torch.device) -> Work:
    """Beside ``nn.Linear``, which no such map can beat by much."""
    n, k, c, batch = size
    partition = _clusters(n, k)
    ours = OrbitLinear(c, c, ClusterGroup(partition)).to(device)
    naive = NaiveClusterLinear(ours, partition).to(device)
    x = signal(device, batch, n, c)
    peers = peers_of({OURS: ours, "naive scatter": naive}, (x,))
    peers[COMPILED] = bind(naive, compiled_late(naive), (x,))
    linear = nn.Linear(c, c).to(device)
    peers["nn.Linear"] = Peer(lambda: linear(x), (x,), tuple(linear.parameters()), same=False)
    return _orbit_work(size, peers)


def levels(size: Size, device: torch.device) -> Work:
    """Three nested levels of k, about the square root of k and one cluster, beside the finest."""
    n, k, c, batch = size
    fine = _clusters(n, k)
    middle = Partition(fine.labels % max(math.isqrt(k), 1))
    ours = OrbitLinear(c, c, levels=[fine, middle, Partition.single(n)]).to(device)
    alone = OrbitLinear(c, c, ClusterGroup(fine)).to(device)
    assert ours.soft is not None
    x = signal(device, batch, n, c)
    peers = peers_of({OURS: ours}, (x,))
    peers["level by level"] = bind(ours, ours.soft.define, (x,))
    peers[FINEST] = Peer(lambda: alone(x), (x,), tuple(alone.parameters()), same=False)
    return _orbit_work(size, peers)


def signed_linear(size: Size, device: torch.device) -> Work:
    """Clusters that change places in pairs, where half of the channels change their signs."""
    n, k, c, batch = size
    swaps = PermutationGroup.from_cycles(k, [(i, i + 1) for i in range(0, k - 1, 2)])
    partition = _clusters(n, k)
    group = ClusterGroup(partition, swaps=swaps)
    rep = Representation.from_signs(group, [[-1] * (c // 2) + [1] * (c - c // 2)])
    ours = OrbitLinear(c, c, group, in_rep=rep, out_rep=rep).to(device)
    plain = OrbitLinear(c, c, group).to(device)
    x = signal(device, batch, n, c)
    naive = NaiveClusterLinear(ours, partition).to(device)
    peers = peers_of({OURS: ours, "naive scatter": naive}, (x,))
    peers[UNSIGNED] = Peer(lambda: plain(x), (x,), tuple(plain.parameters()), same=False)
    return _orbit_work(size, peers)


def gnet_conv(size: Size, device: torch.device) -> Work:
    """Sixteen clusters of nodes, or fewer of two nodes at least."""
    n, k, c, _ = size
    partition = _clusters(k, min(16, k // 2))
    edges, _ = add_self_loops(random_edges(device, size), num_nodes=k)
    edge_index = coalesce(edges, num_nodes=k, sort_by_row=False)
    ours = GNetConv(c, c, ClusterGroup(partition)).to(device)
    assert ours.linear is not None
    naive = nn.Sequential(NaiveClusterLinear(ours.linear, partition), SimpleConv("mean")).to(device)
    x = signal(device, 1, k, c)

    def pyg(x: Tensor) -> Tensor:
        return naive[1](naive[0](x), edge_index)

    peers = peers_of({OURS: ours}, (x,), edge_index)
    peers["PyG MessagePassing"] = bind(naive, pyg, (x,))
    peers[COMPILED] = bind(naive, compiled_late(pyg), (x,))
    moved = 2 * k * c * 4 + 16 * n
    return Work(peers, moved, flops=2 * (k + 16**2) * c * c)


def dense(size: Size, device: torch.device) -> Work:
    """One layer on a square image cut into square patches, beside its materialised weight."""
    partition, c = _patches(size), size.channels
    ours = OrbitLinear(c, c, ClusterGroup(partition)).to(device)
    dense = DenseClusterLinear(ours, partition).to(device)
    x = signal(device, size.batch, size.n, c)
    return _orbit_work(size, peers_of({OURS: ours, "dense": dense}, (x,)))


def dense_net(size: Size, device: torch.device) -> Work:
    """As `dense`, two layers with one channel at both ends."""
    partition, c = _patches(size), size.channels
    ours = GNet([1, c, 1], ClusterGroup(partition), propagate="none").to(device)
    first, last = (m for m in ours.modules() if isinstance(m, OrbitLinear))
    dense = nn.Sequential(
        DenseClusterLinear(first, partition), nn.ReLU(), DenseClusterLinear(last, partition)
    ).to(device)
    x = signal(device, size.batch, size.n, 1)
    flops = 4 * size.batch * (size.n + size.k**2) * c
    peers = peers_of({OURS: ours, "dense": dense}, (x,))
    return Work(peers, moved=size.batch * size.n * 2 * (1 + c) * 4, flops=flops)


def general(name: str) -> Callable[[Size, torch.device], Work]:
    """A group without clusters beside the matrix with one block per pair of nodes."""

    def make(size: Size, device: torch.device) -> Work:
        group, c = GROUPS[name], size.channels
        ours = OrbitLinear(c, c, group, bias=False).to(device)
        forms = {form: DenseOrbitLinear(ours, form).to(device) for form in DENSE_FORMS}
        x = signal(device, size.batch, group.num_nodes, c)
        peers = peers_of({OURS: ours, **forms}, (x,))
        moved = (2 * size.batch * size.n * c + group.commutant_dim() * c * c) * 4
        # No basis has blocks of fewer numbers than there are weights.
        return Work(peers, moved, flops=2 * size.batch * group.commutant_dim() * c * c)

    return make


def _patches(size: Size) -> Partition:
    side, across = math.isqrt(size.n), math.isqrt(size.k)
    return Partition.grid(side, side, side // across)


def pairs(sizes: Callable[[Size], Tensor]) -> Callable[[Size, torch.device], Work]:
    """The map from order 2 to 2, beside 15 stacked operations and one product.

    Where all subgraphs were padded to the largest, the stack of the whole batch of ego-networks
    would not fit into most memories, so that takes part with few of them alone.
    """

    def make(size: Size, device: torch.device) -> Work:
        c, every = size.channels, sizes(size)
        subgraphs = Subgraphs.from_sizes(every).to(device)
        ours = EquivariantTensorLinear(2, 2, c, c).to(device)
        x = signal(device, subgraphs.num_pairs, c)
        stacked: dict[str, nn.Module] = {}
        stacked["stacked by size"] = StackedPairs(ours, every, padded=False).to(device)
        largest, smallest = int(every.max()), int(every.min())
        if smallest < largest and every.numel() <= _PADDED:
            stacked["stacked, padded"] = StackedPairs(ours, every, padded=True).to(device)
        peers = {OURS: Peer(lambda: ours(x, subgraphs), (x,), tuple(ours.parameters()))}
        peers |= peers_of(stacked, (x,))
        n, nodes = subgraphs.num_pairs, subgraphs.num_nodes
        return Work(peers, moved=2 * n * c * 4, flops=(4 * n + 18 * nodes) * c * c)

    return make


_PADDED = 200  # subgraphs


def equal_sizes(size: Size) -> Tensor:
    return torch.full((size.k,), math.isqrt(size.n // size.k))


def ego_sizes(size: Size) -> Tensor:
    """Of ego-networks: 4 to 40 nodes, each as often."""
    return 4 + torch.arange(size.k) % 37
