"""Random groups for the tests, and where the golden values lie."""

import importlib.util
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gsym import ClusterGroup, Partition, PermutationGroup, Representation, kernels
from gsym.check import assert_equivariant, equivariance_error
from gsym.kernels import Clusters, Tiles

# The definition of the edge stage, with the arguments of the primitive.
define_edges = partial(kernels.edge_mlp_sum, backend="reference")


def random_cluster_group(seed: int, max_nodes: int = 40) -> ClusterGroup:
    """A random partition of up to ``max_nodes`` nodes, in half of the cases with random swaps.

    The first seeds are the corner cases: one node, one cluster, all singletons, with swaps.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=rng))

    if seed == 0:
        return ClusterGroup(Partition.single(1))
    if seed == 1:
        return ClusterGroup(Partition.single(7))
    if seed == 2:
        return ClusterGroup(Partition.singletons(9))
    if seed == 3:
        return ClusterGroup(
            Partition.singletons(7), swaps=PermutationGroup.from_cycles(7, [(0, 2, 5)])
        )
    num_sizes = 1 + draw(3)
    sizes: list[int] = []
    for _ in range(num_sizes):
        size, copies = 1 + draw(5), 1 + draw(4)
        sizes += [size] * copies
    while sum(sizes) > max_nodes:
        sizes.pop()
    order = torch.randperm(len(sizes), generator=rng).tolist()
    sizes = [sizes[i] for i in order]
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(labels.numel(), generator=rng)]
    partition = Partition(labels)
    if seed % 2:
        return ClusterGroup(partition)
    generators = []
    for _ in range(1 + draw(2)):
        perm = torch.arange(len(sizes))
        for size in set(sizes):
            same = torch.tensor([i for i, s in enumerate(sizes) if s == size])
            perm[same] = same[torch.randperm(same.numel(), generator=rng)]
        generators.append(perm)
    return ClusterGroup(partition, swaps=PermutationGroup(len(sizes), generators))


def oracle(group: PermutationGroup) -> PermutationGroup:
    """The same group, known by its generators alone."""
    return PermutationGroup(group.num_nodes, group.generators)


def load_golden() -> dict[str, Tensor]:
    """The golden values, from ``GSYM_GOLDEN`` or the folder beside the checkout; else skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "golden" / "gnet_golden.npz"
    path = Path(os.environ.get("GSYM_GOLDEN", beside))
    if not path.is_file():
        pytest.skip("no golden values; set GSYM_GOLDEN to the path of gnet_golden.npz")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def make_clusters(
    labels: Tensor, num_clusters: int, widths: tuple[int, int], *, runs: bool
) -> Clusters:
    """Clusters that are taken as runs of sorted rows, or as tiles, whatever suits them."""
    chosen = Clusters(labels, num_clusters, *widths)
    tables = Clusters(labels, num_clusters, 1, 1) if runs else chosen
    if not runs and chosen._tiles is None:
        tiles = Tiles(chosen.segments, *widths)
        changed = {"_tiles": tiles, "_tile_tables": tiles._all_tables()}
    else:
        changed = {"_tiles": None, "_tile_tables": []} if runs else {}
    forced: Clusters = object.__new__(Clusters)
    forced._fill(**vars(tables) | changed | {"has_runs": runs})
    return forced


def check_operator(registered: torch._library.custom_ops.CustomOpDef, args: tuple) -> None:
    """``opcheck``: the schema, what it says without numbers, its derivative.

    What a compiler makes of an operator is the same for the loops of all back-ends, and takes most
    of the time, so it is tried with those in C++.
    """
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if "cpp" in [arg for arg in args if isinstance(arg, str)]:
        utilities.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(registered, args, test_utils=utilities)


def randomised(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer with all parameters drawn anew, in float64."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.double()


def assert_stays_equivariant(
    net: nn.Module, group: PermutationGroup, x: Tensor, *graph: Tensor, **reps: Representation
) -> None:
    """Exact with the representations, not without them, before and after three steps."""
    randomised(net)
    assert_equivariant(net, group, x, *graph, **reps, tolerance=1e-12)
    assert equivariance_error(net, group, x, *graph) > 1e-2
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        net(x, *graph).square().mean().backward()
        optimiser.step()
    assert all((p.grad != 0).any() for p in net.parameters())
    assert_equivariant(net, group, x, *graph, **reps, tolerance=1e-12)


def site_check():
    """What looks at pages of the site, docs/check.py."""
    path = Path(__file__).parents[1] / "docs" / "check.py"
    spec = importlib.util.spec_from_file_location("site_check", path)
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    return check
