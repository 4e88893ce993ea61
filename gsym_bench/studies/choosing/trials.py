"""One choice at a time: on twins, on a search for their partition, and on the suite's tasks."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from gsym import Partition
from gsym.choosing.choose import choose_group
from gsym.coarsening import coarsen
from gsym.risk.ridge import commutant_ridge
from gsym_bench.studies.choosing.twins import INPUTS, TRUTHS, Twin, chain
from gsym_bench.suite.loaded import Loaded
from gsym_bench.tasks import TASKS

NODES = (24, 200)
NOISE = (0.5, 1.0, 2.0)
TEST_SIGNALS = 4000
RECOVERY_SIGNALS = 400


@dataclass(frozen=True)
class Trial:
    """One trial of the choice among the levels of a chain through the planted partition.

    Attributes:
        truth: Kind of the true map.
        inputs: Covariance of the inputs.
        signals: Number of signals to choose and fit from.
        seed: Seed of the trial.
        nodes: Number of nodes.
        planted: Clusters of the planted partition.
        noise: Standard deviation of the noise; the noiseless targets have a variance of about 2.
        best: Clusters of the truly best level.
        chosen: Clusters of the level that `choose_group` takes.
        held_out: Clusters of the level that an 80/20 split of the same signals takes.
        excess: Risk of the chosen level less that of the best, squared error per node.
        held_out_excess: The same for the split.
        gap: Distance between the risks of the trivial group and S_n.
        bound: Regret bound of the choice.
        seconds: CPU time of the choice.
    """

    truth: str
    inputs: str
    signals: int
    seed: int
    nodes: int
    planted: int
    noise: float
    best: int
    chosen: int
    held_out: int
    excess: float
    held_out_excess: float
    gap: float
    bound: float
    seconds: float
    commit: str


@dataclass(frozen=True)
class Recovery:
    """Adjusted Rand index of the planted partition in one trial, by method.

    Attributes:
        risk: Merging by risk, from signals and targets.
        ward_signals: Ward on inputs, on targets or on both, whichever comes out best.
        ward_graph: Ward on a graph whose communities are independent of the planted partition.
        spectral: Spectral clustering of that graph.
        louvain: Louvain's level nearest to the planted number of clusters.
    """

    truth: str
    inputs: str
    nodes: int
    planted: int
    seed: int
    risk: float
    ward_signals: float
    ward_graph: float
    spectral: float
    louvain: float
    commit: str


@dataclass(frozen=True)
class Real:
    """One candidate of one seed of a benchmark task, chosen from its training data.

    Attributes:
        checksum: Of the data, as rows of the suite have it.
        group: Name of the group in the suite.
        score: Left-out squared error, in squared units of the targets.
        gap: Score less that of the best.
        gap_error: Its standard error.
        chosen: Whether it is the best, 1 or 0.
        seconds: CPU time of the whole choice.
    """

    task: str
    dataset: str
    profile: str
    seed: int
    checksum: str
    group: str
    score: float
    gap: float
    gap_error: float
    chosen: int
    seconds: float
    commit: str


def run_trial(truth: str, inputs: str, signals: int, seed: int, commit: str) -> Trial:
    """Draw a twin and choose among the levels of a chain through its partition."""
    # Cells share no randomness, so that their trials count separately.
    cell = TRUTHS.index(truth), INPUTS.index(inputs), signals, seed
    rng = np.random.default_rng([*cell, 0])
    nodes = round(math.exp(rng.uniform(*np.log(NODES))))
    planted = int(rng.integers(2, min(20, nodes // 4) + 1))
    noise = float(rng.choice(NOISE))
    twin = Twin(truth, inputs, nodes, planted, noise, int(rng.integers(2**31)))
    levels = chain(twin.partition, rng)
    x, y = twin.sample(signals)
    start = time.process_time()
    choice = choose_group(levels, x, y, block=1)
    seconds = time.process_time() - start
    x_test, y_test = twin.sample(TEST_SIGNALS)

    def error(predictor: Any, x: NDArray, y: NDArray) -> float:
        return float(((predictor.predict(x)[..., 0].numpy() - y) ** 2).mean())

    risks = {q.num_clusters: error(commutant_ridge(x, y, q), x_test, y_test) for q in levels}
    cut = 4 * signals // 5
    split = {
        q.num_clusters: error(commutant_ridge(x[:cut], y[:cut], q), x[cut:], y[cut:])
        for q in levels
    }
    best, held_out = min(risks, key=risks.__getitem__), min(split, key=split.__getitem__)
    chosen = choice.best.num_clusters
    return Trial(
        truth=truth,
        inputs=inputs,
        signals=signals,
        seed=seed,
        nodes=nodes,
        planted=planted,
        noise=noise,
        best=best,
        chosen=chosen,
        held_out=held_out,
        excess=risks[chosen] - risks[best],
        held_out_excess=risks[held_out] - risks[best],
        gap=abs(risks[nodes] - risks[1]),
        bound=choice.regret_bound,
        seconds=seconds,
        commit=commit,
    )


def run_recovery(
    truth: str, inputs: str, nodes: int, planted: int, seed: int, commit: str
) -> Recovery:
    """Draw a twin and look for its partition, from signals and from a graph without a hint."""
    cell = [TRUTHS.index(truth), INPUTS.index(inputs), nodes, planted, seed, 1]
    rng = np.random.default_rng(cell)
    twin = Twin(truth, inputs, nodes, planted, 1.0, int(rng.integers(2**31)))
    x, y = (torch.from_numpy(v) for v in twin.sample(RECOVERY_SIGNALS))
    communities = rng.integers(planted, size=nodes)
    chance = np.where(communities[:, None] == communities, 0.5, 0.05)
    edges = np.stack(np.nonzero(np.triu(rng.random((nodes, nodes)) < chance, 1)))
    edge_index = torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1))

    def rand(partition: Partition) -> float:
        return float(adjusted_rand_score(twin.partition.labels, partition.labels))

    def on_graph(method: str, **options: Any) -> float:
        with warnings.catch_warnings():
            # Disconnected graphs and missed levels are expected here.
            warnings.simplefilter("ignore", UserWarning)
            levels = coarsen(edge_index, nodes, method=method, **options)
        return rand(levels[min(levels.levels, key=lambda k: abs(k - planted))])

    views = (x[..., None], y[..., None], torch.stack([x, y], dim=-1))
    return Recovery(
        truth=truth,
        inputs=inputs,
        nodes=nodes,
        planted=planted,
        seed=seed,
        risk=rand(coarsen(None, nodes, signals=x, targets=y, method="risk")[planted]),
        ward_signals=max(rand(coarsen(None, nodes, signals=v)[planted]) for v in views),
        ward_graph=on_graph("ward"),
        spectral=on_graph("spectral", levels=[planted]),
        louvain=on_graph("louvain"),
        commit=commit,
    )


def run_real(task: str, data: Path | None, profile: str, seed: int, commit: str) -> list[Real]:
    """Choose among the groups of a task from its training split alone."""
    loaded = Loaded(TASKS[task], data, profile, seed)
    problem = loaded.problem
    # A group that comes again with other representations is one candidate: only nodes move here.
    by_group = {group: name for name, group in reversed(list(problem.groups.items()))}
    groups = list(dict.fromkeys(problem.groups.values()))
    n = groups[0].num_nodes
    targets = problem.train.targets
    if problem.train.mask is not None:
        # Missing targets become the mean of what was observed.
        mask = problem.train.mask.bool()
        targets = torch.where(mask, targets, targets[mask].mean())
    x, y = (_nodes_first(v, n) for v in (problem.train.inputs, targets))
    start = time.process_time()
    choice = choose_group(groups, x, y, swaps=None, block=1)
    seconds = time.process_time() - start
    return [
        Real(
            task=task,
            dataset=problem.dataset,
            profile=profile,
            seed=seed,
            checksum=loaded.checksum,
            group=by_group[c.group],
            score=c.score,
            gap=c.gap,
            gap_error=c.gap_error,
            chosen=int(c is choice.best),
            seconds=seconds,
            commit=commit,
        )
        for c in choice.candidates
    ]


def _nodes_first(values: torch.Tensor, nodes: int) -> torch.Tensor:
    """Signals ``[b, n, c]`` of windows ``[b, t, n, c]`` or ``[b, t, n]``."""
    if values.size(1) == nodes:
        return values.flatten(2) if values.dim() > 3 else values
    return values.movedim(2, 1).flatten(2)
