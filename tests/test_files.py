"""Files: what is read, what is refused and in which words, and that nothing is half-written."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from gsym._files import (
    checks,
    fingerprint,
    read_graph,
    read_names,
    read_partitions,
    read_positions,
    read_signals,
    read_targets,
    replacing,
    write_arrays,
)
from gsym.errors import FileError, PartitionError
from gsym.groups import Partition

SQUARE = np.array([[0, 1, 2, 3, 1, 2, 3, 0], [1, 2, 3, 0, 0, 1, 2, 3]])


def pairs(graph):
    return set(map(tuple, graph.edge_index.T.tolist()))


@pytest.fixture
def file(tmp_path):
    def make(name, content=None, **arrays):
        path = tmp_path / name
        if arrays:
            np.savez(path, **arrays)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            torch.save(content, path)
        return str(path)

    return make


def test_the_same_graph_from_every_kind_of_file(file, tmp_path):
    dense = np.zeros((4, 4))
    dense[*SQUARE] = 1
    sp.save_npz(tmp_path / "sparse.npz", sp.csr_array(dense))
    kinds = [
        file("a.npz", edge_index=SQUARE),
        file("b.npz", adj=dense),
        file("c.npy", dense),
        file("d.npy", SQUARE),
        file("e.npy", np.ascontiguousarray(SQUARE.T)),
        file("f.csv", "source,target\n0,1\n1,2\n2,3\n3,0\n"),
        file("g.txt", "# a comment\n0 1\n1 2\n\n2 3\n3 0\n"),
        file("h.tsv", "0\t1\n1\t2\n2\t3\n3\t0\n"),
        file("i.csv", "0;1\n1;2\n2;3\n3;0\n"),
        file("j.csv", "\n".join(",".join(f"{v:g}" for v in row) for row in dense)),
        file("k.pt", Data(x=torch.zeros(4, 7), edge_index=torch.from_numpy(SQUARE))),
        file("l.pt", {"edge_index": torch.from_numpy(SQUARE), "num_nodes": 4}),
        str(tmp_path / "sparse.npz"),
        file("m.npz", other=np.zeros(3), graph=dense) + ":graph",
    ]
    expected = set(map(tuple, SQUARE.T.tolist()))
    for kind in kinds:
        graph = read_graph(kind)
        assert pairs(graph) == expected, kind
        assert graph.num_nodes in (4, None) and graph.edge_weight is None
    assert read_graph(kinds[10]).num_nodes == 4


def test_directions_and_weights(file):
    listed = file("e.csv", "0,1,0.5\n1,0,0.25\n1,2,3\n")
    graph = read_graph(listed)
    rows = zip(map(tuple, graph.edge_index.T.tolist()), graph.edge_weight.tolist(), strict=True)
    assert sorted(rows) == [
        *[((0, 1), 0.25), ((0, 1), 0.5), ((1, 0), 0.25), ((1, 0), 0.5)],
        *[((1, 2), 3.0), ((2, 1), 3.0)],
    ]
    assert pairs(read_graph(listed, directed=True)) == {(0, 1), (1, 0), (1, 2)}
    stored = read_graph(file("f.npz", edge_index=SQUARE[:, :3], edge_weight=np.arange(3.0)))
    assert pairs(stored) == {(0, 1), (1, 2), (2, 3)} and stored.edge_weight.tolist() == [0, 1, 2]
    kept = read_graph(file("g.npz", adj=np.array([[1.0, 0.5], [0.0, 1.0]])))
    assert pairs(kept) == {(0, 0), (0, 1), (1, 1)} and sorted(kept.edge_weight.tolist()) == [
        0.5,
        1,
        1,
    ]


def test_names_number_the_nodes(file):
    names = read_names(file("names.txt", "\ufeffb\n a \n\nc\n"))
    assert names == ["b", "a", "c"]
    graph = read_graph(file("e.csv", "from,to,cost\na,b,2\nc,a,1\n"), names=names, directed=True)
    assert graph.edge_index.tolist() == [[1, 2], [0, 1]] and graph.edge_weight.tolist() == [2, 1]
    assert graph.num_nodes == 3
    numbered = read_graph(file("n.csv", "0,1\n1,2\n"), names=names)
    assert pairs(numbered) == {(0, 1), (1, 0), (1, 2), (2, 1)}
    with pytest.raises(FileError, match="row 2 names 'd', not in the names"):
        read_graph(file("f.csv", "a,b\nd,a\n"), names=names)
    with pytest.raises(FileError, match="row 1 has the weight 'x'"):
        read_graph(file("g.csv", "a,b,x\n"), names=names)
    with pytest.raises(FileError, match="'a' stands there twice"):
        read_names(file("twice.txt", "a\nb\na\n"))


def test_signals(file):
    values = np.arange(24.0).reshape(4, 3, 2)
    assert read_signals(file("x.npz", x=values)).tolist() == values.tolist()
    assert read_signals(file("x.npy", values[..., 0])).shape == (4, 3, 1)
    assert read_signals(file("y.npz", speed=values, time=np.arange(4)) + ":speed").shape == (
        4,
        3,
        2,
    )
    assert read_signals(file("x.csv", "a,b,c\n1,2,3\n4,5,6\n")).tolist() == [
        [[1], [2], [3]],
        [[4], [5], [6]],
    ]
    assert read_signals(file("x.pt", torch.ones(4, 3)), 3).dtype == torch.float64
    assert read_targets(file("t.npy", np.arange(4.0)), 3).shape == (4,)
    assert read_targets(file("t.csv", "1\n2\n"), 3).tolist() == [1, 2]
    assert read_signals(file("b.pt", torch.ones(4, 3).bfloat16()), 3).dtype == torch.float64
    with pytest.raises(FileError, match="which array holds the targets"):
        read_targets(file("xt.npz", x=values, t=values), 3)
    assert read_targets(file("xy.npz", x=values, y=np.arange(4.0)), 3).tolist() == [0, 1, 2, 3]
    assert read_targets(file("u.npy", values), 3).shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"speed": np.zeros((4, 3)), "time": np.zeros(4)},
            r"which array.*speed \[4, 3\], time \[4\]",
        ),
        ({"x": np.zeros(3)}, r"\[samples, nodes\] or \[samples, nodes, channels\]; got \[3\]"),
        ({"x": np.zeros((0, 3))}, r"got \[0, 3\]"),
        ({"x": np.zeros((3, 5))}, r"must have 3 nodes.*got \[3, 5\]; transpose it"),
        ({"x": np.zeros((4, 5))}, r"must have 3 nodes, one per column; got \[4, 5\]$"),
        ({"x": np.array([["a", "b", "c"]])}, "signals must be numbers; got dtype <U1"),
        (
            {"x": np.array([[1, np.nan, 1], [1, np.inf, 2]])},
            r"1 value is infinite, at 1 node \(1\)",
        ),
    ],
)
def test_signals_that_do_not_fit(file, arrays, message):
    with pytest.raises(FileError, match=message):
        read_signals(file("x.npz", **arrays), 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"PK\x03\x04 nonsense", "cannot be read"),
        ("a.npz", b"", "cannot be read"),
        ("a.npy", b"\x93NUMPY\x01\x00", "cannot be read"),
        ("a.pt", b"nonsense", "cannot be read|more than tensors"),
        ("a.csv", b"\xff\xfe\x00\x01", "cannot be read"),
        ("a.csv", "", "is empty"),
        ("a.csv", "# only a comment\n", "is empty"),
        ("a.csv", "0,1\n0,x\n", "cannot be read.*'x'"),
        ("a.csv", "0,1\n0\n", "cannot be read"),
        ("a.csv", "0,1,1,1\n0,1,1,1\n", r"got \[2, 4\]"),
        ("a.csv", "0,1\n0,-1\n", "numbered 0 or more; edge 1 names node -1"),
        ("a.csv", "0,1\n0,1.5\n", "nodes must be whole numbers; got 1.5"),
        ("a.csv", "0,1\nnan,1\n", "nodes must be whole numbers; got nan"),
        ("a.csv", "0,1,nan\n0,1,1\n", "weights must be finite; edge 0 has nan"),
        ("a.docx", b"", "unknown kind of file; expected .npz"),
        ("a.npy", np.zeros((3, 4)), r"got \[3, 4\]"),
        ("a.npy", np.zeros(4), r"got \[4\]"),
        ("a.npy", np.array([["a"]]), "the graph must be numbers"),
    ],
)
def test_graphs_that_cannot_be_read(file, name, content, message):
    path = file(name, content)
    with pytest.raises(FileError, match=message) as error:
        read_graph(path)
    assert str(error.value).startswith(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"edge_index": SQUARE, "num_nodes": 3}, "numbered 0..2; edge 2 names node 3"),
        ({"edge_index": SQUARE, "edge_weight": np.ones(3)}, r"each of 8 edges; got \[3\]"),
        ({"edge_index": SQUARE.T}, r"edge_index must be \[2, e\]; got \[8, 2\]"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, r"expected edge_index.*holds a \[3\], b \[3\]"),
        ({"edge_index": SQUARE[:, :0], "num_nodes": 0}, "at least one node"),
    ],
)
def test_graphs_that_make_no_sense(file, arrays, message):
    with pytest.raises(FileError, match=message):
        read_graph(file("a.npz", **arrays))


def test_missing_files_and_arrays(file):
    with pytest.raises(FileError, match=r"no file nowhere.npz; check the name"):
        read_graph("nowhere.npz")
    with pytest.raises(FileError, match=r"no array 'x'; it holds y \[2\]"):
        read_signals(file("a.npz", y=np.zeros(2)) + ":x")


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_nothing_is_unpickled(tmp_path):
    pickled = np.array([Evil()], dtype=object)
    np.savez(tmp_path / "a.npz", x=pickled, allow_pickle=True)
    np.save(tmp_path / "a.npy", pickled, allow_pickle=True)
    torch.save({"edge_index": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("a.npz", "a.npy", "a.pt", "b.pt"):
        with pytest.raises(FileError, match=r"cannot be read|could run code"):
            read_graph(str(tmp_path / name))
    assert not Evil.ran
    pickle.loads(pickle.dumps(Evil()))
    assert Evil.ran, "the object would have run, had it been unpickled"


def test_large_files_are_refused_before_they_are_read(file, monkeypatch):
    small = file("a.npz", x=np.zeros((4, 3)))
    bomb = file("b.npz", b"")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(3_000_000))
    monkeypatch.setattr(checks, "MAX_BYTES", 1_000_000)
    assert read_signals(small).shape == (4, 3, 1)
    with pytest.raises(FileError, match=r"unpacked 0.0 GiB; files of up to .* GiB are read here"):
        read_signals(bomb)
    with pytest.raises(FileError, match="load a larger one in Python"):
        read_signals(file("c.npy", np.zeros(200_000)))


def test_partitions(file):
    labels = np.array([[0, 1, 2, 3], [0, 0, 1, 1]])
    square = torch.from_numpy(SQUARE)
    found = read_partitions(file("p.npz", labels=labels, graph=fingerprint(square, 4)), 4, square)
    assert found == [Partition(torch.from_numpy(row)) for row in labels]
    assert read_partitions(file("p.csv", "0\n0\n1\n1\n"), 4) == found[1:]
    assert read_partitions(file("p.npy", labels[1]), 4) == found[1:]
    with pytest.raises(FileError, match=r"each of 5 nodes; got labels \[2, 4\]; .* another graph"):
        read_partitions(file("q.npz", labels=labels), 5)
    other = file("r.npz", labels=labels, graph=fingerprint(square[:, :4], 4))
    with pytest.raises(FileError, match="written for another graph of 4 nodes"):
        read_partitions(other, 4, square)
    with pytest.raises(FileError, match=r"labels must be whole numbers; got 0.5"):
        read_partitions(file("s.npy", np.array([0, 0.5, 1])), 3)
    with pytest.raises(PartitionError, match="no node has label 1"):
        read_partitions(file("t.npy", np.array([0, 2, 2])), 3)


def test_positions(file):
    assert read_positions(file("p.csv", "1,2\n3,4\n"), 2).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(FileError, match=r"positions must be \[3, 2\].*got \[2, 2\]"):
        read_positions(file("q.csv", "1,2\n3,4\n"), 3)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.npz"
    write_arrays(path, labels=np.arange(3))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as open_file:
        open_file.write(b"half")
        raise RuntimeError("half way")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileError, match="cannot be written"):
        write_arrays(tmp_path / "nowhere" / "a.npz", labels=np.arange(3))


def test_fingerprints_tell_graphs_apart():
    square = torch.from_numpy(SQUARE)
    shuffled = square[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert fingerprint(square, 4) == fingerprint(shuffled, 4)
    assert fingerprint(square, 4) != fingerprint(square, 5)
    assert fingerprint(square, 4) != fingerprint(square[:, 1:], 4)
