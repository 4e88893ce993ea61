"""Maps of rows that are tied by cluster, and in which order their rows come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsym.kernels import _plain, _primitives
from gsym.kernels._backends import choose
from gsym.kernels._call import run
from gsym.kernels._checks import (
    check_clusters,
    check_matrices,
    check_shape,
    fits_clusters,
    in_one_type,
)
from gsym.kernels.clusters import Clusters
from gsym.kernels.ops import permute_rows, segment_mean
from gsym.kernels.transforms import are_alike


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor | None,
    bias: Tensor,
    clusters: Clusters,
    is_sorted: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Multiply each row by the matrix of its cluster and add a linear map of all cluster means.

    ``y_i = x_i D_c(i) + (m M + b)_c(i)`` with ``m`` the concatenated cluster means. The gradient
    with respect to ``x`` has the same form with transposed weights, so it takes one pass as well.

    Args:
        x: Rows ``[..., r, in]``.
        weight: D, one matrix per cluster, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        matrix: M, ``[k * in, k * out]``; ``None`` leaves out the means.
        bias: b, ``[k, out]``; without ``matrix`` ``[..., k, out]`` as well.
        clusters: Which rows belong to which cluster.
        is_sorted: Whether the rows come, and leave, sorted by cluster: as ``clusters.order``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, mixed types, outside of autocast, or
            ``clusters`` that are none.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        Two passes over ``x`` and one over the result. Rows in the layout that is not that of
        :func:`takes_sorted` are permuted on either side.

    Example:
        >>> clusters = Clusters(torch.tensor([0, 1, 0]), 2, 1, 1)
        >>> own, matrix, bias = torch.ones(2, 1, 1), torch.eye(2), torch.zeros(2, 1)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> cluster_linear(x, own, matrix, bias, clusters).tolist()
        [[3.0], [4.0], [5.0]]
    """
    given = (x, weight, bias) if matrix is None else (x, weight, bias, matrix)
    alike = are_alike(*given) and fits_clusters(x, weight, matrix, bias, clusters)
    if not alike:
        check_clusters(x, clusters)
        operands = {"weight": weight, "matrix": matrix, "bias": bias}
        x, weight, matrix, bias = in_one_type("x", x, operands)
        count, width = clusters.num_clusters, x.size(-1)
        check_matrices("weight", weight, count, width)
        batch = x.shape[:-2] if matrix is None else ()
        if matrix is not None:
            check_shape("matrix", matrix, (count * width, count * weight.size(2)))
        check_shape("bias", bias, (count, weight.size(2)), batch)
    how = clusters, is_sorted
    return run(_primitives.cluster_linear, backend, alike, x, weight, matrix, bias, *how)


def mix_clusters(
    x: Tensor,
    weight: Tensor,
    mix: Callable[[Tensor], Tensor],
    clusters: Clusters,
    is_sorted: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Multiply each row by the matrix of its cluster and add what a function makes of the means.

    ``y_i = x_i D_c(i) + mix(m)_c(i)`` with ``m`` the cluster means: :func:`cluster_linear` with
    any differentiable function in place of the matrix. In eager code the gradient with respect to
    ``x`` takes one pass, too.

    Args:
        x: Rows ``[..., r, in]``.
        weight: D, one matrix per cluster, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        mix: Takes the means ``[..., k, in]`` and returns rows ``[..., k, out]``, or ``[k, out]``.
        clusters: Which rows belong to which cluster.
        is_sorted: As for :func:`cluster_linear`.
        backend: As in :func:`gsym.kernels.backend`, for this call; ``mix`` chooses for itself.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, mixed types, outside of autocast, or
            ``clusters`` that are none.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        That of :func:`cluster_linear` and of ``mix``.

    Example:
        >>> clusters = Clusters(torch.tensor([0, 1, 0]), 2, 1, 1)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> mix_clusters(x, torch.ones(1, 1, 1), torch.square, clusters).tolist()
        [[5.0], [6.0], [7.0]]
    """
    if (
        torch.is_grad_enabled()
        and are_alike(x, weight)
        and fits_clusters(x, weight, None, None, clusters)
        and choose(backend, "cluster_linear", x.device.type).name != "reference"
    ):
        how = mix, clusters, is_sorted
        return run(_primitives.mix_clusters, backend, True, x, weight, *how)
    check_clusters(x, clusters)
    if is_sorted and clusters.has_runs:
        means = _plain.mean_of_runs(x, clusters.num_clusters)
    else:
        rows = x
        if is_sorted and not clusters.is_sorted:
            rows = permute_rows(x, clusters._rank, clusters._order, backend=backend)
        means = segment_mean(rows, clusters.segments, backend=backend)
    shared = mix(means)
    return cluster_linear(x, weight, None, shared, clusters, is_sorted, backend=backend)


def takes_sorted(x: Tensor, clusters: Clusters, *, backend: str = "auto") -> bool:
    """Whether :func:`cluster_linear` of rows like ``x`` is faster on rows sorted by cluster.

    A stack of layers on one partition sorts once. Where rows come sorted there is nothing to do,
    and the answer is no.

    Args:
        x: Rows ``[..., r, c]``, of which shape and device count.
        clusters: Which rows belong to which cluster.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, or ``clusters`` that are none.
        BackendUnavailableError: A named back-end that cannot run.

    Example:
        >>> clusters = Clusters(torch.tensor([0, 1, 0, 1]), 2, 1, 1)
        >>> takes_sorted(torch.ones(4, 1), clusters, backend="native")
        True
    """
    check_clusters(x, clusters)
    chosen = choose(backend, "cluster_linear", x.device.type)
    return not clusters.is_sorted and clusters._in_runs(chosen.sorts)
