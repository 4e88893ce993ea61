"""Signs of channels are found on data that have them, and not on data that have none."""

import numpy as np
import pytest

from gsym.choosing.signs import characters, sign_patterns, small_symmetries
from gsym.errors import GroupError
from gsym.groups import PermutationGroup, Representation
from gsym.risk.monomials import MonomialRidge, moves_of
from gsym.risk.samples import LeftOut

MIRROR = PermutationGroup.from_cycles(6, [(0, 1), (2, 3)])


def truth(in_rep, out_rep, count, seed=0, symmetric=True):
    """Signals, and targets by a random map of degree 2, made equivariant, with noise."""
    random = np.random.default_rng(seed)
    moves_in, moves_out = moves_of(in_rep, out_rep)
    width, outputs = moves_in.source.shape[1], moves_out.source.shape[1]
    linear = random.normal(size=(width, outputs)) / width**0.5
    pairs = random.integers(0, width, (2, 3 * outputs))
    products = random.normal(size=(3 * outputs, outputs)) / (3 * outputs) ** 0.5
    x = random.normal(size=(count, width))

    def f(values):
        return values @ linear + (values[:, pairs[0]] * values[:, pairs[1]]) @ products

    y = f(x)
    if symmetric:
        # All groups here are their own inverses.
        images = moves_in.images(x)
        back = [moves_out.images(f(images[:, e]))[:, e] for e in range(images.shape[1])]
        y = np.mean(back, axis=0)
    y = y + 0.3 * y.std() * random.normal(size=y.shape)
    n = in_rep.group.num_nodes
    return x.reshape(count, n, -1), y.reshape(count, n, -1)


@pytest.mark.parametrize(
    ("signs_in", "signs_out"), [([-1, 1], [1, -1]), ([1, 1], [1, 1]), ([-1, -1], [-1, 1])]
)
def test_the_true_pattern_comes_first(signs_in, signs_out):
    in_rep = Representation.from_signs(MIRROR, [signs_in])
    out_rep = Representation.from_signs(MIRROR, [signs_out])
    x, y = truth(in_rep, out_rep, 100)
    found = sign_patterns(x, y, MIRROR, LeftOut(100, 1))
    assert len(found) == 16
    assert found[0].in_rep == in_rep
    assert found[0].out_rep == out_rep
    trivial = PermutationGroup.trivial(6)
    [none] = sign_patterns(x, y, trivial, LeftOut(100, 1))
    assert found[0].errors.mean() < none.errors.mean()


def test_no_pattern_where_there_is_none():
    in_rep = out_rep = Representation.trivial(MIRROR, 2)
    x, y = truth(in_rep, out_rep, 100, symmetric=False)
    [none] = sign_patterns(x, y, PermutationGroup.trivial(6), LeftOut(100, 1))
    found = sign_patterns(x, y, MIRROR, LeftOut(100, 1))
    assert none.errors.mean() < found[0].errors.mean()


def test_every_pattern_is_its_own_regression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6, 2)), rng.normal(size=(12, 6, 2))
    for signed in sign_patterns(x, y, MIRROR, LeftOut(12, 1)):
        fit = MonomialRidge(x, y, signed.in_rep, signed.out_rep, LeftOut(12, 1))
        np.testing.assert_allclose(signed.errors, fit.errors, rtol=1e-9)
    for signed in sign_patterns(x, y, MIRROR, LeftOut(12, 1), denoising=True):
        assert signed.out_rep == signed.in_rep
        fit = MonomialRidge(x, y, signed.in_rep, signed.in_rep, LeftOut(12, 1))
        np.testing.assert_allclose(signed.errors, fit.errors, rtol=1e-9)
    number = y[:, :1, :1]
    for signed in sign_patterns(x, number, MIRROR, LeftOut(12, 1), invariant=True):
        assert signed.out_rep is None
        fit = MonomialRidge(x, number, signed.in_rep, None, LeftOut(12, 1))
        np.testing.assert_allclose(signed.errors, fit.errors, rtol=1e-9)


def test_characters_are_homomorphisms():
    turn_and_swap = PermutationGroup.from_cycles(5, [(0, 1, 2)], [(3, 4)])
    assert characters(turn_and_swap) == [(1, 1), (1, -1)]
    assert len(characters(PermutationGroup.from_cycles(4, [(0, 1)], [(2, 3)]))) == 4
    assert characters(PermutationGroup.trivial(3)) == [()]


def test_products_of_automorphisms_of_order_two():
    group = PermutationGroup.from_cycles(7, [(0, 1)], [(2, 3)], [(4, 5, 6)])
    found = [small.generators[0].tolist() for small in small_symmetries(group)]
    assert found == [[1, 0, 2, 3, 4, 5, 6], [0, 1, 3, 2, 4, 5, 6], [1, 0, 3, 2, 4, 5, 6]]


def test_too_many_patterns_are_refused():
    x = np.random.default_rng(0).normal(size=(10, 6, 9))
    with pytest.raises(GroupError, match=r"2\^9 of the inputs .* give pairs of representations"):
        sign_patterns(x, x, MIRROR, LeftOut(10, 1))
