"""Train every cell of the benchmark: one task, one group or baseline, one seed."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import PickleError
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from benchmarks.data import replacing, write_npz
from benchmarks.suite.errors import BenchmarkError, check_names
from benchmarks.suite.folder import locked
from benchmarks.suite.memory import peak_memory
from benchmarks.suite.store import (
    RESULTS,
    Row,
    Value,
    append_row,
    file_stem,
    graph_path,
    read_rows,
    recover,
)
from benchmarks.suite.task import Predictor, Problem, Schedule, Split, Task
from gsym.groups import ClusterGroup, PermutationGroup, Representation

PROFILES = ("quick", "standard")
DEVICES = ("auto", "cpu", "cuda")

_CHECKPOINT_SECONDS = 20.0
_LOG_SECONDS = 30.0


@dataclass
class Fit:
    """A trained model with its best weights loaded, or why there is none."""

    status: str
    seconds: float
    epochs: int
    best_epoch: int | None = None
    model: nn.Module | None = None


class _DivergedError(Exception):
    """The loss or the validation metric is no finite number."""

    def __init__(self, batch: Split) -> None:
        super().__init__()
        self.batch = batch


def run(
    tasks: Sequence[Task],
    *,
    out: Path,
    profile: str = "quick",
    data: Path | None = None,
    groups: Sequence[str] = (),
    seeds: int = 3,
    device: str = "auto",
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    console: Console | None = None,
) -> list[Row]:
    """Run every cell that ``out/results.csv`` does not hold yet.

    A cell that was interrupted goes on from its checkpoint in ``out/checkpoints``.

    Args:
        tasks: What to run.
        out: Folder of results, created if absent.
        profile: ``"quick"`` or ``"standard"``.
        data: Folder of downloaded data, or ``None`` for embedded data.
        groups: Names of groups to run; all if empty. A task runs those that it has.
        seeds: Number of seeds of every cell: 0, 1, ...
        device: ``"auto"`` takes CUDA where there is a device.
        checkpoint_seconds: Shortest time between two checkpoints.
        console: Where to say what is going on; standard output by default.

    Returns:
        The rows of this run's cells, those found finished included.

    Raises:
        BenchmarkError: An unknown profile, group or device, a task that needs ``data``, a number
            of seeds below one, an ``out`` that cannot be written, that another process writes to,
            or that holds results of other code.
    """
    console = console or Console()
    check_names("profile", [profile], PROFILES)
    check_names("device", [device], DEVICES)
    if seeds < 1:
        raise BenchmarkError(f"expected at least one seed; got --seeds {seeds}")
    for task in tasks:
        if task.needs_data and data is None:
            raise BenchmarkError(
                f"task {task.name!r} needs files; name their folder with --data DIR"
            )
    runner = _Runner(_fabric(device), out, profile, data, checkpoint_seconds)
    with locked(out):
        return runner.run(tasks, groups, seeds, console)


@dataclass
class _Runner:
    """What all cells of a run share."""

    fabric: Fabric
    out: Path
    profile: str
    data: Path | None
    checkpoint_seconds: float

    def run(
        self, tasks: Sequence[Task], groups: Sequence[str], seeds: int, console: Console
    ) -> list[Row]:
        """All cells, in a folder that no one else writes to."""
        _clear(self.out)
        torn = recover(self.out / RESULTS)
        if torn is not None:
            console.print(
                f"The last line of {self.out / RESULTS} was cut off; it was moved to "
                f"{RESULTS}.torn and its cell is run again: {torn[:60]}...",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        self.finished = {row.key: row for row in read_rows(self.out)}
        self.provenance = provenance()
        problems = [task.load(self.data, self.profile, 0) for task in tasks]
        check_names("group", groups, dict.fromkeys(name for p in problems for name in p.groups))
        for task, problem in zip(tasks, problems, strict=True):
            _save_graph(self.out, task, problem, self.profile)
        total = seeds * sum(
            len(task.baselines()) + len(_chosen(problem, groups))
            for task, problem in zip(tasks, problems, strict=True)
        )
        rows = []
        with _Display(console, total) as display:
            for task, first in zip(tasks, problems, strict=True):
                for seed in range(seeds):
                    problem = first if seed == 0 else task.load(self.data, self.profile, seed)
                    for name in task.baselines():
                        rows.append(self.cell(task, problem, seed, display, baseline=name))
                    for name in _chosen(problem, groups):
                        rows.append(self.cell(task, problem, seed, display, group=name))
        return rows

    def cell(
        self,
        task: Task,
        problem: Problem,
        seed: int,
        display: _Display,
        *,
        group: str = "",
        baseline: str = "",
    ) -> Row:
        """One row: from the results if the cell is finished, else by fitting and testing."""
        label = f"{task.name}, {problem.dataset}, {group or baseline}, seed {seed}"
        schedule = task.schedule(self.profile, self.data)
        symmetry = problem.groups[group] if group else None
        config: dict[str, Any] = {
            "task": task.name,
            "dataset": problem.dataset,
            "source": "embedded" if self.data is None else "files",
            "profile": self.profile,
            "schedule": _hash(asdict(schedule)),
            "model": task.model_name if group else baseline,
            "group": group,
            "seed": seed,
        }
        reps = problem.representations.get(group, ())
        fingerprint = symmetry.fingerprint().hex() if symmetry else ""
        fingerprint += "".join(rep.fingerprint().hex() for rep in reps)
        key = _hash({**config, "fingerprint": fingerprint})
        if key in self.finished:
            display.finish(f"{label}: already in the results", trained=False)
            return self.finished[key]

        device = self.fabric.device if group else torch.device("cpu")
        peak = peak_memory(device)
        if symmetry:
            fit = _train(
                self.fabric,
                task,
                problem,
                group,
                self.profile,
                schedule,
                seed,
                checkpoint=self.out / "checkpoints" / f"{key}.pt",
                every=self.checkpoint_seconds,
                wreck=self.out / "diverged" / f"{key}.pt",
                on_epoch=lambda epoch, val: display.epoch(
                    f"{label}: validation {task.metric} {val:.4g}", epoch, schedule.epochs
                ),
            )
            predict = None if fit.model is None else _predictor(fit.model, device, schedule)
        else:
            start = time.perf_counter()
            predict = task.baselines()[baseline](problem)
            fit = Fit("ok", time.perf_counter() - start, 0)
        memory = peak()

        val: dict[str, float] = {}
        test: dict[str, float] = {}
        if predict is not None:
            val = task.metrics(predict(problem.val), problem.val, problem)
            # The only look at the test split: every choice within this cell has been made.
            test = task.metrics(predict(problem.test), problem.test, problem)
            if not all(map(math.isfinite, (*val.values(), *test.values()))):
                fit.status, val, test = "diverged", {}, {}
        names = val or dict.fromkeys([task.metric])
        row = Row(
            key=key,
            **self.provenance,
            device=_device_name(device),
            threads=torch.get_num_threads(),
            **config,
            group_order_log=symmetry.log_order() if symmetry else None,
            commutant_dim=_free_weights(symmetry, *reps) if symmetry else None,
            status=fit.status,
            seconds=fit.seconds,
            peak_memory_mib=memory,
            parameters=None if fit.model is None else _num_parameters(fit.model),
            epochs=fit.epochs if group else None,
            best_epoch=fit.best_epoch,
            fold=None,
            values=tuple(
                Value(split, name, task.unit, found.get(name))
                for name in names
                for split, found in (("val", val), ("test", test))
            ),
        )
        append_row(self.out, row)
        self.finished[key] = row
        result = row.status if row.val is None else f"validation {task.metric} {row.val:.4g}"
        display.finish(f"{label}: {result}, {row.seconds:.1f} s")
        return row


def _train(
    fabric: Fabric,
    task: Task,
    problem: Problem,
    group: str,
    profile: str,
    schedule: Schedule,
    seed: int,
    *,
    checkpoint: Path,
    every: float,
    wreck: Path,
    on_epoch: Callable[[int, float], None],
) -> Fit:
    """Train one model with Adam and load the weights of its best validation epoch."""
    fabric.seed_everything(seed, verbose=False)
    state: dict[str, Any] = {"epoch": 0, "best_epoch": None, "best_val": math.inf, "best": None}
    state["seconds"] = 0.0
    start = saved = time.perf_counter()
    try:
        model = task.model(problem, group, profile)
        optimizer = torch.optim.Adam(model.parameters(), lr=schedule.lr)
        model, optimizer = fabric.setup(model, optimizer)
        train = problem.train.to(fabric.device)
        predict = _predictor(model, fabric.device, schedule)
        if checkpoint.exists():
            state = _resume(checkpoint, model, optimizer, fabric.device)
        start -= state["seconds"]
        while state["epoch"] < schedule.epochs:
            model.train()
            for options in optimizer.param_groups:
                options["lr"] = schedule.rate(state["epoch"])
            for batch in _batches(train, schedule.batch_size):
                optimizer.zero_grad()
                loss = task.loss(model(batch.inputs), batch)
                if not loss.isfinite():
                    raise _DivergedError(batch)
                fabric.backward(loss)
                if schedule.clip is not None:
                    fabric.clip_gradients(
                        model, optimizer, max_norm=schedule.clip, error_if_nonfinite=False
                    )
                optimizer.step()
            epoch = state["epoch"] = state["epoch"] + 1
            if epoch % schedule.eval_every == 0 or epoch == schedule.epochs:
                metrics = task.metrics(predict(problem.val), problem.val, problem)
                val = metrics[task.metric]
                if not math.isfinite(val):
                    raise _DivergedError(problem.val)
                if val < state["best_val"]:
                    best = copy.deepcopy(model.state_dict())
                    state |= {"best_val": val, "best_epoch": epoch, "best": best}
                on_epoch(epoch, state["best_val"])
            now = time.perf_counter()
            if now - saved >= every:
                state["seconds"] = now - start
                _save_checkpoint(checkpoint, state, model, optimizer)
                saved = now
    except _DivergedError as stop:
        content = {"seed": seed, "epoch": state["epoch"], "model": model.state_dict()}
        content |= {"inputs": stop.batch.inputs, "targets": stop.batch.targets}
        with replacing(wreck) as file:
            torch.save(content, file)
        fit = Fit("diverged", time.perf_counter() - start, state["epoch"])
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        fit = Fit("oom", time.perf_counter() - start, state["epoch"])
    else:
        model.load_state_dict(state["best"])
        seconds = time.perf_counter() - start
        fit = Fit("ok", seconds, state["epoch"], state["best_epoch"], model)
    checkpoint.unlink(missing_ok=True)
    return fit


def _batches(train: Split, batch_size: int | None) -> Iterator[Split]:
    """One epoch: the whole split, or its samples in random order."""
    if batch_size is None:
        yield train
    else:
        order = torch.randperm(len(train)).to(train.inputs.device)
        for index in order.split(batch_size):
            yield train.batch(index)


def _predictor(model: nn.Module, device: torch.device, schedule: Schedule) -> Predictor:
    """The model as a function from a split on the CPU to predictions on the CPU."""

    @torch.no_grad()
    def predict(split: Split) -> Tensor:
        model.eval()
        parts = split.inputs.split(schedule.eval_batch_size)
        return torch.cat([model(part.to(device)).cpu() for part in parts])

    return predict


_UNREADABLE = OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, PickleError


def _save_checkpoint(
    path: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Everything the rest of the training depends on, in types that need no unpickling of code."""
    content = {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content["rng"] = torch.get_rng_state()
    # Tasks may draw from any global generator.
    state_of_numpy: Any = np.random.get_state()  # noqa: NPY002
    kind, words, *place = state_of_numpy
    content["numpy_rng"] = [kind, torch.from_numpy(words.astype(np.int64)), *place]
    content["python_rng"] = random.getstate()
    content["cuda_rng"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    with replacing(path) as file:
        torch.save(content, file)


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Undo `_save_checkpoint`; returns the state of the loop.

    Raises:
        BenchmarkError: The file is damaged, or other code wrote it.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(content.pop("model"))
        optimizer.load_state_dict(content.pop("optimizer"))
        torch.set_rng_state(content.pop("rng").cpu())
        kind, words, *place = content.pop("numpy_rng")
        np.random.set_state((kind, words.cpu().numpy().astype(np.uint32), *place))  # noqa: NPY002
        random.setstate(content.pop("python_rng"))
        cuda = content.pop("cuda_rng")
        if cuda:
            torch.cuda.set_rng_state_all([state.cpu() for state in cuda])
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        PickleError,
    ) as cause:
        reason = str(cause).strip().splitlines()[:1]
        raise BenchmarkError(
            f"cannot go on from {path} ({type(cause).__name__}: {' '.join(reason)}); it is damaged "
            "or was written by other code: delete it, and its cell starts anew"
        ) from cause
    return content


def _fabric(device: str) -> Fabric:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            f"--device cuda, but torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return Fabric(accelerator=device, devices=1, precision="32-true")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _clear(out: Path) -> None:
    """Make the folders of a run, and delete what a killed one was writing."""
    for folder in (out, out / "checkpoints", out / "diverged"):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as cause:
            raise BenchmarkError(
                f"cannot make the folder {folder} ({cause.strerror}); choose another --out"
            ) from cause
        for path in folder.glob("*.[0-9]*.tmp"):
            path.unlink()


def _chosen(problem: Problem, groups: Sequence[str]) -> list[str]:
    return [name for name in problem.groups if not groups or name in groups]


def _free_weights(group: PermutationGroup, *reps: Representation) -> int:
    """Free weights of an equivariant map, per pair of channels."""
    pairs = math.prod(rep.num_channels for rep in reps)
    return group.commutant_dim(*reps) // pairs


def _hash(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU, torch raises a plain RuntimeError that names its allocator.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )


def provenance() -> dict[str, Any]:
    """Which source and which versions make the numbers."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty"]
    here = Path(__file__).parent
    try:
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        revision = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    try:
        gsym = version("gsym")
    except PackageNotFoundError:
        gsym = "not installed"
    python = platform.python_version()
    return {"commit": revision, "gsym": gsym, "torch": torch.__version__, "python": python}


def _save_graph(out: Path, task: Task, problem: Problem, profile: str) -> None:
    """Keep what the report draws, so that it needs no data."""
    names = list(problem.groups)
    clusters = [
        group.partition.labels if isinstance(group, ClusterGroup) else group.node_orbits().index
        for group in problem.groups.values()
    ]
    write_npz(
        graph_path(out, file_stem(task.name, problem.dataset, profile)),
        title=np.array(task.title),
        truth=np.array(problem.truth or ""),
        names=np.array(names),
        clusters=torch.stack(clusters).numpy(),
        orbits=torch.stack([g.node_orbits().index for g in problem.groups.values()]).numpy(),
        edge_index=problem.edge_index.numpy(),
        positions=problem.positions.numpy(),
    )


class _Display:
    """Says what is being done: bars on a terminal, plain lines elsewhere."""

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

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def epoch(self, text: str, epoch: int, epochs: int) -> None:
        """One epoch of the current cell is over."""
        self._progress.update(self._epochs, description=text, completed=epoch, total=epochs)
        now = time.monotonic()
        first, then = self._began = self._began or (epoch, now)
        if not self._console.is_terminal and now - self._spoke > _LOG_SECONDS and epoch > first:
            left = (epochs - epoch) * (now - then) / (epoch - first)
            self._say(f"{text}, epoch {epoch}/{epochs}, {left:.0f} s left")

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
        self._say(text)

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(
            f"[{self._done}/{self._total}] {text}", markup=False, highlight=False, soft_wrap=True
        )
