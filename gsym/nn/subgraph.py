"""Maps of order-1 and order-2 tensors on subgraphs that commute with exchanging their nodes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym.errors import SignalError
from gsym.kernels.subgraphs import Subgraphs

ORDERS = (0, 1, 2)


class EquivariantTensorLinear(nn.Module):
    r"""Linear map between tensors on subgraphs that commutes with permuting their nodes.

    A tensor of order 0 holds one vector per subgraph, of order 1 one per node, of order 2 one per
    ordered pair of nodes. For one colour the maps are those of Maron et al.: 15 from order 2 to 2,
    5 from 2 to 1 and from 1 to 2, 2 from 1 to 1 and from 2 to 0, and 1 from 1 to 0. Sums over one
    node are divided by the number m of nodes of the subgraph, sums over two by its square.

    With ``num_colours`` q above 1 only nodes of one colour are exchanged, so a subgraph with
    :math:`c_a` nodes of colour a has the group :math:`\prod_a S_{c_a}`. Every map then has one
    weight for each way to colour the nodes that it tells apart: :math:`q + 7q^2 + 6q^3 + q^4` from
    order 2 to 2.

    No operation is stored on its own. The input is first reduced to its diagonal and to sums of
    rows, columns and all entries; channels are mixed there, and the results are spread out again.
    Two products alone, of the tensor and its transpose, touch all pairs with all channels.

    Args:
        in_order: Order of the input, 1 or 2.
        out_order: Order of the output, 0, 1 or 2.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        bias: Add the complete equivariant bias: one vector per colour of nodes, or per two colours
            of pairs and one per colour more for the pairs (i, i).
        num_colours: Number of colours of the nodes.
        num_kinds: Kinds of subgraphs, each with separate weights.

    Shapes:
        - input: order 1 ``[..., n, in_channels]``, order 2 ``[..., p, in_channels]``, nodes and
          pairs as :class:`Subgraphs` lists them
        - output: order 0 ``[..., b, out_channels]``, others as the input

    Symmetry:
        Nodes: exact for every permutation of the nodes of each subgraph that keeps colours and,
        where the subgraphs list only some pairs, their list of pairs. On all pairs of subgraphs of
        four nodes and more of every colour the maps span all equivariant ones; on smaller ones
        some coincide.

    Raises:
        ValueError: An order or a number of channels that is none.
        SignalError: An input of another number of rows or channels; subgraphs of other colours.

    Cost:
        For p pairs ``O(p d d')`` operations, and memory of a few ``[p, d]``.

    Example:
        >>> subgraphs = gsym.nn.Subgraphs.from_sizes([3, 2])
        >>> layer = gsym.nn.EquivariantTensorLinear(2, 1, 4, 8)
        >>> layer(torch.randn(subgraphs.num_pairs, 4), subgraphs).shape
        torch.Size([5, 8])

    Reference:
        Maron, Ben-Hamu, Shamir, Lipman, arXiv 1812.09902, for one colour, drawn as the authors of
        Mitton, Murray-Smith, arXiv 2111.11840, draw theirs. Colours are ours.
    """

    def __init__(
        self,
        in_order: int,
        out_order: int,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        num_colours: int = 1,
        num_kinds: int = 1,
    ) -> None:
        super().__init__()
        if in_order not in (1, 2) or out_order not in ORDERS:
            raise ValueError(
                f"in_order must be 1 or 2 and out_order 0, 1 or 2; got {in_order} and {out_order}"
            )
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("num_colours", num_colours),
            ("num_kinds", num_kinds),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        self.in_order, self.out_order = in_order, out_order
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_colours, self.num_kinds = num_colours, num_kinds
        q, k = num_colours, num_kinds
        # What a node and a subgraph hold of the input, and what they give to the output.
        node_in, graph_in = (1 + 2 * q, q + q * q) if in_order == 2 else (1, q)
        node_out, graph_out = {0: (0, 1), 1: (1, q), 2: (2 * q + 1, q * (q + 1))}[out_order]
        self.register_parameter("node_weight", None)
        if node_out:
            self.node_weight = nn.Parameter(
                torch.empty(k * q, node_in * in_channels, node_out * out_channels)
            )
        self.graph_weight = nn.Parameter(
            torch.empty(k, graph_in * in_channels, graph_out * out_channels)
        )
        self.register_parameter("pair_weight", None)
        self.register_parameter("swap_weight", None)
        if in_order == out_order == 2:
            self.pair_weight = nn.Parameter(torch.empty(k * q * q, in_channels, out_channels))
            self.swap_weight = nn.Parameter(torch.empty(k * q * q, in_channels, out_channels))
        self.register_parameter("bias", None)
        self.register_parameter("loop_bias", None)
        if bias:
            count = {0: 1, 1: q, 2: q * q}[out_order]
            self.bias = nn.Parameter(torch.empty(k * count, out_channels))
            if out_order == 2:
                self.loop_bias = nn.Parameter(torch.empty(k * q, out_channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with variance ``2 / (in_channels + out_channels)``; biases are zero."""
        std = math.sqrt(2 / (self.in_channels + self.out_channels))
        for weight in (self.node_weight, self.graph_weight, self.pair_weight, self.swap_weight):
            if weight is not None:
                weight.normal_(std=std)
        for bias in (self.bias, self.loop_bias):
            if bias is not None:
                bias.zero_()

    def forward(self, x: Tensor, subgraphs: Subgraphs) -> Tensor:
        """Map a tensor of order ``in_order`` to one of ``out_order``; see the class for shapes."""
        self._check(x, subgraphs)
        pair = None
        if self.pair_weight is not None and self.swap_weight is not None:
            pair = self.pair_weight, self.swap_weight
        return kernels.subgraph_linear(
            x,
            subgraphs,
            (self.in_order, self.out_order),
            self.graph_weight,
            self.node_weight,
            pair,
            self.bias,
            self.loop_bias,
        )

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def _check(self, x: Tensor, subgraphs: Subgraphs) -> None:
        if not isinstance(subgraphs, Subgraphs):
            raise TypeError(
                f"subgraphs must be Subgraphs; got {type(subgraphs).__name__}; make them with "
                "gsym.nn.Subgraphs.from_sizes or from_batch"
            )
        ours, theirs = (
            f"{of.num_colours} colours of nodes and {of.num_kinds} kinds of subgraphs"
            for of in (self, subgraphs)
        )
        if ours != theirs:
            raise SignalError(f"the layer takes {ours} but the subgraphs have {theirs}")
        rows = subgraphs.num_pairs if self.in_order == 2 else subgraphs.num_nodes
        what = "pairs" if self.in_order == 2 else "nodes"
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor [..., {rows}, c]; got {came}")
        if x.dim() < 2 or x.size(-2) != rows or x.size(-1) != self.in_channels:
            raise SignalError(
                f"x must be [..., {rows}, {self.in_channels}], one row for each of the {what} of "
                f"the subgraphs; got {list(x.shape)}"
            )
        weight = self.graph_weight
        if x.device != weight.device or subgraphs.device != weight.device:
            raise SignalError(
                f"x is on {x.device}, the subgraphs on {subgraphs.device} and the weights on "
                f"{weight.device}; move them to one device with .to()"
            )

    def extra_repr(self) -> str:
        """Orders, channels and colours, for ``repr``."""
        more = "".join(
            f", {name}={getattr(self, name)}"
            for name in ("num_colours", "num_kinds")
            if getattr(self, name) > 1
        )
        orders = f"{self.in_order}, {self.out_order}"
        return f"{orders}, {self.in_channels}, {self.out_channels}{more}"
