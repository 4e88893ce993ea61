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

OURS, LIKELIHOOD = "SymmetricCovariance", "its likelihood alone"
TAUGHT, CHAINED = "SymmetricCovariance, transductive", "IterativeImputer, both"
LEDOIT_WOLF, TWO_LEVEL, HARD = "Ledoit-Wolf", "two-level, kernel", "best hard group"
# Of intervals with a factor for each coordinate; rows of others have another name.
COVERAGE = "coverage of calibrated 90 % intervals"

Filler = Callable[[NDArray, NDArray], tuple[NDArray, NDArray | None]]
"""From signals ``[h, n, c]`` and what is seen of them ``[h, n]`` to the signals filled and, where
there are any, the variances of what was hidden."""


@dataclass(frozen=True)
class Source:
    """Signals to draw from, and what is known of their nodes.

    Attributes:
        train: Signals to learn from ``[s, n, c]``, in their order.
        test: Signals to be filled.
        unit: Of the error.
        error: From differences ``[..., c]`` of hidden nodes.
        known: Parameters of the estimator.
        hole: Which nodes a stretch of failures hides, from a random node.
        levels: Levels of the estimator.
        taught: Most signals at which some fills also learn from those that they fill.
    """

    train: NDArray
    test: NDArray
    unit: str
    error: Callable[[NDArray], float]
    known: Mapping[str, Any]
    hole: Callable[[int], NDArray]
    levels: Any = "auto"
    taught: int = 0


@dataclass(frozen=True)
class Draw:
    """One draw of a cell.

    Attributes:
        source: Where it comes from.
        train: Signals to learn from, ``[s, n, c]``.
        test: Signals to be filled, ``[h, n, c]``.
        seen: Which nodes of these are seen, ``[h, n]``.
        patterns: As many others of the same kind as an estimator is told, ``[p, n]``.
        block: What the estimator is told of the order of signals.
    """

    source: Source
    train: NDArray
    test: NDArray
    seen: NDArray
    patterns: NDArray
    block: int | str


def hide(source: Source, kind: float | str, count: int, rng: np.random.Generator) -> NDArray:
    """Which nodes are seen, ``[count, n]``: a share is hidden at random, or a hole, by any name."""
    n = source.train.shape[1]
    seen = np.ones((count, n), dtype=bool)
    for mask in seen:
        if isinstance(kind, str):
            mask[source.hole(int(rng.integers(n)))] = False
        else:
            mask[rng.choice(n, max(1, round(kind * n)), replace=False)] = False
    return seen


@dataclass(frozen=True)
class Way:
    """A way to fill gaps.

    Attributes:
        fit: Learns from the signals of a draw.
        is_gaussian: Whether it is the conditional mean of a Gaussian.
        is_slow: Whether it takes many times as long as ours.
        learns_from_both: Whether it also learns from the signals that it fills.
    """

    fit: Callable[[Draw], Filler]
    is_gaussian: bool = True
    is_slow: bool = False
    learns_from_both: bool = False

    def fill(self, draw: Draw) -> tuple[NDArray, NDArray | None]:
        """Fit and fill a draw."""
        return self.fit(draw)(draw.test, draw.seen)


@dataclass(frozen=True)
class Conditional:
    """Fills by a fitted covariance.

    Attributes:
        cov: The covariance.
        taught: Whether the signals to be filled teach.
    """

    cov: SymmetricCovariance
    taught: bool = False

    def __call__(self, test: NDArray, seen: NDArray) -> tuple[NDArray, NDArray | None]:
        return self.cov.conditional(test, seen, transductive=self.taught)


def symmetric(
    levels: Any = None, objective: str = "likelihood", *, known: bool = True, taught: bool = False
) -> Callable[[Draw], Filler]:
    """Ours, with the levels of the source by default.

    Args:
        levels: Makes levels from a number of nodes.
        objective: Of the estimator.
        known: Whether it is told what is known of the nodes.
        taught: Whether the signals to be filled teach.
    """

    def fit(draw: Draw) -> Filler:
        n = draw.train.shape[1]
        cov = SymmetricCovariance(
            draw.source.levels if levels is None else levels(n),
            objective=objective,  # type: ignore[arg-type]
            patterns=draw.patterns,
            block=draw.block,  # type: ignore[arg-type]
            **(draw.source.known if known else {}),
        ).fit(draw.train)
        return Conditional(cov, taught)

    return fit


def _trivial(n: int) -> list[Partition]:
    return [Partition.singletons(n)]


def _symmetric(n: int) -> list[Partition]:
    return [Partition.single(n)]


def _ends(n: int) -> list[Partition]:
    return [*_trivial(n), *_symmetric(n)]


def _best_hard_group(draw: Draw) -> Filler:
    """The single group that is best by the test error itself, which no choice could beat."""
    n = draw.train.shape[1]
    groups: Sequence[Any] = draw.source.levels
    if isinstance(draw.source.levels, str):
        groups = [*_ends(n), *ward_chain(draw.train, _chain_counts(n))]
    fits = [symmetric(lambda n, group=group: [group], known=False)(draw) for group in groups]

    def error(filler: Filler) -> float:
        return draw.source.error((filler(draw.test, draw.seen)[0] - draw.test)[~draw.seen])

    return min(fits, key=error)


def _wide(test: NDArray, seen: NDArray) -> tuple[NDArray, NDArray]:
    """Signals ``[h, d]`` with gaps as NaN, and what is seen of their coordinates."""
    wide = np.repeat(seen, test.shape[2], axis=1)
    return np.where(wide, test.reshape(len(test), -1), np.nan), wide


def _gaussian(make: Callable[[], Any]) -> Callable[[Draw], Filler]:
    """The conditional mean by a covariance of scikit-learn."""

    def fit(draw: Draw) -> Filler:
        cov = make().fit(draw.train.reshape(len(draw.train), -1))
        C, mean = cov.covariance_, cov.location_
        C = C + 1e-9 * np.trace(C) / draw.train.shape[1] * np.eye(len(C))

        def fill(test: NDArray, seen: NDArray) -> tuple[NDArray, None]:
            gaps, wide = _wide(test, seen)
            for row, kept in zip(gaps, wide, strict=True):
                B = np.linalg.solve(C[np.ix_(kept, kept)], C[np.ix_(kept, ~kept)])
                row[~kept] = mean[~kept] + (row[kept] - mean[kept]) @ B
            return gaps.reshape(test.shape), None

        return fill

    return fit


# Of coordinates of unit variance.
_PENALTIES = 0.02, 0.05, 0.1, 0.2, 0.4


class _StandardLasso:
    """Graphical lasso on coordinates of unit variance, its penalty one of a grid, by three folds.

    Along the grid every fit starts from the one before. Coordinates that never vary are left out,
    and penalties that are too small for the solver with so few signals.
    """

    def fit(self, x: NDArray) -> _StandardLasso:
        scale = x.std(0)
        moves = scale > 1e-12 * scale.max()
        fitted = _graphical_lasso(x[:, moves] / scale[moves], list(_PENALTIES))
        self.location_ = x.mean(0)
        self.covariance_ = np.zeros((len(scale), len(scale)))
        own = fitted.covariance_ * np.outer(scale[moves], scale[moves])
        self.covariance_[np.ix_(moves, moves)] = own
        return self


def _graphical_lasso(x: NDArray, penalties: list[float]) -> GraphicalLassoCV:
    try:
        return GraphicalLassoCV(alphas=penalties, cv=3, enet_tol=1e-6).fit(x)
    # An index is out of range where a fold has no penalty that is large enough.
    except (FloatingPointError, IndexError) as cause:
        if len(penalties) == 1:
            raise FloatingPointError("no penalty is large enough for the solver") from cause
        return _graphical_lasso(x, penalties[1:])


def _node_mean(draw: Draw) -> Filler:
    mean = draw.train.mean(0)
    return lambda test, seen: (np.where(seen[:, :, None], test, mean), None)


def _kernel_mean(draw: Draw) -> Filler:
    n, known = draw.train.shape[1], draw.source.known
    terms = read_terms(_ends(n), (), known.get("positions"), known.get("edge_index"), None, n, 1)
    K = terms.fixed[2].kernel  # type: ignore[union-attr]
    mean = draw.train.mean(0)

    def fill(test: NDArray, seen: NDArray) -> tuple[NDArray, None]:
        out = np.empty_like(test)
        for i, kept in enumerate(seen):
            weight = K[:, kept] + 1e-12
            near = weight @ (test[i] - mean)[kept] / weight.sum(1, keepdims=True)
            out[i] = np.where(kept[:, None], test[i], mean + near)
        return out, None

    return fill


def _imputer(make: Callable[[int], Any], *, both: bool = False) -> Callable[[Draw], Filler]:
    """An imputer of scikit-learn, made for a number of signals."""

    def fit(draw: Draw) -> Filler:
        flat = draw.train.reshape(len(draw.train), -1)
        imputer = make(len(flat)).fit(flat)

        def fill(test: NDArray, seen: NDArray) -> tuple[NDArray, None]:
            gaps, _ = _wide(test, seen)
            fitted = make(len(flat)).fit(np.vstack([flat, gaps])) if both else imputer
            return np.asarray(fitted.transform(gaps)).reshape(test.shape), None

        return fill

    return fit


def _chained(s: int) -> IterativeImputer:
    return IterativeImputer(n_nearest_features=20, max_iter=5, random_state=0)


WAYS: Mapping[str, Way] = {
    OURS: Way(symmetric(objective="auto"), is_gaussian=False),
    LIKELIHOOD: Way(symmetric()),
    TWO_LEVEL: Way(symmetric(_ends)),
    "trivial, kernel": Way(symmetric(_trivial)),
    "S_n, kernel": Way(symmetric(_symmetric)),
    "two-level": Way(symmetric(_ends, known=False)),
    "trivial": Way(symmetric(_trivial, known=False)),
    "S_n": Way(symmetric(_symmetric, known=False)),
    LEDOIT_WOLF: Way(_gaussian(LedoitWolf)),
    "OAS": Way(_gaussian(OAS)),
    "5 nearest": Way(_imputer(lambda s: KNNImputer(n_neighbors=min(5, s))), is_gaussian=False),
    "15 nearest": Way(_imputer(lambda s: KNNImputer(n_neighbors=min(15, s))), is_gaussian=False),
    "kernel mean": Way(_kernel_mean, is_gaussian=False),
    "mean of each node": Way(_node_mean, is_gaussian=False),
    HARD: Way(_best_hard_group),
    "IterativeImputer": Way(_imputer(_chained), is_gaussian=False, is_slow=True),
    TAUGHT: Way(
        symmetric(objective="auto", taught=True),
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
