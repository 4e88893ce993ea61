"""The tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from benchmarks.suite.store import BenchmarkError
from benchmarks.suite.task import Task
from benchmarks.tasks.inpainting import Inpainting, InpaintingMNIST
from benchmarks.tasks.skeleton import Skeleton
from benchmarks.tasks.traffic import Traffic

TASKS: dict[str, Task] = {
    task.name: task for task in (Inpainting(), InpaintingMNIST(), Traffic(), Skeleton())
}


def get_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks called ``names``, in that order.

    Raises:
        BenchmarkError: A name is unknown; the message holds the nearest ones.
    """
    check_names("task", names, TASKS)
    return [TASKS[name] for name in names]


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first of ``names`` that is not ``known``, and say what was probably meant.

    Raises:
        BenchmarkError: A name is unknown.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
            raise BenchmarkError(f"unknown {what} {name!r}; did you mean {', '.join(near)}?")
