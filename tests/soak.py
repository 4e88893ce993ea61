"""Memory and open files stay flat over many steps of layers and many choices of a group.

    python tests/soak.py --steps 30000 --choices 300

What grows with the number of steps is a leak. The first half of a run fills caches; over the second
half a line is fitted to the memory, which may rise by its own noise or by a small allowance.
"""

import argparse
import ctypes
import gc
import os
import sys
from pathlib import Path

import numpy as np
import torch

from gsym import ClusterGroup, Partition, choose_group, coarsen
from gsym.nn import EGNNConv, GNetConv

_SAMPLES = 60
# Bytes by which the second half may rise in all: arenas of allocators come in pieces of a MiB.
_ALLOWED = {"resident": 2**20, "allocated": 2**16}
# Objects of Python that come and go.
_OBJECTS = 200


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    )


def state():
    """What the process holds: resident and allocated bytes, open files, objects of Python."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "objects": len(gc.get_objects()),
    }
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is not None:  # of glibc alone
        mallinfo.restype = _Mallinfo
        info = mallinfo()
        found["allocated"] = info.uordblks + info.hblkhd
    return found


def watch(step, count):
    """Call ``step(i)`` ``count`` times.

    Returns:
        By how much each quantity rose over the second half.

    Raises:
        AssertionError: What rose beyond its noise.
    """
    every = max(count // _SAMPLES, 1)
    seen = []
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again and again
    try:
        for i in range(count):
            step(i)
            if (i + 1) % every == 0:
                seen.append(state())
    finally:
        gc.unfreeze()
    late = seen[len(seen) // 2 :]
    rises = {}
    for name in late[0]:
        values = np.array([sample[name] for sample in late], dtype=float)
        at = np.arange(len(values)) - (len(values) - 1) / 2
        slope = at @ values / (at @ at)
        rest = values - values.mean() - slope * at
        noise = np.sqrt(rest @ rest / (len(values) - 2) / (at @ at)) * len(values)
        rises[name] = rise = slope * len(values)
        limit = max(4 * noise, _ALLOWED[name]) if name in _ALLOWED else 0.5
        if name == "objects":
            rise, limit = values[-1] - values[0], _OBJECTS
        assert rise <= limit, (
            f"{name} rose by {rise:,.0f} (limit {limit:,.0f}) in {count // 2} steps: "
            f"{values[0]:,.0f} to {values[-1]:,.0f}"
        )
    return rises


def training():
    """A step of a layer on a fixed graph, and of one that moves points, on graphs in turn."""
    n = 40
    generator = torch.Generator().manual_seed(0)
    graphs = [torch.randint(n, (2, 80 + 20 * i), generator=generator) for i in range(7)]
    group = ClusterGroup(Partition(torch.arange(n) // 5))
    conv, egnn = GNetConv(8, 8, group), EGNNConv(8, 8, hidden_channels=16)
    optimizer = torch.optim.SGD([*conv.parameters(), *egnn.parameters()], lr=1e-4)
    x = torch.randn(2, n, 8, generator=generator)
    pos = torch.randn(2, n, 3, generator=generator)

    def step(i):
        graph = graphs[i % len(graphs)].clone()
        optimizer.zero_grad()
        features, moved = egnn(conv(x, graph), pos, graph)
        (features.square().mean() + moved.square().mean()).backward()
        optimizer.step()

    return step


def choosing(swaps="auto"):
    """A hierarchy of a small graph, and the choice of one of its groups."""
    n = 16
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    edge_index = torch.cat([ring, ring.flip(0)], dim=1)

    def step(i):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(30, n, generator=generator)
        noise = torch.randn(30, n, generator=generator)
        h = coarsen(edge_index, n, method="ward")
        # Swaps are looked for by a process of its own, which takes its time.
        choose_group(h, x, 0.5 * x + 0.1 * noise, swaps=None if i % 10 else swaps, seed=i)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--choices", type=int, default=300)
    args = parser.parse_args()
    for name, step, count in (
        ("steps of two layers", training(), args.steps),
        ("choices of a group", choosing(), args.choices),
    ):
        rises = watch(step, count)
        kinds = ", ".join(f"{kind} {rise:+,.0f}" for kind, rise in rises.items())
        sys.stdout.write(f"{count} {name}: flat; over the second half {kinds}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
