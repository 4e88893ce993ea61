r"""A mixture of ridge fits in the commutants of several groups: how much of each symmetry.

.. math:: W = \sum_l a_l W_l, \qquad a_l \ge 0, \quad \sum_l a_l = 1

with the fit :math:`W_l` of :mod:`gsym.risk.ridge` for each group. Along a chain the commutants are
nested, and with white inputs :math:`W_l` is the projection of one estimate; the part of it that is
in the commutant of level m and orthogonal to that of the next coarser level is then multiplied by
:math:`a_0 + \dots + a_m`. That is ridge regression with a prior variance for each level's
orthogonal complement, which falls from coarse to fine; with other inputs it is near it, and the
weights have a minimum that is found exactly.

**Weights.** Left-out residuals :math:`e_l` of the fits come in closed form, and those of the
mixture are :math:`\sum_l a_l e_l`. So the left-out error is a quadratic form in a, of one small
matrix for each block, and its minimum over the simplex a problem of non-negative least squares.

**Error.** A block is judged under the weights that suit the others best, as it is under the
penalties that do. Of more than 200 blocks, runs of them share weights.

Reference:
    Breiman, Stacked regressions, 1996 (from memory). The sum along a chain is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym.risk.predictor import CommutantRidge
from gsym.risk.samples import Samples

# Weights are found anew without each of so many runs of blocks.
_RUNS = 200
# Smaller shares are dropped.
_LEAST = 1e-3


class RidgeMixture:
    """The mixture of some fits to the same signals.

    Args:
        data: The signals.
        fits: Fits to them, by :func:`gsym.risk.ridge.fit_group`.

    Attributes:
        fits: The fits.
        weights: Of each, ``[m]``; 1 in all.
        errors: Left-out squared error per number to predict, ``[blocks]``, as those of the fits.
        risk: Their mean.

    Cost:
        ``O(m^2 s n c_out)`` and the residuals, ``m s n c_out`` numbers.
    """

    def __init__(self, data: Samples, fits: Sequence[CommutantRidge]) -> None:
        self.fits = tuple(fits)
        rows = np.stack([fit.left_out(data).reshape(data.num_signals, -1) for fit in fits], axis=1)
        products = data.left_out.judged(rows @ rows.transpose(0, 2, 1))
        blocks = len(products)
        total = products.sum(0)
        self.weights = simplex_weights(total)
        squares = np.empty(blocks)
        for run in np.array_split(np.arange(blocks), min(blocks, _RUNS)):
            weights = simplex_weights(total - products[run].sum(0))
            squares[run] = np.einsum("bij,i,j->b", products[run], weights, weights)
        per_block = fits[0].numbers
        known = per_block > 0
        self.risk = float(squares.sum() / per_block.sum())
        if data.observed[1] is not None:
            per_block = np.where(known, per_block[known].mean(), np.nan)
        self.errors: NDArray = squares / per_block

    def predict(self, x: object, *, mask: object = None, missing: float | None = None) -> Tensor:
        """Predict targets ``[s, n, c_out]`` (``[s]`` for an invariant map) of ``[s, n, c_in]``.

        Args:
            x: Inputs.
            mask: Which of them were observed.
            missing: Inputs of this value, and NaN, were not observed.
        """
        used = [(w, fit) for w, fit in zip(self.weights, self.fits, strict=True) if w]
        parts = [float(w) * fit.predict(x, mask=mask, missing=missing) for w, fit in used]
        return torch.stack(parts).sum(0)

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{fit.group} {100 * w:.3g} %" for w, fit in zip(self.weights, self.fits, strict=True)
        )
        return f"RidgeMixture({shares}: risk {self.risk:.4g})"


def simplex_weights(products: NDArray) -> NDArray:
    """The a of least ``a^T P a`` with ``a >= 0`` and sum 1, small ones dropped.

    Args:
        products: Positive semidefinite P ``[m, m]``.

    Example:
        >>> simplex_weights(np.diag([1.0, 3.0]))
        array([0.75, 0.25])
    """
    m = len(products)
    scale = float(np.trace(products)) / m
    if scale <= 0:
        return np.full(m, 1 / m)
    # The minimum of a^T P a / 2 - sum(a) over a >= 0 points the same way, for it is homogeneous:
    # non-negative least squares on normal equations, as of Lawson and Hanson. That of SciPy comes
    # with a module that takes long to import.
    P = products / scale + 1e-12 * np.eye(m)
    found, free = np.zeros(m), np.zeros(m, dtype=bool)
    for _ in range(10 * m):
        slope = np.where(free, -np.inf, 1 - P @ found)
        if slope.max() <= 1e-9:
            break
        free[slope.argmax()] = True
        while True:
            wanted = np.zeros(m)
            wanted[free] = np.linalg.solve(P[np.ix_(free, free)], np.ones(free.sum()))
            if (wanted[free] > 0).all():
                break
            # As far as the first that becomes 0, which is then no longer free.
            falling = free & (wanted <= 0)
            steps = found[falling] / (found[falling] - wanted[falling])
            found = found + steps.min() * (wanted - found)
            free &= found > 1e-14
        found = wanted
    found[found < _LEAST * found.sum()] = 0.0
    return np.asarray(found / found.sum())
