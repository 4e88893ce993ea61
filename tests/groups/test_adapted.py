"""The symmetry-adapted basis against averaging over the group, and its certificate."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.groups import Orbits, adapted
from gsym.groups.adapted import AdaptedBasis, find_basis
from gsym_bench.kernels.groups import GROUPS, cyclic

# S4 wr S6 has 10^11 elements.
SMALL = {name: GROUPS[name] for name in GROUPS if name != "S4 wr S6"}
by_name = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


def elements(group: PermutationGroup) -> list[torch.Tensor]:
    """Every element of a small group, from its generators alone."""
    found = {tuple(range(group.num_nodes))}
    frontier = list(found)
    generators = group.generators.tolist()
    while frontier:
        images = {tuple(g[i] for i in perm) for perm in frontier for g in generators}
        frontier = list(images - found)
        found |= images
    return [torch.tensor(perm) for perm in sorted(found)]


def basis_of(group: PermutationGroup) -> AdaptedBasis:
    found = group.adapted_basis
    assert found.basis is not None, found.reason
    return found.basis


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@by_name
class TestAdaptedBasis:
    def test_has_all_that_commutes(self, group):
        basis = basis_of(group)
        assert sum(c.field * c.copies**2 for c in basis.components) == group.commutant_dim()
        assert sum(c.dim * c.copies for c in basis.components) == group.num_nodes
        assert sum(s.rows * s.blocks * s.width for s in basis.shapes) == group.num_nodes
        torch.testing.assert_close(
            basis.matrix.T @ basis.matrix, torch.eye(group.num_nodes).double()
        )

    def test_gives_the_matrix_with_one_weight_per_orbit(self, group):
        weight = normal(group.commutant_dim())
        dense = weight[group.pair_orbits().index]
        torch.testing.assert_close(basis_of(group).expand(weight), dense, rtol=0, atol=1e-12)

    def test_has_an_inverse(self, group):
        basis, weight = basis_of(group), normal(group.commutant_dim(), 2)
        blocks = basis.to_blocks(weight)
        assert [b.shape for b in blocks] == [(s.blocks, s.width, s.width, 2) for s in basis.shapes]
        torch.testing.assert_close(basis.from_blocks(blocks), weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", SMALL.values(), ids=SMALL)
def test_the_mean_over_the_group_is_block_diagonal(group):
    n, basis = group.num_nodes, basis_of(group)
    mean = torch.zeros(n, n, dtype=torch.float64)
    matrix, every = normal(n, n), elements(group)
    for perm in every:
        mean[perm[:, None], perm] += matrix / len(every)
    # Any pair of an orbit has the weight of the orbit.
    weight = mean.new_empty(basis.num_orbits)
    weight[group.pair_orbits().index] = mean
    torch.testing.assert_close(basis.expand(weight), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("Q8", [(1, 1, 1)] * 4 + [(4, 1, 4)]),
        ("C13", [(1, 1, 1)] + [(2, 1, 2)] * 6),
        ("7:3", [(1, 1, 1), (6, 1, 2)]),
        ("S3 wr S2", [(1, 1, 1)] * 2 + [(4, 1, 1)]),
        ("Q8 x S3", [(1, 1, 1)] * 8 + [(2, 2, 1)] * 4 + [(4, 1, 4)] * 2 + [(8, 2, 4)]),
        ("D4 on 8 x 8", [(1, 6, 1)] * 2 + [(1, 10, 1)] * 2 + [(2, 16, 1)]),
        ("trivial", [(1, 9, 1)]),
    ],
)
def test_components_are_those_of_the_character_table(name, components):
    assert sorted(basis_of(GROUPS[name]).components) == sorted(components)


def test_shapes_join_blocks_of_one_size():
    # A block of two real copies and one of a complex one are 2 x 2 alike.
    shapes = basis_of(PermutationGroup.from_cycles(5, [(0, 1, 2)], [(3, 4)])).shapes
    assert [tuple(shape) for shape in shapes] == [(0, 1, 1, 1), (1, 1, 2, 2)]


class TestCertificate:
    """Planted faults: none may pass for a basis."""

    def test_refuses_a_wrong_sign_of_i(self, monkeypatch):
        standard = adapted._standard

        def wrong(elements, near):
            frame, units = standard(elements, near)
            if len(units) > 1:
                frame[:, -1] *= -1
            return frame, units

        monkeypatch.setattr(adapted, "_standard", wrong)
        for name in ("7:3", "Q8 x S3"):
            basis, reason = find_basis(GROUPS[name].pair_orbits())
            assert basis is None and "outside of the blocks" in reason

    def test_refuses_copies_that_are_not_aligned(self, monkeypatch):
        svd = np.linalg.svd

        def turned(blocks):
            left, strength, right = svd(blocks)
            return np.broadcast_to(np.eye(left.shape[-1]), left.shape), strength, right

        monkeypatch.setattr(np.linalg, "svd", turned)
        basis, reason = find_basis(GROUPS["D4 on 8 x 8"].pair_orbits())
        assert basis is None and "outside of the blocks" in reason

    def test_refuses_a_coefficient_that_is_wrong(self, monkeypatch):
        coefficients = adapted._Search._coefficients

        def untied(self, parts):
            entry, orbit, values = coefficients(self, parts)
            values[-1] += 1e-6
            return entry, orbit, values

        monkeypatch.setattr(adapted._Search, "_coefficients", untied)
        assert find_basis(GROUPS["C13"].pair_orbits()).basis is None

    def test_refuses_tables_that_no_group_has(self):
        # Two orbits made one: the matrices are no algebra any more.
        index = cyclic(7).pair_orbits().index
        basis, reason = find_basis(Orbits.from_keys(torch.where(index == 2, 1, index)))
        assert basis is None and reason

    def test_says_what_is_too_large(self, monkeypatch):
        monkeypatch.setattr(adapted, "MAX_ORBIT", 12)
        basis, reason = find_basis(GROUPS["C13"].pair_orbits())
        assert basis is None and "13 nodes" in reason and "at most 12" in reason


def test_is_found_once_and_no_part_of_the_group():
    group = cyclic(5)
    before = pickle.dumps(group)
    assert group.adapted_basis is group.adapted_basis
    assert pickle.dumps(group) == before and group == cyclic(5)


def test_is_the_same_in_every_search():
    orbits = GROUPS["Q8 x S3"].pair_orbits()
    first, second = find_basis(orbits).basis, find_basis(orbits).basis
    assert first is not None and second is not None and torch.equal(first.matrix, second.matrix)


def test_is_found_under_another_default_device():
    group = cyclic(4)
    with torch.device("meta"):
        basis = group.adapted_basis.basis
    assert basis is not None and basis.matrix.is_cpu


def test_of_clusters_with_swaps():
    group = ClusterGroup(Partition([0, 0, 1, 1, 2, 2]), swaps=cyclic(3))
    weight = normal(group.commutant_dim())
    dense = weight[group.pair_orbits().index]
    torch.testing.assert_close(basis_of(group).expand(weight), dense, rtol=0, atol=1e-12)
