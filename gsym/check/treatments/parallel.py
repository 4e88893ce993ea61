"""Replicas and sharded parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gsym.check.subject import Comparison, Subject, backward, gradients, is_real, loss
from gsym.check.treatments.training import list_of_layers


def replica(subject: Subject) -> Iterator[Comparison]:
    """A replica as ``nn.DataParallel`` makes it: its weights are no parameters."""
    layer = subject.layer()
    layer(*subject.arguments())
    twin = _replicate(layer)
    yield "values", twin(*subject.arguments()), subject.value()
    found = gradients(twin, subject.arguments(), list(layer.parameters()))
    yield "gradients of the original", found, subject.gradient()


def _replicate(module: nn.Module, copied: dict[Tensor, Tensor] | None = None) -> nn.Module:
    # torch.nn.parallel.replicate copies to GPUs only; this is what it makes of the modules.
    copied = {} if copied is None else copied
    twin = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        if parameter is None:
            twin._parameters[name] = None
        else:
            copied.setdefault(parameter, parameter * 1)
            setattr(twin, name, copied[parameter])
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _replicate(child, copied)
    return twin


@contextmanager
def process_group() -> Iterator[None]:
    """The process group that is there, or one of this process alone."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        # Threads of the group need the interpreter to drop their last tensors, and torch joins them
        # while it holds the interpreter.
        time.sleep(0.01)
        dist.destroy_process_group()


def distributed(subject: Subject) -> Iterator[Comparison]:
    """``DistributedDataParallel`` on gloo."""
    with process_group():
        # A generator of its own, so that what is wrapped goes before the group does.
        yield from _distributed(subject)


def _distributed(subject: Subject) -> Iterator[Comparison]:
    layer = subject.layer()
    wrapped = DistributedDataParallel(layer)
    for step in range(2):
        found = backward(wrapped, subject.arguments(), list(layer.parameters()))
        yield f"gradients, step {step}", found, subject.gradient()
    yield "values", wrapped(*subject.arguments()), subject.value()


def fully_sharded(subject: Subject) -> Iterator[Comparison]:
    """``fully_shard`` (FSDP2) of each layer of a stack and of the whole, on gloo."""
    with process_group():
        yield from _fully_sharded(subject)


def _fully_sharded(subject: Subject) -> Iterator[Comparison]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layer = subject.layer()
    for stack in list_of_layers(layer):
        for child in stack:
            fully_shard(child, mesh=mesh)
    fully_shard(layer, mesh=mesh)
    yield "values", layer(*subject.arguments()), subject.value()
    args = subject.arguments()
    real = [value.requires_grad_() for value in args if is_real(value)]
    loss(layer(*args)).backward()
    found = [
        torch.zeros(p.shape) if p.grad is None else p.grad.full_tensor()  # type: ignore[attr-defined]
        for p in layer.parameters()
    ]
    yield "gradients", [*(value.grad for value in real), *found], subject.gradient()
