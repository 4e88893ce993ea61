"""What a back-end is, which one runs a primitive, and a record of which ones ran."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch

from gsym.errors import BackendUnavailableError
from gsym.kernels import cpp, native, reference
from gsym.kernels.cpp import library

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_WHERE = {"cpu": "the CPU", "cuda": "CUDA"}


def _nothing_lacks() -> None:
    """Say that nothing is lacking."""


@dataclass(frozen=True)
class Backend:
    """Raw loops under one name, which :mod:`gsym.kernels._operators` makes differentiable.

    A loop is a function of plain tensors that knows nothing of gradients, transforms, autocast
    and compilers. It gets one batch axis, tensors of any strides on one device, and tables that
    fit them; it returns new memory, and the same bits each time. There may be a loop of any of

    - ``segment_sum(x [b, e, c], index, order, pointers, dtype)``: sums ``[b, s, c]``, which
      accumulate in float32 at least and are rounded to ``dtype`` once;
    - ``segment_max(x, index, order, pointers)``: maxima, 0 of an empty segment;
    - ``tie_spread(g [b, s, c], x, y [b, s, c], index, order, pointers)``: rows of ``g`` shared
      among the rows of ``x`` that hold the maximum ``y``;
    - ``gather_sum(x [b, n, c], weight, columns, order, pointers)``: a sparse matrix times ``x``;
      ``weight`` is ``[e]``, ``[b, e]`` or ``None``, in the order that ``order`` sorts;
    - ``gather_dot(y [b, s, c], x [b, n, c], columns, order, pointers, index, source)``: its
      gradient ``[b, e]``;
    - ``indexed_linear(x [b, r, in], weight [s, in, out], shared, tiles, is_sorted)``: rows times
      the matrix, plus the row ``[b, s, out]`` if there is one, of their segment;
    - ``indexed_outer(x [b, r, in], y [b, r, out], tiles, is_sorted)``: its gradient;
    - ``row_mlp(tensors)`` and ``row_mlp_grads(tensors, grad)``, ``linear_pair(tensors)`` and
      ``linear_pair_grads(tensors, by_y, by_z)``: of tensors in the order of the operators;
    - ``edge_mlp_sum(stage, tables)``: messages and moves, which are empty without ``coord``, and
      ``edge_mlp_grads(stage, tables, grad_total, grad_moved)``: the gradients by name;
    - ``egnn_step(step)``: features, coordinates and what ``egnn_step_grads(step, kept, grad_x,
      grad_pos)``, the gradients by name, needs of them, see :mod:`gsym.kernels.steps`;
    - ``subgraph_linear(tensors, tables)`` and ``subgraph_linear_grads(tensors, tables, grad)``:
      the map of pairs to pairs, of tensors in the order of the operator;
    - ``lifted_maps(tensors, tables)`` and ``lifted_maps_grads(tensors, tables, by_pair, by_node,
      wanted)``: maps on ego-networks averaged, as the operators of :mod:`gsym.kernels.lifted`;
    - ``graph_sums(x, tables)`` and ``graph_spread(grad, tables)``: traces and totals of pairs on
      ego-networks, see there;
    - ``adapted_linear(x, weight, program, numbers)`` and ``adapted_linear_grads(x, weight, program,
      numbers, grad, wanted)``: products in blocks, see :mod:`gsym.kernels.adapted`;
    - ``elu_norm(tensors, tables, eps)``, rows and what ``elu_norm_grads(tensors, stored, tables,
      eps, grad)`` needs of them, of sorted rows and tensors in the order of the operator.

    To add a back-end, write a module with some of these and list it in ``BACKENDS``; the rows that
    it does not compute are those of ``native``, and the rest is composed of torch. The parity
    suite in ``tests/kernels`` tests it against :mod:`gsym.kernels.reference`.

    Attributes:
        name: By which users ask for it.
        load: Imports the module of the loops, at first use. Besides loops it has ``takes(op,
            *given, dtype=None)``: whether it computes an operator of these tensors, or of ones of
            that type.
        lacks: Says what is needed to run here, or ``None`` where nothing is.
        devices: Types of devices that it runs on; all if there are none.
        primitives: What it offers; all if there are none.
        pools: Whether it sums a single segment itself. Otherwise torch does, and the gradient is
            a view.
        sorts: Whether equal clusters are better sorted into runs than left where their rows lie.
    """

    name: str
    load: Callable[[], Any]
    lacks: Callable[[], str | None] = _nothing_lacks
    devices: Callable[[], tuple[str, ...]] = tuple
    primitives: tuple[str, ...] = ()
    pools: bool = True
    sorts: bool = True

    @cached_property
    def loops(self) -> Any:
        """The module of the loops."""
        return self.load()

    def takes(self, op: str, *given: Any, dtype: torch.dtype | None = None) -> bool:
        """Whether it has a loop for an operator of these operands."""
        loops = self.loops
        return hasattr(loops, op) and loops.takes(op, *given, dtype=dtype)


def loop(name: str, op: str, *given: Any, dtype: torch.dtype | None = None) -> Callable[..., Any]:
    """The loop of a back-end for an operator of what is given, or that of ``native``."""
    loops = BACKENDS[name].loops
    own = getattr(loops, op, None)
    if own is not None and loops.takes(op, *given, dtype=dtype):
        return own
    return getattr(native, op)


def _cpp_lacks() -> str | None:
    reason = library.why_not()
    if reason is None:
        return None
    return f'the back-end "cpp" cannot be built: {reason}; use backend="auto"'


def _triton() -> ModuleType:
    from gsym.kernels import triton  # a statement, which the compiler can follow

    return triton


def _triton_lacks() -> str | None:
    if not _HAS_TRITON:
        return (
            'the back-end "triton" needs the package triton, which PyTorch brings along on '
            'Linux with CUDA: pip install triton; or use backend="auto"'
        )
    if not (_triton().INTERPRETED or torch.cuda.is_available()):
        return (
            'the back-end "triton" needs a CUDA device, and there is none; use backend="auto", '
            "or TRITON_INTERPRET=1 to test its kernels on the CPU"
        )
    return None


def _triton_devices() -> tuple[str, ...]:
    return () if _triton().INTERPRETED else ("cuda",)


def _torch_scatter() -> ModuleType:
    return importlib.import_module("gsym.kernels.torch_scatter")


def _torch_scatter_lacks() -> str | None:
    try:
        _torch_scatter()
    except ImportError as error:
        return (
            'the back-end "torch_scatter" needs the package torch-scatter, the extra "scatter": '
            f'pip install "gsym[scatter]" ({error})'
        )
    return None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("reference", lambda: reference),
        Backend("native", lambda: native, pools=False),
        Backend("cpp", lambda: cpp, _cpp_lacks, lambda: ("cpu",), pools=False, sorts=False),
        Backend(
            "torch_scatter",
            _torch_scatter,
            _torch_scatter_lacks,
            primitives=("segment_sum", "segment_mean", "segment_max"),
        ),
        Backend("triton", _triton, _triton_lacks, _triton_devices),
    )
}
_NAMES = ("auto", *BACKENDS)
# What "auto" is on this machine: where nothing may be compiled, "native".
_AUTO = os.environ.get("GSYM_BACKEND") or "auto"
if _AUTO not in _NAMES:
    raise ValueError(f"GSYM_BACKEND must be one of {', '.join(_NAMES)}; got {_AUTO!r}")


class _State(threading.local):
    """What holds in one thread; the compiler can read this, but no ``ContextVar``."""

    default = "auto"
    record: list[str] | None = None


STATE = _State()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every primitive that names no back-end itself on one back-end.

    Args:
        name: ``"reference"``, ``"native"``, ``"cpp"``, ``"torch_scatter"`` or ``"triton"``, which
            run or raise, or ``"auto"``. That takes ``"triton"`` on CUDA where it is installed and
            ``"cpp"`` on the CPU where a C++ compiler is found, which builds the kernels once, in
            seconds; and ``"native"``, plain torch, elsewhere. The environment variable
            ``GSYM_BACKEND`` names what ``"auto"`` takes instead.

    ``"cpp"`` and ``"triton"`` compute what is listed here and fall back to plain torch, which is
    ``"native"``, for the rest; :func:`trace` says which it was.

    - ``"cpp"``, in float32 and float64: ``segment_sum`` and ``segment_mean`` of several segments,
      ``segment_max``, ``gather_segment_sum``, ``indexed_linear``, ``cluster_linear`` with tiles,
      and, outside of the compiler, ``row_mlp``, ``linear_pair`` and the blocks of an adapted basis,
      of widths that are multiples of the SIMD width.
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
    if name != "auto":
        _named(name)
    before, STATE.default = STATE.default, name
    try:
        yield
    finally:
        STATE.default = before


@contextmanager
def trace() -> Iterator[list[str]]:
    """Collect the name of the back-end whose code computed, one per call of a primitive, in order.

    It is ``"native"`` where ``"cpp"`` or ``"triton"`` was asked for and took plain torch, at least
    for the products; :func:`backend` lists what they compute themselves.

    Gradients are not listed; they run on the back-end that was asked for.

    Example:
        >>> s = gsym.kernels.Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> with gsym.kernels.backend("native"), gsym.kernels.trace() as ran:
        ...     y = gsym.kernels.segment_sum(torch.ones(3, 1), s)
        ...     z = gsym.kernels.segment_gather(y, s, backend="reference")
        >>> ran
        ['native', 'reference']
    """
    ran: list[str] = []
    before, STATE.record = STATE.record, ran
    try:
        yield ran
    finally:
        STATE.record = before


def choose(name: str, op: str, kind: str) -> Backend:
    """The back-end of a primitive on a kind of device, ``"auto"`` being the default in force."""
    if name == "auto":
        name = _AUTO if STATE.default == "auto" else STATE.default
        if name == "auto":
            if kind == "cuda" and _HAS_TRITON:
                return BACKENDS["triton"]
            return BACKENDS["cpp" if kind == "cpu" and library.is_usable() else "native"]
    chosen = _named(name)
    if chosen.primitives and op not in chosen.primitives:
        raise BackendUnavailableError(
            f'the back-end "{chosen.name}" has no {op}, only reductions of segments; use '
            'backend="auto"'
        )
    devices = chosen.devices()
    if devices and kind not in devices:
        raise BackendUnavailableError(
            f'the back-end "{chosen.name}" runs on {_WHERE[devices[0]]}, but the tensors are on '
            f'{kind}; move them, or use backend="auto"'
        )
    return chosen


def tell(chosen: Backend, op: str, *given: Any, dtype: torch.dtype | None = None) -> None:
    """Record in the trace under way a call whose loops are those of ``native``."""
    if not chosen.takes(op, *given, dtype=dtype):
        in_plain_torch()


def in_plain_torch() -> None:
    """Record that the call under way falls back to plain torch."""
    if STATE.record:
        STATE.record[-1] = "native"


def _named(name: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_NAMES)}; got {name!r}")
    named = BACKENDS[name]
    reason = named.lacks()
    if reason is not None:
        raise BackendUnavailableError(reason)
    return named
