"""The graph that a layer has prepared is the graph it is called with, whatever happened to it."""

import copy
import pickle
import threading

import pytest
import torch

from gsym import ClusterGroup, Partition
from gsym.nn import EGNNConv, GNetConv, Penguin

A = torch.tensor([[0, 1, 2, 3, 1, 0], [1, 2, 3, 0, 0, 1]])
B = torch.tensor([[3, 2, 1, 0, 2, 3], [0, 3, 2, 1, 1, 0]])
X, POS = torch.randn(2, 4, 8), torch.randn(2, 4, 3)
GROUP = ClusterGroup(Partition.from_labels([0, 1, 0, 1]))


class Net(torch.nn.Module):
    """A layer and its graph, which travels with it as a buffer."""

    def __init__(self, make, edge_index):
        super().__init__()
        self.register_buffer("edge_index", edge_index)
        self.layer = make()

    def forward(self, edge_index=None):
        given = self.edge_index if edge_index is None else edge_index
        args = (X,) if isinstance(self.layer, GNetConv) else (X, POS)
        y = self.layer(*args, given)
        return y if isinstance(y, torch.Tensor) else torch.cat(y, dim=-1)


def egnn():
    conv = EGNNConv(8, 8, 16)
    torch.nn.init.normal_(conv.edges.coord_last.weight)
    return conv


MAKE = {
    "egnn": egnn,
    "adjacency": lambda: GNetConv(8, 8, GROUP),
    "pointwise": lambda: GNetConv(8, 8, GROUP, propagate="pointwise"),
    "penguin": lambda: Penguin(8, 8, 16, num_layers=2),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def fresh(net, edge_index):
    """What a net with the same weights says that never saw another graph."""
    make = copy.deepcopy(net)
    return make(edge_index.clone())


def row_by_row(edges):
    """A tensor that was written to twice."""
    built = torch.empty_like(edges)
    built[0], built[1] = edges[0], edges[1]
    return built


def by_numpy(tensor):
    tensor.numpy()[:] = B.numpy()


WRITES = {
    "in place": lambda e: e.copy_(B),
    "numpy": by_numpy,
    "data": lambda e: e.data.copy_(B),
    "other data": lambda e: setattr(e, "data", B.clone()),
    "swap_tensors": lambda e: torch.utils.swap_tensors(e, B.clone()),
    "detached": lambda e: e.detach().numpy().__setitem__(..., B.numpy()),
    "storage": lambda e: e.untyped_storage().copy_(B.clone().untyped_storage()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("shared", [False, True], ids=["own memory", "shared memory"])
def test_a_write_that_no_counter_sees(make, write, shared):
    edge_index = A.clone().share_memory_() if shared else A.clone()
    net = Net(make, edge_index)
    before = net(edge_index)
    write(edge_index)
    after = net(edge_index)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh(net, B))


def test_a_write_under_inference_mode(make):
    with torch.inference_mode():
        edge_index = A.clone()
        net = Net(make, edge_index)
        net(edge_index)
        edge_index.copy_(B)
        after = net(edge_index).clone()
    torch.testing.assert_close(after, fresh(net, B))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_that_loads_another_graph(make, through):
    net, other = Net(make, row_by_row(A)), Net(make, B.clone())
    net()
    twin = through(net)
    twin.load_state_dict(other.state_dict())
    torch.testing.assert_close(twin(), other())


def test_copies_start_empty_and_apart(make):
    net = Net(make, A.clone())
    expected = net()
    twin = copy.deepcopy(net)
    twin(B)
    torch.testing.assert_close(net(), expected)
    torch.testing.assert_close(copy.copy(net)(B), fresh(net, B))
    torch.testing.assert_close(net(), expected)


def test_threads_share_a_layer(make):
    """Without the pair in one piece, some of some thousand calls answered with the other graph."""
    net, graphs = Net(make, A.clone()), (A, B)
    with torch.no_grad():
        expected = [net(edges).clone() for edges in graphs]
    wrong, calls = [], []

    def work(i):
        for _ in range(150):
            with torch.no_grad():
                found = net(graphs[i].clone())
            calls.append(i)
            if not torch.allclose(found, expected[i], atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 600 and not wrong


def test_compiled_code_refuses_a_graph_that_changed(make):
    torch.compiler.reset()
    net, edge_index = Net(make, A.clone()), A.clone()
    expected = net(edge_index)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(edge_index), expected)
    for write in (by_numpy, lambda e: e.data.copy_(A.flip(0))):
        write(edge_index)
        with pytest.raises(RuntimeError, match="changed in place"):
            compiled(edge_index)
    net(edge_index)
    torch.testing.assert_close(compiled(edge_index), fresh(net, A.flip(0)))
