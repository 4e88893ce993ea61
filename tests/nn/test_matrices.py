"""Layers whose group mixes channels by matrices: exact, complete, and no more symmetric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_stays_equivariant, randomised
from oracles.representations import GROUPS, average, by_characters, representations
from torch import Tensor, nn

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.check import assert_equivariant, check_layer, equivariance_error
from gsym.errors import GroupError
from gsym.nn import GNet, GNetConv, OrbitLinear


def rotation(parts: int) -> Tensor:
    c, s = math.cos(2 * math.pi / parts), math.sin(2 * math.pi / parts)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def in_basis(rep: Representation, seed: int) -> Representation:
    """The same representation in a random orthonormal basis of the channels."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((rep.num_channels, rep.num_channels)))[0]
    q = torch.from_numpy(q)
    return Representation.from_matrices(rep.group, q @ rep.matrices @ q.T)


THREE = PermutationGroup.from_cycles(4, [(0, 1, 2)])
FOUR = PermutationGroup.from_cycles(5, [(0, 1, 2, 3)])
SIX = PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4)])
MIRROR = PermutationGroup.from_cycles(5, [(0, 1), (2, 3)])
S3 = PermutationGroup(4, [[1, 2, 0, 3], [1, 0, 2, 3]])
# Order 3 on clusters of two nodes that turn and on one that stays.
TURN = ClusterGroup(
    Partition.from_labels([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
FLIP = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)

PLANE = Representation.from_matrices(THREE, [rotation(3)])
POSE = in_basis(Representation.from_signs(MIRROR, [[-1, 1]]), 0)
CASES = {
    "order 2": (POSE, Representation.from_signs(MIRROR, [[-1, 1]])),
    "order 3": (PLANE, PLANE),
    "order 4": (
        in_basis(Representation(FOUR, [[1, 0]], [[1, -1]]), 1),
        in_basis(Representation(FOUR, [[1, 0]], [[1, -1]]), 2),
    ),
    "order 6": (
        Representation.from_matrices(SIX, [rotation(6)]),
        Representation.from_matrices(SIX, [-rotation(6)]) + Representation.from_signs(SIX, [[-1]]),
    ),
    "two generators": (
        Representation.from_matrices(S3, [rotation(3), FLIP]),
        Representation.from_matrices(S3, [rotation(3), FLIP])
        + Representation.from_signs(S3, [[1], [-1]]),
    ),
    "clusters": (
        Representation.from_matrices(TURN, [rotation(3)]),
        Representation.from_matrices(TURN, [rotation(3).T]),
    ),
    "one side stays": (PLANE, None),
    "the other stays": (None, PLANE),
}


def group_of(*reps: Representation | None) -> PermutationGroup:
    return next(rep.group for rep in reps if rep is not None)


def linear(first: Representation | None, second: Representation | None, **options) -> nn.Module:
    widths = [2 if rep is None else rep.num_channels for rep in (first, second)]
    return OrbitLinear(*widths, group_of(first, second), in_rep=first, out_rep=second, **options)


def dense(layer: nn.Module) -> Tensor:
    """The linear part of a layer, ``[n, n, c_out, c_in]``."""
    n, a, b = layer.group.num_nodes, layer.in_channels, layer.out_channels
    eye = torch.eye(n * a, dtype=torch.float64).view(-1, n, a)
    with torch.no_grad():
        maps = layer(eye) - layer(torch.zeros_like(eye[:1]))
    # Row (j, b) of the batch is what input coordinate (j, b) sends to every (i, a).
    return maps.view(n, a, n, b).permute(2, 0, 3, 1)


def test_kit() -> None:
    first, second = CASES["two generators"]
    group = group_of(first, second)
    reps = {"in_rep": first, "out_rep": second}
    report = check_layer(lambda _: linear(first, second), group, **reps, compile_backend="eager")
    assert {"equivariant", "dimension", "not over-tied", "gradgradcheck"} <= set(report.passed)


@pytest.mark.parametrize("mixing", ["full", "none"])
@pytest.mark.parametrize("name", CASES)
def test_exact_and_its_own_projection(name: str, mixing: str) -> None:
    first, second = CASES[name]
    layer = randomised(linear(first, second, mixing=mixing))
    group, sides = layer.group, {"in_rep": first, "out_rep": second}
    x = torch.randn(3, group.num_nodes, layer.in_channels, dtype=torch.float64)
    assert equivariance_error(layer, group, x, **sides) < 1e-14
    assert equivariance_error(layer, group, x) > 1e-2  # channels move
    reps = [
        Representation.trivial(group, width) if rep is None else rep
        for rep, width in ((first, layer.in_channels), (second, layer.out_channels))
    ]
    table = dense(layer)
    torch.testing.assert_close(group.project(table, *reps), table, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["signed", "matrices", "signs to matrices"])
@pytest.mark.parametrize("name", GROUPS)
def test_layers_span_the_commutant(name: str, kind: str) -> None:
    """The rank over random weights is the dimension that characters give, and no more."""
    group = GROUPS[name]()
    rng = np.random.default_rng(list(map(ord, name + kind)))
    for _ in range(2):
        signed = reps = [representations(group, rng, count, most=4) for count in (1, 2)]
        if kind != "signed" and name != "trivial":
            reps = [reps[0] if "signs" in kind else in_basis(reps[0], 3), in_basis(reps[1], 4)]
        dim = round(by_characters(group, *signed))
        assert group.commutant_dim(*reps) == dim
        layer = linear(*reps, bias=False).double()
        assert sum(p.numel() for p in layer.parameters()) == dim
        eye = torch.eye(group.num_nodes * layer.in_channels, dtype=torch.float64)
        x, maps = eye.view(-1, group.num_nodes, layer.in_channels), []
        with torch.no_grad():
            for _ in range(dim + 2):
                for p in layer.parameters():
                    p.normal_()
                maps.append(layer(x).flatten())
        table = torch.stack(maps)
        rank = int(torch.linalg.matrix_rank(table, rtol=1e-9)) if dim else int(table.any())
        assert rank == dim


def test_equals_brute_force_averaging() -> None:
    """A dense map averaged over all elements is reached by weights, and left alone by them."""
    signed = Representation(SIX, [[1, 2, 0]], [[-1, -1, -1]])
    rng = np.random.default_rng(0)
    q = torch.from_numpy(np.linalg.qr(rng.standard_normal((3, 3)))[0])
    rep = Representation.from_matrices(SIX, q @ signed.matrices @ q.T)
    weight = rng.standard_normal((6, 6, 3, 3))
    mean = torch.from_numpy(average(SIX, weight, signed, signed))
    mean = torch.einsum("ab,ijbc,dc->ijad", q, mean, q)
    layer = OrbitLinear(3, 3, SIX, in_rep=rep, out_rep=rep, bias=False).double()
    tie = layer.mixing._tables(torch.device("cpu")).tie
    with torch.no_grad():
        layer.mixing.weight.copy_(tie.read(mean.reshape(-1, 1, 1)))
    torch.testing.assert_close(dense(layer), mean, rtol=0, atol=1e-12)


def test_copies_are_free_matrices() -> None:
    layer = OrbitLinear(6, 4, THREE, in_rep=3 * PLANE, out_rep=2 * PLANE)
    assert layer.mixing.weight.shape == (THREE.commutant_dim(PLANE, PLANE), 3, 2)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    reps = {"in_rep": 3 * PLANE, "out_rep": 2 * PLANE}
    assert equivariance_error(randomised(layer), THREE, x, **reps) < 1e-14


@pytest.mark.parametrize(
    "rep", [PLANE, 3 * PLANE, CASES["clusters"][0]], ids=["1", "3", "clusters"]
)
def test_initial_weights_keep_the_size_of_a_signal(rep: Representation) -> None:
    second = Representation.regular(rep.group) + rep
    torch.manual_seed(0)
    x = torch.randn(rep.group.num_nodes, rep.num_channels)
    options = {"in_rep": rep, "out_rep": second, "bias": False}
    layer = OrbitLinear(rep.num_channels, second.num_channels, rep.group, **options)
    sizes = []
    for _ in range(200):
        layer.reset_parameters()
        sizes.append(float(layer(x).detach().square().mean() / x.square().mean()))
    assert sum(sizes) / len(sizes) == pytest.approx(2.0, rel=0.15)


RING = torch.tensor([[0, 1, 2, 3, 3, 3], [1, 2, 0, 0, 1, 2]])


@pytest.mark.parametrize("propagate", ["none", "adjacency", "weighted", "pointwise"])
def test_convolutions_and_stacks(propagate: str) -> None:
    graph = () if propagate == "none" else (RING,)
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    reps = {"in_rep": PLANE, "out_rep": PLANE}
    for net in (
        GNetConv(2, 2, THREE, propagate=propagate, **reps),
        GNet([2, 6, 3, 2], THREE, propagate=propagate, **reps),
    ):
        assert_stays_equivariant(net, THREE, x, *graph, **reps)


def test_checkpoints_name_the_matrices() -> None:
    layer, back = linear(PLANE, PLANE), Representation.from_matrices(THREE, PLANE.matrices.mT)
    linear(PLANE, PLANE).load_state_dict(layer.state_dict())
    with pytest.raises(GroupError, match="channels 2 that mix to 2 that mix"):
        linear(back, PLANE).load_state_dict(layer.state_dict())
    with pytest.raises(GroupError, match="group or representation"):
        OrbitLinear(2, 2, THREE).load_state_dict(layer.state_dict(), strict=False)


def test_pointwise_activations_are_refused_by_name() -> None:
    signed = Representation.from_signs(MIRROR, [[-1, 1]])
    for hidden, rep in ((signed, signed), (POSE, POSE), (2 * POSE, POSE)):
        with pytest.raises(GroupError, match=r'ReLU.*not odd.*use hidden="regular"'):
            GNet([2, 4, 2], MIRROR, in_rep=rep, out_rep=rep, hidden=hidden)
    # What only exchanges channels is legal: half of it here changes nothing.
    swap = Representation.from_permutation(MIRROR, [[1, 0, 2]])
    net = randomised(GNet([2, 6, 2], MIRROR, in_rep=signed, out_rep=signed, hidden=swap))
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    assert_equivariant(net, MIRROR, x, in_rep=signed, out_rep=signed, tolerance=1e-12)
    with pytest.raises(GroupError, match="3 channels per copy"):
        GNet([2, 4, 2], MIRROR, in_rep=signed, out_rep=signed, hidden=swap)
    with pytest.raises(GroupError, match="not of"):
        GNet([2, 6, 2], THREE, in_rep=PLANE, out_rep=PLANE, hidden=swap)
    with pytest.raises(GroupError, match="needs the group"):
        GNet([2, 6, 2], hidden=swap)


def test_relu_behind_mixed_channels_is_rejected() -> None:
    layers = randomised(nn.ModuleList([linear(PLANE, PLANE), linear(PLANE, PLANE)]))
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(
            lambda x: layers[1](layers[0](x).relu()), THREE, x, in_rep=PLANE, out_rep=PLANE
        )
