"""SubgroupSearch: the choice of a group as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from gsym.coarsening.choose import choose_group
from gsym.coarsening.coarsen import Hierarchy
from gsym.coarsening.ridge import commutant_ridge
from gsym.coarsening.risk import merge_by_risk
from gsym.coarsening.samples import denoising
from gsym.groups import Partition, PermutationGroup


class SubgroupSearch(RegressorMixin, BaseEstimator):
    """Choose a group by :func:`gsym.choose_group` and predict with its ridge regression.

    Follows scikit-learn: parameters are stored as given, ``fit`` learns attributes that end in an
    underscore, ``clone``, pipelines and model selection work. Samples are signals on n nodes, so
    beside the usual ``[samples, n]`` (one channel) arrays ``[samples, n, c]`` are accepted.

    Args:
        candidates: A :class:`gsym.Hierarchy` or a list of groups and partitions. ``None``: the
            hierarchy of :func:`gsym.coarsening.risk.merge_by_risk` where targets are on the nodes,
            otherwise the trivial group and S_n.
        simplest: Take the smallest model within one standard error instead of the best.
        edge_index: Graph for swaps.
        edge_weight: Weights of the graph, which swaps have to keep.
        swaps: As in :func:`gsym.choose_group`.
        block: As in :func:`gsym.choose_group`.
        seed: Seeds the noise of denoising, where ``y`` is ``None``.

    Attributes:
        choice_: The :class:`gsym.GroupChoice`.
        best_group_: The group chosen.
        best_partition_: Its clusters, or ``None``.
        scores_: Score of each candidate by its label, lower is better.
        predictor_: The fitted :class:`gsym.coarsening.ridge.CommutantRidge`.
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
        candidates: Hierarchy | Iterable[PermutationGroup | Partition] | None = None,
        *,
        simplest: bool = False,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        swaps: str | None = "auto",
        block: int = 1,
        seed: int = 0,
    ) -> None:
        self.candidates = candidates
        self.simplest = simplest
        self.edge_index = edge_index
        self.edge_weight = edge_weight
        self.swaps = swaps
        self.block = block
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> SubgroupSearch:
        """Choose the group and fit its predictor.

        Args:
            X: Signals ``[samples, n]`` or ``[samples, n, c_in]``.
            y: Targets ``[samples, n]``, ``[samples, n, c_out]``, or ``[samples]`` for one number
                per signal; ``None`` for denoising.
        """
        X = self._check(X, reset=True)
        if y is not None:
            y = check_array(
                np.asarray(y), ensure_2d=False, allow_nd=True, dtype=np.float64, input_name="y"
            )
            if y.ndim == 2 and y.shape[1] == 1 and X.shape[1] > 1:
                y = column_or_1d(y, warn=True)
        self._target_ndim = X.ndim if y is None else y.ndim
        candidates = self._candidates(X, y) if self.candidates is None else self.candidates
        self.choice_ = choose_group(
            candidates,
            X,
            y,
            edge_index=self.edge_index,
            edge_weight=self.edge_weight,
            swaps=self.swaps,
            block=self.block,
            seed=self.seed,
        )
        taken = self.choice_.simplest if self.simplest else self.choice_.best
        self.best_group_, self.best_partition_ = taken.group, taken.partition
        self.scores_ = self.choice_.scores
        inputs, targets = (X, y) if y is not None else denoising(X, self.seed)
        self.predictor_ = commutant_ridge(inputs, targets, taken.group, block=self.block)
        return self

    def predict(self, X: Any) -> NDArray:
        """Predict targets, in the shape of those that were fitted."""
        check_is_fitted(self)
        predicted = self.predictor_.predict(self._check(X, reset=False)).numpy()
        return predicted[..., 0] if self._target_ndim == 2 else predicted

    def score(self, X: Any, y: Any = None) -> float:
        """Coefficient of determination, every number to predict weighing by its variance.

        With ``y=None`` that of recovering X from X without noise.
        """
        X = np.asarray(X)
        predicted, wanted = self.predict(X), np.asarray(X if y is None else y)
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

    def _check(self, X: Any, *, reset: bool) -> NDArray:
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        checked: NDArray = validate_data(
            self, X, reset=reset, allow_nd=True, dtype=np.float64, ensure_min_samples=2 * reset
        )
        return checked

    def _candidates(
        self, X: NDArray, y: NDArray | None
    ) -> Hierarchy | list[PermutationGroup | Partition]:
        n = X.shape[1]
        if n == 1 or (y is not None and y.ndim == 1):
            ends: list[PermutationGroup | Partition] = [Partition.single(n)]
            return ends if n == 1 else [Partition.singletons(n), *ends]
        inputs, targets = (X, y) if y is not None else denoising(X, self.seed)
        merges, heights = merge_by_risk(
            inputs, targets, edge_index=self.edge_index, block=self.block
        )
        return Hierarchy.from_merges(n, merges, heights, method="risk")
