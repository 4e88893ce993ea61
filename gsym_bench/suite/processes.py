"""Processes that train one model together, each on a part of every batch."""

from __future__ import annotations

import os

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from gsym_bench.suite.errors import BenchmarkError


def fabric(device: str, devices: int = 1) -> Fabric:
    """Device and precision of a training; with several devices its processes are not started yet.

    Under ``torchrun`` they are those that run.

    Raises:
        BenchmarkError: There are not so many devices, or ``torchrun`` started another number.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if started != devices:
        raise BenchmarkError(
            f"torchrun started {started} processes on this machine; got --devices {devices}"
        )
    if device == "cuda" and devices > torch.cuda.device_count():
        raise BenchmarkError(
            f"--devices {devices}, but there are {torch.cuda.device_count()} CUDA devices"
        )
    if devices == 1:
        return Fabric(accelerator=device, devices=1, precision="32-true")
    return Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=int(os.environ.get("WORLD_SIZE", devices)) // devices,
        precision="32-true",
        # Weights that a batch does not touch have no gradient in any process.
        strategy=DDPStrategy(find_unused_parameters=True),
    )


def leads() -> bool:
    """Whether this process is the first, or the only one, of those that share a training."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )
