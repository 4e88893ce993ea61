"""GNetConv, GNet and the mixings of OrbitLinear against slow dense definitions, and at the edges.

The definitions below read a layer's parameters and follow the formulas with one matrix per pair
of nodes, target first.
"""

import copy
import io
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradgradcheck
from torch.func import functional_call
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from gsym import ClusterGroup, Partition, PermutationGroup, kernels
from gsym.check import assert_equivariant, equivariance_error
from gsym.errors import GraphError, GroupError, SignalError
from gsym.nn import GNet, GNetConv, OrbitLinear

N = 7
WAYS = ("none", "adjacency", "weighted", "pointwise")
GRAPH_WAYS = WAYS[1:]
MIXINGS = ("full", "low_rank", "quotient", "none")
GROUPS = {
    "any n": None,
    "S_7": PermutationGroup.symmetric(N),
    "unequal": ClusterGroup(Partition.from_labels([2, 1, 0, 2, 1, 2, 2])),
    # Clusters 0 and 3 of one node, 1 and 2 of two: both kinds are exchanged.
    "swaps": ClusterGroup(
        Partition.from_labels([1, 0, 2, 1, 4, 3, 2]),
        swaps=PermutationGroup.from_cycles(5, [(0, 3), (1, 2)]),
    ),
    "3-cycle": PermutationGroup.from_cycles(N, [(0, 2, 5)], [(3, 4)]),
    "trivial": PermutationGroup.trivial(N),
}
MOVING = [name for name in GROUPS if name not in ("any n", "trivial")]

# Node 6 is isolated, node 0 has a self-loop and node 3 two, edge 1 -> 2 comes twice, and most
# edges have no reverse.
EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4, 5, 0, 2], [0, 2, 2, 1, 3, 3, 0, 4, 5, 5]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(layer):
    """The layer in float64 with all parameters random, biases and logits included."""
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def signal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def as_clusters(group: PermutationGroup | None, n: int) -> ClusterGroup:
    if group is None:
        return ClusterGroup(Partition.single(n))
    if isinstance(group, ClusterGroup):
        return group
    return ClusterGroup(Partition.singletons(n), swaps=group)


def dense_map(linear, n):
    """The matrices ``[target, source, in, out]`` of OrbitLinear."""
    group = as_clusters(linear.group, n)
    labels, sizes = group.partition.labels.tolist(), group.partition.sizes
    k, orbit = len(sizes), group.cluster_orbits().index.tolist()
    mixing, kind = linear.mixing, type(linear.mixing).__name__
    zero = torch.zeros(linear.in_channels, linear.out_channels, dtype=torch.float64)

    between = [[zero] * k for _ in range(k)]
    if kind == "QuotientMixing":
        pairs = sorted(set(map(tuple, mixing.coarse.T.tolist())))
        if group.swaps is None:
            ties = list(range(len(pairs)))
        else:
            ties = group.swaps.edge_orbits(torch.tensor(pairs).T).index.tolist()
        for (t, s), tie in zip(pairs, ties, strict=True):
            between[t][s] = mixing.weight[tie]
    elif kind == "LowRankMixing":
        for t, s in product(range(k), range(k)):
            terms = mixing.left[orbit[t]] * mixing.right[orbit[s]]
            between[t][s] = torch.einsum("r,rio->io", terms, mixing.weight)
    elif kind == "FullMixing" and group.swaps is None:
        between = [[mixing.weight[s, :, t, :] for s in range(k)] for t in range(k)]
    elif kind == "FullMixing":
        ties = group.cluster_pair_orbits().index
        between = [[mixing.weight[ties[t, s]] for s in range(k)] for t in range(k)]

    every = kind in ("LowRankMixing", "NoneType") or linear.group is None
    own = sorted({orbit[c] for c in range(k) if every or sizes[c] > 1})
    rows = []
    for t, s in product(range(n), range(n)):
        matrix = between[labels[t]][labels[s]] / sizes[labels[s]]
        if t == s and orbit[labels[t]] in own and (every or sizes[labels[t]] > 1):
            matrix = matrix + linear.weight_self[own.index(orbit[labels[t]])]
        rows.append(matrix)
    return torch.stack(rows).view(n, n, *zero.shape)


def pair_orbit(group: PermutationGroup | None, n: int, t: int, s: int) -> int:
    """Number of the orbit of ``(t, s)``: pairs of clusters first, then diagonals."""
    clusters = as_clusters(group, n)
    labels, sizes = clusters.partition.labels, clusters.partition.sizes
    pairs, nodes = clusters.cluster_pair_orbits(), clusters.cluster_orbits().index
    if t != s or sizes[labels[t]] == 1:
        return int(pairs.index[labels[t], labels[s]])
    large = sorted({int(nodes[c]) for c, size in enumerate(sizes) if size > 1})
    return pairs.num_orbits + large.index(int(nodes[labels[t]]))


def on(layer, *graph):
    """The graph, for a layer that looks at one."""
    return () if layer.propagate == "none" else graph


def dense_adjacency(conv, n, edge_index, edge_weight=None):
    """The effective adjacency ``[target, source]``, rows summing to one."""
    one = torch.ones((), dtype=torch.float64)
    entries = [[0 * one for _ in range(n)] for _ in range(n)]
    edges = [tuple(edge) for edge in edge_index.T.tolist()]
    weights = [one] * len(edges) if edge_weight is None else list(edge_weight)
    for node in range(n):
        if (node, node) not in edges:
            edges.append((node, node))
            weights.append(one)
    for (s, t), weight in zip(edges, weights, strict=True):
        if conv.propagate == "weighted":
            weight = weight * conv.edge_logit[pair_orbit(conv.group, n, t, s)].exp()
        entries[t][s] = entries[t][s] + weight
    matrix = torch.stack([torch.stack(row) for row in entries])
    return matrix / matrix.sum(1, keepdim=True)


def dense_conv(conv, x, edge_index, edge_weight=None):
    n, group = x.size(-2), as_clusters(conv.group, x.size(-2))
    if conv.propagate == "pointwise":
        adjacency = dense_adjacency(conv, n, edge_index, edge_weight)
        orbits = [pair_orbit(conv.group, n, t, s) for t, s in product(range(n), range(n))]
        maps = conv.weight[orbits].unflatten(0, (n, n)) * adjacency[:, :, None, None]
        y = torch.einsum("...si,tsio->...to", x, maps)
    else:
        y = torch.einsum("...si,tsio->...to", x, dense_map(conv.linear, n))
        if conv.propagate == "none":
            return y + conv.linear.bias[group.cluster_orbits().index[group.partition.labels]]
        y = dense_adjacency(conv, n, edge_index, edge_weight) @ y
    return y + conv.bias[group.node_orbits().index]


def assert_same(layer, fast: Tensor, slow: Tensor, **inputs: Tensor) -> None:
    """Equal values, and equal gradients of every parameter and input by name."""
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    leaves = dict(layer.named_parameters()) | inputs
    direction = torch.randn_like(fast)
    found, expected = (
        torch.autograd.grad(y, list(leaves.values()), direction, materialize_grads=True)
        for y in (fast, slow)
    )
    for name, ours, theirs in zip(leaves, found, expected, strict=True):
        distance = (ours - theirs).norm() / theirs.norm().clamp(min=1)
        assert distance < 1e-10, f"the gradient of {name} is off by {distance:.1e}"


def coarse_graph(group: PermutationGroup | None) -> Tensor:
    """A directed graph on the clusters that the swaps preserve."""
    index = as_clusters(group, N).cluster_pair_orbits().index
    target, source = (index % 3 == 1).nonzero().T
    return torch.stack([source, target])


def options(mixing: str, group: PermutationGroup | None) -> dict[str, object]:
    extra: dict[str, dict[str, object]] = {
        "low_rank": {"rank": 2},
        "quotient": {"cluster_edge_index": coarse_graph(group)},
    }
    return {"mixing": mixing} | extra.get(mixing, {})


def preserved_graph(group: PermutationGroup) -> tuple[Tensor, Tensor]:
    """A weighted graph that the group preserves, not symmetric where the group allows it."""
    index = group.pair_orbits().index
    chosen = (index % 3 != 0).nonzero().T
    if chosen.numel() == 0:
        chosen = (index > 0).nonzero().T
    target, source = chosen
    weight = 0.5 + (index[target, source] % 4).double()
    return torch.stack([source, target]), weight


# Definitions


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted edges"])
@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize("name", GROUPS)
def test_conv_is_its_definition(name, propagate, weighted):
    conv = randomised(GNetConv(2, 3, GROUPS[name], propagate=propagate))
    x = signal(2, N, 2).requires_grad_()
    edge_weight = torch.rand(EDGES.size(1), dtype=torch.float64) + 0.1
    given = edge_weight.requires_grad_() if weighted else None
    inputs = {"x": x} | ({"edge_weight": edge_weight} if weighted and propagate != "none" else {})
    fast, slow = conv(x, *on(conv, EDGES, given)), dense_conv(conv, x, EDGES, given)
    assert_same(conv, fast, slow, **inputs)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("name", GROUPS)
def test_linear_is_its_definition(name, mixing):
    group = GROUPS[name]
    layer = randomised(OrbitLinear(2, 3, group, **options(mixing, group)))
    x = signal(2, N, 2).requires_grad_()
    clusters = as_clusters(group, N)
    bias = layer.bias[clusters.cluster_orbits().index[clusters.partition.labels]]
    slow = torch.einsum("...si,tsio->...to", x, dense_map(layer, N)) + bias
    assert_same(layer, layer(x), slow, x=x)


@pytest.mark.parametrize("propagate", ["none", "adjacency", "weighted"])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_conv_with_each_mixing_is_its_definition(mixing, propagate):
    group = GROUPS["swaps"]
    conv = randomised(GNetConv(2, 3, group, propagate=propagate, **options(mixing, group)))
    x = signal(2, N, 2).requires_grad_()
    assert_same(conv, conv(x, *on(conv, EDGES)), dense_conv(conv, x, EDGES), x=x)


def test_quotient_mixes_only_along_the_coarse_graph():
    group = GROUPS["unequal"]
    layer = randomised(
        OrbitLinear(1, 1, group, mixing="quotient", cluster_edge_index=torch.tensor([[2], [1]]))
    )
    labels = group.partition.labels
    reached = (dense_map(layer, N)[..., 0, 0] != 0).nonzero().T
    assert {tuple(pair) for pair in labels[reached].T.tolist()} == {(0, 0), (1, 1), (2, 2), (1, 2)}


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
@pytest.mark.parametrize("name", GROUPS)
def test_neighbourhood_weights_sum_to_one(name, propagate):
    # A constant signal through the identity map returns the row sums of the adjacency.
    conv = randomised(GNetConv(1, 1, GROUPS[name], propagate=propagate))
    with torch.no_grad():
        conv.bias.zero_()
        if propagate == "pointwise":
            conv.weight.fill_(1)
        else:
            conv.linear = torch.nn.Identity()
    ones = torch.ones(N, 1, dtype=torch.float64)
    edge_weight = torch.rand(EDGES.size(1), dtype=torch.float64) + 0.1
    for weight in (None, edge_weight):
        torch.testing.assert_close(conv(ones, EDGES, weight), ones, rtol=1e-12, atol=1e-12)


def test_self_loops_are_added_where_missing_only():
    conv = randomised(GNetConv(1, 1, None, propagate="adjacency"))
    conv.linear = torch.nn.Identity()
    x = signal(3, 1)

    def weights(*edges: tuple[int, int]) -> list[float]:
        edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        basis = torch.eye(3, dtype=torch.float64)[:, :, None]
        return (conv(basis, edge_index) - conv.bias)[:, 0, 0].tolist()

    assert weights() == [1, 0, 0]
    assert weights((1, 0)) == [0.5, 0.5, 0]
    assert weights((1, 0), (0, 0)) == [0.5, 0.5, 0]
    assert weights((1, 0), (0, 0), (0, 0), (2, 0)) == [0.5, 0.25, 0.25]
    assert weights((1, 0), (1, 1)) == [0.5, 0.5, 0]
    torch.testing.assert_close(conv(x, torch.empty(2, 0).long()), x + conv.bias)


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
def test_isolated_nodes_and_large_logits_stay_finite(propagate):
    conv = randomised(GNetConv(2, 2, GROUPS["unequal"], propagate=propagate))
    if propagate == "weighted":
        with torch.no_grad():
            conv.edge_logit.mul_(1e4)
    for edge_index in (EDGES, torch.empty(2, 0, dtype=torch.int64)):
        y = conv(signal(N, 2), edge_index)
        y.sum().backward()
        assert y.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in conv.parameters())


# Symmetry


@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize("name", MOVING)
def test_commutes_when_the_group_preserves_the_graph(name, propagate):
    group = GROUPS[name]
    edge_index, edge_weight = preserved_graph(group)
    assert group.preserves(edge_index, edge_weight)
    conv = randomised(GNetConv(2, 3, group, propagate=propagate))
    assert_equivariant(conv, group, signal(2, N, 2), *on(conv, edge_index, edge_weight))


@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize("name", MOVING)
def test_a_graph_that_the_group_changes_breaks_the_symmetry(name, propagate):
    group = GROUPS[name]
    assert not group.preserves(EDGES)
    conv = randomised(GNetConv(2, 3, group, propagate=propagate))
    error = equivariance_error(conv, group, signal(2, N, 2), *on(conv, EDGES))
    assert error < 1e-10 if propagate == "none" else error > 0.05


@pytest.mark.parametrize("propagate", WAYS)
def test_relabelling_graph_and_signal_together(propagate):
    net = randomised(GNet([2, 4, 3], None, propagate=propagate))
    x, perm = signal(2, N, 2), torch.tensor([1, 2, 3, 4, 5, 6, 0])
    edge_weight = torch.rand(EDGES.size(1), dtype=torch.float64) + 0.1
    relabelled = torch.empty_like(x)
    relabelled[:, perm] = x
    y = net(relabelled, *on(net, perm[EDGES], edge_weight))
    torch.testing.assert_close(y[:, perm], net(x, *on(net, EDGES, edge_weight)))


@pytest.mark.parametrize("propagate", WAYS)
def test_no_group_is_the_symmetric_group_of_every_size(propagate):
    free = randomised(GNetConv(2, 3, None, propagate=propagate))
    for n in (2, 5, N):
        fixed = GNetConv(2, 3, PermutationGroup.symmetric(n), propagate=propagate).double()
        with torch.no_grad():
            for ours, theirs in zip(fixed.parameters(), free.parameters(), strict=True):
                ours.copy_(theirs)
        x, graph = signal(2, n, 2), on(free, EDGES[:, EDGES.amax(0) < n])
        torch.testing.assert_close(free(x, *graph), fixed(x, *graph))
    assert free(signal(1, 2), *on(free, torch.empty(2, 0).long())).isfinite().all()


# Shapes and batches


@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize("name", ["any n", "unequal", "swaps", "3-cycle"])
def test_leading_axes_are_independent(name, propagate):
    conv = randomised(GNetConv(2, 3, GROUPS[name], propagate=propagate))
    x = signal(2, 3, N, 2)
    graph = on(conv, EDGES)
    y = conv(x, *graph)
    torch.testing.assert_close(conv(x[1], *graph), y[1])
    torch.testing.assert_close(conv(x[1, 2], *graph), y[1, 2])
    torch.testing.assert_close(conv(x.transpose(0, 1), *graph), y.transpose(0, 1))
    assert conv(x[:0], *graph).shape == (0, 3, N, 3)


def stacked(x: Tensor, graphs: list[Tensor], weights: list[Tensor]) -> Data:
    data = [
        Data(x=signal, edge_index=edge_index, edge_weight=weight)
        for signal, edge_index, weight in zip(x, graphs, weights, strict=True)
    ]
    return next(iter(DataLoader(data, batch_size=len(data))))


@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize("name", ["any n", "unequal"])
def test_stacked_batch_of_one_graph(name, propagate):
    net = randomised(GNet([2, 4, 3], GROUPS[name], propagate=propagate))
    x, weight = signal(4, N, 2), torch.rand(EDGES.size(1)).double() + 0.1
    batch = stacked(x, [EDGES] * 4, [weight] * 4)
    assert batch.edge_index.max() >= N
    expected = net(x, *on(net, EDGES, weight)).flatten(0, 1)
    for edge_index, edge_weight in (
        (batch.edge_index, batch.edge_weight),
        (EDGES, weight),
        (EDGES, batch.edge_weight),
    ):
        given = on(net, edge_index, edge_weight)
        y = net(batch.x, *given, batch_size=batch.num_graphs)
        torch.testing.assert_close(y, expected)
        assert torch.equal(net(batch.x, *given, batch=batch.batch), y)


def test_stacked_batch_of_unequal_graphs_is_refused():
    conv = GNetConv(2, 3, None, propagate="adjacency").double()
    x, weight = signal(3, N, 2), torch.ones(EDGES.size(1)).double()
    shifted = EDGES.clone()
    shifted[0, -1] = 4
    fewer = EDGES[:, :-3]
    for graphs in ([EDGES, EDGES, shifted], [EDGES, fewer, EDGES]):
        batch = stacked(x, graphs, [weight[: graph.size(1)] for graph in graphs])
        with pytest.raises(GraphError, match=r"batch_size=3.*one graph on 7 nodes or 3 equal"):
            conv(batch.x, batch.edge_index, batch_size=3)


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
def test_stacked_batch_of_unequal_weights(propagate):
    conv = randomised(GNetConv(2, 3, GROUPS["unequal"], propagate=propagate))
    x, weight = signal(2, N, 2), torch.ones(EDGES.size(1)).double()
    weight[1] = 5
    batch = stacked(x, [EDGES] * 2, [weight, weight.flip(0)])
    y = conv(batch.x, batch.edge_index, batch.edge_weight, batch_size=2)
    alone = [conv(x[0], EDGES, weight), conv(x[1], EDGES, weight.flip(0))]
    torch.testing.assert_close(y, torch.cat(alone))


# The prepared graph


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
@pytest.mark.parametrize("name", ["any n", "unequal"])
def test_two_graphs_in_turn(name, propagate):
    conv = randomised(GNetConv(2, 3, GROUPS[name], propagate=propagate))
    x = signal(2, N, 2)
    graphs = (EDGES, EDGES.flip(0), EDGES[:, 2:], (EDGES + 1) % N)
    for edge_index in (*graphs, *graphs, graphs[0].clone(), *reversed(graphs)):
        torch.testing.assert_close(conv(x, edge_index), dense_conv(conv, x, edge_index))
    if name == "any n":
        wider = signal(N + 2, 2)
        torch.testing.assert_close(conv(wider, EDGES), dense_conv(conv, wider, EDGES))


@pytest.mark.parametrize("propagate", ["adjacency", "weighted", "pointwise"])
def test_an_edge_index_of_pyg_is_the_tensor_within(propagate):
    conv = randomised(GNetConv(2, 3, GROUPS["unequal"], propagate=propagate))
    x = signal(2, N, 2).requires_grad_()
    found = conv(x, EdgeIndex(EDGES, sparse_size=(N, N)))
    assert_same(conv, found, conv(x, EDGES), x=x)


@pytest.mark.parametrize("renewed", [False, True], ids=["same tensor", "copy"])
def test_a_graph_changed_in_place_is_noticed(renewed):
    conv = randomised(GNetConv(2, 3, None, propagate="adjacency"))
    x, edge_index = signal(N, 2), EDGES.clone()
    conv(x, edge_index)
    edge_index[1, 3] = 6
    y = conv(x, edge_index.clone() if renewed else edge_index)
    torch.testing.assert_close(y, dense_conv(conv, x, edge_index))


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
def test_training_after_evaluation_in_inference_mode(propagate):
    conv = GNetConv(2, 3, GROUPS["unequal"], propagate=propagate).double()
    x = signal(2, N, 2)
    with torch.inference_mode():
        conv(x, EDGES)
    conv(x, EDGES).sum().backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())


# What of the graph counts


@pytest.mark.parametrize("cls", [GNetConv, GNet])
def test_by_default_a_graph_is_used_where_one_is_given(cls):
    widths = (2, 3) if cls is GNetConv else ([2, 4, 3],)
    layer = randomised(cls(*widths, GROUPS["unequal"]))
    assert layer.propagate == "auto"
    held = dict(layer.named_parameters())
    x, ways = signal(2, N, 2), {}
    for propagate in ("none", "adjacency"):
        ways[propagate] = cls(*widths, GROUPS["unequal"], propagate=propagate).double()
        with torch.no_grad():
            for name, parameter in ways[propagate].named_parameters():
                if name.endswith("bias"):  # which orbits of clusters and of nodes number otherwise
                    parameter.zero_()
                else:
                    parameter.copy_(held[name])
    with torch.no_grad():
        for name, parameter in held.items():
            if name.endswith("bias"):
                parameter.zero_()
    torch.testing.assert_close(layer(x), ways["none"](x))
    torch.testing.assert_close(layer(x, EDGES), ways["adjacency"](x, EDGES))
    assert (layer(x) - layer(x, EDGES)).abs().max() > 0.1


@pytest.mark.parametrize("cls", [GNetConv, GNet])
def test_a_graph_that_nothing_would_look_at_is_refused(cls):
    layer = cls(*((2, 3) if cls is GNetConv else ([2, 3],)), propagate="none")
    for given in ((EDGES,), (None, torch.ones(10))):
        with pytest.raises(GraphError, match="uses no graph, but one was given"):
            layer(torch.randn(2, N, 2), *given)
    with pytest.raises(GraphError, match="pass edge_index too"):
        conv("auto")(WIDE, None, torch.ones(10))


def test_an_edge_of_weight_0_takes_no_part_in_the_softmax():
    layer = randomised(GNetConv(2, 3, GROUPS["trivial"], propagate="weighted"))
    x = signal(2, N, 2)
    pairs = torch.tensor([[0, 1], [2, 2]])
    ties = layer._tables(x.device).ties
    with torch.no_grad():
        layer.edge_logit[ties.orbits(pairs[1], pairs[0])[0]] = 800.0  # its exponential overflows
    alone = layer(x, pairs[:, 1:])
    weight = torch.tensor([0.0, 1.0]).double().requires_grad_()
    found = layer(x, pairs, weight)
    torch.testing.assert_close(found, alone)
    found.sum().backward()
    assert weight.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_weights_and_neighbourhoods_do_not_overflow(dtype, propagate):
    count = 70_000 if dtype == torch.float16 else 2_000
    star = torch.stack([torch.arange(1, count + 1), torch.zeros(count).long()])
    layer = randomised(GNetConv(1, 1, propagate=propagate)).to(dtype)
    x = torch.rand(count + 1, 1).to(dtype) + 1
    largest = torch.finfo(dtype).max
    for weight in (None, torch.full((count,), largest / 2), torch.full((count,), 1e-30)):
        expected = copy.deepcopy(layer).double()(
            x.double(), star, None if weight is None else weight.double()
        )
        found = layer(x, star, weight)
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)


# The compiler


@pytest.mark.parametrize("propagate", ["none", "weighted", "pointwise"])
def test_compiles_in_one_graph_for_all_batch_sizes(propagate):
    torch.compiler.reset()
    net = randomised(GNet([2, 3, 2], GROUPS["unequal"], propagate=propagate))
    graph = on(net, EDGES)
    net(signal(2, N, 2), *graph)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for b in (2, 3, 5):
        x = signal(b, N, 2).requires_grad_()
        assert_same(net, compiled(x, *graph), net(x, *graph), x=x)
    assert counter.frame_count <= 2


def test_a_compiled_layer_does_not_reuse_the_tables_of_another_graph():
    torch.compiler.reset()
    conv = randomised(GNetConv(2, 3, GROUPS["unequal"], propagate="weighted"))
    x = signal(2, N, 2)
    compiled = torch.compile(conv, backend="eager")
    for edge_index in (EDGES, EDGES.flip(0), EDGES, EDGES[:, 2:]):
        torch.testing.assert_close(compiled(x, edge_index), dense_conv(conv, x, edge_index))


# State, precision, derivatives


@pytest.mark.parametrize("propagate", WAYS)
def test_state_dict_round_trip_through_a_file(propagate):
    group = GROUPS["swaps"]
    saved = randomised(GNet([2, 3, 2], group, propagate=propagate))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = GNet([2, 3, 2], group, propagate=propagate).double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = signal(2, N, 2)
    assert torch.equal(loaded(x, *on(loaded, EDGES)), saved(x, *on(saved, EDGES)))


@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize(
    "other",
    [
        ClusterGroup(Partition.from_labels([2, 1, 0, 2, 1, 2, 2]).meet(Partition.singletons(N))),
        ClusterGroup(Partition.from_labels([2, 1, 2, 0, 1, 2, 2])),
        None,
    ],
    ids=["finer", "same shapes", "any n"],
)
def test_the_state_of_another_group_is_refused(other, propagate):
    source = GNetConv(2, 3, GROUPS["unequal"], propagate=propagate)
    target = GNetConv(2, 3, other, propagate=propagate)
    with pytest.raises(GroupError, match="saved with another group"):
        target.load_state_dict(source.state_dict())
    again = ClusterGroup(Partition.from_labels(GROUPS["unequal"].partition.labels))
    GNetConv(2, 3, again, propagate=propagate).load_state_dict(source.state_dict())


def test_a_refused_state_leaves_the_layer_as_it_was():
    source = randomised(OrbitLinear(2, 3, GROUPS["unequal"]))
    target = randomised(OrbitLinear(2, 3, ClusterGroup(Partition([2, 1, 2, 0, 1, 2, 2]))))
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    with pytest.raises(GroupError):
        target.load_state_dict(source.state_dict())
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("propagate", WAYS)
def test_precisions_agree(propagate, dtype, tolerance):
    conv = GNetConv(2, 3, GROUPS["unequal"], propagate=propagate).double()
    x = signal(2, N, 2)
    wide = conv(x, *on(conv, EDGES))
    narrow = conv.to(dtype)(x.to(dtype), *on(conv, EDGES))
    assert narrow.dtype == dtype
    assert (narrow - wide).norm() < tolerance * wide.norm()


@pytest.mark.parametrize("propagate", ["weighted", "pointwise"])
def test_second_derivatives(propagate):
    group = ClusterGroup(Partition.from_labels([0, 1, 1]))
    net = randomised(GNet([1, 2, 1], group, propagate=propagate))
    edge_index, edge_weight = torch.tensor([[0, 1, 2], [1, 2, 2]]), torch.rand(3).double() + 0.1
    names = [name for name, _ in net.named_parameters()]

    def function(x: Tensor, weight: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return functional_call(net, parameters, (x, edge_index, weight)).square()

    values = [p.detach().requires_grad_() for p in net.parameters()]
    x = signal(1, 3, 1).requires_grad_()
    assert gradgradcheck(function, (x, edge_weight.requires_grad_(), *values))


# Initialisation

INITIALISED = {
    "S_12": PermutationGroup.symmetric(12),
    "four of 3": ClusterGroup(Partition.grid(2, 6, (1, 3))),
    "unequal": ClusterGroup(Partition([0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3])),
    "one giant": ClusterGroup(Partition([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])),
    "swapped pairs": ClusterGroup(
        Partition(torch.arange(12) // 2),
        swaps=PermutationGroup.from_cycles(6, [(0, 1), (2, 3)], [(4, 5)]),
    ),
    "wreath": ClusterGroup(Partition(torch.arange(12) // 3), swaps=PermutationGroup.symmetric(4)),
    "rotation": PermutationGroup.from_cycles(12, [tuple(range(12))]),
    "3-cycles": PermutationGroup.from_cycles(12, [(0, 1, 2), (3, 4, 5)], [(6, 7)]),
    "trivial": PermutationGroup.trivial(12),
}


@pytest.mark.parametrize("gain", [1, 2**0.5], ids=["gain 1", "gain of ReLU"])
@pytest.mark.parametrize("name", INITIALISED)
def test_initial_weights_keep_the_mean_square_of_any_input(name, gain):
    layer, random = OrbitLinear(3, 512, INITIALISED[name]), torch.randn(12, 3)
    inputs = {
        "independent": random,
        "constant": random[:1].expand(12, 3),
        "smooth": random.cumsum(0),
        "spikes": torch.eye(12, 3),
    }
    x, squares = torch.stack(list(inputs.values())), torch.zeros(4)
    for _ in range(24):
        layer.reset_parameters(gain)
        with torch.no_grad():
            squares += layer(x).square().mean((1, 2)) / 24
    ratios = squares / x.square().mean((1, 2))
    for kind, ratio in zip(inputs, ratios.tolist(), strict=True):
        assert ratio == pytest.approx(gain**2, rel=0.05), kind


@pytest.mark.parametrize("name", INITIALISED)
def test_ten_layers_keep_the_size_of_a_signal(name):
    layer, sizes = OrbitLinear(64, 64, INITIALISED[name]), torch.zeros(5, 10)
    for seed, depths in enumerate(sizes):
        torch.manual_seed(seed)
        x = first = torch.randn(12, 64)
        for depth in range(10):
            layer.reset_parameters()
            with torch.no_grad():
                x = layer(x).relu()
            depths[depth] = x.square().mean() / first.square().mean()
    mean = sizes.mean(0)
    assert mean.min() > 0.2, mean
    assert mean.max() < 5, mean


def test_the_last_layer_of_a_net_has_gain_one():
    net, x = GNet([3, 256, 256], INITIALISED["unequal"], propagate="none"), torch.randn(12, 256)
    squares = []
    for _ in range(8):
        net.reset_parameters()
        with torch.no_grad():
            squares.append(net.convs[-1](x).square().mean())
    assert float(torch.stack(squares).mean() / x.square().mean()) == pytest.approx(1, rel=0.1)


# Bad input

WIDE = torch.zeros(2, N, 2)


def conv(propagate="adjacency", group=GROUPS["unequal"], **keywords):
    return GNetConv(2, 3, group, propagate=propagate, **keywords)


def on_road_network(propagate: str) -> Tensor:
    group = PermutationGroup.symmetric(207)
    return GNetConv(2, 3, group, propagate=propagate)(torch.zeros(4, 208, 2), EDGES)


@pytest.mark.parametrize("propagate", WAYS)
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (on_road_network, SignalError, "acts on 207 nodes but x has 208 on axis -2"),
        (lambda p: conv(p)(WIDE.long(), EDGES), SignalError, r"int64; convert with x\.float\(\)"),
        (lambda p: conv(p)(WIDE[..., :1], EDGES), SignalError, "takes 2 channels but x has 1"),
        (lambda p: conv(p)(WIDE[0, 0], EDGES), SignalError, r"shape \[..., n, 2\]; got \[2\]"),
        (lambda p: conv(p)([[0.0, 1.0]] * N, EDGES), TypeError, "x must be a tensor.*list"),
        (
            lambda p: conv(p)(WIDE.view(-1, 2), EDGES),
            SignalError,
            r"acts on 7 nodes but x has 14.*batch_size=.*x\.view\(-1, 7",
        ),
        (
            lambda p: conv(p)(WIDE.view(-1, 2), EDGES, batch_size=3),
            SignalError,
            "14 rows, not a multiple of batch_size=3",
        ),
        (
            lambda p: conv(p)(WIDE, EDGES, batch_size=2),
            SignalError,
            r"with batch_size, x must be \[b\*n, c\]; got \[2, 7, 2\]",
        ),
        (
            lambda p: conv(p)(WIDE.view(-1, 2), EDGES, batch_size=1),
            SignalError,
            "acts on 7 nodes but x has 14",
        ),
    ],
)
def test_bad_signals(propagate, call, error, message):
    with pytest.raises(error, match=message):
        call(propagate)


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
@pytest.mark.parametrize(
    ("edge_index", "error", "message"),
    [
        (None, TypeError, "needs edge_index"),
        ([[0], [1]], TypeError, "edge_index must be a tensor.*list"),
        (torch.tensor([[0, 1, 2], [1, 2, 7]]), GraphError, r"0\.\.6; edge 2 names node 7"),
        (torch.tensor([[0, -1, 2], [1, 2, 0]]), GraphError, r"0\.\.6; edge 1 names node -1"),
        (EDGES.float(), GraphError, r"int64; got torch\.float32; convert"),
        (EDGES.int(), GraphError, r"int64; got torch\.int32; convert"),
        (EDGES.T, GraphError, r"\[2, e\]; got \[10, 2\]; transpose it"),
        (EDGES[0], GraphError, r"\[2, e\]; got \[10\]"),
        (torch.cat([EDGES, EDGES]), GraphError, r"\[2, e\]; got \[4, 10\]"),
    ],
    ids=["none", "list", "high", "negative", "float", "int32", "transposed", "flat", "four rows"],
)
def test_bad_graphs(propagate, edge_index, error, message):
    with pytest.raises(error, match=message):
        conv(propagate)(WIDE, edge_index)


@pytest.mark.parametrize(
    ("edge_index", "error"),
    [(EDGES.tolist(), TypeError), (EDGES.int(), GraphError), (EDGES.double(), GraphError)],
    ids=["list", "int32", "float"],
)
def test_bad_graphs_after_a_good_one(edge_index, error):
    layer = conv()
    layer(WIDE, EDGES)
    with pytest.raises(error, match="edge_index must"):
        layer(WIDE, edge_index)


@pytest.mark.parametrize("edge_index", [torch.arange(9), torch.arange(9)[None]])
def test_bad_graphs_of_a_stacked_batch(edge_index):
    with pytest.raises(GraphError, match=r"shape \[2, e\]"):
        conv()(WIDE.view(-1, 2), edge_index, batch_size=2)


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
@pytest.mark.parametrize("shape", [(9,), (11,), (10, 1), ()])
def test_bad_edge_weights(propagate, shape):
    with pytest.raises(GraphError, match=r"one number for each of 10 edges; got shape \["):
        conv(propagate)(WIDE, EDGES, torch.ones(shape))


@pytest.mark.parametrize("length", [0, 20])
def test_edge_weights_of_a_multiple_length(length):
    with pytest.raises(GraphError, match="each of 10 edges"):
        conv()(WIDE, EDGES, torch.ones(length))


@pytest.mark.parametrize("propagate", GRAPH_WAYS)
def test_a_node_whose_edges_all_weigh_zero(propagate):
    loops = torch.arange(N).expand(2, N)
    assert conv(propagate)(WIDE, loops, torch.zeros(N)).isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv("gcn"), ValueError, "auto, none, adjacency, weighted, pointwise; got 'gcn'"),
        (lambda: conv(mixing="half"), ValueError, "full, low_rank, quotient, none; got 'half'"),
        (lambda: conv(mixing="low_rank"), ValueError, "rank must be given.*got None"),
        (lambda: conv(mixing="low_rank", rank=0), ValueError, "at least 1.*got 0"),
        (lambda: conv(rank=2), ValueError, 'mixing="low_rank" alone; got 2'),
        (lambda: conv(mixing="quotient"), ValueError, "cluster_edge_index must be given"),
        (
            lambda: conv(cluster_edge_index=torch.zeros(2, 1).long()),
            ValueError,
            'cluster_edge_index must be given for mixing="quotient" alone',
        ),
        (
            lambda: conv(mixing="quotient", cluster_edge_index=torch.tensor([[0], [3]])),
            GraphError,
            r"0\.\.2; edge 0 names node 3",
        ),
        (
            lambda: OrbitLinear(
                2,
                3,
                GROUPS["swaps"],
                mixing="quotient",
                cluster_edge_index=torch.tensor([[0], [1]]),
            ),
            GroupError,
            "preserved by the swaps.*add the images of its edges",
        ),
        (lambda: conv(group=Partition([0, 1])), TypeError, "group must be.*got Partition"),
        (lambda: GNet([3]), ValueError, r"two widths or more; got \[3\]"),
    ],
)
def test_bad_options(call: Callable[[], object], error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("keywords", [{"mixing": "half"}, {"rank": 2}, {"mixing": "low_rank"}])
def test_options_that_pointwise_cannot_use(keywords):
    with pytest.raises(ValueError, match=r"mixing|rank"):
        conv("pointwise", **keywords)


@pytest.mark.parametrize("propagate", ["none", "adjacency"])
def test_too_much_mixing_is_refused_with_the_ways_out(propagate):
    group = PermutationGroup.trivial(512)
    message = r"262144 matrices of 64 x 64 for 512 clusters need 4\.0 GiB, more than 1 GiB"
    with pytest.raises(ValueError, match=message) as refusal:
        GNetConv(64, 64, group, propagate=propagate)
    for way_out in ("low_rank", "quotient", "none", "coarser partition"):
        assert way_out in str(refusal.value)
    GNetConv(64, 64, group, propagate=propagate, mixing="low_rank", rank=4)
    GNetConv(64, 64, group, propagate=propagate, mixing="none")


def test_too_many_matrices_on_edges_are_refused():
    with pytest.raises(ValueError, match=r"need 4\.0 GiB, more than 1 GiB.*coarser partition"):
        GNetConv(64, 64, PermutationGroup.trivial(512), propagate="pointwise")


@pytest.mark.parametrize("weight", [[1.0] * 10, torch.ones(10).long()], ids=["list", "integer"])
def test_edge_weights_are_a_floating_point_tensor(weight):
    with pytest.raises(TypeError, match="edge_weight must be a floating-point tensor"):
        conv()(WIDE, EDGES, weight)


# The ways to tie differ between groups, and are one table for both ways that tie edges.
@pytest.mark.parametrize(
    ("propagate", "name"),
    [
        ("adjacency", "unequal"),
        *(("weighted", name) for name in ("any n", "unequal", "swaps", "3-cycle")),
        ("pointwise", "swaps"),
    ],
)
def test_compiles_a_graph_that_it_never_saw_as_an_input(propagate, name):
    torch.compiler.reset()
    layer = randomised(GNetConv(2, 3, GROUPS[name], propagate=propagate))
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    x, weight = signal(2, N, 2).requires_grad_(), torch.rand(EDGES.size(1)).double()
    for edge_index in (EDGES, EDGES.flip(0), (EDGES + 2) % N):  # loops and repeated edges are there
        expected = dense_conv(layer, x, edge_index, weight)
        assert_same(layer, compiled(x, edge_index, weight), expected, x=x)


def test_stacked_copies_of_an_unknown_graph_are_refused_in_compiled_code():
    torch.compiler.reset()
    compiled = torch.compile(conv(), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="cannot see whether edge_index holds one graph"):
        compiled(WIDE.view(-1, 2), EDGES, batch_size=WIDE.size(0))


@pytest.mark.parametrize("propagate", WAYS)
def test_one_node(propagate):
    layer = conv(propagate, group=PermutationGroup.trivial(1))
    loop = torch.zeros(2, 1, dtype=torch.int64)
    assert layer(torch.randn(3, 1, 2), *on(layer, loop)).shape == (3, 1, 3)


@pytest.mark.parametrize("labels", [[0] * 8 + [1] * 8, [0, 0, 1, 1, 1], [0, 1, 2], [0, 0]], ids=str)
@pytest.mark.parametrize("mixing", ["full", "none"])
def test_autocast(labels, mixing):
    layer = OrbitLinear(2, 3, ClusterGroup(Partition(labels)), mixing=mixing)
    x = torch.randn(4, len(labels), 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y.float(), layer(x), rtol=5e-2, atol=5e-2)
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())


@pytest.mark.parametrize("singles", [0, 2], ids=["one cluster", "unequal"])
def test_the_mean_of_a_long_cluster(singles):
    labels = torch.zeros(1_000_000, dtype=torch.int64)
    labels[:singles] = 1
    layer = OrbitLinear(1, 1, ClusterGroup(Partition(labels)), bias=False)
    x = torch.full((1_000_000, 1), 62.3)
    with torch.no_grad():
        expected = layer.double()(x.double())
        assert (layer.float()(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_half_precision_does_not_overflow():
    layer = OrbitLinear(1, 1, ClusterGroup(Partition.single(100_000))).half()
    assert layer(torch.full((100_000, 1), 2.0).half()).isfinite().all()


@pytest.mark.parametrize("channels", [[1, 28, 28, 1], [28, 28, 1, 28, 28]], ids=str)
def test_layers_of_a_stack_may_want_different_layouts(channels):
    # Clusters of 4 in an order of their own: with one channel sorted, with many not.
    group = ClusterGroup(Partition.grid(4, 4, 2))
    net = GNet(channels, group, propagate="none").double()
    x = torch.randn(3, 16, channels[0], dtype=torch.float64)
    tables = [conv.linear._tables(x.device).clusters for conv in net.convs]
    assert len({kernels.takes_sorted(x, clusters) for clusters in tables}) == 2
    expected = x
    for i, conv in enumerate(net.convs):
        expected = conv(expected if i == 0 else expected.relu())
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    assert_equivariant(net, group, x)
    cycle = torch.arange(16)
    cycle[[0, 1, 4]] = cycle[[1, 4, 0]]
    assert group.contains(cycle)
    moved = torch.empty_like(x)
    moved[:, cycle] = x
    result = torch.empty_like(x[..., :1].expand(-1, -1, channels[-1])).contiguous()
    result[:, cycle] = net(x)
    torch.testing.assert_close(net(moved), result, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", ["any n", "unequal"])
@pytest.mark.parametrize("cls", [OrbitLinear, GNetConv, GNet])
def test_what_the_weights_do_not_go_with_is_named(cls, group):
    layer = GNet([2, 3], GROUPS[group]) if cls is GNet else cls(2, 3, GROUPS[group])
    given = (EDGES,) if cls is GNetConv else ()
    x = torch.zeros(N, 2)
    message = r"x has dtype torch\.float64 but the weights .*float32.* x\.to\(torch\.float32\)"
    with pytest.raises(SignalError, match=message):
        layer(x.double(), *given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(SignalError, match=message):
            layer(x.double(), *given)
        layer(x.bfloat16(), *given)
    with pytest.raises(SignalError, match="x is on meta but the weights of the layer on cpu; move"):
        layer(x.to("meta"), *given)
    with pytest.raises(SignalError, match="x is on cpu but the weights of the layer on meta; move"):
        layer.to("meta")(x, *given)


def test_edge_weights_elsewhere_are_named():
    weight = torch.ones(EDGES.size(1), device="meta")
    with pytest.raises(GraphError, match="edge_weight is on meta but x on cpu; move one"):
        conv()(torch.zeros(N, 2), EDGES, weight)
