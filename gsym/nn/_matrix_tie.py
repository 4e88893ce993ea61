"""Weights that a group ties by matrices on channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gsym import kernels
from gsym.groups.matrices import TiedMaps
from gsym.nn._modules import Numbers, Tables


@dataclass(frozen=True)
class MatrixTie(Tables):
    """Which free blocks, with which factors, every position of a table of blocks is a sum of."""

    shape: tuple[int, ...]  # of the positions
    source: kernels.Segments | None  # block of every factor; None if all positions are zero
    target: kernels.Segments | None  # position of every factor
    factor: Numbers
    squares: Tensor  # sum of the squared factors of every block, float64
    free: int  # number of blocks

    @classmethod
    def of(cls, maps: TiedMaps) -> Self:
        """The tie of maps that commute with a group, on the CPU."""
        order = torch.argsort(maps.entry, stable=True)
        weight, entry = maps.weight[order], maps.entry[order]
        source = target = None
        if order.numel():
            source = kernels.Segments(weight, maps.num_weights)
            target = kernels.Segments(entry, math.prod(maps.shape))
        factor = Numbers.of(maps.coefficient[order])
        return cls(maps.shape, source, target, factor, maps.squares, maps.num_weights)

    def expand(self, weight: Tensor) -> Tensor:
        """The table ``[p, ...]`` of the free blocks ``[free, ...]``."""
        if self.source is None or self.target is None:
            return weight.new_zeros(math.prod(self.shape), *weight.shape[1:])
        factor = self.factor.like(weight)
        rows = kernels.gather_segment_sum(weight.flatten(1), self.source, self.target, factor)
        return rows.unflatten(1, weight.shape[1:])

    def read(self, table: Tensor) -> Tensor:
        """The free blocks of a table that is tied."""
        total = table.new_zeros(self.free, *table.shape[1:])
        if self.source is None or self.target is None:
            return total
        more = [1] * (table.dim() - 1)
        scaled = table[self.target.index] * self.factor.like(table).to(table.dtype).view(-1, *more)
        total = total.index_add(0, self.source.index, scaled)
        return total / self.squares.to(table.dtype).view(-1, *more)

    def gram(self, place: Tensor, share: Tensor) -> Tensor:
        """Mean of ``W^T diag(share) W`` over independent blocks.

        Args:
            place: Position of every entry of some maps W, int64 ``[..., t, s]``.
            share: Weight of every row in the squared length, float64 ``[t]``.

        Returns:
            Float64 ``[..., s, s]``.
        """
        if self.source is None or self.target is None:
            return share.new_zeros(*place.shape[:-2], *place.shape[-1:] * 2)
        return gram(place, share, self.target.index, self.source.index, self.factor.double)


def gram(place: Tensor, share: Tensor, position: Tensor, block: Tensor, factor: Tensor) -> Tensor:
    """As :meth:`MatrixTie.gram`, of terms: a free block times a factor at a position.

    Only entries of one row that share a block meet, which are few; all pairs of columns of every
    row would take ``t s^2`` numbers.
    """
    *more, t, s = place.shape
    where = torch.empty(place.numel(), dtype=torch.int64, device="cpu")
    where[place.cpu().flatten()] = torch.arange(place.numel(), device="cpu")
    here, source = where[position.cpu()].numpy(), block.cpu().numpy()
    which, row, column = here // (t * s), here // s % t, here % s
    # One sparse row per map, row of it and block: its entries grow together.
    mark = (which * t + row) * (source.max(initial=0) + 1) + source
    _, mark = np.unique(mark, return_inverse=True)
    values = factor.cpu().numpy() * np.sqrt(share.cpu().numpy())[row]
    maps = math.prod(more)
    shape = int(mark.max(initial=0)) + 1, maps * s
    from scipy.sparse import csr_array

    marks = csr_array((values, (mark.reshape(-1), which * s + column)), shape)
    found = (marks.T @ marks).tocoo()
    full = np.zeros((maps, s, s))
    full[found.row // s, found.row % s, found.col % s] = found.data
    return torch.from_numpy(full).view(*more, s, s).to(share.device)
