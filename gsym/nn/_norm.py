"""ELU and GraphNorm of rows whose graph is an index that was sorted before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym import kernels
from gsym.kernels._norms import elu_norm


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

        def compose(tensors: Sequence[Tensor]) -> list[Tensor]:
            x, weight, bias, mean_scale = tensors
            x = F.elu(x)
            centre = kernels.segment_mean(x, graphs) * mean_scale
            out = x - kernels.segment_gather(centre, graphs)
            variance = kernels.segment_mean(out.square(), graphs)
            scale = weight / (variance + self.eps).sqrt()
            return [out * kernels.segment_gather(scale, graphs) + bias]

        return elu_norm(compose, x, graphs, (self.weight, self.bias, self.mean_scale), self.eps)
