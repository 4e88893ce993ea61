"""How many calls of Python within gsym one warm call of a layer makes.

A small batch is bound by these calls, not by arithmetic. A frame checks if its function looks at
what came in, and chooses if it settles which back-end or which loop runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

import gsym
from gsym import ClusterGroup, Partition, nn

ROOT = f"{Path(gsym.__file__).parent}{os.sep}"
BATCH, NODES, CHANNELS = 8, 40, 16
# Functions that look at what came in, by the start of their names, and files that only do so.
CHECKS = ("check_", "_check", "are_alike", "fits_", "_fits", "_like", "own_parameter", "is_plain")
CHECKING = ("_validate.py", "_checks.py")
CHOICES = ("choose", "is_usable", "takes", "loop", "tell")


class Frames(NamedTuple):
    """Frames of one call: all, those that check, and those that choose a back-end or a loop."""

    total: int
    checking: int
    choosing: int


def count(call: Callable[[], object]) -> Frames:
    """Count the frames of gsym that one warm call enters."""
    seen: Counter[tuple[str, str]] = Counter()

    def listen(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT):
            seen[Path(code.co_filename).name, code.co_name] += 1

    for _ in range(2):
        call()
    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        call()
    finally:
        sys.setprofile(before)
    checking = sum(
        times for (file, name), times in seen.items() if file in CHECKING or name.startswith(CHECKS)
    )
    choosing = sum(times for (_, name), times in seen.items() if name in CHOICES)
    return Frames(sum(seen.values()), checking, choosing)


def layers() -> dict[str, Callable[[], object]]:
    """One call of every layer, with gradients, on a batch of 8 graphs of 40 nodes."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(NODES, (2, 4 * NODES), generator=generator)
    x = torch.randn(BATCH, NODES, CHANNELS, generator=generator)
    pos = torch.randn(BATCH, NODES, 3, generator=generator)
    group = ClusterGroup(Partition.from_labels(torch.arange(NODES) // 10))
    wide = CHANNELS, CHANNELS
    linear, conv = nn.OrbitLinear(*wide, group), nn.GNetConv(*wide, group)
    egnn = nn.EGNNConv(*wide, hidden_channels=CHANNELS)
    penguin = nn.PenguinConv(*wide, hidden_channels=CHANNELS)
    return {
        "OrbitLinear": lambda: linear(x),
        "GNetConv": lambda: conv(x, edge_index),
        "EGNNConv": lambda: egnn(x, pos, edge_index),
        "PenguinConv": lambda: penguin(x, pos, edge_index),
    }


def main(argv: list[str] | None = None) -> None:
    """Print a row for every layer that is named, or for all."""
    parser = argparse.ArgumentParser(
        prog="python -m gsym_bench.kernels.frames", description=__doc__
    )
    calls = layers()
    parser.add_argument("layer", nargs="*", help=f"of {', '.join(calls)}; all by default")
    names = parser.parse_args(argv).layer or list(calls)
    unknown = set(names) - calls.keys()
    if unknown:
        parser.error(f"no such layer: {', '.join(sorted(unknown))}; there are {', '.join(calls)}")
    sys.stdout.write("layer          frames  checking  choosing\n")
    for name in names:
        frames = count(calls[name])
        sys.stdout.write(f"{name:14} {frames.total:6}  {frames.checking:8}  {frames.choosing:8}\n")


if __name__ == "__main__":
    main()
