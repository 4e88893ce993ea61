"""Where cells run: one after another in this process, or in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import connection
from typing import Any

import cloudpickle
import psutil

from gsym_bench.suite.cores import use_threads
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.memory import keep_freed_memory
from gsym_bench.suite.results import Row
from gsym_bench.suite.work import Unit, Worker

# A cell whose process was killed goes on elsewhere from its checkpoint, but not for ever.
TRIES = 3


OnEpoch = Callable[[Unit, int, int, float], None]


class Executor(ABC):
    """Runs units of work somewhere. Rows come back in any order, and only the caller stores them.

    An executor is used once.
    """

    @abstractmethod
    def run(self, worker: Worker, units: Iterator[Unit], on_epoch: OnEpoch) -> Iterator[list[Row]]:
        """The rows of each unit as it is finished.

        Args:
            worker: Runs a unit.
            units: Taken no sooner than they can run.
            on_epoch: Called after each validation in this process with the unit, the epoch, the
                number of epochs and the best number so far.
        """


class Here(Executor):
    """One unit after another in this process."""

    def run(self, worker: Worker, units: Iterator[Unit], on_epoch: OnEpoch) -> Iterator[list[Row]]:
        for unit in units:
            yield worker.run(unit, partial(on_epoch, unit))


class Processes(Executor):
    """Worker processes of this machine, each with a pipe of its own, so that a death has one cause.

    They are forked from a process that has imported what they need and has done nothing else.
    They end with this one, however it ends.

    Args:
        workers: How many run at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        ways = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in ways else None)
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(["gsym_bench.suite.run"])

    def run(self, worker: Worker, units: Iterator[Unit], on_epoch: OnEpoch) -> Iterator[list[Row]]:
        idle: list[_Process] = []
        busy: dict[Any, _Process] = {}  # by their pipes
        try:
            while True:
                while len(busy) < self._workers and (unit := next(units, None)) is not None:
                    process = idle.pop() if idle else _Process(self._context)
                    process.send(unit[0].label, pack(worker, unit))
                    busy[process.pipe] = process
                if not busy:
                    return
                for pipe in connection.wait(busy):
                    process = busy.pop(pipe)
                    rows = process.receive()
                    if rows is None:
                        process = process.again()
                        busy[process.pipe] = process
                    else:
                        idle.append(process)
                        yield rows
        finally:
            for process in (*idle, *busy.values()):
                process.kill()


class _Process:
    """A worker process, and what it was sent."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        self._tries = 0

    def send(self, label: str, packed: bytes) -> None:
        self._label, self._packed, self._tries = label, packed, self._tries + 1
        with suppress(OSError):  # it has died, as `receive` will find
            self.pipe.send_bytes(packed)

    def receive(self) -> list[Row] | None:
        """Its rows, or ``None`` if it has died; raises what it raised."""
        try:
            answer = cloudpickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None
        if isinstance(answer, BaseException):
            raise answer
        self._tries = 0
        return answer

    def again(self) -> _Process:
        """Another process that goes on with what this one was sent."""
        self._process.join()
        if self._tries >= TRIES:
            raise BenchmarkError(
                f"{self._label}: its process was killed {TRIES} times (exit code "
                f"{self._process.exitcode}); where memory is short, give fewer --workers. Finished "
                "cells are kept"
            )
        other = _Process(self._context)
        other._tries = self._tries
        other.send(self._label, self._packed)
        return other

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Any, parent: int) -> None:
    """Run what comes in, until the pipe is closed or the parent has ended."""

    def watch() -> None:
        psutil.Process(parent).wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    keep_freed_memory()
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            answer: Any
            try:
                answer = work(pipe.recv_bytes())
            except Exception as error:
                error.add_note("".join(traceback.format_exception(error)))
                answer = error
            try:
                packed = cloudpickle.dumps(answer)
            except Exception:
                packed = cloudpickle.dumps(
                    RuntimeError("".join(traceback.format_exception(answer)))
                )
            pipe.send_bytes(packed)


def pack(worker: Worker, unit: Unit) -> bytes:
    """A unit and who is to run it, for another process: functions travel by value."""
    return cloudpickle.dumps((worker, unit))


def work(packed: bytes) -> list[Row]:
    """Run a unit in the process that was sent it."""
    worker, unit = cloudpickle.loads(packed)
    use_threads(worker.threads)
    return worker.run(unit)


def travel_by_value(thing: Any) -> None:
    """Let the module of a class travel with its objects, where other processes cannot import it."""
    module = sys.modules[type(thing).__module__]
    ours = type(thing).__module__.startswith("gsym_bench.")
    own_file = type(thing).__module__.startswith("gsym_bench.tasks.of_file.")
    if module.__name__ != "__main__" and (own_file or not ours):
        cloudpickle.register_pickle_by_value(module)
