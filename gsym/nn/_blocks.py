"""The product with a tied matrix, block by block in a basis that is adapted to the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gsym import kernels
from gsym.groups import PermutationGroup
from gsym.groups.adapted import AdaptedBasis, BlockShape
from gsym.kernels.adapted import AdaptedTables, adapted_linear
from gsym.nn._modules import Numbers, Tables

# Least gain over a dense matrix, measured on groups of 6 to 64 nodes: the share of its
# multiplications that may be left, and how many of its numbers must be saved, lest calls cost more.
MOST_WORK = 0.9
LEAST_SAVED = 100_000
# The same where blocks are made and multiplied in calls of torch.
LEAST_IN_TORCH = 115_000
# Where clusters have several nodes, the dense form is one call with the rest of the layer.
FUSED = 3
# Coefficients of a matrix that has more than this share of numbers in it are kept as a matrix.
DENSE = 0.05
# From so many numbers a row on, rows of weights are laid where the products want them.
WIDE = 32


@dataclass(frozen=True)
class BlockTables(Tables):
    """How weights per pair orbit and signals meet in blocks: ``Q blockdiag(I (x) B) Q^T x``.

    Attributes:
        matrix: Q, ``[n, n]``.
        shapes: Which of its columns meet which blocks.
        dense: The map from weights to the entries of all blocks, if it is kept as a matrix.
        source: Row of the weights that every coefficient of the map multiplies, otherwise.
        target: Row of the entries that it is added to.
        coefficient: The coefficients.
        by_row: Whether these are rows of matrices of weights rather than whole matrices.
        compiled: The same for compiled loops.
        in_torch: Whether blocks pay in calls of torch as well.
    """

    matrix: Numbers
    shapes: tuple[BlockShape, ...]
    dense: Numbers | None
    source: kernels.Segments | None
    target: kernels.Segments | None
    coefficient: Numbers | None
    by_row: bool
    compiled: AdaptedTables
    in_torch: bool

    @classmethod
    def of(
        cls, group: PermutationGroup, in_channels: int, out_channels: int, *, fused: bool
    ) -> Self | None:
        """The tables of a group, on the CPU, or nothing where the dense matrix is faster.

        ``fused`` says that the product with that matrix is part of a larger call.
        """
        n, free = group.num_nodes, group.commutant_dim()
        dense = n**2 * in_channels * out_channels / (FUSED if fused else 1)

        def pays(blocks: float, least: int = LEAST_SAVED) -> bool:
            """Whether a share of blocks pays, on top of the way into the basis and out of it."""
            work = blocks + 1 / in_channels + 1 / out_channels
            return work <= MOST_WORK and dense * (1 - work) >= least

        # Blocks have at least as many entries as there are weights; so some need no search.
        if not pays(free / n**2):
            return None
        basis = group.adapted_basis.basis
        if basis is None or not pays(basis.cost):
            return None
        index = group.pair_orbits().index
        sparse = basis.entry, basis.orbit, basis.coefficient
        compiled = AdaptedTables(basis.matrix, basis.shapes, *sparse, index)
        how = compiled, pays(basis.cost, LEAST_IN_TORCH)
        matrix, entry = Numbers.of(basis.matrix), _transposed(basis)
        if basis.coefficient.numel() > DENSE * basis.num_entries * free:
            full = torch.zeros(basis.num_entries, free, dtype=torch.float64, device="cpu")
            full.index_put_((entry, basis.orbit), basis.coefficient)
            return cls(matrix, basis.shapes, Numbers.of(full), None, None, None, False, *how)
        target, source, coefficient = entry, basis.orbit, basis.coefficient
        num_rows, num_entries, by_row = free, basis.num_entries, out_channels >= WIDE
        if by_row:
            target = _laid_out(basis.shapes, entry, in_channels).flatten()
            channel = torch.arange(in_channels, device="cpu")
            source = (source[:, None] * in_channels + channel).flatten()
            coefficient = coefficient.repeat_interleave(in_channels)
            num_rows, num_entries = num_rows * in_channels, num_entries * in_channels
        order = torch.argsort(target, stable=True)
        return cls(
            matrix,
            basis.shapes,
            None,
            kernels.Segments(source[order], num_rows),
            kernels.Segments(target[order], num_entries),
            Numbers.of(coefficient[order]),
            by_row,
            *how,
        )

    def blocks(self, weight: Tensor) -> list[Tensor]:
        """Weights ``[o, in, out]`` as ``[blocks, width * in, width * out]`` for every shape."""
        _, a, b = weight.shape
        if self.dense is not None:
            # In half precision the coefficients would be rounded as well.
            map_ = self.dense.like(weight)
            entries = (map_ @ weight.flatten(1).to(map_.dtype)).to(weight.dtype)
        else:
            assert self.source is not None and self.target is not None
            assert self.coefficient is not None
            rows = weight.flatten(0, 1) if self.by_row else weight.flatten(1)
            factor = self.coefficient.like(weight)
            entries = kernels.gather_segment_sum(rows, self.source, self.target, factor)
        per_entry = a if self.by_row else 1
        parts = entries.split([s.blocks * s.width**2 * per_entry for s in self.shapes])
        blocks = []
        for shape, part in zip(self.shapes, parts, strict=True):
            _, _, count, width = shape
            if not self.by_row:
                part = part.view(count, width, width, a, b).transpose(2, 3)
            blocks.append(part.reshape(count, width * a, width * b))
        return blocks

    def apply(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Map signals ``[..., n, in]`` to ``[..., n, out]`` by weights ``[o, in, out]``.

        Nothing where no compiled loop takes them, and calls of torch would be slower than a matrix.
        """
        found = adapted_linear(x, weight, self.compiled)
        return self.apply_in_torch(x, weight) if found is None and self.in_torch else found

    def apply_in_torch(self, x: Tensor, weight: Tensor) -> Tensor:
        """As :meth:`apply`, in calls of torch."""
        n, (_, a, b) = x.size(-2), weight.shape
        signals = x.reshape(-1, n, a)
        batch = signals.size(0)
        matrix = self.matrix.like(x).to(x.dtype).expand(batch, n, n)
        parts = torch.bmm(matrix.mT, signals).split(
            [s.rows * s.blocks * s.width for s in self.shapes], dim=1
        )
        mapped = []
        for shape, part, block in zip(self.shapes, parts, self.blocks(weight), strict=True):
            _, rows, count, width = shape
            # Columns stand row by row, so that rows join the batch without being moved.
            part = part.reshape(batch * rows, count, width * a).transpose(0, 1)
            y = torch.bmm(part, block).transpose(0, 1)
            mapped.append(y.reshape(batch, rows * count * width, b))
        y = mapped[0] if len(mapped) == 1 else torch.cat(mapped, dim=1)
        return torch.bmm(matrix, y).view(*x.shape[:-1], b)


def _transposed(basis: AdaptedBasis) -> Tensor:
    """Positions of entries of the blocks' transposes: signals are rows that meet them from left."""
    entry, moved, start = basis.entry, torch.empty_like(basis.entry), 0
    for shape in basis.shapes:
        width, stop = shape.width, start + shape.blocks * shape.width**2
        own = (entry >= start) & (entry < stop)
        block, within = (entry[own] - start) // width**2, (entry[own] - start) % width**2
        moved[own] = start + block * width**2 + within % width * width + within // width
        start = stop
    return moved


def _laid_out(shapes: tuple[BlockShape, ...], entry: Tensor, channels: int) -> Tensor:
    """Where rows of the matrix at an entry lie in ``[blocks, width, channels, width]``."""
    laid = torch.empty(entry.numel(), channels, dtype=torch.int64, device="cpu")
    channel, start = torch.arange(channels, device="cpu"), 0
    for shape in shapes:
        width, stop = shape.width, start + shape.blocks * shape.width**2
        own = (entry >= start) & (entry < stop)
        row, column = (entry[own] - start) // width, (entry[own] - start) % width
        place = (row[:, None] * channels + channel) * width + column[:, None]
        laid[own] = start * channels + place
        start = stop
    return laid
