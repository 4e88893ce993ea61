"""Inverses of positive definite matrices, one by one or many small ones at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

# Up to so many coordinates, all patterns of gaps are inverted at once: calls would take longer.
FEW = 24


def inverse_and_log_det(Sigma: NDArray) -> tuple[NDArray, float]:
    """Inverse and log determinant of a positive definite matrix."""
    L, log_det = root_and_log_det(Sigma)
    # Zero above the diagonal, as L is there.
    half, _ = lapack.dpotri(L, lower=1, overwrite_c=1)
    inverse = half + half.T
    inverse[np.diag_indices(len(inverse))] /= 2
    return inverse, log_det


def root_and_log_det(Sigma: NDArray) -> tuple[NDArray, float]:
    """Lower root and log determinant of a positive definite matrix."""
    L, info = lapack.dpotrf(Sigma.T, lower=1, clean=1)
    # Rounding at a condition of 1e15, which a search may try: the smallest change that helps.
    for jitter in (1e-13, 1e-11, 1e-9, 1e-7):
        if info == 0:
            break
        shifted = Sigma + jitter * np.trace(Sigma) * np.eye(len(Sigma))
        L, info = lapack.dpotrf(shifted.T, lower=1, clean=1)
    if info != 0:
        raise np.linalg.LinAlgError("a sum of covariances is not positive definite")
    return L, 2 * float(np.log(np.diagonal(L)).sum())


def padded_inverses(Sigma: NDArray, seen: NDArray) -> tuple[NDArray, NDArray]:
    """Inverses of what is seen of covariances, 0 elsewhere, and their log determinants.

    Hidden coordinates get the variance 1 and no covariance, which changes neither.

    Args:
        Sigma: Positive definite ``[p, d, d]``, or one for all.
        seen: Which coordinates are, ``[p, d]``.
    """
    pair = seen[:, :, None] & seen[:, None]
    padded = np.where(pair, Sigma, np.eye(seen.shape[1]))
    try:
        L = np.linalg.cholesky(padded)
    except np.linalg.LinAlgError:
        # Without the padding, whose scale is not theirs.
        inverse, log_det = np.zeros_like(padded), np.zeros(len(padded))
        for p, own in enumerate(seen):
            if own.any():
                o = np.ix_(own, own)
                inverse[p][o], log_det[p] = inverse_and_log_det(padded[p][o])
        return inverse, log_det
    half = np.linalg.inv(L)
    log_det = 2 * np.log(np.diagonal(L, axis1=1, axis2=2)).sum(1)
    return np.where(pair, half.transpose(0, 2, 1) @ half, 0.0), log_det
