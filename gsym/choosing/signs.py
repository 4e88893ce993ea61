"""Which signs of the channels turn a permutation of nodes into a symmetry of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray

from gsym.errors import GroupError
from gsym.groups import PermutationGroup, Representation
from gsym.risk.monomials import Monomials, moves_of, root_errors
from gsym.risk.samples import LeftOut

# Signs of the generators, for each channel.
Pattern = tuple[tuple[int, ...], ...]
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
    found = [(1,) * rows]
    for signs in list(product((1, -1), repeat=rows))[1:]:
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
    def rep(pattern: Pattern) -> Representation:
        rows = [list(row) for row in zip(*pattern, strict=True)]
        if not rows:
            return Representation.trivial(group, len(pattern))
        return Representation.from_signs(group, rows)

    flat_x, flat_y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    found = []
    for inside in product(signs, repeat=c_in):
        features = Monomials(moves_of(rep(inside), None)[0].images(flat_x), 2, left_out)

        @cache
        def table(
            sign: tuple[int, ...], inside: Pattern = inside, features: Monomials = features
        ) -> NDArray:
            """Squared errors of each channel, if all change their sign like this."""
            if invariant:
                targets = flat_y[:, None].repeat(features.copies, 1)
            else:
                targets = moves_of(rep(inside), rep((sign,) * c_out))[1].images(flat_y)
            errors = features.errors(targets)
            return errors.reshape(*errors.shape[:2], -1, c_out).sum(2)

        outside: Iterable[Pattern] = product(signs, repeat=c_out)
        if invariant or denoising:
            outside = [(signs[0],) if invariant else inside]
        for pattern in outside:
            total = sum(table(sign)[..., channel] for channel, sign in enumerate(pattern))
            errors, _ = root_errors(np.asarray(total), flat_y.shape[1], left_out)
            found.append(Signed(rep(inside), None if invariant else rep(pattern), errors))
    return sorted(found, key=lambda signed: float(signed.errors.mean()))


def small_symmetries(group: PermutationGroup) -> Iterator[PermutationGroup]:
    """Groups of two elements among products of the generators, as a mirror is of its parts.

    Args:
        group: Automorphisms of a graph, say.

    Example:
        >>> arms_and_legs = PermutationGroup.from_cycles(5, [(1, 2)], [(3, 4)])
        >>> [group.generators.tolist() for group in small_symmetries(arms_and_legs)]
        [[[0, 2, 1, 3, 4]], [[0, 1, 2, 4, 3]], [[0, 2, 1, 4, 3]]]
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
