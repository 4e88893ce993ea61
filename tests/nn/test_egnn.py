"""EGNNConv and EGNN against the formulas, edge by edge, and at the edges of their use."""

import copy
import io
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym._validate import check_positions
from gsym.check import assert_equivariant, equivariance_error
from gsym.errors import GraphError, GroupError, SignalError
from gsym.nn import EGNN, EGNNConv, Penguin, PenguinConv

N, D, H = 7, 3, 5

# Node 6 is isolated, node 0 has a self-loop, edge 1 -> 2 comes twice, most have no reverse.
EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4, 5, 0, 2], [0, 2, 2, 1, 4, 0, 0, 4, 5, 5]])
E = EDGES.size(1)
LEG_ARM = ClusterGroup(Partition.from_labels([0, 0, 0, 1, 1, 2, 2]))

OPTIONS = {
    "plain": {},
    "no residual": {"residual": False},
    "other width": {"out_channels": 4},
    "attention": {"attention": True},
    "normalize": {"normalize": True},
    "sum": {"coord_aggr": "sum"},
    "tanh": {"tanh": True},
    "clamp": {"clamp": 0.5},
    "velocity": {"velocity": True},
    "edge attributes": {"edge_dim": 2},
    "gravity": {"extra_vectors": torch.tensor([[0.0, 0.0, -9.81], [0.5, 0.0, 0.0]])},
    "axis": {"learn_axis": True, "dim": D},
    "orbits": {"group": LEG_ARM},
    "act": {"act": "prelu", "attention": True},
    "fixed": {"update_pos": False},
    "act, fixed": {
        "act": torch.nn.Tanh(),
        "update_pos": False,
        "attention": True,
        "edge_dim": 2,
        "extra_vectors": torch.tensor([[0.0, 0.0, -9.81]]),
        "group": LEG_ARM,
    },
    "all": {
        "attention": True,
        "normalize": True,
        "coord_aggr": "sum",
        "tanh": True,
        "clamp": 0.8,
        "velocity": True,
        "edge_dim": 2,
        "extra_vectors": torch.tensor([[0.0, 0.0, -9.81]]),
        "learn_axis": True,
        "group": LEG_ARM,
    },
}
EXACT = [name for name in OPTIONS if name not in ("gravity", "axis", "act, fixed", "all")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def signal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def randomised(layer):
    """The layer in float64 with all parameters random, those that start at zero included."""
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def make(name: str, cls=EGNNConv, **more):
    return cls(**{"in_channels": 2, "out_channels": 2, "hidden_channels": H} | OPTIONS[name] | more)


def inputs(layer, *batch: int, n: int = N, edges: int = E) -> dict[str, Tensor]:
    given = {"x": signal(*batch, n, layer.in_channels), "pos": signal(*batch, n, D)}
    if layer.edge_dim:
        given["edge_attr"] = signal(*batch, edges, layer.edge_dim)
    if layer.velocity:
        given["velocity"] = signal(*batch, n, D)
    return given


def call(layer, given: dict[str, Tensor], edge_index: Tensor = EDGES, **more):
    return layer(edge_index=edge_index, **given, **more)


def node_map(linear, x: Tensor, node: int) -> Tensor:
    """What NodeLinear does to one node."""
    orbit = 0
    if linear.weight.size(0) > 1:
        orbit = int(LEG_ARM.node_orbits().index[node])
    y = x @ linear.weight[orbit]
    return y if linear.bias is None else y + linear.bias[orbit]


def node_mlp(mlp, x: Tensor, node: int) -> Tensor:
    act = F.silu if mlp.act is None else mlp.act
    return node_map(mlp.last, act(node_map(mlp.first, x, node)), node)


def by_formula(conv, x, pos, edge_index, edge_attr=None, velocity=None):
    """Section A.1 and A.2 for one sample, one edge after another."""
    n, edges, option = x.size(0), conv.edges, conv.edges.options._asdict()
    act = F.silu if edges.act is None else edges.act
    vectors = [] if conv.extra_vectors is None else list(conv.extra_vectors)
    vectors += [] if conv.axis is None else [conv.axis]
    messages = [[] for _ in range(n)]
    moves = [[] for _ in range(n)]
    for k, (j, i) in enumerate(edge_index.T.tolist()):
        r = pos[i] - pos[j]
        s = (r * r).sum()
        first = node_map(edges.target, x[i], i) + node_map(edges.source, x[j], j)
        first = first + s * edges.distance
        if edge_attr is not None:
            first = first + edges.attr @ edge_attr[k]
        for g, vector in enumerate(vectors):
            first = first + (r @ vector) * conv.axis_weight[g]
        m = act(edges.second.weight @ act(first) + edges.second.bias)
        if edges.gate is not None:
            m = m * (edges.gate.weight @ m + edges.gate.bias).sigmoid()
        messages[i].append(m)
        if not conv.update_pos:
            continue
        if option["normalize"] and s > 0:  # a self-loop times 1e8 would cancel inexactly
            r = r / (s.detach().sqrt() + 1e-8)
        phi = edges.coord_last.weight @ act(edges.coord.weight @ m + edges.coord.bias)
        move = r * (phi.tanh() if option["tanh"] else phi)
        if option["clamp"] is not None and move.norm() > option["clamp"]:
            move = move * option["clamp"] / move.norm()
        moves[i].append(move)
    new_x, new_pos = [], []
    for i in range(n):
        total = sum(messages[i], torch.zeros(H, dtype=x.dtype))
        moved = sum(moves[i], torch.zeros(pos.size(1), dtype=x.dtype))
        place = pos[i] + (moved / max(len(moves[i]), 1) if option["mean"] else moved)
        if velocity is not None:
            place = place + node_mlp(conv.velocity_mlp, x[i], i) * velocity[i]
        for g, vector in enumerate(vectors if conv.update_pos else ()):
            place = place + node_mlp(conv.axis_mlp, x[i], i)[g] * vector
        new = node_mlp(conv.update, torch.cat([x[i], total]), i)
        new_x.append(x[i] + new if conv.residual else new)
        new_pos.append(place)
    return torch.stack(new_x), torch.stack(new_pos)


def assert_same(layer, fast, slow, given: dict[str, Tensor]) -> None:
    """Equal values, and equal gradients of every parameter and input by name."""
    directions = [torch.randn_like(y) for y in fast]
    leaves = dict(layer.named_parameters()) | given
    gradients = []
    for outputs in (fast, slow):
        total = sum((y * d).sum() for y, d in zip(outputs, directions, strict=True))
        gradients.append(torch.autograd.grad(total, list(leaves.values()), materialize_grads=True))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for name, ours, theirs in zip(leaves, *gradients, strict=True):
        assert theirs.norm() > 1e-6, f"nothing depends on {name}"
        distance = (ours - theirs).norm() / theirs.norm()
        assert distance < 1e-10, f"the gradient of {name} is off by {distance:.1e}"


def orthogonal(d: int = D, *, reflect: bool = False) -> Tensor:
    q = torch.linalg.qr(signal(d, d))[0]
    if (torch.linalg.det(q) < 0) != reflect:
        q[0] = -q[0]
    return q


def euclidean_error(layer, given, q: Tensor, shift: Tensor, **more) -> float:
    """How far moving the coordinates before the layer is from moving them after it."""
    moved = dict(given, pos=given["pos"] @ q.T + shift)
    if "velocity" in given:
        moved["velocity"] = given["velocity"] @ q.T
    with torch.no_grad():
        (x, pos), (y, place) = call(layer, given, **more), call(layer, moved, **more)
    pos = pos @ q.T + shift
    return max(float((x - y).norm() / x.norm()), float((pos - place).norm() / pos.norm()))


def complete(n: int) -> Tensor:
    return torch.tensor([(i, j) for i, j in product(range(n), range(n)) if i != j]).T


# Definition


@pytest.mark.parametrize("name", OPTIONS)
def test_conv_is_its_formula(name):
    conv = randomised(make(name))
    given = {key: value.requires_grad_() for key, value in inputs(conv, 2).items()}
    samples = [
        by_formula(conv, edge_index=EDGES, **{key: value[b] for key, value in given.items()})
        for b in range(2)
    ]
    slow = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    assert_same(conv, call(conv, given), slow, given)


def test_clamp_binds_some_edges_and_not_others():
    # Otherwise the test above compares nothing.
    conv = randomised(make("clamp"))
    given = inputs(conv)
    results = [call(conv, given)[1]]
    for clamp in (1e9, 1e-9):
        conv.edges.options = conv.edges.options._replace(clamp=clamp)
        results.append(call(conv, given)[1])
    bound, free, still = results
    changed = ((bound - free).abs() > 1e-9).any(-1)
    moved = ((free - still).abs() > 1e-6).any(-1)
    assert changed.any()
    assert (moved & ~changed).any()


def test_messages_are_received_at_the_second_row():
    conv = randomised(make("plain"))
    given = inputs(conv)
    x, _ = call(conv, given, torch.tensor([[0], [1]]))
    alone, _ = call(conv, given, torch.empty(2, 0, dtype=torch.int64))
    changed = (x != alone).any(-1).tolist()
    assert changed == [False, True, False, False, False, False, False]


def test_the_published_parameter_counts():
    def count(*modules) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    net = EGNN(1, None, 64, 4, velocity=True, edge_dim=2)
    conv = net.convs[0]
    assert count(net) == 134_020
    assert count(net.first) == 128
    assert [count(c) for c in net.convs] == [33_473] * 4
    coord = count(conv.edges.coord, conv.edges.coord_last)
    assert count(conv.edges) - coord == 12_608
    assert count(conv.update) == 12_416
    assert coord == 4_224
    assert count(conv.velocity_mlp) == 4_225


# Euclidean symmetry


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("cls", [EGNNConv, EGNN])
@pytest.mark.parametrize("name", EXACT)
def test_commutes_with_every_motion(name, cls, reflect):
    layer = make(name, cls).double()
    given, q, shift = inputs(layer, 2), orthogonal(reflect=reflect), signal(D)
    assert (torch.linalg.det(q) < 0) == reflect
    assert euclidean_error(layer, given, q, shift) < 1e-12
    train(layer, given)
    assert euclidean_error(layer, given, q, shift) < 1e-12
    # Coordinates that are not turned along do not commute: the test can fail.
    _, pos = call(layer, given)
    assert (pos @ q.T - pos).norm() > 0.1
    skewed = torch.diag(torch.tensor([1.0, 2.0, 1.0]).double())
    assert euclidean_error(layer, given, skewed, shift) > 1e-3


def train(layer, given, steps: int = 5) -> None:
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.03)
    targets = [torch.randn_like(y) for y in call(layer, given)]
    for _ in range(steps):
        optimiser.zero_grad()
        outputs = call(layer, given)
        sum((y - t).square().mean() for y, t in zip(outputs, targets, strict=True)).backward()
        optimiser.step()


@pytest.mark.parametrize("d", [1, 2, 4])
def test_any_number_of_coordinates(d):
    conv = randomised(make("plain"))
    given = {"x": signal(N, 2), "pos": signal(N, d)}
    assert euclidean_error(conv, given, orthogonal(d), signal(d)) < 1e-12


@pytest.mark.parametrize("cls", [EGNNConv, EGNN])
@pytest.mark.parametrize("name", ["gravity", "axis"])
def test_vectors_keep_exactly_their_stabiliser(name, cls):
    more = {"extra_vectors": OPTIONS["gravity"]["extra_vectors"][:1]} if name == "gravity" else {}
    layer = make(name, cls, **more).double()
    given, shift = inputs(layer, 2), signal(D)
    any_turn = orthogonal()
    assert euclidean_error(layer, given, any_turn, shift) < 1e-12  # at the start all of E(d)
    train(layer, given)
    conv = layer if cls is EGNNConv else layer.convs[0]
    axis = (conv.extra_vectors[0] if name == "gravity" else layer.axis).detach()
    basis = torch.linalg.qr(torch.cat([axis[:, None], signal(D, 2)], dim=1))[0]
    for reflect in (False, True):
        inside = torch.eye(D, dtype=torch.float64)
        inside[1:, 1:] = orthogonal(2, reflect=reflect)
        inside = basis @ inside @ basis.T
        torch.testing.assert_close(inside @ axis, axis)
        assert euclidean_error(layer, given, inside, shift) < 1e-12
    upside_down = torch.eye(D, dtype=torch.float64) - 2 * basis[:, :1] @ basis[:, :1].T
    for outside in (any_turn, upside_down):
        assert euclidean_error(layer, given, outside, shift) > 1e-3


def test_each_of_both_ways_sees_the_vector():
    for part in ("axis_weight", "axis_mlp"):
        conv = randomised(make("axis"))
        with torch.no_grad():
            if part == "axis_weight":
                conv.axis_mlp.last.weight.zero_()
                conv.axis_mlp.last.bias.zero_()
            else:
                conv.axis_weight.zero_()
        assert euclidean_error(conv, inputs(conv), orthogonal(), torch.zeros(D)) > 1e-2


def test_a_stack_learns_one_axis():
    net = make("axis", EGNN)
    for stack in (net, copy.deepcopy(net)):
        assert [name for name, _ in stack.named_parameters() if name.endswith("axis")] == ["axis"]
        assert all(conv.axis is None for conv in stack.convs)


@pytest.mark.parametrize("cls", [EGNN, Penguin])
def test_a_stack_learns_one_axis_after_its_state_is_assigned(cls):
    saved = randomised(make("axis", cls))
    with torch.device("meta"):
        net = make("axis", cls).double()
    inside = torch.nn.Sequential(net)  # whose children's load_state_dict is not called
    state = {f"0.{name}": value for name, value in saved.state_dict().items()}
    inside.load_state_dict(state, assign=True)
    axes = [p for name, p in net.named_parameters() if name.endswith("axis")]
    assert len(axes) == 1
    assert torch.equal(axes[0], saved.state_dict()["axis"])
    given = inputs(net)
    train(net, given)
    again = make("axis", cls).double()
    again.load_state_dict(net.state_dict())
    for one, other in zip(call(again, given), call(net, given), strict=True):
        assert torch.equal(one, other)


def test_gravity_far_from_the_origin_in_float32():
    conv = randomised(make("gravity")).float()
    given = {key: value.float() for key, value in inputs(conv).items()}
    given["pos"] = (given["pos"] * 64).round() / 64  # so that the shift is exact
    x, _ = call(conv, given)
    y, _ = call(conv, dict(given, pos=given["pos"] + 4096))
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


# Nodes


@pytest.mark.parametrize("name", ["plain", "act, fixed", "all"])
def test_relabelling_everything(name):
    perm = torch.tensor([1, 2, 0, 4, 3, 5, 6])  # within the orbits of LEG_ARM, with a 3-cycle
    conv = randomised(make(name))
    given = inputs(conv, 2)
    inverse = torch.argsort(perm)
    shuffle = torch.randperm(E)
    moved = {key: v[:, inverse] for key, v in given.items() if key != "edge_attr"}
    if "edge_attr" in given:
        moved["edge_attr"] = given["edge_attr"][:, shuffle]
    found = call(conv, moved, perm[EDGES][:, shuffle])
    for ours, theirs in zip(found, call(conv, given), strict=True):
        torch.testing.assert_close(ours[:, perm], theirs, rtol=1e-12, atol=1e-12)


def as_signal(layer, edge_index: Tensor):
    """The layer as a map of one signal, features and coordinates side by side."""

    def function(z: Tensor):
        return layer(z[..., : layer.in_channels], z[..., layer.in_channels :], edge_index)

    return function


@pytest.mark.parametrize("cls", [EGNNConv, EGNN])
def test_commutes_with_its_group_and_no_more(cls):
    layer = randomised(make("orbits", cls))
    f, z = as_signal(layer, complete(N)), signal(2, N, 2 + D)
    assert_equivariant(f, LEG_ARM, z, tolerance=1e-12)
    for outside in ([(0, 1, 3)], [(0, 3, 5)], [(3, 5)]):
        other = PermutationGroup.from_cycles(N, outside)
        assert equivariance_error(f, other, z) > 0.01, outside
    free = randomised(make("plain", cls))
    everything = PermutationGroup.symmetric(N)
    assert_equivariant(as_signal(free, complete(N)), everything, z, tolerance=1e-12)


def test_a_directed_graph_and_a_three_cycle():
    ring = torch.tensor([[0, 1, 2], [1, 2, 0]])
    group = PermutationGroup.from_cycles(4, [(0, 1, 2)])
    f = as_signal(randomised(make("plain", group=group)), ring)
    z = signal(4, 2 + D)
    assert_equivariant(f, group, z, tolerance=1e-12)
    assert equivariance_error(f, PermutationGroup.from_cycles(4, [(0, 1)]), z) > 0.01


def test_orbits_have_weights_of_their_own():
    conv = make("orbits")
    for name, parameter in conv.named_parameters():
        if name.startswith(("edges.target", "edges.source", "update")):
            assert parameter.size(0) == LEG_ARM.node_orbits().num_orbits == 3, name
    given = {key: value.float() for key, value in inputs(conv, 4).items()}
    train(conv, given)
    for name, parameter in conv.named_parameters():
        if parameter.dim() == 3:
            assert not torch.equal(parameter[0], parameter[1]), name
            assert not torch.equal(parameter[1], parameter[2]), name


@pytest.mark.parametrize("cls", [EGNNConv, EGNN])
def test_the_state_of_another_group_is_refused(cls):
    other = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1, 2, 2]))
    source, target = make("orbits", cls), make("orbits", cls, group=other)
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    with pytest.raises(GroupError, match="saved with another group"):
        target.load_state_dict(source.state_dict())
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, before[name]), name
    again = ClusterGroup(Partition.from_labels([0, 0, 0, 1, 1, 2, 2]))
    make("orbits", cls, group=again).load_state_dict(source.state_dict())


@pytest.mark.parametrize("name", ["gravity", "all"])
def test_state_round_trip_through_a_file(name):
    saved = randomised(make(name, EGNN))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    more = {"extra_vectors": torch.zeros_like(OPTIONS[name]["extra_vectors"])}
    loaded = make(name, EGNN, **more).double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    given = inputs(saved)
    for ours, theirs in zip(call(loaded, given), call(saved, given), strict=True):
        assert torch.equal(ours, theirs)


# Batches, layouts, graphs


@pytest.mark.parametrize("name", ["plain", "all"])
def test_a_batch_is_a_loop_over_samples(name):
    net = randomised(make(name, EGNN))
    given = inputs(net, 2, 3)
    x, pos = call(net, given)
    for b, t in product(range(2), range(3)):
        alone = call(net, {key: value[b, t] for key, value in given.items()})
        torch.testing.assert_close(x[b, t], alone[0])
        torch.testing.assert_close(pos[b, t], alone[1])
    turned = call(net, {key: value.transpose(0, 1) for key, value in given.items()})
    torch.testing.assert_close(turned[0], x.transpose(0, 1))
    nothing = call(net, {key: value[:0] for key, value in given.items()})
    assert [list(y.shape) for y in nothing] == [[0, 3, N, 2], [0, 3, N, D]]


def test_edge_attributes_of_the_graph_serve_all_samples():
    conv = randomised(make("edge attributes"))
    given = inputs(conv, 3)
    given["edge_attr"] = given["edge_attr"][0]
    x, _ = call(conv, given)
    given["edge_attr"] = given["edge_attr"].expand(3, -1, -1)
    torch.testing.assert_close(call(conv, given)[0], x)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_stacked_batch_of_one_graph(name):
    conv = randomised(make(name))
    given = inputs(conv, 3)
    expected = call(conv, given)
    data = [
        Data(edge_index=EDGES, num_nodes=N, **{key: v[b] for key, v in given.items()})
        for b in range(3)
    ]
    batch = next(iter(DataLoader(data, batch_size=3)))
    stacked = {key: batch[key] for key in given}
    found = call(conv, stacked, batch.edge_index, batch_size=3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(0, 1))
    if name == "plain":  # without a group the batch is one large graph as well
        for ours, theirs in zip(call(conv, stacked, batch.edge_index), expected, strict=True):
            torch.testing.assert_close(ours, theirs.flatten(0, 1))


def test_graphs_in_turn_and_changed_in_place():
    conv = randomised(make("edge attributes"))
    given = inputs(conv)
    edge_index = EDGES.clone()
    for graph in (edge_index, EDGES.flip(0), edge_index, edge_index.clone()):
        torch.testing.assert_close(
            call(conv, given, graph), by_formula(conv, edge_index=graph, **given)
        )
    edge_index[1, 3] = 6
    torch.testing.assert_close(
        call(conv, given, edge_index), by_formula(conv, edge_index=edge_index, **given)
    )


@pytest.mark.parametrize("cls", [EGNNConv, EGNN, PenguinConv, Penguin])
def test_an_edge_index_of_pyg_is_the_tensor_within(cls):
    layer = randomised(make("all" if cls in (EGNNConv, EGNN) else "edge attributes", cls))
    given = {key: value.requires_grad_() for key, value in inputs(layer, 3).items()}
    wrapped = EdgeIndex(EDGES.clone(), sparse_size=(N, N))
    found = call(layer, given, wrapped)
    assert_same(layer, found, call(layer, given), given)

    data = [Data(edge_index=wrapped, **{k: v[b] for k, v in given.items()}) for b in range(3)]
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert type(batch.edge_index) is EdgeIndex
    stacked = {key: batch[key] for key in given}
    for ours, theirs in zip(
        call(layer, stacked, batch.edge_index, batch_size=3), found, strict=True
    ):
        torch.testing.assert_close(ours, theirs.flatten(0, 1))

    # A wrapper and what it wraps count their changes each for itself.
    for changed in (wrapped, wrapped.as_tensor()):
        call(layer, given, wrapped)
        changed[1, 3] = (changed[1, 3] + 1) % N
        plain = wrapped.as_tensor().clone()
        after = call(layer, given, wrapped)
        for ours, theirs in zip(after, call(layer, given, plain), strict=True):
            assert torch.equal(ours, theirs)


def test_no_edges_and_no_nodes():
    conv = randomised(make("gravity"))
    none = torch.empty(2, 0, dtype=torch.int64)
    given = inputs(conv)
    torch.testing.assert_close(call(conv, given, none), by_formula(conv, edge_index=none, **given))
    empty = call(conv, inputs(conv, n=0), none)
    assert [list(y.shape) for y in empty] == [[0, 2], [0, D]]


def test_stacked_graphs_without_edges_take_attributes():
    conv = EGNNConv(2, 2, H, 2).double()
    none = torch.empty(2, 0, dtype=torch.int64)
    x, pos, attr = signal(6, 2), signal(6, D), signal(0, 2)
    stacked = conv(x, pos, none, attr, batch_size=3)
    batched = conv(x.view(3, 2, 2), pos.view(3, 2, D), none, attr)
    for one, other in zip(stacked, batched, strict=True):
        torch.testing.assert_close(one, other.flatten(0, 1))


@pytest.mark.parametrize("graph", [EDGES, EdgeIndex(EDGES, sparse_size=(N, N))])
def test_an_equal_graph_may_be_seen_before_compiling(graph):
    conv = make("plain")
    given = {name: value.float() for name, value in inputs(conv).items()}
    call(conv, given, EDGES.clone())
    eager = call(conv, given, graph)
    compiled = torch.compile(conv, fullgraph=True, backend="eager")
    for one, other in zip(call(compiled, given, graph), eager, strict=True):
        torch.testing.assert_close(one, other)


# The compiler and derivatives


@pytest.mark.parametrize("name", ["plain", "act, fixed", "all"])
def test_compiles_in_one_graph_for_all_batch_sizes(name):
    torch.compiler.reset()
    net = randomised(make(name, EGNN, num_layers=1))
    call(net, inputs(net, 2))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for b in (2, 3, 5):
        given = {key: value.requires_grad_() for key, value in inputs(net, b).items()}
        assert_same(net, call(compiled, given), call(net, given), given)
    # A float among the options makes the compiler begin its first graph again.
    assert counter.frame_count <= 2 + ("clamp" in OPTIONS[name])


def test_trains_with_inductor_and_two_threads():
    torch.compiler.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        net = make("edge attributes", EGNN, num_layers=1)
        twin = copy.deepcopy(net)
        steps = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (net, twin)]
        call(net, {key: value.float() for key, value in inputs(net, 2).items()})
        compiled = torch.compile(net, fullgraph=True, dynamic=True)
        for b in (2, 3, 40, 129):
            given = {key: value.float() for key, value in inputs(net, b).items()}
            results = []
            for layer, owner, step in zip((compiled, twin), (net, twin), steps, strict=True):
                leaves = {key: value.clone().requires_grad_() for key, value in given.items()}
                step.zero_grad()
                y, pos = call(layer, leaves)
                (y.square().mean() + pos.square().mean()).backward()
                grads = {name: p.grad.clone() for name, p in owner.named_parameters()}
                grads |= {name: leaf.grad for name, leaf in leaves.items()}
                step.step()
                results.append({"y": y.detach(), "new pos": pos.detach()} | grads)
            ours, theirs = results
            assert ours.keys() == theirs.keys()
            for name, expected in theirs.items():
                assert expected.norm() > 0, f"nothing depends on {name}"
                distance = (ours[name] - expected).norm() / expected.norm()
                assert distance < 1e-4, f"{name} of batch {b} is off by {distance:.1e}"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["plain", "act, fixed", "all"])
def test_derivatives(name):
    # normalize detaches the length, so its derivative is not that of its values.
    more = {"normalize": False, "hidden_channels": 2}
    if name != "plain":
        more["group"] = ClusterGroup(Partition.from_labels([0, 1, 1]))
    conv = randomised(make(name, **more))
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 2]])
    given = inputs(conv, 1, n=3, edges=3)
    names = [name for name, _ in conv.named_parameters()]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values[: len(names)], strict=True))
        signals = dict(zip(given, values[len(names) :], strict=True))
        return functional_call(conv, parameters, (), {"edge_index": edge_index, **signals})

    values = [v.detach().requires_grad_() for v in (*conv.parameters(), *given.values())]
    assert gradcheck(function, values, fast_mode=True)
    assert gradgradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_coincident_points_have_finite_gradients(name):
    conv = randomised(make(name))
    given = inputs(conv)
    given["pos"] = torch.zeros_like(given["pos"])
    given = {key: value.requires_grad_() for key, value in given.items()}
    outputs = call(conv, given)
    gradients = torch.autograd.grad(
        sum(y.square().sum() for y in outputs), list(given.values()), create_graph=True
    )
    sum(g.square().sum() for g in gradients).backward()
    for tensor in (*outputs, *gradients, *(value.grad for value in given.values())):
        assert tensor.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in conv.parameters())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
def test_precisions_agree(dtype, tolerance):
    net = make("all", EGNN).double()
    given = inputs(net, 2)
    wide = call(net, given)
    narrow = call(net.to(dtype), {key: value.to(dtype) for key, value in given.items()})
    for ours, theirs in zip(narrow, wide, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() < tolerance * theirs.norm()


def test_autocast():
    net = make("all", EGNN, group=None)
    given = {key: value.float() for key, value in inputs(net, 2).items()}
    wide = call(net, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = call(net, given)
    for ours, theirs in zip(narrow, wide, strict=True):
        assert (ours - theirs).norm() < 5e-2 * theirs.norm()


# Initialisation


@pytest.mark.parametrize("scale", [1, 10])
@pytest.mark.parametrize("coord_aggr", ["mean", "sum"])
@pytest.mark.parametrize("graph", ["ring", "complete"])
def test_twenty_layers_neither_explode_nor_vanish(graph, coord_aggr, scale):
    n = 60
    ring = torch.stack([torch.arange(n), torch.arange(1, n + 1) % n])
    edge_index = ring if graph == "ring" else complete(n)
    net = EGNN(4, None, 64, 20, coord_aggr=coord_aggr)
    x, pos = torch.randn(n, 4), scale * torch.randn(n, 3)
    y, place = net(x, pos, edge_index)
    ratio = y.square().mean() / net.first(x).square().mean()
    assert 0.2 < ratio < 5, ratio
    assert (place - pos).norm() < pos.norm()
    (y.square().mean() + place.square().mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_reset_keeps_the_small_starts():
    conv = randomised(make("axis")).float()
    conv.reset_parameters()
    assert conv.edges.coord_last.weight.abs().max() < 1e-2
    assert conv.update.last.weight.abs().max() < 1e-2
    assert not conv.axis_weight.any()
    assert not conv.axis_mlp.last.weight.any()
    assert float(conv.axis.detach().norm()) == pytest.approx(1, rel=1e-5)
    bound = conv.edges.fan_in**-0.5
    assert conv.edges.fan_in == 5
    for parameter in (conv.edges.target.weight, conv.edges.source.weight, conv.edges.distance):
        assert 0 < parameter.abs().max() <= bound


# Bad input

X, POS = torch.zeros(2, N, 2), torch.zeros(2, N, D)


def spoiled(value: float, *place: int) -> Tensor:
    pos = POS.clone()
    pos[place] = value
    return pos


BAD_CALLS = {
    "integers": (lambda c: c(X.long(), POS, EDGES), SignalError, r"convert with x\.float"),
    "channels": (lambda c: c(X[..., :1], POS, EDGES), SignalError, "2 channels but x has 1"),
    "list": (lambda c: c(X, POS.tolist(), EDGES), TypeError, "pos must be a tensor.*list"),
    "nodes": (
        lambda c: c(X, POS[:, 1:], EDGES),
        SignalError,
        r"leading axes of x, \[2, 7\]; got \[2, 6, 3\]",
    ),
    "NaN": (
        lambda c: c(X, spoiled(float("nan"), 1, 4, 2), EDGES),
        SignalError,
        r"coordinate 2 of node 4 of sample \[1\] is nan",
    ),
    "infinite": (
        lambda c: c(X[0], spoiled(float("inf"), 0, 3, 0)[0], EDGES),
        SignalError,
        "coordinate 0 of node 3 is inf",
    ),
    "mixed": (
        lambda c: c(X, POS.double(), EDGES),
        SignalError,
        r"pos has dtype torch\.float64 but the weights of the layer torch\.float32",
    ),
    "double": (
        lambda c: c(X.double(), POS.double(), EDGES),
        SignalError,
        r"x has dtype torch\.float64.*layer\.to\(torch\.float64\)",
    ),
    "out of range": (lambda c: c(X, POS, EDGES + 2), GraphError, r"0\.\.6; edge 7 names node 7"),
    "negative": (lambda c: c(X, POS, EDGES - 1), GraphError, r"edge 0 names node -1"),
    "float edges": (lambda c: c(X, POS, EDGES.float()), GraphError, r"int64; got torch\.float32"),
    "sparse": (
        lambda c: c(X, POS, torch.eye(N).to_sparse()),
        GraphError,
        r"dense tensor \[2, e\]; got layout torch\.sparse_coo and shape \[7, 7\].*to_edge_index",
    ),
    "SparseTensor": (
        lambda c: c(X, POS, type("SparseTensor", (), {})()),
        TypeError,
        r"got SparseTensor; convert.*torch_geometric\.utils\.to_edge_index",
    ),
    "transposed": (lambda c: c(X, POS, EDGES.T), GraphError, "transpose it"),
    "device": (lambda c: c(X, POS, EDGES.to("meta")), GraphError, "edge_index is on meta but x"),
    "attributes": (
        lambda c: c(X, POS, EDGES, torch.zeros(E, 1)),
        GraphError,
        "build it with edge_dim",
    ),
    "velocity": (
        lambda c: c(X, POS, EDGES, velocity=POS),
        TypeError,
        "velocity=False takes no velocity",
    ),
    "stack": (
        lambda c: c(X.view(-1, 2), POS.view(-1, D), EDGES, batch_size=3),
        SignalError,
        "14 rows, not a multiple of batch_size=3",
    ),
}


@pytest.mark.parametrize("cls", [EGNNConv, EGNN])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, cls):
    function, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        function(make("plain", cls))


def test_finite_coordinates_may_have_an_infinite_sum():
    pos = torch.full((N, D), torch.finfo(torch.float32).max)
    assert not pos.sum().isfinite()
    check_positions(pos, X[0], D)
    pos[2, 1] = torch.inf
    pos[5, 0] = -torch.inf
    with pytest.raises(SignalError, match="coordinate 1 of node 2 is inf"):
        check_positions(pos, X[0], D)


@pytest.mark.parametrize(
    ("edge_attr", "message"),
    [
        (None, r"takes edge_attr \[e, 2\] \(edge_dim\); got None"),
        (torch.zeros(E, 3), r"2 numbers for each of 10 edges.*got \[10, 3\]"),
        (torch.zeros(E - 1, 2), r"got \[9, 2\]"),
        (torch.zeros(3, E, 2), r"got \[3, 10, 2\]"),
    ],
)
def test_bad_edge_attributes(edge_attr, message):
    with pytest.raises(GraphError, match=message):
        make("edge attributes")(X, POS, EDGES, edge_attr)


def test_bad_velocity_and_groups():
    with pytest.raises(TypeError, match="velocity=True needs velocity"):
        make("velocity")(X, POS, EDGES)
    with pytest.raises(SignalError, match="takes 3 coordinates but velocity has 2"):
        make("velocity")(X, POS, EDGES, velocity=POS[..., :2])
    with pytest.raises(SignalError, match="acts on 7 nodes but x has 6"):
        make("orbits")(X[:, :6], POS[:, :6], EDGES)
    with pytest.raises(SignalError, match="takes 3 coordinates but pos has 2"):
        make("axis")(X, POS[..., :2], EDGES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"out_channels": 3, "residual": True}, ValueError, "as many channels.*got 2 and 3"),
        ({"coord_aggr": "max"}, ValueError, "mean, sum; got 'max'"),
        ({"clamp": float("inf")}, ValueError, "between 1e-15 and 1e15; got inf"),
        ({"clamp": 0.0}, ValueError, "between 1e-15 and 1e15; got 0"),
        ({"learn_axis": True}, ValueError, "needs dim"),
        ({"extra_vectors": torch.zeros(3)}, SignalError, r"\[k, d\]; got \[3\]"),
        ({"extra_vectors": torch.zeros(1, 3), "dim": 2}, SignalError, r"\[k, 2\]; got \[1, 3\]"),
        ({"extra_vectors": torch.full((1, 3), torch.nan)}, SignalError, "must be finite"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make("plain", **options)


def test_bad_depth():
    with pytest.raises(ValueError, match=r"at least 1 .*; got 0"):
        EGNN(2, 2, num_layers=0)


MAPS = ("edges.target", "edges.source", "update.first", "update.last")


@pytest.mark.parametrize("name", MAPS)
def test_maps_that_are_listened_to_or_replaced_are_called(name):
    torch.manual_seed(0)
    conv = EGNNConv(16, 16, 16)
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    x, pos = torch.randn(3, 16), torch.randn(3, 3)
    expected = conv(x, pos, edge_index)
    part, seen = conv.get_submodule(name), []
    handle = part.register_forward_hook(lambda *args: seen.append(name))
    for a, b in zip(conv(x, pos, edge_index), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert seen == [name]
    handle.remove()
    # As adapters of low rank do it.
    double = torch.nn.Sequential(copy.deepcopy(part), torch.nn.Threshold(-1e9, 0.0))
    parent, _, child = name.rpartition(".")
    setattr(conv.get_submodule(parent), child, double)
    for a, b in zip(conv(x, pos, edge_index), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_maps_of_nodes_take_function_transforms():
    conv = EGNNConv(16, 16, 16)
    x, beside = torch.randn(4, 5, 16), torch.randn(4, 5, 16)
    found = torch.func.vmap(conv.update)(x, beside)
    assert torch.allclose(found, conv.update(x, beside), atol=1e-6)
    slope = torch.func.grad(lambda t: conv.update(t, beside).sum())(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(conv.update(leaf, beside).sum(), leaf)
    assert torch.allclose(slope, expected, atol=1e-6)


def test_a_layer_elsewhere_than_its_signal_is_an_error():
    conv = EGNNConv(16, 16, 16).to("meta")
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    with pytest.raises(SignalError, match=r"x is on cpu but the weights .* on meta; move one with"):
        conv(torch.randn(3, 16), torch.randn(3, 3), edge_index)


@pytest.mark.parametrize("cls", [EGNNConv, EGNN, PenguinConv, Penguin])
def test_what_lies_elsewhere_is_named(cls):
    layer, attr = make("edge attributes", cls), torch.zeros(E, 2)
    x, pos, edge_index = X.to("meta"), POS.to("meta"), EDGES.to("meta")
    with pytest.raises(SignalError, match=r"edge_attr is on meta .* edge_attr\.to\('cpu'\)"):
        layer(X, POS, EDGES, attr.to("meta"))
    with pytest.raises(SignalError, match="pos is on meta but x on cpu; move one"):
        layer(X, pos, EDGES, attr)
    with pytest.raises(GraphError, match="edge_index is on cpu but x on meta; move one"):
        layer(x, pos, EDGES, attr)
    with pytest.raises(GraphError, match="edge_index is on meta and has no values"):
        layer(x, pos, edge_index, attr)


@pytest.mark.parametrize("cls", [EGNNConv, EGNN, PenguinConv, Penguin])
def test_autocast_refuses_what_it_does_not_cast(cls):
    layer, attr = make("edge attributes", cls), torch.zeros(E, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given, message in (
            ((X.double(), POS, attr), r"x has dtype torch\.float64.*autocast does not mix"),
            ((X, POS.double(), attr), r"pos has dtype .* convert with pos\.to\(torch\.float32\)"),
            ((X, POS.long(), attr), r"pos has dtype torch\.int64"),
            ((X, POS, attr.double()), r"edge_attr has dtype torch\.float64"),
            ((X, POS, attr.long()), r"edge_attr has dtype torch\.int64.*\.to\(torch\.float32\)$"),
        ):
            x, pos, edge_attr = given
            with pytest.raises(SignalError, match=message):
                layer(x, pos, EDGES, edge_attr)
        layer(X.bfloat16(), POS, EDGES, attr)
        y, _ = layer.double()(X.double(), POS.double(), EDGES, attr.double())
    assert y.dtype == torch.float64


def test_repr_is_that_of_pyg():
    assert repr(EGNNConv(8, 4)) == "EGNNConv(8, 4)"
    conv = EGNNConv(
        8, 8, 16, 2, group=LEG_ARM, residual=False, attention=True, clamp=2.0, coord_aggr="sum"
    )
    assert repr(conv) == (
        "EGNNConv(8, 8, hidden_channels=16, edge_dim=2, "
        f"group={LEG_ARM!r}, residual=False, attention=True, coord_aggr='sum', clamp=2.0)"
    )
    conv = EGNNConv(8, 4, extra_vectors=torch.eye(3), learn_axis=True, velocity=True)
    assert repr(conv) == "EGNNConv(8, 4, velocity=True, extra_vectors=[3, 3], learn_axis=True)"
    assert repr(EGNNConv(8, 4, dim=2).to("meta")) == "EGNNConv(8, 4, dim=2)"
    conv = EGNNConv(8, 4, act=F.relu, update_pos=False)
    assert repr(conv) == "EGNNConv(8, 4, act='relu', update_pos=False)"
    assert repr(PenguinConv(8, 4, act="elu")) == "PenguinConv(8, 4, act=ELU(alpha=1.0))"
    assert repr(EGNNConv(8, 4, act=torch.nn.SiLU())) == "EGNNConv(8, 4)"
    assert repr(EGNN(1, 2)).count("EGNNConv(64, 64)") == 1
