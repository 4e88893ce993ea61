"""What PyG's users try, and what the page on conventions says of it."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.explain import Explainer, GNNExplainer

import gsym

EDGES = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])


@pytest.mark.parametrize("layer", [gsym.nn.EGNNConv, gsym.nn.PenguinConv])
def test_edges_without_features(layer):
    conv, x, pos = layer(3, 3), torch.randn(4, 3), torch.randn(4, 3)
    for found, known in zip(
        conv(x, pos, EDGES, edge_attr=torch.zeros(4, 0)), conv(x, pos, EDGES), strict=True
    ):
        assert torch.equal(found, known)
    with pytest.raises(ValueError, match="edge_attr was given to a layer without"):
        conv(x, pos, EDGES, edge_attr=torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"each of 4 edges, \[4, 0\].*got \[99, 0\]"):
        conv(x, pos, EDGES, edge_attr=torch.zeros(99, 0))
    with pytest.raises(TypeError, match=r"edge_attr must be a tensor .*got list"):
        conv(x, pos, EDGES, edge_attr=[[], [], [], []])


def test_what_is_refused():
    group = gsym.ClusterGroup(gsym.Partition.from_labels([0, 0, 1, 1]))
    for lazy in (gsym.nn.GNetConv, gsym.nn.OrbitLinear, lambda i, o, _: gsym.nn.EGNNConv(i, o)):
        with pytest.raises(ValueError, match=r"in_channels must be at least 1.*got -1"):
            lazy(-1, 3, group)
    conv = gsym.nn.GNetConv(3, 3, group, propagate="adjacency")
    with pytest.raises(TypeError, match=r"x must be a tensor.*got tuple"):
        conv((torch.randn(4, 3), torch.randn(4, 3)), EDGES)


@pytest.mark.parametrize("edges", [None, "object"])
def test_explanations(edges):
    group = gsym.ClusterGroup(gsym.Partition.from_labels([0, 0, 1, 1]))
    explain = Explainer(
        gsym.nn.GNetConv(3, 3, group, propagate="adjacency"),
        GNNExplainer(epochs=2),
        explanation_type="model",
        node_mask_type="attributes",
        edge_mask_type=edges,
        model_config={"mode": "regression", "task_level": "node", "return_type": "raw"},
    )
    x = torch.randn(4, 3)
    if edges is None:
        assert explain(x, EDGES).node_mask.shape == (4, 3)
    else:
        with pytest.raises(ValueError, match="edges are used via message passing"):
            explain(x, EDGES)
