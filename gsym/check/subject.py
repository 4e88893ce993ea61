"""A module under treatment, and the float64 twin that says what is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Largest relative error by the type of what came.
ALLOWED = {
    torch.float64: 1e-8,
    torch.float32: 1e-4,
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}

Weights = dict[str, Tensor]
Comparison = tuple[str, Any, Any]  # what is compared, what came, what is right


class Skip(Exception):  # noqa: N818  # a message to the runner, not an error
    """A treatment that does not apply, and why."""


class Subject:
    """Makes a new module for every treatment, and its twin.

    The twin is a fresh module in float64 with the same weights, which is called once and never
    treated. Weights are random, so that nothing stays hidden behind zeros.

    Args:
        make: Builds the module.
        args: Arguments of ``forward``; floating-point ones are cast to the type in question.
        other_args: Further arguments of the same shapes, such as another graph.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        args: tuple[Any, ...],
        other_args: tuple[Any, ...] | None = None,
    ) -> None:
        self.make = make
        self.args = cast(args, torch.float64)
        self._other_args = None if other_args is None else cast(other_args, torch.float64)
        self.random = torch.Generator().manual_seed(0)
        self.weights = self.draw()
        self._values: dict[Any, Any] = {}

    @property
    def other_args(self) -> tuple[Any, ...]:
        """Arguments to call the module with in turn; skips the treatment if there are none."""
        if self._other_args is None:
            raise Skip("needs other_args, another graph of the same size")
        return self._other_args

    @property
    def has_other_args(self) -> bool:
        """Whether there are arguments to call the module with in turn."""
        return self._other_args is not None

    @property
    def has_batch(self) -> bool:
        """Whether the first argument has a batch axis, ``[b, n, c]``."""
        first = self.args[0] if self.args else None
        return isinstance(first, Tensor) and first.is_floating_point() and first.dim() >= 3

    def draw(self) -> Weights:
        """Random values for every parameter."""
        return {
            name: torch.rand(p.shape, generator=self.random, dtype=torch.float64) - 0.5
            for name, p in self.make().named_parameters()
        }

    def layer(
        self, dtype: torch.dtype = torch.float32, weights: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """A fresh module in ``eval`` mode with the weights."""
        layer = self.make().to(dtype).eval()
        fill(layer, self.weights if weights is None else weights)
        return layer

    def arguments(self, dtype: torch.dtype = torch.float32, other: bool = False) -> tuple[Any, ...]:
        """Copies of the arguments."""
        return copies(cast(self.other_args if other else self.args, dtype))

    def value(
        self,
        args: tuple[Any, ...] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """What is right: the output of the twin."""
        if args is None and weights is None and "value" in self._values:
            return self._values["value"]
        layer = self.layer(torch.float64, weights)
        given = self.args if args is None else cast(args, torch.float64)
        value = detached(layer(*copies(given)))
        if args is None and weights is None:
            self._values["value"] = value
        return value

    def gradient(
        self,
        args: tuple[Any, ...] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """What is right: the gradients of the twin."""
        if args is None and weights is None and "gradient" in self._values:
            return self._values["gradient"]
        given = self.args if args is None else cast(args, torch.float64)
        found = gradients(self.layer(torch.float64, weights), copies(given))
        if args is None and weights is None:
            self._values["gradient"] = found
        return found

    def batched(self) -> list[int]:
        """Places of the arguments that have a batch axis, the first axis of the first argument."""
        first = self.args[0]
        if not self.has_batch:
            raise Skip("the first argument has no batch axis; give [b, n, c]")
        return [
            place
            for place, value in enumerate(self.args)
            if is_real(value) and value.dim() == first.dim() and value.size(0) == first.size(0)
        ]

    def real(self) -> list[int]:
        """Places of the arguments that have derivatives."""
        return [place for place, value in enumerate(self.args) if is_real(value)]

    def whole(self) -> list[int]:
        """Places of the arguments that are integer tensors, such as graphs."""
        return [
            place
            for place, value in enumerate(self.args)
            if isinstance(value, Tensor) and not is_real(value)
        ]


def is_real(value: Any) -> bool:
    """Whether this is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments with floating-point tensors in this type."""
    return tuple(value.to(dtype) if is_real(value) else value for value in args)


def copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with every tensor cloned."""
    return tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in args)


@torch.no_grad()
def fill(layer: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights into the parameters, and into buffers that are named among them."""
    for name, parameter in layer.named_parameters():
        parameter.copy_(weights[name])
    for name, buffer in layer.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a nest of tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for part in value for tensor in tensors(part)]


def detached(value: Any) -> list[Tensor]:
    """The tensors of an output, without their history."""
    return [tensor.detach() for tensor in tensors(value)]


def probes(outputs: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Numbers in -1..1 like the outputs, the same for every call; nothing random for ``vmap``."""
    found = []
    for y in outputs:
        count = torch.arange(y.numel(), dtype=torch.float64) + 1
        found.append((count.square() * (1.7 + seed)).cos().view(y.shape).to(y.dtype))
    return found


def loss(output: Any, seed: int = 0) -> Tensor:
    """A number that depends on every entry of the outputs, in float64."""
    outputs = [y.double() for y in tensors(output)]
    parts = zip(outputs, probes(outputs, seed), strict=True)
    total = torch.zeros((), dtype=torch.float64)
    for y, probe in parts:
        total = total + (y * probe).sum() + (y * y).sum() / 2
    return total


def gradients(
    layer: Callable[..., Any],
    args: tuple[Any, ...],
    parameters: Sequence[Tensor] | None = None,
    **keywords: Any,
) -> tuple[Tensor, ...]:
    """Gradients of :func:`loss` by the floating-point arguments and the parameters."""
    real = [value.requires_grad_() for value in args if is_real(value)]
    if parameters is None:
        assert isinstance(layer, nn.Module)
        parameters = list(layer.parameters())
    wanted = [*real, *parameters]
    found = torch.autograd.grad(
        loss(layer(*args)), wanted, allow_unused=True, materialize_grads=True, **keywords
    )
    return tuple(gradient.detach() for gradient in found)


def backward(
    layer: Callable[..., Any], args: tuple[Any, ...], parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The same gradients as a training step takes them: by ``backward()``."""
    leaves = [*(value.requires_grad_() for value in args if is_real(value)), *parameters]
    for leaf in leaves:
        leaf.grad = None
    loss(layer(*args)).backward()
    return tuple(
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach() for leaf in leaves
    )


def compare(got: Any, want: Any, allowed: float | None = None) -> float:
    """Largest relative error of what came, or an ``AssertionError``."""
    came, right = tensors(got), tensors(want)
    if not came and not right:
        assert got == want, f"expected {want}, got {got}"
        return 0.0
    assert len(came) == len(right), f"expected {len(right)} tensors, got {len(came)}"
    worst = 0.0
    for a, b in zip(came, right, strict=True):
        assert a.shape == b.shape, f"expected shape {list(b.shape)}, got {list(a.shape)}"
        size = float(b.double().norm())
        error = float((a.detach().double() - b.detach().double()).norm())
        error = error / size if size else error
        bound = allowed or ALLOWED[a.dtype]
        # NaN is no number below the bound.
        assert math.isfinite(error), "an output is not finite"
        assert error <= bound, f"relative error {error:.1e}, allowed {bound:.0e} ({a.dtype})"
        worst = max(worst, error)
    return worst


def same(
    subject: Subject, layer: nn.Module, what: str, dtype: torch.dtype = torch.float32
) -> Iterator[Comparison]:
    """Values and gradients of a treated layer against the twin."""
    yield what, layer(*subject.arguments(dtype)), subject.value()
    yield f"{what}: gradients", gradients(layer, subject.arguments(dtype)), subject.gradient()


def units(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that hold parameters themselves; shared ones once."""
    return [(name, part) for name, part in layer.named_modules() if _own(part)]


def own_parameters(layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and name within it of each parameter that is held once."""
    holders: dict[Tensor, int] = {}
    for _, part in layer.named_modules():
        for parameter in _own(part).values():
            holders[parameter] = holders.get(parameter, 0) + 1
    for prefix, part in units(layer):
        for name, parameter in _own(part).items():
            if holders[parameter] == 1:
                yield f"{prefix}.{name}" if prefix else name, part, name


def _own(part: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in part._parameters.items() if p is not None}
