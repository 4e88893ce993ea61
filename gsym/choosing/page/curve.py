"""The curve of estimated risk, scaled to its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """The estimated risk over the candidates, in the units of its picture (560 by 300).

    Attributes:
        x: Of each candidate.
        y: Of each candidate, downwards; ``None`` where there is no score.
        bars: For each candidate with a score its x and the two ends of its error bar.
        plain: Whether each candidate belongs to the line.
        line: Through the candidates of the line, as an SVG path.
        band: One standard error to either side of it.
        x_ticks: Numbers of clusters and where they stand.
        y_ticks: Risks and where they stand.
    """

    x: list[float]
    y: list[float | None]
    bars: list[tuple[float, float, float]]
    plain: list[bool]
    line: str
    band: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    left, right, top, bottom = 62.0, 540.0, 18.0, 252.0

    @classmethod
    def make(
        cls,
        clusters: Sequence[int],
        scores: Sequence[float | None],
        errors: Sequence[float],
        gap_errors: Sequence[float],
        plain: Sequence[bool],
    ) -> Curve:
        """Scale scores to the picture.

        Args:
            clusters: Number of clusters of each candidate.
            scores: Estimated risk of each; ``None`` where there is none.
            errors: Standard error of each score, for the band.
            gap_errors: Standard error of the gap to the best, for the bars.
            plain: Which candidates the line joins, if their clusters become fewer along it;
                otherwise it joins all, at equal distances.
        """
        ks, on_line = np.array(clusters, dtype=float), np.array(plain)
        if on_line.any() and bool((np.diff(ks[on_line]) < 0).all()):
            along = -np.log(ks)
        else:
            along, on_line = np.arange(len(ks), dtype=float), np.ones(len(ks), dtype=bool)
        share = (along - along.min()) / (np.ptp(along) or 1.0)
        x: list[float] = (cls.left + share * (cls.right - cls.left)).tolist()
        x_ticks = _spread(sorted({(at, f"{k:,}") for at, k in zip(x, clusters, strict=True)}), 44.0)
        known = [i for i, score in enumerate(scores) if score is not None]
        if not known:
            return cls(x, [None] * len(x), [], on_line.tolist(), "", "", x_ticks, [])
        value = {i: float(scores[i] or 0.0) for i in known}
        scale = _Scale.make(
            [v - max(errors[i], gap_errors[i]) for i, v in value.items()],
            [v + max(errors[i], gap_errors[i]) for i, v in value.items()],
            list(value.values()),
            cls.bottom,
            cls.top,
        )

        def path(offset: int) -> list[str]:
            return [
                f"{x[i]:.1f} {scale(value[i] + offset * errors[i]):.1f}"
                for i in known
                if on_line[i]
            ]

        middle, band = path(0), path(1) + path(-1)[::-1]
        return cls(
            x,
            [scale(value[i]) if i in value else None for i in range(len(x))],
            [(x[i], scale(v + gap_errors[i]), scale(v - gap_errors[i])) for i, v in value.items()],
            on_line.tolist(),
            "M" + "L".join(middle) if middle else "",
            "M" + "L".join(band) + "Z" if band else "",
            x_ticks,
            scale.ticks(),
        )


@dataclass(frozen=True)
class _Scale:
    """A linear or logarithmic map from values to picture heights."""

    low: float
    high: float
    bottom: float
    top: float
    logarithmic: bool

    @classmethod
    def make(
        cls,
        low: Sequence[float],
        high: Sequence[float],
        mid: Sequence[float],
        bottom: float,
        top: float,
    ) -> _Scale:
        # Risks that differ twentyfold would hide the choice in a flat line.
        if min(mid) > 0 and max(mid) / min(mid) > 20:
            return cls(max(min(low), min(mid) / 3), max(high), bottom, top, True)
        margin = 0.06 * (max(high) - min(low)) or 0.05 * abs(max(high)) or 1.0
        return cls(min(low) - margin, max(high) + margin, bottom, top, False)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.bottom + share * (self.top - self.bottom)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values and where they lie."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
            step *= next(m for m in (5, 2, 1) if (self.high - self.low) / (m * step) >= 3)
            values = [
                i * step
                for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
            ]
        inside = [v for v in values if self.low <= v <= self.high]
        return _spread([(self(v), f"{v:.6g}") for v in reversed(inside)], 18.0)


def _spread(ticks: list[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Of ticks in order, those far enough apart to be read, first and last among them."""
    if not ticks:
        return []
    last = ticks[-1]
    shown: list[tuple[float, str]] = []
    for tick in ticks[:-1]:
        if (not shown or tick[0] - shown[-1][0] >= gap) and last[0] - tick[0] >= gap:
            shown.append(tick)
    return [*shown, last]
