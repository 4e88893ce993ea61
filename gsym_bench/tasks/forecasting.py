"""Forecast the next readings at every node: the hour of METR-LA, and series of anyone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gsym.groups import PermutationGroup
from gsym.nn import OrbitEmbedding
from gsym_bench.data import find, read_npz
from gsym_bench.models.stid import NodeMLP
from gsym_bench.suite.task import Predictor, Problem, Schedule, Split, Task, register
from gsym_bench.tasks.traffic import Recording, freeway, metr_la

SOFT = "soft chain"
SLOTS = 288
# Where a reading is missing, in standard deviations from the mean: where none is.
MISSING = -5.0
# Quoted, not run here: DCRNN (arXiv 1707.01926), Graph WaveNet (1906.00121), STID (2208.05233).
PUBLISHED = {
    "DCRNN": {"MAE": (2.77, 3.15, 3.60), "RMSE": (5.38, 6.45, 7.60), "MAPE": (7.3, 8.8, 10.5)},
    "Graph WaveNet": {
        "MAE": (2.69, 3.07, 3.53),
        "RMSE": (5.15, 6.22, 7.37),
        "MAPE": (6.90, 8.37, 10.01),
    },
    "STID": {"MAE": (2.82, 3.19, 3.55)},
}


@dataclass(frozen=True)
class Series:
    """Readings in even steps of time, and what is known of the nodes.

    Attributes:
        dataset: Name of the data.
        values: Readings ``[t, n]``, NaN where there is none.
        time_of_day: Fraction of the day, ``[t]``; 0 where times are not known.
        day: Day of the week from 0, ``[t]``.
        edge_index: The graph, ``[2, e]``.
        positions: Where to draw the nodes, ``[n, 2]``.
        groups: Candidates by name, from the full symmetric group to the trivial one.
        truth: Name of the true group where the data are simulated.
    """

    dataset: str
    values: Tensor
    time_of_day: Tensor
    day: Tensor
    edge_index: Tensor
    positions: Tensor
    groups: Mapping[str, PermutationGroup]
    truth: str | None = None


@dataclass(frozen=True)
class Budget:
    """How much of the data one cell sees and for how long; ``None`` takes all training windows."""

    channels: int
    train_windows: int | None
    val_stride: int
    epochs: int
    batch_size: int


class Forecast(Task):
    """Some steps in, some steps out, at every node of a fixed graph.

    The split is the field's: windows in order of time, 70 % for training, 10 % for validation, 20 %
    for test. The scale comes from readings of the training part alone. Missing readings count in
    no mean.

    The model is a light perceptron without messages (`NodeMLP`) that tells nodes apart by an
    embedding, tied along the group: one vector for all with S_n, one per cluster or per node with
    finer groups. The soft chain is their sum over all levels; it counts as trivial,
    because it keeps no symmetry for sure.
    """

    model_name: ClassVar[str] = "NodeMLP"
    history: ClassVar[int] = 12
    horizon: ClassVar[int] = 12
    spans: ClassVar[Mapping[str, slice]] = {"": slice(None)}  # of which steps an error is told
    relative: ClassVar[bool] = False  # whether errors are also told in percent
    # Whether the three parts share no step: windows that would lie in two are left out.
    apart: ClassVar[bool] = False

    @abstractmethod
    def series(self, data: Path | None) -> Series:
        """The readings."""

    @abstractmethod
    def budget(self, profile: str, data: Path | None) -> Budget:
        """How much of them one cell sees."""

    def published(self, dataset: str) -> Mapping[str, Mapping[str, float]]:
        """Numbers of others on the same test windows."""
        return {}

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        series, budget = self.series(data), self.budget(profile, data)
        count = len(series.values) - self.history - self.horizon + 1
        gap = self.history + self.horizon - 1 if self.apart else 0
        used = count - 2 * gap
        train_end, test_start = round(0.7 * used), count - round(0.2 * used)
        seen = series.values[: train_end + self.history - 1]
        seen = seen[~seen.isnan()]
        mean, std = seen.mean(), seen.std()
        windows = self._windows(series, mean, std)
        train = _part(windows, slice(train_end))
        if budget.train_windows is not None:
            rng = torch.Generator().manual_seed(seed)
            train = train.batch(torch.randperm(train_end, generator=rng)[: budget.train_windows])
        groups = dict(series.groups)
        groups[SOFT] = PermutationGroup.trivial(series.values.size(1))
        return Problem(
            dataset=series.dataset,
            train=train,
            val=_part(windows, slice(train_end + gap, test_start - gap, budget.val_stride)),
            test=_part(windows, slice(test_start, count)),
            edge_index=series.edge_index,
            positions=series.positions,
            groups=groups,
            truth=series.truth,
            extra={"mean": mean, "std": std, "channels": torch.tensor(budget.channels)},
            published=self.published(series.dataset),
        )

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        budget = self.budget(profile, data)
        return Schedule(
            epochs=budget.epochs, batch_size=budget.batch_size, lr=3e-3, cosine=True, clip=5.0
        )

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        channels = int(problem.extra["channels"])
        if group == SOFT:
            nested = [problem.groups[name] for name in self.chain(problem)]
            embedding = OrbitEmbedding(channels, levels=nested)
        else:
            embedding = OrbitEmbedding(channels, problem.groups[group])
        net = NodeMLP(embedding, self.history, self.horizon, slots=SLOTS)
        return _Scaled(net, problem.extra["mean"], problem.extra["std"])

    def chain(self, problem: Problem) -> list[str]:
        """Names of the levels of the soft chain."""
        return [name for name in problem.groups if name != SOFT and "directions" not in name]

    def told(self, profile: str) -> str:
        return (
            "Nets see the last readings of a node and, where they are known, the time of day and "
            "the day of the week, but no other node; the last value knows no time, and the time "
            "of day no readings."
        )

    def loss(self, prediction: Tensor, batch: Split) -> Tensor:
        return _mean((prediction - batch.targets).abs(), batch.mask)

    def metrics(self, prediction: Tensor, split: Split, problem: Problem) -> dict[str, float]:
        """Errors over the readings that there are, by span of steps."""
        assert split.mask is not None
        found: dict[str, float] = {}
        for span, steps in self.spans.items():
            target, mask = split.targets[:, steps], split.mask[:, steps]
            error = prediction[:, steps] - target
            end = f", {span}" if span else ""
            found[f"MAE{end}"] = float(_error(error.abs(), mask))
            found[f"RMSE{end}"] = float(_error(error.square(), mask).sqrt())
            if self.relative:
                found[f"MAPE{end}"] = 100 * float(_error((error / target).abs(), mask))
        return found

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        return {"last value": _last_value, "time of day": _time_of_day}

    def _windows(self, series: Series, mean: Tensor, std: Tensor) -> Split:
        """All windows, as views of arrays of the size of the series.

        Inputs ``[b, history, n, 3]``: standardised reading, fraction of the day, day of the week;
        targets and mask ``[b, horizon, n]``; aux: the past as it was read, and the slots of the
        targets, of the day and, weekends apart, of the week ``[b, horizon]``.
        """
        values = series.values
        whole = torch.where(values.isnan(), MISSING, (values - mean) / std)
        times = (series.time_of_day, series.day)
        signal = torch.stack([whole, *(t[:, None].expand_as(whole) for t in times)], dim=-1)
        slot = (series.time_of_day * SLOTS + 1e-3).long() % SLOTS
        slot = slot + SLOTS * (series.day >= 5)
        ahead = values[self.history :]
        targets = _slide(ahead.nan_to_num(), self.horizon)
        return Split(
            inputs=_slide(signal[: -self.horizon], self.history),
            targets=targets,
            mask=_slide(~ahead.isnan(), self.horizon),
            aux={
                "history": _slide(values[: -self.horizon], self.history),
                "slot": _slide(slot[self.history :], self.horizon),
            },
        )


@register
class TrafficHour(Forecast):
    """An hour of five-minute speeds in, the next hour out: the field's protocol on METR-LA.

    A speed of 0 is a missing one. Errors are told at 15, 30 and 60 minutes; the one at 30 chooses.
    Embedded data are a simulated freeway. Published numbers of DCRNN, Graph WaveNet and STID on
    METR-LA stand in the table as quoted.

    The standard profile sees 4,096 windows drawn per seed; ``paper`` all of them.
    """

    name: ClassVar[str] = "traffic-hour"
    title: ClassVar[str] = "Traffic an hour ahead"
    metric: ClassVar[str] = "MAE, 30 min"
    unit: ClassVar[str] = "mph"
    units: ClassVar[Mapping[str, str]] = {f"MAPE, {m} min": "%" for m in (15, 30, 60)}
    profiles: ClassVar[tuple[str, ...]] = ("quick", "standard", "paper")
    spans: ClassVar[Mapping[str, slice]] = {
        "30 min": slice(5, 6),
        "15 min": slice(2, 3),
        "60 min": slice(11, 12),
    }
    relative = True

    def series(self, data: Path | None) -> Series:
        return _of_freeway() if data is None else _of_metr_la(data)

    def budget(self, profile: str, data: Path | None) -> Budget:
        if data is None:
            return Budget(16, 512, 16, 6 if profile == "quick" else 40, 32)
        return {
            "quick": Budget(32, 1024, 32, 2, 64),
            "standard": Budget(32, 4096, 8, 6, 64),
            "paper": Budget(32, None, 4, 30, 64),
        }[profile]

    def told(self, profile: str) -> str:
        return f"{super().told(profile)} Models that are quoted learned from all training windows."

    def published(self, dataset: str) -> Mapping[str, Mapping[str, float]]:
        if dataset != "metr-la":
            return {}
        return {
            name: {
                f"{metric}, {minutes} min": values[place]
                for minutes, place in ((30, 1), (15, 0), (60, 2))
                for metric, values in numbers.items()
            }
            for name, numbers in PUBLISHED.items()
        }


@cache
def _of_freeway() -> Series:
    recording = freeway()
    # The simulation knows no weekends.
    return _of_recording(recording, torch.zeros(len(recording.speed)))


@cache
def _of_metr_la(data: Path) -> Series:
    recording = metr_la(data)
    seconds = read_npz(find(data, "traffic/metr_la.npz", "metr-la"), ["time_unix"])["time_unix"]
    # The first of January 1970 was a Thursday.
    return _of_recording(recording, torch.from_numpy((seconds // 86400 + 3) % 7).float())


def _of_recording(recording: Recording, day: Tensor) -> Series:
    speed = recording.speed
    return Series(
        dataset=recording.dataset,
        values=torch.where(speed > 0, speed, torch.nan),
        time_of_day=recording.time_of_day,
        day=day,
        edge_index=recording.edge_index,
        positions=recording.positions,
        groups=recording.groups,
        truth=recording.truth,
    )


class _Scaled(nn.Module):
    """A forecaster of standardised readings, read in their unit."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.mean + self.std * self.net(inputs)


def _mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """Mean where ``mask`` is true; 0 where it is nowhere, so that such a batch moves nothing."""
    assert mask is not None
    return torch.where(mask, value, 0).sum() / mask.sum().clamp(min=1)


def _error(value: Tensor, mask: Tensor) -> Tensor:
    """Mean where ``mask`` is true; NaN where it is nowhere, because 0 would be perfect."""
    return torch.where(mask.any(), _mean(value, mask), torch.nan)


def _slide(series: Tensor, size: int) -> Tensor:
    """Windows ``[t - size + 1, size, ...]`` of a series ``[t, ...]``, a view."""
    return series.unfold(0, size, 1).movedim(-1, 1)


def _part(split: Split, rows: slice) -> Split:
    """A stretch of windows, as views."""
    assert split.mask is not None
    aux = {name: value[rows] for name, value in split.aux.items()}
    return Split(split.inputs[rows], split.targets[rows], split.mask[rows], aux)


def _node_mean(problem: Problem) -> Tensor:
    """Mean target of each node over training windows, ``[n]``."""
    train = problem.train
    assert train.mask is not None
    count = train.mask.sum(dim=(0, 1))
    mean = train.targets.sum(dim=(0, 1)) / count.clamp(min=1)
    return torch.where(count > 0, mean, problem.extra["mean"])


def _last_value(problem: Problem) -> Predictor:
    """The last reading of the window, else the mean of the node."""
    fallback = _node_mean(problem)

    def predict(split: Split) -> Tensor:
        last = fallback.expand(len(split), -1)
        for reading in split.aux["history"].unbind(dim=1):
            last = torch.where(reading.isnan(), last, reading)
        return last[:, None].expand_as(split.targets)

    return predict


def _time_of_day(problem: Problem) -> Predictor:
    """The mean of the node in the slot of the day, weekends apart; else its mean."""
    train = problem.train
    assert train.mask is not None
    n = train.targets.size(-1)
    slot = train.aux["slot"].flatten()
    total, count = (
        torch.zeros(2 * SLOTS, n).index_add_(0, slot, value.flatten(0, 1).float())
        for value in (train.targets, train.mask)
    )
    table = torch.where(count > 0, total / count.clamp(min=1), _node_mean(problem))
    return lambda split: table[split.aux["slot"]]
