"""OrbitLinear: the linear map that commutes with a permutation group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import check_widths
from gsym.groups import PermutationGroup, Representation
from gsym.nn._batch import count_graphs, unstack
from gsym.nn._inputs import check_input
from gsym.nn._levels import Chain, LevelSum, check_options
from gsym.nn._mixing import MIXINGS, FullMixing, LowRankMixing, QuotientMixing
from gsym.nn._modules import Tables, is_plain, own_parameter
from gsym.nn._moves import Movable, check_movable, energy, like, move_linear, undrawn
from gsym.nn._signs import Channels, SignedMixing, Tie, bias_tie, draw_own, own_matrices, own_tie
from gsym.nn._tied import TiedLayer, as_clusters


@dataclass(frozen=True)
class _LinearTables(Tables):
    clusters: kernels.Clusters | None  # None on any number of nodes
    cluster_orbit: Tensor
    own_index: Tensor  # which D every cluster has; one past the last for none
    own_tie: Tie | None = None  # what own_index is without representations
    bias_tie: Tie | None = None


class OrbitLinear(TiedLayer[_LinearTables], Movable["OrbitLinear"]):
    r"""Linear map of node signals that commutes with a permutation group.

    For the group of a partition into clusters :math:`1..k` it is

    .. math::
        y_n = D_{c(n)} x_n + \sum_{c'} W_{c(n), c'} m_{c'} + b_{c(n)},
        \qquad m_c = \text{mean of } x \text{ over cluster } c,

    with D, W and b tied over the orbits of the group's ``swaps``, and D left out where a cluster
    has one node, because W covers it there. No matrix of n x n blocks is ever built. A general
    :class:`~gsym.PermutationGroup` ties one matrix per pair orbit. Where that is faster, the
    product with W runs in a basis adapted to the group, in which W is block diagonal. The blocks
    follow from the weights per pair orbit, which remain the parameters: checkpoints know no basis,
    and training follows the same path in either form.

    With representations the group moves channels too, and weights are tied up to signs: a weight
    that some element takes to its own negative is 0. Where matrices mix channels, the weights of a
    pair orbit are coordinates in the space of maps that the stabiliser of a pair leaves alone.

    With ``levels``, a chain of groups, the layer is *soft*: the sum over levels of a learned scale
    times the tied map of the level's group, in one pass over the signal. :meth:`energy` says how
    much of the map each level explains; :meth:`harden`, :meth:`soften` and :meth:`to_group` move a
    trained layer between groups.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Group to commute with; ``None`` is the full symmetric group on any number of nodes.
        in_rep: How the group moves the channels of the input; ``None`` if they stay.
        out_rep: How it moves those of the output. A pointwise activation behind the layer keeps
            the symmetry if ``out_rep.is_permutation``, or if the activation is odd.
        bias: Add one learned vector per node orbit.
        mixing: Mixing between clusters. ``"full"``: every pair, ``k^2`` matrices, the complete
            space of equivariant maps. ``"low_rank"``: ``W[c, c'] = sum_r u_r[c] v_r[c'] M_r`` with
            ``rank`` terms. ``"quotient"``: only the pairs in ``cluster_edge_index`` and each
            cluster with itself. ``"none"``: none; D then covers every cluster.
        rank: Number of terms of ``"low_rank"``.
        cluster_edge_index: Coarse graph of ``"quotient"``, ``[2, q]``, messages from row 0 to
            row 1, as :meth:`gsym.Partition.quotient` returns it.
        levels: Instead of ``group``, a chain of groups: a :class:`gsym.Hierarchy` (7 levels of
            many), or partitions and groups in any order. Every level has weights of its own and
            one ``scale``. Levels that are not nested are said by a warning.

    Shapes:
        - input: ``[..., n, in_channels]``
        - output: ``[..., n, out_channels]``

    Symmetry:
        Nodes: exact for ``group``, at every value of the parameters, and with ``mixing="full"``
        the parameters span all equivariant maps: ``group.commutant_dim()`` per channel pair, or
        ``group.commutant_dim(in_rep, out_rep)`` in all.
        With nested levels the same holds for the finest one, which is ``layer.group``; of others
        the maps commute with the permutations within the meet of all clusters.

    Raises:
        ValueError: ``mixing="full"`` with more than a GiB of weights; the message names the ways
            out.
        GroupError: Loading a checkpoint of another group or of other representations; a
            representation of another group or of other channels.
            Levels on different numbers of nodes.

    Cost:
        Per signal ``O(n d)`` to pool, ``O(n d d')`` for D, ``O(k^2 d d')`` to mix; memory
        ``O(n d + k^2 d d')``. A general group costs ``O(n^2 d d')`` in the dense form; in an
        adapted basis the share ``sum F e m^2 / n^2`` of that, over irreducibles of dimension e and
        field F that occur m times, and ``O(n^2 (d + d'))``. To find the basis takes ``O(n^3)`` once
        per group, some seconds at n = 1,024. With representations the form is dense. With levels
        the coarser ones pool the means of the finest, so that they cost what their clusters cost.

    Example:
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]))
        >>> layer = OrbitLinear(2, 3, group)
        >>> layer(torch.randn(8, 5, 2)).shape
        torch.Size([8, 5, 3])

        A mirror that also turns the sign of the first of two coordinates:

        >>> mirror = PermutationGroup.from_cycles(3, [(0, 1)])
        >>> pose = Representation.from_signs(mirror, [[-1, 1]])
        >>> lift = OrbitLinear(2, 2, mirror, in_rep=pose, out_rep=pose)
        >>> sum(p.numel() for p in lift.parameters()), mirror.commutant_dim(pose, pose)
        (21, 18)

        Soft: between all permutations and those within two clusters:

        >>> levels = [Partition.single(5), Partition.from_labels([0, 0, 1, 1, 1])]
        >>> soft = OrbitLinear(2, 3, levels=levels)
        >>> soft.energy().shape, soft.harden(1).group
        (torch.Size([2]), ClusterGroup(S_5 on 5 nodes))

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436 (the complete map; their irregular clusters lose D).
        The scaled initialisation is ours. Sums along a chain are ours, too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup | None = None,
        *,
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
        _check_options(mixing, rank, cluster_edge_index)
        check_widths(in_channels=in_channels, out_channels=out_channels)
        clusters = as_clusters(group)
        self._into = Channels.of(in_rep, in_channels, group, "in_rep")
        self._out = Channels.of(out_rep, out_channels, group, "out_rep")
        self._signed = in_rep is not None or out_rep is not None
        if self._signed and mixing not in ("full", "none"):
            raise ValueError(
                f'mixing="{mixing}" has no form with representations on channels; use '
                'mixing="full" or "none"'
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_nodes = None if group is None else clusters.num_nodes
        self.levels = () if chain is None else chain.groups
        self._alone_is_mixed = mixing not in ("low_rank", "none")
        self.soft: LevelSum | None = None
        self.mixing: FullMixing | SignedMixing | LowRankMixing | QuotientMixing | None = None
        if chain is not None:
            check_options(chain, mixing, self._signed, (in_channels, out_channels))
            options: dict[str, Any] = {"bias": bias, "mixing": mixing, "rank": rank}
            parts = [OrbitLinear(in_channels, out_channels, g, **options) for g in self.levels]
            self.soft = LevelSum(parts, chain)
            self.register_parameter("weight_self", None)
            self.register_parameter("bias", None)
            self._tables(torch.device("cpu"))
            self.reset_parameters()
            return
        tables = self._tables(torch.device("cpu"))
        # Every cluster has D, or those of one node have none.
        least = min(clusters.partition.sizes)
        self._all_own = least > 1 or not self._alone_is_mixed or group is None
        count = int(tables.own_index.max()) + self._all_own
        shape: tuple[int, ...] = in_channels, out_channels
        if count and tables.own_tie is not None:
            count, shape = tables.own_tie.free, (self._into.copies, self._out.copies)
        if count:
            self.weight_self = nn.Parameter(torch.empty(count, *shape))
        else:
            self.register_parameter("weight_self", None)
        if mixing == "full" and self._signed:
            self.mixing = SignedMixing(self._into, self._out, clusters)
        elif mixing == "full":
            self.mixing = FullMixing(in_channels, out_channels, clusters)
        elif mixing == "low_rank" and rank is not None:
            self.mixing = LowRankMixing(in_channels, out_channels, clusters, rank)
        elif mixing == "quotient" and cluster_edge_index is not None:
            self.mixing = QuotientMixing(in_channels, out_channels, clusters, cluster_edge_index)
        if bias:
            tie = tables.bias_tie
            free = clusters.cluster_orbits().num_orbits if tie is None else tie.free
            width = out_channels if tie is None else self._out.copies
            self.bias = nn.Parameter(torch.empty(free, width))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _build_tables(self) -> _LinearTables:
        clusters = as_clusters(self.group)
        orbit = clusters.cluster_orbits().index
        # A coarser level may need finer clusters than those of the finest.
        rows_of = clusters.partition if self.soft is None else self.soft.chain.partition
        sizes = torch.tensor(clusters.partition.sizes)
        # W alone serves a cluster of one node; S_n on any number of nodes has D all the same.
        has_own = (sizes > 1) | (not self._alone_is_mixed) | (self.group is None)
        used, own = torch.unique(orbit[has_own], return_inverse=True)
        own_index = torch.full_like(sizes, used.numel())
        own_index[has_own] = own
        # Without D at any level no row is multiplied.
        multiplies = used.numel() or len(self.levels) > 1
        widths = (self.in_channels, self.out_channels) if multiplies else (1, 1)
        rows = None
        if self.group is not None:
            rows = kernels.Clusters(rows_of.labels, rows_of.num_clusters, *widths)
        if not self._signed:
            return _LinearTables(rows, orbit, own_index)
        own_free = own_tie(clusters, self._into, self._out, has_own)
        return _LinearTables(rows, orbit, own_index, own_free, bias_tie(clusters, self._out))

    @torch.no_grad()
    def reset_parameters(self, gain: float = math.sqrt(2)) -> None:
        """Draw weights that keep the size of a signal, whatever the group.

        With ``mixing="full"`` the mean square over nodes and channels of the output is, on
        average over the weights, ``gain^2`` times that of the input (times ``in_channels`` over
        ``out_channels`` summed), for every input and every partition: what deviates from the
        cluster means passes through D alone, and the means pass through the random W alone,
        because D is taken off W's diagonal. The default gain is that of a ReLU which follows.
        """
        if self.soft is not None:
            self.soft.reset_parameters(gain)
            return
        variance = gain**2 / self.in_channels
        if isinstance(self.mixing, LowRankMixing):
            # W of low rank cannot take D off the means, so the two share the variance.
            variance /= 2
        if self.weight_self is not None and self._signed:
            tie = self._tables(self.weight_self.device).own_tie
            assert tie is not None
            draw_own(tie, self.weight_self, variance, self._out.width)
        elif self.weight_self is not None:
            self.weight_self.normal_(std=math.sqrt(variance))
        if self.mixing is not None:
            self.mixing.reset_parameters(variance)
        subtracts = FullMixing | QuotientMixing | SignedMixing
        weight = self.weight_self
        if weight is not None and not weight.is_meta and isinstance(self.mixing, subtracts):
            tables = self._tables(weight.device)
            own = self._own_weight(tables).expand(tables.own_index.numel(), -1, -1)
            self.mixing.subtract(own)
        if self.bias is not None:
            self.bias.zero_()

    def forward(
        self, x: Tensor, *, batch: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Map signals ``[..., n, in_channels]`` to ``[..., n, out_channels]``.

        Args:
            x: Signals; ``[n, in_channels]`` is one graph unless one of the others is given.
            batch: PyG's vector, the graph of every row of a stacked batch ``[b*n, in_channels]``;
                all of one size.
            batch_size: Number of graphs in a stacked batch, instead.
        """
        if batch is not None:
            batch_size = count_graphs(x, batch, batch_size, self.num_nodes)
        if batch_size is not None:
            x = unstack(x, batch_size, self.num_nodes)
        check_input(x, self.num_nodes, self.in_channels, self._like())
        y = self.map(x, self._tables(x.device))
        return y if batch_size is None else y.flatten(0, 1)

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def sort(self, x: Tensor, was_sorted: bool) -> tuple[Tensor, bool]:
        """A signal sorted by cluster where that suits the map, and whether it is now.

        A stack of layers on one group sorts only where this differs: see :class:`gsym.nn.GNet`.
        """
        clusters = self._tables(x.device).clusters
        # The other mixings need the means of clusters by themselves.
        fused = self.mixing is None or isinstance(self.mixing, FullMixing | SignedMixing)
        if clusters is None or (fused and kernels.takes_sorted(x, clusters)) == was_sorted:
            return x, was_sorted
        return permute(x, clusters, back=was_sorted), not was_sorted

    def map(self, x: Tensor, tables: _LinearTables, is_sorted: bool = False) -> Tensor:
        """The map itself, of signals that may come and leave sorted by cluster."""
        clusters = tables.clusters
        if self.soft is not None:
            assert clusters is not None
            y: Tensor = self.soft(x, clusters, is_sorted)
            return y
        bias = None if self.bias is None else self._bias_of(self.bias, tables)
        if (
            clusters is not None
            and self.weight_self is not None
            and isinstance(self.mixing, FullMixing | SignedMixing)
            and is_plain(type(self.mixing), self.mixing)
            and not (isinstance(self.mixing, FullMixing) and self.mixing.takes_blocks(x))
        ):
            if bias is None:
                bias = x.new_zeros(clusters.num_clusters, self.out_channels)
            weight, matrix = self._own_weight(tables), self.mixing.matrix()
            return kernels.cluster_linear(x, weight, matrix, bias, clusters, is_sorted)
        shared = bias
        if self.mixing is not None:
            rows = permute(x, clusters, back=True) if is_sorted and clusters is not None else x
            shared = self.mixing(_means(rows, clusters))
            shared = shared if bias is None else shared + bias
        if self.weight_self is None:
            assert shared is not None and clusters is not None
            if is_sorted or clusters.is_sorted:
                return shared
            return kernels.segment_gather(shared, clusters.segments)
        own = self._own_weight(tables)
        if clusters is None:
            return kernels.grouped_linear(x.unsqueeze(-3), own, shared).squeeze(-3)
        if shared is None:
            shared = x.new_zeros(clusters.num_clusters, self.out_channels)
        return kernels.cluster_linear(x, own, None, shared, clusters, is_sorted)

    def _like(self) -> Tensor | None:
        """A weight whose device and type a signal must have."""
        own = own_parameter(self, "weight_self", "bias")
        if self.soft is not None:
            return own_parameter(self.soft, "scale")
        return own_parameter(self.mixing, "weight") if own is None else own

    def _own_weight(self, tables: _LinearTables) -> Tensor:
        """The within-cluster map D, ``[k, in, out]``, 0 where there is none, or one for all."""
        assert self.weight_self is not None
        if tables.own_tie is not None:
            return own_matrices(tables.own_tie, self.weight_self, self._into, self._out)
        if not self._all_own:
            padded = nn.functional.pad(self.weight_self, (0, 0, 0, 0, 0, 1))
            return padded.index_select(0, tables.own_index)
        # One matrix for all clusters is passed on as it is.
        one = self.weight_self.size(0) == 1
        return self.weight_self if one else _untie(self.weight_self, tables.own_index)

    def _bias_of(self, bias: Tensor, tables: _LinearTables) -> Tensor:
        """The bias of every cluster, ``[k, out]``."""
        if tables.bias_tie is None:
            return _untie(bias, tables.cluster_orbit)
        return tables.bias_tie.expand(bias).view(-1, self.out_channels)

    def _moves_channels(self) -> bool:
        return self._into.moves or self._out.moves

    def energy(self) -> Tensor:
        """How much of a layer with levels each of them explains.

        The maps of nested groups are nested spaces, the coarsest in all others. This is the share
        of the squared norm of the whole linear map, over all nodes and channels and without the
        bias, in what a level has and the next coarser one has not.

        Returns:
            Shares in the order of ``levels``, finest first, that sum to 1; float64 ``[levels]``.

        Raises:
            ValueError: A layer without levels, or levels that are not nested.
        """
        self._own_chain()
        return energy(self)

    def _chain_of(self) -> Chain | None:
        return None if self.soft is None else self.soft.chain

    def _moved_to(self, target: Chain | PermutationGroup | None) -> OrbitLinear:
        check_movable(self, target)
        first = self if self.soft is None else self.soft.parts[0]
        assert isinstance(first, OrbitLinear)
        options: dict[str, Any] = {"bias": first.bias is not None}
        options["mixing"] = "none" if first.mixing is None else "full"
        widths = self.in_channels, self.out_channels
        with undrawn():
            if isinstance(target, Chain):
                twin = OrbitLinear(*widths, levels=target, **options)
            else:
                twin = OrbitLinear(*widths, target, **options)
        like(twin, self)
        twin.moved = move_linear(self, twin, target)
        return twin

    def extra_repr(self) -> str:
        """Channels and group, for ``repr``."""
        if self.levels:
            levels = ", ".join(map(str, self.levels))
            return f"{self.in_channels}, {self.out_channels}, levels=[{levels}]"
        return f"{self.in_channels}, {self.out_channels}, group={self.group or 'S_n'}"


def _untie(weight: Tensor, orbit: Tensor) -> Tensor:
    """One copy per cluster of the weights of its orbit."""
    return weight if weight.size(0) == orbit.numel() else weight.index_select(0, orbit)


def _means(x: Tensor, clusters: kernels.Clusters | None) -> Tensor:
    """Mean of every cluster, ``[..., k, in]``; one mean without clusters."""
    if clusters is not None and clusters.is_sorted and clusters.num_clusters == x.size(-2):
        return x  # of one node each
    if clusters is not None:
        return kernels.segment_mean(x, clusters.segments)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.sum(dim=-2, keepdim=True, dtype=wide) / x.size(-2)).to(x.dtype)


def permute(x: Tensor, clusters: kernels.Clusters, *, back: bool) -> Tensor:
    """Nodes sorted by cluster, or ``back`` in their own order."""
    order, rank = clusters.order, clusters.rank
    return kernels.permute_rows(x, rank, order) if back else kernels.permute_rows(x, order, rank)


def _check_options(mixing: str, rank: int | None, cluster_edge_index: Tensor | None) -> None:
    if mixing not in MIXINGS:
        raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}; got {mixing!r}")
    valid = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if (rank is not None) != (mixing == "low_rank") or (rank is not None and not valid):
        raise ValueError(
            f'rank must be given, an integer of at least 1, for mixing="low_rank" alone; got {rank}'
        )
    if (cluster_edge_index is not None) != (mixing == "quotient"):
        raise ValueError('cluster_edge_index must be given for mixing="quotient" alone')
