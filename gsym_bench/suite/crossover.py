"""What `choose_group` predicts: from how many signals a finer group is better."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsym.choosing.choose import choose_group
from gsym_bench.data import replacing
from gsym_bench.suite.task import Problem


@dataclass(frozen=True)
class Prediction:
    """The outlook from a number of signals.

    Attributes:
        signals: Number of signals it was made from.
        now: Name of the group that is best with these.
        crossings: Names of the groups that overtake, with the number of signals, and the ends of
            its interval; ``None`` where there is no end.
        sentence: All of it in words; empty where nothing can be predicted.
        checksum: Of the data it was made from.
        groups: Of the groups and options it was made with.
    """

    signals: int
    now: str
    crossings: tuple[tuple[str, float, float | None, float | None], ...]
    sentence: str
    checksum: str = ""
    groups: str = ""


def predict(problem: Problem, options: Mapping[str, Any]) -> Prediction | None:
    """The soft choice among the groups of a problem, from its training signals alone.

    Args:
        problem: The problem.
        options: Further arguments of `choose_group`.

    Returns:
        ``None`` where it does not apply: signals that are no regression on the nodes, too few to
        tell, or groups that cannot be regressed with.
    """
    # A group that comes again with other representations is one candidate: only nodes move here.
    names = {group: name for name, group in reversed(list(problem.groups.items()))}
    n = next(iter(names)).num_nodes
    train = problem.train
    targets = train.targets
    if train.mask is not None:
        # Missing targets become the mean of what was observed.
        targets = torch.where(train.mask, targets, targets[train.mask].mean())
    try:
        x, y = (nodes_first(values, n) for values in (train.inputs, targets))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            choice = choose_group(list(names), x, y, swaps=None, soft=True, **options)
    except ValueError:  # also what gsym raises
        return None
    soft = choice.soft
    if soft is None or soft.outlook is None:
        return None

    def end(value: float) -> float | None:
        return value if abs(value) < float("inf") else None

    crossings = tuple(
        (names[soft.levels[c.after].group], c.signals, end(c.low), end(c.high))
        for c in soft.crossings
    )
    now = names[soft.levels[soft.outlook.now].group]
    return Prediction(len(train), now, crossings, soft.sentence)


def nodes_first(values: Tensor, nodes: int) -> Tensor:
    """Signals ``[b, n, c]`` of windows ``[b, t, n, c]`` or ``[b, t, n]``."""
    if values.size(1) == nodes:
        return values.flatten(2) if values.dim() > 3 else values
    return values.movedim(2, 1).flatten(2)


def crossover_path(out: Path, stem: str) -> Path:
    """Where a run keeps the predictions for a table."""
    return out / f"{stem}_crossover.json"


def write_predictions(path: Path, predictions: list[Prediction]) -> None:
    """Keep what the report draws."""
    with replacing(path) as file:
        file.write(json.dumps([asdict(p) for p in predictions], indent=1).encode())


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of a run; none if there is no such file."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Prediction(**{**p, "crossings": tuple(map(tuple, p["crossings"]))}) for p in found]
