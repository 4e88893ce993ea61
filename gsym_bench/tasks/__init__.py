"""The tasks by name: every module of this folder registers its own."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules

from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.task import TASKS, Task

__all__ = ["TASKS", "discover", "get_tasks", "load_task_file"]


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


def load_task_file(path: Path) -> list[Task]:
    """Run a Python file that registers tasks; once in a process, however often it is asked for.

    Raises:
        BenchmarkError: There is no such file, it does not run to its end, or registers nothing.
    """
    path = path.resolve()
    if not path.is_file() or path.suffix != ".py":
        raise BenchmarkError(f"--task {path} is not a Python file; name one that registers a task")
    name = f"gsym_bench.tasks.of_file.{path}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        # What is defined in it is looked up there, by dataclasses and pickle among others.
        sys.modules[name] = module
        known = dict(TASKS)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as cause:
            del sys.modules[name]
            TASKS.clear()
            TASKS.update(known)
            raise BenchmarkError(f"{path} does not import: {_blame(path, cause)}") from cause
    found = [task for task in TASKS.values() if type(task).__module__ == name]
    if not found:
        raise BenchmarkError(
            f"{path} registers no task; decorate a class of gsym_bench.suite.task.Task by @register"
        )
    for task in found:
        task.command = shlex.join(["gsym-bench", "run", task.name, "--task", _as_named(path)])
    return found


def _as_named(path: Path) -> str:
    """A file as it is called from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _blame(path: Path, cause: BaseException) -> str:
    """What went wrong in a file, and at which of its lines."""
    lines = [f.lineno for f in traceback.extract_tb(cause.__traceback__) if f.filename == str(path)]
    if isinstance(cause, SyntaxError) and cause.filename == str(path):
        lines.append(cause.lineno)
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}{where}"
