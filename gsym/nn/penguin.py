"""PenguinConv and Penguin: partially E(n)-equivariant layers, a reconstruction of PEnGUiN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from gsym.groups import PermutationGroup, Representation
from gsym.nn._absolute import NonEquivariantConv
from gsym.nn._activations import Activation
from gsym.nn._batch import unstack
from gsym.nn._geometric import (
    GeometricStack,
    check_residual,
    short_repr,
)
from gsym.nn._last_graph import LastGraph
from gsym.nn._messages import EdgeGraph
from gsym.nn._scores import ScoredLayer
from gsym.nn.egnn import EGNNConv


class PenguinConv(ScoredLayer):
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
    single layers estimates again in each; the coordinates move as in EGNN, not as in E2GN2; no
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
        group: As in :class:`EGNNConv`, for both branches and the Estimator.
        in_rep: As in :class:`EGNNConv`, for both branches and the Estimator.
        out_rep: As in :class:`EGNNConv`, for both branches.
        pos_rep: How the group moves coordinates and velocities, which the free branch and the
            Estimator see as numbers: a mirror reflects them. ``None`` if they stay.
        hidden: As in :class:`EGNNConv`, for both branches and the Estimator.
        hard: Round a learned alpha to 0 or 1, that of edges before the mean, with straight-through
            gradients.
        residual: As in :class:`EGNNConv`, for both branches.
        velocity: As in :class:`EGNNConv`; the free branch sees velocities with the coordinates.
        dim: Number of coordinates d.
        attention: As in :class:`EGNNConv`, for its branch, like those that follow.
        normalize: See there.
        coord_aggr: See there.
        tanh: See there.
        clamp: See there.
        extra_vectors: See there.
        learn_axis: See there.
        act: As in :class:`EGNNConv`, for both branches and the Estimator. By a name the equivariant
            branch has its own; the other branch and the Estimator share one.

    Shapes:
        - input: as :class:`EGNNConv`
        - output: as :class:`EGNNConv`

    Symmetry:
        Coordinates: that of :class:`EGNNConv` where alpha is 1. For a constant alpha the error is
        bounded, :math:`|f(gx) - g f(x)| \le (1 - \alpha) |n(gx) - g n(x)|` with n the free
        branch. An estimated alpha sees absolute coordinates and moves with them, so regional
        symmetry is exact only where it is rounded to 1 or saturates.
        Nodes: that of :class:`EGNNConv`, for every alpha, where ``pos_rep`` says how a permutation
        moves the coordinates that the free branch and the Estimator see.

    Raises:
        ValueError: An alpha outside 0..1 or of an unknown kind.
        GraphError: As :class:`EGNNConv`.
        SignalError: A given alpha of another shape or, on the CPU, outside 0..1; and as
            :class:`EGNNConv`.
        GroupError: Loading a checkpoint of another group or of other representations; a
            representation of another group or of other channels; hidden channels that change signs;
            an activation with weights per channel where the group exchanges channels.

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
        group: PermutationGroup | None = None,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
        pos_rep: Representation | None = None,
        hidden: str | Representation | None = None,
        hard: bool = False,
        residual: bool | None = None,
        velocity: bool = False,
        dim: int = 3,
        attention: bool = False,
        normalize: bool = False,
        coord_aggr: str = "mean",
        tanh: bool = False,
        clamp: float | None = None,
        extra_vectors: Tensor | None = None,
        learn_axis: bool | str = False,
        act: Activation = "silu",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            hidden_channels,
            group,
            in_rep=in_rep,
            out_rep=out_rep,
            pos_rep=pos_rep,
            hidden=hidden,
            dim=dim,
            edge_dim=edge_dim,
            velocity=velocity,
            act=act,
        )
        residual = check_residual(self, residual)
        self._set_alpha(alpha, hard, out_channels, out_rep)
        self.equivariant = EGNNConv(
            in_channels,
            out_channels,
            hidden_channels,
            edge_dim,
            group=group,
            in_rep=in_rep,
            out_rep=out_rep,
            hidden=self._maps.hidden_rep or "trivial",
            residual=residual,
            attention=attention,
            normalize=normalize,
            coord_aggr=coord_aggr,
            tanh=tanh,
            clamp=clamp,
            velocity=velocity,
            extra_vectors=extra_vectors,
            learn_axis=learn_axis,
            dim=dim,
            act=act,
        )
        self.free = NonEquivariantConv(
            self._maps,
            self._into,
            self._out,
            self._places,
            edge_dim,
            residual=residual,
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
        options = {**branch, "hidden": self.hidden, "pos_rep": self.pos_rep, "alpha": self.alpha}
        options |= {"hard": hard, "dim": self.dim}
        del options["update_pos"]  # of the branch alone
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
        options: dict[str, Any]
        options = {"velocity": velocity, "axis": axis, "batch_size": given.batch_size}
        options = {name: value for name, value in options.items() if value is not None}
        equal = self.equivariant(x, pos, edge_index, edge_attr, **options)
        if isinstance(score, float) and score == 1:
            return equal
        free = self.free(given.x, given.pos, given.graph, given.edge_attr, given.velocity)
        if given.batch_size is not None:
            rows = given.batch_size, self.num_nodes
            equal = unstack(equal[0], *rows), unstack(equal[1], *rows)
        features = moves = score
        if isinstance(score, Tensor) and score.dim() and score.size(-1) == self.scored_channels + 1:
            features, moves = score[..., :-1], score[..., -1:]
        return given.stack(
            features * equal[0] + (1 - features) * free[0],
            moves * equal[1] + (1 - moves) * free[1],
        )

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward


class Penguin(ScoredLayer, GeometricStack):
    """A stack of :class:`PenguinConv` that share one alpha, between two maps of the features.

    Like :class:`PenguinConv` a reconstruction. The Equivariance Estimator runs once, on the input.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output; ``None`` leaves out the last linear map and
            returns ``hidden_channels``.
        hidden_channels: Width of all layers.
        num_layers: Number of layers.
        edge_dim: Attributes per edge.
        group: As in :class:`PenguinConv`; the linear maps are tied along node orbits as well.
        in_rep: How the group moves the features of the input, as in :class:`EGNNConv`.
        out_rep: How it moves those of the output.
        pos_rep: As in :class:`PenguinConv`.
        hidden: As in :class:`EGNNConv`; features between the layers move alike.
        alpha: As in :class:`PenguinConv`; ``"feature"`` scores the hidden features.
        hard: As in :class:`PenguinConv`.
        residual: As in :class:`EGNNConv`, like those that follow.
        attention: See there.
        normalize: See there.
        coord_aggr: See there.
        tanh: See there.
        clamp: See there.
        extra_vectors: See there.
        learn_axis: See there; a learned axis is shared by all layers.
        velocity: As in :class:`EGNNConv`; each layer sees the same, initial velocities.
        dim: Number of coordinates d.
        act: As in :class:`EGNNConv`; the linear maps of the stack have none.

    Shapes:
        - input: as :class:`EGNNConv`
        - output: as :class:`EGNNConv`

    Symmetry:
        Coordinates: that of :class:`EGNNConv` where alpha is 1, none where it is 0; in between
        the errors of the layers add up.
        Nodes: that of :class:`EGNNConv`, for every alpha.

    Raises:
        ValueError: An alpha outside 0..1 or of an unknown kind.
        GraphError: As :class:`EGNNConv`.
        SignalError: As :class:`PenguinConv`.
        GroupError: As :class:`PenguinConv`.

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
        group: PermutationGroup | None = None,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
        pos_rep: Representation | None = None,
        hidden: str | Representation | None = None,
        alpha: float | str = "learned",
        hard: bool = False,
        residual: bool | None = None,
        attention: bool = False,
        normalize: bool = False,
        coord_aggr: str = "mean",
        tanh: bool = False,
        clamp: float | None = None,
        extra_vectors: Tensor | None = None,
        learn_axis: bool = False,
        velocity: bool = False,
        dim: int = 3,
        act: Activation = "silu",
    ) -> None:
        width = hidden_channels if out_channels is None else out_channels
        super().__init__(
            in_channels,
            width,
            hidden_channels,
            group,
            in_rep=in_rep,
            out_rep=out_rep,
            pos_rep=pos_rep,
            hidden=hidden,
            dim=dim,
            edge_dim=edge_dim,
            velocity=velocity,
            act=act,
        )
        self._set_alpha(alpha, hard, hidden_channels, self._maps.hidden_rep)
        options = {
            "pos_rep": pos_rep,
            "alpha": "given",
            "residual": residual,
            "attention": attention,
            "normalize": normalize,
            "coord_aggr": coord_aggr,
            "tanh": tanh,
            "clamp": clamp,
            "extra_vectors": extra_vectors,
            "learn_axis": learn_axis,
            "act": act,
        }
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

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward
