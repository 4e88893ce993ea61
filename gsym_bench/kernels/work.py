"""One way to compute a case, a case at one size, and what all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gsym_bench.kernels.bars import Size

OURS, COMPILED = "gsym", "torch.compile"
READING = "sum of all"
DIM = 3  # coordinates of a node

Call = Callable[[], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        call: Runs forward.
        inputs: Signals; their gradients are those of gsym.
        weights: Parameters, which other code may keep in other shapes.
        same: Whether the values are those of gsym.
    """

    call: Call
    inputs: Sequence[Tensor] = ()
    weights: Sequence[Tensor] = ()
    same: bool = True


@dataclass(frozen=True)
class Work:
    """A case at one size.

    Attributes:
        peers: gsym, then the others by name.
        moved: Bytes that forward must move at least: what comes in and what goes out, once.
        flops: Operations of the matrix products that forward must do at least.
    """

    peers: dict[str, Peer]
    moved: float
    flops: float = 0


@dataclass(frozen=True)
class Case:
    """A primitive or a layer.

    Attributes:
        title: Heading on the page.
        make: Prepares it at a size, on a device.
        held: Tensors ``[n, channels]`` that the hungriest peer holds at a time.
        segments: Segments of n rows where sizes are swept; ``None`` leaves the sweep out.
        threads: Threads on the CPU.
    """

    title: str
    make: Callable[[Size, torch.device], Work]
    held: int
    segments: Callable[[int], int] | None = None
    threads: int = 2

    def bytes(self, size: Size) -> int:
        """Memory that the hungriest peer needs, roughly."""
        return 4 * self.held * size.n * size.channels * size.batch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signal(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(device).requires_grad_()


def sorted_index(device: torch.device, n: int, k: int, seed: int = 0) -> Tensor:
    """Sorted, so that every peer is at its best."""
    return torch.randint(k, (n,), generator=generator(seed)).sort().values.to(device)


def random_edges(device: torch.device, size: Size) -> Tensor:
    """Random edges ``[2, n]`` between k nodes, sorted by target."""
    source = torch.randint(size.k, (size.n,), generator=generator(1)).to(device)
    return torch.stack([source, sorted_index(device, size.n, size.k)])


def peer_of(function: Callable[..., Any], *inputs: Tensor) -> Peer:
    weights = tuple(function.parameters()) if isinstance(function, nn.Module) else ()
    return Peer(lambda: function(*inputs), inputs, weights)


def compiled_peer(function: Callable[..., Any], *inputs: Tensor) -> Peer:
    weights = tuple(function.parameters()) if isinstance(function, nn.Module) else ()
    compiled = compiled_late(function)
    return Peer(lambda: compiled(*inputs), inputs, weights)


def compiled_late(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call, because to load the compiler alone takes seconds."""

    @cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return lambda *args: compiled()(*args)


def zipf_index(device: torch.device, n: int, k: int, seed: int = 0) -> Tensor:
    """As `sorted_index`, segment i being about 1 / i as long as the first."""
    uniform = torch.rand(n, generator=generator(seed), dtype=torch.float64)
    return ((k + 1) ** uniform - 1).long().clamp(max=k - 1).sort().values.to(device)


def bind(
    module: nn.Module, function: Callable[..., Any], inputs: tuple[Tensor, ...], *rest: Tensor
) -> Peer:
    """A layer on signals and further, constant arguments."""
    return Peer(lambda: function(*inputs, *rest), inputs, tuple(module.parameters()))


def peers_of(
    layers: dict[str, nn.Module], inputs: tuple[Tensor, ...], *rest: Tensor
) -> dict[str, Peer]:
    return {name: bind(layer, layer, inputs, *rest) for name, layer in layers.items()}
