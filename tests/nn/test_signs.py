"""Layers whose group moves channels: exact, changed by what is no symmetry, complete."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_stays_equivariant, randomised
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.check import assert_equivariant, check_layer, equivariance_error
from gsym.errors import GroupError
from gsym.nn import GNet, GNetConv, OrbitLinear
from gsym.nn._signs import SignedTie

MIRROR = PermutationGroup.from_cycles(5, [(0, 1), (2, 3)])
# Clusters of several nodes, of which some are exchanged and some stay.
PAIRS = ClusterGroup(
    Partition.from_labels([0, 1, 0, 1, 2, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
)
# Order 3 on nodes that turn and on one that stays; order 4 and 6 likewise.
TURN = ClusterGroup(
    Partition.from_labels([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
FOUR = PermutationGroup.from_cycles(5, [(0, 1, 2, 3)])
SIX = PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4)])
SQUARE = PermutationGroup(5, [[1, 2, 3, 0, 4], [0, 3, 2, 1, 4]])

CASES = {
    "mirror": (
        Representation.from_signs(MIRROR, [[-1, 1]]),
        Representation.regular(MIRROR) + Representation.from_signs(MIRROR, [[-1]]),
    ),
    "clusters": (
        Representation.from_signs(PAIRS, [[-1, 1]]),
        Representation.from_signs(PAIRS, [[1, -1]]),
    ),
    "3-cycle": (
        Representation.from_permutation(TURN, [[1, 2, 0]]),
        Representation.from_permutation(TURN, [[2, 0, 1]]),
    ),
    "sign of order 4": (
        # Turns the plane by 90 degrees: (x, y) to (-y, x).
        Representation(FOUR, [[1, 0]], [[1, -1]]),
        Representation(FOUR, [[1, 0]], [[1, -1]]),
    ),
    "sign of order 6": (
        Representation(SIX, [[1, 2, 0]], [[-1, -1, -1]]),
        Representation.from_signs(SIX, [[-1, 1]]),
    ),
    "two generators": (
        Representation.from_signs(SQUARE, [[1, 1], [-1, 1]]),
        Representation.from_permutation(SQUARE, [[1, 0], [1, 0]]),
    ),
    "one side stays": (Representation.from_signs(MIRROR, [[-1, 1]]), None),
}


def linear(first: Representation | None, second: Representation | None, **options) -> nn.Module:
    group = next(rep.group for rep in (first, second) if rep is not None)
    widths = [2 if rep is None else rep.num_channels for rep in (first, second)]
    return OrbitLinear(*widths, group, in_rep=first, out_rep=second, **options)


@pytest.mark.parametrize("name", CASES)
def test_kit(name: str) -> None:
    first, second = CASES[name]
    group = next(rep.group for rep in (first, second) if rep is not None)
    report = check_layer(lambda _: linear(first, second), group, in_rep=first, out_rep=second)
    assert not report.failed
    assert {"equivariant", "dimension", "not over-tied", "gradgradcheck"} <= set(report.passed)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_projected_dense_map(name: str) -> None:
    first, second = CASES[name]
    layer = randomised(linear(first, second, bias=False))
    group, n = layer.group, layer.group.num_nodes
    eye = torch.eye(n * layer.in_channels, dtype=torch.float64)
    with torch.no_grad():
        dense = layer(eye.view(-1, n, layer.in_channels))
    # Row (j, b) of the batch is what input coordinate (j, b) sends to every (i, a).
    dense = dense.view(n, layer.in_channels, n, layer.out_channels).permute(2, 0, 3, 1)
    sides = [
        Representation.trivial(group, width) if rep is None else rep
        for rep, width in ((first, layer.in_channels), (second, layer.out_channels))
    ]
    torch.testing.assert_close(group.project(dense, *sides), dense, rtol=0, atol=1e-12)
    assert dense.abs().max() > 1


def test_copies_are_free_matrices() -> None:
    small = Representation.from_signs(MIRROR, [[-1, 1]])
    for copies in (1, 3):
        layer = OrbitLinear(
            2 * copies, 2 * copies, MIRROR, in_rep=copies * small, out_rep=copies * small
        )
        assert layer.mixing.weight.shape == (50, copies, copies)
    mixed = Representation.from_signs(MIRROR, [[-1, 1, -1, 1]])
    assert mixed.without_copies()[1] == 1
    layer = randomised(OrbitLinear(4, 4, MIRROR, in_rep=mixed, out_rep=mixed))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    assert equivariance_error(layer, MIRROR, x, in_rep=mixed, out_rep=mixed) < 1e-14


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("group", [MIRROR, PAIRS], ids=["mirror", "clusters"])
def test_initial_weights_keep_the_size_of_a_signal(group: PermutationGroup, copies: int) -> None:
    first = copies * Representation.from_signs(group, [[-1, 1, 1]])
    second = copies * Representation.regular(group)
    torch.manual_seed(0)
    x = torch.randn(group.num_nodes, first.num_channels)
    widths = first.num_channels, second.num_channels
    layer = OrbitLinear(*widths, group, in_rep=first, out_rep=second, bias=False)
    sizes = []
    for _ in range(200):
        layer.reset_parameters()
        sizes.append(float(layer(x).detach().square().mean() / x.square().mean()))
    assert sum(sizes) / len(sizes) == pytest.approx(2.0, rel=0.15)


POSE = Representation.from_signs(MIRROR, [[-1, 1]])
# The mirror preserves this graph, in which nodes 2 and 3 hang on 0 and 1, and these on 4.
EDGES = torch.tensor([[0, 1, 2, 3, 4, 4], [4, 4, 0, 1, 0, 1]])


@pytest.mark.parametrize("propagate", ["none", "adjacency", "weighted", "pointwise", "auto"])
def test_convolutions_and_stacks(propagate: str) -> None:
    graph = () if propagate == "none" else (EDGES,)
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    reps = {"in_rep": POSE, "out_rep": POSE}
    for net in (
        GNetConv(2, 2, MIRROR, propagate=propagate, **reps),
        GNet([2, 8, 6, 2], MIRROR, propagate=propagate, **reps),
    ):
        assert_stays_equivariant(net, MIRROR, x, *graph, **reps)


ROTATION = torch.tensor([[-0.5, -(0.75**0.5)], [0.75**0.5, -0.5]], dtype=torch.float64)
POINTWISE = {
    **{name: CASES[name] for name in ("mirror", "clusters", "3-cycle", "sign of order 6")},
    "matrices of order 3": (
        Representation.from_matrices(TURN, [ROTATION]),
        Representation.from_permutation(TURN, [[1, 2, 0]]),
    ),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_spans_all_maps_of_a_complete_graph(name: str) -> None:
    """Exact, no more symmetric than asked, and complete where every pair is an edge."""
    first, second = POINTWISE[name]
    group, n = first.group, first.group.num_nodes
    widths, reps = (first.num_channels, second.num_channels), {"in_rep": first, "out_rep": second}
    conv = GNetConv(*widths, group, propagate="pointwise", bias=False, **reps).double()
    dim = group.commutant_dim(first, second)
    assert conv.weight.numel() == dim
    complete = torch.cartesian_prod(torch.arange(n), torch.arange(n)).t()
    eye = torch.eye(n * widths[0], dtype=torch.float64).view(-1, n, widths[0])
    maps = []
    for _ in range(dim + 2):
        torch.nn.init.normal_(conv.weight)
        maps.append(conv(eye, complete).detach())
    assert int(torch.linalg.matrix_rank(torch.stack(maps).flatten(1), rtol=1e-9)) == dim
    # The same map by its definition, n times: the mean over n neighbours.
    table = n * maps[-1].view(n, widths[0], n, widths[1]).permute(2, 0, 3, 1)
    torch.testing.assert_close(group.project(table, first, second), table, rtol=0, atol=1e-12)
    assert equivariance_error(conv, group, eye, complete, **reps) < 1e-10
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(conv, group, eye, complete)  # the permutation without the channels


def test_pointwise_moves_to_a_group_without_swaps() -> None:
    conv = randomised(GNetConv(2, 2, MIRROR, propagate="pointwise", in_rep=POSE, out_rep=POSE))
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    free = conv.to_group(PermutationGroup.trivial(5))
    assert free.moved.exact and free.in_rep is None
    torch.testing.assert_close(free(x, EDGES), conv(x, EDGES), rtol=0, atol=1e-14)
    wide = conv.to_group(ClusterGroup(Partition.from_labels([0, 0, 1, 1, 2])))
    assert not wide.moved.exact and 0 < wide.moved.lost < 1


def test_initial_pointwise_weights_keep_the_size_of_a_signal() -> None:
    """Without edges every node sees itself alone, through one matrix."""
    reps = {"in_rep": 4 * POSE, "out_rep": 2 * Representation.regular(MIRROR)}
    conv = GNetConv(8, 4, MIRROR, propagate="pointwise", **reps)
    x, none, sizes = torch.randn(64, 5, 8), torch.empty(2, 0, dtype=torch.int64), []
    for _ in range(100):
        conv.reset_parameters()
        sizes.append(float(conv(x, none).detach().square().mean() / x.square().mean()))
    assert sum(sizes) / len(sizes) == pytest.approx(2.0, rel=0.15)


def test_regular_hidden_channels_keep_odd_information_at_nodes_that_stay() -> None:
    """Node 4 is fixed: with trivial hidden channels its odd input is lost, with regular not."""
    x = torch.zeros(2, 5, 2, dtype=torch.float64)
    x[0, 4, 0] = 1.0
    reps = {"in_rep": POSE, "out_rep": POSE}
    for hidden, reaches in (("regular", True), ("trivial", False)):
        options = {"propagate": "none", "mixing": "none", "hidden": hidden}
        net = randomised(GNet([2, 8, 2], MIRROR, **options, **reps))
        y = net(x)
        assert bool((y[0, 4, 0] - y[1, 4, 0]).abs() > 1e-6) == reaches


class _WithoutSign(nn.Module):
    """The planted fault: tied along the permutation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = self.out_channels = 2
        self.inner = OrbitLinear(2, 2, MIRROR)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class _HiddenSign(nn.Module):
    """Another: signed hidden channels before an activation that is not odd."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = self.out_channels = 2
        odd = Representation.from_signs(MIRROR, [[-1, 1, -1, 1]])
        self.first = OrbitLinear(2, 4, MIRROR, in_rep=POSE, out_rep=odd)
        self.second = OrbitLinear(4, 2, MIRROR, in_rep=odd, out_rep=POSE)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def _wrong_channel() -> nn.Module:
    other = Representation.from_signs(MIRROR, [[1, -1]])
    return OrbitLinear(2, 2, MIRROR, in_rep=other, out_rep=other)


@pytest.mark.parametrize("faulty", [_WithoutSign, _HiddenSign, _wrong_channel])
def test_planted_faults_are_rejected(faulty) -> None:
    with pytest.raises(AssertionError, match="not equivariant"):
        check_layer(lambda _: faulty(), MIRROR, in_rep=POSE, out_rep=POSE, dimension=None)


def test_a_map_that_ignores_the_channels_is_rejected() -> None:
    """Even maps of even parts alone commute with both actions, so they notice no sign."""

    class EvenOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_channels = self.out_channels = 2
            self.inner = OrbitLinear(1, 1, MIRROR)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(x[..., :1]), self.inner(x[..., 1:])], -1)

    with pytest.raises(AssertionError, match="does not notice the representation"):
        check_layer(lambda _: EvenOnly(), MIRROR, in_rep=POSE, out_rep=POSE, dimension=None)


def test_checkpoints_name_the_representation() -> None:
    layer = linear(POSE, POSE)
    other = linear(Representation.from_signs(MIRROR, [[1, -1]]), POSE)
    plain = OrbitLinear(2, 2, MIRROR)
    linear(POSE, POSE).load_state_dict(layer.state_dict())
    with pytest.raises(GroupError, match=r"channels \(0 -1\) to \(-0 1\)"):
        layer.load_state_dict(other.state_dict())
    with pytest.raises(GroupError, match="group or representation"):
        plain.load_state_dict(layer.state_dict(), strict=False)
    with pytest.raises(GroupError, match="group or representation"):
        layer.load_state_dict(plain.state_dict(), strict=False)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: OrbitLinear(3, 2, MIRROR, in_rep=POSE), GroupError, "in_rep has 2 channels"),
        (lambda: OrbitLinear(2, 2, FOUR, out_rep=POSE), GroupError, "not of"),
        (lambda: OrbitLinear(2, 2, None, in_rep=POSE), GroupError, "group=None"),
        (lambda: OrbitLinear(2, 2, MIRROR, in_rep=[[-1, 1]]), TypeError, "gsym.Representation"),
        (
            lambda: OrbitLinear(2, 2, MIRROR, in_rep=POSE, mixing="low_rank", rank=1),
            ValueError,
            "no form with representations",
        ),
        (
            lambda: GNetConv(3, 2, MIRROR, in_rep=POSE, propagate="pointwise"),
            GroupError,
            "in_rep has 2 channels",
        ),
        (lambda: GNet([2, 5, 2], MIRROR, in_rep=POSE), GroupError, "multiples"),
        (lambda: GNet([2, 4, 2], MIRROR, hidden="odd"), ValueError, "trivial"),
        (lambda: GNet([2, 4, 2], hidden="regular"), GroupError, "needs a group"),
        (
            lambda: equivariance_error(torch.relu, FOUR, torch.ones(5, 2), in_rep=POSE),
            GroupError,
            "not of",
        ),
    ],
)
def test_bad_input(make, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_many_copies_are_laid_where_the_matrix_has_them():
    """In one gather instead of a table of all blocks; the group has an element of order 6."""
    group = PermutationGroup.from_cycles(7, [(0, 1, 2), (3, 4)])
    pose = Representation.from_signs(group, [[-1] * 8 + [1] * 8])
    layer = OrbitLinear(16, 16, group, in_rep=pose, out_rep=pose).double()
    mixing = layer.mixing
    tie = mixing._tables(torch.device("cpu")).tie
    assert mixing._tables(torch.device("cpu")).rows is not None
    table = mixing._entries(tie.expand(mixing.weight)).flatten(2).flatten(0, 1)
    grad = torch.randn_like(table)
    found, expected = (
        (y, torch.autograd.grad(y, mixing.weight, grad)[0]) for y in (mixing.matrix(), table)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert_equivariant(layer, group, x, in_rep=pose, out_rep=pose)


def largest_tensor(make) -> int:
    """Most numbers that one tensor holds which is made on the way."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            return out

    with Sizes():
        make()
    return max(sizes)


def test_building_takes_memory_in_proportion_to_the_matrix() -> None:
    """With signs on 3 of 8 channels, which have no copies; with an element of order 6."""
    group = PermutationGroup.from_cycles(10, [(0, 1, 2), (3, 4)])
    pose = Representation.from_signs(group, [[-1] * 3 + [1] * 5])
    largest = largest_tensor(lambda: OrbitLinear(8, 8, group, in_rep=pose, out_rep=pose))
    assert largest <= 4 * (10 * 8) ** 2


def test_lengths_are_those_of_the_definition() -> None:
    """The mean of ``W^T diag(share) W``, entry by entry: those of one orbit are one number."""
    pose = POSE.on_clusters(MIRROR.as_clusters())
    tie = SignedTie.of(MIRROR.as_clusters().cluster_pair_orbits(pose, pose))
    place = torch.randperm(tie.sign.double.numel()).view(5, 2, 10)
    share = torch.rand(2, dtype=torch.float64)
    index, sign = tie.index.reshape(-1)[place], tie.sign.double.reshape(-1)[place]
    same = (index[..., None] == index[..., None, :]) * sign[..., None] * sign[..., None, :]
    expected = (same * share[:, None, None]).sum(dim=-3)
    torch.testing.assert_close(tie.gram(place, share), expected, rtol=0, atol=1e-12)
    assert expected.triu(1).abs().max() > 0
