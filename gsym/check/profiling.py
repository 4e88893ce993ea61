"""Where a model loses a symmetry: the error of every submodule at every level of a chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from gsym._validate import optional_module, warn
from gsym.check.equivariance import (
    act,
    allowed_error,
    check_inputs,
    distance,
    permutations,
    run,
)
from gsym.groups import ClusterGroup, PermutationGroup
from gsym.groups.levels import level_name, read_levels

# Of a group with more generators as many random elements are tried: a random element falls outside
# a proper subgroup, such as that which a model keeps, with probability one half or more.
_MOVES = 8


@dataclass(frozen=True)
class ModuleProfile:
    """How symmetric what goes into and out of one submodule is, at every level.

    Attributes:
        name: Its name in the model; empty for the model itself.
        kind: Its class.
        calls: How often the model calls it; 0 if never.
        axis: Where its outputs have nodes: ``"-2"``; ``"-2, -1"`` for pairs; ``"in -1"`` for
            nodes within a longer axis, as in signals laid flat or stacked; ``"none"`` where there
            are no nodes, so that outputs should not change at all, and where an axis happens to be
            as long but they do not change.
        errors: Largest relative error of its outputs by level: equivariance error where there are
            nodes, change where there are none; NaN if it gives no numbers.
        inputs: The same of what it is given, without integers such as a graph.
    """

    name: str
    kind: str
    calls: int
    axis: str
    errors: tuple[float, ...]
    inputs: tuple[float, ...]

    @property
    def label(self) -> str:
        """Its name, or that it is the model."""
        return self.name or "(model)"


@dataclass(frozen=True)
class Profile:
    """Where a model loses which symmetry; prints as a table.

    Attributes:
        levels: The groups.
        modules: All submodules in the order in which they first give an output, a part before
            what it is part of; then those that are never called.
        tolerance: Largest error that counts as rounding.
    """

    levels: tuple[PermutationGroup, ...]
    modules: tuple[ModuleProfile, ...]
    tolerance: float

    @property
    def names(self) -> tuple[str, ...]:
        """The levels in two or three words each."""
        return tuple(map(level_name, self.levels))

    @property
    def first_lost(self) -> tuple[ModuleProfile | None, ...]:
        """For every level that the model breaks, the first submodule that does.

        It gives what is not symmetric, of symmetric inputs; a part is named before the whole.
        """
        return tuple(map(self._first_lost, range(len(self.levels))))

    def _first_lost(self, level: int) -> ModuleProfile | None:
        broken = [m for m in self.modules if m.errors[level] > self.tolerance]
        if not any(m.name == "" for m in broken):
            # What parts hand on need not lie on nodes: means of clusters may change places.
            return None
        found = [m for m in broken if not m.inputs[level] > self.tolerance]
        first = (found or broken)[0]
        for module in found:
            # Nor need what changes without nodes be wrong, such as messages along edges: another
            # that is wrong of itself is named before it.
            if first.axis == "none" and module.axis != "none" and not _holds(module, first):
                return module
        return first

    def __str__(self) -> str:
        head = ("module", "class", "nodes", *self.names)
        rows = [
            (m.label, m.kind, m.axis, *(_number(e) if m.calls else "not called" for e in m.errors))
            for m in self.modules
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        for name, lost in zip(self.names, self.first_lost, strict=True):
            where = "holds throughout" if lost is None else f"is lost in {lost.label}, {lost.kind}"
            lines.append(f"{name}: {where}")
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draw the errors as a heat map, a row per submodule and a column per level.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        if ax is None:
            pyplot = optional_module("matplotlib.pyplot", "matplotlib", "bench", "Profile.plot")
            height = 1.2 + 0.28 * len(self.modules)
            ax = pyplot.subplots(figsize=(3 + len(self.levels), height), layout="constrained")[1]
        shown = [[_exponent(error) for error in m.errors] for m in self.modules]
        image = ax.imshow(shown, aspect="auto", cmap="magma_r", vmin=-16, vmax=0)
        ax.set_xticks(range(len(self.levels)), self.names, rotation=30, ha="right")
        ax.set_yticks(range(len(self.modules)), [m.label for m in self.modules])
        for level, lost in enumerate(self.first_lost):
            if lost is not None:
                ax.plot(
                    level, self.modules.index(lost), "o", markerfacecolor="white", color="black"
                )
        bar = ax.figure.colorbar(image, ax=ax)
        bar.set_label("relative error, power of ten\n(circles: lost here)")
        return ax


def _holds(whole: ModuleProfile, part: ModuleProfile) -> bool:
    return whole.name == "" or part.name.startswith(f"{whole.name}.")


def profile(
    model: nn.Module, levels: Any, x: Tensor, *args: Any, tolerance: float | None = None
) -> Profile:
    """Measure how far every submodule is from each symmetry of a chain.

    The signal is moved by elements of each group, and what every submodule gives then is held
    against what it gave before, moved likewise. Nodes are found by the size of an axis: of axes and
    pairs of axes with as many entries as there are nodes the one that fits best, else nodes within
    a longer axis. What has no nodes should not change at all. What keeps none of these axes, has
    none of them at -2 and does not change either has channels there, as many as nodes by chance.
    A signal with as many channels as nodes is warned of: its axes cannot be told apart.

    Args:
        model: Any module; evaluated in ``eval`` mode and left as it was.
        levels: The chain: a :class:`gsym.Hierarchy` (of many levels, 7 are taken), or groups and
            partitions of the nodes.
        x: A signal ``[..., n, c]``, the first argument of the model.
        *args: Passed on unchanged: the graph is fixed while the signal moves.
        tolerance: Largest relative error that counts as rounding; by default
            ``gsym.check.TOLERANCE`` of ``x.dtype``.

    Returns:
        The errors, which print as a table and plot as a heat map.

    Raises:
        TypeError: No module; no groups or partitions as levels; a signal that is not floating
            point, or of a type without a default tolerance.
        GroupError: No level, a level twice, or levels on different numbers of nodes.
        ValueError: A signal that is empty, does not lie on the nodes of the groups, or has as many
            samples as nodes, so that axes cannot be told apart.

    Warns:
        UserWarning: As many channels as nodes.

    Cost:
        Up to ten evaluations per level, or one per generator (64 at most) and one more of a
        general group, and a copy of what every submodule is given and gives.
        A cyclic move of three nodes is always among the moves where a cluster has three: a swap
        is its own inverse and hides a reversed convention.

    Example:
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 0, 1, 1]))
        >>> tied, untied = gsym.nn.OrbitLinear(2, 4, group), torch.nn.Linear(5, 5)
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.tied, self.untied = tied, untied
        ...     def forward(self, x):
        ...         return self.untied(self.tied(x).mT).mT
        >>> found = profile(Net(), [Partition.singletons(5), group], torch.randn(8, 5, 2))
        >>> [lost and lost.name for lost in found.first_lost]
        [None, 'untied']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; got {type(model).__name__}")
    groups = read_levels(levels)
    for group in groups:
        check_inputs(model, group, x, None, None)
    allowed = allowed_error(x, tolerance)
    n = x.size(-2)
    if not x.numel():
        raise ValueError(f"there is nothing to measure on an empty x; got shape {list(x.shape)}")
    if n > 1 and n in x.shape[:-2]:
        raise ValueError(
            f"x {list(x.shape)} has another axis of {n} before that of the {n} nodes; take another "
            "number of signals, so that nodes can be told from them"
        )
    if n > 1 and x.size(-1) == n:
        warn(
            f"x {list(x.shape)} has as many channels as nodes, {n}, so that a module which "
            "exchanges the two axes passes; take another number of channels to tell them apart"
        )
    watch = _Watch(model, n, len(groups))
    with watch.hooks():
        run(model, x, *args)
        watch.still = False
        for level, group in enumerate(groups):
            for perm in moves(group):
                watch.begin(level, perm)
                run(model, act(perm, x), *args)
                watch.end()
    return Profile(groups, tuple(watch.results(allowed)), allowed)


def moves(group: PermutationGroup) -> Iterator[Tensor]:
    """A few elements that leave no proper subgroup unnoticed, with a 3-cycle where there is one."""
    random = torch.Generator().manual_seed(0)
    if not isinstance(group, ClusterGroup):
        generators = list(permutations(group))
        yield from generators
        if len(generators) > 1:
            # Generators may all be swaps.
            yield generators[0][generators[1]]
        return
    largest = max(group.partition.clusters(), key=len)
    if len(largest) >= 3:
        nodes = largest[torch.randperm(len(largest), generator=random)[:3]]
        cycle = torch.arange(group.num_nodes)
        cycle[nodes] = nodes.roll(-1)
        yield cycle
    if group.num_generators <= _MOVES:
        yield from group.generators
        return
    for _ in range(_MOVES):
        yield group.sample(generator=random)


Move = Callable[[Tensor, Tensor], Tensor]  # of the inverse permutation and a tensor
Port = tuple[str, str, int, int]  # module, in or out, which call, which tensor


class _Watch:
    """What goes into and out of every submodule, against what it was before the signal moved.

    Errors are kept for every axis that may be that of the nodes; in the end the best one counts.
    """

    def __init__(self, model: nn.Module, num_nodes: int, num_levels: int) -> None:
        self.model, self.num_nodes, self.num_levels = model, num_nodes, num_levels
        self.names = {module: name for name, module in model.named_modules()}
        self.still = True
        self.kept: dict[Port, Tensor] = {}
        self.order: list[str] = []
        self.calls: dict[str, int] = {}
        self.found: dict[Port, dict[str, list[float]]] = {}
        self.seen: set[Port] = set()
        self.level, self.inverse = 0, torch.empty(0, dtype=torch.int64)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch within."""
        handles = []
        try:
            for module in self.names:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after)
                handles += [before, after]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, level: int, perm: Tensor) -> None:
        """The next run is of a signal that this permutation moved."""
        self.level, self.inverse = level, torch.argsort(perm)

    def end(self) -> None:
        """What was there before and did not come again differs beyond measure."""
        for port in self.kept.keys() - self.seen:
            self._note(port, dict.fromkeys(self.found[port], math.inf))

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self.names[module]
        if module is self.model:
            # A run may be repeated, with gradients.
            self.calls, self.seen = {}, set()
            if self.still:
                self.kept, self.order, self.found = {}, [], {}
        self.calls[name] = self.calls.get(name, 0) + 1
        self._take(name, "in", (args, kwargs))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self.names[module]
        if self.still and name not in self.order:
            self.order.append(name)
        self._take(name, "out", output)

    def _take(self, name: str, side: str, value: Any) -> None:
        for place, tensor in enumerate(_tensors(value)):
            port = name, side, self.calls[name], place
            tensor = tensor.detach()
            self.seen.add(port)
            if self.still:
                # Modules may write to what they are given, and later ones to what these gave.
                self.kept[port] = tensor.clone()
                self.found[port] = {
                    axis: [0.0] * self.num_levels
                    for axis in _candidates(tensor.shape, self.num_nodes)
                }
            elif port in self.kept:
                self._compare(port, tensor)

    def _compare(self, port: Port, after: Tensor) -> None:
        before = self.kept[port]
        if before.shape != after.shape:
            self._note(port, dict.fromkeys(self.found[port], math.inf))
            return
        ways = _candidates(before.shape, self.num_nodes)
        inverse = self.inverse.to(before.device)
        self._note(port, {a: distance(after, move(inverse, before)) for a, move in ways.items()})

    def _note(self, port: Port, errors: dict[str, float]) -> None:
        for axis, error in errors.items():
            own = self.found[port][axis]
            own[self.level] = max(own[self.level], error)

    def results(self, allowed: float) -> Iterator[ModuleProfile]:
        """What was found, module by module."""
        kinds = {name: type(module).__name__ for module, name in self.names.items()}
        for name in [*self.order, *(name for name in kinds if name not in self.order)]:
            out, into = (self._best(name, side, allowed) for side in ("out", "in"))
            axes = dict.fromkeys(axis for axis, _ in out)
            calls = self.calls.get(name, 0)
            yield ModuleProfile(
                name, kinds[name], calls, ", ".join(axes) or "none", self._worst(out),
                self._worst(into),
            )  # fmt: skip

    def _best(self, name: str, side: str, allowed: float) -> list[tuple[str, list[float]]]:
        # A table of nodes, such as an embedding, is given no numbers and never changes.
        given = any(port[:2] == (name, "in") for port in self.found)
        found = []
        for ways in (ways for port, ways in self.found.items() if port[:2] == (name, side)):
            errors = {axis: max(error) for axis, error in ways.items()}
            still = math.inf
            if next(iter(ways)) != "none":
                still = errors.pop("none", math.inf)
            axis = min(errors, key=errors.__getitem__)
            if given and still <= allowed < errors[axis]:
                axis = "none"
            found.append((axis, ways[axis]))
        return found

    def _worst(self, found: list[tuple[str, list[float]]]) -> tuple[float, ...]:
        if not found:
            return (math.nan,) * self.num_levels
        return tuple(max(errors[i] for _, errors in found) for i in range(self.num_levels))


def _candidates(shape: torch.Size, n: int) -> dict[str, Move]:
    """How a tensor of this shape may move with the nodes, by the name of the axis."""
    axes = range(-1, -len(shape) - 1, -1)
    exact = sorted((a for a in axes if shape[a] == n), key=lambda a: (a != -2, -a))
    ways: dict[str, Move] = {str(a): partial(_move, axis=a) for a in exact}
    for a, b in combinations(sorted(exact), 2):
        ways[f"{a}, {b}"] = partial(_move_both, axes=(a, b))
    if -2 in exact:
        return ways
    # Last where an axis may have as many entries as there are nodes by chance.
    ways["none"] = lambda inverse, x: x
    if n > 1 and not exact:
        for a in axes:
            if shape[a] and shape[a] % n == 0:
                ways[f"in {a}"] = partial(_move_within, axis=a, nodes_last=True)
                ways[f"in {a}, blocks"] = partial(_move_within, axis=a, nodes_last=False)
    return ways


def _move(inverse: Tensor, x: Tensor, axis: int) -> Tensor:
    return x.index_select(axis, inverse)


def _move_both(inverse: Tensor, x: Tensor, axes: tuple[int, int]) -> Tensor:
    return x.index_select(axes[0], inverse).index_select(axes[1], inverse)


def _move_within(inverse: Tensor, x: Tensor, axis: int, nodes_last: bool) -> Tensor:
    """Of an axis that holds nodes and something else, one laid out within the other."""
    place = axis + x.dim()
    n = inverse.numel()
    split = x.unflatten(place, (-1, n) if nodes_last else (n, -1))
    return split.index_select(place + nodes_last, inverse).flatten(place, place + 1)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of numbers within tuples, lists and dicts, without integers."""
    if isinstance(value, Tensor):
        if value.is_complex():
            yield torch.view_as_real(value)
        elif value.is_floating_point() and value.layout is torch.strided:
            yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _number(error: float) -> str:
    if math.isnan(error):
        return "-"
    return "0" if error == 0 else f"{error:.2g}" if error >= 1e-3 else f"{error:.0e}"


def _exponent(error: float) -> float:
    if math.isnan(error):
        return math.nan
    return math.log10(min(max(error, 1e-16), 1.0))
