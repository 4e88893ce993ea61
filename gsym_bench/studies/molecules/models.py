"""The networks that classify graphs; all of about as many parameters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import MLP, GINConv, GraphNorm, global_add_pool, global_mean_pool

from gsym.nn import SPEN, EgoTables, EquivariantTensorLinear
from gsym_bench.studies.molecules.graphs import KINDS

LAYERS = 3  # of SPEN, of the order-2 network, and outer ones of the rooted network
GIN_LAYERS = 5  # as published
WIDEST = 128
# Of Adam at the start, for all; the best of three for GIN on PTC, by validation.
RATE = 3e-3


class GraphNet(nn.Module):
    """A network on batches of graphs that prepares what it needs of a batch only once.

    Shapes:
        - input: a batch with the fields of `graphs.make_graphs`, and what `prepare` gave for it
        - output: ``[graphs, classes]``
    """

    def prepare(self, data: Batch) -> Any:
        """Whatever depends on the batch and not on the weights."""
        return None

    def forward(self, data: Batch, prepared: Any) -> Tensor:
        raise NotImplementedError


class GINNet(GraphNet):
    """GIN of PyG's layers: every layer's sum over the nodes is scored, and the scores are added.

    Reference:
        Xu, Hu, Leskovec, Jegelka, arXiv 1810.00826; GIN-0.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        channels = [in_channels] + [width] * GIN_LAYERS
        self.convs = nn.ModuleList(
            GINConv(MLP([c, width, width], norm="batch_norm")) for c in channels[:-1]
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in self.convs)
        self.heads = nn.ModuleList(nn.Linear(c, out_channels) for c in channels)

    def forward(self, data: Batch, prepared: Any) -> Tensor:
        every = [data.x]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            every.append(norm(conv(every[-1], data.edge_index)).relu())
        sums = (global_add_pool(x, data.batch, size=data.num_graphs) for x in every)
        scores = [head(x) for head, x in zip(self.heads, sums, strict=True)]
        return F.dropout(torch.stack(scores), 0.5, self.training).sum(0)


class SPENNet(GraphNet):
    """`gsym.nn.SPEN`, with kinds of ego-networks or colours of their nodes.

    Args:
        in_channels: Labels of nodes.
        out_channels: Classes.
        width: Channels of each map.
        by: Ego-networks ``"size"`` or ``"automorphism"`` alike share weights; all if empty.
        num_kinds: How many kinds of them there are.
        colours: As in `SPEN`.
        labels: Whether nodes of the commonest label are told from all others, too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        *,
        by: str = "",
        num_kinds: int = 1,
        colours: str = "none",
        labels: bool = False,
    ) -> None:
        super().__init__()
        self.by, self.labels = by, labels
        self.net = SPEN(
            in_channels,
            out_channels,
            [width] * LAYERS,
            colours=colours,
            num_labels=2 if labels else 1,
            num_kinds=num_kinds,
        )

    def prepare(self, data: Batch) -> EgoTables:
        if self.by:
            data.sub_kind = data[f"{self.by}_kind"]
        return self.net.tables(data, self._label(data))

    def forward(self, data: Batch, prepared: EgoTables) -> Tensor:
        return self.net(data, self._label(data), prepared)

    def _label(self, data: Batch) -> Tensor | None:
        return data.label if self.labels else None


class TensorNet(GraphNet):
    """A network of equivariant maps of order 2 on whole graphs, normalised and read as SPEN is.

    Reference:
        Maron, Ben-Hamu, Shamir, Lipman, arXiv 1812.09902.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        channels = [in_channels + 1] + [width] * (LAYERS - 1)
        self.maps = nn.ModuleList(
            EquivariantTensorLinear(2, 2, c, width) for c in channels[: LAYERS - 1]
        )
        self.norms = nn.ModuleList(GraphNorm(width) for _ in self.maps)
        self.last = EquivariantTensorLinear(2, 0, width, 2 * width)
        self.head = MLP([2 * width, 256, 128, out_channels], norm=None, dropout=0.5)

    def prepare(self, data: Batch) -> tuple[EgoTables, Tensor, Tensor]:
        # Subgraph i is graph i; those from the number of graphs on are empty.
        n = data.num_nodes
        tables = EgoTables.build(torch.arange(n), data.batch, n)
        source, target = data.edge_index
        degree = torch.bincount(target, minlength=n).clamp(min=1).to(data.x.dtype)
        value = (degree[source] * degree[target]).rsqrt()
        loop = (tables.first == tables.second).to(data.x.dtype)[:, None]
        pair = tables.of_edges(data.edge_index, value)
        pair = torch.cat([pair, data.x[tables.first] * loop], dim=1)
        return tables, pair, data.batch[tables.first]

    def forward(self, data: Batch, prepared: tuple[EgoTables, Tensor, Tensor]) -> Tensor:
        tables, pair, owner = prepared
        for conv, norm in zip(self.maps, self.norms, strict=True):
            pair = norm(F.elu(conv(pair, tables.subgraphs)), owner, data.num_graphs)
        return self.head(F.elu(self.last(pair, tables.subgraphs)[: data.num_graphs]))


class RootedConv(nn.Module):
    """Two layers of GIN on the ego-network of every node; it takes their mean and its own.

    Reference:
        After GNN-AK: Zhao, Jin, Akoglu, Shah, arXiv 2110.03753.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()

        def conv(channels: int) -> GINConv:
            return GINConv(MLP([channels, width, width], norm="batch_norm"))

        self.convs = nn.ModuleList([conv(in_channels + 1), conv(width)])
        self.mix = nn.Linear(in_channels + 2 * width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, data: Batch, root: Tensor) -> Tensor:
        h = torch.cat([x[data.n_id], root], dim=1)
        for conv in self.convs:
            h = conv(h, data.sub_edge_index).relu()
        around = global_mean_pool(h, data.n_sub_batch, size=data.num_nodes)
        own = global_add_pool(h * root, data.n_sub_batch, size=data.num_nodes)
        return self.norm(self.mix(torch.cat([x, around, own], dim=1))).relu()


class RootedNet(GraphNet):
    """Message passing within ego-networks, layer by layer, then GIN's way to classes."""

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        channels = [in_channels] + [width] * (LAYERS - 1)
        self.convs = nn.ModuleList(RootedConv(c, width) for c in channels)
        self.head = nn.Linear(LAYERS * width, out_channels)

    def prepare(self, data: Batch) -> Tensor:
        return (data.n_id == data.n_sub_batch).to(data.x.dtype)[:, None]

    def forward(self, data: Batch, prepared: Tensor) -> Tensor:
        x, every = data.x, []
        for conv in self.convs:
            x = conv(x, data, prepared)
            every.append(global_add_pool(x, data.batch, size=data.num_graphs))
        return self.head(F.dropout(torch.cat(every, dim=1), 0.5, self.training))


@cache
def matching_width(name: str, in_channels: int, out_channels: int, parameters: int) -> int:
    """The width at which a network's number of parameters is nearest to the wanted one.

    Args:
        name: One of `models`.
        in_channels: Labels of nodes.
        out_channels: Classes.
        parameters: The wanted number.
    """

    def count(width: int) -> int:
        with torch.device("meta"):  # without memory for weights
            return count_parameters(models(KINDS)[name](in_channels, out_channels, width))

    above = bisect_left(range(1, WIDEST + 1), parameters, key=count) + 1
    return min((max(above - 1, 1), above), key=lambda width: abs(count(width) - parameters))


def count_parameters(net: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in net.parameters())


def models(kinds: Mapping[str, int]) -> dict[str, Callable[[int, int, int], GraphNet]]:
    """What builds every network from labels, classes and a width, by name; cheap ones first.

    Args:
        kinds: Number of kinds of ego-networks, by what they have in common.
    """
    spen: dict[str, dict[str, Any]] = {
        "SPEN by size": {"by": "size", "num_kinds": kinds["size"]},
        "SPEN, root coloured": {"colours": "root"},
        "SPEN, labels coloured": {"labels": True},
        "SPEN by automorphism": {"by": "automorphism", "num_kinds": kinds["automorphism"]},
    }
    return {
        "GIN": GINNet,
        "rooted subgraphs": RootedNet,
        "order 2, whole graph": TensorNet,
        **{name: partial(SPENNet, **options) for name, options in spen.items()},
    }
