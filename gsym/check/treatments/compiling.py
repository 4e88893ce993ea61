"""Compilers and exporters, without a call before."""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsym.check.subject import Comparison, Skip, Subject, compare, gradients

NAMESPACES = {"aten", "prims", "_operator", "math"}


def compiled_eager(subject: Subject) -> Iterator[Comparison]:
    """``torch.compile(fullgraph=True, backend="eager")``."""
    yield from _compiled(subject, "eager")


def compiled(subject: Subject) -> Iterator[Comparison]:
    """``torch.compile(fullgraph=True, backend="aot_eager")``, gradients included."""
    yield from _compiled(subject, "aot_eager")


def inductor(subject: Subject) -> Iterator[Comparison]:
    """``torch.compile(fullgraph=True)`` with the default compiler."""
    yield from _compiled(subject, "inductor")


def _compiled(subject: Subject, backend: str) -> Iterator[Comparison]:
    torch.compiler.reset()
    try:
        layer = subject.layer()
        run = torch.compile(layer, fullgraph=True, backend=backend)
        if backend != "eager":
            found = gradients(run, subject.arguments(), list(layer.parameters()))
            yield "gradients", found, subject.gradient()
        yield "values", run(*subject.arguments()), subject.value()
        if backend != "eager" and subject.has_batch:
            args = larger(subject)
            yield "another batch size", run(*args), subject.value(args)
        if subject.has_other_args:
            args = subject.arguments(other=True)
            yield "another graph", run(*args), subject.value(args)
            yield "the first again", run(*subject.arguments()), subject.value()
    finally:
        torch.compiler.reset()


def larger(subject: Subject) -> tuple[Any, ...]:
    """Arguments with a larger batch."""
    places = subject.batched()
    args = subject.arguments()
    return tuple(
        torch.cat([a, a.flip(0) / 2, a[:1]]) if i in places else a for i, a in enumerate(args)
    )


class _Fixed(nn.Module):
    """The module on one graph, a constant of what is exported."""

    def __init__(self, layer: nn.Module, args: tuple[Any, ...], places: list[int]) -> None:
        super().__init__()
        self.layer, self.places, self.size = layer, places, len(args)
        for place in places:
            self.register_buffer(f"graph_{place}", args[place])

    def forward(self, *given: Any) -> Any:
        rest = iter(given)
        args = [
            getattr(self, f"graph_{i}") if i in self.places else next(rest)
            for i in range(self.size)
        ]
        return self.layer(*args)


def exported(subject: Subject) -> Iterator[Comparison]:
    """``torch.export``, strict and not, the graph as an input, dynamic batch; plain ATen."""
    for strict in (False, True):
        program = _export(subject, subject.layer(), subject.arguments(), strict)
        what = "strict" if strict else "not strict"
        run = program.module()
        yield what, run(*subject.arguments()), subject.value()
        if subject.has_batch:
            args = larger(subject)
            yield f"{what}: another batch size", run(*args), subject.value(args)
        if subject.has_other_args:
            args = subject.arguments(other=True)
            yield f"{what}: another graph", run(*args), subject.value(args)
        plain = program.run_decompositions()
        yield f"{what}: operators outside ATen", _foreign(plain), []
        yield f"{what}: decomposed", plain.module()(*subject.arguments()), subject.value()


def exported_constant(subject: Subject) -> Iterator[Comparison]:
    """``torch.export``, strict and not, of the module on one graph, a constant."""
    places = subject.whole()
    if not places:
        raise Skip("takes no integer tensor")
    for strict in (False, True):
        given = subject.arguments()
        layer = _Fixed(subject.layer(), given, places)
        args = tuple(a for i, a in enumerate(given) if i not in places)
        program = _export(subject, layer, args, strict, without=places)
        what = "strict" if strict else "not strict"
        yield what, program.module()(*args), subject.value()
        if subject.has_batch:
            more = tuple(a for i, a in enumerate(larger(subject)) if i not in places)
            right = subject.value(larger(subject))
            yield f"{what}: another batch size", program.module()(*more), right
        plain = program.run_decompositions()
        yield f"{what}: operators outside ATen", _foreign(plain), []
        yield f"{what}: decomposed", plain.module()(*args), subject.value()


def _shapes(subject: Subject, without: list[int] = []) -> Any:  # noqa: B006  # never written
    """Dynamic shapes: the batch axis, if there is one."""
    if not subject.has_batch:
        return None
    batch, places = torch.export.Dim("batch", min=2, max=4096), subject.batched()
    shapes = [{0: batch} if i in places else None for i in range(len(subject.args))]
    return tuple(shape for i, shape in enumerate(shapes) if i not in without)


def _export(
    subject: Subject,
    layer: nn.Module,
    args: tuple[Any, ...],
    strict: bool,
    without: list[int] = [],  # noqa: B006  # never written
) -> Any:
    shapes = _shapes(subject, without)
    if isinstance(layer, _Fixed) and shapes is not None:
        shapes = (shapes,)  # of *given
    return torch.export.export(layer, args, dynamic_shapes=shapes, strict=strict)


def _foreign(program: Any) -> list[str]:
    """Operators that other runtimes do not know."""
    targets = {n.target for n in program.graph.nodes if n.op == "call_function"}
    names = {
        target.namespace if hasattr(target, "namespace") else target.__module__
        for target in targets
    }
    return sorted(names - NAMESPACES)


def onnx(subject: Subject) -> Iterator[Comparison]:
    """``torch.onnx.export(dynamo=True)`` run by onnxruntime, the graph as an input."""
    runtime = _optional("onnxruntime")
    _optional("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    args = subject.arguments()
    program = torch.onnx.export(
        subject.layer(), args, dynamo=True, dynamic_shapes=_shapes(subject), verbose=False
    )
    assert program is not None
    model = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(args: tuple[Any, ...]) -> list[Tensor]:
        names = [one.name for one in session.get_inputs()]
        given = [a.numpy() for a in args if isinstance(a, Tensor)]
        return [
            torch.from_numpy(y) for y in session.run(None, dict(zip(names, given, strict=True)))
        ]

    yield "values", run(args), subject.value()
    compare(run(args), subject.value(), 1e-5)
    if subject.has_batch:
        more = larger(subject)
        yield "another batch size", run(more), subject.value(more)
    if subject.has_other_args:
        other = subject.arguments(other=True)
        yield "another graph", run(other), subject.value(other)


def ahead_of_time(subject: Subject) -> Iterator[Comparison]:
    """AOTInductor on the CPU: a package compiled, loaded and run."""
    program = _export(subject, subject.layer(), subject.arguments(), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "layer.pt2")
        )
        run = torch._inductor.aoti_load_package(path)
        yield "values", run(*subject.arguments()), subject.value()
        if subject.has_batch:
            args = larger(subject)
            yield "another batch size", run(*args), subject.value(args)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Skip(f"needs {name}: pip install {name}") from None
