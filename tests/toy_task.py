"""A task of four nodes that trains in milliseconds, shared by the tests of the runner."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym_bench.suite.results import Row, Value
from gsym_bench.suite.task import Problem, Schedule, Split, Task


class ToyTask(Task):
    """Denoise four numbers; batches and dropout draw from the global generator.

    Attributes:
        fail_at: Number of the training step that raises ``error``; ``None`` never does.
        error: What it raises; ``None`` makes the loss infinite instead.
        test_forwards: How often a model has seen the test inputs.
    """

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    metric: ClassVar[str] = "MSE"
    unit: ClassVar[str] = "V^2"
    model_name: ClassVar[str] = "dense"

    def __init__(self, fail_at: int | None = None, error: Exception | None = None) -> None:
        self.fail_at = fail_at
        self.error = error
        self.steps = 0
        self.fits = 0
        self.test_forwards = 0

    def load(self, data, profile, seed):
        generator = torch.Generator().manual_seed(seed)

        def split(count, offset):
            targets = torch.randn(count, 4, 1, generator=generator) + offset
            return Split(targets + 0.3 * torch.randn(count, 4, 1, generator=generator), targets)

        return Problem(
            dataset="noise",
            train=split(12, 0.0),
            val=split(8, 0.0),
            # An offset marks the test inputs, so that models can count how often they come by.
            test=split(8, 100.0),
            edge_index=torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]),
            positions=torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]),
            groups={
                "S_4": PermutationGroup.symmetric(4),
                "(S_2)^2": ClusterGroup(Partition.from_labels([0, 0, 1, 1])),
                "trivial": PermutationGroup.trivial(4),
            },
            truth="trivial",
        )

    def schedule(self, profile, data):
        return Schedule(epochs=6, batch_size=5, lr=0.05, clip=1.0)

    def model(self, problem, group, profile):
        self.fits += 1
        return _Dense(self)

    def loss(self, prediction, batch):
        self.steps += 1
        loss = F.mse_loss(prediction, batch.targets)
        if self.steps == self.fail_at:
            if self.error is not None:
                raise self.error
            return loss * torch.inf
        return loss

    def metrics(self, prediction, split, problem):
        error = prediction - split.targets
        return {"MSE": error.square().mean().item(), "MAE": error.abs().mean().item()}

    def baselines(self):
        return {"copy": lambda problem: lambda split: split.inputs}


class _Dense(nn.Module):
    def __init__(self, task: ToyTask) -> None:
        super().__init__()
        self._task = task
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        if not self.training and x.mean() > 50:
            self._task.test_forwards += 1
        return self.linear(self.dropout(x[..., 0]))[..., None]


_ROW = Row(
    key="k",
    commit="0" * 40,
    gsym="1",
    torch="2",
    python="3",
    device="cpu",
    threads=1,
    task="toy",
    dataset="noise",
    source="embedded",
    profile="quick",
    schedule="a",
    model="dense",
    group="S_4",
    group_order_log=3.178,
    commutant_dim=2,
    seed=0,
    status="ok",
    seconds=1.5,
    peak_memory_mib=2.0,
    parameters=20,
    epochs=6,
    best_epoch=5,
    fold=None,
    values=(
        Value("val", "MSE", "V^2", 1.0),
        Value("test", "MSE", "V^2", 2.0),
        Value("val", "MAE", "V^2", 0.5),
        Value("test", "MAE", "V^2", 0.7),
    ),
)


def change(row: Row, **changes) -> Row:
    """The row with some fields replaced; ``val``, ``test`` and ``unit`` are of the headline."""
    values = list(changes.pop("values", row.values))
    unit = changes.pop("unit", values[0].unit)
    for place, value in enumerate(values):
        if value.metric == values[0].metric:
            number = changes.pop(value.split, value.value)
            values[place] = dataclasses.replace(value, value=number, unit=unit)
    return dataclasses.replace(row, values=tuple(values), **changes)


def make_row(**changes) -> Row:
    """A plausible row with some fields replaced."""
    return change(_ROW, **changes)


def make_rows(group, dim, order, val, test) -> list[Row]:
    """Rows of one group, one per seed."""
    return [
        make_row(
            key=f"{group}-{seed}",
            group=group,
            commutant_dim=dim,
            group_order_log=order,
            seed=seed,
            val=v,
            test=t,
        )
        for seed, (v, t) in enumerate(zip(val, test, strict=True))
    ]
