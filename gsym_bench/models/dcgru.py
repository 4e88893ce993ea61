"""Diffusion-convolutional recurrent forecasting with weights tied along a group.

A reconstruction of the traffic model of "Approximately Equivariant Graph Networks" (Huang, Levie,
Villar; NeurIPS 2023), which ties the candidate of a DCRNN cell (Li et al., ICLR 2018) along node
clusters. Two faults of the published code are corrected: there all clusters share one weight
storage, and the edge weights inside each row of the random walk are in reversed order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsym.groups import PermutationGroup
from gsym.nn import OrbitLinear


def diffusion_supports(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Random walks along and against the edges, transposed as DCRNN applies them.

    With ``A[i, j]`` the weight of the edge from ``i`` to ``j``, out-degrees ``D_O`` and in-degrees
    ``D_I``, these are ``(D_O^-1 A)^T`` and ``(D_I^-1 A^T)^T``. A node without edges in a direction
    starts no walk: its column is zero.

    Args:
        edge_index: ``[2, e]``.
        num_nodes: Number of nodes ``n``.
        edge_weight: ``[e]``, not negative; ``None`` is all ones.

    Returns:
        Two dense matrices ``[n, n]``.

    Raises:
        ValueError: If an edge leaves the ``num_nodes`` nodes, or a weight is negative or not
            finite.
    """
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.size(1), device=edge_index.device)
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"edge_weight must hold one weight per edge, [{edge_index.size(1)}], "
            f"got {list(edge_weight.shape)}"
        )
    if edge_index.numel() and not 0 <= edge_index.min() <= edge_index.max() < num_nodes:
        raise ValueError(
            f"edge_index must name nodes 0 to {num_nodes - 1}, "
            f"got {int(edge_index.min())} to {int(edge_index.max())}"
        )
    if not (torch.isfinite(edge_weight) & (edge_weight >= 0)).all():
        raise ValueError("edge_weight must be finite and not negative to define a random walk")
    adjacency = edge_weight.new_zeros(num_nodes, num_nodes)
    adjacency.index_put_((edge_index[0], edge_index[1]), edge_weight, accumulate=True)
    return _row_normalised(adjacency).T, _row_normalised(adjacency.T).T


def _row_normalised(matrix: Tensor) -> Tensor:
    degree = matrix.sum(dim=1, keepdim=True)
    return torch.where(degree > 0, matrix / degree, 0)


class DiffusionGRUCell(nn.Module):
    """A GRU cell whose candidate diffuses over the graph and is tied along a group.

    With ``u = [x, r * h]`` and ``z(u) = [u, P_f u, P_b u]``::

        [r, g] = sigmoid([x, h] W_gate + b_gate)
        c      = tanh(z(u) W[orbit] + b[orbit])
        h'     = g * h + (1 - g) * c

    Symmetry: the gates are shared by all nodes and the candidate by the nodes of an orbit, so the
    cell is exactly equivariant under ``group`` if both supports are preserved by it.

    Args:
        in_channels: Channels of the input.
        hidden_channels: Channels of the state.
        group: Ties the candidate; ``None`` shares it between all nodes.

    Shapes:
        ``x [b, n, in]``, ``h [b, n, hidden]``, ``P_f, P_b [n, n]`` to ``[b, n, hidden]``.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, group: PermutationGroup | None
    ) -> None:
        super().__init__()
        channels = in_channels + hidden_channels
        self.gate = nn.Linear(channels, 2 * hidden_channels)
        self.candidate = OrbitLinear(3 * channels, hidden_channels, group, mixing="none")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw gates that remember at first, as DCRNN does, and a fresh candidate."""
        nn.init.xavier_normal_(self.gate.weight)
        nn.init.ones_(self.gate.bias)
        self.candidate.reset_parameters(gain=1.0)

    def forward(self, x: Tensor, h: Tensor, supports: tuple[Tensor, Tensor]) -> Tensor:
        """The next state."""
        r, g = torch.sigmoid(self.gate(torch.cat([x, h], dim=-1))).chunk(2, dim=-1)
        u = torch.cat([x, r * h], dim=-1)
        # channel-major: feature = 3 * channel + order
        features = torch.stack([u, *(support @ u for support in supports)], dim=-1).flatten(-2)
        return torch.lerp(torch.tanh(self.candidate(features)), h, g)


class DiffusionForecaster(nn.Module):
    """Encoder and decoder of one :class:`DiffusionGRUCell` each.

    The decoder starts from zeros and is fed its own last prediction; it never sees targets.

    Symmetry: that of the cell.

    Args:
        in_channels: Channels of one input step.
        hidden_channels: Channels of the states.
        horizon: Steps to predict.
        group: Ties the candidates of both cells; ``None`` shares them between all nodes.
        supports: The two matrices of :func:`diffusion_supports`, ``[n, n]``.

    Shapes:
        ``x [b, time, n, in]`` to ``[b, horizon, n]``.
    """

    forward_walk: Tensor
    backward_walk: Tensor

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        horizon: int,
        group: PermutationGroup | None,
        supports: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        self.horizon = horizon
        self.encoder = DiffusionGRUCell(in_channels, hidden_channels, group)
        self.decoder = DiffusionGRUCell(1, hidden_channels, group)
        self.projection = nn.Linear(hidden_channels, 1)
        self.register_buffer("forward_walk", supports[0], persistent=False)
        self.register_buffer("backward_walk", supports[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Predict the steps after ``x``."""
        supports = (self.forward_walk, self.backward_walk)
        h = x.new_zeros(x.size(0), x.size(2), self.hidden_channels)
        for step in x.unbind(dim=1):
            h = self.encoder(step, h, supports)
        prediction = x.new_zeros(*h.shape[:-1], 1)
        predictions = []
        for _ in range(self.horizon):
            h = self.decoder(prediction, h, supports)
            prediction = self.projection(h)
            predictions.append(prediction.squeeze(-1))
        return torch.stack(predictions, dim=1)
