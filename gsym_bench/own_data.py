"""Tasks from files: a table of signals on a graph is filled or forecast like data of the suite."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from gsym._files import load_signals, read_inputs, read_partitions, read_positions
from gsym.choosing.choose import spread_levels
from gsym.coarsening import coarsen
from gsym.groups import ClusterGroup, Partition
from gsym_bench.models.fills import Conditional, Source, symmetric
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import Problem
from gsym_bench.tasks.forecasting import Budget, Forecast, Series
from gsym_bench.tasks.reconstruction import BLOCK, Gaps, absolute_error, framed

FEWEST = 20  # whole signals to fill, and windows to forecast
MOST = 2000  # signals to learn from
LEVELS = 6  # candidates of a graph, both ends included


@dataclass(frozen=True)
class Own:
    """What the files hold.

    Attributes:
        name: Of the signals, with the beginning of a hash of all that is read.
        x: Signals ``[s, n, c]``, NaN where a value is missing.
        times: Of the signals, if the file has them.
        is_series: Whether they stand in order of time.
        edge_index: The graph, ``[2, e]``.
        edge_weight: Its weights, ``[e]``, or ``None``.
        positions: Where the nodes are or, if that is not known, where to draw them, ``[n, 2]``.
        is_placed: Whether it is known.
        groups: Candidates, from the full symmetric group to the trivial one.
    """

    name: str
    x: Tensor
    times: NDArray | None
    is_series: bool
    edge_index: Tensor
    edge_weight: Tensor | None
    positions: Tensor
    is_placed: bool
    groups: Mapping[str, ClusterGroup]


def read_own(
    graph: str,
    signals: str,
    partitions: Sequence[str] = (),
    positions: str | None = None,
    directed: bool = False,
) -> Own:
    """Read a graph, signals and perhaps candidates; without these, they come from the graph.

    Raises:
        FileError: A file that cannot be read, or files of different nodes, both numbers named.
    """
    read = read_inputs(graph, signals, directed=directed)
    assert read.x is not None and read.graph is not None
    n, edge_index = read.num_nodes, read.graph.edge_index
    names = None if read.names is None else list(read.names)
    if partitions:
        found = [p for f in partitions for p in read_partitions(f, n, edge_index, names)]
    else:
        hierarchy = coarsen(edge_index, n, read.graph.edge_weight)
        found = [hierarchy[k] for k in spread_levels(hierarchy.levels, LEVELS)]
    found = [Partition.single(n), *found, Partition.singletons(n)]
    found = sorted(dict.fromkeys(found), key=_clusters)
    place = None if positions is None else torch.from_numpy(read_positions(positions, n)).float()
    times = load_signals(signals).times
    told: list[Tensor | None] = [
        read.x,
        edge_index,
        read.graph.edge_weight,
        place,
        *(p.labels for p in found),
    ]
    digest = hashlib.sha256()
    for one in told:
        # Shapes keep what is absent apart from what is empty.
        digest.update(b"none" if one is None else repr(tuple(one.shape)).encode())
        digest.update(b"" if one is None else one.numpy().tobytes())
    return Own(
        name=f"{Path(signals.partition(':')[0]).stem} ({digest.hexdigest()[:8]})",
        x=read.x,
        times=None if times is None else np.sort(times),
        is_series=read.is_series,
        edge_index=edge_index,
        edge_weight=read.graph.edge_weight,
        positions=_layout(edge_index, n) if place is None else place,
        is_placed=place is not None,
        groups=_named(found),
    )


class OwnGaps(Gaps):
    """Gaps in signals of the user's.

    Signals in order of time are cut into the first 70 % to learn from and the rest to be filled;
    others are drawn. A block is the 30 % of the nodes that are nearest to one of them, along the
    graph or, where that is known, in space.
    """

    name = "reconstruct"
    title = "Filling gaps"
    metric = "MAE"
    signals = MOST

    def __init__(self, own: Own, unit: str) -> None:
        self.own = own
        # Of a class elsewhere, because tasks are registered by class; here of what was read.
        vars(self).update(unit=unit)
        x = own.x[~own.x.flatten(1).isnan().any(1)].double().numpy()
        if len(x) < FEWEST:
            raise BenchmarkError(
                f"{own.name}: {len(x)} of {len(own.x)} signals have no missing value; expected "
                f"{FEWEST} or more, to make gaps in whose truth is known"
            )
        if not own.is_series:
            x = x[np.random.default_rng(0).permutation(len(x))]
        cut = round(0.7 * len(x))
        self._source = Source(
            x[:cut], x[cut:], f"MAE, {unit}", absolute_error, self._known(), self._hole(), "auto"
        )

    def source(self, data: Path | None) -> Source:
        return self._source

    def frame(self, data: Path | None) -> Problem:
        own = self.own
        return framed(own.name, own.edge_index, own.positions, dict(own.groups))

    def known(self, problem: Problem) -> tuple[Mapping[str, Any], Any]:
        return self._known(), "auto"

    def error(self, e: NDArray) -> float:
        return absolute_error(e)

    def example(self, problem: Problem) -> Figure:
        """How much of the variance each term of the mixture explains."""
        filler = self._fit(symmetric(objective="auto"), problem)
        assert isinstance(filler, Conditional)
        weights = filler.cov.weights_
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = weights.plot(figure.add_subplot())
        axes.set_title(f"The mixture, fitted to {len(problem.train):,} signals", loc="left")
        return figure

    def _known(self) -> dict[str, Any]:
        own = self.own
        known: dict[str, Any] = {"edge_index": own.edge_index, "edge_weight": own.edge_weight}
        if own.is_placed:
            known["positions"] = own.positions.numpy()
        return known

    def _hole(self) -> Any:
        n = len(self.own.positions)
        source, target = self.own.edge_index.numpy()
        if self.own.is_placed:
            p = self.own.positions.numpy()
            far = np.linalg.norm(p[:, None] - p, axis=-1)
        else:
            links = csr_array((np.ones(source.size), (source, target)), shape=(n, n))
            far = shortest_path(links, directed=False, unweighted=True)
        return lambda node: np.argsort(far[node], kind="stable")[: max(1, round(BLOCK * n))]


class OwnForecast(Forecast):
    """A forecast of series of the user's, one channel per node."""

    name = "forecast"
    title = "Forecasting"
    metric = "MAE"
    apart = True  # series may be short

    def __init__(self, own: Own, unit: str, history: int, horizon: int) -> None:
        vars(self).update(unit=unit, history=history, horizon=horizon)
        steps, _, channels = own.x.shape
        if channels != 1:
            raise BenchmarkError(f"{own.name}: expected one channel per node, got {channels}")
        # Two stretches of a window, less a step, are left out between the parts.
        if min(history, horizon) < 1 or steps - 3 * (history + horizon - 1) < FEWEST:
            raise BenchmarkError(
                f"{own.name}: {steps} steps of time give fewer than {FEWEST} windows of "
                f"--history {history} and --horizon {horizon}, once training, validation and test "
                "share no step"
            )
        self.own = own

    def series(self, data: Path | None) -> Series:
        own = self.own
        time, day = _calendar(own.times, len(own.x))
        return Series(
            dataset=f"{own.name}, {self.history} to {self.horizon}",
            values=own.x[..., 0].float(),
            time_of_day=time,
            day=day,
            edge_index=own.edge_index,
            positions=own.positions,
            groups=own.groups,
        )

    def budget(self, profile: str, data: Path | None) -> Budget:
        return Budget(16, 1024, 1, 20, 32)


def _calendar(times: NDArray | None, steps: int) -> tuple[Tensor, Tensor]:
    """Fractions of the day and days of the week, from Monday; 0 where times are no dates."""
    if times is None or times.dtype.kind != "M":
        return torch.zeros(steps), torch.zeros(steps)
    seconds = times.astype("datetime64[s]").astype(np.int64)
    day = (seconds // 86400 + 3) % 7
    return (
        torch.from_numpy(seconds % 86400 / 86400).float(),
        torch.from_numpy(day).float(),
    )


def _clusters(partition: Partition) -> int:
    return partition.num_clusters


def _name(partition: Partition) -> str:
    k, n = partition.num_clusters, partition.num_nodes
    return "trivial" if k == n else f"S_{n}" if k == 1 else f"{k} clusters"


def _named(partitions: Sequence[Partition]) -> dict[str, ClusterGroup]:
    """Groups by name; further ones of as many clusters are numbered."""
    groups: dict[str, ClusterGroup] = {}
    for partition in partitions:
        first = name = _name(partition)
        number = 1
        while name in groups:
            number += 1
            name = f"{first} ({number})"
        groups[name] = ClusterGroup(partition)
    return groups


def _layout(edge_index: Tensor, n: int) -> Tensor:
    """Where to draw nodes whose places are not known."""
    graph = networkx.Graph(edge_index.T.tolist())
    graph.add_nodes_from(range(n))
    place = networkx.spring_layout(graph, seed=0)
    return torch.tensor(np.array([place[i] for i in range(n)]), dtype=torch.float32)
