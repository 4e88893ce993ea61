"""Cells as tasks of a Ray cluster that is running; needs the extra ``ray``."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.executors import TRIES, Executor, OnEpoch, pack, work
from gsym_bench.suite.results import Row
from gsym_bench.suite.work import Unit, Worker

SECONDS = 5.0  # to reach the head of a cluster


class Cluster(Executor):
    """A Ray cluster: a cell takes as many CPUs as it has threads, and a GPU where it runs on one.

    A cell whose worker or node dies is run again elsewhere. Where the folder of results lies on a
    disk that all nodes see it goes on from its checkpoint, elsewhere from its beginning; the rows
    are the same. Every node needs this library, and the data in the same place.

    Args:
        address: Of the head, ``host:port`` or ``ray://host:port``; by default that of the
            environment or of this machine.

    Raises:
        BenchmarkError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError as cause:
            raise BenchmarkError("--engine ray needs Ray: pip install 'gsym[ray]'") from cause
        self._ray: Any = ray
        if not ray.is_initialized():
            self._connect(address)

    def run(self, worker: Worker, units: Iterator[Unit], on_epoch: OnEpoch) -> Iterator[list[Row]]:
        ray = self._ray
        task = ray.remote(work).options(
            num_cpus=worker.threads,
            num_gpus=int(worker.device == "cuda"),
            max_retries=TRIES,
        )
        waiting: list[Any] = []
        try:
            while True:
                while len(waiting) < self._room(worker) and (unit := next(units, None)) is not None:
                    waiting.append(task.remote(pack(worker, unit)))
                if not waiting:
                    return
                (done,), waiting = ray.wait(waiting)
                yield self._rows(done)
        finally:
            for unfinished in waiting:
                ray.cancel(unfinished, force=True)
            ray.shutdown()

    def _connect(self, address: str | None) -> None:
        place = re.fullmatch(r"(?:ray://)?([^:/]+|\[.*\]):(\d+)", address or "")
        if address and address != "auto" and not place:
            raise BenchmarkError(
                f"expected --address host:port of a Ray cluster, or auto; got {address!r}"
            )
        try:
            if place:  # Ray itself tries for a minute
                socket.create_connection((place[1].strip("[]"), int(place[2])), SECONDS).close()
            self._ray.init(address or "auto", log_to_driver=False, logging_level="error")
        except (OSError, OverflowError, RuntimeError, ValueError) as cause:
            raise BenchmarkError(
                f"no Ray cluster answers at {address or 'this machine'} "
                f"({str(cause).strip().splitlines()[0]}); start one with `ray start --head`, or "
                "name the head of one that runs with --address host:port"
            ) from cause

    def _room(self, worker: Worker) -> int:
        """Units to keep under way: two for each that can run at a time, as nodes come and go."""
        cpus = self._ray.cluster_resources().get("CPU", 0)
        return max(1, 2 * int(cpus // worker.threads))

    def _rows(self, done: Any) -> list[Row]:
        errors = self._ray.exceptions
        try:
            return self._ray.get(done)
        except errors.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, (BenchmarkError, OSError)) else error) from None
        except errors.RaySystemError as cause:
            raise BenchmarkError(f"Ray: {str(cause).strip().splitlines()[0]}") from cause
        except errors.RayError as cause:
            raise BenchmarkError(
                f"a cell was given up after {TRIES} tries on the Ray cluster: "
                f"{str(cause).strip().splitlines()[0]}; finished cells are kept"
            ) from cause
