"""Lists of edges and matrices as text: ids, names, columns, directions."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import networkx as nx
import numpy as np
import pytest
import torch

from gsym import automorphisms
from gsym._files import read_graph
from gsym.errors import FileError

pd = pytest.importorskip("pandas")

CYCLE = {(0, 1), (1, 2), (2, 3), (3, 0), (1, 0), (2, 1), (3, 2), (0, 3)}


@pytest.fixture
def text(tmp_path):
    def write(content, name="edges.csv"):
        path = tmp_path / name
        path.write_text(content)
        return str(path)

    return write


def pairs(graph):
    return set(map(tuple, graph.edge_index.T.tolist()))


def matrix(graph, n):
    weight = graph.edge_weight
    weight = torch.ones(graph.edge_index.size(1), dtype=torch.float64) if weight is None else weight
    out = torch.zeros(n, n, dtype=torch.float64)
    return out.index_put_(tuple(graph.edge_index), weight, accumulate=True).numpy()


@pytest.mark.parametrize(
    "content",
    [
        ",source,target\n0,0,1\n1,1,2\n2,2,3\n3,3,0\n",
        "Unnamed: 0,from,to\n0,0,1\n1,1,2\n2,2,3\n3,3,0\n",
        "target,source\n1,0\n2,1\n3,2\n0,3\n",
        "from;to;road\n0;1;A 1\n1;2;B 2\n2;3;A 1\n3;0;C\n",
        '"from"\t"to"\n"0"\t"1"\n"1"\t"2"\n"2"\t"3"\n"3"\t"0"\n',
        "0 1 # main street\n1 2\n2 3 # A 9\n3 0\n",
        "\ufefffrom,to\r\n0,1\r\n1,2\r\n2,3\r\n3,0\r\n",
        "0.0,1.0\n1.0,2.0\n2.0,3.0\n3.0,0.0\n",
        "id,node_1,node_2\n5,0,1\n6,1,2\n7,2,3\n8,3,0\n",
    ],
)
@pytest.mark.filterwarnings("ignore:.*not used:UserWarning")
def test_the_same_cycle_however_it_is_written(text, content):
    graph = read_graph(text(content))
    assert pairs(graph) == CYCLE and graph.edge_weight is None


def test_weights_and_what_is_not_used(text):
    content = "from,to,distance,road\n0,1,2.5,A\n1,2,3.5,B\n"
    with pytest.warns(UserWarning) as warned:
        graph = read_graph(text(content), directed=True)
    assert graph.edge_weight.tolist() == [2.5, 3.5]
    said = " ".join(str(w.message) for w in warned)
    assert "sounds like a distance" in said and "not used: column 'road'" in said
    record = graph.summary.record()
    assert record["weights"] == "column 'distance'" and len(record["notes"]) == 2
    gephi = "Source,Target,Type,Id,Label,Weight\n0,1,Directed,0,,2.0\n1,2,Directed,1,,3.0\n"
    with pytest.warns(UserWarning, match="says that the edges are directed"):
        graph = read_graph(text(gephi))
    assert pairs(graph) == {(0, 1), (1, 2)} and graph.edge_weight.tolist() == [2, 3]
    with pytest.warns(UserWarning, match="column 'speed limit' is taken for weights"):
        graph = read_graph(text("from,to,speed limit\n0,1,50\n1,2,30\n"), directed=True)
    assert graph.edge_weight.tolist() == [50, 30]
    commas = "from;to;weight\n0;1;2,5\n1;2;3,25\n"
    assert read_graph(text(commas), directed=True).edge_weight.tolist() == [2.5, 3.25]


def test_ids_with_gaps_name_the_nodes(text):
    ids = [400001, 400017, 400030, 400040, 414694]
    rows = "".join(f"{a},{b},{i}.5\n" for i, (a, b) in enumerate(itertools.pairwise(ids), start=1))
    with pytest.warns(UserWarning, match=r"5 nodes .400001, ..., 414694. have edges"):
        graph = read_graph(text("from,to,weight\n" + rows))
    assert graph.num_nodes == 5 and graph.names == tuple(map(str, ids))
    assert pairs(graph) == {(i, j) for i in range(5) for j in range(5) if abs(i - j) == 1}
    with pytest.warns(UserWarning, match=r"numbered from 1 \(1..3\)"):
        graph = read_graph(text("1 2\n2 3\n"))
    assert graph.num_nodes == 3 and graph.names == ("1", "2", "3")
    assert pairs(graph) == {(0, 1), (1, 0), (1, 2), (2, 1)}
    with pytest.warns(UserWarning, match="numbered from 1"):
        assert pairs(read_graph(text("1 2\n2 3\n"), num_nodes=3)) == pairs(graph)
    with pytest.warns(UserWarning, match="no edge names node 0"):
        assert pairs(read_graph(text("1 2\n2 3\n"), num_nodes=4)) == {
            (1, 2),
            (2, 1),
            (2, 3),
            (3, 2),
        }
    with pytest.raises(FileError, match="names node 414694, but there are 5 nodes"):
        read_graph(text("from,to,weight\n" + rows), num_nodes=5)


@pytest.mark.parametrize("start", [2**53, 2**62, 2**63 - 1, 10**25])
def test_huge_ids_stay_exact(text, start):
    rows = "".join(f"{start + i},{start + i + 1}\n" for i in range(3))
    with pytest.warns(UserWarning, match="ids with gaps") if start < 2**63 - 3 else nullcontext():
        graph = read_graph(text("source,target\n" + rows))
    assert graph.names == tuple(str(start + i) for i in range(4))
    assert pairs(graph) == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    names = [str(start + i) for i in (3, 1, 0, 2)]
    graph = read_graph(text("source,target\n" + rows), names=names, directed=True)
    assert graph.edge_index.tolist() == [[2, 1, 3], [1, 3, 0]]


def test_ids_that_float64_does_not_hold_are_refused(tmp_path):
    np.save(tmp_path / "e.npy", np.array([[2.0**53 + 2, 1.0], [1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(FileError, match=r"beyond 2.53 are not exact"):
        read_graph(str(tmp_path / "e.npy"))


def test_names(text):
    with pytest.raises(
        FileError, match=r"row 2 names '1201054', not in the names .nor are 1 others"
    ):
        read_graph(
            text("from,to,cost\n1201054,1201054,0.0\n1201054,1201066,2610.9\n773869,767541,10.0\n"),
            names=["773869", "767541", "767542"],
        )
    graph = read_graph(text("from,to\nOak St,Elm St\nElm St,Ash St\n"))
    assert graph.names == ("Ash St", "Elm St", "Oak St") and graph.num_nodes == 3
    assert pairs(graph) == {(2, 1), (1, 2), (1, 0), (0, 1)}
    assert read_graph(text("a b\nb c\n")).names == ("a", "b", "c")
    floats = text("from,to\n773869.0,767541.0\n767541.0,767542.0\n")
    graph = read_graph(floats, names=["767542", "773869", "767541"], directed=True)
    assert graph.edge_index.tolist() == [[1, 2], [2, 0]]
    with pytest.raises(FileError, match="Give their names in order with --names"):
        read_graph(text("from,to\na,b\nb,c\n"), num_nodes=3)
    with pytest.raises(FileError, match="are '007' and '7' one node"):
        read_graph(text("7,1\n007,2\n"))


def contacts(rows):
    return "".join(f"{a} {b}\n" for a, b in rows)


@pytest.mark.filterwarnings("ignore:.*several rows:UserWarning", "ignore:.*two rows:UserWarning")
def test_undirected_rows_may_be_turned_and_shuffled(text):
    rng = np.random.default_rng(0)
    for case in range(20):
        rows = rng.integers(0, 6, (rng.integers(1, 25), 2))
        rows = np.vstack([rows, [[i, i] for i in range(6)]])  # all nodes are there
        weight = rng.choice([0.1, 0.2, 0.3, 1e-17, 5.0], len(rows))
        found = []
        for _ in range(4):
            order = rng.permutation(len(rows))
            turn = rng.random(len(rows)) < 0.5
            some = np.where(turn[:, None], rows[:, ::-1], rows)[order]
            lines = [
                f"{a} {b} {w!r}\n" for (a, b), w in zip(some, weight[order].tolist(), strict=True)
            ]
            found.append(read_graph(text("".join(lines))))
        first = matrix(found[0], 6)
        assert (first == first.T).all(), case
        for graph in found[1:]:
            assert torch.equal(graph.edge_index, found[0].edge_index)
            assert torch.equal(graph.edge_weight, found[0].edge_weight)


def test_repeated_rows_are_parallel_edges(text):
    with pytest.warns(UserWarning, match="2 pairs of nodes stand in several rows"):
        graph = read_graph(text(contacts([(0, 1), (0, 1), (1, 0), (2, 1), (2, 1), (2, 1)])))
    assert matrix(graph, 3).tolist() == [[0, 3, 0], [3, 0, 3], [0, 3, 0]]
    assert automorphisms(graph.edge_index, 3).order() == 2
    with pytest.warns(UserWarning, match="two rows, once for each direction"):
        both = read_graph(text(contacts(sorted(CYCLE))))
    assert matrix(both, 4).max() == 1 and pairs(both) == CYCLE


@pytest.mark.parametrize("names", [None, ["n2", "n0", "n3", "n1"]])
@pytest.mark.parametrize("sep", [",", "\t", ";"])
def test_adjacency_with_names_both_ways(tmp_path, names, sep):
    adjacency = np.arange(16.0).reshape(4, 4) * (1 - np.eye(4))
    labels = [f"n{i}" for i in range(4)]
    frame = pd.DataFrame(adjacency, index=labels, columns=labels)
    # The columns may stand in another order than the rows.
    frame[labels[::-1]].to_csv(tmp_path / "a.csv", sep=sep)
    graph = read_graph(str(tmp_path / "a.csv"), names=names)
    order = labels if names is None else names
    assert graph.names == tuple(order)
    assert matrix(graph, 4).tolist() == frame.loc[order, order].to_numpy().tolist()


def test_adjacency_under_a_header(tmp_path):
    adjacency = np.arange(25.0).reshape(5, 5)
    pd.DataFrame(adjacency, columns=list("abcde")).to_csv(tmp_path / "a.csv", index=False)
    graph = read_graph(str(tmp_path / "a.csv"))
    assert graph.names == tuple("abcde") and matrix(graph, 5).tolist() == adjacency.tolist()
    ids = [773869, 767541, 767542, 717447, 717446]
    pd.DataFrame(adjacency, columns=ids, index=ids).to_csv(tmp_path / "a.csv")
    graph = read_graph(str(tmp_path / "a.csv"))
    assert graph.names == tuple(map(str, ids)) and matrix(graph, 5).tolist() == adjacency.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("from,to,weight\n0,1,\n1,2,3\n", "row 2 has no weight"),
        ("from,to,weight\n0,1,heavy\n1,2,3\n", "row 2 has the weight 'heavy'"),
        (
            "from,to,cost,distance\n0,1,1,2\n",
            "which column holds the weights, 'cost' or 'distance'",
        ),
        ("a,b,c,d\n0,1,1,2\n", "which columns hold the ends of edges"),
        ("from,to\n0,1\n,2\n", "nodes must be whole numbers; got nothing in row 3"),
        ("0 1\n1 2 5\n2 3 5\n", "row 1 has 2 cells, but other rows have 3"),
        (",a,b,a\na,0,1,1\nb,1,0,1\na,1,1,0\n", "names must differ; 'a'"),
        (",a,b,c\na,0,1,1\nb,1,,1\nc,1,1,0\n", "cell of nodes 1 and 1 is empty; write 0"),
        ("from,to\n", "has no rows below its header"),
        ("from,to\n-1,2\n", "edge 0 names node -1"),
        ("7\n8\n", r"got \[2, 1\]"),
    ],
)
def test_faults_are_named(text, content, message):
    with pytest.raises(FileError, match=message):
        read_graph(text(content))


def test_lists_of_networkx(tmp_path):
    graph = nx.Graph([(10, 12, {"weight": 2.5}), (12, 9, {"weight": 1.0})])
    path = str(tmp_path / "g.edgelist")
    nx.write_edgelist(graph, path)
    read = read_graph(path)
    assert read.names == ("9", "10", "12") and matrix(read, 3)[1, 2] == 2.5
    nx.write_edgelist(graph, path, data=False, delimiter=",")
    with pytest.warns(UserWarning, match="ids with gaps"):
        assert read_graph(path).names == ("9", "10", "12")
    nx.write_weighted_edgelist(graph, path)
    with pytest.warns(UserWarning, match="ids with gaps"):
        assert matrix(read_graph(path), 3).tolist() == matrix(read, 3).tolist()
