"""Latitudes and longitudes, and whether they are such."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gsym.errors import SignalError


def check_latlon(latlon: Any, n: int) -> np.ndarray:
    """Latitudes and longitudes ``[n, 2]`` in degrees.

    Raises:
        SignalError: Another shape, numbers that are not finite, or beyond the poles.
    """
    if isinstance(latlon, Tensor):
        latlon = latlon.detach().cpu().numpy()
    degrees = np.asarray(latlon, dtype=float)
    if degrees.shape != (n, 2):
        raise SignalError(
            f"latlon must be [{n}, 2], latitude and longitude of each node; "
            f"got {list(degrees.shape)}"
        )
    good = np.isfinite(degrees).all(1) & (abs(degrees[:, 0]) <= 90) & (abs(degrees[:, 1]) <= 360)
    if not good.all():
        node = int(np.flatnonzero(~good)[0])
        turned = "; longitude seems to come first: turn the columns" if good.mean() < 0.5 else ""
        raise SignalError(
            f"latlon must be degrees, latitude within 90 and longitude within 360; those of node "
            f"{node} are {degrees[node].tolist()}{turned}"
        )
    return degrees
