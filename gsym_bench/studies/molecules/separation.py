"""Which hard pairs an untrained network tells apart, and which theory says it must or cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import networkx as nx
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphNorm

from gsym.transforms import AddSubgraphKind, EgoSubgraphs
from gsym_bench.studies.molecules.models import models
from gsym_bench.studies.molecules.pairs import as_data, pair_refinement, refinement

WIDTH, OUTPUTS, COPIES = 8, 16, 2
MANY = 64  # kinds of ego-networks: more than any family has
# A pair counts as told apart where it differs by this many times what rounding makes of copies.
FAR, FLOOR = 1000.0, 1e-10
# The maps of order 2 on a whole graph and message passing are bounded by 1-WL; subgraphs around
# single nodes by 2-FWL, unless weights are chosen by isomorphism.
BOUNDED_BY_1WL = ("GIN", "order 2, whole graph")
UNBOUNDED = "SPEN by automorphism"


@dataclass(frozen=True)
class Separation:
    """What came out of one family with one network and one draw of its weights.

    Attributes:
        separated: Which pairs are told apart, in the order of `itertools.combinations`.
        distances: Relative distance of every pair.
        noise: Largest relative distance of relabelled copies of one graph.
    """

    separated: tuple[bool, ...]
    distances: tuple[float, ...]
    noise: float


def names() -> dict[str, tuple[str, int]]:
    """Model and number of hops by name; no labels are there to colour."""
    found = {}
    for name in models({"size": 1, "automorphism": 1}):
        if name == "SPEN, labels coloured":
            continue
        if name in BOUNDED_BY_1WL:
            found[name] = name, 1
        else:
            for hops in (1, 2):
                found[f"{name}, {hops} hop{'s' * (hops > 1)}"] = name, hops
    return found


def measure(graphs: Sequence[nx.Graph], name: str, seed: int) -> Separation:
    """Draw weights in float64 and compare the outputs of all graphs of a family.

    Every graph comes in relabelled copies as well, all in one batch.

    Args:
        graphs: The family.
        name: One of `names`.
        seed: Of weights and relabellings.
    """
    model, hops = names()[name]
    torch.manual_seed(seed)
    data = []
    for graph in graphs:
        n = graph.number_of_nodes()
        data += [as_data(graph)] + [as_data(graph, torch.randperm(n)) for _ in range(COPIES)]
    counts = {"size": 1, "automorphism": 1}
    by = model.removeprefix("SPEN by ")
    if by in counts:
        data = with_kinds(data, hops, by)
        counts[by] = 1 + max(int(graph[f"{by}_kind"].max()) for graph in data)
    else:
        data = [EgoSubgraphs(hops)(graph) for graph in data]
    batch = Batch.from_data_list(data)
    net = models(counts)[model](1, OUTPUTS, WIDTH).double().eval()
    _draw(net)
    with torch.no_grad():
        out = net(batch, net.prepare(batch)).view(len(graphs), 1 + COPIES, OUTPUTS)
    scale = out.abs().max()
    noise = float((out - out[:, :1]).abs().max() / scale)
    apart = [
        float((out[a, 0] - out[b, 0]).abs().max() / scale)
        for a, b in combinations(range(len(graphs)), 2)
    ]
    threshold = max(FAR * noise, FLOOR)
    return Separation(tuple(d > threshold for d in apart), tuple(apart), noise)


def with_kinds(graphs: Sequence[Data], hops: int, by: str) -> list[Data]:
    """The graphs with their ego-networks and the kinds of these, all that there are."""
    data = [EgoSubgraphs(hops)(graph) for graph in graphs]
    kinds = AddSubgraphKind(by, num_kinds=MANY).fit(data)
    for graph in data:
        graph[f"{by}_kind"] = kinds(graph).sub_kind
    return data


def theory(graphs: Sequence[nx.Graph], name: str) -> list[str]:
    """What theory says of every pair: ``"must"`` be told apart, ``"cannot"``, or nothing.

    Message passing and the maps of order 2 on the whole graph cannot tell apart what colour
    refinement does not. Networks on ego-networks cannot where its folklore form on pairs does not:
    whatever they hold of a subgraph belongs to three nodes, its root and a pair. With weights by
    isomorphism they must, where the graphs have other ego-networks; the other ones must where
    the numbers of nodes and edges of these already differ.
    """
    model, hops = names()[name]
    bound = refinement(graphs) if model in BOUNDED_BY_1WL else pair_refinement(graphs)
    plain = [as_data(graph) for graph in graphs]
    seen: list[Any]
    if model == UNBOUNDED:
        kinds = with_kinds(plain, hops, "automorphism")
        seen = [sorted(d.automorphism_kind.tolist()) for d in kinds]
    else:
        seen = [_counts(EgoSubgraphs(hops)(d)) for d in plain]
    said = []
    for a, b in combinations(range(len(graphs)), 2):
        must = model not in BOUNDED_BY_1WL and seen[a] != seen[b]
        cannot = model != UNBOUNDED and bound[a] == bound[b]
        said.append("must" if must else "cannot" if cannot else "")
    return said


def _counts(data: Data) -> list[list[int]]:
    """Nodes and edges of all ego-networks of a graph."""
    size = torch.bincount(data.n_sub_batch, minlength=data.num_nodes)
    edges = torch.bincount(data.e_sub_batch, minlength=data.num_nodes)
    return sorted(torch.stack([size, edges], dim=1).tolist())


def _draw(net: nn.Module) -> None:
    """Take normalisations out of their first state, which erases features equal at all nodes."""
    for part in net.modules():
        if isinstance(part, GraphNorm | nn.BatchNorm1d):
            for parameter in part.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)
