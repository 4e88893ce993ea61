"""A choice in words: what to do, what it gains, and for how long it will."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from gsym.groups import ClusterGroup
from gsym.risk.learning import HORIZON

# Two-sided, as the interval of the crossings is.
_LEVEL = 0.975


def answer(choice: Any) -> str:
    """One sentence: which nodes to treat as interchangeable, what that costs and gains.

    The interval is that of the paired difference of left-out errors, as a share of the error
    without symmetry; until when the group pays is known with ``soft=True`` only.
    """
    parts = [f"{_treat(choice.best)}: {_weights(choice)}", _gain(choice)]
    until = _until(choice)
    return ", ".join(part for part in parts if part) + (f", and {until}" if until else "") + "."


def next_steps(choice: Any, unit: str = "") -> list[str]:
    """What to do with the answer, in the units of the data where the score has them.

    Args:
        choice: The choice.
        unit: What the targets are measured in.
    """
    best = choice.best
    steps = []
    expected = _error(choice, best, unit)
    if expected:
        compared, name = _reference(choice)
        there = "" if compared is None else f"; with {name}, {_error(choice, compared, '')}"
        steps.append(
            f"Train it with the script below. A linear map of this symmetry is off by {expected}"
            f"{there} (root mean square, of signals that it has not seen)."
        )
    else:
        steps.append(f"Train it with the script below.{_scored(choice)}")
    gain = share(choice)
    if gain is not None and gain[1] <= 0 <= gain[2]:
        steps.append("These signals hardly tell the groups apart; more signals would.")
    if choice.simplest is not best:
        steps.append(
            f"Where size or explanation count, take {describe(choice.simplest)}: "
            f"{_count(_num_weights(choice, choice.simplest), 'weight')}, and the same "
            f"{'error' if _errs(choice) else choice.words.score}, as far as these signals tell."
        )
    steps += _later(choice)
    return steps


def describe(candidate: Any) -> str:
    """A candidate in running text.

    Example:
        >>> from types import SimpleNamespace
        >>> from gsym.groups import Partition
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 1]))
        >>> describe(SimpleNamespace(group=group, num_clusters=2, in_rep=None, name="S_2"))
        '2 clusters'
    """
    n, k = candidate.group.num_nodes, candidate.num_clusters
    if candidate.group.log_order() == 0:
        return "no symmetry"
    if getattr(candidate.group, "swaps", None) is not None and candidate.in_rep is None:
        if k == n:
            return "exchanges of nodes that leave the graph the same"
        return f"{_count(k, 'cluster')} with exchanges of whole clusters"
    if not _is_plain(candidate):
        return str(candidate.name)
    return f"all {n:,} nodes alike" if k == 1 else _count(k, "cluster")


def share(choice: Any) -> tuple[float, float, float] | None:
    """How much less the best errs than what it is compared with, and its 95 % interval.

    Shares of the other's error; ``None`` where one of both is not known.
    """
    other, _ = _reference(choice)
    if other is None or not all(map(_known, (other.score, other.gap))) or other.score <= 0:
        return None
    gap, error = float(other.gap), other.gap_error
    spread = math.inf
    if _known(error):
        judged = int(np.isfinite(getattr(other, "errors", np.zeros(2))).sum())
        spread = float(stdtrit(max(judged - 1, 1), _LEVEL)) * float(error)
    return gap / other.score, (gap - spread) / other.score, (gap + spread) / other.score


def _reference(choice: Any) -> tuple[Any, str]:
    """What the best is compared with: no symmetry or the finest, or else the best with symmetry."""
    best, finest = choice.best, choice.candidates[0]
    if best.group.log_order() > 0:
        return (None, "") if finest is best else (finest, describe(finest))
    others = [c for c in choice.candidates if c is not best and _known(c.score)]
    if not others:
        return None, ""
    rival = min(others, key=lambda c: c.score)
    return rival, describe(rival)


def _treat(candidate: Any) -> str:
    n = candidate.group.num_nodes
    if candidate.group.log_order() == 0:
        return "Treat no nodes as interchangeable"
    if candidate.in_rep is not None and candidate.sentence:
        return str(candidate.sentence).removesuffix(".")
    if not isinstance(candidate.group, ClusterGroup):
        return f"Treat as a symmetry what {candidate.name} exchanges"
    sizes = np.bincount(candidate.group.partition.labels.numpy())
    swaps, together = candidate.group.swaps, False
    if sizes.max() == 1 and swaps is not None:
        # Clusters of one node: exchanges of clusters are exchanges of nodes.
        sizes, together = np.bincount(candidate.group.node_orbits().index.numpy()), True
    shared, alone = int((sizes > 1).sum()), int((sizes == 1).sum())
    if sizes.size == 1:
        text = f"Treat all {n:,} nodes as interchangeable"
    elif not shared:
        text = "Treat each node by itself"
    else:
        those = "this group" if shared == 1 else f"each of these {shared:,} groups"
        text = f"Treat the nodes of {those} as interchangeable"
        if alone:
            text += f" and the other {alone:,} by {'itself' if alone == 1 else 'themselves'}"
    if together:
        text += ", in exchanges that leave the graph the same"
    elif swaps is not None:
        text += ", and exchange whole groups where the graph looks the same from them"
    return text


def _weights(choice: Any) -> str:
    n = choice.best.group.num_nodes
    own, whole = _num_weights(choice, choice.best), n if _is_one_number(choice) else n * n
    if choice.best.group.log_order() == 0:
        return _count(whole, "weight")
    return f"{_count(own, 'weight')} instead of {whole:,}"


def _num_weights(choice: Any, candidate: Any) -> int:
    """Free weights of a linear map; to one number per signal, a weight for every orbit of nodes."""
    if _is_one_number(choice) and candidate.in_rep is None:
        return int(candidate.group.node_orbits().num_orbits)
    return int(candidate.commutant_dim)


def _is_one_number(choice: Any) -> bool:
    return choice.task is not None and choice.task.out_channels == 0


def _gain(choice: Any) -> str:
    found = share(choice)
    if found is None:
        return ""
    _, name = _reference(choice)
    mean, low, high = found
    if not _errs(choice):
        return _lower_score(choice, found, name)
    if math.isinf(low):
        return f"{_percent(mean)} % less error than {name}"
    if low > 0:
        interval = f"95 % interval {_percent(low)} to {_percent(min(high, 1.0))} %"
        return f"{_percent(mean)} % less error than {name} ({interval})"
    return (
        f"as much error as {name}, as far as these signals tell (95 % interval "
        f"{_percent(high)} % less to {_percent(-low)} % more)"
    )


def _errs(choice: Any) -> bool:
    """Whether the score is an error, of which shares can be told."""
    return choice.words.squared or choice.words.score == "error"


def _scored(choice: Any) -> str:
    """The scores of the best and of its rival, where they have no unit."""
    other, name = _reference(choice)
    if other is None or not all(map(_known, (choice.best.score, other.score))):
        return ""
    what = choice.words.score
    return (
        f" Its {what}, from signals left out of the fit, is {choice.best.score:.3g}; that of "
        f"{name} is {other.score:.3g}. Lower is better."
    )


def _lower_score(choice: Any, found: tuple[float, float, float], name: str) -> str:
    """The gain in the criterion's own words: shares of what is no error say nothing."""
    other, _ = _reference(choice)
    mean, low, high = (part * other.score for part in found)
    score = choice.words.score
    if math.isinf(low):
        return f"a {score} lower by {mean:.3g} than that of {name}"
    interval = f"95 % interval {low:.3g} to {high:.3g}"
    if low > 0:
        return f"a {score} lower by {mean:.3g} than that of {name} ({interval})"
    return f"no other {score} than {name}, as far as these signals tell (lower by: {interval})"


def _until(choice: Any) -> str:
    """Until how many signals the best group stays the best."""
    outlook = _outlook(choice)
    if outlook is None:
        return ""
    if outlook.crossings:
        crossing = outlook.crossings[0]
        least = "at least " if math.isinf(crossing.high) else ""
        return f"it will pay until {least}about {_round(crossing.signals)} signals"
    if choice.soft.levels[outlook.now].commutant_dim == max(
        level.commutant_dim for level in choice.soft.levels
    ):
        return ""
    reach = HORIZON * choice.soft.signals
    if outlook.earliest <= choice.soft.signals:
        return ""
    if outlook.earliest <= reach:
        return f"it will pay until at least about {_round(outlook.earliest)} signals"
    return "no number of signals is in sight from which a finer group would pay"


def _later(choice: Any) -> list[str]:
    outlook = _outlook(choice)
    if outlook is None or not outlook.crossings:
        return []
    crossing = outlook.crossings[0]
    after = describe(choice.soft.levels[crossing.after])
    sure = "perhaps " if math.isinf(crossing.high) else ""
    return [
        f"You have {choice.soft.signals:,} signals. With more than about "
        f"{_round(crossing.signals)}, choose again: {after} will then {sure}be better."
    ]


def _outlook(choice: Any) -> Any:
    """What more signals would change, if it starts from the best group."""
    soft = choice.soft
    if soft is None or soft.outlook is None:
        return None
    return soft.outlook if soft.levels[soft.outlook.now] is choice.best else None


def _error(choice: Any, candidate: Any, unit: str) -> str:
    """The root of a squared error, with the unit that it then has."""
    if not choice.words.squared or not _known(candidate.score) or candidate.score < 0:
        return ""
    text = f"{math.sqrt(candidate.score):#.3g}".rstrip(".")
    task = choice.task
    if task is not None and task.standardize is not None:
        return f"{text} standard deviations of its node"
    return f"{text} {unit}".rstrip()


def _is_plain(candidate: Any) -> bool:
    group = candidate.group
    return isinstance(group, ClusterGroup) and group.swaps is None and candidate.in_rep is None


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _percent(value: float) -> str:
    """A share in percent, to two digits.

    Example:
        >>> _percent(0.02437), _percent(0.31), _percent(0.00012)
        ('2.4', '31', '0.012')
    """
    text = f"{100 * value:.2g}"
    return text if "e" not in text else f"{100 * value:,.0f}"


def _round(value: float) -> str:
    """A number of signals to two digits.

    Example:
        >>> _round(912.0), _round(7.0)
        ('910', '7')
    """
    digits = max(1 - math.floor(math.log10(max(value, 1.0))), -12)
    return f"{round(value, min(digits, 0)):,.0f}"
