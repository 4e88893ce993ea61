"""Copies, other memory and other graphs: what must not carry tables of another call along."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gsym.check.subject import Comparison, Skip, Subject, compare, fill, same


def deep_copy(subject: Subject) -> Iterator[Comparison]:
    """``deepcopy``, then other weights or another graph."""
    layer = subject.layer()
    layer(*subject.arguments())
    twin, other = copy.deepcopy(layer), subject.draw()
    yield from same(subject, twin, "the copy")
    fill(layer, other)
    yield "the original after other weights", twin(*subject.arguments()), subject.value()
    twin.load_state_dict(subject.layer(weights=other).state_dict())
    yield "other weights", twin(*subject.arguments()), subject.value(weights=other)
    if subject.has_other_args:
        args = subject.arguments(other=True)
        yield "another graph", twin(*args), subject.value(args, other)
        right = subject.value(weights=other)
        yield "the first graph again", layer(*subject.arguments()), right


def pickled(subject: Subject) -> Iterator[Comparison]:
    """A pickle round trip, before and after a call."""
    layer = subject.layer()
    yield from same(subject, pickle.loads(pickle.dumps(layer)), "before a call")
    layer(*subject.arguments())
    twin = pickle.loads(pickle.dumps(layer))
    yield from same(subject, twin, "after a call")
    if subject.has_other_args:
        args = subject.arguments(other=True)
        yield "another graph", twin(*args), subject.value(args)


def graph_rewritten(subject: Subject) -> Iterator[Comparison]:
    """Writes into the graph in place, among them those that no version counter sees."""
    other = subject.arguments(other=True)
    places = subject.whole()
    if not places:
        raise Skip("takes no integer tensor")
    right = subject.value(other)

    def numpy(given: Tensor, new: Tensor) -> None:
        given.numpy()[...] = new.numpy()

    def swap(given: Tensor, new: Tensor) -> None:
        torch.utils.swap_tensors(given, new.clone())

    def data(given: Tensor, new: Tensor) -> None:
        given.data = new.clone()

    ways: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "NumPy memory": numpy,
        ".data.copy_": lambda given, new: given.data.copy_(new),
        ".data =": data,
        "swap_tensors": swap,
        "copy_": lambda given, new: given.copy_(new),
        "copy_ in inference mode": lambda given, new: given.copy_(new),
    }
    for what, write in ways.items():
        layer, args = subject.layer(), list(subject.arguments())
        if "NumPy" in what:
            for place in places:
                args[place] = torch.from_numpy(args[place].numpy().copy())
        layer(*args)
        with torch.inference_mode("inference" in what):
            for place in places:
                write(args[place], other[place])
        for place in set(range(len(args))) - set(places):
            args[place] = other[place]
        yield what, layer(*args), right


def threads(subject: Subject) -> Iterator[Comparison]:
    """One module in four threads, with changing arguments."""
    layer = subject.layer()
    given = [subject.arguments()]
    if subject.has_other_args:
        given.append(subject.arguments(other=True))
    right = [subject.value(args) for args in given]
    calls, wrong = 0, []
    together = threading.Barrier(4)

    def work(worker: int) -> None:
        nonlocal calls
        together.wait()
        for call in range(100):
            # Each changes its arguments at another pace, so that all orders occur.
            turn = call // (worker + 1) % len(given)
            args = tuple(a.clone() if isinstance(a, Tensor) else a for a in given[turn])
            try:
                with torch.no_grad():
                    compare(layer(*args), right[turn])
            except Exception as error:  # raised again outside the thread
                wrong.append(error)
            calls += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    if wrong:
        raise AssertionError(f"{len(wrong)} of {calls} calls went wrong: {wrong[0]}")
    yield from same(subject, layer, "afterwards")


def to_empty(subject: Subject) -> Iterator[Comparison]:
    """``to_empty`` and ``load_state_dict``, with ``assign=True`` or without."""
    state = subject.layer().state_dict()
    for assign in (False, True):
        layer = subject.layer(weights=subject.draw())
        layer(*subject.arguments())
        layer.to_empty(device="cpu")
        _spoil(layer)
        layer.load_state_dict(copy.deepcopy(state), assign=assign)
        yield from same(subject, layer, f"assign={assign}")


def meta(subject: Subject) -> Iterator[Comparison]:
    """Construction on ``meta``, then ``to_empty`` or ``assign=True``."""
    state = subject.layer().state_dict()
    with torch.device("meta"):
        empty, assigned = subject.make().eval(), subject.make().eval()
    empty.to_empty(device="cpu")
    _spoil(empty)
    empty.load_state_dict(copy.deepcopy(state))
    yield from same(subject, empty, "to_empty")
    assigned.load_state_dict(copy.deepcopy(state), assign=True)
    yield from same(subject, assigned, "assign=True")


def default_device(subject: Subject) -> Iterator[Comparison]:
    """A first call while another default device is set."""
    layer = subject.layer()
    args = subject.arguments()
    with torch.device("meta"):
        value = layer(*args)
    yield "within torch.device('meta')", value, subject.value()
    yield from same(subject, layer, "afterwards")


def cast_in_place(subject: Subject) -> Iterator[Comparison]:
    """``Module.type``, ``.double`` and ``.half`` after a call, and back."""
    for what in ("type", "double"):
        layer = subject.layer()
        layer(*subject.arguments())
        layer.type(torch.float64) if what == "type" else layer.double()
        fill(layer, subject.weights)
        yield from same(subject, layer, what, torch.float64)
    layer = subject.layer()
    layer.half().float()
    rounded = {name: w.half().double() for name, w in subject.weights.items()}
    yield "half and back", layer(*subject.arguments()), subject.value(weights=rounded)


def shared_memory(subject: Subject) -> Iterator[Comparison]:
    """``share_memory``, as for worker processes."""
    layer = subject.layer()
    layer(*subject.arguments())
    yield from same(subject, layer.share_memory(), "shared")


def swapped(subject: Subject) -> Iterator[Comparison]:
    """Casting and loading by ``torch.utils.swap_tensors``."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer = subject.layer(weights=subject.draw())
        layer(*subject.arguments())
        layer.load_state_dict(subject.layer().state_dict())
        yield from same(subject, layer, "load_state_dict")
        layer.double()
        fill(layer, subject.weights)
        yield from same(subject, layer, "double", torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@torch.no_grad()
def _spoil(layer: nn.Module) -> None:
    """Fill memory that nobody has filled, which may hold the old values by chance."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.zero_()
