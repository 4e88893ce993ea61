"""Real signals with gaps: where they come from, and which cells of them are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_image

from gsym_bench.data import find, load_images, read_npz
from gsym_bench.models.fills import Draw, Source, hide
from gsym_bench.tasks.reconstruction import joint_error, markers, sensors

# Signals to be filled in every draw.
HELD = 100
SCATTERED, CONTIGUOUS, HOLE = "scattered", "contiguous", "hole"


@dataclass(frozen=True)
class Cell:
    """What is learnt from, and what is hidden.

    Attributes:
        data: Name of the signals.
        signals: Number of signals to learn from.
        hidden: Share of nodes that are hidden at random, or ``HOLE``.
        drawn: ``SCATTERED`` over all signals to learn from, or a ``CONTIGUOUS`` stretch of them.
    """

    data: str
    signals: int
    hidden: float | str
    drawn: str = SCATTERED

    def __str__(self) -> str:
        hidden = "a hole" if self.hidden == HOLE else f"{100 * float(self.hidden):g} % hidden"
        drawn = f", {self.drawn}" if self.drawn != SCATTERED else ""
        return f"{self.data}, {self.signals:,} signals{drawn}, {hidden}"


def draw(source: Source, cell: Cell, seed: int) -> Draw:
    """Random signals and gaps."""
    rng = np.random.default_rng([seed, cell.signals])
    if cell.drawn == CONTIGUOUS:
        start = int(rng.integers(len(source.train) - cell.signals + 1))
        train = source.train[start : start + cell.signals]
    else:
        train = source.train[rng.choice(len(source.train), cell.signals, replace=False)]
    test = source.test[rng.choice(len(source.test), HELD, replace=False)]
    seen, patterns = (hide(source, cell.hidden, count, rng) for count in (HELD, 8))
    return Draw(source, train, test, seen, patterns, "auto" if cell.drawn == CONTIGUOUS else 1)


def _velocities(data: Path) -> Source:
    """How far 17 joints move within a tenth of a second, relative to the pelvis."""
    keys = ("positions", "seq_start", "seq_len", "bench_split", "sub17", "parents17", "fps")
    z = read_npz(find(data, "skeleton/cmu_mocap_28j_60hz.npz", "cmu"), keys)
    positions = z["positions"][:, z["sub17"]].astype(np.float64)
    positions -= positions[:, :1]
    step = round(0.1 * int(z["fps"]))
    parts: dict[str, list[NDArray]] = {"train": [], "test": []}
    for start, length, part in zip(z["seq_start"], z["seq_len"], z["bench_split"], strict=True):
        own = positions[start : start + length]
        parts.setdefault(str(part), []).append(own[step:] - own[:-step])
    # The pelvis stays.
    parents = torch.from_numpy(z["parents17"].astype(np.int64))
    child = torch.arange(1, 17)
    bones = torch.stack([child, parents[1:]])[:, parents[1:] > 0] - 1
    return Source(
        np.concatenate(parts["train"])[:, 1:],
        np.concatenate(parts["test"])[:, 1:],
        "mean joint error, mm",
        joint_error,
        {"edge_index": torch.cat([bones, bones.flip(0)], 1)},
        lambda node: np.array([node]),
    )


def _pixels(train: NDArray, test: NDArray, wide: int) -> Source:
    """Square images ``[s, n]`` of grey from 0 to 1, in which a square of some width is a hole."""
    side = round(train.shape[1] ** 0.5)
    place = np.stack(np.divmod(np.arange(side * side), side), axis=1)

    def hole(node: int) -> NDArray:
        corner = np.minimum(place[node], side - wide)
        return np.flatnonzero(((place >= corner) & (place < corner + wide)).all(1))

    return Source(
        train[:, :, None],
        test[:, :, None],
        "RMSE, grey of 0 to 1",
        lambda e: float(np.sqrt((e**2).mean())),
        {"positions": place},
        hole,
    )


def _halved(data: Path, name: str) -> Source:
    """Images of 28 x 28 at half their width."""
    images = load_images(data, name)
    train, test = (
        (x.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255).reshape(-1, 196)
        for x in (images.x_train[:20000], images.x_test)
    )
    return _pixels(train, test, 9)


def _digits(data: Path) -> Source:
    images = load_digits().data / 16
    images = images[np.random.default_rng(0).permutation(len(images))]
    return _pixels(images[:1650], images[1650:], 5)


def _photograph(data: Path) -> Source:
    """Patches of 8 x 8 from one half of a photograph, and from the other."""
    grey = load_sample_image("china.jpg").mean(-1) / 255
    windows = np.lib.stride_tricks.sliding_window_view(grey, (8, 8))[::2, ::2]
    middle = windows.shape[1] // 2
    # A patch that both halves share is in neither.
    left, right = windows[:, : middle - 4], windows[:, middle + 4 :]
    return _pixels(left.reshape(-1, 64), right.reshape(-1, 64), 5)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "METR-LA": sensors,
    "CMU": markers,
    "Fashion-MNIST 14 x 14": lambda data: _halved(data, "fashion-mnist"),
    "MNIST 14 x 14": lambda data: _halved(data, "mnist"),
    "digits": _digits,
    "photograph": _photograph,
    "CMU velocities": _velocities,
}
# Nobody looked at these before the estimator was done.
UNTUNED = ("photograph", "CMU velocities")


def _grid() -> list[Cell]:
    """Every cell, those that say most first."""
    traffic = [
        Cell("METR-LA", count, hidden, drawn)
        for count in (25, 100, 400, 2000)
        for drawn in (SCATTERED, CONTIGUOUS)
        for hidden in (0.4, HOLE)
    ]
    bodies = [
        Cell(name, count, hidden)
        for count in (25, 100, 400, 1600)
        for name in ("CMU", "CMU velocities")
        for hidden in (0.1, 0.4)
    ]
    pixels = [
        Cell(name, count, hidden)
        for count in (10, 25, 100, 400, 1600)
        for name in ("digits", "photograph", "Fashion-MNIST 14 x 14", "MNIST 14 x 14")
        for hidden in (0.4, HOLE)
    ]
    # Small ones first: there an estimator has most to gain and to lose.
    return sorted([*bodies, *pixels, *traffic], key=lambda cell: cell.signals)


CELLS = _grid()
