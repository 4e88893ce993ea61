"""Targets that do not count: the closed form against refits on those that do."""

import numpy as np
import pytest
from helpers import oracle
from oracles.masked import masked_residuals

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.errors import SignalError
from gsym.risk import ridge as module
from gsym.risk.ridge import commutant_ridge, fit_group
from gsym.risk.samples import Samples

GROUPS = [
    ClusterGroup(Partition([0, 0, 1, 1, 1, 2])),
    ClusterGroup(Partition([0, 1, 0, 2, 1, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1, 2)])),
    PermutationGroup.from_cycles(6, [(0, 4, 2)]),
    PermutationGroup.symmetric(6),
    PermutationGroup.trivial(6),
]
SHAPES = [(9, 1, 1, 1, 0), (8, 2, 2, 1, 0), (11, 2, 1, 3, 0), (12, 1, 2, 2, 1)]


def draw(signals, c_in, c_out, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 6, c_in)) + rng.standard_normal((6, c_in))
    y = rng.standard_normal((signals, 6, c_out)) + x[..., :1]
    return x, y, rng.random(y.shape) < 0.7


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(("signals", "c_in", "c_out", "block", "gap"), SHAPES)
def test_errors_are_those_of_refits_on_what_counts(group, signals, c_in, c_out, block, gap, shared):
    x, y, seen = draw(signals, c_in, c_out)
    data = Samples(x, y, block=block, gap=gap, mask=(None, seen), shared=shared)
    fit = fit_group(data, group, penalty=0.7)
    expected = masked_residuals(
        oracle(group), x, y, seen, block=block, gap=gap, penalty=0.7, shared=shared
    )
    # Targets come less a common mean, which the constant takes up.
    assert np.abs(fit.left_out(data) - expected).max() < 1e-8
    assert fit.risk == pytest.approx((expected**2).sum() / seen.sum(), rel=1e-8)
    # The comparison can fail: what does not count is as if it were not there, and it counts.
    other = np.where(seen, y, 100.0)
    again = commutant_ridge(
        x, other, group, penalty=0.7, mask=(None, seen), block=block, gap=gap, shared=shared
    )
    assert again.risk == pytest.approx(fit.risk, rel=1e-9)
    whole = commutant_ridge(x, y, group, penalty=0.7, block=block, gap=gap, shared=shared)
    assert abs(whole.risk / fit.risk - 1) > 1e-3


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_fit_errs_least_on_what_counts(group):
    x, y, seen = draw(30, 1, 1)
    fit = commutant_ridge(x, y, group, penalty=1e-9, mask=(None, seen), shared=False)
    error = (fit.predict(x).numpy() - y)[seen]
    # At almost no penalty residuals are orthogonal to whatever the group allows.
    maps = oracle(group).pair_orbits()
    for o in range(maps.num_orbits):
        feature = np.einsum("ij,sjc->sic", (maps.index == o).double().numpy(), x)[seen]
        assert abs(feature @ error) < 1e-5 * np.linalg.norm(feature) * np.linalg.norm(error)


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(("signals", "c_in", "c_out", "block", "gap"), [SHAPES[1], SHAPES[3]])
def test_with_all_targets_it_is_the_other_regression(
    group, signals, c_in, c_out, block, gap, monkeypatch
):
    monkeypatch.setattr(module, "NESTED_BLOCKS", 0)
    x, y, _ = draw(signals, c_in, c_out)
    data = Samples(x, y, block=block, gap=gap)
    plain = fit_group(data, group)
    data.observed = None, np.ones(y.shape, dtype=bool)
    masked = fit_group(data, group)
    assert masked.is_exact
    assert not plain.is_exact
    assert np.abs(masked.errors / plain.errors - 1).max() < 1e-7
    assert masked.penalties[0] == pytest.approx(plain.penalties[0], rel=1e-9)
    assert np.abs(masked.predict(x).numpy() - plain.predict(x).numpy()).max() < 1e-8
    assert masked.degrees_of_freedom == pytest.approx(plain.degrees_of_freedom, rel=1e-8)


def test_a_mask_of_nodes_is_one_for_all_signals():
    x, y, _ = draw(40, 1, 1)
    nodes = np.array([True, False, True, True, True, False])
    group = GROUPS[0]
    one = commutant_ridge(x, y, group, mask=(None, nodes))
    all_ = commutant_ridge(x, y, group, mask=(None, np.tile(nodes, (40, 1))))
    assert one.risk == all_.risk
    # Trivially, the other nodes are regressions of their own.
    some = commutant_ridge(x, y, PermutationGroup.trivial(6), penalty=1.0, mask=(None, nodes),
                           shared=False)  # fmt: skip
    whole = commutant_ridge(x, y, PermutationGroup.trivial(6), penalty=1.0, shared=False)
    both = [f.predict(x).numpy()[:, nodes] for f in (some, whole)]
    assert np.abs(both[0] - both[1]).max() < 1e-10


def test_rows_that_do_not_count():
    x, y, _ = draw(40, 1, 1)
    rows = np.arange(40) % 4 > 0
    seen = np.repeat(rows[:, None], 6, axis=1)
    fit = commutant_ridge(x, y, GROUPS[3], penalty=1.0, mask=(None, seen), shared=False)
    kept = commutant_ridge(x[rows], y[rows], GROUPS[3], penalty=1.0, shared=False)
    assert np.isnan(fit.errors[~rows]).all()
    assert fit.risk == pytest.approx(kept.risk, rel=1e-9)


def test_a_node_that_counts_in_one_block_only():
    x, y, seen = draw(20, 1, 1)
    seen[:, 0] = False
    seen[3, 0] = True
    fit = commutant_ridge(x, y, PermutationGroup.trivial(6), mask=(None, seen), penalty=1.0)
    assert np.isfinite(fit.risk)
    assert fit.errors[3] < 1e3


def test_without_the_shared_map_the_penalty_draws_to_zero():
    x, y, _ = draw(40, 2, 2)
    drawn = [commutant_ridge(x, y, GROUPS[0], penalty=1e9, shared=s) for s in (True, False)]
    spread = [f.predict(x).numpy().std(0).max() for f in drawn]
    assert spread[0] > 0.1
    assert spread[1] < 1e-3


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((40, 5), dtype=bool), r"mask must be boolean \[40, 6\].* got bool \[40, 5\]"),
        (np.ones(5, dtype=bool), r"or \[6\] for all signals alike"),
        (np.ones((40, 6)), "got float64"),
        (np.zeros(6, dtype=bool), "none of y was observed"),
        (np.arange(40)[:, None] * np.ones(6) < 1, "targets count in one block only"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    x, y, _ = draw(40, 1, 1)
    with pytest.raises(SignalError, match=message):
        commutant_ridge(x, y, GROUPS[0], mask=(None, mask))
