"""Ridge on monomials tied to small groups, against its definition, fitted anew without a block."""

import numpy as np
import pytest
import torch

from gsym.errors import GroupError, SignalError
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.risk import monomials
from gsym.risk.left_out import LeftOut
from gsym.risk.monomials import PENALTIES, MonomialRidge, moves_of, root_errors

SWAP = PermutationGroup.from_cycles(4, [(0, 1)])
TURN = PermutationGroup.from_cycles(4, [(0, 1, 2)])
QUARTER = PermutationGroup.from_cycles(4, [(0, 1, 2, 3)])
BOTH = PermutationGroup.from_cycles(4, [(0, 1)], [(2, 3)])
CLUSTERS = ClusterGroup(Partition.singletons(4), swaps=SWAP)
CASES = [
    (SWAP, [[-1, 1]], [[1, -1, -1]]),
    (TURN, [[1, 1]], [[1, 1, 1]]),
    (QUARTER, [[-1, 1]], [[1, -1, 1]]),
    (BOTH, [[-1, 1], [1, -1]], [[1, 1, -1], [-1, 1, 1]]),
    (CLUSTERS, [[-1, 1]], [[1, 1, -1]]),
]


def signals(count=14, channels=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4, channels)) + 0.5


def definition(x, y, in_rep, out_rep, left_out, degree):
    """Fit the features of all images without each block, one penalty after the other."""
    moves_in, moves_out = moves_of(in_rep, out_rep)
    images = moves_in.images(x.reshape(len(x), -1))
    s, m, width = images.shape
    flat = y.reshape(s, -1)
    wanted = flat[:, None].repeat(m, 1) if out_rep is None else moves_out.images(flat)
    z = images / images.reshape(-1, width).std(0)
    i, j = np.triu_indices(width)
    features = z
    if degree == 2:
        products = z[..., i] * z[..., j] * np.where(i == j, 0.5**0.5, 1)
        features = np.concatenate([z, products], -1)
    rows = features.reshape(s * m, -1)
    scale = ((rows - rows.mean(0)) ** 2).sum() / (s * m)
    table = np.empty((len(PENALTIES), len(left_out)))
    for row, penalty in zip(table, PENALTIES * scale, strict=True):
        for block in range(len(left_out)):
            keep = np.r_[0 : left_out.low[block], left_out.high[block] : s]
            a = features[keep].reshape(-1, features.shape[-1])
            b = wanted[keep].reshape(len(a), -1)
            gram = (a - a.mean(0)).T @ (a - a.mean(0)) + penalty * np.eye(a.shape[1])
            weight = np.linalg.solve(gram, (a - a.mean(0)).T @ (b - b.mean(0)))
            judged = slice(left_out.starts[block], left_out.stops[block])
            error = (features[judged] - a.mean(0)) @ weight + b.mean(0) - wanted[judged]
            per_image = (error**2).sum((0, 2))
            assert np.allclose(per_image, per_image[0])  # an equivariant fit errs alike on all
            row[block] = per_image[0]
    return root_errors(table, flat.shape[1], left_out)


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("blocks", [(1, 0), (3, 0), (2, 1)])
def test_errors_are_those_of_fits_without_the_block(case, degree, blocks):
    group, signs_in, signs_out = CASES[case]
    in_rep = Representation.from_signs(group, signs_in)
    out_rep = Representation.from_signs(group, signs_out)
    x, y, left_out = signals(), signals(channels=3, seed=1), LeftOut(14, *blocks)
    fit = MonomialRidge(x, y, in_rep, out_rep, left_out, degree)
    errors, penalty = definition(x, y, in_rep, out_rep, left_out, degree)
    np.testing.assert_allclose(fit.errors, errors, rtol=1e-8)
    assert fit.penalty == penalty
    number = np.random.default_rng(2).normal(size=(14, 1, 1))
    fit = MonomialRidge(x, number, in_rep, None, left_out, degree)
    np.testing.assert_allclose(
        fit.errors, definition(x, number, in_rep, None, left_out, degree)[0], rtol=1e-8
    )


def test_too_many_are_refused(monkeypatch):
    rep = Representation.from_signs(SWAP, [[-1, 1]])
    x, left_out = signals(30), LeftOut(30, 1)
    monkeypatch.setattr(monomials, "MAX_SIDE", 43)
    with pytest.raises(SignalError, match="one of 60 and 44 must be at most 43; take fewer"):
        MonomialRidge(x, x, rep, rep, left_out)


@pytest.mark.parametrize("count", [10, 40])  # fewer rows than features, and more
def test_predictions_are_those_of_the_features(count):
    rep = Representation.from_signs(SWAP, [[-1, 1]])
    x, y, new = signals(count), signals(count, seed=1), signals(3, seed=9).reshape(3, -1)
    fit = MonomialRidge(x, y, rep, rep, LeftOut(count, 1))
    moves, _ = moves_of(rep, None)
    images = moves.images(x.reshape(count, -1)).reshape(2 * count, -1)
    wanted = moves.images(y.reshape(count, -1)).reshape(2 * count, -1)
    i, j = np.triu_indices(8)

    def features(values):
        z = values / images.std(0)
        return np.concatenate([z, z[:, i] * z[:, j] * np.where(i == j, 0.5**0.5, 1)], 1)

    a, b = features(images), wanted
    centred = a - a.mean(0)
    penalty = fit.penalty * (centred**2).sum() / len(a)
    weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(44), centred.T @ b)
    expected = (features(new) - a.mean(0)) @ weight + b.mean(0)
    np.testing.assert_allclose(fit.predict(new.reshape(3, 4, 2)).reshape(3, -1), expected)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_predictions_are_equivariant_and_signs_matter(case):
    group, signs_in, signs_out = CASES[case]
    in_rep = Representation.from_signs(group, signs_in)
    out_rep = Representation.from_signs(group, signs_out)
    fit = MonomialRidge(signals(), signals(channels=3, seed=1), in_rep, out_rep, LeftOut(14, 1))
    new = signals(3, seed=5)
    moves_in, moves_out = moves_of(in_rep, out_rep)
    moved = moves_in.images(new.reshape(3, -1))
    expected = moves_out.images(fit.predict(new).reshape(3, -1))
    assert len(moves_in.source) == group.order()
    for element in range(group.order()):
        found = fit.predict(moved[:, element].reshape(3, 4, 2)).reshape(3, -1)
        np.testing.assert_allclose(found, expected[:, element], atol=1e-10)
    # A permutation outside of the group, and the right one without its signs.
    outside = new[:, [1, 2, 3, 0]] if case != 2 else new[:, [1, 0, 2, 3]]
    assert not np.allclose(fit.predict(outside), fit.predict(new)[:, [1, 2, 3, 0]], atol=1e-3)
    if case != 1:
        unsigned = new.reshape(3, -1)[:, moves_in.source[1]].reshape(3, 4, 2)
        assert not np.allclose(fit.predict(unsigned).reshape(3, -1), expected[:, 1], atol=1e-3)


def test_moves_are_those_of_the_representation():
    in_rep = Representation.from_signs(QUARTER, [[-1, 1]])
    moves, _ = moves_of(in_rep, None)
    x = torch.from_numpy(signals())
    perm = QUARTER.generators[0]
    acted = in_rep.act(perm, x).reshape(14, -1).numpy()
    np.testing.assert_array_equal(moves.images(x.reshape(14, -1).numpy())[:, 1], acted)


def test_large_groups_are_refused():
    group = PermutationGroup.symmetric(5)
    rep = Representation.trivial(group, 1)
    x = np.random.default_rng(0).normal(size=(9, 5, 1))
    with pytest.raises(GroupError, match=r"takes groups of up to 64 elements; .* has more"):
        MonomialRidge(x, x, rep, rep, LeftOut(9, 1))
