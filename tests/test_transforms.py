"""Labels of clusters and orbits, and what they make of an unmodified network."""

import networkx as nx
import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import GCNConv, GINConv, GINEConv

from gsym import ClusterGroup, Partition, PermutationGroup, automorphisms
from gsym.check import assert_equivariant, equivariance_error
from gsym.errors import GraphError, GroupError, PartitionError
from gsym.transforms import AddOrbits, AddPartition


def both_ways(graph):
    edges = torch.tensor(list(nx.convert_node_labels_to_integers(graph).edges)).t()
    return torch.cat([edges, edges.flip(0)], 1)


CYCLE = both_ways(nx.cycle_graph(6))
CLUSTERS = Partition.from_labels([0, 1, 0, 1, 1, 0])
BIPARTITE = (CLUSTERS.labels[:, None] != CLUSTERS.labels).nonzero().t()
# The sides change places, which the graph allows and the clusters do not.
EXCHANGE = PermutationGroup.from_cycles(6, [(0, 1), (2, 3), (4, 5)])
TURN = PermutationGroup.from_cycles(6, [(0, 1, 2, 3, 4, 5)])
THREE_CYCLES = PermutationGroup.from_cycles(6, [(0, 2, 5)], [(1, 3, 4)])


def perceptron(channels):
    return nn.Sequential(nn.Linear(channels, 8), nn.Tanh(), nn.Linear(8, 8))


class Labelled(nn.Module):
    """A network of PyG that knows nothing of groups, its input joined by embedded labels."""

    def __init__(self, kind, node_labels, edge_labels=0):
        super().__init__()
        torch.manual_seed(0)
        self.node = nn.Embedding(node_labels, 4)
        self.edge = nn.Embedding(edge_labels, 8) if edge_labels else None
        if kind == "gcn":
            self.convs = nn.ModuleList([GCNConv(6, 8), GCNConv(8, 8)])
        elif kind == "gin":
            self.convs = nn.ModuleList([GINConv(perceptron(6)), GINConv(perceptron(8))])
        else:
            self.convs = nn.ModuleList(
                [GINEConv(perceptron(6), edge_dim=8), GINEConv(perceptron(8), edge_dim=8)]
            )
        self.double()

    def forward(self, x, node_label, edge_index, edge_label=None):
        labels = self.node(node_label).expand(*x.shape[:-1], 4)
        x = torch.cat([x, labels], -1)
        more = () if edge_label is None else (self.edge(edge_label),)
        for conv in self.convs:
            x = conv(x, edge_index, *more).tanh()
        return x


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["gcn", "gin"])
class TestClusters:
    """The graph stays where it is; the signal moves."""

    def net(self, kind, partition):
        data = AddPartition(partition)(Data(edge_index=BIPARTITE, num_nodes=6))
        model = Labelled(kind, partition.num_clusters)
        return lambda x: model(x, data.cluster, data.edge_index)

    def test_commutes_within_clusters(self, kind, x):
        group = ClusterGroup(CLUSTERS)
        assert group.preserves(BIPARTITE)
        net = self.net(kind, CLUSTERS)
        assert_equivariant(net, group, x)
        assert all(group.contains(perm) for perm in THREE_CYCLES.generators)
        assert_equivariant(net, THREE_CYCLES, x)

    def test_moves_under_a_permutation_outside_the_group(self, kind, x):
        assert EXCHANGE.preserves(BIPARTITE)
        assert equivariance_error(self.net(kind, CLUSTERS), EXCHANGE, x) > 0.02

    def test_without_labels_it_commutes_with_the_exchange(self, kind, x):
        """A control: it is the labels that break the symmetry."""
        assert_equivariant(self.net(kind, Partition.single(6)), EXCHANGE, x)

    def test_a_graph_that_the_group_breaks_breaks_the_network(self, kind, x):
        group = ClusterGroup(CLUSTERS)
        assert not group.preserves(CYCLE)
        data = AddPartition(CLUSTERS)(Data(edge_index=CYCLE, num_nodes=6))
        model = Labelled(kind, 2)
        error = equivariance_error(lambda x: model(x, data.cluster, data.edge_index), group, x)
        assert error > 0.02

    def test_relabelling_graph_signal_and_labels_together_is_no_symmetry(self, kind, x):
        """It holds for any permutation, in the group or not, so it says nothing about the group."""
        perm = torch.tensor([1, 2, 0, 5, 3, 4])
        model = Labelled(kind, 2)
        moved_x, moved_labels = torch.empty_like(x), torch.empty_like(CLUSTERS.labels)
        moved_x[perm], moved_labels[perm] = x, CLUSTERS.labels
        assert not ClusterGroup(CLUSTERS).contains(perm)
        y = model(x, CLUSTERS.labels, CYCLE)
        torch.testing.assert_close(model(moved_x, moved_labels, perm[CYCLE])[perm], y)


class TestOrbits:
    def test_edge_orbits_tell_the_two_ways_round(self, x):
        """Turning preserves the labels; a reflection preserves the graph and swaps two of them."""
        data = AddOrbits(TURN)(Data(edge_index=CYCLE, num_nodes=6))
        model = Labelled("gine", 1, 2)
        assert data.node_orbit.tolist() == [0] * 6
        assert sorted(data.edge_orbit.bincount().tolist()) == [6, 6]
        reflect = PermutationGroup.from_cycles(6, [(1, 5), (2, 4)])
        two_steps = PermutationGroup.from_cycles(6, [(0, 2, 4), (1, 3, 5)])

        def net(x):
            return model(x, data.node_orbit, data.edge_index, data.edge_orbit)

        def blind(x):
            return model(x, data.node_orbit, data.edge_index, torch.zeros_like(data.edge_orbit))

        assert TURN.preserves(CYCLE)
        assert reflect.preserves(CYCLE)
        assert_equivariant(net, TURN, x)
        assert_equivariant(net, two_steps, x)
        assert equivariance_error(net, reflect, x) > 0.02
        assert_equivariant(blind, reflect, x)

    def test_the_symmetries_of_the_graph_itself(self):
        edges = both_ways(nx.balanced_tree(3, 2))
        group = automorphisms(edges, 13, time_budget=60)
        data = AddOrbits(group)(Data(edge_index=edges, num_nodes=13))
        assert data.node_orbit.tolist() == [0] + [1] * 3 + [2] * 9
        assert data.edge_orbit.unique().numel() == 4
        model = Labelled("gine", 3, 4)
        x = torch.randn(13, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

        def net(x):
            return model(x, data.node_orbit, data.edge_index, data.edge_orbit)

        assert_equivariant(net, group, x)
        assert equivariance_error(net, PermutationGroup.from_cycles(13, [(1, 2)]), x) > 0.02

    def test_labels_are_those_of_the_group(self):
        group = ClusterGroup(CLUSTERS)
        data = AddOrbits(group)(Data(edge_index=BIPARTITE, num_nodes=6))
        assert torch.equal(data.node_orbit, group.node_orbits().index)
        assert torch.equal(data.edge_orbit, group.edge_orbits(BIPARTITE).index)
        assert data.is_node_attr("node_orbit")
        assert data.is_edge_attr("edge_orbit")


def test_batching_does_not_shift_the_labels():
    first = Data(edge_index=BIPARTITE, x=torch.zeros(6, 1))
    second = Data(edge_index=CYCLE, x=torch.zeros(6, 1))
    add = [AddPartition(CLUSTERS), AddOrbits(TURN)]
    for transform in add:
        first, second = transform(first), transform(second)
    batch = Batch.from_data_list([first, second])
    for name in ("cluster", "node_orbit", "edge_orbit"):
        assert torch.equal(batch[name], torch.cat([first[name], second[name]])), name
    assert batch.edge_index.max() == 11
    again = batch.to_data_list()
    assert torch.equal(again[1].edge_orbit, second.edge_orbit)
    # A control: PyG does shift what is called an index.
    first.cluster_index, second.cluster_index = first.cluster, second.cluster
    assert Batch.from_data_list([first, second]).cluster_index.max() == 7


def test_the_data_that_came_is_left_alone():
    data = Data(edge_index=CYCLE, num_nodes=6)
    AddOrbits(TURN)(AddPartition(CLUSTERS)(data))
    assert set(data.keys()) == {"edge_index", "num_nodes"}


class TestMethod:
    def test_partitions_each_graph(self, monkeypatch):
        calls = []

        def coarsen(edge_index, num_nodes, edge_weight=None, **options):
            calls.append((edge_index, num_nodes, edge_weight, options))
            return {2: CLUSTERS}

        monkeypatch.setattr("gsym.transforms.coarsen", coarsen)
        weight = torch.rand(CYCLE.size(1), generator=torch.Generator().manual_seed(0))
        data = Data(edge_index=CYCLE, edge_weight=weight, num_nodes=6)
        transform = AddPartition(method="spectral", k=2, seed=3)
        assert torch.equal(transform(data).cluster, CLUSTERS.labels)
        assert repr(transform) == "AddPartition(method='spectral', k=2)"
        ((edges, n, given, options),) = calls
        assert torch.equal(edges, CYCLE)
        assert n == 6
        assert torch.equal(given, weight)
        assert options == {"method": "spectral", "levels": [2], "seed": 3}

    def test_with_the_real_methods(self):
        two = both_ways(nx.barbell_graph(5, 0))
        data = AddPartition(method="spectral", k=2)(Data(edge_index=two, num_nodes=10))
        assert data.cluster.tolist() in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)
        # Not a power of two: a family has it only where it is asked for.
        data = AddPartition(method="spectral", k=5)(Data(edge_index=two, num_nodes=10))
        assert data.cluster.unique().numel() == 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AddPartition(), ValueError, "either a partition or method="),
        (lambda: AddPartition(CLUSTERS, method="ward", k=2), ValueError, "either a partition"),
        (lambda: AddPartition(method="ward"), ValueError, "needs k="),
        (lambda: AddPartition(CLUSTERS, k=2), ValueError, "needs method="),
        (lambda: AddPartition(CLUSTERS, seed=1), ValueError, "seed would be passed"),
        (lambda: AddPartition([0, 0, 1]), TypeError, "expected a Partition; got list"),
        (lambda: AddOrbits(CLUSTERS), TypeError, "PermutationGroup; got Partition"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("transform", [AddPartition(CLUSTERS), AddOrbits(TURN)], ids=repr)
def test_bad_data(transform):
    with pytest.raises((PartitionError, GroupError), match="6 nodes but the graph has 7"):
        transform(Data(edge_index=CYCLE, num_nodes=7))
    with pytest.raises(TypeError, match="Data; got HeteroData"):
        transform(HeteroData())
    with pytest.raises(TypeError, match="Data; got dict"):
        transform({"edge_index": CYCLE})


def test_no_edges():
    with pytest.raises(GraphError, match="no edge_index"):
        AddOrbits(TURN)(Data(num_nodes=6))
    with pytest.raises(GraphError, match=r"lie in 0\.\.5"):
        AddOrbits(TURN)(Data(edge_index=CYCLE + 1, num_nodes=6))
    assert AddPartition(CLUSTERS)(Data(num_nodes=6)).cluster.tolist() == CLUSTERS.labels.tolist()
