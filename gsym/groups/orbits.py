"""Orbits: which nodes, pairs or edges a group cannot tell apart, so which weights are equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


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

    Example:
        >>> Orbits.from_keys(torch.tensor([7, 7, 3]))
        Orbits(2 orbits of 3 points)
    """

    index: Tensor
    num_orbits: int
    sizes: Tensor

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
