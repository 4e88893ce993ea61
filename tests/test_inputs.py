"""Files that belong together: names, order in time, and tables that lie on their side."""

from __future__ import annotations

import itertools
import threading

import networkx as nx
import numpy as np
import pytest

from gsym._files import read_inputs, write_arrays
from gsym.errors import FileError

pd = pytest.importorskip("pandas")

IDS = ["773869", "767541", "767542", "717447", "717446", "400001"]
X = np.random.default_rng(0).normal(55, 10, (40, 6)).round(3)
TIMES = pd.date_range("2012-03-01", periods=40, freq="h")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(X, columns=IDS, index=TIMES).to_csv("speed.csv")
    rows = [f"{a},{b},{i}" for i, (a, b) in enumerate(itertools.pairwise(IDS), start=1)]
    (tmp_path / "by_id.csv").write_text("from,to,weight\n" + "\n".join(rows[::-1]) + "\n")
    (tmp_path / "by_number.csv").write_text("".join(f"{i} {i + 1}\n" for i in range(5)))
    (tmp_path / "names.txt").write_text("\n".join(IDS))
    np.savez("x.npz", x=X)
    return tmp_path


def path_edges(read):
    return sorted((i, j) for i, j in read.graph.edge_index.T.tolist() if i < j)


@pytest.mark.parametrize("graph", ["by_id.csv", "by_number.csv"])
@pytest.mark.parametrize("signals", ["speed.csv", "x.npz"])
def test_nodes_are_named_by_the_header_or_the_names(graph, signals):
    names = "names.txt" if signals == "x.npz" else None
    read = read_inputs(graph, signals, names=names)
    assert path_edges(read) == [(i, i + 1) for i in range(5)]
    assert read.names == tuple(IDS) and read.num_nodes == 6 and read.x.shape == (40, 6, 1)
    assert read.is_series == (signals == "speed.csv")
    assert [str(s.path) for s in read.summaries] == [graph, signals]


def test_ids_without_their_order_are_refused():
    with pytest.raises(FileError, match=r"give them in order with --names"):
        read_inputs("by_id.csv", "x.npz")


def test_graphs_that_name_their_nodes_follow_the_header(folder):
    nx.write_graphml(nx.path_graph(IDS[::-1]), "g.graphml")
    assert path_edges(read_inputs("g.graphml", "speed.csv")) == [(i, i + 1) for i in range(5)]
    with pytest.warns(UserWarning, match=r"taken for the nodes of g.graphml in its order: 400001"):
        read = read_inputs("g.graphml", "x.npz")
    assert read.names == tuple(IDS[::-1])
    nx.write_graphml(nx.path_graph(list("abcdef")), "g.graphml")
    with pytest.raises(FileError, match=r"has the node 'a', not in the names .nor are 5 others"):
        read_inputs("g.graphml", "speed.csv")


@pytest.mark.parametrize("graph", ["by_number.csv", "adj.csv", "g.npz"])
def test_transposed_signals_stop(folder, graph):
    np.savetxt("adj.csv", nx.to_numpy_array(nx.path_graph(6)), delimiter=",")
    np.savez("g.npz", edge_index=np.array(nx.path_graph(6).edges).T, num_nodes=6)
    np.savez("turned.npz", x=X.T)
    with pytest.raises(FileError, match=r"transpose"):
        read_inputs(graph, "turned.npz")
    pd.DataFrame(X, columns=IDS, index=TIMES).T.to_csv("turned.csv")
    with pytest.raises(FileError, match=r"the columns are times .* transpose it"):
        read_inputs(graph, "turned.csv")


def test_many_nodes_without_an_edge_stop(folder):
    np.savez("wide.npz", x=np.random.default_rng(0).normal(size=(40, 30)))
    with pytest.raises(FileError, match=r"edges to 6 of the 30 nodes .* store the graph as .npz"):
        read_inputs("by_number.csv", "wide.npz")
    np.savez("seven.npz", x=np.random.default_rng(0).normal(size=(40, 7)))
    with pytest.warns(UserWarning, match="1 of 7 nodes have no edge"):
        assert read_inputs("by_number.csv", "seven.npz").num_nodes == 7
    np.savez("isolated.npz", edge_index=np.array([[0, 1], [1, 0]]), num_nodes=30)
    read = read_inputs("isolated.npz", "wide.npz")
    assert "28 isolated nodes" in str(read.summaries[0])


def test_samples_are_put_in_the_order_of_times(folder):
    order = np.random.default_rng(1).permutation(40)
    pd.DataFrame(X, columns=IDS, index=TIMES).iloc[order].to_csv("mixed.csv")
    np.savez("y.npz", y=np.arange(40.0)[order])
    with pytest.warns(UserWarning, match=r"put in the order of times"):
        read = read_inputs("by_id.csv", "mixed.csv", "y.npz")
    np.testing.assert_array_equal(read.x[..., 0].numpy(), X)
    assert read.y.tolist() == list(range(40)) and read.is_series


def test_targets_of_other_samples_or_nodes(folder):
    later = pd.DataFrame(X, columns=IDS, index=TIMES + pd.Timedelta("1h"))
    later.to_csv("y.csv")
    assert read_inputs(None, "speed.csv", "y.csv").y.shape == (40, 6, 1)
    later.iloc[::-1].to_csv("y.csv")
    with pytest.raises(FileError, match="put both in one order"):
        read_inputs(None, "speed.csv", "y.csv")
    later[IDS[::-1]].to_csv("y.csv")
    with pytest.raises(FileError, match=r"calls node 0 '400001', but that of speed.csv calls it"):
        read_inputs(None, "speed.csv", "y.csv")
    (folder / "names.txt").write_text("\n".join(IDS[::-1]))
    with pytest.raises(FileError, match=r"names.txt: calls node 0 '400001', but the header"):
        read_inputs("by_id.csv", "speed.csv", names="names.txt")


def test_writers_at_once_leave_one_whole_file(folder):
    written = {i: np.full(50_000, i) for i in range(8)}
    threads = [
        threading.Thread(target=write_arrays, args=(folder / "a.npz",), kwargs={"x": values})
        for values in written.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with np.load("a.npz") as file:
        assert len(set(file["x"].tolist())) == 1 and len(file["x"]) == 50_000
    assert not list(folder.glob("*.tmp"))
