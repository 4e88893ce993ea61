"""Lists of edges: which columns hold the ends, which numbers the nodes get, both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsym._files.summary import Summary
from gsym._files.text import Text, is_missing, is_number
from gsym.errors import FileError

_SOURCE = {"source", "src", "from", "start", "origin", "node1", "id1", "u", "i"}
_SOURCE |= {"sourceid", "sourcenode", "sourcename", "fromid", "fromnode", "fromsensor", "startnode"}
_TARGET = {"target", "tgt", "dst", "dest", "destination", "to", "end", "node2", "id2", "v", "j"}
_TARGET |= {"targetid", "targetnode", "targetname", "toid", "tonode", "tosensor", "endnode"}
_DISTANCE = {"cost", "costs", "distance", "distances", "dist", "length", "km", "meters", "metres"}
_WEIGHT = {"weight", "weights", "w", "value", "similarity", "strength", "capacity"} | _DISTANCE
# Numbers that say nothing about how near the ends are.
_OTHER = {"id", "edge", "edgeid", "key", "index", "label", "name", "road", "type", "year", "t"}
_OTHER |= {"time", "date", "timestamp"}
_UNNAMED = re.compile(r"|Unnamed: \d+")
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Graph:
    """A graph from a file.

    Attributes:
        edge_index: int64 ``[2, e]``.
        edge_weight: Weights ``[e]``, or ``None``.
        num_nodes: Number of nodes, if the file says it; a list of edges between numbers does not.
        names: Of the nodes in order, where the file names them.
        is_open: A list of edges between numbers, which does not say how many nodes there are.
        summary: What was read.
    """

    edge_index: Tensor
    edge_weight: Tensor | None
    num_nodes: int | None
    names: tuple[str, ...] | None = None
    is_open: bool = False
    summary: Summary = field(default_factory=lambda: Summary(Path()))


@dataclass(frozen=True)
class EdgeList:
    """Edges as a file lists them.

    Attributes:
        ends: Ids as written, ``[2, e]``, words or int64.
        rows: Where each stands in the file.
        weight: float64 ``[e]``, or ``None``.
        what: How messages call the place, ``"row"`` or ``"edge"``.
    """

    ends: np.ndarray
    rows: Sequence[int]
    weight: np.ndarray | None
    what: str = "edge"


def list_of_text(
    text: Text, names: Sequence[str] | None, summary: Summary
) -> tuple[EdgeList, bool]:
    """The edges of a text of two columns or more, and whether it says that they have directions."""
    cells = text.head()
    header = cells[0] if text.short_header or _has_header(text, cells, names) else None
    width = text.columns
    start = int(header is not None)
    if header is None:
        if width > 3:
            raise FileError(
                f"{text.path}: a list of edges has two or three columns, or a header that names "
                f"source and target; got {[len(text), width]}"
            )
        source, target, weight = 0, 1, 2 if width == 3 else None
        weight_name = "column 3"
    else:
        source, target, weight = _roles(text, header, cells[1:], summary)
        weight_name = "" if weight is None else f"column {header[weight]!r}"
        summary.facts["header"] = f"row {text.numbers[0]}"
        summary.facts["ends"] = f"columns {header[source]!r} and {header[target]!r}"
    if start >= len(text):
        raise FileError(f"{text.path}: has no rows below its header")
    ends = text.words(start, [source, target]).T
    numbers = text.numbers[start:]
    values = None
    if weight is not None:
        summary.facts["weights"] = weight_name
        values = _weights(text, text.words(start, [weight])[:, 0], numbers)
        if header is not None and _plain(header[weight]) in _DISTANCE:
            summary.note(
                f"the weights are those of {weight_name}, which sounds like a distance; methods "
                "take large weights for near nodes, as in weight = exp(-(distance / scale)^2)"
            )
    directed = header is not None and _says_directed(text, header, start, summary)
    return EdgeList(ends, numbers, values, "row"), directed


def is_list(text: Text, names: Sequence[str] | None) -> bool:
    """Whether the header of a text names the ends of edges."""
    cells = text.head(2)
    words = {_plain(cell) for cell in cells[0]}
    return bool(words & _SOURCE) and bool(words & _TARGET)


def _has_header(text: Text, cells: list[list[str]], names: Sequence[str] | None) -> bool:
    first, rest = cells[0], cells[1:]
    words = [_plain(cell) for cell in first]
    if set(words) & _SOURCE and set(words) & _TARGET:
        return True
    known = set(names or ())
    ends = [cell for cell in first[:2] if not is_number(cell, text.decimal)]
    if len(ends) == 2 and names is not None and not known & set(ends) and rest:
        return any(cell in known for row in rest for cell in row)
    for column, cell in enumerate(first):
        below = [row[column] for row in rest if not is_missing(row[column])]
        numbers = below and all(is_number(other, text.decimal) for other in below)
        if numbers and not is_number(cell, text.decimal) and not is_missing(cell):
            return len(first) > 3 or not any(is_number(c, text.decimal) for c in first)
    return False


def _roles(
    text: Text, header: list[str], body: list[list[str]], summary: Summary
) -> tuple[int, int, int | None]:
    """The columns of source, target and weight."""
    words = [_plain(name) for name in header]
    sources = [column for column, word in enumerate(words) if word in _SOURCE]
    targets = [column for column, word in enumerate(words) if word in _TARGET]
    if len(sources) == 1 and len(targets) == 1:
        source, target = sources[0], targets[0]
    else:
        columns = [c for c, name in enumerate(header) if not _UNNAMED.fullmatch(name)]
        if len(columns) > 3 or len(columns) < 2:
            raise FileError(
                f"{text.path}: which columns hold the ends of edges? Call them source and target; "
                f"row {text.numbers[0]} names {', '.join(map(repr, header))}"
            )
        source, target = columns[:2]
    others = [column for column in range(len(header)) if column not in (source, target)]
    index = [column for column in others if _UNNAMED.fullmatch(header[column])]
    others = [column for column in others if column not in index]
    if index:
        summary.facts["index"] = ", ".join(f"column {column + 1}" for column in index)
    named = [column for column in others if words[column] in _WEIGHT]
    exact = [column for column in named if words[column] in ("weight", "weights")]
    if len(exact) == 1 or len(named) == 1:
        weight: int | None = (exact or named)[0]
    elif named:
        raise FileError(
            f"{text.path}: which column holds the weights, "
            f"{' or '.join(repr(header[column]) for column in named)}? Call it weight"
        )
    else:
        numbers = [
            column
            for column in others
            if words[column] not in _OTHER
            and body
            and all(is_number(row[column], text.decimal) for row in body)
        ]
        weight = numbers[0] if len(numbers) == 1 else None
        if weight is not None:
            summary.note(f"column {header[weight]!r} is taken for weights")
    unused = [repr(header[column]) for column in others if column != weight]
    if unused:
        summary.note(f"not used: column{'s' * (len(unused) > 1)} {', '.join(unused)}")
    return source, target, weight


def _says_directed(text: Text, header: list[str], start: int, summary: Summary) -> bool:
    """Whether a column Type, as Gephi writes it, says so."""
    column = next((c for c, name in enumerate(header) if _plain(name) == "type"), None)
    if column is None:
        return False
    kinds = {kind.lower() for kind in text.words(start, [column])[:, 0]}
    if kinds == {"directed", "undirected"}:
        raise FileError(f"{text.path}: column {header[column]!r} mixes directed and undirected")
    if kinds == {"directed"}:
        summary.note(f"column {header[column]!r} says that the edges are directed")
    return kinds == {"directed"}


def _weights(text: Text, cells: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    out = np.empty(len(cells))
    for edge, cell in enumerate(map(str, cells)):
        if is_number(cell, text.decimal) or cell in ("nan", "NaN", "-nan"):
            out[edge] = float(cell.replace(",", ".") if text.decimal == "," else cell)
        elif is_missing(cell):
            raise FileError(f"{text.path}: row {rows[edge]} has no weight")
        else:
            raise FileError(f"{text.path}: row {rows[edge]} has the weight {cell!r:.60}")
    return out


def graph_of_list(
    path: Path,
    edges: EdgeList,
    summary: Summary,
    *,
    names: Sequence[str] | None = None,
    num_nodes: int | None = None,
    directed: bool = False,
) -> Graph:
    """Number the nodes of a list of edges.

    Args:
        path: The file, for messages.
        edges: The list.
        summary: Told what was done.
        names: Names of the nodes in order. The list may use them, or numbers from 0.
        num_nodes: Number of nodes, if it is known from elsewhere.
        directed: Take the edges in one direction only.

    Raises:
        FileError: An id that is none of the names, that is no id, or beyond ``num_nodes``;
            weights that are not finite.
    """
    if edges.weight is not None and not np.isfinite(edges.weight).all():
        edge = int(np.flatnonzero(~np.isfinite(edges.weight))[0])
        raise FileError(f"{path}: weights must be finite; edge {edge} has {edges.weight[edge]}")
    num_nodes = len(names) if names is not None else num_nodes
    numbers = _integers(path, edges, names)
    found: Sequence[str] | None
    if numbers is None:
        index, found = _named(path, edges, names, num_nodes)
    else:
        index, found = _numbered(path, numbers, num_nodes, summary)
    weight = edges.weight
    if not directed:
        index, weight = both_ways(index, weight, summary)
    named = None if found is None else tuple(found)
    n = num_nodes if found is None else len(found)
    tensor = None if weight is None else torch.from_numpy(np.ascontiguousarray(weight, np.float64))
    edge_index = torch.from_numpy(np.ascontiguousarray(index))
    return Graph(edge_index, tensor, n, named, found is None, summary)


def _integers(path: Path, edges: EdgeList, names: Sequence[str] | None) -> np.ndarray | None:
    """The ids as int64 ``[2, e]`` where they are node numbers; ``None`` where they are names."""
    ends = edges.ends
    if ends.dtype.kind in "iu":
        if names is not None and _are_names(np.unique(ends).astype(str), names):
            return None
        return ends.astype(np.int64)
    ids, where = np.unique(ends, return_inverse=True)
    if names is not None and _are_names(ids, names):
        return None
    values = [_whole(str(word)) for word in ids]
    numbers = [value for value in values if value is not None]
    if not numbers:
        bad = next((word for word in ids if is_missing(word) or is_number(word)), None)
        if bad is not None:
            raise FileError(f"{path}: nodes must be whole numbers; got {bad or 'an empty cell'}")
        return None
    if len(numbers) < len(values):
        place = next(i for i, value in enumerate(values) if value is None)
        edge = int((where.reshape(ends.shape) == place).any(axis=0).argmax())
        word = ids[place]
        if is_number(word) or is_missing(word):
            raise FileError(
                f"{path}: nodes must be whole numbers; got {word or 'nothing'} "
                f"in {edges.what} {edges.rows[edge]}"
            )
        raise FileError(
            f"{path}: cannot be read ({edges.what} {edges.rows[edge]} names {str(word)!r:.60} "
            "among nodes that are numbers; give the names of all nodes with --names)"
        )
    if len(set(numbers)) < len(numbers):
        twice = next(value for value in numbers if numbers.count(value) > 1)
        words = [word for word, value in zip(ids, numbers, strict=True) if value == twice]
        if any(_INTEGER.fullmatch(word) and word.lstrip("+-") != str(abs(twice)) for word in words):
            ways = " and ".join(repr(str(word)) for word in words)
            raise FileError(f"{path}: are {ways} one node? Write it in one way")
    if max(numbers) >= 2**63:
        return None
    return np.array(numbers, dtype=np.int64)[where].reshape(ends.shape)


def _whole(word: str) -> int | None:
    """The whole number that a cell holds, exactly."""
    if _INTEGER.fullmatch(word):
        return int(word)
    if is_number(word) and float(word).is_integer() and abs(float(word)) < 2**53:
        return int(float(word))
    return None


def _are_names(ids: np.ndarray, names: Sequence[str]) -> bool:
    """Whether a list uses these names, rather than numbers from 0."""
    known = set(names)
    if any(str(word) in known for word in ids):
        return True
    values = [_whole(str(word)) for word in ids]
    return any(value is None or not 0 <= value < len(names) for value in values)


def _named(
    path: Path, edges: EdgeList, names: Sequence[str] | None, num_nodes: int | None
) -> tuple[np.ndarray, Sequence[str]]:
    words = edges.ends.astype(str)
    ids, where = np.unique(words, return_inverse=True)
    where = where.reshape(words.shape)
    if names is None:
        if (ids == "").any():
            edge = int((words == "").any(axis=0).argmax())
            raise FileError(f"{path}: {edges.what} {edges.rows[edge]} names no node")
        if num_nodes is not None:
            raise FileError(
                f"{path}: names its nodes ({ids[0]}, ...), but which column of the signals is "
                "which? Give their names in order with --names (names=)"
            )
        order = sorted(range(len(ids)), key=lambda i: (_whole(str(ids[i])) or 0, ids[i]))
        rank = np.empty(len(ids), dtype=np.int64)
        rank[order] = np.arange(len(ids))
        return rank[where], [str(ids[i]) for i in order]
    number = {name: i for i, name in enumerate(names)}
    # pandas writes whole numbers in a column with missing ones as 12.0.
    by_value = {_whole(name): i for i, name in enumerate(names) if _whole(name) is not None}
    found = np.array(
        [number.get(w, by_value.get(_whole(w), -1)) for w in map(str, ids)], dtype=np.int64
    )
    index = found[where]
    if (index < 0).any():
        edge = int((index < 0).any(axis=0).argmax())
        word = words[0, edge] if index[0, edge] < 0 else words[1, edge]
        missing = int((found < 0).sum())
        raise FileError(
            f"{path}: {edges.what} {edges.rows[edge]} names {str(word)!r:.60}, not in the names"
            + (f" (nor are {missing - 1:,} others)" if missing > 1 else "")
        )
    return index, names


def _numbered(
    path: Path, ends: np.ndarray, num_nodes: int | None, summary: Summary
) -> tuple[np.ndarray, Sequence[str] | None]:
    """Numbers of nodes: as they are from 0, less one from 1, in order where they have gaps."""
    if not ends.size:
        return ends, None
    low, high = int(ends.min()), int(ends.max())
    if low < 0:
        edge = int((ends == low).any(axis=0).argmax())
        bound = "0 or more" if num_nodes is None else f"0..{num_nodes - 1}"
        raise FileError(f"{path}: nodes are numbered {bound}; edge {edge} names node {low}")
    used = np.unique(ends)
    if num_nodes is not None:
        if high < num_nodes:
            if low > 0:
                summary.note(f"nodes are numbered from 0 here, and no edge names node 0..{low - 1}")
            return ends, None
        if low == 1 and high == num_nodes:
            summary.note(f"nodes are numbered from 1 (1..{high})")
            return ends - 1, None
        raise FileError(
            f"{path}: names node {high}, but there are {num_nodes} nodes (0..{num_nodes - 1}); are "
            "nodes numbered from 0? If these are ids, give them in order with --names (names=)"
        )
    if len(used) == high + 1:
        return ends, None
    names = [str(node) for node in used]
    if low == 1 and len(used) == high:
        summary.note(f"nodes are numbered from 1 (1..{high})")
    else:
        summary.note(
            f"nodes are named by ids with gaps: {len(used):,} nodes ({low}, ..., {high}) have "
            "edges, and there are no others; give --names if isolated nodes count"
        )
    return np.searchsorted(used, ends), names


def both_ways(
    index: np.ndarray, weight: np.ndarray | None, summary: Summary
) -> tuple[np.ndarray, np.ndarray | None]:
    """The symmetric graph of undirected rows, whichever way each is turned, in any order.

    Every row is an edge in both directions, a loop is one edge, and rows that repeat a pair are
    parallel edges. A list that names every pair twice with equal weights lists both directions.
    """
    low, high = index.min(axis=0), index.max(axis=0)
    w = np.ones(len(low)) if weight is None else weight
    order = np.lexsort((w, high, low))
    low, high, w = low[order], high[order], w[order]
    loop = low == high
    pairs = np.stack([low[~loop], high[~loop]])
    of_pairs = w[~loop]
    _, counts = np.unique(pairs, axis=1, return_counts=True)
    if counts.size and (counts == 2).all() and (of_pairs[::2] == of_pairs[1::2]).all():
        summary.note("every edge stands in two rows, once for each direction")
        pairs, of_pairs = pairs[:, ::2], of_pairs[::2]
    elif (counts > 1).any():
        summary.note(
            f"{int((counts > 1).sum()):,} pairs of nodes stand in several rows, as parallel edges, "
            "whose weights add up; --directed takes rows in one direction only"
        )
    loops = np.stack([low[loop], high[loop]])
    symmetric = np.concatenate([pairs, pairs[::-1], loops], axis=1)
    return symmetric, (None if weight is None else np.concatenate([of_pairs, of_pairs, w[loop]]))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
