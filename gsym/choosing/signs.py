"""Which signs of the channels turn a permutation of nodes into a symmetry of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym._validate import GroupError
from gsym.groups import PermutationGroup, Representation
from gsym.risk.monomials import Monomials, moves_of, root_errors
from gsym.risk.samples import LeftOut

# Every pattern of the inputs takes a decomposition, every pattern of the targets a sum.
MAX_PATTERNS = 256
# Products of this many generators of the graph's automorphisms are tried.
MAX_GENERATORS = 3


@dataclass(frozen=True, eq=False)
class Signed:
    """A group with signs of the channels, and how well it predicts.

    Attributes:
        in_rep: How it moves the channels of the inputs.
        out_rep: Those of the targets; ``None`` for one number per signal, which stays.
        errors: Left-out root mean squared error of each block, in the units of the targets.
    """

    in_rep: Representation
    out_rep: Representation | None
    errors: NDArray


def characters(group: PermutationGroup) -> list[tuple[int, ...]]:
    """Signs of the generators that are a homomorphism, all 1 first.

    Example:
        >>> characters(PermutationGroup.from_cycles(5, [(0, 1, 2)], [(3, 4)]))
        [(1, 1), (1, -1)]
    """
    rows = Representation.trivial(group, 1).moves.images.size(0)
    found = []
    for signs in product((1, -1), repeat=rows):
        try:
            Representation.from_signs(group, [[sign] for sign in signs])
        except GroupError:
            continue
        found.append(signs)
    return found


def sign_patterns(
    x: NDArray,
    y: NDArray,
    group: PermutationGroup,
    left_out: LeftOut,
    *,
    invariant: bool = False,
    denoising: bool = False,
) -> list[Signed]:
    """Regress under every pattern of signs of the channels, best first.

    The regression is that of :mod:`gsym.risk.monomials` of degree 2: to a linear map, signs of all
    inputs and all targets together make no difference. Signs of the targets cost nothing but sums,
    because each channel of the targets is regressed by itself.

    Args:
        x: Inputs ``[s, n, c_in]``.
        y: Targets ``[s, n, c_out]``.
        group: A small group; signs factor through the swaps of a cluster group.
        left_out: Which signals are left out together.
        invariant: Targets are one number per signal ``[s, 1, 1]`` and keep their sign.
        denoising: Targets are the inputs without noise and change signs as they do.

    Raises:
        GroupError: More than :data:`MAX_PATTERNS` patterns of the inputs or of the targets.
    """
    signs = characters(group)
    c_in, c_out = x.shape[2], y.shape[2]
    for what, count in (("inputs", c_in), ("targets", 0 if invariant or denoising else c_out)):
        if len(signs) ** count > MAX_PATTERNS:
            raise GroupError(
                f'signs="auto" tries every pattern: {len(signs)}^{count} of the {what} under '
                f"{group} are more than {MAX_PATTERNS}; give pairs of representations as candidates"
            )

    @cache
    def rep(pattern: tuple[tuple[int, ...], ...]) -> Representation:
        return Representation.from_signs(group, [list(row) for row in zip(*pattern, strict=True)])

    flat_x, flat_y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    found = []
    for inside in product(signs, repeat=c_in):
        moves, still = moves_of(group, rep(inside), None)
        smoother = Monomials(moves.images(flat_x), 2, left_out)
        if invariant:
            targets = flat_y[:, None].repeat(len(moves.source), 1)
            errors = root_errors(smoother.errors(targets)[..., 0], 1, left_out)
            found.append(Signed(rep(inside), None, errors))
            continue
        if denoising:
            targets = moves_of(group, rep(inside), rep(inside))[1].images(flat_y)
            table = smoother.errors(targets).sum(-1)
            found.append(
                Signed(rep(inside), rep(inside), root_errors(table, flat_y.shape[1], left_out))
            )
            continue
        tables = []
        for sign in signs:
            targets = moves_of(group, rep(inside), rep((sign,) * c_out))[1].images(flat_y)
            table = smoother.errors(targets)
            tables.append(table.reshape(*table.shape[:2], -1, c_out).sum(2))
        for choice in product(range(len(signs)), repeat=c_out):
            table = sum(tables[t][..., c] for c, t in enumerate(choice))
            errors = root_errors(np.asarray(table), flat_y.shape[1], left_out)
            found.append(Signed(rep(inside), rep(tuple(signs[t] for t in choice)), errors))
    return sorted(found, key=lambda signed: signed.errors.mean())


def small_symmetries(group: PermutationGroup) -> Iterator[PermutationGroup]:
    """Groups of two elements among products of the generators, as a mirror is of its parts.

    Args:
        group: Automorphisms of a graph, say.

    Example:
        >>> arms_and_legs = PermutationGroup.from_cycles(5, [(1, 2)], [(3, 4)])
        >>> [str(group) for group in small_symmetries(arms_and_legs)]
        []
    """
    generators = group.generators[: 2**MAX_GENERATORS]
    identity = torch.arange(group.num_nodes)
    seen: set[tuple[int, ...]] = set()
    for count in range(1, MAX_GENERATORS + 1):
        for chosen in combinations(range(len(generators)), count):
            perm = identity
            for row in chosen:
                perm = generators[row][perm]
            key = tuple(perm.tolist())
            if torch.equal(perm, identity) or not torch.equal(perm[perm], identity) or key in seen:
                continue
            seen.add(key)
            yield PermutationGroup(group.num_nodes, perm[None])


def says(signed: Sequence[int]) -> str:
    raise NotImplementedError
