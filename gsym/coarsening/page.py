"""The page that shows a choice: one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from scipy.spatial import cKDTree
from torch import Tensor

from gsym._files import replacing
from gsym._validate import SignalError
from gsym.coarsening.drawing import adjacency, bundle, cluster_colours, grid_cells, place
from gsym.groups import ClusterGroup, Partition, PermutationGroup

MAX_NODES = 5000
MAX_EDGES = 15000
MAX_CANDIDATES = 200
MAX_MATRIX = 64

_HERE = Path(__file__).parent
_WIDTH = 1000.0


def write_page(
    choice: Any,
    path: str | Path,
    *,
    positions: Tensor | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write a choice of group as one HTML file that needs nothing but a browser.

    A slider leads along the candidates from the finest to the coarsest; the graph, the estimated
    risk, the fitted map between clusters and the code that builds the layer follow it. The file
    makes no request and runs no script but its own, which its content security policy states.

    Args:
        choice: What :func:`gsym.choose_group` returned.
        path: The file to write; its folder must exist. A file of that name is replaced at once
            when the page is complete.
        positions: Where to draw the nodes, ``[n, 2]``: x to the right, y upwards (longitude and
            latitude, or column and minus the row of a pixel). Nodes that fill a rectangular grid
            are drawn as its cells. By default the graph is laid out by its distances.
        names: One name per node, to find it by.
        title: Headline of the page.

    Returns:
        The path of the file.

    Raises:
        SignalError: Positions or names that are not one per node, or positions not finite.
        FileNotFoundError: The folder of ``path`` does not exist.

    Cost:
        ``O(candidates * n)`` time and size up to 5,000 nodes. Larger graphs are drawn coarsened,
        and of more than 200 candidates an even selection is shown; the page says so.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent}; make it first")
    html = render(choice, positions=positions, names=names, title=title)
    # Names may hold halves of surrogate pairs, which no encoding can write.
    encoded = html.encode("utf-8", errors="replace")
    with replacing(path) as file:
        file.write(encoded)
    return path


def render(
    choice: Any,
    *,
    positions: Tensor | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> str:
    """The text of the page; see :func:`write_page`."""
    candidates = [Shown(i, candidate) for i, candidate in enumerate(choice.candidates)]
    by_identity = {id(shown.candidate): shown for shown in candidates}
    best, simplest = by_identity[id(choice.best)], by_identity[id(choice.simplest)]
    n = candidates[0].num_nodes
    kept = _selection(candidates, {best.number, simplest.number})
    drawing = Drawing.make(choice, kept, _check_positions(positions, n))
    curve = Curve.make(kept)
    order = _leaf_rank([shown.labels for shown in kept])
    data = _data(kept, drawing, curve, order)
    data["best"], data["simplest"] = kept.index(best), kept.index(simplest)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "separators": (",", ":"),
        "sort_keys": True,
    }
    return environment.get_template("page.html.j2").render(
        title="Choosing a group" if title is None else str(title),
        num_nodes=n,
        num_edges=None if choice.edge_index is None else choice.edge_index.size(1),
        total=len(candidates),
        kept=kept,
        best=best,
        simplest=simplest,
        regret=_number(getattr(choice, "regret_bound", None)),
        drawing=drawing,
        names=_check_names(names, n),
        curve=curve,
        data=data,
        best_code=_written_out(data["candidates"][kept.index(best)], best),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )


class Shown:
    """A candidate as the page words it."""

    def __init__(self, number: int, candidate: Any) -> None:
        self.number = number
        self.candidate = candidate

    @cached_property
    def labels(self) -> np.ndarray:
        """Cluster of every node, or its orbit where the group comes without clusters."""
        partition = self.candidate.partition
        if partition is None:
            return self.candidate.group.node_orbits().index.numpy()
        return partition.labels.numpy()

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.labels.size

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of nodes in each cluster."""
        return np.bincount(self.labels)

    @property
    def score(self) -> float | None:
        """Estimated risk, if there is one."""
        return _finite(self.candidate.score)

    @property
    def error(self) -> float:
        """Standard error of the score, 0 if there is none."""
        return _finite(self.candidate.standard_error) or 0.0

    @property
    def name(self) -> str:
        """The group, briefly."""
        return str(self.candidate.group)

    @property
    def clusters(self) -> str:
        """Number of clusters, with the word."""
        k = self.sizes.size
        return f"{k:,} cluster{'s' * (k != 1)}"

    @property
    def sizes_text(self) -> str:
        """How large the clusters are."""
        counts = Counter(self.sizes.tolist())
        if len(counts) == 1:
            return "one node each" if counts[1] else f"{self.sizes[0]:,} nodes each"
        if self.sizes.size <= 6:
            return ", ".join(f"{size:,}" for size in sorted(self.sizes.tolist(), reverse=True))
        alone = f", {counts[1]:,} alone" if counts[1] else ""
        median = np.median(self.sizes)
        return f"{self.sizes.min():,} to {self.sizes.max():,}, median {median:,g}{alone}"

    @property
    def risk_text(self) -> str:
        """Score and standard error, both to the digit that the error makes meaningful."""
        return with_error(self.score, self.error)

    @property
    def dim_text(self) -> str:
        """Free weights of the linear map, per pair of channels."""
        return f"{self.candidate.commutant_dim:,}"

    @property
    def parts(self) -> list[tuple[str, str]]:
        """What else is known of the candidate: name and value."""
        optional = {
            "Equivariance error of the data": "equivariance_error",
            "Bias": "bias",
            "Variance": "variance",
        }
        known = {k: _number(getattr(self.candidate, v, None)) for k, v in optional.items()}
        return [(k, v) for k, v in known.items() if v]


@dataclass(frozen=True)
class Drawing:
    """What is drawn of the graph: each node, or bundles of nodes where there are too many.

    Attributes:
        bundle: Drawn node of each node, ``[n]``.
        sizes: Nodes in each drawn node, ``[m]``.
        x: Centres, ``[m]``, in a picture 1,000 wide.
        y: Centres, downwards.
        radius: Of each drawn node.
        height: Of the picture.
        cell: Side of the square cells of a grid, else 0.
        path: All edges as one SVG path.
        opacity: Of the edges: the more, the fainter.
        edges_note: How many edges were left out, if any.
    """

    bundle: np.ndarray
    sizes: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    height: float
    cell: float
    path: str
    opacity: float
    edges_note: str

    @classmethod
    def make(cls, choice: Any, kept: Sequence[Shown], positions: np.ndarray | None) -> Drawing:
        """Place nodes and edges of the graph of a choice."""
        n = kept[0].num_nodes
        edges = np.empty((2, 0), dtype=np.int64)
        if choice.edge_index is not None:
            edges = choice.edge_index.detach().cpu().numpy()
        bundles = _bundles(choice, kept, edges, n)
        sizes = np.bincount(bundles)
        m = sizes.size
        if positions is not None:
            positions = np.stack([np.bincount(bundles, c) / sizes for c in positions.T], axis=1)
        graph = adjacency(bundles[edges], m)
        if positions is None:
            positions = _square(kept, bundles) if not graph.nnz else place(np.stack(graph.nonzero()), m)
        grid = grid_cells(positions) if m == n else None
        if grid is not None:
            column, row = grid
            cell = _WIDTH / (column.max() + 1)
            x, y = (column + 0.5) * cell, (row + 0.5) * cell
            height = float((row.max() + 1) * cell)
            return cls(bundles, sizes, x, y, np.full(m, cell / 2), height, cell, "", 0.0, "")
        x, y, radius, height = _fit(positions, sizes)
        path, count, left_out = _edge_path(graph, x, y)
        note = f"{left_out:,} of {left_out + count:,} edges are left out." if left_out else ""
        opacity = float(np.clip(2.5 * m / max(count, 1), 0.1, 0.8))
        return cls(bundles, sizes, x, y, radius, height, 0.0, path, opacity, note)

    @property
    def rows(self) -> list[tuple[float, float, float, int]]:
        """For each drawn node x, y, size and number of nodes, as its SVG element wants them."""
        corner = 0.5 * self.cell
        size = self.cell if self.cell else self.radius
        numbers = np.broadcast_arrays(self.x - corner, self.y - corner, size)
        rounded = np.round(np.stack(numbers), 2).tolist()
        return list(zip(*rounded, self.sizes.tolist(), strict=True))

    @property
    def is_coarsened(self) -> bool:
        """Whether a drawn node stands for several."""
        return self.sizes.size < self.bundle.size

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """The label that most nodes of each drawn node have, ``[m]``."""
        if not self.is_coarsened:
            return labels[np.argsort(self.bundle)]
        k = int(labels.max()) + 1
        pairs, counts = np.unique(self.bundle * k + labels, return_counts=True)
        order = np.lexsort((pairs, -counts))
        _, first = np.unique(pairs[order] // k, return_index=True)
        return pairs[order[first]] % k


@dataclass(frozen=True)
class Curve:
    """The estimated risk over the candidates, in the units of its picture (560 by 300)."""

    x: list[float]
    y: list[float | None]
    line: str
    band: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    limit: float | None

    left, right, top, bottom = 62.0, 540.0, 18.0, 252.0

    @classmethod
    def make(cls, kept: Sequence[Shown]) -> Curve:
        """Scale scores and error bands to the picture."""
        ks = np.array([shown.sizes.size for shown in kept], dtype=float)
        along = np.log(ks) if bool((np.diff(ks) < 0).all()) else -np.arange(len(ks), dtype=float)
        span = along[0] - along[-1] or 1.0
        x = [float(cls.left + (along[0] - a) / span * (cls.right - cls.left)) for a in along]
        known = [i for i, shown in enumerate(kept) if shown.score is not None]
        low = [kept[i].score - kept[i].error for i in known]  # type: ignore[operator]
        high = [kept[i].score + kept[i].error for i in known]  # type: ignore[operator]
        scale = _Scale.make(low, high, [kept[i].score for i in known], cls.bottom, cls.top)  # type: ignore[misc]
        y: list[float | None] = [None] * len(kept)
        line, band, back = "", "", ""
        for j, i in enumerate(known):
            y[i] = scale(kept[i].score)  # type: ignore[arg-type]
            pen = "L" if j else "M"
            line += f"{pen}{x[i]:.1f} {y[i]:.1f}"
            band += f"{pen}{x[i]:.1f} {scale(high[j]):.1f}"
            back = f"L{x[i]:.1f} {scale(low[j]):.1f}" + back
        limit = None
        if known:
            best = min(known, key=lambda i: kept[i].score)  # type: ignore[arg-type, return-value]
            limit = scale(kept[best].score + kept[best].error)  # type: ignore[operator]
        x_ticks = _spread([(x[i], f"{shown.sizes.size:,}") for i, shown in enumerate(kept)], 44.0)
        return cls(x, y, line, band + back + "Z", x_ticks, scale.ticks(), limit)


@dataclass(frozen=True)
class _Scale:
    """A linear or logarithmic map from values to picture heights."""

    low: float
    high: float
    bottom: float
    top: float
    logarithmic: bool

    @classmethod
    def make(
        cls, low: list[float], high: list[float], mid: list[float], bottom: float, top: float
    ) -> _Scale:
        if not mid:
            return cls(0.0, 1.0, bottom, top, False)
        # Risks that differ twentyfold would hide the choice in a flat line.
        if min(mid) > 0 and max(mid) / min(mid) > 20:
            return cls(max(min(low), min(mid) / 3), max(high), bottom, top, True)
        margin = 0.06 * (max(high) - min(low)) or 0.05 * abs(max(high)) or 1.0
        return cls(min(low) - margin, max(high) + margin, bottom, top, False)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.bottom + share * (self.top - self.bottom)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values and where they lie."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
            step *= next(m for m in (5, 2, 1) if (self.high - self.low) / (m * step) >= 3)
            values = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        inside = [v for v in values if self.low <= v <= self.high]
        return _spread([(self(v), f"{v:.6g}") for v in reversed(inside)], 18.0)


def with_error(value: float | None, error: float) -> str:
    """A value and its standard error, rounded to two digits of the error.

    Example:
        >>> with_error(0.144612, 0.001134), with_error(1234.5, 56.0), with_error(2.0, 0.0)
        ('0.1446 ± 0.0011', '1,234 ± 56', '2')
    """
    if value is None:
        return "not estimated"
    if not error:
        return f"{value:.4g}"
    digits = 1 - math.floor(math.log10(error))
    if digits > 6 or digits < -6:
        return f"{value:.4g} ± {error:.2g}"
    places = max(digits, 0)
    return f"{round(value, digits):,.{places}f} ± {round(error, digits):,.{places}f}"


def code(candidate: Any, number: int, cells: tuple[int, int] | None = None) -> tuple[str, bool]:
    """Python that builds the layer of a candidate.

    Args:
        candidate: The candidate.
        number: Its place among ``choice.candidates``.
        cells: Rows and columns where the nodes are those of an image, row by row.

    Returns:
        The code, and whether ``LABELS`` in it is to be replaced by the labels.
    """
    group, partition = candidate.group, candidate.partition
    n = group.num_nodes
    listed = False
    swaps = getattr(group, "swaps", None)
    if n > MAX_NODES or (swaps is not None and swaps.generators.numel() > MAX_NODES):
        lines = [
            "# choice is what gsym.choose_group returned",
            f"group = choice.candidates[{number}].group",
        ]
    elif isinstance(group, ClusterGroup):
        built = _partition_code(group.partition, cells)
        listed = "LABELS" in built
        lines = [f"partition = {built}"]
        if swaps is None:
            lines.append("group = gsym.ClusterGroup(partition)")
        else:
            lines.append(f"swaps = {_generators_code(swaps)}")
            lines.append("group = gsym.ClusterGroup(partition, swaps=swaps)")
    else:
        lines = [f"group = {_generators_code(group)}"]
    lines = ["import gsym", "", *lines, "layer = gsym.nn.OrbitLinear(1, 1, group)"]
    return "\n".join(lines), listed


def _written_out(row: dict[str, Any], shown: Shown) -> str:
    labels = ", ".join(map(str, shown.labels.tolist())) if row["listed"] else ""
    text: str = row["code"]
    return text.replace("LABELS", labels)


def _partition_code(partition: Partition, cells: tuple[int, int] | None) -> str:
    n, k = partition.num_nodes, partition.num_clusters
    if partition == Partition.singletons(n):
        return f"gsym.Partition.singletons({n})"
    if k == 1:
        return f"gsym.Partition.single({n})"
    if cells is not None:
        rows, columns = cells
        size = n // k
        for tall in (d for d in range(1, rows + 1) if rows % d == 0 and size % d == 0):
            wide = size // tall
            if columns % wide == 0 and partition == Partition.grid(rows, columns, (tall, wide)):
                patch = str(tall) if tall == wide else f"({tall}, {wide})"
                return f"gsym.Partition.grid({rows}, {columns}, {patch})"
    return "gsym.Partition.from_labels([LABELS])"


def _generators_code(group: PermutationGroup) -> str:
    if not group.generators.numel():
        return f"gsym.PermutationGroup.trivial({group.num_nodes})"
    return f"gsym.PermutationGroup({group.num_nodes}, {group.generators.tolist()})"


def _data(
    kept: Sequence[Shown], drawing: Drawing, curve: Curve, rank: np.ndarray
) -> dict[str, Any]:
    """What the script of the page needs, in types that JSON knows."""
    drawn = [np.unique(drawing.labels(s.labels), return_inverse=True) for s in kept]
    centres = np.column_stack([drawing.x, drawing.y])
    colours = cluster_colours([inverse for _, inverse in drawn], centres)
    best = min((s.score for s in kept if s.score is not None), default=None)
    cells = None
    if drawing.cell:
        columns = round(_WIDTH / drawing.cell)
        by_row = np.lexsort((drawing.x, drawing.y))
        if (by_row == np.arange(by_row.size)).all():
            cells = (by_row.size // columns, columns)
    rows = []
    for shown, (clusters, inverse), colour, x, y in zip(
        kept, drawn, colours, curve.x, curve.y, strict=True
    ):
        every = np.full(shown.sizes.size, -1)
        every[clusters] = colour
        text, listed = code(shown.candidate, shown.number, cells)
        above = ""
        if best and shown.score is not None and shown.score > best:
            above = f"{100 * (shown.score / best - 1):.3g} % above the lowest" if best > 0 else ""
        # Clusters in the order in which the hierarchy joins them: blocks stay together.
        order = np.argsort(
            np.bincount(shown.labels, weights=rank) / shown.sizes, kind="stable"
        )
        rows.append(
            {
                # The name of a group of many clusters repeats what is said of them.
                "name": "" if "clusters of" in shown.name else shown.name,
                "clusters": shown.clusters,
                "sizesText": shown.sizes_text,
                "dim": shown.dim_text,
                "risk": shown.risk_text,
                "above": above,
                "parts": shown.parts,
                "labels": _packed(inverse, "<u2"),
                "cluster": clusters.tolist() if clusters.size < shown.sizes.size else None,
                "colour": _packed(colour, "u1"),
                "sizes": shown.sizes[clusters].tolist(),
                "order": order.tolist() if order.size <= MAX_MATRIX else None,
                "colours": every.tolist() if order.size <= MAX_MATRIX else None,
                "matrix": _matrix(shown.candidate, order),
                "code": text,
                "listed": listed,
                "x": round(x, 1),
                "y": None if y is None else round(y, 1),
            }
        )
    has_matrix = any(row["matrix"] for row in rows)
    return {
        "candidates": rows,
        "coarsened": drawing.is_coarsened,
        "hasMatrix": has_matrix,
        "cells": by_row.tolist() if drawing.cell else None,
        "columns": columns if drawing.cell else None,
    }


def _matrix(candidate: Any, order: np.ndarray) -> dict[str, Any] | None:
    """The fitted map between clusters, in the given order, averaged to at most 64 by 64 cells."""
    matrix = getattr(candidate, "matrix", None)
    if matrix is None:
        return None
    values = torch.as_tensor(matrix).detach().cpu().double().numpy()
    k = order.size
    if values.shape != (k, k):
        raise SignalError(f"the matrix of {k} clusters must be [{k}, {k}]; got {list(values.shape)}")
    values = values[np.ix_(order, order)]
    values = np.where(np.isfinite(values), values, np.nan)
    cells = min(k, MAX_MATRIX)
    if k > cells:
        cut = np.arange(cells) * k // cells
        known = ~np.isnan(values)
        total, count = np.nan_to_num(values), known.astype(float)
        for axis in (0, 1):
            total, count = (np.add.reduceat(a, cut, axis=axis) for a in (total, count))
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    largest = float(np.nanmax(np.abs(values))) if not np.isnan(values).all() else 0.0
    scaled = np.nan_to_num(values / (largest or 1.0) * 32767, nan=-32768)
    return {
        "cells": cells,
        "clusters": k,
        "largest": largest,
        "top": _number(largest),
        "values": _packed(np.round(scaled), "<i2"),
    }


def _selection(candidates: list[Shown], always: set[int]) -> list[Shown]:
    """At most 200 candidates, evenly spread, the marked ones among them."""
    if len(candidates) <= MAX_CANDIDATES:
        return candidates
    even = np.linspace(0, len(candidates) - 1, MAX_CANDIDATES - len(always)).round().astype(int)
    return [candidates[i] for i in sorted(always | set(even.tolist()))]


def _leaf_rank(levels: Sequence[np.ndarray]) -> np.ndarray:
    """Rank of each node such that the clusters of nested levels are runs of neighbours."""
    rank = np.empty(levels[0].size)
    rank[np.lexsort(levels)] = np.arange(rank.size)
    return rank


def _bundles(choice: Any, kept: Sequence[Shown], edges: np.ndarray, n: int) -> np.ndarray:
    """The drawn node of each node."""
    if n <= MAX_NODES:
        return np.arange(n)
    offered = [s.labels for s in kept if MAX_NODES // 10 <= s.sizes.size <= MAX_NODES]
    hierarchy = getattr(choice, "hierarchy", None)
    if hierarchy is not None:
        levels = [k for k in hierarchy.levels if MAX_NODES // 10 <= k <= MAX_NODES]
        offered += [hierarchy[max(levels)].labels.numpy()] if levels else []
    if offered:
        return max(offered, key=lambda labels: labels.max())
    return bundle(edges, n, MAX_NODES // 2)


def _square(kept: Sequence[Shown], bundles: np.ndarray) -> np.ndarray:
    """Places for nodes without graph or positions: a square, clusters together."""
    rank = np.bincount(bundles, weights=_leaf_rank([s.labels for s in kept]))
    place_of = np.argsort(np.argsort(rank / np.bincount(bundles), kind="stable"))
    side = math.ceil(math.sqrt(rank.size))
    return np.column_stack([place_of % side, -(place_of // side)]).astype(float)


def _fit(
    positions: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Centres, radii and height of a picture 1,000 wide."""
    m = len(positions)
    span = np.ptp(positions, axis=0)
    wide = _WIDTH / max(span[0], span[1], 1e-300)
    apart, _ = cKDTree(positions).query(positions, k=min(2, m))
    crowding = float(np.median(apart.reshape(m, -1)[:, -1])) * wide
    # Radii follow the crowding, but crowded spots must not make all nodes too small to see.
    radius = np.clip(0.6 * crowding, 0.17 * _WIDTH / math.sqrt(m), 0.3 * _WIDTH / math.sqrt(m))
    radius = np.clip(radius * np.sqrt(sizes / sizes.mean()), 2.5, 15.0)
    margin = float(radius.max()) + 6
    scale = (_WIDTH - 2 * margin) / max(span[0], span[1], 1e-300)
    if span[1] > 0.9 * span[0]:
        scale *= 0.9 * max(span[0], span[1]) / max(span[1], 1e-300) if span[1] > span[0] else 0.9
    height = max(span[1] * scale + 2 * margin, 120.0)
    centre = positions.min(axis=0) + span / 2
    x = _WIDTH / 2 + (positions[:, 0] - centre[0]) * scale
    y = height / 2 - (positions[:, 1] - centre[1]) * scale
    return x, y, radius, float(height)


def _edge_path(graph: Any, x: np.ndarray, y: np.ndarray) -> tuple[str, int, int]:
    """One SVG path, the number of its edges, and how many were left out."""
    source, target = graph.nonzero()
    once = source < target
    source, target = source[once], target[once]
    total = source.size
    if total > MAX_EDGES:
        some = np.linspace(0, total - 1, MAX_EDGES).astype(int)
        source, target = source[some], target[some]
    path = "".join(
        f"M{x[i]:.1f} {y[i]:.1f}L{x[j]:.1f} {y[j]:.1f}"
        for i, j in zip(source.tolist(), target.tolist(), strict=True)
    )
    return path, source.size, total - source.size


def _spread(ticks: list[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Of ticks in order, those far enough apart to be read, first and last among them."""
    if not ticks:
        return []
    shown, last = [], ticks[-1]
    for tick in ticks[:-1]:
        if (not shown or tick[0] - shown[-1][0] >= gap) and last[0] - tick[0] >= gap:
            shown.append(tick)
    return [*shown, last]


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode()


def _finite(value: Any) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _number(value: Any) -> str:
    value = _finite(value)
    return "" if value is None else f"{value:.3g}"


def _check_positions(positions: Any, n: int) -> np.ndarray | None:
    if positions is None:
        return None
    if isinstance(positions, Tensor):
        positions = positions.detach().cpu().numpy()
    positions = np.asarray(positions, dtype=float)
    if positions.shape != (n, 2):
        raise SignalError(
            f"positions must be [{n}, 2], x and y of each node; got {list(positions.shape)}"
        )
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        node = int(np.flatnonzero(~finite)[0])
        raise SignalError(f"positions must be finite; those of node {node} are {positions[node]}")
    return positions


def _check_names(names: Sequence[str] | None, n: int) -> list[str]:
    if names is None:
        return [f"node {i}" for i in range(n)]
    if isinstance(names, str) or len(names) != n:
        raise SignalError(f"names must be a list of {n}, one per node; got {len(names)}")
    return [str(name) for name in names]
