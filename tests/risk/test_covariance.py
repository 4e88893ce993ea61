"""SymmetricCovariance: its terms, weights, conditionals, and what it refuses."""

from itertools import permutations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.optimize import check_grad
from sklearn.covariance import LedoitWolf
from sklearn.utils.estimator_checks import check_estimator

import gsym
from gsym import ClusterGroup, Partition, PermutationGroup, Representation, SymmetricCovariance
from gsym.risk._fit_weights import Fold, fit_weights, imputation, likelihood
from gsym.risk._terms import GroupTerm, read_terms, stack

MIRROR = PermutationGroup.from_cycles(5, [(0, 1), (2, 3)])
CYCLE = PermutationGroup.from_cycles(5, [(0, 1, 2)])
CLUSTERS = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]))
SWAPPED = ClusterGroup(
    Partition.from_labels([0, 0, 1, 1, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
)
SIGNS = Representation.from_signs(MIRROR, [[-1, 1]])
TURNED = Representation.from_permutation(SWAPPED, [[1, 0]])


def normal(rows, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, *shape))


def correlated(rows, n, seed=0):
    rng = np.random.default_rng(seed)
    place = rng.uniform(size=(n, 2))
    apart = ((place[:, None] - place[None]) ** 2).sum(-1)
    true = np.exp(-apart / 0.1) + 0.3 * np.eye(n) + 0.5
    return rng.multivariate_normal(np.zeros(n), true, size=rows), place, true


def brute_force(S, group, rep, c):
    """Mean of P S P^T over all permutations that belong to the group."""
    n, total, count = group.num_nodes, np.zeros_like(S), 0
    for perm in permutations(range(n)):
        if not group.contains(list(perm)):
            continue
        rho = np.eye(c) if rep is None else rep.matrix(list(perm)).numpy()
        P = np.kron(np.eye(n)[:, list(perm)].T, rho).reshape(n, c, n, c)
        P = np.zeros((n, c, n, c))
        for i, image in enumerate(perm):
            P[image, :, i, :] = rho
        P = P.reshape(n * c, n * c)
        total += P @ S @ P.T
        count += 1
    return total / count


@pytest.mark.parametrize(
    ("group", "rep", "c"),
    [
        (MIRROR, None, 1),
        (CYCLE, None, 2),
        (CLUSTERS, None, 1),
        (CLUSTERS, None, 2),
        (SWAPPED, None, 2),
        (MIRROR, SIGNS, 2),
        (SWAPPED, TURNED, 2),
        (PermutationGroup.trivial(5), None, 2),
    ],
    ids=str,
)
def test_a_level_is_the_mean_over_its_group(group, rep, c):
    x = normal(9, 5 * c)
    S = x.T @ x
    averaged = GroupTerm("g", group, rep, c).average(S)
    np.testing.assert_allclose(averaged, brute_force(S, group, rep, c), atol=1e-12)


def test_one_level_is_the_group_averaged_covariance():
    x = normal(400, 5)
    cov = SymmetricCovariance([CLUSTERS], objective="likelihood").fit(x)
    S = np.cov(x.T, bias=True)
    averaged = CLUSTERS.project(torch.from_numpy(S)).numpy()
    w, r = cov.weights_["2 clusters"], cov.weights_["ridge"]
    expected = w * averaged + r * np.trace(S) / 5 * np.eye(5)
    np.testing.assert_allclose(cov.covariance_, expected, atol=1e-12)
    assert w > 0.9 or r > 0.5  # the sum of both is the scale, which is known
    assert abs(w + r - 1) < 0.05


def test_both_ends_hold_ledoit_wolf():
    # Its target is a multiple of the identity: the ridge.
    x, _, _ = correlated(30, 12)
    S = np.cov(x.T, bias=True)
    terms = stack(read_terms([Partition.singletons(12), Partition.single(12)], (), None, None,
                             None, 12, 1).fixed, S)  # fmt: skip
    theirs = LedoitWolf().fit(x)
    s = theirs.shrinkage_
    np.testing.assert_allclose((1 - s) * terms[0] + s * terms[2], theirs.covariance_, atol=1e-12)


def folds(d=6, m=3, seed=0, gaps=False):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        roots = rng.standard_normal((m, d, d + 2))
        errors = rng.standard_normal((5, d))
        held = [(np.ones(d, dtype=bool), errors[:3])]
        if gaps:
            held.append((np.arange(d) % 2 == 0, errors[3:]))
        made.append(Fold(roots @ roots.transpose(0, 2, 1), held))
    return made


def objectives():
    patterns = [np.arange(6) % 3 > 0, np.arange(6) < 2]
    yield pytest.param(likelihood(folds()), id="likelihood")
    yield pytest.param(likelihood(folds(gaps=True)), id="likelihood with gaps")
    yield pytest.param(imputation(folds(), patterns), id="imputation")


def test_imputation_is_the_squared_error_of_the_conditional_mean():
    weights, cases = np.array([0.3, 0.02, 1.7]), folds()
    patterns = [np.arange(6) % 3 > 0, np.arange(6) < 2]
    error = square = 0.0
    for fold in cases:
        Sigma = np.tensordot(weights, fold.terms, 1)
        for o in patterns:
            B = Sigma[np.ix_(~o, o)] @ np.linalg.inv(Sigma[np.ix_(o, o)])
            error += ((fold.whole[:, ~o] - fold.whole[:, o] @ B.T) ** 2).sum()
            square += (fold.whole[:, ~o] ** 2).sum()
    assert imputation(cases, patterns)(weights)[0] == pytest.approx(error / square, rel=1e-12)


@pytest.mark.parametrize("loss", [*objectives()])
def test_gradients_are_finite_differences(loss):
    weights = np.array([0.3, 0.02, 1.7])
    error = check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], weights, epsilon=1e-7)
    assert error < 1e-5 * np.linalg.norm(loss(weights)[1])


def test_likelihood_is_that_of_a_gaussian():
    from scipy.stats import multivariate_normal

    weights, cases = np.array([0.3, 0.02, 1.7]), folds(gaps=True)
    total, entries = 0.0, 0
    for fold in cases:
        Sigma = np.tensordot(weights, fold.terms, 1)
        for seen, errors in fold.held:
            o = np.flatnonzero(seen)
            total -= multivariate_normal(cov=Sigma[np.ix_(o, o)]).logpdf(errors[:, o]).sum()
            entries += errors[:, o].size
    expected = total / entries - np.log(2 * np.pi) / 2
    assert abs(likelihood(cases)(weights)[0] - expected) < 1e-12


def test_a_weight_at_the_floor_comes_back():
    # On a logarithmic scale the slope of a tiny weight is nothing, so a plain search stays there.
    loss = likelihood(folds(seed=3))
    free = fit_weights(loss, np.ones(3))
    stuck = fit_weights(loss, np.array([1e-8, 1.0, 1.0]))
    assert free.optimality < 1e-5
    assert stuck.optimality < 1e-5
    assert abs(free.loss - stuck.loss) < 1e-7


@pytest.mark.parametrize("objective", ["likelihood", "imputation"])
def test_relabelling_and_units_change_nothing_else(objective):
    x, place, _ = correlated(40, 9)
    cov = SymmetricCovariance(positions=place, objective=objective).fit(x)
    perm = np.random.default_rng(1).permutation(9)
    # What is hidden at random follows the labels of the nodes, so it is given.
    masks = np.random.default_rng(2).uniform(size=(4, 9)) > 0.4
    cov = SymmetricCovariance(positions=place, objective=objective, patterns=masks).fit(x)
    other = SymmetricCovariance(
        positions=7 * place[perm], objective=objective, patterns=masks[:, perm]
    ).fit(1000 * x[:, perm] + 3)
    np.testing.assert_allclose(
        other.covariance_, 1e6 * cov.covariance_[np.ix_(perm, perm)], rtol=2e-3, atol=1e3
    )


def test_conditional_is_the_textbook_formula():
    x, _, _ = correlated(40, 6)
    cov = SymmetricCovariance(objective="likelihood").fit(x)
    seen = np.random.default_rng(0).uniform(size=x.shape) > 0.5
    seen[:, 0] = True
    mean, variance = cov.conditional(np.where(seen, x, np.nan), seen)
    C, mu = cov.covariance_, cov.location_
    for i in range(len(x)):
        o, u = np.flatnonzero(seen[i]), np.flatnonzero(~seen[i])
        B = C[np.ix_(u, o)] @ np.linalg.inv(C[np.ix_(o, o)])
        np.testing.assert_allclose(mean[i, u], mu[u] + B @ (x[i, o] - mu[o]), atol=1e-10)
        expected = np.diag(C[np.ix_(u, u)] - B @ C[np.ix_(o, u)])
        np.testing.assert_allclose(variance[i, u], expected, atol=1e-10)
    np.testing.assert_array_equal(mean[seen], x[seen])
    assert (variance[seen] == 0).all()


@pytest.mark.parametrize("objective", ["auto", "likelihood", "imputation"])
def test_intervals_are_calibrated(objective):
    inside = []
    for seed in range(3):
        x, place, _ = correlated(260, 12, seed)
        cov = SymmetricCovariance("auto", positions=place, objective=objective).fit(x[:60])
        seen = np.random.default_rng(seed).uniform(size=(200, 12)) > 0.3
        mean, variance = cov.conditional(x[60:], seen)
        inside.append((np.abs(mean - x[60:]) < 1.645 * np.sqrt(variance))[~seen].mean())
    assert 0.88 < np.mean(inside) < 0.92


def test_auto_combines_what_fills_best():
    # Two kinds of signals that no Gaussian tells apart: the nearest do.
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((12, 16))
    kinds -= kinds.mean(0)
    x = kinds[rng.integers(12, size=300)] + 0.1 * rng.standard_normal((300, 16))
    errors = {}
    seen = rng.uniform(size=(150, 16)) > 0.4
    for objective in ("auto", "likelihood"):
        cov = SymmetricCovariance(objective=objective, patterns=0.4).fit(x[:150])
        errors[objective] = float(((cov.impute(x[150:], seen) - x[150:]) ** 2).mean())
        assert sum(cov.fills_.values()) == pytest.approx(1)
    assert errors["auto"] < 0.8 * errors["likelihood"]
    assert set(cov.fills_) == {"likelihood"}


def test_a_jump_of_a_still_node_carries_nothing_off():
    x, _, _ = correlated(60, 8)
    x[:, 3] *= 1e-4
    cov = SymmetricCovariance().fit(x[:40])
    new, seen = x[40:].copy(), np.arange(8) < 4
    calm = cov.impute(new, seen)
    new[:, 3] = 5.0
    assert np.abs(cov.impute(new, seen) - calm)[:, 4:].max() < 5
    # What the covariance of the signals says moves by thousands.
    C = np.cov(x[:40].T)
    B = np.linalg.solve(C[:4, :4], C[:4, 4:])
    assert np.abs((new - x[40:])[:, :4] @ B).max() > 1000


def test_gaps_in_training_signals_cost_little():
    x, place, true = correlated(80, 8)
    seen = np.random.default_rng(1).uniform(size=x.shape) > 0.3
    fit = {"positions": place}
    gaps = SymmetricCovariance(**fit).fit(np.where(seen, x, np.nan), observed=seen)
    zeros = SymmetricCovariance(**fit).fit(np.where(seen, x, 0.0))
    assert gaps.error_norm(true) < 0.5 * zeros.error_norm(true)


def test_completion_is_a_fixed_point_of_the_likelihood():
    # One group and no ridge to speak of: EM for the group-averaged covariance of normal signals.
    x = normal(300, 5) @ np.linalg.cholesky(0.5 + 0.5 * np.eye(5)).T
    seen = np.random.default_rng(0).uniform(size=x.shape) > 0.3
    seen[:, 0] |= ~seen.any(1)
    cov = SymmetricCovariance([PermutationGroup.symmetric(5)], objective="likelihood").fit(
        np.where(seen, x, np.nan), observed=seen
    )
    best = cov.log_prob(x, seen).sum()
    for shift in (0.9, 1.1):
        C = cov.covariance_
        off = shift * (C - np.diag(np.diag(C))) + np.diag(np.diag(C))
        total = 0.0
        for row, kept in zip(x - cov.location_, seen, strict=True):
            o = np.flatnonzero(kept)
            S = off[np.ix_(o, o)]
            total -= 0.5 * (
                np.linalg.slogdet(2 * np.pi * S)[1] + row[o] @ np.linalg.solve(S, row[o])
            )
        assert total < best + 0.5


def test_signals_to_be_filled_teach():
    x, place, _ = correlated(120, 12)
    seen = np.random.default_rng(0).uniform(size=(100, 12)) > 0.3
    cov = SymmetricCovariance(positions=place, objective="likelihood").fit(x[:20])
    before = cov.covariance_
    alone, taught = (cov.impute(x[20:], seen, transductive=t) for t in (False, True))
    assert ((taught - x[20:]) ** 2).sum() < 0.95 * ((alone - x[20:]) ** 2).sum()
    np.testing.assert_array_equal(taught[seen], x[20:][seen])
    # For that call only.
    np.testing.assert_array_equal(cov.covariance_, before)


def test_channels_go_together():
    # Channel 1 of a node is channel 0 and noise: the one fills the other.
    x = normal(50, 4, 2)
    x[:, :, 1] = x[:, :, 0] + 0.1 * x[:, :, 1]
    cov = SymmetricCovariance(objective="likelihood").fit(x)
    seen = np.ones((4, 2), dtype=bool)
    seen[2, 1] = False
    filled = cov.impute(x, seen)
    assert filled.shape == x.shape
    assert np.abs(filled - x)[:, 2, 1].std() < 0.2
    assert cov.covariance_.shape == (8, 8)
    assert cov.location_.shape == (4, 2)


def test_mirror_with_signs_is_found():
    # The mirror of left and right turns the sign of channel 0; signals have that symmetry.
    half = normal(12, 5, 2) * [1.0, 2.0]
    mirrored = SIGNS.act(MIRROR.generators[0], torch.from_numpy(half)).numpy()
    x = np.concatenate([half, mirrored])[:, [0, 1, 2, 3, 4]]
    plain = Representation.trivial(MIRROR, 2)
    cov = SymmetricCovariance([(MIRROR, SIGNS), (MIRROR, plain)], objective="likelihood").fit(x)
    signed, unsigned, _ = cov.weights_.values()
    assert signed > 5 * unsigned


def test_scores_and_distances():
    x, _, _ = correlated(50, 5)
    cov = SymmetricCovariance(objective="likelihood").fit(x)
    density = torch.distributions.MultivariateNormal(
        torch.from_numpy(cov.location_), torch.from_numpy(cov.covariance_)
    ).log_prob(torch.from_numpy(x))
    np.testing.assert_allclose(cov.log_prob(x), density.numpy(), atol=1e-10)
    assert cov.score(x) == pytest.approx(float(density.mean()))
    e = x - cov.location_
    expected = np.einsum("si,ij,sj->s", e, cov.get_precision(), e)
    np.testing.assert_allclose(cov.mahalanobis(x), expected)
    np.testing.assert_allclose(cov.anomaly_score(x), expected / 5)
    drawn = cov.sample(4000, random_state=0)
    assert cov.error_norm(np.cov(drawn.T)) < 0.1
    assert cov.error_norm(cov.covariance_) == 0
    assert cov.error_norm(0 * cov.covariance_, norm="spectral", scaling=False, squared=False) == (
        pytest.approx(np.linalg.norm(cov.covariance_, 2))
    )


def test_a_wrong_entry_is_an_anomaly():
    x, _, _ = correlated(80, 6)
    cov = SymmetricCovariance(objective="likelihood").fit(x)
    odd = x[:1].copy()
    odd[0, 2] += 10
    seen = np.arange(6) != 2
    assert cov.anomaly_score(odd) > 5 * cov.anomaly_score(odd, seen)


def test_a_hierarchy_gives_some_of_its_levels():
    x, _, _ = correlated(40, 30)
    h = gsym.coarsen(signals=torch.from_numpy(x))
    cov = SymmetricCovariance(h, objective="likelihood").fit(x)
    names = list(cov.weights_)
    assert names[0] == "trivial" and names[-2:] == ["S_30", "ridge"]
    assert len(names) <= 8


def test_weights_print_as_a_line():
    x, _, _ = correlated(40, 9)
    cov = SymmetricCovariance(objective="likelihood").fit(x)
    assert "%" in repr(cov.weights_) and "\n" not in repr(cov.weights_)
    assert sum(cov.weights_.shares().values()) == pytest.approx(1)


def test_weights_are_drawn_as_bars():
    figure = Figure()
    cov = SymmetricCovariance(objective="likelihood").fit(normal(20, 9))
    ax = cov.plot(figure.subplots())
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([100 * share for share in cov.weights_.shares().values()])


def test_a_graph_adds_diffusion():
    ring = torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8])
    cov = SymmetricCovariance(edge_index=ring, objective="likelihood").fit(normal(20, 8))
    assert "diffusion 1" in cov.weights_ and "diffusion 8" in cov.weights_


def test_trials_are_never_split():
    from gsym.risk._folds import make_folds

    groups = np.repeat(np.arange(7), 6)
    for train, test in make_folds(normal(42, 3), 1, groups):
        assert not set(groups[train]) & set(groups[test])
    series = np.cumsum(normal(100, 3), axis=0)
    for _, test in make_folds(series - series.mean(0), "auto"):
        assert (np.diff(test) == 1).all()


def test_follows_scikit_learn():
    check_estimator(SymmetricCovariance(objective="likelihood"))


X = normal(8, 4)
PATH = torch.tensor([[0, 1], [1, 2]])
GAPS = np.where(np.arange(4) == 1, np.nan, X)


@pytest.mark.parametrize(
    ("parameters", "x", "message"),
    [
        ({}, X[:3], "minimum of 4 is required"),
        ({}, GAPS, "NaN"),
        ({}, np.ones((5, 4)), "never vary"),
        ({"levels": []}, X, "at least one group"),
        ({"levels": [Partition.single(3)]}, X, "acts on 3 nodes but the signals have 4"),
        ({"levels": Partition.single(4)}, X, r"write \[group\]"),
        ({"levels": [(MIRROR, SIGNS)]}, normal(8, 5, 3), "moves 2 channels .* have 3"),
        ({"levels": "chain"}, X, 'levels must be "auto"'),
        ({"levels": [Partition.single(4)] * 9}, X, "9 levels are more than 8 signals"),
        ({"kernels": [np.diag([1, 1, 1, -1.0])]}, X, "smallest eigenvalue is -1"),
        ({"kernels": [-np.eye(4)]}, X, "smallest eigenvalue is -1"),
        ({"kernels": [np.zeros((4, 4))]}, X, "not zero"),
        ({"kernels": [np.triu(np.ones((4, 4)))]}, X, "must be symmetric"),
        ({"kernels": [np.eye(3)]}, X, r"finite \[4, 4\]"),
        ({"levels": gsym.coarsen(num_nodes=3, edge_index=PATH)}, X, "acts on 3 nodes but .* 4"),
        ({}, np.ma.masked_greater(X, 1), "masked array"),
        ({}, torch.from_numpy(X).to_sparse(), "dense tensor"),
        ({}, torch.empty(8, 4, device="meta"), "values to read"),
        ({"positions": np.ones((3, 2))}, X, r"finite \[4, d\]"),
        ({"objective": "best"}, X, "objective must be"),
        ({"objective": "imputation", "patterns": 1.5}, X, "between 0 and 1; got 1.5"),
        ({"objective": "imputation", "patterns": np.ones((2, 3), bool)}, X, r"\[p, 4\]"),
        ({"block": 8}, X, "one block"),
    ],
)
def test_bad_parameters_are_refused(parameters, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SymmetricCovariance(**{"objective": "likelihood", **parameters}).fit(x)


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (np.ones(3, dtype=bool), r"observed must be \[8, 4\]"),
        (np.ones(4), "boolean"),
        (None, "observed=~np.isnan"),
        (np.zeros(4, dtype=bool), "nothing is observed of signal 0"),
        (np.ones(4, dtype=bool), "NaN"),
    ],
)
def test_bad_gaps_are_refused(observed, message):
    cov = SymmetricCovariance(objective="likelihood").fit(X)
    with pytest.raises(ValueError, match=message):
        cov.conditional(GAPS, observed)
    with pytest.raises(ValueError, match=message):
        SymmetricCovariance().fit(GAPS, observed=observed)


def test_a_signal_without_entries_is_named():
    seen = np.ones(X.shape, dtype=bool)
    seen[5] = False
    with pytest.raises(ValueError, match="nothing is observed of signal 5"):
        SymmetricCovariance().fit(X, observed=seen)
    with pytest.raises(ValueError, match=r"observed must be \[8, 4\]"):
        SymmetricCovariance().fit(X, observed=seen[:, :3])
    seen[5], seen[:, 2] = True, False
    with pytest.raises(ValueError, match="never observed, the first being 2"):
        SymmetricCovariance().fit(X, observed=seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_of_any_precision_are_read(dtype):
    # NumPy has no bfloat16; every number of it is one of float32.
    x = torch.from_numpy(normal(20, 5)).to(dtype)
    cov, same = (SymmetricCovariance(objective="likelihood").fit(v) for v in (x, x.double()))
    np.testing.assert_allclose(cov.covariance_, same.covariance_, rtol=1e-12)
    seen = np.arange(5) != 2
    np.testing.assert_allclose(cov.impute(x, seen), same.impute(x.double(), seen), rtol=1e-6)


def test_signals_may_change_after_the_fit():
    x = normal(12, 60)
    levels = [Partition.singletons(60), Partition.grid(1, 60, (1, 20))]
    cov = SymmetricCovariance(levels, objective="likelihood").fit(x)
    before = cov.covariance_
    x[:] = 0
    np.testing.assert_array_equal(cov.covariance_, before)


def test_what_is_odd_is_said():
    crossing = [Partition.from_labels([0, 0, 1, 1]), Partition.from_labels([0, 1, 0, 2])]
    with pytest.warns(UserWarning, match="not nested"):
        SymmetricCovariance(crossing, objective="likelihood").fit(X)
    still = X.copy()
    still[:, 2] = 1.0
    with pytest.warns(UserWarning, match=r"1 of 4 coordinates never vary \(2\)"):
        cov = SymmetricCovariance(objective="likelihood").fit(still)
    assert np.isfinite(cov.log_prob(still)).all()
