"""Which subgroup to use: score candidate groups on data, and say how sure the answer is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from gsym._graphs import Graph, as_graph
from gsym._validate import check_whole, warn
from gsym.choosing.choice import Candidate, GroupChoice, Task, Words, judge
from gsym.choosing.criteria import CRITERIA, ChoiceData, Criterion, Entry, group_of
from gsym.choosing.criteria.cross_validation import CrossValidation, Score, check_folds
from gsym.choosing.diagnosis import check_orientation, warn_distances, warn_values
from gsym.choosing.signs import SIGNS, best_signs, is_small, judge_signs, small_groups
from gsym.choosing.soft import check_soft, soften
from gsym.coarsening.coarsening import Coarsening, swap_group
from gsym.coarsening.hierarchy import Hierarchy, check_levels
from gsym.errors import GraphError, GroupError
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.risk.dependence import Dependence, serial_dependence
from gsym.risk.ridge import Reps, can_regress, check_reps, residuals
from gsym.risk.samples import Samples, as_regression

# A hierarchy of more levels is scored on this many, evenly spaced in the logarithm of k, and then
# on a few between the neighbours of the best.
MAX_LEVELS = 24
REFINED_LEVELS = 8


def choose_group(
    candidates: Hierarchy | Iterable[PermutationGroup | Partition | Reps],
    x: Any,
    y: Any = None,
    *,
    signs: Literal["auto"] | None = None,
    score: Score | None = None,
    criterion: str | Criterion = "ridge",
    edge_index: Any = None,
    edge_weight: Tensor | None = None,
    swaps: str | None = "auto",
    levels: Sequence[int] | None = None,
    block: int | Literal["auto"] = "auto",
    gap: int | Literal["auto"] = 0,
    standardize: Literal["node"] | None = None,
    mask: Any = None,
    missing: float | None = None,
    folds: int = 5,
    shared: bool = True,
    soft: bool = False,
    seed: int = 0,
) -> GroupChoice:
    r"""Choose the group whose equivariant predictors have the smallest risk.

    By default nothing is trained: the criterion ``"ridge"`` takes as risk of each group the
    leave-one-out error of ridge regression in its commutant (:mod:`gsym.risk.ridge`), in closed
    form, also where there are fewer signals than nodes. A nonlinear equivariant network is judged
    by its linear part, which shares the symmetry. With ``score`` every group is cross-validated by
    a function of yours, with successive halving: after each fold the better half of the candidates
    goes on. Other criteria come in by ``criterion``.

    The regret bound is :math:`\max_g [\hat R(\hat g) - \hat R(g) + c\, se_g]`, not below 0, with
    the paired standard error :math:`se_g` and the t quantile c at level 0.95 shared among all
    ordered pairs of candidates (Bonferroni), because the winner is one of them by chance. With at
    most 30 blocks the standard error is not below the jackknife's, and where errors of consecutive
    signals depend on each other it counts the blocks as the smaller number that they are worth. It
    does not cover candidates dropped by successive halving before the second fold, nor groups that
    were not offered, nor signals of another time or place than these are a sample of. Where the
    candidates themselves were fitted to the same signals (``method="ward"`` or ``"risk"`` on
    signals), scores of fitted clusters are somewhat too good.

    **Signs.** A mirror exchanges nodes *and* turns what points to the side. With ``signs="auto"``
    every pattern of signs of the channels is judged for every small group, and without symmetry, by
    the leave-one-out error of ridge on monomials of degree 2 (:mod:`gsym.risk.monomials`), as the
    mean over signals of the root mean squared error. This is the choice where all candidates are
    small. Where some are large, the best pattern of each small group joins the candidates of
    ``criterion``, and the choice of signs stands in ``GroupChoice.signs``. On CMU poses the true
    signs were found from 50 poses on (``gsym-bench signs``); signals that are no fair
    sample of those to come mislead this choice as any other.

    Args:
        candidates: A hierarchy, or groups, partitions and pairs ``(in_rep, out_rep)`` of
            representations, which say how a group moves the channels of x and y. Of a hierarchy of
            more than 24 levels, 24 are scored, evenly spaced in the logarithm of k and both ends
            among them, and then, with ``"ridge"``, up to 8 on either side of the best.
        x: Inputs ``[samples, n, c_in]`` or ``[samples, n]``, training data only.
        y: Targets ``[samples, n, c_out]`` or ``[samples, n]``, or ``[samples]`` for one number
            per signal. ``None``: denoising, to recover x from x plus white noise of the same
            variance. The best linear denoiser commutes with a group exactly when the covariance
            of the signals does, so this asks for the symmetry of the signals, not of a task.
        signs: ``"auto"``: for every candidate of up to 64 elements, and for exchanges among the
            automorphisms of ``edge_index``, find which channels of x and y change their sign with
            it; see below.
        score: ``score(group, x_train, y_train, x_val, y_val) -> float``, lower is better, or
            ``score(group)`` returning an object with ``fit(x, y)`` and ``predict(x)``, judged by
            squared error. ``group`` is the pair where the candidate is one. Data arrive as they
            were given, indexed along samples. ``nan`` counts
            as infinite.
        criterion: How candidates are judged: a name of ``gsym.choosing.CRITERIA``, or an object
            of :class:`gsym.choosing.Criterion`.
        edge_index: Graph for swaps and for the page, ``[2, e]`` or what :func:`gsym.as_graph`
            reads; by default the hierarchy's.
        edge_weight: Weights ``[e]`` of ``edge_index``, which swaps have to keep; 1 where ``None``.
        swaps: ``"auto"``: where clusters of equal size can be exchanged without changing the
            coarse graph, also offer the group with the exchanges, unless they are too many to
            regress with. ``None``: never.
        levels: Levels of the hierarchy to score instead.
        block: Consecutive signals that are left out together, with ``score`` too, whose folds
            are then made of whole blocks. ``"auto"``: as many as the errors of consecutive signals
            are correlated for, if they are by more than chance, and 1 otherwise. Give the number
            of windows that share a time step where signals are overlapping windows, or the signals
            of one day where they come from several. A predictor of yours belongs to the choice if
            its penalty is chosen with the ``block`` and ``gap`` of the choice, too.
        gap: Signals on either side of a block that are left out of the fit with it; ``"auto"``, and
            0 with blocks found, leave out as many as errors are correlated for.
        standardize: ``"node"``: take every node's mean over the signals off its inputs and targets
            and divide by its standard deviation, both from the signals that are fitted to; scores
            are then in these units. ``None``: as they are.
        mask: Which entries were observed, boolean ``[samples, n]``, ``[samples, n, c]``, or ``[n]``
            for all signals alike, or one for x and one for y as a tuple: ``(None, mask)`` says
            which targets count. Others are left out of fit and error, in closed form where
            inputs are complete and as they come; missing inputs are replaced by the mean of their
            node in the signals that are fitted to.
        missing: Entries of this value, and NaN, were not observed.
        folds: Folds of ``score``.
        shared: With ``"ridge"``: draw every fit towards one own-value map that all nodes share,
            fitted first. ``False``: towards 0, which is better where a node's own value says little
            of its target, as in holes of images.
        soft: Also mix the groups, up to 8 levels with the ends and the best among them:
            ``GroupChoice.soft`` has the weight of each level, the left-out error of the mixture
            beside the best group and both ends, and from how many signals a finer group pays. With
            targets the mixture is :class:`gsym.risk.mixture.RidgeMixture`, without them
            :class:`gsym.SymmetricCovariance`. Needs ``criterion="ridge"``.
        seed: Seeds folds and the noise of denoising.

    Returns:
        The choice.

    Raises:
        SignalError: Different numbers of samples or nodes, NaN (the nodes are named), one signal
            only, constant signals; with ``signs``, signals that are missing or standardised.
        TypeError: A candidate that is no group, partition or pair of representations.
        GroupError: A candidate of another number of nodes or of representations that do not fit
            the signals; more swaps than can be regressed with; with ``signs``, no small group.
        GraphError: A graph that does not fit, weights without a graph, or a graph in which more
            than a third of the nodes have no edge.
        ClusteringError: Levels that the hierarchy does not have.
        ValueError: No candidates, a scoring function of neither form, options that exclude each
            other, or numbers that are not whole or out of range.

    Warns:
        UserWarning: Errors of consecutive signals that depend on each other beyond a block given;
            a series that is short against the time in which errors change, or whose halves differ;
            baselines of nodes; values that seem to mean "missing"; weights that seem to be
            distances; nodes without an edge. The message names the remedy.

    Cost:
        See :func:`gsym.risk.ridge.commutant_ridge`: about a second for all levels of 784
        nodes and 100 signals. Missing inputs and ``standardize`` take ten fits instead of one;
        targets that do not count take a decomposition for every cluster. ``soft`` fits its levels
        again, and to eight halves of the signals.

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
        1502.07943. The criterion: :mod:`gsym.risk.ridge`.
    """
    if swaps not in ("auto", None):
        raise ValueError(f'swaps must be "auto" or None; got {swaps!r}')
    if signs is not None and not (isinstance(signs, str) and signs == "auto"):
        raise ValueError(
            f'signs must be "auto" or None; got {signs!r:.80}; signs that are known go into '
            "Representation.from_signs, and a pair of these into the candidates"
        )
    judged_by = _criterion(criterion, score, folds)
    if soft and (judged_by is not CRITERIA["ridge"] or signs is not None):
        raise ValueError(
            "soft=True mixes fits of the criterion ridge; leave score, criterion and signs out; "
            "signs that are known go into the candidates as pairs of representations"
        )
    if not shared and judged_by is not CRITERIA["ridge"]:
        raise ValueError("shared=False is of the criterion ridge; leave score and criterion out")
    if signs is not None and judged_by is not CRITERIA["ridge"]:
        raise ValueError('signs="auto" comes with its own criterion; leave score and criterion out')
    hierarchy = candidates if isinstance(candidates, Hierarchy) else None
    if check_whole(seed, "seed") < 0:
        raise ValueError(f"seed must not be negative; got {seed}")
    if edge_weight is not None and edge_index is None:
        raise GraphError("edge_weight came without edge_index; pass both")
    if hierarchy is not None and edge_index is None:
        edge_index, edge_weight = hierarchy.edge_index, hierarchy.edge_weight
    groups = _groups(candidates, levels)
    if not judged_by.reads_samples and any(v is not None for v in (standardize, mask, missing)):
        raise ValueError(
            "score= sees the data as they come: standardize and fill them beforehand, and leave "
            "standardize, mask and missing out"
        )
    inputs, targets, observed = as_regression(x, y, seed, mask, missing)
    samples = Samples(
        inputs,
        targets,
        block=1 if block == "auto" else block,
        gap=0 if gap == "auto" else gap,
        standardize=standardize,
        shared=shared,
        **observed,
    )
    _check_candidates(groups, samples)
    if soft:
        check_soft(groups, samples)
    if edge_index is not None:
        graph = _read_graph(edge_index, edge_weight, samples)
        edge_index, edge_weight = graph.edge_index, graph.edge_weight
    dependence = serial_dependence(residuals(samples))
    samples = _leave_out(samples, block, gap, dependence)
    warn_values(samples, dependence.length if dependence.found else 1)
    data = ChoiceData(inputs, targets, samples, denoising=y is None, seed=seed)

    left_out = samples.left_out
    task = Task(
        samples.x.shape[2],
        0 if samples.invariant else samples.targets.shape[2],
        denoising=y is None,
        standardize=standardize,
        gap=left_out.gap,
    )

    def chosen(found: Sequence[Candidate], what: str, words: Words) -> GroupChoice:
        choice = judge(
            found, what, hierarchy, edge_index, left_out.block, left_out.gap, dependence, words
        )
        return replace(choice, task=task)

    signed = None
    if signs is not None:
        small = small_groups(groups, edge_index, edge_weight, samples.num_nodes)
        signed = chosen(judge_signs(small, data), SIGNS, Words("error"))
        if all(is_small(entry) for entry in groups):
            return signed
        groups += [pair for pair in best_signs(signed) if pair not in groups]

    def with_swaps(plain: Iterable[Entry]) -> list[Entry]:
        out: list[Entry] = []
        for group in plain:
            out.append(group)
            if swaps == "auto" and edge_index is not None and type(group) is ClusterGroup:
                exchange = None if group.swaps else _swaps(group.partition, edge_index, edge_weight)
                if exchange is not None and can_regress(exchange, samples.x.shape[2]):
                    out.append(exchange)
        return out

    found = _evaluate(judged_by, with_swaps(groups), data)
    if judged_by.refines and hierarchy is not None and levels is None:
        extra = _between(hierarchy.levels, found)
        found += _evaluate(judged_by, with_swaps(ClusterGroup(hierarchy[k]) for k in extra), data)
    choice = chosen(found, judged_by.describe(data), judged_by.words)
    if soft:
        choice = replace(choice, soft=soften(choice, data, np.ndim(x)))
    return choice if signed is None else replace(choice, signs=signed)


def _criterion(criterion: str | Criterion, score: Score | None, folds: int) -> Criterion:
    """What was asked for, as an object."""
    check_folds(folds)
    if score is not None:
        if criterion != "ridge":
            raise ValueError("score= is itself a criterion; leave criterion out")
        return CrossValidation(score, folds)
    if isinstance(criterion, Criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ValueError(
            f"criterion must be {' or '.join(map(repr, CRITERIA))}, or an object of "
            f"gsym.choosing.Criterion; got {criterion!r:.80}; a function goes to score="
        )
    return CRITERIA[criterion]


def _evaluate(criterion: Criterion, groups: Sequence[Entry], data: ChoiceData) -> list[Candidate]:
    found = list(criterion.evaluate(groups, data))
    if len(found) != len(groups):
        raise ValueError(
            f"{type(criterion).__name__}.evaluate returned {len(found)} candidates for "
            f"{len(groups)} groups; give one for each, in their order"
        )
    return found


def _leave_out(data: Samples, block: int | str, gap: int | str, dependence: Dependence) -> Samples:
    """Leave out what was asked for, or what the errors of consecutive signals ask for."""
    size = dependence.block if block == "auto" else data.left_out.block
    apart = dependence.gap if gap == "auto" else data.left_out.gap
    if block == "auto" and gap == 0:
        apart = dependence.gap
    if dependence.hides(size, apart):
        warn(
            f"errors of consecutive signals depend on each other (correlation "
            f"{dependence.correlation:.2f}, below 0.1 after {dependence.length} signals): what is "
            "left out has been seen in its neighbours, and large models look too good; pass "
            f'block="auto", or block={dependence.block} and gap={dependence.gap}'
        )
    else:
        _warn_short(dependence)
    if (size, apart) == (data.left_out.block, data.left_out.gap):
        return data
    return data.subset(np.arange(data.num_signals), size, apart)


def _warn_short(dependence: Dependence) -> None:
    """Warn where a series says little about signals of other times."""
    if dependence.changes:
        warn(
            f"squared errors of the second half are {dependence.ratio:.2g} times those of the "
            f"first ({abs(dependence.change):.1f} standard errors): the signals are not of one "
            "kind, and the regret bound is for signals like all of them; take signals from the "
            "times that the model is for, in equal parts"
        )
    elif dependence.is_short:
        warn(
            f"errors of consecutive signals, or their size, are alike for {dependence.stretch} of "
            f"{dependence.signals} signals: so few stretches say little, and nothing of other "
            "times; the regret bound is for more signals of the same stretch; take signals from "
            "several days (or recordings) and leave out whole days by block="
        )


def _groups(
    candidates: Hierarchy | Iterable[PermutationGroup | Partition | Reps],
    levels: Sequence[int] | None,
) -> list[Entry]:
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
    groups: list[Entry] = []
    for number, candidate in enumerate(candidates):
        if isinstance(candidate, tuple):
            groups.append(_pair(candidate, number))
            continue
        if not isinstance(candidate, PermutationGroup | Partition):
            raise TypeError(
                f"candidate {number} must be a Partition, a PermutationGroup, or a pair of "
                f"representations; got {type(candidate).__name__}"
            )
        groups.append(ClusterGroup(candidate) if isinstance(candidate, Partition) else candidate)
    return groups


def _pair(candidate: tuple[Any, ...], number: int) -> Reps:
    """A candidate that is a pair of representations of one group."""
    kinds = [type(rep).__name__ for rep in candidate]
    if (
        len(candidate) != 2
        or not isinstance(candidate[0], Representation)
        or not isinstance(candidate[1], Representation | None)
    ):
        raise TypeError(
            f"candidate {number} must be (in_rep, out_rep), two of Representation, or (in_rep, "
            f"None) where y is one number per signal; got ({', '.join(kinds)})"
        )
    if candidate[1] is not None:
        candidate[1].check_group(candidate[0].group)
    return candidate[0], candidate[1]


def _check_candidates(groups: Sequence[Entry], data: Samples) -> None:
    if not groups:
        raise ValueError("choose_group needs at least one candidate; got none")
    for number, entry in enumerate(groups):
        group = group_of(entry)
        if group.num_nodes != data.num_nodes:
            turned = "; x seems to be turned by 90 degrees: give [samples, nodes]"
            raise GroupError(
                f"candidate {number}, {group}, acts on {group.num_nodes} nodes but x has "
                f"{data.num_nodes}{turned if group.num_nodes == data.num_signals else ''}"
            )
        if isinstance(entry, tuple):
            check_reps(data, group, *entry)


def _read_graph(edge_index: Any, edge_weight: Tensor | None, data: Samples) -> Graph:
    """The graph in any form, once it is known to fit the signals."""
    graph = as_graph(edge_index, data.num_nodes, edge_weight)
    check_orientation(data.x, graph.edge_index)
    if graph.edge_weight is not None:
        warn_distances(data.x, graph.edge_index, graph.edge_weight)
    return graph


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
