"""Signs of channels are found on data that have them, and not on data that have none."""

import numpy as np
import pytest
import torch

from gsym import Partition, SubgroupSearch, choose_group
from gsym.choosing.page.page import code
from gsym.choosing.signs import characters, sign_patterns, small_symmetries
from gsym.errors import GroupError, SignalError
from gsym.groups import ClusterGroup, PermutationGroup, Representation
from gsym.risk.left_out import LeftOut
from gsym.risk.monomials import MonomialRidge, moves_of
from gsym.risk.ridge import commutant_ridge

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
    with pytest.raises(GroupError, match=r"512 of the inputs .* give pairs of representations"):
        sign_patterns(x, x, MIRROR, LeftOut(10, 1))


def poses(count, seed=0):
    in_rep = Representation.from_signs(MIRROR, [[-1, 1]])
    out_rep = Representation.from_signs(MIRROR, [[1, -1]])
    return truth(in_rep, out_rep, count, seed), (in_rep, out_rep)


def test_choice_among_small_groups_is_made_with_signs():
    (x, y), (in_rep, out_rep) = poses(100)
    choice = choose_group([Partition.singletons(6), MIRROR], x, y, signs="auto")
    assert choice.in_rep == in_rep
    assert choice.out_rep == out_rep
    assert choice.signs is None
    assert "with x0 -> -x0, y1 -> -y1" in choice.best.name
    sentence = "Nodes 0 and 1, 2 and 3 are interchangeable if channel 0 of x and 1 of y change sign"
    assert f"\n{sentence}.\n" in str(choice) and str(choice).endswith(choice.answer)
    assert choice.answer.startswith(sentence)
    # No symmetry, and the exchange without signs, are among the candidates.
    names = {candidate.name for candidate in choice.candidates}
    assert {str(PermutationGroup.trivial(6)), str(MIRROR)} <= names
    assert sum(candidate.tried for candidate in choice.candidates) == 17


def test_large_candidates_are_judged_by_the_criterion():
    (x, y), (in_rep, out_rep) = poses(100)
    choice = choose_group(
        [Partition.singletons(6), MIRROR, Partition.single(6)], x, y, signs="auto"
    )
    assert choice.signs.in_rep == in_rep
    found = [c for c in choice.candidates if c.in_rep is not None]
    assert [(c.in_rep, c.out_rep) for c in found] == [(in_rep, out_rep)]
    fit = commutant_ridge(x, y, MIRROR, in_rep=in_rep, out_rep=out_rep)
    assert found[0].score == pytest.approx(fit.risk)
    assert choice.best is found[0]
    assert "Nodes 0 and 1, 2 and 3" in str(choice)


def test_exchanges_come_from_the_graph():
    (x, y), (in_rep, _) = poses(100)
    # Two arms of two nodes at one node, and a tail that cannot move.
    edges = [(0, 2), (1, 3), (2, 4), (3, 4), (4, 5)]
    edge_index = torch.tensor(edges + [(b, a) for a, b in edges]).T
    choice = choose_group([Partition.singletons(6)], x, y, signs="auto", edge_index=edge_index)
    assert choice.group == PermutationGroup(6, MIRROR.generators)
    assert choice.in_rep.signs.tolist() == in_rep.signs.tolist()


def test_pairs_of_representations_are_candidates():
    (x, y), pair = poses(60)
    unsigned = tuple(Representation.trivial(MIRROR, 2) for _ in range(2))
    choice = choose_group([unsigned, pair], x, y)
    assert (choice.in_rep, choice.out_rep) == pair
    scores = choice.scores
    assert len(scores) == 2
    assert scores[choice.best.name] < max(scores.values())
    seen = []

    def score(group, x_train, y_train, x_val, y_val):
        seen.append(group)
        return 1.0

    choose_group([unsigned, pair], x, y, score=score)
    assert set(seen) == {unsigned, pair}


def test_page_says_it_and_its_code_runs(tmp_path):
    (x, y), pair = poses(60)
    choice = choose_group([MIRROR], x, y, signs="auto")
    page = choice.report(tmp_path / "page.html").read_text()
    assert "are interchangeable if channel 0 of x and 1 of y change sign." in page
    built, _ = code(choice.best, 0)
    names = {}
    exec(built, names)
    assert names["in_rep"].signs.tolist() == pair[0].signs.tolist()
    assert names["layer"](torch.randn(3, 6, 2)).shape == (3, 6, 2)


def test_what_is_refused():
    (x, y), (in_rep, out_rep) = poses(30)
    with pytest.raises(ValueError, match=r'signs must be "auto" or None; got .*from_signs'):
        choose_group([MIRROR], x, y, signs=[[-1, 1]])
    with pytest.raises(ValueError, match="leave score and criterion out"):
        choose_group([MIRROR], x, y, signs="auto", score=lambda *a: 1.0)
    with pytest.raises(GroupError, match="found no group of 2 to 64 elements"):
        choose_group([Partition.single(6)], x, y, signs="auto")
    with pytest.raises(SignalError, match="complete and as they come"):
        choose_group([MIRROR], x, y, signs="auto", standardize="node")
    with pytest.raises(TypeError, match=r"must be \(in_rep, out_rep\), .*got \(Representation\)"):
        choose_group([(in_rep,)], x, y)
    other = Representation.from_signs(PermutationGroup.from_cycles(6, [(0, 5)]), [[1, 1]])
    with pytest.raises(GroupError, match="the representation is of"):
        choose_group([(in_rep, other)], x, y)
    with pytest.raises(GroupError, match="moves 2 channels but the signals have 1"):
        choose_group([(in_rep, out_rep)], x[..., :1], y)


def test_the_estimator_predicts_with_the_signs():
    (x, y), pair = poses(60)
    search = SubgroupSearch([pair]).fit(x, y)
    new = torch.from_numpy(x[:3])
    moved = search.predict(pair[0].act(MIRROR.generators[0], new).numpy())
    right = pair[1].act(MIRROR.generators[0], torch.from_numpy(search.predict(x[:3])))
    np.testing.assert_allclose(moved, right.numpy(), atol=1e-10)


def test_generators_that_others_make_cost_nothing():
    turns = [np.roll(range(24), k).tolist() for k in range(1, 24)]
    found = characters(PermutationGroup(24, turns))
    assert found == [(1,) * 23, tuple((-1) ** k for k in range(1, 24))]


def test_a_constant_channel_has_no_sign_and_an_offset_is_warned_of():
    (x, y), (in_rep, _) = poses(100)
    constant = np.concatenate([x, np.full_like(x[..., :1], 30.1)], -1)
    best = choose_group([MIRROR], constant, y, signs="auto").best
    assert best.in_rep.signs.tolist() == [[*in_rep.signs[0].tolist(), 1]]
    with pytest.warns(UserWarning, match=r"channel 1 of x lies .* standard deviations from 0"):
        choose_group([MIRROR], x + np.array([0, 100.0]), y, signs="auto")
    small = choose_group([MIRROR], x * [1e-13, 1], y, signs="auto").best
    assert small.in_rep == in_rep
    still = np.broadcast_to(x[:1], x.shape).copy()
    assert choose_group([MIRROR], still, y, signs="auto").best.score > 0


def test_given_pairs_stay_and_groups_are_judged_once():
    (x, y), pair = poses(60)
    given = Representation.from_permutation(MIRROR, [[1, 0]])
    choice = choose_group([MIRROR, MIRROR, (given, given), pair], x, y, signs="auto")
    assert sum(c.in_rep == given for c in choice.candidates) == 1
    assert sum(c.tried for c in choice.candidates) == 1 + 16 + 2


def test_groups_that_permute_within_clusters():
    group = ClusterGroup(
        Partition.from_labels([0, 0, 1, 1, 2, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
    )
    x = np.random.default_rng(0).normal(size=(60, 6))
    a, b = x[:, 0] + x[:, 1], x[:, 2] + x[:, 3]
    y = np.stack([a, a, b, b, a * a - b * b, a * a - b * b], 1)
    choice = choose_group([Partition.single(6), group], x, y, signs="auto")
    assert choice.signs is not None


def test_the_code_of_an_invariant_choice_has_the_signs():
    (x, _), _ = poses(60)
    choice = choose_group([MIRROR], x, (x[:, 0, 0] - x[:, 1, 0]) ** 2, signs="auto")
    names = {}
    exec(code(choice.best, 0)[0], names)
    assert names["layer"](torch.randn(3, 6, 2)).shape == (3, 6, 1)
