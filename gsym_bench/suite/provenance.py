"""Where numbers come from: source, versions, device."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor


def provenance() -> dict[str, str]:
    """Which source and which versions make the numbers."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty"]
    here = Path(__file__).parent
    try:
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        revision = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    python = platform.python_version()
    return {"commit": revision, "gsym": version(), "torch": torch.__version__, "python": python}


@cache
def version() -> str:
    """Of this library, as it is installed."""
    try:
        return metadata.version("gsym")
    except metadata.PackageNotFoundError:
        return "not installed"


def device_name(device: torch.device) -> str:
    """The model of a GPU, else ``"cpu"``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def checksum(*arrays: Tensor) -> str:
    """A short name of the numbers, types and shapes of tensors: equal data have equal names."""
    found = hashlib.sha256()
    for array in arrays:
        values = array.detach().cpu().contiguous()
        found.update(f"{values.dtype} {list(values.shape)};".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


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
