"""Orbits of coordinates: pairs of node and channel, which a group moves with a sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsym.groups.orbits import Orbits


@dataclass(frozen=True)
class ChannelMoves:
    """How every generator moves ``c`` channels: to ``images[j, a]``, times ``signs[j, a]``.

    Attributes:
        images: int64 ``[m, c]``.
        signs: 1 or -1, int64 ``[m, c]``.
    """

    images: Tensor
    signs: Tensor

    @classmethod
    def still(cls, count: int, channels: int = 1) -> ChannelMoves:
        """Channels that no generator moves."""
        images = torch.arange(channels).expand(count, channels)
        return cls(images, torch.ones_like(images))


def coordinate_orbits(generators: Tensor, moves: ChannelMoves) -> Orbits:
    """Signed orbits of the coordinates ``(i, a)`` of a signal: ``index`` is ``[n, c]``."""
    n, c = generators.size(1), moves.images.size(1)
    images = generators[:, :, None] * c + moves.images[:, None, :]
    signs = moves.signs[:, None, :].expand_as(images)
    return Orbits.of_signed_maps(images.flatten(1), signs.flatten(1)).view(n, c)


def map_orbits(generators: Tensor, into: ChannelMoves, out: ChannelMoves) -> Orbits:
    """Signed orbits of the entries of one matrix per point: ``index`` is ``[n, c_out, c_in]``."""
    both = _product(out, into)
    shape = generators.size(1), out.images.size(1), into.images.size(1)
    return coordinate_orbits(generators, both).view(*shape)


def pair_coordinate_orbits(generators: Tensor, into: ChannelMoves, out: ChannelMoves) -> Orbits:
    """Signed orbits of the entries of a map of signals: ``index`` is ``[n, n, c_out, c_in]``.

    Entry ``[i, j, a, b]`` is what channel ``a`` of node ``i`` receives from channel ``b`` of ``j``.
    """
    n = generators.size(1)
    pairs = (generators[:, :, None] * n + generators[:, None, :]).flatten(1)
    return map_orbits(pairs, into, out).view(n, n, out.images.size(1), into.images.size(1))


def _product(out: ChannelMoves, into: ChannelMoves) -> ChannelMoves:
    """How entries ``[a, b]`` of a matrix move: rows as ``out``, columns as ``into``."""
    columns = into.images.size(1)
    images = out.images[:, :, None] * columns + into.images[:, None, :]
    signs = out.signs[:, :, None] * into.signs[:, None, :]
    return ChannelMoves(images.flatten(1), signs.flatten(1))


def check_representations(group: object, *reps: Any) -> None:
    """Refuse what is neither ``None`` nor a representation of this group.

    The class itself is defined on top of groups.
    """
    for rep in reps:
        if rep is None:
            continue
        if not hasattr(rep, "moves_of_generators"):
            raise TypeError(
                "in_rep and out_rep must be a gsym.Representation or None; got "
                f"{type(rep).__name__}"
            )
        rep.check_group(group)


def mixes_channels(*reps: object) -> bool:
    """Whether one of the representations, if there are any, is by matrices."""
    return any(getattr(rep, "mixes_channels", False) for rep in reps)
