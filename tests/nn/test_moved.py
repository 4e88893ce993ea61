"""Every layer whose group may move channels: exact with it, and each planted fault rejected.

Layers on coordinates are maps of one signal, features and coordinates side by side. Coordinates
are reflected or turned along, as a mirror of a body does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.check import assert_equivariant, check_layer, equivariance_error
from gsym.errors import GroupError
from gsym.nn import EGNN, EGNNConv, GNet, GNetConv, OrbitLinear, Penguin, PenguinConv
from gsym.nn._moved import HiddenLinear, MovedLinear
from gsym.nn._nodewise import NodeLinear

D = 3
MIRROR = PermutationGroup.from_cycles(5, [(0, 1), (2, 3)])
# The mirror preserves this graph, in which nodes 2 and 3 hang on 0 and 1, and these on 4.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 4], [4, 4, 0, 1, 0, 1]])
POSE = Representation.from_signs(MIRROR, [[-1, 1]])
OTHER = Representation.from_signs(MIRROR, [[1, -1]])
LATERAL = Representation.from_signs(MIRROR, [[-1, 1, 1]])


class Spatial(nn.Module):
    """A layer on features and coordinates as a map of one signal."""

    def __init__(self, layer: nn.Module, edge_index: Tensor = EDGES) -> None:
        super().__init__()
        self.layer, self.edge_index = layer, edge_index
        self.in_channels, self.out_channels = layer.in_channels + D, layer.out_channels + D

    def forward(self, z: Tensor) -> Tensor:
        c = self.layer.in_channels
        return torch.cat(self.layer(z[..., :c], z[..., c:], self.edge_index), dim=-1)


class OnGraph(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.in_channels, self.out_channels = layer, 2, 2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, EDGES)


def spatial(cls, group, first, second, width=4, edge_index=EDGES, **options) -> nn.Module:
    widths = [2 if rep is None else rep.num_channels for rep in (first, second)]
    if cls in (EGNN, Penguin):
        options["num_layers"] = 1
    return Spatial(
        cls(*widths, width, group=group, in_rep=first, out_rep=second, **options), edge_index
    )


# With the representations of either side; None for those that a faulty layer does not know.
Make = Callable[..., nn.Module]
LAYERS: dict[str, Make] = {
    "OrbitLinear": lambda a, b, **_: OrbitLinear(2, 2, MIRROR, in_rep=a, out_rep=b),
    "GNetConv": lambda a, b, **_: OnGraph(GNetConv(2, 2, MIRROR, in_rep=a, out_rep=b)),
    "GNet": lambda a, b, **o: OnGraph(GNet([2, 4, 2], MIRROR, in_rep=a, out_rep=b, **o)),
    "EGNNConv": lambda a, b, **o: spatial(EGNNConv, MIRROR, a, b, **o),
    "EGNN": lambda a, b, **o: spatial(EGNN, MIRROR, a, b, **o),
    "PenguinConv": lambda a, b, **o: spatial(PenguinConv, MIRROR, a, b, pos_rep=LATERAL, **o),
    "Penguin": lambda a, b, **o: spatial(Penguin, MIRROR, a, b, pos_rep=LATERAL, alpha="node", **o),
}
DEEP = [name for name in LAYERS if name not in ("OrbitLinear", "GNetConv")]


def sides(name: str, first=POSE, second=POSE) -> dict[str, Representation]:
    if name in ("OrbitLinear", "GNetConv", "GNet"):
        return {"in_rep": first, "out_rep": second}
    return {"in_rep": first + LATERAL, "out_rep": second + LATERAL}


def randomised(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer.double()


def signal(layer: nn.Module, n: int = 5) -> Tensor:
    return torch.randn(3, n, layer.in_channels, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_exact_with_the_sign_and_not_without(name: str) -> None:
    layer = randomised(LAYERS[name](POSE, POSE))
    x = signal(layer)
    assert_equivariant(layer, MIRROR, x, **sides(name), tolerance=1e-12)
    assert equivariance_error(layer, MIRROR, x) > 1e-2
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
    assert all((p.grad != 0).any() for p in layer.parameters())
    assert_equivariant(layer, MIRROR, x, **sides(name), tolerance=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_planted_faults_are_rejected(name: str) -> None:
    """No sign, and the sign on another channel, on either side."""
    for first, second in ((None, None), (OTHER, OTHER), (POSE, None)):
        layer = randomised(LAYERS[name](first, second))
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(layer, MIRROR, signal(layer), **sides(name), tolerance=1e-3)


@pytest.mark.parametrize("name", DEEP)
def test_signs_before_the_activation_are_refused_by_name(name: str) -> None:
    activation = "ReLU" if name == "GNet" else "SiLU"
    match = rf'{activation}.*not odd.*change their signs.*use hidden="regular"'
    with pytest.raises(GroupError, match=match):
        LAYERS[name](POSE, POSE, hidden=POSE)
    layer = LAYERS[name](POSE, POSE, hidden=Representation.regular(MIRROR))
    assert_equivariant(randomised(layer), MIRROR, signal(layer), **sides(name), tolerance=1e-12)


@pytest.mark.parametrize("name", DEEP)
def test_signs_before_the_activation_are_rejected_where_nobody_refuses(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module in ("gnet", "_moved"):
            patch.setattr(f"gsym.nn.{module}.hidden_rep", lambda *_, **__: 2 * POSE)
        layer = LAYERS[name](POSE, POSE, hidden=POSE)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(randomised(layer), MIRROR, signal(layer), **sides(name), tolerance=1e-3)


def test_what_is_no_homomorphism_is_refused_before_any_layer() -> None:
    three = PermutationGroup.from_cycles(4, [(0, 1, 2)])
    with pytest.raises(GroupError, match=r"g0\^3 keeps every node but moves channels"):
        Representation.from_signs(three, [[-1, 1]])


def rotation(parts: int, size: int = 2) -> Tensor:
    c, s = math.cos(2 * math.pi / parts), math.sin(2 * math.pi / parts)
    turn = torch.eye(size, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn


def complete(n: int) -> Tensor:
    return torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).T


FOUR = PermutationGroup.from_cycles(5, [(0, 1, 2, 3)])
SIX = PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4)])
THREE = PermutationGroup.from_cycles(4, [(0, 1, 2)])
TURN = ClusterGroup(
    Partition.from_labels([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
ORDERS = {
    "3, by a permutation": (
        Representation.from_permutation(TURN, [[1, 2, 0]]),
        Representation.from_matrices(TURN, [rotation(3, 3)]),
        6,
    ),
    "3, by matrices": (
        Representation.from_matrices(THREE, [rotation(3)]),
        Representation.from_matrices(THREE, [rotation(3, 3)]),
        6,
    ),
    "4": (
        Representation(FOUR, [[1, 0]], [[1, -1]]),
        Representation.from_matrices(FOUR, [rotation(4, 3)]),
        4,
    ),
    "6": (
        Representation(SIX, [[1, 2, 0]], [[-1, -1, -1]]),
        Representation.from_matrices(SIX, [rotation(6, 3)]),
        6,
    ),
}


@pytest.mark.parametrize("cls", [EGNNConv, EGNN, PenguinConv, Penguin])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_above_two(cls, order: str) -> None:
    """Coordinates turn along: the Euclidean branch needs no word of that, the free one does."""
    rep, places, width = ORDERS[order]
    group, n = rep.group, rep.group.num_nodes
    options = {} if cls in (EGNNConv, EGNN) else {"pos_rep": places, "alpha": "edge"}
    layer = randomised(spatial(cls, group, rep, rep, width, complete(n), **options))
    z, both = signal(layer, n), rep + places
    assert_equivariant(layer, group, z, in_rep=both, out_rep=both, tolerance=1e-12)
    # Not with the inverse, which a swap could not tell.
    inverse = Representation.from_matrices(group, both.matrices.mT)
    assert equivariance_error(layer, group, z, in_rep=inverse, out_rep=inverse) > 1e-3


def test_the_free_branch_has_to_know_how_coordinates_move() -> None:
    layer = randomised(spatial(PenguinConv, MIRROR, POSE, POSE))
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(layer, MIRROR, signal(layer), **sides("PenguinConv"), tolerance=1e-3)
    still = Representation.trivial(MIRROR, D)
    reps = {"in_rep": POSE + still, "out_rep": POSE + still}
    assert_equivariant(layer, MIRROR, signal(layer), **reps, tolerance=1e-12)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (EGNNConv, {"attention": True, "tanh": True, "clamp": 0.5, "normalize": True}),
        (EGNNConv, {"learn_axis": True, "dim": D}),
        (EGNNConv, {"hidden": "trivial"}),
        (EGNNConv, {"residual": False}),
        (EGNN, {"hidden": "trivial", "learn_axis": True, "dim": D}),
        (PenguinConv, {"alpha": "feature"}),
        (PenguinConv, {"alpha": "edge", "hard": True}),
        (PenguinConv, {"alpha": 0.0}),
        (PenguinConv, {"hidden": "trivial", "alpha": "node"}),
        (Penguin, {"alpha": "feature"}),
        (Penguin, {"hidden": "trivial"}),
    ],
)
def test_options(cls, options: dict[str, object]) -> None:
    layer = randomised(spatial(cls, MIRROR, POSE, OTHER, **options))
    still = Representation.trivial(MIRROR, D)
    reps = {"in_rep": POSE + still, "out_rep": OTHER + still}
    z = signal(layer)
    assert_equivariant(layer, MIRROR, z, **reps, tolerance=1e-12)
    assert equivariance_error(layer, MIRROR, z) > 1e-3


def test_attributes_and_velocities() -> None:
    """Attributes stay with their edge; velocities are reflected as coordinates are."""
    torch.manual_seed(0)
    options = {"in_rep": POSE, "out_rep": POSE, "velocity": True}
    attr = torch.randn(3, 2, dtype=torch.float64).repeat_interleave(2, 0)[[0, 1, 2, 3, 4, 5]]
    for cls, more in ((EGNNConv, {}), (PenguinConv, {"pos_rep": LATERAL})):
        layer = randomised(cls(2, 2, 4, 2, group=MIRROR, **options, **more))

        def function(z: Tensor, layer=layer) -> Tensor:
            x, pos, velocity = z.split((2, D, D), dim=-1)
            return torch.cat(layer(x, pos, EDGES, attr, velocity=velocity), dim=-1)

        z = torch.randn(3, 5, 2 + 2 * D, dtype=torch.float64)
        reps = {"in_rep": POSE + LATERAL + LATERAL, "out_rep": POSE + LATERAL}
        assert_equivariant(function, MIRROR, z, **reps, tolerance=1e-12)


def test_regular_hidden_channels_keep_odd_information_at_nodes_that_stay() -> None:
    """Node 4 is fixed: with trivial hidden channels its odd input is lost, with regular not."""
    x = torch.zeros(2, 5, 2, dtype=torch.float64)
    x[0, 4, 0] = 1.0
    alone = torch.tensor([[4], [4]])
    for kind, reaches in (("regular", True), ("trivial", False)):
        layer = EGNNConv(2, 2, 4, group=MIRROR, in_rep=POSE, out_rep=POSE, hidden=kind)
        new, _ = randomised(layer)(x, torch.zeros(2, 5, D, dtype=torch.float64), alone)
        new = new - x  # the residual keeps it anyway
        assert bool((new[0, 4] - new[1, 4]).abs().max() > 1e-6) == reaches


def test_kit() -> None:
    """The conformance kit moves the channels of these layers as well."""
    plane = Representation.from_matrices(THREE, [rotation(3)])
    places = Representation.trivial(THREE, D)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3]])
    reps = {"in_rep": plane + places, "out_rep": plane + places}
    report = check_layer(
        lambda _: spatial(EGNNConv, THREE, plane, plane, 3, edges),
        THREE,
        **reps,
        dimension=None,
        compile_backend="eager",
    )
    assert {"equivariant", "not over-tied", "live parameters", "gradgradcheck"} <= set(
        report.passed
    )


def test_weights_are_as_many_as_theory_says() -> None:
    """Maps of nodes span what commutes at a node; maps of edges what commutes with channels."""
    layer = EGNNConv(2, 2, 8, group=MIRROR, in_rep=POSE, out_rep=POSE)
    target = layer.edges.target
    assert isinstance(target, MovedLinear) and isinstance(layer.edges.second, HiddenLinear)
    # At the fixed node and at one of each exchanged pair: 2 * 8 / 2 and 2 * 8 twice.
    assert target.weight.numel() == 8 + 16 + 16
    assert layer.edges.second.entries.numel() == 8 * 8 / 2
    assert layer.edges.second.weight.shape == (8, 8)
    swap = Representation.regular(MIRROR, 4).matrix(MIRROR.generators[0])
    weight = layer.double().edges.second.weight
    torch.testing.assert_close(swap @ weight @ swap.T, weight)
    torch.testing.assert_close(swap @ layer.edges.second.bias, layer.edges.second.bias)


def test_channels_that_stay_get_ordinary_maps() -> None:
    still = Representation.trivial(MIRROR, 2)
    plain = EGNNConv(2, 2, 8, group=MIRROR)
    for options in ({"in_rep": still, "out_rep": still, "hidden": "trivial"}, {}):
        layer = EGNNConv(2, 2, 8, group=MIRROR, **options)
        assert isinstance(layer.edges.target, NodeLinear)
        shapes = {name: p.shape for name, p in layer.named_parameters()}
        assert shapes == {name: p.shape for name, p in plain.named_parameters()}


@pytest.mark.parametrize("cls", [EGNN, Penguin])
def test_hidden_channels_that_come_out_say_how_they_move(cls) -> None:
    net = randomised(cls(2, None, 4, 1, group=MIRROR, in_rep=POSE))
    assert net.out_rep == Representation.regular(MIRROR, 2)
    still = Representation.trivial(MIRROR, D)
    function, z = Spatial(net), torch.randn(3, 5, 2 + D, dtype=torch.float64)
    reps = {"in_rep": POSE + still, "out_rep": net.out_rep + still}
    assert_equivariant(function, MIRROR, z, **reps, tolerance=1e-12)
    with pytest.raises(GroupError, match="leave out_rep out"):
        cls(2, None, 4, 1, group=MIRROR, in_rep=POSE, out_rep=2 * POSE)


@pytest.mark.parametrize("cls", [EGNNConv, EGNN, PenguinConv, Penguin])
def test_checkpoints_name_the_representations(cls) -> None:
    def build(rep: Representation, **options) -> nn.Module:
        if cls in (EGNN, Penguin):
            options["num_layers"] = 1
        return cls(2, 2, 4, group=MIRROR, in_rep=rep, out_rep=rep, **options)

    state = build(POSE).state_dict()
    build(POSE).load_state_dict(state)
    with pytest.raises(GroupError, match="group or representation"):
        build(OTHER).load_state_dict(state)
    if cls in (PenguinConv, Penguin):
        with pytest.raises(GroupError, match="group or representation"):
            build(POSE, pos_rep=LATERAL).load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: EGNNConv(3, 2, 4, group=MIRROR, in_rep=POSE), GroupError, "in_rep has 2 channels"),
        (lambda: EGNN(2, 3, 4, group=MIRROR, out_rep=POSE), GroupError, "out_rep has 2 channels"),
        (lambda: EGNNConv(2, 2, 4, group=FOUR, in_rep=POSE), GroupError, "not of"),
        (lambda: EGNNConv(2, 2, 4, in_rep=POSE), GroupError, "group=None"),
        (lambda: EGNNConv(2, 2, 4, group=MIRROR, in_rep=[[-1, 1]]), TypeError, "Representation"),
        (lambda: EGNNConv(2, 2, 5, group=MIRROR, in_rep=POSE), GroupError, "multiples"),
        (lambda: EGNNConv(2, 2, 4, group=MIRROR, hidden="odd"), ValueError, "regular"),
        (
            lambda: EGNNConv(2, 2, 4, group=MIRROR, in_rep=POSE, residual=True),
            ValueError,
            "move both sides alike",
        ),
        (
            lambda: PenguinConv(2, 2, 4, group=MIRROR, pos_rep=POSE),
            GroupError,
            "pos_rep has 2 channels",
        ),
        (
            lambda: PenguinConv(
                2,
                2,
                6,
                alpha="feature",
                group=THREE,
                out_rep=Representation.from_matrices(THREE, [rotation(3)]),
            ),
            GroupError,
            'use alpha="node"',
        ),
    ],
)
def test_bad_input(make, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_repr_names_them() -> None:
    text = repr(EGNNConv(2, 2, 4, group=MIRROR, in_rep=POSE, hidden="trivial"))
    assert "in_rep=Representation(2 channels" in text and "hidden='trivial'" in text
    assert "hidden" not in repr(EGNNConv(2, 2, 4, group=MIRROR)).replace("hidden_channels", "")
