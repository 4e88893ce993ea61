"""Two versions of the library side by side: how long every primitive and layer takes in each.

    python -m gsym_bench.kernels.versions TREE [CASE ...]

``TREE`` is another checkout. Each version has a process of its own with one thread, of which
processor time is taken, and they take turns, so that whatever else the machine does meets both and
counts little. Medium sizes tell of the loops; small ones, where the
calls from Python count, of all around them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROUNDS, CHUNK = 25, 0.04  # turns of each version, and seconds of one
SMALL, MEDIUM = (200, 16, 16, 4), (20_000, 500, 64, 1)
MEDIUM_MAP = (20_000, 100, 64, 1)
NBODY = (2000, 500, 64, 100)
# Cases, whose sizes are n, k, channels and batch.
CASES = {
    **{(name, size): ("forward", "both") for name in (
        *("segment_sum", "segment_mean", "segment_max", "segment_gather", "gather_segment_sum"),
        *("indexed_linear", "grouped_linear", "row_mlp", "linear_pair", "permute_rows"),
        *("edge_mlp_sum", "EGNNConv", "EGNNConv in plain torch", "PenguinConv"),
    ) for size in (SMALL, MEDIUM)},
    # Every pair of clusters has a matrix, so there are fewer of them.
    **{(name, size): ("forward", "both") for name in ("OrbitLinear", "GNetConv")
       for size in (SMALL, MEDIUM_MAP)},
    ("EGNNConv, n-body", NBODY): ("forward", "both"),
}  # fmt: skip


def main(tree: str, *names: str) -> None:
    """Print the ratio of both times, which is above 1 where this version is the faster."""
    here = Path(__file__).parents[2]
    old, new = (_start(Path(path).resolve()) for path in (tree, here))
    sys.stdout.write(
        "case                           n  mode        old us    new us  ratio  (quartiles)\n"
    )
    for (name, size), modes in CASES.items():
        if names and name not in names:
            continue
        for mode in modes:
            pairs = [(_ask(old, name, size, mode), _ask(new, name, size, mode)) for _ in range(2)]
            pairs = [
                (_ask(old, name, size, mode), _ask(new, name, size, mode)) for _ in range(ROUNDS)
            ]
            low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
            times = [statistics.median(times) * 1e6 for times in zip(*pairs, strict=True)]
            sys.stdout.write(
                f"{name:26} {size[0]:6}  {mode:8} {times[0]:9.1f} {times[1]:9.1f} {middle:6.2f}"
                f"  ({low:.2f} to {high:.2f})\n"
            )
            sys.stdout.flush()


def _start(tree: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )


def _ask(worker: subprocess.Popen[str], *job: object) -> float:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(repr(job) + "\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def _serve(jobs: IO[str]) -> None:
    """Answer every job with the seconds of one call."""
    from ast import literal_eval
    from importlib import import_module

    import torch

    # Earlier versions have the suite under another name.
    kernels = f"{'gsym_bench' if Path('gsym_bench').is_dir() else 'benchmarks'}.kernels"
    Size = import_module(f"{kernels}.bars").Size
    MADE = import_module(f"{kernels}.cases").CASES

    torch.set_num_threads(1)
    made, peer, count = None, None, 1
    for line in jobs:
        name, size, mode = job = literal_eval(line)
        if made != job:
            made, count = job, 1
            peer = MADE[name].make(Size(*size), torch.device("cpu")).peers["gsym"]
        assert peer is not None

        def call(peer=peer, mode=mode) -> None:  # type: ignore[no-untyped-def]
            if mode == "forward":
                with torch.no_grad():
                    peer.call()
                return
            y = peer.call()
            y = y[0].sum() + y[1].sum() if isinstance(y, tuple) else y.sum()
            torch.autograd.grad(y, [*peer.inputs, *peer.weights], allow_unused=True)

        call()
        begin = time.process_time()
        for _ in range(count):
            call()
        taken = time.process_time() - begin
        sys.stdout.write(f"{taken / count}\n")
        sys.stdout.flush()
        count = max(round(count * CHUNK / max(taken, 1e-6)), 1)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve(sys.stdin)
    else:
        main(*sys.argv[1:])
