"""The risk gap against golden thresholds and simulation; merging by risk on planted partitions."""

import itertools

import numpy as np
import pytest
import torch
from oracles.risk_gap import expected_risk, isotropic_risk_gap
from scipy.cluster.hierarchy import is_valid_linkage
from scipy.optimize import brentq
from sklearn.metrics import adjusted_rand_score

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.coarsening import Hierarchy, coarsen
from gsym.coarsening.methods.risk import _Merging, merge_by_risk
from gsym.errors import GroupError, SignalError
from gsym.risk.ridge import commutant_ridge
from gsym.risk.samples import Samples

S2 = ClusterGroup(Partition([0, 0, 1]))
S3 = PermutationGroup.symmetric(3)


def crossing(theta, noise_variance):
    """Number of signals at which S_2 and S_3 are equally good."""

    def difference(n):
        return isotropic_risk_gap(theta, S3, n, noise_variance=noise_variance) - isotropic_risk_gap(
            theta, S2, n, noise_variance=noise_variance
        )

    assert difference(6) > 0 > difference(1000)
    return brentq(difference, 6, 1000)


class TestIsotropicFormula:
    def test_golden_threshold_of_invariant_regression(self):
        beta = torch.tensor([1, 1, 0.92], dtype=torch.float64)
        assert crossing(beta / beta.norm(), (1 / 6) ** 2) == pytest.approx(22.53125, abs=1e-6)

    def test_golden_threshold_of_equivariant_regression(self):
        # The published map is not known, but the size of its part off S_3 is: 3 s^2 / (n - 4).
        theta = torch.tensor([[2, 0.5, 0.46], [0.5, 2, 0.46], [0.5, 0.5, 1.84]]).double()
        theta *= (3 / 64 / (35.11402408 - 4)) ** 0.5 / (theta - S3.project(theta)).norm()
        assert crossing(theta, (1 / 8) ** 2) == pytest.approx(35.11402408, abs=1e-6)

    def test_agrees_with_simulation(self):
        rng = np.random.default_rng(0)
        theta = torch.from_numpy(rng.standard_normal((3, 3)) / 3)
        x = rng.standard_normal((20000, 12, 3))
        y = x @ theta.numpy().T + 0.5 * rng.standard_normal(x.shape)
        fitted = torch.from_numpy(
            np.linalg.solve(x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ y)
        )
        fitted = fitted.transpose(1, 2)
        for group in (S2, S3):
            risk = ((fitted - theta) ** 2).sum((1, 2))
            projected = ((group.project(fitted) - theta) ** 2).sum((1, 2))
            gap = isotropic_risk_gap(theta, group, 12, noise_variance=0.25)
            assert float((risk - projected).mean()) == pytest.approx(gap, abs=0.02)

    def test_refuses_too_few_signals_and_other_sizes(self):
        with pytest.raises(SignalError, match="more than 4 signals; got 4"):
            isotropic_risk_gap(torch.eye(3), S3, 4, noise_variance=1.0)
        with pytest.raises(GroupError, match=r"\[3\] or \[3, 3\]; got \[2, 2\]"):
            isotropic_risk_gap(torch.eye(2), S3, 10, noise_variance=1.0)


def simulate(theta, partition, signals, noise, covariance, draws, rng):
    """Mean risk per node of least squares in the commutant, from the definition of the risk."""
    n = len(theta)
    root = np.linalg.cholesky(covariance)
    risks = []
    for _ in range(draws):
        x = rng.standard_normal((signals, n)) @ root.T
        y = x @ theta.T + noise * rng.standard_normal(x.shape)
        # The weak penalty stands for least squares.
        fit = commutant_ridge(x, y, partition, penalty=1e-7)
        zero = fit.predict(np.zeros((1, n))).numpy()[0, :, 0]
        eye = fit.predict(np.eye(n)).numpy()[..., 0] - zero
        off = eye.T - theta
        risks.append((np.trace(off @ covariance @ off.T) + (zero**2).sum()) / n + noise**2)
    return np.mean(risks), np.std(risks) / draws**0.5


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 2], [0] * 6, [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_expected_risk_agrees_with_simulation(labels, correlation):
    rng = np.random.default_rng(1)
    theta = np.eye(6) + 0.3 * rng.standard_normal((6, 6))
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    partition = Partition(labels)
    bias, variance = expected_risk(
        torch.from_numpy(theta),
        partition,
        40,
        noise_variance=0.25,
        covariance=torch.from_numpy(covariance),
    )
    mean, error = simulate(theta, partition, 40, 0.5, covariance, 400, rng)
    # The own values are to first order in 1 / s: allow its square beside the simulation's error.
    assert abs(0.25 + bias + variance - mean) < 4 * error + variance / 40
    assert variance > 5 * error


def test_the_isotropic_formula_picks_the_wrong_group_under_correlation():
    # Two nodes that hardly differ answer differently: a large distance in Frobenius norm, no loss.
    covariance = np.full((4, 4), 0.99) + 0.01 * np.eye(4)
    theta = np.diag([1.0, 0.6, 0.8, 0.8])
    signals, noise = 16, 0.25
    isotropic = isotropic_risk_gap(
        torch.from_numpy(theta), Partition.single(4), 60, noise_variance=noise**2
    )
    assert isotropic < 0  # it advises against S_4, even with sixty signals
    risks = {}
    for partition in (Partition.singletons(4), Partition.single(4)):
        bias, variance = expected_risk(
            torch.from_numpy(theta),
            partition,
            signals,
            noise_variance=noise**2,
            covariance=torch.from_numpy(covariance),
        )
        risks[partition.num_clusters] = bias + variance
    assert risks[1] < risks[4]
    rng = np.random.default_rng(0)
    found = {
        k: simulate(theta, Partition(labels), signals, noise, covariance, 150, rng)[0]
        for k, labels in ((1, [0] * 4), (4, range(4)))
    }
    assert found[1] < found[4]


def test_expected_risk_refuses():
    with pytest.raises(SignalError, match="3 clusters need more than 5 signals; got 5"):
        expected_risk(torch.eye(3), Partition.singletons(3), 5, noise_variance=1.0)
    with pytest.raises(GroupError, match=r"must be \[3, 3\]"):
        expected_risk(torch.eye(2), Partition.singletons(3), 50, noise_variance=1.0)


def planted(seed, signals=200, nodes=40, clusters=4, correlated=False, channels=1):
    """Signals of a linear equivariant map, and the partition."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(
        np.append(
            np.repeat(np.arange(clusters), 2), rng.integers(clusters, size=nodes - 2 * clusters)
        )
    )
    order = rng.permutation(nodes)
    root = np.eye(nodes)
    if correlated:
        root = np.linalg.cholesky(0.95 ** np.abs(order[:, None] - order))
    x = np.einsum("sic,ij->sjc", rng.standard_normal((signals, nodes, channels)), root.T)
    pool = np.eye(clusters)[labels] / np.bincount(labels)[labels][:, None]
    means = np.einsum("sic,ik->skc", x, pool)
    own = rng.standard_normal((clusters, channels, channels))
    mix = rng.standard_normal((clusters, channels, clusters, channels))
    first = np.einsum("sic,icd->sid", x, own[labels])
    second = np.einsum("skc,kcld->sld", means, mix)[:, labels]
    y = first / first.std() + second / second.std()
    return x, y + rng.standard_normal(y.shape), Partition(labels)


def index(partition, hierarchy):
    found = hierarchy[partition.num_clusters]
    return adjusted_rand_score(partition.labels, found.labels)


class TestMerging:
    @pytest.mark.parametrize("correlated", [False, True])
    def test_recovers_what_ward_cannot(self, correlated):
        x, y, partition = planted(1, correlated=correlated)
        signals, targets = torch.from_numpy(x), torch.from_numpy(y)
        h = coarsen(None, 40, signals=signals, targets=targets, method="risk")
        assert index(partition, h) >= 0.95
        both = torch.cat([signals, targets], dim=2)
        ward = [index(partition, coarsen(None, 40, signals=v)) for v in (signals, targets, both)]
        assert max(ward) < 0.8
        # Targets of other signals carry no hint, so the index has to fall.
        shuffled = coarsen(None, 40, signals=signals, targets=targets.roll(1, 0), method="risk")
        assert index(partition, shuffled) < 0.6

    @pytest.mark.parametrize("correlated", [False, True])
    def test_channels(self, correlated):
        x, y, partition = planted(2, correlated=correlated, channels=2)
        h = Hierarchy.from_merges(40, *merge_by_risk(x, y[..., :1]))
        assert index(partition, h) >= 0.95

    def test_fewer_signals_than_nodes(self):
        x, y, partition = planted(0, signals=36)
        h = Hierarchy.from_merges(40, *merge_by_risk(x, y))
        ward = coarsen(None, 40, signals=torch.from_numpy(y))
        assert index(partition, h) > max(0.7, index(partition, ward))

    def test_gives_a_valid_linkage(self):
        x, y, _ = planted(1, nodes=70)
        merges, heights = merge_by_risk(x, y)
        assert merges.shape == (69, 2)
        assert float(heights[0]) == 0.0
        assert bool((heights.diff() >= 0).all())
        linkage = Hierarchy.from_merges(70, merges, heights).linkage()
        assert is_valid_linkage(linkage, throw=True)

    def test_follows_a_relabelling(self):
        x, y, _ = planted(2)
        perm = np.random.default_rng(0).permutation(40)
        here = Hierarchy.from_merges(40, *merge_by_risk(x, y))
        there = Hierarchy.from_merges(40, *merge_by_risk(x[:, perm], y[:, perm]))
        for k in (2, 4, 8):
            assert adjusted_rand_score(here[k].labels[perm], there[k].labels) == 1.0

    def test_keeps_to_the_edges_while_there_are_any(self):
        x, y, _ = planted(4, nodes=12, clusters=2)
        path = torch.stack([torch.arange(11), torch.arange(1, 12)])
        h = Hierarchy.from_merges(12, *merge_by_risk(x, y, edge_index=path))
        for k in h.levels:
            for nodes in h[k].clusters():
                assert int(nodes.max() - nodes.min()) == len(nodes) - 1
        apart = path[:, torch.arange(11) != 5]
        halves = Hierarchy.from_merges(12, *merge_by_risk(x, y, edge_index=apart))[2]
        assert halves.labels.tolist() == [0] * 6 + [1] * 6

    def test_equal_and_constant_nodes(self):
        x, y, _ = planted(5, nodes=12, clusters=2)
        x[:, 3], y[:, 3] = x[:, 2], y[:, 2]
        x[:, 5] = 0.0
        merges, heights = merge_by_risk(x, y)
        assert sorted(merges.view(-1).tolist()) == list(range(22))
        assert torch.isfinite(heights).all()

    def test_one_node_and_bad_targets(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((9, 1))
        merges, heights = merge_by_risk(x, x)
        assert merges.shape == (0, 2)
        assert heights.shape == (0,)
        with pytest.raises(SignalError, match="targets on the nodes"):
            merge_by_risk(rng.standard_normal((9, 4)), x[:, 0])
        with pytest.raises(SignalError, match="x has 9 signals but y has 8"):
            merge_by_risk(x, x[1:])

    def test_cost_is_the_change_of_the_left_out_error(self):
        x, y, _ = planted(6, nodes=6, clusters=3, signals=400)
        gain, shared = _Merging(Samples(x, y)).increase()
        before = commutant_ridge(x, y, Partition.singletons(6)).risk
        changes, costs = [], []
        for a, b in itertools.combinations(range(6), 2):
            labels = np.arange(6)
            labels[b] = a
            merged = Partition.from_labels(labels, relabel=True)
            changes.append(commutant_ridge(x, y, merged).risk - before)
            costs.append((gain[a, b] + shared) / y.size)
        assert np.corrcoef(changes, costs)[0, 1] > 0.999
        assert np.abs(np.subtract(changes, costs)).max() < 0.05 * np.abs(changes).max()
