"""Runs of a tiny suite that are killed, interrupted or held off; prints what became of them.

    python tests/lives.py FOLDER --kills 30 --moments 30

Torch is imported once; every life is a fork. A run is killed at a random step, or while it saves a
checkpoint, which then is half written, or while it renames a file or flushes one to the disk.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from torch import nn
from toy_task import ToyTask

from gsym_bench import tasks
from gsym_bench.__main__ import main
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.run import run
from gsym_bench.suite.task import Schedule

NOISY = {"seconds", "peak_memory_mib"}
SEEDS = 2


class Task(ToyTask):
    """Draws from every global generator; its rate falls from epoch to epoch."""

    def __init__(self, on_step=lambda step: None):
        super().__init__()
        self.on_step = on_step

    def schedule(self, profile, data):
        return Schedule(epochs=6, batch_size=5, lr=0.05, clip=1.0, cosine=True)

    def loss(self, prediction, batch):
        loss = super().loss(prediction, batch)
        self.on_step(self.steps)
        return loss * (1 + np.random.rand() + random.random())  # noqa: NPY002


class Normed(nn.Module):
    """Norms over the batch, of two channels with two values each, whose shift the next map has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        y = self.norm(self.first(x[..., 0]).view(-1, 2, 2))
        return self.last(y.flatten(1).relu())[..., None]


class SteadyTask(ToyTask):
    """Draws nothing when a model is called, so that it may be called on a part of a batch.

    Its norms are over the whole batch; batches of five and two samples leave a share incomplete.
    """

    def __init__(self, on_step=lambda step: None):
        super().__init__()
        self.on_step = on_step

    def model(self, problem, group, profile):
        return Normed()

    def loss(self, prediction, batch):
        self.on_step(self.steps)
        return super().loss(prediction, batch)


def fork(body, errors: Path | None = None) -> int:
    """Start ``body`` in a child; what it raises or returns becomes its exit code."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if errors is not None:
            sys.stderr = errors.open("w")
        sys.stdout = io.StringIO()
        body()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BenchmarkError as error:
        print(error, file=sys.__stderr__)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(out: Path, task: ToyTask, **options) -> list:
    quiet = Console(file=io.StringIO())
    options |= {"seeds": SEEDS, "device": "cpu", "checkpoint_seconds": 0.0, "console": quiet}
    return run([task], out=out, **options)


def doomed(out: Path, at: int) -> None:
    """Train, and die at the event of this number."""
    count = itertools.count(1)

    def tick(*_):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def half_saved(content, file, save=torch.save):
        whole = io.BytesIO()
        save(content, whole)
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        tick()
        file.write(whole.getvalue()[half:])

    def before(function):
        def wrapped(*arguments):
            tick()
            return function(*arguments)

        return wrapped

    torch.save = half_saved
    os.fsync, Path.replace = before(os.fsync), before(Path.replace)
    train(out, Task(tick))


def rows_of(out: Path) -> list[dict]:
    return [{k: v for k, v in vars(row).items() if k not in NOISY} for row in read_rows(out)]


def kill(folder: Path, kills: int, seed: int) -> dict:
    """Kill runs until so many have died; every folder is brought to its end."""
    rng = random.Random(seed)
    assert wait(fork(lambda: train(folder / "whole", Task()))) == 0
    whole, equal, died, halves = rows_of(folder / "whole"), [], 0, 0
    for number in itertools.count():
        out = folder / str(number)
        while True:
            at = rng.randint(5, 60)
            code = wait(fork(lambda: doomed(out, at)))  # noqa: B023
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            died += 1
            halves += len(list(out.glob("checkpoints/*.tmp")))
        equal.append(rows_of(out) == whole)
        if died >= kills:
            left = [p.name for p in out.rglob("*") if p.suffix in (".tmp", ".pt")]
            return {"rows": len(whole), "died": died, "halves": halves, "equal": equal} | {
                "left": left
            }


def moments(folder: Path, kills: int, seed: int) -> dict:
    """Kill trainings of a real task at random moments, wherever their processes are."""
    rng, task = random.Random(seed), tasks.TASKS["inpainting"]

    def go(out: Path):
        quiet = Console(file=io.StringIO())
        options = {"seeds": 1, "device": "cpu", "checkpoint_seconds": 0.0, "console": quiet}
        return lambda: run([task], out=out, groups=("trivial",), **options)

    start = time.monotonic()
    assert wait(fork(go(folder / "real"))) == 0
    usual, whole, died, equal = time.monotonic() - start, rows_of(folder / "real"), 0, []
    for number in itertools.count():
        out = folder / f"real-{number}"
        while True:
            pid = fork(go(out))
            until = time.monotonic() + rng.uniform(0, 1.2 * usual)
            while time.monotonic() < until and psutil.Process(pid).status() != "zombie":
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            died += 1
        equal.append(rows_of(out) == whole)
        if died >= kills:
            return {"rows": len(whole), "died": died, "equal": equal, "seconds": usual}


def full(folder: Path) -> dict:
    """Let the disk take no byte more in mid-training, then go on with room."""
    folder.mkdir()
    out = folder / "out"

    def on_step(step: int) -> None:
        if step == 20:  # in the second training
            size = (out / "results.csv").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))

    code = wait(fork(command(out, Task(on_step)), folder / "told"))
    first = len(read_rows(out))
    again = wait(fork(command(out, Task())))
    return {"code": code, "told": (folder / "told").read_text(), "first": first} | {
        "again": again,
        "equal": rows_of(out) == rows_of(folder.parent / "whole"),
        "left": [p.name for p in out.rglob("*") if p.suffix == ".tmp"],
    }


def command(out: Path, task: Task):
    def body():
        tasks.TASKS["toy"] = task
        # One worker: steps are counted in this process.
        words = ["run", "toy", "--seeds", str(SEEDS), "--workers", "1", "--device", "cpu"]
        main([*words, "--out", str(out)])

    return body


def until(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def interrupt(folder: Path, number: int) -> dict:
    """Send a signal to a command that waits for a worker, which has a worker of its own."""
    out, worker, told = folder / "out", folder / "worker", folder / "told"
    folder.mkdir()
    script = f"sleep 600 & echo $! > {worker}.tmp; mv {worker}.tmp {worker}; wait"

    def on_step(step):
        if step == 5:
            subprocess.run(["sh", "-c", script], check=False)

    pid = fork(command(out, Task(on_step)), told)
    until(worker)
    os.kill(pid, number)
    code = wait(pid)
    alive = False
    with suppress(psutil.NoSuchProcess):
        alive = psutil.Process(int(worker.read_text())).status() != psutil.STATUS_ZOMBIE
    first = len(read_rows(out))
    again = wait(fork(command(out, Task())))
    return {"code": code, "told": told.read_text(), "alive": alive, "first": first} | {
        "again": again,
        "equal": rows_of(out) == rows_of(folder.parent / "whole"),
    }


def compete(folder: Path) -> dict:
    """Start a second command while the first one trains."""
    out, begun, over, told = (folder / name for name in ("out", "begun", "over", "told"))
    folder.mkdir()

    def on_step(step):
        begun.touch()
        until(over)

    first = fork(command(out, Task(on_step)))
    until(begun)
    second = wait(fork(command(out, Task()), told))
    over.touch()
    return {"first": wait(first), "second": second, "told": told.read_text(), "pid": first} | {
        "equal": rows_of(out) == rows_of(folder.parent / "whole"),
    }


def share(folder: Path) -> dict:
    """Train in two processes as ``torchrun`` starts them, the second of which is killed first."""

    def process(rank: int, port: int, on_step=lambda step: None):
        def body():
            told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": port}
            told |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
            told |= {"TORCHELASTIC_RUN_ID": "lives", "GLOO_SOCKET_IFNAME": "lo"}
            os.environ.update({name: str(value) for name, value in told.items()})
            if rank:  # which writes no file at all
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            rows = train(folder / "shared", SteadyTask(on_step), devices=2)
            assert bool(rows) == (rank == 0)

        return fork(body, None if rank else folder / "told")

    def die(step: int) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    folder.mkdir()
    assert wait(fork(lambda: train(folder / "alone", SteadyTask()))) == 0
    port = _free_port()
    first, second = process(0, port), process(1, port, die)
    killed = [wait(second), wait(first)]
    left = len(list((folder / "shared" / "checkpoints").iterdir()))
    port = _free_port()
    ended = [wait(pid) for pid in [process(rank, port) for rank in (0, 1)]]
    rows = [read_rows(folder / name) for name in ("alone", "shared")]
    pairs = [
        (a.value, b.value)
        for one, two in zip(*rows, strict=True)
        for a, b in zip(one.values, two.values, strict=True)
    ]
    return {"killed": killed, "left": left, "ended": ended, "values": len(pairs)} | {
        "cells": [[f"{r.name} {r.seed} {r.status} {r.best_epoch}" for r in own] for own in rows],
        "difference": max(abs(a - b) / abs(a) for a, b in pairs),
        "devices": sorted({row.device for row in rows[1]}),
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=0, help="kills of a real task; minutes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {"killed": kill(chosen.folder, chosen.kills, chosen.seed)}
    found |= {n.name: interrupt(chosen.folder / n.name, n) for n in (signal.SIGINT, signal.SIGTERM)}
    found["compete"] = compete(chosen.folder / "compete")
    found["share"] = share(chosen.folder / "share")
    found["full"] = full(chosen.folder / "full")
    if chosen.moments:
        found["moments"] = moments(chosen.folder, chosen.moments, chosen.seed)
    sys.stdout.write(json.dumps(found))
