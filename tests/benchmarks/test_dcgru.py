"""The traffic model: its formula, its parameter counts, and the published faults it lacks."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import load_golden

from gsym.groups import ClusterGroup, Partition
from gsym_bench.models.dcgru import DiffusionForecaster, DiffusionGRUCell, diffusion_supports

LABELS = [0, 1, 0, 1, 1, 0, 2]
N = len(LABELS)


@pytest.fixture
def group():
    return ClusterGroup(Partition.from_labels(LABELS))


@pytest.fixture
def graph():
    """A random directed graph whose last node has no edge, with its dense adjacency."""
    rng = torch.Generator().manual_seed(0)
    adjacency = torch.rand(N, N, generator=rng, dtype=torch.float64)
    adjacency *= torch.rand(N, N, generator=rng) < 0.5
    adjacency[-1] = adjacency[:, -1] = 0
    edge_index = adjacency.nonzero().T
    return edge_index, adjacency[tuple(edge_index)], adjacency


@pytest.fixture
def supports(graph):
    edge_index, edge_weight, _ = graph
    return diffusion_supports(edge_index, N, edge_weight)


def randomised(module):
    """The module in float64 with every parameter random, zeros and ones included."""
    rng = torch.Generator().manual_seed(1)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / 3)
    return module


def signal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_supports_are_transposed_random_walks(graph, supports):
    _, _, A = graph
    forward, backward = supports
    for i in range(N):
        for j in range(N):
            out, into = A[i].sum(), A[:, i].sum()
            assert forward[j, i] == (A[i, j] / out if out > 0 else 0)
            assert backward[j, i] == (A[j, i] / into if into > 0 else 0)


def test_a_node_without_edges_starts_no_walk(supports):
    for support in supports:
        assert support.isfinite().all()
        assert (support[:, -1] == 0).all()
        torch.testing.assert_close(support[:, :-1].sum(dim=0), torch.ones(N - 1).double())


def test_supports_without_weights_count_edges():
    forward, _ = diffusion_supports(torch.tensor([[0, 0], [1, 2]]), 3)
    torch.testing.assert_close(forward, torch.tensor([[0, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]))


@pytest.mark.parametrize(
    ("edge_index", "weight", "message"),
    [
        ([[0, 1], [1, 3]], None, "nodes 0 to 2, got 0 to 3"),
        ([[0, -1], [1, 2]], None, "nodes 0 to 2, got -1 to 2"),
        ([[0, 1], [1, 2]], [1.0], r"one weight per edge, \[2\], got \[1\]"),
        ([[0, 1], [1, 2]], [1.0, -1.0], "finite and not negative"),
        ([[0, 1], [1, 2]], [1.0, math.nan], "finite and not negative"),
    ],
)
def test_a_bad_graph_is_refused(edge_index, weight, message):
    weight = None if weight is None else torch.tensor(weight)
    with pytest.raises(ValueError, match=message):
        diffusion_supports(torch.tensor(edge_index), 3, weight)


def test_cell_is_the_formula(group, supports):
    cell = randomised(DiffusionGRUCell(2, 4, group))
    x, h = signal(3, N, 2), signal(3, N, 4)
    W_gate, b_gate = cell.gate.weight.T, cell.gate.bias
    W, b = cell.candidate.weight_self, cell.candidate.bias
    expected = torch.empty(3, N, 4, dtype=torch.float64)
    for sample in range(3):
        gates = torch.sigmoid(torch.cat([x[sample], h[sample]], dim=1) @ W_gate + b_gate)
        r, g = gates[:, :4], gates[:, 4:]
        u = torch.cat([x[sample], r * h[sample]], dim=1)
        walked = [u, supports[0] @ u, supports[1] @ u]
        for node, cluster in enumerate(LABELS):
            total = b[cluster].clone()
            for channel in range(6):
                for order in range(3):
                    total += walked[order][node, channel] * W[cluster, 3 * channel + order]
            keep = g[node]
            expected[sample, node] = keep * h[sample, node] + (1 - keep) * torch.tanh(total)
    torch.testing.assert_close(cell(x, h, supports), expected, rtol=0, atol=1e-12)


def test_every_cluster_learns_from_its_own_nodes(group, supports):
    cell = randomised(DiffusionGRUCell(2, 4, group))
    nodes = torch.tensor(LABELS) == 1
    cell(signal(3, N, 2), signal(3, N, 4), supports)[:, nodes].sum().backward()
    for parameter in (cell.candidate.weight_self, cell.candidate.bias):
        moved = parameter.grad.flatten(1).abs().sum(dim=1) > 0
        assert moved.tolist() == [False, True, False]


def test_clusters_do_not_share_storage(group):
    weight = DiffusionGRUCell(2, 4, group).candidate.weight_self
    assert weight.shape == (3, 18, 4)
    assert len({cluster.data_ptr() for cluster in weight}) == 3


@pytest.fixture
def symmetric_supports():
    """A graph that depends on the clusters of its nodes only."""
    labels = torch.tensor(LABELS)
    block = torch.tensor([[0.5, 0.2, 1.0], [0.7, 0.1, 0.0], [0.3, 0.4, 0.0]], dtype=torch.float64)
    edge_index = torch.ones(N, N).fill_diagonal_(0).nonzero().T
    weight = block[labels[edge_index[0]], labels[edge_index[1]]]
    assert ClusterGroup(Partition.from_labels(LABELS)).preserves(edge_index, weight)
    return diffusion_supports(edge_index, N, weight)


def test_forecaster_is_equivariant_under_its_group_and_no_more(group, symmetric_supports):
    model = randomised(DiffusionForecaster(2, 4, 3, group, symmetric_supports))
    x = signal(2, 3, N, 2)
    inside = torch.tensor([5, 3, 0, 4, 1, 2, 6])
    outside = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    torch.testing.assert_close(model(x[:, :, inside]), model(x)[:, :, inside])
    assert (model(x[:, :, outside]) - model(x)[:, :, outside]).abs().max() > 1e-2


def test_forecaster_feeds_back_its_predictions(group, supports):
    model = randomised(DiffusionForecaster(2, 4, 3, group, supports))
    x = signal(5, 3, N, 2)
    h = torch.zeros(5, N, 4, dtype=torch.float64)
    for time in range(3):
        h = model.encoder(x[:, time], h, supports)
    step, expected = torch.zeros(5, N, 1, dtype=torch.float64), []
    for _ in range(3):
        h = model.decoder(step, h, supports)
        step = model.projection(h)
        expected.append(step[..., 0])
    torch.testing.assert_close(model(x), torch.stack(expected, dim=1))


@pytest.mark.parametrize("k", [1, 2, 9])
def test_parameter_counts(k, supports):
    group = ClusterGroup(Partition.from_labels(torch.arange(18) % k))
    model = DiffusionForecaster(2, 64, 3, group, supports)
    assert sum(p.numel() for p in model.parameters()) == 42_369 + (k - 1) * 25_280


def test_supports_stay_out_of_checkpoints(group, supports):
    model = DiffusionForecaster(2, 4, 3, group, supports)
    assert not any("walk" in name for name in model.state_dict())
    assert {name for name, _ in model.named_buffers()} >= {"forward_walk", "backward_walk"}


@pytest.fixture(scope="module")
def golden():
    return {name[2:]: value for name, value in load_golden().items() if name.startswith("H_")}


@pytest.fixture
def golden_supports(golden):
    edge_index = golden["adj"].nonzero().T
    return diffusion_supports(edge_index, 6, golden["adj"][tuple(edge_index)])


def test_golden_supports(golden, golden_supports):
    for ours, name in zip(golden_supports, ("P_fwd", "P_bwd"), strict=True):
        torch.testing.assert_close(ours, golden[name], rtol=0, atol=1e-10)
        assert (ours - golden[f"{name}_reference"]).abs().max() > 1e-2


def test_golden_cell(golden, golden_supports):
    cell = DiffusionGRUCell(2, 4, ClusterGroup(Partition.from_labels(golden["labels"]))).double()
    with torch.no_grad():
        cell.gate.weight.copy_(golden["W_ru"].T)
        cell.gate.bias.copy_(golden["b_ru"])
        cell.candidate.weight_self.copy_(golden["W_c"])
        cell.candidate.bias.copy_(golden["b_c"])
    h_new = cell(golden["x"], golden["h"], golden_supports)
    torch.testing.assert_close(h_new, golden["h_new"], rtol=0, atol=1e-10)
    for fault in ("tied", "global", "reference_tied", "reference_global"):
        assert (h_new - golden[f"h_new_{fault}"]).abs().max() > 1e-2, fault
