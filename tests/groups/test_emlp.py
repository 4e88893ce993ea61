"""Agreement with emlp, which solves the same constraints by a singular value decomposition.

It is no dependency: ``pip install emlp`` with a version of jax that it imports.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.representations import GROUPS, representations

from gsym import PermutationGroup, Representation

pytest.importorskip("jax", reason="emlp, an independent library, is not installed")
groups = pytest.importorskip(
    "emlp.groups", reason="emlp, an independent library, is not installed", exc_type=ImportError
)
reps = pytest.importorskip("emlp.reps", reason="as emlp.groups", exc_type=ImportError)


class Signals(groups.Group):
    """A group by its matrices on input and output signals, side by side."""

    def __init__(self, matrices: np.ndarray) -> None:
        self.discrete_generators = matrices
        super().__init__()


def on_signals(group: PermutationGroup, rep: Representation) -> np.ndarray:
    """Matrices of the generators on signals ``[n, c]``, flattened."""
    made = []
    for perm in group.generators:
        nodes = torch.zeros(group.num_nodes, group.num_nodes, dtype=torch.float64)
        nodes[perm, torch.arange(group.num_nodes)] = 1
        made.append(torch.kron(nodes, rep.matrix(perm)).numpy())
    return np.stack(made)


def small(group: PermutationGroup, rng: np.random.Generator) -> Representation:
    """A random representation on few channels, in a random basis in half of the cases."""
    while (rep := representations(group, rng)).num_channels > 3:
        pass
    if rng.integers(2):
        q = torch.from_numpy(np.linalg.qr(rng.standard_normal((rep.num_channels,) * 2))[0])
        rep = Representation.from_matrices(group, q @ rep.matrices @ q.T)
    return rep


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["mirror", "C3", "C4", "C6", "S3", "D4", "A4"])
def test_the_same_maps(name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, *map(ord, name)])
    group = GROUPS[name]()
    first, second = small(group, rng), small(group, rng)
    into, out = on_signals(group, first), on_signals(group, second)
    a, b = into.shape[1], out.shape[1]
    both = np.zeros((len(into), a + b, a + b))
    both[:, :a, :a], both[:, a:, a:] = into, out
    vectors = reps.V(Signals(both))
    # They tell groups by their names, which are equal here.
    vectors.solcache.clear()
    basis = np.asarray((vectors >> vectors).equivariant_basis(), dtype=np.float64)
    maps = basis.T.reshape(-1, a + b, a + b)[:, a:, :a]
    values = np.linalg.svd(maps.reshape(len(maps), -1), compute_uv=False)
    dim = group.commutant_dim(first, second)
    assert (values > 1e-3).sum() == dim
    # Theirs commute with the group as we see it: the projection leaves them alone.
    n, c, d = group.num_nodes, second.num_channels, first.num_channels
    theirs = torch.from_numpy(maps.reshape(-1, n, c, n, d)).transpose(2, 3)
    kept = group.project(theirs, first, second)
    torch.testing.assert_close(kept, theirs, rtol=0, atol=1e-4)
