"""Values of points that are sums of rows, one row per orbit and level of a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsym import kernels
from gsym.groups import Orbits
from gsym.nn._modules import Tables

# A chain of nested levels needs one sweep, and another that finds nothing left.
_SWEEPS, _LEFT = 1000, 1e-15


@dataclass(frozen=True)
class OrbitRows(Tables):
    """Which rows of a table add up to the value of a point: one of each level.

    Points that lie in one orbit of every level have one value, so that rows are summed once for
    these parts of the points, and points gather the sums: one pass, whatever the levels.
    """

    part: Tensor  # of every point, [p]
    points: kernels.Segments  # the same
    source: kernels.Segments | None  # rows that parts sum; None where every part is a row
    target: kernels.Segments | None

    @classmethod
    def of(cls, levels: Sequence[Orbits]) -> OrbitRows:
        """Rows of all levels, one below the other, by their orbits on the same points."""
        keys = levels[0].index.reshape(-1)
        for orbits in levels[1:]:
            keys = Orbits.from_keys(keys * orbits.num_orbits + orbits.index.reshape(-1)).index
        parts = Orbits.from_keys(keys)
        points = kernels.Segments(parts.index, parts.num_orbits)
        if len(levels) == 1:
            return cls(parts.index, points, None, None)
        _, first = np.unique(parts.index.numpy(), return_index=True)
        rows = [o.index.reshape(-1)[torch.from_numpy(first)] for o in levels]
        starts = np.cumsum([0, *(o.num_orbits for o in levels)]).tolist()
        row = torch.stack([r + start for r, start in zip(rows, starts, strict=False)], dim=1)
        every = torch.arange(parts.num_orbits).repeat_interleave(len(levels))
        source = kernels.Segments(row.flatten(), starts[-1])
        return cls(parts.index, points, source, kernels.Segments(every, parts.num_orbits))

    def sums(self, weight: Tensor) -> Tensor:
        """What parts of the points get of rows ``[r, c]``, ``[parts, c]``."""
        if self.source is None or self.target is None:
            return weight
        return kernels.gather_segment_sum(weight, self.source, self.target)

    def expand(self, weight: Tensor) -> Tensor:
        """Values of all points, ``[p, c]``, from rows ``[r, c]``."""
        return kernels.segment_gather(self.sums(weight), self.points)


def nearest_rows(levels: Sequence[Orbits], values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose sums are nearest to values of the points, and what they miss.

    Coarse levels take what they can and leave the rest to finer ones, until nothing is left to
    take. For nested levels these are orthogonal parts, found in one sweep.

    Args:
        levels: Orbits of each level on ``p`` points.
        values: ``[p, c]``.

    Returns:
        Rows ``[r, c]`` and the rest ``[p, c]``, float64 on the CPU.
    """
    rest = values.detach().to("cpu", torch.float64)
    allowed = _LEFT * float(rest.abs().max()) if rest.numel() else 0.0
    rows = [rest.new_zeros(orbits.num_orbits, rest.size(1)) for orbits in levels]
    by_size = sorted(range(len(levels)), key=lambda i: levels[i].num_orbits)
    for _ in range(_SWEEPS if len(levels) > 1 else 1):
        most = 0.0
        for i in by_size:
            index = levels[i].index.reshape(-1)
            mean = torch.zeros_like(rows[i]).index_add_(0, index, rest)
            mean /= levels[i].sizes[:, None]
            rows[i] += mean
            rest = rest - mean[index]
            most = max(most, float(mean.abs().max()) if mean.numel() else 0.0)
        if most <= allowed:
            break
    return torch.cat(rows), rest
