"""PenguinConv and Penguin: the limits, the bound, every kind of alpha, four broken symmetries."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.check import assert_equivariant, equivariance_error
from gsym.errors import GraphError, GroupError, SignalError
from gsym.nn import EGNN, EGNNConv, Penguin, PenguinConv
from gsym_bench.simulators.partial import EDGE_INDEX as PAIRS
from gsym_bench.simulators.partial import WALL, blow, fall, heights, places, pull, slide

N, D, H = 7, 3, 5

# Node 6 is isolated, node 0 has a self-loop, edge 1 -> 2 comes twice, most have no reverse.
EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4, 5, 0, 2], [0, 2, 2, 1, 4, 0, 0, 4, 5, 5]])
E = EDGES.size(1)
LEG_ARM = ClusterGroup(Partition.from_labels([0, 0, 0, 1, 1, 2, 2]))
LEARNED = ("learned", "node", "edge", "feature")

OPTIONS = {
    "plain": {},
    "other width": {"out_channels": 4},
    "orbits": {"group": LEG_ARM},
    "act": {"group": LEG_ARM, "act": "gelu"},
    "all": {
        "attention": True,
        "coord_aggr": "sum",
        "tanh": True,
        "velocity": True,
        "edge_dim": 2,
        "learn_axis": True,
        "group": LEG_ARM,
    },
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def signal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def randomised(layer):
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def make(name: str = "plain", cls=PenguinConv, **more):
    return cls(**{"in_channels": 2, "out_channels": 2, "hidden_channels": H} | OPTIONS[name] | more)


def inputs(layer, *batch: int, n: int = N, edges: int = E) -> dict[str, Tensor]:
    given = {"x": signal(*batch, n, layer.in_channels), "pos": signal(*batch, n, D)}
    if layer.edge_dim:
        given["edge_attr"] = signal(*batch, edges, layer.edge_dim)
    if layer.velocity:
        given["velocity"] = signal(*batch, n, D)
    return given


def call(layer, given, edge_index: Tensor = EDGES, **more):
    return layer(edge_index=edge_index, **given, **more)


def node_map(linear, x: Tensor, node: int) -> Tensor:
    orbit = 0
    if linear.weight.size(0) > 1:
        orbit = int(LEG_ARM.node_orbits().index[node])
    y = x @ linear.weight[orbit]
    return y if linear.bias is None else y + linear.bias[orbit]


def node_mlp(mlp, x: Tensor, node: int) -> Tensor:
    return node_map(mlp.last, act_of(mlp)(node_map(mlp.first, x, node)), node)


def act_of(part):
    return F.silu if part.act is None else part.act


def free_by_formula(free, x, pos, edge_index, edge_attr=None, velocity=None):
    """The free branch of section B.3 for one sample, one edge after another."""
    place = pos if velocity is None else torch.cat([pos, velocity], dim=-1)
    messages = [torch.zeros(H, dtype=x.dtype) for _ in x]
    for k, (j, i) in enumerate(edge_index.T.tolist()):
        first = node_map(free.edges.target, torch.cat([x[i], place[i]]), i)
        first = first + node_map(free.edges.source, torch.cat([x[j], place[j]]), j)
        if edge_attr is not None:
            first = first + free.edges.attr @ edge_attr[k]
        second = free.edges.second
        act = act_of(free.edges)
        messages[i] = messages[i] + act(second.weight @ act(first) + second.bias)
    new_x, new_pos = [], []
    for i, m in enumerate(messages):
        new = node_mlp(free.update, torch.cat([x[i], m]), i)
        new_x.append(x[i] + new if free.residual else new)
        new_pos.append(pos[i] + node_mlp(free.move, torch.cat([place[i], m]), i))
    return torch.stack(new_x), torch.stack(new_pos)


def alpha_by_formula(estimator, x, pos, edge_index) -> Tensor:
    """The Equivariance Estimator of section B.3 for one sample, ``[n, 1]`` or ``[n, F + 1]``."""
    place = torch.cat([x, pos], dim=-1)
    if estimator.mode == "learned":
        return estimator.logit.sigmoid().expand(x.size(0), 1)
    if estimator.mode != "edge":
        return torch.stack(
            [node_mlp(estimator.nodes, place[i], i).sigmoid() for i in range(x.size(0))]
        )
    target, source = estimator.ends
    scores: list[list[Tensor]] = [[] for _ in x]
    for j, i in edge_index.T.tolist():
        hidden = act_of(estimator)(node_map(target, place[i], i) + node_map(source, place[j], j))
        scores[i].append((estimator.last.weight @ hidden + estimator.last.bias).sigmoid())
    one = torch.ones(1, dtype=x.dtype)
    return torch.stack([sum(s) / len(s) if s else one for s in scores])


def assert_same(layer, fast, slow, given, *, optional: tuple[str, ...] = ()) -> None:
    """Equal values, and equal gradients of every parameter and input by name."""
    directions = [torch.randn_like(y) for y in fast]
    leaves = {
        name: p for name, p in layer.named_parameters() if not name.startswith(optional or "-")
    } | given
    gradients = []
    for outputs in (fast, slow):
        total = sum((y * d).sum() for y, d in zip(outputs, directions, strict=True))
        gradients.append(torch.autograd.grad(total, list(leaves.values()), materialize_grads=True))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for name, ours, theirs in zip(leaves, *gradients, strict=True):
        assert theirs.norm() > 1e-9, f"nothing depends on {name}"
        distance = (ours - theirs).norm() / theirs.norm()
        assert distance < 1e-10, f"the gradient of {name} is off by {distance:.1e}"


def by_sample(function, given):
    count = given["x"].size(0)
    samples = [function(**{key: value[b] for key, value in given.items()}) for b in range(count)]
    return [torch.stack(parts) for parts in zip(*samples, strict=True)]


def orthogonal(d: int = D) -> Tensor:
    return torch.linalg.qr(signal(d, d))[0]


def defect(layer, given, q: Tensor, shift: Tensor, **more) -> tuple[Tensor, Tensor]:
    """``f(gx) - g f(x)`` for features and coordinates."""
    moved = dict(given, pos=given["pos"] @ q.T + shift)
    if "velocity" in given:
        moved["velocity"] = given["velocity"] @ q.T
    with torch.no_grad():
        (x, pos), (y, place) = call(layer, given, **more), call(layer, moved, **more)
    return y - x, place - (pos @ q.T + shift)


def train(layer, given, steps: int = 5, **more) -> None:
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.03)
    targets = [torch.randn_like(y) for y in call(layer, given, **more)]
    for _ in range(steps):
        optimiser.zero_grad()
        outputs = call(layer, given, **more)
        sum((y - t).square().mean() for y, t in zip(outputs, targets, strict=True)).backward()
        optimiser.step()


# The limits and the definition


@pytest.mark.parametrize("name", OPTIONS)
def test_alpha_one_is_egnn_with_the_same_weights(name):
    layer = randomised(make(name, alpha=1))
    options = {"in_channels": 2, "out_channels": 2, "hidden_channels": H, "dim": D}
    egnn = EGNNConv(**options | OPTIONS[name]).double()
    egnn.load_state_dict(layer.equivariant.state_dict())
    given = inputs(layer, 2)
    expected = call(egnn, given)
    one = torch.ones((), dtype=torch.float64)
    per_feature = torch.ones(2, N, layer.out_channels + 1, dtype=torch.float64)
    for more in ({}, {"alpha": 1.0}, {"alpha": one}, {"alpha": per_feature}):
        for ours, theirs in zip(call(layer, given, **more), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIONS)
def test_alpha_zero_is_the_free_network(name):
    layer = randomised(make(name, alpha=0))
    given = {key: value.requires_grad_() for key, value in inputs(layer, 2).items()}
    slow = by_sample(lambda **s: free_by_formula(layer.free, edge_index=EDGES, **s), given)
    assert_same(layer, call(layer, given), slow, given, optional=("equivariant",))
    zero = torch.zeros(N, 1, dtype=torch.float64)
    for ours, theirs in zip(call(layer, given, alpha=zero), slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("alpha", [0.3, *LEARNED])
def test_the_blend_is_its_formula(alpha, name):
    layer = randomised(make(name, alpha=alpha))
    given = {key: value.requires_grad_() for key, value in inputs(layer, 2).items()}

    def blend(x, pos, **more):
        if layer.estimator is None:
            score = torch.full((N, 1), 0.3, dtype=torch.float64)
        else:
            score = alpha_by_formula(layer.estimator, x, pos, EDGES)
        width = layer.out_channels
        score = score if score.size(1) > 1 else score.expand(N, width + 1)
        full = layer.equivariant(x, pos, EDGES, **more)
        free = free_by_formula(layer.free, x, pos, EDGES, **more)
        return tuple(
            part * e + (1 - part) * n
            for part, e, n in zip((score[:, :width], score[:, width:]), full, free, strict=True)
        )

    assert_same(layer, call(layer, given), by_sample(blend, given), given)


@pytest.mark.parametrize("alpha", LEARNED)
def test_a_stack_scores_its_input_once(alpha):
    net = randomised(make("plain", Penguin, alpha=alpha, num_layers=2, hidden_channels=H))
    given = inputs(net, 2)
    score = net.symmetry_score(given["x"], given["pos"], EDGES)
    x, pos = net.first(given["x"]), given["pos"]
    for conv in net.convs:
        x, pos = conv(x, pos, EDGES, alpha=score)
    for ours, theirs in zip(call(net, given), (net.last(x), pos), strict=True):
        torch.testing.assert_close(ours, theirs)
    for b in range(2):
        one = alpha_by_formula(net.estimator, given["x"][b], given["pos"][b], EDGES)
        found = score if alpha == "learned" else score[b]
        torch.testing.assert_close(found.expand_as(one), one)


def test_a_stack_at_alpha_one_is_egnn():
    net = randomised(make("plain", Penguin, alpha=1, num_layers=2))
    egnn = EGNN(2, 2, H, 2, dim=D).double()
    state = {
        name.replace(".equivariant", ""): value
        for name, value in net.state_dict().items()
        if ".free." not in name
    }
    egnn.load_state_dict({name: state[name] for name in egnn.state_dict()})
    given = inputs(net, 2)
    for ours, theirs in zip(call(net, given), call(egnn, given), strict=True):
        assert torch.equal(ours, theirs)


# Symmetry of coordinates


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_error_is_bounded_by_that_of_the_free_branch(alpha):
    layer = make("plain", alpha=alpha, velocity=True).double()
    given, q, shift = inputs(layer, 2), orthogonal(), signal(D)
    for _ in range(2):
        ours = defect(layer, given, q, shift)
        free = defect(layer, given, q, shift, alpha=0.0)
        for part, bound in zip(ours, free, strict=True):
            assert bound.norm() > 1e-6  # a free branch that commutes would bound nothing
            assert part.norm() <= (1 - alpha) * bound.norm() + 1e-12
            # The equivariant branch has no error, so the bound is reached.
            torch.testing.assert_close(part, (1 - alpha) * bound, rtol=1e-8, atol=1e-12)
        train(layer, given, alpha=0.5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, *LEARNED])
def test_free_and_half_free_layers_do_not_commute(alpha):
    layer = randomised(make("plain", alpha=alpha))
    x, pos = defect(layer, inputs(layer, 2), orthogonal(), signal(D))
    assert x.norm() > 0.1
    assert pos.norm() > 0.1


@pytest.mark.parametrize("alpha", ["node", "edge"])
def test_hard_scores_are_symmetric_exactly_where_they_are_one(alpha):
    layer = randomised(make("plain", alpha=alpha, hard=True))
    given, q, shift = inputs(layer, 8), orthogonal(), signal(D)
    moved = given["pos"] @ q.T + shift
    scores = [layer.symmetry_score(given["x"], pos, EDGES) for pos in (given["pos"], moved)]
    both = (scores[0] == 1) & (scores[1] == 1)
    assert both.any()
    assert not both.all()
    x, pos = defect(layer, given, q, shift)
    off = torch.cat([x, pos], dim=-1).norm(dim=-1, keepdim=True)
    assert off[both].max() < 1e-12
    assert off[~both].max() > 1e-2


@pytest.mark.parametrize("alpha", LEARNED)
def test_hard_scores_are_rounded_and_still_learn(alpha):
    soft = randomised(make("plain", alpha=alpha))
    hard = make("plain", alpha=alpha, hard=True).double()
    hard.load_state_dict(soft.state_dict())
    given = inputs(soft, 2)
    found = [layer.symmetry_score(given["x"], given["pos"], EDGES) for layer in (soft, hard)]
    if alpha != "edge":
        assert torch.equal(found[1], (found[0] > 0.5).double())
        assert found[1].unique().numel() <= 2
    sum(y.square().sum() for y in call(hard, given)).backward()
    for name, parameter in hard.estimator.named_parameters():
        assert parameter.grad.norm() > 0, name


# Nodes


def as_signal(layer, edge_index: Tensor):
    def function(z: Tensor):
        return layer(z[..., :2], z[..., 2:], edge_index)

    return function


@pytest.mark.parametrize("alpha", [0.0, 0.5, *LEARNED])
def test_commutes_with_its_group_and_no_more(alpha):
    complete = torch.tensor([(i, j) for i, j in product(range(N), range(N)) if i != j]).T
    z = signal(2, N, 2 + D)
    tied = as_signal(randomised(make("orbits", alpha=alpha)), complete)
    assert_equivariant(tied, LEG_ARM, z, tolerance=1e-12)
    for outside in ([(0, 1, 3)], [(0, 3, 5)]):
        other = PermutationGroup.from_cycles(N, outside)
        assert equivariance_error(tied, other, z) > 0.01, outside
    plain = as_signal(randomised(make("plain", alpha=alpha)), complete)
    assert_equivariant(plain, PermutationGroup.symmetric(N), z, tolerance=1e-12)


@pytest.mark.parametrize("cls", [PenguinConv, Penguin])
def test_the_state_of_another_group_is_refused(cls):
    other = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1, 2, 2]))
    source, target = make("orbits", cls), make("orbits", cls, group=other)
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    with pytest.raises(GroupError, match="saved with another group"):
        target.load_state_dict(source.state_dict())
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, before[name]), name
    make("orbits", cls).load_state_dict(source.state_dict())


# Batches, the compiler, derivatives, initialisation


@pytest.mark.parametrize("alpha", [0.3, *LEARNED])
def test_a_batch_is_a_loop_over_samples(alpha):
    net = randomised(make("all", Penguin, alpha=alpha, num_layers=2))
    given = inputs(net, 2, 3)
    x, pos = call(net, given)
    for b, t in product(range(2), range(3)):
        alone = call(net, {key: value[b, t] for key, value in given.items()})
        torch.testing.assert_close(x[b, t], alone[0])
        torch.testing.assert_close(pos[b, t], alone[1])
    stacked = {key: value[0].flatten(0, 1) for key, value in given.items()}
    found = call(net, stacked, batch_size=3)
    torch.testing.assert_close(found[0], x[0].flatten(0, 1))
    torch.testing.assert_close(found[1], pos[0].flatten(0, 1))


@pytest.mark.parametrize("cls", [PenguinConv, Penguin])
@pytest.mark.parametrize("per_feature", [False, True])
def test_a_given_score_may_be_stacked_as_the_signal_is(cls, per_feature):
    layer = randomised(make("plain", cls, alpha="given"))
    given = inputs(layer, 3)
    alpha = signal(3, N, layer.scored_channels + 1 if per_feature else 1).sigmoid()
    stacked = {key: value.flatten(0, 1) for key, value in given.items()}
    for score, flat in ((alpha, alpha.flatten(0, 1)), (alpha[0], alpha[0])):
        expected = call(layer, given, alpha=score)
        found = call(layer, stacked, alpha=flat, batch_size=3)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs.flatten(0, 1))
    with pytest.raises(SignalError, match=r"alpha must be .* got \[20, "):
        call(layer, stacked, alpha=alpha.flatten(0, 1)[1:], batch_size=3)
    alpha[1, 4, 0] = 2
    with pytest.raises(SignalError, match=r"0\.\.1; got 2\.0 at node 4"):
        call(layer, stacked, alpha=alpha.flatten(0, 1), batch_size=3)


# tests/test_module_behaviour.py compiles the other ways to find alpha.
@pytest.mark.parametrize(
    ("options", "alpha"), [("plain", 0.3), ("all", "edge"), ("plain", "feature")]
)
def test_compiles_in_one_graph_for_all_batch_sizes(options, alpha):
    torch.compiler.reset()
    net = randomised(make(options, Penguin, alpha=alpha, num_layers=1))
    call(net, inputs(net, 2))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for b in (2, 3, 5):
        given = {key: value.requires_grad_() for key, value in inputs(net, b).items()}
        assert_same(net, call(compiled, given), call(net, given), given)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("alpha", ["edge", "feature"])
def test_derivatives(alpha):
    conv = randomised(make("plain", alpha=alpha, hidden_channels=2))
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 2]])
    given = inputs(conv, 1, n=3)
    names = [name for name, _ in conv.named_parameters()]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values[: len(names)], strict=True))
        signals = dict(zip(given, values[len(names) :], strict=True))
        return functional_call(conv, parameters, (), {"edge_index": edge_index, **signals})

    values = [v.detach().requires_grad_() for v in (*conv.parameters(), *given.values())]
    assert gradcheck(function, values, fast_mode=True)
    assert gradgradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("alpha", [0.0, 0.5, *LEARNED])
def test_twenty_layers_neither_explode_nor_vanish(alpha):
    n = 40
    complete = torch.tensor([(i, j) for i, j in product(range(n), range(n)) if i != j]).T
    net = Penguin(4, None, 32, 20, alpha=alpha)
    x, pos = torch.randn(n, 4), 5 * torch.randn(n, 3)
    y, place = net(x, pos, complete)
    ratio = (y.square().mean() / net.first(x).square().mean()).item()
    assert 0.2 < ratio < 5
    assert (place - pos).norm() < pos.norm()
    (y.square().mean() + place.square().mean()).backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


# The four categories of broken symmetry, each in a small world. The learned alpha finds it.


def fit(layer, x: Tensor, pos: Tensor, edge_index: Tensor, target: Tensor, steps: int) -> float:
    """Train on the new coordinates; return the last loss relative to staying where one is."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (layer(x, pos, edge_index)[1] - target).square().mean()
        loss.backward()
        optimiser.step()
    return (loss / (pos - target).square().mean()).item()


def test_regional_alpha_is_high_far_from_a_wall_and_low_near_it():
    pos = places(256, 2)
    target, near = slide(pos), pos[..., :1] > WALL
    layer = PenguinConv(1, 1, 16, alpha="node", dim=2)
    x = torch.ones(256, 4, 1)
    assert fit(layer, x, pos, PAIRS, target, 200) < 0.2
    with torch.no_grad():
        score = layer.symmetry_score(x, pos, PAIRS)
    far = pos[..., :1] < 0
    assert score[far].mean() > score[near].mean() + 0.3


def test_approximate_alpha_follows_how_much_is_broken():
    # Both branches can fit a symmetric world, so a small price of freedom must decide.
    found = []
    for wind in (0.0, 3.0):
        torch.manual_seed(1)
        layer = PenguinConv(1, 1, 16, alpha="learned", dim=2)
        rest = [p for name, p in layer.named_parameters() if "logit" not in name]
        optimiser = torch.optim.Adam(
            [{"params": rest}, {"params": [layer.estimator.logit], "lr": 0.03}], lr=0.01
        )
        for _ in range(300):
            pos, x = places(64, 2), torch.ones(64, 4, 1)
            optimiser.zero_grad()
            target = blow(pos, wind)
            loss = (layer(x, pos, PAIRS)[1] - target).square().mean()
            (loss + 0.05 * (1 - layer.symmetry_score(x, pos, PAIRS))).backward()
            optimiser.step()
        found.append(float(layer.symmetry_score(x, pos, PAIRS).detach()))
    assert found[0] > found[1] + 0.2, found


def test_feature_wise_alpha_tells_the_coordinates_from_the_features():
    pos, x = torch.randn(128, 4, 2), torch.ones(128, 4, 1)
    layer = PenguinConv(1, 1, 16, alpha="feature", dim=2)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(250):  # features read off the absolute height, coordinates move symmetrically
        optimiser.zero_grad()
        y, place = layer(x, pos, PAIRS)
        loss = (y - 2 * heights(pos)).square().mean() + (place - pull(pos)).square().mean()
        loss = loss + 0.05 * (1 - layer.symmetry_score(x, pos, PAIRS)).mean()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        features, place = layer.symmetry_score(x, pos, PAIRS).mean((0, 1))
    assert place > features + 0.2, (features, place)


@pytest.mark.parametrize("seed", range(2))
def test_subgroup_alpha_stays_one_where_the_axis_can_be_learned(seed):
    layers, losses = {}, {}
    for learn_axis in (False, True):
        torch.manual_seed(seed)
        # Rounded, lest small free weights that grow let alpha be anything.
        conv = PenguinConv(1, 1, 16, alpha="learned", hard=True, learn_axis=learn_axis)
        rest = [p for name, p in conv.named_parameters() if "logit" not in name]
        optimiser = torch.optim.Adam(
            [{"params": rest}, {"params": [conv.estimator.logit], "lr": 0.03}], lr=0.01
        )
        for _ in range(200):
            pos, x = torch.randn(64, 4, 3), torch.ones(64, 4, 1)
            optimiser.zero_grad()
            loss = (conv(x, pos, PAIRS)[1] - fall(pos)).square().mean()
            (loss + 0.02 * (1 - conv.symmetry_score(x, pos, PAIRS))).backward()
            optimiser.step()
        layers[learn_axis], losses[learn_axis] = conv, loss.item()
    x, pos = torch.ones(64, 4, 1).double(), torch.randn(64, 4, 3).double()
    given, shift = {"x": x, "pos": pos}, torch.zeros(D)
    free, axial = (layers[learn_axis].double() for learn_axis in (False, True))
    assert free.symmetry_score(x, pos, PAIRS) == 0
    assert axial.symmetry_score(x, pos, PAIRS) == 1
    assert max(losses.values()) < 0.01, losses
    axis = F.normalize(axial.equivariant.axis.detach(), dim=0)
    assert axis[-1].abs() > 0.99, axis
    # Exactly the rotations about what was learned remain.
    axes = torch.stack([axis, axis.roll(1)])[:, None].expand(-1, D, -1)
    turns = torch.linalg.cross(axes, torch.eye(D).double().expand(2, -1, -1))
    around, over = torch.linalg.matrix_exp(turns)
    _, kept = defect(axial, given, around, shift, edge_index=PAIRS)
    _, broken = defect(axial, given, over, shift, edge_index=PAIRS)
    assert kept.norm() < 1e-12 * pos.norm()
    assert broken.norm() > 0.1


# Bad input

X, POS = torch.zeros(2, N, 2), torch.zeros(2, N, D)


@pytest.mark.parametrize("cls", [PenguinConv, Penguin])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 1.5}, ValueError, r"0\.\.1, 1 being all of the symmetry; got 1\.5"),
        ({"alpha": -0.1}, ValueError, r"got -0\.1"),
        ({"alpha": float("nan")}, ValueError, "got nan"),
        ({"alpha": "soft"}, ValueError, "learned, node, edge, feature, given; got 'soft'"),
        ({"alpha": None}, TypeError, "number, a tensor or a name; got NoneType"),
        ({"alpha": True}, TypeError, "got bool"),
        ({"alpha": 0.5, "hard": True}, ValueError, r"rounds a learned alpha; got alpha=0\.5"),
        ({"alpha": "given", "hard": True}, ValueError, "got alpha='given'"),
        ({"coord_aggr": "max"}, ValueError, "mean, sum; got 'max'"),
    ],
)
def test_bad_options(cls, options, error, message):
    with pytest.raises(error, match=message):
        make("plain", cls, **options)


def spoiled(value: float) -> Tensor:
    alpha = torch.full((2, N, 1), 0.5)
    alpha[1, 4] = value
    return alpha


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (None, TypeError, 'alpha="given" needs alpha in every call'),
        (2.0, ValueError, "got 2"),
        (torch.tensor(1.5), SignalError, r"0\.\.1; got 1\.5"),
        (spoiled(-0.5), SignalError, r"0\.\.1; got -0\.5 at node 4"),
        (spoiled(float("nan")), SignalError, "got nan at node 4"),
        (torch.ones(N), SignalError, r"\[\.\.\., 7, 1\] or \[\.\.\., 7, 3\]; got \[7\]"),
        (torch.ones(N, 2), SignalError, r"got \[7, 2\]"),
        (torch.ones(3, N, 1), SignalError, r"got \[3, 7, 1\]"),
        (torch.ones(N, 1).double(), SignalError, r"alpha has dtype torch\.float64 but the weights"),
        (torch.ones(N, 1, device="meta"), SignalError, r"alpha is on meta .* alpha\.to\('cpu'\)"),
        (torch.ones(N, 1).long(), SignalError, r"alpha has dtype torch\.int64"),
    ],
)
def test_bad_scores(alpha, error, message):
    with pytest.raises(error, match=message):
        make("plain", alpha="given")(X, POS, EDGES, alpha=alpha)


@pytest.mark.parametrize(
    ("call_layer", "error", "message"),
    [
        (lambda c: c(X, POS[..., :2], EDGES), SignalError, "3 coordinates but pos has 2"),
        (lambda c: c(X, POS + torch.nan, EDGES), SignalError, "node 0 of sample .0. is nan"),
        (lambda c: c(X, POS.double(), EDGES), SignalError, "pos has dtype"),
        (lambda c: c(X, POS, EDGES + 2), GraphError, "edge 7 names node 7"),
        (lambda c: c.symmetry_score(X[..., :1], POS, EDGES), SignalError, "2 channels but x"),
        (
            lambda c: c.symmetry_score(X.double(), POS.double(), EDGES),
            SignalError,
            r"x has dtype torch\.float64 but the weights of the layer torch\.float32",
        ),
        (lambda c: c.symmetry_score(X, POS.double(), EDGES), SignalError, "pos has dtype"),
    ],
)
@pytest.mark.parametrize("cls", [PenguinConv, Penguin])
def test_bad_signals(cls, call_layer, error, message):
    with pytest.raises(error, match=message):
        call_layer(make("plain", cls, alpha="node"))


def test_repr_is_that_of_pyg():
    assert repr(PenguinConv(8, 4)) == "PenguinConv(8, 4)"
    conv = PenguinConv(8, 8, 16, alpha="node", hard=True, dim=2, attention=True)
    assert repr(conv) == (
        "PenguinConv(8, 8, hidden_channels=16, attention=True, dim=2, alpha='node', hard=True)"
    )
    assert repr(PenguinConv(8, 8, alpha=1)) == "PenguinConv(8, 8, alpha=1.0)"
    assert repr(Penguin(8, 4)).count("PenguinConv(64, 64, alpha='given')") == 1
