"""How layers treat the modules within them: tables next to the parameters, and hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _disable_current_modes

from gsym.kernels.transforms import undisturbed

_CPU = torch.device("cpu")
_PLAIN_TENSORS = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Tables:
    """Tensors and indices that follow from a group; they never change."""

    def to(self, device: torch.device) -> Self:
        """The same tables on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if hasattr(value, "to")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Numbers(Tables):
    """The same numbers in double and in single precision."""

    double: Tensor
    single: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> Self:
        """Of numbers in double precision."""
        return cls(numbers, numbers.float())

    def like(self, x: Tensor) -> Tensor:
        """In double precision for double, otherwise in single."""
        return self.double if x.dtype == torch.float64 else self.single


T = TypeVar("T", bound=Tables)


class _ByDevice(Generic[T]):
    """The tables by device. Copies share them, for they never change; pickles leave them out."""

    def __init__(self) -> None:
        self.found: dict[torch.device, T] = {}

    def __deepcopy__(self, memo: object) -> _ByDevice[T]:
        twin = _ByDevice[T]()
        twin.found = self.found
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return _ByDevice, ()


def draw_again(part: Any, **options: Any) -> None:
    """Call ``reset_parameters`` of a module that has it, which the type of modules does not say."""
    part.reset_parameters(**options)


class TabledModule(nn.Module, Generic[T]):
    """A module with tables that follow from what it was built with.

    They are no buffers, lest what averages, casts, empties or loads the state of a model did so to
    indices. They are built on the CPU and moved to where the parameters go; a device that a call
    meets first gets its own. Threads may fill the cache at once: they put equal tables into it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_device = _ByDevice[T]()

    def _build_tables(self) -> T:
        """The tables, on the CPU; none by default."""
        return Tables()  # type: ignore[return-value]

    def _tables(self, device: torch.device) -> T:
        found = self._by_device.found.get(device)
        return self._fill_tables(device) if found is None else found

    def _fill_tables(self, device: torch.device) -> T:
        # Plain tensors that last, whatever transform, tracer or default device is in force.
        with undisturbed(), _disable_current_modes(), _CPU:
            host = self._by_device.found.get(_CPU)
            host = self._build_tables() if host is None else host
            tables = host if device == _CPU else host.to(device)
        self._by_device.found = {**self._by_device.found, _CPU: host, device: tables}
        return tables

    def _fill_at_home(self) -> None:
        """Fill the cache where the parameters lie, before compiled code asks for it."""
        home = next((p.device for p in self.parameters()), _CPU)
        if home.type != "meta":
            self._tables(home)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._fill_at_home()
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._fill_at_home()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fill_at_home()


def is_plain(kind: type[nn.Module], *modules: object) -> bool:
    """Whether nobody notices that these modules are not called, but their weights read.

    They are of this very class, without hooks of any kind, parametrisations (which change the
    class) or a ``forward`` put into the instance, and their parameters are plain tensors, which
    sharded or quantised ones are not. What prunes or normalises by hooks is a hook.
    """
    if _has_any_global_hook():
        return False
    for module in modules:  # no generators: each would take as long as all of this
        if (
            type(module) is not kind
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
            or module._compiled_call_impl is not None
        ):
            return False
        for p in module._parameters.values():
            if p is not None and type(p) not in _PLAIN_TENSORS:
                return False
    return True


def own_parameter(module: nn.Module | None, *names: str) -> Tensor | None:
    """The first of these parameters that the module has itself and nobody recomputes.

    Replicas of ``nn.DataParallel`` have plain attributes in place of parameters.
    """
    if module is None:
        return None
    held = module.__dict__ if getattr(module, "_is_replica", False) else module._parameters
    for name in names:
        p = held.get(name)
        if p is not None and type(p) in _PLAIN_TENSORS:
            return p
    return None
