"""Which method of `coarsen` to take when all there is is a graph: methods on real graphs.

Only methods that give any number of clusters are compared. Every one sees the graph alone. Several
measures are told because each favours some method: Leiden optimises modularity, METIS balance.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import networkx as nx
import numpy as np
from rich.console import Console
from rich.progress import track

from gsym.coarsening import Coarsening, coarsen
from gsym.errors import ClusteringError
from gsym_bench.data import find, read_npz
from gsym_bench.simulators.gait import SKELETON_EDGES
from gsym_bench.suite.provenance import provenance
from gsym_bench.suite.report.markdown import write_page
from gsym_bench.suite.study_tables import read_records, write_records

METHODS = ("paris", "ward", "spectral", "local_variation", "leiden", "metis")
LEVELS = (2, 4, 8, 16, 32)
FILE = "coarsening_methods.csv"
COMMAND = "gsym-bench coarsening --methods"


@dataclass(frozen=True)
class Row:
    """One method on one graph at one level, as written to the CSV file."""

    graph: str
    n: int
    edges: int
    method: str
    k: int
    modularity: float
    conductance: float  # mean over clusters
    balance: float  # largest cluster over the mean size
    spectral_error: float  # restricted approximation of the first k // 2 eigenvectors
    seconds: float  # for all levels of this graph together
    commit: str
    torch: str


def graphs(data: Path | None) -> dict[str, nx.Graph]:
    """Real graphs by name; those of data sets where their files are given."""
    found = {
        "karate club": nx.karate_club_graph(),
        "les miserables": nx.les_miserables_graph(),
        "southern women": nx.davis_southern_women_graph(),
        "florentine families": nx.florentine_families_graph(),
        "skeleton": nx.Graph(SKELETON_EDGES),
        "image 28 x 28": nx.grid_2d_graph(28, 28),
    }
    if data is not None:
        adjacency = read_npz(find(data, "traffic/metr_la.npz", "metr-la"), ["adj"])["adj"]
        adjacency = np.maximum(adjacency, adjacency.T).astype(float)
        np.fill_diagonal(adjacency, 0)
        found["METR-LA roads"] = nx.from_numpy_array(adjacency)
        for name, count in (("PROTEINS", 4), ("MUTAG", 3)):
            path = data / "tudataset" / f"{name}.npz"
            if path.is_file():
                found |= _largest(name, read_npz(path, ["graph_ptr", "edge_index"]), count)
    return {name: nx.convert_node_labels_to_integers(graph) for name, graph in found.items()}


def _largest(name: str, arrays: dict[str, np.ndarray], count: int) -> dict[str, nx.Graph]:
    start, edges = arrays["graph_ptr"], arrays["edge_index"]
    found = {}
    for i in np.argsort(-np.diff(start), kind="stable")[:count]:
        inside = (edges[0] >= start[i]) & (edges[0] < start[i + 1])
        graph = nx.Graph()
        graph.add_nodes_from(range(start[i + 1] - start[i]))
        graph.add_edges_from((edges[:, inside] - start[i]).T.tolist())
        found[f"{name} {i}"] = graph
    return found


def measure(name: str, graph: nx.Graph, method: str) -> list[Row]:
    """Rows of one method at all levels of at most half the nodes; none where a level is missed."""
    n = graph.number_of_nodes()
    levels = [k for k in LEVELS if 2 * k <= n]
    with warnings.catch_warnings():
        # A disconnected graph, or a level not reached, which has no row.
        warnings.simplefilter("ignore")
        before = time.perf_counter()
        try:
            h = coarsen(graph, method=method, levels=levels)
        except ClusteringError:
            return []
        seconds = time.perf_counter() - before
    about = provenance()
    return [
        Row(
            graph=name,
            n=n,
            edges=graph.number_of_edges(),
            method=method,
            k=k,
            **scores(graph, h.cut(k)),
            seconds=round(seconds, 3),
            commit=about["commit"],
            torch=about["torch"],
        )
        for k in levels
        if k in h.levels
    ]


def scores(graph: nx.Graph, coarsening: Coarsening) -> dict[str, float]:
    """Modularity, conductance, balance and spectral error of a partition of a graph."""
    labels = coarsening.partition.labels.numpy()
    k, n = coarsening.partition.num_clusters, labels.size
    A = nx.to_numpy_array(graph)
    indicator = np.eye(k)[labels]
    between = indicator.T @ A @ indicator
    volume, total = between.sum(axis=1), A.sum()
    inside = np.diag(between)
    smaller = np.minimum(volume, total - volume)
    cut = np.divide(volume - inside, smaller, out=np.ones(k), where=smaller > 0)
    most = n - nx.number_connected_components(graph)
    return {
        "modularity": round(float((inside / total - (volume / total) ** 2).sum()), 4),
        "conductance": round(float(cut.mean()), 4),
        "balance": round(float(np.bincount(labels).max() * k / n), 3),
        "spectral_error": round(coarsening.restricted_approximation(min(k // 2, most)), 4),
    }


def main(out: Path, data: Path | None) -> Path:
    """Measure all methods, write ``coarsening_methods.csv`` and its page to ``out``."""
    console = Console()
    found = graphs(data)
    cases = [(name, method) for name in found for method in METHODS]
    rows = []
    for name, method in track(cases, "cases", console=console):
        rows += measure(name, found[name], method)
    write_records(out / FILE, Row, rows)
    return report(out)


def report(out: Path) -> Path:
    """Write ``coarsening_methods.md`` from ``coarsening_methods.csv``."""
    rows = read_records(out / FILE, Row)
    names = list(dict.fromkeys(row.graph for row in rows))
    by_case = {(r.graph, r.k, r.method): r for r in rows}
    cells = list(dict.fromkeys((r.graph, r.k) for r in rows))
    # Means are over what every method reached, so that none gains by a level it missed.
    shared = [cell for cell in cells if all((*cell, m) in by_case for m in METHODS)]
    best = {
        cell: max(by_case[*cell, m].modularity for m in METHODS if (*cell, m) in by_case)
        for cell in cells
    }
    lines = [
        "# Methods of coarsening",
        "",
        f"Made by `{COMMAND} --data DATA --out {out.as_posix()}` at commit "
        f"{rows[0].commit} with torch {rows[0].torch}. {len(names)} real graphs in at most "
        f"{max(LEVELS)} clusters, found from the graph alone by the methods that give any number "
        "of clusters. *Modularity* is better high; *conductance* (mean over clusters), *balance* "
        "(the largest cluster over the mean size, 1 at best) and *spectral error* (restricted "
        "approximation of half as many eigenvectors as clusters) are better low. *Best* counts "
        "the partitions within 0.01 of the highest modularity of all methods. Seconds are medians "
        "for one graph at all its levels and depend on the machine; Leiden and METIS include the "
        "start of a process.",
        "",
        f"Means over the {len(shared)} pairs of graph and level that every method reached, of "
        f"{len(cells)}:",
        "",
        "| method | modularity | conductance | balance | spectral error | best | levels | s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method in METHODS:
        own = [by_case[*cell, method] for cell in shared]
        reached = [cell for cell in cells if (*cell, method) in by_case]
        near = sum(by_case[*c, method].modularity >= best[c] - 0.01 for c in reached)
        means = [
            fmean(getattr(row, key) for row in own)
            for key in ("modularity", "conductance", "balance", "spectral_error")
        ]
        seconds = np.median([by_case[*cell, method].seconds for cell in reached])
        lines.append(
            f"| {method} | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.2f} | {means[3]:.2f} "
            f"| {near} | {len(reached)} | {seconds:.2f} |"
        )
    lines += ["", "The highest modularity of each method on each graph, over its levels:", ""]
    lines += [f"| graph | nodes | edges | {' | '.join(METHODS)} |", "|---|" + "--:|" * 8]
    for name in names:
        mine = [row for row in rows if row.graph == name]
        tops = [
            max((row.modularity for row in mine if row.method == m), default=None) for m in METHODS
        ]
        told = " | ".join("none" if top is None else f"{top:.3f}" for top in tops)
        lines.append(f"| {name} | {mine[0].n} | {mine[0].edges} | {told} |")
    return write_page(out / "coarsening_methods.md", ["\n".join(lines)])
