r"""Ridge regression in a commutant where only some targets count, without filling in the others.

A mask breaks what separates cluster means from deviations, but the outputs of one cluster still
make one regression apart from those of others. For cluster c and one channel of the targets, with
deviations :math:`d_i = x_i - m_c` and the set :math:`O_s` of nodes of c that count in signal s,

.. math::
    \sum_s \sum_{i \in O_s} \bigl( y_{si} - b - t^T u_s / \sqrt{n_c} - D^T d_{si} \bigr)^2
      + \lambda |t|^2 + \mu (n_c - 1) |D|^2 .

Of signal s it needs sums over :math:`O_s` alone: it is a regression on ``1 + c_in`` rows for each
signal, the mean over :math:`O_s` times :math:`\sqrt{|O_s|}` and a root of the scatter around it.
Constant and own values are partialled out once; the rest is one decomposition for all
:math:`\lambda`, and the error of a block without its rows follows from the block of the hat
matrix. With all targets this is :mod:`gsym.risk.ridge`, number by number.

:math:`\mu` is chosen first, on deviations from the means over :math:`O_s`, where :math:`\lambda`
does not enter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsym.groups import ClusterGroup
from gsym.risk.orbit_ridge import MEAN_PENALTIES
from gsym.risk.regressions import (
    OWN_PENALTIES,
    left_out_residuals,
    shares_of_trace,
    spectrum,
    sum_rows,
)
from gsym.risk.samples import Samples, select

# Numbers that are worked on at once.
_MOST = 2**22


@dataclass(frozen=True)
class _Sums:
    """What the regressions of one target channel need of every signal and cluster.

    The last axis of products runs over the target and the ``c_in`` inputs, which are targets too:
    they say what a change of the shared map does.

    Attributes:
        count: Targets that count, ``[s, k]``.
        mean: Mean deviation of their inputs, ``[s, k, c_in]``.
        target: Mean target, ``[s, k, 1 + c_in]``.
        scatter: Of the inputs around their mean, ``[s, k, c_in, c_in]``.
        cross: Of inputs and targets, ``[s, k, c_in, 1 + c_in]``.
        square: Of targets, ``[s, k, 1 + c_in, 1 + c_in]``.
    """

    count: NDArray
    mean: NDArray
    target: NDArray
    scatter: NDArray
    cross: NDArray
    square: NDArray


@dataclass(frozen=True)
class _Column:
    """The regression of one cluster and one channel, decomposed.

    Attributes:
        left: Left singular vectors of the features ``[rows, r]``, the free part taken off.
        squares: Squared singular values ``[r]``.
        turn: From coefficients of these to those of the features ``[features, r]``.
        free: Columns whose products are the hat matrix of constant and own values.
        targets: ``[rows, 1 + c_in]``.
        rest: Squares of the targets that no fit explains, ``[s, m, 1 + c_in, 1 + c_in]``.
        roots: Of the scatter, ``[s, m, c_in, c_in]``.
        lone: Blocks without which nothing counts ``[blocks]``: they are judged by a fit of 0.
    """

    left: NDArray
    squares: NDArray
    turn: NDArray
    free: NDArray
    targets: NDArray
    rest: NDArray
    roots: NDArray
    lone: NDArray


class MaskedRidge:
    """Means and own values in one, for targets of which some do not count.

    Args:
        data: Signals whose inputs are complete; ``data.observed[1]`` says which targets count.
        clusters: The group.
        elements: All its exchanges of clusters, the identity first, ``[m, k]``.
        penalties: Of the means and of the own values; ``None`` for the best.
    """

    def __init__(
        self,
        data: Samples,
        clusters: ClusterGroup,
        elements: NDArray,
        penalties: tuple[float | None, float | None],
    ) -> None:
        self._data, self._elements = data, elements
        partition = clusters.partition
        self._order, self._sizes = partition.order.numpy(), np.array(partition.sizes)
        self._labels = partition.labels.numpy()
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._m, self._k = elements.shape
        s, c_in, c_out = data.num_signals, data.x.shape[2], data.y.shape[2]
        self._means = np.add.reduceat(data.x[:, self._order], self._starts, axis=1)
        self._means = self._means / self._sizes[:, None]
        u = (self._means * np.sqrt(self._sizes)[:, None])[:, elements].reshape(s * self._m, -1)
        self._centre = u.mean(0)
        left, squares = spectrum(u - self._centre)
        self._features = left * np.sqrt(squares)
        self._back = (u - self._centre).T @ (left / np.sqrt(squares))
        self._sums = [self._sum(o) for o in range(c_out)]
        # Changes of the targets with the shared map of each block: the target less drift times x.
        blocks = len(data.left_out)
        self._mix = np.concatenate([np.ones((blocks, 1, c_out)), -data.drift], axis=1)
        self._orbit = clusters.cluster_orbits().index.numpy()
        self._weights_per_output = clusters.commutant_dim() * c_in / clusters.num_nodes
        own_by, own = self._own_penalties(self._orbit, penalties[1])
        scale = squares.sum() / len(squares) if len(squares) else 1.0
        grid = scale * MEAN_PENALTIES
        if penalties[0] is not None:
            grid = np.array([self._m * penalties[0]])
        values = np.unique(np.append(own_by, own))
        tables = {value: self._table(grid, value) for value in values}
        table = np.stack([tables[value][:, b] for b, value in enumerate(own_by)], axis=1)
        judged_by, _ = select(table)
        chosen = int(tables[own].sum(1).argmin())
        self.errors: NDArray = table[judged_by, np.arange(blocks)]
        self._judged_under = list(zip(grid[judged_by], own_by, strict=True))
        self.penalty, self.own_penalty = float(grid[chosen] / self._m), float(own)
        self._fit(grid[chosen], own, (self._k * c_in, self._k, c_in, c_out))

    def _sum(self, o: int) -> _Sums:
        data = self._data
        x, y = data.x, data.y[..., o]
        seen = data.observed[1]
        w = np.ones_like(y) if seen is None else seen[..., o].astype(float)
        deviation = x - self._means[:, self._labels]
        z = np.concatenate([y[..., None], x], axis=2) * w[..., None]

        def total(values: NDArray) -> NDArray:
            out: NDArray = np.add.reduceat(values[:, self._order], self._starts, axis=1)
            return out

        def products(a: NDArray, b: NDArray) -> NDArray:
            return total(a[..., :, None] * b[..., None, :])

        q = total(w)
        share = 1 / np.maximum(q, 1.0)[..., None]
        d = deviation * w[..., None]
        mean, target = total(d) * share, total(z) * share
        weighted = mean * q[..., None]
        return _Sums(
            q,
            mean,
            target,
            products(d, deviation) - weighted[..., :, None] * mean[..., None, :],
            products(d, z) - weighted[..., :, None] * target[..., None, :],
            products(z, z) - (target * q[..., None])[..., :, None] * target[..., None, :],
        )

    def _own_penalties(self, orbit: NDArray, penalty: float | None) -> tuple[NDArray, float]:
        """Own-value penalty for each block, and the best of all."""
        left_out, c_in = self._data.left_out, self._data.x.shape[2]
        large = self._sizes > 1
        blocks = len(left_out)
        if not large.any():
            return np.ones(blocks), 1.0
        if penalty is not None:
            return np.full(blocks, penalty), penalty
        # Clusters of one orbit are alike in size, so these are all clusters of the orbits.
        used, inverse = np.unique(orbit[large], return_inverse=True)
        freedom = np.bincount(inverse, (self._sizes - 1)[large])
        grams, scale = [], 0.0
        for o, sums in enumerate(self._sums):
            gram, cross, square = (
                sum_rows(v[:, large], inverse, len(used))
                for v in (sums.scatter, sums.cross[..., 0], sums.square[..., 0, 0])
            )
            grams.append((gram, cross, square, self._data.drift[..., o]))
            scale += float(np.trace(gram.sum((0, 1)))) / len(self._sums)
        scale /= freedom.sum() * c_in
        grid = (scale if scale > 0 else 1.0) * OWN_PENALTIES
        table = np.zeros((len(grid), blocks))
        for gram, cross, square, drift in grams:
            judged = [left_out.judged(v) for v in (gram, cross, square)]
            kept, kept_cross = (v.sum(0) - left_out.removed(v) for v in (gram, cross))
            for row, value in zip(table, grid, strict=True):
                pull = value * freedom[:, None]
                right = kept_cross + pull * drift[:, None]
                D = np.linalg.solve(kept + pull[..., None] * np.eye(c_in), right[..., None])[..., 0]
                error = judged[2] - 2 * (D * judged[1]).sum(-1)
                error += np.einsum("bri,brij,brj->br", D, judged[0], D)
                row += np.maximum(error, 0.0).sum(1)
        judged_by, chosen = select(table)
        return grid[judged_by], float(grid[chosen])

    def _column(self, c: int, o: int, own: float) -> _Column:
        """Decompose the regression of a cluster and a channel at a penalty of the own values."""
        sums, images, size = self._sums[o], self._elements[:, c], self._sizes[c]
        root = np.sqrt(sums.count[:, images])
        targets = root[..., None, None] * sums.target[:, images][:, :, None]
        rest, c_in = sums.square[:, images], sums.mean.shape[-1]
        roots = np.zeros((*root.shape, 0, c_in))
        free = root.reshape(-1, 1)
        penalty = np.zeros(1)
        if size > 1:
            values, vectors = np.linalg.eigh(sums.scatter[:, images])
            values = np.maximum(values, 0.0)
            keep = values > 1e-12 * max(float(values.max()), 1e-300)
            inverse = np.where(keep, 1 / np.sqrt(np.where(keep, values, 1.0)), 0.0)
            turned = vectors.swapaxes(-1, -2)
            roots = np.sqrt(values * keep)[..., None] * turned
            explained = inverse[..., None] * (turned @ sums.cross[:, images])
            targets = np.concatenate([targets, explained], axis=2)
            rest = rest - explained.swapaxes(-1, -2) @ explained
            own_rows = np.concatenate(
                [root[..., None, None] * sums.mean[:, images][:, :, None], roots], axis=2
            )
            constant = np.zeros((*own_rows.shape[:3], 1))
            constant[:, :, 0, 0] = root
            free = np.concatenate([constant, own_rows], axis=3).reshape(-1, 1 + c_in)
            penalty = np.append(0.0, np.full(c_in, self._m * own * (size - 1)))
        P = targets.shape[2]
        targets = targets.reshape(-1, targets.shape[3])
        gram = free.T @ free + np.diag(penalty)
        count = sums.count[:, images].sum(1)
        lone = count.sum() - self._data.left_out.removed(count) <= 0
        if gram[0, 0] <= 0:
            # Nothing counts here: there is nothing to fit.
            empty = np.zeros((len(targets), 0))
            none = np.zeros((self._features.shape[1], 0))
            return _Column(empty, np.zeros(0), none, empty, targets, rest, roots, lone)
        free = np.linalg.solve(np.linalg.cholesky(gram), free.T).T
        F = np.zeros((len(self._features), P, self._features.shape[1]))
        given = self._features * (root.reshape(-1, 1) / np.sqrt(size))
        F[:, 0] = given
        F = F.reshape(len(targets), -1)
        F -= free @ (free.T @ F)
        # In this order products are those with the rest of the targets, too: I - free free^T
        # is no projection where own values are penalised.
        squares, turn = np.linalg.eigh(given.T @ F[::P])
        largest = max(squares[-1], 0.0) if len(squares) else 0.0
        keep = squares > largest * len(F) * np.finfo(float).eps
        squares, turn = squares[keep], turn[:, keep]
        left = F @ turn / np.sqrt(squares)
        return _Column(left, squares, turn, free, targets, rest, roots, lone)

    def _residuals(self, column: _Column, values: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
        """Residuals of all targets of a column at several penalties.

        Yields:
            Numbers of blocks of equal shape, and residuals ``[penalties, blocks, signals, m, rows,
            1 + c_in]``.
        """
        left_out = self._data.left_out
        rows, q = column.targets.shape
        copies = rows // left_out.signals
        base = column.targets - column.free @ (column.free.T @ column.targets)
        shrink = column.squares / (column.squares + np.asarray(values)[:, None])
        scores = column.left.T @ column.targets
        rest = base - column.left @ (shrink[:, :, None] * scores)
        single = left_out.block == 1 and not left_out.gap
        if single and shrink.size * rows * (1 + copies * q) <= _MOST:
            # All blocks and penalties at once: of few columns, calls cost more than numbers.
            found = iter([(np.arange(len(left_out)), self._single(column, shrink, rest, copies))])
        else:
            found = (
                (parts[0][0], np.stack([error for _, error in parts]))
                for parts in zip(
                    *(
                        left_out_residuals(column.left, s, r, left_out, copies, column.free)
                        for s, r in zip(shrink, rest, strict=True)
                    ),
                    strict=True,
                )
            )
        for blocks, error in found:
            error = error.reshape(len(values), len(blocks), -1, copies, q)
            if column.lone[blocks].any():
                starts = left_out.starts[blocks] * copies
                judged = starts[:, None] + np.arange(error.shape[2] * copies)
                raw = column.targets[judged].reshape(error.shape[1:])
                error = np.where(column.lone[blocks, None, None, None], raw, error)
            P = copies // self._m
            yield blocks, error.reshape(*error.shape[:3], self._m, P, q)

    @staticmethod
    def _single(column: _Column, shrink: NDArray, rest: NDArray, copies: int) -> NDArray:
        """What :func:`left_out_residuals` says of single signals, ``[penalties, s, copies, q]``."""
        s = rest.shape[1] // copies
        z, free = (v.reshape(s, copies, v.shape[1]) for v in (column.left, column.free))
        hat = (z * shrink[:, None, None]) @ z.swapaxes(1, 2) + free @ free.swapaxes(1, 2)
        rest = rest.reshape(*hat.shape[:3], -1)
        if copies == 1:
            return np.asarray(rest / np.maximum(1 + 1e-12 - hat, 1e-12))
        return np.linalg.solve(np.eye(copies) * (1 + 1e-12) - hat, rest)

    def _table(self, grid: NDArray, own: float) -> NDArray:
        """Squared errors ``[penalties, blocks]``, summed over targets that count."""
        left_out = self._data.left_out
        table = np.zeros((len(grid), len(left_out)))
        for o in range(len(self._sums)):
            mix = self._mix[..., o]
            for c in range(self._k):
                column = self._column(c, o, own)
                rest = left_out.judged(column.rest.sum(1))
                table += np.maximum(np.einsum("bi,bij,bj->b", mix, rest, mix), 0.0) / self._m
                for blocks, error in self._residuals(column, grid):
                    mixed = np.einsum("lbsmri,bi->lbsmr", error, mix[blocks])
                    table[:, blocks] += (mixed**2).sum((2, 3, 4)) / self._m
        return table

    def squares(self) -> NDArray:
        """Squared targets that count, less the mean of their orbit of clusters, per block."""
        data, seen = self._data, self._data.observed[1]
        y, counts = data.y, np.ones(data.y.shape) if seen is None else seen.astype(float)
        tied = np.eye(int(self._orbit.max()) + 1)[self._orbit[self._labels]]
        totals, numbers = (np.einsum("sno,nr->ro", v, tied) for v in (y * counts, counts))
        mean = (totals / np.maximum(numbers, 1.0))[self._orbit[self._labels]]
        return data.left_out.judged((counts * (y - mean) ** 2).sum((1, 2)))

    @property
    def features(self) -> tuple[float, float]:
        """Weights of each output, and what the fit uses up of them."""
        outputs = self._data.y.shape[1] * self._data.y.shape[2]
        return self._weights_per_output, self.degrees_of_freedom / outputs

    def left_out(self) -> NDArray:
        """Residual of every target under the fit that judges its block, 0 where it does not count.

        Returns:
            ``[s, n, c_out]``.
        """
        data, seen = self._data, self._data.observed[1]
        out = np.zeros(data.y.shape)
        deviation = data.x - self._means[:, self._labels]
        pairs = set(self._judged_under)
        for o in range(len(self._sums)):
            z = np.concatenate([data.y[..., o, None], data.x], axis=2)
            for c in range(self._k):
                nodes = self._order[self._starts[c] : self._starts[c] + self._sizes[c]]
                columns = {own: self._column(c, o, own) for own in {p[1] for p in pairs}}
                for pair in pairs:
                    column = columns[pair[1]]
                    for blocks, error in self._residuals(column, np.array(pair[:1])):
                        ours = [self._judged_under[b] == pair for b in blocks]
                        # Of the images of a signal the first is itself.
                        blocks, rest = blocks[ours], error[0, ours][:, :, 0]
                        rows = data.left_out.starts[blocks, None] + np.arange(rest.shape[1])
                        found = self._unpack(
                            c, o, column, rows, rest, self._mix[blocks, :, o],
                            z[rows][:, :, nodes], deviation[rows][:, :, nodes],
                        )  # fmt: skip
                        out[rows[..., None], nodes, o] = found
        return out if seen is None else np.where(seen, out, 0.0)

    def _unpack(
        self,
        c: int,
        o: int,
        column: _Column,
        rows: NDArray,
        rest: NDArray,
        mix: NDArray,
        z: NDArray,
        deviation: NDArray,
    ) -> NDArray:
        """Residuals of the nodes of a cluster from those of its rows.

        Args:
            c: The cluster.
            o: The channel.
            column: Its regression.
            rows: Signals of each block ``[b, s]``.
            rest: Residuals of their rows ``[b, s, rows, 1 + c_in]``.
            mix: What to combine of the targets ``[b, 1 + c_in]``.
            z: Targets of the nodes ``[b, s, n_c, 1 + c_in]``.
            deviation: Inputs less the cluster's mean ``[b, s, n_c, c_in]``.
        """
        sums = self._sums[o]
        e = np.einsum("bsri,bi->bsr", rest, mix)
        root = np.sqrt(np.maximum(sums.count[rows, c], 1.0))
        about = np.einsum("bsni,bi->bsn", z - sums.target[rows, c][:, :, None], mix)
        found = about + (e[..., 0] / root)[..., None]
        if e.shape[2] > 1:
            # Behind the first row stands R D for the D of the signal less that of the fit.
            inverse = np.linalg.pinv(column.roots[rows, 0])
            cross = np.einsum("bsij,bj->bsi", sums.cross[rows, c], mix)[..., None]
            D = inverse @ (inverse.swapaxes(-1, -2) @ cross - e[..., 1:, None])
            found -= ((deviation - sums.mean[rows, c][:, :, None]) @ D)[..., 0]
        return found

    def _shares(self, left: NDArray, alike: NDArray) -> NDArray:
        """:func:`shares_of_trace` of columns that have several rows for each image."""
        s, m, r = self._data.num_signals, self._m, left.shape[1]
        rows = left.reshape(s, m, len(left) // (s * m), r).swapaxes(1, 2).reshape(len(left), r)
        return shares_of_trace(rows, alike)

    def _fit(self, value: float, own: float, shape: tuple[int, int, int, int]) -> None:
        """The weights of all signals, degrees of freedom and the residual variance."""
        features, k, c_in, c_out = shape
        weight, bias = np.zeros((features, k, c_out)), np.zeros((k, c_out))
        self.own = np.zeros((k, c_in, c_out))
        square, used = 0.0, 0.0
        for o, sums in enumerate(self._sums):
            for c in range(k):
                column = self._column(c, o, own)
                shrink = column.squares / (column.squares + value)
                # Singular vectors are not of length 1 where own values are penalised.
                images = self._elements[:, c]
                # Images of a signal under which the cluster comes from the same place are one.
                alike = (images[:, None] == images).astype(float)
                shares = shrink @ self._shares(column.left, alike)
                used += float(self._shares(column.free, alike).sum() + shares)
                z = column.targets[:, 0]
                scores = column.left.T @ z
                rest = z - column.free @ (column.free.T @ z) - column.left @ (shrink * scores)
                square += float((rest**2).sum() + column.rest[..., 0, 0].sum()) / self._m
                if not column.free.shape[1]:
                    continue
                beta = column.turn @ (scores * np.sqrt(column.squares) / (column.squares + value))
                tau = self._back @ beta
                weight[:, c, o] = tau
                # Constant and own values from what the features leave.
                left = sums.target[:, images, 0].reshape(-1) - self._features @ beta / np.sqrt(
                    self._sizes[c]
                )
                q = sums.count[:, images].reshape(-1)
                mean = sums.mean[:, images].reshape(len(q), -1)
                D = np.zeros(c_in)
                if self._sizes[c] > 1:
                    middle = q @ mean / q.sum()
                    centred = mean - middle
                    gram = sums.scatter[:, images].sum((0, 1)) + (centred * q[:, None]).T @ centred
                    cross = (
                        sums.cross[:, images, :, 0].sum((0, 1)) + (centred * q[:, None]).T @ left
                    )
                    pull = self._m * own * (self._sizes[c] - 1) * np.eye(c_in)
                    D = np.linalg.solve(gram + pull, cross)
                self.own[c, :, o] = D
                constant = q @ (left - mean @ D) / q.sum()
                bias[c, o] = np.sqrt(self._sizes[c]) * constant - self._centre @ tau
        self.weight = weight.reshape(features, -1)
        self.bias = bias.reshape(-1)
        self.degrees_of_freedom = used
        counted = sum(float(sums.count.sum()) for sums in self._sums)
        # Per signal as if all counted, as the other regressions have it.
        per_number = square / max(counted - used, 1e-9)
        self.residual_variance = per_number * counted / self._data.num_signals
