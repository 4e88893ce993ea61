"""The page of the molecules task: tables and a picture from the results file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from gsym_bench.studies.molecules.graphs import DATASETS, FOLDS, KINDS, MAX_NODES
from gsym_bench.studies.molecules.models import RATE, models
from gsym_bench.studies.molecules.pairs import families
from gsym_bench.studies.molecules.separation import COPIES, FAR, names
from gsym_bench.studies.molecules.suite import (
    ACCURACY,
    BATCH,
    CLASSES,
    EPOCHS,
    LAST_ACCURACY,
    LEAST,
    MEAN_ACCURACY,
    NOISE,
    PARAMETERS,
    PROFILE_FOLDS,
    RESULTS,
    SEPARATION,
    Cell,
)
from gsym_bench.studies.molecules.training import BASELINES, LAST
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import PALETTE, save
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.report.statistics import Interval
from gsym_bench.suite.results import Row, read_rows

PAGE, PICTURE = "molecules.md", "molecules.png"
REFERENCE = "GIN"
# GIN-0 of arXiv 1810.00826, quoted from memory: mean and standard deviation over folds.
PUBLISHED = {
    "MUTAG": (89.4, 5.6),
    "PTC": (64.6, 7.0),
    "PROTEINS": (76.2, 2.8),
    "IMDB-BINARY": (75.1, 5.1),
}


@dataclass(frozen=True)
class Score:
    """An accuracy over folds and seeds.

    Attributes:
        mean: Over all cells.
        folds: Standard deviation over folds, of means over seeds.
        seeds: Standard deviation over seeds, of means over folds; ``None`` for one seed.
    """

    mean: float
    folds: float | None
    seeds: float | None

    def __str__(self) -> str:
        words = f"{self.mean:.1f}"
        if self.folds is not None:
            words += f" ± {self.folds:.1f}"
        return words + ("" if self.seeds is None else f" ({self.seeds:.1f})")


def score(rows: Sequence[Row], metric: str) -> Score | None:
    """The score of finished rows; seeds that lack a fold have no part in the spread over seeds."""
    done = [row for row in rows if row.status == "ok"]
    if not done:
        return None
    folds = _grouped(done, metric, "fold")
    seeds = _grouped(done, metric, "seed")
    full = [mean(own) for own in seeds.values() if len(own) == len(folds)]
    return Score(
        mean(mean(own) for own in folds.values()),
        stdev(map(mean, folds.values())) if len(folds) > 1 else None,
        stdev(full) if len(full) > 1 else None,
    )


def best_of_mean(rows: Sequence[Row]) -> Score | None:
    """The score at the epoch of best mean test accuracy over folds, as GIN's paper reports it.

    Each seed has its own epoch. The epoch is chosen on the folds that test, so the score is too
    good; it stands beside published numbers, and for nothing else.

    Returns:
        ``None`` if no seed has the curves of all folds.
    """
    curves: dict[int, list[list[float]]] = {}
    for row in rows:
        note = next((value.note for value in row.values if value.metric == MEAN_ACCURACY), "")
        if row.status == "ok" and note:
            curves.setdefault(row.seed, []).append([float(word) for word in note.split()])
    folds = len({row.fold for row in rows})
    whole = [np.array(own) for own in curves.values() if len(own) == folds]
    if not whole:
        return None
    # [seeds, folds], each seed at its epoch.
    chosen = np.stack([own[:, own.mean(0).argmax()] for own in whole])
    return Score(
        float(chosen.mean()),
        float(chosen.mean(0).std(ddof=1)) if folds > 1 else None,
        float(chosen.mean(1).std(ddof=1)) if len(whole) > 1 else None,
    )


def against(rows: Sequence[Row], reference: Sequence[Row]) -> Interval | None:
    """Mean difference of accuracies, paired by fold and seed, with its 95 % interval.

    Seeds are averaged, folds are the samples. Their training sets overlap, so the variance of the
    mean is taken as ``1 / folds + test / training`` times that of a difference, the correction of
    Nadeau and Bengio (Machine Learning 52, 2003). A baseline without seeds counts for every seed.

    Returns:
        ``None`` below two common folds.
    """
    own = {(row.fold, row.seed): row.test for row in rows if row.test is not None}
    theirs = {(r.fold, r.seed): r.test for r in reference if r.test is not None}
    fixed = {fold: value for (fold, _), value in own.items()} if _is_baseline(rows) else {}
    differences: dict[int | None, list[float]] = {}
    for place, value in theirs.items():
        mine = own.get(place, fixed.get(place[0]))
        if mine is not None:
            differences.setdefault(place[0], []).append(mine - value)
    x = np.array([mean(d) for d in differences.values()])
    if len(x) < 2:
        return None
    centre = float(x.mean())
    ratio = 1 / (FOLDS - 2)  # test to training graphs, one more fold being for validation
    reach = float(stats.t.ppf(0.975, len(x) - 1)) * float(x.std(ddof=1))
    reach *= math.sqrt(1 / len(x) + ratio)
    return Interval(centre, centre - reach, centre + reach)


def report(out: Path) -> Path:
    """Write the page and the picture from the results file.

    Args:
        out: Folder of results.

    Raises:
        BenchmarkError: There are no results.
    """
    rows = read_rows(out, RESULTS)
    current = [row for row in rows if row.key == _cell(row).key]
    tables: dict[tuple[str, str], dict[str, list[Row]]] = {}
    order = [*BASELINES, *models(KINDS)]
    for profile in EPOCHS:
        for name, theirs in DATASETS.items():
            own = [
                row
                for row in current
                if (row.task, row.profile) == (CLASSES, profile) and row.dataset in (name, theirs)
            ]
            lines = {model: [row for row in own if row.model == model] for model in order}
            if own:
                tables[name, profile] = {model: line for model, line in lines.items() if line}
    pairs = [row for row in current if row.task == SEPARATION]
    if not tables and not pairs:
        raise BenchmarkError(f"no results in {out / RESULTS}; make some with gsym-bench molecules")
    parts = ["# Small graphs"]
    if pairs:
        parts += _hard_pairs(pairs)
    if tables:
        parts += _classes(tables)
        parts.append(f"![accuracy by network]({_draw(out, tables)})")
    parts += _provenance(current)
    return write_page(out / PAGE, parts)


def _cell(row: Row) -> Cell:
    """The cell that a row stands for, with today's settings."""
    ours = {theirs: name for name, theirs in DATASETS.items()}
    dataset = row.dataset if row.task == SEPARATION else ours.get(row.dataset, row.dataset)
    if row.task == CLASSES and (
        row.model not in [*BASELINES, *models(KINDS)] or row.profile not in EPOCHS
    ):
        return Cell(SEPARATION, "", "", 0, "")
    return Cell(row.task, dataset, row.model, row.seed, row.profile, row.fold)


def _hard_pairs(rows: Sequence[Row]) -> list[str]:
    known = families()
    columns = [name for name in known if any(row.dataset == name for row in rows)]
    body, wrong, unsure = [], 0, 0
    for name in names():
        line = [name]
        for family in columns:
            own = [row for row in rows if (row.model, row.dataset) == (name, family)]
            if not own:
                line.append("-")
                continue
            told_by = [row.values[0].note.split() for row in own]
            words = [{words[i] for words in told_by} for i in range(len(told_by[0]))]
            told = sum(all(w[0] == "1" for w in some) for some in words)
            wrong += sum(w in ("0m", "1c") for some in words for w in some)
            unsure += sum(len(some) > 1 for some in words)
            must = sum(w.endswith("m") for some in words for w in list(some)[:1])
            cannot = sum(w.endswith("c") for some in words for w in list(some)[:1])
            line.append(f"{told}" + f" (≥ {must})" * bool(must) + " (0)" * (cannot == len(words)))
        body.append(line)
    sizes = [len(known[name]) for name in columns]
    head = [
        "network",
        *(f"{n}, of {k * (k - 1) // 2}" for n, k in zip(columns, sizes, strict=True)),
    ]
    noise = max(v for row in rows if (v := row.value("test", NOISE)) is not None)
    apart = [v for row in rows if (v := row.value("test", LEAST)) is not None]
    least = f", pairs told apart by {min(apart):.1g} or more" if apart else ""
    seeds = max(row.seed for row in rows) + 1
    return [
        "## Pairs that are hard to tell apart",
        "Graphs of one family have equal numbers of nodes and edges, no two are isomorphic, and "
        "colour refinement (1-WL) tells none of them apart, so that neither message passing nor "
        "the maps of order 2 on the whole graph can. The families from the rook on are strongly "
        "regular graphs and those of Cai, Fürer and Immerman (CFI), which refinement of pairs of "
        "nodes (2-FWL, which is 3-WL) does not tell apart either; like all families they are "
        "made here, seeded where they are random.",
        f"A network with random weights, {seeds} draws in float64, gets all graphs of a family "
        f"with {COPIES} relabelled copies of each. A pair is told apart if its outputs differ by "
        f"more than {FAR:g} times what the copies differ by. The table counts pairs told apart "
        "by every draw. In brackets, what theory says: the least number, from the nodes and edges "
        "of the ego-networks (with weights by automorphism: from their isomorphism types); or 0, "
        "from 1-WL for networks on the whole graph, and from 2-FWL for networks on ego-networks, "
        "because whatever they hold belongs to three nodes, a root and a pair.",
        markdown_table(head, body),
        f"Results that theory excludes: {wrong}. Pairs on which draws disagree: {unsure}. Copies "
        f"differ by at most {noise:.1g} of the output{least}.",
        "SPEN with weights by size cannot tell the rook's graph from Shrikhande's with any number "
        "of hops; with weights by automorphism one hop is enough, as neighbourhoods are two "
        "triangles in the one and a hexagon in the other. Decalin and bicyclopentyl have equal "
        "trees around their nodes, and need two hops.",
    ]


def _classes(tables: Mapping[tuple[str, str], Mapping[str, list[Row]]]) -> list[str]:
    parts = [
        "## Classes of graphs",
        f"Ten folds, the published ones. The next fold after that which tests is for validation, "
        "and the other eight train; the literature trains on nine. Two accuracies are read off "
        "each training: that of the epoch which the validation fold chooses, "
        f"and the mean of the last {LAST} epochs, which chooses nothing and is how SPEN and others "
        "report. Accuracies are in percent, as mean ± standard deviation over folds, and in "
        "brackets over seeds. Differences to GIN are paired by fold, of the chosen epoch, with "
        "the 95 % interval of Student's t, widened because training sets overlap (Nadeau, Bengio, "
        "2003).",
        f"Networks have about {PARAMETERS:,} parameters. Adam's rate falls from {RATE:g} along "
        "half a cosine; it is one for all, the best of three for GIN on PTC by validation. Within "
        "a training batches are drawn once and come in another order each epoch. SPEN, the rooted "
        "network "
        "and the kinds of ego-networks see one hop; ego-networks of more than "
        f"{MAX_NODES} nodes, which only IMDB-BINARY and PROTEINS have, are shrunk to their root. "
        "IMDB-BINARY has no labels; its nodes are labelled by the logarithm of their degree. "
        "Coloured labels are two, the commonest one and all others: a map of order 2 with q "
        "colours has q^4 weights and more, so that root and labels coloured together would leave "
        "a single channel of this many parameters. "
        "Baselines count nodes by label and edges, with a logistic regression, or know the "
        "classes only.",
    ]
    seeds: dict[str, int] = {}
    for (_, profile), lines in tables.items():
        found = (row.seed + 1 for line in lines.values() for row in line)
        seeds[profile] = max(seeds.get(profile, 1), *found)
    for (name, profile), lines in tables.items():
        parts += _table(name, profile, lines, seeds[profile])
    return parts


def _table(name: str, profile: str, lines: Mapping[str, list[Row]], seeds: int) -> list[str]:
    reference = lines.get(REFERENCE, [])
    folds = PROFILE_FOLDS[profile]
    head = ["network", "parameters", "folds", "seeds", "chosen by validation"]
    head += [f"last {LAST} epochs", f"against {REFERENCE}", "diverged", "seconds"]
    body, missing = [], []
    for model in [*BASELINES, *models(KINDS)]:
        line = lines.get(model, [])
        wanted = folds * (1 if model in BASELINES else seeds)
        if len(line) < wanted:
            missing.append(f"{model} ({len(line)} of {wanted} trainings)" if line else model)
        if not line:
            continue
        difference = None if model == REFERENCE else against(line, reference)
        parameters = line[0].parameters
        body.append(
            [
                f"{model} (baseline)" if model in BASELINES else model,
                "-" if parameters is None else f"{parameters:,}",
                str(len({row.fold for row in line})),
                "-" if model in BASELINES else str(len({row.seed for row in line})),
                str(score(line, ACCURACY) or "-"),
                "-" if model in BASELINES else str(score(line, LAST_ACCURACY) or "-"),
                "-"
                if difference is None
                else f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]",
                str(sum(row.status == "diverged" for row in line)),
                f"{mean(row.seconds for row in line):.0f}",
            ]
        )
    said = [
        f"### {name}, {profile}",
        f"{EPOCHS[profile][name]} epochs of batches of {BATCH[name]}.",
        markdown_table(head, body),
    ]
    if missing:
        said.append(f"Not run, or not to the end: {'; '.join(missing)}.")
    ours = best_of_mean(reference)
    if ours is not None and profile == "standard":
        centre, spread = PUBLISHED[name]
        inside = "within" if abs(ours.mean - centre) <= spread else "outside of"
        said.append(
            f"GIN's published accuracy is {centre} ± {spread}, for 350 epochs on nine folds, at "
            "the epoch of best mean test accuracy; it is quoted from memory. Ours, read off the "
            f"same way from {EPOCHS[profile][name]} epochs on eight folds, is {ours} and lies "
            f"{inside} that spread. The epoch is chosen on the folds that test, which is why the "
            "table does not do so."
        )
    return said


def _draw(out: Path, tables: Mapping[tuple[str, str], Mapping[str, list[Row]]]) -> str:
    """Mean accuracies of both kinds, with their spread over folds; a panel per table."""
    order = [*BASELINES, *models(KINDS)]
    figure = Figure(figsize=(2.2 + 2.3 * len(tables), 3.6), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    kinds = {
        ACCURACY: ("chosen by validation", 0.13),
        LAST_ACCURACY: (f"last {LAST} epochs", -0.13),
    }
    for axes, ((name, profile), lines) in zip(panels, tables.items(), strict=True):
        for number, (metric, (words, shift)) in enumerate(kinds.items()):
            for place, model in enumerate(order):
                found = score(lines.get(model, []), metric)
                if found is None or (metric == LAST_ACCURACY and model in BASELINES):
                    continue
                axes.errorbar(
                    found.mean,
                    place - shift,
                    xerr=found.folds or 0.0,
                    fmt="o",
                    markersize=4,
                    linewidth=1,
                    color=PALETTE[number],
                    label=words if place == len(BASELINES) else None,
                )
        if profile == "standard":
            centre, spread = PUBLISHED[name]
            axes.axvspan(centre - spread, centre + spread, color=PALETTE[7], alpha=0.18, zorder=0)
        axes.set_title(f"{name}, {profile}", fontsize=9, loc="left")
        axes.set_xlabel("accuracy (%)", fontsize=9)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(order)), order, fontsize=9)
    panels[0].set_ylim(len(order) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(
        "mean and standard deviation over folds; grey: published spread of GIN", fontsize=9
    )
    return save(figure, out / PICTURE)


def _provenance(rows: Sequence[Row]) -> list[str]:
    trained = [row for row in rows if row.task == CLASSES]
    commands = []
    for profile in dict.fromkeys(row.profile for row in trained):
        seeds = max(row.seed for row in trained if row.profile == profile) + 1
        commands.append(f"--data DIR --profile {profile} --seeds {seeds}")
    if not commands:
        commands = [f"--seeds {max(row.seed for row in rows) + 1}"]
    made = " && ".join(f"gsym-bench molecules {words}" for words in commands)
    return [f"{made_with(made, rows)}; the seconds include the load of the machine."]


def _grouped(rows: Sequence[Row], metric: str, by: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for row in rows:
        value = row.value("test", metric)
        if value is not None:
            found.setdefault(getattr(row, by), []).append(value)
    return found


def _is_baseline(rows: Sequence[Row]) -> bool:
    return bool(rows) and rows[0].model in BASELINES
