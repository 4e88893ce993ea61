"""Automorphism groups against brute force, known orders and hostile graphs, with every solver."""

import importlib.util
import itertools
import math
from unittest import mock

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networkx.algorithms.isomorphism import DiGraphMatcher

from gsym import ClusterGroup, Partition, PermutationGroup, automorphisms
from gsym.errors import GraphError, GroupError, SolverUnavailableError
from gsym.groups import _search, automorphism, equitable_partition
from gsym.groups.chain import StabiliserChain

SOLVERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(package) is None,
            reason=f'{package} is not installed; the extra "sym" has it',
        ),
    )
    for name, package in automorphism.SOLVERS.items()
]

KNOWN = {
    "petersen": (nx.petersen_graph, 120),
    "heawood": (nx.heawood_graph, 336),
    "pappus": (nx.pappus_graph, 216),
    "desargues": (nx.desargues_graph, 240),
    "dodecahedral": (nx.dodecahedral_graph, 120),
    "icosahedral": (nx.icosahedral_graph, 120),
    "cubical": (nx.cubical_graph, 48),
    "frucht": (nx.frucht_graph, 1),
    "tutte": (nx.tutte_graph, 3),
    "grid 8x8": (lambda: nx.grid_2d_graph(8, 8), 8),
    "grid 28x28": (lambda: nx.grid_2d_graph(28, 28), 8),
    "path": (lambda: nx.path_graph(9), 2),
    "cycle": (lambda: nx.cycle_graph(9), 18),
    "star": (lambda: nx.star_graph(6), 720),
    "complete": (lambda: nx.complete_graph(6), 720),
    "complete bipartite": (lambda: nx.complete_bipartite_graph(3, 4), 144),
    "complete bipartite, equal": (lambda: nx.complete_bipartite_graph(3, 3), 72),
    "octahedron": (lambda: nx.complete_multipartite_graph(2, 2, 2), 48),
    "empty": (lambda: nx.empty_graph(5), 120),
    "one node": (lambda: nx.empty_graph(1), 1),
    "ternary tree": (lambda: nx.balanced_tree(3, 2), 6**4),
    "hypercube": (lambda: nx.hypercube_graph(4), 384),
    "binary tree": (lambda: nx.balanced_tree(2, 6), 2**63),
    "five pentagons": (lambda: nx.disjoint_union_all([nx.cycle_graph(5)] * 5), 10**5 * 120),
}


def in_process():
    """Let the search run in this process, where it starts at once."""
    return mock.patch.object(
        automorphism,
        "_in_worker",
        lambda edges, colour, points, solver, _: _search.search(edges, colour, points, solver),
    )


def both_ways(graph):
    graph = nx.convert_node_labels_to_integers(graph)
    edges = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2).t()
    return torch.cat([edges, edges.flip(0)], 1), len(graph)


def star(leaves):
    return torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)])


def cai_furer_immerman(base):
    """The CFI graph: refinement sees regular graphs, although few permutations are symmetries.

    A vertex of ``base`` becomes one vertex for each even set of its edges, and each end of an edge
    a pair of vertices, for "in the set" and "not in the set".
    """
    number, edges = {}, []

    def vertex(*name):
        return number.setdefault(name, len(number))

    for v in base:
        for chosen in itertools.product((0, 1), repeat=base.degree(v)):
            if sum(chosen) % 2 == 0:
                edges += [
                    (vertex(v, chosen), vertex(v, u, bit))
                    for u, bit in zip(base[v], chosen, strict=True)
                ]
    for u, v in base.edges:
        edges += [(vertex(u, v, bit), vertex(v, u, bit)) for bit in (0, 1)]
    edges = torch.tensor(edges).t()
    return torch.cat([edges, edges.flip(0)], 1), len(number)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", KNOWN)
def test_known_orders(name, solver):
    build, order = KNOWN[name]
    edges, n = both_ways(build())
    with in_process():
        group = automorphisms(edges, n, solver=solver)
    assert group.order() == order
    assert group.exact
    assert group.num_nodes == n
    assert group.preserves(edges)
    perm = group.sample(generator=torch.Generator().manual_seed(0))
    assert group.contains(perm)
    assert PermutationGroup(n, perm[None]).preserves(edges)
    if n <= 12:
        assert PermutationGroup(n, group.generators).order() == order
    assert equitable_partition(edges, n).num_clusters <= group.node_orbits().num_orbits


def symmetric_matrix(rng, n, directed, weights, loops):
    """Entries that a random permutation keeps; NaN is no edge."""
    perm = rng.permutation(n)
    A = np.full((n, n), np.nan)
    done = np.zeros((n, n), dtype=bool)
    density = rng.random()
    for i, j in itertools.product(range(n), range(n)):
        if done[i, j]:
            continue
        drawn = rng.random() < density and (i != j or loops)
        value = float(rng.integers(0, weights)) if drawn else np.nan
        a, b = i, j
        while not done[a, b]:
            for x, y in [(a, b)] if directed else [(a, b), (b, a)]:
                A[x, y], done[x, y] = value, True
            a, b = int(perm[a]), int(perm[b])
    return A


def brute_force(A, labels):
    """Every isomorphism of the graph with itself that networkx finds."""
    graph = nx.DiGraph()
    graph.add_nodes_from((i, {"label": label}) for i, label in enumerate(labels))
    for i, j in np.argwhere(~np.isnan(A)).tolist():
        graph.add_edge(i, j, weight=A[i, j])
    matcher = DiGraphMatcher(
        graph,
        graph,
        node_match=lambda a, b: a["label"] == b["label"],
        edge_match=lambda a, b: a["weight"] == b["weight"],
    )
    return {tuple(m[i] for i in range(len(labels))) for m in matcher.isomorphisms_iter()}


@pytest.mark.parametrize("solver", SOLVERS)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 6),
    directed=st.booleans(),
    weights=st.integers(1, 4),
    loops=st.booleans(),
    kinds=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(solver, seed, n, directed, weights, loops, kinds):
    rng = np.random.default_rng(seed)
    A = symmetric_matrix(rng, n, directed, weights, loops)
    labels = rng.integers(0, kinds, n).tolist()
    edges = torch.from_numpy(np.argwhere(~np.isnan(A)).T.copy())
    value = torch.from_numpy(A[~np.isnan(A)])
    known = brute_force(A, labels)
    with in_process():
        group = automorphisms(edges, n, value, labels, solver=solver)
    assert group.order() == len(known)
    assert {p for p in itertools.permutations(range(n)) if group.contains(p)} == known
    assert tuple(group.sample(generator=torch.Generator().manual_seed(seed)).tolist()) in known
    assert group.preserves(edges, value)
    # Orbits as the elements give them.
    index = group.node_orbits().index
    for i in range(n):
        assert {j for j in range(n) if index[j] == index[i]} == {p[i] for p in known}


class TestStructure:
    def test_a_large_star_is_one_factor(self):
        group = automorphisms(star(20000), 20001)
        assert isinstance(group, ClusterGroup)
        assert repr(group) == "ClusterGroup(S_1 x S_20000 on 20001 nodes)"
        assert group.order() == math.factorial(20000)
        assert group.swaps is None
        assert group.num_generators == 2
        assert group.node_orbits().num_orbits == 2
        assert group.contains(group.sample())
        assert not group.contains(torch.arange(20001).roll(1))

    def test_twins_of_the_quotient_are_swaps(self):
        assert repr(automorphisms(*both_ways(nx.complete_bipartite_graph(3, 3)))) == (
            "ClusterGroup((S_3)^2 x| S_2 on 6 nodes)"
        )
        pairs = torch.arange(20000).view(2, 10000)
        group = automorphisms(torch.cat([pairs, pairs.flip(0)], 1), 20000)
        assert group.order() == 2**10000 * math.factorial(10000)
        assert isinstance(group.swaps, ClusterGroup)
        assert group.contains(group.sample())

    def test_many_classes_need_no_table_of_generators(self):
        """Stars of 2 to 5 leaves by the thousand: swaps among the hubs of equal stars only."""
        size = torch.arange(8000) % 4 + 2
        hub = torch.arange(8000)
        leaf = torch.arange(8000, 8000 + int(size.sum()))
        edges = torch.stack([hub.repeat_interleave(size), leaf])
        labels = torch.cat([hub, torch.full((leaf.numel(),), -1)])
        group = automorphisms(edges, 8000 + leaf.numel(), node_labels=labels)
        assert group.order() == math.prod(math.factorial(c) ** 2000 for c in (2, 3, 4, 5))
        assert group.contains(group.sample())

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_tree_has_leaf_twins_and_swaps_of_branches(self, solver):
        with in_process():
            group = automorphisms(*both_ways(nx.balanced_tree(3, 2)), solver=solver)
        assert sorted(group.partition.sizes) == [1, 1, 1, 1, 3, 3, 3]
        assert group.swaps.order() == 6
        assert "order 6>" in repr(group)
        three_cycle = [0, 2, 3, 1, 7, 8, 9, 10, 11, 12, 4, 5, 6]
        assert group.contains(three_cycle)
        assert not group.contains([0, 2, 3, 1, *range(4, 13)])

    def test_weights_labels_loops_and_directions_are_respected(self):
        spokes = star(4)
        weight = torch.tensor([1.0, 1.0, 1.0, 2.0])
        assert automorphisms(spokes, 5).order() == 24
        assert automorphisms(spokes, 5, weight).order() == 6
        assert automorphisms(spokes, 5, node_labels=[0, 9, 9, -4, -4]).order() == 4
        looped = torch.cat([spokes, torch.tensor([[1], [1]])], 1)
        assert automorphisms(looped, 5).order() == 6
        one_turned = spokes.clone()
        one_turned[:, 0] = spokes[:, 0].flip(0)
        assert automorphisms(one_turned, 5).order() == 6
        # Parallel edges are one edge with their summed weight.
        doubled = torch.cat([spokes, spokes[:, 3:]], 1)
        assert automorphisms(doubled, 5).order() == 6
        assert automorphisms(doubled, 5, torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0])).order() == 24

    def test_colliding_hashes_are_found_out(self, monkeypatch):
        honest, salts = _search.mix, []

        def weak(salt, *columns):
            salts.append(salt)
            return honest(salt, *columns) if salt else np.ones(columns[0].shape, dtype=np.uint64)

        monkeypatch.setattr(automorphism, "mix", weak)
        edges, n = both_ways(nx.star_graph(3))
        assert automorphisms(edges, n).order() == 6
        assert {0, 1} <= set(salts)


class TestWorker:
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_finds_what_is_found_here(self, solver):
        edges, n = both_ways(nx.petersen_graph())
        there = automorphisms(edges, n, solver=solver, time_budget=60)
        with in_process():
            here = automorphisms(edges, n, solver=solver)
        assert torch.equal(there.generators, here.generators)
        assert there.order() == here.order() == 120
        assert there.exact

    @pytest.mark.parametrize("solver", SOLVERS[:1])
    def test_a_large_grid(self, solver):
        edges, n = both_ways(nx.grid_2d_graph(100, 100))
        group = automorphisms(edges, n, solver=solver, time_budget=60)
        assert group.order() == 8
        assert group.exact
        assert group.preserves(edges)
        assert group.contains(group.sample())
        assert not group.contains(torch.arange(n).roll(1))

    def test_a_hard_graph_gives_an_upper_bound_and_says_so(self):
        edges, n = cai_furer_immerman(nx.random_regular_graph(4, 600, seed=1))
        group = automorphisms(edges, n, time_budget=1)
        assert isinstance(group, ClusterGroup)
        assert not group.exact
        assert group.partition == equitable_partition(edges, n)
        assert group.swaps is None
        assert repr(group) == f"ClusterGroup(at most (S_{n // 2})^2 on {n} nodes)"

    def test_the_bound_contains_every_automorphism(self):
        edges, n = cai_furer_immerman(nx.complete_graph(4))
        with in_process():
            group = automorphisms(edges, n)
        late = automorphisms(edges, n, time_budget=1e-3)
        assert group.exact
        assert not late.exact
        assert group.num_generators > 0
        assert all(late.contains(perm) for perm in group.generators)
        assert late.order() > group.order()

    def test_time_without_end(self):
        edges, n = both_ways(nx.cycle_graph(7))
        assert automorphisms(edges, n, time_budget=math.inf).order() == 14

    @pytest.mark.parametrize(
        "script",
        [
            "import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
            "raise MemoryError",
            "raise RuntimeError('Out of memory')",
        ],
    )
    def test_memory_that_runs_out_is_time_that_runs_out(self, script, tmp_path, monkeypatch):
        (tmp_path / "worker.py").write_text(script)
        monkeypatch.setattr(_search, "__file__", str(tmp_path / "worker.py"))
        assert not automorphisms(*both_ways(nx.cycle_graph(7))).exact

    def test_a_failing_solver_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "worker.py").write_text("raise ValueError('no such graph')")
        monkeypatch.setattr(_search, "__file__", str(tmp_path / "worker.py"))
        with pytest.raises(RuntimeError, match='"networkx" failed: ValueError: no such graph'):
            automorphisms(*both_ways(nx.cycle_graph(7)), solver="networkx", time_budget=60)

    def test_nothing_is_unpickled(self, tmp_path, monkeypatch):
        (tmp_path / "worker.py").write_text(
            "import io, sys, numpy as np; b = io.BytesIO()\n"
            "np.savez(b, generators=np.array([{}], dtype=object)); "
            "sys.stdout.buffer.write(b.getvalue())"
        )
        monkeypatch.setattr(_search, "__file__", str(tmp_path / "worker.py"))
        with pytest.raises(ValueError, match="allow_pickle=False"):
            automorphisms(*both_ways(nx.cycle_graph(7)), time_budget=60)

    def test_generators_that_fill_memory_give_an_upper_bound(self, monkeypatch):
        monkeypatch.setattr(automorphism, "MAX_GENERATOR_ENTRIES", 10)
        with in_process():
            assert not automorphisms(*both_ways(nx.cycle_graph(7))).exact


class TestSolver:
    def test_auto_takes_the_first_that_is_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "networkx" or None)
        assert automorphism._choose("auto") == "networkx"
        with pytest.raises(SolverUnavailableError, match=r"package igraph.*gsym\[sym\]"):
            automorphisms(EDGE, 2, solver="bliss")
        with pytest.raises(SolverUnavailableError, match=r"package pynauty.*gsym\[sym\]"):
            automorphisms(EDGE, 2, solver="nauty")


EDGE = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((EDGE, 1), {}, GraphError, r"0\.\.0; edge 0 names node 1"),
        ((EDGE - 1, 2), {}, GraphError, "names node -1"),
        ((EDGE.float(), 2), {}, GraphError, "torch.int64"),
        ((torch.zeros(3, 2, dtype=torch.int64), 2), {}, GraphError, "transpose it"),
        ((EDGE, None), {}, TypeError, "num_nodes must be an int"),
        ((EDGE, 2.0), {}, TypeError, "got 2.0"),
        ((EDGE, 0), {}, GraphError, "num_nodes=0"),
        ((EDGE, 2, torch.tensor([math.nan, 1.0])), {}, GraphError, "weight of edge 0 is nan"),
        ((EDGE, 2, torch.tensor([1.0, -math.inf])), {}, GraphError, "weight of edge 1 is -inf"),
        ((EDGE, 2, torch.ones(1)), {}, GraphError, "each of 2 edges"),
        ((EDGE, 2, None, [0]), {}, GraphError, r"each of 2 nodes; got shape \[1\]"),
        ((EDGE, 2, None, [[0, 1]]), {}, GraphError, r"got shape \[1, 2\]"),
        ((EDGE, 2), {"time_budget": 0}, ValueError, "positive number of seconds; got 0"),
        ((EDGE, 2), {"time_budget": -1.5}, ValueError, "got -1.5"),
        ((EDGE, 2), {"time_budget": math.nan}, ValueError, "got nan"),
        ((EDGE, 2), {"time_budget": "1"}, TypeError, "got '1'"),
        ((EDGE, 2), {"solver": "saucy"}, ValueError, "one of auto, bliss, nauty, networkx"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        automorphisms(*arguments, **options)


def test_num_nodes_is_required():
    with pytest.raises(TypeError, match="num_nodes"):
        automorphisms(EDGE)


class TestGroupOfKnownOrder:
    """Membership and samples by the stabiliser chain, against SymPy."""

    GROUPS = (
        PermutationGroup.from_cycles(6, [(0, 1, 2)], [(3, 4)]),
        PermutationGroup.from_cycles(7, [(0, 1, 2, 3, 4, 5, 6)], [(1, 2)]),
        PermutationGroup.from_cycles(8, [(0, 1, 2, 3, 4, 5, 6, 7)], [(1, 7), (2, 6), (3, 5)]),
        PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)], [(0, 3), (1, 4), (2, 5)]),
        PermutationGroup.from_cycles(12, [tuple(range(11))], [(2, 6, 10, 7), (3, 9, 4, 5)]),
        PermutationGroup(5, []),
    )

    @pytest.mark.parametrize("truth", GROUPS, ids=repr)
    def test_equals_sympy(self, truth):
        n, order = truth.num_nodes, truth.order()
        group = PermutationGroup(n, truth.generators, order=order)
        rng = torch.Generator().manual_seed(0)
        assert group.order() == order
        for _ in range(30):
            perm = torch.randperm(n, generator=rng)
            assert group.contains(perm) == truth.contains(perm)
            assert group.contains(truth.sample(generator=rng))
            assert truth.contains(group.sample(generator=rng))

    def test_samples_are_uniform(self):
        """On a group where the inverses of representatives would not do for representatives."""
        truth = PermutationGroup.from_cycles(5, [(0, 1, 2, 3, 4)], [(1, 2, 4, 3)])
        group = PermutationGroup(5, truth.generators, order=20)
        rng = torch.Generator().manual_seed(0)
        draws = [tuple(group.sample(generator=rng).tolist()) for _ in range(4000)]
        counts = np.array([draws.count(p) for p in set(draws)])
        assert counts.size == truth.order() == 20
        # 99.9 % quantile of chi-squared with 19 degrees of freedom.
        assert ((counts - 200) ** 2 / 200).sum() < 43.8

    @pytest.mark.parametrize("order", [1, 3, 12, 10**9])
    def test_a_wrong_order_is_found_out(self, order):
        group = PermutationGroup.from_cycles(6, [(0, 1, 2)], [(3, 4)])
        with pytest.raises(GroupError, match=r"order exp\(1.79176\)"):
            PermutationGroup(6, group.generators, order=order)
        told = group.to_dict() | {"order": hex(order)}
        with pytest.raises(GroupError, match=r"order exp\(1.79176\)"):
            PermutationGroup.from_dict(told)

    @pytest.mark.parametrize("truth", GROUPS, ids=repr)
    def test_no_other_order_is_taken(self, truth):
        """Neither neighbours of the order nor what a chain of the generators alone would say."""
        right = truth.order()
        for order in {right + 1, right - 1, 2 * right, right // 2, *range(1, 40)} - {right, 0}:
            with pytest.raises(GroupError, match="the generators make a group of"):
                PermutationGroup(truth.num_nodes, truth.generators, order=order)

    def test_an_incomplete_chain_is_found_out(self):
        """The orbits that the generators alone show multiply to less than the order."""
        mathieu = self.GROUPS[4]
        assert mathieu.order() == 7920
        first = StabiliserChain.__new__(StabiliserChain)
        first._generators, first._n = list(mathieu.generators.numpy()), 12
        first._base, first._pool, first._rng = [], [], np.random.default_rng(0)
        first._build()
        short = first.order()
        assert short < 7920
        with pytest.raises(GroupError, match=f"more than {short} elements"):
            PermutationGroup(12, mathieu.generators, order=short)

    @pytest.mark.parametrize("order", [True, 6.0, "6"])
    def test_an_order_is_a_whole_number(self, order):
        with pytest.raises(GroupError, match="order must be a whole number"):
            PermutationGroup(3, [[1, 2, 0], [1, 0, 2]], order=order)

    def test_bad_order(self):
        with pytest.raises(GroupError, match="order=0"):
            PermutationGroup(3, order=0)

    def test_swaps_of_unequal_clusters_are_named(self):
        swaps = ClusterGroup(Partition.single(2))
        with pytest.raises(GroupError, match=r"cluster 0 with 2 nodes and cluster 1 with 3"):
            ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]), swaps=swaps)

    def test_a_bound_in_the_swaps_is_a_bound(self):
        swaps = ClusterGroup(Partition.single(2), exact=False)
        group = ClusterGroup(Partition.from_labels([0, 0, 1, 1]), swaps=swaps)
        assert not group.exact
        assert str(group) == "at most (S_2)^2 x| at most S_2"
