"""Which tensors of a graph every one of its subgraphs sees, and how they return."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gsym import kernels
from gsym.errors import GraphError
from gsym.kernels.lifted import LiftedTables
from gsym.kernels.subgraphs import Subgraphs
from gsym.kernels.transforms import undisturbed


@dataclass(frozen=True, eq=False, repr=False)
class EgoTables:
    """Subgraphs of one graph or a batch, their nodes and pairs among those of the graph.

    Attributes:
        subgraphs: The subgraphs, with all ordered pairs.
        node: Node of the graph of every node of a subgraph.
        pair: Pair of the graph of every pair of a subgraph.
        first: First node of every pair of nodes that share a subgraph, int64 ``[f]``.
        second: The second node of each.
    """

    subgraphs: Subgraphs
    node: kernels.Segments
    pair: kernels.Segments
    first: Tensor
    second: Tensor
    _kept: list[LiftedTables] = field(default_factory=list, init=False)
    _graphs: list[tuple[kernels.Segments, kernels.Segments]] = field(
        default_factory=list, init=False
    )

    @property
    def lifted(self) -> LiftedTables:
        """Tables of maps that all subgraphs share, made when they are first asked for."""
        if not self._kept:
            with undisturbed():
                parts = self.subgraphs, self.node, self.pair, self.first, self.second
                self._kept.append(LiftedTables.build(*parts))
        return self._kept[0]

    def graphs(self, batch: Tensor, count: int) -> tuple[kernels.Segments, kernels.Segments]:
        """The graph of every node and pair, of a batch of ``count`` graphs."""
        if not self._graphs or self._graphs[0][0].num_segments != count:
            found = kernels.Segments(batch, count), kernels.Segments(batch[self.first], count)
            self._graphs[:] = [found]
        return self._graphs[0]

    @classmethod
    def build(
        cls,
        n_id: Tensor,
        n_sub_batch: Tensor,
        num_nodes: int,
        *,
        colour: Tensor | None = None,
        num_colours: int | None = None,
        kind: Tensor | None = None,
        num_kinds: int | None = None,
    ) -> EgoTables:
        """Tables of subgraphs as :class:`gsym.transforms.EgoSubgraphs` writes them.

        Args:
            n_id: Node of the graph of every entry.
            n_sub_batch: Subgraph of every entry, one subgraph per node of the graph.
            num_nodes: Nodes of the graph, or of all graphs of a batch.
            colour: Colour of every entry, as :meth:`Subgraphs.from_batch` takes it.
            num_colours: Number of colours.
            kind: Kind of every subgraph.
            num_kinds: Number of kinds.
        """
        if n_id.shape != n_sub_batch.shape:
            raise GraphError(
                f"n_id and n_sub_batch must be equally long; got {n_id.numel()} and "
                f"{n_sub_batch.numel()}"
            )
        subgraphs = Subgraphs.from_batch(
            n_sub_batch,
            num_nodes,
            colour=colour,
            num_colours=num_colours,
            kind=kind,
            num_kinds=num_kinds,
        )
        keys = n_id[subgraphs.row] * num_nodes + n_id[subgraphs.col]
        pairs, place = torch.unique(keys, return_inverse=True)
        return cls(
            subgraphs=subgraphs,
            node=kernels.Segments.from_index(n_id, num_nodes),
            pair=kernels.Segments(place, pairs.numel()),
            first=pairs // max(num_nodes, 1),
            second=pairs % max(num_nodes, 1),
        )

    def of_edges(self, edge_index: Tensor, value: Tensor) -> Tensor:
        """Values ``[e]`` of edges summed for every pair, ``[f, 1]``.

        An edge whose ends share no subgraph counts for nothing.
        """
        count = self.node.num_segments
        keys, wanted = self.first * count + self.second, edge_index[0] * count + edge_index[1]
        place = torch.searchsorted(keys, wanted).clamp(max=max(keys.numel() - 1, 0))
        found = (keys[place] == wanted).to(value.dtype) if keys.numel() else value[:0]
        return value.new_zeros(keys.numel(), 1).index_add(0, place, (value * found)[:, None])
