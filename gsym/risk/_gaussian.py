"""A Gaussian whose covariance is a plain matrix: densities, conditionals, samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from gsym.risk._inverses import padded_inverses


class DenseGaussian:
    """A Gaussian of mean 0 in d coordinates.

    Args:
        covariance: Positive definite ``[d, d]``.

    Cost:
        One factorisation, ``d^3 / 3``; a conditional takes that of the coordinates seen.
    """

    def __init__(self, covariance: NDArray) -> None:
        self.covariance = covariance

    def restricted(self, kept: NDArray) -> DenseGaussian:
        """The marginal of the coordinates numbered ``kept``."""
        return DenseGaussian(self.covariance[np.ix_(kept, kept)])

    def scaled(self, factor: float) -> DenseGaussian:
        """The same with its covariance times a factor."""
        return DenseGaussian(self.covariance * factor)

    def dense(self) -> NDArray:
        """The covariance, ``[d, d]``."""
        return self.covariance

    def diagonal(self) -> NDArray:
        """Variances, ``[d]``."""
        return np.diagonal(self.covariance).copy()

    def squares(self, errors: NDArray) -> NDArray:
        """Squared Mahalanobis lengths of rows ``[h, d]``."""
        whitened = solve_triangular(self._root(), errors.T, lower=True)
        return np.asarray((whitened**2).sum(0))

    def log_density(self, errors: NDArray) -> NDArray:
        """Log density of rows ``[h, d]``."""
        root = self._root()
        whitened = solve_triangular(root, errors.T, lower=True)
        log_det = 2 * float(np.log(np.diagonal(root)).sum())
        return -0.5 * ((whitened**2).sum(0) + log_det + len(root) * math.log(2 * math.pi))

    def conditional(
        self, errors: NDArray, seen: NDArray, hidden: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Mean ``[h, u]`` and variances ``[u]`` of hidden coordinates, given those seen.

        Args:
            errors: Rows of the coordinates seen, ``[h, o]``.
            seen: Their numbers, ``[o]``.
            hidden: Numbers of the others, ``[u]``.
        """
        root = cholesky(self.covariance[np.ix_(seen, seen)], lower=True)
        half = solve_triangular(root, self.covariance[np.ix_(seen, hidden)], lower=True)
        mean = solve_triangular(root, errors.T, lower=True).T @ half
        # What is known exactly but for rounding has no negative variance.
        own = np.diagonal(self.covariance)[hidden]
        return mean, np.maximum(own - (half**2).sum(0), 1e-15 * own)

    def regression(self, seen: NDArray, hidden: NDArray) -> tuple[NDArray, NDArray]:
        """Coefficients ``[o, u]`` of hidden coordinates, and the covariance ``[u, u]`` left."""
        across = self.covariance[np.ix_(seen, hidden)]
        root = cholesky(self.covariance[np.ix_(seen, seen)], lower=True)
        B = cho_solve((root, True), across)
        return B, self.covariance[np.ix_(hidden, hidden)] - across.T @ B

    def regressions(self, patterns: NDArray) -> tuple[NDArray, NDArray]:
        """The same for all patterns of what is seen at once, of few coordinates.

        Args:
            patterns: Boolean ``[p, d]``.

        Returns:
            Coefficients of every coordinate by those seen, and the covariance left of those hidden,
            both ``[p, d, d]`` with 0 elsewhere.
        """
        inverse, _ = padded_inverses(self.covariance, patterns)
        B = inverse @ self.covariance
        left = self.covariance - self.covariance @ B
        hidden = ~patterns
        return B, np.where(hidden[:, :, None] & hidden[:, None], left, 0.0)

    def sample(self, rows: int, rng: np.random.Generator) -> NDArray:
        """Random rows, ``[rows, d]``."""
        return rng.standard_normal((rows, len(self.covariance))) @ self._root().T

    def _root(self) -> NDArray:
        return np.asarray(cholesky(self.covariance, lower=True))
