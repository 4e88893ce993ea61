r"""Ridge regression in the commutant of a group, and its left-out error, in closed form.

**Regression in a commutant.** Signals x ``[s, n, c_in]`` predict targets y ``[s, n, c_out]``
through the linear maps that commute with a group G. The estimate is ridge regression with the
Frobenius norm of the whole map as its penalty, restricted to the commutant. For the group of a
partition into k clusters of sizes :math:`n_c` the problem falls apart. With cluster means
:math:`m_c, \bar y_c` and the orthonormal coordinates :math:`u_c = \sqrt{n_c}\, m_c`,
:math:`v_c = \sqrt{n_c}\, \bar y_c`,

.. math::
    \sum_i |y_i - \hat y_i|^2 = \sum_c \Bigl| v_c - \beta_c - \sum_{c'} T_{c c'} u_{c'} \Bigr|^2
      + \sum_c \sum_{i \in c} | (y_i - \bar y_c) - D_c (x_i - m_c) |^2 ,

and the penalty is :math:`\|T\|_F^2 + \sum_c (n_c - 1) \|D_c\|_F^2`. Before that, one own-value
map shared by all nodes, which lies in every commutant, is fitted to all signals and taken off y,
so that the penalty draws towards "y is a multiple of x" instead of 0. So *means* are one regression
on ``k c_in`` features, the same for all outputs, and *own values* are k regressions on ``c_in``
features. Clusters of one node have means alone. Exchanges of clusters tie T and D along orbits.

**Left-out error.** The error of each signal under the fit to all others comes from the block hat
matrix: for the means :math:`(I - H_{bb})^{-1} e_b` with b the rows of the signal, for the own
values by taking the signal off the Gram matrix. One strength serves the means and one the own
values. The strength under which a signal is judged is the one that suits the *other* signals
best, so no signal has a say in its own error. Because the fits behind those other errors did see
it, a trace of optimism remains, of higher order in ``1 / s``; the shared own-value map, which is
not refitted either, adds one of order ``c_in / (s n)``.

Reference:
    Allen 1974 (left-out error of ridge). The splitting is ours.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym._validate import GroupError, SignalError, check_samples, check_whole
from gsym.groups import ClusterGroup, Partition, PermutationGroup

# Swaps of up to this many elements are applied to the data; larger groups regress on orbits.
MAX_ELEMENTS = 64
# Regressions on orbits solve one system of this many unknowns per signal and strength.
MAX_ORBIT_UNKNOWNS = 256

MEAN_STRENGTHS = np.logspace(-6, 4, 21)
_OWN_STRENGTHS = np.logspace(-6, 1, 8)


class Samples:
    """Inputs and targets, checked, with what every group's regression needs of them.

    Args:
        x: Inputs ``[s, n, c_in]`` or ``[s, n]``.
        y: Targets ``[s, n, c_out]`` or ``[s, n]``, or ``[s]``: one number per signal, to be
            predicted by an invariant map.
        block: Consecutive signals that are left out together. With windows that overlap, give
            the number of windows that share a time step; otherwise the left-out signal is seen.

    Raises:
        SignalError: Wrong shapes, NaN (the nodes are named), fewer than two blocks, or inputs or
            targets that never vary.
    """

    def __init__(self, x: object, y: object, *, block: int = 1) -> None:
        block = check_whole(block, "block", SignalError)
        self.x = check_samples(x, "x")
        flat = np.ndim(y) == 1  # type: ignore[arg-type]
        self.y = check_samples(np.asarray(y)[:, None] if flat else y, "y")
        self.invariant = flat
        if len(self.x) != len(self.y):
            raise SignalError(
                f"x has {len(self.x)} signals but y has {len(self.y)}; give one target for each"
            )
        if not flat and self.x.shape[1] != self.y.shape[1]:
            raise SignalError(
                f"x has {self.x.shape[1]} nodes but y has {self.y.shape[1]}; both live on the "
                "nodes of one graph (a target of one number per signal has shape [samples])"
            )
        if block < 1 or len(self.x) < 2 * block:
            raise SignalError(
                f"leaving signals out needs at least two blocks; got {len(self.x)} signals in "
                f"blocks of {block}"
            )
        self.shift = self.x.mean((0, 1)), self.y.mean((0, 1))
        for what, values, mean in (("x", self.x, self.shift[0]), ("y", self.y, self.shift[1])):
            scale = np.abs(values).max()
            values -= mean
            if np.abs(values).max() <= 1e-12 * scale:
                raise SignalError(f"{what} is constant over signals and nodes: nothing to learn")
        self.own = np.zeros((self.x.shape[2], self.y.shape[2]))
        if not flat:
            self.own = _shared_own(self.x, self.y)
            self.y -= self.x @ self.own
        self.block = block
        self.starts = np.arange(0, len(self.x), block)

    @property
    def num_signals(self) -> int:
        """Number of signals."""
        return len(self.x)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.x.shape[1]

    @property
    def num_entries(self) -> int:
        """Numbers to predict per signal."""
        return self.y.shape[1] * self.y.shape[2]

    @cached_property
    def products(self) -> tuple[NDArray, NDArray, NDArray]:
        """Per block and node ``x x^T``, ``x y^T`` and ``|y|^2``."""
        x, y = self.x, self.y
        return (
            self.by_block(x[..., :, None] * x[..., None, :]),
            self.by_block(x[..., :, None] * y[..., None, :]),
            self.by_block((y * y).sum(-1)),
        )

    def by_block(self, values: NDArray) -> NDArray:
        """Sum over the signals of each block."""
        return values if self.block == 1 else np.add.reduceat(values, self.starts, axis=0)


def denoising(x: object, seed: int) -> tuple[NDArray, NDArray]:
    """Signals plus white noise of their own variance per channel, and the signals themselves.

    Raises:
        SignalError: See :class:`Samples`.
    """
    clean = Samples(x, x).x
    # Signals drawn from default_rng(seed) must not meet their own draws again as noise.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    noise = rng.standard_normal(clean.shape)
    return clean + noise * (clean - clean.mean(0)).std((0, 1)), clean


def _shared_own(x: NDArray, y: NDArray) -> NDArray:
    """The own-value map of S_n ``[c_in, c_out]``: least squares on deviations from means."""
    x, y = ((v - v.mean(1, keepdims=True)).reshape(-1, v.shape[2]) for v in (x, y))
    # The smallest solution, as channels may be constant or repeat each other.
    own: NDArray = np.linalg.pinv(x.T @ x, rcond=1e-10, hermitian=True) @ (x.T @ y)
    return own


def commutant_ridge(
    x: object,
    y: object,
    group: PermutationGroup | Partition,
    *,
    block: int = 1,
    strength: float | None = None,
) -> CommutantRidge:
    """Ridge regression in the commutant of a group, with the left-out error of every signal.

    Args:
        x: Inputs ``[s, n, c_in]`` or ``[s, n]``.
        y: Targets ``[s, n, c_out]``, ``[s, n]``, or ``[s]`` for an invariant map.
        group: Group on the n nodes, or a partition, which stands for its ``ClusterGroup``.
        block: Consecutive signals left out together, see :class:`Samples`.
        strength: Weight of the penalty; ``None`` chooses by the left-out error.

    Returns:
        The fit: ``errors``, ``risk``, ``noise``, and ``predict``.

    Raises:
        GroupError: A group of another number of nodes, or one whose swaps are too many to apply
            and have too many pair orbits to regress on.
        SignalError: See :class:`Samples`.

    Cost:
        ``O(min(s, k c_in)^2 max(s, k c_in) + s n c_in (c_in + c_out))``; s may be smaller than
        ``n c_in``. Swaps multiply s by their number, up to 64; more swaps, and general groups,
        regress on pair orbits with ``O(s r^3)`` for ``r = num_orbits c_in <= 256``.

    Example:
        >>> x = torch.randn(50, 6, 1, generator=torch.Generator().manual_seed(0))
        >>> y = 2 * x + x.mean(1, keepdim=True)
        >>> fit = commutant_ridge(x, y, Partition.single(6))
        >>> bool(fit.risk < 1e-6), fit.predict(x).shape
        (True, torch.Size([50, 6, 1]))
    """
    return fit_group(Samples(x, y, block=block), group, strength=strength)


def fit_group(
    data: Samples, group: PermutationGroup | Partition, *, strength: float | None = None
) -> CommutantRidge:
    """:func:`commutant_ridge` on data that have been checked."""
    clusters = as_clusters(group)
    if clusters.num_nodes != data.num_nodes:
        raise GroupError(f"the group acts on {clusters.num_nodes} nodes but x has {data.num_nodes}")
    partition = clusters.partition
    order = partition.order.numpy()
    sizes = np.array(partition.sizes)
    starts = np.cumsum(sizes) - sizes
    root = np.sqrt(sizes)[:, None]
    u = np.add.reduceat(data.x[:, order], starts, axis=1) / root
    if data.invariant:
        means: _Ridge | _TiedRidge = _invariant_ridge(u, data, clusters, strength)
        return CommutantRidge(data, clusters, means, None)
    v = np.add.reduceat(data.y[:, order], starts, axis=1) / root
    if clusters.swaps is None:
        means = _Ridge(u.reshape(len(u), -1), v.reshape(len(v), -1), data.block, strength)
    else:
        elements = _elements(clusters.swaps)
        if elements is not None:
            means = _augmented_ridge(u, v, elements, data.block, strength)
        else:
            means = _TiedRidge(u, v, clusters, data, strength)
    own = None
    if sizes.max() > 1:
        orbit = clusters.cluster_orbits().index.numpy()
        own = _OwnRidge(data, u, v, order, starts, sizes, orbit, strength)
    return CommutantRidge(data, clusters, means, own)


def can_regress(group: ClusterGroup, channels: int) -> bool:
    """Whether :func:`commutant_ridge` takes the swaps of a group, for inputs of so many channels.

    Up to 64 swaps are applied to the data; more are regressed on, up to 256 unknowns.
    """
    swaps = group.swaps
    if swaps is None or _elements(swaps) is not None:
        return True
    unknowns = group.cluster_pair_orbits().num_orbits * channels
    return unknowns + group.cluster_orbits().num_orbits <= MAX_ORBIT_UNKNOWNS


def as_clusters(group: PermutationGroup | Partition) -> ClusterGroup:
    """A partition as its group, and a general group as exchanges of single nodes."""
    if isinstance(group, Partition):
        return ClusterGroup(group)
    if isinstance(group, ClusterGroup):
        return group
    if isinstance(group, PermutationGroup):
        return ClusterGroup(Partition.singletons(group.num_nodes), swaps=group)
    raise TypeError(f"a candidate is a Partition or a PermutationGroup; got {type(group).__name__}")


class CommutantRidge:
    """What :func:`commutant_ridge` returns.

    Attributes:
        group: The group.
        errors: Left-out squared error per number to predict, ``[blocks]``.
        noise: Estimate of the error of the best map in the commutant, same unit: the training
            error over the residual degrees of freedom.
        degrees: Effective number of free weights of the fit.
    """

    def __init__(
        self,
        data: Samples,
        group: ClusterGroup,
        means: _Ridge | _TiedRidge,
        own: _OwnRidge | None,
    ) -> None:
        self.group = group
        self._means, self._own = means, own
        self._shift, self._invariant, self._shared = data.shift, data.invariant, data.own
        self._channels = data.x.shape[2], data.y.shape[2]
        self._totals = means.errors if own is None else means.errors + own.errors
        self._per_block = np.diff(np.append(data.starts, data.num_signals)) * data.num_entries
        self.errors: NDArray = self._totals / self._per_block
        noise = means.noise + (0.0 if own is None else own.noise)
        self.noise = float(noise / data.num_entries)
        self.degrees = float(means.degrees + (0.0 if own is None else own.degrees))

    @property
    def risk(self) -> float:
        """Left-out squared error per number to predict: the mean of all signals."""
        return float(self._totals.sum() / self._per_block.sum())

    @property
    def strengths(self) -> tuple[float, float | None]:
        """Weight of the penalty for the means and for the own values."""
        return self._means.strength, None if self._own is None else self._own.strength

    @cached_property
    def weight_own(self) -> NDArray:
        """D of every cluster, ``[k, c_in, c_out]``, 0 for clusters of one node."""
        if self._own is None:
            return np.zeros((self.group.partition.num_clusters, *self._channels))
        large = np.array(self.group.partition.sizes) > 1
        return self._own.weight + large[:, None, None] * self._shared

    @cached_property
    def weight_means(self) -> NDArray:
        """The map from cluster means to cluster means, ``[k, c_in, k, c_out]``.

        Entry ``[s, :, t]`` carries the mean of cluster s to cluster t, the own value included: in
        the notation of :class:`gsym.nn.OrbitLinear`, ``W + D`` on the diagonal. For an invariant
        map, ``[k, c_in, 1, c_out]``.
        """
        k = self.group.partition.num_clusters
        root = np.sqrt(self.group.partition.sizes)
        weight = self._means.weight.reshape(k, self._channels[0], -1, self._channels[1])
        weight = weight * root[:, None, None, None]
        if self._invariant:
            return weight
        weight = weight / root[:, None]
        weight[np.arange(k), :, np.arange(k)] += self._shared
        return weight

    @cached_property
    def bias(self) -> NDArray:
        """Constant of every cluster, ``[k, c_out]``, for inputs and targets less their means."""
        root = np.sqrt(self.group.partition.sizes)[:, None]
        bias = self._means.bias.reshape(-1, self._channels[1])
        return bias if self._invariant else bias / root

    @property
    def matrix(self) -> NDArray:
        """Mean over channels of :attr:`weight_means`, targets first, ``[k, k]``."""
        return self.weight_means.mean((1, 3)).T

    def predict(self, x: object) -> Tensor:
        """Predict targets ``[s, n, c_out]`` (``[s]`` for an invariant map) of ``[s, n, c_in]``."""
        values = check_samples(x, "x")
        partition = self.group.partition
        expected = partition.num_nodes, self._channels[0]
        if values.shape[1:] != expected:
            raise SignalError(
                f"the fit is for x [s, {expected[0]}, {expected[1]}]; got {list(values.shape)}"
            )
        values = values - self._shift[0]
        labels, order = partition.labels.numpy(), partition.order.numpy()
        sizes = np.array(partition.sizes)
        starts = np.cumsum(sizes) - sizes
        m = np.add.reduceat(values[:, order], starts, axis=1) / sizes[:, None]
        flat = self.weight_means.reshape(m.shape[1] * m.shape[2], -1)
        shared = (m.reshape(len(m), -1) @ flat).reshape(len(m), -1, self._channels[1])
        shared = shared + self.bias
        if self._invariant:
            return torch.from_numpy(shared[:, 0, 0] + self._shift[1][0])
        deviation = values - m[:, labels]
        # One cluster at a time: a table of D per node would outgrow the signal.
        y = shared[:, labels] + self._shift[1]
        for nodes, weight in zip(partition.clusters(), self.weight_own, strict=True):
            if len(nodes) > 1:
                y[:, nodes.numpy()] += deviation[:, nodes.numpy()] @ weight
        return torch.from_numpy(y)

    def __repr__(self) -> str:
        return f"CommutantRidge({self.group}: risk {self.risk:.4g}, {self.degrees:.1f} degrees)"


class _Ridge:
    """Ridge regression of all targets on the same features, for all strengths at once.

    Args:
        features: ``[s * copies, p]``, the copies of a signal next to each other.
        targets: ``[s * copies, q]``.
        block: Signals left out together.
        strength: Weight of the penalty, or ``None``.
        copies: Images of each signal under the swaps.
    """

    def __init__(
        self,
        features: NDArray,
        targets: NDArray,
        block: int,
        strength: float | None,
        copies: int = 1,
    ) -> None:
        self._means = features.mean(0), targets.mean(0)
        self._x, self._y = features - self._means[0], targets - self._means[1]
        self._left, self._squares = _spectrum(self._x)
        rows, rank = self._left.shape
        # What follows needs only inner products of rows.
        y = self._y if targets.shape[1] <= rows else _shorten(self._y)
        scores = self._left.T @ y
        scale = self._squares.sum() / rank if rank else 1.0
        grid = scale * MEAN_STRENGTHS if strength is None else np.array([copies * strength])
        table, training = [], []
        for value in grid:
            shrink = self._squares / (self._squares + value)
            rest = y - self._left @ (shrink[:, None] * scores)
            training.append((rest**2).sum() / copies)
            table.append(_left_out(self._left, shrink, rest, block * copies) / copies)
        self.errors, chosen = _select(np.array(table))
        self._weight_of_penalty = grid[chosen]
        self.strength = float(grid[chosen] / copies)
        shrink = self._squares / (self._squares + grid[chosen])
        # Tied rows repeat each other: per output, 1 / copies of the trace is fitted.
        self.degrees = (1.0 + shrink.sum()) / copies * targets.shape[1]
        # The trace of (I - H)^2, by which pure noise is reduced in the training error.
        free = (rows - 1.0 - rank + ((1 - shrink) ** 2).sum()) / copies
        self.noise = training[chosen] / max(free, 1e-9)

    @cached_property
    def weight(self) -> NDArray:
        """``[p, q]``."""
        inner = (self._left.T @ self._y) / (self._squares + self._weight_of_penalty)[:, None]
        return self._x.T @ (self._left @ inner)

    @property
    def bias(self) -> NDArray:
        """``[q]``."""
        return self._means[1] - self._means[0] @ self.weight


def _spectrum(x: NDArray) -> tuple[NDArray, NDArray]:
    """Left singular vectors and squared singular values, from the smaller Gram matrix."""
    wide = x.shape[0] <= x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep = squares > max(squares[-1], 0.0) * max(x.shape) * np.finfo(float).eps
    squares, vectors = squares[keep], vectors[:, keep]
    return (vectors if wide else x @ vectors / np.sqrt(squares)), squares


def _shorten(y: NDArray) -> NDArray:
    """Rows with the same inner products, but no more columns than rows."""
    left, squares = _spectrum(y)
    return left * np.sqrt(squares)


def _left_out(left: NDArray, shrink: NDArray, rest: NDArray, block: int) -> NDArray:
    """Squared error of each block of rows under the fit to all others, by the hat matrix."""
    rows = len(rest)
    if block == 1:
        hat = 1 / rows + (left**2) @ shrink
        return (rest**2).sum(1) / np.maximum(1 - hat, 1e-12) ** 2
    whole = rows // block * block
    parts = [slice(0, whole)] + [slice(whole, rows)] * (whole < rows)
    found = []
    for part in parts:
        size = min(block, part.stop - part.start)
        z = left[part].reshape(-1, size, left.shape[1])
        hat = 1 / rows + (z * shrink) @ z.transpose(0, 2, 1)
        # A strength of almost zero may leave a hat matrix of one exactly.
        system = np.eye(size) * (1 + 1e-12) - hat
        error = np.linalg.solve(system, rest[part].reshape(len(z), size, -1))
        found.append((error**2).sum((1, 2)))
    return np.concatenate(found)


def _select(table: NDArray) -> tuple[NDArray, int]:
    """Error of each block under the strength that suits the others, and the best of all.

    Args:
        table: Errors ``[strengths, blocks]``.
    """
    total = table.sum(1)
    judged_by = (total[:, None] - table).argmin(0)
    return table[judged_by, np.arange(table.shape[1])], int(total.argmin())


class _OwnRidge:
    """Deviations of y from cluster means on the deviations of x: one D per orbit of clusters."""

    def __init__(
        self,
        data: Samples,
        u: NDArray,
        v: NDArray,
        order: NDArray,
        starts: NDArray,
        sizes: NDArray,
        orbit: NDArray,
        strength: float | None,
    ) -> None:
        large = sizes > 1
        used, inverse = np.unique(orbit[large], return_inverse=True)
        self._row = np.full(len(sizes), -1)
        self._row[large] = inverse
        around = (
            data.by_block(u[..., :, None] * u[..., None, :]),
            data.by_block(u[..., :, None] * v[..., None, :]),
            data.by_block((v * v).sum(-1)),
        )
        gram, cross, square = (
            _sum_rows(
                (np.add.reduceat(product[:, order], starts, axis=1) - means)[:, large],
                inverse,
                len(used),
            )
            for product, means in zip(data.products, around, strict=True)
        )
        square = np.maximum(square, 0.0)
        freedom = np.bincount(inverse, (sizes - 1)[large])
        scale = np.trace(gram.sum((0, 1))) / (freedom.sum() * gram.shape[-1])
        self._gram, self._cross = gram.sum(0), cross.sum(0)
        grid = (scale if scale > 0 else 1.0) * _OWN_STRENGTHS
        grid = grid if strength is None else np.array([strength])
        eye = np.eye(gram.shape[-1])
        table = []
        for value in grid:
            penalty = value * freedom[:, None, None] * eye
            weight = _solve(self._gram - gram + penalty, self._cross - cross)
            error = square - 2 * (weight * cross).sum((2, 3))
            error += (weight * (gram @ weight)).sum((2, 3))
            table.append(np.maximum(error, 0.0).sum(1))
        self.errors, chosen = _select(np.array(table))
        self.strength = float(grid[chosen])
        penalty = grid[chosen] * freedom[:, None, None] * eye
        self._tied = _solve(self._gram + penalty, self._cross)
        used_up = np.trace(_solve(self._gram + penalty, self._gram), axis1=1, axis2=2)
        rest = square.sum(0) - (self._tied * self._cross).sum((1, 2))
        rest -= grid[chosen] * freedom * (self._tied**2).sum((1, 2))
        rows = data.num_signals * freedom
        self.degrees = used_up.sum() * v.shape[-1]
        ratio = freedom / np.maximum(rows - used_up, 1e-9)
        self.noise = float((np.maximum(rest, 0.0) * ratio).sum())

    @property
    def weight(self) -> NDArray:
        """``[k, c_in, c_out]``, 0 for clusters of one node."""
        padded = np.concatenate([self._tied, np.zeros_like(self._tied[:1])])
        return padded[self._row]


def _sum_rows(values: NDArray, row: NDArray, count: int) -> NDArray:
    """Sum the entries of axis 1 that share a row number."""
    if len(row) == count:
        return values[:, np.argsort(row)]
    out = np.zeros((len(values), count, *values.shape[2:]))
    for index, target in enumerate(row):
        out[:, target] += values[:, index]
    return out


def _solve(matrix: NDArray, right: NDArray) -> NDArray:
    """Batched solve; one unknown is a division."""
    return right / matrix if matrix.shape[-1] == 1 else np.linalg.solve(matrix, right)


def _elements(swaps: PermutationGroup) -> NDArray | None:
    """All elements of a small group, ``[m, k]``, or ``None`` above :data:`MAX_ELEMENTS`."""
    identity = tuple(range(swaps.num_nodes))
    known, frontier = {identity}, [identity]
    generators = swaps.generators.tolist()
    while frontier:
        perm = frontier.pop()
        for generator in generators:
            image = tuple(generator[i] for i in perm)
            if image not in known:
                known.add(image)
                frontier.append(image)
        if len(known) > MAX_ELEMENTS:
            return None
    return np.array(sorted(known))


def _augmented_ridge(
    u: NDArray, v: NDArray, elements: NDArray, block: int, strength: float | None
) -> _Ridge:
    """The regression of all images of the signals: its solution is tied by uniqueness."""
    m = len(elements)
    features = u[:, elements].reshape(len(u) * m, -1)
    targets = v[:, elements].reshape(len(v) * m, -1)
    return _Ridge(features, targets, block, strength, copies=m)


def _invariant_ridge(
    u: NDArray, data: Samples, clusters: ClusterGroup, strength: float | None
) -> _Ridge | _TiedRidge:
    """One number per signal from the means, summed over orbits of clusters."""
    orbit = clusters.cluster_orbits().index.numpy()
    count = np.bincount(orbit)
    pooled = _sum_rows(u, orbit, len(count)) / np.sqrt(count)[:, None]
    ridge = _Ridge(pooled.reshape(len(u), -1), data.y.reshape(len(u), -1), data.block, strength)
    if len(count) == len(orbit):
        return ridge
    return _Spread(ridge, orbit, np.sqrt(count), u.shape[2])


class _Spread(_Ridge):
    """An invariant regression with its weights copied to the clusters of each orbit."""

    def __init__(self, ridge: _Ridge, orbit: NDArray, root: NDArray, channels: int) -> None:
        self.errors, self.noise, self.degrees = ridge.errors, ridge.noise, ridge.degrees
        self.strength, self._ridge = ridge.strength, ridge
        self._orbit, self._root, self._channels = orbit, root, channels

    @cached_property
    def weight(self) -> NDArray:
        tied = self._ridge.weight.reshape(len(self._root), self._channels, -1)
        copied = (tied / self._root[:, None, None])[self._orbit]
        return copied.reshape(-1, copied.shape[-1])

    @property
    def bias(self) -> NDArray:
        return self._ridge.bias


class _TiedRidge:
    """The means part with T tied along the pair orbits of many swaps: regression on orbits.

    This is the definition, in the basis of 0/1 orbit matrices, and the oracle of the other paths.
    """

    def __init__(
        self, u: NDArray, v: NDArray, clusters: ClusterGroup, data: Samples, strength: float | None
    ) -> None:
        pairs, orbits = clusters.cluster_pair_orbits(), clusters.cluster_orbits()
        channels = u.shape[2]
        unknowns = pairs.num_orbits * channels + orbits.num_orbits
        if unknowns > MAX_ORBIT_UNKNOWNS:
            raise GroupError(
                f"the group has more than {MAX_ELEMENTS} swaps and {pairs.num_orbits} pair "
                f"orbits: {unknowns} unknowns per output channel, above the limit of "
                f"{MAX_ORBIT_UNKNOWNS}; score it by score= instead"
            )
        index = pairs.index.numpy()
        one_hot = np.eye(pairs.num_orbits)
        features = np.stack(
            [
                np.concatenate(
                    [
                        np.einsum("sci,cr->sri", u, one_hot[row]).reshape(len(u), -1),
                        np.tile(np.eye(orbits.num_orbits)[orbit], (len(u), 1)),
                    ],
                    axis=1,
                )
                for row, orbit in zip(index, orbits.index.numpy(), strict=True)
            ],
            axis=1,
        )
        gram = data.by_block(features.transpose(0, 2, 1) @ features)
        cross = data.by_block(features.transpose(0, 2, 1) @ v)
        square = data.by_block((v * v).sum((1, 2)))
        sizes = np.repeat(pairs.sizes.numpy(), channels).astype(float)
        total, total_cross = gram.sum(0), cross.sum(0)
        scale = np.diagonal(total)[: len(sizes)].sum() / sizes.sum()
        grid = (scale if scale > 0 else 1.0) * MEAN_STRENGTHS
        grid = grid if strength is None else np.array([strength])
        table = []
        for value in grid:
            penalty = np.diag(np.append(value * sizes, np.zeros(orbits.num_orbits)))
            weight = np.linalg.solve(total - gram + penalty, total_cross - cross)
            error = square - 2 * (weight * cross).sum((1, 2))
            table.append(error + (weight * (gram @ weight)).sum((1, 2)))
        self.errors, chosen = _select(np.array(table))
        self.strength = float(grid[chosen])
        penalty = np.diag(np.append(self.strength * sizes, np.zeros(orbits.num_orbits)))
        tied = np.linalg.solve(total + penalty, total_cross)
        used_up = float(np.trace(np.linalg.solve(total + penalty, total)))
        rest = square.sum() - 2 * (tied * total_cross).sum() + (tied * (total @ tied)).sum()
        rows = len(u) * u.shape[1]
        self.noise = float(rest / max(rows - used_up, 1e-9) * u.shape[1])
        self.degrees = used_up * v.shape[2]
        table_of_pairs = tied[: len(sizes)].reshape(pairs.num_orbits, channels, -1)[index]
        # Sources first, as the other paths store it.
        self.weight = table_of_pairs.transpose(1, 2, 0, 3).reshape(u.shape[1] * channels, -1)
        self.bias = tied[len(sizes) :][orbits.index.numpy()].reshape(-1)
