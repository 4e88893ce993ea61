"""EGNNConv and EGNN: message passing that commutes with rotations, reflections and translations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gsym._validate import check_clamp, check_like_weights
from gsym.errors import SignalError
from gsym.groups import PermutationGroup, Representation
from gsym.kernels.steps import egnn_step
from gsym.nn._activations import Activation, describe_activation
from gsym.nn._geometric import (
    GeometricLayer,
    GeometricStack,
    Inputs,
    check_residual,
    draw_direction,
    short_repr,
)
from gsym.nn._messages import SMALL_GAIN, EdgeMLP
from gsym.nn._modules import own_parameter

AGGREGATIONS = ("mean", "sum")


class EGNNConv(GeometricLayer):
    r"""Equivariant message passing on features and coordinates (EGNN).

    With :math:`r_{ij} = x_i - x_j` on the edge from j to i,

    .. math::
        m_{ij} = \phi_e(h_i, h_j, |r_{ij}|^2, a_{ij}), \qquad
        x_i' = x_i + \mathrm{mean}_j\, r_{ij}\, \phi_x(m_{ij}), \qquad
        h_i' = h_i + \phi_h(h_i, \textstyle\sum_j m_{ij}).

    Coordinates are moved by differences of coordinates times invariant numbers, which is why the
    layer commutes with every rotation, reflection and translation.

    Of PyG's conventions for message passing it keeps the names, the arguments ``x, pos,
    edge_index, edge_attr`` in this order, and the direction: messages go from ``edge_index[0]`` to
    ``edge_index[1]``, where they are aggregated. It is no ``MessagePassing``, which would store
    every message: there are no ``message`` and ``propagate`` to override or to hang hooks on,
    hence no ``torch_geometric.explain`` through them, no ``flow``, no bipartite graphs and no
    sparse adjacency.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output.
        hidden_channels: Width of all hidden layers and of the messages.
        edge_dim: Attributes per edge.
        group: Every node orbit gets its own weights of the nodes: both projections of
            :math:`\phi_e`, :math:`\phi_h` and :math:`\phi_v`; those of the edges are shared.
            ``None`` shares all.
        in_rep: How the group moves the features of the input, too; ``None`` if they stay.
            Coordinates need none: the layer commutes with the rotation or reflection that goes
            with a permutation, as a mirror has one, unless vectors break that.
        out_rep: How it moves those of the output.
        hidden: How it moves the hidden channels, on which ``act`` acts one by one: ``"regular"``,
            copies of :meth:`gsym.Representation.regular`, the default with representations;
            ``"trivial"``, not at all, which loses whatever changes its sign at nodes that the group
            fixes; or a representation by permutations. Signs before an activation are refused.
        residual: Add the input features; by default where the widths agree.
        attention: Multiply every message by a learned gate in 0..1.
        normalize: Use the direction of :math:`r_{ij}` in place of :math:`r_{ij}`.
        coord_aggr: ``"mean"`` or ``"sum"`` of the moves of a node.
        tanh: Bound :math:`\phi_x` by 1.
        clamp: Maximum coordinate update per edge, in units of ``pos``. The published code clamps
            every coordinate by itself, which rotations do not respect; this shortens the vector.
        velocity: Add :math:`\phi_v(h_i) v_i` to the coordinates, the velocities being given.
        extra_vectors: Directions that break the symmetry, ``[k, d]``, such as gravity. Messages
            see the component of :math:`r_{ij}` along each, and nodes that move do so along them.
        learn_axis: One more such direction, learned; needs ``dim``. ``"given"`` in each call, as
            :class:`EGNN` gives all its layers one.
        dim: Number of coordinates d; any if left out.
        act: The activation between linear maps, as PyG takes it: a name such as ``"gelu"``, a
            function or a module, which sees rows ``[r, hidden_channels]``. A module with weights
            is shared by all maps, and by the layers of a stack, and keeps the values that it has; a
            name gives every layer its own, which ``reset_parameters`` draws.
            It has to treat all channels alike where the group moves ``hidden``.
        update_pos: Whether nodes move. ``False`` returns ``pos`` as it came and leaves out
            :math:`\phi_x`, its weights and options; features see distances as ever.

    Shapes:
        - input: ``x [..., n, in_channels]``, ``pos [..., n, d]``, ``edge_index [2, e]``,
          ``edge_attr [e, edge_dim]`` or ``[..., e, edge_dim]``, ``velocity [..., n, d]``; or PyG's
          stacked batch of one graph with ``batch_size=b``
        - output: ``[..., n, out_channels]`` and ``[..., n, d]``

    Symmetry:
        Coordinates: exact for E(d), rotations, reflections and translations, velocities turning
        along. With ``extra_vectors`` or a learned axis exact for translations and for the
        rotations and reflections that leave each of these vectors where it is. Their weights
        start at zero, so an untrained layer has all of E(d). With ``update_pos=False`` the
        features are invariant, and coordinates stay what they are.
        Nodes: exact for each permutation that preserves ``edge_index``, ``edge_attr`` and the node
        orbits of ``group``; so for ``group`` when it preserves the graph. Relabelling everything
        together commutes with ``group=None`` always.
        With representations features move along, and the condition is the same; ``edge_attr``
        stays with its edge.

    Raises:
        GraphError: An ``edge_index`` that is out of range, not int64 or not ``[2, e]``;
            ``edge_attr`` of another shape.
        ValueError: An unknown ``act`` or one that changes the shape; with ``update_pos=False``
            velocities or an option that says how nodes move.
        SignalError: Features or coordinates of another shape or type, coordinates or velocities
            that are not finite. On CUDA and in compiled code values are not read.
        GroupError: Loading a checkpoint of another group or of other representations; a
            representation of another group or of other channels; hidden channels that change signs;
            an activation with weights per channel where the group exchanges channels.

    Cost:
        ``O(n d h + e h^2)`` for width h. The edges run through
        :func:`gsym.kernels.edge_mlp_sum`, which stores nothing per edge and hidden channel, or on
        the CPU with projections and update through one operator, which stores what fits in 4 MiB.
        Kernels have SiLU alone: another activation stores a few ``[e, h]``, as plain PyTorch does.
        With ``update_pos=False`` the parts of a step run one by one.
        The graph is prepared as in :class:`GNetConv`: once, and before
        ``torch.compile(fullgraph=True)``.

    Example:
        >>> conv = EGNNConv(8, 8, hidden_channels=16)
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> x, pos = conv(torch.randn(5, 3, 8), torch.randn(5, 3, 3), edge_index)
        >>> x.shape, pos.shape
        (torch.Size([5, 3, 8]), torch.Size([5, 3, 3]))

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, equations 3 to 6, and 7 with ``velocity``.
        Their code draws :math:`\phi_h` by PyTorch's defaults; ours starts as small as their
        moves, and in a stack both are divided by its depth, so that deep stacks on dense graphs
        stay finite. The zero-initialised axis follows ESNN, arXiv 2608.28853, as its author
        describes it; that nodes move along it is ours.
    """

    axis: nn.Parameter | None
    extra_vectors: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        edge_dim: int = 0,
        *,
        group: PermutationGroup | None = None,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
        hidden: str | Representation | None = None,
        residual: bool | None = None,
        attention: bool = False,
        normalize: bool = False,
        coord_aggr: str = "mean",
        tanh: bool = False,
        clamp: float | None = None,
        velocity: bool = False,
        extra_vectors: Tensor | None = None,
        learn_axis: bool | str = False,
        dim: int | None = None,
        act: Activation = "silu",
        update_pos: bool = True,
    ) -> None:
        vectors = None if extra_vectors is None else _check_vectors(extra_vectors, dim)
        dim = dim if vectors is None else vectors.size(1)
        super().__init__(
            in_channels,
            out_channels,
            hidden_channels,
            group,
            in_rep=in_rep,
            out_rep=out_rep,
            hidden=hidden,
            dim=dim,
            edge_dim=edge_dim,
            velocity=velocity,
            act=act,
        )
        if coord_aggr not in AGGREGATIONS:
            raise ValueError(f"coord_aggr must be one of mean, sum; got {coord_aggr!r}")
        check_clamp(clamp)
        how = {"velocity": velocity, "normalize": normalize, "tanh": tanh, "clamp": clamp}
        _check_moves(update_pos, how | {"coord_aggr": coord_aggr != "mean" and coord_aggr})
        self.update_pos = update_pos
        self.residual = check_residual(self, residual)
        self.hidden_channels = hidden_channels
        maps, into = self._maps, self._into
        self.edges = EdgeMLP(
            maps,
            [into],
            edge_dim,
            invariant=True,
            moves=update_pos,
            attention=attention,
            normalize=normalize,
            tanh=tanh,
            clamp=clamp,
            mean=coord_aggr == "mean",
        )
        self.update = maps.mlp([into, maps.hidden], self._out)
        self.velocity_mlp = maps.mlp([into], maps.still(1)) if velocity else None
        # What is learned with them counts as state; the vectors are drawn again from these.
        self._given_vectors = vectors
        self.register_buffer("extra_vectors", None if vectors is None else vectors.clone())
        self.register_parameter("axis", None)
        if learn_axis not in (True, False, "given"):
            raise ValueError(f'learn_axis must be True, False or "given"; got {learn_axis!r}')
        self.learn_axis = learn_axis
        if learn_axis:
            if dim is None:
                raise ValueError("learn_axis=True needs dim, the number of coordinates")
            if learn_axis is True:
                self.axis = nn.Parameter(torch.empty(dim))
        count = bool(learn_axis) + (0 if vectors is None else vectors.size(0))
        self.register_parameter("axis_weight", None)
        self.axis_mlp = None
        if count:
            self.axis_weight = nn.Parameter(torch.empty(count, self.edges.num_free))
            if update_pos:
                self.axis_mlp = maps.mlp([into], maps.still(count))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, depth: int = 1) -> None:
        """PyTorch's defaults, but small moves and residuals; what breaks the symmetry is zero.

        Sums over many neighbours make a deep stack explode unless it starts small: ``depth``
        layers on each other together move as far as one.
        """
        gain = SMALL_GAIN / depth
        self.edges.reset_parameters(gain)
        self.update.reset_parameters(gain if self.residual else None)
        if self.velocity_mlp is not None:
            self.velocity_mlp.reset_parameters()
        if self.axis_weight is not None:
            self.axis_weight.zero_()
        if self.axis_mlp is not None:
            self.axis_mlp.reset_parameters(0)
        if self.axis is not None:
            draw_direction(self.axis)
        if self.extra_vectors is not None and self._given_vectors is not None:
            self.extra_vectors.copy_(self._given_vectors)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        *,
        velocity: Tensor | None = None,
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
            axis: The direction ``[d]``, if the layer has ``learn_axis="given"``.
            batch: PyG's vector ``[b*n]``, the graph of every row of a stacked batch.
            batch_size: Number of graphs in a stacked batch ``[b*n, c]``.
        """
        given = self._prepare(x, pos, edge_index, edge_attr, velocity, batch, batch_size)
        vectors, axis_part = self._vectors(axis, given.pos), None
        x, pos = given.x, given.pos
        if vectors is not None:
            # The component of r_ij is a difference of two nodes, so it costs nothing on edges.
            # Centring keeps the difference and avoids cancellation far from the origin.
            wide = torch.promote_types(pos.dtype, torch.float32)
            centre = pos.mean(-2, keepdim=True, dtype=wide).to(pos.dtype)
            axis_part = (pos - centre) @ vectors.t() @ self.edges.wide(self.axis_weight.t()).t()
        reads = self.update_pos and vectors is None
        if reads and self.edges.may_be_read() and self.update.may_be_read():
            new, new_pos = self._step(given)
        else:
            messages, moves = self.edges(x, given.graph, given.edge_attr, pos, axis_part)
            new, new_pos = self.update(x, messages), pos if moves is None else pos + moves
            new = x + new if self.residual else new
        if given.velocity is not None and self.velocity_mlp is not None:
            new_pos = new_pos + self.velocity_mlp(x) * given.velocity
        if vectors is not None and self.axis_mlp is not None:
            new_pos = new_pos + self.axis_mlp(x) @ vectors
        return given.stack(new, new_pos)

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward

    def _step(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """Features and coordinates by all weights at once."""
        first, last = self.update.first, self.update.last
        tensors = {"x": given.x, "pos": given.pos, **self.edges.tensors(given.edge_attr)}
        tensors |= {"first": first.weight, "first_bias": first.bias}
        tensors |= {"last": last.weight, "last_bias": last.bias}
        ends = given.graph.source, given.graph.target
        return egnn_step(tensors, *ends, self.edges.options, self.residual)

    def _like(self) -> Tensor | None:
        return own_parameter(self.edges, "distance")

    def _options(self) -> dict[str, object]:
        """What ``repr`` says of the layer: its options by name."""
        edges, vectors = self.edges, self.extra_vectors
        return {
            "hidden_channels": self.hidden_channels,
            "edge_dim": self.edge_dim,
            "group": self.group,
            "in_rep": self.in_rep,
            "out_rep": self.out_rep,
            "hidden": self.hidden,
            "residual": None if self.residual == check_residual(self, None) else False,
            "attention": edges.gate is not None,
            "normalize": edges.options.normalize,
            "coord_aggr": "mean" if edges.options.mean else "sum",
            "tanh": edges.options.tanh,
            "clamp": edges.options.clamp,
            "velocity": self.velocity,
            "extra_vectors": None if vectors is None else list(vectors.shape),
            "learn_axis": self.learn_axis,
            "dim": self.dim if vectors is None else None,
            "act": describe_activation(edges.act),
            "update_pos": self.update_pos,
        }

    def __repr__(self) -> str:
        """As PyG writes its layers, with the options that are not the default."""
        return short_repr(self, EGNNConv, self._options())

    def _vectors(self, given: Tensor | None, pos: Tensor) -> Tensor | None:
        """All directions that break the symmetry, ``[k, d]``."""
        if (given is not None) != (self.learn_axis == "given"):
            needs = "needs axis" if given is None else "takes no axis"
            raise TypeError(f"a layer with learn_axis={self.learn_axis!r} {needs}")
        axis = self.axis if given is None else given
        if axis is None:
            return self.extra_vectors
        if axis.shape != pos.shape[-1:]:
            raise SignalError(f"axis must be [{pos.size(-1)}]; got {list(axis.shape)}")
        check_like_weights(self._like(), axis=axis)
        axis = axis[None]
        return axis if self.extra_vectors is None else torch.cat([self.extra_vectors, axis])


class EGNN(GeometricStack):
    """A stack of :class:`EGNNConv` between two linear maps of the features.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output; ``None`` leaves out the last linear map and
            returns ``hidden_channels``.
        hidden_channels: Width of all layers.
        num_layers: Number of layers.
        edge_dim: Attributes per edge.
        group: As in :class:`EGNNConv`; the linear maps are tied along node orbits as well.
        in_rep: How the group moves the features of the input, as in :class:`EGNNConv`.
        out_rep: How it moves those of the output.
        hidden: As in :class:`EGNNConv`; features between the layers move alike.
        dim: As in :class:`EGNNConv`.
        velocity: As in :class:`EGNNConv`; each layer sees the same, initial velocities.
        residual: As in :class:`EGNNConv`, like those that follow.
        attention: See there.
        normalize: See there.
        coord_aggr: See there.
        tanh: See there.
        clamp: See there.
        extra_vectors: See there.
        learn_axis: See there; a learned axis is shared by all layers.
        act: See there; the linear maps of the stack have none.
        update_pos: See there, for all layers.

    Shapes:
        - input: as :class:`EGNNConv`
        - output: as :class:`EGNNConv`

    Symmetry:
        That of :class:`EGNNConv`, for coordinates and nodes.

    Example:
        >>> net = EGNN(1, None, velocity=True, edge_dim=2)
        >>> sum(p.numel() for p in net.parameters())
        134020

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, section 3. The example is their network
        for the n-body task.
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
        hidden: str | Representation | None = None,
        dim: int | None = None,
        velocity: bool = False,
        residual: bool | None = None,
        attention: bool = False,
        normalize: bool = False,
        coord_aggr: str = "mean",
        tanh: bool = False,
        clamp: float | None = None,
        extra_vectors: Tensor | None = None,
        learn_axis: bool = False,
        act: Activation = "silu",
        update_pos: bool = True,
    ) -> None:
        width = hidden_channels if out_channels is None else out_channels
        super().__init__(
            in_channels,
            width,
            hidden_channels,
            group,
            in_rep=in_rep,
            out_rep=out_rep,
            hidden=hidden,
            dim=dim,
            edge_dim=edge_dim,
            velocity=velocity,
            act=act,
        )
        options = {
            "residual": residual,
            "attention": attention,
            "normalize": normalize,
            "coord_aggr": coord_aggr,
            "tanh": tanh,
            "clamp": clamp,
            "extra_vectors": extra_vectors,
            "learn_axis": learn_axis,
            "act": act,
            "update_pos": update_pos,
        }
        self._set_layers(EGNNConv, hidden_channels, out_channels, num_layers, options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all layers."""
        self._reset(self.first, *self.convs, self.last)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        *,
        velocity: Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features and coordinates; arguments as for :class:`EGNNConv`."""
        given = self._prepare(x, pos, edge_index, edge_attr, velocity, batch, batch_size)
        return self._run(given, edge_index, edge_attr)

    if TYPE_CHECKING:  # to PyTorch the result of a call is Any
        __call__ = forward


def _check_moves(update_pos: bool, how: dict[str, object]) -> None:
    """Refuse options that say how nodes move where they do not."""
    if not isinstance(update_pos, bool):
        raise TypeError(f"update_pos must be True or False; got {update_pos!r:.80}")
    given = [name for name, value in how.items() if value not in (None, False)]
    if given and not update_pos:
        raise ValueError(
            f"{' and '.join(given)} of a layer says how nodes move, and update_pos=False leaves "
            "them where they are; give one or the other"
        )


def _check_vectors(vectors: Tensor, dim: int | None) -> Tensor:
    device = vectors.device if isinstance(vectors, Tensor) else "cpu"
    try:
        vectors = torch.as_tensor(vectors, dtype=torch.get_default_dtype(), device=device)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise SignalError(f"extra_vectors must be numbers [k, d]; got {vectors!r:.80}") from cause
    if vectors.dim() != 2 or vectors.size(0) == 0:
        raise SignalError(f"extra_vectors must be [k, d]; got {list(vectors.shape)}")
    if dim is not None and vectors.size(1) != dim:
        raise SignalError(f"extra_vectors must be [k, {dim}]; got {list(vectors.shape)}")
    if not bool(vectors.isfinite().all()):
        raise SignalError("extra_vectors must be finite")
    return vectors.clone()
