"""The conformance kit that any layer tied along a group must pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.random import fork_rng

from gsym.check.equivariance import assert_equivariant, errors
from gsym.check.report import CheckReport
from gsym.groups import PermutationGroup, Representation


class _Skip(Exception):  # noqa: N818  # a message to the runner, not an error
    pass


def check_layer(
    make_layer: Callable[[PermutationGroup], nn.Module],
    group: PermutationGroup,
    *args: Any,
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
    dimension: int | None = -1,
    compile_backend: str = "aot_eager",
    treatments: str | Iterable[str] = (),
) -> CheckReport:
    """Run the conformance kit that any layer tied along a group must pass.

    Layers that differentiate inside, such as forces, are checked like others; they need
    ``create_graph=True`` or :func:`torch.func.grad` there to be trained.

    - ``equivariant``: commutes with the generators, at random weights;
    - ``equivariant after training``: still, after five steps of Adam;
    - ``not over-tied``: changes under permutations outside the group (over-tied weights do not),
      and, with representations, where an element moves nodes alone and leaves the channels;
    - ``dimension``: the layer is linear up to its bias, and its maps at random weights span
      exactly the theoretical space;
    - ``batch independence``: a batch gives what its samples give alone, in ``eval`` mode;
    - ``live parameters``: what the output depends on is what ``parameters()`` lists, every
      parameter gets a gradient, and every one moves;
    - ``gradcheck`` and ``gradgradcheck`` in float64;
    - ``compile``: ``torch.compile(fullgraph=True)`` gives the same values;
    - ``state_dict``: a round trip gives the same layer;
    - ``dtype``: float32 and float64 agree after ``.to``;
    - ``layouts``: non-contiguous and zero-batch inputs are handled.

    Args:
        make_layer: Builds a fresh layer for a group. The layer has ``in_channels`` and
            ``out_channels`` (few, to keep this quick) and maps ``[b, n, in]`` to ``[b, n, out]``.
        group: A group on a small number of nodes, not the full symmetric group if possible.
        *args: Further arguments of ``forward``, such as ``edge_index``.
        in_rep: How the group moves the channels of the signal; ``None`` if they stay.
        out_rep: How it moves the channels of what comes out.
        dimension: Dimension of the space of linear maps for one pair of channels; by default
            ``group.commutant_dim()``; ``None`` if the layer is not linear in the signal. With
            representations of the whole map, ``group.commutant_dim(in_rep, out_rep)``.
        compile_backend: Compiler back-end of the ``compile`` check.
        treatments: Further ones of :func:`check_module`, such as ``"quick"``.

    Returns:
        The report, if nothing failed.

    Raises:
        AssertionError: One line for each check that failed, and why.

    Cost:
        Seconds for ten nodes and three channels; the dimension check grows like ``n^4``.
    """
    __tracebackhide__ = True
    kit = _Kit(make_layer, group, args, (in_rep, out_rep), dimension, compile_backend)
    report = CheckReport()
    for name, check in kit.checks():
        try:
            with fork_rng(devices=[]):
                check()
        except _Skip as skip:
            report.skipped[name] = str(skip)
        except Exception as error:  # a check may fail in any way; all are reported together
            report.failed[name] = f"{error}".strip().split("\n")[0] or type(error).__name__
        else:
            report.passed.append(name)
    if treatments:
        from gsym.check.module import treat_all

        x = kit.signal(make_layer(group), 2)
        treat_all(lambda: make_layer(group), (x, *args), None, treatments, {}, report)
    if report.failed:
        raise AssertionError(f"the layer fails {len(report.failed)} checks for {group!r}\n{report}")
    return report


class _Kit:
    """The checks of :func:`check_layer` on one layer."""

    def __init__(
        self,
        make_layer: Callable[[PermutationGroup], nn.Module],
        group: PermutationGroup,
        args: tuple[Any, ...],
        reps: tuple[Representation | None, Representation | None],
        dimension: int | None,
        compile_backend: str,
    ) -> None:
        self.make_layer, self.group = make_layer, group
        self.compile_backend = compile_backend
        self.args = tuple(_cast(a, torch.float64) for a in args)
        self.in_rep, self.out_rep = reps
        self.moves_channels = any(rep is not None for rep in reps)
        self.dimension = self._theory() if dimension == -1 else dimension
        self.random = torch.Generator().manual_seed(0)

    def _theory(self) -> int:
        """Dimension of the equivariant maps: for one pair of channels, or for all that move."""
        if not self.moves_channels:
            return self.group.commutant_dim()
        layer = self.make_layer(self.group)
        widths = _widths(layer)
        sides = [
            Representation.trivial(self.group, width) if rep is None else rep
            for rep, width in zip((self.in_rep, self.out_rep), widths, strict=True)
        ]
        return self.group.commutant_dim(*sides)

    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("equivariant", self.equivariant),
            ("equivariant after training", self.equivariant_after_training),
            ("not over-tied", self.is_not_over_tied),
            ("dimension", self.spans_the_commutant),
            ("batch independence", self.is_independent_of_the_batch),
            ("live parameters", self.live_parameters),
            ("gradcheck", self.gradients),
            ("gradgradcheck", self.second_gradients),
            ("compile", self.compiles),
            ("state_dict", self.state_round_trip),
            ("dtype", self.dtypes),
            ("layouts", self.layouts),
        ]

    def layer(self) -> nn.Module:
        """A fresh layer in float64 with random parameters, biases included."""
        layer = self.make_layer(self.group).double()
        self.randomise(layer)
        return layer

    def randomise(self, layer: nn.Module) -> None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=self.random))

    def signal(self, layer: nn.Module, *batch: int) -> Tensor:
        shape = (*batch, self.group.num_nodes, _in_channels(layer))
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def equivariant(self) -> None:
        layer = self.layer()
        self.commutes(layer)

    def commutes(self, layer: nn.Module) -> None:
        x, first, second = self.signal(layer, 2), self.in_rep, self.out_rep
        assert_equivariant(layer, self.group, x, *self.args, in_rep=first, out_rep=second)

    def equivariant_after_training(self) -> None:
        layer = self.layer()
        self.train(layer)
        self.commutes(layer)

    def train(self, layer: nn.Module) -> None:
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        x = self.signal(layer, 8)
        target = torch.randn(layer(x, *self.args).shape, generator=self.random).double()
        for _ in range(5):
            optimiser.zero_grad()
            (layer(x, *self.args) - target).square().mean().backward()
            optimiser.step()

    def is_not_over_tied(self) -> None:
        outsiders = list(_outsiders(self.group, self.random))
        if not outsiders:
            raise _Skip("no permutation outside the group moves its pair orbits")
        layer = self.layer()
        x = self.signal(layer, 2)
        found = [error for error, _ in errors(layer, outsiders, x, *self.args)]
        median = float(torch.tensor(found).median())
        assert median > 1e-2, (
            f"median error {median:.1e} under permutations outside the group: weights are tied "
            "that the group leaves free"
        )
        alone = [perm for perm in self.group.generators if self._moves_channels(perm)]
        for error, perm in errors(layer, alone, x, *self.args):
            assert error > 1e-2, (
                f"error {error:.1e} where {perm.tolist()} moves nodes and leaves their channels: "
                "the layer does not notice the representation"
            )

    def _moves_channels(self, perm: Tensor) -> bool:
        matrices = [rep.matrix(perm) for rep in (self.in_rep, self.out_rep) if rep is not None]
        return any(not torch.allclose(m, torch.eye(len(m)).to(m)) for m in matrices)

    def spans_the_commutant(self) -> None:
        if self.dimension is None:
            raise _Skip("the layer is not linear in the signal")
        layer = self.layer()
        n = self.group.num_nodes
        widths = _widths(layer)
        expected = self.dimension if self.moves_channels else self.dimension * math.prod(widths)
        basis = torch.eye(n * widths[0], dtype=torch.float64).view(-1, n, widths[0])
        maps = []
        with torch.no_grad():
            x, y = self.signal(layer, 2), self.signal(layer, 2)
            # f(2x - y) + f(y) = 2 f(x) holds for affine maps alone.
            one = layer(2 * x - y, *self.args) + layer(y, *self.args)
            sides = one, 2 * layer(x, *self.args)
            assert torch.allclose(*sides, rtol=1e-8, atol=1e-8), (
                "the layer is not linear in the signal; pass dimension=None if it need not be"
            )
            for _ in range(expected + 2):
                self.randomise(layer)
                offset = layer(torch.zeros_like(basis[:1]), *self.args)
                maps.append((layer(basis, *self.args) - offset).flatten())
        rank = int(torch.linalg.matrix_rank(torch.stack(maps), rtol=1e-9))
        assert rank == expected, f"the maps span {rank} dimensions; the theory says {expected}"

    def is_independent_of_the_batch(self) -> None:
        layer = self.layer().eval()
        x = self.signal(layer, 3)
        alone = torch.cat([layer(sample[None], *self.args) for sample in x])
        torch.testing.assert_close(layer(x, *self.args), alone)

    def live_parameters(self) -> None:
        layer = self.layer()
        listed = {id(p): name for name, p in layer.named_parameters()}
        x = self.signal(layer, 4)
        output = layer(x, *self.args)
        # A layer that differentiates inside makes a leaf of the signal itself.
        hidden = [
            leaf for leaf in _leaves(output) if id(leaf) not in listed and not torch.equal(leaf, x)
        ]
        assert not hidden, (
            f"the output depends on a trainable tensor of shape {list(hidden[0].shape)} that "
            "parameters() does not list, so no optimiser moves it"
        )
        before = copy.deepcopy(layer.state_dict())
        output.square().mean().backward()
        for name, parameter in layer.named_parameters():
            seen = parameter.grad is not None and bool((parameter.grad != 0).any())
            assert seen, f"parameter {name} receives no gradient"
        self.train(layer)
        for name, parameter in layer.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved, f"parameter {name} does not move in five optimiser steps"

    def _function(self, layer: nn.Module) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        names = [name for name, _ in layer.named_parameters()]

        def function(x: Tensor, *values: Tensor) -> Tensor:
            parameters = dict(zip(names, values, strict=True))
            return functional_call(layer, parameters, (x, *self.args))

        x = self.signal(layer, 1).requires_grad_()
        return function, (x, *(p.detach().requires_grad_() for p in layer.parameters()))

    def gradients(self) -> None:
        assert gradcheck(*self._function(self.layer()))

    def second_gradients(self) -> None:
        assert gradgradcheck(*self._function(self.layer()))

    def compiles(self) -> None:
        layer = self.layer()
        x = self.signal(layer, 2)
        expected = layer(x, *self.args)
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend=self.compile_backend)
        try:
            value = compiled(x, *self.args)
        except torch._dynamo.exc.Unsupported as error:
            if "torch.autograd.grad" not in str(error):
                raise
            raise _Skip(
                "torch.compile(fullgraph=True) does not trace torch.autograd.grad inside a layer, "
                "but torch.func.grad"
            ) from error
        torch.testing.assert_close(value, expected)

    def state_round_trip(self) -> None:
        layer, other = self.layer(), self.layer()
        other.load_state_dict(copy.deepcopy(layer.state_dict()))
        x = self.signal(layer, 2)
        assert torch.equal(layer(x, *self.args), other(x, *self.args)), "the loaded layer differs"

    def dtypes(self) -> None:
        layer = self.layer()
        x = self.signal(layer, 2)
        wide = layer(x, *self.args)
        narrow = layer.float()(x.float(), *(_cast(a, torch.float32) for a in self.args))
        assert narrow.dtype == torch.float32, f"float32 input gives {narrow.dtype}"
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)

    def layouts(self) -> None:
        layer = self.layer()
        x = self.signal(layer, 3)
        strided = x.transpose(0, 2).contiguous().transpose(0, 2)
        torch.testing.assert_close(layer(strided, *self.args), layer(x, *self.args))
        expanded = x[:1].expand(3, -1, -1)
        torch.testing.assert_close(
            layer(expanded, *self.args), layer(expanded.contiguous(), *self.args)
        )
        empty = layer(self.signal(layer, 0), *self.args)
        shape = (0, self.group.num_nodes, layer.out_channels)
        assert tuple(empty.shape) == shape, f"a zero batch gives shape {list(empty.shape)}"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def _outsiders(group: PermutationGroup, random: torch.Generator) -> Iterator[Tensor]:
    """Random permutations that move the pair orbits, so that an equivariant map must change.

    A permutation outside the group that moves no pair orbit cannot be told from an element by
    any linear map (the alternating group and the symmetric group have equal orbits).
    """
    pairs = group.pair_orbits().index
    for _ in range(32):
        perm = torch.randperm(group.num_nodes, generator=random)
        if not torch.equal(pairs[perm][:, perm], pairs):
            yield perm


def _leaves(output: Tensor) -> list[Tensor]:
    """Tensors at which the autograd graph of ``output`` accumulates gradients."""
    found, seen, stack = [], set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(next_node for next_node, _ in node.next_functions)
    return found


def _widths(layer: Any) -> tuple[int, int]:
    """Channels that a layer takes and gives."""
    return _in_channels(layer), int(layer.out_channels)


def _in_channels(layer: Any) -> int:
    return int(layer.in_channels)
