"""Published ways to soften a symmetry, in the terms of this library.

Each stands beside ``OrbitLinear(levels=...)`` for use and comparison: a layer, or a term for the
loss. They are reconstructions from the papers and the authors' code, for signals on a fixed graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.nn._cluster_map import read
from gsym.nn._inputs import check_input
from gsym.nn._levels import Chain, is_subgroup
from gsym.nn._tied import check_group
from gsym.nn.linear import OrbitLinear


def _trivial(group: PermutationGroup) -> ClusterGroup:
    return ClusterGroup(Partition.singletons(group.num_nodes))


def _of_nodes(group: PermutationGroup) -> PermutationGroup:
    """The group as it came, once it is known to be one of a fixed number of nodes."""
    if check_group(group) is None:
        raise TypeError(
            "group must be a PermutationGroup or a ClusterGroup, because every node has weights of "
            "its own here; got None; write ClusterGroup(Partition.single(n)) for S_n"
        )
    return group


def _itself(x: Tensor) -> Tensor:
    return x


class RelaxedOrbitLinear(nn.Module):
    r"""Relaxed weight sharing: every node mixes several tied maps in its own way.

    .. math:: y_i = \sum_{l=1}^{L} a_l(i) \, h^l_i(x)

    with L maps :math:`h^l` tied along one group and free coefficients a, which start at
    :math:`1 / L`, so that training starts from a symmetric map.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Group of the tied maps.
        num_banks: L, 2 or 3 in the paper.
        bias: Add one learned vector per node orbit and map.

    Shapes:
        - input: ``[..., n, in_channels]``
        - output: ``[..., n, out_channels]``

    Symmetry:
        Nodes: exact for ``group`` while the coefficients are equal within its node orbits, as they
        are at the start; approximate after. :meth:`deviation` says by how much, node by node.

    Raises:
        TypeError: No group.
        ValueError: ``num_banks`` below 1.

    Cost:
        That of ``OrbitLinear`` with ``num_banks`` times the channels out.

    Example:
        >>> layer = RelaxedOrbitLinear(2, 3, ClusterGroup(Partition.single(5)))
        >>> layer(torch.randn(8, 5, 2)).shape, float(layer.deviation().sum())
        (torch.Size([8, 5, 3]), 0.0)

    Reference:
        Wang, Walters, Yu, arXiv 2201.11969, relaxed group convolution, from slides and code; the
        form for permutations of nodes is ours. The code weights places of the output, as here.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup,
        *,
        num_banks: int = 2,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_banks < 1:
            raise ValueError(f"num_banks must be at least 1; got {num_banks}")
        self.in_channels, self.out_channels, self.num_banks = in_channels, out_channels, num_banks
        self.group, self.num_nodes = _of_nodes(group), group.num_nodes
        self.banks = OrbitLinear(in_channels, num_banks * out_channels, group, bias=bias)
        self.coefficients = nn.Parameter(torch.empty(group.num_nodes, num_banks))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, gain: float = math.sqrt(2)) -> None:
        """Equal coefficients, and maps drawn so that their mean keeps the size of a signal."""
        self.banks.reset_parameters(gain * math.sqrt(self.num_banks))
        self.coefficients.fill_(1 / self.num_banks)

    def forward(self, x: Tensor) -> Tensor:
        """Map signals ``[..., n, in_channels]`` to ``[..., n, out_channels]``."""
        check_input(x, self.num_nodes, self.in_channels, self.coefficients)
        every = self.banks(x).unflatten(-1, (self.num_banks, self.out_channels))
        return (every * self.coefficients.to(every.dtype)[..., None]).sum(dim=-2)

    def deviation(self) -> Tensor:
        """Distance of every node's coefficients from the mean of its orbit, ``[n]``."""
        orbits = self.group.node_orbits()
        index = orbits.index.to(self.coefficients.device)
        sums = self.coefficients.new_zeros(orbits.num_orbits, self.num_banks)
        sums = sums.index_add(0, index, self.coefficients)
        means = sums / orbits.sizes.to(sums)[:, None]
        return (self.coefficients - means[index]).norm(dim=1)

    def penalty(self, edge_index: Tensor, strength: float = 1.0) -> Tensor:
        """Variation of the coefficients along edges, ``strength`` times its mean.

        It is 0 without edges.
        """
        source, target = edge_index
        steps = self.coefficients[source] - self.coefficients[target]
        return strength * steps.abs().sum() / max(steps.numel(), 1)


class ResidualPathway(OrbitLinear):
    r"""Residual pathway prior: a tied map, and a free one that is held near zero.

    :math:`y = A x + B x` with A tied along ``group`` and B along ``finer``, by default not at all.
    B starts a thousandth as large as A, and :meth:`penalty`, which belongs into the loss, makes
    what breaks the symmetry dear. It is an ``OrbitLinear`` with these two levels, without scales.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Group of the tied map.
        finer: Subgroup along which the other one is tied; the trivial group by default.
        bias: Add one learned vector per node orbit to both.

    Shapes:
        - input: ``[..., n, in_channels]``
        - output: ``[..., n, out_channels]``

    Symmetry:
        Nodes: exact for ``finer``; approximate for ``group``, the nearer the larger the penalty.
        :meth:`energy` says how much of the map breaks it.

    Raises:
        TypeError: No group.
        ValueError: A group without a proper subgroup, or ``finer`` that is none.

    Cost:
        That of ``OrbitLinear`` with two levels.

    Example:
        >>> layer = ResidualPathway(2, 3, ClusterGroup(Partition.single(5)))
        >>> bool(layer.energy()[0] < 1e-4), layer.penalty().shape
        (True, torch.Size([]))

    Reference:
        Finzi, Benton, Wilson, arXiv 2112.01388, and the authors' code, whose penalties these are.
        Their tied map is the projection of a free matrix and is penalised before it is projected.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup,
        *,
        finer: PermutationGroup | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, levels=_two(group, finer), bias=bias)
        self._sum().scale.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self, gain: float = math.sqrt(2)) -> None:
        """Draw the tied map as usual, and the free one small."""
        soft = self._sum()
        super().reset_parameters(gain)
        soft.scale.fill_(1)
        for parameter in soft.parts[0].parameters():
            parameter.mul_(1e-3)

    def penalty(self, free: float = 1e2, tied: float = 1e-3) -> Tensor:
        """Squared norms of both matrices, weighted: for the loss of a batch, over all layers."""
        norms = [read(part, self._nodes(), _itself).square() for part in self._sum().parts]
        return free * norms[0] + tied * norms[1]

    def _nodes(self) -> int:
        assert self.num_nodes is not None
        return self.num_nodes

    def _sum(self) -> Any:
        assert self.soft is not None
        return self.soft


class ConstrainedRelaxation(ResidualPathway):
    r"""A tied map and a free one times gamma, which a constraint drives to zero or to a bound.

    :math:`y = A x + \gamma B x` with :math:`\gamma` starting at 1. Each step of training adds
    :meth:`penalty` to the loss and then calls :meth:`dual_step`: the multiplier grows as long as
    the symmetry is broken. With ``rho`` the constraint is elastic,
    :math:`|\gamma| \le \lambda / \rho`, so that a layer which needs it keeps some freedom, and its
    multiplier names that layer.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Group of the tied map.
        finer: Subgroup along which the other one is tied; the trivial group by default.
        rho: Price of the slack; without it gamma must become 0.
        bias: Add one learned vector per node orbit to both.

    Shapes:
        - input: ``[..., n, in_channels]``
        - output: ``[..., n, out_channels]``

    Symmetry:
        Nodes: exact for ``finer``, and for ``group`` once gamma is 0.

    Raises:
        TypeError: No group.
        ValueError: A group without a proper subgroup, or ``finer`` that is none; ``rho`` that
            is not positive.

    Cost:
        That of ``OrbitLinear`` with two levels.

    Example:
        >>> layer = ConstrainedRelaxation(2, 3, ClusterGroup(Partition.single(5)))
        >>> layer.dual_step(0.1)
        >>> float(layer.gamma), round(float(layer.penalty()), 3)
        (1.0, 0.1)

    Reference:
        Manolache and others (ACE), arXiv 2505.13631, from a third-party note: a reconstruction.
    """

    dual: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup,
        *,
        finer: PermutationGroup | None = None,
        rho: float | None = None,
        bias: bool = True,
    ) -> None:
        if rho is not None and rho <= 0:
            raise ValueError(f"rho must be positive; got {rho}")
        super().__init__(in_channels, out_channels, group, finer=finer, bias=bias)
        self.rho = rho
        self._sum().scale.requires_grad_(True)
        self.register_buffer("dual", torch.zeros(()))

    @property
    def gamma(self) -> Tensor:
        """The weight of the free map; the tied one has a scale too, as part of its weights."""
        gamma: Tensor = self._sum().scale[0]
        return gamma

    @torch.no_grad()
    def reset_parameters(self, gain: float = math.sqrt(2)) -> None:
        """Draw both maps as usual; gamma is 1."""
        OrbitLinear.reset_parameters(self, gain / math.sqrt(2))
        self._sum().scale.fill_(1)
        if "dual" in self._buffers:
            self.dual.zero_()

    def penalty(self, free: float = 1.0, tied: float = 0.0) -> Tensor:
        """The multiplier times gamma, or times its size, ``free`` times; ``tied`` as its parent."""
        gamma = self.gamma if self.rho is None else self.gamma.abs()
        term = free * self.dual * gamma
        if tied:
            term = term + tied * read(self._sum().parts[1], self._nodes(), _itself).square()
        return term

    @torch.no_grad()
    def dual_step(self, rate: float) -> None:
        """Move the multiplier by how far the constraint is from being met, ``rate`` times."""
        gamma = self.gamma
        if self.rho is None:
            self.dual += rate * gamma
        else:
            self.dual += rate * (gamma.abs() - self.dual / self.rho)
            self.dual.clamp_(min=0)


class EquivarianceRegulariser:
    r"""Penalty on what breaks each of several symmetries, with strengths tuned during training.

    .. math:: \sum_g \lambda_g \sum_{\text{layers}} \tfrac12 \bigl( \|W - P_g W\|^2
        + \|b - P_g b\|^2 \bigr)

    over the ``OrbitLinear`` layers of a model, with :math:`P_g` the projection to the maps that
    commute with g and leave channels alone, so layers whose ``in_rep`` or ``out_rep`` moves
    channels are refused. The layers are tied along a finer group than all of these, or not at all.
    Once in training :meth:`tune` lowers the strength of symmetries that the data break.

    Args:
        model: Model whose ``OrbitLinear`` layers of one group, on the nodes of the groups, count.
        groups: The symmetries.
        strength: :math:`\lambda` of every one at the start.

    Attributes:
        strengths: :math:`\lambda_g`, a list in the order of the groups.

    Raises:
        ValueError: A model without such layers, or with one whose representations move channels;
            no groups.

    Example:
        >>> net = gsym.nn.GNet([1, 4, 1], ClusterGroup(Partition.singletons(4)), propagate="none")
        >>> halves = ClusterGroup(Partition.from_labels([0, 0, 1, 1]))
        >>> term = EquivarianceRegulariser(net, [halves, ClusterGroup(Partition.single(4))], 0.01)
        >>> bool(term.penalty() > 0)
        True
        >>> term.observe(); term.tune(); term.strengths[0] > term.strengths[1]
        True

    Reference:
        Kim, Lee, Yang, Lee, ICML 2023, the projected penalty (PER) for mixed symmetries, and the
        authors' code: half squares, and :math:`\lambda_g (\min R / R_g)^p` at one epoch.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[PermutationGroup], strength: float = 1.0
    ) -> None:
        if not groups:
            raise ValueError("groups must list at least one symmetry; got none")
        n = groups[0].num_nodes
        self.groups = list(groups)
        self.layers = []
        for name, module in model.named_modules():
            if not isinstance(module, OrbitLinear) or module.levels or module.num_nodes != n:
                continue
            if module._moves_channels():
                raise ValueError(
                    f"layer {name or type(module).__name__} has representations that move "
                    "channels, but the groups are averaged over with channels that stay, which "
                    "would penalise its own symmetry; use layers without in_rep and out_rep"
                )
            self.layers.append(module)
        if not self.layers:
            raise ValueError(f"the model has no OrbitLinear of one group on {n} nodes to penalise")
        self.strengths = [strength] * len(self.groups)
        self._lowest = [math.inf] * len(self.groups)
        self._kept: list[float] | None = None

    def terms(self) -> Tensor:
        """The sum over layers for every group, ``[groups]``."""
        forms = [read(layer, self.groups[0].num_nodes, _itself) for layer in self.layers]
        totals = []
        for group in self.groups:
            rests = [form.minus(form.average(group)) for form in forms]
            parts = [(rest.square() + rest.bias_square()) / 2 for rest in rests]
            totals.append(torch.stack(parts).sum())
        return torch.stack(totals)

    def penalty(self) -> Tensor:
        """What belongs into the loss."""
        terms = self.terms()
        return (terms * terms.new_tensor(self.strengths)).sum()

    @torch.no_grad()
    def observe(self) -> None:
        """Note the terms, once per epoch; kept are the last that had one at a new minimum."""
        found = self.terms().tolist()
        if any(term < low for term, low in zip(found, self._lowest, strict=True)):
            self._kept = found
        self._lowest = [min(pair) for pair in zip(found, self._lowest, strict=True)]

    def tune(self, power: float = 2.0) -> None:
        """Lower the strengths of all symmetries but the one that is broken least.

        Raises:
            ValueError: Nothing was observed.
        """
        if self._kept is None:
            raise ValueError("tune() needs terms of past epochs; call observe() once in each")
        least = min(self._kept)
        self.strengths = [
            strength * (least / term) ** power if term > 0 else strength
            for strength, term in zip(self.strengths, self._kept, strict=True)
        ]


def _two(group: PermutationGroup, finer: PermutationGroup | None) -> Chain:
    smallest = _trivial(_of_nodes(group))
    if is_subgroup(group, smallest):
        raise ValueError(f"group has no proper subgroup to relax to; got {group}; use OrbitLinear")
    finer = smallest if finer is None else finer
    if not is_subgroup(finer, group) or is_subgroup(group, finer):
        raise ValueError(f"finer must be a proper subgroup of {group}; {finer} is none")
    chain = Chain.of([finer, group])
    assert chain is not None
    return chain
