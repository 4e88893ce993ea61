"""Which subgroup to use: score candidate groups on data, and say how sure the answer is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from gsym._validate import (
    GraphError,
    GroupError,
    SignalError,
    check_edge_index,
    check_edge_weight,
    check_whole,
    optional_module,
)
from gsym.coarsening.coarsen import Coarsening, Hierarchy, check_levels, swap_group
from gsym.coarsening.ridge import as_clusters, can_regress, fit_group
from gsym.coarsening.samples import Samples, denoising
from gsym.groups import ClusterGroup, Partition, PermutationGroup

# A hierarchy of more levels is scored on this many, evenly spaced in the logarithm of k, and then
# on a few between the neighbours of the best.
MAX_LEVELS = 24
REFINED_LEVELS = 8
# Fitted maps between clusters are kept for candidates of up to this many.
MAX_MATRIX = 512
CONFIDENCE = 0.95

Score = Callable[..., Any]


@dataclass(frozen=True, eq=False, repr=False)
class Candidate:
    """A group and how well its predictors do.

    Attributes:
        group: The group.
        partition: Its clusters; ``None`` for a general permutation group.
        score: Estimated risk, lower is better: squared error per number to predict, or what the
            scoring function returns.
        standard_error: Of the score, over signals (or folds).
        gap: Score less that of the best candidate, on what both were scored on.
        gap_error: Standard error of the gap, from paired differences; ``nan`` where unknown.
        bias: How much worse the best map in the commutant is than in that of the best candidate,
            0 where it is better; ``None`` with ``score=``.
        variance: What estimating the map from these signals costs; ``None`` with ``score=``.
            ``score = noise + bias + variance`` with the same noise for all candidates.
        matrix: Fitted map between cluster means, targets first, averaged over channels,
            ``[k, k]``; ``None`` above 512 clusters or with ``score=``.
        errors: Error of every left-out signal, block or fold, ``nan`` where not scored.
    """

    group: PermutationGroup
    partition: Partition | None
    score: float
    standard_error: float
    errors: NDArray
    gap: float = math.nan
    gap_error: float = math.nan
    bias: float | None = None
    variance: float | None = None
    matrix: NDArray | None = None

    @cached_property
    def num_clusters(self) -> int:
        """Number of clusters, or of node orbits where there are none."""
        if self.partition is not None:
            return self.partition.num_clusters
        return self.group.node_orbits().num_orbits

    @cached_property
    def commutant_dim(self) -> int:
        """Free weights of an equivariant linear map, per pair of channels."""
        return self.group.commutant_dim()

    def __repr__(self) -> str:
        return (
            f"Candidate({self.group}: {self.num_clusters} clusters, dim {self.commutant_dim:,}, "
            f"score {self.score:.4g} ± {self.standard_error:.2g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class GroupChoice:
    """What :func:`choose_group` returns; prints as a table.

    Attributes:
        candidates: Every candidate scored, fine to coarse (by falling ``commutant_dim``).
        best: The candidate of the lowest score.
        simplest: The candidate of the smallest ``commutant_dim`` whose gap to the best is at most
            one standard error of that gap.
        regret_bound: Upper bound, at 95 % confidence, on the risk of ``best`` less that of the
            truly best candidate, in units of the score; see :func:`choose_group`.
        criterion: What the score is.
        hierarchy: Where the candidates came from, or ``None``.
        edge_index: The graph, or ``None``.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate
    simplest: Candidate
    regret_bound: float
    criterion: str
    hierarchy: Hierarchy | None = None
    edge_index: Tensor | None = None

    @property
    def group(self) -> PermutationGroup:
        """The group of the best candidate."""
        return self.best.group

    @property
    def partition(self) -> Partition | None:
        """The clusters of the best candidate."""
        return self.best.partition

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A distinct name for each candidate."""
        seen: dict[str, int] = {}
        out = []
        for candidate in self.candidates:
            name = str(candidate.group)
            seen[name] = seen.get(name, 0) + 1
            out.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
        return tuple(out)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Score of each candidate by its label."""
        pairs = zip(self.labels, self.candidates, strict=True)
        return {label: candidate.score for label, candidate in pairs}

    def plot(self, ax: Any = None) -> Any:
        """Draw the scores with their error bands against the number of clusters.

        The wide band is the standard error of the score, which the candidates share for the most
        part; the bars are standard errors of the gap to the best, which is what decides.

        Args:
            ax: Matplotlib axes; new ones if ``None``.

        Returns:
            The axes.
        """
        pyplot = optional_module("matplotlib.pyplot", "matplotlib", "bench", "GroupChoice.plot")
        ax = pyplot.subplots(layout="constrained")[1] if ax is None else ax
        shown = [c for c in self.candidates if math.isfinite(c.score)]
        k = np.array([c.num_clusters for c in shown])
        score = np.array([c.score for c in shown])
        spread = np.nan_to_num([c.standard_error for c in shown])
        paired = np.nan_to_num([c.gap_error for c in shown])
        plain = np.array([getattr(c.group, "swaps", None) is None for c in shown])
        ax.fill_between(
            k[plain], (score - spread)[plain], (score + spread)[plain], alpha=0.15, linewidth=0
        )
        ax.plot(k[plain], score[plain], linewidth=1.2, zorder=2)
        for mask, marker in ((plain, "o"), (~plain, "D")):
            if mask.any():
                ax.errorbar(
                    k[mask], score[mask], paired[mask], fmt=marker, markersize=4, capsize=2,
                    label="with exchanges of clusters" if marker == "D" else "clusters",
                )  # fmt: skip
        for candidate, name, size in ((self.best, "best", 180), (self.simplest, "simplest", 90)):
            ax.scatter(
                candidate.num_clusters,
                candidate.score,
                s=size,
                facecolor="none",
                edgecolor="black",
                linewidth=1.4 if name == "best" else 0.8,
                label=f"{name}: {candidate.group}",
                zorder=5,
            )
        ax.set_xscale("log")
        ax.set_xlabel("clusters (left: S_n, right: trivial)")
        ax.set_ylabel(self.criterion)
        ax.legend(frameon=False, fontsize="small")
        return ax

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write the page that shows this choice; see :func:`gsym.coarsening.page.write_page`."""
        from gsym.coarsening.page import write_page

        return write_page(self, path, **options)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for label, c in zip(self.labels, self.candidates, strict=True):
            mark = "best" if c is self.best else "simplest" if c is self.simplest else ""
            gap = "" if c is self.best else f"{c.gap:+.3g} ± {c.gap_error:.2g}"
            yield (
                label,
                f"{c.num_clusters:,}",
                f"{c.commutant_dim:,}",
                f"{c.score:.5g} ± {c.standard_error:.2g}",
                gap,
                "" if c.bias is None else f"{c.bias:.3g}",
                "" if c.variance is None else f"{c.variance:.3g}",
                mark,
            )

    def _header(self) -> tuple[str, ...]:
        return ("group", "clusters", "dim", "score", "gap to best", "bias", "variance", "")

    def _footer(self) -> str:
        return (
            f"{self.criterion}; regret at most {self.regret_bound:.3g} "
            f"({CONFIDENCE:.0%} confidence)"
        )

    def __str__(self) -> str:
        rows = [self._header(), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i in (0, 7) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], self._footer()])

    def __rich__(self) -> Any:
        rich = optional_module("rich.table", "rich", "cli", "a coloured table")
        table = rich.Table(*self._header()[:7], caption=self._footer())
        for column in table.columns[1:]:
            column.justify = "right"
        for *cells, mark in self._rows():
            style = {"best": "bold green", "simplest": "cyan"}.get(mark)
            table.add_row(*cells, style=style)
        return table

    def __repr__(self) -> str:
        return (
            f"GroupChoice({self.best.group} of {len(self.candidates)} candidates, "
            f"score {self.best.score:.4g} ± {self.best.standard_error:.2g})"
        )


def choose_group(
    candidates: Hierarchy | Iterable[PermutationGroup | Partition],
    x: Any,
    y: Any = None,
    *,
    score: Score | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    swaps: str | None = "auto",
    levels: Sequence[int] | None = None,
    block: int = 1,
    folds: int = 5,
    seed: int = 0,
) -> GroupChoice:
    r"""Choose the group whose equivariant predictors have the smallest risk.

    Without ``score`` nothing is trained: the risk of each group is the left-out error of ridge
    regression in its commutant (:mod:`gsym.coarsening.ridge`), in closed form, also where there
    are fewer signals than nodes. A nonlinear equivariant network is judged by its linear part,
    which shares the symmetry. With ``score`` every group is cross-validated by a function of
    yours, with successive halving: after each fold the better half of the candidates goes on.

    The regret bound is :math:`\max_g [\hat R(\hat g) - \hat R(g) + c\, se_g]`, not below 0, with
    the paired standard error :math:`se_g` and the t quantile c at level 0.95 shared among all
    ordered pairs of candidates (Bonferroni), because the winner is one of them by chance. It takes
    signals as independent and left-out errors as nearly so. It says nothing of candidates that
    halving left with fewer than two folds, nor of groups that were not offered. Where the
    candidates themselves were fitted to the same signals (``method="ward"`` or ``"risk"`` on
    signals), scores of fitted clusters are somewhat too good.

    Args:
        candidates: A hierarchy, or groups and partitions. Of a hierarchy of more than 24 levels,
            24 are scored, evenly spaced in the logarithm of k and both ends among them, and then
            up to 8 on either side of the best (not with ``score``).
        x: Inputs ``[samples, n, c_in]`` or ``[samples, n]``, training data only.
        y: Targets ``[samples, n, c_out]`` or ``[samples, n]``, or ``[samples]`` for one number
            per signal. ``None``: denoising, to recover x from x plus white noise of the same
            variance. The best linear denoiser commutes with a group exactly when the covariance
            of the signals does, so this asks for the symmetry of the signals, not of a task.
        score: ``score(group, x_train, y_train, x_val, y_val) -> float``, lower is better, or
            ``score(group)`` returning an object with ``fit(x, y)`` and ``predict(x)``, judged by
            squared error. Data arrive as they were given, indexed along samples. ``nan`` counts
            as infinite.
        edge_index: Graph ``[2, e]`` for swaps and for the page; by default the hierarchy's.
        edge_weight: Weights ``[e]`` of ``edge_index``, which swaps have to keep; 1 where ``None``.
        swaps: ``"auto"``: where clusters of equal size can be exchanged without changing the
            coarse graph, also offer the group with the exchanges, unless they are too many to
            regress with. ``None``: never.
        levels: Levels of the hierarchy to score instead.
        block: Consecutive signals that are left out together, with ``score`` too, whose folds
            are then made of whole blocks. Give the number of windows that share a time step where
            signals are overlapping windows.
        folds: Folds of ``score``.
        seed: Seeds folds and the noise of denoising.

    Returns:
        The choice.

    Raises:
        SignalError: Different numbers of samples or nodes, NaN (the nodes are named), one signal
            only, constant signals.
        GroupError: A candidate of another number of nodes.
        GraphError: A graph that does not fit, or weights without a graph.
        ClusteringError: Levels that the hierarchy does not have.
        ValueError: No candidates, a scoring function of neither form, or numbers that are not
            whole or out of range.

    Cost:
        See :func:`gsym.coarsening.ridge.commutant_ridge`: about a second for all levels of 784
        nodes and 100 signals.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> x = torch.randn(80, 6, generator=rng)
        >>> noise = 0.3 * torch.randn(80, 6, generator=rng)
        >>> y = x * torch.tensor([1.0, 1, 1, -1, -1, -1]) + noise
        >>> p = Partition.from_labels([0, 0, 0, 1, 1, 1])
        >>> choose_group([Partition.singletons(6), p, Partition.single(6)], x, y).group
        ClusterGroup((S_3)^2 on 6 nodes)

    Reference:
        One standard error: Breiman et al. 1984. Successive halving: Jamieson and Talwalkar, arXiv
        1502.07943. The criterion: :mod:`gsym.coarsening.ridge`.
    """
    if swaps not in ("auto", None):
        raise ValueError(f'swaps must be "auto" or None; got {swaps!r}')
    if check_whole(folds, "folds") < 2:
        raise ValueError(f"folds must be at least 2; got {folds}")
    hierarchy = candidates if isinstance(candidates, Hierarchy) else None
    if check_whole(seed, "seed") < 0:
        raise ValueError(f"seed must not be negative; got {seed}")
    if edge_weight is not None and edge_index is None:
        raise GraphError("edge_weight came without edge_index; pass both")
    if hierarchy is not None and edge_index is None:
        edge_index, edge_weight = hierarchy.edge_index, hierarchy.edge_weight
    groups = _groups(candidates, levels)
    inputs, targets = (x, y) if y is not None else denoising(x, seed)
    data = Samples(inputs, targets, block=block)
    _check_candidates(groups, data, edge_index, edge_weight)

    def with_swaps(plain: Iterable[PermutationGroup]) -> list[PermutationGroup]:
        out = []
        for group in plain:
            out.append(group)
            if swaps == "auto" and edge_index is not None and type(group) is ClusterGroup:
                exchange = None if group.swaps else _swaps(group.partition, edge_index, edge_weight)
                if exchange is not None and can_regress(exchange, data.x.shape[2]):
                    out.append(exchange)
        return out

    if score is None:
        what = "left-out squared error of ridge in the commutant" + (
            "" if y is not None else ", denoising"
        )
        found = [_risk(group, data) for group in with_swaps(groups)]
        if hierarchy is not None and levels is None:
            extra = _between(hierarchy.levels, found)
            found += [_risk(g, data) for g in with_swaps(ClusterGroup(hierarchy[k]) for k in extra)]
        found = _attribute(found)
    else:
        what = f"{getattr(score, '__name__', type(score).__name__)}, {folds}-fold"
        found = _cross_validate(with_swaps(groups), inputs, targets, score, folds, block, seed)
    return _judge(found, what, hierarchy, edge_index)


def _groups(
    candidates: Hierarchy | Iterable[PermutationGroup | Partition], levels: Sequence[int] | None
) -> list[PermutationGroup]:
    if isinstance(candidates, Hierarchy):
        chosen = spread_levels(candidates.levels, MAX_LEVELS)
        if levels is not None:
            chosen = check_levels(levels, candidates.num_nodes)
        return [ClusterGroup(candidates[k]) for k in chosen]
    if levels is not None:
        raise ValueError("levels= chooses from a Hierarchy; leave it out with a list of candidates")
    if isinstance(candidates, PermutationGroup | Partition) or not isinstance(candidates, Iterable):
        raise TypeError(
            "candidates must be a Hierarchy or a list of groups and partitions; got "
            f"{type(candidates).__name__}; put a single one in a list"
        )
    groups = []
    for number, candidate in enumerate(candidates):
        if not isinstance(candidate, PermutationGroup | Partition):
            raise TypeError(
                f"candidate {number} must be a Partition or a PermutationGroup; "
                f"got {type(candidate).__name__}"
            )
        groups.append(ClusterGroup(candidate) if isinstance(candidate, Partition) else candidate)
    return groups


def _check_candidates(
    groups: Sequence[PermutationGroup],
    data: Samples,
    edge_index: Tensor | None,
    edge_weight: Tensor | None,
) -> None:
    if not groups:
        raise ValueError("choose_group needs at least one candidate; got none")
    for number, group in enumerate(groups):
        if group.num_nodes != data.num_nodes:
            raise GroupError(
                f"candidate {number}, {group}, acts on {group.num_nodes} nodes but x has "
                f"{data.num_nodes}"
            )
    if edge_index is not None:
        check_edge_index(edge_index, data.num_nodes)
        check_edge_weight(edge_weight, edge_index.size(1))


def spread_levels(levels: Sequence[int], count: int) -> list[int]:
    """Up to ``count`` of the levels, evenly spaced in the logarithm, both ends included."""
    if len(levels) <= count:
        return list(levels)
    ordered = np.array(sorted(levels))
    wanted = np.geomspace(ordered[0], ordered[-1], count)
    nearest = np.abs(np.log(ordered)[None] - np.log(wanted)[:, None]).argmin(1)
    return sorted({int(ordered[i]) for i in nearest}, reverse=True)


def _between(levels: Sequence[int], found: Sequence[Candidate]) -> list[int]:
    """Levels not scored yet between the best candidate and its neighbours."""
    scored = sorted({c.num_clusters for c in found})
    best = scored.index(min(found, key=lambda c: c.score).num_clusters)
    out: list[int] = []
    for low, high in ((best - 1, best), (best, best + 1)):
        if low >= 0 and high < len(scored):
            inside = [k for k in levels if scored[low] < k < scored[high]]
            out += spread_levels(inside, REFINED_LEVELS) if inside else []
    return out


def _swaps(
    partition: Partition, edge_index: Tensor, edge_weight: Tensor | None
) -> ClusterGroup | None:
    """The group with all exchanges of clusters that keep the coarse graph, if there are any."""
    if partition.num_clusters < 2 or len(set(partition.sizes)) == partition.num_clusters:
        return None
    swaps = swap_group(Coarsening(partition, edge_index, edge_weight))
    return None if swaps is None else ClusterGroup(partition, swaps=swaps)


def _risk(group: PermutationGroup, data: Samples) -> Candidate:
    """Score one group by the left-out error of its ridge regression."""
    fit = fit_group(data, group)
    k = as_clusters(group).partition.num_clusters
    return Candidate(
        group=group,
        partition=group.partition if isinstance(group, ClusterGroup) else None,
        score=fit.risk,
        standard_error=_standard_error(fit.errors),
        errors=fit.errors,
        bias=fit.noise,  # see _attribute
        matrix=fit.matrix if k <= MAX_MATRIX and not data.invariant else None,
    )


def _attribute(found: Sequence[Candidate]) -> list[Candidate]:
    """Split every score into noise, bias and variance, once all noise estimates are known.

    The noise is that of the best candidate. The smallest estimate of all would be that of a fit
    with as many weights as data, whose few residual degrees of freedom say nothing.
    """
    noise = min(found, key=lambda c: c.score).bias or 0.0
    biases = [max((c.bias or 0.0) - noise, 0.0) for c in found]
    return [
        replace(c, bias=bias, variance=c.score - noise - bias)
        for c, bias in zip(found, biases, strict=True)
    ]


def _standard_error(values: NDArray) -> float:
    known = values[~np.isnan(values)]
    if len(known) < 2 or not np.isfinite(known).all():
        return math.nan
    return float(known.std(ddof=1) / math.sqrt(len(known)))


def _cross_validate(
    groups: Sequence[PermutationGroup],
    x: Any,
    y: Any,
    score: Score,
    folds: int,
    block: int,
    seed: int,
) -> list[Candidate]:
    """K-fold scores with successive halving; blocks of consecutive signals stay together."""
    owner = np.arange(len(x)) // block
    blocks = int(owner[-1]) + 1
    if blocks < folds:
        of = "signals" if block == 1 else f"blocks of {block} signals"
        raise SignalError(f"{folds} folds need at least as many {of}; got {blocks}")
    runs = _scorer(score)
    parts = np.array_split(np.random.default_rng(seed).permutation(blocks), folds)
    errors: list[NDArray | None] = [None] * len(groups)
    alive = list(range(len(groups)))
    for fold, held_out in enumerate(parts):
        inside = np.isin(owner, held_out)
        validation = np.flatnonzero(inside)
        split = [_take(v, rows) for rows in (np.flatnonzero(~inside), validation) for v in (x, y)]
        starts = np.flatnonzero(np.diff(owner[validation], prepend=-1))
        per_block = np.diff(np.append(starts, len(validation)))
        for index in alive:
            value = np.atleast_1d(np.asarray(runs(groups[index], *split), dtype=float))
            single = len(value) == 1
            known = errors[index]
            if known is None:
                known = errors[index] = np.full(folds if single else blocks, np.nan)
            value = np.where(np.isnan(value), np.inf, value)
            if single:
                known[fold] = value[0]
            else:
                known[np.sort(held_out)] = np.add.reduceat(value, starts) / per_block
        means = {index: float(np.nanmean(errors[index])) for index in alive}  # type: ignore[arg-type]
        keep = max(2, -(-len(alive) // 2))
        alive = sorted(sorted(alive, key=lambda i: means[i])[:keep])
    if not any(math.isfinite(value) for value in means.values()):
        raise ValueError("the scoring function returned no finite number for any candidate")
    out = []
    for group, known in zip(groups, errors, strict=True):
        assert known is not None
        out.append(
            Candidate(
                group=group,
                partition=group.partition if isinstance(group, ClusterGroup) else None,
                score=float(np.nanmean(known)),
                standard_error=_standard_error(known),
                errors=known,
            )
        )
    return out


def _scorer(score: Score) -> Callable[..., Any]:
    """Either form of a scoring function as ``(group, x, y, x_val, y_val) -> error or errors``."""
    if not callable(score):
        raise ValueError(
            "score must be a function (group, x_train, y_train, x_val, y_val) -> float, or "
            f"(group) -> object with fit and predict; got {type(score).__name__}"
        )
    if _takes(score, 5):
        return score
    if not _takes(score, 1):
        raise ValueError(
            f"score must take (group, x_train, y_train, x_val, y_val) or (group); got "
            f"{getattr(score, '__name__', score)}{inspect.signature(score)}"
        )

    def fitted(group: PermutationGroup, x: Any, y: Any, x_val: Any, y_val: Any) -> NDArray:
        model = score(group)
        if not (hasattr(model, "fit") and hasattr(model, "predict")):
            raise ValueError(
                "score(group) must return an object with fit and predict; got "
                f"{type(model).__name__}"
            )
        model.fit(x, y)
        with torch.no_grad():
            predicted, wanted = np.asarray(model.predict(x_val)), np.asarray(y_val)
        if predicted.shape != wanted.shape:
            raise SignalError(
                f"predict returned shape {list(predicted.shape)} for targets of shape "
                f"{list(wanted.shape)}"
            )
        return ((predicted - wanted) ** 2).reshape(len(wanted), -1).mean(1)

    return fitted


def _takes(function: Score, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _take(values: Any, rows: NDArray) -> Any:
    if isinstance(values, Tensor):
        return values[torch.from_numpy(rows)]
    return np.asarray(values)[rows]


def _judge(
    found: Sequence[Candidate],
    criterion: str,
    hierarchy: Hierarchy | None,
    edge_index: Tensor | None,
) -> GroupChoice:
    """Compare all candidates with the best one, on what both were scored on."""
    ordered = sorted(found, key=lambda c: (-c.commutant_dim, -c.num_clusters))
    most = max(int((~np.isnan(c.errors)).sum()) for c in ordered)
    finalists = [c for c in ordered if int((~np.isnan(c.errors)).sum()) == most]
    winner = min(finalists, key=lambda c: (c.score, c.commutant_dim))
    judged, bounds = [], [0.0]
    pairs = max(len(ordered) * (len(ordered) - 1), 1)
    for candidate in ordered:
        both = ~np.isnan(candidate.errors) & ~np.isnan(winner.errors)
        with np.errstate(invalid="ignore"):
            paired = (candidate.errors - winner.errors)[both]
        gap, error = float(paired.mean()), _standard_error(paired)
        if candidate is winner:
            gap, error = 0.0, 0.0
        elif math.isfinite(error):
            # Quantile of Student's t; scipy.stats, which has it too, takes a second to import.
            quantile = stdtrit(len(paired) - 1, 1 - (1 - CONFIDENCE) / pairs)
            bounds.append(-gap + float(quantile) * error)
        judged.append(replace(candidate, gap=gap, gap_error=error))
    best = judged[ordered.index(winner)]
    within = [c for c in judged if c is best or c.gap <= c.gap_error]
    simplest = min(within, key=lambda c: (c.commutant_dim, c.score))
    return GroupChoice(tuple(judged), best, simplest, max(bounds), criterion, hierarchy, edge_index)
