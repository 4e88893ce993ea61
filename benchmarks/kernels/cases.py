"""What is measured: every primitive and layer, each beside the same map in other code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroLinear, SimpleConv
from torch_geometric.utils import add_self_loops, coalesce, scatter

from benchmarks.kernels.bars import DENSE_FORMS, FINEST, UNSIGNED, Size
from benchmarks.kernels.groups import GROUPS
from benchmarks.peers import (
    DenseClusterLinear,
    DenseOrbitLinear,
    NaiveClusterLinear,
    PlainEGNN,
    PlainPenguin,
    PyGEGNN,
    StackedPairs,
)
from gsym import ClusterGroup, Partition, PermutationGroup, Representation, kernels
from gsym.kernels import Segments
from gsym.nn import (
    EGNNConv,
    EquivariantTensorLinear,
    GNet,
    GNetConv,
    OrbitLinear,
    PenguinConv,
    Subgraphs,
)

OURS, COMPILED = "gsym", "torch.compile"
READING = "sum of all"
DIM = 3  # coordinates of a node

Call = Callable[[], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        call: Runs forward.
        inputs: Signals; their gradients are those of gsym.
        weights: Parameters, which other code may keep in other shapes.
        same: Whether the values are those of gsym.
    """

    call: Call
    inputs: Sequence[Tensor] = ()
    weights: Sequence[Tensor] = ()
    same: bool = True


@dataclass(frozen=True)
class Work:
    """A case at one size.

    Attributes:
        peers: gsym, then the others by name.
        moved: Bytes that forward must move at least: what comes in and what goes out, once.
        flops: Operations of the matrix products that forward must do at least.
    """

    peers: dict[str, Peer]
    moved: float
    flops: float = 0


@dataclass(frozen=True)
class Case:
    """A primitive or a layer.

    Attributes:
        title: Heading on the page.
        make: Prepares it at a size, on a device.
        held: Tensors ``[n, channels]`` that the hungriest peer holds at a time.
        segments: Segments of n rows where sizes are swept; ``None`` leaves the sweep out.
        threads: Threads on the CPU.
    """

    title: str
    make: Callable[[Size, torch.device], Work]
    held: int
    segments: Callable[[int], int] | None = None
    threads: int = 2

    def bytes(self, size: Size) -> int:
        """Memory that the hungriest peer needs, roughly."""
        return 4 * self.held * size.n * size.channels * size.batch


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _signal(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_rng(seed)).to(device).requires_grad_()


def _index(device: torch.device, n: int, k: int, seed: int = 0) -> Tensor:
    """Sorted, so that every peer is at its best."""
    return torch.randint(k, (n,), generator=_rng(seed)).sort().values.to(device)


def _edges(device: torch.device, size: Size) -> Tensor:
    """Random edges ``[2, n]`` between k nodes, sorted by target."""
    source = torch.randint(size.k, (size.n,), generator=_rng(1)).to(device)
    return torch.stack([source, _index(device, size.n, size.k)])


def _of(function: Callable[..., Any], *inputs: Tensor) -> Peer:
    weights = tuple(function.parameters()) if isinstance(function, nn.Module) else ()
    return Peer(lambda: function(*inputs), inputs, weights)


def _compiled(function: Callable[..., Any], *inputs: Tensor) -> Peer:
    weights = tuple(function.parameters()) if isinstance(function, nn.Module) else ()
    compiled = _compile(function)
    return Peer(lambda: compiled(*inputs), inputs, weights)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call, because to load the compiler alone takes seconds."""

    @cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return lambda *args: compiled()(*args)


def _zipf(device: torch.device, n: int, k: int, seed: int = 0) -> Tensor:
    """As `_index`, segment i being about 1 / i as long as the first."""
    uniform = torch.rand(n, generator=_rng(seed), dtype=torch.float64)
    return ((k + 1) ** uniform - 1).long().clamp(max=k - 1).sort().values.to(device)


def _reduction(
    reduce: str, index: Callable[..., Tensor] = _index
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
        x = _signal(device, n, channels)

        def eager(x: Tensor) -> Tensor:
            out = x.new_zeros(k, channels)
            if reduce == "sum":
                return out.index_add(0, row, x)
            how = {"mean": "mean", "max": "amax"}[reduce]
            return out.scatter_reduce(
                0, row[:, None].expand_as(x), x, reduce=how, include_self=False
            )

        peers = {
            OURS: _of(lambda x: ours(x, segments), x),
            "index_add" if reduce == "sum" else "scatter_reduce": _of(eager, x),
            COMPILED: _compiled(eager, x),
        }
        # For a maximum PyG calls scatter_reduce, and segment_reduce has no empty segments.
        if reduce != "max":
            peers["PyG scatter"] = _of(lambda x: scatter(x, row, dim_size=k, reduce=reduce), x)
            peers["segment_reduce"] = _of(
                lambda x: torch.segment_reduce(x, reduce, offsets=pointers, axis=0, initial=0),
                x,
            )
        if reduce == "sum":  # what reads as much and writes nothing
            peers[READING] = Peer(lambda: x.detach().sum(), same=False)
        if find_spec("torch_scatter"):
            import torch_scatter

            peers["torch-scatter"] = _of(
                lambda x: torch_scatter.segment_csr(x, pointers, reduce=reduce), x
            )
        return Work(peers, moved=(n + k) * channels * 4 + 8 * k)

    return make


def _segment_gather(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    row = _index(device, n, k)
    segments = Segments.from_index(row, k)
    y = _signal(device, k, channels)

    def eager(y: Tensor) -> Tensor:
        return y.index_select(0, row)

    peers = {
        OURS: _of(lambda y: kernels.segment_gather(y, segments), y),
        "index_select": _of(eager, y),
        COMPILED: _compiled(eager, y),
    }
    return Work(peers, moved=(n + k) * channels * 4 + 8 * n)


def _gather_segment_sum(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    # Distinct and sorted, as torch.sparse wants its entries, hence fewer than n.
    pairs = torch.randint(k * k, (n,), generator=_rng()).unique().to(device)
    target, source = pairs // k, pairs % k
    edge_index = torch.stack([source, target])
    read, written = (Segments.from_index(index, k) for index in (source, target))
    ones = torch.ones(target.numel(), device=device)
    matrix = torch.sparse_csr_tensor(
        written.pointers.long(), source, ones, (k, k), check_invariants=True
    )
    x = _signal(device, k, channels)
    conv = SimpleConv(aggr="sum")

    def eager(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape).index_add(0, target, x.index_select(0, source))

    peers = {
        OURS: _of(lambda x: kernels.gather_segment_sum(x, read, written), x),
        "index_add": _of(eager, x),
        COMPILED: _compiled(eager, x),
        "torch.sparse": _of(lambda x: matrix @ x, x),
        "PyG scatter": _of(lambda x: scatter(x.index_select(0, source), target, dim_size=k), x),
        "PyG MessagePassing": _of(lambda x: conv(x, edge_index), x),
    }
    return Work(peers, moved=2 * k * channels * 4 + 8 * target.numel())


def _indexed_linear(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    row = _index(device, n, k)
    segments = Segments.from_index(row, k)
    tiles = kernels.Tiles(segments, channels, channels)
    x = _signal(device, n, channels)
    linear = HeteroLinear(channels, channels, k, is_sorted=True, bias=False).to(device)
    with torch.no_grad():
        linear.weight.normal_()
    sizes = segments.pointers.diff().tolist()

    def loop(x: Tensor) -> Tensor:
        return torch.cat([part @ linear.weight[i] for i, part in enumerate(x.split(sizes))])

    peers = {
        OURS: _of(lambda x: kernels.indexed_linear(x, linear.weight, tiles), x),
        "loop": _of(loop, x),
        "PyG HeteroLinear": _of(lambda x: linear(x, row), x),
        COMPILED: _compiled(loop, x),
    }
    peers = {name: Peer(peer.call, peer.inputs, (linear.weight,)) for name, peer in peers.items()}
    moved = (2 * n * channels + k * channels**2) * 4
    return Work(peers, moved, flops=2 * n * channels**2)


def _grouped_linear(size: Size, device: torch.device) -> Work:
    n, k, channels, _ = size
    x = _signal(device, k, n // k, channels)
    weight = _signal(device, k, channels, channels, seed=1)
    shared = _signal(device, k, channels, seed=2)

    def eager(x: Tensor, weight: Tensor, shared: Tensor) -> Tensor:
        return x @ weight + shared[:, None]

    peers = {
        OURS: _of(kernels.grouped_linear, x, weight, shared),
        "matmul": _of(eager, x, weight, shared),
        COMPILED: _compiled(eager, x, weight, shared),
    }
    moved = (2 * n * channels + k * channels**2) * 4
    return Work(peers, moved, flops=2 * n * channels**2)


def _row_mlp(size: Size, device: torch.device) -> Work:
    """Two parts of a row to a hidden layer and back, as the node networks of EGNN."""
    n, _, c, _ = size
    x, beside = (_signal(device, n, c, seed=seed) for seed in range(2))
    shapes = (1, 2 * c, c), (1, c), (1, c, c), (1, c)
    weights = [_signal(device, *shape, seed=2 + i) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        for weight in weights:
            weight /= c**0.5

    def ours(x: Tensor, beside: Tensor, w: Tensor, b: Tensor, v: Tensor, a: Tensor) -> Tensor:
        return kernels.row_mlp(x, (w, b), (v, a), beside)

    def eager(x: Tensor, beside: Tensor, w: Tensor, b: Tensor, v: Tensor, a: Tensor) -> Tensor:
        hidden = torch.addmm(b[0], torch.cat([x, beside], dim=-1), w[0])
        return torch.addmm(a[0], nn.functional.silu(hidden), v[0])

    return Work(_three(ours, eager, x, beside, *weights), 3 * n * c * 4, flops=6 * n * c * c)


def _linear_pair(size: Size, device: torch.device) -> Work:
    n, _, c, _ = size
    x, shapes = _signal(device, n, c), ((1, c, c), (1, c), (1, c, c))
    weights = [_signal(device, *shape, seed=1 + i) for i, shape in enumerate(shapes)]

    def eager(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return torch.addmm(b[0], x, w[0]), x @ v[0]

    peers = _three(kernels.linear_pair, eager, x, *weights)
    return Work(peers, 3 * n * c * 4, flops=4 * n * c * c)


def _three(ours: Callable[..., Any], eager: Callable[..., Any], *x: Tensor) -> dict[str, Peer]:
    return {OURS: _of(ours, *x), "eager": _of(eager, *x), COMPILED: _compiled(eager, *x)}


def _permute_rows(size: Size, device: torch.device) -> Work:
    n, _, channels, _ = size
    order = torch.randperm(n, generator=_rng()).to(device)
    inverse = torch.argsort(order)
    x = _signal(device, n, channels)

    def eager(x: Tensor) -> Tensor:
        return x.index_select(0, order)

    peers = {
        OURS: _of(lambda x: kernels.permute_rows(x, order, inverse), x),
        "index_select": _of(eager, x),
        COMPILED: _compiled(eager, x),
    }
    return Work(peers, moved=2 * n * channels * 4 + 8 * n)


def _edge_mlp_sum(size: Size, device: torch.device) -> Work:
    n, k, h, _ = size
    j, i = _edges(device, size)
    source, target = (Segments.from_index(index, k) for index in (j, i))
    shapes = (k, h), (k, h), (k, DIM), (h, h), (h,), (h,), (h, h), (h,), (1, h)
    tensors = [_signal(device, *shape, seed=i) for i, shape in enumerate(shapes)]
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
    return Work(peers, moved, flops=_edge_flops(n, h))


def _edge_flops(n: int, h: int) -> float:
    """Two products of width h per edge and one to a number, the first map split by ends."""
    return n * (4 * h * h + 2 * h)


def _egnn_flops(size: Size) -> float:
    h = size.channels
    return _edge_flops(size.n, h) + size.k * 2 * (2 * h * h + 3 * h * h)


def _egnn_moved(size: Size) -> float:
    return size.k * 2 * (size.channels + DIM) * 4 + 16 * size.n


def _egnn_conv(size: Size, device: torch.device) -> Work:
    h = size.channels
    edge_index = _edges(device, size)
    ours = EGNNConv(h, h, h).to(device)
    x, pos = _signal(device, size.k, h), _signal(device, size.k, DIM, seed=1)
    plain, pyg = PlainEGNN(ours), PyGEGNN(ours)
    peers = _layers(
        {OURS: ours, "plain EGNN": plain, "PyG MessagePassing": pyg}, (x, pos), edge_index
    )
    peers[COMPILED] = _bind(plain, _compile(plain), (x, pos), edge_index)
    return Work(peers, _egnn_moved(size), _egnn_flops(size))


def _in_torch(
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


def _bind(
    module: nn.Module, function: Callable[..., Any], inputs: tuple[Tensor, ...], *rest: Tensor
) -> Peer:
    """A layer on signals and further, constant arguments."""
    return Peer(lambda: function(*inputs, *rest), inputs, tuple(module.parameters()))


def _layers(
    layers: dict[str, nn.Module], inputs: tuple[Tensor, ...], *rest: Tensor
) -> dict[str, Peer]:
    return {name: _bind(layer, layer, inputs, *rest) for name, layer in layers.items()}


class _Stack(nn.Module):
    """Layers on features and coordinates in turn."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x, pos = layer(x, pos, edge_index)
        return x, pos


def _n_body(depth: int) -> Callable[[Size, torch.device], Work]:
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
        x, pos = _signal(device, batch, nodes, h), _signal(device, batch, nodes, DIM, seed=1)
        flat = tuple(t.detach().flatten(0, 1).requires_grad_() for t in (x, pos))
        peers = _layers({OURS: ours}, (x, pos), one)
        peers |= _layers({"plain EGNN": plain, "PyG MessagePassing": pyg}, flat, stacked)
        peers[COMPILED] = _bind(plain, _compile(plain), flat, stacked)
        if device.type == "cuda":
            graphed: Any = torch.cuda.make_graphed_callables(
                _Stack([PlainEGNN(conv) for conv in convs]), (*flat, stacked)
            )
            peers["CUDA graph"] = _bind(graphed, graphed, flat, stacked)
        return Work(peers, depth * _egnn_moved(size), depth * _egnn_flops(size))

    return make


def _penguin_conv(size: Size, device: torch.device) -> Work:
    h = size.channels
    edge_index = _edges(device, size)
    ours = PenguinConv(h, h, h, dim=DIM).to(device)
    x, pos = _signal(device, size.k, h), _signal(device, size.k, DIM, seed=1)

    plain = PlainPenguin(ours)
    peers = _layers({OURS: ours, "plain PEnGUiN": plain}, (x, pos), edge_index)
    peers[COMPILED] = _bind(plain, _compile(plain), (x, pos), edge_index)
    flops = 2 * _egnn_flops(size) - size.n * 2 * h * (h + 1)
    return Work(peers, _egnn_moved(size), flops)


def _clusters(n: int, k: int) -> Partition:
    """Equal clusters of nodes in no order."""
    labels = torch.arange(n) % k
    return Partition(labels[torch.randperm(n, generator=_rng())])


def _orbit_work(size: Size, peers: dict[str, Peer]) -> Work:
    n, k, c, batch = size
    moved = (2 * batch * n * c + k * k * c * c) * 4
    return Work(peers, moved, flops=2 * batch * (n + k * k) * c * c)


def _orbit_linear(size: Size, device: torch.device) -> Work:
    """Beside ``nn.Linear``, which no such map can beat by much."""
    n, k, c, batch = size
    partition = _clusters(n, k)
    ours = OrbitLinear(c, c, ClusterGroup(partition)).to(device)
    naive = NaiveClusterLinear(ours, partition).to(device)
    x = _signal(device, batch, n, c)
    peers = _layers({OURS: ours, "naive scatter": naive}, (x,))
    peers[COMPILED] = _bind(naive, _compile(naive), (x,))
    linear = nn.Linear(c, c).to(device)
    peers["nn.Linear"] = Peer(lambda: linear(x), (x,), tuple(linear.parameters()), same=False)
    return _orbit_work(size, peers)


def _levels(size: Size, device: torch.device) -> Work:
    """Three nested levels of k, about the square root of k and one cluster, beside the finest."""
    n, k, c, batch = size
    fine = _clusters(n, k)
    middle = Partition(fine.labels % max(math.isqrt(k), 1))
    ours = OrbitLinear(c, c, levels=[fine, middle, Partition.single(n)]).to(device)
    alone = OrbitLinear(c, c, ClusterGroup(fine)).to(device)
    assert ours.soft is not None
    x = _signal(device, batch, n, c)
    peers = _layers({OURS: ours}, (x,))
    peers["level by level"] = _bind(ours, ours.soft.define, (x,))
    peers[FINEST] = Peer(lambda: alone(x), (x,), tuple(alone.parameters()), same=False)
    return _orbit_work(size, peers)


def _signed_linear(size: Size, device: torch.device) -> Work:
    """Clusters that change places in pairs, where half of the channels change their signs."""
    n, k, c, batch = size
    swaps = PermutationGroup.from_cycles(k, [(i, i + 1) for i in range(0, k - 1, 2)])
    group = ClusterGroup(_clusters(n, k), swaps=swaps)
    rep = Representation.from_signs(group, [[-1] * (c // 2) + [1] * (c - c // 2)])
    ours = OrbitLinear(c, c, group, in_rep=rep, out_rep=rep).to(device)
    plain = OrbitLinear(c, c, group).to(device)
    x = _signal(device, batch, n, c)
    peers = _layers({OURS: ours}, (x,))
    peers[UNSIGNED] = Peer(lambda: plain(x), (x,), tuple(plain.parameters()), same=False)
    return _orbit_work(size, peers)


def _gnet_conv(size: Size, device: torch.device) -> Work:
    """Sixteen clusters of nodes, or fewer of two nodes at least."""
    n, k, c, _ = size
    partition = _clusters(k, min(16, k // 2))
    edges, _ = add_self_loops(_edges(device, size), num_nodes=k)
    edge_index = coalesce(edges, num_nodes=k, sort_by_row=False)
    ours = GNetConv(c, c, ClusterGroup(partition)).to(device)
    assert ours.linear is not None
    naive = nn.Sequential(NaiveClusterLinear(ours.linear, partition), SimpleConv("mean")).to(device)
    x = _signal(device, 1, k, c)

    def pyg(x: Tensor) -> Tensor:
        return naive[1](naive[0](x), edge_index)

    peers = _layers({OURS: ours}, (x,), edge_index)
    peers["PyG MessagePassing"] = _bind(naive, pyg, (x,))
    peers[COMPILED] = _bind(naive, _compile(pyg), (x,))
    moved = 2 * k * c * 4 + 16 * n
    return Work(peers, moved, flops=2 * (k + 16**2) * c * c)


def _dense(size: Size, device: torch.device) -> Work:
    """One layer on a square image cut into square patches, beside its materialised weight."""
    partition, c = _patches(size), size.channels
    ours = OrbitLinear(c, c, ClusterGroup(partition)).to(device)
    dense = DenseClusterLinear(ours, partition).to(device)
    x = _signal(device, size.batch, size.n, c)
    return _orbit_work(size, _layers({OURS: ours, "dense": dense}, (x,)))


def _dense_net(size: Size, device: torch.device) -> Work:
    """As `_dense`, two layers with one channel at both ends."""
    partition, c = _patches(size), size.channels
    ours = GNet([1, c, 1], ClusterGroup(partition), propagate="none").to(device)
    first, last = (m for m in ours.modules() if isinstance(m, OrbitLinear))
    dense = nn.Sequential(
        DenseClusterLinear(first, partition), nn.ReLU(), DenseClusterLinear(last, partition)
    ).to(device)
    x = _signal(device, size.batch, size.n, 1)
    flops = 4 * size.batch * (size.n + size.k**2) * c
    peers = _layers({OURS: ours, "dense": dense}, (x,))
    return Work(peers, moved=size.batch * size.n * 2 * (1 + c) * 4, flops=flops)


def _general(name: str) -> Callable[[Size, torch.device], Work]:
    """A group without clusters beside the matrix with one block per pair of nodes."""

    def make(size: Size, device: torch.device) -> Work:
        group, c = GROUPS[name], size.channels
        ours = OrbitLinear(c, c, group, bias=False).to(device)
        forms = {form: DenseOrbitLinear(ours, form).to(device) for form in DENSE_FORMS}
        x = _signal(device, size.batch, group.num_nodes, c)
        peers = _layers({OURS: ours, **forms}, (x,))
        moved = (2 * size.batch * size.n * c + group.commutant_dim() * c * c) * 4
        # No basis has blocks of fewer numbers than there are weights.
        return Work(peers, moved, flops=2 * size.batch * group.commutant_dim() * c * c)

    return make


def _patches(size: Size) -> Partition:
    side, across = math.isqrt(size.n), math.isqrt(size.k)
    return Partition.grid(side, side, side // across)


def _pairs(sizes: Callable[[Size], Tensor]) -> Callable[[Size, torch.device], Work]:
    """The map from order 2 to 2, beside 15 stacked operations and one product.

    Where all subgraphs were padded to the largest, the stack of the whole batch of ego-networks
    would not fit into most memories, so that takes part with few of them alone.
    """

    def make(size: Size, device: torch.device) -> Work:
        c, every = size.channels, sizes(size)
        subgraphs = Subgraphs.from_sizes(every).to(device)
        ours = EquivariantTensorLinear(2, 2, c, c).to(device)
        x = _signal(device, subgraphs.num_pairs, c)
        stacked: dict[str, nn.Module] = {}
        stacked["stacked by size"] = StackedPairs(ours, every, padded=False).to(device)
        largest, smallest = int(every.max()), int(every.min())
        if smallest < largest and every.numel() <= _PADDED:
            stacked["stacked, padded"] = StackedPairs(ours, every, padded=True).to(device)
        peers = {OURS: Peer(lambda: ours(x, subgraphs), (x,), tuple(ours.parameters()))}
        peers |= _layers(stacked, (x,))
        n, nodes = subgraphs.num_pairs, subgraphs.num_nodes
        return Work(peers, moved=2 * n * c * 4, flops=(4 * n + 18 * nodes) * c * c)

    return make


_PADDED = 200  # subgraphs


def _equal_sizes(size: Size) -> Tensor:
    return torch.full((size.k,), math.isqrt(size.n // size.k))


def _ego_sizes(size: Size) -> Tensor:
    """Of ego-networks: 4 to 40 nodes, each as often."""
    return 4 + torch.arange(size.k) % 37


def _sixteenth(n: int) -> int:
    return max(n // 16, 1)


def _sixteen(n: int) -> int:
    return 16


CASES = {
    "segment_sum": Case(
        "segment_sum: sums of n sorted rows by k segments", _reduction("sum"), 3, _sixteenth
    ),
    "segment_sum, Zipf": Case(
        "segment_sum: segment i is about 1/i as long as the first", _reduction("sum", _zipf), 3
    ),
    "segment_mean": Case(
        "segment_mean: means of n sorted rows by k segments", _reduction("mean"), 3, _sixteenth
    ),
    "segment_max": Case(
        "segment_max: maxima of n sorted rows by k segments", _reduction("max"), 5, _sixteenth
    ),
    "segment_gather": Case(
        "segment_gather: every one of n rows reads that of its segment",
        _segment_gather,
        3,
        _sixteenth,
    ),
    "gather_segment_sum": Case(
        "gather_segment_sum: at most n entries of a sparse k x k matrix times k rows",
        _gather_segment_sum,
        4,
        _sixteenth,
    ),
    "indexed_linear": Case(
        "indexed_linear: n sorted rows times k matrices", _indexed_linear, 5, _sixteen
    ),
    "grouped_linear": Case(
        "grouped_linear: n rows in k equal runs times k matrices", _grouped_linear, 4, _sixteen
    ),
    "row_mlp": Case("row_mlp: two maps of n rows, SiLU between", _row_mlp, 6, _sixteen),
    "linear_pair": Case("linear_pair: two maps of n rows", _linear_pair, 4, _sixteen),
    "permute_rows": Case("permute_rows: n rows in another order", _permute_rows, 3, _sixteen),
    "edge_mlp_sum": Case(
        "edge_mlp_sum: messages and moves of n edges between k nodes",
        _edge_mlp_sum,
        14,
        _sixteenth,
    ),
    "EGNNConv": Case("EGNNConv: n edges between k nodes", _egnn_conv, 16, _sixteenth),
    "EGNNConv in plain torch": Case(
        "EGNNConv without a compiler: n edges between k nodes", _in_torch(_egnn_conv), 16
    ),
    "EGNNConv, n-body": Case("EGNNConv: a batch of complete graphs", _n_body(1), 16),
    "EGNN, n-body": Case("EGNN of four layers: a batch of complete graphs", _n_body(4), 64),
    "PenguinConv": Case("PenguinConv: n edges between k nodes", _penguin_conv, 24, _sixteenth),
    "OrbitLinear": Case(
        "OrbitLinear (cluster_linear): n nodes in k clusters", _orbit_linear, 5, _sixteen
    ),
    "OrbitLinear, levels": Case(
        "OrbitLinear of three levels: n nodes, k clusters at the finest", _levels, 8
    ),
    "OrbitLinear, signs": Case(
        "OrbitLinear with signs on channels: n nodes in k clusters that change places in pairs",
        _signed_linear,
        5,
    ),
    "GNetConv": Case("GNetConv: n edges between k nodes in 16 clusters", _gnet_conv, 4, _sixteenth),
    "EquivariantTensorLinear": Case(
        "EquivariantTensorLinear(2, 2): n pairs of k equal subgraphs", _pairs(_equal_sizes), 40
    ),
    "EquivariantTensorLinear, ego-networks": Case(
        "EquivariantTensorLinear(2, 2): n pairs of k subgraphs of 4 to 40 nodes",
        _pairs(_ego_sizes),
        40,
    ),
    **{
        f"OrbitLinear, {name}": Case(
            f"OrbitLinear of a general group, {name}: n nodes with k pair orbits",
            _general(name),
            1,
            threads=1,  # what is small waits for a second one longer than that saves
        )
        for name in GROUPS
    },
    "OrbitLinear, dense": Case("OrbitLinear against its materialised weight", _dense, 1),
    "GNet, dense": Case("GNet 1 -> channels -> 1 against materialised weights", _dense_net, 1),
}
