"""Plane flows of vortices beside a rising plume, whose law has one mirror and no other symmetry."""

from __future__ import annotations

import torch
from torch import Tensor

VORTICES = 3


def simulate_plumes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Velocities of flows in the square ``[-1, 1]^2``, at the centres of ``size x size`` cells.

    A flow is the sum of three vortices with Gaussian cores at uniform places. What lies on the
    right turns clockwise, what lies on the left the other way, as beside a plume that rises in
    the middle, and vortices are wider the higher they lie.

    Symmetry, known by construction: under the left-right mirror a vortex changes its side and its
    sense, so the law of a flow is that of its mirror image with the horizontal velocity reversed.
    No other symmetry of the square holds, whatever the signs: the width tells up from down, the
    sense tells left from right, and the mean flow, up in the middle, tells a flow from its
    reverse.

    Args:
        count: Number of flows ``b``.
        size: Cells along one side.
        generator: Draws the vortices.

    Returns:
        Right and up velocities, row-major from the upper left cell, ``[b, size * size, 2]``.
    """
    place = 2 * torch.rand(count, VORTICES, 2, generator=generator) - 1
    strength, spread = torch.rand(2, count, VORTICES, generator=generator)
    right, up = place.unbind(-1)
    width = (0.45 + 0.15 * up) * (0.8 + 0.4 * spread)
    return velocities(place, (0.5 + strength) * -right.sign(), width, size)


def velocities(place: Tensor, turning: Tensor, width: Tensor, size: int) -> Tensor:
    """The flow of given vortices.

    Args:
        place: Centres, right and up, ``[b, v, 2]``.
        turning: Speed at the edge of the core, where it is largest; positive counterclockwise,
            ``[b, v]``.
        width: Radius of the core, ``[b, v]``.
        size: Cells along one side.

    Returns:
        As :func:`simulate_plumes`.
    """
    along = (2 * torch.arange(size) + 1) / size - 1
    cells = torch.stack([along.repeat(size), -along.repeat_interleave(size)], dim=-1)
    # In radii of the core, [b, v, n].
    x, y = ((cells - place.unsqueeze(-2)) / width[..., None, None]).unbind(-1)
    speed = turning.unsqueeze(-1) * torch.exp((1 - x.square() - y.square()) / 2)
    return torch.stack([-y * speed, x * speed], dim=-1).sum(dim=1)
