"""Ridge regression in a commutant: every closed form against explicit refits."""

import itertools

import numpy as np
import pytest
import torch
from helpers import oracle
from oracles.left_out import left_out_errors, windows

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.coarsening import Hierarchy
from gsym.coarsening.methods.risk import merge_by_risk
from gsym.errors import GroupError
from gsym.nn import OrbitLinear
from gsym.risk import ridge as module
from gsym.risk.ridge import commutant_ridge, fit_group
from gsym.risk.samples import Samples, select

GROUPS = [
    ClusterGroup(Partition([0, 0, 1, 1, 1, 2])),
    ClusterGroup(Partition([2, 0, 1, 0, 1, 2])),
    ClusterGroup(Partition([0, 1, 0, 2, 1, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1, 2)])),
    ClusterGroup(Partition([0, 1, 0, 2, 1, 2]), swaps=PermutationGroup.symmetric(3)),
    PermutationGroup.from_cycles(6, [(0, 4, 2)]),
    PermutationGroup.from_cycles(6, [(0, 1, 2)], [(3, 4)]),
    PermutationGroup.symmetric(6),
    PermutationGroup.trivial(6),
]


def draw(signals, c_in, c_out, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 6, c_in)) + rng.standard_normal((6, c_in))
    return x, rng.standard_normal((signals, 6, c_out)) + x[..., :1]


SHAPES = [(9, 1, 1, 1, 0), (7, 2, 3, 1, 0), (11, 2, 1, 3, 0), (12, 3, 2, 2, 1), (9, 9, 1, 1, 2)]


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(("signals", "c_in", "c_out", "block", "gap"), SHAPES)
def test_left_out_errors_are_those_of_refits(group, signals, c_in, c_out, block, gap):
    x, y = draw(signals, c_in, c_out)
    fit = commutant_ridge(x, y, group, block=block, gap=gap, penalty=0.7)
    expected = left_out_errors(oracle(group), x, y, block=block, gap=gap, penalty=0.7)
    assert np.abs(fit.errors - expected).max() < 1e-8
    weights = np.diff(np.append(np.arange(0, signals, block), signals))
    assert fit.risk == pytest.approx(np.average(expected, weights=weights), abs=1e-8)
    # The comparison can fail: a fit that has seen the signal errs less.
    seen = ((fit.predict(x).numpy() - y) ** 2).mean()
    assert seen < fit.risk - 1e-2


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(("signals", "c_in", "c_out", "block", "gap"), [SHAPES[1], SHAPES[3]])
def test_the_closed_form_chooses_penalties_as_refits_do(
    group, signals, c_in, c_out, block, gap, monkeypatch
):
    monkeypatch.setattr(module, "NESTED_BLOCKS", 0)
    x, y = draw(signals, c_in, c_out)
    fit = commutant_ridge(x, y, group, block=block, gap=gap)
    expected = left_out_errors(oracle(group), x, y, block=block, gap=gap, clusters=group)
    assert np.abs(fit.errors - expected).max() < 1e-8
    assert fit.jackknife.size == 0


@pytest.mark.parametrize("many_swaps", [False, True])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_few_blocks_are_judged_by_fits_without_them(group, many_swaps, monkeypatch):
    if many_swaps:
        monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    x, y = draw(11, 2, 1)
    fit = commutant_ridge(x, y, group, block=2, gap=1)
    risks = []
    for number, (judged, kept) in enumerate(windows(11, 2, 1)):
        other = commutant_ridge(x[kept], y[kept], group, block=2, gap=1)
        error = ((other.predict(x[judged]).numpy() - y[judged]) ** 2).mean()
        assert fit.errors[number] == pytest.approx(error, abs=1e-8)
        with monkeypatch.context() as patch:
            patch.setattr(module, "NESTED_BLOCKS", 0)
            risks.append(commutant_ridge(x[kept], y[kept], group, block=2, gap=1).risk)
    assert np.allclose(fit.jackknife, risks, atol=1e-8)


def test_levels_of_a_hierarchy_that_was_built_from_the_signals():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((14, 8, 2)), rng.standard_normal((14, 8, 1))
    h = Hierarchy.from_merges(8, *merge_by_risk(x, y))
    for k in h.levels:
        fit = commutant_ridge(x, y, h[k], penalty=0.4)
        expected = left_out_errors(oracle(ClusterGroup(h[k])), x, y, penalty=0.4)
        assert np.abs(fit.errors - expected).max() < 1e-8


def test_many_channels_are_no_optimism():
    # Nothing to learn: the risk of the mean is 1, and the shared map has 24 weights for 10 signals.
    told, refit, fresh = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((10, 5, 24)), rng.standard_normal((10, 5, 1))
        fit = commutant_ridge(x, y, Partition.single(5))
        told.append(fit.risk)
        for t in range(10):
            other = commutant_ridge(np.delete(x, t, 0), np.delete(y, t, 0), Partition.single(5))
            refit.append(((other.predict(x[t : t + 1]).numpy() - y[t]) ** 2).mean())
        xt, yt = rng.standard_normal((500, 5, 24)), rng.standard_normal((500, 5, 1))
        fresh.append(((fit.predict(xt).numpy() - yt) ** 2).mean())
    assert np.mean(told) == pytest.approx(np.mean(refit), rel=1e-6)
    assert np.mean(told) > 0.9
    assert np.mean(fresh) < 1.5


def test_choosing_penalties_is_hardly_optimistic_with_more_signals(monkeypatch):
    monkeypatch.setattr(module, "NESTED_BLOCKS", 0)
    told, nested = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((40, 6, 3)), rng.standard_normal((40, 6, 1))
        for labels in ([0] * 6, [0, 0, 1, 1, 2, 2], list(range(6))):
            told.append(commutant_ridge(x, y, Partition(labels)).risk)
            with monkeypatch.context() as patch:
                patch.setattr(module, "NESTED_BLOCKS", 40)
                nested.append(commutant_ridge(x, y, Partition(labels)).risk)
    assert np.mean(told) == pytest.approx(np.mean(nested), rel=0.02)
    assert told != nested


def test_a_gap_takes_the_neighbours_out():
    # Every signal comes three times: with neighbours in the fit each has seen its copies.
    x, y = (np.repeat(v, 3, axis=0) for v in draw(20, 1, 1))
    group = PermutationGroup.trivial(6)
    alone = commutant_ridge(x, y, group, penalty=1e-3)
    apart = commutant_ridge(x, y, group, gap=2, penalty=1e-3)
    assert alone.risk < 0.6 * apart.risk
    with pytest.raises(ValueError, match="leave none of 60 signals to fit to"):
        commutant_ridge(x, y, group, gap=60)
    with pytest.raises(ValueError, match="gap must not be negative; got -1"):
        commutant_ridge(x, y, group, gap=-1)


def test_few_signals_and_many_channels():
    x, y = draw(4, 3, 2)
    group = GROUPS[0]
    fit = commutant_ridge(x, y, group, penalty=0.3)
    assert np.abs(fit.errors - left_out_errors(group, x, y, penalty=0.3)).max() < 1e-8


@pytest.mark.parametrize("group", [GROUPS[2], GROUPS[3], GROUPS[4]], ids=str)
def test_orbits_and_images_give_the_same_fit(group, monkeypatch):
    x, y = draw(12, 2, 2)
    images = commutant_ridge(x, y, group, penalty=0.5)
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    orbits = commutant_ridge(x, y, group, penalty=0.5)
    assert type(images._means) is not type(orbits._means)
    assert np.allclose(images.errors, orbits.errors, atol=1e-10)
    assert np.allclose(images.weight_means, orbits.weight_means, atol=1e-10)
    assert torch.allclose(images.predict(x), orbits.predict(x))
    assert images.residual_variance == pytest.approx(orbits.residual_variance, rel=0.2)


# Swaps that fix some clusters and move others, a 3-cycle, one without fixed points, and none.
SWAPPED = [
    PermutationGroup.from_cycles(6, [(0, 1)]),
    PermutationGroup.from_cycles(6, [(0, 1, 2)]),
    PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)]),
    PermutationGroup.from_cycles(6, [(0, 1, 2)], [(3, 4)]),
    ClusterGroup(Partition([0, 0, 1, 1, 2, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])),
    ClusterGroup(Partition([0, 0, 1, 1, 2, 2]), swaps=PermutationGroup.symmetric(3)),
    GROUPS[0],
]


def hat_matrix(fit_to, y):
    """The map from targets to their fit, number by number."""
    units = np.eye(y.size).reshape(-1, *y.shape)
    return np.stack([fit_to(unit).reshape(-1) for unit in units], axis=1)


@pytest.mark.parametrize("many_swaps", [False, True])
@pytest.mark.parametrize("group", SWAPPED, ids=str)
def test_degrees_of_freedom_are_the_trace_of_the_hat_matrix(group, many_swaps, monkeypatch):
    if many_swaps:
        monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    x, y = draw(8, 2, 1)
    keep = {"penalty": 0.6, "shared": False}
    fit = commutant_ridge(x, y, group, **keep)
    hat = hat_matrix(lambda unit: commutant_ridge(x, unit, group, **keep).predict(x).numpy(), y)
    assert fit.degrees_of_freedom == pytest.approx(np.trace(hat), rel=1e-8)
    if not many_swaps and max(group.as_clusters().partition.sizes) == 1:
        rest = np.eye(len(hat)) - hat
        noise = ((rest @ y.reshape(-1)) ** 2).sum() / (rest**2).sum()
        assert fit.residual_variance == pytest.approx(noise, rel=1e-8)


MOVING = [
    Representation.regular(PermutationGroup.from_cycles(6, [(0, 1, 2)])),
    Representation.from_signs(PermutationGroup.from_cycles(6, [(0, 1)]), [[1, -1, -1]]),
]


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("rep", MOVING, ids=str)
def test_degrees_of_freedom_where_channels_move(rep, invariant):
    x, y = draw(4, 3, 3)
    y = y[:, 0, 0] if invariant else y
    keep = {"in_rep": rep, "penalty": 0.6, "shared": False}
    keep["out_rep"] = None if invariant else rep

    def fit_to(targets):
        return commutant_ridge(x, targets, rep.group, **keep)

    trace = np.trace(hat_matrix(lambda unit: fit_to(unit).predict(x).numpy(), y))
    assert fit_to(y).degrees_of_freedom == pytest.approx(trace, rel=1e-8)


def test_weights_of_each_output_are_counted():
    x, y = draw(9, 2, 3)
    data = Samples(x, y)
    for group in SWAPPED[:4]:
        fit = fit_group(data, group)
        weights, _ = fit.split(data)[3]
        assert weights == pytest.approx(group.pair_orbits().num_orbits * 2 / 6)


@pytest.mark.parametrize("group", SWAPPED, ids=str)
def test_a_learning_curve_starts_at_the_same_error_either_way(group, monkeypatch):
    # The cluster means alone, about one mean for each orbit of clusters.
    x, y = draw(12, 2, 2)
    y = y + np.arange(6)[:, None]
    data = Samples(x, y, block=2)
    images = fit_group(data, group, penalty=0.5)
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1)
    orbits = fit_group(data, group, penalty=0.5)
    for one, other in zip(images.split(data), orbits.split(data), strict=True):
        assert np.allclose(one, other, atol=1e-9)


def test_swaps_beyond_both_limits_are_refused():
    swaps = PermutationGroup(24, [[*range(1, 12), 0, *range(13, 24), 12]])
    many = PermutationGroup(
        24,
        [*swaps.generators.tolist(), [1, 0, *range(2, 24)], [*range(12), 13, 12, *range(14, 24)]],
    )
    x = np.random.default_rng(0).standard_normal((5, 24, 70))
    with pytest.raises(GroupError, match=r"more than 64 swaps and 6 pair orbits: 422 unknowns"):
        commutant_ridge(x, x, many)


@pytest.mark.parametrize("group", GROUPS, ids=str)
class TestPredictor:
    def test_commutes_with_each_generator(self, group):
        x, y = draw(20, 2, 1)
        fit = commutant_ridge(x, y, group)
        for perm in group.generators:
            moved = np.empty_like(x)
            moved[:, perm] = x
            image = torch.empty(20, 6, 1, dtype=torch.float64)
            image[:, perm] = fit.predict(x)
            assert torch.allclose(fit.predict(moved), image, atol=1e-10)

    def test_moves_under_a_permutation_outside(self, group):
        x, y = draw(20, 2, 1)
        fit = commutant_ridge(x, y, group, penalty=1e-3)
        perms = (torch.tensor(p) for p in itertools.permutations(range(6)))
        perm = next((p for p in perms if not group.contains(p)), None)
        if perm is None:
            pytest.skip("the full symmetric group has no outsider")
        moved = np.empty_like(x)
        moved[:, perm] = x
        image = torch.empty(20, 6, 1, dtype=torch.float64)
        image[:, perm] = fit.predict(x)
        assert (fit.predict(moved) - image).abs().max() > 1e-2

    def test_recovers_a_map_of_the_commutant(self, group):
        x, _ = draw(200, 1, 1)
        rng = torch.Generator().manual_seed(0)
        theta = group.project(torch.randn(6, 6, dtype=torch.float64, generator=rng)).numpy()
        y = np.einsum("ij,sjc->sic", theta, x)
        fit = commutant_ridge(x, y, group)
        assert fit.risk < 1e-6 * y.var()
        fresh, _ = draw(5, 1, 1, seed=1)
        wanted = np.einsum("ij,sjc->sic", theta, fresh)
        assert np.abs(fit.predict(fresh).numpy() - wanted).max() < 1e-3


def test_weights_are_those_of_an_orbit_linear():
    x, y = draw(30, 2, 3)
    group = ClusterGroup(Partition([0, 1, 0, 1, 2, 1]))
    fit = commutant_ridge(x, y, group)
    layer = OrbitLinear(2, 3, group).double()
    own, means = torch.from_numpy(fit.weight_own), torch.from_numpy(fit.weight_means)
    with torch.no_grad():
        layer.weight_self.copy_(own[:2])
        mixing = means.clone()
        for c in range(2):
            mixing[c, :, c] -= own[c]
        layer.mixing.weight.copy_(mixing)
        layer.bias.copy_(torch.from_numpy(fit.bias))
        shift_x, shift_y = (torch.from_numpy(v.mean((0, 1))) for v in (x, y))
        out = layer(torch.from_numpy(x) - shift_x) + shift_y
    assert torch.allclose(out, fit.predict(x), atol=1e-12)
    assert np.allclose(fit.matrix, fit.weight_means.mean((1, 3)).T)


@pytest.mark.parametrize("group", [GROUPS[0], GROUPS[2], GROUPS[6], GROUPS[7]], ids=str)
def test_one_number_per_signal(group):
    x, _ = draw(9, 2, 1)
    y = np.random.default_rng(1).standard_normal(9) + x.sum((1, 2))
    fit = commutant_ridge(x, y, group, penalty=0.7)
    nodes = group.node_orbits()
    centred, target = x - x.mean((0, 1)), y - y.mean()
    pool = np.stack([(nodes.index == o).double().numpy() for o in range(nodes.num_orbits)])
    features = np.einsum("oi,sic->soc", pool, centred).reshape(9, -1)
    penalty = 0.7 * np.repeat(nodes.sizes.numpy(), 2)
    for t in range(9):
        kept = np.delete(np.arange(9), t)
        A = np.column_stack([features[kept], np.ones(8)])
        weight = np.linalg.solve(A.T @ A + np.diag(np.append(penalty, 0)), A.T @ target[kept])
        error = (np.append(features[t], 1) @ weight - target[t]) ** 2
        assert fit.errors[t] == pytest.approx(error, abs=1e-9)
    assert fit.predict(x).shape == (9,)
    for perm in group.generators:
        assert torch.allclose(fit.predict(x[:, perm]), fit.predict(x))


def test_no_signal_chooses_the_strength_it_is_judged_by():
    table = np.array([[1.0, 5.0, 1.0], [2.0, 1.0, 2.0]])
    judged_by, best = select(table)
    # Without itself the second signal prefers the first penalty, the others the second.
    assert judged_by.tolist() == [1, 0, 1]
    assert best == 1


def test_noise_is_the_error_of_the_best_map():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6, 1))
    y = 2 * x + x.mean(1, keepdims=True) + 0.5 * rng.standard_normal(x.shape)
    for labels in ([0] * 6, [0, 0, 0, 1, 1, 1], list(range(6))):
        fit = commutant_ridge(x, y, Partition(labels))
        assert fit.residual_variance == pytest.approx(0.25, rel=0.06)
        assert fit.risk > fit.residual_variance


def test_data_are_left_alone():
    x, y = draw(8, 2, 1)
    before = x.copy(), y.copy()
    commutant_ridge(x, y, GROUPS[0])
    commutant_ridge(torch.from_numpy(x).float(), torch.from_numpy(y), GROUPS[0])
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


def test_constant_and_equal_nodes_do_no_harm():
    x, y = draw(12, 1, 1)
    x[:, 2] = 3.0
    x[:, 4] = x[:, 5]
    for group in GROUPS:
        fit = commutant_ridge(x, y, group)
        assert np.isfinite(fit.errors).all()
        assert torch.isfinite(fit.predict(x)).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((5, 4)), np.ones((5, 3)), "x has 4 nodes but y has 3"),
        (np.ones((5, 4)), np.ones((6, 4)), "x has 5 signals but y has 6"),
        (np.eye(4)[:1], np.eye(4)[:1], "at least two blocks; got 1 signals"),
        (np.ones((5, 4)), np.eye(5)[:, :4], "x is constant"),
        (np.eye(5)[:, :4], 2 * np.ones((5, 4)), "y is constant"),
        (np.zeros((5, 0)), np.zeros((5, 0)), r"none of them 0; got shape \[5, 0\]"),
        (np.ones(5), np.ones(5), r"got shape \[5\]"),
        (np.ones((2, 3, 4, 5)), np.ones((2, 3)), r"got shape \[2, 3, 4, 5\]"),
        (np.ones((5, 4)) * 1j, np.ones((5, 4)), "real numbers"),
        ([["a", "b"], ["c", "d"]], np.ones((2, 2)), "real numbers"),
    ],
)
def test_bad_data_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        Samples(x, y)


def test_nan_names_the_nodes():
    x, y = draw(5, 1, 1)
    x[2, 3] = np.nan
    x[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"x must be finite.*2 of 6 nodes \(1, 3\)"):
        Samples(x, y)
    with pytest.raises(ValueError, match="y must be finite"):
        Samples(y, x)


def test_wrong_group_and_wrong_prediction():
    x, y = draw(8, 2, 1)
    with pytest.raises(GroupError, match="acts on 5 nodes but x has 6"):
        commutant_ridge(x, y, Partition.single(5))
    with pytest.raises(TypeError, match="Partition or a PermutationGroup; got list"):
        commutant_ridge(x, y, [0, 0, 1])
    with pytest.raises(ValueError, match=r"x \[s, 6, 2\]; got \[8, 6, 1\]"):
        commutant_ridge(x, y, Partition.single(6)).predict(x[..., :1])
    with pytest.raises(ValueError, match="in blocks of 5"):
        commutant_ridge(x, y, Partition.single(6), block=5)
