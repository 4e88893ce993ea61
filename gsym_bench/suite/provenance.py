"""Where numbers come from: source, versions, device."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def provenance() -> dict[str, str]:
    """Which source and which versions make the numbers."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty"]
    here = Path(__file__).parent
    try:
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        revision = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    try:
        gsym = version("gsym")
    except PackageNotFoundError:
        gsym = "not installed"
    python = platform.python_version()
    return {"commit": revision, "gsym": gsym, "torch": torch.__version__, "python": python}


def device_name(device: torch.device) -> str:
    """The model of a GPU, else ``"cpu"``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def commit() -> str:
    """Source revision when the process began."""
    return provenance()["commit"]


def machine(device: str) -> str:
    """Name of the processor; commas and line ends have no place in it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "CPU")
