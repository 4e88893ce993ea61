"""The problem of a seed, wherever its cells run."""

from __future__ import annotations

import socket
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.executors import travel_by_value
from gsym_bench.suite.provenance import checksum
from gsym_bench.suite.task import Problem, Task


class Loaded:
    """The problem of a seed, loaded when it is first asked for, in each process by itself.

    Args:
        task: Loads it.
        data: Folder of downloaded data, or ``None`` for embedded data.
        profile: Name of the profile.
        seed: Seed of the split.
        signals: Number of training signals; the usual one if ``None``.
    """

    # Jobs of one problem follow each other, and share it in a process that they are sent to.
    _last: ClassVar[tuple[str, Problem] | None] = None

    def __init__(
        self, task: Task, data: Path | None, profile: str, seed: int, signals: int | None = None
    ) -> None:
        self.task, self.data, self.profile = task, data, profile
        self.seed, self.signals = seed, signals
        self._token = uuid.uuid4().hex
        travel_by_value(task)

    @cached_property
    def problem(self) -> Problem:
        """The problem.

        Raises:
            BenchmarkError: This process has other data than the one that made the plan.
        """
        sent = "checksum" in self.__dict__  # to a process that has to load it
        if sent and Loaded._last is not None and Loaded._last[0] == self._token:
            return Loaded._last[1]
        where = self.data, self.profile, self.seed
        if self.signals is None:
            problem = self.task.load(*where)
        else:
            problem = self.task.load_few(*where, self.signals)
        if sent:
            found = _checksum(problem)
            if found != self.checksum:
                raise BenchmarkError(
                    f"{self.task.name}, seed {self.seed}: expected data of checksum "
                    f"{self.checksum}, got {found} on {socket.gethostname()}; every machine needs "
                    "the same data in the same place"
                )
            Loaded._last = self._token, problem
        return problem

    @cached_property
    def checksum(self) -> str:
        """Of all numbers that training, validation and test see."""
        return _checksum(self.problem)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"checksum": self.checksum}
        del state["problem"]
        return state


def _checksum(problem: Problem) -> str:
    arrays = [problem.edge_index, *problem.extra.values()]
    arrays += [] if problem.edge_weight is None else [problem.edge_weight]
    for split in (problem.train, problem.val, problem.test):
        arrays += [split.inputs, split.targets, *split.aux.values()]
        arrays += [] if split.mask is None else [split.mask]
    return checksum(*arrays)
