"""How long a run takes: what its cells cost, and how fast this machine is at the moment."""

from __future__ import annotations

import csv
import multiprocessing
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from gsym_bench.suite.cores import use_threads

TABLE = Path(__file__).with_name("costs.csv")
KIND = ("task", "dataset", "profile", "model", "group")

# Cells were seen to cost so much less or more than the table has it, relative to a piece of work,
# from one machine or library to another.
LEAST, MOST = 0.8, 1.3
# Share of a run until whose end the measured speed counts for as much as what was seen of cells.
_TRUSTED = 0.1
_REPEATS = 3

Kind = tuple[str, ...]


@cache
def known_costs() -> Mapping[Kind, float]:
    """What cells cost, in pieces of `work`, by the columns `KIND`; made by ``gsym-bench costs``."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {kind_of(row): float(row["work"]) for row in csv.DictReader(file)}


def kind_of(columns: Mapping[str, Any]) -> Kind:
    """What cells of all seeds have in common."""
    return tuple(str(columns[name]) for name in KIND)


def work() -> None:
    """A fixed piece of work like that of small nets: some products, and many calls on little."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator)
    first, second = (
        (0.1 * torch.randn(*shape, generator=generator)).requires_grad_()
        for shape in ((64, 256), (256, 64))
    )
    little = torch.ones(32)
    for _ in range(40):
        loss = ((x @ first).relu() @ second - x).square().mean()
        for weight, gradient in zip(
            (first, second), torch.autograd.grad(loss, (first, second)), strict=True
        ):
            weight.data.add_(gradient, alpha=-0.1)
        for _ in range(50):
            little = (little * 0.999).add(0.001)


def seconds_of_work(workers: int, threads: int) -> float | None:
    """Seconds that a piece of work takes while as many processes are at it.

    Returns:
        The mean over processes; ``None`` if none answered.
    """
    if workers == 1:
        return _timed()
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in ways else None)
    found, pipes = [], []
    for _ in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=_tell, args=(theirs, threads), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        with suppress(EOFError):
            found.append(pipe.recv())
        pipe.close()
    return mean(found) if found else None


def _tell(pipe: Any, threads: int) -> None:
    use_threads(threads)
    pipe.send(_timed())


def _timed() -> float:
    """Not the least of several times: what disturbs now will disturb later."""
    work()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        work()
    return (time.perf_counter() - start) / _REPEATS


@dataclass
class Forecast:
    """What is left of a run, and how long that takes.

    Attributes:
        costs: Of the cells that are left, by what they are found by; ``None`` where not known.
        workers: How many cells run at a time.
        seconds: What a piece of work takes; ``None`` if costs are in no known unit.
    """

    costs: dict[Hashable, float | None]
    workers: int = 1
    seconds: float | None = None
    _done: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        known = [cost for cost in self.costs.values() if cost is not None]
        self.unknown = len(self.costs) - len(known)
        usual = mean(known) if known else 1.0
        self._left = {k: usual if cost is None else cost for k, cost in self.costs.items()}
        self._all = sum(self._left.values())
        self._longest = max(self._left.values(), default=0.0)

    def finish(self, cell: Hashable, *, ran: bool = True) -> None:
        """A cell has run, or was found finished."""
        cost = self._left.pop(cell, 0.0)
        self._done += cost if ran else 0.0

    def left(self, elapsed: float) -> tuple[float, float] | None:
        """Seconds that are left, least and most, after so many seconds of running.

        No schedule of the cells ends sooner than the work shared evenly, or than the longest cell;
        taking them one after another is late by that cell at most.

        Returns:
            ``None`` as long as nothing is known of speed.
        """
        seconds, trust = 0.0, 0.0
        if self.seconds is not None:
            seconds, trust = self.seconds, max(_TRUSTED * self._all, self.workers * self._longest)
        if trust + self._done == 0:
            return None
        seconds = (elapsed * self.workers + trust * seconds) / (self._done + trust)
        total, longest = sum(self._left.values()), max(self._left.values(), default=0.0)
        even = total / self.workers
        least, most = max(even, longest), even + (1 - 1 / self.workers) * longest
        return LEAST * least * seconds, MOST * most * seconds


def in_words(span: tuple[float, float]) -> str:
    """A span of seconds in minutes."""
    low, high = (max(round(seconds / 60), 1) for seconds in span)
    return f"about {low} min" if low == high else f"{low} to {high} min"


def expect(
    cells: Sequence[tuple[Hashable, Mapping[str, Any]]], workers: int, threads: int, device: str
) -> Forecast:
    """The forecast of cells that are to be run, given what each is found by and its columns.

    The speed is measured where costs are known: on processors, in `workers` processes.
    """
    known = known_costs()
    costs = {place: known.get(kind_of(columns)) for place, columns in cells}
    if device != "cpu" or not any(costs.values()):
        return Forecast(dict.fromkeys(costs), workers)
    return Forecast(costs, workers, seconds_of_work(workers, threads))
