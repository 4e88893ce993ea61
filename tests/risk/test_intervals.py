"""Intervals of what is filled: honest for every coordinate, alike where the group says so."""

import numpy as np
import pytest

from gsym import ClusterGroup, Partition, PermutationGroup, Representation, SymmetricCovariance
from gsym.risk._calibration import moderated
from gsym.risk._gaps import covering
from gsym.risk._terms import read_terms

CYCLE = PermutationGroup.from_cycles(5, [(0, 1, 2)])
MIRROR = PermutationGroup.from_cycles(5, [(0, 1), (2, 3)])
SWAPPED = ClusterGroup(
    Partition.from_labels([0, 0, 1, 1, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
)


def signals(rows, scale, seed=0):
    rng = np.random.default_rng(seed)
    n = len(scale)
    place = rng.uniform(size=(n, 2))
    apart = ((place[:, None] - place[None]) ** 2).sum(-1)
    true = np.exp(-apart / 0.1) + 0.3 * np.eye(n)
    return rng.multivariate_normal(np.zeros(n), true, size=rows) * scale


def inside(cov, x, seed=0):
    """Share of hidden entries in their 90 % intervals, and the width, by node."""
    seen = np.random.default_rng(seed).uniform(size=x.shape) > 0.3
    seen[:, 0] |= ~seen.any(1)
    mean, variance = cov.conditional(x, seen)
    hit = np.where(seen, np.nan, np.abs(mean - x) < 1.645 * np.sqrt(variance))
    error, wide = (np.nanmean(np.where(seen, np.nan, v), 0) for v in ((mean - x) ** 2, variance))
    return np.nanmean(hit, 0), np.sqrt(wide / error)


def test_of_nodes_that_hardly_move():
    # The ridge is as large as all of the variance of the last ones.
    scale = np.logspace(0, -3, 8)
    hit, wide = np.zeros(8), np.zeros(8)
    for seed in range(4):
        x = signals(460, scale, seed)
        found = inside(SymmetricCovariance(patterns=0.3).fit(x[:60]), x[60:])
        hit, wide = hit + found[0] / 4, wide + found[1] / 4
    assert 0.88 < hit.mean() < 0.92
    assert hit.min() > 0.83 and hit.max() < 0.96
    assert wide.max() < 1.3


def test_means_of_errors_are_drawn_together_as_chance_asks():
    rng = np.random.default_rng(0)
    alike = rng.chisquare(20, size=400) / 20
    assert np.ptp(moderated(alike, 20)) < 0.2 * np.ptp(alike)
    # True factors of a gamma distribution, as the method takes them to be.
    true = 5 / rng.chisquare(5, size=4000)
    found = moderated(true * rng.chisquare(10, size=4000) / 10, 10)
    best = np.mean([abs(np.log(found / true)).mean()])
    assert best < abs(np.log(true * rng.chisquare(10, size=4000) / 10 / true)).mean()
    # The next error of each has the variance that is said, on average over all.
    assert found.mean() == pytest.approx(true.mean(), rel=0.1)
    np.testing.assert_array_equal(moderated(np.array([2.5]), 9), [2.5])
    assert (moderated(np.array([0.0, 1.0, 1.0]), 9) > 0).all()


@pytest.mark.parametrize(
    ("level", "channels", "labels"),
    [
        (PermutationGroup.trivial(5), 1, [0, 1, 2, 3, 4]),
        (CYCLE, 1, [0, 0, 0, 1, 2]),
        (CYCLE, 2, [0, 1, 0, 1, 0, 1, 2, 3, 4, 5]),
        (SWAPPED, 1, [0, 0, 0, 0, 1]),
        (
            (MIRROR, Representation.from_signs(MIRROR, [[-1, 1]])),
            2,
            [0, 1, 0, 1, 2, 3, 2, 3, 4, 5],
        ),
        (
            (SWAPPED, Representation.from_permutation(SWAPPED, [[1, 0]])),
            2,
            [0, 1, 0, 1, 1, 0, 1, 0, 2, 2],
        ),
    ],
)
def test_coordinates_that_the_group_exchanges_are_alike(level, channels, labels):
    found = read_terms([level], (), None, None, None, 5, channels).alike((5, channels))
    relabelled = np.unique(found, return_inverse=True)[1]
    same = np.equal.outer(relabelled, relabelled)
    np.testing.assert_array_equal(same, np.equal.outer(labels, labels))


def test_levels_together_keep_what_each_keeps():
    both = read_terms([CYCLE, MIRROR], (), None, None, None, 5, 1).alike((5, 1))
    np.testing.assert_array_equal(np.equal.outer(both, both).sum(1), [2, 2, 1, 1, 1])


@pytest.mark.parametrize("objective", ["auto", "imputation"])
def test_intervals_keep_the_symmetry(objective):
    x = signals(80, [1.0, 0.1, 0.01, 1.0, 0.5])
    masks = ~np.eye(5, dtype=bool)
    cov = SymmetricCovariance([CYCLE], objective=objective, patterns=masks).fit(x)
    hidden, variance = masks[:3], []
    for mask in hidden:
        variance.append(cov.conditional(x[:1], mask)[1].max())
    np.testing.assert_allclose(variance, variance[0], rtol=1e-9)
    free = SymmetricCovariance(objective=objective, patterns=masks).fit(x)
    tight = [free.conditional(x[:1], mask)[1].max() for mask in hidden]
    assert tight[0] > 100 * tight[2]


def test_every_node_is_hidden_once():
    patterns = [np.array([True, True, True, False]), np.array([True, True, False, True])]
    found = covering(patterns, (4, 1))
    np.testing.assert_array_equal(found, [[False, True, True, True], [True, False, True, True]])
    assert covering(patterns, (2, 2))[0].tolist() == [False, False, True, True]
    assert covering([*patterns, *found], (4, 1)) == []
    # A channel of both nodes is always seen: nodes go one by one.
    channel = [np.array([True, False, True, False])]
    assert np.array(covering(channel, (2, 2))).tolist() == [
        [False, False, True, True],
        [True, True, False, False],
    ]
    many = covering([np.arange(100) > 0], (100, 1))
    assert len(many) == 16 and not np.all(many, axis=0)[1:].any()


def test_patterns_that_hide_few_nodes_leave_fills_alone():
    x = signals(60, np.logspace(0, -2, 6))
    few = SymmetricCovariance(patterns=np.stack([np.arange(6) > 0, np.arange(6) > 1])).fit(x)
    assert sum(few.fills_.values()) == pytest.approx(1)
    _, variance = few.conditional(x[:1], np.arange(6) < 5)
    assert variance[0, 5] < 1e-2
