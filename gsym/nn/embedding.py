"""OrbitEmbedding: learned vectors of nodes, shared within orbits or summed along a chain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gsym._validate import check_widths
from gsym.errors import SignalError
from gsym.groups import Orbits, PermutationGroup
from gsym.groups.levels import level_name, read_levels
from gsym.kernels.transforms import is_eager
from gsym.nn._orbit_rows import OrbitRows, nearest_rows
from gsym.nn._tied import ChainLayer, check_group


class OrbitEmbedding(ChainLayer[OrbitRows]):
    r"""A learned vector of every node, the same within each orbit of a group.

    The embeddings that forecasting models learn per node, from global to local: one vector for
    all nodes with :math:`S_n`, one for each with the trivial group, one per cluster between. Along
    a chain of groups it is the sum over levels

    .. math::
        e_i = \sum_l E^{(l)}_{orb_l(i)},

    so that nodes share what few data tell of them and differ in what many tell.

    It stands where ``nn.Embedding(n, channels)`` or a parameter ``[n, channels]`` did: called with
    numbers of nodes it looks them up, and ``weight`` is the whole table.

    Args:
        channels: Length of a vector.
        group: Its node orbits get one vector each.
        levels: A chain instead: a :class:`gsym.Hierarchy` (of many levels, 7 are taken), or groups
            and partitions of the same nodes in any order. They need not be nested.

    Shapes:
        - input: numbers of nodes, int64 of any shape ``[...]``; none for all nodes in turn
        - output: ``[..., channels]``, or ``[n, channels]`` of all nodes

    Symmetry:
        Nodes: exact at every value of the parameters: ``e[g(i)] = e[i]`` for every g of the
        group, or of all groups of the chain at once (of the finest, where they are nested). The
        parameters span all such tables: one dimension per node orbit and channel; along a chain
        the sum of these spaces.

    Raises:
        TypeError: Neither ``group`` nor ``levels``, or both.
        GroupError: Levels on different nodes; loading a checkpoint of another group or chain.
        SignalError: Numbers of nodes that are neither int64 nor int32.
        IndexError: A number that no node has.

    Cost:
        Levels are summed once per part that all of them tell apart, then one gather:
        ``O(k l d + n d)`` for l levels and k parts.

    Example:
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]))
        >>> emb = OrbitEmbedding(8, group)
        >>> emb().shape, emb(torch.tensor([[4, 0], [1, 2]])).shape
        (torch.Size([5, 8]), torch.Size([2, 2, 8]))
        >>> bool((emb()[2] == emb()[4]).all())
        True

        Global, by cluster and local at once, appended to signals ``[b, n, c]``:

        >>> chain = [Partition.single(5), group, Partition.singletons(5)]
        >>> emb, x = OrbitEmbedding(8, levels=chain), torch.randn(32, 5, 2)
        >>> torch.cat([x, emb().expand(32, -1, -1)], dim=-1).shape
        torch.Size([32, 5, 10])

    Reference:
        Embeddings of single nodes: Cini, Marisca, Zambon, Alippi, arXiv 2302.04071.
        The sum along a chain is ours.
    """

    def __init__(
        self, channels: int, group: PermutationGroup | None = None, *, levels: Any = None
    ) -> None:
        if (group is None) == (levels is None):
            raise TypeError(
                "an embedding is tied by a group or along a chain: give group= or levels=; for one "
                "vector that all n nodes share give PermutationGroup.symmetric(n)"
            )
        check_widths(channels=channels)
        check_group(group)
        found = read_levels(levels) if group is None else (group,)
        super().__init__(sorted(found, key=lambda g: -g.node_orbits().num_orbits))
        self.channels, self.num_nodes = channels, self.levels[0].num_nodes
        self._tables(torch.device("cpu"))
        rows = sum(orbits.num_orbits for orbits in self._orbits())
        self.orbit_weight = nn.Parameter(torch.empty(rows, channels))
        self.reset_parameters()

    def _orbits(self) -> list[Orbits]:
        return [group.node_orbits() for group in self.levels]

    def _build_tables(self) -> OrbitRows:
        return OrbitRows.of(self._orbits())

    @torch.no_grad()
    def reset_parameters(self, std: float = 1.0) -> None:
        """Draw normal vectors; levels share the variance, ``std^2`` per entry whatever the chain.

        A level has no scale of its own: its rows are its own, and no others are scaled with them.
        """
        self.orbit_weight.normal_(std=std / math.sqrt(len(self.levels)))

    def forward(self, node: Tensor | None = None) -> Tensor:
        """Look vectors up.

        Args:
            node: Numbers of nodes, int64 ``[...]``; ``None`` for all nodes in turn.
        """
        weight = self.orbit_weight
        tables = self._tables(weight.device)
        if node is None:
            return tables.expand(weight)
        _check_nodes(node, self.num_nodes)
        part = tables.part.index_select(0, node.reshape(-1))
        found = tables.sums(weight).index_select(0, part)
        return found.view(*node.shape, self.channels)

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    @property
    def weight(self) -> Tensor:
        """The table of all nodes, ``[n, channels]``, as ``nn.Embedding`` has it; differentiable."""
        return self._tables(self.orbit_weight.device).expand(self.orbit_weight)

    @torch.no_grad()
    def copy_from(self, table: Tensor) -> float:
        """Take the vectors that are nearest to a table ``[n, channels]``, its projection.

        Along a chain coarse levels take what they can, and finer ones the rest.

        Returns:
            What is lost: the Frobenius norm of the difference over that of the table.

        Raises:
            SignalError: A table of another shape.

        Example:
            >>> emb = OrbitEmbedding(1, PermutationGroup.from_cycles(3, [(0, 1)]))
            >>> round(emb.copy_from(torch.tensor([[1.0], [3.0], [5.0]])), 4)
            0.239
            >>> emb().flatten().tolist()
            [2.0, 2.0, 5.0]
        """
        if not isinstance(table, Tensor) or table.shape != (self.num_nodes, self.channels):
            came = list(table.shape) if isinstance(table, Tensor) else type(table).__name__
            raise SignalError(
                f"the table must be [{self.num_nodes}, {self.channels}], a vector per node; got "
                f"{came}"
            )
        rows, rest = nearest_rows(self._orbits(), table)
        self.orbit_weight.copy_(rows)
        return float(rest.norm()) / float(table.double().norm()) if bool(rest.any()) else 0.0

    @torch.no_grad()
    def energy(self) -> Tensor:
        """The share of the table that is each level's own, finest first as in ``levels``.

        Of the sum of squares: what a level adds to those that are coarser. The shares of nested
        levels add up to 1.

        Returns:
            float64 ``[levels]``.

        Example:
            >>> emb = OrbitEmbedding(1, levels=[Partition.singletons(2), Partition.single(2)])
            >>> _ = emb.copy_from(torch.tensor([[3.0], [1.0]]))
            >>> emb.energy().tolist()
            [0.2, 0.8]
        """
        orbits = self._orbits()
        table = self.weight.double().cpu()
        rows, _ = nearest_rows(orbits, table)
        split = rows.split([o.num_orbits for o in orbits])
        own = [
            (part.square().sum(1) * o.sizes).sum() for part, o in zip(split, orbits, strict=True)
        ]
        whole = table.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.stack(own) / whole

    def extra_repr(self) -> str:
        """Channels and group or levels, for ``repr``."""
        if self.group is not None:
            return f"{self.channels}, group={self.group}"
        return f"{self.channels}, levels=({', '.join(map(level_name, self.levels))})"


def _check_nodes(node: Tensor, num_nodes: int) -> None:
    if not isinstance(node, Tensor):
        raise TypeError(f"node must be a tensor of numbers of nodes; got {type(node).__name__}")
    if node.dtype not in (torch.int64, torch.int32):
        raise SignalError(
            f"node must hold int64 or int32 numbers of nodes; got {node.dtype}; an embedding is "
            "looked up, append it to signals with torch.cat"
        )
    # Elsewhere values cost a sync or are not there, and index_select refuses them itself.
    if node.is_cpu and node.numel() and is_eager(node):
        low, high = int(node.min()), int(node.max())
        if low < 0 or high >= num_nodes:
            raise IndexError(
                f"nodes are numbered 0..{num_nodes - 1}; got {low if low < 0 else high}; take the "
                f"numbers of a stacked batch modulo {num_nodes}"
            )
