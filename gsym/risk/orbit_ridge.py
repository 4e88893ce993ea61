"""Ridge regression of cluster means with weights tied along the pair orbits of many swaps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsym.errors import GroupError
from gsym.groups import ClusterGroup
from gsym.risk.samples import Samples, select

# Swaps of up to this many elements are applied to the data; larger groups regress on orbits.
MAX_ELEMENTS = 64
# Regressions on orbits solve one system of this many unknowns per block and penalty.
MAX_ORBIT_UNKNOWNS = 256

MEAN_PENALTIES = np.logspace(-6, 4, 21)


class TiedRidge:
    """The means part with T tied along the pair orbits of many swaps: regression on orbits.

    This is the definition, in the basis of 0/1 orbit matrices.

    Args:
        u: Cluster means of the inputs times the root of the sizes, ``[s, k, c_in]``.
        v: The same of the targets, ``[s, k, c_out]``.
        clusters: The group.
        data: Where they come from.
        penalty: Ridge penalty, or ``None``.
    """

    def __init__(
        self, u: NDArray, v: NDArray, clusters: ClusterGroup, data: Samples, penalty: float | None
    ) -> None:
        pairs, orbits = clusters.cluster_pair_orbits(), clusters.cluster_orbits()
        channels = u.shape[2]
        unknowns = pairs.num_orbits * channels + orbits.num_orbits
        if unknowns > MAX_ORBIT_UNKNOWNS:
            raise GroupError(
                f"the group has more than {MAX_ELEMENTS} swaps and {pairs.num_orbits} pair "
                f"orbits: {unknowns} unknowns per output channel, above the limit of "
                f"{MAX_ORBIT_UNKNOWNS}; score it by score= instead"
            )
        index = pairs.index.numpy()
        one_hot = np.eye(pairs.num_orbits)
        features = np.stack(
            [
                np.concatenate(
                    [
                        np.einsum("sci,cr->sri", u, one_hot[row]).reshape(len(u), -1),
                        np.tile(np.eye(orbits.num_orbits)[orbit], (len(u), 1)),
                    ],
                    axis=1,
                )
                for row, orbit in zip(index, orbits.index.numpy(), strict=True)
            ],
            axis=1,
        )
        left_out = data.left_out
        gram = features.transpose(0, 2, 1) @ features
        cross = features.transpose(0, 2, 1) @ v
        square = left_out.judged((v * v).sum((1, 2)))
        judged, judged_cross = left_out.judged(gram), left_out.judged(cross)
        total, total_cross = gram.sum(0), cross.sum(0)
        kept, kept_cross = total - left_out.removed(gram), total_cross - left_out.removed(cross)
        sizes = np.repeat(pairs.sizes.numpy(), channels).astype(float)
        scale = np.diagonal(total)[: len(sizes)].sum() / sizes.sum()
        grid = (scale if scale > 0 else 1.0) * MEAN_PENALTIES
        grid = grid if penalty is None else np.array([penalty])
        # The penalty draws towards the shared own-value map, which sits on the diagonal orbits.
        diagonal = np.zeros((len(left_out), pairs.num_orbits, channels, v.shape[2]))
        diagonal[:, np.unique(np.diagonal(index))] = data.drift[:, None]
        towards = diagonal.reshape(len(left_out), len(sizes), -1)
        table = []
        for value in grid:
            added = np.append(value * sizes, np.zeros(orbits.num_orbits))
            right = kept_cross.copy()
            right[:, : len(sizes)] += value * sizes[:, None] * towards
            weight = np.linalg.solve(kept + np.diag(added), right)
            error = square - 2 * (weight * judged_cross).sum((1, 2))
            table.append(np.maximum(error + (weight * (judged @ weight)).sum((1, 2)), 0.0))
        found = np.array(table)
        judged_by, chosen = select(found)
        self.errors = found[judged_by, np.arange(len(left_out))]
        self._judged_under = grid[judged_by]
        self._targets, self._orbit = v, orbits.index.numpy()
        self._weights_per_output = pairs.num_orbits * channels / len(index)
        self._without = features, v, left_out, kept, kept_cross, towards, sizes
        self.penalty = float(grid[chosen])
        system = total + np.diag(np.append(self.penalty * sizes, np.zeros(orbits.num_orbits)))
        tied = np.linalg.solve(system, total_cross)
        used_up = float(np.trace(np.linalg.solve(system, total)))
        rest = square.sum() - 2 * (tied * total_cross).sum() + (tied * (total @ tied)).sum()
        rows = len(u) * u.shape[1]
        self.residual_variance = float(rest / max(rows - used_up, 1e-9) * u.shape[1])
        self.degrees_of_freedom = used_up * v.shape[2]
        table_of_pairs = tied[: len(sizes)].reshape(pairs.num_orbits, channels, -1)[index]
        # Sources first, as the other paths store it.
        self.weight = table_of_pairs.transpose(1, 2, 0, 3).reshape(u.shape[1] * channels, -1)
        self.bias = tied[len(sizes) :][orbits.index.numpy()].reshape(-1)

    def squares(self) -> NDArray:
        """Squared targets less their mean, summed over each block."""
        v, orbit = self._targets, self._orbit
        member = np.eye(int(orbit.max()) + 1)[orbit]
        mean = member.T @ v.mean(0) / member.sum(0)[:, None]
        return self._without[2].judged(((v - mean[orbit]) ** 2).sum((1, 2)))

    @property
    def features(self) -> tuple[float, float]:
        """Weights of each output, and what the fit uses up of them."""
        outputs = self._targets.shape[1] * self._targets.shape[2]
        return self._weights_per_output, self.degrees_of_freedom / outputs

    def left_out(self) -> NDArray:
        """Residual of every signal under the fit that judges its block, ``[s, k, c_out]``."""
        features, v, blocks, kept, kept_cross, towards, sizes = self._without
        weight = np.empty_like(kept_cross)
        for b, value in enumerate(self._judged_under):
            added = np.append(value * sizes, np.zeros(kept.shape[1] - len(sizes)))
            right = kept_cross[b].copy()
            right[: len(sizes)] += value * sizes[:, None] * towards[b]
            weight[b] = np.linalg.solve(kept[b] + np.diag(added), right)
        out: NDArray = v - features @ weight[np.arange(blocks.signals) // blocks.block]
        return out
