"""Choose a group of node permutations for signals on a fixed graph, from files.

A graph is an .npz (edge_index [2, e] or adj [n, n]), a .pt (PyG Data), or a text file (edge list
or matrix); signals are an .npz, .npy or .csv of [samples, nodes] or [samples, nodes, channels].
To take one array of several, name it: metr_la.npz:speed.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gsym._console import UsageError, check_outputs, print_json, say, show_warning, steps
from gsym._files import (
    FirstColumn,
    FirstRow,
    Graph,
    fingerprint,
    read_inputs,
    read_partitions,
    read_positions,
    write_arrays,
    write_bytes,
)
from gsym.choosing.choice import Candidate
from gsym.choosing.choose import MAX_LEVELS, choose_group, spread_levels
from gsym.coarsening import METHODS, Hierarchy, coarsen
from gsym.errors import (
    ClusteringError,
    FileError,
    GraphError,
    GroupError,
    PartitionError,
    SignalError,
    SolverUnavailableError,
)
from gsym.groups.automorphism import SOLVERS, automorphisms
from gsym.groups.partition import Partition
from gsym.kernels.cpp import library

# What the user can mend, and the message says how.
ERRORS = (
    FileError,
    ClusteringError,
    GraphError,
    GroupError,
    PartitionError,
    SignalError,
    SolverUnavailableError,
    ImportError,
    OSError,
)

Inputs = Literal["graph", "signals", "both"]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE")]
Output = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Directory = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
Pixels = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Block = Annotated[int | Literal["auto"] | None, tyro.conf.arg(metavar="{auto,INT}")]
Standard = Annotated[Literal["node"] | None, tyro.conf.arg(metavar="{node}")]
Number = Annotated[float | None, tyro.conf.arg(metavar="NUMBER")]
Counts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
Row = Annotated[FirstRow, tyro.conf.arg(metavar="{auto,ids,sample}")]
Column = Annotated[FirstColumn, tyro.conf.arg(metavar="{auto,index,node}")]

app = tyro.extras.SubcommandApp()


@app.command
def choose(
    *,
    signals: Annotated[str, tyro.conf.arg(metavar="FILE")],
    graph: File = None,
    targets: File = None,
    partitions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...")] = (),
    method: str = "auto",
    use: Annotated[Inputs | None, tyro.conf.arg(metavar="{graph,signals,both}")] = None,
    levels: Counts = (),
    height: Pixels = None,
    width: Pixels = None,
    block: Block = None,
    gap: int = 0,
    standardize: Standard = None,
    mask: File = None,
    missing: Number = None,
    no_swaps: bool = False,
    directed: bool = False,
    names: File = None,
    first_row: Row = "auto",
    first_column: Column = "auto",
    positions: File = None,
    title: Text = None,
    out: Output = None,
    save: Output = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Say which group to use: propose clusters, estimate the risk of each group, write a page.

    For example, and then open report.html:

      python -m gsym choose --graph edges.csv --signals x.npz --targets y.npz --out report.html

      python -m gsym choose --signals images.npy --method grid --height 28 --width 28

    Args:
        signals: Inputs [samples, nodes] or [samples, nodes, channels], training data only.
        graph: The graph. Methods that look at signals alone need none.
        targets: What to predict from the signals: values per node, or one number per sample;
            without it, the signals themselves from noisy ones.
        partitions: Candidate partitions, as `coarsen` writes them, instead of a method's.
        method: How to propose clusters; `python -m gsym coarsen --help` lists the methods.
        use: What the method looks at; by default the graph if there is one and it can.
            The method risk looks at signals; with both it merges clusters only along edges.
        levels: Numbers of clusters to offer; by default up to 24 and more around the best.
        height: Rows of the image, for the method grid.
        width: Columns of the image, for the method grid.
        block: Consecutive samples left out together: for overlapping windows, the number of
            windows that share a time step; for samples of several days, those of one; or auto, as
            many as depend on each other. By default auto for signals with times, and else 1.
        gap: Samples on either side of a block that are left out of the fit with it; with auto, as
            many as depend on each other.
        standardize: With node, every node's mean is taken off and its standard deviation divided
            out.
        mask: Which signals were observed: a file of ones and zeros in the form of the signals.
        missing: A number that stands for a missing value, such as 0; empty cells always do.
        no_swaps: Do not offer exchanges of whole clusters where the coarse graph has symmetries.
        directed: Take an edge list in one direction only.
        names: Text file with the names of the nodes, one per line, in the order of the signals;
            an edge list may use them. Without it, the header of the signals names the nodes.
        first_row: What the first row of a table holds, where that is in doubt.
        first_column: What the first column of a table holds, where that is in doubt.
        positions: Where to draw the nodes, [nodes, 2]: x to the right, y upwards.
        title: Headline of the page.
        out: Page to write, .html.
        save: File for the labels of the best group, .npz.
        seed: Seed of methods that draw.
        json: Print the result as JSON and nothing else.
    """
    check_outputs(
        {"--out": out, "--save": save},
        {"--out": (".html", ".htm"), "--save": (".npz",)},
        (signals, graph, targets, names, positions, *partitions),
    )
    if seed < 0:
        raise UsageError(f"--seed must not be negative; got {seed}")
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
        edge_index = None if loaded is None else loaded.edge_index
        candidates: Any
        if partitions:
            candidates = [
                p for f in partitions for p in read_partitions(f, n, edge_index, node_names)
            ]
            candidates = list(dict.fromkeys(candidates))
        else:
            step(f"Proposing clusters: {method}")
            candidates = _propose(loaded, n, x, y, method, use, levels, height, width, seed)
        if block is None:
            block = "auto" if read.is_series else 1
        if missing is None and any(v is not None and bool(v.isnan().any()) for v in (x, y)):
            missing = math.nan
        step("Estimating risks")
        # The graph of a hierarchy comes with its weights.
        given = None if getattr(candidates, "edge_index", None) is not None else loaded
        choice = choose_group(
            candidates,
            x,
            y,
            edge_index=None if given is None else given.edge_index,
            edge_weight=None if given is None else given.edge_weight,
            swaps=None if no_swaps else "auto",
            block=block,
            gap=gap,
            standardize=standardize,
            mask=read.mask,
            missing=missing,
            seed=seed,
        )
        step("Writing")
        if save is not None:
            partition = choice.partition or Partition(choice.group.node_orbits().index)
            _save_labels(save, partition.labels[None], edge_index, n, node_names)
        if out is not None:
            image = None
            if places is None and height and width:
                image = Partition.grid(height, width, 1).labels
                places = np.column_stack([image % width, -(image // width)]).astype(float)
            choice.report(out, positions=places, names=node_names, title=title)
    if json:
        print_json(
            {
                "criterion": choice.criterion,
                "best": choice.candidates.index(choice.best),
                "simplest": choice.candidates.index(choice.simplest),
                "regret_bound": choice.regret_bound,
                "block": choice.block,
                "gap": choice.gap,
                "candidates": [_record(c) for c in choice.candidates],
                "labels": _labels(choice.best),
                "names": node_names,
                "read": [summary.record() for summary in read.summaries],
            }
        )
        return
    console = Console()
    if console.is_terminal:
        console.print(choice)
    else:
        print(choice)
    for path, what in ((out, "The page is"), (save, "The labels of the best group are")):
        if path is not None:
            console.print(f"{what} in {path}", soft_wrap=True, highlight=False)


@app.command(name="coarsen")
def coarsen_command(
    *,
    graph: File = None,
    signals: File = None,
    targets: File = None,
    method: str = "auto",
    use: Annotated[Inputs | None, tyro.conf.arg(metavar="{graph,signals,both}")] = None,
    levels: Counts = (),
    height: Pixels = None,
    width: Pixels = None,
    directed: bool = False,
    names: File = None,
    first_row: Row = "auto",
    first_column: Column = "auto",
    out: Output = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Propose clusters at several levels, from all nodes alone to one cluster.

    For example:

      python -m gsym coarsen --graph edges.csv --levels 4 8 16 --out clusters.npz

    Methods that look at the graph: paris, ward, spectral, local_variation, graclus, louvain,
    leiden, metis, twins, automorphism, equitable; at signals: ward, spectral, risk; at the shape of
    an image: grid. The default, auto, is paris on a graph and ward on signals.

    Args:
        graph: The graph.
        signals: Signals [samples, nodes] or [samples, nodes, channels].
        targets: What the method risk predicts from the signals.
        method: How to propose clusters.
        use: What the method looks at; by default the graph if there is one and it can.
            The method risk looks at signals; with both it merges clusters only along edges.
        levels: Numbers of clusters.
        height: Rows of the image, for the method grid.
        width: Columns of the image, for the method grid.
        directed: Take an edge list in one direction only.
        names: Text file with the names of the nodes, one per line; an edge list may use them.
        first_row: What the first row of a table of signals holds, where that is in doubt.
        first_column: What the first column of a table of signals holds, where that is in doubt.
        out: File to write: .npz (labels of each level, and the merges of a chain) or .nwk (the
            tree of merges in Newick format).
        seed: Seed of methods that draw.
        json: Print the result as JSON and nothing else.
    """
    kinds = {"--out": (".npz", ".nwk")}
    check_outputs({"--out": out}, kinds, (graph, signals, targets, names))
    with steps() as step:
        step("Reading files")
        read = read_inputs(
            graph,
            signals,
            targets,
            names,
            directed=directed,
            first_row=first_row,
            first_column=first_column,
        )
        say(read.summaries)
        n, x, y, loaded = read.num_nodes, read.x, read.y, read.graph
        node_names = None if read.names is None else list(read.names)
        step(f"Proposing clusters: {method}")
        h = _propose(loaded, n, x, y, method, use, levels, height, width, seed)
        shown = _shown(h, levels)
        step("Measuring costs")
        costs = {k: h.cut(k).cost for k in shown} if h.edge_index is not None else {}
        if out is not None and out.suffix == ".nwk":
            write_bytes(out, (h.newick(node_names) + "\n").encode())
        elif out is not None:
            merges = {"merges": h.merges.numpy(), "heights": h.heights.numpy()} if h.nested else {}
            labels = torch.stack([h[k].labels for k in shown])
            _save_labels(out, labels, h.edge_index, h.num_nodes, node_names, **merges)
    if json:
        rows = [
            {"clusters": k, "cost": costs.get(k), "labels": h[k].labels.tolist()} for k in shown
        ]
        print_json(
            {
                "method": h.method,
                "nested": h.nested,
                "levels": rows,
                "names": node_names,
                "read": [summary.record() for summary in read.summaries],
            }
        )
        return
    table = Table("clusters", "sizes", *(["cost"] if costs else []), caption=repr(h))
    for k in shown:
        sizes = h[k].sizes
        text = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
        table.add_row(f"{k:,}", text, *([f"{costs[k]:.3f}"] if costs else []))
    console = Console()
    console.print(table)
    if out is not None:
        console.print(f"Written to {out}", soft_wrap=True, highlight=False)


@app.command
def symmetries(
    *,
    graph: Annotated[str, tyro.conf.arg(metavar="FILE")],
    names: File = None,
    directed: bool = False,
    time_budget: float = 10.0,
    solver: str = "auto",
    out: Output = None,
    json: bool = False,
) -> None:
    """Find the exact symmetries of a graph: every permutation of its nodes that preserves it.

    For example:

      python -m gsym symmetries --graph edges.csv --out orbits.npz

    Args:
        graph: The graph; weights are compared exactly.
        names: Text file with the names of the nodes, one per line; an edge list may use them.
        directed: Take an edge list in one direction only.
        time_budget: Seconds to search. When they run out, the answer is a group that contains all
            symmetries, and says so.
        solver: auto, bliss (needs igraph), nauty (needs pynauty) or networkx.
        out: File for the node orbits, as labels, .npz.
        json: Print the result as JSON and nothing else.
    """
    check_outputs({"--out": out}, {"--out": (".npz",)}, (graph, names))
    # Timers of the system overflow beyond.
    if not 0 < time_budget <= 1e6:
        raise UsageError(
            f"--time-budget must be a positive number of seconds, at most 1e6; got {time_budget}"
        )
    if solver not in ("auto", *SOLVERS):
        raise UsageError(f"--solver must be one of auto, {', '.join(SOLVERS)}; got {solver}")
    with steps() as step:
        step("Reading files")
        read = read_inputs(graph, names=names, directed=directed)
        say(read.summaries)
        n, loaded = read.num_nodes, read.graph
        assert loaded is not None
        step("Searching for symmetries")
        weight = loaded.edge_weight
        group = automorphisms(loaded.edge_index, n, weight, time_budget=time_budget, solver=solver)
        orbits = group.node_orbits()
        if out is not None:
            _save_labels(out, orbits.index[None], loaded.edge_index, n, read.names)
    if json:
        print_json(
            {
                "group": str(group),
                "exact": group.exact,
                "log10_order": group.log_order() / math.log(10),
                "num_orbits": orbits.num_orbits,
                "commutant_dim": group.commutant_dim(),
                "labels": orbits.index.tolist(),
                "names": read.names,
                "read": [summary.record() for summary in read.summaries],
            }
        )
        return
    console = Console(highlight=False)
    size = group.log_order() / math.log(10)
    order = f"{group.order():,}" if size < 15 else f"about 10^{size:.1f}"
    console.print(f"{group}", soft_wrap=True, markup=False)
    console.print(f"{order} permutations; {orbits.num_orbits:,} orbits of {n:,} nodes")
    if not group.exact:
        console.print(
            "The search ran out of time or memory: this group contains every symmetry and may hold "
            "more. Try --time-budget with more seconds, or: pip install 'gsym\\[sym]'",
            soft_wrap=True,
        )
    if out is not None:
        console.print(f"The orbits are in {out}", soft_wrap=True)


@app.command(name="build-kernels")
def build_kernels(*, march: str = "native", out: Directory = None) -> None:
    """Compile the kernels ahead of time, for machines and images without a compiler.

    For example, and then set GSYM_CACHE_DIR=/opt/gsym where it runs:

      python -m gsym build-kernels --march x86-64-v3 --out /opt/gsym

    Args:
        march: Processor to build for, as the compiler names it: native is this one, x86-64-v3 any
            with AVX2, x86-64-v4 any with AVX-512. What another cannot run is refused there.
        out: Folder to write to, readable by all; by default the user's cache.
    """
    try:
        path, record = library.prebuild(march, out)
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    console = Console(highlight=False)
    console.print(f"The kernels are in {path}", soft_wrap=True)
    console.print(f"They need {', '.join(record.needs or ['nothing more'])}", soft_wrap=True)


def main(args: list[str] | None = None) -> None:
    """Run one command; wrong input ends with one line and exit code 2, an interrupt with 130."""
    if threading.current_thread() is threading.main_thread():
        # As an interrupt from the keyboard, it ends the workers and removes temporary files.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            app.cli(
                prog="python -m gsym",
                args=args,
                description=__doc__,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        except (*ERRORS, UsageError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except MemoryError:
            print("error: this does not fit into memory; offer fewer levels", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print(
                "interrupted: nothing half-written is left; run the same command to start again",
                file=sys.stderr,
            )
            sys.exit(130)


def _propose(
    graph: Graph | None,
    n: int,
    x: Tensor | None,
    y: Tensor | None,
    method: str,
    use: Inputs | None,
    levels: tuple[int, ...],
    height: int | None,
    width: int | None,
    seed: int,
) -> Hierarchy:
    """The hierarchy of a method, from what it looks at."""
    if method == "auto":
        # As in coarsen, which is given signals only where they are looked at.
        method = "paris" if graph is not None and use in (None, "graph") else "ward"
    kind = METHODS.get(method)
    sees_signals = kind is not None and "signals" in (*kind.needs, *kind.takes)
    if use is None:
        needs_signals = kind is not None and "signals" in kind.needs
        use = "signals" if sees_signals and (needs_signals or graph is None) else "graph"
    if graph is None and x is None and not (kind and "height" in kind.needs):
        raise UsageError(f"method {method} needs something to look at; give --graph or --signals")
    if use != "graph" and sees_signals and x is None:
        raise UsageError(f"method {method} looks at signals; give --signals")
    if use != "signals" and graph is None and not (kind and "height" in kind.needs):
        raise UsageError(f"method {method} looks at the graph; give --graph")
    if use != "graph" and not sees_signals and kind is not None:
        raise UsageError(f"method {method} does not look at signals; leave out --use {use}")
    # A method that is given a graph clusters along its edges, whatever else it looks at.
    seen = None if use == "signals" else graph
    targets = kind is not None and "targets" in kind.takes
    return coarsen(
        None if seen is None else seen.edge_index,
        n or None,
        None if seen is None else seen.edge_weight,
        None if use == "graph" else x,
        method,
        targets=y if targets else None,
        levels=levels or None,
        seed=seed,
        height=height,
        width=width,
    )


def _shown(h: Hierarchy, levels: tuple[int, ...]) -> list[int]:
    """The levels asked for, or up to 24 evenly spaced in the logarithm."""
    if levels:
        return sorted(set(levels) & set(h.levels), reverse=True)
    return spread_levels(h.levels, MAX_LEVELS)


def _save_labels(
    path: Path,
    labels: Tensor,
    edge_index: Tensor | None,
    n: int,
    names: Sequence[str] | None,
    **more: np.ndarray,
) -> None:
    """Write labels ``[m, n]`` with the names of the nodes and the fingerprint of their graph."""
    if names is not None:
        more["names"] = np.array(names)
    if edge_index is not None:
        more["graph"] = np.array(fingerprint(edge_index, n))
    write_arrays(path, labels=labels.numpy(), **more)


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
    return {"group": str(candidate.group)} | {name: getattr(candidate, name) for name in names}
