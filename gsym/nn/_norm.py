"""ELU and GraphNorm of rows whose graph is an index that was sorted before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym.kernels.norms import elu_norm


class ELUGraphNorm(nn.Module):
    """ELU, then every channel of a graph centred by a learned part of its mean, and scaled.

    The second part is ``torch_geometric.nn.GraphNorm``, with its parameters, but over
    :class:`gsym.kernels.Segments`.

    Reference:
        Cai, Luo, Xu, He, Liu, Wang, arXiv 2009.03294.
    """

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.mean_scale = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Centre and scale, and no more."""
        self.weight.fill_(1)
        self.bias.zero_()
        self.mean_scale.fill_(1)

    def forward(self, x: Tensor, graphs: kernels.Segments) -> Tensor:
        """Rows ``[e, c]`` of the graphs that the index gives."""
        return elu_norm(x, graphs, self.weight, self.bias, self.mean_scale, self.eps)
