"""What the weights of a covariance are fitted on: folds of signals, dense or split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsym.errors import SignalError
from gsym.groups import ClusterGroup, Partition
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._mixture import Fold, Loss, likelihood
from gsym.risk._split import Products, SplitFold, SplitGaussian, meet_of, split_likelihood
from gsym.risk._terms import GroupTerm, KernelTerm, Terms, stack

# Numbers that the terms of all folds, or the products of signals, may take.
_MOST_NUMBERS = 2**30
# The split form is faster below this ratio of operations, measured on one core for n of 60 to 784
# and 25 to 400 signals.
_CROSSOVER = 0.25

Rows = Sequence[tuple[NDArray, NDArray]]


@dataclass(frozen=True)
class Problem:
    """A fit that awaits its weights.

    Attributes:
        likelihood: Minus the log density of held-out signals.
        folds: Dense folds, for other objectives; none in the split form.
        finish: The Gaussian of all signals from weights.
    """

    likelihood: Loss
    folds: Sequence[Fold]
    finish: Callable[[NDArray], DenseGaussian | SplitGaussian]


def make_problem(terms: Terms, x: NDArray, rows: Rows, *, split: bool | None = None) -> Problem:
    """The terms of signals ``[s, n, c]`` in every fold, and of all.

    Args:
        terms: What to add up.
        x: The signals.
        rows: Rows to train on and rows held out, by fold.
        split: Whether to use the split form; ``None``: where it can be had and is faster.

    Raises:
        SignalError: Terms of all folds that would not fit into memory.
    """
    s, n, c = x.shape
    made = terms.of(x)
    levels = _partitions(made) if c == 1 and split is not False else None
    if levels is not None:
        k = meet_of(levels, n).num_clusters
        ratio = (k * s * s + k**3 + s**3) * 2 / n**3
        if split or (ratio < _CROSSOVER and k * (s * s + k) < _MOST_NUMBERS):
            return _split_problem(terms, x[:, :, 0], rows, levels)
    d, m = n * c, len(made) + 1
    if len(rows) * m * d * d > _MOST_NUMBERS:
        raise SignalError(
            f"{m} terms of {d} x {d} in {len(rows)} folds need "
            f"{len(rows) * m * d * d / 2**27:.0f} GiB; give coarser clusters as levels, without "
            'kernels, swaps and channels, and objective="likelihood": nothing is n x n then'
        )
    flat = x.reshape(s, -1)
    errors = flat - flat.mean(0)
    folds = [make_fold(terms, x, train, held) for train, held in rows]
    whole = stack(made, errors.T @ errors / s)
    return Problem(
        likelihood(folds), folds, lambda weights: DenseGaussian(np.tensordot(weights, whole, 1))
    )


def make_fold(terms: Terms, x: NDArray, train: NDArray, held: NDArray) -> Fold:
    """Terms of the signals to train on ``[s, n, c]``, and the errors of those held out."""
    flat = x.reshape(len(x), -1)
    mean = flat[train].mean(0)
    errors = flat[train] - mean
    return Fold(
        stack(terms.of(x[train]), errors.T @ errors / len(train)),
        [(np.ones(flat.shape[1], dtype=bool), flat[held] - mean)],
    )


def _split_problem(
    terms: Terms, x: NDArray, rows: Rows, levels: Sequence[Partition | None]
) -> Problem:
    s, n = x.shape
    errors = x - x.mean(0)
    products = Products.of(errors, meet_of(levels, n))
    folds = []
    for train, held in rows:
        own, its = levels, products
        if terms.chain is not None:
            found = _partitions(terms.of(x[train][:, :, None]))
            assert found is not None
            own, its = found, Products.of(errors, meet_of(found, n))
        folds.append(SplitFold(its, own, train, held))
    whole = SplitFold(products, levels, np.arange(s), np.arange(0))

    def finish(weights: NDArray) -> SplitGaussian:
        d, N, trivial = whole.parts(weights)
        B = math.sqrt(trivial / s) * errors.T if trivial else np.zeros((n, 0))
        return SplitGaussian(products.fine.labels.numpy(), d, N, B)

    return Problem(split_likelihood(folds), (), finish)


def _partitions(made: Sequence[GroupTerm | KernelTerm]) -> list[Partition | None] | None:
    """Partitions of the levels, ``None`` for the trivial one; ``None`` if others are among them."""
    found: list[Partition | None] = []
    for term in made:
        group = term.group if isinstance(term, GroupTerm) and term.rep is None else None
        if not isinstance(group, ClusterGroup) or group.swaps is not None:
            return None
        trivial = group.partition.num_clusters == group.num_nodes
        found.append(None if trivial else group.partition)
    return found
