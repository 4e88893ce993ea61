"""Which back-end runs a primitive, and a record of which ones ran."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gsym.kernels import _cpp, _cpp_library, _plain, _trace, native, reference
from gsym.kernels._transforms import looks_inside
from gsym.kernels.segments import Segments, Tiles

_HAS_TRITON = importlib.util.find_spec("triton") is not None

BACKENDS = ("auto", "reference", "native", "cpp", "torch_scatter", "triton")
# What "auto" is on this machine: where nothing may be compiled, "native".
_AUTO = os.environ.get("GSYM_BACKEND") or "auto"
if _AUTO not in BACKENDS:
    raise ValueError(f"GSYM_BACKEND must be one of {', '.join(BACKENDS)}; got {_AUTO!r}")


class _State(threading.local):
    """What holds in one thread; the compiler can read this, but no ``ContextVar``."""

    default = "auto"


_state = _State()


class BackendUnavailableError(RuntimeError):
    """A back-end was named that cannot run here; the message says what it needs."""


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Let every primitive that is not told otherwise run on one back-end.

    Args:
        name: ``"reference"``, ``"native"``, ``"cpp"``, ``"torch_scatter"`` or ``"triton"``, which
            run or raise, or ``"auto"``. That takes ``"triton"`` on CUDA where it is installed and
            ``"cpp"`` on the CPU where a C++ compiler is found, which builds the kernels once, in
            seconds; and ``"native"``, plain torch, elsewhere. The environment variable
            ``GSYM_BACKEND`` names what ``"auto"`` takes instead.

    ``"cpp"`` and ``"triton"`` have code of their own where it is faster than a call of a library,
    and take plain torch for the rest, as ``"native"`` does; :func:`trace` says which it was.

    - ``"cpp"``, in float32 and float64: ``segment_sum`` and ``segment_mean`` of several segments,
      ``segment_max``, ``gather_segment_sum``, ``indexed_linear``, ``cluster_linear`` with tiles,
      and, of widths of whole vectors outside of the compiler, ``row_mlp`` and ``linear_pair``.
      ``edge_mlp_sum`` and ``subgraph_linear`` from pairs to pairs in every type, and
      ``segment_mean`` of half precision, in float32. No subgraph may be so large that one thread
      had most of the pairs.
    - ``"triton"``, in every type: ``segment_sum``, ``segment_mean``, ``segment_max``,
      ``gather_segment_sum``, ``indexed_linear``, ``cluster_linear`` with tiles, and
      ``edge_mlp_sum`` where an edge fits in registers: h at most 128 and 16 coordinates and
      attributes each; h at most 64 in float32 that is not rounded to TF32, and 32 in float64.

    Raises:
        ValueError: An unknown name.
        BackendUnavailableError: A back-end that cannot run here.

    Example:
        >>> s = gsym.kernels.Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> with gsym.kernels.backend("reference"), gsym.kernels.trace() as ran:
        ...     y = gsym.kernels.segment_sum(torch.ones(3, 1), s)
        >>> ran
        ['reference']
    """
    _module(name)
    before, _state.default = _state.default, name
    try:
        yield
    finally:
        _state.default = before


@contextmanager
def trace() -> Iterator[list[str]]:
    """Collect the name of the back-end whose code computed, one per call of a primitive, in order.

    It is ``"native"`` where ``"cpp"`` or ``"triton"`` was asked for and took plain torch, at least
    for the products; :func:`backend` lists what they compute themselves.

    Gradients are not listed; they run on the back-end that was asked for, except that those of
    ``torch_scatter`` run on ``native``.

    Example:
        >>> s = gsym.kernels.Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> with gsym.kernels.backend("native"), gsym.kernels.trace() as ran:
        ...     y = gsym.kernels.segment_sum(torch.ones(3, 1), s)
        ...     z = gsym.kernels.segment_gather(y, s, backend="reference")
        >>> ran
        ['native', 'reference']
    """
    ran: list[str] = []
    before, _trace.state.record = _trace.state.record, ran
    try:
        yield ran
    finally:
        _trace.state.record = before


def chosen(x: Tensor) -> str:
    """The back-end of a primitive of ``x`` that is not told otherwise."""
    return _fastest(x) if _state.default == "auto" else _state.default


def run(op: str, name: str, x: Tensor, *args: object, **options: object) -> Any:
    """Call the primitive ``op`` of the back-end ``name``, ``"auto"`` being the default in force.

    Autocast is off inside: a primitive computes in the type that it is given.
    """
    name = chosen(x) if name == "auto" else name
    module = _module(name)
    implementation = getattr(module, op, None)
    if implementation is None:
        raise BackendUnavailableError(
            f'the back-end "{name}" has no {op}, only reductions of segments; use backend="auto"'
        )
    if name == "triton" and not (x.is_cuda or module.INTERPRETED):
        raise BackendUnavailableError(
            f'the back-end "triton" runs on CUDA, but the tensors are on {x.device}; move them, or '
            'use backend="auto"'
        )
    if name == "cpp" and x.device.type != "cpu":
        raise BackendUnavailableError(
            f'the back-end "cpp" runs on the CPU, but the tensors are on {x.device}; move them, or '
            'use backend="auto"'
        )
    if name != "reference" and (looks_inside() or any(map(_is_traced, args))):
        module, implementation = native, getattr(_plain, op)
    if _trace.state.record is not None:
        borrowed = module is native or implementation is getattr(native, op, None)
        _trace.state.record.append("native" if borrowed else name)
    if not torch.is_autocast_enabled(x.device.type):
        return implementation(x, *args, **options)
    with torch.autocast(x.device.type, enabled=False):
        return implementation(x, *args, **options)


def _is_traced(value: object) -> bool:
    return isinstance(value, Segments | Tiles) and value.is_traced


def _fastest(x: Tensor) -> str:
    if _AUTO != "auto":
        return _AUTO
    if x.is_cuda and _HAS_TRITON:
        return "triton"
    return "cpp" if x.device.type == "cpu" and _cpp_library.is_usable() else "native"


def _module(name: str) -> ModuleType:
    if name in ("auto", "native"):
        return native
    if name == "reference":
        return reference
    if name == "cpp":
        reason = _cpp_library.why_not()
        if reason is not None:
            raise BackendUnavailableError(
                f'the back-end "cpp" cannot be built: {reason}; use backend="auto"'
            )
        return _cpp
    if name == "torch_scatter":
        try:
            return importlib.import_module("gsym.kernels._torch_scatter")
        except ImportError as error:
            raise BackendUnavailableError(
                'the back-end "torch_scatter" needs the package torch-scatter, the extra '
                f'"scatter": pip install "gsym[scatter]" ({error})'
            ) from error
    if name == "triton":
        if not _HAS_TRITON:
            raise BackendUnavailableError(
                'the back-end "triton" needs the package triton, which PyTorch brings along on '
                'Linux with CUDA: pip install triton; or use backend="auto"'
            )
        from gsym.kernels import _triton  # a statement, which the compiler can follow

        if not (_triton.INTERPRETED or torch.cuda.is_available()):
            raise BackendUnavailableError(
                'the back-end "triton" needs a CUDA device, and there is none; use '
                'backend="auto", or TRITON_INTERPRET=1 to test its kernels on the CPU'
            )
        return _triton
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
