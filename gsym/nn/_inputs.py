"""What a layer checks of its input: all in one look where nothing is amiss."""

from __future__ import annotations

import torch
from torch import Tensor

from gsym._validate import check_like_weights, check_signal


def check_input(x: Tensor, num_nodes: int | None, channels: int, like: Tensor | None) -> None:
    """Check a signal ``[..., n, c]`` and that it goes with a weight, without reading its values.

    Raises:
        SignalError: Another shape, type or device; the message says which.
        TypeError: No tensor.
    """
    if (
        like is not None
        and type(x) is Tensor
        and x.dtype == like.dtype
        and x.device == like.device
        and not x.is_nested
        and x.layout is torch.strided
        and x.dim() > 1
        and x.size(-1) == channels
        and (num_nodes is None or x.size(-2) == num_nodes)
    ):
        return
    check_signal(x, num_nodes, channels)
    check_like_weights(like, x=x)
