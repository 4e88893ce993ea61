"""The soft choice: a mixture of groups instead of one, and when a finer group pays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsym.choosing.choice import Candidate, GroupChoice, signs_text, standard_error
from gsym.choosing.criteria import ChoiceData
from gsym.errors import SignalError
from gsym.groups import ClusterGroup
from gsym.groups.levels import level_name
from gsym.risk._shares import Weights
from gsym.risk.learning import HORIZON, Crossing, Outlook, learning_curves, look_ahead
from gsym.risk.mixture import RidgeMixture
from gsym.risk.ridge import Reps, as_clusters, fit_group
from gsym.risk.samples import Samples

# Levels of a mixture. More of a chain hardly differ from their neighbours.
MAX_LEVELS = 8
FEWEST_SIGNALS = 4


@dataclass(frozen=True)
class Rival:
    """A single group beside the mixture.

    Attributes:
        name: What it is: the best group, or an end of the chain.
        candidate: The group.
        gap: Score of the mixture less its own; negative where the mixture is better.
        gap_error: Standard error of the gap, from paired differences.
    """

    name: str
    candidate: Candidate
    gap: float
    gap_error: float


@dataclass(frozen=True, eq=False, repr=False)
class SoftChoice:
    """How much of each symmetry, what that errs, and when a finer group pays.

    Attributes:
        weights: Share of each level by its label; prints as a line, draws as bars.
        errors: Left-out error of every block, as those of the candidates.
        score: Their mean.
        standard_error: Of the score.
        rivals: The best group and both ends of the chain, on the same blocks.
        predictor: The mixture: :class:`gsym.risk.mixture.RidgeMixture`, or without targets
            :class:`gsym.SymmetricCovariance`.
        outlook: Which level is best now, and from how many signals a finer one is, one after the
            other; ``None`` with too few signals to tell.
        levels: The candidates that the mixture is made of; the outlook counts in them.
        signals: Number of signals.
    """

    weights: Weights
    errors: NDArray
    score: float
    standard_error: float
    rivals: tuple[Rival, ...]
    predictor: Any
    outlook: Outlook | None
    levels: tuple[Candidate, ...]
    signals: int

    @property
    def sentence(self) -> str:
        """When a finer group pays, in words."""
        if self.outlook is None:
            return "Too few signals to tell when a finer group pays."
        last = self.outlook.now
        names = _unique([words(level) for level in self.levels])
        parts = [f"{names[last]} with your {self.signals:,} signals"]
        for crossing in self.outlook.crossings:
            last = crossing.after
            about = _round(crossing.signals)
            # Without an upper end it may never be so.
            sure = "" if math.isfinite(crossing.high) else "perhaps "
            parts.append(f"{names[last]} {sure}from about {about} ({self._interval(crossing)})")
        if self.levels[last].commutant_dim < max(level.commutant_dim for level in self.levels):
            reach = HORIZON * self.signals
            beyond = f"nothing finer up to {_round(reach)}"
            if self.outlook.earliest <= reach:
                beyond = f"perhaps finer from {self._earliest(self.outlook.earliest)}"
            parts.append(beyond)
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."

    @property
    def crossings(self) -> tuple[Crossing, ...]:
        """From how many signals a finer level is better, one after the other."""
        return () if self.outlook is None else self.outlook.crossings

    def _interval(self, crossing: Crossing) -> str:
        if math.isinf(crossing.low):
            return "or never"
        low = self._earliest(crossing.low)
        return (
            f"{low} or later" if math.isinf(crossing.high) else f"{low} to {_round(crossing.high)}"
        )

    def _earliest(self, signals: float) -> str:
        return "now" if signals <= self.signals else _round(signals)

    def lines(self) -> list[str]:
        """What is printed below the table of candidates."""
        shown = {id(rival.candidate): rival for rival in reversed(self.rivals)}
        rivals = "; ".join(
            f"{rival.gap:+.3g} ± {rival.gap_error:.2g} to {rival.name}"
            for rival in reversed(shown.values())
        )
        return [
            f"mixture: {self.weights}",
            f"score {self.score:.5g} ± {self.standard_error:.2g}; {rivals}",
            self.sentence,
        ]

    def plot(self, ax: Any = None) -> Any:
        """Draw the weights, a bar for each level: how much of this data which symmetry explains.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        axes = self.weights.plot(ax)
        axes.set_xlabel("share of the mixture (%)")
        return axes

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return f"SoftChoice({self.weights}: score {self.score:.4g} ± {self.standard_error:.2g})"


def words(candidate: Candidate) -> str:
    """A candidate in running text."""
    n, k = candidate.group.num_nodes, candidate.num_clusters
    if candidate.group.log_order() == 0:
        return "no symmetry"
    if not isinstance(candidate.group, ClusterGroup) or candidate.group.swaps is not None:
        name, signs = level_name(candidate.group), signs_text(candidate.in_rep, candidate.out_rep)
        return f"{name} with {signs}" if signs else name
    return f"all {n:,} nodes alike" if k == 1 else f"{k:,} clusters"


def _round(value: float) -> str:
    """A number of signals to two digits."""
    digits = max(1 - math.floor(math.log10(max(value, 1.0))), -12)
    return f"{round(value, min(digits, 0)):,.0f}"


def soften(choice: GroupChoice, data: ChoiceData, axes: int) -> SoftChoice:
    """The mixture of the levels of a choice.

    Args:
        choice: The choice among single groups, by ridge.
        data: Its data.
        axes: Of the signals as they were given, 2 or 3.

    Raises:
        SignalError: See :func:`mix_covariances`.
    """
    samples = data.samples
    levels = _levels(choice)
    groups = [(as_clusters(level.group), _reps(level)) for level in levels]
    fits = [fit_group(samples, group, reps=reps) for group, reps in groups]
    predictor: Any
    if data.denoising:
        from gsym.choosing.reconstruction import mix_covariances

        shares, errors, score, predictor = mix_covariances(levels, data, axes)
    else:
        mixture = RidgeMixture(samples, fits)
        shares, errors, score, predictor = mixture.weights, mixture.errors, mixture.risk, mixture
    serial = choice.dependence is not None and choice.dependence.found
    own, _ = standard_error(errors, np.zeros(0), serial)
    rivals = []
    finest, coarsest = choice.candidates[0], choice.candidates[-1]
    named = (("the best group", choice.best), ("the finest", finest), ("the coarsest", coarsest))
    for name, rival in named:
        paired = errors - rival.errors
        error, _ = standard_error(paired, np.zeros(0), serial)
        rivals.append(Rival(name, rival, score - rival.score, error))
    curves = learning_curves(samples, groups, fits, data.seed)
    outlook = None
    if curves:
        outlook = look_ahead(curves, [level.commutant_dim for level in levels], data.seed)
    names = _unique([words(level) for level in levels])
    if data.denoising:
        names.append("ridge")
    return SoftChoice(
        Weights(zip(names, np.asarray(shares).tolist(), strict=True)),
        errors,
        score,
        own,
        tuple(rivals),
        predictor,
        outlook,
        tuple(levels),
        samples.num_signals,
    )


def _unique(names: Sequence[str]) -> list[str]:
    counts = [list(names[: i + 1]).count(name) for i, name in enumerate(names)]
    return [n if c == 1 else f"{n} #{c}" for n, c in zip(names, counts, strict=True)]


def check_soft(candidates: Sequence[Any], samples: Samples) -> None:
    """Check that there is something to mix, and something to judge it by."""
    if len(candidates) < 2:
        raise ValueError(
            "soft=True mixes at least two groups; got one candidate; add the ends of a chain, "
            "Partition.singletons(n) and Partition.single(n)"
        )
    if samples.num_signals < FEWEST_SIGNALS:
        raise SignalError(
            f"soft=True needs at least {FEWEST_SIGNALS} signals; got {samples.num_signals}"
        )


def _levels(choice: GroupChoice) -> list[Candidate]:
    """Up to eight candidates from fine to coarse, both ends and the best among them."""
    every = list(choice.candidates)
    if len(every) <= MAX_LEVELS:
        return every
    sizes = np.log([c.commutant_dim for c in every])
    wanted = np.linspace(sizes[0], sizes[-1], MAX_LEVELS - 1)
    kept = {int(np.abs(sizes - at).argmin()) for at in wanted} | {every.index(choice.best)}
    return [every[i] for i in sorted(kept)]


def _reps(level: Candidate) -> Reps | None:
    return None if level.in_rep is None else (level.in_rep, level.out_rep)
