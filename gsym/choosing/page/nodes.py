"""Which node is in which cluster, as a table and as files; and how many edges there are."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Files(NamedTuple):
    """Files that hold the table, as addresses that a page links to."""

    csv: str
    json: str


def node_table(labels: np.ndarray, names: Sequence[str]) -> list[tuple[int, int, str]]:
    """For every cluster its number, its size and the names of its nodes.

    Example:
        >>> node_table(np.array([0, 1, 0]), ["a", "b", "c"])
        [(0, 2, 'a, c'), (1, 1, 'b')]
    """
    members: list[list[str]] = [[] for _ in range(int(labels.max()) + 1)]
    for label, name in zip(labels.tolist(), names, strict=True):
        members[label].append(name)
    return [(k, len(those), ", ".join(those)) for k, those in enumerate(members)]


def node_files(labels: np.ndarray, names: Sequence[str], group: str) -> Files:
    """The table of a candidate as CSV and JSON."""
    rows = list(zip(names, labels.tolist(), strict=True))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("node", "cluster"), *rows])
    record = {"group": group, "names": list(names), "labels": labels.tolist()}
    return Files(_address("text/csv", text.getvalue()), _address("application/json", _json(record)))


def count_edges(edge_index: Tensor) -> str:
    """How many edges a graph has, without loops; those in both directions count once.

    Example:
        >>> count_edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
        '2 edges'
        >>> count_edges(torch.tensor([[0, 1, 1], [1, 0, 2]]))
        '3 directed edges'
    """
    edges = torch.unique(edge_index[:, edge_index[0] != edge_index[1]], dim=1)
    pairs = torch.unique(edges.sort(0).values, dim=1).size(1)
    both = edges.size(1) == 2 * pairs
    count = pairs if both else edges.size(1)
    return f"{count:,} {'' if both else 'directed '}edge{'s' * (count != 1)}"


def _json(record: dict[str, object]) -> str:
    return json.dumps(record, separators=(",", ":"))


def _address(kind: str, text: str) -> str:
    held = base64.b64encode(text.encode("utf-8", errors="replace")).decode()
    return f"data:{kind};charset=utf-8;base64,{held}"
