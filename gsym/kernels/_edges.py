"""What the edge stage of the EGNN family is given, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`gsym.kernels.edge_mlp_sum`, but for both indices."""
        given = self.tensors
        names = {
            "edge_attr": ("attr", "attr_weight"),
            "gate": ("gate", "gate_bias"),
            "coord": ("coord", "coord_bias", "coord_last"),
        }
        parts = {name: tuple(given[n] for n in ns) for name, ns in names.items() if ns[0] in given}
        alone = ("receiver", "sender", "weight", "bias", "pos", "distance")
        return {n: given[n] for n in alone if n in given} | parts | self.options._asdict()
