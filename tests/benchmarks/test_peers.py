"""What the layers are measured against computes the same, gradients included."""

from __future__ import annotations

import pytest
import torch

from gsym import ClusterGroup, Partition
from gsym.nn import EGNNConv, EquivariantTensorLinear, OrbitLinear, PenguinConv, Subgraphs
from gsym_bench.peers import (
    DenseClusterLinear,
    NaiveClusterLinear,
    PlainEGNN,
    PlainPenguin,
    PyGEGNN,
    StackedPairs,
)


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def gradients(outputs, leaves):
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=rng, dtype=y.dtype) for y in outputs]
    return torch.autograd.grad(outputs, leaves, cotangents)


def egnn(edge_dim, out_channels):
    conv = EGNNConv(4, out_channels, 8, edge_dim)
    with torch.no_grad():
        for parameter in conv.parameters():  # moves and biases start at almost nothing
            parameter.normal_(std=0.5)
    # Node 9 has no edges; one edge is a loop and one is double.
    edge_index = torch.tensor([[0, 1, 2, 3, 3, 5, 6, 6, 8], [1, 2, 0, 3, 4, 4, 7, 7, 0]])
    x, pos = torch.randn(10, 4), torch.randn(10, 3)
    attr = (torch.randn(9, edge_dim),) if edge_dim else ()
    return conv, (x.requires_grad_(), pos.requires_grad_()), (edge_index, *attr)


@pytest.mark.parametrize("peer", [PlainEGNN, PyGEGNN])
@pytest.mark.parametrize(("edge_dim", "out_channels"), [(0, 4), (2, 6)])
def test_plain_egnn_is_ours_with_all_gradients(double, peer, edge_dim, out_channels):
    ours, signals, rest = egnn(edge_dim, out_channels)
    other = peer(ours)
    mine, theirs = ours(*signals, *rest), other(*signals, *rest)
    for a, b in zip(theirs, mine, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert float((theirs[1] - signals[1]).detach().abs().max()) > 0.01  # nodes do move

    own, update = ours.edges, ours.update
    pairs = {
        "x": (signals[0], signals[0]),
        "pos": (signals[1], signals[1]),
        "second": (own.second.weight, other.edge[2].weight),
        "coord": (own.coord.weight, other.coord[0].weight),
        "coord_last": (own.coord_last.weight, other.coord[2].weight),
        "first bias": (own.target.bias, other.edge[0].bias),
        "node bias": (update.first.bias, other.node[0].bias),
        "distance": (own.distance, other.edge[0].weight),
        "target": (own.target.weight, other.edge[0].weight),
        "source": (own.source.weight, other.edge[0].weight),
    }
    found = dict(zip(pairs, gradients(theirs, [b for _, b in pairs.values()]), strict=True))
    expected = dict(zip(pairs, gradients(mine, [a for a, _ in pairs.values()]), strict=True))
    first = found["target"]
    found |= {"target": first[:, :4].t(), "source": first[:, 4:8].t(), "distance": first[:, 8]}
    for name in pairs:
        torch.testing.assert_close(
            found[name], expected[name].view_as(found[name]), rtol=1e-10, atol=1e-12, msg=name
        )


def test_plain_penguin_is_ours_with_all_gradients(double):
    ours = PenguinConv(4, 4, 8)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
    _, signals, rest = egnn(0, 4)
    plain = PlainPenguin(ours)
    pairs = {
        "logit": (ours.estimator.logit, plain.logit),
        "free second": (ours.free.edges.second.weight, plain.edge[2].weight),
        "free first bias": (ours.free.edges.target.bias[0], plain.edge[0].bias),
        "free move bias": (ours.free.move.last.bias[0], plain.move[2].bias),
        "free node bias": (ours.free.update.first.bias[0], plain.node[0].bias),
        "second": (ours.equivariant.edges.second.weight, plain.equal.edge[2].weight),
    }
    for name, (a, b) in pairs.items():
        assert torch.equal(a, b), name
    mine, theirs = ours(*signals, *rest), plain(*signals, *rest)
    for a, b in zip(theirs, mine, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    weights = [pairs[name][0] for name in ("logit", "free second", "second")]
    others = [pairs[name][1] for name in ("logit", "free second", "second")]
    found, expected = gradients(theirs, [*signals, *others]), gradients(mine, [*signals, *weights])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_reversed_edges_are_another_layer(double):
    ours, signals, (edge_index,) = egnn(0, 4)
    reversed_ = PlainEGNN(ours)(*signals, edge_index.flip(0))
    assert float((reversed_[0] - ours(*signals, edge_index)[0]).detach().abs().max()) > 0.1


@pytest.mark.parametrize("peer", [DenseClusterLinear, NaiveClusterLinear])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_cluster_maps_are_ours_with_gradients(double, peer, patch):
    partition = Partition.grid(4, 4, patch)
    ours = OrbitLinear(3, 5, ClusterGroup(partition))
    with torch.no_grad():
        ours.bias.normal_()
    other, x = peer(ours, partition), torch.randn(2, 16, 3, requires_grad=True)
    torch.testing.assert_close(other(x), ours(x), rtol=0, atol=1e-12)
    found, expected = (gradients([f(x)], [x, f.bias]) for f in (other, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_stacked_operations_are_ours_with_all_gradients(double, padded):
    sizes = torch.tensor([3, 1, 5, 3, 2])
    subgraphs = Subgraphs.from_sizes(sizes)
    ours = EquivariantTensorLinear(2, 2, 3, 4)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    other = StackedPairs(ours, sizes, padded=padded)
    x = torch.randn(subgraphs.num_pairs, 3, requires_grad=True)
    mine, theirs = ours(x, subgraphs), other(x)
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-12)
    names = ("bias", "loop_bias")
    found = gradients([theirs], [x, *(other.get_parameter(name) for name in names)])
    (by_x, *by_bias) = gradients([mine], [x, *(ours.get_parameter(name) for name in names)])
    for a, b in zip(found, [by_x, *(g[0] for g in by_bias)], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
