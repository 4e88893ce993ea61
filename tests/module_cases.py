"""Every public layer in its variants, small: what :func:`gsym.check.check_module` is run on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.nn import (
    EGNN,
    SPEN,
    EGNNConv,
    EgoTables,
    EquivariantTensorLinear,
    GNet,
    GNetConv,
    OrbitEmbedding,
    OrbitLinear,
    Penguin,
    PenguinConv,
    SubgraphConv,
    Subgraphs,
)
from gsym.transforms import EgoSubgraphs
from gsym_bench.kernels.groups import cyclic, mirror

N = 7
SORTED = ClusterGroup(Partition([0, 0, 1, 1, 1, 2, 2]))
UNSORTED = ClusterGroup(Partition([1, 0, 2, 1, 2, 2, 3]))
TURNED = ClusterGroup(
    Partition([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
GENERAL = PermutationGroup.from_cycles(N, [(0, 1, 2)], [(3, 4)])
FLIPPED = ClusterGroup(
    Partition([0, 1, 0, 1, 2, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1)])
)
# Large enough for the blocks of an adapted basis, with the map to them as a matrix and by rows.
TORUS, HALVES = cyclic(4, 4), mirror(16, 2)
POSE = Representation.from_signs(FLIPPED, [[-1, 1, 1]])
# A chain of three, the finest of them turned by a 3-cycle of its clusters.
CHAIN = [TURNED, Partition([0, 0, 0, 0, 0, 0, 1]), Partition.single(N)]
# A third of a turn, about an axis and in the plane.
C, S = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
PLANE = Representation.from_matrices(TURNED, [[[C, -S], [S, C]]])
TURNING = PLANE + Representation.trivial(TURNED, 1)
# A self-loop, two edges of one pair and a node that hears nobody.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 1, 1, 5, 0], [1, 2, 0, 4, 4, 0, 0, 3, 5]])
OTHER_EDGES = N - 1 - EDGES
COARSE = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 3]])


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = _numbers(2, N, 3)
POS = _numbers(2, N, 3, seed=1)
SPEED = _numbers(2, N, 3, seed=2)
ATTR = _numbers(EDGES.size(1), 2, seed=3)
WEIGHT = _numbers(EDGES.size(1), seed=4).abs()
SCORE = torch.tensor([0.0, 0.2, 0.4, 0.5, 0.7, 0.9, 1.0])[:, None].expand(N, 1).contiguous()


class MovingConv(EGNNConv):
    """With the velocities as one more positional argument."""

    def forward(self, x, pos, edge_index, edge_attr, velocity):
        return super().forward(x, pos, edge_index, edge_attr, velocity=velocity)


class ScoredConv(PenguinConv):
    """With the score as one more positional argument."""

    def forward(self, x, pos, edge_index, alpha):
        return super().forward(x, pos, edge_index, alpha=alpha)


SUBGRAPHS = Subgraphs.from_batch(
    torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]), 4, colour=torch.tensor([0, 1, 1, 0, 0, 0, 1, 1])
)
EGO = EgoSubgraphs(1)(Data(edge_index=EDGES, num_nodes=N))
TABLES = EgoTables.build(EGO.n_id, EGO.n_sub_batch, N)


class Scaling(OrbitEmbedding):
    """Times the signal."""

    def forward(self, x):
        return x * super().forward()


class OnSubgraphs(EquivariantTensorLinear):
    """Always on the same subgraphs."""

    def forward(self, x):
        return super().forward(x, SUBGRAPHS)


class OnEgoNetworks(SubgraphConv):
    """Always on the same ego-networks."""

    def forward(self, pair, node):
        return super().forward(pair, node, TABLES)


class OnGraph(SPEN):
    """Always on the same graph."""

    def forward(self, x):
        data = EGO.clone()
        data.x = x
        return super().forward(data)


@dataclass(frozen=True)
class Case:
    """A layer and two sets of arguments."""

    layer: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    other_args: tuple[Any, ...] | None


def _linear(*args: Any, **options: Any) -> Case:
    return Case("OrbitLinear", lambda: OrbitLinear(*args, **options), (X,), None)


def _graph(cls: type[nn.Module], *args: Any, weights: bool = False, **options: Any) -> Case:
    more = (WEIGHT,) if weights else ()
    return Case(
        cls.__name__,
        lambda: cls(*args, **options),
        (X, EDGES, *more),
        (X, OTHER_EDGES, *more),
    )


def _space(cls: type[nn.Module], *args: Any, more: tuple[Any, ...] = (), **options: Any) -> Case:
    layer = {"MovingConv": "EGNNConv", "ScoredConv": "PenguinConv"}.get(cls.__name__)
    return Case(
        layer or cls.__name__,
        lambda: cls(*args, **options),
        (X, POS, EDGES, *more),
        (X, POS, OTHER_EDGES, *more),
    )


CASES = {
    "OrbitLinear sorted": _linear(3, 2, SORTED),
    "OrbitLinear unsorted": _linear(3, 2, UNSORTED),
    "OrbitLinear swaps": _linear(3, 2, TURNED),
    "OrbitLinear general": _linear(3, 2, GENERAL),
    "OrbitLinear blocks": Case(
        "OrbitLinear", lambda: OrbitLinear(24, 24, TORUS), (_numbers(2, 16, 24),), None
    ),
    "OrbitLinear blocks by row": Case(
        "OrbitLinear", lambda: OrbitLinear(32, 32, HALVES), (_numbers(2, 16, 32),), None
    ),
    "OrbitLinear S_n": _linear(3, 2),
    "OrbitLinear one channel": Case("OrbitLinear", lambda: OrbitLinear(3, 1, UNSORTED), (X,), None),
    "OrbitLinear low_rank": _linear(3, 2, UNSORTED, mixing="low_rank", rank=2),
    "OrbitLinear quotient": _linear(3, 2, UNSORTED, mixing="quotient", cluster_edge_index=COARSE),
    "OrbitLinear none": _linear(3, 2, SORTED, mixing="none"),
    "OrbitLinear levels": _linear(3, 2, levels=CHAIN),
    "OrbitLinear signs": _linear(
        3, 4, FLIPPED, in_rep=POSE, out_rep=2 * Representation.regular(FLIPPED)
    ),
    "OrbitEmbedding": Case("OrbitEmbedding", lambda: Scaling(3, TURNED), (X,), None),
    "OrbitEmbedding levels": Case(
        "OrbitEmbedding", lambda: Scaling(3, levels=[SORTED, GENERAL]), (X,), None
    ),
    "OrbitLinear matrices": Case(
        "OrbitLinear",
        lambda: OrbitLinear(3, 2, TURNED, in_rep=TURNING, out_rep=PLANE),
        (X,),
        None,
    ),
    "GNetConv none": Case("GNetConv", lambda: GNetConv(3, 2, SORTED, propagate="none"), (X,), None),
    "GNetConv adjacency": _graph(GNetConv, 3, 2, UNSORTED),
    "GNetConv adjacency, weights": _graph(GNetConv, 3, 2, SORTED, weights=True),
    "GNetConv adjacency, S_n": _graph(GNetConv, 3, 2),
    "GNetConv weighted": _graph(GNetConv, 3, 2, TURNED, propagate="weighted"),
    "GNetConv pointwise": _graph(GNetConv, 3, 2, GENERAL, propagate="pointwise"),
    "GNetConv levels": _graph(GNetConv, 3, 2, levels=CHAIN),
    "GNet levels": Case(
        "GNet", lambda: GNet([3, 4, 2], levels=CHAIN, propagate="none"), (X,), None
    ),
    "GNet none": Case("GNet", lambda: GNet([3, 4, 2], SORTED, propagate="none"), (X,), None),
    "GNet signs": _graph(GNet, [3, 4, 3], FLIPPED, in_rep=POSE, out_rep=POSE),
    "GNet adjacency": _graph(GNet, [3, 4, 2], UNSORTED, propagate="adjacency"),
    "EGNNConv": _space(EGNNConv, 3, 3, 8),
    "EGNNConv group, options": _space(
        MovingConv,
        3,
        2,
        8,
        2,
        more=(ATTR, SPEED),
        group=UNSORTED,
        attention=True,
        normalize=True,
        coord_aggr="sum",
        tanh=True,
        clamp=2.0,
        velocity=True,
        extra_vectors=torch.tensor([[0.0, 0.0, 1.0]]),
    ),
    "EGNNConv signs": _space(
        EGNNConv, 3, 3, 8, group=FLIPPED, in_rep=POSE, out_rep=POSE, attention=True
    ),
    "EGNN": _space(EGNN, 3, 2, 8, num_layers=2),
    "EGNN act, fixed": _space(
        EGNN, 3, 2, 8, num_layers=2, group=UNSORTED, act="prelu", update_pos=False
    ),
    "EGNN group, axis": _space(EGNN, 3, 2, 8, num_layers=2, group=SORTED, learn_axis=True, dim=3),
    "PenguinConv number": _space(PenguinConv, 3, 3, 8, alpha=0.3),
    "PenguinConv learned": _space(PenguinConv, 3, 3, 8),
    "PenguinConv node": _space(PenguinConv, 3, 2, 8, alpha="node", group=UNSORTED),
    "PenguinConv signs": _space(
        PenguinConv, 3, 3, 8, group=FLIPPED, in_rep=POSE, out_rep=POSE, pos_rep=POSE
    ),
    "PenguinConv edge": _space(PenguinConv, 3, 3, 8, alpha="edge"),
    "PenguinConv feature": _space(PenguinConv, 3, 3, 8, alpha="feature"),
    "PenguinConv given": _space(ScoredConv, 3, 3, 8, alpha="given", more=(SCORE,)),
    "Penguin": _space(Penguin, 3, 2, 8, num_layers=2),
    **{
        f"EquivariantTensorLinear {a} to {b}": Case(
            "EquivariantTensorLinear",
            lambda a=a, b=b: OnSubgraphs(a, b, 3, 2, num_colours=2),
            (_numbers(2, SUBGRAPHS.num_pairs if a == 2 else SUBGRAPHS.num_nodes, 3),),
            None,
        )
        for a, b in ((2, 2), (2, 1), (1, 2), (1, 1), (2, 0), (1, 0))
    },
    "SubgraphConv": Case(
        "SubgraphConv",
        lambda: OnEgoNetworks(3, 2, 16),  # whole vectors
        (_numbers(2, TABLES.first.numel(), 3), _numbers(2, N, 2, seed=1)),
        None,
    ),
    "SPEN": Case("SPEN", lambda: OnGraph(3, 2, [16, 16, 4], dropout=0.0), (X[0],), None),
    "Penguin node": _space(Penguin, 3, 2, 8, num_layers=2, alpha="node", group=SORTED),
}

# What a layer cannot do: a pattern of its error, by layer and treatment.
REFUSES: dict[tuple[str, str], str] = {}
