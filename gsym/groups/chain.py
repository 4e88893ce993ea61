"""Membership and random elements of a permutation group whose order is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsym.errors import GroupError


class Unfaithful(Exception):  # noqa: N818  # a message to the caller, not an error
    """An element that is not the identity fixes every point that the base may take."""


# A random element shows that a chain is incomplete with probability one half or more.
_PATIENCE = 100
# Random elements that a complete chain has to divide without a rest.
_TRIALS = 40

Array = np.ndarray


@dataclass
class _Level:
    """Orbit of a base point under the elements that fix the earlier ones, as a tree.

    Attributes:
        point: The base point, root of the tree.
        orbit: Its images, ``[s]``.
        move: Move that carries the parent of a point to it; -1 at the root, -2 outside, ``[n]``.
        parent: Parent of a point of the orbit, ``[n]``.
    """

    point: int
    orbit: Array
    move: Array
    parent: Array


class StabiliserChain:
    """Base and strong generating set, by random Schreier-Sims until the order is reached.

    The order being known, the result is certain; only the time is random. The generators that
    BLISS and nauty return are nearly always strong for the base that is chosen here, so that
    little or nothing random happens for them.

    Generators are kept as the points that they move: those of large graphs move few.

    Args:
        generators: Permutations, int64 ``[m, n]``.
        log_order: Natural logarithm of the order, good to 0.3.
        faithful: How many of the first points the base is taken from; the others follow from
            these. All by default.

    Raises:
        GroupError: The generators make a group of another order.
        Unfaithful: The others do not follow.

    Cost:
        ``O(b s)`` where the generators are strong, for a base of ``b`` points and ``s`` points
        moved by all generators together. Sampling and membership apply to each base point as many
        generators as its tree is deep.

    Reference:
        Seress, Permutation Group Algorithms, chapters 4 and 8 (from memory).
    """

    _faithful: int | None = None

    def __init__(
        self, generators: Tensor, log_order: float, *, faithful: int | None = None
    ) -> None:
        self._faithful = faithful
        self._generators = list(generators.numpy())
        self._n = generators.size(1)
        self._rng = np.random.default_rng(0)
        self._pool: list[Array] = []
        self._base: list[int] = []
        self._build()
        quiet = 0
        # A proper subgroup has half the order at most.
        while self._generators and self.log_order() < log_order - 0.3 and quiet < _PATIENCE:
            residue = self._sift(self._random_element())
            if (residue == np.arange(self._n)).all():
                quiet += 1
                continue
            quiet = 0
            self._generators.append(residue)
            self._build()
        if abs(self.log_order() - log_order) > 0.3:
            raise GroupError(
                f"the generators make a group of order exp({self.log_order():.6g}), "
                f"not exp({log_order:.6g}) as given"
            )

    def confirm(self, order: int) -> None:
        """Make sure of an order that was given.

        A chain that lacks elements has too few by a factor of two at least, and lets half of all
        random elements or more leave a residue; 40 of them are tried.

        Raises:
            GroupError: The group has another order.
        """
        if self.order() != order:
            raise GroupError(
                f"the generators make a group of order {_digits(self.order())}, not "
                f"{_digits(order)} as given"
            )
        for _ in range(_TRIALS if self._levels else 0):
            if (self._sift(self._random_element()) != np.arange(self._n)).any():
                raise GroupError(
                    f"the generators make a group of more than {_digits(order)} elements, the "
                    "given order"
                )

    def order(self) -> int:
        """Number of elements."""
        return math.prod(level.orbit.size for level in self._levels)

    def log_order(self) -> float:
        """Natural logarithm of :meth:`order`."""
        return math.fsum(math.log(level.orbit.size) for level in self._levels)

    def contains(self, perm: Tensor) -> bool:
        """Whether the permutation belongs to the group."""
        return bool((self._sift(perm.numpy()) == np.arange(self._n)).all())

    def extend(self, perm: Tensor) -> Tensor:
        """The element of the group whose faithful points have these images.

        Args:
            perm: Images of the faithful points, int64 ``[faithful]``.

        Raises:
            GroupError: There is none.
        """
        rest = np.arange(self._n)
        rest[: perm.numel()] = perm.numpy()
        # Divided by that element, what it does to the other points is left inverted.
        rest = self._sift(rest)
        if (rest[: perm.numel()] != np.arange(perm.numel())).any():
            raise GroupError("the permutation does not belong to the group")
        found = np.argsort(rest)
        found[: perm.numel()] = perm.numpy()
        return torch.from_numpy(found)

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """A uniformly random element."""
        perm = np.arange(self._n)
        for level in self._levels:
            draw = int(torch.randint(level.orbit.size, (1,), generator=generator))
            target = int(level.orbit[draw])
            while (move := int(level.move[target])) >= 0:
                points, images = self._moves[move]
                perm[points] = perm[images]
                target = int(level.parent[target])
        return torch.from_numpy(perm)

    def _build(self) -> None:
        """Lengthen the base until no generator fixes it, and find the orbits."""
        # Move 2i is generator i, move 2i + 1 its inverse, each on the points that it moves.
        self._moves: list[tuple[Array, Array]] = []
        for perm in self._generators:
            points = np.flatnonzero(perm != np.arange(self._n))
            self._moves += [(points, perm[points]), (perm[points], points)]
        row = np.repeat(np.arange(len(self._moves)), [points.size for points, _ in self._moves])
        empty = [np.empty(0, dtype=np.int64)]
        point = np.concatenate([points for points, _ in self._moves] + empty)
        image = np.concatenate([images for _, images in self._moves] + empty)
        self._levels: list[_Level] = []
        while row.size:
            depth = len(self._levels)
            if depth == len(self._base):
                # The point that the most of the early generators fix: solvers find those deep in
                # the search, where more points are fixed.
                first = np.full(self._n, -1)
                first[point[::-1]] = row[::-1]
                first = first[: self._faithful]
                if first.max() < 0:
                    raise Unfaithful
                self._base.append(int(first.argmax()))
            self._levels.append(self._orbit(self._base[depth], row, point, image))
            moving = np.zeros(len(self._moves), dtype=bool)
            moving[row[point == self._base[depth]]] = True
            keep = ~moving[row]
            row, point, image = row[keep], point[keep], image[keep]

    def _orbit(self, root: int, row: Array, point: Array, image: Array) -> _Level:
        """The tree of the images of ``root``, breadth first."""
        n = self._n
        keys, first = np.unique(point * n + image, return_index=True)
        pointer = np.searchsorted(keys, np.arange(n + 1) * n)
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order

        graph = csr_array((np.ones(keys.size, dtype=np.int8), keys % n, pointer), shape=(n, n))
        orbit, parent = breadth_first_order(graph, root)
        move = np.full(n, -2, dtype=np.int32)
        move[root] = -1
        leaves = orbit[1:].astype(np.int64)
        move[leaves] = row[first[np.searchsorted(keys, parent[leaves] * np.int64(n) + leaves)]]
        return _Level(root, orbit, move, parent.astype(np.int32))

    def _sift(self, perm: Array) -> Array:
        """What is left of ``perm`` after division by one representative per level."""
        perm = perm.copy()
        inverse = np.argsort(perm)
        for level in self._levels:
            while (move := int(level.move[perm[level.point]])) >= 0:
                points, images = self._moves[move]
                inverse[points] = inverse[images]
                perm[inverse[points]] = points
            if move == -2:
                break
        return perm

    def _random_element(self) -> Array:
        """Product replacement on the generators."""
        steps = 10
        if not self._pool:
            self._pool = self._generators * -(-10 // len(self._generators))
            # The first products are short words, which are far from random.
            steps = 100
        for _ in range(steps):
            i, j = self._rng.choice(len(self._pool), 2, replace=False)
            other = self._pool[j] if self._rng.random() < 0.5 else np.argsort(self._pool[j])
            a, b = (self._pool[i], other) if self._rng.random() < 0.5 else (other, self._pool[i])
            self._pool[i] = a[b]
        return self._pool[i]


def _digits(order: int) -> str:
    # Python writes no more than 4300 digits.
    return str(order) if order < 10**18 else f"exp({math.log(order):.10g})"
