"""What is measured: every primitive and layer, each beside the same map in other code."""

from __future__ import annotations

from gsym_bench.kernels import layers, primitives
from gsym_bench.kernels.groups import GROUPS
from gsym_bench.kernels.work import Case, zipf_index


def _sixteenth(n: int) -> int:
    return max(n // 16, 1)


def _sixteen(n: int) -> int:
    return 16


CASES = {
    "segment_sum": Case(
        "segment_sum: sums of n sorted rows by k segments",
        primitives.reduction("sum"),
        3,
        _sixteenth,
    ),
    "segment_sum, Zipf": Case(
        "segment_sum: segment i is about 1/i as long as the first",
        primitives.reduction("sum", zipf_index),
        3,
    ),
    "segment_mean": Case(
        "segment_mean: means of n sorted rows by k segments",
        primitives.reduction("mean"),
        3,
        _sixteenth,
    ),
    "segment_max": Case(
        "segment_max: maxima of n sorted rows by k segments",
        primitives.reduction("max"),
        5,
        _sixteenth,
    ),
    "segment_gather": Case(
        "segment_gather: every one of n rows reads that of its segment",
        primitives.segment_gather,
        3,
        _sixteenth,
    ),
    "gather_segment_sum": Case(
        "gather_segment_sum: at most n entries of a sparse k x k matrix times k rows",
        primitives.gather_segment_sum,
        4,
        _sixteenth,
    ),
    "indexed_linear": Case(
        "indexed_linear: n sorted rows times k matrices", primitives.indexed_linear, 5, _sixteen
    ),
    "grouped_linear": Case(
        "grouped_linear: n rows in k equal runs times k matrices",
        primitives.grouped_linear,
        4,
        _sixteen,
    ),
    "row_mlp": Case("row_mlp: two maps of n rows, SiLU between", primitives.row_mlp, 6, _sixteen),
    "linear_pair": Case("linear_pair: two maps of n rows", primitives.linear_pair, 4, _sixteen),
    "permute_rows": Case(
        "permute_rows: n rows in another order", primitives.permute_rows, 3, _sixteen
    ),
    "edge_mlp_sum": Case(
        "edge_mlp_sum: messages and moves of n edges between k nodes",
        primitives.edge_mlp_sum,
        14,
        _sixteenth,
    ),
    "EGNNConv": Case("EGNNConv: n edges between k nodes", layers.egnn_conv, 16, _sixteenth),
    "EGNNConv in plain torch": Case(
        "EGNNConv without a compiler: n edges between k nodes",
        layers.in_torch(layers.egnn_conv),
        16,
    ),
    "EGNNConv, n-body": Case("EGNNConv: a batch of complete graphs", layers.n_body(1), 16),
    "EGNN, n-body": Case("EGNN of four layers: a batch of complete graphs", layers.n_body(4), 64),
    "PenguinConv": Case(
        "PenguinConv: n edges between k nodes", layers.penguin_conv, 24, _sixteenth
    ),
    "OrbitLinear": Case(
        "OrbitLinear (cluster_linear): n nodes in k clusters", layers.orbit_linear, 5, _sixteen
    ),
    "OrbitLinear, levels": Case(
        "OrbitLinear of three levels: n nodes, k clusters at the finest", layers.levels, 8
    ),
    "OrbitLinear, signs": Case(
        "OrbitLinear with signs on channels: n nodes in k clusters that change places in pairs",
        layers.signed_linear,
        5,
    ),
    "GNetConv": Case(
        "GNetConv: n edges between k nodes in 16 clusters", layers.gnet_conv, 4, _sixteenth
    ),
    "EquivariantTensorLinear": Case(
        "EquivariantTensorLinear(2, 2): n pairs of k equal subgraphs",
        layers.pairs(layers.equal_sizes),
        40,
    ),
    "EquivariantTensorLinear, ego-networks": Case(
        "EquivariantTensorLinear(2, 2): n pairs of k subgraphs of 4 to 40 nodes",
        layers.pairs(layers.ego_sizes),
        40,
    ),
    **{
        f"OrbitLinear, {name}": Case(
            f"OrbitLinear of a general group, {name}: n nodes with k pair orbits",
            layers.general(name),
            1,
            threads=1,  # what is small waits for a second one longer than that saves
        )
        for name in GROUPS
    },
    "OrbitLinear, dense": Case("OrbitLinear against its materialised weight", layers.dense, 1),
    "GNet, dense": Case(
        "GNet 1 -> channels -> 1 against materialised weights", layers.dense_net, 1
    ),
}
