"""What is left out of a fit together: blocks of consecutive signals, and gaps around them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Numbers in one batch of left-out systems.
_BATCH = 2**24


def how_many(most: int, each: int) -> int:
    """How many parts of so many numbers each are worked on at once; one at least."""
    return max(1, most // max(each, 1))


class LeftOut:
    """Which signals are left out together, and which of those are judged.

    Args:
        signals: Number of signals.
        block: Consecutive signals that are judged together.
        gap: Signals on either side of a block that are left out of the fit with it, but not judged.

    Attributes:
        starts: First signal of each block.
        stops: End of each block.
        low: First signal that is left out with each block.
        high: End of those.
    """

    def __init__(self, signals: int, block: int, gap: int = 0) -> None:
        self.signals, self.block, self.gap = signals, block, gap
        self.starts = np.arange(0, signals, block)
        self.stops = np.minimum(self.starts + block, signals)
        self.low = np.maximum(self.starts - gap, 0)
        self.high = np.minimum(self.stops + gap, signals)

    def __len__(self) -> int:
        return len(self.starts)

    def judged(self, values: NDArray) -> NDArray:
        """Sum over the signals of each block."""
        return values if self.block == 1 else np.add.reduceat(values, self.starts, axis=0)

    def removed(self, values: NDArray) -> NDArray:
        """Sum over the signals that are left out with each block."""
        running = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        return running[self.high] - running[self.low]

    def batches(self, copies: int, width: int) -> Iterator[tuple[NDArray, NDArray, slice]]:
        """Blocks of equal shape: their numbers, the rows left out ``[m, l]``, and those judged.

        Args:
            copies: Rows per signal.
            width: Numbers per row, which bounds the size of a batch.
        """
        shape = np.stack([self.high - self.low, self.starts - self.low, self.stops - self.low], 1)
        for length, first, last in np.unique(shape, axis=0):
            alike = np.flatnonzero((shape == (length, first, last)).all(1))
            rows = np.arange(length * copies)
            judged = slice(first * copies, last * copies)
            count = how_many(_BATCH, len(rows) * max(width, len(rows)))
            for part in np.split(alike, range(count, len(alike), count)):
                yield part, self.low[part, None] * copies + rows, judged
