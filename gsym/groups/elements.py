"""All elements of a small group, which of them products are, and relations that fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gsym.groups.permutation import PermutationGroup

# Products of generators that are looked at to name a relation that fails.
MAX_NAMED = 4096

V = TypeVar("V")
Points = NDArray[np.int64]


@dataclass(frozen=True)
class Algebra(Generic[V]):
    """How values of group elements are multiplied, inverted and compared."""

    multiply: Callable[[V, V], V]
    invert: Callable[[V], V]
    are_equal: Callable[[V, V], bool]


def has_at_most(group: PermutationGroup, count: int) -> bool:
    """Whether a group has at most so many elements, however large it is."""
    # The order of S_n for large n takes longer to write than its logarithm.
    return group.log_order() < math.log(count + 0.5)


def list_elements(
    generators: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Every element of the group that permutations make, breadth first, or ``None`` above a limit.

    Args:
        generators: Images of points, int64 ``[m, p]``.
        limit: Most elements.

    Returns:
        The elements ``[order, p]``, the identity first, and the number of ``g h`` for each
        generator g and element h, ``[m, order]``.

    Cost:
        ``O(m * order * p)``.

    Example:
        >>> elements, products = list_elements(np.array([[1, 2, 0]]), limit=64)
        >>> elements.tolist(), products.tolist()
        ([[0, 1, 2], [1, 2, 0], [2, 0, 1]], [[1, 2, 0]])
    """
    identity = np.arange(generators.shape[1])
    numbers = {identity.tobytes(): 0}
    listed = [identity]
    products: list[list[int]] = [[] for _ in generators]
    for here in listed:
        for row, generator in zip(products, generators, strict=True):
            moved = generator[here]
            number = numbers.setdefault(moved.tobytes(), len(listed))
            if number == len(listed):
                if number == limit:
                    return None
                listed.append(moved)
            row.append(number)
    table = np.array(products, dtype=np.int64).reshape(len(generators), len(listed))
    return np.array(listed), table


def signed_points(images: NDArray[np.int64], signs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Signed permutations as permutations of twice as many points: point ``2 j + t`` is (-1)^t j.

    Args:
        images: Where each is sent, ``[m, p]``.
        signs: 1 or -1, by which it is multiplied, ``[m, p]``.

    Returns:
        ``[m, 2 p]``.
    """
    negative = (signs < 0).astype(np.int64)
    both = np.stack([2 * images + negative, 2 * images + 1 - negative], axis=-1)
    return both.reshape(len(images), 2 * images.shape[1])


def broken_relation(
    generators: Points, values: Sequence[V], one: V, algebra: Algebra[V]
) -> str | None:
    """A product of generators that keeps all points although its value is not 1, by name.

    Args:
        generators: Images of points, int64 ``[m, p]``.
        values: What every generator is sent to by what should be a homomorphism.
        one: What the identity is sent to.
        algebra: How values are multiplied and compared.

    Returns:
        The name of the product, or ``None`` where no short one is found.
    """
    still = np.arange(generators.shape[1])
    for name, word in _short_words(len(generators)):
        perm, value = still, one
        for i in word:
            # ~i stands for the inverse of i.
            g = generators[i] if i >= 0 else np.argsort(generators[~i])
            v = values[i] if i >= 0 else algebra.invert(values[~i])
            perm, value = perm[g], algebra.multiply(value, v)
        power, total, exponent = perm, value, 1
        while (power != still).any() and exponent < MAX_NAMED:
            power, total, exponent = perm[power], algebra.multiply(value, total), exponent + 1
        if (power == still).all() and not algebra.are_equal(total, one):
            return f"{name}^{exponent}" if exponent > 1 else name
    # Two ways to one element that have different values.
    seen, queue = {still.tobytes(): ("1", one)}, [("", still, one)]
    for name, perm, value in queue:
        for i, g in enumerate(generators):
            longer, product = f"g{i} {name}".strip(), g[perm]
            moved = algebra.multiply(values[i], value)
            before = seen.setdefault(product.tobytes(), (longer, moved))
            if not algebra.are_equal(before[1], moved):
                return f"({longer}) ({before[0]})^-1"
            if before[0] == longer and len(queue) < MAX_NAMED:
                queue.append((longer, product, moved))
    return None


def _short_words(count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Generators, their products in pairs, and their commutators, with names."""
    for i in range(count):
        yield f"g{i}", (i,)
    for i, j in combinations(range(min(count, 32)), 2):
        yield f"(g{i} g{j})", (i, j)
        yield f"(g{i} g{j} g{i}^-1 g{j}^-1)", (i, j, ~i, ~j)
