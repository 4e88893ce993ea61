"""Says what is being done: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LOG_SECONDS = 30.0


class Display:
    """The cells of a run, and the epochs of the current one."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = self._trained = 0
        self._start = self._spoke = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._cells = self._progress.add_task("cells", total=total)
        self._epochs = self._progress.add_task("", total=None)
        self._began: tuple[int, float] | None = None  # first epoch of the cell seen, and when

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def epoch(self, text: str, epoch: int, epochs: int) -> None:
        """One epoch of the current cell is over."""
        self._progress.update(self._epochs, description=text, completed=epoch, total=epochs)
        now = time.monotonic()
        first, then = self._began = self._began or (epoch, now)
        if not self._console.is_terminal and now - self._spoke > LOG_SECONDS and epoch > first:
            left = (epochs - epoch) * (now - then) / (epoch - first)
            self.say(f"{text}, epoch {epoch}/{epochs}, {left:.0f} s left")

    def finish(self, text: str, *, trained: bool = True) -> None:
        """One cell is over; `trained` in this run, or found in the results."""
        self._done += 1
        self._trained += trained
        left = self._total - self._done
        if trained and left:
            seconds = (time.monotonic() - self._start) / self._trained * left
            text += f"; about {max(seconds / 60, 1):.0f} min left"
        self._began = None
        self._progress.update(self._cells, completed=self._done)
        self._progress.reset(self._epochs, description="", total=None)
        self.say(text)

    def say(self, text: str) -> None:
        """Say something once."""
        self._spoke = time.monotonic()
        self._console.print(
            f"[{self._done}/{self._total}] {text}", markup=False, highlight=False, soft_wrap=True
        )
