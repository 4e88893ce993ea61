r"""Ridge with a sum of penalties along a chain, by its definition: the rival of a mixture of fits.

.. math:: \min \; |y - x W^T|^2 + \sum_l \frac{|W_l|^2}{v_l}, \qquad W = \sum_l W_l

where every W_l commutes with level l. The sum of penalties is that of a Gaussian prior of
covariance :math:`\sum_l v_l P_l`, with the orthogonal projections P_l onto the commutants: a
prior variance for each level's orthogonal complement. The v are those of least left-out error, in
closed form from the blocks of an inverse, and all of it is dense in the ``s n`` targets: for small
n alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from gsym.groups import PermutationGroup

# Prior variance of the constants, in variances of the targets.
_FREE = 1e4
_STEPS = 150


def projections(levels: Sequence[PermutationGroup], n: int) -> list[NDArray]:
    """Orthogonal projections of maps onto the commutant of every level, ``[n n, n n]`` each."""
    basis = torch.eye(n * n, dtype=torch.float64).reshape(n * n, n, n)
    return [level.project(basis).reshape(n * n, n * n).numpy() for level in levels]


class JointRidge:
    """The regression of one set of signals.

    Args:
        levels: Groups from fine to coarse.
        x: Inputs ``[s, n]``.
        y: Targets ``[s, n]``.
        variances: The v of every level, in units of the noise; ``None`` for those of least
            left-out error.
        constants: Whether there is a free constant for each node.

    Attributes:
        weight: W ``[n, n]``.
        bias: ``[n]``.
        risk: Left-out squared error per number.
    """

    def __init__(
        self,
        levels: Sequence[PermutationGroup],
        x: NDArray,
        y: NDArray,
        variances: NDArray | None = None,
        *,
        constants: bool = True,
    ) -> None:
        s, n = x.shape
        P = projections(levels, n)
        # y[s, i] = sum_j W[i, j] x[s, j]
        design = np.einsum("ik,sj->sikj", np.eye(n), x).reshape(s * n, n * n)
        terms = [design @ p @ design.T for p in P]
        free = np.kron(np.ones((s, s)), np.eye(n)) * (_FREE * y.var() if constants else 0.0)
        target = y.reshape(-1)

        def left_out(v: NDArray) -> tuple[float, NDArray]:
            C = np.eye(s * n) + free + sum(a * T for a, T in zip(v, terms, strict=True))
            inverse = np.linalg.inv(C)
            dual = inverse @ target
            blocks = inverse.reshape(s, n, s, n)[np.arange(s), :, np.arange(s)]
            errors = np.linalg.solve(blocks, dual.reshape(s, n, 1))[..., 0]
            return float((errors**2).mean()), dual

        if variances is None:
            scale = 1 / (x**2).mean() / n
            start = np.log(np.full(len(levels), scale))
            found = minimize(
                lambda logs: left_out(np.exp(logs))[0],
                start,
                method="Nelder-Mead",
                options={"maxfev": _STEPS, "xatol": 0.05, "fatol": 1e-5},
            )
            variances = np.exp(found.x)
        self.variances = variances
        self.risk, dual = left_out(variances)
        prior = sum(a * p for a, p in zip(variances, P, strict=True))
        self.weight: NDArray = (prior @ design.T @ dual).reshape(n, n)
        self.bias: NDArray = (dual.reshape(s, n).sum(0)) * (_FREE * y.var() if constants else 0.0)

    def predict(self, x: NDArray) -> NDArray:
        """Targets of inputs ``[t, n]``."""
        out: NDArray = x @ self.weight.T + self.bias
        return out
