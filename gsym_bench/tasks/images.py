"""Images for the inpainting task: which ones train, validate and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from gsym_bench.data import load_images
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import generator_of

TRAIN, VAL, TEST = 80, 20, 1000


@dataclass(frozen=True)
class ImageSet:
    """How one set of images enters the task.

    Attributes:
        name: Name of the data.
        mean: Grey value that becomes 0, in units of white = 1.
        std: Grey range that becomes 1.
        hole: Side of the square hole in pixels.
        patches: Sides of the square patches whose pixels a group may exchange, in pixels.
        mirrored: Which of them also come with the left-right mirror on patches.
        flipped: Whether every image is mirrored with probability one half.
    """

    name: str
    mean: float
    std: float
    hole: int
    patches: tuple[int, ...]
    mirrored: tuple[int, ...]
    flipped: bool = False


DIGITS = ImageSet("digits", 0.5, 0.5, 4, (8, 4, 2, 1), (4, 2, 1))
FASHION = ImageSet("fashion-mnist", 0.5, 0.5, 20, (28, 14, 7, 4, 2, 1), (14, 2))
MNIST = ImageSet("mnist", 0.1307, 0.3081, 14, (28, 14, 7, 4, 2, 1), (14, 2))
FLIPPED = replace(FASHION, flipped=True)


def choose_images(
    images: ImageSet, data: Path | None, seed: int, signals: int
) -> dict[str, Tensor]:
    """Normalised images of each part, ``[b, h, w]``, stratified by class.

    Those for validation and test do not depend on the number of training images, and fewer of
    these are among the more. The usual number from files are those of the published choice.

    Args:
        images: Which set.
        data: Folder with its files, or ``None`` for the digits of scikit-learn.
        seed: Seed of the split.
        signals: Number of training images.

    Raises:
        BenchmarkError: Fewer than one of each of the ten classes, or more than there are.
    """
    if data is None:
        digits = load_digits()
        x, y, white = digits.images, digits.target, 16.0
        first, tested = train_test_split(
            np.arange(len(y)), test_size=TEST, stratify=y, random_state=seed
        )
        x_test, others = x[tested], first[:0]
    else:
        loaded = load_images(data, images.name)
        x, y, white = loaded.x_train, loaded.y_train, 255.0
        first = _published(y, TRAIN + VAL)
        x_test = loaded.x_test[_published(loaded.y_test, TEST)]
        others = np.setdiff1d(np.arange(len(y)), first)
    first, val = train_test_split(first, test_size=VAL, stratify=y[first], random_state=seed)
    most = len(first) + len(others)
    if not 10 <= signals <= most:
        raise BenchmarkError(
            f"the task takes 10 to {most} training signals on {images.name}; got --signals "
            f"{signals}"
        )
    order = generator_of("order of train", seed)
    train = np.concatenate([_in_turn(index, y, order) for index in (first, others)])[:signals]
    parts = {"train": x[train], "val": x[val], "test": x_test}
    return {part: _seen(grey / white, images, part, seed) for part, grey in parts.items()}


def _published(y: NDArray, count: int) -> NDArray:
    """The published choice: stratified, with the published random state."""
    chosen, _ = train_test_split(np.arange(len(y)), train_size=count, stratify=y, random_state=999)
    return np.asarray(chosen)


def _in_turn(index: NDArray, classes: NDArray, generator: torch.Generator) -> NDArray:
    """Images in random order, each class at an even pace: every beginning is stratified."""
    index = index[torch.randperm(len(index), generator=generator).numpy()]
    place = np.empty(len(index))
    for one in np.unique(classes[index]):
        own = classes[index] == one
        place[own] = (np.arange(own.sum()) + 0.5) / own.sum()
    return index[np.argsort(place, kind="stable")]


def _seen(grey: NDArray, images: ImageSet, part: str, seed: int) -> Tensor:
    """Images of a part as the nets see them."""
    pixels = torch.from_numpy((grey - images.mean) / images.std).float()
    if images.flipped:
        coins = generator_of(f"mirrors of {part}", seed)
        turned = torch.rand(len(pixels), 1, 1, generator=coins) < 0.5
        pixels = torch.where(turned, pixels.flip(2), pixels)
    return pixels
