"""Traffic forecasting: the next 15 minutes at every detector from the last 15."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym_bench.data import DataError, find, read_npz
from gsym_bench.models.dcgru import DiffusionForecaster, diffusion_supports
from gsym_bench.simulators.freeway import simulate_freeway
from gsym_bench.suite.task import Predictor, Problem, Schedule, Split, Task, register

HISTORY = 3
HORIZON = 3
SLOTS_PER_DAY = 96
RIDGE_STRENGTHS = (1.0, 1e2, 1e4)
PAIR_MILES, PAIR_COSINE = 0.1, -0.7  # how close, and how opposed, the directions of a road are
MILES_PER_DEGREE = (69.0, 57.2)  # of latitude and, at Los Angeles, of longitude


@dataclass(frozen=True)
class _Profile:
    """How much of the data one cell sees and for how long."""

    hidden_channels: int
    train_windows: int
    val_stride: int
    epochs: int
    batch_size: int


_PROFILES = {
    ("freeway (simulated)", "quick"): _Profile(16, 128, 4, 24, 16),
    ("freeway (simulated)", "standard"): _Profile(32, 512, 1, 40, 32),
    ("metr-la", "quick"): _Profile(16, 512, 16, 6, 32),
    ("metr-la", "standard"): _Profile(32, 2048, 4, 5, 32),
}


@dataclass(frozen=True)
class Recording:
    """Speeds ``[t, n]`` in mph with 0 for missing, and what is known about the detectors."""

    dataset: str
    speed: Tensor
    time_of_day: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    positions: Tensor
    groups: Mapping[str, PermutationGroup]
    truth: str | None = None


@register
class Traffic(Task):
    """Three five-minute speeds in, the next three out, at every detector of a road network.

    Embedded data are one fixed simulated freeway whose true group is known; the files are METR-LA.
    Time is cut 70/10/20 before windows are taken, so no window reaches into another part, and
    speeds are standardised by the observed values of the first part. A seed draws the training
    windows; validation and test are the same for all seeds.

    The published schedule (64 units, all 23,987 windows, 30 epochs) is shortened: the standard
    profile on METR-LA trains 32 units for 5 epochs on 2,048 windows drawn per seed, looks at every
    fourth validation window and has no scheduled sampling. Adam at 0.01 and gradient norms clipped
    at 5 are kept, the test part is whole. The supports leave out the self loops of the published
    graph, because the cell sees each node itself anyway.

    One candidate on METR-LA exchanges the two directions of a road where they are measured at one
    place, see `opposite_pairs`. Each pair may be exchanged by itself; to exchange all at once ties
    the same weights, because the cell is tied along orbits of nodes alone. Exchanging directions
    turns the edges of the graph round, so it is no symmetry of the supports.
    """

    name = "traffic"
    title = "Traffic forecasting"
    metric = "masked MAE"
    unit = "mph"
    model_name = "DCGRU"

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        recording = freeway() if data is None else metr_la(data)
        config = _PROFILES[recording.dataset, profile]
        speed = recording.speed
        t = speed.size(0)
        train_end, val_end = int(0.7 * t), int(0.8 * t)
        observed = speed[:train_end][speed[:train_end] > 0]
        mean, std = observed.mean(), observed.std()
        train, val, test = (
            _windows(speed[part], recording.time_of_day[part], mean, std)
            for part in (slice(train_end), slice(train_end, val_end), slice(val_end, t))
        )
        rng = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(train), generator=rng)[: config.train_windows]
        return Problem(
            dataset=recording.dataset,
            train=train.batch(drawn),
            val=val.batch(torch.arange(0, len(val), config.val_stride)),
            test=test,
            edge_index=recording.edge_index,
            edge_weight=recording.edge_weight,
            positions=recording.positions,
            groups=recording.groups,
            truth=recording.truth,
            extra={"mean": mean, "std": std},
        )

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        config = _PROFILES["freeway (simulated)" if data is None else "metr-la", profile]
        return Schedule(epochs=config.epochs, batch_size=config.batch_size, lr=1e-2, clip=5.0)

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        supports = diffusion_supports(
            problem.edge_index, problem.positions.size(0), problem.edge_weight
        )
        hidden_channels = _PROFILES[problem.dataset, profile].hidden_channels
        tied = problem.groups[group]
        forecaster = DiffusionForecaster(2, hidden_channels, HORIZON, tied, supports)
        return _InMph(forecaster, problem.extra["mean"], problem.extra["std"])

    def told(self, profile: str) -> str:
        return (
            "Nets and ridge see the last three speeds, along the roads also those of other "
            "detectors, and the time of day, and ridge is told which speeds are missing; the last "
            "value knows no time, and the time of day no speeds."
        )

    def loss(self, prediction: Tensor, batch: Split) -> Tensor:
        return _masked_mean((prediction - batch.targets).abs(), batch.mask)

    def metrics(self, prediction: Tensor, split: Split, problem: Problem) -> dict[str, float]:
        error = prediction - split.targets
        return {
            "masked MAE": float(_masked_error(error.abs(), split.mask)),
            "masked RMSE": float(_masked_error(error.square(), split.mask).sqrt()),
        }

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        return {"last value": _last_value, "time of day": _time_of_day, "ridge": _ridge}


class _InMph(nn.Module):
    """A forecaster of standardised speeds, read in mph."""

    mean: Tensor
    std: Tensor

    def __init__(self, forecaster: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.mean + self.std * self.forecaster(inputs)


def _masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """Mean where ``mask`` is true; 0 where it is nowhere, so that such a batch moves nothing."""
    if mask is None:
        return value.mean()
    return torch.where(mask, value, 0).sum() / mask.sum().clamp(min=1)


def _masked_error(value: Tensor, mask: Tensor | None) -> Tensor:
    """Mean where ``mask`` is true; NaN where it is nowhere, because 0 would be perfect."""
    mean = _masked_mean(value, mask)
    return mean if mask is None else torch.where(mask.any(), mean, torch.nan)


def _windows(speed: Tensor, time_of_day: Tensor, mean: Tensor, std: Tensor) -> Split:
    """All windows of a stretch of time, as views of arrays of its size.

    Shapes:
        ``speed [t, n]``, ``time_of_day [t]`` to ``b = t - 5`` windows: inputs ``[b, 3, n, 2]``
        (standardised speed with 0 where missing, fraction of the day), targets and mask
        ``[b, 3, n]``; aux holds ``history`` in mph ``[b, 3, n]`` and the quarter hour of the
        targets, ``slot [b, 3]``.
    """
    standardised = torch.where(speed > 0, (speed - mean) / std, 0)
    signal = torch.stack([standardised, time_of_day[:, None].expand_as(speed)], dim=-1)
    # nudged, because 0.25 * 96 may come as 23.999
    slot = (time_of_day * SLOTS_PER_DAY + 1e-3).long()
    targets = _slide(speed[HISTORY:], HORIZON)
    return Split(
        inputs=_slide(signal[:-HORIZON], HISTORY),
        targets=targets,
        mask=targets > 0,
        aux={
            "history": _slide(speed[:-HORIZON], HISTORY),
            "slot": _slide(slot[HISTORY:], HORIZON),
        },
    )


def _slide(series: Tensor, size: int) -> Tensor:
    """Windows ``[t - size + 1, size, ...]`` of a series ``[t, ...]``, a view."""
    return series.unfold(0, size, 1).movedim(-1, 1)


@cache
def freeway() -> Recording:
    freeway = simulate_freeway(0)
    station = torch.from_numpy(freeway.station)
    return Recording(
        dataset="freeway (simulated)",
        speed=torch.from_numpy(freeway.speed),
        time_of_day=torch.from_numpy(freeway.time_of_day),
        edge_index=torch.from_numpy(freeway.edge_index),
        edge_weight=torch.from_numpy(freeway.edge_weight),
        positions=torch.from_numpy(freeway.positions).float(),
        groups={
            "S_48": ClusterGroup(Partition.single(48)),
            "3 segments": ClusterGroup(Partition.from_labels(freeway.segment)),
            "6 station pairs": ClusterGroup(Partition.from_labels(station // 2)),
            "12 stations": ClusterGroup(Partition.from_labels(station)),
            "trivial": ClusterGroup(Partition.singletons(48)),
        },
        truth="12 stations",
    )


@cache
def metr_la(data: Path) -> Recording:
    """METR-LA with groups proposed from its road graph alone; speeds are not looked at."""
    path = find(data, "traffic/metr_la.npz", "metr-la")
    arrays = read_npz(path, ["speed", "time_unix", "adj", "latlon"])
    speed, adjacency = arrays["speed"], arrays["adj"].copy()
    t, n = speed.shape
    expected = {"time_unix": (t,), "adj": (n, n), "latlon": (n, 2)}
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise DataError(
                f"{path}: {key} must have shape {shape} to fit speed {speed.shape}, "
                f"got {arrays[key].shape}; delete the file and fetch it again"
            )
    if not (np.isfinite(speed) & (speed >= 0)).all():
        raise DataError(
            f"{path}: speed must be in mph, with 0 for missing, got negative or non-finite values; "
            "delete the file and fetch it again"
        )
    np.fill_diagonal(adjacency, 0)
    edges = np.nonzero(adjacency)
    offset = arrays["latlon"] - arrays["latlon"].mean(axis=0)
    positions = (offset * MILES_PER_DEGREE)[:, ::-1].copy()
    groups = {f"S_{n}": ClusterGroup(Partition.single(n))}
    for k, labels in _nested_clusters(adjacency, positions, (2, 9, 32)).items():
        groups[f"{k} clusters"] = ClusterGroup(Partition.from_labels(labels))
    pairs = opposite_pairs(adjacency, positions)
    if pairs:
        groups[f"(S_2)^{len(pairs)}, directions"] = exchanging(pairs, n)
    groups["trivial"] = ClusterGroup(Partition.singletons(n))
    return Recording(
        dataset="metr-la",
        speed=torch.from_numpy(np.ascontiguousarray(speed)),
        time_of_day=torch.from_numpy((arrays["time_unix"] % 86400 / 86400).astype(np.float32)),
        edge_index=torch.from_numpy(np.stack(edges)),
        edge_weight=torch.from_numpy(adjacency[edges]),
        positions=torch.from_numpy(positions).float(),
        groups=groups,
    )


def _nested_clusters(
    adjacency: np.ndarray, positions: np.ndarray, counts: Sequence[int]
) -> dict[int, np.ndarray]:
    """Spectral clusters of a road graph; each level clusters the clusters of the finer one.

    The road affinity ``max(A, A^T)`` is joined by a weak geographic one, which connects detectors
    without a road edge to their surroundings.

    Returns:
        Labels ``[n]`` by number of clusters, in the order of ``counts``.
    """
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    affinity = np.maximum(adjacency, adjacency.T) + 0.1 * np.exp(-((distance / 2) ** 2))
    np.fill_diagonal(affinity, 0)
    labels = np.arange(len(affinity))
    levels = {}
    for k in sorted(counts, reverse=True):
        member = np.eye(labels.max() + 1)[labels]
        spectral = SpectralClustering(
            k, affinity="precomputed", assign_labels="cluster_qr", random_state=0
        )
        labels = spectral.fit_predict(member.T @ affinity @ member)[labels].astype(np.int64)
        levels[k] = labels
    return {k: levels[k] for k in counts}


def opposite_pairs(adjacency: np.ndarray, positions: np.ndarray) -> list[tuple[int, int]]:
    """Detectors that face each other on the two carriageways of a road.

    Traffic at a detector heads from those that lead to it to those that it leads to. Two detectors
    are a pair if they lie within `PAIR_MILES`, head in opposite directions, and each is the nearest
    such detector of the other. A missing edge tells nothing: on METR-LA 49 of the 55 pairs have
    one, because the way round by the next exit is short.

    Args:
        adjacency: Weights of the road graph from row to column, without self loops, ``[n, n]``.
        positions: Miles east and north, ``[n, 2]``.

    Returns:
        Pairs of detectors, the smaller number first, in order.
    """
    net = adjacency - adjacency.T
    heading = net @ positions - net.sum(axis=1, keepdims=True) * positions
    length = np.linalg.norm(heading, axis=1, keepdims=True)
    heading = np.divide(heading, length, out=np.zeros_like(heading), where=length > 0)
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1)
    facing = (heading @ heading.T < PAIR_COSINE) & (apart < PAIR_MILES)
    apart = np.where(facing, apart, np.inf)
    nearest = apart.argmin(axis=1)
    every = np.arange(len(nearest))
    mutual = (nearest[nearest] == every) & np.isfinite(apart.min(axis=1)) & (every < nearest)
    return [(int(i), int(nearest[i])) for i in every[mutual]]


def exchanging(pairs: Sequence[tuple[int, int]], n: int) -> ClusterGroup:
    """The group that exchanges each pair by itself."""
    alone = set(range(n)).difference(*pairs)
    return ClusterGroup(Partition.from_clusters([*pairs, *([i] for i in sorted(alone))]))


def _sensor_mean(problem: Problem) -> Tensor:
    """Mean observed target of each sensor over training windows, ``[n]`` in mph."""
    targets = problem.train.targets
    count = (targets > 0).sum(dim=(0, 1))
    mean = targets.sum(dim=(0, 1)) / count.clamp(min=1)
    return torch.where(count > 0, mean, problem.extra["mean"])


def _last_value(problem: Problem) -> Predictor:
    """The last observed speed of the window, else the sensor's mean."""
    fallback = _sensor_mean(problem)

    def predict(split: Split) -> Tensor:
        last = fallback.expand(len(split), -1)
        for speed in split.aux["history"].unbind(dim=1):
            last = torch.where(speed > 0, speed, last)
        return last[:, None].expand(-1, HORIZON, -1)

    return predict


def _time_of_day(problem: Problem) -> Predictor:
    """The sensor's mean speed in the target's quarter of an hour."""
    slot = problem.train.aux["slot"].flatten()
    speed = problem.train.targets.flatten(0, 1)
    total, count = (
        torch.zeros(SLOTS_PER_DAY, speed.size(-1)).index_add_(0, slot, value)
        for value in (speed, (speed > 0).float())
    )
    table = torch.where(count > 0, total / count.clamp(min=1), _sensor_mean(problem))
    return lambda split: table[split.aux["slot"]]


def _ridge(problem: Problem) -> Predictor:
    """Ridge regression for each sensor and step, of one strength chosen on validation windows."""
    supports = diffusion_supports(
        problem.edge_index, problem.positions.size(0), problem.edge_weight
    )

    def features(split: Split) -> np.ndarray:
        """``[n, b, 14]``: own and neighbours' speeds, what is missing, time of day."""
        speed = split.inputs[..., 0].transpose(1, 2)
        observed = (split.aux["history"] > 0).float().transpose(1, 2)
        angle = 2 * torch.pi * split.inputs[:, -1, :, 1, None]
        parts = [speed, observed, *(walk @ speed for walk in supports), angle.sin(), angle.cos()]
        return torch.cat(parts, dim=-1).transpose(0, 1).numpy()

    def fit(strength: float) -> Predictor:
        x, y = features(problem.train), problem.train.targets.numpy()
        weight = np.zeros((len(x), x.shape[-1], HORIZON), dtype=np.float32)
        bias = _sensor_mean(problem)[:, None].repeat(1, HORIZON).numpy()
        for sensor, step in np.ndindex(len(x), HORIZON):
            target = y[:, step, sensor]
            seen = target > 0
            if seen.any():
                ridge = Ridge(strength).fit(x[sensor, seen], target[seen])
                weight[sensor, :, step], bias[sensor, step] = ridge.coef_, ridge.intercept_

        def predict(split: Split) -> Tensor:
            speed = features(split) @ weight + bias[:, None]
            return torch.from_numpy(speed).permute(1, 2, 0)

        return predict

    def error(predictor: Predictor) -> float:
        val = problem.val
        return float(_masked_mean((predictor(val) - val.targets).abs(), val.mask))

    return min((fit(strength) for strength in RIDGE_STRENGTHS), key=error)
