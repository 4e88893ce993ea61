"""Permutation groups without clusters: all three types of irreducibles, and regular ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from gsym import PermutationGroup


def cyclic(*sizes: int) -> PermutationGroup:
    """A product of cyclic groups on itself."""
    nodes = torch.arange(math.prod(sizes)).view(sizes)
    return PermutationGroup(nodes.numel(), [nodes.roll(1, k).flatten() for k in range(len(sizes))])


def square(side: int) -> PermutationGroup:
    """Turns and flips of a grid."""
    nodes = torch.arange(side**2).view(side, side)
    return PermutationGroup(side**2, [nodes.rot90().flatten(), nodes.flip(1).flatten()])


def mirror(num_nodes: int, fixed: int) -> PermutationGroup:
    """The last nodes change places in pairs."""
    pairs = [(i, i + 1) for i in range(fixed, num_nodes, 2)]
    return PermutationGroup.from_cycles(num_nodes, pairs)


def wreath(size: int, count: int) -> PermutationGroup:
    """S_size wr S_count on ``count`` sets of ``size`` nodes, from a few generators."""
    nodes = torch.arange(size * count).view(count, size)
    swap, turn = nodes.clone(), nodes.clone()
    swap[0, :2] = nodes[0, :2].flip(0)
    turn[0] = nodes[0].roll(1)
    exchange = nodes[[1, 0, *range(2, count)]]
    images = [swap, turn, exchange, nodes.roll(1, 0)]
    return PermutationGroup(size * count, [image.flatten() for image in images])


def regular(multiply: Callable[[int, int], int], size: int, *by: int) -> PermutationGroup:
    """A group on itself, from its table and what generates it."""
    return PermutationGroup(size, [[multiply(g, x) for x in range(size)] for g in by])


def _quaternions(x: int, y: int) -> int:
    """Elements ``i^a j^b`` are numbered ``2 a + b``."""
    (a, b), (c, d) = divmod(x, 2), divmod(y, 2)
    power = a + (-c if b else c) + (2 if b and d else 0)
    return power % 4 * 2 + (b + d) % 2


_THREE = list(itertools.permutations(range(3)))


def _symmetric(x: int, y: int) -> int:
    return _THREE.index(tuple(_THREE[x][i] for i in _THREE[y]))


def _product(x: int, y: int) -> int:
    (a, b), (c, d) = divmod(x, 6), divmod(y, 6)
    return _quaternions(a, c) * 6 + _symmetric(b, d)


GROUPS = {
    "trivial": PermutationGroup(9),
    "mirror": mirror(21, 7),
    "D4 on 8 x 8": square(8),
    "C13": cyclic(13),
    "Z4 x Z4 x Z4": cyclic(4, 4, 4),
    "3-cycle and swap": PermutationGroup.from_cycles(7, [(0, 1, 2)], [(3, 4)]),
    "S3 wr S2": wreath(3, 2),
    "S4 wr S6": wreath(4, 6),
    "7:3": PermutationGroup(7, [[(i + 1) % 7 for i in range(7)], [2 * i % 7 for i in range(7)]]),
    "S3": regular(_symmetric, 6, 1, 3),
    "Q8": regular(_quaternions, 8, 2, 1),
    "Q8 x S3": regular(_product, 48, 12, 6, 1, 3),
}
