"""The page that shows a choice: one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from gsym._files import replacing
from gsym.choosing.answer import answer, next_steps
from gsym.choosing.choice import Task, Words
from gsym.choosing.latlon import check_latlon
from gsym.choosing.page.curve import Curve
from gsym.choosing.page.drawing import WIDTH, Drawing, cluster_colours, leaf_rank
from gsym.choosing.page.glossary import TERMS, WORDS
from gsym.choosing.page.map import describe_map, project, scale_bar
from gsym.choosing.page.nodes import count_edges, node_files, node_table
from gsym.choosing.page.script import code, filled, is_listed, training_code, training_script
from gsym.errors import SignalError

MAX_CANDIDATES = 200
MAX_MATRIX = 64

_HERE = Path(__file__).parent


def write_page(
    choice: Any,
    path: str | Path,
    *,
    positions: Tensor | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    latlon: Tensor | np.ndarray | None = None,
    title: str | None = None,
    unit: str = "",
    load: str | None = None,
    saved: str | None = None,
    profile: Any = None,
) -> Path:
    """Write a choice of group as one HTML file that needs nothing but a browser.

    It answers in words first: which nodes to treat as interchangeable, what that gains, and what
    to do next. A slider leads along the candidates from the finest to the coarsest; the graph, the
    estimated risk, the fitted map between clusters, the table of nodes, the code that builds the
    layer and the script that trains a network follow it. The file makes no request and runs no
    script but its own, which its content security policy states.

    Args:
        choice: What :func:`gsym.choose_group` returned.
        path: The file to write; its folder must exist. A file of that name is replaced at once
            when the page is complete.
        positions: Where to draw the nodes, ``[n, 2]``: x to the right, y upwards (longitude and
            latitude, or column and minus the row of a pixel). Nodes that fill a rectangular grid
            are drawn as its cells. By default the graph is laid out by its distances.
        names: One name per node, to find it by.
        latlon: Instead of positions, latitude and longitude of every node in degrees, ``[n, 2]``:
            the graph is drawn as a map, with north up and a scale.
        title: Headline of the page.
        unit: What the targets are measured in, such as ``"mph"``.
        load: Lines of Python that make ``x``, and ``y`` where there are targets, for the script
            that trains a network; by default it makes signals up.
        saved: File with the best group, as ``gsym choose --save`` writes it: the script reads a
            group of more than 5,000 labels from it, which it does not list.
        profile: What :func:`gsym.check.profile` found of a model on these nodes, to be shown below.

    Returns:
        The path of the file.

    Raises:
        SignalError: Positions or names that are not one per node, positions not finite or beyond
            the poles, both positions and ``latlon``, or a profile on other nodes.
        FileNotFoundError: The folder of ``path`` does not exist.

    Cost:
        ``O(candidates * n)`` time and size up to 5,000 nodes. Larger graphs are drawn coarsened,
        and of more than 200 candidates an even selection is shown; the page says so.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent}; make it first")
    html = render(
        choice,
        positions=positions,
        names=names,
        latlon=latlon,
        title=title,
        unit=unit,
        load=load,
        saved=saved,
        profile=profile,
    )
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
    latlon: Tensor | np.ndarray | None = None,
    title: str | None = None,
    unit: str = "",
    load: str | None = None,
    saved: str | None = None,
    profile: Any = None,
) -> str:
    """The text of the page; see :func:`write_page`."""
    candidates = [Shown(i, c, choice.words) for i, c in enumerate(choice.candidates)]
    by_identity = {id(shown.candidate): shown for shown in candidates}
    best, simplest = by_identity[id(choice.best)], by_identity[id(choice.simplest)]
    n = candidates[0].num_nodes
    kept = _selection(candidates, {best.number, simplest.number})
    levels = [shown.labels for shown in kept]
    places = _check_positions(positions, n)
    degrees = None
    if latlon is not None:
        if positions is not None:
            raise SignalError("positions and latlon both say where nodes are; give one of them")
        degrees = check_latlon(latlon, n)
        places = project(degrees)
    drawing = Drawing.make(choice, levels, places)
    sizes = [shown.sizes.size for shown in kept]
    curve = Curve.make(
        sizes,
        [s.score for s in kept],
        [s.error for s in kept],
        [_finite(s.candidate.gap_error) or 0.0 for s in kept],
        [s.is_plain for s in kept],
    )
    task = getattr(choice, "task", None) or Task()
    node_names = _check_names(names, n)
    data = _data(kept, drawing, curve, leaf_rank(levels), task)
    data["best"], data["simplest"] = kept.index(best), kept.index(simplest)
    data["scoreName"] = choice.words.score
    data["script"] = training_script(task, n, load)
    row = data["candidates"][kept.index(best)]
    if row["group"] is None:
        row["group"], _ = training_code(best.candidate, task, None, saved)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    said, steps = answer(choice), next_steps(choice, unit)
    unused = "score" if choice.words.score == "risk" else "risk"
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
        edges="" if choice.edge_index is None else count_edges(choice.edge_index),
        answer=said,
        steps=steps,
        words=[(word, of) for word, of in WORDS.items() if word in " ".join([said, *steps])],
        terms={of: meaning for of, meaning in TERMS.items() if of != unused},
        total=len(candidates),
        kept=kept,
        best=best,
        simplest=simplest,
        signs=choice.signs,
        soft=choice.soft,
        mixed=None if choice.soft is None else _mixed(choice.soft),
        criterion=choice.criterion,
        score_name=choice.words.score,
        regret=_number(choice.regret_bound),
        profile=None if profile is None else _heat(profile, n),
        drawing=drawing,
        map_note="" if degrees is None else describe_map(degrees),
        scale=None if degrees is None or drawing.cell else scale_bar(project(degrees), drawing),
        names=node_names,
        table=None if drawing.is_coarsened else node_table(best.labels, node_names),
        files=None if drawing.is_coarsened else node_files(best.labels, node_names, best.name),
        curve=curve,
        data=data,
        best_code=_written_out(row["code"], row, best),
        best_script=filled(data["script"], _written_out(row["group"], row, best), row["net"]),
        made_up=load is None,
        all_listed=all(other["group"] is not None for other in data["candidates"]),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )


def _mixed(soft: Any) -> dict[str, Any]:
    """The score of a mixture, and how far it is from that of each rival, as text."""
    shown = {id(rival.candidate): rival for rival in reversed(soft.rivals)}
    rivals = [
        (
            rival.name,
            with_error(abs(rival.gap), _finite(rival.gap_error) or 0.0)
            + (" lower" if rival.gap < 0 else " higher"),
        )
        for rival in reversed(shown.values())
    ]
    return {
        "score": with_error(_finite(soft.score), _finite(soft.standard_error) or 0.0),
        "rivals": rivals,
    }


class Shown:
    """A candidate as the page words it."""

    def __init__(self, number: int, candidate: Any, words: Words) -> None:
        self.number = number
        self.candidate = candidate
        self.words = words

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
        """The score, if there is one."""
        return _finite(self.candidate.score)

    @property
    def error(self) -> float:
        """Standard error of the score, 0 if there is none."""
        return _finite(self.candidate.standard_error) or 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the group exchanges the nodes of each cluster and nothing else."""
        return (
            self.candidate.partition is not None
            and getattr(self.candidate.group, "swaps", None) is None
        )

    @property
    def name(self) -> str:
        """The group, briefly, and which channels change their sign with it."""
        text: str = self.candidate.name
        return text

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
    def score_text(self) -> str:
        """Score and standard error, both to the digit that the error makes meaningful."""
        return with_error(self.score, self.error)

    @property
    def dim_text(self) -> str:
        """Free weights of the linear map, per pair of channels."""
        return f"{self.candidate.commutant_dim:,}"

    @property
    def gap_text(self) -> str:
        """How far above the lowest score, with the standard error of that difference."""
        gap = _finite(self.candidate.gap)
        if not gap:
            return ""
        error = _finite(self.candidate.gap_error) or 0.0
        return f"{with_error(gap, error)} above the lowest"

    @property
    def parts(self) -> list[tuple[str, str, str]]:
        """What the score is made of, where that is known: name, value and meaning."""
        known = (
            (name, _number(getattr(self.candidate, attribute)), meaning)
            for attribute, name, meaning in self.words.parts
        )
        return [part for part in known if part[1]]


def _heat(profile: Any, num_nodes: int) -> dict[str, Any]:
    """The errors of a profile as text, each with how dark its cell is, from rounding to 1."""
    own = profile.levels[0].num_nodes
    if own != num_nodes:
        raise SignalError(f"the profile is of {own} nodes but the choice of {num_nodes}")
    rows, first_lost = [], profile.first_lost
    for module in profile.modules:
        cells = []
        for error, lost in zip(module.errors, first_lost, strict=True):
            known = not math.isnan(error)
            heat = 1 + math.log10(min(max(error, 1e-16), 1.0)) / 16 if known else 0.0
            cells.append((f"{error:.1e}" if known else "", round(heat, 3), module is lost))
        rows.append((module.label, module.kind, cells))
    return {"names": profile.names, "rows": rows}


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


def _written_out(text: str, row: dict[str, Any], shown: Shown) -> str:
    labels = ", ".join(map(str, shown.labels.tolist())) if row["listed"] else ""
    return text.replace("LABELS", labels)


def _data(
    kept: Sequence[Shown], drawing: Drawing, curve: Curve, rank: np.ndarray, task: Task
) -> dict[str, Any]:
    """What the script of the page needs, in types that JSON knows."""
    drawn = [np.unique(drawing.labels(s.labels), return_inverse=True) for s in kept]
    centres = np.column_stack([drawing.x, drawing.y])
    colours = cluster_colours([inverse for _, inverse in drawn], centres)
    cells = None
    if drawing.cell:
        columns = round(WIDTH / drawing.cell)
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
        group, net = training_code(shown.candidate, task, cells)
        rows.append(
            {
                # The name of a group of many clusters repeats what is said of them.
                "name": "" if "clusters of" in shown.name else shown.name,
                "clusters": shown.clusters,
                "sizesText": shown.sizes_text,
                "dim": shown.dim_text,
                "score": shown.score_text,
                "above": shown.gap_text,
                "parts": shown.parts,
                "labels": _packed(inverse, "<u2"),
                "cluster": clusters.tolist() if clusters.size < shown.sizes.size else None,
                "colour": _packed(colour, "u1"),
                "sizes": shown.sizes[clusters].tolist(),
                "matrix": _matrix(shown, rank, every),
                "code": text,
                "group": group if is_listed(shown.candidate.group) else None,
                "net": net,
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


def _matrix(shown: Shown, rank: np.ndarray, colours: np.ndarray) -> dict[str, Any] | None:
    """The fitted map, averaged to at most 64 by 64 cells, in the order that ``rank`` gives.

    The map leads between clusters, or between nodes where the group comes without clusters.
    """
    if shown.candidate.matrix is None:
        return None
    values = torch.as_tensor(shown.candidate.matrix).detach().cpu().double().numpy()
    unit, labels = "cluster", shown.labels
    if shown.candidate.partition is None:
        unit, labels = "node", np.arange(shown.num_nodes)
    k = int(labels.max()) + 1
    if values.shape != (k, k):
        raise SignalError(f"the matrix of {k} {unit}s must be [{k}, {k}]; got {list(values.shape)}")
    # In the order in which the hierarchy joins clusters, blocks stay together.
    order = np.argsort(np.bincount(labels, weights=rank) / np.bincount(labels), kind="stable")
    _, first = np.unique(labels, return_index=True)
    colours = colours[shown.labels[first]][order]
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
        "unit": unit,
        "cells": cells,
        "parts": k,
        "order": order.tolist() if k == cells else None,
        "colours": colours.tolist() if k == cells else None,
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
