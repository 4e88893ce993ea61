"""What is often wrong with signals and graphs that people bring, found before a choice is made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gsym._validate import warn
from gsym.errors import GraphError, SignalError
from gsym.risk.samples import Samples

# More nodes without an edge than this share, and the graph is not one of these signals.
_ISOLATED = 1 / 3
# Baselines of nodes that differ by more standard deviations than this decide the choice.
_BASELINE = 0.5
# A value that stands for "missing" comes this often, and so many deviations off all others.
_REPEATED, _OFF = 1e-3, 4.0
_SHUFFLES = 99
_MOST_NODES = 4000


def check_orientation(x: NDArray, edge_index: Tensor) -> None:
    """Stop where the graph belongs to another axis of the signals ``[s, n, c]``.

    Raises:
        GraphError: More than a third of the nodes have no edge.
        SignalError: There are as many signals as nodes, and the graph fits the signals better.

    Warns:
        UserWarning: Some nodes have no edge.
    """
    s, n = x.shape[:2]
    ends = edge_index.cpu().numpy()
    ends = ends[:, ends[0] != ends[1]]
    degree = np.bincount(ends.reshape(-1), minlength=n)
    alone = np.flatnonzero(degree == 0)
    if ends.size and len(alone) > _ISOLATED * n:
        turned = ""
        if int(ends.max()) < s:
            turned = (
                f"; the graph would fit {s} nodes, so x may be turned by 90 degrees: give "
                "[samples, nodes]"
            )
        raise GraphError(
            f"{len(alone)} of {n} nodes have no edge, so the graph cannot be one of these signals"
            f"{turned}; otherwise leave those nodes out, or the graph"
        )
    if ends.size and alone.size:
        shown = ", ".join(map(str, alone[:5])) + (", ..." if alone.size > 5 else "")
        warn(
            f"{alone.size} of {n} nodes have no edge ({shown}): the graph says nothing of them; "
            "leave them out, or join them to their nearest nodes"
        )
    if s != n or not ends.size or n > _MOST_NODES:
        return
    nodes, signals = _fit(x.transpose(1, 0, 2), ends), _fit(x, ends)
    if signals > 4 and signals > nodes + 3:
        raise SignalError(
            "neighbours in the graph are alike along the axis of the samples and not along that of "
            f"the nodes (z = {signals:.1f} against {nodes:.1f}): x seems to be turned by 90 "
            "degrees; give [samples, nodes], or leave edge_index out if the axes are right"
        )


def warn_distances(x: NDArray, edge_index: Tensor, edge_weight: Tensor) -> None:
    """Warn where neighbours are the less alike the larger their weight, as with distances."""
    ends = edge_index.cpu().numpy()
    keep = ends[0] != ends[1]
    pairs, place = np.unique(np.sort(ends[:, keep], axis=0), axis=1, return_index=True)
    weight = edge_weight.detach().cpu().double().numpy()[keep][place]
    if pairs.shape[1] < 20 or np.ptp(weight) == 0 or x.shape[1] > _MOST_NODES:
        return
    likeness = _correlation(x.transpose(1, 0, 2))[pairs[0], pairs[1]]
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (weight, likeness)]
    found = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    if found < -0.1 and found * np.sqrt(len(weight) - 1) < -3.3:
        warn(
            "the larger the weight of an edge, the less alike the signals at its ends (rank "
            f"correlation {found:.2f}): the weights look like distances; turn them into "
            "similarities, as by torch.exp(-((edge_weight / edge_weight.std()) ** 2))"
        )


def warn_values(data: Samples, length: int) -> None:
    """Warn of values that seem to mean "missing", and of baselines of single nodes.

    Args:
        data: The signals.
        length: Consecutive signals that are worth one.
    """
    for what, values, seen in zip(("x", "y"), data.given, data.observed, strict=True):
        _warn_missing(values if seen is None else values[seen], what)
    if data.standardize is not None or data.num_signals < 5:
        return
    for what, values in (("x", data.x), ("y", data.targets)):
        if values.shape[1] < 3:
            continue
        within = values.var(0).mean(0)
        chance = within * min(length / data.num_signals, 1.0)
        between = np.maximum(values.mean(0).var(0, ddof=1) - chance, 0.0)
        spread = float(np.sqrt(between / np.where(within > 0, within, np.inf)).max())
        if spread > _BASELINE:
            warn(
                f"the means of the nodes of {what} differ by {spread:.1f} standard deviations of "
                "their signals: exchanging nodes would exchange these baselines, and the choice "
                'turns on them; take them off with standardize="node" unless they belong to the '
                "symmetry you look for"
            )


def _warn_missing(values: NDArray, what: str) -> None:
    flat = values.reshape(-1)
    lowest, highest = float(flat.min()), float(flat.max())
    for value in dict.fromkeys((0.0, lowest, highest)):
        same = flat == value
        count = int(same.sum())
        if count < max(3, _REPEATED * flat.size) or count > flat.size / 2:
            continue
        low, middle, high = np.quantile(flat[~same], (0.25, 0.5, 0.75))
        nearest = float(np.abs(flat[~same] - value).min())
        # The quarters of a normal distribution are 1.35 deviations apart.
        deviation = (high - low) / 1.35
        if deviation > 0 and abs(value - middle) > _OFF * deviation and nearest > 0.01 * deviation:
            warn(
                f"{count} numbers of {what} ({count / flat.size:.1%}) are exactly {value:g}, far "
                f"from all others (half of them between {low:.3g} and {high:.3g}): if that means "
                f"missing, pass missing={value:g}"
            )


def _correlation(rows: NDArray) -> NDArray:
    """Correlation of rows ``[m, ...]``, 0 for constant ones."""
    flat = rows - rows.mean(1, keepdims=True)
    flat = flat.reshape(len(flat), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat / np.where(length > 0, length, np.inf)
    product: NDArray = flat @ flat.T
    return product


def _fit(rows: NDArray, ends: NDArray) -> float:
    """How much more alike neighbours are than nodes in random order, in standard deviations."""
    likeness = _correlation(rows)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(rows))[ends] for _ in range(_SHUFFLES)]
    chance = [likeness[order[0], order[1]].mean() for order in orders]
    own = likeness[ends[0], ends[1]].mean()
    return float((own - np.mean(chance)) / (np.std(chance) + 1e-12))
