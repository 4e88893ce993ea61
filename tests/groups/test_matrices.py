"""Representations by orthogonal matrices against enumeration, and against signed permutations.

Every signed permutation in another orthonormal basis of the channels is a representation by
matrices, of which everything is known.
"""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from oracles.representations import GROUPS, average, by_characters, representations

from gsym import ClusterGroup, PermutationGroup, Representation
from gsym.errors import GroupError, SignalError
from gsym.groups import MatrixRepresentation
from gsym.risk.ridge import commutant_ridge


def turned(rep: Representation, rng: np.random.Generator) -> tuple[Representation, torch.Tensor]:
    """The same representation in a random basis, and the basis: ``rho'(g) = Q rho(g) Q^T``."""
    basis = np.linalg.qr(rng.standard_normal((rep.num_channels, rep.num_channels)))[0]
    q = torch.from_numpy(basis)
    return Representation.from_matrices(rep.group, q @ rep.matrices @ q.T), q


def rotation(parts: int) -> list[list[float]]:
    c, s = math.cos(2 * math.pi / parts), math.sin(2 * math.pi / parts)
    return [[c, -s], [s, c]]


TURN = PermutationGroup.from_cycles(4, [(0, 1, 2)])
SIX = PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4)])
PLANE = Representation.from_matrices(TURN, [rotation(3)])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [name for name in GROUPS if name != "trivial"])
def test_dimension_and_projection_in_another_basis(name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 7, *map(ord, name)])
    group = GROUPS[name]()
    signed = representations(group, rng), representations(group, rng)
    (first, p), (second, q) = (turned(rep, rng) for rep in signed)
    dim = by_characters(group, *signed)
    assert group.commutant_dim(first, second) == pytest.approx(dim, abs=1e-9)
    # One side may be signed, and one may stay.
    assert group.commutant_dim(signed[0], second) == group.commutant_dim(first, second)
    assert group.commutant_dim(None, second) == group.commutant_dim(None, signed[1])
    shape = (group.num_nodes, group.num_nodes, second.num_channels, first.num_channels)
    weight = torch.from_numpy(rng.standard_normal((2, *shape)))
    kept = group.project(weight, first, second)
    inner = torch.einsum("ab,...bc,cd->...ad", q.T, weight, p).numpy()
    by_hand = np.stack([average(group, w, *signed) for w in inner])
    expected = torch.einsum("ab,...bc,cd->...ad", q, torch.from_numpy(by_hand), p.T)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(group.project(kept, first, second), kept, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["C3", "C4", "C6", "D4", "Q8", "S2^3 turned"])
def test_elements_act_as_in_the_other_basis(name: str) -> None:
    rng = np.random.default_rng(list(map(ord, name)))
    group = GROUPS[name]()
    signed = representations(group, rng)
    rep, q = turned(signed, rng)
    x = torch.randn(3, group.num_nodes, rep.num_channels, dtype=torch.float64)
    for seed in range(4):
        perm = group.sample(generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(rep.matrix(perm), q @ signed.matrix(perm) @ q.T)
        torch.testing.assert_close(rep.act(perm, x), signed.act(perm, x @ q) @ q.T)


def test_a_rotation_by_a_third_of_a_turn() -> None:
    """Of order 3, by its definition; and not its inverse, which a swap could not tell."""
    x = torch.randn(4, 2, dtype=torch.float64)
    moved = PLANE.act([1, 2, 0, 3], x)
    (perm,), (matrix,) = TURN.generators, PLANE.matrices
    expected = torch.empty_like(x)
    expected[perm] = x @ matrix.T
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-14)
    # Three turns are none.
    again = PLANE.act(perm, PLANE.act(perm, moved))
    torch.testing.assert_close(again, x, rtol=0, atol=1e-14)
    # Node 3 stays, and no vector of the plane does.
    still = TURN.project(torch.ones(4, 4, 2, 1, dtype=torch.float64), None, PLANE)
    assert still.shape == (4, 4, 2, 1) and still.abs().max() < 1e-14
    assert TURN.commutant_dim(None, PLANE) == 10 and TURN.commutant_dim(PLANE, PLANE) == 22


def test_signed_permutations_are_recognised() -> None:
    pose = Representation.from_signs(SIX, [[-1, 1]])
    assert Representation.from_matrices(SIX, pose.matrices) == pose
    quarter = PermutationGroup.from_cycles(4, [(0, 1, 2, 3)])
    found = Representation.from_matrices(quarter, [rotation(4)])
    assert not found.mixes_channels and found == Representation(quarter, [[1, 0]], [[1, -1]])


def test_sums_and_copies() -> None:
    sign = Representation.from_signs(SIX, [[-1]])
    sixth = Representation.from_matrices(SIX, [rotation(6)])
    both, other = sign + sixth, sixth + sign
    perm = SIX.generators[0]
    for rep, blocks in ((both, (sign, sixth)), (other, (sixth, sign))):
        assert isinstance(rep, MatrixRepresentation) and rep.num_channels == 3
        expected = torch.block_diag(*(block.matrix(perm) for block in blocks))
        torch.testing.assert_close(rep.matrix(perm), expected)
    many = 4 * sixth
    assert many.without_copies() == (sixth, 4) and many == sixth * 4
    torch.testing.assert_close(
        many.matrix(perm), torch.kron(sixth.matrix(perm), torch.eye(4).double())
    )
    assert both.without_copies() == (both, 1)


def test_values_compare_hash_and_travel() -> None:
    for same in (
        pickle.loads(pickle.dumps(PLANE)),
        copy.deepcopy(PLANE),
        Representation.from_dict(json.loads(json.dumps(PLANE.to_dict()))),
        Representation.from_matrices(TURN, PLANE.matrices + 1e-15),
    ):
        assert same == PLANE and hash(same) == hash(PLANE)
        assert same.fingerprint() == PLANE.fingerprint()
    back = Representation.from_matrices(TURN, PLANE.matrices.mT)
    assert back != PLANE and back.fingerprint() != PLANE.fingerprint()
    assert Representation.trivial(TURN, 2) != PLANE and "mixed by matrices" in repr(PLANE)
    with torch.device("meta"):
        assert Representation.from_matrices(TURN, [rotation(3)]) == PLANE


@pytest.mark.parametrize(
    ("name", "matrices", "named"),
    [
        ("C3", [rotation(4)], r"g0\^3"),
        ("C3", [rotation(5)], r"g0\^3"),
        ("C4", [rotation(3)], r"g0\^4"),
        ("C6", [rotation(5)], r"g0\^6"),
        ("mirror", [rotation(3)], r"g0\^2"),
        ("D4", [rotation(8), [[1.0, 0.0], [0.0, -1.0]]], r"g0\^4"),
        # A reflection across 1/8 of a turn has order 2, but its product with the rotation has not.
        ("S3", [rotation(3), rotation(2)], r"\(g0 g1\)"),
    ],
)
def test_no_homomorphism_is_refused(name: str, matrices, named: str) -> None:
    with pytest.raises(GroupError, match=f"{named}.* keeps every node but moves channels"):
        Representation.from_matrices(GROUPS[name](), matrices)


def test_a_small_error_is_a_large_one_after_many_products() -> None:
    group = PermutationGroup.from_cycles(64, [range(64)])
    good = rotation(64)
    assert Representation.from_matrices(group, [good]).num_channels == 2
    c, s = math.cos(2 * math.pi / 64 + 1e-9), math.sin(2 * math.pi / 64 + 1e-9)
    with pytest.raises(GroupError, match=r"g0\^64"):
        Representation.from_matrices(group, [[[c, -s], [s, c]]])


@pytest.mark.parametrize(
    ("matrices", "error", "said"),
    [
        ([[[1.0, 0.1], [0.0, 1.0]]], GroupError, "must be orthogonal"),
        ([[[2.0]]], GroupError, "must be orthogonal"),
        ([torch.tensor(rotation(3))], GroupError, "give it in float64"),
        ([[[float("nan")]]], GroupError, "must be orthogonal"),
        ([[1.0, 0.0]], GroupError, r"must be \[c, c\]"),
        ([[[1.0, 0.0]]], GroupError, r"must be \[c, c\]"),
        ([torch.zeros(0, 0)], GroupError, r"must be \[c, c\]"),
        ([torch.eye(2, dtype=torch.complex64)], GroupError, "real numbers"),
        ([torch.eye(2).bool()], GroupError, "real numbers"),
        ([[["a"]]], GroupError, "must be numbers"),
        ([rotation(3), rotation(3)], GroupError, "one row for each of the 1 generators"),
        ([], GroupError, "one row for each"),
        (None, TypeError, "one matrix per generator"),
        ("matrices", TypeError, "one matrix per generator"),
    ],
)
def test_bad_matrices(matrices, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Representation.from_matrices(TURN, matrices)


def test_bad_groups_and_signals() -> None:
    with pytest.raises(TypeError, match="PermutationGroup"):
        Representation.from_matrices("turn", [rotation(3)])
    with pytest.raises(GroupError, match=r"Representation\.trivial"):
        Representation.from_matrices(PermutationGroup.trivial(3), [])
    seven = PermutationGroup.from_cycles(7, [range(7)], [(0, 1)])
    with pytest.raises(GroupError, match="4,096 at most"):
        Representation.from_matrices(seven, [rotation(7), rotation(3)])
    clusters = GROUPS["S2^3 turned"]()
    assert isinstance(clusters, ClusterGroup)
    within = clusters.num_generators - 1
    rows = [torch.eye(2).double()] * within + [rotation(3)]
    assert Representation.from_matrices(clusters, rows).num_channels == 2
    with pytest.raises(GroupError, match="factor through its swaps"):
        Representation.from_matrices(clusters, [rotation(3), *rows[1:]])
    with pytest.raises(GroupError, match="does not belong"):
        PLANE.matrix([1, 0, 2, 3])
    with pytest.raises(SignalError, match="floating point"):
        PLANE.act([1, 2, 0, 3], torch.zeros(4, 2).int())
    with pytest.raises(GroupError, match="channels of the output"):
        TURN.project(torch.zeros(4, 4, 2, 1), PLANE, PLANE)
    with pytest.raises(GroupError, match="not of"):
        SIX.commutant_dim(PLANE)


@pytest.mark.parametrize(
    "use",
    [
        lambda: PLANE.moves,
        lambda: PLANE.images,
        lambda: PLANE.signs,
        lambda: PLANE.of([1, 2, 0, 3]),
        lambda: TURN.pair_orbits(PLANE, PLANE),
        lambda: commutant_ridge(
            np.random.default_rng(0).standard_normal((9, 4, 2)),
            np.random.default_rng(1).standard_normal((9, 4, 2)),
            TURN,
            in_rep=PLANE,
            out_rep=PLANE,
        ),
    ],
)
def test_what_needs_signed_permutations_says_so(use) -> None:
    with pytest.raises(GroupError, match="mixes channels, but signed permutations"):
        use()
