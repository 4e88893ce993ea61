"""GNetConv and GNet: orbit-tied layers on a graph (Approximately Equivariant Graph Networks)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import check_widths
from gsym.errors import GraphError
from gsym.groups import ClusterGroup, PermutationGroup, Representation
from gsym.nn._batch import count_graphs, refuse_stacked, unstack
from gsym.nn._inputs import check_input
from gsym.nn._last_graph import LastGraph
from gsym.nn._levels import Chain
from gsym.nn._mixing import check_mixing_memory
from gsym.nn._modules import Tables, is_plain, own_parameter
from gsym.nn._moves import Movable, Move, check_movable, like, move_conv, undrawn
from gsym.nn._neighbours import NeighbourGraph, PairTable
from gsym.nn._signs import Channels, PairTies, Tie, bias_tie, hidden_rep
from gsym.nn._tied import TiedLayer, as_clusters
from gsym.nn.linear import OrbitLinear, permute

PROPAGATIONS = ("auto", "none", "adjacency", "weighted", "pointwise")


@dataclass(frozen=True)
class _ConvTables(Tables):
    node_orbit: Tensor  # of every node; its cluster where the bias has signs
    ties: PairTable | None
    bias_tie: Tie | None
    pair_ties: PairTies | None  # of the matrices by pair of clusters that ``ties`` tells apart


class GNetConv(TiedLayer[_ConvTables], Movable["GNetConv"]):
    r"""Orbit-tied linear map that meets the graph in one of four ways.

    With h the map of :class:`OrbitLinear`, K its matrices per pair orbit and b one bias per node
    orbit:

    - ``"none"``: :math:`y_i = h_i(x) + b`; the graph is not used.
    - ``"adjacency"``: :math:`y_i = \sum_j \hat A_{ij} h_j(x) + b`, with :math:`\hat A =
      D^{-1}(A + I)`, the mean over a node and the nodes that send to it.
    - ``"weighted"``: the same with learned weights in place of A, a softmax over each node's
      neighbourhood of one logit per pair orbit, so that edges in one orbit share their weight.
    - ``"pointwise"``: :math:`y_i = \sum_j \hat A_{ij} K_{orb(i, j)} x_j + b`, the map restricted
      to edges.

    Messages go from ``edge_index[0]`` to ``edge_index[1]``. A node without a self-loop gets one
    of weight 1.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Group to tie along; ``None`` is the full symmetric group on any number of nodes.
        propagate: One of the four ways, or ``"auto"``: ``"adjacency"`` in a call with a graph, and
            the map and bias alone, as ``"none"``, in a call without.
        in_rep: As in :class:`OrbitLinear`: how the group moves the channels of the input.
        out_rep: How it moves those of the output.
        bias: Add one learned vector per node orbit.
        mixing: As in :class:`OrbitLinear`; ``"pointwise"`` has none and refuses the choice.
        rank: As in :class:`OrbitLinear`.
        cluster_edge_index: As in :class:`OrbitLinear`.
        levels: As in :class:`OrbitLinear`, a chain of groups for the linear map; the bias and the
            weights of ``"weighted"`` are tied along the finest. ``"pointwise"`` refuses it.

    Shapes:
        - input: ``x [..., n, in_channels]``, ``edge_index [2, e]``, ``edge_weight [e]``; or PyG's
          stacked batch of one graph with ``batch_size=b``: ``x [b*n, in_channels]`` and
          ``edge_index`` and ``edge_weight`` of one copy or of all
        - output: ``[..., n, out_channels]``, or ``[b*n, out_channels]``

    Symmetry:
        Nodes: ``"none"`` is exact for ``group``. The others are exact when
        ``group.preserves(edge_index, edge_weight)``, otherwise approximate, because a fixed
        graph distinguishes nodes that the group exchanges; ``gsym.check.equivariance_error``
        says by how much. Relabelling graph and signal together commutes with ``group=None``
        always.

    Raises:
        ValueError: An unknown ``propagate``; ``"pointwise"`` with what it refuses; more than a GiB
            of weights, as in :class:`OrbitLinear`.
        TypeError: A ``propagate`` that needs a graph, called without one.
        GraphError: An ``edge_index`` that is out of range, not int64 or not ``[2, e]``; with
            ``"none"``, any.
        SignalError: A signal of other channels, of another number of nodes, or not floating point;
            with ``group=None``, several graphs stacked without ``batch`` or ``batch_size``.
        GroupError: Loading a checkpoint of another group or of other representations; a
            representation of another group or of other channels. Levels on different numbers of
            nodes.

    Cost:
        That of :class:`OrbitLinear` and ``O(e d')`` per signal (``"pointwise"``: ``O(e d d')``).
        What depends on the graph alone is prepared at its first use and kept for the last graph
        seen, which is recognised by its values. Under ``torch.compile`` and ``torch.export`` a
        graph that the layer was called on before is a constant with these tables, and an
        assertion refuses another; any other is an input of the compiled program, in plain torch.

    Example:
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 1, 1]))
        >>> conv = GNetConv(2, 3, group, propagate="weighted")
        >>> edge_index = torch.tensor([[0, 1, 2, 3], [2, 2, 0, 1]])
        >>> conv(torch.randn(8, 4, 2), edge_index).shape
        torch.Size([8, 4, 3])

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436, G-Net, G-Net(gc), G-Net(gc+ew) and G-Net(pt), from
        the formulas: the published ``gc+ew`` uses only the diagonal of its learned adjacency and
        does not tie it. The softmax over non-edges of the published ``pt`` is left out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup | None = None,
        *,
        propagate: str = "auto",
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
        bias: bool = True,
        mixing: str = "full",
        rank: int | None = None,
        cluster_edge_index: Tensor | None = None,
        levels: object = None,
    ) -> None:
        chain = Chain.of(levels, group)
        group = group if chain is None else chain.group
        super().__init__(group, in_rep, out_rep)
        check_widths(in_channels=in_channels, out_channels=out_channels)
        if propagate not in PROPAGATIONS:
            raise ValueError(
                f"propagate must be one of {', '.join(PROPAGATIONS)}; got {propagate!r}"
            )
        unused = mixing != "full" or rank is not None or cluster_edge_index is not None
        if propagate == "pointwise" and unused:
            raise ValueError(
                'propagate="pointwise" has one matrix per orbit of edges and no mixing between '
                "clusters; leave mixing, rank and cluster_edge_index out"
            )
        if chain is not None and propagate == "pointwise":
            raise ValueError(
                'propagate="pointwise" has one matrix per orbit of edges and no levels; use '
                '"adjacency" or "weighted"'
            )
        self.levels = () if chain is None else chain.groups
        self._signed = in_rep is not None or out_rep is not None
        self.in_channels, self.out_channels = in_channels, out_channels
        self.propagate = propagate
        self._into = Channels.of(in_rep, in_channels, group, "in_rep")
        self._out = Channels.of(out_rep, out_channels, group, "out_rep")
        clusters = as_clusters(group)
        self.num_nodes = None if group is None else clusters.num_nodes
        # A group fixes the number of nodes, which tells one graph from several.
        self._may_mix_graphs = group is None and propagate != "pointwise" and mixing != "none"
        tables = self._tables(torch.device("cpu"))
        ties = tables.ties
        self.linear: OrbitLinear | None = None
        self.register_parameter("weight", None)
        self.register_parameter("edge_logit", None)
        if ties is not None and propagate == "pointwise":
            check_mixing_memory(ties.num_orbits, in_channels, out_channels, clusters)
            shape = ties.num_orbits, in_channels, out_channels
            if tables.pair_ties is not None:
                shape = tables.pair_ties.free, self._into.copies, self._out.copies
            self.weight = nn.Parameter(torch.empty(*shape))
        else:
            self.linear = OrbitLinear(
                in_channels,
                out_channels,
                group if chain is None else None,
                in_rep=in_rep,
                out_rep=out_rep,
                bias=bias and propagate == "none",
                mixing=mixing,
                rank=rank,
                cluster_edge_index=cluster_edge_index,
                levels=chain,
            )
        if ties is not None and propagate == "weighted":
            check_mixing_memory(ties.num_orbits, 1, 1, clusters)
            self.edge_logit = nn.Parameter(torch.empty(ties.num_orbits))
        if bias and propagate != "none":
            tie = tables.bias_tie
            free = clusters.node_orbits().num_orbits if tie is None else tie.free
            width = out_channels if tie is None else self._out.copies
            self.bias = nn.Parameter(torch.empty(free, width))
        else:
            self.register_parameter("bias", None)
        self._graph = LastGraph[NeighbourGraph]()
        self.reset_parameters()

    def _build_tables(self) -> _ConvTables:
        tied = self.propagate in ("weighted", "pointwise")
        clusters = as_clusters(self.group)
        if not self._signed:
            ties = PairTable.build(self.group) if tied else None
            return _ConvTables(clusters.node_orbits().index, ties, None, None)
        nodes, bias = clusters.partition.labels, bias_tie(clusters, self._out)
        if self.propagate != "pointwise":
            return _ConvTables(nodes, PairTable.build(self.group) if tied else None, bias, None)
        pairs = PairTies.of(clusters, self._into, self._out)
        return _ConvTables(nodes, PairTable.build(ClusterGroup(clusters.partition)), bias, pairs)

    @torch.no_grad()
    def reset_parameters(self, gain: float = math.sqrt(2)) -> None:
        """Draw the linear map as :class:`OrbitLinear` does; all edges start with equal weight."""
        if self.linear is not None:
            self.linear.reset_parameters(gain)
        if self.weight is not None:
            ties = self._tables(self.weight.device).pair_ties
            if ties is None:
                self.weight.normal_(std=gain / math.sqrt(self.in_channels))
            else:
                ties.draw(self.weight, gain**2 / self.in_channels, self._out)
        if self.edge_logit is not None:
            self.edge_logit.zero_()
        if self.bias is not None:
            self.bias.zero_()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Map signals on one graph; see the class for shapes.

        Args:
            x: Signals ``[..., n, in_channels]``.
            edge_index: The graph; ``"auto"`` does without, and ``"none"`` refuses one.
            edge_weight: Non-negative weight of every edge; 1 where ``None``. ``"weighted"``
                multiplies its learned weights by them before it normalises. The copies of a
                stacked batch may differ in their weights. A node whose weights are all 0
                receives 0.
            batch: PyG's vector, the graph of every row of a stacked batch ``[b*n, in_channels]``;
                all of one size.
            batch_size: Number of graphs in a stacked batch, instead. Without either, ``x [n, c]``
                is one graph; with ``group=None`` a graph that falls apart into blocks of
                consecutive nodes, as PyG stacks several, is then refused, and ``batch_size=1``
                says that it is one. The values of an input of compiled code are not read.
        """
        if batch is not None:
            batch_size = count_graphs(x, batch, batch_size, self.num_nodes)
        if batch_size is not None:
            x = unstack(x, batch_size, self.num_nodes)
        check_input(x, self.num_nodes, self.in_channels, self._like())
        if self.propagate == "none":
            _check_unused(edge_index, edge_weight)
        if self.propagate in ("none", "auto") and edge_index is None:
            if edge_weight is not None:
                raise GraphError("edge_weight needs the edges that it weighs; pass edge_index too")
            assert self.linear is not None
            y = self.linear(x)
        else:
            graph = self._prepare(edge_index, x, batch_size)
            weight = graph.weights(edge_weight, self.edge_logit, x, batch_size)
            y = self._propagate(x, graph, weight)
        if self.bias is not None:
            tables = self._tables(x.device)
            bias: Tensor = self.bias
            if tables.bias_tie is not None:
                bias = tables.bias_tie.expand(bias).view(-1, self.out_channels)
            y = y + bias.index_select(0, tables.node_orbit)
        return y if batch_size is None else y.flatten(0, 1)

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def _like(self) -> Tensor | None:
        """A weight whose device and type a signal must have."""
        own = own_parameter(self, "weight", "bias", "edge_logit")
        linear = self.linear
        return linear._like() if own is None and isinstance(linear, OrbitLinear) else own

    def _propagate(self, x: Tensor, graph: NeighbourGraph, weight: Tensor) -> Tensor:
        """The sum over the neighbours, accumulated and weighted in float32 at least."""
        if self.linear is not None:
            sent = self.linear(x)
            wide = sent.to(weight.dtype)
            y = kernels.gather_segment_sum(wide, graph.source, graph.target, weight[..., 0])
            return y.to(sent.dtype)
        assert self.weight is not None and graph.tiles is not None
        sent = kernels.segment_gather(x.to(weight.dtype), graph.source) * weight
        matrices = self._pair_matrices().to(weight.dtype)
        messages = kernels.indexed_linear(sent, matrices, graph.tiles)
        return kernels.segment_sum(messages, graph.target).to(x.dtype)

    def _pair_matrices(self) -> Tensor:
        """The matrices ``[p, in, out]`` of ``"pointwise"``, as the pairs are numbered."""
        assert self.weight is not None
        ties = self._tables(self.weight.device).pair_ties
        return self.weight if ties is None else ties.matrices(self.weight, self._into, self._out)

    def _prepare(
        self, edge_index: Tensor | None, x: Tensor, batch_size: int | None
    ) -> NeighbourGraph:
        if edge_index is None:
            raise TypeError(f'propagate="{self.propagate}" needs edge_index')
        graph = self._graph.get(edge_index, x, batch_size, self._build, self._trace)
        if x.dim() == 2:
            refuse_stacked(x, graph.num_blocks)
        return graph

    def _build(self, edge_index: Tensor, n: int) -> NeighbourGraph:
        ties = self._tables(edge_index.device).ties
        widths = None if self.weight is None else (self.in_channels, self.out_channels)
        blocks = self._may_mix_graphs
        return NeighbourGraph.build(edge_index, n, ties, widths, counts_blocks=blocks)

    def _trace(self, edge_index: Tensor, n: int) -> NeighbourGraph:
        ties = self._tables(edge_index.device).ties
        return NeighbourGraph.trace(edge_index, n, ties, has_tiles=self.weight is not None)

    def energy(self) -> Tensor:
        """As :meth:`OrbitLinear.energy`, of the linear map."""
        self._own_chain()
        assert self.linear is not None
        return self.linear.energy()

    def _chain_of(self) -> Chain | None:
        return None if self.linear is None else self.linear._chain_of()

    def _moved_to(self, target: Chain | PermutationGroup | None) -> GNetConv:
        check_movable(self, target)
        if self.linear is None and isinstance(target, Chain):
            raise ValueError('propagate="pointwise" has no levels; move it to a group')
        linear = None if self.linear is None else self.linear._moved_to(target)
        group = target.group if isinstance(target, Chain) else target
        options: dict[str, Any] = {"propagate": self.propagate, "bias": self.bias is not None}
        if linear is not None:
            options["mixing"] = "none" if linear.mixing is None else "full"
        with undrawn():
            twin = GNetConv(self.in_channels, self.out_channels, group, **options)
        like(twin, self)
        if linear is not None:
            twin.linear, twin.levels = linear, linear.levels
        twin.moved = move_conv(self, twin, group)
        return twin

    def extra_repr(self) -> str:
        """Channels, group and propagation, for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, group={self.group or 'S_n'}, "
            f"propagate={self.propagate!r}"
        )


class GNet(nn.Module, Movable["GNet"]):
    """A stack of :class:`GNetConv` with ReLU between.

    Args:
        channels: Channels before, between and after the layers, two or more.
        group: Group of every layer; ``None`` is the full symmetric group on any number of nodes.
        propagate: How every layer meets the graph, as in :class:`GNetConv`; ``"none"`` gives the
            paper's inpainting net.
        in_rep: How the group moves the channels of the input, as in :class:`OrbitLinear`.
        out_rep: How it moves those of the output.
        hidden: How it moves those between: ``"trivial"``, not at all, which loses whatever changes
            its sign at nodes that the group fixes; or ``"regular"``, copies of
            :meth:`gsym.Representation.regular`, which lose nothing and keep ReLU legal, so that
            hidden widths are multiples of the order of the group (of its swaps); or a
            representation by permutations, because signs before ReLU are refused. By default
            ``"regular"`` with representations, else ``"trivial"``.
        mixing: As in :class:`OrbitLinear`.
        rank: As in :class:`OrbitLinear`.
        cluster_edge_index: As in :class:`OrbitLinear`.
        levels: As in :class:`OrbitLinear`, a chain of groups for every layer.

    Shapes:
        - input: as :class:`GNetConv`, with ``channels[0]`` channels
        - output: as :class:`GNetConv`, with ``channels[-1]`` channels

    Symmetry:
        Nodes, and channels with representations: that of its layers; ReLU acts on every entry
        alone and keeps it, because hidden channels change places but no signs.

    Example:
        >>> group = ClusterGroup(Partition.grid(28, 28, 7))
        >>> net = GNet([1, 28, 1], group, propagate="none")
        >>> sum(p.numel() for p in net.parameters())
        15696
        >>> net(torch.randn(2, 784, 1)).shape
        torch.Size([2, 784, 1])

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436. Their 2-layer net has one bias per channel; ours
        has one per node orbit, the complete equivariant bias.
    """

    def __init__(
        self,
        channels: Sequence[int],
        group: PermutationGroup | None = None,
        *,
        propagate: str = "auto",
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
        hidden: str | Representation | None = None,
        mixing: str = "full",
        rank: int | None = None,
        cluster_edge_index: Tensor | None = None,
        levels: object = None,
    ) -> None:
        super().__init__()
        if not isinstance(channels, Sequence):
            raise TypeError(f"channels must list two widths or more; got {channels!r:.80}")
        if len(channels) < 2:
            raise ValueError(f"channels must list two widths or more; got {list(channels)}")
        chain = Chain.of(levels, group)
        self.levels = () if chain is None else chain.groups
        group = group if chain is None else chain.group
        self.in_channels, self.out_channels = channels[0], channels[-1]
        self.group, self.propagate = group, propagate
        self.in_rep, self.out_rep = in_rep, out_rep
        if hidden is None:
            hidden = "trivial" if in_rep is None and out_rep is None else "regular"
        between = [hidden_rep(hidden, width, group) for width in channels[1:-1]]
        reps = [in_rep, *between, out_rep]
        self.convs = nn.ModuleList(
            GNetConv(
                here,
                there,
                group if chain is None else None,
                propagate=propagate,
                in_rep=before,
                out_rep=after,
                mixing=mixing,
                rank=rank,
                cluster_edge_index=cluster_edge_index,
                levels=chain,
            )
            for (here, there), (before, after) in zip(
                pairwise(channels), pairwise(reps), strict=True
            )
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all layers; the last has no ReLU behind it and hence gain 1."""
        for i, conv in enumerate(self.convs, start=1):
            assert isinstance(conv, GNetConv)
            conv.reset_parameters(gain=1.0 if i == len(self.convs) else math.sqrt(2))

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Apply the layers in turn; arguments as for :class:`GNetConv`."""
        if batch is not None:
            nodes = None if self.group is None else self.group.num_nodes
            batch_size = count_graphs(x, batch, batch_size, nodes)
        maps = self._plain_maps()
        if maps:
            _check_unused(edge_index, edge_weight)
            return self._sorted_stack(maps, x, batch_size)
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else x.relu(), edge_index, edge_weight, batch_size=batch_size)
        return x

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def energy(self) -> Tensor:
        """As :meth:`OrbitLinear.energy`, of all layers, float64 ``[layers, levels]``."""
        self._own_chain()
        return torch.stack([conv.energy() for conv in self._layers()])

    def _layers(self) -> list[GNetConv]:
        return [conv for conv in self.convs if isinstance(conv, GNetConv)]

    def _chain_of(self) -> Chain | None:
        return self._layers()[0]._chain_of()

    def _moved_to(self, target: Chain | PermutationGroup | None) -> GNet:
        convs = [conv._moved_to(target) for conv in self._layers()]
        twin = copy.deepcopy(self, {id(self.convs): nn.ModuleList(convs)})
        twin.group, twin.levels = convs[0].group, convs[0].levels
        twin.in_rep = twin.out_rep = None
        twin.moved = tuple(conv.moved for conv in convs if isinstance(conv.moved, Move))
        return twin

    def _plain_maps(self) -> list[OrbitLinear]:
        """The maps of all layers, if they are all there is and nobody listens to a layer."""
        if self.propagate != "none" or not is_plain(GNetConv, *self.convs):
            return []
        maps = [conv.linear for conv in self.convs]
        plain = is_plain(OrbitLinear, *maps)
        return [m for m in maps if isinstance(m, OrbitLinear)] if plain else []

    def _sorted_stack(self, maps: list[OrbitLinear], x: Tensor, batch_size: int | None) -> Tensor:
        """Without a graph, nodes are sorted only where the next layer wants another layout."""
        if batch_size is not None:
            x = unstack(x, batch_size, maps[0].num_nodes)
        check_input(x, maps[0].num_nodes, self.in_channels, maps[0]._like())
        is_sorted = False
        for i, linear in enumerate(maps):
            x, is_sorted = linear.sort(x if i == 0 else x.relu(), is_sorted)
            x = linear.map(x, linear._tables(x.device), is_sorted)
        clusters = maps[0]._tables(x.device).clusters
        if is_sorted and clusters is not None:
            x = permute(x, clusters, back=True)
        return x if batch_size is None else x.flatten(0, 1)


def _check_unused(edge_index: object, edge_weight: object) -> None:
    """Refuse a graph that nothing would look at."""
    if edge_index is not None or edge_weight is not None:
        raise GraphError(
            'propagate="none" uses no graph, but one was given; leave it out, or choose another '
            "way to propagate"
        )
