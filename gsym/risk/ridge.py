r"""Ridge regression in the commutant of a group, and its leave-one-out error, in closed form.

**Regression in a commutant.** Signals x ``[s, n, c_in]`` predict targets y ``[s, n, c_out]``
through the linear maps that commute with a group G. The estimate is ridge regression with the
Frobenius norm of the whole map as its penalty, restricted to the commutant. For the group of a
partition into k clusters of sizes :math:`n_c` the problem separates. With cluster means
:math:`m_c, \bar y_c` and the orthonormal coordinates :math:`u_c = \sqrt{n_c}\, m_c`,
:math:`v_c = \sqrt{n_c}\, \bar y_c`,

.. math::
    \sum_i |y_i - \hat y_i|^2 = \sum_c \Bigl| v_c - \beta_c - \sum_{c'} T_{c c'} u_{c'} \Bigr|^2
      + \sum_c \sum_{i \in c} | (y_i - \bar y_c) - D_c (x_i - m_c) |^2 ,

and the penalty is :math:`\|T - D_0\|_F^2 + \sum_c (n_c - 1) \|D_c - D_0\|_F^2` with the shared
own-value map :math:`D_0` of :mod:`gsym.risk.samples`, which lies in every commutant: it
draws towards "y is a multiple of x" instead of 0. So *means* are one regression on ``k c_in``
features, the same for all outputs, and *own values* are k regressions on ``c_in`` features.
Clusters of one node have means alone. Exchanges of clusters tie T and D along orbits.

**Leave-one-out error.** The error of each block b of signals under the fit to all others comes
from the block hat matrix: for the means :math:`(I - H_{bb})^{-1} e_b` with b the rows of the block,
for the own values by taking the block off the Gram matrix. :math:`D_0` is fitted again for every
block. At a fixed penalty the error is linear in the targets, so with the errors of the regression
for targets y and for targets x, that for :math:`y - D_0(b)\, x` is their difference.
A gap leaves the signals around the block out of the fit too: b then names more rows than are
judged. All this equals a refit without the block, to rounding.

**Penalties.** One penalty serves the means, one the own values and one :math:`D_0`, of a grid that
depends on the inputs alone. The penalty under which a block is judged is the one that suits the
*other* blocks best, so no block has a say in its own error. Because the fits behind those other
errors did see it, a trace of optimism remains, of higher order in ``1 / s``. With at most 30
blocks, where it shows, every block is judged by a fit to the others that chooses its penalties
without it, too; so is every block where means, scales or missing entries are estimated.

Reference:
    Allen 1974 (leave-one-out error of ridge). The splitting is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsym.errors import GroupError
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.groups.elements import has_at_most, list_elements
from gsym.risk.masked_ridge import MaskedRidge
from gsym.risk.monomials import moves_of
from gsym.risk.orbit_ridge import MAX_ELEMENTS, MAX_ORBIT_UNKNOWNS, TiedRidge
from gsym.risk.predictor import CommutantRidge, Part
from gsym.risk.regressions import MeansRidge, OwnRidge, SpreadRidge, images_alike, sum_rows
from gsym.risk.samples import Samples

# So few blocks are judged by refits, penalties included: there their choice shows in the error.
NESTED_BLOCKS = 30
# Refits where more blocks are judged and something besides the weights is estimated.
FOLDS = 10
# Missing targets are filled until they move by less than this share of all, or so many times.
_FILLED, _MOST_FILLS = 1e-3, 20


def commutant_ridge(
    x: object,
    y: object,
    group: PermutationGroup | Partition,
    *,
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
    block: int = 1,
    gap: int = 0,
    penalty: float | None = None,
    standardize: str | None = None,
    mask: object = None,
    missing: float | None = None,
    shared: bool = True,
) -> CommutantRidge:
    """Ridge regression in the commutant of a group, with the leave-one-out error of every signal.

    Args:
        x: Inputs ``[s, n, c_in]`` or ``[s, n]``.
        y: Targets ``[s, n, c_out]``, ``[s, n]``, or ``[s]`` for an invariant map.
        group: Group on the n nodes, or a partition, which stands for its ``ClusterGroup``.
        in_rep: How a group of up to 64 elements moves the channels of x as well; with it the
            signals have to be complete and are not standardised.
        out_rep: How it moves those of y; leave it out for an invariant map.
        block: Consecutive signals left out together.
        gap: Signals on either side of a block that are left out of the fit as well.
        penalty: Ridge penalty; ``None`` chooses by the leave-one-out error.
        standardize: ``"node"`` for z-scores of every node, see
            :class:`gsym.risk.samples.Samples`.
        mask: Which entries were observed, boolean ``[s, n]``, ``[s, n, c]`` or ``[n]`` for all
            signals alike, or one for x and one for y as a tuple: ``(None, mask)`` says which
            targets count. Others are left out of fit and error, exactly where inputs are complete
            and as they come; missing inputs are the mean of their node in the signals that are
            fitted to.
        missing: Entries of this value, and NaN, were not observed.
        shared: Draw towards one own-value map that all nodes share, fitted first; otherwise to
            0, which is better where a node's own value says little of its target, as in holes.

    Returns:
        The fit: ``errors``, ``risk``, ``residual_variance``, and ``predict``.

    Raises:
        TypeError: No group or partition, or representations that are none.
        GroupError: A group of another number of nodes, or one whose swaps are too many to apply
            and have too many pair orbits to regress on; representations of another group, of
            other numbers of channels or of more than 64 elements, or one of the two alone.
        SignalError: See :class:`gsym.risk.samples.Samples`; signals with missing entries or
            standardised, where there are representations.

    Cost:
        ``O(r^2 max(s, k c_in) + s r k (c_in + c_out) + s n c_in (c_in + c_out))`` with
        ``r = min(s, k c_in)``; s may be smaller than ``n c_in``. Blocks of h with a gap of g add
        ``O(s / h (h + 2 g)^2 (r + h + 2 g))``. Swaps multiply s by their number, up to 64; more
        swaps, and general groups, regress on pair orbits with ``O(s r^3)`` for
        ``r = num_orbits c_in <= 256``. Up to 30 blocks take one more fit each. Targets that do not
        count take ``O(k c_out (r^3 + s r^2))``.

    Example:
        >>> x = torch.randn(50, 6, 1, generator=torch.Generator().manual_seed(0))
        >>> y = 2 * x + x.mean(1, keepdim=True)
        >>> fit = commutant_ridge(x, y, Partition.single(6))
        >>> bool(fit.risk < 1e-6), fit.predict(x).shape
        (True, torch.Size([50, 6, 1]))
    """
    data = Samples(
        x,
        y,
        block=block,
        gap=gap,
        standardize=standardize,
        mask=mask,
        missing=missing,
        shared=shared,
    )
    return fit_group(data, group, penalty=penalty, reps=check_reps(data, group, in_rep, out_rep))


# How a group moves the channels of inputs and of targets; None: those of targets stay.
Reps = tuple[Representation, Representation | None]


def fit_group(
    data: Samples,
    group: PermutationGroup | Partition,
    *,
    penalty: float | None = None,
    reps: Reps | None = None,
) -> CommutantRidge:
    """:func:`commutant_ridge` on data and representations that have been checked."""
    clusters = as_clusters(group)
    if clusters.num_nodes != data.num_nodes:
        raise GroupError(f"the group acts on {clusters.num_nodes} nodes but x has {data.num_nodes}")
    fit = fit_to_all(data, clusters, penalty, reps)
    exact = data.is_plain or (data.is_given and fit.is_exact)
    parts = _parts(data, exact) if penalty is None or not exact else []
    if parts:
        fit.judge(data, parts, [fit_to_all(part.train, clusters, penalty, reps) for part in parts])
    return fit


def _parts(data: Samples, exact: bool) -> list[Part]:
    """What is refitted, or nothing where the closed form serves.

    Up to :data:`NESTED_BLOCKS` blocks are left out one by one. More are left out in
    :data:`FOLDS` runs, if there is something to estimate besides the weights.
    """
    left_out, s = data.left_out, data.num_signals
    blocks = len(left_out)
    if blocks > NESTED_BLOCKS and exact:
        return []
    parts = []
    for run in np.array_split(np.arange(blocks), blocks if blocks <= NESTED_BLOCKS else FOLDS):
        kept = np.r_[0 : left_out.low[run[0]], left_out.high[run[-1]] : s]
        # What is left may be too short for the blocks and gaps of the whole.
        block = min(left_out.block, len(kept) // 2)
        if block < 1:
            return []
        gap = min(left_out.gap, (len(kept) - block) // 4)
        rows = np.arange(left_out.starts[run[0]], left_out.stops[run[-1]])
        parts.append(Part(run, rows, data.subset(kept, block, gap)))
    return parts


def fit_to_all(
    data: Samples,
    clusters: ClusterGroup,
    penalty: float | None = None,
    reps: Reps | None = None,
) -> CommutantRidge:
    """The fit to all signals, whose leave-one-out errors are those of the closed form.

    Missing targets have a closed form of their own, :mod:`gsym.risk.masked_ridge`. With more swaps
    than can be applied, they become what the fit says of them, until it stays as it is: then it is
    the fit that errs least on the observed ones. On the way the penalties stay, and are chosen
    again at its end.
    """
    if reps is not None and not _are_trivial(*reps):
        return _solve_represented(data.tied(*reps), clusters, penalty, reps)
    if data.observed[1] is not None and not data.invariant:
        elements = _elements(clusters)
        if elements is not None:
            means = MaskedRidge(data, clusters, elements, (penalty, penalty))
            return CommutantRidge(data, clusters, means, None)
    fit = _solve_group(data, clusters, (penalty, penalty))
    if data.observed[1] is None:
        return fit
    for _ in range(_MOST_FILLS):
        chosen = fit.penalties
        for _ in range(_MOST_FILLS):
            data, moved = data.filled(fit.apply(data.x))
            fit = _solve_group(data, clusters, chosen)
            if moved < _FILLED:
                break
        fit = _solve_group(data, clusters, (penalty, penalty))
        if fit.penalties == chosen:
            break
    return fit


def _solve_group(
    data: Samples, clusters: ClusterGroup, penalties: tuple[float | None, float | None]
) -> CommutantRidge:
    """Regression of the means and of the own values, with a penalty each or the best."""
    penalty = penalties[0]
    partition = clusters.partition
    order = partition.order.numpy()
    sizes = np.array(partition.sizes)
    starts = np.cumsum(sizes) - sizes
    root = np.sqrt(sizes)[:, None]
    u = np.add.reduceat(data.x[:, order], starts, axis=1) / root
    if data.invariant:
        means: MeansRidge | TiedRidge = _invariant_ridge(u, data, clusters, penalty)
        return CommutantRidge(data, clusters, means, None)
    v = np.add.reduceat(data.y[:, order], starts, axis=1) / root
    if clusters.swaps is None:
        means = MeansRidge(u, v, data.left_out, penalty, drift=data.drift)
    else:
        elements = _elements(clusters)
        if elements is not None:
            means = _augmented_ridge(u, v, elements, data, penalty)
        else:
            means = TiedRidge(u, v, clusters, data, penalty)
    own = None
    if sizes.max() > 1:
        orbit = clusters.cluster_orbits().index.numpy()
        own = OwnRidge(data, u, v, order, starts, sizes, orbit, penalties[1])
    return CommutantRidge(data, clusters, means, own)


def check_reps(
    data: Samples,
    group: PermutationGroup | Partition,
    in_rep: Representation | None,
    out_rep: Representation | None,
) -> Reps | None:
    """The representations of a regression, or ``None`` where channels stay as they are.

    Raises:
        TypeError: What is no representation.
        GroupError: Representations of another group or of other numbers of channels, only one of
            the two, or a group of too many elements.
    """
    if in_rep is None and out_rep is None:
        return None
    for name, rep in (("in_rep", in_rep), ("out_rep", out_rep)):
        if not isinstance(rep, Representation | None):
            raise TypeError(f"{name} must be a gsym.Representation; got {type(rep).__name__}")
    if in_rep is None or (out_rep is None) != data.invariant:
        raise GroupError(
            "give in_rep and out_rep, or in_rep alone where y is one number per signal; "
            "Representation.trivial(group, channels) leaves channels alone"
        )
    clusters = as_clusters(group)
    for name, rep, values in (("in_rep", in_rep, data.x), ("out_rep", out_rep, data.targets)):
        if rep is None:
            continue
        if not isinstance(group, PermutationGroup):
            raise GroupError(f"{name} is of {rep.group!r}, not of a partition; give its group")
        rep.check_group(group)
        if rep.num_channels != values.shape[2]:
            raise GroupError(
                f"{name} moves {rep.num_channels} channels but the signals have {values.shape[2]}"
            )
    if _are_trivial(in_rep, out_rep):
        return None
    if not has_at_most(clusters, MAX_ELEMENTS):
        raise GroupError(
            f"ridge with representations takes groups of up to {MAX_ELEMENTS} elements; {group} "
            "has more"
        )
    return in_rep, out_rep


def _are_trivial(in_rep: Representation, out_rep: Representation | None) -> bool:
    return in_rep.is_trivial and (out_rep is None or out_rep.is_trivial)


def _solve_represented(
    data: Samples, clusters: ClusterGroup, penalty: float | None, reps: Reps
) -> CommutantRidge:
    """The regression of all images of the signals under a group that moves channels as well."""
    moves_in, moves_out = moves_of(*reps)
    rows, m = data.num_signals, len(moves_in.source)
    features = moves_in.images(data.x.reshape(rows, -1)).reshape(rows * m, *data.x.shape[1:])
    targets = data.y.reshape(rows, 1, -1).repeat(m, 1)
    if not data.invariant:
        targets = moves_out.images(data.y.reshape(rows, -1))
    means = MeansRidge(
        features,
        targets.reshape(rows * m, *data.y.shape[1:]),
        data.left_out,
        penalty,
        alike=(moves_in.alike(), moves_out.alike()),
        drift=None if data.invariant else data.drift,
    )
    # All elements were applied to nodes, those within clusters too.
    nodes = PermutationGroup(clusters.num_nodes, clusters.generators).as_clusters()
    return CommutantRidge(data, nodes, means, None)


def residuals(data: Samples) -> NDArray:
    """Errors of the fit of S_n, which has few weights, ``[s, n c_out]``; 0 where not observed."""
    fit = fit_to_all(data, ClusterGroup(Partition.single(data.num_nodes)))
    error = fit.apply(data.x) - data.targets
    seen = data.observed[1]
    error = error if seen is None else np.where(seen, error, 0.0)
    return error.reshape(len(error), -1)


def can_regress(group: ClusterGroup, channels: int) -> bool:
    """Whether :func:`commutant_ridge` takes the swaps of a group, for inputs of so many channels.

    Up to 64 swaps are applied to the data; more are regressed on, up to 256 unknowns.
    """
    swaps = group.swaps
    if swaps is None or list_elements(swaps.generators.numpy(), MAX_ELEMENTS) is not None:
        return True
    unknowns = group.cluster_pair_orbits().num_orbits * channels
    return unknowns + group.cluster_orbits().num_orbits <= MAX_ORBIT_UNKNOWNS


def as_clusters(group: PermutationGroup | Partition) -> ClusterGroup:
    """A partition as its group, and a general group as exchanges of single nodes."""
    if isinstance(group, Partition):
        return ClusterGroup(group)
    if isinstance(group, PermutationGroup):
        return group.as_clusters()
    raise TypeError(f"a candidate is a Partition or a PermutationGroup; got {type(group).__name__}")


def _elements(clusters: ClusterGroup) -> NDArray | None:
    """All exchanges of clusters, the identity first, if they are few enough to be applied."""
    if clusters.swaps is None:
        return np.arange(clusters.partition.num_clusters)[None]
    listed = list_elements(clusters.swaps.generators.numpy(), MAX_ELEMENTS)
    return None if listed is None else listed[0]


def _augmented_ridge(
    u: NDArray, v: NDArray, elements: NDArray, data: Samples, penalty: float | None
) -> MeansRidge:
    """The regression of all images of the signals: its solution is tied by uniqueness."""
    m = len(elements)
    features = u[:, elements].reshape(len(u) * m, *u.shape[1:])
    targets = v[:, elements].reshape(len(v) * m, *v.shape[1:])
    alike = images_alike(elements)
    return MeansRidge(features, targets, data.left_out, penalty, (alike, alike), data.drift)


def _invariant_ridge(
    u: NDArray, data: Samples, clusters: ClusterGroup, penalty: float | None
) -> MeansRidge | TiedRidge:
    """One number per signal from the means, summed over orbits of clusters."""
    orbit = clusters.cluster_orbits().index.numpy()
    count = np.bincount(orbit)
    pooled = sum_rows(u, orbit, len(count)) / np.sqrt(count)[:, None]
    ridge = MeansRidge(pooled, data.y, data.left_out, penalty)
    if len(count) == len(orbit):
        return ridge
    return SpreadRidge(ridge, orbit, np.sqrt(count), u.shape[2])
