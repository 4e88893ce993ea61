"""What a ridge regression in a commutant leaves: left-out errors, and a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym.errors import SignalError
from gsym.groups import ClusterGroup
from gsym.risk.masked_ridge import MaskedRidge
from gsym.risk.orbit_ridge import TiedRidge
from gsym.risk.regressions import MeansRidge, OwnRidge
from gsym.risk.samples import Samples, observed_samples


@dataclass(frozen=True)
class Part:
    """Blocks that are judged by one fit to other signals.

    Attributes:
        blocks: Numbers of the blocks.
        rows: Their signals.
        train: The signals to fit to.
    """

    blocks: NDArray
    rows: NDArray
    train: Samples


class CommutantRidge:
    """What :func:`commutant_ridge` returns.

    Attributes:
        group: The group.
        errors: Leave-one-out squared error per number to predict, ``[blocks]``; where targets are
            missing, scaled so that their mean is the risk, and ``nan`` where none was observed.
        jackknife: Risk of the group without each of several parts of the signals, from which the
            standard error of the risk follows where signals are few; empty otherwise.
        residual_variance: Estimated error of the best map in the commutant, same unit: the
            training error over the residual degrees of freedom.
        degrees_of_freedom: Effective degrees of freedom of the fit.
    """

    def __init__(
        self,
        data: Samples,
        group: ClusterGroup,
        means: MeansRidge | TiedRidge | MaskedRidge,
        own: OwnRidge | None,
    ) -> None:
        self.group = group
        self._means, self._own = means, own
        self._shift, self._scale, self._fill = data.shift, data.scale, data.fill
        self._invariant, self._shared = data.invariant, data.own
        self._channels = data.x.shape[2], data.y.shape[2]
        self.jackknife: NDArray = np.zeros(0)
        self._judged: NDArray | None = None
        self._totals = means.errors if own is None else means.errors + own.errors
        self._per_block: NDArray = (data.left_out.stops - data.left_out.starts) * data.num_entries
        if isinstance(means, MaskedRidge) and data.observed[1] is not None:
            self._per_block = data.left_out.judged(data.observed[1].sum((1, 2)))
        self.errors: NDArray = self._per_number(data)
        noise = means.residual_variance + (0.0 if own is None else own.residual_variance)
        # What the shared map has fitted is not free either.
        free = max(1 - data.own_degrees / (data.num_signals * data.num_entries), 0.05)
        seen = data.observed[1]
        self.residual_variance = float(
            noise / data.num_entries / free / (1 if seen is None else seen.mean())
        )
        self.degrees_of_freedom = float(
            means.degrees_of_freedom + (0.0 if own is None else own.degrees_of_freedom)
        )

    @property
    def is_exact(self) -> bool:
        """Whether missing targets were left out by the closed form, not filled."""
        return isinstance(self._means, MaskedRidge)

    def judge(self, data: Samples, parts: Sequence[Part], fits: Sequence[CommutantRidge]) -> None:
        """Take the errors of blocks from fits to other signals."""
        seen = data.observed
        judged = np.zeros((data.num_signals, *data.given[1].shape[1:]))
        for part, fit in zip(parts, fits, strict=True):
            rows = part.rows
            x, y = (v[rows] for v in data.given)
            inputs = fit._standard(x, None if seen[0] is None else seen[0][rows])
            error = fit.apply(inputs) - (y - fit._shift[1]) / fit._scale[1]
            known = np.ones(y.shape, dtype=bool) if seen[1] is None else seen[1][rows]
            starts = data.left_out.starts[part.blocks] - rows[0]
            judged[rows] = np.where(known, -error, 0.0)
            total = (judged[rows] ** 2).sum((1, 2))
            self._totals[part.blocks] = np.add.reduceat(total, starts)
            self._per_block[part.blocks] = np.add.reduceat(known.sum((1, 2)), starts)
        self.errors, self._judged = self._per_number(data), judged
        self.jackknife = np.array([fit.risk for fit in fits])

    def _per_number(self, data: Samples) -> NDArray:
        """Errors of blocks per number to predict, of a mean that is the risk."""
        per_block = self._per_block.astype(float)
        if data.observed[1] is not None:
            per_block = np.where(per_block > 0, per_block[per_block > 0].mean(), np.nan)
        return np.asarray(self._totals / per_block)

    def left_out(self, data: Samples) -> NDArray:
        """Residual of every target under the fit that judged it; 0 where it was not observed.

        Args:
            data: The signals of the fit.

        Returns:
            ``[s, n, c_out]``, or ``[s, 1, 1]`` of an invariant map, in the units of the errors.
        """
        if self._judged is not None:
            return self._judged
        found = self._means.left_out()
        if isinstance(self._means, MaskedRidge):
            return found
        if self._invariant:
            return found.reshape(data.y.shape)
        partition = self.group.partition
        labels, root = partition.labels.numpy(), np.sqrt(partition.sizes)[:, None]
        out: NDArray = (found.reshape(len(found), len(root), -1) / root)[:, labels]
        if self._own is not None:
            block = np.arange(data.num_signals) // data.left_out.block
            weights = self._own.left_out_weights()
            for c, cluster in enumerate(partition.clusters()):
                nodes = cluster.numpy()
                x, y = (v[:, nodes] - v[:, nodes].mean(1, keepdims=True) for v in (data.x, data.y))
                out[:, nodes] += y - x @ weights[block, c]
        return out

    def split(self, data: Samples) -> tuple[NDArray, NDArray, NDArray, tuple[float, float]]:
        """What a learning curve is made of, squares summed over each block.

        Returns:
            Targets of the cluster means less their mean, their left-out errors, those of the own
            values, and the weights of each output with what the fit uses up of them. Where some
            targets are missing, means and own values are one regression, and the former both.
        """
        means = self._means
        own = np.zeros(len(data.left_out)) if self._own is None else self._own.errors
        return means.squares(), means.errors, own, means.features

    @property
    def risk(self) -> float:
        """Leave-one-out squared error per number to predict: the mean of all signals."""
        return float(self._totals.sum() / self._per_block.sum())

    @property
    def numbers(self) -> NDArray:
        """Numbers that were judged in each block."""
        return np.asarray(self._per_block)

    @property
    def units(self) -> NDArray:
        """What errors are divided by: ``[n, c_out]``, or 1 where nothing is standardised."""
        return self._scale[1]

    @property
    def penalties(self) -> tuple[float, float | None]:
        """Ridge penalty for the means and for the own values."""
        if isinstance(self._means, MaskedRidge):
            return self._means.penalty, self._means.own_penalty
        return self._means.penalty, None if self._own is None else self._own.penalty

    @cached_property
    def weight_own(self) -> NDArray:
        """D of every cluster, ``[k, c_in, c_out]``, 0 for clusters of one node."""
        own = self._means.own if isinstance(self._means, MaskedRidge) else None
        if self._own is not None:
            own = self._own.weight
        if own is None:
            return np.zeros((self.group.partition.num_clusters, *self._channels))
        large = np.array(self.group.partition.sizes) > 1
        return own + large[:, None, None] * self._shared

    @cached_property
    def weight_means(self) -> NDArray:
        """The map from cluster means to cluster means, ``[k, c_in, k, c_out]``.

        Entry ``[s, :, t]`` carries the mean of cluster s to cluster t, the own value included: in
        the notation of :class:`gsym.nn.OrbitLinear`, ``W + D`` on the diagonal. For an invariant
        map, ``[k, c_in, 1, c_out]``.
        """
        k = self.group.partition.num_clusters
        root = np.sqrt(self.group.partition.sizes)
        weight = self._means.weight.reshape(k, self._channels[0], -1, self._channels[1])
        weight = weight * root[:, None, None, None]
        if self._invariant:
            return weight
        weight = weight / root[:, None]
        weight[np.arange(k), :, np.arange(k)] += self._shared
        return weight

    @cached_property
    def bias(self) -> NDArray:
        """Constant of every cluster, ``[k, c_out]``, for inputs and targets less their means."""
        root = np.sqrt(self.group.partition.sizes)[:, None]
        bias = self._means.bias.reshape(-1, self._channels[1])
        return bias if self._invariant else bias / root

    @property
    def matrix(self) -> NDArray:
        """Mean over channels of :attr:`weight_means`, targets first, ``[k, k]``."""
        return self.weight_means.mean((1, 3)).T

    def predict(self, x: object, *, mask: object = None, missing: float | None = None) -> Tensor:
        """Predict targets ``[s, n, c_out]`` (``[s]`` for an invariant map) of ``[s, n, c_in]``.

        Args:
            x: Inputs.
            mask: Which of them were observed.
            missing: Inputs of this value, and NaN, were not observed.
        """
        values, seen = observed_samples(x, "x", mask, missing)
        partition = self.group.partition
        expected = partition.num_nodes, self._channels[0]
        if values.shape[1:] != expected:
            raise SignalError(
                f"the fit is for x [s, {expected[0]}, {expected[1]}]; got {list(values.shape)}"
            )
        y = self.apply(self._standard(values, seen)) * self._scale[1] + self._shift[1]
        return torch.from_numpy(y[:, 0, 0] if self._invariant else y)

    def _standard(self, x: NDArray, seen: NDArray | None) -> NDArray:
        """Inputs in the units of the fit, the means of nodes in place of missing ones."""
        full = x if seen is None else np.where(seen, x, self._fill)
        standard: NDArray = (full - self._shift[0]) / self._scale[0]
        return standard

    def apply(self, x: NDArray) -> NDArray:
        """The fitted map in the units of the fit, ``[s, n, c_out]``, or ``[s, 1, 1]``."""
        partition = self.group.partition
        labels, order = partition.labels.numpy(), partition.order.numpy()
        sizes = np.array(partition.sizes)
        starts = np.cumsum(sizes) - sizes
        m = np.add.reduceat(x[:, order], starts, axis=1) / sizes[:, None]
        flat = self.weight_means.reshape(m.shape[1] * m.shape[2], -1)
        shared = (m.reshape(len(m), -1) @ flat).reshape(len(m), -1, self._channels[1])
        shared = shared + self.bias
        if self._invariant:
            return shared
        deviation = x - m[:, labels]
        # One cluster at a time: a table of D per node would outgrow the signal.
        y = shared[:, labels]
        for nodes, weight in zip(partition.clusters(), self.weight_own, strict=True):
            if len(nodes) > 1:
                y[:, nodes.numpy()] += deviation[:, nodes.numpy()] @ weight
        return y

    def __repr__(self) -> str:
        free = f"{self.degrees_of_freedom:.1f} degrees of freedom"
        return f"CommutantRidge({self.group}: risk {self.risk:.4g}, {free})"
