"""Where the score alpha of a partially equivariant layer comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import (
    check_like_weights,
    check_positions,
    check_signal,
    reads_for_free,
)
from gsym.errors import GroupError, SignalError
from gsym.groups import Representation
from gsym.nn._activations import Function, on_rows, reset_activation
from gsym.nn._batch import unstack_rows
from gsym.nn._geometric import GeometricLayer, Inputs
from gsym.nn._messages import EdgeGraph
from gsym.nn._modules import draw_again
from gsym.nn._moved import Maps
from gsym.nn._nodewise import NodeMLP
from gsym.nn._signs import Channels

ALPHAS = ("learned", "node", "edge", "feature", "given")


class Estimator(nn.Module):
    """The score alpha in 0..1 from features and absolute coordinates (Equivariance Estimator).

    Args:
        mode: ``"learned"``, ``"node"``, ``"edge"`` or ``"feature"``.
        maps: Makes the maps, and says how hidden channels move, and which activation.
        into: Features and coordinates of a node.
        scores: What ``"node"`` and ``"feature"`` score.
        hard: Round to 0 or 1; gradients pass as if not rounded.
    """

    act: Function | None

    def __init__(
        self,
        mode: str,
        maps: Maps,
        into: Sequence[Channels],
        scores: Channels,
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
                maps.linear(into, maps.hidden, bias=bias) for bias in (True, False)
            )
            self.last, self.act = maps.shared(maps.hidden, scores), maps.act
        else:
            self.nodes = maps.mlp(into, scores)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's defaults, hence alpha near one half."""
        if self.logit is not None:
            self.logit.zero_()
        if self.nodes is not None:
            self.nodes.reset_parameters()
        if self.ends is not None:
            for part in (*self.ends, self.last):
                draw_again(part)
            reset_activation(self.act)

    def forward(self, x: Tensor, pos: Tensor, graph: EdgeGraph) -> Tensor:
        """The score, ``[]``, ``[..., n, 1]`` or ``[..., n, out_channels + 1]``."""
        if self.logit is not None:
            return self._round(self.logit.sigmoid().squeeze(0))
        inputs = torch.cat([x, pos], dim=-1)
        if self.nodes is not None:
            return self._round(self.nodes(inputs).sigmoid())
        assert self.ends is not None
        target, source = (end(inputs) for end in self.ends)
        hidden = kernels.segment_gather(target, graph.target)
        hidden = hidden + kernels.segment_gather(source, graph.source)
        alpha = self._round(self.last(on_rows(self.act, hidden)).sigmoid())
        # Counting what is missing to 1 leaves a node without edges symmetric.
        return 1 - kernels.segment_mean(1 - alpha, graph.target)

    def _round(self, alpha: Tensor) -> Tensor:
        if not self.hard:
            return alpha
        return (alpha > 0.5).to(alpha.dtype) + (alpha - alpha.detach())


class ScoredLayer(GeometricLayer):
    """What :class:`PenguinConv` and :class:`Penguin` share: where alpha comes from."""

    def _set_alpha(
        self,
        alpha: float | str,
        hard: bool,
        scored_channels: int,
        scored_rep: Representation | None,
    ) -> None:
        assert self.dim is not None
        self._places = Channels.of(self.pos_rep, self.dim, self.group, "pos_rep")
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
            scores = self._maps.still(1)
            if alpha == "feature":
                scores = self._scores(scored_channels, scored_rep)
            places = [self._into, self._places]
            self.estimator = Estimator(self.alpha, self._maps, places, scores, hard)
        elif hard:
            raise ValueError(f"hard=True rounds a learned alpha; got alpha={alpha!r}")

    def _scores(self, channels: int, rep: Representation | None) -> Channels:
        """One score per feature and one for the coordinates, which change places but no signs."""
        if rep is None or self.group is None:
            return self._maps.still(channels + 1)
        if rep.mixes_channels:
            raise GroupError(
                f'alpha="feature" scores every feature by itself, but the group mixes them: '
                f'{rep!r}; use alpha="node", or a representation by signs or permutations'
            )
        if rep.is_trivial:
            return self._maps.still(channels + 1)
        moved = Representation.from_permutation(self.group, rep.images)
        one = Representation.trivial(self.group, 1)
        return Channels.of(moved + one, channels + 1, self.group, "out_rep")

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
        entry = bad.nonzero()[0].tolist()
        where = f" at node {entry[-2]}" if entry else ""
        raise SignalError(f"alpha must lie in 0..1; got {float(alpha[tuple(entry)])}{where}")
