"""What a choice among groups is: candidates, their scores, and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from gsym._validate import optional_module
from gsym.choosing.answer import answer
from gsym.coarsening.hierarchy import Hierarchy
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.risk.dependence import Dependence, inflation

if TYPE_CHECKING:
    from gsym.choosing.soft import SoftChoice

CONFIDENCE = 0.95
# Exchanges of more pairs of nodes are not written out.
MAX_PAIRS = 24


@dataclass(frozen=True)
class Words:
    """What a criterion calls its numbers, in tables and on the page.

    Attributes:
        score: The number that decides, as in "lowest risk".
        parts: What it is made of: attribute of a candidate, name and meaning.
        squared: It is a squared error, whose root has the unit of the targets.
    """

    score: str = "score"
    parts: tuple[tuple[str, str, str], ...] = ()
    squared: bool = False


@dataclass(frozen=True)
class Task:
    """What was to be predicted from what.

    Attributes:
        in_channels: Of the signals.
        out_channels: Of the targets; 0 for one number per signal.
        denoising: The targets are the signals themselves, to be recovered from noisy ones.
        standardize: As given to :func:`gsym.choose_group`.
        gap: Signals on either side of those left out that are not fitted to.
    """

    in_channels: int = 1
    out_channels: int = 1
    denoising: bool = False
    standardize: str | None = None
    gap: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Candidate:
    """A group and how well its predictors do.

    Attributes:
        group: The group.
        errors: Error of every left-out signal, block or fold, ``nan`` where not scored.
        score: What decides, lower is better; the mean of the errors unless given. With ridge the
            estimated risk: squared error per number to predict.
        standard_error: Of the score, over signals (or folds).
        gap: Score less that of the best candidate, on what both were scored on.
        gap_error: Standard error of the gap, from paired differences; ``nan`` where unknown.
        bias: How much worse the best map in the commutant is than in that of the best candidate,
            0 where it is better; ``None`` where the criterion estimates no residual variance.
        variance: What estimating the map from these signals costs; ``None`` as for ``bias``.
            ``score = noise + bias + variance``, where the noise is the residual variance of the
            best candidate, the same for all.
        residual_variance: Estimated error of the best map in the commutant, or ``None``.
        matrix: Fitted map between cluster means, targets first, averaged over channels,
            ``[k, k]``; ``None`` above 512 clusters, or where the criterion fits none.
        jackknife: Score without each of several parts of the signals, where signals are few;
            standard errors are not below what follows from it.
        in_rep: How the group moves the channels of the inputs; ``None``: it leaves them alone.
        out_rep: Those of the targets.
        tried: Of how many this is the best, where only the best were kept.
    """

    group: PermutationGroup
    errors: NDArray
    score: float = math.nan
    standard_error: float = math.nan
    gap: float = math.nan
    gap_error: float = math.nan
    bias: float | None = None
    variance: float | None = None
    residual_variance: float | None = None
    matrix: NDArray | None = None
    jackknife: NDArray = field(default_factory=lambda: np.zeros(0))
    in_rep: Representation | None = None
    out_rep: Representation | None = None
    tried: int = 1

    def __post_init__(self) -> None:
        if math.isnan(self.score):
            object.__setattr__(self, "score", float(np.nanmean(self.errors)))

    @property
    def partition(self) -> Partition | None:
        """Its clusters; ``None`` for a general permutation group."""
        return self.group.partition if isinstance(self.group, ClusterGroup) else None

    @property
    def name(self) -> str:
        """The group, and which channels change their sign with it."""
        signs = signs_text(self.in_rep, self.out_rep)
        return f"{self.group} with {signs}" if signs else str(self.group)

    @property
    def sentence(self) -> str:
        """In words, which nodes an exchange of few nodes moves and which channels turn with it.

        Example:
            >>> mirror = PermutationGroup.from_cycles(5, [(1, 3), (2, 4)])
            >>> sign = Representation.from_signs(mirror, [[-1, 1]])
            >>> Candidate(mirror, np.zeros(3), in_rep=sign, out_rep=sign).sentence
            'Nodes 1 and 3, 2 and 4 are interchangeable if channel 0 of x and 0 of y change sign.'
        """
        return _sentence(self)

    @cached_property
    def num_clusters(self) -> int:
        """Number of clusters, or of node orbits where there are none."""
        if self.partition is not None:
            return self.partition.num_clusters
        return self.group.node_orbits().num_orbits

    @cached_property
    def commutant_dim(self) -> int:
        """Free weights of an equivariant linear map, per pair of channels (a mean, rounded up)."""
        if self.in_rep is None or self.out_rep is None:
            return self.group.commutant_dim()
        pairs = self.in_rep.num_channels * self.out_rep.num_channels
        return -(-self.group.commutant_dim(self.in_rep, self.out_rep) // pairs)

    def __repr__(self) -> str:
        return (
            f"Candidate({self.name}: {self.num_clusters} clusters, dim {self.commutant_dim:,}, "
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
        words: What the criterion calls its numbers.
        hierarchy: Where the candidates came from, or ``None``.
        edge_index: The graph, or ``None``.
        block: Consecutive signals that were left out together.
        gap: Signals on either side of a block that were left out of the fit with it.
        dependence: How errors of consecutive signals depend on each other.
        signs: With ``signs="auto"`` and large groups among the candidates, the choice of signs for
            the small ones, which is made by another criterion; otherwise ``None``.
        soft: With ``soft=True`` the mixture of groups, and when a finer one pays; otherwise
            ``None``.
        task: What was to be predicted from what.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate
    simplest: Candidate
    regret_bound: float
    criterion: str
    hierarchy: Hierarchy | None = None
    edge_index: Tensor | None = None
    block: int = 1
    gap: int = 0
    dependence: Dependence | None = None
    words: Words = Words()
    signs: GroupChoice | None = None
    soft: SoftChoice | None = None
    task: Task | None = None

    @property
    def answer(self) -> str:
        """In one sentence, which nodes to treat as interchangeable, and what that gains.

        Example:
            >>> from gsym import choose_group
            >>> x = np.random.default_rng(0).normal(size=(40, 4))
            >>> levels = [Partition.singletons(4), Partition.single(4)]
            >>> print(choose_group(levels, x, 2 * x).answer.split(",")[0])
            Treat all 4 nodes as interchangeable: 2 weights instead of 16
        """
        return answer(self)

    @property
    def in_rep(self) -> Representation | None:
        """How the best candidate moves the channels of the inputs; ``None``: not at all."""
        return self.best.in_rep

    @property
    def out_rep(self) -> Representation | None:
        """How the best candidate moves the channels of the targets; ``None``: not at all."""
        return self.best.out_rep

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
            name = candidate.name
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
                label=f"{name}: {candidate.name}",
                zorder=5,
            )
        ax.set_xscale("log")
        ax.set_xlabel("clusters (left: S_n, right: trivial)")
        ax.set_ylabel(self.criterion)
        ax.legend(frameon=False, fontsize="small")
        return ax

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write the page that shows this choice; see :func:`gsym.choosing.page.write_page`."""
        from gsym.choosing.page import write_page

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
        lines = [lines[0], "-" * max(map(len, lines)), *lines[1:], self._footer()]
        lines += [self.best.sentence] * bool(self.best.sentence)
        lines += [] if self.soft is None else self.soft.lines()
        lines += ["", self.answer]
        return "\n".join(lines if self.signs is None else [*lines, "", str(self.signs)])

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
            f"GroupChoice({self.best.name} of {len(self.candidates)} candidates, "
            f"score {self.best.score:.4g} ± {self.best.standard_error:.2g})"
        )


def judge(
    found: Sequence[Candidate],
    criterion: str,
    hierarchy: Hierarchy | None,
    edge_index: Tensor | None,
    block: int,
    gap: int,
    dependence: Dependence | None,
    words: Words,
) -> GroupChoice:
    """Compare all candidates with the best one, on what both were scored on."""
    ordered = sorted(_attribute(found), key=lambda c: (-c.commutant_dim, -c.num_clusters))
    most = max(int((~np.isnan(c.errors)).sum()) for c in ordered)
    finalists = [c for c in ordered if int((~np.isnan(c.errors)).sum()) == most]
    winner = min(finalists, key=lambda c: (c.score, c.commutant_dim))
    serial = dependence is not None and dependence.found
    judged, bounds = [], [0.0]
    tried = sum(c.tried for c in ordered)
    pairs = max(tried * (tried - 1), 1)
    for candidate in ordered:
        both = ~np.isnan(candidate.errors) & ~np.isnan(winner.errors)
        with np.errstate(invalid="ignore"):
            paired = (candidate.errors - winner.errors)[both]
            parts = candidate.jackknife - winner.jackknife
        difference, (error, freedom) = float(paired.mean()), standard_error(paired, parts, serial)
        if candidate is winner:
            difference, error = 0.0, 0.0
        elif math.isfinite(error):
            # Quantile of Student's t; scipy.stats, which has it too, takes a second to import.
            quantile = stdtrit(freedom, 1 - (1 - CONFIDENCE) / pairs)
            bounds.append(-difference + float(quantile) * error)
        own, _ = standard_error(candidate.errors, candidate.jackknife, serial)
        judged.append(replace(candidate, gap=difference, gap_error=error, standard_error=own))
    best = judged[ordered.index(winner)]
    within = [c for c in judged if c is best or c.gap <= c.gap_error]
    simplest = min(within, key=lambda c: (c.commutant_dim, c.score))
    return GroupChoice(
        tuple(judged),
        best,
        simplest,
        max(bounds),
        criterion,
        hierarchy,
        edge_index,
        block,
        gap,
        dependence,
        words,
    )


def _attribute(found: Sequence[Candidate]) -> Sequence[Candidate]:
    """Split every score into noise, bias and variance, where residual variances are known.

    The noise is the residual variance of the best candidate. The smallest of all would be that of
    a fit with as many weights as data, whose few residual degrees of freedom say nothing.
    """
    noise = min(found, key=lambda c: c.score).residual_variance
    if noise is None:
        return found
    out = []
    for candidate in found:
        bias = max((candidate.residual_variance or 0.0) - noise, 0.0)
        out.append(replace(candidate, bias=bias, variance=candidate.score - noise - bias))
    return out


def standard_error(values: NDArray, parts: NDArray, serial: bool) -> tuple[float, float]:
    """Standard error of a mean of leave-one-out errors, and its degrees of freedom.

    The spread of the errors alone takes the fits as given. Without some of the signals they would
    be others, which matters where signals are few: the jackknife over parts says by how much.

    Args:
        values: Errors, or differences of errors, of each block.
        parts: The mean without each of several parts of the signals, or nothing.
        serial: Whether consecutive blocks may depend on each other; a series of them is then worth
            fewer independent ones.
    """
    known = values[~np.isnan(values)]
    count = float(len(known))
    if count < 2 or not np.isfinite(known).all():
        return math.nan, 1.0
    if serial:
        count /= inflation(known)
    error = float(known.std(ddof=1)) / math.sqrt(count)
    freedom = count - 1
    m = len(parts)
    if m > 1:
        jackknife = math.sqrt((m - 1) / m * float(((parts - parts.mean()) ** 2).sum()))
        error, freedom = max(error, jackknife), min(freedom, m - 1)
    return error, max(freedom, 1.0)


def signs_text(*reps: Representation | None) -> str:
    """Which channels of x and y change their sign, for each generator that changes any.

    Example:
        >>> mirror = PermutationGroup.from_cycles(3, [(0, 1)])
        >>> signs_text(Representation.from_signs(mirror, [[-1, 1]]), None)
        'x0 -> -x0'
    """
    turned = [
        f"{letter}{channel} -> -{letter}{channel}"
        for letter, rep in zip("xy", reps, strict=False)
        if rep is not None
        for channel in np.flatnonzero((rep.signs.numpy() < 0).any(0))
    ]
    return ", ".join(turned)


def _sentence(candidate: Candidate) -> str:
    """See :attr:`Candidate.sentence`; empty for groups that are not one exchange of few pairs."""
    if candidate.in_rep is None or candidate.group.num_generators != 1:
        return ""
    image = candidate.group.generators[0].tolist()
    pairs = [(i, j) for i, j in enumerate(image) if i < j]
    if any(image[j] != i for i, j in pairs) or not 0 < len(pairs) <= MAX_PAIRS:
        return ""
    turned = [
        f"{' and '.join(map(str, channels))} of {letter}"
        for letter, rep in (("x", candidate.in_rep), ("y", candidate.out_rep))
        if rep is not None and len(channels := np.flatnonzero(rep.signs[0].numpy() < 0))
    ]
    nodes = ", ".join(f"{i} and {j}" for i, j in pairs)
    if not turned:
        return f"Nodes {nodes} are interchangeable, and no channel changes its sign."
    plural = " and ".join(turned)
    verb = "change sign" if " and " in plural else "changes its sign"
    return f"Nodes {nodes} are interchangeable if channel {plural} {verb}."
