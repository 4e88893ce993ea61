"""A basis in which every matrix that commutes with a permutation group is block diagonal.

In it a matrix with one weight per pair orbit is ``blockdiag(I_d (x) B)``, one block per kind of
irreducible: the cost of a product falls by the dimension ``d``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym.groups._host import lives_on_cpu
from gsym.groups.orbits import Orbits

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Above this an orbit of nodes is not decomposed: its eigenvectors take ``O(n^3)``.
MAX_ORBIT = 1024
# What a random element may leave outside of the blocks, relative to its size.
TOLERANCE = 1e-10

_SEEDS = 3  # tried in turn
_DRAWS = 5  # random elements of which the best serves
# Relative to a random element: numbers above are not 0, eigenvalues that are nearer are equal.
_NEAR = 1e-7
_EQUAL = 1e-9


class Component(NamedTuple):
    """All copies of one irreducible.

    Attributes:
        dim: Dimension ``d`` of the irreducible over the real numbers.
        copies: How often it occurs, ``m``.
        field: Dimension ``F`` of what commutes with one copy: 1 real, 2 complex, 4 quaternionic.
    """

    dim: int
    copies: int
    field: int


class BlockShape(NamedTuple):
    """Neighbouring columns of the basis whose blocks have one shape, in the order of the fields.

    Attributes:
        start: The first of these columns.
        rows: ``d / F``: how often every block is repeated.
        blocks: How many there are.
        width: ``m F``: side of every block.
    """

    start: int
    rows: int
    blocks: int
    width: int

    @property
    def columns(self) -> slice:
        """The columns of the basis."""
        return slice(self.start, self.start + self.rows * self.blocks * self.width)


@lives_on_cpu
@dataclass(frozen=True, eq=False, repr=False)
class AdaptedBasis:
    """A symmetry-adapted basis of the signals on ``n`` nodes, for one table of pair orbits.

    A matrix W with weight ``w[o]`` on pair orbit o is ``Q blockdiag(I (x) B) Q^T``. The entries of
    all blocks B are a linear map of w that can be inverted.

    The basis is one of many: it is unique up to rotations within components, and depends on the
    linear algebra library. Keep weights per pair orbit, not blocks.

    Attributes:
        matrix: Q, orthogonal, float64 ``[n, n]``.
        components: Dimension, copies and type of the irreducibles.
        shapes: Which columns belong to which blocks. Those of one shape stand row by row, in each
            row block by block.
        entry: Which entry of all blocks, in the order of ``shapes``, every coefficient is for,
            int64 ``[p]``; entry ``(u, v)`` of a block is position ``u * width + v``.
        orbit: Which weight it multiplies, int64 ``[p]``.
        coefficient: The coefficients, float64 ``[p]``.
        sizes: Pairs per orbit, int64 ``[num_orbits]``.
        residual: What a random element has left outside of its blocks, relative to its size.

    Example:
        >>> from gsym import PermutationGroup
        >>> turn = PermutationGroup.from_cycles(3, [(0, 1, 2)])
        >>> basis = find_basis(turn.pair_orbits()).basis
        >>> [tuple(component) for component in basis.components]
        [(1, 1, 1), (2, 1, 2)]
        >>> weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> [tuple(block.shape) for block in basis.to_blocks(weight)]
        [(1, 1, 1), (1, 2, 2)]
        >>> torch.allclose(basis.from_blocks(basis.to_blocks(weight)), weight)
        True

    Reference:
        Murota, Kanno, Kojima, Kojima, A numerical algorithm for block-diagonal decomposition of
        matrix *-algebras, from memory; started from single node orbits here.
    """

    matrix: Tensor
    components: tuple[Component, ...]
    shapes: tuple[BlockShape, ...]
    entry: Tensor
    orbit: Tensor
    coefficient: Tensor
    sizes: Tensor
    residual: float

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.matrix.size(0)

    @property
    def num_orbits(self) -> int:
        """Number of pair orbits, that is, of free weights."""
        return self.sizes.numel()

    @property
    def num_entries(self) -> int:
        """Entries of all blocks together; blocks of types 2 and 4 repeat their numbers."""
        return sum(shape.blocks * shape.width**2 for shape in self.shapes)

    @property
    def cost(self) -> float:
        """Multiplications by the blocks, over those by a dense matrix: sum of ``F d m^2 / n^2``."""
        return sum(c.field * c.dim * c.copies**2 for c in self.components) / self.num_nodes**2

    def expand(self, weight: Tensor) -> Tensor:
        """The matrix ``[n, n]`` of float64 weights ``[num_orbits]``, by way of its blocks."""
        columns = []
        for shape, block in zip(self.shapes, self.to_blocks(weight), strict=True):
            _, rows, blocks, width = shape
            own = self.matrix[:, shape.columns].view(-1, rows, blocks, width)
            columns.append(torch.einsum("nrgu,guv->nrgv", own, block).flatten(1))
        return torch.cat(columns, dim=1) @ self.matrix.T

    def to_blocks(self, weight: Tensor) -> list[Tensor]:
        """Weights ``[num_orbits, ...]`` as ``[blocks, width, width, ...]`` for every shape."""
        flat = weight.flatten(1) if weight.dim() > 1 else weight[:, None]
        scaled = flat.index_select(0, self.orbit) * self.coefficient.to(flat)[:, None]
        entries = flat.new_zeros(self.num_entries, flat.size(1)).index_add(0, self.entry, scaled)
        parts = entries.split([shape.blocks * shape.width**2 for shape in self.shapes])
        return [
            part.view(shape.blocks, shape.width, shape.width, *weight.shape[1:])
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def from_blocks(self, blocks: list[Tensor]) -> Tensor:
        """The weights ``[num_orbits, ...]`` of blocks; those that are not tied are projected."""
        entries = torch.cat([block.flatten(0, 2) for block in blocks])
        flat = entries.flatten(1) if entries.dim() > 1 else entries[:, None]
        # The inverse is the adjoint: orbits weigh as many entries of W as they have pairs, and
        # every block counts as often as it is repeated.
        rows = [flat.new_full((s.blocks * s.width**2,), s.rows) for s in self.shapes]
        scaled = flat.index_select(0, self.entry) * self.coefficient.to(flat)[:, None]
        scaled = scaled * torch.cat(rows)[self.entry][:, None]
        weight = flat.new_zeros(self.num_orbits, flat.size(1)).index_add(0, self.orbit, scaled)
        return (weight / self.sizes.to(flat)[:, None]).view(-1, *entries.shape[1:])

    def __repr__(self) -> str:
        kinds = Counter(f"{c.copies} x {'RC.H'[c.field - 1]}({c.dim})" for c in self.components)
        listed = [kind if count == 1 else f"{count} ({kind})" for kind, count in kinds.items()]
        more = " + ..." if len(listed) > 6 else ""
        return f"AdaptedBasis({self.num_nodes} nodes: {' + '.join(listed[:6])}{more})"


class Found(NamedTuple):
    """A basis, or why there is none.

    Attributes:
        basis: The basis; ``None`` without one.
        reason: Why there is none; empty with one.
    """

    basis: AdaptedBasis | None
    reason: str


def find_basis(orbits: Orbits) -> Found:
    """Find and certify a symmetry-adapted basis from the pair orbits of a group alone.

    Args:
        orbits: Of :meth:`gsym.PermutationGroup.pair_orbits`, without representations.

    Returns:
        The basis, certified: its blocks have as many free entries as there are orbits, and a
        random element that commutes with the group has at most :data:`TOLERANCE` outside of them.
        Or the reason why there is none.

    Cost:
        ``O(n^3)``: 0.1 s at n = 256, some seconds at n = 1,024.
    """
    index = orbits.index.numpy()
    nodes = Orbits.from_keys(torch.from_numpy(index.diagonal().copy()))
    largest = int(nodes.sizes.max())
    if largest > MAX_ORBIT:
        return Found(
            None, f"an orbit of {largest} nodes is too large to decompose (at most {MAX_ORBIT})"
        )
    reason = ""
    for seed in range(_SEEDS):
        try:
            basis = _Search(index, orbits.sizes.numpy(), nodes, seed).basis()
        except _NotFoundError as error:
            reason = str(error)
            continue
        if basis.residual <= TOLERANCE:
            return Found(basis, "")
        reason = f"a random element leaves {basis.residual:.1e} outside of the blocks"
    return Found(None, f"no basis was certified: {reason}")


class _NotFoundError(Exception):
    """What a draw did not bring out."""


@dataclass(frozen=True)
class _Irreducible:
    """Aligned copies of one irreducible.

    Attributes:
        vectors: Basis of every copy, ``[m, n, d / F, F]``.
        units: What spans the matrices ``[F, F]`` between two copies, ``[F, F, F]``.
        homes: Orbit of nodes that every copy lives on, ``[m]``.
    """

    vectors: Array
    units: Array
    homes: Indices

    @property
    def component(self) -> Component:
        copies, _, rows, field = self.vectors.shape
        return Component(rows * field, copies, field)

    @property
    def shape(self) -> tuple[int, int]:
        """Repetitions and width of its block."""
        copies, _, rows, field = self.vectors.shape
        return rows, copies * field


class _Search:
    """One attempt, from one seed."""

    def __init__(self, index: Indices, sizes: Indices, nodes: Orbits, seed: int) -> None:
        self.index, self.sizes, self.nodes = index, sizes, nodes
        self.rng = np.random.default_rng(seed)

    def basis(self) -> AdaptedBasis:
        """The basis and what a random element leaves outside of its blocks.

        Raises:
            _NotFoundError: Dimensions that do not fit each other.
        """
        parts = self._irreducibles(*self._eigenspaces())
        parts.sort(key=lambda part: (part.shape, part.component))
        free = sum(c.field * c.copies**2 for c in (part.component for part in parts))
        if free != self.sizes.size:
            raise _NotFoundError(f"the blocks have {free} free entries, not {self.sizes.size}")
        columns, shapes, start = [], [], 0
        for (rows, width), same in groupby(parts, key=lambda part: part.shape):
            alike = [part.vectors.transpose(1, 2, 0, 3).reshape(-1, rows, width) for part in same]
            shapes.append(BlockShape(start, rows, len(alike), width))
            columns.append(np.stack(alike, axis=2).reshape(-1, rows * len(alike) * width))
            start += columns[-1].shape[1]
        entry, orbit, coefficient = self._coefficients(parts)
        basis = AdaptedBasis(
            torch.from_numpy(np.concatenate(columns, axis=1)),
            tuple(part.component for part in parts),
            tuple(shapes),
            torch.from_numpy(entry),
            torch.from_numpy(orbit),
            torch.from_numpy(coefficient),
            torch.from_numpy(self.sizes),
            math.inf,
        )
        return replace(basis, residual=self._residual(basis))

    def _element(self) -> tuple[Array, Array]:
        """Random weights of orbits, and the matrix of norm about 1 that they make."""
        # Every orbit weighs alike in the squared norm, lest large ones drown the others.
        weight = self.rng.standard_normal(self.sizes.size) / np.sqrt(self.sizes * self.sizes.size)
        return weight, weight[self.index]

    def _eigenspaces(self) -> tuple[Array, Indices, Indices]:
        """Copies of irreducibles: an orthogonal matrix, how many columns and which home each has.

        The eigenspaces of a random symmetric element are irreducible. They are taken orbit by
        orbit, because in the whole more eigenvalues lie closer, which is less exact.
        """
        n = self.index.shape[0]
        vectors, dims, homes, start = np.zeros((n, n)), [], [], 0
        draws = [element + element.T for _, element in (self._element() for _ in range(_DRAWS))]
        order = np.argsort(self.nodes.index.numpy(), kind="stable")
        for home, nodes in enumerate(np.split(order, np.cumsum(self.nodes.sizes.numpy())[:-1])):
            widest = -1.0
            for draw in draws:
                values, found = np.linalg.eigh(draw[np.ix_(nodes, nodes)])
                gaps = np.diff(values) / max(np.abs(values).max(), 1e-300)
                narrowest = gaps[gaps > _EQUAL].min(initial=np.inf)
                if narrowest > widest:
                    widest, ends = narrowest, np.flatnonzero(gaps > _EQUAL)
                    vectors[nodes, start : start + nodes.size] = found
            bounds = np.concatenate([[-1], ends, [nodes.size - 1]])
            dims.append(np.diff(bounds))
            homes.append(np.full(bounds.size - 1, home))
            start += nodes.size
        return vectors, np.concatenate(dims), np.concatenate(homes)

    def _irreducibles(self, vectors: Array, dims: Indices, homes: Indices) -> list[_Irreducible]:
        """Join copies of one irreducible, and align each of them to the first."""
        n = vectors.shape[0]
        draws = [vectors.T @ self._element()[1] @ vectors for _ in range(_DRAWS)]
        starts = np.cumsum(dims) - dims
        links = []
        for draw in draws:
            norms = np.add.reduceat(np.add.reduceat(draw**2, starts, 0), starts, 1)
            links.append(np.sqrt(norms / np.sqrt(np.outer(dims, dims))))
        near = _NEAR * max(float(link.max()) for link in links)
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        _, kinds = connected_components(coo_array(np.max(links, axis=0) > near), directed=False)
        found = []
        for kind in range(kinds.max() + 1):
            copies = np.flatnonzero(kinds == kind)
            if np.unique(dims[copies]).size > 1:
                raise _NotFoundError("copies of an irreducible have different dimensions")
            d, first = int(dims[copies[0]]), copies[0]
            columns = starts[copies, None] + np.arange(d)
            # The strongest link of every copy to the first has the least relative error.
            which = np.argmax([link[first, copies] for link in links], axis=0)
            blocks = [
                draws[k][np.ix_(columns[0], own)] for k, own in zip(which, columns, strict=True)
            ]
            left, strength, right = np.linalg.svd(np.stack(blocks))
            if strength.min() < near or np.ptp(strength, axis=1).max() > near:
                raise _NotFoundError("copies of an irreducible are hardly linked")
            turns = left @ right
            turns[0] = np.eye(d)
            frame, units = _standard([x[np.ix_(columns[0], columns[0])] for x in draws], near)
            aligned = vectors[:, columns].transpose(1, 0, 2) @ turns.transpose(0, 2, 1) @ frame
            aligned = aligned.reshape(copies.size, n, -1, units.shape[0])
            found.append(_Irreducible(aligned, units, homes[copies]))
        return found

    def _coefficients(self, parts: list[_Irreducible]) -> tuple[Indices, Indices, Array]:
        """The map from weights to entries of all blocks: entry, orbit and coefficient.

        For two copies and a unit, ``U = V_p (I (x) unit) V_q^T`` commutes with the group, so it is
        constant on orbits; the entry of a matrix W along it is ``<W, U> / d``.
        """
        n, homes = self.index.shape[0], self.nodes.index.numpy()
        _, first = np.unique(self.index, return_index=True)
        target, source = first // n, first % n
        between = homes[target] * self.nodes.num_orbits + homes[source]
        order = np.argsort(between, kind="stable")
        ends = np.cumsum(np.bincount(between, minlength=self.nodes.num_orbits**2))
        entries, orbits, values, start = [], [], [], 0
        for part in parts:
            copies, _, _, field = part.vectors.shape
            width = copies * field
            pair = (part.homes[:, None] * self.nodes.num_orbits + part.homes).ravel()
            stop = ends[pair]
            count = stop - np.where(pair > 0, ends[pair - 1], 0)
            of_pair = np.repeat(np.arange(copies**2), count)
            rank = np.arange(of_pair.size) - np.repeat(np.cumsum(count) - count, count)
            orbit = order[np.repeat(stop - count, count) + rank]
            p, q = of_pair // copies, of_pair % copies
            # Entry [l, m] sums over rows of the irreducible.
            left, right = part.vectors[p, target[orbit]], part.vectors[q, source[orbit]]
            along = np.einsum("zal,zam,klm->zk", left, right, part.units, optimize=True)
            scale = self.sizes[orbit] / part.component.dim
            own = np.einsum("zk,klm->zlm", along * scale[:, None], part.units)
            row = p[:, None, None] * field + np.arange(field)[:, None]
            column = q[:, None, None] * field + np.arange(field)
            entries.append((start + row * width + column).ravel())
            orbits.append(np.repeat(orbit, field**2))
            values.append(own.ravel())
            start += width**2
        return np.concatenate(entries), np.concatenate(orbits), np.concatenate(values)

    def _residual(self, basis: AdaptedBasis) -> float:
        """What fresh random elements leave outside of the blocks, relative to their size."""
        worst = 0.0
        for _ in range(2):
            weight, element = self._element()
            left = np.abs(basis.expand(torch.from_numpy(weight)).numpy() - element).max()
            worst = max(worst, float(left / np.abs(element).max()))
        matrix = basis.matrix.numpy()
        return max(worst, float(np.abs(matrix.T @ matrix - np.eye(basis.num_nodes)).max()))


def _standard(elements: list[Array], near: float) -> tuple[Array, Array]:
    """The type of an irreducible, from some matrices ``[d, d]`` that commute with it.

    Returns:
        An orthogonal matrix ``[d, d]`` with columns ``[d / F, F]``, in which every such matrix is
        ``I (x) C``, and the units that span the C, ``[F, F, F]``: 1, or 1 and i, or 1, i, j and k.
    """
    d = elements[0].shape[0]
    units = [np.eye(d)]
    # What commutes with an irreducible is a multiple of 1 and, across that, skew.
    left = [(x - x.T) / 2 for x in elements]
    for _ in range(2):
        size = [np.linalg.norm(x) / math.sqrt(d) for x in left]
        if max(size) < near:
            break
        if len(units) == 1:
            units.append(left[int(np.argmax(size))] / max(size))
        else:
            second = left[int(np.argmax(size))] / max(size)
            units += [second, units[1] @ second]
        left = [x - sum(np.vdot(u, x) / d * u for u in units[1:]) for x in left]
    if d % len(units) or max(np.linalg.norm(x) for x in left) > near * math.sqrt(d):
        raise _NotFoundError("what commutes with an irreducible is no field")
    frame = np.zeros((d, 0))
    while frame.shape[1] < d:
        # The unit vector that is farthest from the columns so far.
        far = np.eye(d) - frame @ frame.T
        vector = far[:, int(far.diagonal().argmax())]
        vector = vector / np.linalg.norm(vector)
        frame = np.column_stack([frame, *(unit @ vector for unit in units)])
    head = frame[:, : len(units)]
    inner: Array = np.stack([head.T @ unit @ head for unit in units])
    return frame, np.rint(inner)
