"""Latitudes and longitudes as a map, without any picture from elsewhere."""

from __future__ import annotations

import math

import numpy as np

from gsym.choosing.page.drawing import Drawing

# Kilometres of a degree of latitude.
_DEGREE = 111.195


def project(degrees: np.ndarray) -> np.ndarray:
    """Kilometres to the east and to the north of the middle, ``[n, 2]``: equirectangular.

    Example:
        >>> project(np.array([[60.0, 10.0], [60.0, 12.0]])).round().tolist()
        [[-56.0, 0.0], [56.0, 0.0]]
    """
    latitude, longitude = degrees.T
    # From the middle of the circle, so that a map may lie across the date line.
    turn = np.exp(1j * np.radians(longitude))
    middle = np.angle(turn.mean())
    east = np.degrees(np.angle(turn * np.exp(-1j * middle)))
    north = latitude - (latitude.max() + latitude.min()) / 2
    shrunk = math.cos(math.radians((latitude.max() + latitude.min()) / 2))
    return np.asarray(_DEGREE * np.stack([(east - east.mean()) * shrunk, north], axis=1))


def describe_map(degrees: np.ndarray) -> str:
    """Where the map lies.

    Example:
        >>> describe_map(np.array([[34.04, -118.54], [34.22, -118.18]]))
        '34.04° N to 34.22° N, 118.54° W to 118.18° W'
    """
    latitude, longitude = degrees.T
    longitude = (longitude + 180) % 360 - 180
    if np.ptp(longitude) > 180:
        longitude = np.where(longitude < 0, longitude + 360, longitude)
    ends = [latitude.min(), latitude.max(), longitude.min(), longitude.max()]
    words = [_degree(ends[0], "NS"), _degree(ends[1], "NS")]
    words += [_degree((end + 180) % 360 - 180, "EW") for end in ends[2:]]
    return f"{words[0]} to {words[1]}, {words[2]} to {words[3]}"


def scale_bar(kilometres: np.ndarray, drawing: Drawing) -> tuple[float, str] | None:
    """Length in the picture, and what it stands for: a round number near a fifth of the width."""
    span = np.ptp(kilometres, axis=0)
    drawn = np.ptp(np.stack([drawing.x, drawing.y], axis=1), axis=0)
    axis = int(span.argmax())
    if drawing.is_coarsened or not span[axis] or not drawn[axis]:
        return None
    scale = drawn[axis] / span[axis]
    wanted = 200 / scale
    power = 10.0 ** math.floor(math.log10(wanted))
    length = next(m * power for m in (5, 2, 1) if m * power <= wanted)
    text = f"{length:g} km" if length >= 1 else f"{1000 * length:g} m"
    return round(length * scale, 1), text


def _degree(value: float, sides: str) -> str:
    return f"{abs(value):.2f}° {sides[0] if value >= 0 else sides[1]}"
