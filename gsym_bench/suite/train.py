"""One training loop for all benchmarks: Adam, the best epoch by validation, checkpoints."""

from __future__ import annotations

import copy
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import Schedule

CHECKPOINT_SECONDS = 20.0

Measured = dict[str, float]


class Training(ABC):
    """A model with its data and its loss: what the loop has to know of a benchmark."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, and all that is prepared for it.

        Called once, right after the global generators were seeded, in a resumed training too.
        """

    def parameters(self, model: nn.Module) -> list[dict[str, Any]]:
        """Adam's groups of parameters; ``scale`` multiplies the learning rate of a group."""
        return [{"params": list(model.parameters())}]

    @abstractmethod
    def batches(self) -> Iterable[Any]:
        """The batches of one epoch; may draw from the global generators."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar that training minimises."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Measured:
        """What is measured after an epoch; the first number is shown while training."""

    def rank(self, measured: Measured) -> tuple[float, ...]:
        """Epochs are compared by this: the first one of least rank is the best."""
        return (next(iter(measured.values())),)

    @abstractmethod
    def contents(self, batch: Any) -> dict[str, Any]:
        """The tensors of a batch by name, to be kept if its loss is no finite number."""


@dataclass
class Fit:
    """A model with its best weights loaded, or why there is none.

    Attributes:
        status: ``"ok"``, ``"diverged"`` or ``"oom"``.
        seconds: Wall time.
        epochs: Epochs trained; ``None`` for what is fitted in closed form.
        best_epoch: Epoch of the kept weights, from 1.
        model: The model, or whatever a closed form gives.
        history: What was measured at each validation.
    """

    status: str
    seconds: float
    epochs: int | None = None
    best_epoch: int | None = None
    model: Any = None
    history: list[Measured] = field(default_factory=list)

    @property
    def parameters(self) -> int | None:
        """Trainable numbers, if the model is a module."""
        if not isinstance(self.model, nn.Module):
            return None
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def closed_form(function: Callable[[], Any], epochs: int | None = None) -> Fit:
    """The fit of what needs no training, timed."""
    start = time.perf_counter()
    model = function()
    return Fit("ok", time.perf_counter() - start, epochs, best_epoch=epochs, model=model)


class _DivergedError(Exception):
    """The loss or the validation metric is no finite number."""

    def __init__(self, contents: dict[str, Any]) -> None:
        super().__init__()
        self.contents = contents


@dataclass(frozen=True)
class Trainer:
    """Trains the model of one cell.

    Attributes:
        fabric: Device and precision.
        checkpoint: File that a training which was interrupted goes on from, bit for bit.
        diverged: File for the weights and the batch of a training that diverged.
        every: Shortest time between two checkpoints, in seconds.
        on_epoch: Called after each validation with the epoch, the number of epochs, and the first
            number that was measured at the best epoch so far.
    """

    fabric: Fabric
    checkpoint: Path
    diverged: Path
    every: float = CHECKPOINT_SECONDS
    on_epoch: Callable[[int, int, float], None] = lambda *_: None

    def fit(self, training: Training, schedule: Schedule, seed: int) -> Fit:
        """Train one model with Adam and load the weights of its best validation epoch.

        Raises:
            BenchmarkError: The checkpoint is damaged, or other code wrote it.
        """
        fabric = self.fabric
        fabric.seed_everything(seed, verbose=False)
        state: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best": None, "history": []}
        state |= {"seconds": 0.0, "best_measured": None}
        start = saved = time.perf_counter()
        try:
            model = training.model()
            groups = [{"scale": 1.0, **group} for group in training.parameters(model)]
            optimizer = torch.optim.Adam(groups, lr=schedule.lr)
            model, optimizer = fabric.setup(model, optimizer)
            if self.checkpoint.exists():
                state = _resume(self.checkpoint, model, optimizer, fabric.device)
            start -= state["seconds"]
            while state["epoch"] < schedule.epochs:
                self._epoch(training, schedule, model, optimizer, state["epoch"])
                epoch = state["epoch"] = state["epoch"] + 1
                if epoch % schedule.eval_every == 0 or epoch == schedule.epochs:
                    _validate(training, model, state)
                    shown = next(iter(state["best_measured"].values()))
                    self.on_epoch(epoch, schedule.epochs, shown)
                now = time.perf_counter()
                if now - saved >= self.every:
                    state["seconds"] = now - start
                    _save_checkpoint(self.checkpoint, state, model, optimizer)
                    saved = now
        except _DivergedError as stop:
            content = {"seed": seed, "epoch": state["epoch"], "model": model.state_dict()}
            with replacing(self.diverged) as file:
                torch.save(content | stop.contents, file)
            fit = Fit("diverged", time.perf_counter() - start, state["epoch"])
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            fit = Fit("oom", time.perf_counter() - start, state["epoch"])
        else:
            model.load_state_dict(state["best"])
            seconds = time.perf_counter() - start
            done = state["epoch"], state["best_epoch"], model.module, state["history"]
            fit = Fit("ok", seconds, *done)
        self.checkpoint.unlink(missing_ok=True)
        return fit

    def _epoch(
        self,
        training: Training,
        schedule: Schedule,
        model: Any,
        optimizer: Any,
        epoch: int,
    ) -> None:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * schedule.rate(epoch)
        for batch in training.batches():
            optimizer.zero_grad()
            loss = training.loss(model, batch)
            if not loss.isfinite():
                raise _DivergedError(training.contents(batch))
            self.fabric.backward(loss)
            if schedule.clip is not None:
                self.fabric.clip_gradients(
                    model, optimizer, max_norm=schedule.clip, error_if_nonfinite=False
                )
            optimizer.step()


def _validate(training: Training, model: nn.Module, state: dict[str, Any]) -> None:
    """Measure, and keep the weights if this epoch is the best so far."""
    model.eval()
    with torch.no_grad():
        measured = training.validate(model)
    rank = training.rank(measured)
    if not all(map(math.isfinite, rank)):
        raise _DivergedError({"measured": measured})
    state["history"].append(measured)
    if state["best"] is None or rank < training.rank(state["best_measured"]):
        state |= {"best_epoch": state["epoch"], "best_measured": measured}
        state["best"] = copy.deepcopy(model.state_dict())


_UNREADABLE = OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, PickleError


def _save_checkpoint(
    path: Path, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Everything the rest of the training depends on, in types that need no unpickling of code."""
    content = {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content["rng"] = torch.get_rng_state()
    # Benchmarks may draw from any global generator.
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
    """Undo `_save_checkpoint`; returns the state of the loop."""
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
    except _UNREADABLE as cause:
        reason = str(cause).strip().splitlines()[:1]
        raise BenchmarkError(
            f"cannot go on from {path} ({type(cause).__name__}: {' '.join(reason)}); it is damaged "
            "or was written by other code: delete it, and its cell starts again"
        ) from cause
    return content


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU, torch raises a plain RuntimeError that names its allocator.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )
