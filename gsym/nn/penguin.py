"""PenguinConv and Penguin: Euclidean symmetry by degrees, a reconstruction of PEnGUiN."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import check_like_weights, check_positions, check_signal, reads_for_free
from gsym.errors import SignalError
from gsym.groups import PermutationGroup
from gsym.nn._batch import unstack, unstack_rows
from gsym.nn._geometric import (
    GeometricLayer,
    GeometricStack,
    Inputs,
    check_residual,
    short_repr,
)
from gsym.nn._graph import LastGraph
from gsym.nn._messages import SMALL_GAIN, EdgeGraph, EdgeMLP
from gsym.nn._nodewise import NodeLinear, NodeMLP
from gsym.nn.egnn import EGNNConv

ALPHAS = ("learned", "node", "edge", "feature", "given")


class FreeConv(nn.Module):
    r"""The branch without Euclidean symmetry: a graph network on absolute coordinates.

    :math:`m_{ij} = \psi_e(h_i, h_j, x_i, x_j, a_{ij})`, :math:`x_i' = x_i + \psi_x(x_i, m_i)` and
    :math:`h_i' = h_i + \psi_h(h_i, m_i)` with :math:`m_i = \sum_j m_{ij}`. Velocities, if there
    are any, stand beside the coordinates.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        edge_dim: int,
        *,
        group: PermutationGroup | None,
        residual: bool,
        dim: int,
        velocity: bool,
    ) -> None:
        super().__init__()
        place = dim * (1 + velocity)
        self.residual = residual
        self.edges = EdgeMLP(in_channels + place, hidden_channels, edge_dim, group)
        self.move = NodeMLP(place + hidden_channels, hidden_channels, dim, group)
        self.update = NodeMLP(in_channels + hidden_channels, hidden_channels, out_channels, group)

    def reset_parameters(self, depth: int = 1) -> None:
        """As :meth:`EGNNConv.reset_parameters`."""
        gain = SMALL_GAIN / depth
        self.edges.reset_parameters()
        self.move.reset_parameters(gain)
        self.update.reset_parameters(gain if self.residual else None)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        graph: EdgeGraph,
        edge_attr: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features and coordinates, on checked input and sorted edges."""
        place = pos if velocity is None else torch.cat([pos, velocity], dim=-1)
        messages, _ = self.edges(torch.cat([x, place], dim=-1), graph, edge_attr)
        pos = pos + self.move(place, messages)
        new = self.update(x, messages)
        return x + new if self.residual else new, pos


class Estimator(nn.Module):
    """The score alpha in 0..1 from features and absolute coordinates (Equivariance Estimator).

    Args:
        mode: ``"learned"``, ``"node"``, ``"edge"`` or ``"feature"``.
        in_channels: Features per node.
        out_channels: Features that ``"feature"`` scores, besides the coordinates.
        hidden_channels: Width of the hidden layer.
        dim: Coordinates per node.
        group: Every node orbit gets its own weights.
        hard: Round to 0 or 1; gradients pass as if not rounded.
    """

    def __init__(
        self,
        mode: str,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        dim: int,
        group: PermutationGroup | None,
        hard: bool,
    ) -> None:
        super().__init__()
        self.mode, self.hard = mode, hard
        self.register_parameter("logit", None)
        self.nodes: NodeMLP | None = None
        self.ends: nn.ModuleList | None = None
        if mode == "learned":
            # One number with an axis: sharding takes no scalars.
            self.logit = nn.Parameter(torch.empty(1))
        elif mode == "edge":
            self.ends = nn.ModuleList(
                NodeLinear(in_channels + dim, hidden_channels, group, bias=bias)
                for bias in (True, False)
            )
            self.last = nn.Linear(hidden_channels, 1)
        else:
            scores = out_channels + 1 if mode == "feature" else 1
            self.nodes = NodeMLP(in_channels + dim, hidden_channels, scores, group)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's defaults, hence alpha near one half."""
        if self.logit is not None:
            self.logit.zero_()
        if self.nodes is not None:
            self.nodes.reset_parameters()
        if self.ends is not None:
            for part in (*self.ends, self.last):
                part.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, pos: Tensor, graph: EdgeGraph) -> Tensor:
        """The score, ``[]``, ``[..., n, 1]`` or ``[..., n, out_channels + 1]``."""
        if self.logit is not None:
            return self._round(self.logit.sigmoid().squeeze(0))
        place = torch.cat([x, pos], dim=-1)
        if self.nodes is not None:
            return self._round(self.nodes(place).sigmoid())
        assert self.ends is not None
        target, source = (end(place) for end in self.ends)
        hidden = kernels.segment_gather(target, graph.target)
        hidden = hidden + kernels.segment_gather(source, graph.source)
        alpha = self._round(self.last(nn.functional.silu(hidden)).sigmoid())
        # Counting what is missing to 1 leaves a node without edges symmetric.
        return 1 - kernels.segment_mean(1 - alpha, graph.target)

    def _round(self, alpha: Tensor) -> Tensor:
        if not self.hard:
            return alpha
        return (alpha > 0.5).to(alpha.dtype) + (alpha - alpha.detach())


class _ScoredLayer(GeometricLayer):
    """What :class:`PenguinConv` and :class:`Penguin` share: where alpha comes from."""

    def _set_alpha(
        self, alpha: float | str, hard: bool, scored_channels: int, hidden_channels: int
    ) -> None:
        assert self.dim is not None
        self.scored_channels = scored_channels
        self.estimator: Estimator | None = None
        self.alpha: float | str = alpha
        if isinstance(alpha, str):
            if alpha not in ALPHAS:
                raise ValueError(
                    f"alpha must be a number in 0..1 or one of {', '.join(ALPHAS)}; got {alpha!r}"
                )
        else:
            self.alpha = _check_number(alpha)
        if isinstance(self.alpha, str) and alpha != "given":
            self.estimator = Estimator(
                self.alpha,
                self.in_channels,
                scored_channels,
                hidden_channels,
                self.dim,
                self.group,
                hard,
            )
        elif hard:
            raise ValueError(f"hard=True rounds a learned alpha; got alpha={alpha!r}")

    def symmetry_score(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        """The layer's own alpha: 1 where it is symmetric, 0 where it is free.

        Args:
            x: Features ``[..., n, in_channels]``.
            pos: Coordinates ``[..., n, d]``.
            edge_index: The graph, ``[2, e]``.

        Returns:
            ``[]`` for a number or ``"learned"``, ``[..., n, 1]`` for ``"node"`` and ``"edge"``
            (the mean over incoming edges), ``[..., n, features + 1]`` for ``"feature"``, the last
            being the score of the coordinates.
        """
        check_signal(x, self.num_nodes, self.in_channels)
        check_positions(pos, x, self.dim)
        check_like_weights(self._like(), x=x, pos=pos)
        graph = self._graph.get(edge_index, x, None, EdgeGraph.build, EdgeGraph.trace)
        score = self._score(x, pos, graph, None)
        return score if isinstance(score, Tensor) else x.new_tensor(score)

    def _score_of(self, given: Inputs, alpha: float | Tensor | None) -> float | Tensor:
        """The score of one call, unstacked."""
        if isinstance(alpha, Tensor):
            alpha = unstack_rows(alpha, given.batch_size, given.x.size(-2))
        return self._score(given.x, given.pos, given.graph, alpha)

    def _score(
        self, x: Tensor, pos: Tensor, graph: EdgeGraph, given: float | Tensor | None
    ) -> float | Tensor:
        if given is not None:
            if isinstance(given, Tensor):
                _check_scores(given, x, self.scored_channels, values=self._reads_values)
                check_like_weights(self._like(), alpha=given)
                return given
            return _check_number(given)
        if self.estimator is not None:
            return self.estimator(x, pos, graph)
        if isinstance(self.alpha, str):
            raise TypeError('a layer with alpha="given" needs alpha in every call')
        return self.alpha


class PenguinConv(_ScoredLayer):
    r"""Message passing as Euclidean as the score alpha says: a reconstruction of PEnGUiN.

    No code and no text of the method could be found, only its abstract and summaries, so the
    equations are ours; do not take them for the authors'. Two branches, :class:`EGNNConv` and a
    free graph network on absolute coordinates, are blended,

    .. math::
        y = \alpha\, f_{EGNN}(h, x) + (1 - \alpha)\, f_{free}(h, x),

    for features and coordinates alike. ``alpha=1`` is EGNN and ``alpha=0`` the free network, and
    the branch that does not count is not run where alpha is a plain number.

    The sources leave open, and this reconstruction settles without an option to choose otherwise:
    the outputs of the branches are blended, not their messages; each branch has its own update of
    the features; there is one Estimator, which sees the features and coordinates that the layer
    is given, in the stack :class:`Penguin` those of its input for all layers, whereas a stack of
    single layers estimates anew in each; the coordinates move as in EGNN, not as in E2GN2; no
    price on alpha is added by itself.

    A free branch can learn a symmetric map as well, so data alone need not raise a learned alpha.
    A small price such as ``0.05 * (1 - conv.symmetry_score(...)).mean()`` in the loss makes the
    layer symmetric wherever that costs nothing.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output.
        hidden_channels: Width of both branches and of the Equivariance Estimator.
        edge_dim: Attributes per edge.
        alpha: A number in 0..1; ``"learned"``, one number; ``"node"``, ``"edge"`` or
            ``"feature"``, estimated from features and absolute coordinates of every node, of both
            ends of every edge (a node takes the mean over its incoming edges, and 1 without any),
            or of every node for each of its features and its coordinates; ``"given"`` in each
            call.
        hard: Round a learned alpha to 0 or 1, that of edges before the mean, with straight-through
            gradients.
        group: As in :class:`EGNNConv`, for both branches and the Estimator.
        residual: As in :class:`EGNNConv`, for both branches.
        velocity: As in :class:`EGNNConv`; the free branch sees velocities beside coordinates.
        dim: Number of coordinates d.
        **options: Further options of :class:`EGNNConv`, for its branch.

    Shapes:
        - input: as :class:`EGNNConv`
        - output: as :class:`EGNNConv`

    Symmetry:
        Coordinates: that of :class:`EGNNConv` where alpha is 1. For a constant alpha the error is
        bounded, :math:`|f(gx) - g f(x)| \le (1 - \alpha) |n(gx) - g n(x)|` with n the free
        branch. An estimated alpha sees absolute coordinates and moves with them, so regional
        symmetry is exact only where it is rounded to 1 or saturates.
        Nodes: that of :class:`EGNNConv`, for every alpha.

    Raises:
        ValueError: An alpha outside 0..1 or of an unknown kind.
        SignalError: A given alpha of another shape or, on the CPU, outside 0..1; and as
            :class:`EGNNConv`.
        GroupError: Loading a checkpoint of another group.

    Cost:
        Twice that of :class:`EGNNConv`, and the Estimator.

    Example:
        >>> conv = PenguinConv(8, 8, hidden_channels=16, alpha="node")
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> h, x = torch.randn(5, 3, 8), torch.randn(5, 3, 3)
        >>> [y.shape for y in conv(h, x, edge_index)]
        [torch.Size([5, 3, 8]), torch.Size([5, 3, 3])]
        >>> conv.symmetry_score(h, x, edge_index).shape
        torch.Size([5, 3, 1])

    Reference:
        McClellan, Brothers, Huang, Tokekar, arXiv 2503.15615, from the abstract and summaries; no
        equation of theirs was available.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        edge_dim: int = 0,
        alpha: float | str = "learned",
        *,
        hard: bool = False,
        group: PermutationGroup | None = None,
        residual: bool | None = None,
        velocity: bool = False,
        dim: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            hidden_channels,
            group,
            dim=dim,
            edge_dim=edge_dim,
            velocity=velocity,
        )
        residual = check_residual(residual, in_channels, out_channels)
        self._set_alpha(alpha, hard, out_channels, hidden_channels)
        self.equivariant = EGNNConv(
            in_channels,
            out_channels,
            hidden_channels,
            edge_dim,
            group=group,
            residual=residual,
            velocity=velocity,
            dim=dim,
            **options,
        )
        self.free = FreeConv(
            in_channels,
            out_channels,
            hidden_channels,
            edge_dim,
            group=group,
            residual=residual,
            dim=dim,
            velocity=velocity,
        )
        self.equivariant._join(self._graph)
        self.reset_parameters()

    def _join(self, graph: LastGraph[EdgeGraph]) -> None:
        super()._join(graph)
        self.equivariant._join(graph)

    def _like(self) -> Tensor | None:
        return self.equivariant._like() if isinstance(self.equivariant, EGNNConv) else None

    def reset_parameters(self, depth: int = 1) -> None:
        """Draw both branches for a stack of ``depth`` layers; alpha starts near one half."""
        self.equivariant.reset_parameters(depth)
        self.free.reset_parameters(depth)
        if self.estimator is not None:
            self.estimator.reset_parameters()

    def __repr__(self) -> str:
        """As PyG writes its layers, with the options that are not the default."""
        hard = self.estimator is not None and self.estimator.hard
        branch = self.equivariant._options()
        defaults = inspect.signature(EGNNConv).parameters
        # Those of EGNN have no default here.
        more = {k: v for k, v in branch.items() if v != defaults[k].default}
        options = {**more, "alpha": self.alpha, "hard": hard, "dim": self.dim}
        return short_repr(self, PenguinConv, options)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        *,
        velocity: Tensor | None = None,
        alpha: float | Tensor | None = None,
        axis: Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features and coordinates; see the class for shapes.

        Args:
            x: Features ``[..., n, in_channels]``.
            pos: Coordinates ``[..., n, d]``.
            edge_index: The graph, ``[2, e]``.
            edge_attr: Attributes ``[e, edge_dim]`` or ``[..., e, edge_dim]``.
            velocity: Velocities ``[..., n, d]``, if the layer has ``velocity=True``.
            alpha: Replaces the layer's own score in this call: a number, or a tensor ``[]``,
                ``[..., n, 1]`` or, with one more for the coordinates, ``[..., n, features + 1]``.
                Its leading axes are those of ``x`` or absent; with ``batch_size`` it may be stacked
                as ``x`` is.
            axis: The direction ``[d]``, if the layer has ``learn_axis="given"``.
            batch: PyG's vector ``[b*n]``, the graph of every row of a stacked batch.
            batch_size: Number of graphs in a stacked batch ``[b*n, c]``.
        """
        given = self._prepare(x, pos, edge_index, edge_attr, velocity, batch, batch_size)
        score = self._score_of(given, alpha)
        if isinstance(score, float) and score == 0:
            free = self.free(given.x, given.pos, given.graph, given.edge_attr, given.velocity)
            return given.stack(*free)
        options = {"velocity": velocity, "axis": axis, "batch_size": given.batch_size}
        options = {name: value for name, value in options.items() if value is not None}
        equal = self.equivariant(x, pos, edge_index, edge_attr, **options)
        if isinstance(score, float) and score == 1:
            return equal
        free = self.free(given.x, given.pos, given.graph, given.edge_attr, given.velocity)
        if given.batch_size is not None:
            equal = tuple(unstack(y, given.batch_size, self.num_nodes) for y in equal)
        features = place = score
        if isinstance(score, Tensor) and score.dim() and score.size(-1) == self.scored_channels + 1:
            features, place = score[..., :-1], score[..., -1:]
        return given.stack(
            features * equal[0] + (1 - features) * free[0],
            place * equal[1] + (1 - place) * free[1],
        )


class Penguin(_ScoredLayer, GeometricStack):
    """A stack of :class:`PenguinConv` that share one alpha, between two maps of the features.

    Like :class:`PenguinConv` a reconstruction. The Equivariance Estimator runs once, on the input.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output; ``None`` leaves out the last linear map and
            returns ``hidden_channels``.
        hidden_channels: Width of all layers.
        num_layers: Number of layers.
        edge_dim: Attributes per edge.
        alpha: As in :class:`PenguinConv`; ``"feature"`` scores the hidden features.
        hard: As in :class:`PenguinConv`.
        group: As in :class:`PenguinConv`; the linear maps are tied along node orbits as well.
        velocity: As in :class:`EGNNConv`; each layer sees the same, initial velocities.
        dim: Number of coordinates d.
        **options: Further options of every :class:`PenguinConv`. A learned axis is shared by all.

    Shapes:
        - input: as :class:`EGNNConv`
        - output: as :class:`EGNNConv`

    Symmetry:
        Coordinates: that of :class:`EGNNConv` where alpha is 1, none where it is 0; in between
        the errors of the layers add up.
        Nodes: that of :class:`EGNNConv`, for every alpha.

    Example:
        >>> net = Penguin(4, 2, hidden_channels=16, num_layers=2, alpha="learned")
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> x, pos = torch.randn(5, 3, 4), torch.randn(5, 3, 3)
        >>> [y.shape for y in net(x, pos, edge_index)]
        [torch.Size([5, 3, 2]), torch.Size([5, 3, 3])]
        >>> net.symmetry_score(x, pos, edge_index).item()
        0.5

    Reference:
        McClellan, Brothers, Huang, Tokekar, arXiv 2503.15615; see :class:`PenguinConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        hidden_channels: int = 64,
        num_layers: int = 4,
        *,
        edge_dim: int = 0,
        alpha: float | str = "learned",
        hard: bool = False,
        group: PermutationGroup | None = None,
        velocity: bool = False,
        dim: int = 3,
        **options: Any,
    ) -> None:
        width = hidden_channels if out_channels is None else out_channels
        super().__init__(
            in_channels,
            width,
            hidden_channels,
            group,
            dim=dim,
            edge_dim=edge_dim,
            velocity=velocity,
        )
        self._set_alpha(alpha, hard, hidden_channels, hidden_channels)
        options = {"alpha": "given", **options}
        self._set_layers(PenguinConv, hidden_channels, out_channels, num_layers, options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all layers and the Estimator."""
        self._reset(*self.convs, self.first, self.last, self.estimator)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        *,
        velocity: Tensor | None = None,
        alpha: float | Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features and coordinates; arguments as for :class:`PenguinConv`."""
        given = self._prepare(x, pos, edge_index, edge_attr, velocity, batch, batch_size)
        return self._run(given, edge_index, edge_attr, alpha=self._score_of(given, alpha))


def _check_number(alpha: object) -> float:
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise TypeError(f"alpha must be a number, a tensor or a name; got {type(alpha).__name__}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, 1 being all of the symmetry; got {alpha}")
    return float(alpha)


def _check_scores(alpha: Tensor, x: Tensor, channels: int, *, values: bool) -> None:
    """Check shape and, where that costs no sync, values of a given alpha."""
    nodes = x.size(-2)
    one = [(nodes, 1), (nodes, channels + 1)]
    if alpha.shape not in [(), *one, *((*x.shape[:-2], *shape) for shape in one)]:
        raise SignalError(
            f"alpha must be a number, [..., {nodes}, 1] or [..., {nodes}, {channels + 1}]; "
            f"got {list(alpha.shape)}"
        )
    if not values or not reads_for_free(alpha):
        return
    bad = ~((alpha.detach() >= 0) & (alpha.detach() <= 1))
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        where = f" at node {place[-2]}" if place else ""
        raise SignalError(f"alpha must lie in 0..1; got {float(alpha[tuple(place)])}{where}")
