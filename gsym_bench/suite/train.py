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
from lightning.fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.sharing import Sharing
from gsym_bench.suite.task import Schedule

CHECKPOINT_SECONDS = 20.0
# Between two checkpoints lies so many times the time that one takes, or large nets train no faster
# than a disk writes.
RARER = 20.0

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
    def loss(self, model: Any, batch: Any) -> Tensor:
        """The scalar that training minimises."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Measured:
        """What is measured after an epoch; the first number is shown while training."""

    def rank(self, measured: Measured) -> tuple[float, ...]:
        """Epochs are compared by this: the first one of least rank is the best."""
        return (next(iter(measured.values())),)

    def inputs(self, batch: Any) -> Tensor:
        """What the model is called with, on a batch or, for ``None``, on the validation split.

        Only models that say so can train together with those of other seeds. ``loss`` calls its
        model once, ``validate`` on consecutive parts, and ``batches`` draws from generators no
        more once it has given a batch.
        """
        raise NotImplementedError

    def keep_best(self, state: dict[str, Any], epoch: int, measured: Measured) -> bool:
        """Add what an epoch measured to a state; whether it is the best so far.

        Raises:
            DivergedError: It is no finite number.
        """
        rank = self.rank(measured)
        if not all(map(math.isfinite, rank)):
            raise DivergedError({"measured": measured})
        state["history"].append(measured)
        if state["best_measured"] is not None and rank >= self.rank(state["best_measured"]):
            return False
        state |= {"best_epoch": epoch, "best_measured": measured}
        return True

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


class DivergedError(Exception):
    """The loss or the validation metric is no finite number."""

    def __init__(self, contents: dict[str, Any]) -> None:
        super().__init__()
        self.contents = contents


@dataclass(frozen=True)
class Trainer:
    """Trains the model of one cell.

    Attributes:
        fabric: Device and precision.
        checkpoint: File that a training which was interrupted goes on from, bit for bit. Whoever
            keeps the row deletes it then, not before.
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

        Several processes share the samples of each batch. Each computes the loss of the whole
        batch, from its own predictions and those of the others, so that every loss is that of one
        process, and a sum over processes is its gradient. The first process validates.

        Raises:
            BenchmarkError: The checkpoint is damaged, or other code wrote it.
        """
        fabric = self.fabric
        Generators.seed(seed)
        state: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best": None, "history": []}
        state |= {"seconds": 0.0, "best_measured": None}
        start = saved = time.perf_counter()
        wait = self.every
        try:
            model = training.model()
            sharing = Sharing(fabric, model)
            groups = [{"scale": 1.0, **group} for group in training.parameters(model)]
            optimizer = adam(groups, schedule.lr)
            model, optimizer = fabric.setup(model, optimizer)
            state = self._resume(model, optimizer) or state
            start -= state["seconds"]
            while state["epoch"] < schedule.epochs:
                self._epoch(training, schedule, model, sharing, optimizer, state["epoch"])
                epoch = state["epoch"] = state["epoch"] + 1
                if epoch % schedule.eval_every == 0 or epoch == schedule.epochs:
                    self._validate(training, model, state)
                    shown = next(iter(state["best_measured"].values()))
                    self.on_epoch(epoch, schedule.epochs, shown)
                now = time.perf_counter()
                if now - saved >= wait and fabric.is_global_zero:
                    state["seconds"] = now - start
                    content = {**state, "model": model.state_dict()}
                    content |= {"optimizer": optimizer.state_dict(), **Generators().content}
                    save_checkpoint(self.checkpoint, content)
                    saved = time.perf_counter()
                    # None between two asks for one after every epoch.
                    wait = max(self.every, RARER * (saved - now)) if self.every else 0.0
        except DivergedError as stop:
            self.keep_diverged(seed, state["epoch"], model.state_dict(), stop.contents)
            fit = Fit("diverged", time.perf_counter() - start, state["epoch"])
        except (RuntimeError, MemoryError) as error:
            # One process of several cannot go on without the others.
            if not is_out_of_memory(error) or fabric.world_size > 1:
                raise
            fit = Fit("oom", time.perf_counter() - start, state["epoch"])
        else:
            sharing.end()
            model.load_state_dict(state["best"])
            seconds = time.perf_counter() - start
            done = state["epoch"], state["best_epoch"], model.module, state["history"]
            fit = Fit("ok", seconds, *done)
        return fit

    def keep_diverged(
        self, seed: int, epoch: int, weights: dict[str, Tensor], contents: dict[str, Any]
    ) -> None:
        """Keep the weights and the batch of a training that diverged."""
        if self.fabric.is_global_zero:
            content = {"seed": seed, "epoch": epoch, "model": weights}
            save_checkpoint(self.diverged, content | contents)

    def _epoch(
        self,
        training: Training,
        schedule: Schedule,
        model: Any,
        sharing: Sharing,
        optimizer: Any,
        epoch: int,
    ) -> None:
        model.train()
        shared = sharing.of(model)
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * schedule.rate(epoch)
        for batch in training.batches():
            optimizer.zero_grad()
            loss = training.loss(shared, batch)
            if not loss.isfinite():
                raise DivergedError(training.contents(batch))
            # Processes average their gradients, of which each has a part.
            self.fabric.backward(loss * self.fabric.world_size)
            if schedule.clip is not None:
                self.fabric.clip_gradients(
                    model, optimizer, max_norm=schedule.clip, error_if_nonfinite=False
                )
            optimizer.step()

    def _validate(self, training: Training, model: Any, state: dict[str, Any]) -> None:
        """Measure, and keep the weights if this epoch is the best so far."""
        model.eval()
        measured: Measured | None = None
        if self.fabric.is_global_zero:
            with torch.no_grad():
                measured = training.validate(model.module)
        measured = self.fabric.broadcast(measured)
        assert measured is not None
        if training.keep_best(state, state["epoch"], measured):
            state["best"] = copy.deepcopy(model.state_dict())

    def _resume(self, model: nn.Module, optimizer: Any) -> dict[str, Any] | None:
        """Load the checkpoint, if there is one; the first process alone may see it."""

        def use(content: dict[str, Any]) -> None:
            model.load_state_dict(content.pop("model"))
            optimizer.load_state_dict(content.pop("optimizer"))
            Generators(content).use()

        fabric = self.fabric
        if fabric.broadcast(self.checkpoint.exists()):
            return load_checkpoint(self.checkpoint, fabric, use)
        return None


class Generators:
    """The states of all global generators, from which benchmarks may draw.

    Args:
        content: What `content` was; that of now by default.
    """

    _NAMES = ("rng", "numpy_rng", "python_rng", "cuda_rng")

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        if content is not None:
            self.content = {name: content.pop(name) for name in self._NAMES}
            return
        state_of_numpy: Any = np.random.get_state()  # noqa: NPY002
        kind, words, *place = state_of_numpy
        self.content = {
            "rng": torch.get_rng_state(),
            "numpy_rng": [kind, torch.from_numpy(words.astype(np.int64)), *place],
            "python_rng": random.getstate(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    @staticmethod
    def seed(seed: int) -> None:
        """Seed all of them."""
        seed_everything(seed, verbose=False)

    def use(self) -> None:
        """Put all of them into these states."""
        torch.set_rng_state(self.content["rng"].cpu())
        kind, words, *place = self.content["numpy_rng"]
        np.random.set_state((kind, words.cpu().numpy().astype(np.uint32), *place))  # noqa: NPY002
        random.setstate(self.content["python_rng"])
        if self.content["cuda_rng"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in self.content["cuda_rng"]])


def adam(groups: list[dict[str, Any]], lr: float) -> torch.optim.Adam:
    """Adam in one pass over each weight: one by one its operations take longer than small nets."""
    return torch.optim.Adam(groups, lr=lr, fused=True)


_UNREADABLE = OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, PickleError


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write types that need no unpickling of code, in no more bytes than they have.

    A tensor that is a part of a larger one would bring all of that along.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # on another machine there may be none
    with replacing(path) as file:
        torch.save(tree_map_only(Tensor, _own, content), file)


def _own(tensor: Tensor) -> Tensor:
    size = tensor.numel() * tensor.element_size()
    return tensor.clone() if tensor.untyped_storage().nbytes() > size else tensor


def load_checkpoint(
    path: Path, fabric: Fabric, use: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What the first process finds in a checkpoint, after ``use`` took from it what it needs.

    Raises:
        BenchmarkError: It is damaged, or other code wrote it.
    """
    try:
        content: Any = None
        if fabric.is_global_zero:
            content = torch.load(path, map_location=fabric.device, weights_only=True)
        content = fabric.broadcast(content)
        use(content)
    except _UNREADABLE as cause:
        reason = str(cause).strip().splitlines()[:1]
        raise BenchmarkError(
            f"cannot go on from {path} ({type(cause).__name__}: {' '.join(reason)}); it is damaged "
            "or was written by other code: delete it, and its cell starts again"
        ) from cause
    return content


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no more memory."""
    # On the CPU, torch raises a plain RuntimeError that names its allocator.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )
