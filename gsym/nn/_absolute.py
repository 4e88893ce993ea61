"""Message passing without Euclidean symmetry, the other branch of :class:`PenguinConv`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsym.nn._messages import SMALL_GAIN, EdgeGraph, EdgeMLP
from gsym.nn._moved import Maps
from gsym.nn._signs import Channels


class NonEquivariantConv(nn.Module):
    r"""A graph network on absolute coordinates, the branch without Euclidean symmetry.

    :math:`m_{ij} = \psi_e(h_i, h_j, x_i, x_j, a_{ij})`, :math:`x_i' = x_i + \psi_x(x_i, m_i)` and
    :math:`h_i' = h_i + \psi_h(h_i, m_i)` with :math:`m_i = \sum_j m_{ij}`. Velocities, if there
    are any, are concatenated to the coordinates.
    """

    def __init__(
        self,
        maps: Maps,
        into: Channels,
        out: Channels,
        places: Channels,
        edge_dim: int,
        *,
        residual: bool,
        velocity: bool,
    ) -> None:
        super().__init__()
        absolute = [places] * (1 + velocity)
        self.residual = residual
        self.edges = EdgeMLP(maps, [into, *absolute], edge_dim)
        self.move = maps.mlp([*absolute, maps.hidden], places)
        self.update = maps.mlp([into, maps.hidden], out)

    def reset_parameters(self, depth: int = 1) -> None:
        """As :meth:`EGNNConv.reset_parameters`."""
        gain = SMALL_GAIN / depth
        self.edges.reset_parameters()
        self.move.reset_parameters(gain)
        self.update.reset_parameters(gain if self.residual else None)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        graph: EdgeGraph,
        edge_attr: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features and coordinates, on checked input and sorted edges."""
        absolute = pos if velocity is None else torch.cat([pos, velocity], dim=-1)
        messages, _ = self.edges(torch.cat([x, absolute], dim=-1), graph, edge_attr)
        pos = pos + self.move(absolute, messages)
        new = self.update(x, messages)
        return x + new if self.residual else new, pos
