"""What the commands share: types of their options, and what a method proposes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from torch import Tensor

from gsym._console import UsageError
from gsym._files import FirstColumn, FirstRow, Graph, fingerprint, write_arrays
from gsym.coarsening import METHODS, Hierarchy, coarsen
from gsym.coarsening.methods import DEFAULTS, listing

Inputs = Literal["graph", "signals", "both"]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE")]
Output = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Directory = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
Pixels = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Steps = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Block = Annotated[int | Literal["auto"], tyro.conf.arg(metavar="{auto,INT}")]
Standard = Annotated[Literal["node"] | None, tyro.conf.arg(metavar="{node}")]
Number = Annotated[float | None, tyro.conf.arg(metavar="NUMBER")]
Counts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
Row = Annotated[FirstRow, tyro.conf.arg(metavar="{auto,ids,sample}")]
Column = Annotated[FirstColumn, tyro.conf.arg(metavar="{auto,index,node}")]
Method = Annotated[
    str,
    tyro.conf.arg(
        help=f"How to propose clusters, from the graph: {listing('graph')}; from signals: "
        f"{listing('signals')}; from the shape of an image: {listing('shape')}. The default, auto, "
        f"is {DEFAULTS['graph']} on a graph and {DEFAULTS['signals']} on signals."
    ),
]

app = tyro.extras.SubcommandApp()


def propose(
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
        method = DEFAULTS["graph" if graph is not None and use in (None, "graph") else "signals"]
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


def save_labels(
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
