"""SubgraphConv and SPEN: networks of equivariant maps on the ego-networks of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym import kernels
from gsym.errors import GraphError, SignalError
from gsym.kernels.lifted import lifted_maps
from gsym.nn import _lifted
from gsym.nn._ego import EgoTables
from gsym.nn._modules import draw_again
from gsym.nn._norm import ELUGraphNorm
from gsym.nn.subgraph import EquivariantTensorLinear

if TYPE_CHECKING:
    from torch_geometric.data import Data

COLOURS = ("none", "root")


class SubgraphConv(nn.Module):
    r"""Lift tensors of a graph to its subgraphs, map them there, and average what returns.

    With :math:`L_{ab}` the equivariant maps from order a to b, every subgraph sees the features
    of its nodes, :math:`T_1`, and of its ordered pairs, :math:`T_2`, and computes

    .. math::
        T_2' = (L_{22} T_2, L_{12} T_1), \qquad T_1' = (L_{21} T_2, L_{11} T_1).

    A node or pair of the graph takes the mean over all subgraphs that contain it. Without
    ``node_channels`` the input has order 2 alone, and :math:`T_2' = L_{22} T_2`,
    :math:`T_1' = L_{21} T_2`.

    Args:
        pair_channels: Channels of every pair.
        node_channels: Channels of every node; 0 for an input of order 2 alone.
        out_channels: Channels of each of the maps.
        num_colours: As in :class:`EquivariantTensorLinear`.
        num_kinds: As in :class:`EquivariantTensorLinear`.

    Shapes:
        - input: ``pair [f, pair_channels]`` and ``node [n, node_channels]`` or ``None``, pairs as
          ``tables.first`` and ``tables.second`` list them
        - output: ``[f, d]`` and ``[n, d]``, d being ``out_channels``, or twice that with
          ``node_channels``

    Symmetry:
        Nodes: exact for relabelling the graph and everything on it together. In every subgraph the
        map commutes with all permutations of its nodes, or with those that keep the colours.

    Cost:
        ``O(sum m^2 d d')`` for subgraphs of m nodes. With one colour and one kind, which leave to
        every pair of the graph one product whatever subgraphs hold it, ``O(f d d')`` in products
        and ``O(sum m^2 d)`` in sums, and no tensor of all pairs of subgraphs. Compiled for the
        CPU, where ``out_channels`` is a multiple of a whole vector (16 numbers at most), all maps
        and averages are one call, which stores numbers by node of a subgraph alone.

    Example:
        >>> n_id, n_sub_batch = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> tables = gsym.nn.EgoTables.build(n_id, n_sub_batch, num_nodes=2)
        >>> conv = gsym.nn.SubgraphConv(3, 2, 8)
        >>> pair, node = conv(torch.randn(4, 3), torch.randn(2, 2), tables)
        >>> pair.shape, node.shape
        (torch.Size([4, 16]), torch.Size([2, 16]))

    Reference:
        Mitton, Murray-Smith, arXiv 2111.11840, after their published code of its first version,
        as the paper itself could not be read. Two faults of that code are not repeated: features
        are not reshaped across channels and nodes, and every pair returns to its own place.
    """

    def __init__(
        self,
        pair_channels: int,
        node_channels: int,
        out_channels: int,
        *,
        num_colours: int = 1,
        num_kinds: int = 1,
    ) -> None:
        super().__init__()
        self.pair_channels, self.node_channels = pair_channels, node_channels
        self.out_channels = out_channels * (2 if node_channels else 1)

        def linear(in_order: int, out_order: int, channels: int) -> EquivariantTensorLinear:
            return EquivariantTensorLinear(
                in_order,
                out_order,
                channels,
                out_channels,
                num_colours=num_colours,
                num_kinds=num_kinds,
            )

        self.pair_to_pair = linear(2, 2, pair_channels)
        self.pair_to_node = linear(2, 1, pair_channels)
        self.node_to_pair = linear(1, 2, node_channels) if node_channels else None
        self.node_to_node = linear(1, 1, node_channels) if node_channels else None

    def reset_parameters(self) -> None:
        """Draw all maps again."""
        for part in self.children():
            draw_again(part)

    def forward(
        self, pair: Tensor, node: Tensor | None, tables: EgoTables
    ) -> tuple[Tensor, Tensor]:
        """New features of pairs and nodes; see the class for shapes."""
        if (node is None) != (self.node_to_node is None):
            raise SignalError(
                f"a layer with node_channels={self.node_channels} "
                f"{'takes no' if self.node_to_node is None else 'needs'} features of nodes"
            )
        if self._commutes(pair, node, tables):
            return self._averaged(pair, node, tables)
        lifted = kernels.segment_gather(pair, tables.pair)
        pairs = [self.pair_to_pair(lifted, tables.subgraphs)]
        nodes = [self.pair_to_node(lifted, tables.subgraphs)]
        if node is not None and self.node_to_pair is not None and self.node_to_node is not None:
            lifted = kernels.segment_gather(node, tables.node)
            pairs.append(self.node_to_pair(lifted, tables.subgraphs))
            nodes.append(self.node_to_node(lifted, tables.subgraphs))
        return (
            kernels.segment_mean(torch.cat(pairs, dim=-1), tables.pair),
            kernels.segment_mean(torch.cat(nodes, dim=-1), tables.node),
        )

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def _commutes(self, pair: Tensor, node: Tensor | None, tables: EgoTables) -> bool:
        """Whether averages can be had without lifting."""
        like = self.pair_to_pair.graph_weight
        maps = self.pair_to_pair, self.pair_to_node, self.node_to_pair, self.node_to_node
        return (
            _lifted.shares_weights(tables, like, *maps)
            and _lifted.fits(pair, tables.first.numel(), self.pair_channels, like)
            and _lifted.fits(node, tables.node.num_segments, self.node_channels, like)
        )

    def _averaged(
        self, pair: Tensor, node: Tensor | None, tables: EgoTables
    ) -> tuple[Tensor, Tensor]:
        from_pairs = _lifted.weights(self.pair_to_pair, self.pair_to_node)
        from_nodes = None
        if self.node_to_pair is not None and self.node_to_node is not None:
            from_nodes = _lifted.weights(self.node_to_pair, self.node_to_node)
        return lifted_maps(pair, from_pairs, node, from_nodes, tables.lifted)


class SPEN(nn.Module):
    """Subgraph permutation equivariant network for classes of graphs.

    :class:`SubgraphConv` in turn, each with ELU and normalisation per graph, then the maps to
    order 0 of every ego-network, ELU, the mean over the ego-networks of a graph, and two hidden
    layers. Pairs enter with the normalised adjacency in every channel, and the features of a node
    on the diagonal.

    Args:
        in_channels: Features of every node, 0 or more.
        out_channels: Classes.
        hidden_channels: Channels of each map, ``[64, 64, 64, 64, 64]`` being five layers; the last
            is that of the maps to order 0.
        colours: ``"none"``, and all nodes of a subgraph are exchanged; ``"root"``, and the root is
            distinguished from its neighbours, so that m - 1 nodes are exchanged.
        num_labels: Labels of nodes that are not exchanged for each other either; nodes bring them
            as ``label`` in ``forward``.
        num_kinds: Kinds of ego-networks with separate weights, in ``data.sub_kind``; see
            :class:`gsym.transforms.AddSubgraphKind`.
        dropout: Of both hidden layers.

    Shapes:
        - input: a ``Data`` or ``Batch`` with the fields of :class:`gsym.transforms.EgoSubgraphs`
        - output: ``[graphs, out_channels]``

    Symmetry:
        Graphs: invariant to every relabelling of the nodes and edges, exact.

    Raises:
        GraphError: Data without the fields of the transform.
        SignalError: Features of another number of channels, or not floating point.

    Cost:
        That of its layers; the tables are rebuilt for every batch that comes without them.

    Example:
        >>> from torch_geometric.data import Data
        >>> from gsym.transforms import EgoSubgraphs
        >>> edge_index = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]])
        >>> data = EgoSubgraphs(1)(Data(x=torch.ones(3, 4), edge_index=edge_index))
        >>> gsym.nn.SPEN(4, 2, [8, 8])(data).shape
        torch.Size([1, 2])

    Reference:
        Mitton, Murray-Smith, arXiv 2111.11840; see :class:`SubgraphConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: Sequence[int] = (64, 64, 64, 64, 64),
        *,
        colours: str = "none",
        num_labels: int = 1,
        num_kinds: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if colours not in COLOURS:
            raise ValueError(f"colours must be one of {', '.join(COLOURS)}; got {colours!r}")
        if len(hidden_channels) < 2:
            raise ValueError(f"hidden_channels must list two or more; got {hidden_channels!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.colours, self.num_labels, self.num_kinds = colours, num_labels, num_kinds
        self.num_colours = num_labels * (2 if colours == "root" else 1)
        options: dict[str, Any] = {"num_colours": self.num_colours, "num_kinds": num_kinds}
        *widths, last = hidden_channels
        pair, node = in_channels + 1, 0
        convs, norms = [], []
        for width in widths:
            convs.append(SubgraphConv(pair, node, width, **options))
            pair = node = convs[-1].out_channels
            norms += [ELUGraphNorm(pair), ELUGraphNorm(node)]
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)
        self.pair_to_graph = EquivariantTensorLinear(2, 0, pair, last, **options)
        self.node_to_graph = EquivariantTensorLinear(1, 0, node, last, **options)
        self.head = nn.Sequential(
            nn.Linear(2 * last, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, out_channels),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the authors draw theirs: Xavier's normal rule for the last maps, their bias 0.1."""
        for part in (*self.convs, *self.norms, self.pair_to_graph, self.node_to_graph):
            draw_again(part)
        for part in self.head:
            if isinstance(part, nn.Linear):
                nn.init.xavier_normal_(part.weight)
                nn.init.constant_(part.bias, 0.1)

    def forward(
        self, data: Data, label: Tensor | None = None, tables: EgoTables | None = None
    ) -> Tensor:
        """Scores of the classes of every graph.

        Args:
            data: Graphs with their ego-networks.
            label: Label of every node, int64 ``[n]``, with ``num_labels`` above 1.
            tables: What :meth:`tables` gave for these graphs and labels; rebuilt if left out.
        """
        batch, count = self._graphs(data)
        tables = self.tables(data, label) if tables is None else tables
        pair = self._inputs(data, tables)
        node: Any = None
        graphs, of_pair = tables.graphs(batch, count)
        for i, conv in enumerate(self.convs):
            pair, node = conv(pair, node, tables)
            pair = self.norms[2 * i](pair, of_pair)
            node = self.norms[2 * i + 1](node, graphs)
        every = F.elu(torch.cat(self._to_subgraphs(pair, node, tables), dim=-1))
        scores: Tensor = self.head(kernels.segment_mean(every, graphs))
        return scores

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def _to_subgraphs(self, pair: Tensor, node: Tensor, tables: EgoTables) -> tuple[Tensor, ...]:
        maps = self.pair_to_graph, self.node_to_graph
        if _lifted.shares_weights(tables, pair, *maps):
            return (
                _lifted.pairs_to_graphs(self.pair_to_graph, pair, tables),
                _lifted.nodes_to_graphs(self.node_to_graph, node, tables),
            )
        pair = kernels.segment_gather(pair, tables.pair)
        node = kernels.segment_gather(node, tables.node)
        return self.pair_to_graph(pair, tables.subgraphs), self.node_to_graph(
            node, tables.subgraphs
        )

    def _graphs(self, data: Data) -> tuple[Tensor, int]:
        """The graph of every node and their number."""
        for name in ("n_id", "n_sub_batch", "edge_index"):
            if getattr(data, name, None) is None:
                raise GraphError(
                    f"data has no {name}; apply gsym.transforms.EgoSubgraphs to every graph"
                )
        batch = getattr(data, "batch", None)
        if batch is None:
            return data.edge_index.new_zeros(data.num_nodes), 1
        return batch, data.num_graphs

    def tables(self, data: Data, label: Tensor | None = None) -> EgoTables:
        """The tables of a batch, to be built once where the same graphs are seen again.

        Args:
            data: Graphs with their ego-networks.
            label: Label of every node, as in :meth:`forward`.
        """
        self._graphs(data)
        if (label is None) != (self.num_labels == 1):
            raise SignalError(f"a network with num_labels={self.num_labels} needs label to match")
        colour = None
        if self.colours == "root":
            # One ego-network per node, in the order of the nodes.
            colour = (data.n_id != data.n_sub_batch).long()
        if label is not None:
            mine = label[data.n_id]
            colour = mine if colour is None else colour * self.num_labels + mine
        return EgoTables.build(
            data.n_id,
            data.n_sub_batch,
            data.num_nodes,
            colour=colour,
            num_colours=self.num_colours,
            kind=data.sub_kind if self.num_kinds > 1 else None,
            num_kinds=self.num_kinds,
        )

    def _inputs(self, data: Data, tables: EgoTables) -> Tensor:
        """Features of pairs: the normalised adjacency, and those of a node on the diagonal."""
        x, weight = data.x, self.pair_to_graph.graph_weight
        width = 0 if x is None else x.size(-1)
        if width != self.in_channels:
            raise SignalError(f"the network takes {self.in_channels} features; data.x has {width}")
        if x is not None and not x.is_floating_point():
            raise SignalError(f"data.x must be floating point; got {x.dtype}; use x.float()")
        source, target = data.edge_index
        ones = weight.new_ones(source.numel())
        degree = weight.new_zeros(data.num_nodes).index_add(0, target, ones).clamp(min=1)
        value = degree[source].rsqrt() * degree[target].rsqrt()
        pair = tables.of_edges(data.edge_index, value).expand(-1, width + 1)
        if not width:
            return pair
        loop = (tables.first == tables.second).to(weight.dtype)[:, None]
        return pair + F.pad(x[tables.first].to(weight.dtype) * loop, (1, 0))
