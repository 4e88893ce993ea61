"""The command ``symmetries``."""

from __future__ import annotations

import math
from typing import Annotated

import tyro
from rich.console import Console

from gsym._cli._common import File, Output, app, save_labels
from gsym._console import UsageError, check_outputs, print_json, say, steps
from gsym._files import read_inputs
from gsym.groups.automorphism import SOLVERS, automorphisms


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

      gsym symmetries --graph edges.csv --out orbits.npz

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
            save_labels(out, orbits.index[None], loaded.edge_index, n, read.names)
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
