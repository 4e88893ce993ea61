"""Representations by their definition: all elements of small groups, one after another."""

from __future__ import annotations

from functools import cache

import numpy as np

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.errors import GroupError

Element = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def elements(group: PermutationGroup, rep: Representation) -> list[Element]:
    """All (perm, channel images, channel signs), by multiplying generators."""
    moves = rep.moves_of_generators(group)
    rows = list(
        zip(group.generators.tolist(), moves.images.tolist(), moves.signs.tolist(), strict=True)
    )
    n, c = group.num_nodes, rep.num_channels
    found = [(tuple(range(n)), tuple(range(c)), (1,) * c)]
    known = set(found)
    for perm, images, signs in found:
        for g, move, sign in rows:
            made = (
                tuple(g[i] for i in perm),
                tuple(move[a] for a in images),
                tuple(s * sign[a] for a, s in zip(images, signs, strict=True)),
            )
            if made not in known:
                known.add(made)
                found.append(made)
    return found


def as_matrix(images: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    matrix = np.zeros((len(images), len(images)))
    matrix[list(images), range(len(images))] = signs
    return matrix


def average(
    group: PermutationGroup, weight: np.ndarray, first: Representation, second: Representation
) -> np.ndarray:
    """The mean of ``rho_out(g) K rho_in(g)^-1`` over the group, by definition."""
    both = {}
    for perm, images, signs in elements(group, first):
        both[perm] = as_matrix(images, signs)
    total = np.zeros_like(weight)
    listed = elements(group, second)
    assert len(listed) == len(both) == group.order()
    for perm, images, signs in listed:
        moved = np.empty_like(weight)
        moved[np.ix_(perm, perm)] = as_matrix(images, signs) @ weight @ both[perm].T
        total += moved
    return total / len(listed)


def by_characters(group: PermutationGroup, first: Representation, second: Representation) -> float:
    def character(element: Element) -> int:
        perm, images, signs = element
        fixed = sum(i == g for i, g in enumerate(perm))
        return fixed * sum(s for a, (b, s) in enumerate(zip(images, signs, strict=True)) if a == b)

    other = {element[0]: character(element) for element in elements(group, second)}
    values = [character(e) * other[e[0]] for e in elements(group, first)]
    return sum(values) / len(values)


def quaternions() -> PermutationGroup:
    """Q8 on its own eight elements."""
    return PermutationGroup(8, [[2, 3, 1, 0, 6, 7, 5, 4], [4, 5, 7, 6, 1, 0, 2, 3]])


GROUPS = {
    "trivial": lambda: PermutationGroup.trivial(4),
    "mirror": lambda: PermutationGroup.from_cycles(7, [(1, 4), (2, 5), (3, 6)]),
    "C3": lambda: PermutationGroup.from_cycles(4, [(0, 1, 2)]),
    "C4": lambda: PermutationGroup.from_cycles(5, [(0, 1, 2, 3)]),
    "C6": lambda: PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4)]),
    "S3": lambda: PermutationGroup(3, [[1, 2, 0], [1, 0, 2]]),
    "D4": lambda: PermutationGroup(5, [[1, 2, 3, 0, 4], [0, 3, 2, 1, 4]]),
    "Q8": quaternions,
    "A4": lambda: PermutationGroup(4, [[1, 2, 0, 3], [1, 0, 3, 2]]),
    "S2 x S2 swapped": lambda: ClusterGroup(
        Partition.from_labels([0, 1, 0, 1, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
    ),
    "S2^3 turned": lambda: ClusterGroup(
        Partition.from_labels([2, 0, 0, 1, 1, 2, 3]),
        swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)]),
    ),
    "S1, S3 x S3 swapped": lambda: ClusterGroup(
        Partition.from_labels([0, 1, 1, 1, 2, 2, 2]),
        swaps=PermutationGroup.from_cycles(3, [(1, 2)]),
    ),
}


@cache
def summands(group: PermutationGroup) -> list[Representation]:
    """What the group has: trivial, all signs, regular, by permutations, and an odd one."""
    acting = group
    if isinstance(group, ClusterGroup):
        acting = group.swaps or PermutationGroup(group.partition.num_clusters)
    parts = [Representation.trivial(group, 1)]
    if acting.num_generators:
        for row in np.ndindex(*(2,) * acting.num_generators):
            try:
                parts.append(Representation.from_signs(group, [[1 - 2 * s] for s in row]))
            except GroupError:
                continue
        if acting.order() <= 12:
            parts.append(Representation.regular(group))
        parts.append(Representation.from_permutation(group, acting.generators))
        parts.append(parts[-1] + parts[0])
        # A permutation of channels times signs: an odd regular representation.
        if len(parts) > 4:
            turn, base = parts[1].signs, Representation.from_permutation(group, acting.generators)
            parts.append(Representation(group, base.images, base.signs * turn))
    return parts


def representations(
    group: PermutationGroup, rng: np.random.Generator, count: int = 2, most: int | None = None
) -> Representation:
    """A random direct sum of what the group has, in mixed order of channels.

    ``count`` summands, of at most so many channels each.
    """
    parts = [p for p in summands(group) if most is None or p.num_channels <= most]
    drawn = [parts[i] for i in rng.integers(len(parts), size=count)]
    total = drawn[0]
    for part in drawn[1:]:
        total = total + part
    order = rng.permutation(total.num_channels)
    place = np.argsort(order)
    images, signs = total.images.numpy(), total.signs.numpy()
    if not len(images):
        return total
    return Representation(group, place[images[:, order]], signs[:, order])
