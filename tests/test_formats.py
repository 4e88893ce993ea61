"""Formats of graphs and tables, each file written by the library that people write it with."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from gsym._files import load_signals, read_graph
from gsym.errors import FileError

pd = pytest.importorskip("pandas")

NAMES = ("n0", "n1", "n2", "n3")
WEIGHTS = {(0, 1): 2.5, (1, 2): 1.0, (2, 3): 0.1, (3, 0): 1 / 3, (2, 2): 4.0}
X = np.random.default_rng(0).normal(55, 10, (30, 4))
TIMES = pd.date_range("2012-03-01", periods=30, freq="5min")


def dense(weights=WEIGHTS, directed=False):
    out = np.zeros((4, 4))
    for (i, j), w in weights.items():
        out[i, j] += w
        if not directed and i != j:
            out[j, i] += w
    return out


def network(kind=nx.Graph, weighted=True, names=NAMES):
    graph = kind()
    graph.add_nodes_from(names)
    for (i, j), w in WEIGHTS.items():
        graph.add_edge(names[i], names[j], **({"weight": w} if weighted else {}))
    return graph


def matrix(graph):
    weight = graph.edge_weight
    weight = torch.ones(graph.edge_index.size(1), dtype=torch.float64) if weight is None else weight
    out = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    return out.index_put_(tuple(graph.edge_index), weight, accumulate=True).numpy()


def write_json(graph, path):
    Path(path).write_text(json.dumps(nx.node_link_data(graph, edges="links")))


WRITERS = {
    ".graphml": nx.write_graphml,
    ".gml": nx.write_gml,
    ".gexf": nx.write_gexf,
    ".json": write_json,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph])
def test_networkx(tmp_path, suffix, kind):
    path = str(tmp_path / f"graph{suffix}")
    WRITERS[suffix](network(kind), path)
    graph = read_graph(path)
    assert graph.names == NAMES and graph.num_nodes == 4
    np.testing.assert_array_equal(matrix(graph), dense(directed=kind is nx.DiGraph))
    order = ["n2", "n0", "n3", "n1"]
    turned = read_graph(path, names=order)
    by_name = [NAMES.index(name) for name in order]
    np.testing.assert_array_equal(matrix(turned), matrix(graph)[np.ix_(by_name, by_name)])
    with pytest.raises(FileError, match="has the node 'n3', not in the names"):
        read_graph(path, names=["n2", "n0", "n1"])


@pytest.mark.parametrize("suffix", [".graphml", ".gml", ".json"])
def test_networkx_without_weights_or_with_some(tmp_path, suffix):
    path = str(tmp_path / f"graph{suffix}")
    WRITERS[suffix](network(weighted=False), path)
    graph = read_graph(path)
    assert graph.edge_weight is None and matrix(graph).sum() == 9
    some = network()
    del some["n0"]["n1"]["weight"]
    some["n1"]["n2"]["road"] = "A"
    WRITERS[suffix](some, path)
    with pytest.raises(FileError, match="2 edges have no weight, but others have one"):
        read_graph(path)
    some["n0"]["n1"]["weight"] = 1.0
    WRITERS[suffix](some, path)
    with pytest.warns(UserWarning, match="not used: road"):
        read_graph(path)


def test_parallel_edges_of_networkx(tmp_path):
    graph = nx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    nx.write_graphml(graph, tmp_path / "m.graphml")
    read = read_graph(str(tmp_path / "m.graphml"))
    assert read.names is None and matrix(read).tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("name", ["graph.mtx", "graph.txt"])
@pytest.mark.parametrize("symmetry", ["symmetric", "general"])
def test_matrix_market(tmp_path, name, symmetry):
    scipy.io.mmwrite(tmp_path / "graph.mtx", sp.coo_array(dense()), symmetry=symmetry, precision=17)
    (tmp_path / "graph.mtx").rename(tmp_path / name)
    graph = read_graph(str(tmp_path / name))
    assert graph.num_nodes == 4
    np.testing.assert_array_equal(matrix(graph), dense())


@pytest.mark.parametrize("weighted", [True, False])
def test_metis(tmp_path, weighted):
    networkit = pytest.importorskip("networkit")
    written = networkit.Graph(5, weighted=weighted)
    for (i, j), w in {(0, 1): 2, (1, 2): 3, (2, 3): 4}.items():
        written.addEdge(i, j, w)
    path = str(tmp_path / "g.graph")
    networkit.writeGraph(written, path, networkit.Format.METIS)
    graph = read_graph(path)
    assert graph.num_nodes == 5 and (graph.edge_weight is not None) == weighted
    expected = np.zeros((5, 5))
    for i, j, w in [(0, 1, 2), (1, 2, 3), (2, 3, 4)]:
        expected[i, j] = expected[j, i] = w if weighted else 1
    np.testing.assert_array_equal(matrix(graph), expected)
    content = Path(path).read_text()
    for old, new, message in [("5 3", "5 4", "says 4 edges"), ("5 3", "2 3", "says 2 nodes")]:
        Path(path).write_text(content.replace(old, new, 1))
        with pytest.raises(FileError, match=message):
            read_graph(path)


@pytest.mark.parametrize("form", ["fixed", "table"])
@pytest.mark.parametrize("columns", [[773869, 767541, 767542, 717447], list(NAMES)], ids=str)
def test_hdf_of_pandas(tmp_path, form, columns):
    pytest.importorskip("tables")
    pytest.importorskip("h5py")
    path = str(tmp_path / "speed.h5")
    frame = pd.DataFrame(X, columns=columns, index=TIMES)
    frame.to_hdf(path, key="df", format=form)
    signals = load_signals(path)
    np.testing.assert_array_equal(signals.values[..., 0].numpy(), X)
    assert signals.names == tuple(map(str, columns)) and (signals.times == TIMES.to_numpy()).all()
    frame.to_hdf(path, key="again", format=form)
    with pytest.raises(FileError, match=r"expected one DataFrame .* found 2"):
        load_signals(path)


def test_hdf_runs_nothing(tmp_path):
    pytest.importorskip("tables")
    h5py = pytest.importorskip("h5py")
    path = str(tmp_path / "speed.h5")
    pd.DataFrame(X, columns=NAMES).to_hdf(path, key="df", format="table")
    with h5py.File(path, "r+") as file:
        table = file["df/table"]
        table.attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(Evil(), protocol=0))
    with pytest.raises(FileError, match="could run code"):
        load_signals(path)
    assert not Evil.ran


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    path = str(tmp_path / "speed.parquet")
    frame = pd.DataFrame(X, columns=NAMES, index=TIMES)
    frame.to_parquet(path)
    signals = load_signals(path)
    np.testing.assert_array_equal(signals.values[..., 0].numpy(), X)
    assert signals.names == NAMES and (signals.times == TIMES.to_numpy()).all()
    frame.rename_axis("time").reset_index().to_parquet(path)
    again = load_signals(path)
    assert again.names == NAMES and torch.equal(again.values, signals.values)
    pd.DataFrame({"time": TIMES, "road": "A"}).to_parquet(path)
    with pytest.raises(FileError, match="column 'road' holds"):
        load_signals(path)
    edges = pd.DataFrame({"from": [2**60, 2**60 + 1], "to": [2**60 + 1, 2**60 + 2]})
    edges.assign(weight=[0.1, 1 / 3]).to_parquet(path)
    with pytest.warns(UserWarning, match="ids with gaps"):
        graph = read_graph(path, directed=True)
    assert graph.names == tuple(str(2**60 + i) for i in range(3))
    assert graph.edge_weight.tolist() == [0.1, 1 / 3]
    pd.DataFrame(dense(), columns=NAMES, index=NAMES).to_parquet(path)
    np.testing.assert_array_equal(matrix(read_graph(path)), dense())


def test_matlab(tmp_path):
    path = str(tmp_path / "g.mat")
    scipy.io.savemat(path, {"A": sp.csc_matrix(dense()), "speed": X}, do_compression=True)
    np.testing.assert_array_equal(matrix(read_graph(path)), dense())
    np.testing.assert_array_equal(load_signals(f"{path}:speed").values[..., 0].numpy(), X)
    scipy.io.savemat(path, {"edges": np.array([[1, 2], [2, 3], [3, 4]])})
    with pytest.warns(UserWarning, match="numbered from 1"):
        assert read_graph(path).num_nodes == 4
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"
    Path(path).write_bytes(head.ljust(128) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(FileError, match=r"version 7.3; save it with save\(file, '-v7'\)"):
        read_graph(path)


def test_data_of_pyg(tmp_path):
    path = str(tmp_path / "d.pt")
    edge_index = torch.tensor([[0, 1, 2, 1, 2, 3], [1, 2, 3, 0, 1, 2]])
    weight = torch.tensor([1, 2, 3, 1, 2, 3.0])
    torch.save(Data(x=torch.from_numpy(X.T.copy()), edge_index=edge_index, edge_attr=weight), path)
    graph = read_graph(path)
    assert graph.num_nodes == 4 and graph.edge_weight.tolist() == weight.tolist()
    with pytest.warns(UserWarning, match=r"\[4, 30\] of a PyG Data: a row per node"):
        signals = load_signals(path)
    np.testing.assert_array_equal(signals.values[..., 0].numpy(), X)
    torch.save({"adj": torch.from_numpy(dense()).to_sparse_csr(), "other": torch.zeros(2)}, path)
    np.testing.assert_array_equal(matrix(read_graph(path)), dense())


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_pickle_of_dcrnn(tmp_path, protocol):
    path = tmp_path / "adj_mx.pkl"
    ids = ["773869", "767541", "767542", "717447"]
    content = [ids, {name: i for i, name in enumerate(ids)}, dense().astype(np.float32)]
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    graph = read_graph(str(path))
    assert graph.names == tuple(ids)
    np.testing.assert_array_equal(matrix(graph), dense().astype(np.float32))
    for bad in (Evil(), [ids, {}, Evil()], [ids, {}, np.array([Evil()])]):
        path.write_bytes(pickle.dumps(bad, protocol=protocol))
        with pytest.raises(FileError, match="could run code"):
            read_graph(str(path))
    assert not Evil.ran
    path.write_bytes(pickle.dumps(content, protocol=protocol)[:-40])
    with pytest.raises(FileError, match="cannot be read"):
        read_graph(str(path))


def test_fortran_order_and_scalars_in_pickles(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([[np.int64(5), np.float32(2)], {}, np.asfortranarray(np.eye(2))]))
    assert read_graph(str(path)).names == ("5", "2.0")


@pytest.mark.parametrize("entity", ["<!DOCTYPE g [<!ENTITY a 'b'>]>", "<!doctype g>"])
def test_entities_are_refused(tmp_path, entity):
    path = tmp_path / "g.graphml"
    nx.write_graphml(network(), path)
    path.write_text(path.read_text().replace("?>", f"?>{entity}", 1))
    with pytest.raises(FileError, match="declares a document type or entities"):
        read_graph(str(path))


@pytest.mark.parametrize(
    "suffix",
    [*WRITERS, ".mtx", ".graph", ".h5", ".parquet", ".mat", ".pkl", ".npz", ".npy", ".pt", ".csv"],
)
@pytest.mark.parametrize("content", [b"", b"\x00\x01nonsense\xff", b"[1, 2", b"1 2 3\nx y z\n"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"g{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileError) as error:
        read_graph(str(path))
    assert str(path) in str(error.value)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"reading HDF5 needs h5py.*gsym\[files\]"):
        load_signals(str(tmp_path / "a.h5"))


def test_what_expands_is_refused_before_it_is_read(tmp_path):
    huge = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"x": huge}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    header = np.lib.format.header_data_from_array_1_0(np.zeros(1))
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (2**20, 2**20)})
    for name in ("x.pt", "x.npy"):
        with pytest.raises(FileError, match=r"in memory 8192.0 GiB; files of up to 4 GiB"):
            load_signals(str(tmp_path / name))
    np.savez(tmp_path / "g.npz", edge_index=np.array([[0], [1]]), num_nodes=10**12)
    with pytest.raises(FileError, match="1,000,000,000,000 nodes, which do not fit"):
        read_graph(str(tmp_path / "g.npz"))
