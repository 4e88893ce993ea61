"""What fills gaps: SymmetricCovariance, parts of it, and estimators that know no symmetry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.covariance import OAS, GraphicalLassoCV, LedoitWolf
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from gsym import Partition, SymmetricCovariance
from gsym.risk._terms import _chain_counts, read_terms, ward_chain
from gsym_bench.studies.covariance.sources import Draw

OURS, LIKELIHOOD = "SymmetricCovariance", "its likelihood alone"
TAUGHT, CHAINED = "SymmetricCovariance, transductive", "IterativeImputer, both"
LEDOIT_WOLF, TWO_LEVEL, HARD = "Ledoit-Wolf", "two-level, kernel", "best hard group"
COVERAGE = "coverage of 90 % intervals"


@dataclass(frozen=True)
class Way:
    """A way to fill gaps.

    Attributes:
        fill: Fits and fills a draw: signals ``[h, n, c]``, and the variances of what is hidden
            where it has them.
        is_gaussian: Whether it is the conditional mean of a Gaussian.
        is_slow: Whether it takes many times as long as ours.
        learns_from_both: Whether it also learns from the signals that it fills.
    """

    fill: Callable[[Draw], tuple[NDArray, NDArray | None]]
    is_gaussian: bool = True
    is_slow: bool = False
    learns_from_both: bool = False


def _ours(
    levels: Any = None, objective: str = "likelihood", *, known: bool = True, taught: bool = False
) -> Callable[[Draw], tuple[NDArray, NDArray | None]]:
    """Ours, with the levels of the source by default.

    Args:
        levels: Makes levels from a number of nodes.
        objective: Of the estimator.
        known: Whether it is told what is known of the nodes.
        taught: Whether the signals to be filled teach.
    """

    def fill(draw: Draw) -> tuple[NDArray, NDArray | None]:
        n = draw.train.shape[1]
        return SymmetricCovariance(
            draw.source.levels if levels is None else levels(n),
            objective=objective,  # type: ignore[arg-type]
            patterns=draw.patterns,
            block=draw.block,  # type: ignore[arg-type]
            **(draw.source.known if known else {}),
        ).fit(draw.train).conditional(draw.test, draw.seen, transductive=taught)  # fmt: skip

    return fill


def _trivial(n: int) -> list[Partition]:
    return [Partition.singletons(n)]


def _symmetric(n: int) -> list[Partition]:
    return [Partition.single(n)]


def _ends(n: int) -> list[Partition]:
    return [*_trivial(n), *_symmetric(n)]


def _best_hard_group(draw: Draw) -> tuple[NDArray, NDArray | None]:
    """The single group that is best by the test error itself, which no choice could beat."""
    n = draw.train.shape[1]
    groups: Sequence[Any] = draw.source.levels
    if isinstance(draw.source.levels, str):
        groups = [*_ends(n), *ward_chain(draw.train, _chain_counts(n))]
    found = [_ours(lambda n, group=group: [group], known=False)(draw) for group in groups]
    return min(found, key=lambda pair: draw.source.error((pair[0] - draw.test)[~draw.seen]))


def _flat(draw: Draw) -> tuple[NDArray, NDArray, NDArray]:
    """Signals to learn from ``[s, d]``, those with gaps as NaN, and what is seen."""
    wide = np.repeat(draw.seen, draw.train.shape[2], axis=1)
    gaps = np.where(wide, draw.test.reshape(len(draw.test), -1), np.nan)
    return draw.train.reshape(len(draw.train), -1), gaps, wide


def _gaussian(make: Callable[[], Any]) -> Callable[[Draw], tuple[NDArray, None]]:
    """The conditional mean by a covariance of scikit-learn."""

    def fill(draw: Draw) -> tuple[NDArray, None]:
        flat, gaps, wide = _flat(draw)
        cov = make().fit(flat)
        C = cov.covariance_
        C = C + 1e-9 * np.trace(C) / draw.train.shape[1] * np.eye(len(C))
        for row, kept in zip(gaps, wide, strict=True):
            B = np.linalg.solve(C[np.ix_(kept, kept)], C[np.ix_(kept, ~kept)])
            row[~kept] = cov.location_[~kept] + (row[kept] - cov.location_[kept]) @ B
        return gaps.reshape(draw.test.shape), None

    return fill


class _StandardLasso:
    """Graphical lasso with a penalty by cross-validation, on coordinates of unit variance."""

    def fit(self, x: NDArray) -> _StandardLasso:
        scale = x.std(0)
        scale = np.where(scale > 1e-12 * scale.max(), scale, 1.0)
        fitted = GraphicalLassoCV().fit(x / scale)
        self.location_ = x.mean(0)
        self.covariance_ = fitted.covariance_ * np.outer(scale, scale)
        return self


def _kernel_mean(draw: Draw) -> tuple[NDArray, None]:
    n, known = draw.train.shape[1], draw.source.known
    terms = read_terms(_ends(n), (), known.get("positions"), known.get("edge_index"), None, n, 1)
    K = terms.fixed[2].kernel  # type: ignore[union-attr]
    mean = draw.train.mean(0)
    out = np.empty_like(draw.test)
    for i, kept in enumerate(draw.seen):
        weight = K[:, kept] + 1e-12
        near = weight @ (draw.test[i] - mean)[kept] / weight.sum(1, keepdims=True)
        out[i] = np.where(kept[:, None], draw.test[i], mean + near)
    return out, None


def _imputer(
    make: Callable[[int], Any], *, both: bool = False
) -> Callable[[Draw], tuple[NDArray, None]]:
    """An imputer of scikit-learn, made for a number of signals."""

    def fill(draw: Draw) -> tuple[NDArray, None]:
        flat, gaps, _ = _flat(draw)
        imputer = make(len(flat)).fit(np.vstack([flat, gaps]) if both else flat)
        return np.asarray(imputer.transform(gaps)).reshape(draw.test.shape), None

    return fill


def _chained(s: int) -> IterativeImputer:
    return IterativeImputer(n_nearest_features=20, max_iter=5, random_state=0)


WAYS: Mapping[str, Way] = {
    OURS: Way(_ours(objective="auto"), is_gaussian=False),
    LIKELIHOOD: Way(_ours()),
    TWO_LEVEL: Way(_ours(_ends)),
    "trivial, kernel": Way(_ours(_trivial)),
    "S_n, kernel": Way(_ours(_symmetric)),
    "two-level": Way(_ours(_ends, known=False)),
    "trivial": Way(_ours(_trivial, known=False)),
    "S_n": Way(_ours(_symmetric, known=False)),
    LEDOIT_WOLF: Way(_gaussian(LedoitWolf)),
    "OAS": Way(_gaussian(OAS)),
    "5 nearest": Way(_imputer(lambda s: KNNImputer(n_neighbors=min(5, s))), is_gaussian=False),
    "15 nearest": Way(_imputer(lambda s: KNNImputer(n_neighbors=min(15, s))), is_gaussian=False),
    "kernel mean": Way(_kernel_mean, is_gaussian=False),
    "mean of each node": Way(
        lambda draw: (np.broadcast_to(draw.train.mean(0), draw.test.shape), None),
        is_gaussian=False,
    ),
    HARD: Way(_best_hard_group),
    "IterativeImputer": Way(_imputer(_chained), is_gaussian=False, is_slow=True),
    TAUGHT: Way(
        _ours(objective="auto", taught=True),
        is_gaussian=False,
        is_slow=True,
        learns_from_both=True,
    ),
    CHAINED: Way(
        _imputer(_chained, both=True), is_gaussian=False, is_slow=True, learns_from_both=True
    ),
    "graphical lasso": Way(_gaussian(_StandardLasso), is_slow=True),
}


def covered(draw: Draw, filled: NDArray, variance: NDArray) -> float:
    """Share of hidden entries that lie in their 90 % interval."""
    reach = norm.ppf(0.95) * np.sqrt(variance)
    return float((np.abs(filled - draw.test) <= reach)[~draw.seen].mean())
