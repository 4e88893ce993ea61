"""SubgraphConv and SPEN on the ego-networks of graphs."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from gsym.errors import GraphError, SignalError
from gsym.nn import SPEN, SubgraphConv
from gsym.nn._ego import EgoTables
from gsym.transforms import AddSubgraphKind, EgoSubgraphs


def graph(seed: int, nodes: int = 7, edges: int = 20, channels: int = 2) -> Data:
    random = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, nodes, (2, edges), generator=random)
    return Data(x=torch.randn(nodes, channels, generator=random).double(), edge_index=edge_index)


def relabelled(data: Data, perm: torch.Tensor, seed: int = 0) -> Data:
    """Node i becomes perm[i], and the edges come in another order."""
    x = torch.empty_like(data.x)
    x[perm] = data.x
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.edge_index.size(1), generator=random)
    return Data(x=x, edge_index=perm[data.edge_index][:, order])


def network(colours: str = "none", **options: int) -> SPEN:
    torch.manual_seed(0)
    return SPEN(2, 3, [4, 4, 4], colours=colours, **options).double().eval()


@pytest.mark.parametrize("colours", ["none", "root"])
@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("root", [True, False])
def test_network_is_the_same_on_a_relabelled_graph(colours, hops, root):
    net, ego = network(colours), EgoSubgraphs(hops, include_root=root)
    data = graph(1)
    perm = torch.tensor([3, 0, 1, 2, 6, 4, 5])
    torch.testing.assert_close(
        net(ego(relabelled(data, perm))), net(ego(data)), rtol=1e-10, atol=1e-10
    )


def test_network_tells_a_graph_from_one_with_an_edge_moved():
    net, ego = network(), EgoSubgraphs(1)
    data = graph(1)
    moved = data.clone()
    moved.edge_index = data.edge_index.clone()
    moved.edge_index[0, 0] = (moved.edge_index[0, 0] + 1) % 7
    assert (net(ego(moved)) - net(ego(data))).abs().max() > 1e-4


@pytest.mark.parametrize("root", [True, False])
def test_graphs_in_a_batch_equal_each_alone(root):
    net, ego = network("root"), EgoSubgraphs(1, include_root=root)
    lonely = Data(x=torch.ones(1, 2).double(), edge_index=torch.empty(2, 0).long())
    isolated = graph(5, edges=4)  # some nodes have no neighbour
    graphs = [ego(g) for g in (graph(2), isolated, lonely, graph(3, nodes=9), lonely)]
    alone = torch.cat([net(g) for g in graphs])
    for batch in DataLoader(graphs, batch_size=5):
        torch.testing.assert_close(net(batch), alone, rtol=1e-10, atol=1e-10)


def test_tables_may_be_built_before():
    net, data = network("root"), EgoSubgraphs(1)(graph(2))
    assert torch.equal(net(data, tables=net.tables(data)), net(data))
    with pytest.raises(GraphError, match="EgoSubgraphs"):
        net.tables(graph(2))


def test_layer_commutes_with_relabelling():
    data = EgoSubgraphs(1)(graph(4))
    tables = EgoTables.build(data.n_id, data.n_sub_batch, 7)
    perm = torch.tensor([3, 0, 1, 2, 6, 4, 5])
    moved = EgoSubgraphs(1)(relabelled(graph(4), perm))
    other = EgoTables.build(moved.n_id, moved.n_sub_batch, 7)
    conv = SubgraphConv(2, 3, 4).double()
    pair = torch.randn(tables.first.numel(), 2).double()
    node = torch.randn(7, 3).double()
    # Where every pair went.
    keys = perm[tables.first] * 7 + perm[tables.second]
    place = torch.searchsorted(other.first * 7 + other.second, keys)
    moved_pair, moved_node = torch.empty_like(pair), torch.empty_like(node)
    moved_pair[place], moved_node[perm] = pair, node
    after = conv(moved_pair, moved_node, other)
    before = conv(pair, node, tables)
    torch.testing.assert_close(after[0][place], before[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after[1][perm], before[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("root", [True, False])
def test_layer_without_lifting_equals_the_lifted_one(root, monkeypatch):
    data = EgoSubgraphs(1, include_root=root)(graph(4, nodes=9, edges=14))
    tables = EgoTables.build(data.n_id, data.n_sub_batch, 9)
    assert (torch.bincount(data.n_id, minlength=9) == 0).any() or root
    torch.manual_seed(0)
    pair = torch.randn(tables.first.numel(), 2, dtype=torch.float64, requires_grad=True)
    node = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    for nodes in (0, 3):
        conv = SubgraphConv(2, nodes, 4).double()
        for parameter in conv.parameters():
            torch.nn.init.normal_(parameter)
        leaves = [pair, *([node] if nodes else []), *conv.parameters()]
        results = []
        for commutes in (True, False):
            assert conv._commutes(pair, node if nodes else None, tables)
            if not commutes:
                monkeypatch.setattr(SubgraphConv, "_commutes", lambda *_: False)
            out = conv(pair, node if nodes else None, tables)
            outer = [torch.linspace(1, 2, y.numel()).double().view(y.shape) for y in out]
            results.append([*out, *torch.autograd.grad(out, leaves, outer)])
            monkeypatch.undo()
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


class TestPublishedFaults:
    """Each of the two faults of the published code breaks what the tests above hold."""

    def test_reshaping_channels_into_nodes_is_rejected(self, monkeypatch):
        original = SubgraphConv.forward

        def faulty(self, pair, node, tables):
            pair, node = original(self, pair, node, tables)
            return pair, node.t().reshape(node.shape)  # [n, d, m] read as [-1, d]

        monkeypatch.setattr(SubgraphConv, "forward", faulty)
        with pytest.raises(AssertionError):
            test_network_is_the_same_on_a_relabelled_graph("none", 1, True)

    def test_pairs_that_return_elsewhere_are_rejected(self, monkeypatch):
        original = EgoTables.build.__func__

        def faulty(cls, *args, **options):
            tables = original(cls, *args, **options)
            count = tables.pair.num_segments
            shifted = (tables.pair.index.long() + 1) % count
            object.__setattr__(tables, "pair", type(tables.pair)(shifted, count))
            return tables

        monkeypatch.setattr(EgoTables, "build", classmethod(faulty))
        with pytest.raises(AssertionError):
            test_network_is_the_same_on_a_relabelled_graph("none", 1, True)


def pair_of(first: nx.Graph, second: nx.Graph, hops: int = 1) -> list[Data]:
    found = []
    for g in (first, second):
        edges = torch.tensor(list(nx.convert_node_labels_to_integers(g).edges)).t()
        both = torch.cat([edges, edges.flip(0)], dim=1)
        data = Data(x=torch.ones(g.number_of_nodes(), 2).double(), edge_index=both)
        found.append(EgoSubgraphs(hops)(data))
    return found


def shrikhande() -> nx.Graph:
    steps = [(0, 1), (1, 0), (1, 1)]
    g = nx.Graph()
    for a in range(4):
        for b in range(4):
            for x, y in steps:
                g.add_edge((a, b), ((a + x) % 4, (b + y) % 4))
    return g


def rook() -> nx.Graph:
    return nx.line_graph(nx.complete_bipartite_graph(4, 4))


def separation(net: SPEN, first: Data, second: Data) -> float:
    here, there = net(first), net(second)
    return float(((here - there).abs().max() / here.abs().max()).detach())


def test_network_separates_what_refinement_of_the_graph_cannot():
    two, six = nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)), nx.cycle_graph(6)
    assert separation(network(), *pair_of(two, six)) > 1e-6
    decalin = nx.cycle_graph(10)
    decalin.add_edge(0, 5)
    bicyclopentyl = nx.disjoint_union(nx.cycle_graph(5), nx.cycle_graph(5))
    bicyclopentyl.add_edge(0, 5)
    # One hop sees trees alone; two see a ring of five.
    assert separation(network(), *pair_of(decalin, bicyclopentyl)) < 1e-10
    assert separation(network(), *pair_of(decalin, bicyclopentyl, hops=2)) > 1e-6


def test_rook_and_shrikhande_need_weights_by_isomorphism():
    # The neighbours of a node induce two triangles in the one and a hexagon in the other. Both
    # have degree 2 throughout, so that maps of order 2 cannot tell them apart, with any weights.
    pair = pair_of(rook(), shrikhande())
    assert separation(network("root"), *pair) < 1e-10
    kinds = AddSubgraphKind("automorphism", num_kinds=4).fit(pair)
    net = network(num_kinds=4)
    assert separation(net, *(kinds(data) for data in pair)) > 1e-6


class TestKinds:
    def test_isomorphic_subgraphs_have_one_kind_whatever_lies_beside_them(self):
        ego, data = EgoSubgraphs(2), graph(6, nodes=9, edges=24)
        perm = torch.tensor([3, 0, 1, 2, 6, 4, 5, 8, 7])
        kinds = AddSubgraphKind("automorphism", num_kinds=20).fit([ego(data)])
        here = kinds(ego(data)).sub_kind
        there = kinds(ego(relabelled(data, perm))).sub_kind
        assert torch.equal(there[perm], here)
        assert here.unique().numel() > 1
        both = Batch.from_data_list([ego(graph(7)), ego(data)])
        assert torch.equal(kinds(both).sub_kind[7:], here)

    def test_root_and_edges_count(self):
        def kinds(edges: list[tuple[int, int]], nodes: int) -> list[int]:
            both = torch.tensor([*edges, *((b, a) for a, b in edges)]).t()
            data = EgoSubgraphs(2)(Data(edge_index=both, num_nodes=nodes))
            return AddSubgraphKind("automorphism", num_kinds=9).fit([data])(data).sub_kind.tolist()

        ends, middle = kinds([(0, 1), (1, 2)], 3)[::2], kinds([(0, 1), (1, 2)], 3)[1]
        assert ends[0] == ends[1] != middle

    def test_weights_differ_by_kind(self):
        data = EgoSubgraphs(1)(graph(8))
        kinds = AddSubgraphKind("size", num_kinds=4).fit([data])
        net = network(num_kinds=4)
        before = net(kinds(data))
        with torch.no_grad():
            net.convs[0].pair_to_pair.pair_weight[1] += 1
        assert (net(kinds(data)) - before).abs().max() > 1e-6

    def test_unseen_kinds_are_the_rare_one(self):
        kinds = AddSubgraphKind("size", num_kinds=2).fit([EgoSubgraphs(1)(graph(1))])
        fresh = EgoSubgraphs(0)(graph(1))
        assert set(kinds(fresh).sub_kind.tolist()) == {0}


class TestBadInput:
    def test_network(self):
        ego = EgoSubgraphs(1)
        with pytest.raises(GraphError, match="EgoSubgraphs"):
            network()(graph(1))
        with pytest.raises(SignalError, match=r"takes 2 features; data\.x has 3"):
            network()(ego(graph(1, channels=3)))
        whole = graph(1)
        whole.x = whole.x.long()
        with pytest.raises(SignalError, match="floating point"):
            network()(ego(whole))
        with pytest.raises(ValueError, match="two or more"):
            SPEN(2, 3, [4])
        with pytest.raises(ValueError, match="colours"):
            SPEN(2, 3, [4, 4], colours="rainbow")
        with pytest.raises(SignalError, match="num_labels"):
            network()(ego(graph(1)), label=torch.zeros(7).long())

    def test_layer(self):
        data = EgoSubgraphs(1)(graph(4))
        tables = EgoTables.build(data.n_id, data.n_sub_batch, 7)
        with pytest.raises(SignalError, match="takes no features of nodes"):
            SubgraphConv(2, 0, 4)(torch.randn(tables.first.numel(), 2), torch.randn(7, 1), tables)

    def test_kinds(self):
        with pytest.raises(RuntimeError, match="fit"):
            AddSubgraphKind(num_kinds=2)(EgoSubgraphs(1)(graph(1)))
        with pytest.raises(ValueError, match="automorphism"):
            AddSubgraphKind("colour", num_kinds=2)
        with pytest.raises(GraphError, match="EgoSubgraphs"):
            AddSubgraphKind(num_kinds=2).fit([graph(1)])
