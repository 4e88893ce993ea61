"""The page of the study, from its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gsym_bench.studies.choosing.conditions import lines as condition_lines
from gsym_bench.studies.choosing.trials import (
    NODES,
    NOISE,
    RECOVERY_SIGNALS,
    TEST_SIGNALS,
    Real,
    Recovery,
    Trial,
)
from gsym_bench.studies.choosing.twins import ASYMMETRIC, INPUTS, TRUTHS
from gsym_bench.suite.report.markdown import markdown_table, write_page
from gsym_bench.suite.report.tables import Line, tabulate
from gsym_bench.suite.results import VARIANT, read_rows
from gsym_bench.suite.study_tables import read_records

COMMAND = "gsym-bench choosing"
PAGE = "choosing.md"
LEVELS, PARTITIONS, REAL = "choosing.csv", "choosing_recovery.csv", "choosing_real.csv"
SIGNALS = (60, 120, 400)
# Tasks with real data and trained networks whose signals fit in memory: those of an hour of traffic
# have 36 numbers at each of 207 nodes.
CHOSEN = ("inpainting", "traffic", "skeleton")
# Aims on real data: distance to the best group, and time as a share of that of training.
NEAR, SHARE = 0.01, 0.05
# What is promised, and what the page compares with.
HITS, EXCESS, RAND = 0.9, 0.02, 0.95


def report(out: Path) -> Path:
    """Write ``choosing.md`` from the CSV files."""
    trials = read_records(out / LEVELS, Trial)
    found = read_records(out / PARTITIONS, Recovery)
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
        markdown_table(
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
    return write_page(out / PAGE, ["\n".join(lines)])


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
        markdown_table(["truth", "inputs", "nodes", "clusters", *heads], body),
        "",
        f"{verdict} Ward on signals does better in {beaten} of {len(found)} trials.",
        *low,
    ]


def _real_lines(out: Path) -> list[str]:
    """Chosen groups on real data against the trained errors of the suite."""
    rows = read_records(out / REAL, Real)
    if not rows:
        return []
    lines = [
        "",
        "## On real data",
        "",
        _made(rows, "--only real --data DIR"),
        "",
        f"`choose_group` sees the training split of {', '.join(CHOSEN[:-1])} and {CHOSEN[-1]}, "
        "tasks of [the results](report.md) whose signals fit in memory; the test "
        "errors are those of the networks that the suite trained for every group, model by model "
        "at the usual number of signals. The score is the left-out squared error, in squared units "
        "of the targets; all means are over seeds. "
        "Missing speeds are filled with the mean, and windows of traffic, drawn at random, "
        "overlap, so that their left-out errors are too low. The aim is to be within "
        f"{NEAR:.0%} of the best group, better than both ends of the table, at no more than "
        f"{SHARE:.0%} of the time of training.",
    ]
    tables = [table for table in tabulate(read_rows(out)) if table.signals is None]
    for task, dataset, profile in dict.fromkeys((r.task, r.dataset, r.profile) for r in rows):
        own = [r for r in rows if (r.task, r.dataset, r.profile) == (task, dataset, profile)]
        for table in tables:
            if (table.task, table.dataset, table.profile) == (task, dataset, profile):
                same, own = _of_same_data(own, table.candidates)
                if not own:
                    lines += ["", f"{task}, {dataset}: no network was trained on these draws."]
                for model in dict.fromkeys(line.model for line in same):
                    trained = [line for line in same if line.model == model]
                    lines += _beside_training(own, trained)
    return lines


def _of_same_data(own: Sequence[Real], lines: Sequence[Line]) -> tuple[list[Line], list[Real]]:
    """What was trained on the very draws that a choice was made on, and those choices."""
    drawn = {row.seed: row.checksum for row in own}
    kept = (
        replace(line, rows=tuple(r for r in line.rows if r.checksum == drawn.get(r.seed)))
        for line in lines
    )
    trained = [line for line in kept if line.rows]
    seeds = {row.seed for line in trained for row in line.rows}
    return trained, [row for row in own if row.seed in seeds]


def _beside_training(own: Sequence[Real], trained: Sequence[Line]) -> list[str]:
    """The choice on one task beside one model, trained with every group of its table."""
    first = trained[0].rows[0]
    tests = {line.group: line.test for line in trained if line.finished}
    names = list(dict.fromkeys(r.group for r in own))
    ends = names[0], names[-1]
    by_seed = {
        (row.seed, line.group): row.test
        for line in trained
        for row in line.finished
        if row.test is not None
    }
    picks = [r for r in own if r.chosen and (r.seed, r.group) in by_seed]
    if not picks or not tests.keys() >= set(ends):
        return []  # a model that a few groups were tried with tells nothing of a choice
    body = []
    for group in names:
        mine = [r for r in own if r.group == group]
        count = sum(r.chosen for r in mine)
        body.append(
            [
                group,
                f"{np.mean([r.score for r in mine]):.4g}",
                f"{np.mean([r.gap for r in mine]):+.3g}",
                f"{tests[group]:.4g}" if group in tests else "-",
                f"{count} of {len(mine)}" if count else "",
            ]
        )
    # Each seed against its own best, S_n and trivial: the ends of the table.
    ratio = [
        by_seed[r.seed, r.group] / min(v for (s, _), v in by_seed.items() if s == r.seed)
        for r in picks
    ]
    chosen = float(np.mean([by_seed[r.seed, r.group] for r in picks]))
    seeds = {r.seed for r in picks}
    choosing = sum({r.seed: r.seconds for r in own if r.seed in seeds}.values())
    training = sum(row.seconds for line in trained for row in line.rows if row.seed in seeds)
    variant = first.model.partition(VARIANT)[2]
    return [
        "",
        f"### {first.task}, {first.dataset}{f', {variant}' if variant else ''}",
        "",
        markdown_table(["group", "score", "gap to best", f"test {first.metric}", "chosen"], body),
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
