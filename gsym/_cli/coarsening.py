"""The command ``coarsen``."""

from __future__ import annotations

from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from gsym._cli._common import (
    Column,
    Counts,
    File,
    Inputs,
    Method,
    Output,
    Pixels,
    Row,
    app,
    propose,
    save_labels,
)
from gsym._console import check_outputs, print_json, say, steps
from gsym._files import read_inputs, write_bytes
from gsym.choosing.choose import MAX_LEVELS, spread_levels
from gsym.coarsening import Hierarchy


@app.command(name="coarsen")
def coarsen_command(
    *,
    graph: File = None,
    signals: File = None,
    targets: File = None,
    method: Method = "auto",
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

      gsym coarsen --graph edges.csv --levels 4 8 16 --out clusters.npz

    Args:
        graph: The graph.
        signals: Signals [samples, nodes] or [samples, nodes, channels].
        targets: What the method risk predicts from the signals.
        method: How to propose clusters; the option lists the methods.
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
        h = propose(loaded, n, x, y, method, use, levels, height, width, seed)
        shown = _shown(h, levels)
        step("Measuring costs")
        costs = {k: h.cut(k).cost for k in shown} if h.edge_index is not None else {}
        if out is not None and out.suffix == ".nwk":
            write_bytes(out, (h.newick(node_names) + "\n").encode())
        elif out is not None:
            merges = {"merges": h.merges.numpy(), "heights": h.heights.numpy()} if h.nested else {}
            labels = torch.stack([h[k].labels for k in shown])
            save_labels(out, labels, h.edge_index, h.num_nodes, node_names, **merges)
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


def _shown(h: Hierarchy, levels: tuple[int, ...]) -> list[int]:
    """The levels asked for, or up to 24 evenly spaced in the logarithm."""
    if levels:
        return sorted(set(levels) & set(h.levels), reverse=True)
    return spread_levels(h.levels, MAX_LEVELS)
