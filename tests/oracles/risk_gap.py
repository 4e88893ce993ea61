r"""What a group costs and saves: bias against variance, in theory.

**Risk gap.** What a group costs and saves relative to another is bias against variance. Let
:math:`\tau_G^2` be the error of the best map in the commutant under the *actual* covariance of
the inputs; for Gaussian data the least-squares estimate of the means part has the exact risk
(Hocking and Thompson's S_p)

.. math::
    R_G = \tau_G^2 \Bigl(1 + \tfrac1s\Bigr) \frac{s - 2}{s - p - 2}, \qquad p = k\, c_{in},

so :math:`R_G - R_{G'}` has the bias :math:`\tau_G^2 - \tau_{G'}^2` and a variance that grows with
the commutant. :math:`\tau_G^2` is the covariance-weighted distance of the true map from the
commutant, plus the noise. The textbook formula (:func:`isotropic_risk_gap`) uses the Frobenius
distance of :meth:`~gsym.PermutationGroup.project` instead, which is the same only for white
inputs: under correlation it charges for directions that never occur, and the projection is not
the best map. :func:`expected_risk` is the version for any covariance. From data,
:math:`\hat\tau_G^2` is the training error over the residual degrees of freedom, and the rest of
the left-out error is the variance.

Reference:
    Huang, Levie, Villar, arXiv 2308.10436 (risk gap); Hocking 1976, Thompson 1978 (S_p). The
    covariance-aware form is ours.
"""

import numpy as np
from torch import Tensor

from gsym.errors import GroupError, SignalError
from gsym.groups import Partition, PermutationGroup
from gsym.risk.ridge import as_clusters


def isotropic_risk_gap(
    theta: Tensor,
    group: PermutationGroup | Partition,
    num_signals: int,
    *,
    noise_variance: float,
    input_variance: float = 1.0,
) -> float:
    """Risk of least squares less that of its projection on a group, for white Gaussian inputs.

    The textbook formula, kept as a reference: positive where the group helps. One channel, no
    constant. It is exact for white inputs only, and needs more signals than nodes.

    Args:
        theta: True map ``[n, n]``, or ``[n]`` for an invariant one.
        group: The group.
        num_signals: Signals to fit from, more than ``n + 1``.
        noise_variance: Variance of the noise on every target.
        input_variance: Variance of every input.

    Example:
        >>> theta = torch.eye(3, dtype=torch.float64)
        >>> isotropic_risk_gap(theta, Partition.single(3), 10, noise_variance=6.0)
        7.0

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436, the linear regression theorem; its constants as
        checked by simulation.
    """
    clusters, theta = as_clusters(group), theta.double()
    n = clusters.num_nodes
    if theta.shape not in ((n,), (n, n)):
        raise GroupError(f"theta must be [{n}] or [{n}, {n}]; got {list(theta.shape)}")
    if num_signals <= n + 1:
        raise SignalError(f"the formula needs more than {n + 1} signals; got {num_signals}")
    if theta.dim() == 2:
        rest = theta - clusters.project(theta)
        saved = n * n - clusters.commutant_dim()
    else:
        orbits = clusters.node_orbits()
        mean = theta.new_zeros(orbits.num_orbits).index_add(0, orbits.index, theta) / orbits.sizes
        rest = theta - mean[orbits.index]
        saved = n - orbits.num_orbits
    variance = noise_variance * saved / (num_signals - n - 1)
    return float(variance - input_variance * (rest**2).sum())


def expected_risk(
    theta: Tensor,
    partition: Partition,
    num_signals: int,
    *,
    noise_variance: float,
    covariance: Tensor | None = None,
) -> tuple[float, float]:
    r"""Bias and variance of least squares in the commutant, for inputs of any covariance.

    One channel, Gaussian inputs of mean 0, ``y = theta x + noise``, a constant per cluster fitted.
    The risk per node of the fit is ``noise_variance + bias + variance``. The bias is the distance
    of ``theta`` from the commutant in the norm of the covariance. The variance of the means part
    is exact, :math:`\tau^2` times :math:`(1 + 1/s)(s - 2)/(s - k - 2) - 1` for each of the k
    outputs. That of the own values is the first order in 1 / s of the sandwich formula,
    :math:`\sum_c \mathrm{Var}(\tilde x_c^\top r_c) / (s\, E|\tilde x_c|^2)`, with
    :math:`\tilde x_c` the deviations from the mean and :math:`r_c` what D leaves; by Isserlis'
    theorem the numerator is a sum of traces of products of covariances.

    Args:
        theta: True map ``[n, n]``.
        partition: The clusters.
        num_signals: Signals to fit from, more than ``k + 2``.
        noise_variance: Variance of the noise on every target.
        covariance: Covariance of the inputs ``[n, n]``; white if ``None``.

    Returns:
        Bias and variance, per node.

    Example:
        >>> theta = torch.eye(4, dtype=torch.float64)
        >>> bias, variance = expected_risk(theta, Partition.single(4), 23, noise_variance=1.0)
        >>> bias < 1e-12, round(variance, 3)
        (True, 0.035)
    """
    n, k = partition.num_nodes, partition.num_clusters
    if theta.shape != (n, n) or (covariance is not None and covariance.shape != (n, n)):
        raise GroupError(f"theta and covariance must be [{n}, {n}]; got {list(theta.shape)}")
    if num_signals <= k + 2:
        raise SignalError(f"{k} clusters need more than {k + 2} signals; got {num_signals}")
    weight = theta.double().numpy()
    sigma = np.eye(n) if covariance is None else covariance.double().numpy()
    sizes = np.array(partition.sizes)
    pool = np.zeros((k, n))
    pool[partition.labels.numpy(), np.arange(n)] = 1 / np.sqrt(sizes)[partition.labels.numpy()]
    inputs = pool @ sigma @ pool.T
    outputs = pool @ weight @ sigma @ weight.T @ pool.T
    cross = pool @ weight @ sigma @ pool.T
    misfit = np.trace(outputs - cross @ np.linalg.pinv(inputs) @ cross.T)
    s = num_signals
    inflation = (1 + 1 / s) * (s - 2) / (s - k - 2) - 1
    bias, variance = misfit, (misfit + k * noise_variance) * inflation
    for nodes in (cluster.numpy() for cluster in partition.clusters()):
        c = len(nodes)
        if c == 1:
            continue
        center = np.eye(c) - 1 / c
        x = center @ sigma[np.ix_(nodes, nodes)] @ center
        target = center @ weight[nodes]
        shared = target @ sigma[:, nodes] @ center
        own = np.trace(shared) / np.trace(x)
        crossed = shared - own * x
        rest = target @ sigma @ target.T - own * (shared + shared.T) + own**2 * x
        bias += np.trace(rest)
        rest = rest + noise_variance * center
        score = np.trace(x @ rest) + np.trace(crossed @ crossed)
        variance += score / (s * np.trace(x))
    return float(bias / n), float(variance / n)
