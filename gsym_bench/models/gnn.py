"""The graph network without Euclidean symmetry that the EGNN paper compares with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GNN(nn.Module):
    """Message passing on absolute coordinates, velocities and features.

    Satorras, Hoogeboom, Welling, arXiv 2102.09844, section 5.1, after their published code, with
    one deviation: the decoder predicts how far a node moves instead of where it is then.

    Args:
        in_channels: Features per node.
        out_channels: Features per node of the output.
        hidden_channels: Width of all layers.
        num_layers: Number of layers.
        dim: Coordinates per node.
        edge_dim: Attributes per edge.
        velocity: Whether velocities are given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        num_layers: int,
        *,
        dim: int,
        edge_dim: int = 0,
        velocity: bool = False,
    ) -> None:
        super().__init__()
        h = hidden_channels
        self.dim = dim
        self.first = nn.Linear(in_channels + dim * (1 + velocity), h)
        self.edges = nn.ModuleList(
            nn.Sequential(_mlp(2 * h + edge_dim, h, h), nn.SiLU()) for _ in range(num_layers)
        )
        self.nodes = nn.ModuleList(_mlp(2 * h, h, h) for _ in range(num_layers))
        self.last = _mlp(h, h, out_channels + dim)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features ``[..., n, out_channels]`` and coordinates ``[..., n, d]``."""
        source, target = edge_index
        extra = [] if edge_attr is None else [edge_attr]
        h = self.first(torch.cat([x, pos, *([] if velocity is None else [velocity])], dim=-1))
        for edge, node in zip(self.edges, self.nodes, strict=True):
            message = edge(torch.cat([h[..., target, :], h[..., source, :], *extra], dim=-1))
            total = torch.zeros_like(h).index_add(-2, target, message)
            h = h + node(torch.cat([h, total], dim=-1))
        y = self.last(h)
        return y[..., : -self.dim], pos + y[..., -self.dim :]


def _mlp(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, hidden_channels), nn.SiLU(), nn.Linear(hidden_channels, out_channels)
    )
