"""Ridge in the commutant of a group that moves channels: against fits anew, from the definition."""

import numpy as np
import pytest
import torch
from oracles.left_out import shared_map, shared_penalties, windows

from gsym.choosing.signs import is_small
from gsym.errors import GroupError, SignalError
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.risk import ridge as module
from gsym.risk.monomials import moves_of
from gsym.risk.ridge import commutant_ridge

MIRROR = PermutationGroup.from_cycles(5, [(0, 1), (2, 3)])
# Nodes that are exchanged alone, and pairs of them that are exchanged with a sign.
PAIRS = ClusterGroup(
    Partition.from_labels([0, 0, 1, 1, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
)
TURN = PermutationGroup.from_cycles(5, [(0, 1, 2)])
QUARTER = PermutationGroup.from_cycles(5, [(0, 1, 2, 3)])
SWAPPED = ClusterGroup(Partition.singletons(5), swaps=MIRROR)
SIGNS = Representation.from_signs
CASES = [
    (SIGNS(MIRROR, [[-1, 1]]), SIGNS(MIRROR, [[-1, 1, 1]])),
    (SIGNS(SWAPPED, [[-1, 1]]), SIGNS(SWAPPED, [[1, -1, 1]])),
    (SIGNS(PAIRS, [[-1, 1]]), SIGNS(PAIRS, [[-1, 1, -1]])),
    (SIGNS(TURN, [[1, 1]]), SIGNS(TURN, [[1, 1, 1]])),
    (SIGNS(QUARTER, [[-1, -1]]), SIGNS(QUARTER, [[-1, 1, 1]])),
    (Representation.from_permutation(MIRROR, [[1, 0]]), SIGNS(MIRROR, [[-1, 1, 1]])),
    (Representation(QUARTER, [[1, 0]], [[1, -1]]), SIGNS(QUARTER, [[1, -1, 1]])),
]


def draw(signals, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 5, 2)) + rng.standard_normal((5, 2))
    return x, rng.standard_normal((signals, 5, 3)) + x @ rng.standard_normal((2, 3)) + 1


def average(moves, values):
    """Mean over the group of ``rho(g)^-1 values`` for flattened signals ``[..., n c]``."""
    flat = values.reshape(-1, values.shape[-1])
    return moves.images(flat).mean(1).reshape(values.shape)


def oracle(reps, x, y, penalty, block=1, gap=0):
    """Errors of each block by regression in an orthonormal basis of the equivariant maps."""
    moves_in, moves_out = moves_of(*reps)
    p, q = x[0].size, y[0].size
    # The average over the group of maps [p, q], as a matrix on their entries.
    units = np.eye(p * q).reshape(-1, p, q)
    mean = np.zeros((p * q, p * q))
    for e in range(len(moves_in.source)):
        columns = moves_out.sign[e] * units[:, :, moves_out.source[e]]
        moved = moves_in.sign[e][:, None] * columns[:, moves_in.source[e]]
        mean += moved.reshape(p * q, p * q) / len(moves_in.source)
    values, vectors = np.linalg.eigh(mean.reshape(p * q, p * q))
    basis = vectors[:, values > 0.5].T.reshape(-1, p, q)
    group = reps[0].group
    assert len(basis) == group.commutant_dim(*reps)
    still = np.linalg.eigh(average(moves_out, np.eye(q)))
    constants = still[1][:, still[0] > 0.5].T
    shared = shared_penalties(x, y, block, gap)
    out = []
    for number, (b, kept) in enumerate(windows(len(x), block, gap)):
        own = shared_map(x[kept], y[kept], shared[number])
        big = np.kron(np.eye(5), own)
        big = np.einsum("rpq,pq->r", basis, big) @ basis.reshape(len(basis), -1)
        rest = y.reshape(len(y), -1) - x.reshape(len(x), -1) @ big.reshape(p, q)
        features = np.einsum("sp,rpq->sqr", x.reshape(len(x), -1), basis)
        ones = np.broadcast_to(constants.T, (len(x), *constants.T.shape))
        features = np.concatenate([features, ones], 2)
        a, z = features[kept].reshape(-1, features.shape[2]), rest[kept].reshape(-1)
        added = np.diag(np.r_[np.full(len(basis), penalty), np.zeros(len(constants))])
        weight = np.linalg.solve(a.T @ a + added, a.T @ z)
        out.append(((features[b] @ weight - rest[b]) ** 2).mean())
    return np.array(out)


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("blocks", [(1, 0), (2, 1)])
def test_left_out_errors_are_those_of_refits(case, blocks):
    reps, (x, y) = CASES[case], draw(12)
    options = {"block": blocks[0], "gap": blocks[1]}
    fit = commutant_ridge(
        x, y, reps[0].group, in_rep=reps[0], out_rep=reps[1], penalty=0.7, **options
    )
    np.testing.assert_allclose(fit.errors, oracle(reps, x, y, 0.7, *blocks), atol=1e-8)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_predictions_are_equivariant_and_signs_matter(case):
    (in_rep, out_rep), (x, y) = CASES[case], draw(40)
    group = in_rep.group
    fit = commutant_ridge(x, y, group, in_rep=in_rep, out_rep=out_rep)
    new = torch.from_numpy(draw(3, seed=1)[0])
    expected = fit.predict(new)
    for perm in group.generators:
        moved = fit.predict(in_rep.act(perm, new))
        torch.testing.assert_close(moved, out_rep.act(perm, expected), atol=1e-12, rtol=1e-12)
        if not in_rep.is_trivial and not torch.equal(
            in_rep.act(perm, new), new[:, torch.argsort(perm)]
        ):
            unsigned = fit.predict(new[:, torch.argsort(perm)])
            assert not torch.allclose(unsigned, expected[:, torch.argsort(perm)], atol=1e-2)
    assert fit.weight_means.shape == (5, 2, 5, 3)
    outside = torch.tensor([4, 1, 2, 3, 0])
    moved = fit.predict(new[:, torch.argsort(outside)])
    assert not torch.allclose(moved, expected[:, torch.argsort(outside)], atol=1e-2)


def test_trivial_representations_change_nothing():
    x, y = draw(40)
    for group in (MIRROR, QUARTER, PAIRS):
        reps = Representation.trivial(group, 2), Representation.trivial(group, 3)
        fit = commutant_ridge(x, y, group, in_rep=reps[0], out_rep=reps[1])
        np.testing.assert_allclose(fit.errors, commutant_ridge(x, y, group).errors, rtol=1e-9)


def test_few_signals_are_judged_by_fits_without_them():
    (in_rep, out_rep), (x, y) = CASES[0], draw(9)
    fit = commutant_ridge(x, y, MIRROR, in_rep=in_rep, out_rep=out_rep)
    for t in range(9):
        other = commutant_ridge(
            np.delete(x, t, 0), np.delete(y, t, 0), MIRROR, in_rep=in_rep, out_rep=out_rep
        )
        error = ((other.predict(x[t : t + 1]).numpy() - y[t]) ** 2).mean()
        assert fit.errors[t] == pytest.approx(error, abs=1e-8)


def test_one_number_per_signal_is_invariant():
    in_rep, x = CASES[0][0], draw(40)[0]
    fit = commutant_ridge(x, x[:, 0, 1] - x[:, 2, 0], MIRROR, in_rep=in_rep)
    new = torch.from_numpy(draw(3, seed=1)[0])
    moved = fit.predict(in_rep.act(MIRROR.generators[0], new))
    torch.testing.assert_close(moved, fit.predict(new), atol=1e-12, rtol=1e-12)


def test_what_is_refused(monkeypatch):
    (in_rep, out_rep), (x, y) = CASES[0], draw(12)

    def fit(group=MIRROR, x=x, y=y, in_rep=in_rep, out_rep=out_rep, **options):
        return commutant_ridge(x, y, group, in_rep=in_rep, out_rep=out_rep, **options)

    with pytest.raises(TypeError, match=r"in_rep must be a gsym.Representation; got str"):
        fit(in_rep="signs")
    with pytest.raises(GroupError, match="give in_rep and out_rep, or in_rep alone"):
        fit(out_rep=None)
    with pytest.raises(GroupError, match=r"the representation is of .* not of"):
        fit(group=QUARTER)
    with pytest.raises(GroupError, match="out_rep moves 3 channels but the signals have 2"):
        fit(y=x)
    with pytest.raises(GroupError, match="not of a partition; give its group"):
        fit(group=Partition.singletons(5))
    with pytest.raises(SignalError, match="complete and as they come"):
        fit(standardize="node")
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    with pytest.raises(GroupError, match=r"groups of up to 1 elements; .* has more"):
        fit()


def test_the_first_order_above_the_limit_is_refused():
    # S_3 wr S_2 has 72 elements, (S_2)^6 has 64.
    group = PermutationGroup.from_cycles(6, [(0, 1)], [(0, 1, 2)], [(0, 3), (1, 4), (2, 5)])
    rep = Representation.from_signs(group, [[1, -1], [1, 1], [1, 1]])
    x = np.random.default_rng(0).standard_normal((5, 6, 2))
    assert not is_small(group)
    with pytest.raises(GroupError, match="groups of up to 64 elements"):
        commutant_ridge(x, x, group, in_rep=rep, out_rep=rep)
    with pytest.raises(GroupError, match="groups of up to 64 elements"):
        moves_of(rep, rep)
    pairs = PermutationGroup.from_cycles(12, *([(2 * i, 2 * i + 1)] for i in range(6)))
    assert is_small(pairs)
    assert len(moves_of(*[Representation.from_signs(pairs, [[1, -1]] * 6)] * 2)[0].source) == 64
