"""Graph, signals, targets and names that belong together, and that they do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym._files.edges import Graph
from gsym._files.graphs import read_graph
from gsym._files.signals import (
    Signals,
    check_nodes,
    load_signals,
    load_targets,
    read_mask,
    read_names,
)
from gsym._files.summary import Summary
from gsym._files.tables import FirstColumn, FirstRow
from gsym.errors import FileError

# Of the nodes of the signals, as many may have no edge in a list before it is taken for the list of
# another graph, or the signals for transposed.
_MAX_ISOLATED = 0.25


@dataclass(frozen=True)
class Inputs:
    """What a command works on.

    Attributes:
        num_nodes: Number of nodes; 0 where no file says it.
        graph: The graph, or ``None``.
        x: Signals ``[samples, n, c]``, NaN where a value is missing, or ``None``.
        y: Targets ``[samples, n, c]`` or ``[samples]``, or ``None``.
        mask: Which signals were observed, boolean ``[samples, n]`` or as ``x``, or ``None``.
        names: Of the nodes, or ``None``.
        is_series: The samples have times, and stand in their order.
        summaries: What was read, file by file.
    """

    num_nodes: int
    graph: Graph | None
    x: Tensor | None
    y: Tensor | None
    mask: Tensor | None
    names: tuple[str, ...] | None
    is_series: bool
    summaries: tuple[Summary, ...]


def read_inputs(
    graph: str | None = None,
    signals: str | None = None,
    targets: str | None = None,
    names: str | None = None,
    *,
    mask: str | None = None,
    directed: bool = False,
    first_row: FirstRow = "auto",
    first_column: FirstColumn = "auto",
) -> Inputs:
    """Read files and check that they speak of the same nodes and samples.

    The header of the signals names the nodes where no file of names is given, and a list of edges
    may use these names. Samples with times are put in their order. Nothing is unpickled.

    Args:
        graph: A list of edges, a matrix, or another file of a graph; what may stand in these files
            is listed under "Choosing a group".
        signals: A table of samples by nodes, or arrays; ``file.npz:speed`` names one of several.
        targets: As ``signals``, or one number per sample.
        names: Names of the nodes, one per line.
        mask: Which signals were observed.
        directed: Take a list of edges in one direction only.
        first_row: What the first row of a table holds, where that is in doubt.
        first_column: What the first column of a table holds, where that is in doubt.

    Returns:
        The graph, signals, targets and names, and what was read in words.

    Raises:
        FileError: Files that do not fit together, or signals that seem to be transposed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pathlib import Path
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "x.npy"
        ...     np.save(file, np.ones((5, 3)))
        ...     read_inputs(signals=str(file)).x.shape
        torch.Size([5, 3, 1])
    """
    layout: dict[str, Any] = {"first_row": first_row, "first_column": first_column}
    given = None if names is None else tuple(read_names(names))
    count = None if given is None else len(given)
    x = None
    if signals is not None:
        x = load_signals(signals, None, **layout)
        if count is not None and count != x.values.size(1):
            raise FileError(f"{names}: {count} names for {x.values.size(1)} nodes")
        if given is not None and x.names is not None:
            _same_order(f"{names}", given, f"the header of {signals}", x.names)
    known = given if given is not None or x is None else x.names
    loaded = None
    if graph is not None:
        size = None if x is None else x.values.size(1)
        loaded = read_graph(graph, names=known, num_nodes=size, directed=directed)
        if x is not None:
            _fit(loaded, x, str(graph), str(signals))
        if known is None:
            known = loaded.names
            if x is not None and known is not None:
                x.summary.note(
                    f"the columns are taken for the nodes of {graph} in its order: "
                    f"{', '.join(known[:3])}, ..."
                )
    n = _num_nodes(loaded, x, str(graph))
    if count is not None and n and count != n:
        raise FileError(f"{names}: {count} names for {n} nodes")
    y = None
    if targets is not None:
        y = load_targets(targets, n, **layout)
        if x is not None:
            y = _aligned(x, y, str(signals), str(targets))
    seen = None if mask is None or x is None else read_mask(mask, x.values.shape)
    order = None if x is None else _time_order(x)
    summaries = [part.summary for part in (loaded, x, y) if part is not None]
    return Inputs(
        num_nodes=n,
        graph=loaded,
        x=None if x is None else x.values if order is None else x.values[order],
        y=None if y is None else y.values if order is None else y.values[order],
        mask=seen if seen is None or order is None else seen[order],
        names=known,
        is_series=x is not None and x.times is not None,
        summaries=tuple(summaries),
    )


def _num_nodes(graph: Graph | None, x: Signals | None, path: str) -> int:
    if x is not None:
        return x.values.size(1)
    if graph is None:
        return 0
    n = graph.num_nodes
    if n is None:
        n = int(graph.edge_index.max()) + 1 if graph.edge_index.numel() else 0
    if n < 1:
        raise FileError(f"{path}: the graph is empty")
    return n


def _fit(graph: Graph, x: Signals, path: str, signals: str) -> None:
    """Check that the nodes of the graph are those of the signals."""
    samples, n = x.values.shape[:2]
    check_nodes(signals, list(x.values.shape[:2]), graph.num_nodes)
    used = int(torch.unique(graph.edge_index).numel())
    if not graph.is_open or not used or used == n:
        return
    highest = int(graph.edge_index.max()) + 1
    way_out = (
        "transpose the signals, or, if the other nodes have no edges, store the graph as .npz with "
        "edge_index and num_nodes"
    )
    if samples == highest != n:
        raise FileError(
            f"{signals}: has {n} columns and {samples} rows, but {path} has {highest} nodes; one "
            f"row is a sample, one column a node: {way_out}"
        )
    if n - used > _MAX_ISOLATED * n:
        raise FileError(
            f"{path}: gives edges to {used} of the {n} nodes of {signals} only ({samples} samples);"
            f" {way_out}"
        )
    graph.summary.note(f"{n - used} of {n} nodes have no edge")


def _same_order(first: str, ones: Sequence[str], second: str, others: Sequence[str]) -> None:
    """Refuse two lists of names of the same nodes that differ."""
    if not set(ones) & set(others):
        return
    for place, (one, other) in enumerate(zip(ones, others, strict=True)):
        if one != other:
            raise FileError(
                f"{first}: calls node {place} {one!r:.60}, but {second} calls it {other!r:.60}; "
                "put both in one order"
            )


def _aligned(x: Signals, y: Signals, signals: str, targets: str) -> Signals:
    """Check that the targets are of the same samples and nodes."""
    if len(y.values) != len(x.values):
        raise FileError(f"{targets}: {len(y.values)} samples, but {signals} has {len(x.values)}")
    if x.names is not None and y.names is not None:
        _same_order(f"the header of {targets}", y.names, f"that of {signals}", x.names)
    if x.times is not None and y.times is not None and x.times.dtype.kind == y.times.dtype.kind:
        differ = np.flatnonzero(x.times != y.times)
        # Targets of a forecast carry the times that they are for; then all differ by one step.
        if differ.size and len(set((y.times - x.times).tolist())) > 1:
            raise FileError(
                f"{targets}: sample {differ[0]} is of {y.times[differ[0]]}, that of {signals} of "
                f"{x.times[differ[0]]}; put both in one order"
            )
    return y


def _time_order(x: Signals) -> Tensor | None:
    if x.times is None or x.in_time_order:
        return None
    warnings.warn(f"{x.summary.path}: the samples were put in the order of times", stacklevel=3)
    x.summary.notes.append("the samples were put in the order of times")
    return torch.from_numpy(np.argsort(x.times, kind="stable"))
