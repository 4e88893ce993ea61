"""All elements of a small group, and which of them products are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
