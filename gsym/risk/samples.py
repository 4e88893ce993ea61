r"""Signals and targets of a regression, what is left out together, and the shared own-value map.

**The shared map.** One map from a node's own value to its target, the same for all nodes, lies in
the commutant of every group. It is fitted first, by ridge regression on the deviations from the
mean of all nodes, and the penalty of every group then draws towards it instead of towards 0.

It is estimated from signals as everything else is, so it has to be fitted again for every block b
that is left out. Its Gram matrices are ``c_in`` by ``c_in``: those of all signals less those of
the block and the gap around it. ``Samples.own`` is the map from all signals, and
``Samples.drift[b]`` what has to be added to it when block b is left out.
"""

from __future__ import annotations

import math
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gsym._validate import as_samples, check_samples, check_whole
from gsym.errors import SignalError
from gsym.groups import Representation
from gsym.groups.elements import list_elements, signed_points
from gsym.risk.left_out import LeftOut

_SHARED_PENALTIES = np.logspace(-8, 4, 13)


class Samples:
    """Inputs and targets, checked, with what every group's regression needs of them.

    Args:
        x: Inputs ``[s, n, c_in]`` or ``[s, n]``.
        y: Targets ``[s, n, c_out]`` or ``[s, n]``, or ``[s]``: one number per signal, to be
            predicted by an invariant map.
        block: Consecutive signals that are left out together. With windows that overlap, give
            the number of windows that share a time step; otherwise the left-out signal is seen.
        gap: Signals on either side of a block that are left out of the fit as well.
        standardize: ``"node"``: every node's inputs and targets less their mean over the signals,
            over their standard deviation; errors are in these units.
        mask: Which entries were observed, boolean ``[s, n]``, ``[s, n, c]`` or ``[n]`` for all
            signals alike, or one for x and one for y as a tuple. Targets that do not count are
            as good as missing: ``(None, mask)`` with complete signals.
        missing: Entries of this value, and NaN, were not observed.
        shared: Whether every group's penalty draws towards the shared own-value map, or towards 0.

    Attributes:
        x: Inputs of mean 0, ``[s, n, c_in]``; missing ones are the mean of their node.
        y: Targets of mean 0 less what the shared map says of them.
        shift: What was taken off inputs and targets.
        scale: What both were divided by then.
        fill: Means of the nodes ``[n, c_in]``, in place of missing inputs.
        observed: Which inputs and which targets were observed; ``None`` where all were.

    Raises:
        SignalError: Wrong shapes, NaN (the nodes are named), fewer than two blocks, a gap that
            leaves nothing to fit, or inputs or targets that never vary.
    """

    def __init__(
        self,
        x: object,
        y: object,
        *,
        block: int = 1,
        gap: int = 0,
        standardize: str | None = None,
        mask: object = None,
        missing: float | None = None,
        shared: bool = True,
    ) -> None:
        if standardize not in (None, "node"):
            raise SignalError(f'standardize must be "node" or None; got {standardize!r:.80}')
        block = check_whole(block, "block", SignalError)
        gap = check_whole(gap, "gap", SignalError)
        flat = _axes(y) == 1
        masks = mask if isinstance(mask, tuple) else (mask, None if flat else mask)
        inputs, seen_x = observed_samples(x, "x", masks[0], missing)
        if flat and np.ndim(masks[1]) == 1:
            masks = masks[0], np.asarray(masks[1])[:, None]
        targets, seen_y = observed_samples(
            np.asarray(y)[:, None] if flat else y, "y", masks[1], missing
        )
        if len(inputs) != len(targets):
            raise SignalError(
                f"x has {len(inputs)} signals but y has {len(targets)}; give one target for each"
            )
        if not flat and inputs.shape[1] != targets.shape[1]:
            raise SignalError(
                f"x has {inputs.shape[1]} nodes but y has {targets.shape[1]}; both live on the "
                "nodes of one graph (a target of one number per signal has shape [samples])"
            )
        check_blocks(len(inputs), block, gap)
        for what, values, seen in (("x", inputs, seen_x), ("y", targets, seen_y)):
            known = values.reshape(-1, values.shape[2]) if seen is None else values[seen][:, None]
            if np.ptp(known, axis=0).max() <= 1e-12 * np.abs(known).max():
                raise SignalError(f"{what} is constant over signals and nodes: nothing to learn")
        counted = np.arange(len(targets))
        if seen_y is not None:
            counted = np.flatnonzero(seen_y.any((1, 2)))
        if len(np.unique(counted // block)) < 2:
            raise SignalError(
                "targets count in one block only, which leaves nothing to judge a fit by; give a "
                "mask that is True in two blocks at least"
            )
        self.shared = shared
        self._prepare(inputs, targets, (seen_x, seen_y), flat, block, gap, standardize)

    def _prepare(
        self,
        inputs: NDArray,
        targets: NDArray,
        observed: tuple[NDArray | None, NDArray | None],
        invariant: bool,
        block: int,
        gap: int,
        standardize: str | None,
    ) -> None:
        self.given = inputs, targets
        self.observed, self.invariant, self.standardize = observed, invariant, standardize
        self.left_out = LeftOut(len(inputs), block, gap)
        means = [_node_means(v, seen) for v, seen in zip(self.given, observed, strict=True)]
        self.fill = means[0]
        ready, shifts, scales = [], [], []
        for values, seen, mean in zip(self.given, observed, means, strict=True):
            full = values if seen is None else np.where(seen, values, mean)
            shift = full.mean((0, 1)) if standardize is None else mean
            full = full - shift
            scale = np.ones(1)
            if standardize is not None:
                scale = np.sqrt(_node_means(full**2, seen))
                # A node that never varies has no scale.
                scale = np.where(scale > 1e-12 * scale.max(), scale, 1.0)
                full /= scale
            ready.append(full)
            shifts.append(shift)
            scales.append(scale)
        self.shift, self.scale = (shifts[0], shifts[1]), (scales[0], scales[1])
        self.x = ready[0]
        self._set_targets(ready[1], observed[1])

    def _set_targets(self, targets: NDArray, seen: NDArray | None = None) -> None:
        self.targets = targets
        self.own = np.zeros((self.x.shape[2], targets.shape[2]))
        self.drift = np.zeros((len(self.left_out), *self.own.shape))
        self.own_degrees = 0.0
        if self.shared and not self.invariant:
            found = _shared_own(self.x, targets, self.left_out, seen)
            self.own, self.drift, self.own_degrees = found
        self.y = targets if self.invariant else targets - self.x @ self.own

    def tied(self, in_rep: Representation, out_rep: Representation | None) -> Samples:
        """The same, with what is taken off x and y first in step with a group's representations.

        The mean over nodes, and the shared own-value map, become their averages over the group:
        the mean of a channel that changes its sign is 0, and the map leads between channels that
        change theirs together.

        Raises:
            SignalError: Standardised signals or missing entries.
        """
        if not self.is_plain:
            raise SignalError(
                "representations on channels need signals that are complete and as they come: fill "
                "them, and leave standardize, mask and missing out"
            )
        other = copy(self)
        other.__dict__.pop("products", None)
        both = _matrices(in_rep if out_rep is None else in_rep + out_rep)
        c = in_rep.num_channels
        inputs, outputs = both[:, :c, :c], both[:, c:, c:]
        if out_rep is None:
            outputs = np.ones((len(both), 1, 1))
        shifts = [np.mean(m @ v, 0) for m, v in zip((inputs, outputs), self.shift, strict=True)]
        other.shift = shifts[0], shifts[1]
        other.x = self.x + (self.shift[0] - other.shift[0])
        other.targets = self.targets + (self.shift[1] - other.shift[1])
        other.own, other.drift = (
            (inputs.transpose(0, 2, 1) @ v[..., None, :, :] @ outputs).mean(-3)
            for v in (self.own, self.drift)
        )
        other.y = other.targets if self.invariant else other.targets - other.x @ other.own
        return other

    def filled(self, predicted: NDArray) -> tuple[Samples, float]:
        """The same with predictions in place of missing targets, and how far these moved.

        Args:
            predicted: Predictions ``[s, n, c_out]``, in the units of ``y``.
        """
        seen = self.observed[1]
        assert seen is not None
        targets = np.where(seen, self.targets, predicted)
        moved = float(np.sqrt(((targets - self.targets) ** 2).sum() / (targets**2).sum()))
        other = copy(self)
        other.__dict__.pop("products", None)
        other._set_targets(targets)
        return other, moved

    def subset(self, rows: NDArray, block: int, gap: int) -> Samples:
        """Some of the signals, with everything that is estimated estimated from them alone."""
        other = Samples.__new__(Samples)
        other.shared = self.shared
        inputs, targets = (v[rows] for v in self.given)
        seen_x, seen_y = (None if v is None else v[rows] for v in self.observed)
        other._prepare(
            inputs, targets, (seen_x, seen_y), self.invariant, block, gap, self.standardize
        )
        return other

    @property
    def is_plain(self) -> bool:
        """Whether all entries were observed and none are standardised."""
        return self.standardize is None and all(seen is None for seen in self.observed)

    @property
    def is_given(self) -> bool:
        """Whether the inputs are complete and as they came, so that fits alone are estimated."""
        return self.standardize is None and self.observed[0] is None

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

    def moments(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
        """Products of values ``[s, m, c]``, summed over what each block leaves out.

        Returns:
            ``x x^T``, ``x y^T`` and ``|y|^2`` of each block, then the first two over all signals
            that are left out with it; without a gap these are the same arrays.
        """
        gram, cross = x[..., :, None] * x[..., None, :], x[..., :, None] * y[..., None, :]
        judged = self.left_out.judged
        first, second = judged(gram), judged(cross)
        square = judged((y * y).sum(-1))
        if not self.left_out.gap:
            return first, second, square, first, second
        return first, second, square, self.left_out.removed(gram), self.left_out.removed(cross)

    @cached_property
    def products(self) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
        """:meth:`moments` of every node."""
        return self.moments(self.x, self.y)


def _axes(values: Any) -> int:
    try:
        return int(np.ndim(values))
    except ValueError:  # a ragged list, which is refused where it is read
        return 0


def observed_samples(
    values: object, what: str, mask: object, missing: float | None
) -> tuple[NDArray, NDArray | None]:
    """Signals ``[s, n, c]`` with 0 in place of what is missing, and which entries were observed.

    Raises:
        SignalError: See :func:`gsym._validate.check_samples`; also a mask that does not fit, and
            signals of which nothing was observed.
    """
    if mask is None and missing is None:
        try:
            return check_samples(values, what), None
        except SignalError as error:
            if "must be finite" not in str(error):
                raise
            raise SignalError(
                f"{error}, or say which entries are missing with mask= or missing=float('nan')"
            ) from None
    array = as_samples(values, what).astype(np.float64)
    seen = np.ones(array.shape, dtype=bool)
    if missing is not None:
        seen = (array != missing) & ~np.isnan(array)
    if mask is not None:
        given = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        fits = given.shape in (array.shape, array.shape[:2], array.shape[1:2])
        if given.dtype != np.bool_ or not fits:
            raise SignalError(
                f"mask must be boolean {list(array.shape[:2])}, {list(array.shape)} for {what}, "
                f"or [{array.shape[1]}] for all signals alike, True where it was observed; got "
                f"{given.dtype} {list(given.shape)}; give (mask of x, mask of y) where they differ"
            )
        seen &= given if given.ndim == 3 else np.atleast_2d(given)[:, :, None]
    if not seen.any():
        raise SignalError(f"none of {what} was observed: nothing to learn")
    array = check_samples(np.where(seen, array, 0.0), what)
    return array, None if seen.all() else seen


def _node_means(values: NDArray, seen: NDArray | None) -> NDArray:
    """Mean of each node over the signals ``[n, c]``, of the others where it was never observed."""
    if seen is None:
        return values.mean(0)
    count, total = seen.sum(0), np.where(seen, values, 0.0).sum(0)
    overall = total.sum(0) / np.maximum(count.sum(0), 1)
    return np.where(count > 0, total / np.maximum(count, 1), overall)


def check_blocks(signals: int, block: int, gap: int) -> None:
    """Check that there are two blocks, and signals left to fit to outside each and its gap."""
    if block < 1 or signals < 2 * block:
        raise SignalError(
            f"leaving signals out needs at least two blocks; got {signals} signals in "
            f"blocks of {block}"
        )
    if gap < 0:
        raise SignalError(f"gap must not be negative; got {gap}")
    left_out = LeftOut(signals, block, gap)
    kept = signals - int((left_out.high - left_out.low).max())
    if kept < 1:
        raise SignalError(
            f"blocks of {block} with a gap of {gap} on either side leave none of {signals} signals "
            "to fit to; make block or gap smaller"
        )


def denoising(
    x: object, seed: int, *, mask: object = None, missing: float | None = None
) -> tuple[NDArray, NDArray]:
    """Signals plus white noise of their own variance per channel, and the signals themselves.

    Missing entries hold no signal: they are 0, and noise, in what is returned.

    Raises:
        SignalError: See :class:`Samples`.
    """
    data = Samples(x, x, mask=(mask, mask), missing=missing)
    clean, seen = data.x, data.observed[0]
    # Signals drawn from default_rng(seed) must not meet their own draws again as noise.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    noise = rng.standard_normal(clean.shape)
    share = 1.0 if seen is None else seen.mean((0, 1))
    return clean + noise * (clean - clean.mean(0)).std((0, 1)) / np.sqrt(share), clean


def as_regression(
    x: Any, y: Any, seed: int, mask: Any, missing: float | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Inputs, targets and the options that say which were observed; without targets, denoising."""
    if y is not None:
        return x, y, {"mask": mask, "missing": missing}
    seen = observed_samples(x, "x", mask, missing)[1]
    inputs, targets = denoising(x, seed, mask=mask, missing=missing)
    return inputs, targets, {"mask": None if seen is None else (seen, seen), "missing": None}


def select(table: NDArray) -> tuple[NDArray, int]:
    """The penalty that each block is judged under, and the best of all.

    A block is judged under the penalty that suits the *other* blocks, so it has no say in it.

    Args:
        table: Errors ``[penalties, blocks]``.

    Returns:
        Row of the table for each block, ``[blocks]``, and the row of the lowest sum.
    """
    total = table.sum(1)
    return (total[:, None] - table).argmin(0), int(total.argmin())


def _shared_own(
    x: NDArray, y: NDArray, left_out: LeftOut, seen: NDArray | None
) -> tuple[NDArray, NDArray, float]:
    """The shared own-value map, its change per left-out block, and its degrees of freedom.

    Args:
        x: Inputs ``[s, n, c_in]``.
        y: Targets ``[s, n, c_out]``.
        left_out: The blocks.
        seen: Which targets count; deviations are then from the mean of these nodes.

    Returns:
        ``[c_in, c_out]``, ``[blocks, c_in, c_out]``, and the trace of the hat matrix.
    """
    parts = [_deviations(x, y)]
    if seen is not None:
        channels = range(y.shape[2])
        parts = [_deviations(x, y[..., o : o + 1], seen[..., o, None]) for o in channels]
    scale = sum(float(np.trace(gram.sum(0))) for gram, _, _ in parts) / (len(parts) * x.shape[2])
    if scale <= 0:
        zero = np.zeros((x.shape[2], y.shape[2]))
        return zero, np.zeros((len(left_out), *zero.shape)), 0.0
    penalties, eye = scale * _SHARED_PENALTIES, np.eye(x.shape[2])
    table = np.zeros((len(penalties), len(left_out)))
    for gram, cross, square in parts:
        judged, judged_cross, judged_square = (left_out.judged(v) for v in (gram, cross, square))
        kept, kept_cross = (v.sum(0) - left_out.removed(v) for v in (gram, cross))
        for row, value in zip(table, penalties, strict=True):
            weight = np.linalg.solve(kept + value * eye, kept_cross)
            error = judged_square - 2 * (weight * judged_cross).sum((1, 2))
            row += np.maximum(error + (weight * (judged @ weight)).sum((1, 2)), 0.0)
    judged_by, chosen = select(table)
    own, without, degrees = [], [], 0.0
    for gram, cross, _ in parts:
        total = gram.sum(0)
        both = np.linalg.solve(total + penalties[chosen] * eye, np.hstack([cross.sum(0), total]))
        width = cross.shape[2]
        own.append(both[:, :width])
        degrees += float(np.trace(both[:, width:])) * width
        kept, kept_cross = (v.sum(0) - left_out.removed(v) for v in (gram, cross))
        without.append(np.linalg.solve(kept + penalties[judged_by, None, None] * eye, kept_cross))
    found = np.concatenate(own, axis=1)
    return found, np.concatenate(without, axis=2) - found, degrees


def _deviations(
    x: NDArray, y: NDArray, seen: NDArray | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """Products of the deviations from the mean of all nodes, for every signal."""
    if seen is None:
        x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    else:
        count = np.maximum(seen.sum(1, keepdims=True), 1)
        x, y = (
            np.where(seen, v - np.where(seen, v, 0.0).sum(1, keepdims=True) / count, 0.0)
            for v in (x, y)
        )
    turned = x.transpose(0, 2, 1)
    return turned @ x, turned @ y, (y * y).sum((1, 2))


def _matrices(rep: Representation) -> NDArray:
    """The channel matrices of all elements, each once, ``[m, c, c]``."""
    c, moves = rep.num_channels, rep.moves
    order = math.ceil(math.exp(rep.group.log_order()))
    listed = list_elements(signed_points(moves.images.numpy(), moves.signs.numpy()), order)
    assert listed is not None
    points = listed[0][:, ::2]
    made = np.zeros((len(points), c, c))
    every = np.arange(len(points))[:, None]
    made[every, points // 2, np.arange(c)] = 1 - 2 * (points % 2)
    return made
