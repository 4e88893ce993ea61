"""The command ``choose``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from gsym._cli._common import (
    Block,
    Column,
    Counts,
    File,
    Inputs,
    Method,
    Number,
    Output,
    Pixels,
    Row,
    Standard,
    Steps,
    Text,
    app,
    propose,
    save_labels,
)
from gsym._cli._forecast import can_soften, check_windows, load_code, windows
from gsym._console import UsageError, check_outputs, print_json, say, steps
from gsym._files import Graph, read_inputs, read_latlon, read_partitions, read_positions
from gsym.choosing import CRITERIA, Candidate, choose_group
from gsym.choosing.choose import MAX_LEVELS, spread_levels
from gsym.choosing.latlon import check_latlon
from gsym.choosing.page.script import is_listed, saved_arrays
from gsym.choosing.signs import small_symmetries
from gsym.choosing.soft import SoftChoice
from gsym.coarsening import Hierarchy
from gsym.groups import Partition, Representation, automorphisms

Signs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="{auto,x:-1,y0:-1 ...}")]
Criteria = Annotated[str, tyro.conf.arg(help=f"How groups are judged: {', '.join(CRITERIA)}.")]


@app.command
def choose(
    *,
    signals: Annotated[str, tyro.conf.arg(metavar="FILE")],
    graph: File = None,
    targets: File = None,
    partitions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...")] = (),
    method: Method = "auto",
    use: Annotated[Inputs | None, tyro.conf.arg(metavar="{graph,signals,both}")] = None,
    levels: Counts = (),
    height: Pixels = None,
    width: Pixels = None,
    lag: Steps = None,
    horizon: Steps = None,
    block: Block = "auto",
    gap: int = 0,
    criterion: Criteria = "ridge",
    signs: Signs = (),
    standardize: Standard = None,
    mask: File = None,
    missing: Number = None,
    no_shared: bool = False,
    soft: bool = False,
    no_swaps: bool = False,
    directed: bool = False,
    names: File = None,
    first_row: Row = "auto",
    first_column: Column = "auto",
    positions: File = None,
    latlon: File = None,
    title: Text = None,
    unit: Text = None,
    out: Output = None,
    save: Output = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Say which group to use: propose clusters, estimate the risk of each group, write a page.

    For example, and then open report.html:

      gsym choose --graph edges.csv --signals x.npz --targets y.npz --out report.html

      gsym choose --graph edges.csv --signals speeds.csv --lag 12 --horizon 3 --out report.html

      gsym choose --signals images.npy --method grid --height 28 --width 28

    Args:
        signals: Inputs [samples, nodes] or [samples, nodes, channels], training data only.
        graph: The graph. Methods that look at signals alone need none.
        targets: What to predict from the signals: values per node, or one number per sample;
            without it, the signals themselves from noisy ones.
        partitions: Candidate partitions, as `coarsen` writes them, instead of a method's.
        method: How to propose clusters; the option lists the methods.
        use: What the method looks at; by default the graph if there is one and it can.
            The method risk looks at signals; with both it merges clusters only along edges.
        levels: Numbers of clusters to offer; by default up to 24 and more around the best.
        height: Rows of the image, for the method grid.
        width: Columns of the image, for the method grid.
        lag: Forecast: the signals are a series, and from so many steps of it, each a channel, the
            next ones are predicted. Takes the place of targets.
        horizon: How many steps are predicted, 1 by default; then lag is 1 by default.
        block: Consecutive samples left out together: for overlapping windows, the number of
            windows that share a time step; for samples of several days, those of one; or auto, as
            many as depend on each other.
        gap: Samples on either side of a block that are left out of the fit with it; with auto, as
            many as depend on each other.
        criterion: How groups are judged.
        signs: Channels that change their sign with an exchange of nodes, as what points to the
            side does under a mirror. With auto, they are looked for; x:-1 says that all channels
            of the signals do, x0:-1 that the first does, and y0:-1 the first of the targets.
            The exchanges are those that keep the graph.
        standardize: With node, every node's mean is taken off and its standard deviation divided
            out.
        mask: Which signals were observed: a file of ones and zeros in the form of the signals.
        missing: A number that stands for a missing value, such as 0; empty cells always do.
        no_shared: Fit towards 0, not towards one own-value map of all nodes: for targets that a
            node's own value says little of.
        soft: Also mix the groups: the weight of each, what the mixture errs, and from how many
            samples a finer group pays. A page has it anyway for up to 2,000
            coordinates without missing values.
        no_swaps: Do not offer exchanges of whole clusters where the coarse graph has symmetries.
        directed: Take an edge list in one direction only.
        names: Text file with the names of the nodes, one per line, in the order of the signals;
            an edge list may use them. Without it, the header of the signals names the nodes.
        first_row: What the first row of a table holds, where that is in doubt.
        first_column: What the first column of a table holds, where that is in doubt.
        positions: Where to draw the nodes, [nodes, 2]: x to the right, y upwards.
        latlon: Instead, latitude and longitude in degrees, for a map: a table with columns of
            these names, and one of the nodes' names if their order differs, or an array [nodes, 2].
        title: Headline of the page.
        unit: What the targets are measured in, for the page.
        out: Page to write, .html.
        save: File for the labels of the best group, .npz. A page of more than 5,000 nodes has one
            beside it anyway, which its script reads.
        seed: Seed of methods that draw.
        json: Print the result as JSON and nothing else.
    """
    check_outputs(
        {"--out": out, "--save": save},
        {"--out": (".html", ".htm"), "--save": (".npz",)},
        (signals, graph, targets, names, positions, latlon, mask, *partitions),
    )
    if seed < 0:
        raise UsageError(f"--seed must not be negative; got {seed}")
    if criterion not in CRITERIA:
        raise UsageError(f"--criterion must be one of {', '.join(CRITERIA)}; got {criterion}")
    if positions is not None and latlon is not None:
        raise UsageError("--positions and --latlon both say where nodes are; give one of them")
    is_forecast = lag is not None or horizon is not None
    lag = 1 if lag is None else lag
    horizon = 1 if horizon is None else horizon
    if is_forecast:
        check_windows(lag, horizon, targets)
    if partitions and (height or width or levels or use):
        raise UsageError("--partitions takes the place of a method; leave its options out")
    with steps() as step:
        step("Reading files")
        read = read_inputs(
            graph,
            signals,
            targets,
            names,
            mask=mask,
            directed=directed,
            first_row=first_row,
            first_column=first_column,
        )
        say(read.summaries)
        n, x, y, loaded = read.num_nodes, read.x, read.y, read.graph
        node_names = None if read.names is None else list(read.names)
        places = None if positions is None else read_positions(positions, n)
        degrees = None
        if latlon is not None:
            degrees = check_latlon(read_latlon(latlon, node_names, n), n)
        seen: Any = read.mask
        if is_forecast:
            assert x is not None  # the option is required
            x, y, seen = windows(x, lag, horizon, seen)
        edge_index = None if loaded is None else loaded.edge_index
        candidates: Any
        if partitions:
            candidates = [
                p for f in partitions for p in read_partitions(f, n, edge_index, node_names)
            ]
            candidates = list(dict.fromkeys(candidates))
        else:
            step(f"Proposing clusters: {method}")
            candidates = propose(loaded, n, x, y, method, use, levels, height, width, seed)
        if missing is None and any(v is not None and bool(v.isnan().any()) for v in (x, y)):
            missing = math.nan
        if signs and signs != ("auto",):
            offered = candidates
            if isinstance(candidates, Hierarchy):
                offered = [candidates[k] for k in spread_levels(candidates.levels, MAX_LEVELS)]
            candidates = [*offered, *_pairs(signs, x, y, loaded, n)]
        step("Estimating risks")
        # The graph of a hierarchy comes with its weights.
        given = None if getattr(candidates, "edge_index", None) is not None else loaded
        choice = choose_group(
            candidates,
            x,
            y,
            criterion=criterion,
            signs="auto" if signs == ("auto",) else None,
            edge_index=None if given is None else given.edge_index,
            edge_weight=None if given is None else given.edge_weight,
            swaps=None if no_swaps else "auto",
            block=block,
            gap=gap,
            standardize=standardize,
            shared=not no_shared,
            soft=soft
            or (out is not None and can_soften(candidates, x, y, criterion, signs, seen, missing)),
            mask=seen,
            missing=missing,
            seed=seed,
        )
        step("Writing")
        if out is not None and not is_listed(choice.group):
            save = save or out.with_suffix(".labels.npz")
        if save is not None:
            # The labels are those of the orbits where the group has no clusters.
            more = {k: v for k, v in saved_arrays(choice.group).items() if k != "labels"}
            labels = torch.tensor([_labels(choice.best)])
            save_labels(save, labels, edge_index, n, node_names, **more)
        if out is not None:
            image = None
            if places is None and height and width:
                image = Partition.grid(height, width, 1).labels
                places = np.column_stack([image % width, -(image // width)]).astype(float)
            shown = choice
            if is_forecast and choice.task is not None:
                # Windows on either side of a cut share time steps.
                apart = max(choice.task.gap, lag + horizon - 1)
                shown = replace(choice, task=replace(choice.task, gap=apart))
            options = {
                "graph": graph,
                "signals": signals,
                "targets": targets,
                "names": names,
                "mask": mask,
                "directed": directed,
                "first_row": first_row,
                "first_column": first_column,
            }
            shown.report(
                out,
                positions=places,
                latlon=degrees,
                names=node_names,
                title=title,
                unit=unit or "",
                load=load_code(options, missing, (lag, horizon) if is_forecast else None),
                saved=None if save is None else str(save),
            )
    if json:
        print_json(
            {
                "answer": choice.answer,
                "criterion": choice.criterion,
                "best": choice.candidates.index(choice.best),
                "simplest": choice.candidates.index(choice.simplest),
                "regret_bound": choice.regret_bound,
                "block": choice.block,
                "gap": choice.gap,
                "candidates": [_record(c) for c in choice.candidates],
                "signs": None if choice.signs is None else _record(choice.signs.best),
                "soft": None if choice.soft is None else _soft_record(choice.soft),
                "labels": _labels(choice.best),
                "names": node_names,
                "read": [summary.record() for summary in read.summaries],
            }
        )
        return
    console = Console()
    if console.is_terminal:
        console.print(choice)
        console.print(choice.answer, soft_wrap=True, highlight=False)
    else:
        print(choice)
    for path, what in ((out, "The page is"), (save, "The labels of the best group are")):
        if path is not None:
            console.print(f"{what} in {path}", soft_wrap=True, highlight=False)


def _soft_record(soft: SoftChoice) -> dict[str, Any]:
    return {
        "weights": soft.weights.shares(),
        "score": soft.score,
        "standard_error": soft.standard_error,
        "rivals": [
            {
                "name": rival.name,
                "group": rival.candidate.name,
                "gap": rival.gap,
                "gap_error": rival.gap_error,
            }
            for rival in soft.rivals
        ],
        "crossings": [
            {
                "from": soft.levels[crossing.before].name,
                "to": soft.levels[crossing.after].name,
                "signals": crossing.signals,
                "low": crossing.low if math.isfinite(crossing.low) else None,
                "high": crossing.high if math.isfinite(crossing.high) else None,
            }
            for crossing in soft.crossings
        ],
        "sentence": soft.sentence,
    }


def _labels(candidate: Candidate) -> list[int]:
    if candidate.partition is not None:
        labels: list[int] = candidate.partition.labels.tolist()
        return labels
    return candidate.group.node_orbits().index.tolist()


def _record(candidate: Candidate) -> dict[str, Any]:
    names = (
        "num_clusters",
        "commutant_dim",
        "score",
        "standard_error",
        "gap",
        "gap_error",
        "bias",
        "variance",
    )
    reps = {
        name: None if rep is None else rep.to_dict()
        for name, rep in (("in_rep", candidate.in_rep), ("out_rep", candidate.out_rep))
    }
    return (
        {"group": candidate.name, "sentence": candidate.sentence}
        | {name: getattr(candidate, name) for name in names}
        | reps
    )


def _pairs(
    signs: Sequence[str], x: Tensor | None, y: Tensor | None, graph: Graph | None, n: int
) -> list[tuple[Representation, Representation | None]]:
    """Representations with the given signs of every exchange that keeps the graph."""
    if graph is None:
        raise UsageError(
            "--signs says which channels change sign as nodes of the graph exchange; give --graph"
        )
    assert x is not None  # the option is required
    counts = {"x": x.shape[2] if x.ndim == 3 else 1, "y": 0}
    if y is None:
        counts["y"] = counts["x"]
    elif y.ndim > 1:
        counts["y"] = y.shape[2] if y.ndim == 3 else 1
    rows = {letter: [1] * count for letter, count in counts.items()}
    for word in signs:
        found = re.fullmatch(r"([xy])(\d*):-1", word)
        if found is None:
            raise UsageError(
                f"--signs takes auto, or words such as x:-1, x0:-1 and y2:-1; got {word!r}"
            )
        letter, channel = found[1], found[2]
        if letter == "y" and (y is None or not counts["y"]):
            raise UsageError(
                f"--signs {word}: "
                + (
                    "without --targets they are the signals; say it of x"
                    if y is None
                    else "one number per sample stays as it is; leave it out"
                )
            )
        if channel and int(channel) >= counts[letter]:
            raise UsageError(
                f"--signs {word}: {'signals' if letter == 'x' else 'targets'} have "
                f"{counts[letter]} channels, counted from 0"
            )
        for place in [int(channel)] if channel else range(counts[letter]):
            rows[letter][place] = -1
    if y is None:
        rows["y"] = rows["x"]
    kept = automorphisms(graph.edge_index, n, graph.edge_weight)
    groups = list(small_symmetries(kept)) if kept.exact else []
    if not groups:
        raise UsageError("--signs: no exchange of nodes of order two keeps the graph")
    return [
        (
            Representation.from_signs(group, [rows["x"]]),
            Representation.from_signs(group, [rows["y"]]) if counts["y"] else None,
        )
        for group in groups
    ]
