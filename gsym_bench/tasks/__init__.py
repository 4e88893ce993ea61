"""The tasks by name: every module of this folder registers its own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from gsym_bench.suite.errors import check_names
from gsym_bench.suite.task import TASKS, Task

__all__ = ["TASKS", "discover", "get_tasks"]


def discover() -> None:
    """Import every module of this folder."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


discover()


def get_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks called ``names``, in that order; all that have embedded data too if there are none.

    Raises:
        BenchmarkError: A name is unknown; the message holds the nearest ones.
    """
    check_names("task", names, TASKS)
    return [TASKS[name] for name in names] or [t for t in TASKS.values() if not t.needs_data]
