"""The edge stage of the EGNN family: what it is given, as one value, and its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = Callable[[Tensor], Tensor]

# In this order; those that a layer lacks are left out.
NAMES = (
    *("receiver", "sender", "weight", "bias", "pos", "distance", "attr", "attr_weight"),
    *("gate", "gate_bias", "coord", "coord_bias", "coord_last"),
)


class EdgeOptions(NamedTuple):
    """Options of :func:`gsym.kernels.edge_mlp_sum`."""

    normalize: bool = False
    tanh: bool = False
    clamp: float | None = None
    mean: bool = True


@dataclass(frozen=True)
class EdgeTables:
    """The tables of both ends of the edges, sorted by receiver."""

    index: Tensor  # receiver of every edge
    order: Tensor
    pointers: Tensor
    source: Tensor  # sender of every edge
    source_order: Tensor
    source_pointers: Tensor


@dataclass(frozen=True)
class EdgeStage:
    """The tensors and options of one edge stage.

    Attributes:
        tensors: Those that are there of ``receiver [b, n, h]``, ``sender [b, m, h]``, ``weight``,
            ``bias``, ``pos [b, n, d]``, ``distance``, ``attr [b, e, a]`` or ``[e, a]``,
            ``attr_weight``, ``gate``, ``gate_bias``, ``coord``, ``coord_bias``, ``coord_last``.
        options: As in :func:`gsym.kernels.edge_mlp_sum`.
    """

    tensors: dict[str, Tensor]
    options: EdgeOptions

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.tensors["receiver"].device

    @property
    def moves(self) -> bool:
        """Whether coordinates are moved."""
        return "coord" in self.tensors

    @property
    def moved_type(self) -> torch.dtype:
        """The type of the moves, which is that of the coordinates."""
        return (self.tensors["pos"] if "pos" in self.tensors else self.tensors["receiver"]).dtype

    def widened(self, kept: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors in float32 at least, lest squares overflow; all but ``pos`` may be kept."""
        wide = self.tensors["receiver"].dtype
        for x in self.tensors.values():
            if x.dtype != wide or wide.itemsize < 4:
                break
        else:
            return self.tensors
        types = [x.dtype for x in self.tensors.values()]
        wide = torch.float64 if torch.float64 in types else torch.float32
        return {
            name: x if x.dtype == wide or (x.dtype == kept and name != "pos") else x.to(wide)
            for name, x in self.tensors.items()
        }


@dataclass(frozen=True)
class Step:
    """One step of EGNN: projections of the nodes, their edge stage, and the update of the nodes.

    Attributes:
        tensors: ``x [..., n, in]``, ``target [1, in, h]``, ``target_bias [1, h]`` and ``source [1,
            in, h]`` of both projections, ``first``, ``first_bias``, ``last`` and ``last_bias`` of
            the update, as in :func:`gsym.kernels.row_mlp`, and those of :class:`EdgeStage` but for
            both ends.
        tables: As :class:`EdgeTables` has them.
        options: Those of the edge stage.
        residual: Whether the update is added to ``x``.
        stores: Whether the forward pass keeps the arguments of activations for the gradient, which
            else computes them again.
    """

    tensors: dict[str, Tensor]
    tables: list[Tensor]
    options: EdgeOptions
    residual: bool
    stores: bool

    def stage(self, receiver: Tensor, sender: Tensor) -> EdgeStage:
        """The edge stage between both projections."""
        own = {name: self.tensors[name] for name in NAMES[2:] if name in self.tensors}
        return EdgeStage({"receiver": receiver, "sender": sender, **own}, self.options)


class EdgeMaps(NamedTuple):
    """The linear maps of an edge stage, those that it has, and the activation between them."""

    message: Rows
    gate: Rows | None = None
    coord: Rows | None = None
    coord_last: Rows | None = None
    act: Rows = F.silu

    @classmethod
    def of(cls, given: dict[str, Tensor]) -> EdgeMaps:
        """Those of the weights by name."""

        def linear(weight: str, bias: str) -> Rows | None:
            if weight not in given:
                return None
            return lambda x: F.linear(x, given[weight], given.get(bias))

        return cls(
            lambda x: F.linear(x, given["weight"], given["bias"]),
            linear("gate", "gate_bias"),
            linear("coord", "coord_bias"),
            linear("coord_last", ""),
        )


def compose_edges(
    stage: EdgeStage,
    receive: Rows,
    send: Rows,
    sum_up: Rows,
    average: Rows,
    maps: EdgeMaps | None = None,
) -> tuple[Tensor, Tensor]:
    """The edge stage step by step: it stores ``[e, h]`` and has every derivative.

    Args:
        stage: Its tensors and options.
        receive: Gathers a row per edge from its receiver.
        send: Gathers it from its sender.
        sum_up: Sums rows of edges by receiver, and leaves half precision in float32.
        average: Averages them likewise.
        maps: The linear maps behind the first; by default those of the stage's weights.

    Returns:
        Sums of messages ``[..., n, h]`` and moves ``[..., n, d]``, empty without ``coord``.
    """
    # Products of bfloat16, which has the range of float32, stay on the tensor cores of CUDA.
    given = stage.widened(kept=torch.bfloat16 if stage.device.type == "cuda" else None)
    maps = EdgeMaps.of(given) if maps is None else maps
    hidden = receive(given["receiver"]) + send(given["sender"])
    if "attr" in given:
        hidden = hidden + F.linear(given["attr"], given["attr_weight"])
    if "pos" in given:
        r = receive(given["pos"]) - send(given["pos"])
        s = r.square().sum(-1, keepdim=True)
        hidden = hidden + (s * given["distance"]).to(hidden.dtype)
    message = maps.act(maps.message(maps.act(hidden)))
    if maps.gate is not None:
        message = message * maps.gate(message).sigmoid()
    total = sum_up(message).to(stage.tensors["receiver"].dtype)
    if maps.coord is None or maps.coord_last is None:
        return total, total[..., :0]
    options = stage.options
    if options.normalize:
        # Coincident points have no direction: their r stays 0.
        length = s.detach().sqrt()
        r = r / torch.where(length == 0, 1, length + 1e-8)
    size = maps.coord_last(maps.act(maps.coord(message)))
    move = r * (size.tanh() if options.tanh else size)
    if options.clamp is not None:
        move = move * shortening(move, options.clamp)
    moved = average(move) if options.mean else sum_up(move)
    return total, moved.to(stage.moved_type)


def shortening(move: Tensor, clamp: float) -> Tensor:
    """The factor that keeps vectors ``[..., d]`` within a length, ``[..., 1]``.

    In units of the largest entry, so that no square overflows; the unit itself is a constant,
    for the factor does not depend on it.
    """
    unit = move.detach().abs().amax(-1, keepdim=True).clamp(min=clamp)
    square = (move / unit).square().sum(-1, keepdim=True)
    longest = clamp / unit
    return longest / square.maximum(longest.square()).sqrt()
