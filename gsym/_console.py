"""What the command line says and refuses: steps, notes, JSON, files that cannot be written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gsym._files import Summary


class UsageError(ValueError):
    """Options that do not go together."""


def check_outputs(
    paths: dict[str, Path | None],
    kinds: Mapping[str, tuple[str, ...]],
    inputs: Sequence[str | None],
) -> None:
    """Refuse before any work is done what could not be written after it."""
    read = {Path(name).absolute() for name in inputs if name is not None}
    written: set[Path] = set()
    for option, path in paths.items():
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"{option} {path}: is a folder; name a file")
        if path.suffix.lower() not in kinds[option]:
            hint = ""
            if path.suffix.lower() == ".pdf":
                hint = "; open the page in a browser and print it to a PDF"
            expected = " or ".join(kinds[option])
            raise UsageError(f"{option} must end in {expected}; got {path.name}{hint}")
        if path.absolute() in read | written:
            raise UsageError(f"{option} {path}: would overwrite a file of this command")
        written.add(path.absolute())
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: no folder {path.absolute().parent}; make it first")


def print_json(values: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(_plain(values), allow_nan=False))


def _plain(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def steps() -> Iterator[Any]:
    """Say on the terminal which step runs and for how long."""
    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("", total=None)
        yield lambda what: progress.reset(task, description=what, total=None)


def say(summaries: Sequence[Summary]) -> None:
    """What was read and what it was taken for, before anything is made of it."""
    console = Console(stderr=True, highlight=False)
    for summary in summaries:
        console.print(f"read: {summary}", markup=False, soft_wrap=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line."""
    Console(stderr=True, highlight=False).print(f"note: {message}", markup=False, soft_wrap=True)
