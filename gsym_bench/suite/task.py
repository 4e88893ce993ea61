"""What a benchmark task is: data, split, metric with unit, candidate groups, model, baselines."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gsym.groups import PermutationGroup, Representation
from gsym_bench.suite.errors import BenchmarkError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Split:
    """One part of a data set; the first axis counts samples.

    Attributes:
        inputs: What the model sees, ``[b, ...]``.
        targets: What it should predict, ``[b, ...]``.
        mask: Where the target counts, same shape as ``targets``; ``None`` counts everything.
        aux: Named tensors ``[b, ...]`` that baselines or metrics need and the model does not see.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.inputs.size(0)

    def batch(self, index: Tensor) -> Split:
        """The samples at ``index``."""
        mask = None if self.mask is None else self.mask[index]
        aux = {name: value[index] for name, value in self.aux.items()}
        return Split(self.inputs[index], self.targets[index], mask, aux)

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        aux = {name: value.to(device) for name, value in self.aux.items()}
        return Split(self.inputs.to(device), self.targets.to(device), mask, aux)


@dataclass(frozen=True)
class Problem:
    """Everything one seed of a task needs.

    Attributes:
        dataset: Name of the data (``"digits"``, ``"metr-la"``), written to every row.
        train: Seen by the optimiser.
        val: Selects the epoch, the ridge strength and, in the report, the group.
        test: Seen once per finished cell, after all choices are made.
        edge_index: The fixed graph, ``[2, e]``; messages go from row 0 to row 1.
        positions: Where to draw each node, ``[n, 2]``.
        groups: Candidate groups by display name, from the full symmetric group to the trivial one.
        representations: How a group moves the channels of inputs and of targets, by its name;
            those of a group that is not listed stay.
        truth: Name of the true group where the data are simulated.
        extra: What the metrics need besides predictions (scales, weights).
        published: Numbers of others on the same test data, by model and metric, quoted; they stand
            in the table as baselines, marked as published.
    """

    dataset: str
    train: Split
    val: Split
    test: Split
    edge_index: Tensor
    positions: Tensor
    groups: Mapping[str, PermutationGroup]
    edge_weight: Tensor | None = None
    truth: str | None = None
    representations: Mapping[str, tuple[Representation, Representation]] = field(
        default_factory=dict
    )
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """How a model is trained: Adam, the epoch of best validation metric is kept.

    Attributes:
        epochs: Passes over the training split; 0 where the model of a task comes fitted.
        batch_size: Samples per step; ``None`` takes the whole split at once.
        lr: Adam's learning rate.
        cosine: Whether the rate falls along half a cosine, epoch by epoch, or stays.
        clip: Largest gradient norm, or ``None``.
        eval_every: Epochs between validations.
        eval_batch_size: Samples per forward pass in evaluation.
    """

    epochs: int
    batch_size: int | None = None
    lr: float = 1e-2
    cosine: bool = False
    clip: float | None = None
    eval_every: int = 1
    eval_batch_size: int = 1024

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if not self.cosine:
            return self.lr
        return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


Predictor = Callable[[Split], Tensor]


def generator_of(part: str, seed: int) -> torch.Generator:
    """A generator for one part of a problem, whatever else is drawn for the others.

    With one generator for all, test data would follow the number of training signals, and errors at
    two numbers could not be compared.

    Args:
        part: ``"train"``, ``"val"``, ``"test"``, or any words: others are another stream.
        seed: Seed of the problem.
    """
    stream = np.random.SeedSequence(seed, spawn_key=tuple(part.encode()))
    return torch.Generator().manual_seed(int(stream.generate_state(1, np.uint64)[0]))


def with_images(problem: Problem, group: str) -> Problem:
    """The problem with its training samples and their images under the generators of a group.

    For a group of order two a linear fit to these is tied as the group ties it.
    """
    train, perms = problem.train, problem.groups[group].generators
    inputs, targets = (
        torch.cat([x, *(rep.act(perm, x) for perm in perms)])
        for x, rep in zip(
            (train.inputs, train.targets), problem.representations[group], strict=True
        )
    )
    return replace(problem, train=Split(inputs, targets))


class Task(ABC):
    """A benchmark task. Subclasses are small: they say what, ``run.py`` says how.

    A new one is a module in ``gsym_bench/tasks`` whose class is decorated by `register`, and its
    test. All lists of tasks are made from what is registered.

    Attributes:
        name: What the command line calls it.
        title: What the report calls it.
        metric: Name of the headline metric; lower is better.
        unit: Its unit.
        units: Units of other metrics that have another one, by name.
        model_name: Written to every row.
        draws: How seeds draw the data, where that was not always so: rows of other draws are never
            averaged with them.
        needs_data: Whether it has no embedded data; such a task runs only when it is named.
        profiles: The profiles it has.
        superseded: Those that are kept to compare with what was published, though nobody would pose
            the task so today; they make no headline.
        seeds: Number of seeds by profile, where a run is not told.
        shown: Test samples whose predictions a run keeps for `picture`.
        choosing: Further arguments of `gsym.choose_group` for its signals.
        command: What runs it, up to its options; empty for `gsym-bench run` and its name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[str]
    units: ClassVar[Mapping[str, str]] = {}
    model_name: ClassVar[str]
    draws: ClassVar[str] = ""
    needs_data: ClassVar[bool] = False
    profiles: ClassVar[tuple[str, ...]] = ("quick", "standard")
    superseded: ClassVar[tuple[str, ...]] = ()
    seeds: ClassVar[Mapping[str, int]] = {"quick": 5, "standard": 5, "paper": 3}
    shown: ClassVar[tuple[int, ...]] = ()
    choosing: ClassVar[Mapping[str, Any]] = {}
    command: str = ""

    @abstractmethod
    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        """Build the problem of one seed, from ``data`` or, if ``None``, from embedded data."""

    def load_few(self, data: Path | None, profile: str, seed: int, signals: int) -> Problem:
        """The problem of one seed with this many training signals.

        By default they are drawn from those of `load`: fewer of one seed are among the more.

        Raises:
            BenchmarkError: There are not so many.
        """
        problem = self.load(data, profile, seed)
        total = len(problem.train)
        if not 0 < signals <= total:
            raise BenchmarkError(
                f"task {self.name!r} has {total} training signals; got --signals {signals}"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(total, generator=generator)[:signals]
        return replace(problem, train=problem.train.batch(drawn))

    @abstractmethod
    def schedule(self, profile: str, data: Path | None) -> Schedule:
        """Epochs, batch size and learning rate of a profile."""

    @abstractmethod
    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        """A fresh model tied along the group of this name; called as ``model(inputs)``."""

    def variants(
        self, problem: Problem, profile: str, as_published: bool = False
    ) -> Mapping[str, Sequence[str]]:
        """Further models by name, with the groups that each is trained with; none by default.

        Args:
            problem: The problem.
            profile: Name of the profile.
            as_published: Whether to add faulty models and data as they were published; the names of
                these end in `results.AS_PUBLISHED`, and validation never chooses them.
        """
        return {}

    def variant(self, name: str, problem: Problem, group: str, profile: str) -> nn.Module:
        """As `model`, for one of `variants`."""
        raise NotImplementedError(f"{type(self).__name__} has no variant {name!r}")

    def told(self, profile: str) -> str:
        """What each method is told, in one sentence for the page; empty if all see the same."""
        return ""

    def view(self, variant: str, problem: Problem, profile: str) -> Problem:
        """The problem as a model sees it: the main one, ``""``, or one of `variants`.

        Here is the place of what takes long and what only some models need.
        """
        return problem

    def epoch(self, train: Split, profile: str) -> Split:
        """The training split of the next epoch; may draw from torch's global generator.

        Args:
            train: The training split of `view`, on the device.
            profile: Name of the profile.
        """
        return train

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Split) -> Tensor:
        """The scalar that training minimises."""

    @abstractmethod
    def metrics(self, prediction: Tensor, split: Split, problem: Problem) -> dict[str, float]:
        """Metrics over a whole split by name; the headline ``metric`` is the first."""

    @abstractmethod
    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        """Fit functions by display name; each returns a predictor for any split."""

    def picture(self, samples: Split, predictions: Mapping[str, Tensor]) -> Figure | None:
        """What a person would look at; none by default.

        Args:
            samples: The test samples of `shown`.
            predictions: Of each method by its name.
        """
        return None

    def example(self, problem: Problem) -> Figure | None:
        """A figure from models that are fitted in seconds; none by default."""
        return None


TASKS: dict[str, Task] = {}
"""The tasks that the command line knows, by name."""


def register(kind: type[Task]) -> type[Task]:
    """Make a task known to the command line, as a decorator of its class.

    Raises:
        ValueError: Another class has registered a task of this name.
    """
    other = TASKS.setdefault(kind.name, kind())
    if type(other) is not kind:
        raise ValueError(f"two tasks are called {kind.name!r}: {type(other)} and {kind}")
    return kind
