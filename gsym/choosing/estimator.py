"""SubgroupSearch: the choice of a group as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from gsym.choosing.choose import choose_group
from gsym.coarsening.hierarchy import Hierarchy
from gsym.coarsening.methods.risk import merge_by_risk
from gsym.errors import SignalError
from gsym.groups import Partition, PermutationGroup
from gsym.risk.dependence import serial_dependence
from gsym.risk.ridge import Reps, commutant_ridge, residuals
from gsym.risk.samples import Samples, as_regression


class SubgroupSearch(RegressorMixin, BaseEstimator):
    """Choose a group by :func:`gsym.choose_group` and predict with its ridge regression.

    Follows scikit-learn: parameters are stored as given, ``fit`` learns attributes that end in an
    underscore, ``clone``, pipelines and model selection work. Samples are signals on n nodes, so
    besides the usual ``[samples, n]`` (one channel) arrays ``[samples, n, c]`` are accepted.

    Args:
        candidates: As in :func:`gsym.choose_group`. ``None``: the
            hierarchy of :func:`gsym.coarsening.methods.risk.merge_by_risk` where targets are on
            the nodes, otherwise the trivial group and S_n.
        simplest: Take the smallest model within one standard error instead of the best.
        edge_index: Graph for swaps, in any form that :func:`gsym.as_graph` reads.
        edge_weight: Weights of the graph, which swaps have to keep.
        swaps: As in :func:`gsym.choose_group`.
        block: As in :func:`gsym.choose_group`; the predictor is fitted with the block and gap that
            were used.
        gap: As in :func:`gsym.choose_group`.
        standardize: As in :func:`gsym.choose_group`; predictions are in the units of the targets.
        missing: As in :func:`gsym.choose_group`; NaN is refused unless this is given.
        seed: Seeds the noise of denoising, where ``y`` is ``None``.

    Attributes:
        choice_: The :class:`gsym.GroupChoice`.
        best_group_: The group chosen.
        best_partition_: Its clusters, or ``None``.
        scores_: Score of each candidate by its label, lower is better.
        predictor_: The fitted :class:`gsym.risk.predictor.CommutantRidge`.
        n_features_in_: Number of nodes.

    Example:
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).numpy()
        >>> y = x + x.mean(1, keepdims=True)
        >>> search = SubgroupSearch([Partition.singletons(4), Partition.single(4)]).fit(x, y)
        >>> search.best_group_, search.predict(x).shape, round(search.score(x, y), 3)
        (ClusterGroup(S_4 on 4 nodes), (60, 4), 1.0)
    """

    def __init__(
        self,
        candidates: Hierarchy | Iterable[PermutationGroup | Partition | Reps] | None = None,
        *,
        simplest: bool = False,
        edge_index: Any = None,
        edge_weight: Tensor | None = None,
        swaps: str | None = "auto",
        block: int | Literal["auto"] = "auto",
        gap: int | Literal["auto"] = 0,
        standardize: Literal["node"] | None = None,
        missing: float | None = None,
        seed: int = 0,
    ) -> None:
        self.candidates = candidates
        self.simplest = simplest
        self.edge_index = edge_index
        self.edge_weight = edge_weight
        self.swaps = swaps
        self.block = block
        self.gap = gap
        self.standardize = standardize
        self.missing = missing
        self.seed = seed

    def fit(self, X: Any, y: Any = None, *, mask: Any = None) -> SubgroupSearch:
        """Choose the group and fit its predictor.

        Args:
            X: Signals ``[samples, n]`` or ``[samples, n, c_in]``.
            y: Targets ``[samples, n]``, ``[samples, n, c_out]``, or ``[samples]`` for one number
                per signal; ``None`` for denoising.
            mask: As in :func:`gsym.choose_group`.
        """
        X = self._check(X, reset=True)
        if y is not None:
            y = check_array(
                np.asarray(y),
                ensure_2d=False,
                allow_nd=True,
                dtype=np.float64,
                input_name="y",
                ensure_all_finite=self._finite,
            )
            if y.ndim == 2 and y.shape[1] == 1 and X.shape[1] > 1:
                y = column_or_1d(y, warn=True)
        self._target_ndim = X.ndim if y is None else y.ndim
        inputs, targets, observed = as_regression(X, y, self.seed, mask, self.missing)
        options = {"standardize": self.standardize, **observed}
        candidates = self.candidates
        if candidates is None:
            candidates = self._candidates(inputs, targets, options)
        self.choice_ = choose_group(
            candidates,
            X,
            y,
            edge_index=self.edge_index,
            edge_weight=self.edge_weight,
            swaps=self.swaps,
            block=self.block,
            gap=self.gap,
            standardize=self.standardize,
            mask=mask,
            missing=self.missing,
            seed=self.seed,
        )
        taken = self.choice_.simplest if self.simplest else self.choice_.best
        self.best_group_, self.best_partition_ = taken.group, taken.partition
        self.scores_ = self.choice_.scores
        self.predictor_ = commutant_ridge(
            inputs,
            targets,
            taken.group,
            in_rep=taken.in_rep,
            out_rep=taken.out_rep,
            block=self.choice_.block,
            gap=self.choice_.gap,
            **options,
        )
        return self

    def predict(self, X: Any) -> NDArray:
        """Predict targets, in the shape of those that were fitted."""
        check_is_fitted(self)
        checked = self._check(X, reset=False)
        predicted = self.predictor_.predict(checked, missing=self.missing).numpy()
        return predicted[..., 0] if self._target_ndim == 2 else predicted

    def score(self, X: Any, y: Any = None) -> float:
        """Coefficient of determination, every number to predict weighing by its variance.

        With ``y=None`` that of recovering X from X without noise.
        """
        X = np.asarray(X)
        predicted, wanted = self.predict(X), np.asarray(X if y is None else y)
        if self.missing is not None and (np.isnan(wanted) | (wanted == self.missing)).any():
            raise SignalError(
                f"score needs complete targets; some are {self.missing:g} or NaN, which mean "
                "missing; leave those signals out, or judge what predict() returns yourself"
            )
        if wanted.ndim == 1:
            return float(r2_score(wanted, predicted))
        rows = len(wanted)
        return float(
            r2_score(
                wanted.reshape(rows, -1),
                predicted.reshape(rows, -1),
                multioutput="variance_weighted",
            )
        )

    @property
    def _finite(self) -> bool | str:
        return True if self.missing is None else "allow-nan"

    def _check(self, X: Any, *, reset: bool) -> NDArray:
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        checked: NDArray = validate_data(
            self,
            X,
            reset=reset,
            allow_nd=True,
            dtype=np.float64,
            ensure_min_samples=2 * reset,
            ensure_all_finite=self._finite,
        )
        return checked

    def _candidates(
        self, x: NDArray, y: NDArray, options: dict[str, Any]
    ) -> Hierarchy | list[PermutationGroup | Partition]:
        n = x.shape[1]
        if n == 1 or y.ndim == 1:
            ends: list[PermutationGroup | Partition] = [Partition.single(n)]
            return ends if n == 1 else [Partition.singletons(n), *ends]
        data = Samples(x, y, **options)
        if any(seen is not None for seen in data.observed):
            raise SignalError(
                "clusters are merged from complete signals, and some entries are missing; pass "
                "candidates=, such as gsym.coarsen(edge_index, num_nodes), or fill them"
            )
        block = self.block
        if block == "auto":
            block = serial_dependence(residuals(data)).block
        merges, heights = merge_by_risk(
            data.x, data.targets, edge_index=self.edge_index, block=block
        )
        return Hierarchy.from_merges(n, merges, heights, method="risk")
