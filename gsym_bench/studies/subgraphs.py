"""How fast ego-networks are found in a large graph, and how fast SPEN trains beside GIN."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch_geometric.data import Batch, Data

from gsym.transforms import EgoSubgraphs
from gsym_bench.kernels.measure import interleave
from gsym_bench.studies.molecules.graphs import load
from gsym_bench.studies.molecules.models import GINNet, GraphNet, SPENNet
from gsym_bench.suite.folder import locked
from gsym_bench.suite.memory import in_new_process, peak_memory
from gsym_bench.suite.provenance import commit, machine
from gsym_bench.suite.report.markdown import markdown_table, write_page
from gsym_bench.suite.study_tables import write_records

THREADS = 2
NODES, DEGREE = (10**4, 10**5, 10**6), 8
# Most that the largest graph may take, in seconds and in MiB.
SECONDS, MEMORY = 60.0, 4096.0
WIDTH, BATCH, ROUNDS, LARGEST_RATIO = 32, 32, 9, 3.0
EGO, EPOCH = "ego-networks", "epoch"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: ``EGO`` or ``EPOCH``.
        variant: What ran.
        size: Nodes of the graph, or graphs of the epoch.
        entries: Nodes of all ego-networks together.
        seconds: Time, of an epoch the median.
        memory_mib: Rise of the peak memory.
        ratio: Median over rounds of the time over that of GIN.
        ratio_low: Lower quartile of the same.
        ratio_high: Upper quartile of the same.
        met: ``"yes"``, ``"no"``, or nothing where there is no bar.
        threads: Threads.
        commit: Source revision.
        torch: Version of torch.
        machine: Name of the processor.
    """

    what: str
    variant: str
    size: int
    entries: int
    seconds: float
    memory_mib: float
    ratio: float
    ratio_low: float
    ratio_high: float
    met: str
    threads: int
    commit: str
    torch: str
    machine: str


def main(out: Path, data: Path | None, console: Console) -> Path:
    """Measure, and write ``subgraphs.csv`` and ``subgraphs.md`` to ``out``.

    Args:
        out: Folder to write to.
        data: Folder of downloaded data; without it no epoch is measured.
        console: Where every row is told.

    Returns:
        Path of the page.
    """
    with locked(out):
        rows = []
        for n in NODES:
            rows.append(in_new_process(ego_networks, n))
            console.print(rows[-1])
        if data is not None:
            rows += epochs(data)
            console.print(*rows[-2:])
        write_records(out / "subgraphs.csv", Row, rows)
        return write_page(out / "subgraphs.md", [_page(rows)])


def ego_networks(n: int) -> Row:
    """Ego-networks of one hop of a random graph."""
    torch.set_num_threads(THREADS)
    ends = torch.randint(n, (2, n * DEGREE // 2), generator=torch.Generator().manual_seed(0))
    data = Data(edge_index=torch.cat([ends, ends.flip(0)], dim=1), num_nodes=n)
    peak, start = peak_memory(torch.device("cpu")), time.perf_counter()
    found = EgoSubgraphs(1)(data)
    seconds, memory = time.perf_counter() - start, peak()
    met = "" if n < NODES[-1] else "yes" if seconds < SECONDS and memory < MEMORY else "no"
    return _row(EGO, "EgoSubgraphs(1)", n, found.n_id.numel(), seconds, memory, met=met)


def epochs(data: Path) -> list[Row]:
    """Training epochs of GIN and SPEN on PROTEINS, in turn; tables are built once per batch."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    graphs = load(data, "PROTEINS").graphs
    order = torch.randperm(len(graphs)).split(BATCH)
    batches = [Batch.from_data_list([graphs[i] for i in part.tolist()]) for part in order]
    nets: dict[str, GraphNet] = {
        name: kind(graphs[0].x.size(1), 2, WIDTH)
        for name, kind in (("GIN of PyG", GINNet), ("SPEN", SPENNet))
    }
    steps = {}
    for name, net in nets.items():
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        prepared = [net.prepare(batch) for batch in batches]

        def epoch(net=net, optimiser=optimiser, prepared=prepared):  # type: ignore[no-untyped-def]
            net.train()
            for batch, tables in zip(batches, prepared, strict=True):
                optimiser.zero_grad()
                F.cross_entropy(net(batch, tables), batch.y).backward()
                optimiser.step()

        epoch()
        steps[name] = epoch
    times = interleave(steps, ROUNDS, torch.device("cpu"))
    base = times["GIN of PyG"]
    rows = []
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        met = "" if name != "SPEN" else "yes" if middle <= LARGEST_RATIO else "no"
        seconds = statistics.median(taken) / 1e3
        found = {"ratio": middle, "low": low, "high": high}
        rows.append(_row(EPOCH, name, len(graphs), 0, seconds, float("nan"), met=met, **found))
    return rows


def _row(
    what: str,
    variant: str,
    size: int,
    entries: int,
    seconds: float,
    memory: float,
    *,
    met: str,
    ratio: float = float("nan"),
    low: float = float("nan"),
    high: float = float("nan"),
) -> Row:
    numbers = (float(f"{x:.4g}") for x in (seconds, memory, ratio, low, high))
    names = "seconds", "memory_mib", "ratio", "ratio_low", "ratio_high"
    return Row(
        what=what,
        variant=variant,
        size=size,
        entries=entries,
        **dict(zip(names, numbers, strict=True)),
        met=met,
        threads=THREADS,
        commit=commit(),
        torch=torch.__version__,
        machine=machine("cpu"),
    )


def _page(rows: list[Row]) -> str:
    first = rows[0]
    ego, epoch = ([row for row in rows if row.what == what] for what in (EGO, EPOCH))
    lines = [
        "# Speed of ego-networks and SPEN",
        "",
        "Made by `gsym-bench subgraphs --out docs/pages/results --data DIR` on "
        f"{first.machine} ({first.threads} threads) with torch {first.torch} at commit "
        f"{first.commit}; the rows stand in [subgraphs.csv](subgraphs.csv). Absolute times depend "
        "on the machine and its load.",
        "",
        "## EgoSubgraphs",
        "",
        f"Ego-networks of one hop of random graphs of average degree {DEGREE}, each in a process "
        "of its own; memory is the rise of its peak over the graph. The bar of the largest is "
        f"{SECONDS:.0f} s and {MEMORY:,.0f} MiB.",
        "",
        markdown_table(
            ("nodes", "nodes of all ego-networks", "seconds", "MiB", "met"),
            [
                (
                    f"{r.size:,}",
                    f"{r.entries:,}",
                    f"{r.seconds:.3g}",
                    f"{r.memory_mib:,.0f}",
                    r.met or "-",
                )
                for r in ego
            ],
        ),
    ]
    if epoch:
        lines += [
            "",
            "## A training epoch on PROTEINS",
            "",
            f"{epoch[0].size:,} graphs in batches of {BATCH}, all maps of width {WIDTH}, networks "
            f"as in the molecules task, epochs in turn, {ROUNDS} rounds; tables of ego-networks "
            f"are built before. The bar of SPEN is {LARGEST_RATIO:.0f} times the epoch of GIN.",
            "",
            markdown_table(
                ("network", "seconds", "time over that of GIN (quartiles)", "met"),
                [
                    (
                        r.variant,
                        f"{r.seconds:.3g}",
                        f"{r.ratio:.3g} ({r.ratio_low:.3g} to {r.ratio_high:.3g})",
                        r.met or "-",
                    )
                    for r in epoch
                ],
            ),
        ]
    return "\n".join(lines)
