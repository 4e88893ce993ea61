"""Maps between channels that a group mixes by matrices: dimension, projection, free weights.

With signed permutations a weight is one entry up to its sign, and orbits say it all. With matrices
the weights of an orbit of points are coordinates in the space of maps that the stabiliser of its
first point leaves as they are; all other points follow by moving these maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym.errors import GroupError
from gsym.groups.elements import list_elements

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Elements are listed one by one, with a matrix for each.
MAX_ELEMENTS = 4096
# How far matrices may be from orthogonal, and their products from those that they should be.
TOLERANCE = 1e-10
# Coefficients below this are rounding.
_ZERO = 1e-13
# Squared lengths nearer than this are equal; the first of them is taken, on every machine.
_TIE = 1e-6


def listed_elements(generators: Tensor) -> tuple[Indices, Indices]:
    """All elements as :func:`gsym.groups.elements.list_elements` has them.

    Raises:
        GroupError: More than :data:`MAX_ELEMENTS`.
    """
    listed = list_elements(generators.numpy(), MAX_ELEMENTS)
    if listed is None:
        raise GroupError(
            f"matrices on channels need a list of all elements of the group, {MAX_ELEMENTS:,} at "
            "most; use a subgroup, or signed permutations of the channels, which need none: "
            "Representation.from_signs or from_permutation"
        )
    return listed


def spread(matrices: Tensor, products: Indices) -> Array:
    """The matrix of every element ``[order, c, c]``, from those of the generators ``[m, c, c]``.

    ``products`` has the number of ``g h`` for generator g and element h; elements are listed
    breadth first.
    """
    rows, order = matrices.numpy(), products.shape[1]
    found = np.zeros((order, *rows.shape[1:]))
    found[0] = np.eye(rows.shape[1])
    known = np.zeros(order, dtype=bool)
    known[0] = True
    for h in range(order):
        for row, number in zip(rows, products[:, h], strict=True):
            if not known[number]:
                found[number], known[number] = row @ found[h], True
    return found


def is_homomorphism(matrices: Tensor, found: Array, products: Indices) -> bool:
    """Whether ``rho(g) rho(h) = rho(g h)`` for every generator g and element h."""
    worst = [
        float(np.abs(row @ found - found[number]).max())
        for row, number in zip(matrices.numpy(), products, strict=True)
    ]
    return max(worst, default=0.0) <= TOLERANCE


@dataclass(frozen=True, eq=False)
class Elements:
    """All elements of a group on points, and how each moves channels.

    Attributes:
        perms: Images of the points, int64 ``[order, p]``.
        into: Matrices on the channels of the input, ``[order, c_in, c_in]``.
        out: Matrices on those of the output, ``[order, c_out, c_out]``.
    """

    perms: Indices
    into: Array
    out: Array

    @classmethod
    def of(cls, generators: Tensor, into: Tensor, out: Tensor) -> Elements:
        """From generators: images ``[m, p]`` and matrices ``[m, c, c]`` of either side."""
        perms, products = listed_elements(generators)
        return cls(perms, spread(into, products), spread(out, products))

    def dimension(self, own: Array) -> int:
        """Dimension of the maps between all points, and of one more at every point in ``own``.

        By characters: the mean over the group of (fixed points)^2 and fixed points in ``own``,
        times both traces.
        """
        fixed = self.perms == np.arange(self.perms.shape[1])
        traces = np.trace(self.into, axis1=1, axis2=2) * np.trace(self.out, axis1=1, axis2=2)
        mean = float(((fixed.sum(1) ** 2 + fixed @ own) * traces).mean())
        assert abs(mean - round(mean)) < _TIE
        return round(mean)

    def maps_at_points(self, kept: NDArray[np.bool_]) -> TiedMaps:
        """The maps at single points that commute with the group, at those that are ``kept``."""
        return _tied_maps(self, kept, lambda i: self.perms[:, i], (self.perms.shape[1],))

    def maps_of_pairs(self) -> TiedMaps:
        """The maps between all pairs of points that commute with the group."""
        p = self.perms.shape[1]
        kept = np.ones(p * p, dtype=bool)
        images = self.perms
        return _tied_maps(self, kept, lambda i: images[:, i // p] * p + images[:, i % p], (p, p))


@dataclass(frozen=True, eq=False)
class TiedMaps:
    """Maps between channels at points, as a linear map of free weights.

    Entry ``entry[z]`` of the flattened maps gets ``coefficient[z]`` times weight ``weight[z]``. The
    columns of this matrix are orthogonal to each other.

    Attributes:
        shape: That of the maps, ``(*points, c_out, c_in)``.
        num_weights: Number of free weights.
        entry: int64 ``[z]``.
        weight: int64 ``[z]``.
        coefficient: float64 ``[z]``.
        squares: Squared length of every column, ``[num_weights]``.
    """

    shape: tuple[int, ...]
    num_weights: int
    entry: Tensor
    weight: Tensor
    coefficient: Tensor
    squares: Tensor

    def expand(self, weight: Tensor) -> Tensor:
        """The maps ``[*shape, ...]`` of weights ``[num_weights, ...]``."""
        more = weight.shape[1:]
        scaled = weight[self.weight] * self._scale(weight)
        flat = weight.new_zeros(math.prod(self.shape), *more).index_add(0, self.entry, scaled)
        return flat.view(*self.shape, *more)

    def read(self, maps: Tensor) -> Tensor:
        """The weights of maps ``[*shape, ...]``; of those nearest to maps that are not tied."""
        flat = maps.flatten(0, len(self.shape) - 1)
        scaled = flat[self.entry] * self._scale(flat)
        total = flat.new_zeros(self.num_weights, *flat.shape[1:]).index_add(0, self.weight, scaled)
        return total / self.squares.to(flat).view(-1, *[1] * (flat.dim() - 1))

    def _scale(self, like: Tensor) -> Tensor:
        return self.coefficient.to(like).view(-1, *[1] * (like.dim() - 1))


def project(
    weight: Tensor, labels: Tensor, sizes: Tensor, pairs: TiedMaps, own: TiedMaps
) -> Tensor:
    """The nearest map of signals that commutes with a group of clusters.

    Args:
        weight: Maps ``[..., n, n, c_out, c_in]``.
        labels: Cluster of every node.
        sizes: Nodes of every cluster.
        pairs: The maps between clusters.
        own: The maps of clusters for themselves, which nodes of larger ones have on top.
    """
    n, (k, _, rows, columns) = labels.numel(), pairs.shape
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor; got {type(weight).__name__}")
    if weight.shape[-4:] != (n, n, rows, columns) or not weight.is_floating_point():
        raise GroupError(
            f"weight must be floating point [..., {n}, {n}, {rows}, {columns}], channels of the "
            f"output before those of the input; got {list(weight.shape)} of {weight.dtype}"
        )
    pairs, own = (_on(maps, weight.device) for maps in (pairs, own))
    labels, sizes = labels.to(weight.device), sizes.to(weight)
    large = torch.nonzero(sizes > 1)[:, 0]
    maps = weight.reshape(-1, *weight.shape[-4:]).movedim(0, -1)  # [n, n, c_out, c_in, ...]
    more = maps.shape[2:]
    diagonal = maps.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    trace = maps.new_zeros(k, *more).index_add(0, labels, diagonal)
    block = maps.new_zeros(k, n, *more).index_add(0, labels, maps)
    block = maps.new_zeros(k, k, *more).index_add(1, labels, block)
    area = torch.outer(sizes, sizes)
    # The diagonal of a larger cluster is apart from its block.
    block[large, large] = block[large, large] - trace[large]
    area[large, large] = area[large, large] - sizes[large]
    out = pairs.expand(pairs.read(block / area.view(k, k, 1, 1, 1)))[labels][:, labels]
    apart = own.expand(own.read(trace / sizes.view(k, 1, 1, 1)))[labels]
    nodes = torch.nonzero(sizes[labels] > 1)[:, 0]
    out[nodes, nodes] = apart[nodes]
    return out.movedim(-1, 0).reshape(weight.shape)


def _on(maps: TiedMaps, device: torch.device) -> TiedMaps:
    moved = [t.to(device) for t in (maps.entry, maps.weight, maps.coefficient, maps.squares)]
    return TiedMaps(maps.shape, maps.num_weights, *moved)


def _tied_maps(
    elements: Elements,
    kept: NDArray[np.bool_],
    images: Callable[[int], Indices],
    points: tuple[int, ...],
) -> TiedMaps:
    """The maps at points that commute with a group; those that are not kept are 0.

    Args:
        elements: The group.
        kept: Which points count, whole orbits of them.
        images: Where every element sends a point.
        points: Shape of the points.
    """
    rows, columns = elements.out.shape[1], elements.into.shape[1]
    seen, count = ~kept, 0
    entries, weights, values = [], [], []
    for point in range(kept.size):
        if seen[point]:
            continue
        reached = images(point)
        orbit, first = np.unique(reached, return_index=True)
        seen[orbit] = True
        stays = reached == point
        basis = _fixed_maps(elements.out[stays], elements.into[stays])
        moved = elements.out[first][:, None] @ basis @ elements.into[first][:, None].swapaxes(2, 3)
        place = np.broadcast_to(orbit[:, None, None] * (rows * columns), (*moved.shape[:2], 1))
        place = place + np.arange(rows * columns)
        which = np.broadcast_to(count + np.arange(len(basis))[:, None], place.shape)
        moved = moved.reshape(place.shape)
        there = np.abs(moved) > _ZERO
        entries.append(place[there])
        weights.append(which[there])
        values.append(moved[there])
        count += len(basis)
    empty = [np.empty(0, dtype=np.int64)]
    entry, weight = (torch.from_numpy(np.concatenate(part + empty)) for part in (entries, weights))
    coefficient = torch.from_numpy(np.concatenate([*values, np.empty(0)]))
    squares = coefficient.new_zeros(count).index_add(0, weight, coefficient.square())
    return TiedMaps((*points, rows, columns), count, entry, weight, coefficient, squares)


def _fixed_maps(out: Array, into: Array) -> Array:
    """An orthonormal basis ``[d, c_out, c_in]`` of maps that a group of matrices leaves alone.

    It is the same on every machine, because checkpoints hold coordinates in it: columns of the
    projector, which is unique, each time the first of the longest.
    """
    (order, rows, _), columns = out.shape, into.shape[1]
    # The projector, entry [(a, c), (b, d)] being the mean of out[a, b] into[c, d].
    left = out.reshape(order, -1).T @ into.reshape(order, -1) / order
    left = left.reshape(rows, rows, columns, columns).swapaxes(1, 2)
    left = left.reshape(rows * columns, rows * columns)
    basis = []
    for _ in range(round(float(np.trace(left)))):
        length = left.diagonal()
        vector = left[:, int(np.argmax(length > length.max() - _TIE))]
        vector = vector / np.linalg.norm(vector)
        basis.append(vector)
        left = left - np.outer(vector, vector)
    return np.array(basis).reshape(-1, rows, columns)
