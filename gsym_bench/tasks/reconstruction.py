"""Fill in what failed sensors and lost markers would have read, from few signals without gaps."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor, nn

from gsym.groups import Partition, PermutationGroup
from gsym_bench.models.fills import WAYS, Draw, Filler, Source, hide, symmetric
from gsym_bench.models.pictures import draw_bodies, draw_day
from gsym_bench.simulators.gait import SKELETON_EDGES
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import Predictor, Problem, Schedule, Split, Task, register
from gsym_bench.tasks.skeleton import Skeleton, reflection, skeleton_groups
from gsym_bench.tasks.traffic import Recording, freeway, metr_la

VALIDATION, TEST = 60, 100  # signals with gaps, every other one with a block
HIDDEN, BLOCK = 0.4, 0.3  # shares of the nodes: at random, and of a stretch of sensors
MIXTURE = "mixture"
COVERAGE = "coverage of 90 % intervals"
NINETY = float(norm.ppf(0.95))  # standard deviations on either side of a 90 % interval
DAY = 288  # readings
LIMBS = ((1, 2, 3), (4, 5, 6), (10, 11, 12), (13, 14, 15))  # legs, then arms
_BASELINES = (
    *("mean of each node", "kernel mean", "5 nearest", "15 nearest"),
    *("Ledoit-Wolf", "IterativeImputer", "trivial, kernel", "two-level", "two-level, kernel"),
)


class Filled(nn.Module):
    """What fills gaps, as a model that comes fitted.

    Shapes:
        - input: ``[b, n, c + 1]``: signals with 0 for what is hidden, and 1 where they are seen
        - output: ``[b, n, c]``, with ``c`` more channels for the variances if there are any
    """

    def __init__(self, filler: Filler) -> None:
        super().__init__()
        self.filler = filler

    def forward(self, inputs: Tensor) -> Tensor:
        signals, seen = inputs[..., :-1].double().numpy(), inputs[..., -1].numpy() > 0
        filled, variance = self.filler(signals, seen)
        parts = [filled] if variance is None else [filled, variance]
        return torch.cat([torch.from_numpy(np.ascontiguousarray(p)).float() for p in parts], -1)


class Gaps(Task):
    """A task of filling gaps; everything in it is fitted in closed form.

    Every other input lacks nodes at random, the others a block of them. Estimators learn from the
    training targets, which are whole, and are told eight examples of each kind of gap. A group's
    model is the conditional mean of its averaged covariance with a ridge, around the mean of each
    node. The mixture is `gsym.SymmetricCovariance` with all levels and what is known of the nodes;
    it counts as trivial, because it keeps no symmetry for sure. Validation signals are drawn beside
    the training signals; test signals come from later days, or from other people.
    """

    model_name: ClassVar[str] = "conditional mean"
    units: ClassVar[Mapping[str, str]] = {COVERAGE: "share"}
    signals: ClassVar[int] = 100  # in training, where no number is asked for
    seeds: ClassVar[Mapping[str, int]] = {"quick": 10, "standard": 10}

    @abstractmethod
    def source(self, data: Path | None) -> Source:
        """Signals, and what is known of their nodes."""

    @abstractmethod
    def frame(self, data: Path | None) -> Problem:
        """The problem without signals: graph, groups, names."""

    @abstractmethod
    def known(self, problem: Problem) -> tuple[Mapping[str, Any], Any]:
        """Parameters of the estimator, and the levels of the mixture."""

    @abstractmethod
    def error(self, e: NDArray) -> float:
        """The error from differences ``[..., c]`` of hidden nodes."""

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        source = self.source(data)
        return self.load_few(data, profile, seed, min(self.signals, _most(source)))

    def load_few(self, data: Path | None, profile: str, seed: int, signals: int) -> Problem:
        """The problem with this many training signals; fewer of one seed are among the more."""
        source = self.source(data)
        most = _most(source)
        held = len(source.train) - most
        if not 4 <= signals <= most:
            raise BenchmarkError(
                f"task {self.name!r} learns from 4 to {most:,} signals; got --signals {signals}"
            )
        rng = np.random.default_rng([5000, seed])
        test = source.test[rng.choice(len(source.test), min(TEST, len(source.test)), False)]
        order = rng.permutation(len(source.train))
        parts = [_cut(source, signals, rng) for signals in (source.train[order[:held]], test)]
        patterns = np.concatenate([hide(source, HIDDEN, 8, rng), hide(source, "block", 8, rng)])
        train = _cut(source, source.train[order[held:][:signals]], rng)
        frame = self.frame(data)
        return replace(
            frame,
            train=train,
            val=parts[0],
            test=parts[1],
            extra={**frame.extra, "patterns": torch.from_numpy(patterns)},
        )

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        return Schedule(epochs=0)

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        if group == MIXTURE:
            return Filled(self._fit(symmetric(objective="auto"), problem))
        level: Any = problem.groups[group]
        if group in problem.representations:
            level = level, problem.representations[group][1]
        return Filled(self._fit(symmetric(lambda n: [level], known=False), problem))

    def told(self, profile: str) -> str:
        return (
            "Every method learns from the same signals without gaps and is told which nodes of a "
            "test signal are hidden; the mixture and the kernels also know where the nodes are, or "
            "how they are linked."
        )

    def loss(self, prediction: Tensor, batch: Split) -> Tensor:
        raise AssertionError("fitted in closed form")

    def metrics(self, prediction: Tensor, split: Split, problem: Problem) -> dict[str, float]:
        """Errors of hidden nodes, of both kinds and of each, and how honest intervals are."""
        targets, hidden = split.targets.double().numpy(), split.aux["hole"][..., 0].numpy()
        c = targets.shape[-1]
        filled = prediction.double().numpy()
        kinds = {"": slice(None), ", at random": slice(0, None, 2), ", blocked": slice(1, None, 2)}
        found = {
            f"{self.metric}{kind}": self.error((filled[rows, :, :c] - targets[rows])[hidden[rows]])
            for kind, rows in kinds.items()
        }
        if filled.shape[-1] > c:
            reach = NINETY * np.sqrt(filled[..., c:])
            inside = np.abs(filled[..., :c] - targets) <= reach
            found[COVERAGE] = float(inside[hidden].mean())
        return found

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        def baseline(name: str) -> Callable[[Problem], Predictor]:
            def fit(problem: Problem) -> Predictor:
                model = Filled(self._fit(WAYS[name].fit, problem))
                return lambda split: model(split.inputs)

            return fit

        return {name: baseline(name) for name in _BASELINES}

    def _fit(self, fit: Callable[[Draw], Filler], problem: Problem) -> Filler:
        with warnings.catch_warnings():
            # The hip is where it is, and some sensors hardly vary in few signals.
            warnings.filterwarnings("ignore", ".*never vary")
            return fit(self._draw(problem))

    def _draw(self, problem: Problem) -> Draw:
        train = problem.train.targets.double().numpy()
        known, levels = self.known(problem)
        source = Source(train, train[:0], self.unit, self.error, known, _nothing, levels)
        patterns = problem.extra["patterns"].numpy()
        return Draw(source, train, train[:0], np.ones((0, train.shape[1]), bool), patterns, 1)


@register
class FailedSensors(Gaps):
    """Speeds at the detectors of roads, of which some have failed.

    Embedded data are a simulated freeway; the files are METR-LA. Signals are five-minute readings
    at which every detector worked, drawn from the first 70 % of the time, those to be filled from
    the rest. A block is the 30 % of the detectors that are nearest to one of them.
    """

    name: ClassVar[str] = "reconstruction"
    title: ClassVar[str] = "Failed sensors"
    metric: ClassVar[str] = "MAE"
    unit: ClassVar[str] = "mph"

    def source(self, data: Path | None) -> Source:
        return _of_recording(freeway()) if data is None else sensors(data)

    def frame(self, data: Path | None) -> Problem:
        recording = freeway() if data is None else metr_la(data)
        groups = dict(recording.groups)
        problem = framed(
            recording.dataset, recording.edge_index, recording.positions, groups, recording.truth
        )
        return replace(problem, extra=_eventful_day(recording))

    def known(self, problem: Problem) -> tuple[Mapping[str, Any], Any]:
        return {"positions": problem.positions.numpy()}, "auto"

    def error(self, e: NDArray) -> float:
        return absolute_error(e)

    def example(self, problem: Problem) -> Figure | None:
        """A day at the sensor that varies most in training, as if it alone had failed."""
        if "day" not in problem.extra:
            return None
        day = problem.extra["day"].numpy()
        sensor = int(problem.train.targets[..., 0].std(0).argmax())
        seen = day[..., 0] > 0
        seen[:, sensor] = False
        # Nothing follows from a step at which no other sensor worked: there, lines break.
        steps = seen.any(1)
        filled, variance = self._fit(symmetric(objective="auto"), problem)(day[steps], seen[steps])
        assert variance is not None

        def line(values: NDArray) -> NDArray:
            out = np.full(DAY, np.nan)
            out[steps] = values[:, sensor, 0]
            return out

        middle, reach = line(filled), line(NINETY * np.sqrt(variance))
        others = {
            name: line(self._fit(WAYS[name].fit, problem)(day[steps], seen[steps])[0])
            for name in ("kernel mean", "Ledoit-Wolf")
        }
        ours = {MIXTURE: np.stack([middle, middle - reach, middle + reach], axis=1)}
        truth = np.where(day[:, sensor, 0] > 0, day[:, sensor, 0], np.nan)
        return draw_day(24 * np.arange(DAY) / DAY, truth, ours, others)


@register
class LostMarkers(Gaps):
    """Joints of a body in space, of which some were lost; relative to the hip, in camera frames.

    Poses are those of the task `skeleton`: simulated walks, or CMU motion capture with the files. A
    block is an arm or a leg.
    """

    name: ClassVar[str] = "reconstruction-poses"
    title: ClassVar[str] = "Lost markers"
    metric: ClassVar[str] = "joint error"
    unit: ClassVar[str] = "mm"

    def source(self, data: Path | None) -> Source:
        return markers(data)

    def frame(self, data: Path | None) -> Problem:
        problem = _poses(data)
        return replace(
            framed(problem.dataset, problem.edge_index, problem.positions, dict(problem.groups)),
            representations=problem.representations,
        )

    def known(self, problem: Problem) -> tuple[Mapping[str, Any], Any]:
        return {"edge_index": problem.edge_index}, _levels_of_bodies()

    def error(self, e: NDArray) -> float:
        return joint_error(e)

    def example(self, problem: Problem) -> Figure:
        """Four bodies of the test split without their right arms.

        By likelihood alone: the intervals of the combination of fills are scaled by one number for
        all joints, which is far too large for joints that others almost determine.
        """
        truth = problem.test.targets[:: len(problem.test) // 4][:4].double().numpy()
        arm = list(LIMBS[-1])
        seen = np.ones(truth.shape[:2], dtype=bool)
        seen[:, arm] = False
        filled, variance = self._fit(symmetric(), problem)(truth, seen)
        assert variance is not None
        others = {"5 nearest": self._fit(WAYS["5 nearest"].fit, problem)(truth, seen)[0]}
        bones = np.array(SKELETON_EDGES).T
        ours = {MIXTURE: (filled, NINETY * np.sqrt(variance))}
        return draw_bodies(bones, arm, truth, ours, others)


def absolute_error(e: NDArray) -> float:
    """Mean absolute difference."""
    return float(np.abs(e).mean())


def joint_error(e: NDArray) -> float:
    """Mean distance of joints in millimetres, from differences ``[..., 3]`` in metres."""
    return float(1000 * np.linalg.norm(e, axis=-1).mean())


def sensors(data: Path) -> Source:
    """Speeds of METR-LA."""
    return _of_recording(metr_la(data))


def markers(data: Path | None) -> Source:
    """Poses of CMU motion capture, or of simulated walks."""
    problem = _poses(data)
    return Source(
        problem.train.targets.double().numpy(),
        problem.test.targets.double().numpy(),
        "mean joint error, mm",
        joint_error,
        {"edge_index": problem.edge_index},
        _limb,
        levels=_levels_of_bodies(),
    )


@cache
def _poses(data: Path | None) -> Problem:
    return Skeleton().load(data, "standard", 0)


def _levels_of_bodies() -> list[Any]:
    mirror = skeleton_groups()["mirror S_2"]
    n = mirror.num_nodes
    return [Partition.singletons(n), Partition.single(n), (mirror, reflection(mirror)[1])]


def _limb(node: int) -> NDArray:
    """The limb of a joint; of a joint of the trunk any one, in turn."""
    own = [limb for limb in LIMBS if node in limb]
    return np.array(own[0] if own else LIMBS[node % len(LIMBS)])


def _of_recording(recording: Recording) -> Source:
    speed = recording.speed.numpy().astype(np.float64)
    end = int(0.7 * len(speed))
    whole = np.asarray((speed > 0).all(1))
    positions = np.asarray(recording.positions)
    apart = ((positions[:, None] - positions[None]) ** 2).sum(-1)
    return Source(
        speed[:end][whole[:end]][:, :, None],
        speed[end:][whole[end:]][:, :, None],
        "MAE, mph",
        absolute_error,
        {"positions": positions},
        lambda node: np.argsort(apart[node])[: round(BLOCK * len(positions))],
        taught=100,
    )


def _most(source: Source) -> int:
    """Most signals to learn from: the others are held out for validation."""
    return len(source.train) - min(VALIDATION, len(source.train) // 5)


def _eventful_day(recording: Recording) -> dict[str, Tensor]:
    """The later day of few gaps whose readings vary most, ``[t, n, 1]`` with 0 in gaps."""
    start = math.ceil(0.7 * len(recording.speed) / DAY) * DAY
    days = recording.speed[start : len(recording.speed) // DAY * DAY]
    if not len(days):
        return {}
    days = days.view(-1, DAY, recording.speed.size(1))
    read = (days > 0).float().mean((1, 2))
    varies = [
        float(day[day > 0].std()) if share >= 0.98 * read.max() else -1.0
        for day, share in zip(days, read, strict=True)
    ]
    return {"day": days[int(np.argmax(varies))][..., None].double()}


def framed(
    dataset: str,
    edge_index: Tensor,
    positions: Tensor,
    groups: dict[str, PermutationGroup],
    truth: str | None = None,
) -> Problem:
    """A problem without signals, with the mixture after its groups."""
    nothing = Split(torch.empty(0), torch.empty(0))
    groups[MIXTURE] = PermutationGroup.trivial(len(positions))
    return Problem(dataset, nothing, nothing, nothing, edge_index, positions, groups, truth=truth)


def _cut(source: Source, signals: NDArray, rng: np.random.Generator) -> Split:
    """Signals with gaps, at random and as blocks in turn."""
    seen = np.ones(signals.shape[:2], dtype=bool)
    at_random, blocked = seen[::2], seen[1::2]
    at_random[:] = hide(source, HIDDEN, len(at_random), rng)
    blocked[:] = hide(source, "block", len(blocked), rng)
    targets, kept = torch.from_numpy(signals).float(), torch.from_numpy(seen)[..., None]
    inputs = torch.cat([torch.where(kept, targets, 0), kept.float()], dim=-1)
    return Split(inputs, targets, aux={"hole": ~kept})


def _nothing(node: int) -> NDArray:
    return np.arange(0)
