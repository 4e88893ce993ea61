"""One tensor in two places of a call: eager, compiled and exported."""

import pytest
import torch
from helpers import define_edges
from torch import nn

from gsym import kernels
from gsym.kernels import Clusters, Segments, reference

N, C = 6, 4
LABELS = {"sorted": [0, 0, 1, 1, 2, 2], "unsorted": [2, 0, 1, 1, 0, 2], "alone": [0] * 6}


class Twice(nn.Module):
    """Calls that are given the same tensor, or the same tables, twice."""

    def __init__(self, op, labels="sorted"):
        super().__init__()
        torch.manual_seed(0)
        self.op = op
        self.index = Segments(torch.tensor(LABELS[labels]), 3 if labels != "alone" else 1)
        self.ends = Segments(torch.arange(N), N)
        self.clusters = Clusters(self.index.index, self.index.num_segments, C, C)
        self.swap = torch.tensor([1, 0, 3, 2, 5, 4])  # its own inverse
        self.square = nn.Parameter(torch.randn(1, C, C))
        self.row = nn.Parameter(torch.randn(C))
        self.weight = nn.Parameter(torch.randn(C, C))
        self.factor = nn.Parameter(torch.randn(N))

    def forward(self, x, module=kernels):
        edges = define_edges if module is reference else module.edge_mlp_sum
        one = self.row[None]
        if self.op == "permute_rows":
            return module.permute_rows(x, self.swap, self.swap)
        if self.op == "row_mlp":
            return module.row_mlp(x, (torch.cat([self.square] * 2, 1), one), (self.square, one), x)
        if self.op == "linear_pair":
            return torch.cat(module.linear_pair(x, self.square, one, self.square), dim=-1)
        if self.op == "gather_segment_sum":
            return module.gather_segment_sum(x, self.ends, self.ends, self.factor)
        if self.op == "cluster_linear":
            k = self.index.num_segments
            own, shared = self.square.expand(k, -1, -1), one.expand(k, -1)
            matrix = self.weight.repeat(k, k)
            return module.cluster_linear(x, own, matrix, shared, self.clusters)
        options = {"pos": x, "distance": self.row, "coord": (self.weight, self.row, one)}
        ends = (self.ends, self.ends)
        parts = edges(x, x, *ends, self.weight, self.row, **options)
        return torch.cat(parts, dim=-1)


OPS = ("permute_rows", "row_mlp", "linear_pair", "gather_segment_sum", "cluster_linear", "edges")
CASES = [(op, "sorted") for op in OPS] + [("cluster_linear", name) for name in LABELS]


@pytest.mark.parametrize(("op", "labels"), CASES)
def test_one_tensor_in_two_places(op, labels):
    layer = Twice(op, labels).double()
    x = torch.randn(2, N, C, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]

    def derived(y):
        first = torch.autograd.grad(
            y.sin().sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return [y, *first]

    expected = derived(layer(x, reference))
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for run in (layer, compiled, torch.export.export(layer, (x.detach(),)).module()):
        found = run(x)
        if run is layer:
            pairs = zip(derived(found), expected, strict=True)
        else:
            grads = torch.autograd.grad(
                found.sin().sum(), x, allow_unused=True, materialize_grads=True
            )
            pairs = zip((found, *grads), expected, strict=False)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    (again,) = torch.autograd.grad(sum(g.square().sum() for g in derived(layer(x))[1:]), x)
    (right,) = torch.autograd.grad(sum(g.square().sum() for g in expected[1:]), x)
    torch.testing.assert_close(again, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", OPS)
def test_strict_export(op):
    layer, x = Twice(op), torch.randn(2, N, C)
    exported = torch.export.export(layer, (x,), strict=True)
    torch.testing.assert_close(exported.module()(x), layer(x))
