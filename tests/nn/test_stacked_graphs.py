"""Several graphs in one signal, as PyG stacks them: pooled one by one, or refused."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from gsym import ClusterGroup, Partition
from gsym.errors import SignalError
from gsym.nn import EGNN, SPEN, EGNNConv, GNet, GNetConv, OrbitLinear, Penguin, PenguinConv
from gsym.nn._batch import count_blocks
from gsym.transforms import EgoSubgraphs

RING = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
PATH = torch.tensor([[0, 1], [1, 2]])
POOLING = {
    "auto": lambda: GNetConv(3, 2),
    "adjacency": lambda: GNetConv(3, 2, propagate="adjacency"),
    "weighted": lambda: GNetConv(3, 2, propagate="weighted"),
    "low_rank": lambda: GNetConv(3, 2, mixing="low_rank", rank=1),
    "GNet": lambda: GNet([3, 4, 2]),
}
LOCAL = {
    "pointwise": lambda: GNetConv(3, 2, propagate="pointwise"),
    "no mixing": lambda: GNet([3, 4, 2], mixing="none"),
    "EGNNConv": lambda: EGNNConv(3, 2, 8),
    "EGNN": lambda: EGNN(3, 2, 8, num_layers=2, learn_axis=True, dim=3),
    "PenguinConv": lambda: PenguinConv(3, 2, 8, alpha="edge"),
    "Penguin": lambda: Penguin(3, 2, 8, num_layers=2, alpha="node"),
}


def data(edge_index):
    n = int(edge_index.max()) + 1
    return Data(x=torch.randn(n, 3), pos=torch.randn(n, 3), edge_index=edge_index)


def call(layer, graph, **options):
    flat = isinstance(layer, GNet | GNetConv)
    y = layer(*((graph.x,) if flat else (graph.x, graph.pos)), graph.edge_index, **options)
    return y if isinstance(y, torch.Tensor) else torch.cat(y, dim=-1)


def drawn(make):
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@pytest.mark.parametrize("graphs", [[RING] * 3, [RING, PATH]], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", POOLING)
def test_stacked_graphs_are_refused_where_a_layer_pools(name, graphs):
    layer, batch = POOLING[name](), Batch.from_data_list([data(g) for g in graphs])
    refusal = rf"looks like {len(graphs)} stacked graphs.*batch=.*batch_size=1"
    with pytest.raises(SignalError, match=refusal):
        call(layer, batch)
    # The graph is prepared now, and known again by its values.
    with pytest.raises(SignalError, match=refusal):
        call(layer, batch.clone())
    layer(torch.randn(2, *batch.x.shape), batch.edge_index)
    with pytest.raises(SignalError, match=refusal):
        call(layer, batch)


@pytest.mark.parametrize("name", POOLING)
def test_what_the_caller_says_decides(name):
    layer, batch = drawn(POOLING[name]), Batch.from_data_list([data(RING) for _ in range(3)])
    alone = torch.cat([call(layer, one) for one in batch.to_data_list()])
    torch.testing.assert_close(call(layer, batch, batch=batch.batch), alone)
    torch.testing.assert_close(call(layer, batch, batch_size=3), alone)
    one = call(layer, batch, batch_size=1)
    torch.testing.assert_close(one, layer(batch.x[None], batch.edge_index)[0])
    assert (one - alone).abs().max() > 0.01


@pytest.mark.parametrize("name", LOCAL)
def test_layers_that_do_not_pool_keep_stacked_graphs_apart(name):
    layer, batch = drawn(LOCAL[name]), Batch.from_data_list([data(RING), data(PATH), data(RING)])
    alone = torch.cat([call(layer, one) for one in batch.to_data_list()])
    torch.testing.assert_close(call(layer, batch), alone, rtol=1e-4, atol=1e-4)


def test_subgraphs_carry_their_graphs():
    graphs = [EgoSubgraphs(1)(data(g)) for g in (RING, PATH, RING)]
    net = drawn(lambda: SPEN(3, 2, [4, 4], dropout=0.0))
    alone = torch.cat([net(one) for one in graphs])
    torch.testing.assert_close(net(Batch.from_data_list(graphs)), alone, rtol=1e-4, atol=1e-3)


def test_a_map_without_a_graph_takes_one_signal_unless_told():
    layer, x = drawn(lambda: OrbitLinear(3, 2)), torch.randn(12, 3)
    parts = torch.cat([layer(part) for part in x.split(4)])
    torch.testing.assert_close(layer(x, batch_size=3), parts)
    torch.testing.assert_close(layer(x, batch=torch.arange(3).repeat_interleave(4)), parts)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


def test_a_group_says_how_many_nodes_a_graph_has():
    batch = Batch.from_data_list([data(RING), data(RING)])
    whole = GNetConv(3, 2, ClusterGroup(Partition.from_labels([0, 1] * 4)))
    assert call(whole, batch).shape == (8, 2)
    half = GNetConv(3, 2, ClusterGroup(Partition.from_labels([0, 1] * 2)))
    with pytest.raises(SignalError, match=r"acts on 4 nodes but x has 8"):
        call(half, batch)


@pytest.mark.parametrize(
    ("edges", "blocks"),
    [
        ([], 1),
        ([(3, 3), (5, 5)], 1),  # self-loops alone
        ([(4, 2), (3, 4)], 1),  # isolated nodes before and behind
        ([(2, 4), (3, 3)], 1),  # one within
        ([(0, 2), (3, 1)], 1),  # two parts that lie one in the other
        ([(1, 0), (2, 3)], 2),
        ([(0, 1), (5, 4)], 2),  # with isolated nodes between
        ([(0, 1), (3, 2), (4, 5), (2, 3)], 3),
    ],
)
def test_blocks_of_consecutive_nodes(edges, blocks):
    source, target = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()
    assert count_blocks(source, target, 6) == blocks
    order = torch.randperm(len(edges))
    assert count_blocks(target[order], source[order], 6) == blocks
