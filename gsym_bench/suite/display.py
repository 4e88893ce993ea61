"""Says what is being done: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Hashable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gsym_bench.suite.forecast import Forecast, in_words

LOG_SECONDS = 30.0


class Display:
    """The cells of a run, the epochs of the current one, and how long all of it takes.

    Args:
        console: Where to say it.
        total: Number of cells.
        forecast: Of those that are to be run.
    """

    def __init__(self, console: Console, total: int, forecast: Forecast) -> None:
        self._console = console
        self._total = total
        self._forecast = forecast
        self._done = 0
        self._start = self._spoke = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._cells = self._progress.add_task("cells", total=total, left="")
        self._epochs = self._progress.add_task("", total=None, left="")
        self._began: tuple[int, float] | None = None  # first epoch of the cell seen, and when

    def __enter__(self) -> Display:
        self._progress.start()
        self._announce()
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

    def finish(self, cell: Hashable, text: str, *, trained: bool = True) -> None:
        """One cell is over; `trained` in this run, or found in the results."""
        self._done += 1
        self._forecast.finish(cell, ran=trained)
        left = self._left()
        if trained and left:
            text += f"; {left} left"
        self._began = None
        self._progress.update(self._cells, completed=self._done, left=left and f"{left} left")
        self._progress.reset(self._epochs, description="", total=None)
        self.say(text)

    def say(self, text: str) -> None:
        """Say something once."""
        self._spoke = time.monotonic()
        self._console.print(
            f"[{self._done}/{self._total}] {text}", markup=False, highlight=False, soft_wrap=True
        )

    def _left(self) -> str:
        span = self._forecast.left(time.monotonic() - self._start)
        return in_words(span) if span and self._done < self._total else ""

    def _announce(self) -> None:
        """What is planned, and how long it takes, as far as that is known."""
        planned, workers = len(self._forecast.costs), self._forecast.workers
        left = self._left()
        if not planned or not left:
            return
        by = f"{workers} workers" if workers > 1 else "one worker"
        text = f"{planned} cells to run by {by} will take {left}"
        if self._forecast.unknown:
            text += f", if the {self._forecast.unknown} of unknown cost are like the others"
        self.say(f"{text}; a forecast from what cells cost and from the speed of now")
