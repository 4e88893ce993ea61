"""Which signs of the channels turn a permutation of nodes into a symmetry of the data.

Every pattern of signs of inputs and targets is judged by the leave-one-out error of ridge on
monomials of degree 2 (:mod:`gsym.risk.monomials`), tied by the group with these signs. To a linear
map, signs of all inputs and all targets together make no difference, so degree 1 would not do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym._validate import warn
from gsym.choosing.choice import Candidate, GroupChoice, signs_text
from gsym.choosing.criteria import ChoiceData, Entry, group_of
from gsym.errors import GroupError, SignalError
from gsym.groups import ClusterGroup, PermutationGroup, Representation, automorphisms
from gsym.groups.elements import has_at_most, list_elements
from gsym.risk.left_out import LeftOut
from gsym.risk.monomials import MAX_IMAGES, MonomialRidge, Monomials, moves_of, root_errors

SIGNS = "leave-one-out root mean squared error of ridge on monomials of degree 2"
# Signs of the generators, for each channel.
Pattern = tuple[tuple[int, ...], ...]
# Every pattern of the inputs takes a decomposition, every pattern of the targets a sum.
MAX_INPUTS, MAX_PATTERNS = 256, 1024
# Patterns of each group that a choice keeps, besides the one without signs.
KEPT = 8
# Standard deviations that a channel may lie from its origin.
MAX_OFFSET = 10
# Products of this many generators of the graph's automorphisms are tried.
MAX_GENERATORS = 3


def characters(group: PermutationGroup) -> list[tuple[int, ...]]:
    """Signs of the generators that are a homomorphism, all 1 first.

    Example:
        >>> characters(PermutationGroup.from_cycles(5, [(0, 1, 2)], [(3, 4)]))
        [(1, 1), (1, -1)]
    """
    acting = group.swaps if isinstance(group, ClusterGroup) else group
    if acting is None:
        return [()]
    m = acting.num_generators
    listed = list_elements(acting.generators.numpy(), MAX_IMAGES)
    assert listed is not None
    # Every element as a product of generators, of which only the parity counts, one bit for each;
    # a second product for the same element is a relation, whose sign is 1.
    words, relations = {0: 0}, set()
    for here in range(len(listed[0])):
        for generator, products in enumerate(listed[1]):
            word = words[here] ^ 1 << generator
            relations.add(word ^ words.setdefault(int(products[here]), word))
    solved: dict[int, int] = {}  # by the last generator of each
    for relation in relations:
        while relation and relation.bit_length() - 1 in solved:
            relation ^= solved[relation.bit_length() - 1]
        if relation:
            solved[relation.bit_length() - 1] = relation
    found = []
    for chosen in product((1, -1), repeat=m - len(solved)):
        free, signs = iter(chosen), list[int]()
        for generator in range(m):
            others = solved.get(generator, 0)
            made = math.prod(sign for i, sign in enumerate(signs) if others >> i & 1)
            signs.append(made if others else next(free))
        found.append(tuple(signs))
    return found


def sign_patterns(
    x: NDArray,
    y: NDArray,
    group: PermutationGroup,
    left_out: LeftOut,
    *,
    invariant: bool = False,
    denoising: bool = False,
) -> list[Candidate]:
    """Regress under every pattern of signs of the channels, best first.

    Signs of the targets cost nothing but sums, because each channel of the targets is regressed by
    itself.

    Args:
        x: Inputs ``[s, n, c_in]``.
        y: Targets ``[s, n, c_out]``.
        group: A small group; signs factor through the swaps of a cluster group.
        left_out: Which signals are left out together.
        invariant: Targets are one number per signal ``[s, 1, 1]`` and keep their sign.
        denoising: Targets are the inputs without noise and change signs as they do.

    Returns:
        A candidate per pattern, whose errors are root mean squares in the units of the targets.

    Raises:
        GroupError: More than :data:`MAX_INPUTS` patterns of the inputs, or :data:`MAX_PATTERNS`.
    """
    signs = characters(group)
    c_in, c_out = x.shape[2], y.shape[2]
    # A channel that never varies would tell an image from its original, and the symmetry nothing.
    choices = [signs if np.ptp(x[..., c]) > 0 else signs[:1] for c in range(c_in)]
    outside_choices = [signs if np.ptp(y[..., c]) > 0 else signs[:1] for c in range(c_out)]
    inputs = math.prod(map(len, choices))
    targets = 1 if invariant or denoising else math.prod(map(len, outside_choices))
    if inputs > MAX_INPUTS or inputs * targets > MAX_PATTERNS:
        raise GroupError(
            f'signs="auto" tries every pattern of signs: {inputs:,} of the inputs times '
            f"{targets:,} of the targets under {group} are more than {MAX_INPUTS} or "
            f"{MAX_PATTERNS:,} in all; give pairs of representations as candidates"
        )

    @cache
    def rep(pattern: Pattern) -> Representation:
        rows = [list(row) for row in zip(*pattern, strict=True)]
        if not rows:
            return Representation.trivial(group, len(pattern))
        return Representation.from_signs(group, rows)

    flat_x, flat_y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    found = []
    for inside in product(*choices):
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

        outside: Iterable[Pattern] = product(*outside_choices)
        if invariant or denoising:
            outside = [(signs[0],) if invariant else inside]
        for pattern in outside:
            total = sum(table(sign)[..., channel] for channel, sign in enumerate(pattern))
            errors, _ = root_errors(np.asarray(total), flat_y.shape[1], left_out)
            out_rep = None if invariant else rep(pattern)
            found.append(Candidate(group, errors, in_rep=rep(inside), out_rep=out_rep))
    return sorted(found, key=lambda candidate: candidate.score)


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


def judge_signs(groups: Sequence[Entry], data: ChoiceData) -> list[Candidate]:
    """The best patterns of signs of each group, and the one without signs.

    Args:
        groups: Groups of up to 64 elements, and pairs of their representations, which stay.
        data: The signals.

    Raises:
        GroupError: A larger group, or too many patterns.
        SignalError: Missing entries or standardised signals, or too many to decompose.
    """
    samples = data.samples
    if not samples.is_plain:
        raise SignalError(
            'signs="auto" needs signals that are complete and as they come: fill them, and leave '
            "standardize, mask and missing out"
        )
    x, y = samples.given
    _warn_offsets(x, "x")
    found: list[Candidate] = []
    for group in groups:
        if isinstance(group, tuple):
            fit = MonomialRidge(x, y, *group, samples.left_out)
            found.append(Candidate(group_of(group), fit.errors, in_rep=group[0], out_rep=group[1]))
            continue
        ordered = sign_patterns(
            x, y, group, samples.left_out, invariant=samples.invariant, denoising=data.denoising
        )
        plain = [c for c in ordered if not signs_text(c.in_rep, c.out_rep)]
        best, *others = dict.fromkeys([*ordered[:KEPT], *plain])
        dropped = len(ordered) - 1 - len(others)
        found += [replace(best, tried=1 + dropped), *others]
    return found


def _warn_offsets(values: NDArray, what: str) -> None:
    """Warn of channels whose origin is far from their values: products hardly see their signs."""
    mean, spread = np.abs(values.mean((0, 1))), values.std((0, 1))
    far = np.flatnonzero((mean > MAX_OFFSET * spread) & (spread > 1e-12 * mean))
    if len(far):
        warn(
            f"channel {far[0]} of {what} lies {mean[far[0]] / spread[far[0]]:.0f} standard "
            "deviations from 0: its sign cannot be told, and others may be mistaken; measure it "
            "from a place that the symmetry keeps"
        )


def is_small(entry: Entry) -> bool:
    """Whether a candidate has few enough elements to be judged with signs."""
    return has_at_most(group_of(entry), MAX_IMAGES)


def small_groups(
    groups: Sequence[Entry], edge_index: Tensor | None, edge_weight: Tensor | None, n: int
) -> list[Entry]:
    """No symmetry, the small ones of the candidates, and exchanges that keep the graph.

    Raises:
        GroupError: There are none but the trivial group.
    """
    trivial = PermutationGroup.trivial(n)
    small = [entry for entry in groups if is_small(entry) and group_of(entry).order() > 1]
    found: list[Entry] = list(dict.fromkeys(small))
    alone = [entry for entry in found if isinstance(entry, PermutationGroup)]
    known = {tuple(g.generators[0].tolist()) for g in alone if g.num_generators == 1}
    if edge_index is not None:
        kept = automorphisms(edge_index, n, edge_weight)
        for group in small_symmetries(kept) if kept.exact else ():
            if tuple(group.generators[0].tolist()) not in known:
                found.append(group)
    if not found:
        raise GroupError(
            f'signs="auto" found no group of 2 to {MAX_IMAGES} elements: the candidates have none, '
            "and the graph has no exchange of nodes, or was not given; add a group such as "
            "gsym.PermutationGroup.from_cycles(n, pairs)"
        )
    return [trivial, *found]


def best_signs(choice: GroupChoice) -> list[Entry]:
    """The best pattern of each group of a choice of signs, where some channel changes its sign."""
    best: dict[PermutationGroup, Candidate] = {}
    for candidate in choice.candidates:
        known = best.get(candidate.group)
        if known is None or candidate.score < known.score:
            best[candidate.group] = candidate
    return [
        (candidate.in_rep, candidate.out_rep)
        for candidate in best.values()
        if candidate.in_rep is not None and signs_text(candidate.in_rep, candidate.out_rep)
    ]
