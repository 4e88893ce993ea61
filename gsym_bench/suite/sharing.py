"""A batch that several processes share, whose loss and gradient are those of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gsym_bench.suite.errors import BenchmarkError


class Sharing:
    """Calls a model on a share of the samples in each process; all have all predictions.

    Only gradients of the own share are computed. Shares of a batch that cannot be divided overlap,
    so that all processes draw as many random numbers.

    Batch norms take mean and variance of the whole batch, each sample once, with the gradient that
    one process would have: in every norm the processes add up twice, forth and back.

    Args:
        fabric: The processes.
        model: The model, not set up yet; its batch norms are exchanged until `end`.

    Raises:
        BenchmarkError: When the model is called: the rows of a batch norm are not the samples.
    """

    def __init__(self, fabric: Fabric, model: nn.Module) -> None:
        self._fabric = fabric
        self._count = self._size = self._own = 0  # samples of the batch, of a share, not yet seen
        alone = fabric.world_size == 1
        self._norms = [] if alone else [m for m in model.modules() if isinstance(m, _BatchNorm)]
        for norm in self._norms:
            norm.forward = partial(self._normalise, norm)  # type: ignore[method-assign]

    def end(self) -> None:
        """Give the model its batch norms back."""
        for norm in self._norms:
            del norm.forward

    def of(self, model: Any) -> Callable[[Tensor], Tensor]:
        """The model as it was set up, called on shares."""
        fabric = self._fabric
        if fabric.world_size == 1:
            return model

        def call(inputs: Tensor) -> Tensor:
            count, rank = len(inputs), fabric.global_rank
            size = -(-count // fabric.world_size)
            self._count, self._size = count, size
            self._own = min(max(count - rank * size, 0), size)
            index = torch.arange(rank * size, (rank + 1) * size, device=inputs.device) % count
            own = model(inputs[index])
            parts = list(fabric.all_gather(own.detach()).unbind(0))  # type: ignore[union-attr]
            parts[rank] = own
            return torch.cat(parts)[:count]

        return call

    def _normalise(self, norm: _BatchNorm, x: Tensor) -> Tensor:
        if not norm.training:
            return type(norm).forward(norm, x)
        if len(x) != self._size:
            raise BenchmarkError(
                f"--devices shares the samples of a batch, but a {type(norm).__name__} of the "
                f"model normalises {len(x)} rows that are not its {self._size} samples; leave out "
                "--devices, or let the norm keep samples on its first axis"
            )
        rest = [0, *range(2, x.dim())]
        total = self._count * x[0, 0].numel()
        if total < 2:
            raise ValueError(f"expected more than one value per channel, got {list(x.shape)}")
        shape = [1, -1, *[1] * (x.dim() - 2)]
        mean = _Sum.apply(x[: self._own].sum(rest)) / total
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred[: self._own].square().sum(rest)) / total
        if norm.running_mean is not None and norm.running_var is not None:
            assert norm.num_batches_tracked is not None
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                seen = float(norm.num_batches_tracked)
                rate = 1 / seen if norm.momentum is None else norm.momentum
                norm.running_mean.lerp_(mean, rate)
                norm.running_var.lerp_(variance * total / (total - 1), rate)
        y = centred * (variance + norm.eps).rsqrt().view(shape)
        return y if norm.weight is None else y * norm.weight.view(shape) + norm.bias.view(shape)


class _Sum(torch.autograd.Function):
    """The sum over processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)
