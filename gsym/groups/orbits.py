"""Orbits: which nodes, pairs or edges a group cannot tell apart, so which weights are equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gsym._validate import GroupError
from gsym.groups._host import lives_on_cpu


@lives_on_cpu
@dataclass(frozen=True, eq=False, repr=False)
class Orbits:
    """A labelling of points by orbit: the weight-tying table.

    Orbits are numbered in the order in which ``index`` first meets them, so two groups with the
    same orbits give equal tables.

    Attributes:
        index: Orbit of every point, int64; ``[n]`` over nodes, ``[n, n]`` over ordered pairs,
            ``[e]`` over edges.
        num_orbits: Number of orbits.
        sizes: Points per orbit, int64 ``[num_orbits]``.

    Raises:
        GroupError: Attributes that do not agree.

    Example:
        >>> Orbits.from_keys(torch.tensor([7, 7, 3]))
        Orbits(2 orbits of 3 points)
    """

    index: Tensor
    num_orbits: int
    sizes: Tensor

    def __post_init__(self) -> None:
        index, sizes = self.index, self.sizes
        for name, tensor in (("index", index), ("sizes", sizes)):
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or not tensor.is_cpu:
                raise GroupError(f"{name} of orbits must be an int64 tensor on the CPU")
        flat = index.reshape(-1)
        # Each orbit is met after those of smaller number: none, or one more than the highest yet.
        highest = torch.cummax(torch.cat([flat.new_full((1,), -1), flat]), 0).values[:-1]
        if bool(((flat < 0) | (flat > highest + 1)).any()):
            raise GroupError(
                "orbits must be numbered from 0 in the order in which index first meets them; make "
                "them with Orbits.from_keys(keys)"
            )
        counts = torch.bincount(flat)
        if self.num_orbits != counts.numel() or not torch.equal(counts, sizes):
            raise GroupError(
                f"index holds {counts.numel()} orbits; got num_orbits={self.num_orbits} and sizes "
                "that must count its points; make orbits with Orbits.from_keys(keys)"
            )

    @classmethod
    def from_keys(cls, keys: Tensor) -> Orbits:
        """Number equal ``keys`` (int64, any shape) alike, by first occurrence."""
        flat = keys.reshape(-1).numpy()
        _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
        rank = np.empty_like(first)
        rank[np.argsort(first)] = np.arange(first.size)
        index = torch.from_numpy(rank[inverse.reshape(-1)]).view(keys.shape)
        return cls(index, int(first.size), torch.bincount(index.view(-1), minlength=first.size))

    @classmethod
    def of_maps(cls, images: Tensor) -> Orbits:
        """Orbits of points ``0..p-1`` under maps; ``images`` is ``[m, p]``, row i being map i."""
        count, points = images.shape
        source = np.tile(np.arange(points), count)
        links = coo_array(
            (np.ones(source.size, dtype=bool), (source, images.reshape(-1).numpy())),
            shape=(points, points),
        )
        _, keys = connected_components(links, directed=False)
        return cls.from_keys(torch.from_numpy(keys.astype(np.int64)))

    def __repr__(self) -> str:
        return f"Orbits({self.num_orbits} orbits of {self.index.numel()} points)"
