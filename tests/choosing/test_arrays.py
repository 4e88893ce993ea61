"""coarsen and choose_group take the same kinds of arrays and graphs, and refuse the same faults."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from torch_geometric.data import Data

from gsym import Hierarchy, Partition, choose_group, coarsen
from gsym.errors import GraphError, SignalError

N = 6
# Numbers that every type below holds exactly.
X = torch.randint(-8, 8, (12, N), generator=torch.Generator().manual_seed(0)).double()
RING = torch.tensor(
    [[*range(N), *[(i + 1) % N for i in range(N)]], [*[(i + 1) % N for i in range(N)], *range(N)]]
)
LEVELS = [Partition.singletons(N), Partition([0, 0, 0, 1, 1, 1]), Partition.single(N)]


def coarsened(x=X, graph=None):
    h = coarsen(graph, N, signals=x, method="ward")
    assert isinstance(h, Hierarchy)
    return h.merges.tolist()


def chosen(x=X, graph=None):
    return list(choose_group(LEVELS, x, edge_index=graph).scores.items())


CALLS = {"coarsen": coarsened, "choose_group": chosen}
BOTH = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
KINDS = {
    "float32": X.float(),
    "float16": X.half(),
    "bfloat16": X.bfloat16(),
    "integers": X.long(),
    "with a gradient": X.clone().requires_grad_(),
    "transposed": X.T.contiguous().T,
    "channels": X[..., None],
    "NumPy": X.numpy(),
    "Fortran order": np.asfortranarray(X.numpy()),
    "backwards": X.numpy()[::-1, ::-1].copy()[::-1, ::-1],
    "pandas": pd.DataFrame(X.numpy()),
    "lists": X.tolist(),
}
FAULTS = {
    "a text": "x",
    "texts": np.array([["a"] * N]),
    "complex": X.to(torch.complex64),
    "ragged": [[1.0, 2.0], [3.0]],
    "one axis": X[0],
    "four axes": X[None, None],
    "no samples": X[:0],
    "no channels": X[..., None][..., :0],
    "NaN": X * float("nan"),
    "infinite": X * float("inf"),
    "huge": X * 1e100,
    "masked": np.ma.masked_array(X.numpy(), mask=X.numpy() > 1),
    "sparse": X.to_sparse(),
    "SciPy sparse": csr_array(X.numpy()),
    "on meta": X.to("meta"),
    "quantised": torch.quantize_per_tensor(X.float(), 0.1, 0, torch.qint8),
}
A = nx.to_numpy_array(nx.cycle_graph(N))
GRAPHS = {
    "NetworkX": nx.cycle_graph(N),
    "SciPy": csr_array(A),
    "NumPy": A,
    "PyG": Data(edge_index=RING, num_nodes=N),
}
BAD_GRAPHS = {
    "a node too many": (RING + 1, GraphError),
    "other nodes": (nx.cycle_graph(N + 1), GraphError),
    "not square": (A[:, :3], GraphError),
    "weights that are not finite": (A * float("nan"), GraphError),
    "fractions": (RING.double(), GraphError),
    "a text": ("graph", TypeError),
    "lists": (RING.tolist(), TypeError),
}


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_kind_give_one_answer(call, kind):
    assert call(KINDS[kind]) == call()


@BOTH
@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_faults_are_the_same_errors(call, fault):
    with pytest.raises(SignalError, match=r"^(x|signals) (must|reaches)"):
        call(FAULTS[fault])


@BOTH
@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_of_any_kind_give_one_answer(call, kind):
    assert call(graph=GRAPHS[kind]) == call(graph=RING)


@BOTH
@pytest.mark.parametrize("fault", BAD_GRAPHS)
def test_the_same_graphs_are_refused(call, fault):
    graph, error = BAD_GRAPHS[fault]
    with pytest.raises(error, match=r"graph|edge|node|adjacency"):
        call(graph=graph)


def test_ragged_targets_are_named():
    with pytest.raises(SignalError, match="y must be real numbers"):
        choose_group(LEVELS, X, [[1.0, 2.0], [3.0]])
