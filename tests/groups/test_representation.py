"""Representations on channels against enumeration of the whole group."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from oracles.representations import (
    GROUPS,
    as_matrix,
    average,
    by_characters,
    elements,
    representations,
)

from gsym import Orbits, PermutationGroup, Representation
from gsym.errors import GroupError, SignalError


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", GROUPS)
def test_dimension_and_projection_equal_enumeration(name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, *map(ord, name)])
    group = GROUPS[name]()
    first, second = representations(group, rng), representations(group, rng)
    dim = group.commutant_dim(first, second)
    assert dim == pytest.approx(by_characters(group, first, second), abs=1e-9)
    n, rows, columns = group.num_nodes, second.num_channels, first.num_channels
    weight = rng.standard_normal((n, n, rows, columns))
    kept = group.project(torch.from_numpy(weight), first, second)
    np.testing.assert_allclose(kept.numpy(), average(group, weight, first, second), atol=1e-12)
    orbits = group.pair_orbits(first, second)
    assert orbits.index.shape == (n, n, rows, columns) and orbits.num_orbits == dim
    # The closed form of a cluster group agrees with its generators.
    plain = PermutationGroup(n, group.generators)
    moves = [rep.moves_of_generators(group) for rep in (first, second)]
    if group.num_generators:
        same = [Representation(plain, m.images, m.signs) for m in moves]
        general = plain.pair_orbits(*same)
        torch.testing.assert_close(general.index, orbits.index)
        torch.testing.assert_close(general.signs, orbits.signs)


@pytest.mark.parametrize("name", GROUPS)
def test_elements_move_channels_as_products_of_generators(name: str) -> None:
    rng = np.random.default_rng(list(map(ord, name)))
    group = GROUPS[name]()
    rep = representations(group, rng)
    listed = elements(group, rep)
    x = torch.randn(3, group.num_nodes, rep.num_channels, dtype=torch.float64)
    for perm, images, signs in [listed[i] for i in rng.integers(len(listed), size=8)]:
        matrix = torch.from_numpy(as_matrix(images, signs))
        torch.testing.assert_close(rep.matrix(perm), matrix)
        moved = torch.empty_like(x)
        moved[:, list(perm)] = x @ matrix.T
        torch.testing.assert_close(rep.act(perm, x), moved)


def test_unsigned_swap_differs_from_the_signed_one() -> None:
    mirror = GROUPS["mirror"]()
    pose = Representation.from_signs(mirror, [[-1, 1, 1]])
    weight = torch.randn(7, 7, 3, 3, dtype=torch.float64)
    still = Representation.trivial(mirror, 3)
    signed, plain = mirror.project(weight, pose, pose), mirror.project(weight, still, still)
    assert (signed - plain).abs().max() > 0.1
    # Nodes that the mirror fixes keep nothing that mixes odd and even channels.
    assert not signed[0, 0, 0, 1:].any() and not signed[0, 0, 1:, 0].any()
    assert plain[0, 0].all()


def test_without_representations_nothing_changes() -> None:
    group = GROUPS["S2 x S2 swapped"]()
    still = Representation.trivial(group, 1)
    with_signs, without = group.pair_orbits(still, still), group.pair_orbits()
    torch.testing.assert_close(with_signs.index[..., 0, 0], without.index)
    assert bool((with_signs.signs == 1).all())
    assert group.commutant_dim(still) == group.commutant_dim(None, still) == group.commutant_dim()


def test_regular_representation_holds_every_other() -> None:
    group = GROUPS["D4"]()
    regular = Representation.regular(group)
    assert regular.num_channels == 8 and regular.is_permutation
    # Each one-dimensional representation lies in the regular one just once, at a fixed node.
    for signs in ([[1], [1]], [[1], [-1]], [[-1], [1]], [[-1], [-1]]):
        rep = Representation.from_signs(group, signs)
        orbits = group.pair_orbits(rep, regular)
        at_fixed = torch.unique(orbits.index[4, 4])
        assert (at_fixed >= 0).sum() == 1
    many = Representation.regular(group, copies=3)
    assert many == 3 * regular and many.num_channels == 24
    assert regular.images[0, 0] * 3 + 2 == many.images[0, 2]


@pytest.mark.parametrize(
    ("name", "images", "signs", "named"),
    [
        ("C3", [[0]], [[-1]], r"g0\^3"),
        ("C4", [[1, 2, 0]], [[1, 1, 1]], r"g0\^4"),
        ("D4", [[0, 1], [1, 0]], [[-1, 1], [1, 1]], r"\(g0 g1\)\^2"),
        ("S3", [[0], [0]], [[-1], [-1]], r"g0\^3"),
        ("A4", [[0], [0]], [[1], [-1]], r"keeps every node"),
        ("mirror", [[1, 2, 0]], [[1, 1, 1]], r"g0\^2"),
    ],
)
def test_no_homomorphism_is_refused(name: str, images, signs, named: str) -> None:
    with pytest.raises(GroupError, match=named):
        Representation(GROUPS[name](), images, signs)


def test_no_homomorphism_is_refused_where_each_generator_alone_is_one() -> None:
    # (g0 g1)^3 = 1 in S_3 for two swaps, but the signs -1 and 1 have product of order 2.
    swaps = PermutationGroup(3, [[1, 0, 2], [0, 2, 1]])
    with pytest.raises(GroupError, match=r"\(g0 g1\)\^3 keeps every node"):
        Representation.from_signs(swaps, [[-1], [1]])
    assert Representation.from_signs(swaps, [[-1], [-1]]).num_channels == 1


def test_generators_that_keep_every_node_keep_every_channel() -> None:
    idle = PermutationGroup(3, [[0, 1, 2], [1, 0, 2]])
    with pytest.raises(GroupError, match="g0 keeps every node"):
        Representation.from_signs(idle, [[-1], [1]])
    assert Representation.from_signs(idle, [[1], [-1]]).num_channels == 1


def test_clusters_leave_channels_alone() -> None:
    group = GROUPS["S2 x S2 swapped"]()
    rows = [[1, 1], [1, 1], [-1, 1]]
    assert Representation.from_signs(group, rows) == Representation.from_signs(group, rows[2:])
    with pytest.raises(GroupError, match="factor through its swaps"):
        Representation.from_signs(group, [[-1, 1], [1, 1], [-1, 1]])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda g: Representation.from_signs(g, [[1, 1], [1, 1]]), GroupError, "one row for each"),
        (lambda g: Representation.from_signs(g, [[2, 1]]), GroupError, "1 or -1"),
        (lambda g: Representation.from_signs(g, [[0.5]]), GroupError, "generator 0"),
        (lambda g: Representation.from_signs(g, [[]]), GroupError, "signs of generator 0"),
        (lambda g: Representation.from_permutation(g, [[0, 0]]), GroupError, "generator 0"),
        (lambda g: Representation(g, [[0, 1]], [[1]]), GroupError, "generator 0"),
        (lambda g: Representation("mirror", [[0]], [[1]]), TypeError, "PermutationGroup"),
        (lambda g: Representation.trivial(g, 0), GroupError, "at least one channel"),
        (lambda g: Representation.trivial(g, 1) * 0, GroupError, "at least one copy"),
        (lambda g: Representation.from_dict({"type": "Group"}), GroupError, "Representation"),
        (
            lambda g: Representation.trivial(PermutationGroup.trivial(7), 1).check_group(g),
            GroupError,
            "not of",
        ),
        (
            lambda g: g.project(torch.zeros(7, 7), Representation.trivial(g, 2)),
            GroupError,
            "channels of the output",
        ),
        (
            lambda g: Representation.trivial(g, 2).act(range(7), torch.zeros(7, 3)),
            SignalError,
            r"x must be \[..., 7, 2\]",
        ),
        (
            lambda g: Representation.trivial(g, 2).act(range(7), torch.zeros(7, 2).int()),
            SignalError,
            "floating point",
        ),
        (
            lambda g: Representation.trivial(g, 2).of([1, 0, 2, 3, 4, 5, 6]),
            GroupError,
            "does not belong",
        ),
        (
            lambda g: Representation.regular(PermutationGroup.from_cycles(7, [range(7)], [(0, 1)])),
            GroupError,
            "5,040 elements",
        ),
    ],
)
def test_bad_input(make, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make(GROUPS["mirror"]())


def test_trivial_group_has_trivial_representations_only() -> None:
    group = PermutationGroup.trivial(4)
    with pytest.raises(GroupError, match=r"Representation\.trivial"):
        Representation.from_signs(group, [])
    rep = Representation.trivial(group, 3)
    assert group.commutant_dim(rep, rep) == 16 * 9 and rep.is_trivial


def test_values_compare_hash_and_travel() -> None:
    group = GROUPS["S2 x S2 swapped"]()
    rep = Representation.from_signs(group, [[-1, 1]]) + Representation.regular(group)
    for same in (
        pickle.loads(pickle.dumps(rep)),
        copy.deepcopy(rep),
        Representation.from_dict(json.loads(json.dumps(rep.to_dict()))),
    ):
        assert same == rep and hash(same) == hash(rep)
    still = Representation.trivial(PermutationGroup.trivial(2), 2)
    assert Representation.from_dict(still.to_dict()) == still
    assert rep != Representation.from_signs(group, [[1, -1]]) + Representation.regular(group)
    assert "change sign" in repr(rep) and "change places" in repr(rep)


def test_signed_orbits_are_checked() -> None:
    signs = torch.tensor([1, -1, 0], dtype=torch.int8)
    good = Orbits(torch.tensor([0, 0, -1]), 1, torch.tensor([2]), signs)
    assert good.view(3, 1).signs is not None
    with pytest.raises(GroupError, match="0 just where"):
        Orbits(torch.tensor([0, 0, 0]), 1, torch.tensor([3]), signs)
    with pytest.raises(GroupError, match="int8"):
        Orbits(torch.tensor([0, 0, -1]), 1, torch.tensor([2]), signs.long())


def test_it_is_made_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        group = GROUPS["mirror"]()
        rep = Representation.from_signs(group, [[-1, 1]])
        assert group.commutant_dim(rep, rep) > 0 and rep.signs.is_cpu
