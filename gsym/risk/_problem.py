"""What the weights of a covariance are fitted on: folds of signals, dense or split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsym.errors import SignalError
from gsym.groups import ClusterGroup, Partition
from gsym.risk._em import Completed
from gsym.risk._fit_weights import Fold, Loss, likelihood
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._split import Products, SplitFold, meet_of, split_likelihood
from gsym.risk._split_gaussian import SplitGaussian
from gsym.risk._terms import GroupTerm, KernelTerm, Terms, stack

# Numbers that the terms of all folds, or the products of signals, may take.
_MOST_NUMBERS = 2**30
# The split form is faster below this ratio of operations, measured on one core for n of 60 to 784
# and 25 to 400 signals.
_CROSSOVER = 0.25

# Up to so many nodes, those that are nearly constant are kept at a least variance: the split form
# has a cluster for each.
_MOST_FLOORED = 4096

Rows = Sequence[tuple[NDArray, NDArray]]


@dataclass(frozen=True)
class Problem:
    """A fit that awaits its weights.

    Attributes:
        likelihood: Minus the log density of held-out signals.
        folds: What each trains on and holds out.
        finish: The Gaussian of all signals from weights.
    """

    likelihood: Loss
    folds: Sequence[Fold | SplitFold]
    finish: Callable[[NDArray], DenseGaussian | SplitGaussian]

    @property
    def dense(self) -> list[Fold]:
        """The folds, where they are dense; none in the split form."""
        return [fold for fold in self.folds if isinstance(fold, Fold)]


def make_problem(
    terms: Terms,
    data: Completed,
    shape: tuple[int, int],
    rows: Rows,
    *,
    split: bool | None = None,
    completed: Sequence[Completed] | None = None,
) -> Problem:
    """The terms of signals in every fold, and of all.

    Args:
        terms: What to add up.
        data: The signals, ``[s, n c]``.
        shape: Nodes n and channels c.
        rows: Rows to train on and rows held out, by fold.
        split: Whether to use the split form; ``None``: where it can be had and is faster.
        completed: The signals as each fold completes them; as all do by default.

    Raises:
        SignalError: Terms of all folds that would not fit into memory.
    """
    (n, c), s = shape, len(data.filled)
    made = terms.of(data.filled.reshape(s, n, c))
    plain = c == 1 and data.uncertain is None and split is not False
    levels = _partitions(made) if plain else None
    if levels is not None:
        kept = [*(train for train, _ in rows), np.arange(s)]
        raised = [data.raised(k) if n <= _MOST_FLOORED else np.zeros(n) for k in kept]
        fine = meet_of(levels, np.any(raised, axis=0))
        k = fine.num_clusters
        ratio = (k * s * s + k**3 + s**3) * 2 / n**3
        if split or (ratio < _CROSSOVER and k * (s * s + k) < _MOST_NUMBERS):
            return _split_problem(terms, data.filled, rows, levels, fine, raised)
    d, m = n * c, len(made) + 1
    if len(rows) * m * d * d > _MOST_NUMBERS:
        raise SignalError(
            f"{m} terms of {d} x {d} in {len(rows)} folds need "
            f"{len(rows) * m * d * d / 2**27:.0f} GiB; give coarser clusters as levels, without "
            "kernels, swaps, channels and gaps, and objective='likelihood': nothing is n x n then"
        )
    folds = [
        make_fold(terms, own, shape, train, held)
        for own, (train, held) in zip(completed or [data] * len(rows), rows, strict=True)
    ]
    whole = stack(made, data.covariance(np.arange(s))[1])
    return Problem(
        likelihood(folds), folds, lambda weights: DenseGaussian(np.tensordot(weights, whole, 1))
    )


def make_fold(
    terms: Terms, data: Completed, shape: tuple[int, int], train: NDArray, held: NDArray
) -> Fold:
    """Terms of the signals to train on, and the errors of those held out."""
    mean, S = data.covariance(train)
    made = terms.of(data.filled[train].reshape(len(train), *shape))
    return Fold(stack(made, S), data.held(held, mean))


def _split_problem(
    terms: Terms,
    x: NDArray,
    rows: Rows,
    levels: Sequence[Partition | None],
    fine: Partition,
    raised: Sequence[NDArray],
) -> Problem:
    products = Products.of(x, fine)
    folds = []
    for (train, held), more in zip(rows, raised[:-1], strict=True):
        own, its = levels, products
        if terms.chain is not None:
            found = _partitions(terms.of(x[train][:, :, None]))
            assert found is not None
            own, its = found, Products.of(x, meet_of(found, more > 0))
        folds.append(SplitFold(its, own, train, held, more))
    every = np.arange(len(x))
    whole = SplitFold(products, levels, every, every[:0], raised[-1])
    return Problem(split_likelihood(folds), folds, lambda weights: whole.gaussian(weights, x))


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
