"""From a graph of a million nodes to a trained step of a tied layer, end to end.

Every row is one process of its own, so that its peak memory is its own: it imports the libraries,
builds a grid graph, coarsens it, builds an `OrbitLinear` on the clusters and runs one forward and
backward pass. Seconds count from the start of the process.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from gsym import ClusterGroup
from gsym.coarsening import coarsen
from gsym.nn import OrbitLinear
from gsym_bench.suite.provenance import provenance
from gsym_bench.suite.report.markdown import write_page
from gsym_bench.suite.study_tables import read_records, write_records

THREADS = 2
SIDE = 1000
CLUSTERS = 1000
CHANNELS = 8
FILE = "coarsening.csv"
COMMAND = "gsym-bench coarsening"
# What the library promises for every row.
SECONDS, MEBIBYTES = 60, 6 * 1024


@dataclass(frozen=True)
class Row:
    """One method with one way of mixing clusters, as written to the CSV file."""

    method: str
    mixing: str
    n: int
    edges: int
    k: int
    smallest: int
    largest: int
    cost: float
    coarsen_s: float
    layer_s: float
    step_s: float
    total_s: float
    cpu_s: float  # of the process and its child; what the rest of the machine does is not in it
    memory_mib: int
    child_mib: int  # of the process that METIS runs in
    threads: int
    commit: str
    torch: str
    device: str


def main(out: Path) -> Path:
    """Measure every method, write ``coarsening.csv`` and the page ``coarsening.md`` to ``out``.

    Args:
        out: Folder to write to.

    Returns:
        Path of the page.
    """
    console = Console()
    console.print(f"Coarsening on {THREADS} threads; about two minutes.")
    cases = [(method, mixing) for method in ("metis", "leiden") for mixing in ("quotient", "full")]
    rows = []
    for method, mixing in track(cases, "cases", console=console):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            row = pool.submit(measure, method, mixing, SIDE, CLUSTERS, time.time()).result()
        rows.append(row)
        console.print(
            f"  {method}, {mixing}: {row.total_s:.1f} s, {row.memory_mib + row.child_mib} MiB"
        )
    write_records(out / FILE, Row, rows)
    return report(out)


def measure(method: str, mixing: str, side: int, clusters: int, started: float) -> Row:
    """Coarsen a grid of ``side x side`` nodes and train one step; peaks are of this process.

    Args:
        method: Method of `coarsen` that gives any number of clusters.
        mixing: Mixing of `OrbitLinear`.
        side: Nodes on each side of the grid.
        clusters: Number of clusters.
        started: When this process was asked for, in seconds since the epoch.
    """
    torch.set_num_threads(THREADS)
    edge_index = grid_graph(side)
    before = time.perf_counter()
    h = coarsen(edge_index, side * side, method=method, levels=[clusters])
    coarsened = time.perf_counter()
    coarsening = h.cut(clusters)
    coarse = coarsening.quotient[0] if mixing == "quotient" else None
    layer = OrbitLinear(
        CHANNELS,
        CHANNELS,
        ClusterGroup(coarsening.partition),
        mixing=mixing,
        cluster_edge_index=coarse,
    )
    built = time.perf_counter()
    x = torch.randn(1, side * side, CHANNELS, requires_grad=True)
    layer(x).square().mean().backward()
    stepped, total = time.perf_counter(), time.time() - started
    # Memory before the cost is computed, which is not part of the way.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    about = provenance()
    sizes = coarsening.partition.sizes
    return Row(
        method=method,
        mixing=mixing,
        n=side * side,
        edges=edge_index.size(1) // 2,
        k=coarsening.partition.num_clusters,
        smallest=min(sizes),
        largest=max(sizes),
        cost=round(coarsening.cost, 4),
        coarsen_s=round(coarsened - before, 2),
        layer_s=round(built - coarsened, 2),
        step_s=round(stepped - built, 2),
        total_s=round(total, 2),
        cpu_s=round(sum(usage.ru_utime + usage.ru_stime for usage in used), 2),
        memory_mib=used[0].ru_maxrss // 1024,
        child_mib=used[1].ru_maxrss // 1024,
        threads=THREADS,
        commit=about["commit"],
        torch=about["torch"],
        device="cpu",
    )


def grid_graph(side: int) -> Tensor:
    """The four-neighbour grid, both directions of every edge, int64 ``[2, e]``."""
    node = torch.arange(side * side).view(side, side)
    right = torch.stack([node[:, :-1].reshape(-1), node[:, 1:].reshape(-1)])
    down = torch.stack([node[:-1].reshape(-1), node[1:].reshape(-1)])
    one_way = torch.cat([right, down], dim=1)
    return torch.cat([one_way, one_way.flip(0)], dim=1)


def report(out: Path) -> Path:
    """Write ``coarsening.md`` from ``coarsening.csv``."""
    rows = read_records(out / FILE, Row)
    first = rows[0]
    lines = [
        "# Coarsening a million nodes",
        "",
        f"Made by `{COMMAND} --out {out.as_posix()}` at commit {first.commit} with torch "
        f"{first.torch} on {first.device}, {first.threads} threads. A grid of "
        f"{first.n:,} nodes and {first.edges:,} edges is coarsened to "
        f"{first.k:,} clusters, and an `OrbitLinear` of {CHANNELS} to {CHANNELS} channels "
        "on them runs one forward and backward pass. Each row is a process of its own; *total* "
        "counts from its start, imports included, and memory is its peak, plus that of the "
        "process that METIS runs in. Absolute times depend on the machine and its load, which "
        "*CPU* seconds, over all threads, feel least. *Cost* is the relative distance between the "
        "graph and the blow-up of its coarse graph.",
        "",
        "| method | mixing | clusters of | cost | coarsen s | layer s | step s | total s | CPU s "
        "| MiB |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    within = True
    for row in rows:
        memory = row.memory_mib + row.child_mib
        within = within and row.total_s <= SECONDS and memory <= MEBIBYTES
        lines.append(
            f"| {row.method} | {row.mixing} | {row.smallest} to {row.largest} | "
            f"{row.cost} | {row.coarsen_s} | {row.layer_s} | {row.step_s} | "
            f"{row.total_s} | {row.cpu_s} | {memory} |"
        )
    bar = f"{SECONDS} s and {MEBIBYTES // 1024} GiB"
    lines += ["", f"Every row stays below {bar}." if within else f"NOT every row is below {bar}."]
    return write_page(out / "coarsening.md", ["\n".join(lines)])
