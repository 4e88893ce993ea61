"""Speed and memory of the kernels and tied layers, side by side with other code in one run.

Absolute times drift on shared machines, so every round times all variants of a case in turn and
the result is the median over rounds of the ratio of their times. Memory is the rise of the
process's peak over one call, above what the loaded model takes.
"""

from __future__ import annotations

import csv
import gc
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from benchmarks.data import replacing
from benchmarks.memory import keep_freed_memory, peak_memory
from benchmarks.run import provenance
from gsym import ClusterGroup, Partition, kernels
from gsym.nn import GNet, OrbitLinear

THREADS = 2
SEGMENT_ROWS = (10**6, 4 * 10**6)
GATHER_ENTRIES = 1_600_000
COMMAND = "python -m benchmarks kernels"


class DenseClusterLinear(nn.Module):
    """The cluster map through one materialised weight, as the published code computes it.

    Equal clusters only. Every forward pass expands the tied weights to a matrix of ``(out n)`` by
    ``(in n)``; the arithmetic is that of a dense linear layer whatever the group.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, in_channels: int, out_channels: int, partition: Partition) -> None:
        super().__init__()
        k, self.size = partition.num_clusters, partition.sizes[0]
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_buffer("order", partition.order, persistent=False)
        self.register_buffer("inverse", torch.argsort(partition.order), persistent=False)
        pairs = in_channels * out_channels
        self.weight_diagonal = nn.Parameter(torch.randn(pairs, k) / pairs**0.5)
        self.weight_block = nn.Parameter(torch.randn(pairs, k, k) / pairs**0.5 / k)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(1)
        diagonal = torch.kron(torch.diag_embed(self.weight_diagonal), torch.eye(self.size))
        block = torch.kron(self.weight_block, x.new_ones(self.size, self.size) / n)
        weight = (diagonal + block).view(self.out_channels, self.in_channels, n, n)
        weight = weight.transpose(1, 2).reshape(self.out_channels * n, self.in_channels * n)
        flat = x.index_select(1, self.order).transpose(1, 2).flatten(1)
        y = (flat @ weight.T).view(-1, self.out_channels, n).transpose(1, 2)
        return y.index_select(1, self.inverse) + self.bias


@dataclass(frozen=True)
class Row:
    """One measurement, as written to the CSV file; times in ms, memory in MiB."""

    case: str
    n: int
    k: int
    channels: str
    batch: int
    mode: str
    variant: str
    rounds: int
    median_ms: float
    memory_mib: float
    ratio: float  # what it compares stands in the title of its case
    ratio_low: float
    ratio_high: float
    threads: int
    commit: str
    torch: str
    device: str


Step = Callable[[], object]


def main(out: Path) -> Path:
    """Run all cases, write ``kernels.csv`` and the page ``kernels.md`` to ``out``.

    Args:
        out: Folder to write to.

    Returns:
        Path of the page.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    console = Console()
    console.print(f"Kernels on {THREADS} threads; about two minutes.")
    try:
        rows = [
            row
            for case in track(
                [_inpainting, _wide, _segment_sum, _gather_sum, _growth], "cases", console=console
            )
            for row in case(console)
        ]
    finally:
        torch.set_num_threads(threads)
    with replacing(out / "kernels.csv") as file:
        text = [",".join(field.name for field in fields(Row))]
        text += [",".join(str(value) for value in asdict(row).values()) for row in rows]
        file.write(("\n".join(text) + "\n").encode())
    return write_page(out)


def write_page(out: Path) -> Path:
    """Write ``kernels.md`` from ``kernels.csv``."""
    with (out / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    lines = [
        "# Speed and memory of kernels and tied layers",
        "",
        f"Made by `{COMMAND} --out {out.as_posix()}` at commit {first['commit']} with torch "
        f"{first['torch']} on {first['device']}, {first['threads']} threads, float32, forward and "
        "backward unless a title says otherwise. Every round times the variants in turn; the "
        "ratio is the median over rounds of the ratio of times, with its quartiles. Memory is the "
        "rise of the process's peak over one call. Absolute times depend on the machine and its "
        "load: read the ratios. A large tensor from fresh memory costs a page fault per page; "
        "*memory kept* tells the C library to use freed memory again, as caching allocators do.",
    ]
    titles = {
        "inpainting": "Two-layer net 1 -> 28 -> 1 on 28 x 28 pixels, against materialised weights",
        "wide": "One layer of 32 -> 32 channels, against materialised weights",
        "growth": "Growth with the number of nodes, 16 -> 16 channels (ratio: to a tenth of them)",
        "segment sum": "Sums of n sorted rows by k segments, forward (ratio of gsym: its bandwidth "
        "over that of the copy; of others: their time over that of gsym)",
        "gather and sum": "Sums of n gathered rows by k nodes, forward (ratio: time over gsym's)",
        "gather and sum with gradient": "The same, forward and backward",
    }
    for case, group in itertools.groupby(rows, key=lambda row: row["case"]):
        lines += ["", f"## {titles[case]}", ""]
        lines += ["| n | k | batch | variant | ms | MiB | ratio (quartiles) |"]
        lines += ["|--:|--:|--:|---|--:|--:|--:|"]
        for row in group:
            ratio = "-"
            if row["ratio"] != "nan":
                ratio = "{:.3g} ({:.3g} to {:.3g})".format(
                    *(float(row[key]) for key in ("ratio", "ratio_low", "ratio_high"))
                )
            lines.append(
                f"| {row['n']} | {row['k']} | {row['batch']} | {row['variant']} | "
                f"{float(row['median_ms']):.3g} | {float(row['memory_mib']):.3g} | {ratio} |"
            )
    page = out / "kernels.md"
    with replacing(page) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def _inpainting(console: Console) -> list[Row]:
    rows = []
    for patch in (28, 14, 7, 4, 2, 1):
        partition = Partition.grid(28, 28, patch)
        ours = GNet([1, 28, 1], ClusterGroup(partition))
        dense = nn.Sequential(
            DenseClusterLinear(1, 28, partition), nn.ReLU(), DenseClusterLinear(28, 1, partition)
        )
        x = torch.randn(64, 784, 1)
        steps = {"gsym": _training_step(ours, x), "dense": _training_step(dense, x)}
        case = ("inpainting", 784, partition.num_clusters, "1-28-1", 64)
        rows += _compare(case, steps, rounds=9)
        console.print(f"  n=784 k={partition.num_clusters}: {rows[-2].ratio:.1f} x faster")
    return rows


def _wide(console: Console) -> list[Row]:
    partition = Partition.grid(28, 28, 14)
    x = torch.randn(32, 784, 32)
    steps = {
        "gsym": _training_step(OrbitLinear(32, 32, ClusterGroup(partition)), x),
        "dense": _training_step(DenseClusterLinear(32, 32, partition), x),
    }
    rows = _compare(("wide", 784, 4, "32-32", 32), steps, rounds=3)
    console.print(f"  n=784 k=4, 32 channels: {rows[-2].ratio:.0f} x faster")
    return rows


def _growth(console: Console) -> list[Row]:
    """Twice: a tensor of 64 MB comes from fresh pages each time, unless freed memory is kept."""
    sizes = (10**4, 10**5, 10**6)
    steps: dict[str, Step] = {}
    for n in sizes:
        labels = torch.randint(16, (n,), generator=torch.Generator().manual_seed(0))
        x = torch.randn(1, n, 16)
        steps[f"gsym {n}"] = _training_step(
            OrbitLinear(16, 16, ClusterGroup(Partition(labels))), x.clone()
        )
        steps[f"nn.Linear {n}"] = _training_step(nn.Linear(16, 16), x)
    rows = []
    for kept in (False, True):
        if kept and not keep_freed_memory():
            console.print("  this C library cannot be told to keep freed memory")
            break
        times = dict(zip(steps, _interleave(steps, rounds=9), strict=True))
        for variant in ("gsym", "nn.Linear"):
            for n in sizes:
                here, tenth = f"{variant} {n}", f"{variant} {n // 10}"
                grown = times[here] / times[tenth] if tenth in times else np.full(1, np.nan)
                name = f"{variant} (memory kept)" if kept else variant
                case = ("growth", n, 16, "16-16", 1)
                rows.append(_row(case, name, times[here], _memory(steps[here]), grown))
                console.print(f"  {name}, n={n}: {rows[-1].median_ms:.1f} ms")
    return rows


def _segment_sum(console: Console) -> list[Row]:
    """Bandwidth counts what must move: every row once, every sum once, and the pointers."""
    from torch_geometric.utils import scatter

    channels, rows = 64, []
    for n in SEGMENT_ROWS:
        k = n // 16
        index = torch.randint(k, (n,), generator=torch.Generator().manual_seed(0)).sort().values
        segments = kernels.Segments.from_index(index, k)
        x, target = torch.randn(n, channels), torch.empty(n, channels)
        steps: dict[str, Step] = {
            "gsym": partial(kernels.segment_sum, x, segments),
            "copy": partial(target.copy_, x),
            "PyG scatter": partial(scatter, x, index, dim_size=k, reduce="sum"),
            "segment_reduce": partial(
                torch.segment_reduce, x, "sum", offsets=segments.pointers, axis=0
            ),
        }
        if find_spec("torch_scatter"):
            steps["torch-scatter"] = partial(
                kernels.segment_sum, x, segments, backend="torch_scatter"
            )
        times = dict(zip(steps, _interleave(steps, rounds=9), strict=True))
        moved = ((n + k) * channels * x.itemsize + 8 * k) / (2 * n * channels * x.itemsize)
        for name, step in steps.items():
            ours = name == "gsym"
            ratio = moved * times["copy"] / times["gsym"] if ours else times[name] / times["gsym"]
            case = ("segment sum", n, k, str(channels), 1)
            rows.append(_row(case, name, times[name], _memory(step), ratio, "forward"))
        share = rows[-len(steps)].ratio
        console.print(f"  segment sum of {n} rows: {share:.0%} of the bandwidth of a copy")
    return rows


def _gather_sum(console: Console) -> list[Row]:
    from torch_geometric.utils import scatter

    k, channels = GATHER_ENTRIES // 16, 64
    rng = torch.Generator().manual_seed(0)
    # Distinct and sorted, as torch.sparse wants its entries.
    pairs = torch.randint(k * k, (GATHER_ENTRIES,), generator=rng).unique()
    target, source, n = pairs // k, pairs % k, pairs.numel()
    read, written = (kernels.Segments.from_index(index, k) for index in (source, target))
    matrix = torch.sparse_csr_tensor(
        written.pointers, source, torch.ones(n), (k, k), check_invariants=True
    )
    x = torch.randn(k, channels, requires_grad=True)
    gradient = torch.randn(k, channels)
    functions: dict[str, Callable[[], Tensor]] = {
        "gsym": lambda: kernels.gather_segment_sum(x, read, written),
        "PyG scatter": lambda: scatter(x.index_select(0, source), target, dim_size=k, reduce="sum"),
        "torch.sparse": lambda: matrix @ x,
    }

    def forward(function: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            function()

    def both(function: Callable[[], Tensor]) -> None:
        x.grad = None
        function().backward(gradient)

    rows = []
    for title, mode, run in (
        ("gather and sum", "forward", forward),
        ("gather and sum with gradient", "forward and backward", both),
    ):
        steps: dict[str, Step] = {name: partial(run, f) for name, f in functions.items()}
        times = dict(zip(steps, _interleave(steps, rounds=9), strict=True))
        for name, step in steps.items():
            ratio = times[name] / times["gsym"] if name != "gsym" else np.full(1, np.nan)
            case = (title, n, k, str(channels), 1)
            rows.append(_row(case, name, times[name], _memory(step), ratio, mode))
        console.print(f"  {title} of {n} rows: {rows[-2].ratio:.1f} x faster than PyG scatter")
    return rows


def _training_step(model: nn.Module, x: Tensor) -> Step:
    """Forward and backward, the gradient of the input included as in a deeper net."""
    x = x.requires_grad_()
    gradient = torch.randn_like(model(x))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        x.grad = None
        model(x).backward(gradient)

    return step


def _compare(
    case: tuple[str, int, int, str, int], steps: dict[str, Step], rounds: int
) -> list[Row]:
    times = dict(zip(steps, _interleave(steps, rounds), strict=True))
    ratio = times["dense"] / times["gsym"]
    nothing = np.full(1, np.nan)
    return [
        _row(case, "gsym", times["gsym"], _memory(steps["gsym"]), ratio),
        _row(case, "dense", times["dense"], _memory(steps["dense"]), nothing),
    ]


def _interleave(steps: dict[str, Step], rounds: int) -> Sequence[np.ndarray]:
    """Times in ms ``[rounds]`` of every step; the order turns from round to round."""
    names = list(steps)
    times = {name: np.empty(rounds) for name in names}
    for name in names:
        steps[name]()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            steps[name]()
            times[name][turn] = (time.perf_counter() - start) * 1e3
    return [times[name] for name in names]


def _memory(step: Step) -> float:
    gc.collect()
    peak = peak_memory(torch.device("cpu"))
    step()
    return peak()


def _row(
    case: tuple[str, int, int, str, int],
    variant: str,
    times: np.ndarray,
    memory: float,
    ratio: np.ndarray,
    mode: str = "forward and backward",
) -> Row:
    name, n, k, channels, batch = case
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    about = provenance()
    return Row(
        case=name,
        n=n,
        k=k,
        channels=channels,
        batch=batch,
        mode=mode,
        variant=variant,
        rounds=len(times),
        median_ms=round(float(np.median(times)), 3),
        memory_mib=round(memory, 1),
        ratio=round(float(middle), 3),
        ratio_low=round(float(low), 3),
        ratio_high=round(float(high), 3),
        threads=THREADS,
        commit=about["commit"],
        torch=about["torch"],
        device="cpu",
    )
