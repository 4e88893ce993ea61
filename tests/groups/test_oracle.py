"""The closed form equals the oracle, which knows generators alone: groups and OrbitLinear."""

import math

import pytest
import torch
from helpers import oracle, random_cluster_group
from torch.func import functional_call

from gsym.nn import OrbitLinear

CASES = range(200)


@pytest.mark.parametrize("seed", CASES)
def test_group_equals_oracle(seed):
    group = random_cluster_group(seed)
    truth = oracle(group)
    n = group.num_nodes
    rng = torch.Generator().manual_seed(seed)
    assert group.num_generators == truth.generators.size(0)
    for ours, theirs in [
        (group.node_orbits(), truth.node_orbits()),
        (group.pair_orbits(), truth.pair_orbits()),
    ]:
        assert torch.equal(ours.index, theirs.index)
        assert ours.num_orbits == theirs.num_orbits
        assert torch.equal(ours.sizes, theirs.sizes)
    edges = torch.randint(n, (2, 3 * n), generator=rng)
    assert torch.equal(group.edge_orbits(edges).index, truth.edge_orbits(edges).index)
    assert group.commutant_dim() == truth.commutant_dim()
    assert group.order() == truth.order()
    assert math.isclose(group.log_order(), math.log(truth.order()), rel_tol=1e-12, abs_tol=1e-12)
    for perm in (group.sample(generator=rng), torch.randperm(n, generator=rng)):
        assert group.contains(perm) == truth.contains(perm)
    assert group.contains(truth.sample(generator=rng))

    theta = torch.randn(2, n, n, generator=rng, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, n, n, generator=rng, dtype=torch.float64)
    results = []
    for g in (group, truth):
        projected = g.project(theta)
        (gradient,) = torch.autograd.grad((projected * probe).sum(), theta)
        results.append((projected, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)

    # A graph the group preserves, and the same graph with one edge taken out.
    orbit = group.pair_orbits()
    chosen = torch.rand(orbit.num_orbits, generator=rng) < 0.5
    kept = chosen[orbit.index].nonzero().t().contiguous()
    for graph in (kept, kept[:, 1:]):
        assert group.preserves(graph) == truth.preserves(graph)
    assert group.preserves(kept)


@pytest.mark.parametrize("seed", CASES)
def test_orbit_linear_equals_oracle(seed):
    """Values and every gradient by name, the oracle holding one matrix per pair orbit."""
    group = random_cluster_group(seed)
    n = group.num_nodes
    rng = torch.Generator().manual_seed(seed)
    layer = OrbitLinear(2, 3, group).double()
    dense = OrbitLinear(2, 3, oracle(group)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))

    # The definition: K[t, s] = W[c(t), c(s)] / size(c(s)), and D where t = s.
    p = group.partition
    target, source = (p.labels[:, None].expand(n, n), p.labels[None, :].expand(n, n))
    if group.swaps is None:
        blocks = layer.mixing.weight.permute(2, 0, 1, 3)
    else:
        blocks = layer.mixing.weight[group.swaps.pair_orbits().index]
    sizes = torch.tensor(p.sizes, dtype=torch.float64)
    kernel = blocks[target, source] / sizes[source][:, :, None, None]
    if layer.weight_self is not None:
        # D of each orbit of clusters with two nodes or more, numbered as the orbits are.
        orbit = group.cluster_orbits().index
        used = orbit[sizes > 1].unique().tolist()
        own = torch.stack(
            [
                layer.weight_self[used.index(o)] if o in used else torch.zeros_like(kernel[0, 0])
                for o in orbit.tolist()
            ]
        )
        kernel = kernel + torch.eye(n, dtype=torch.float64)[:, :, None, None] * own[p.labels][None]

    pairs = oracle(group).pair_orbits()
    first = [int((pairs.index.flatten() == o).nonzero()[0]) for o in range(pairs.num_orbits)]
    per_orbit = kernel.flatten(0, 1)[first]
    if not len(oracle(group).generators):
        # Without symmetry the matrices are stored as one, from source to target.
        per_orbit = per_orbit.view(n, n, 2, 3).permute(1, 2, 0, 3)
    bias_first = [
        int((group.node_orbits().index == o).nonzero()[0])
        for o in range(group.node_orbits().num_orbits)
    ]
    node_bias = layer.bias[group.cluster_orbits().index[p.labels]]

    x = torch.randn(4, n, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(4, n, 3, generator=rng, dtype=torch.float64)
    ours = layer(x)
    theirs = functional_call(
        dense, {"mixing.weight": per_orbit, "bias": node_bias[bias_first]}, (x,)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    wanted = [x, *layer.parameters()]
    got = torch.autograd.grad((ours * probe).sum(), wanted)
    expected = torch.autograd.grad((theirs * probe).sum(), wanted)
    for name, a, b in zip(names, got, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )
