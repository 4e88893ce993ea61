"""A command that is interrupted ends the processes it started, and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM end all processes below this one, then raise `KeyboardInterrupt`.

    A terminal sends the first to every process, ``kill`` and a queue of jobs send either to one.
    Python knows of its own children at best, and would wait for what they have begun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    raise KeyboardInterrupt
