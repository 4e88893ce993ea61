"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.suite.errors import check_names
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
