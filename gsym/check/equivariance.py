"""How far a map is from commuting with a group: one function measures, one judges.

A map that commutes with the generators commutes with the group, so generators are what is tried.
Where a group has more than :data:`MAX_GENERATORS` of them, as many uniformly random elements are
tried instead: those that commute form a subgroup, and a random element falls outside a proper
subgroup with probability one half or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from gsym.groups import ClusterGroup, PermutationGroup, Representation

MAX_GENERATORS = 64

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}

Layer = Callable[..., Any]
# How an element of the group moves a signal before the layer, and what comes out of it.
Moves = tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
Outputs = dict[str, Tensor]  # by their place in what the layer returns


def equivariance_error(
    layer: Layer,
    group: PermutationGroup,
    x: Tensor,
    *args: Any,
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
) -> float:
    """Largest relative failure of ``layer(g x) = g layer(x)`` over generators g of the group.

    Args:
        layer: Maps a signal ``[..., n, c]`` to a signal ``[..., n, c']``, or to tuples, lists and
            dicts of signals; ``None`` among them is left out. It may differentiate inside, as
            forces do. A module is evaluated in ``eval`` mode and left as it was, gradients
            included.
        group: The permutations to try, acting by ``(g x)[g(i)] = x[i]``.
        x: A signal ``[..., n, c]``; random values, so that nothing agrees by accident.
        *args: Passed on unchanged: the graph is fixed while the signal moves.
        in_rep: How the group moves the channels of ``x`` as well; ``None`` if they stay.
        out_rep: How it moves the channels of every output.

    Returns:
        ``max |f(gx) - g f(x)| / (|f(gx)| + |g f(x)|)``, Frobenius norms in float64; 0 is perfect,
        1 the worst, infinity if an output is not finite. An output that is zero throughout has
        error 0.

    Raises:
        TypeError: The signal is not floating point, an output is not a real tensor.
        ValueError: The signal is empty or does not lie on the nodes of the group; an output has no
            node axis; two calls return different structures.

    Cost:
        One evaluation per generator, at most ``MAX_GENERATORS + 1``, each with the memory of a
        training step, because layers that differentiate inside need it.

    Example:
        >>> group = PermutationGroup.from_cycles(3, [(0, 1, 2)])
        >>> equivariance_error(lambda x: x.cumsum(-2), group, torch.ones(3, 1)) > 0.1
        True

    Reference:
        The metric of Kim et al. 2023, projection-based equivariance regularisers.
    """
    check_inputs(layer, group, x, in_rep, out_rep)
    if not x.numel():
        raise ValueError(f"there is nothing to measure on an empty x; got shape {list(x.shape)}")
    moves = _moves(permutations(group), in_rep, out_rep)
    still = evaluate(layer, x, *args)
    return max((error for error, _ in _errors_from(still, layer, moves, x, *args)), default=0.0)


def assert_equivariant(
    layer: Layer,
    group: PermutationGroup,
    x: Tensor,
    *args: Any,
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
    tolerance: float | None = None,
) -> None:
    """Raise unless ``layer`` commutes with every generator of the group.

    A comparison of nothing does not count: an empty signal fails, and so does a layer of which an
    output is empty, zero throughout or one constant whatever the signal is. The trivial group
    passes, because every map commutes with it.

    Args:
        layer: As in :func:`equivariance_error`.
        group: As in :func:`equivariance_error`.
        x: As in :func:`equivariance_error`.
        *args: As in :func:`equivariance_error`.
        in_rep: As in :func:`equivariance_error`.
        out_rep: As in :func:`equivariance_error`.
        tolerance: Largest relative error allowed; by default :data:`TOLERANCE` of ``x.dtype``.

    Raises:
        AssertionError: Names the permutation that fails worst, and by how much; or says why the
            check is vacuous.
        TypeError: As in :func:`equivariance_error`; a type of ``x`` without a default tolerance.
        ValueError: As in :func:`equivariance_error`, but for an empty signal.
    """
    __tracebackhide__ = True
    check_inputs(layer, group, x, in_rep, out_rep)
    allowed = allowed_error(x, tolerance)
    if not x.numel():
        raise AssertionError(f"vacuous: x is empty, {list(x.shape)}; pass samples and channels")
    still = evaluate(layer, x, *args)
    moves = _moves(permutations(group), in_rep, out_rep)
    found = _errors_from(still, layer, moves, x, *args)
    worst = max(found, key=lambda each: each[0], default=None)
    if worst is None:
        return
    if not worst[0] <= allowed:
        raise AssertionError(
            f"not equivariant: relative error {worst[0]:.2e} (allowed {allowed:.0e}, {x.dtype}) "
            f"under the permutation {_cycles(worst[1])} of {group!r}"
        )
    _check_alive(still, layer, x, *args)


def allowed_error(x: Tensor, tolerance: float | None) -> float:
    """The largest relative error that counts as rounding.

    Raises:
        TypeError: None is given, and there is no default for the type of ``x``.
    """
    allowed = TOLERANCE.get(x.dtype) if tolerance is None else tolerance
    if allowed is None:
        raise TypeError(f"there is no default tolerance for {x.dtype}; pass tolerance=")
    return allowed


def permutations(group: PermutationGroup) -> Iterator[Tensor]:
    """The generators, or random elements where there are too many."""
    many = isinstance(group, ClusterGroup) and group.num_generators > MAX_GENERATORS
    if not many and group.generators.size(0) <= MAX_GENERATORS:
        yield from group.generators
        return
    random = torch.Generator().manual_seed(0)
    for _ in range(MAX_GENERATORS):
        yield group.sample(generator=random)


def errors(
    layer: Layer, perms: Iterable[Tensor], x: Tensor, *args: Any
) -> Iterator[tuple[float, Tensor]]:
    """Relative failure of ``layer(g x) = g layer(x)`` for every permutation g, and g.

    Channels stay where they are.
    """
    still = evaluate(layer, x, *args)
    return _errors_from(still, layer, _moves(perms, None, None), x, *args)


def _moves(
    perms: Iterable[Tensor], in_rep: Representation | None, out_rep: Representation | None
) -> Iterator[Moves]:
    for perm in perms:
        yield perm, partial(act, perm, rep=in_rep), partial(act, perm, rep=out_rep)


def _errors_from(
    still: Outputs, layer: Layer, moves: Iterable[Moves], x: Tensor, *args: Any
) -> Iterator[tuple[float, Tensor]]:
    for perm, before, after in moves:
        yield _distance(evaluate(layer, before(x), *args), still, after), perm


def evaluate(layer: Layer, x: Tensor, *args: Any) -> Outputs:
    """Outputs in eval mode by their place, detached; a module is left as it was."""
    return dict(_outputs(run(layer, x, *args), "the output", x.size(-2)))


def run(layer: Layer, x: Tensor, *args: Any) -> Any:
    """What a layer returns in eval mode; a module is left as it was."""
    x, args = _plain(x), tuple(_plain(a) for a in args)
    with fork_rng(devices=[]), _unchanged(layer) as parameters, _gradients(layer):
        try:
            # Without gradients of the parameters an ordinary layer keeps no graph.
            for parameter, wanted in parameters.items():
                if wanted:
                    parameter.requires_grad_(False)
            return layer(x, *args)
        except RuntimeError:
            # Perhaps it differentiates by its parameters; else this raises the same again.
            for parameter, wanted in parameters.items():
                if wanted:
                    parameter.requires_grad_(True)
            return layer(x, *args)


@contextmanager
def _unchanged(layer: Layer) -> Iterator[dict[nn.Parameter, bool]]:
    """Eval mode within; after it modes, gradients and ``requires_grad`` are as they were.

    Gives the parameters, and whether each wants a gradient.
    """
    modules = list(layer.modules()) if isinstance(layer, nn.Module) else []
    parameters = list(layer.parameters()) if isinstance(layer, nn.Module) else []
    modes = [module.training for module in modules]
    # An inference tensor wants no gradient that it could ever get.
    wanted = {p: p.requires_grad and not p.is_inference() for p in parameters}
    grads = [p.grad for p in parameters]
    for module in modules:
        module.training = False
    for parameter in parameters:
        # A layer that calls backward inside must not add to the gradients of a training loop.
        parameter.grad = None
    try:
        yield wanted
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        for parameter, grad in zip(parameters, grads, strict=True):
            if wanted[parameter]:
                parameter.requires_grad_(True)
            parameter.grad = grad


@contextmanager
def _gradients(layer: Layer) -> Iterator[None]:
    """Gradients within, whatever the caller has switched off, for layers that take some inside."""
    state = [*layer.parameters(), *layer.buffers()] if isinstance(layer, nn.Module) else []
    if any(tensor.is_inference() for tensor in state):
        # Autograd takes no inference tensors, so such a layer cannot differentiate inside.
        with torch.inference_mode():
            yield
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _plain(value: Any) -> Any:
    """A copy that autograd can keep, of what was made in inference mode."""
    if not isinstance(value, Tensor) or not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


def _outputs(value: Any, where: str, num_nodes: int) -> Iterator[tuple[str, Tensor]]:
    if value is None and where != "the output":
        return
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{where} of the layer is complex; return its real and imaginary parts")
        if value.dim() < 2 or value.size(-2) != num_nodes:
            raise ValueError(
                f"{where} of the layer must be a signal [..., {num_nodes}, c] on the nodes; got "
                f"shape {list(value.shape)}; wrap the layer so that it returns signals alone"
            )
        yield where, value.detach()
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _outputs(part, f"{where}[{name!r}]", num_nodes)
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from _outputs(part, f"{where}[{place}]", num_nodes)
    else:
        raise TypeError(
            f"{where} of the layer must be a tensor, or a tuple, list or dict of tensors; got "
            f"{type(value).__name__}"
        )


def check_inputs(
    layer: Layer,
    group: PermutationGroup,
    x: Tensor,
    in_rep: Representation | None,
    out_rep: Representation | None,
) -> None:
    """Refuse a layer, a group or a signal that do not go together."""
    if not callable(layer):
        raise TypeError(f"layer must be a module or a function; got {type(layer).__name__}")
    if not isinstance(group, PermutationGroup):
        raise TypeError(
            f"group must be a PermutationGroup or a ClusterGroup; got {type(group).__name__}"
        )
    for name, rep in (("in_rep", in_rep), ("out_rep", out_rep)):
        if rep is not None and not isinstance(rep, Representation):
            raise TypeError(f"{name} must be a gsym.Representation; got {type(rep).__name__}")
        if rep is not None:
            rep.check_group(group)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [..., n, c]; got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point; got {x.dtype}; convert with x.double()")
    if x.dim() < 2 or x.size(-2) != group.num_nodes:
        raise ValueError(
            f"x must be [..., {group.num_nodes}, c] for {group!r}; got {list(x.shape)}"
        )


def _check_alive(still: Outputs, layer: Layer, x: Tensor, *args: Any) -> None:
    """Refuse outputs of which nothing could be compared."""
    __tracebackhide__ = True
    if not still:
        raise AssertionError("vacuous: the layer returns no tensor")
    fixed = []
    for where, y in still.items():
        if not y.numel():
            raise AssertionError(f"vacuous: {where} is empty, {list(y.shape)}")
        if not bool((y != 0).any()):
            raise AssertionError(
                f"vacuous: {where} is zero throughout, so nothing of it was compared; give the "
                "layer random weights"
            )
        rows = y.reshape(-1, y.size(-1))
        if torch.equal(rows, rows[:1].expand_as(rows)):
            fixed.append(where)
    if not fixed:
        return
    random = torch.Generator().manual_seed(0)
    other = torch.randn(x.shape, generator=random).to(x)
    after = evaluate(layer, other, *args)
    for where in fixed:
        if torch.equal(after[where], still[where]):
            raise AssertionError(
                f"vacuous: {where} is the same at every node whatever the signal is, so it is "
                "equivariant under every group; give the layer random weights"
            )


def _distance(moved: Outputs, still: Outputs, move: Callable[[Tensor], Tensor]) -> float:
    if moved.keys() != still.keys():
        raise ValueError(
            f"the layer returns {list(moved)} for one signal and {list(still)} for another"
        )
    worst = 0.0
    for where, before in still.items():
        after, expected = moved[where], move(before.double())
        if after.shape != expected.shape:
            raise ValueError(
                f"{where} of the layer has shape {list(after.shape)} for one signal and "
                f"{list(expected.shape)} for another"
            )
        worst = max(worst, distance(after, expected))
    return worst


def distance(after: Tensor, expected: Tensor) -> float:
    """``|a - e| / (|a| + |e|)`` in float64; 0 of two zeros, infinite if one is not finite."""
    after, expected = after.double(), expected.double()
    difference = float((after - expected).norm())
    size = float(after.norm() + expected.norm())
    if not math.isfinite(difference) or not math.isfinite(size):
        return math.inf
    return difference / size if size else 0.0


def act(perm: Tensor, x: Tensor, rep: Representation | None = None) -> Tensor:
    """``(g x)[g(i)] = rho(g) x[i]``, channels included where there is a representation."""
    with torch.inference_mode(False), torch.no_grad():
        if rep is not None:
            return rep.act(perm, x)
        moved = torch.empty_like(x)
        moved[..., perm.to(x.device), :] = x
    return moved


def _cycles(perm: Tensor) -> str:
    """Cycle notation, shortened."""
    images, seen, text = perm.tolist(), set(), ""
    for start in range(len(images)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = images[start]
        if len(cycle) > 1:
            text += "(" + " ".join(map(str, cycle)) + ")"
    return text if len(text) <= 80 else text[:77] + "..."
