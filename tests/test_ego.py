"""Ego-networks: what they hold, against PyG's dense construction and by hand."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import RootedEgoNets

from gsym.errors import GraphError
from gsym.transforms import EgoSubgraphs


def random_graph(seed: int, nodes: int | None = None) -> Data:
    random = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 20, (), generator=random)) if nodes is None else nodes
    count = int(torch.randint(0, 60, (), generator=random))
    edge_index = torch.randint(0, n, (2, count), generator=random)  # loops and repeats included
    return Data(edge_index=edge_index, num_nodes=n)


def edges(data: Data) -> list[tuple[int, ...]]:
    rows = data.e_sub_batch.tolist(), data.e_id.tolist(), *data.sub_edge_index.tolist()
    return sorted(zip(*rows, strict=True))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("hops", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_dense_construction_of_pyg(seed, hops):
    data = random_graph(seed)
    found, expected = EgoSubgraphs(hops)(data), RootedEgoNets(hops)(data)
    assert found.n_id.tolist() == expected.n_id.tolist()
    assert found.n_sub_batch.tolist() == expected.n_sub_batch.tolist()
    assert edges(found) == edges(expected)


def test_chunks_of_roots_give_the_same(monkeypatch):
    data = random_graph(3, nodes=19)
    whole = EgoSubgraphs(2)(data)
    monkeypatch.setattr("gsym._ego._CANDIDATES", 40)
    parts = EgoSubgraphs(2)(data)
    assert whole.n_id.tolist() == parts.n_id.tolist()
    assert edges(whole) == edges(parts)


def test_root_is_left_out_on_request():
    data = Data(edge_index=torch.tensor([[0, 1, 1, 2, 2], [1, 0, 2, 1, 2]]), num_nodes=4)
    found = EgoSubgraphs(1, include_root=False)(data)
    assert found.n_id.tolist() == [1, 0, 2, 1]
    assert found.n_sub_batch.tolist() == [0, 1, 1, 2]
    assert found.e_id.tolist() == [4]  # the loop of node 2, seen by its neighbour 1 alone


def test_batches_keep_every_subgraph_at_its_node():
    lonely = Data(edge_index=torch.empty(2, 0).long(), num_nodes=2)
    star = Data(edge_index=torch.tensor([[1, 2], [0, 0]]), num_nodes=3)
    ego = EgoSubgraphs(1, include_root=False)
    batch = Batch.from_data_list([ego(lonely), ego(star), ego(lonely), ego(star)])
    assert batch.n_sub_batch.tolist() == [2, 2, 7, 7]
    assert batch.n_id.tolist() == [3, 4, 8, 9]


def test_large_subgraphs_are_refused_or_shrink_whatever_the_labels():
    star = torch.tensor([[1, 2, 3, 4, 0], [0, 0, 0, 0, 1]])
    data = Data(edge_index=star, num_nodes=5)
    with pytest.raises(GraphError, match=r"node 0 has 5 nodes or more, above max_nodes=3"):
        EgoSubgraphs(1, max_nodes=3)(data)
    found = EgoSubgraphs(2, max_nodes=3, large="shrink")(data)
    sizes = torch.bincount(found.n_sub_batch, minlength=5).tolist()
    # Node 0 keeps itself alone; node 1 hears 0 in one hop, all in two.
    assert sizes == [1, 2, 1, 1, 1]


class TestBadInput:
    @pytest.mark.parametrize("hops", [-1, 1.5, None, "1"])
    def test_hops(self, hops):
        with pytest.raises((ValueError, TypeError), match="num_hops"):
            EgoSubgraphs(hops)

    def test_options(self):
        with pytest.raises(ValueError, match="max_nodes"):
            EgoSubgraphs(1, max_nodes=0)
        with pytest.raises(ValueError, match="large"):
            EgoSubgraphs(1, large="ignore")

    def test_data(self):
        with pytest.raises(TypeError, match="Data"):
            EgoSubgraphs(1)(torch.ones(2, 2))
        with pytest.raises(GraphError, match="edge_index"):
            EgoSubgraphs(1)(Data(num_nodes=3))
        with pytest.raises(GraphError, match=r"0\.\.1"):
            EgoSubgraphs(1)(Data(edge_index=torch.tensor([[0], [2]]), num_nodes=2))
