"""Measure what ``import gsym`` takes beside ``import torch``, in processor time.

python tools/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

ROUNDS = 7


def seconds(module: str) -> float:
    """Processor time of a fresh interpreter that imports a module."""
    code = f"import time, {module}; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Take turns, so that a busy machine slows both alike."""
    pairs = [(seconds("torch"), seconds("gsym")) for _ in range(ROUNDS)]
    torch, gsym = (median(column) for column in zip(*pairs, strict=True))
    print(f"import torch {torch:.2f} s, import gsym {gsym:.2f} s: {gsym / torch:.2f} times")


if __name__ == "__main__":
    main()
