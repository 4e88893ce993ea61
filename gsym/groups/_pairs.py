"""Ordered pairs of nodes as whole numbers ``i * n + j``: images, closures, graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym._graphs import as_graph, coalesce


def pair_images(keys: Tensor, generators: Tensor, n: int) -> Tensor:
    """Images of the pairs ``i * n + j`` under each generator, ``[m, p]``."""
    return generators[:, keys // n] * n + generators[:, keys % n]


def closure(keys: Tensor, generators: Tensor, n: int) -> Tensor:
    """The sorted set of all pairs that the generators reach from ``keys``."""
    known = np.unique(keys.numpy())
    frontier = known
    while frontier.size:
        images = pair_images(torch.from_numpy(frontier), generators, n).numpy()
        frontier = np.setdiff1d(images, known)
        known = np.union1d(known, frontier)
    return torch.from_numpy(known)


def coalesced(edge_index: Any, edge_weight: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """Sorted pair keys of the distinct edges and their summed weights in float64."""
    keys, weight = coalesce(as_graph(edge_index, n, edge_weight))
    return torch.from_numpy(keys), torch.from_numpy(weight)


def fixes(perm: Tensor, keys: Tensor, weight: Tensor, n: int) -> bool:
    """Whether ``perm`` maps the coalesced graph onto itself."""
    images, order = torch.sort(pair_images(keys, perm[None], n)[0])
    return torch.equal(images, keys) and torch.equal(weight[order], weight)
