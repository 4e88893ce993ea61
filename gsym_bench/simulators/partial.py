"""Small worlds that keep a known part of the Euclidean symmetry, one for each way to break it.

The four ways are those that the abstract of PEnGUiN names (McClellan et al., arXiv 2503.15615); the
worlds are ours. Nodes lie at random and move at once. Without the break, all go half the way to
their centre, which commutes with rotations, reflections and translations.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_NODES = 4
EDGE_INDEX = torch.tensor([(i, j) for i in range(NUM_NODES) for j in range(NUM_NODES) if i != j]).T
WALL = 1.0


def places(count: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Normal places with standard deviation 2, ``[count, 4, dim]``."""
    return 2 * torch.randn(count, NUM_NODES, dim, generator=generator)


def pull(pos: Tensor) -> Tensor:
    """Where nodes go in a symmetric world: half the way to their centre, ``[..., n, d]``."""
    return pos + 0.5 * (pos.mean(-2, keepdim=True) - pos)


def fall(pos: Tensor) -> Tensor:
    """Subgroup: all fall by 1 along the last axis, so that only its stabiliser remains."""
    down = torch.zeros_like(pos)
    down[..., -1] = 1
    return pull(pos) - down


def slide(pos: Tensor) -> Tensor:
    """Regional: nodes whose first coordinate is beyond ``WALL`` only slide up along it by 1."""
    up = torch.zeros_like(pos)
    up[..., 1] = 1
    return torch.where(pos[..., :1] > WALL, pos + up, pull(pos))


def blow(pos: Tensor, wind: float) -> Tensor:
    """Approximate: a gust along the first axis, ``wind`` times the sine of the second."""
    gust = torch.zeros_like(pos)
    gust[..., 0] = pos[..., 1].sin()
    return pull(pos) + wind * gust


def heights(pos: Tensor) -> Tensor:
    """Feature-wise: the absolute height ``[..., n, 1]`` as a feature, while places are pulled."""
    return pos[..., -1:]
