"""Merging by risk: clusters joined by the smallest increase of the estimated prediction risk."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym._graphs import as_graph
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy
from gsym.errors import SignalError
from gsym.risk.orbit_ridge import MEAN_PENALTIES
from gsym.risk.samples import Samples, denoising


def merge_by_risk(
    x: object, y: object, *, edge_index: Any = None, block: int = 1
) -> tuple[Tensor, Tensor]:
    r"""Merge clusters bottom-up by the smallest increase of the estimated prediction risk.

    From single nodes to one cluster. A merge of clusters a and b takes the contrast of their
    means, :math:`u_- \propto m_a - m_b`, out of the regression of the means and puts it to the
    deviations. With B the fitted map, R its residual covariance, K the inverse Gram matrix of the
    means, g the inflation :math:`(1 - df / s)^{-2}` of left-out over training error, and an index
    minus for the contrast, the risk moves by

    .. math::
        g \sum_{l \ne -} \frac{B_{l-}^2}{K_{--}} \; + \; \Delta\,\mathrm{RSS}_{own}
        \; - \; R_{--} \; - \; \text{variance saved},

    that is: what other clusters lose when they no longer tell a from b (the exact increase of
    their penalised error); what it costs that a and b answer alike but for their own value; less
    what of that no map explains; less the variance of one output, whose inflation of R is taken
    from the mean over pairs, so that the noise of the two residuals cancels. The first term is
    drawn towards its mean as far as pairs differ by chance, as they do when signals are few.
    Nothing here is the similarity of the signals: two nodes merge when they *respond* and *act*
    alike. The regression is fitted again as clusters merge, so its noise falls along the way; its
    penalty is chosen by generalised cross-validation.

    Args:
        x: Inputs ``[s, n, c_in]`` or ``[s, n]``.
        y: Targets ``[s, n, c_out]`` or ``[s, n]``.
        edge_index: If given, only clusters joined by an edge merge, while there are any.
        block: As in :class:`Samples`; makes s the number of blocks.

    Returns:
        Merges int64 ``[n - 1, 2]`` in SciPy's numbering (cluster ``n + i`` is made by row i), and
        heights float64 ``[n - 1]``: the running maximum of the increase per number to predict,
        shifted so that the lowest is 0.

    Raises:
        SignalError: See :class:`Samples`; also for targets that are not on the nodes.

    Cost:
        ``O(n^3 c^3)`` in rounds that each merge up to one in 32 clusters; memory
        ``O(n^2 c^2)``, independent of s once the moments are known.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> x = torch.randn(100, 4, generator=rng)
        >>> own, other = x * torch.tensor([1.0, 1, -1, -1]), x[:, :2].sum(1, keepdim=True)
        >>> noise = 0.1 * torch.randn(100, 4, generator=rng)
        >>> y = own + other * torch.tensor([2.0, 2, 1, 1]) + noise
        >>> merges, heights = merge_by_risk(x, y)
        >>> sorted(sorted(pair) for pair in merges.tolist()[:2])
        [[0, 1], [2, 3]]

    Reference:
        Ours.
    """
    data = Samples(x, y, block=block)
    if data.invariant:
        raise SignalError("merging by risk needs targets on the nodes, [samples, nodes, channels]")
    n = data.num_nodes
    allowed = None
    if edge_index is not None:
        allowed = np.zeros((n, n), dtype=bool)
        ends = as_graph(edge_index, n).edge_index.cpu().numpy()
        allowed[ends[0], ends[1]] = allowed[ends[1], ends[0]] = True
    state = _Merging(data)
    numbers = data.num_signals * data.num_entries
    names, merges, heights = list(range(n)), [], []
    while len(names) > 1:
        gain, shared = state.increase()
        first, second = np.triu_indices(len(names), 1)
        if allowed is not None and allowed[first, second].any():
            keep = allowed[first, second]
            first, second = first[keep], second[keep]
        cost = gain[first, second]
        taken: set[int] = set()
        pairs = []
        for index in np.argsort(cost, kind="stable"):
            a, b = int(first[index]), int(second[index])
            if a not in taken and b not in taken:
                taken |= {a, b}
                pairs.append((a, b))
                heights.append((float(cost[index]) + shared) / numbers)
            if len(pairs) >= max(1, len(names) // 32):
                break
        for a, b in pairs:
            merges.append((names[a], names[b]))
            names[a] = n + len(merges) - 1
        state.merge(pairs)
        merged = {b for _, b in pairs}
        kept = [c for c in range(len(names)) if c not in merged]
        names = [names[c] for c in kept]
        if allowed is not None:
            for a, b in pairs:
                allowed[a] |= allowed[b]
                allowed[:, a] |= allowed[:, b]
            allowed = allowed[np.ix_(kept, kept)]
    rising = np.maximum.accumulate(np.array(heights)) if heights else np.zeros(0)
    rising = rising - rising.min(initial=np.inf) if heights else rising
    return torch.tensor(merges, dtype=torch.int64).view(-1, 2), torch.from_numpy(rising)


class _Merging:
    """Second moments of cluster means and deviations, and what each merge would cost."""

    def __init__(self, data: Samples) -> None:
        self.samples = data.num_signals
        self.rows = len(data.left_out)
        n, self.ci, self.co = data.num_nodes, data.x.shape[2], data.y.shape[2]
        self.sizes = np.ones(n)
        u, v = data.x.reshape(self.samples, -1), data.y.reshape(self.samples, -1)
        # Raw moments for deviations, which have no constant; centred ones for the means.
        self.raw = u.T @ u, u.T @ v, v.T @ v
        mean_u, mean_v, s = u.mean(0), v.mean(0), self.samples
        self.centred = (
            self.raw[0] - s * np.outer(mean_u, mean_u),
            self.raw[1] - s * np.outer(mean_u, mean_v),
            self.raw[2] - s * np.outer(mean_v, mean_v),
        )
        self.gram = np.zeros((n, self.ci, self.ci))
        self.cross = np.zeros((n, self.ci, self.co))
        self.square = np.zeros(n)
        self.tiny = 1e-9 * max(np.trace(self.raw[0]) / len(self.raw[0]), 1e-300)
        self.penalty, self.tuned_at = 0.0, np.inf

    def increase(self) -> tuple[NDArray, float]:
        """What merging each pair adds to the summed error, ``[k, k]``, and what all save alike."""
        k, ci, co = len(self.sizes), self.ci, self.co
        gram, cross, square = self.centred
        if k < 0.8 * self.tuned_at:
            self.penalty, self.tuned_at = self._tune(), k
        inverse = np.linalg.inv(gram + self.penalty * np.eye(len(gram)))
        weight = inverse @ cross
        degrees = len(gram) - self.penalty * np.trace(inverse) + 1
        left = max(1 - degrees / self.rows, 0.05)
        rest = square - weight.T @ cross - cross.T @ weight + weight.T @ gram @ weight
        # Blocks of channels: [k, k, c, c'] with the cluster pair in front.
        contrast_inverse = self._contrast(inverse, ci, ci)
        contrast_square = self._contrast(weight @ weight.T, ci, ci)
        contrast_own = self._contrast(weight, ci, co)
        others = contrast_square - contrast_own @ contrast_own.swapaxes(-1, -2)
        penalty_increase = np.trace(_solve_pairs(contrast_inverse, others), axis1=-2, axis2=-1)
        residual = np.trace(self._contrast(rest, co, co), axis1=-2, axis2=-1)
        gram_pair, cross_pair, square_pair = self._deviations()
        own = square_pair - self._explained(gram_pair, cross_pair)
        alone = self.square - self._explained(self.gram, self.cross)
        rss_increase = own - alone[:, None] - alone[None, :]
        noise = ci * np.trace(rest) / (self.rows * left)
        penalty_increase = _shrink(np.maximum(penalty_increase, 0.0), noise, ci * k * co)
        gain = penalty_increase / left**2 + rss_increase - residual
        after = max(1 - (degrees - ci) / self.rows, 0.05)
        # What all pairs share is the inflation of the residuals before and after.
        typical = residual.sum() / (k * (k - 1))
        saved = np.trace(rest) * (1 / after**2 - 1 / left**2) - typical * (1 / left**2 - 1)
        return gain, float(saved)

    def merge(self, pairs: list[tuple[int, int]]) -> None:
        """Merge disjoint pairs; the second of each disappears."""
        gram, cross, square = self._deviations(pairs)
        turn = np.eye(len(self.sizes))
        for index, (a, b) in enumerate(pairs):
            total = self.sizes[a] + self.sizes[b]
            turn[a, [a, b]] = np.sqrt(self.sizes[[a, b]] / total)
            self.gram[a], self.cross[a], self.square[a] = gram[index], cross[index], square[index]
        for a, b in pairs:
            self.sizes[a] += self.sizes[b]
        kept = np.delete(np.arange(len(turn)), [b for _, b in pairs])
        self.sizes, turn = self.sizes[kept], turn[kept]
        self.gram, self.cross, self.square = self.gram[kept], self.cross[kept], self.square[kept]
        left, right = np.kron(turn, np.eye(self.ci)), np.kron(turn, np.eye(self.co))
        self.raw, self.centred = (
            (left @ m[0] @ left.T, left @ m[1] @ right.T, right @ m[2] @ right.T)
            for m in (self.raw, self.centred)
        )

    def _tune(self) -> float:
        """Strength by generalised cross-validation, from the moments alone."""
        gram, cross, square = self.centred
        values, vectors = np.linalg.eigh(gram)
        values = np.maximum(values, 0.0)
        scores = ((vectors.T @ cross) ** 2).sum(1)
        best = np.inf, 0.0
        for penalty in max(values.mean(), 1e-300) * MEAN_PENALTIES:
            shrunk = values + penalty
            rest = np.trace(square) - (scores * (values + 2 * penalty) / shrunk**2).sum()
            left = 1 - (1 + (values / shrunk).sum()) / self.rows
            if left > 0.02:
                best = min(best, (max(rest, 0.0) / left**2, float(penalty)))
        return best[1]

    def _contrast(self, matrix: NDArray, rows: int, columns: int) -> NDArray:
        """Blocks of a matrix between the contrasts of all pairs, ``[k, k, rows, columns]``."""
        k = len(self.sizes)
        blocks = matrix.reshape(k, rows, k, columns).transpose(0, 2, 1, 3)
        own = blocks[np.arange(k), np.arange(k)]
        share = self.sizes[None, :] / (self.sizes[:, None] + self.sizes[None, :])
        share = share[..., None, None]
        both = blocks + blocks.transpose(1, 0, 2, 3)
        return share * own[:, None] + (1 - share) * own[None] - np.sqrt(share * (1 - share)) * both

    def _deviations(
        self, pairs: list[tuple[int, int]] | None = None
    ) -> tuple[NDArray, NDArray, NDArray]:
        """Moments of the deviations in the union of all pairs, or of some."""
        gram = self._contrast(self.raw[0], self.ci, self.ci)
        cross = self._contrast(self.raw[1], self.ci, self.co)
        square = np.trace(self._contrast(self.raw[2], self.co, self.co), axis1=-2, axis2=-1)
        gram = gram + self.gram[:, None] + self.gram[None]
        cross = cross + self.cross[:, None] + self.cross[None]
        square = square + self.square[:, None] + self.square[None]
        if pairs is None:
            return gram, cross, square
        a, b = np.array(pairs).T
        return gram[a, b], cross[a, b], square[a, b]

    def _explained(self, gram: NDArray, cross: NDArray) -> NDArray:
        weight = _solve_pairs(gram + self.tiny * np.eye(self.ci), cross)
        return (weight * cross).sum((-2, -1))


def _shrink(values: NDArray, noise: float, freedom: float) -> NDArray:
    """Draw estimates for all pairs towards their mean, as far as they differ by chance alone.

    A sum of ``freedom`` squares of noise with mean ``noise`` varies by 2 / freedom of its square.
    """
    pairs = values[np.triu_indices(len(values), 1)]
    mean, spread = pairs.mean(), pairs.var()
    chance = 2 / max(freedom, 1.0) * noise**2
    if spread <= chance:
        return np.full_like(values, mean)
    return mean + (1 - chance / spread) * (values - mean)


def _solve_pairs(matrix: NDArray, right: NDArray) -> NDArray:
    """Batched solve in which the pairs of a cluster with itself may be singular."""
    if matrix.shape[-1] == 1:
        return right / np.where(np.abs(matrix) > 0, matrix, 1.0)
    eye = np.eye(matrix.shape[-1])
    scale = np.trace(matrix, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.solve(matrix + eye * np.where(scale > 0, 1e-12 * scale, 1.0), right)


def _risk(request: Request) -> Hierarchy:
    if request.targets is None:
        inputs, targets = denoising(request.signals, request.seed)
        merges, heights = merge_by_risk(inputs, targets, edge_index=request.edge_index)
    else:
        merges, heights = merge_by_risk(
            request.signals, request.targets, edge_index=request.edge_index
        )
    return request.tree((np.asarray(merges), np.asarray(heights)))


METHODS = {
    "risk": Method(
        _risk,
        "smallest increase of the estimated risk",
        "nested",
        needs=("signals",),
        takes=("targets", "edge_index"),
    )
}
