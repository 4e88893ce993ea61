"""Does `choose_group` find the right group? Trials on made-up data with a known answer.

A twin is a planted partition, a true map, inputs and noise, all drawn from a seed. Signals are
drawn from it without end, so the risk of any fitted predictor can be measured, and the level that
is truly best for the signals at hand is known.
"""

from __future__ import annotations

import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from sklearn.metrics import adjusted_rand_score

from benchmarks.data import replacing
from benchmarks.studies.choosing.conditions import lines as condition_lines
from benchmarks.studies.choosing.conditions import measure as measure_conditions
from benchmarks.suite.errors import BenchmarkError
from benchmarks.suite.provenance import provenance
from benchmarks.suite.store import read_rows
from benchmarks.tasks import TASKS
from gsym import ClusterGroup, Partition
from gsym.choosing.choose import choose_group
from gsym.coarsening import coarsen
from gsym.nn import GNet
from gsym.risk.ridge import commutant_ridge

METR_LA = Path("traffic") / "metr_la.npz"
COMMAND = "python -m benchmarks choosing"
PARTS = ("levels", "partitions", "conditions", "real")
TRUTHS = ("linear", "two-layer", "nearly linear")
INPUTS = ("isotropic", "correlated")
SIGNALS = (60, 120, 400)
NODES = (24, 200)
NOISE = (0.5, 1.0, 2.0)
# Aims on real data: distance to the best group, and time as a share of that of training.
NEAR, SHARE = 0.01, 0.05
# Share of the variance that a map without symmetry takes in the nearly linear truth.
ASYMMETRIC = 0.2
TEST_SIGNALS = 4000
RECOVERY = ((60, 4), (100, 10), (200, 5), (200, 20))
RECOVERY_SIGNALS = 400
RECOVERY_TRIALS = 10

# What is promised, and what the page compares with.
HITS, EXCESS, RAND = 0.9, 0.02, 0.95


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
    group: str
    score: float
    gap: float
    gap_error: float
    chosen: int
    seconds: float
    commit: str


class Twin:
    """A planted partition, a true map that it makes equivariant, and inputs.

    Args:
        truth: ``"linear"``: own value and cluster means, of variance 1 each. ``"two-layer"``: a
            G-Net with 8 hidden channels and ReLU, of variance 2. ``"nearly linear"``: the linear
            one, with a fifth of its variance replaced by a random map without any symmetry.
        inputs: ``"isotropic"`` or ``"correlated"``: ``0.95 ** |i - j|`` along an order of the
            nodes that has nothing to do with the partition.
        nodes: Number of nodes.
        planted: Number of clusters, of random sizes from two nodes up.
        noise: Standard deviation of the noise on the targets.
        seed: Seed.
    """

    def __init__(
        self, truth: str, inputs: str, nodes: int, planted: int, noise: float, seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.noise = nodes, noise
        labels = np.repeat(np.arange(planted), 2)
        labels = np.append(labels, self.rng.integers(planted, size=nodes - 2 * planted))
        self.partition = Partition(self.rng.permutation(labels))
        order = self.rng.permutation(nodes)
        covariance = 0.95 ** np.abs(order[:, None] - order)
        self.root = np.eye(nodes) if inputs == "isotropic" else np.linalg.cholesky(covariance)
        self.map = {
            "linear": self._linear,
            "two-layer": self._two_layer,
            "nearly linear": self._nearly_linear,
        }[truth]()

    def inputs(self, signals: int) -> NDArray:
        """Inputs ``[signals, n]``."""
        return self.rng.standard_normal((signals, self.nodes)) @ self.root.T

    def sample(self, signals: int) -> tuple[NDArray, NDArray]:
        """Inputs and noisy targets, ``[signals, n]`` each."""
        x = self.inputs(signals)
        return x, self.map(x) + self.noise * self.rng.standard_normal(x.shape)

    def _standardised(self, function: Callable[[NDArray], NDArray]) -> Callable[..., NDArray]:
        """The function with mean 0 and variance 1 over the inputs and nodes."""
        values = function(self.inputs(2000))
        mean, deviation = values.mean(), values.std()
        return lambda x: (function(x) - mean) / deviation

    def _linear(self) -> Callable[[NDArray], NDArray]:
        labels, k = self.partition.labels.numpy(), self.partition.num_clusters
        pool = np.zeros((self.nodes, k))
        pool[np.arange(self.nodes), labels] = 1 / np.bincount(labels)[labels]
        own, means = self.rng.standard_normal(k), self.rng.standard_normal((k, k))
        first = self._standardised(lambda x: x * own[labels])
        second = self._standardised(lambda x: (x @ pool @ means)[:, labels])
        return lambda x: first(x) + second(x)

    def _nearly_linear(self) -> Callable[[NDArray], NDArray]:
        exact = self._linear()
        matrix = self.rng.standard_normal((self.nodes, self.nodes))
        rest = self._standardised(lambda x: x @ matrix)
        return lambda x: math.sqrt(1 - ASYMMETRIC) * exact(x) + math.sqrt(2 * ASYMMETRIC) * rest(x)

    def _two_layer(self) -> Callable[[NDArray], NDArray]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.rng.integers(2**31)))
            net = GNet([1, 8, 1], ClusterGroup(self.partition), propagate="none").double()
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(std=0.3)

        def run(x: NDArray) -> NDArray:
            with torch.no_grad():
                return net(torch.from_numpy(x)[..., None])[..., 0].numpy()

        scaled = self._standardised(run)
        return lambda x: math.sqrt(2) * scaled(x)


def chain(planted: Partition, rng: np.random.Generator) -> list[Partition]:
    """A nested chain through a partition: clusters halved, or joined in pairs, at each level."""
    n = planted.num_nodes
    levels = [planted]
    while levels[0].num_clusters > 1:
        labels, k = levels[0].labels.numpy(), levels[0].num_clusters
        joined = rng.permutation(k) // 2
        levels.insert(0, Partition.from_labels(joined[labels], relabel=True))
    while True:
        finer = levels[-1].labels.numpy().copy()
        for nodes in levels[-1].clusters():
            if len(nodes) > 1:
                finer[rng.permutation(nodes.numpy())[: len(nodes) // 2]] = finer.max() + 1
        if finer.max() + 1 > 0.7 * n:
            return [Partition.singletons(n), *levels[::-1]]
        levels.append(Partition(finer))


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
    choice = choose_group(levels, x, y)
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


def run_real(task: str, data: Path, profile: str, seed: int, commit: str) -> list[Real]:
    """Choose among the groups of a task from its training split alone."""
    problem = TASKS[task].load(data, profile, seed)
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
    choice = choose_group(groups, x, y, swaps=None)
    seconds = time.process_time() - start
    return [
        Real(
            task=task,
            dataset=problem.dataset,
            profile=profile,
            seed=seed,
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


def main(
    out: Path,
    trials: int,
    data: Path | None = None,
    console: Console | None = None,
    only: str | None = None,
) -> Path:
    """Run all trials, write their CSV files and the page ``choosing.md`` to ``out``.

    Args:
        out: Folder to write to, and to read the suite's results from.
        trials: Trials per cell.
        data: Folder of downloaded data; without it the rows on real data stay as they are.
        console: Where progress goes.
        only: One of :data:`PARTS`, to run that part alone; ``None`` for all.

    Returns:
        Path of the page.
    """
    if trials < 1:
        raise BenchmarkError(f"--trials must be at least 1; got {trials}")
    console = console or Console()
    commit = provenance()["commit"]
    if only in (None, "levels"):
        cells = [(t, i, s) for t in TRUTHS for i in INPUTS for s in SIGNALS]
        jobs = [(*cell, seed) for cell in cells for seed in range(trials)]
        rows = [run_trial(*job, commit) for job in track(jobs, "choosing", console=console)]
        _write(out / "choosing.csv", rows)
    if only in (None, "partitions"):
        cases = [(t, i, *size) for t in TRUTHS[:2] for i in INPUTS for size in RECOVERY]
        searches = [(*case, seed) for case in cases for seed in range(min(trials, RECOVERY_TRIALS))]
        found = [run_recovery(*job, commit) for job in track(searches, "recovery", console=console)]
        _write(out / "choosing_recovery.csv", found)
    if only in (None, "conditions"):
        real = None if data is None else data / METR_LA
        measure_conditions(out, trials, real, commit, console)
    if only in (None, "real") and data is not None:
        write_real(out, data, console)
    return write_page(out)


def write_real(out: Path, data: Path, console: Console) -> None:
    """Choose on the data of every standard run in the suite's results."""
    commit = provenance()["commit"]
    cells = dict.fromkeys(
        (row.task, row.profile, row.seed)
        for row in read_rows(out)
        if row.group and row.source == "files" and row.task in TASKS
    )
    rows = []
    for task, profile, seed in track(list(cells), "real data", console=console):
        rows += run_real(task, data, profile, seed, commit)
    if rows:
        _write(out / "choosing_real.csv", rows)


def write_page(out: Path) -> Path:
    """Write ``choosing.md`` from the CSV files."""
    trials = _read(out / "choosing.csv", Trial)
    found = _read(out / "choosing_recovery.csv", Recovery)
    cells = {
        (t, i, s): [r for r in trials if (r.truth, r.inputs, r.signals) == (t, i, s)]
        for t in TRUTHS
        for i in INPUTS
        for s in SIGNALS
    }
    body, short = [], []
    for cell, rows in cells.items():
        hit, split = _share(rows, "chosen"), _share(rows, "held_out")
        excess, split_excess = _excess(rows, "excess"), _excess(rows, "held_out_excess")
        body.append(
            [
                *map(str, cell),
                f"{_share(rows, 'planted'):.0%}",
                f"{hit:.0%}",
                f"{split:.0%}",
                f"{excess:.2%}",
                f"{split_excess:.2%}",
                f"{np.mean([r.excess <= r.bound for r in rows]):.0%}",
            ]
        )
        if cell[0] == TRUTHS[2]:
            continue
        name = ", ".join([cell[0], cell[1], f"{cell[2]} signals"])
        if hit < HITS:
            short.append(f"{name}: the best level in {hit:.0%} of trials, not {HITS:.0%}.")
        if excess > EXCESS:
            short.append(f"{name}: excess risk {excess:.2%}, not {EXCESS:.0%}.")
        if hit < split:
            short.append(f"{name}: the split finds the best level in {split:.0%}, more often.")
        if excess > split_excess:
            short.append(
                f"{name}: the split has excess risk {split_excess:.3%}, against {excess:.3%}."
            )
    exact = [r for r in trials if r.truth != TRUTHS[2]]
    lines = [
        "# Choosing the group",
        "",
        f"Made by `{COMMAND}`, each section by its own `--only`. Data are made up, so the right "
        "answer is known, but for METR-LA and the last section.",
        "",
        "## Which level is best",
        "",
        _made(trials, f"--only levels --trials {len(trials) // len(cells)}"),
        "",
        f"A partition of {NODES[0]} to {NODES[1]} nodes into 2 to 20 clusters is planted, and a "
        "map that is equivariant under it: linear, or a two-layer G-Net. A nested chain leads "
        "from single nodes through the planted partition to one cluster, each level about half "
        "the last. Inputs are white, or correlated by 0.95 between neighbours in an order that "
        "has nothing to do with the clusters. Targets have variance 2 (linear: 1 "
        "from own values and 1 from cluster means) plus noise of standard "
        f"deviation {', '.join(f'{v:g}' for v in NOISE)}. *Nearly linear* replaces "
        f"{ASYMMETRIC:.0%} of the variance of the targets by a map without symmetry: no level is "
        "right there, and the best one depends on the number of signals.",
        "",
        f"The *truly best* level is the one whose ridge predictor, fitted to all signals, errs "
        f"least on {TEST_SIGNALS:,} fresh ones. `choose_group` sees only the signals. The split "
        "fits to four fifths of them, chooses on the rest, and then fits to all. Excess is the "
        "risk of the chosen level less that of the best, as a share of the distance between "
        "trivial and S_n, each averaged over trials. The last column says how often the excess "
        "stays within the regret bound, which promises 95 %.",
        "",
        _table(
            [
                "truth",
                "inputs",
                "signals",
                "planted is best",
                "best level chosen",
                "by split",
                "excess",
                "of split",
                "within bound",
            ],
            body,
        ),
        "",
        f"Over the {len(exact):,} trials with an exactly equivariant truth: the best level in "
        f"{_share(exact, 'chosen'):.1%} (split: {_share(exact, 'held_out'):.1%}), excess risk "
        f"{_excess(exact, 'excess'):.3%} (split: {_excess(exact, 'held_out_excess'):.3%}). A "
        f"choice takes {np.median([r.seconds for r in trials]):.2f} s of a CPU (median), at most "
        f"{max(r.seconds for r in trials):.1f} s.",
        "",
        f"The aim is {HITS:.0%} and {EXCESS:.0%} in every row with an equivariant truth, and to be "
        "no worse than the split. " + ("Reached everywhere." if not short else "Not reached here:"),
        *([""] if short else []),
        *(f"- {line}" for line in short),
        "",
        "## Which partition, from signals alone",
        "",
        _made(found, "--only partitions"),
        "",
        f'No level is offered: `coarsen(method="risk")` builds the hierarchy from '
        f"{RECOVERY_SIGNALS} signals, and its level of as many clusters as planted is compared "
        "with the planted partition by the adjusted Rand index (1: equal, 0: chance); mean over "
        "trials, the worst in brackets. Ward on signals is the best of three: on inputs, on "
        "targets, on both. The graph has communities of its own, independent of the planted "
        "partition, so what looks at the graph alone cannot find it.",
        "",
        *_recovery_lines(found),
        *condition_lines(out, COMMAND),
        *_real_lines(out),
    ]
    page = out / "choosing.md"
    with replacing(page) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def _recovery_lines(found: Sequence[Recovery]) -> list[str]:
    methods = ("risk", "ward_signals", "ward_graph", "spectral", "louvain")
    cases = dict.fromkeys((r.truth, r.inputs, r.nodes, r.planted) for r in found)
    body, low, beaten = [], [], 0
    for case in cases:
        rows = [r for r in found if (r.truth, r.inputs, r.nodes, r.planted) == case]
        values = {m: np.array([getattr(r, m) for r in rows]) for m in methods}
        body.append(
            [*map(str, case), *(f"{v.mean():.3f} ({v.min():.2f})" for v in values.values())]
        )
        beaten += int((values["risk"] < values["ward_signals"]).sum())
        if values["risk"].mean() < RAND:
            low.append(f"- {', '.join(map(str, case))}: {values['risk'].mean():.3f}")
    heads = ["risk", "Ward, signals", "Ward, graph", "spectral, graph", "Louvain, graph"]
    verdict = (
        f"The aim, a mean of at least {RAND}, is reached in every row."
        if not low
        else f"The aim, a mean of at least {RAND}, is missed in these rows:"
    )
    return [
        _table(["truth", "inputs", "nodes", "clusters", *heads], body),
        "",
        f"{verdict} Ward on signals does better in {beaten} of {len(found)} trials.",
        *low,
    ]


def _real_lines(out: Path) -> list[str]:
    """Chosen groups on real data against the trained errors of the suite."""
    if not (out / "choosing_real.csv").is_file():
        return []
    rows = _read(out / "choosing_real.csv", Real)
    lines = [
        "",
        "## On real data",
        "",
        _made(rows, "--only real --data DIR"),
        "",
        "`choose_group` sees the training split of each task of [the results](report.md); the test "
        "errors are those of the networks that the suite trained for every group. The score is "
        "the left-out squared error, in squared units of the targets; all means are over seeds. "
        "Missing speeds are filled with the mean, and windows of traffic, drawn at random, "
        "overlap, so that their left-out errors are too low. The aim is to be within "
        f"{NEAR:.0%} of the best group, better than both ends of the table, at no more than "
        f"{SHARE:.0%} of the time of training.",
    ]
    trained = [r for r in read_rows(out) if r.group and r.status == "ok"]
    for task, dataset, profile in dict.fromkeys((r.task, r.dataset, r.profile) for r in rows):
        own = [r for r in rows if (r.task, r.dataset, r.profile) == (task, dataset, profile)]
        runs = [r for r in trained if (r.task, r.dataset, r.profile) == (task, dataset, profile)]
        tests = {
            g: float(np.mean([r.test for r in runs if r.group == g]))
            for g in dict.fromkeys(r.group for r in runs)
        }
        body = []
        for group in dict.fromkeys(r.group for r in own):
            mine = [r for r in own if r.group == group]
            count = sum(r.chosen for r in mine)
            body.append(
                [
                    group.replace("|", "\\|"),
                    f"{np.mean([r.score for r in mine]):.4g}",
                    f"{np.mean([r.gap for r in mine]):+.3g}",
                    f"{tests[group]:.4g}" if group in tests else "-",
                    f"{count} of {len(mine)}" if count else "",
                ]
            )
        by_seed = {(r.seed, r.group): float(r.test) for r in runs if r.test is not None}
        # Each seed against its own best, S_n and trivial: the ends of the table.
        ends = body[0][0], body[-1][0]
        picks = [r for r in own if r.chosen and (r.seed, r.group) in by_seed]
        ratio = [
            by_seed[r.seed, r.group] / min(v for (s, _), v in by_seed.items() if s == r.seed)
            for r in picks
        ]
        chosen = float(np.mean([by_seed[r.seed, r.group] for r in picks]))
        choosing = sum({r.seed: r.seconds for r in own}.values())
        training = sum(r.seconds for r in runs)
        lines += [
            "",
            f"### {task}, {dataset}",
            "",
            _table(["group", "score", "gap to best", f"test {runs[0].metric}", "chosen"], body),
            "",
            f"Test error of the chosen group: {chosen:.4g}, on average {np.mean(ratio) - 1:.1%} "
            f"above that of the best group of the same seed ({ends[0]}: {tests[ends[0]]:.4g}, "
            f"{ends[1]}: {tests[ends[1]]:.4g}). The CPU time of the choices was "
            f"{choosing / training:.2%} of the time of training all groups.",
            "",
            f"Within {NEAR:.0%} of the best: {_yes(np.mean(ratio) - 1 <= NEAR)}. Better than "
            f"{ends[0]}: {_yes(chosen < tests[ends[0]])}. Better than {ends[1]}: "
            f"{_yes(chosen < tests[ends[1]])}. Within {SHARE:.0%} of the time: "
            f"{_yes(choosing <= SHARE * training)}.",
        ]
    return lines


def _made(rows: Sequence[Trial] | Sequence[Recovery] | Sequence[Real], options: str) -> str:
    commits = ", ".join(dict.fromkeys(row.commit for row in rows))
    return f"Made by `{COMMAND} {options}` at commit {commits}."


def _yes(reached: object) -> str:
    return "yes" if reached else "**no**"


def _share(rows: Iterable[Trial], column: str) -> float:
    """Share of trials in which a column names the best level."""
    return float(np.mean([getattr(r, column) == r.best for r in rows]))


def _excess(rows: Sequence[Trial], column: str) -> float:
    """Mean excess risk over the mean distance between trivial and S_n."""
    return float(np.mean([getattr(r, column) for r in rows]) / np.mean([r.gap for r in rows]))


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


_Row = TypeVar("_Row", Trial, Recovery, Real)


def _write(path: Path, rows: Sequence[Trial] | Sequence[Recovery] | Sequence[Real]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(rows[0]))
    for row in rows:
        writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values())
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _read(path: Path, kind: type[_Row]) -> list[_Row]:
    readers: dict[Any, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        return [
            kind(**{f.name: readers[f.type](row[f.name]) for f in fields(kind)})
            for row in csv.DictReader(file)
        ]
