"""Rows times a tied matrix, block by block in a basis that is adapted to the group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym.kernels._autograd import Context, Grads, derive, operator
from gsym.kernels._backends import BACKENDS, STATE, choose
from gsym.kernels._operators import flat
from gsym.kernels.segments import Value
from gsym.kernels.transforms import are_alike, is_transformed, undisturbed

# Between two homes; more weights, which no cache holds, are the work of a matrix product.
MOST_ORBITS = 24

Indices = NDArray[np.int64]
Numbers = NDArray[np.float64]


class AdaptedTables(Value):
    """Where everything lies in a product ``Q blockdiag(I (x) B) Q^T``, as compiled loops want it.

    Nodes fall into homes, their orbits, and every column of Q lives on one of them. Columns of one
    home in one block are a tile: tile by tile the basis is changed by small products, and a block
    falls into units from tile to tile. The entries of all units from one home to another are a
    small matrix times the weights of the pair orbits between the two.

    A value, as :class:`gsym.kernels.Segments` are.

    Args:
        matrix: Q, float64 ``[n, n]``.
        shapes: First column, rows, blocks and width of the columns whose blocks have one shape;
            see :class:`gsym.groups.adapted.BlockShape`.
        entry: Which entry of all blocks every coefficient is for, int64 ``[p]``.
        orbit: Which weight it multiplies.
        coefficient: The coefficients.
        index: Pair orbit of every target and source, int64 ``[n, n]``.

    Attributes:
        num_homes: Number of homes, among which threads share the work.
        most_orbits: The most pair orbits between two homes.
    """

    _tables: ClassVar[tuple[str, ...]] = ("_program", "_double", "_single", "_rows")
    _program: Tensor  # as csrc/adapted.cpp reads it
    _double: Tensor  # its numbers
    _single: Tensor  # the same in float32
    _rows: Tensor  # pair orbit of every source and target, int64 [n * n]
    num_homes: int
    most_orbits: int

    def __init__(
        self,
        matrix: Tensor,
        shapes: Sequence[tuple[int, int, int, int]],
        entry: Tensor,
        orbit: Tensor,
        coefficient: Tensor,
        index: Tensor,
    ) -> None:
        with undisturbed():
            given = (t.numpy() for t in (matrix, entry, orbit, coefficient, index))
            homes, orbits, program, numbers = _compile(shapes, *given)
            double = torch.from_numpy(numbers)
            self._fill(
                num_homes=homes,
                most_orbits=orbits,
                _program=torch.from_numpy(program),
                _double=double,
                _single=double.float(),
                _rows=index.t().reshape(-1).contiguous(),
            )

    def __repr__(self) -> str:
        return f"AdaptedTables({self.num_homes} homes)"


def adapted_linear(x: Tensor, weight: Tensor, tables: AdaptedTables) -> Tensor | None:
    """Rows times the matrix with ``weight[o]`` at pair orbit o, in its blocks.

    Args:
        x: ``[..., n, in]``.
        weight: ``[o, in, out]``.
        tables: Of the basis.

    Returns:
        ``[..., n, out]``, or ``None`` where no compiled loop takes them: on other devices, in types
        other than float32 and float64, of channels that are no multiple of the SIMD width, under a
        transform or a compiler, for more threads than homes, and for more than
        :data:`MOST_ORBITS` orbits between two homes.
    """
    if not are_alike(x, weight) or tables.most_orbits > MOST_ORBITS:
        return None
    if torch.get_num_threads() > tables.num_homes:
        return None
    chosen = choose("auto", "adapted_linear", x.device.type)
    if not (x.size(-1) and weight.size(-1) and chosen.takes("adapted_linear", x, weight)):
        return None
    if STATE.record is not None:
        STATE.record.append(chosen.name)
    numbers = tables._double if x.dtype == torch.float64 else tables._single
    y = in_blocks(flat(x), weight, [tables._program, numbers, tables._rows], chosen.name)
    return y if x.dim() == 3 else y.view(*x.shape[:-1], y.size(-1))


@operator(2)
def in_blocks(x: Tensor, weight: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """:func:`adapted_linear` of ``[b, n, in]``.

    Args:
        x: The rows.
        weight: Weights per pair orbit.
        tables: The program, its numbers, and the pair orbit of every source and target.
        backend: One that takes them.
    """
    return BACKENDS[backend].loops.adapted_linear(x, weight, *tables[:2])


@in_blocks.fake
def _(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(-1))


@in_blocks.gradient()
def _(ctx: Context, grad: Tensor) -> Grads:
    (x, weight), (tables, backend) = ctx.saved_tensors, ctx.rest
    if torch.is_grad_enabled() or is_transformed(grad):
        return derive(lambda views: _dense(views[0], views[1], tables[2]), (x, weight), [grad])
    wanted = ctx.needs_input_grad[:2]
    found = iter(in_blocks_grads(grad, x, weight, tables, *wanted, backend))
    return [next(found) if w else None for w in wanted]


@operator(3)
def in_blocks_grads(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tables: list[Tensor],
    by_x: bool,
    by_weight: bool,
    backend: str,
) -> list[Tensor]:
    """The gradients of :func:`in_blocks` that are wanted."""
    run = BACKENDS[backend].loops.adapted_linear_grads
    return [t for t in run(x, weight, *tables[:2], grad, (by_x, by_weight)) if t is not None]


@in_blocks_grads.fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tables: list[Tensor],
    by_x: bool,
    by_weight: bool,
    backend: str,
) -> list[Tensor]:
    wanted = (x, by_x), (weight, by_weight)
    return [t.new_empty(t.shape) for t, w in wanted if w]


def _dense(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The definition: one matrix for every source and target."""
    n, (_, a, b) = x.size(1), weight.shape
    blocks = weight.index_select(0, rows).view(n, n, a, b)
    matrix = blocks.transpose(1, 2).reshape(n * a, n * b)
    return (x.reshape(-1, n * a) @ matrix).view(-1, n, b)


def _compile(
    shapes: Sequence[tuple[int, int, int, int]],
    matrix: Numbers,
    entry: Indices,
    orbit: Indices,
    coefficient: Numbers,
    index: Indices,
) -> tuple[int, int, Indices, Numbers]:
    """Homes, most orbits between two, and program and numbers, as csrc/adapted.cpp lists them."""
    n = index.shape[0]
    _, home = np.unique(index.diagonal(), return_inverse=True)
    homes = int(home.max()) + 1
    column_home = home[np.abs(matrix).argmax(axis=0)]
    row, block, rank = (np.empty(n, dtype=np.int64) for _ in range(3))  # of columns
    entry_block, entry_out, entry_in = (np.empty_like(entry) for _ in range(3))
    block_rows: list[int] = []
    block_width: list[int] = []
    first = 0
    for start, rows, blocks, width in shapes:
        r, g, u = np.indices((rows, blocks, width)).reshape(3, -1)
        own = slice(start, start + r.size)
        row[own], block[own], rank[own] = r, len(block_rows) + g, u
        stop = first + blocks * width**2
        found = (entry >= first) & (entry < stop)
        number, place = np.divmod(entry[found] - first, width**2)
        entry_block[found] = len(block_rows) + number
        entry_out[found], entry_in[found] = np.divmod(place, width)
        block_rows += [rows] * blocks
        block_width += [width] * blocks
        first = stop

    # Tiles, and where the columns lie in them: row after row.
    key, head = block * homes + column_home, row == 0
    tiles, run = np.unique(key[head], return_counts=True)
    tile = np.searchsorted(tiles, key)
    tile_rows, tile_home = np.array(block_rows)[tiles // homes], tiles % homes
    start_of = np.cumsum(run * tile_rows) - run * tile_rows
    position = np.empty(n, dtype=np.int64)
    position[np.lexsort((rank, row, tile))] = np.arange(n)
    place = start_of[tile] + row * run[tile]
    within = position - place

    # Tile and place of both ends of every entry.
    offset = np.cumsum(block_width) - block_width
    at_head = offset[block[head]] + rank[head]
    tile_at, within_at = (np.empty(at_head.size, dtype=np.int64) for _ in range(2))
    tile_at[at_head], within_at[at_head] = tile[head], within[head]
    out, into = offset[entry_block] + entry_out, offset[entry_block] + entry_in

    # Units, by pair of homes and then by block.
    pair = tile_home[tile_at[out]] * homes + tile_home[tile_at[into]]
    num_blocks, num_pairs = len(block_rows), homes**2
    units, seen, unit = np.unique(
        pair * num_blocks + entry_block, return_index=True, return_inverse=True
    )
    unit_pair, unit_from, unit_to = units // num_blocks, tile_at[into][seen], tile_at[out][seen]
    area = run[unit_from] * run[unit_to]
    areas = np.bincount(unit_pair, weights=area, minlength=num_pairs).astype(np.int64)
    before = np.cumsum(area) - area - (np.cumsum(areas) - areas)[unit_pair]
    local = before[unit] + within_at[into] * run[unit_to[unit]] + within_at[out]

    # Weights by pair of homes, and the map from them to the entries.
    _, one = np.unique(index, return_index=True)
    orbit_pair = home[one // n] * homes + home[one % n]
    by_pair = np.argsort(orbit_pair, kind="stable")
    counts = np.bincount(orbit_pair, minlength=num_pairs)
    orbit_local = np.empty_like(by_pair)
    orbit_local[by_pair] = (
        np.arange(by_pair.size) - (np.cumsum(counts) - counts)[orbit_pair[by_pair]]
    )
    first_factor = _starts(areas * counts)
    base, weight = first_factor[pair], orbit_local[orbit]
    factor = np.bincount(
        base + local * counts[pair] + weight, coefficient, minlength=first_factor[-1]
    )
    turned = np.bincount(
        base + weight * areas[pair] + local, coefficient, minlength=first_factor[-1]
    )

    nodes, columns = (np.argsort(h, kind="stable") for h in (home, column_home))
    first_node = _starts(np.bincount(home))
    squares = [matrix[np.ix_(nodes[a:b], columns[a:b])] for a, b in pairwise(first_node)]
    tables = (
        *(first_node, _starts(np.diff(first_node) ** 2)),
        *(nodes, place[columns], run[tile][columns], within[columns]),
        *(start_of, run, tile_rows),
        *(_starts(counts), by_pair),
        *(_starts(np.bincount(unit_pair, minlength=num_pairs)), first_factor),
        *(unit_from, unit_to, _opens(unit_to), _opens(unit_from)),
    )
    numbers = np.concatenate(
        [*(s.T.ravel() for s in squares), *(s.ravel() for s in squares), factor, turned]
    )
    sizes: list[Any] = [n, homes, run.size, units.size, counts.sum(), first_factor[-1]]
    sizes += [sum(s.size for s in squares), areas.max(), counts.max(), run.max()]
    sizes += [np.diff(first_node).max()]
    length = 1 + len(sizes) + sum(t.size for t in tables)
    program = np.concatenate([np.array([length, *sizes]), *tables]).astype(np.int64)
    return homes, int(counts.max()), program, numbers


def _starts(counts: Indices) -> Indices:
    """Where each of so many begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(counts)])


def _opens(tiles: Indices) -> Indices:
    """1 where a tile is met first: homes of both ends come in ascending order."""
    found = np.zeros_like(tiles)
    found[np.unique(tiles, return_index=True)[1]] = 1
    return found
