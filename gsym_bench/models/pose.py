"""The residual network that lifts 2D joints to 3D."""

from __future__ import annotations

from torch import Tensor, nn

from gsym.groups import PermutationGroup, Representation
from gsym.nn import GNetConv


class PoseNet(nn.Module):
    """Residual stack of graph convolutions that share one group, after arXiv 2308.10436.

    Args:
        group: Joint permutations along which every convolution ties its weights.
        hidden_channels: Width of the hidden layers.
        num_blocks: Residual blocks of two convolutions each.
        propagate: How neighbours are mixed, see :class:`gsym.nn.GNetConv`.
        edge_index: The skeleton in both directions, ``[2, e]``.
        in_rep: How the group moves image coordinates; with it hidden channels are copies of the
            regular representation, ``hidden_channels`` in all.
        out_rep: How it moves the coordinates of the output.

    Shapes:
        - input: ``[b, n, 2]``
        - output: ``[b, n, 3]``

    Symmetry:
        Nodes: exact for ``group`` when ``group.preserves(edge_index)``, otherwise approximate.
        Coordinates: those of the representations.
    """

    edge_index: Tensor

    def __init__(
        self,
        group: PermutationGroup,
        hidden_channels: int,
        num_blocks: int,
        propagate: str,
        edge_index: Tensor,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
    ) -> None:
        super().__init__()
        hidden, copies = None, hidden_channels
        if in_rep is not None:
            hidden = Representation.regular(group)
            copies //= hidden.num_channels
            hidden = copies * hidden
        self.register_buffer("edge_index", edge_index, persistent=False)
        self.first = _Layer(2, hidden_channels, group, propagate, copies, in_rep, hidden)
        self.hidden = nn.ModuleList(
            _Layer(hidden_channels, hidden_channels, group, propagate, copies, hidden, hidden)
            for _ in range(2 * num_blocks)
        )
        self.last = GNetConv(
            hidden_channels, 3, group, propagate=propagate, in_rep=hidden, out_rep=out_rep
        )
        # Poses are tenths of a metre wide; starting with larger ones costs epochs to unlearn.
        self.last.reset_parameters(gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Lift joints ``[b, n, 2]`` to ``[b, n, 3]``."""
        # A layer that does not propagate refuses a graph.
        graph = None if self.last.propagate == "none" else self.edge_index
        x = self.first(x, graph)
        for one, two in zip(self.hidden[::2], self.hidden[1::2], strict=True):
            x = x + two(one(x, graph), graph)
        return self.last(x, graph)


class _Layer(nn.Module):
    """Convolution, batch norm per channel, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup,
        propagate: str,
        copies: int,
        in_rep: Representation | None,
        out_rep: Representation | None,
    ) -> None:
        super().__init__()
        # Joints, and channels that the group exchanges, share their statistics, so the norm
        # commutes with every permutation.
        self.norm = nn.BatchNorm1d(copies)
        self.conv = GNetConv(
            in_channels, out_channels, group, propagate=propagate, in_rep=in_rep, out_rep=out_rep
        )

    def forward(self, x: Tensor, edge_index: Tensor | None) -> Tensor:
        y = self.conv(x, edge_index)
        rows = y.reshape(y.size(0), -1, self.norm.num_features)
        return self.norm(rows.mT).mT.reshape(y.shape).relu()
