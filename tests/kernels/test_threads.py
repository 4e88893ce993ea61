"""The same bits at any number of threads, operator by operator, or equal to rounding.

Sizes are large enough to be split among threads. What docs/pages/conventions.md promises is named
here: sums by segment have the same bits; products that a library splits as it likes, and sums over
all rows of which every thread makes a part, are equal to rounding.
"""

import pytest
import torch
from helpers import make_clusters
from kernels.test_ops import primitive

from gsym import kernels
from gsym.kernels import Segments, Tiles

N, E, C, H = 3_000, 40_000, 16, 32

SUMS = ("segment_sum", "segment_mean", "segment_max", "segment_gather", "gather_segment_sum")
# What has the same bits at any number of threads: the value, or gradients by their place.
ALL = "everything"
PROMISED = {
    **{(op, backend): ALL for op in (*SUMS, "permute_rows") for backend in ("native", "cpp")},
    ("indexed_linear", "cpp"): ALL,
    ("row_mlp", "cpp"): ("value", 0),
    ("linear_pair", "cpp"): ("value", 0),
    ("edge_mlp_sum", "cpp"): ("value", 0, 1, 4),  # receiver, sender and coordinates
}


def make(op):
    """Arguments of a primitive in order, and by name those that are differentiated."""
    torch.manual_seed(0)

    def leaf(*shape):
        return (torch.randn(*shape) / 4).requires_grad_()

    def index(rows, count):
        return Segments(torch.randint(count, (rows,)), count)

    op, _, variant = op.partition(" ")
    few, graph, source = index(E, 5), index(E, N), index(E, N)
    x = leaf(2, E, C)
    args = {
        "segment_sum": (x, few if variant else graph),
        "segment_mean": (x, graph),
        "segment_max": (x, graph),
        "segment_gather": (leaf(2, N, C), graph),
        "gather_segment_sum": (leaf(2, N, C), source, graph, leaf(E)),
        "indexed_linear": (x, leaf(5, C, H), Tiles(few, C, H), leaf(2, 5, H)),
        "grouped_linear": (leaf(2, 8, N, C), leaf(8, C, H), leaf(8, H)),
        "permute_rows": (x, torch.arange(E).flip(0), torch.arange(E).flip(0)),
        "row_mlp": (x, leaf(1, C, H), leaf(1, H), leaf(1, H, C), leaf(1, C)),
        "linear_pair": (x, leaf(1, C, H), leaf(1, H), leaf(1, C, H)),
    }
    if op == "cluster_linear":
        labels = torch.arange(E) % 8 if variant else few.index
        k = int(labels.max()) + 1
        clusters = make_clusters(labels, k, (C, H), runs=bool(variant))
        return op, (x, leaf(k, C, H), leaf(k * C, k * H), leaf(k, H), clusters)
    return op, args[op]


def edges():
    torch.manual_seed(0)

    def leaf(*shape):
        return (torch.randn(*shape) / 4).requires_grad_()

    target = Segments(torch.randint(N, (E,)).sort().values, N)
    leaves = [leaf(2, N, H), leaf(2, N, H), leaf(H, H), leaf(H), leaf(2, N, 3), leaf(H)]
    leaves += [leaf(H, H), leaf(H), leaf(1, H)]
    source = Segments(torch.randint(N, (E,)), N)

    def function(backend):
        receiver, sender, weight, bias, pos, distance, *coord = leaves
        ends = source, target
        total, moved = kernels.edge_mlp_sum(
            *(receiver, sender, *ends, weight, bias),
            **{"pos": pos, "distance": distance, "coord": tuple(coord), "backend": backend},
        )
        return torch.cat([total, moved], dim=-1)

    return function, leaves


OPS = (
    *("segment_sum", "segment_sum few", "segment_mean", "segment_max", "segment_gather"),
    *("gather_segment_sum", "indexed_linear", "grouped_linear", "cluster_linear tiles"),
    *("cluster_linear runs", "permute_rows", "row_mlp", "linear_pair", "edge_mlp_sum"),
)


@pytest.mark.parametrize("backend", ["native", "cpp"])
@pytest.mark.parametrize("op", OPS)
def test_threads(op, backend):
    if op == "edge_mlp_sum":
        function, leaves = edges()
    else:
        name, args = make(op)
        leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]

        def function(backend):
            return primitive(kernels, name)(*args, backend=backend)

    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            y = function(backend)
            outer = torch.cos(torch.arange(y.numel()) % 1000).view(y.shape)
            runs.append([y.detach(), *torch.autograd.grad(y, leaves, outer)])
    finally:
        torch.set_num_threads(before)
    promised = PROMISED.get((op.partition(" ")[0], backend), ())
    for other in runs[1:]:
        for i, (a, b) in enumerate(zip(runs[0], other, strict=True)):
            place = "value" if i == 0 else i - 1
            if promised == ALL or place in promised:
                assert torch.equal(a, b), place
            else:
                scale = float(a.abs().max())
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * scale)
