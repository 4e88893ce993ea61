"""convert: a trained model on a fixed graph, tied along a group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.random import fork_rng
from torch_geometric.nn import DenseGCNConv, GCNConv, GINConv, SAGEConv

from gsym._graphs import Graph, as_graph
from gsym._validate import warn
from gsym.conversion._convolutions import Unfit, convolution
from gsym.conversion._parts import (
    LINEAR,
    children,
    class_of,
    count,
    doubt,
    find,
    has_axis,
    hidden,
    is_closed,
    is_convolution,
    is_library,
    join,
    kind_of,
    listed,
    names,
    parametrizations,
    refuse_unclear,
    share,
    swap,
    watched,
)
from gsym.conversion._projecting import Entries, project
from gsym.conversion.layers import NodeMap, TiedNodeLinear, TiedTensor
from gsym.conversion.report import Conversion, LeftAlone, Replaced
from gsym.groups import PermutationGroup
from gsym.groups.levels import read_levels
from gsym.nn import OrbitEmbedding
from gsym.nn._tied import TiedLayer

_CONVOLUTIONS = (GCNConv, SAGEConv, GINConv, DenseGCNConv)
_NO_GRAPH = "no graph is given, pass edge_index="
_CHANNELS = "acts on channels, alike at every node"


def convert(
    model: nn.Module,
    group: Any,
    *,
    edge_index: Any = None,
    edge_weight: Tensor | None = None,
    nodes: Iterable[str] | None = None,
    safe: Iterable[str] = (),
    strict: bool = False,
) -> nn.Module:
    """Tie the maps across nodes and the node-wise weights of a trained model along a group.

    The model works on signals on one fixed graph. In a copy of it

    - ``GCNConv``, ``SAGEConv`` (means or sums), ``GINConv`` and ``DenseGCNConv`` of PyG keep their
      weights, and what they do across nodes (multiply by a matrix of the graph) becomes a learnt
      map that is tied, an :class:`gsym.nn.OrbitLinear` on every channel alike;
    - ``nn.Linear(n, n)`` on the axis of nodes becomes such a map;
    - ``nn.Embedding(n, d)`` becomes a :class:`gsym.nn.OrbitEmbedding`;
    - parameters of modules of your own with axes of nodes, ``[n, d]`` or ``[n, n]``, are learnt as
      one row per orbit, and read as before, by ``torch.nn.utils.parametrize`` (whose modules are
      saved by their ``state_dict``, not pickled); buffers are averaged over the orbits.

    Each starts as the projection of what it was: of all that the group leaves free the nearest.
    With the trivial group nothing is lost, and all outputs stay. Along a chain of groups every
    part is a sum over levels, :class:`gsym.nn.OrbitEmbedding` for example; its start is the
    projection on the finest, split into what each level adds.

    What was frozen stays so; the map of a convolution learns unless all its parameters are frozen.

    Args:
        model: A model of PyTorch or PyG; it is left as it is.
        group: The group, or a chain: a :class:`gsym.Hierarchy` (of many levels, 7 are taken), or
            groups and partitions.
        edge_index: The graph, ``[2, e]`` or what :func:`gsym.as_graph` reads, which the model is
            called with; by default that of the hierarchy. Without one, convolutions are left alone.
        edge_weight: Its weights, if the model is called with them; by default, without
            ``edge_index``, those of the hierarchy.
        nodes: Names of all linear maps, parameters and buffers whose axes of size n are nodes. By
            default ``nn.Linear(n, n)`` and whatever has such an axis in modules of your own; needed
            where n is also a number of channels, or for maps from or to nodes,
            ``nn.Linear(n, h)``.
        safe: Names, as the report has them, of parts that are left alone and that you know to
            keep the symmetry though their sizes do not show it: a ``BatchNorm1d`` whose n numbers
            are channels, whatever ``nodes`` says.
        strict: Raise if anything that may break the symmetry would be left alone.

    Returns:
        The copy. Its attribute ``conversion`` is a :class:`gsym.conversion.Conversion`, which
        prints what became of every part, at which loss, and what was left alone, and why.

    Symmetry:
        Nodes: every part that was replaced is exact for the group at every value of its weights,
        for the finest group of a chain. The code of your own modules is not read: what it does
        with single nodes is seen by :func:`gsym.check.profile`.

    Raises:
        TypeError: No module; a compiled or scripted one.
        ValueError: Parameters without values yet; n is also a number of channels, and ``nodes``
            does not say what is what; names in ``nodes`` of what is not there or cannot be tied,
            in ``safe`` of what is not left alone; with ``strict``, what may break the symmetry.
        GroupError: Levels on different nodes.
        GraphError: A graph on other nodes; later, a call of the result with another graph.

    Warns:
        UserWarning: Convolutions that are left alone because there is no graph.

    Cost:
        Per convolution ``O(e)`` and the cube of the number of clusters; a tied map has as many
        weights as ``group.commutant_dim()``.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> edges = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 2]])
        >>> model = GCNConv(3, 8)
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 1, 1]))
        >>> new = gsym.convert(model, group, edge_index=edges)
        >>> x = torch.randn(4, 3)
        >>> gsym.check.equivariance_error(new, group, x, edges) < 1e-5
        True
        >>> same = gsym.convert(model, PermutationGroup.trivial(4), edge_index=edges)
        >>> torch.allclose(same(x, edges), model(x, edges), atol=1e-5)
        True
        >>> print(same.conversion)
        tied along trivial  was            is                         weights   loss
        (model)             GCNConv(3, 8)  GCNConv, propagation tied  32 to 48  0
        in all                                                        32 to 48

    Reference:
        The projection is that of Huang, Levie, Villar, arXiv 2308.10436, on intertwiners.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise TypeError("a scripted or compiled model cannot be changed; convert it before that")
    empty = [name for name, p in model.named_parameters() if is_lazy(p) or p.is_meta]
    if empty:
        raise ValueError(f"{empty[0]} has no values yet; call the model once, then convert it")
    if hasattr(model, "conversion") and not isinstance(model.conversion, Conversion):
        raise ValueError("the model has an attribute conversion, which is to hold the report")
    levels = (group,) if isinstance(group, PermutationGroup) else read_levels(group)
    if edge_index is None and getattr(group, "edge_index", None) is not None:
        edge_index = group.edge_index
        edge_weight = group.edge_weight if edge_weight is None else edge_weight
    n = levels[0].num_nodes
    graph = None if edge_index is None else as_graph(edge_index, n, edge_weight)
    if nodes is None:
        refuse_unclear(model, n)
    # Converted once before, it has a report that does not belong to the copy.
    twin = copy.deepcopy(model)
    twin.__dict__.pop("conversion", None)
    before = count(twin)
    chosen = None if nodes is None else find(twin, n, names("nodes", nodes))
    work = _Work(twin, levels, graph, chosen, set(names("safe", safe)))
    with fork_rng(devices=[]), torch.no_grad():
        twin = work.visit("", twin)
    swap(twin, work.known)
    work.leave_hidden(twin)
    work.check_names()
    report = Conversion(levels, tuple(work.replaced), tuple(work.left), before, count(twin))
    if strict and report.may_break:
        parts = "\n".join(
            f"  {p.name or '(model)'}, {p.kind}: {p.reason}" for p in report.may_break
        )
        raise ValueError(
            f"left alone, these may break the symmetry; name those that do not in safe=:\n{parts}"
        )
    graphless = [part for part in report.left if part.reason == _NO_GRAPH]
    if graphless:
        warn(f"{listed([part.name for part in graphless])}: {_NO_GRAPH}, so they were left alone")
    twin.conversion = report  # type: ignore[assignment]
    return twin


class _Work:
    """One walk through a copy of the model, part by part."""

    def __init__(
        self,
        model: nn.Module,
        levels: tuple[PermutationGroup, ...],
        graph: Graph | None,
        nodes: dict[str, nn.Module | Tensor] | None,
        safe: set[str],
    ) -> None:
        self.levels, self.graph, self.nodes, self.safe = levels, graph, nodes, safe
        self.chosen = set() if nodes is None else set(nodes.values())
        self.n = levels[0].num_nodes
        self.replaced: list[Replaced] = []
        self.left: list[LeftAlone] = []
        self.known: dict[nn.Module, nn.Module] = {}
        self.made: set[nn.Module] = set()
        self.tied: set[nn.Module | Tensor] = set()
        self.reasons: dict[nn.Module | Tensor, str] = {}
        held: dict[Tensor, int] = {}
        for module in model.modules():
            for p in module._parameters.values():
                if p is not None:
                    held[p] = held.get(p, 0) + 1
        self.shared = {p for p, times in held.items() if times > 1}

    def check_names(self) -> None:
        """Refuse names that made no difference."""
        for name, part in (self.nodes or {}).items():
            if part not in self.tied and self.n > 1:
                raise ValueError(
                    f"nodes names {name!r}, which cannot be tied: {self.reasons[part]}"
                )
        left = [part.name for part in self.left]
        for name in sorted(self.safe.difference(left)):
            raise ValueError(
                f"safe names {name!r}, which is not left alone; {listed(left) or 'nothing'} is"
            )

    def leave_hidden(self, model: nn.Module) -> None:
        """Report modules with weights that are no submodules of any other."""
        reason = "is no submodule, as in a plain list; hold it in a ModuleList"
        for name, part in hidden(model):
            if any(True for _ in (*part.parameters(), *part.buffers())):
                self._leave(name, part, reason, True)

    def visit(self, name: str, module: nn.Module) -> nn.Module:
        """The module, or what takes its place."""
        if module not in self.known:
            new = self._convert(name, module)
            self.known[module] = new.train(module.training) if new is not module else module
        return self.known[module]

    def _convert(self, name: str, module: nn.Module) -> nn.Module:
        kind = class_of(module)
        action: Callable[[str, Any], nn.Module] | None = None
        if kind in _CONVOLUTIONS:
            action = self._convolution
        elif kind in LINEAR:
            action = self._linear
        elif kind is nn.Embedding:
            action = self._embedding
        if action is not None and not parametrize.is_parametrized(module):
            why = watched(module) or self._sharing(module)
            if why:
                return self._leave(name, module, why, self._may_break(module))
            return action(name, module)
        if is_closed(module):
            self._closed(name, module)
            return module
        if is_library(module):
            self._foreign(name, module)
        else:
            self._own(name, module)
        self._parametrised(name, module)
        for child, part in list(children(module)):
            new = self.visit(join(name, child), part)
            if new is not part:
                setattr(module, child, new)
        return module

    def _parametrised(self, name: str, module: nn.Module) -> None:
        """Tensors of a module that something else computes."""
        if not parametrize.is_parametrized(module):
            return
        for own, how in parametrizations(module).items():
            if isinstance(how[0], TiedTensor):
                if how[0] not in self.made:
                    self._leave_tied(join(name, own), how, set(how[0].levels))
            else:
                unsure = doubt((p.shape for p in how.parameters()), self.n)
                self._leave(join(name, own), how, "is parametrised", bool(unsure))
            self.reasons.setdefault(module, "is parametrised")

    def _leave_tied(self, name: str, part: nn.Module, groups: set[PermutationGroup]) -> None:
        same = groups <= set(self.levels)
        reason = "is tied already" if same else "is tied along another group"
        self._leave(name, part, reason, not same)

    def _sharing(self, module: nn.Module) -> str:
        shared = any(p in self.shared for p in module.parameters())
        return "shares weights with another part" if shared else ""

    def _may_break(self, module: nn.Module) -> bool:
        return is_convolution(module) or bool(doubt((p.shape for p in module.parameters()), self.n))

    def _leave(self, name: str, part: Any, reason: str, may_break: bool) -> Any:
        kind = kind_of(part) if isinstance(part, nn.Module) else str(list(part.shape))
        self.reasons[part] = reason
        if may_break and name in self.safe:
            reason, may_break = f"{reason}; said to be safe", False
        self.left.append(LeftAlone(name, kind, reason, may_break))
        return part

    def _is_chosen(self, part: nn.Module | Tensor) -> bool:
        return self.nodes is None or part in self.chosen

    def _convolution(self, name: str, conv: Any) -> nn.Module:
        if self.graph is None:
            return self._leave(name, conv, _NO_GRAPH, True)
        try:
            found = convolution(conv, self.graph)
        except Unfit as why:
            return self._leave(name, conv, str(why), True)
        maps, lost = project(self.levels, found.entries)
        mix = NodeMap(maps, self.levels, found.like)
        flags = [p.requires_grad for p in conv.parameters()]
        mix.requires_grad_(any(flags) or not flags)
        new = found.make(mix)
        loss = share(lost * found.gain, found.norm)
        return self._replace(name, conv, new, f"{type(conv).__name__}, propagation tied", loss)

    def _linear(self, name: str, linear: Any) -> nn.Module:
        out, into = linear.weight.shape
        ends = (out == self.n) + (into == self.n)
        if not ends or not self._is_chosen(linear):
            # A name in nodes= could say that n is of nodes; none could for signals laid flat.
            flat = self._flat(linear)
            return self._leave(name, linear, flat or _CHANNELS, bool(flat))
        if ends == 1 and self.nodes is None:
            reason = f"if its {self.n} numbers are nodes, name it in nodes="
            return self._leave(name, linear, self._flat(linear) or reason, True)
        if ends == 1:
            axis = 0 if out == self.n else 1
            return self._ends(name, linear, axis)
        maps, lost = project(self.levels, Entries.of_matrix(linear.weight))
        loss = share(lost, linear.weight)
        bias = None
        if linear.bias is not None:
            bias = self._embed(linear.bias[:, None])
            loss = max(loss, bias.copy_from(linear.bias[:, None]))
            bias.requires_grad_(linear.bias.requires_grad)
        mix = NodeMap(maps, self.levels, linear.weight)
        mix.requires_grad_(linear.weight.requires_grad)
        return self._replace(
            name, linear, TiedNodeLinear(mix, bias), "Linear across nodes, tied", loss
        )

    def _ends(self, name: str, linear: Any, axis: int) -> nn.Module:
        """A map from nodes or to them keeps its class; its weights are learnt as rows."""
        was, before = kind_of(linear), count(linear)
        loss = self._tie(linear, "weight", (axis,))
        if axis == 0 and linear.bias is not None:
            loss = max(loss, self._tie(linear, "bias", (0,)))
        became = f"Linear {'to' if axis == 0 else 'from'} nodes, tied"
        self.replaced.append(Replaced(name, was, became, before, count(linear), loss))
        self.tied.add(linear)
        flat = self._flat(linear)
        return self._leave(name, linear, flat, True) if flat else linear

    def _flat(self, linear: Any) -> str:
        """Why an axis of other numbers than n may be signals laid flat, if it may."""
        return doubt([[size for size in linear.weight.shape if size != self.n]], self.n)

    def _embedding(self, name: str, emb: nn.Embedding) -> nn.Module:
        if emb.num_embeddings != self.n or not self._is_chosen(emb):
            return self._leave(name, emb, "its rows are not nodes", False)
        unlike = [o for o in ("padding_idx", "max_norm") if getattr(emb, o) is not None]
        unlike += [o for o in ("sparse", "scale_grad_by_freq") if getattr(emb, o)]
        if unlike:
            return self._leave(name, emb, f"{unlike[0]} has no tied form", True)
        new = self._embed(emb.weight)
        loss = new.copy_from(emb.weight)
        new.requires_grad_(emb.weight.requires_grad)
        return self._replace(name, emb, new, "OrbitEmbedding", loss)

    def _embed(self, table: Tensor) -> OrbitEmbedding:
        one = len(self.levels) == 1
        made = (
            OrbitEmbedding(table.size(1), self.levels[0])
            if one
            else OrbitEmbedding(table.size(1), levels=self.levels)
        )
        return made.to(table)

    def _replace(
        self, name: str, was: nn.Module, new: nn.Module, became: str, loss: float
    ) -> nn.Module:
        self.replaced.append(Replaced(name, kind_of(was), became, count(was), count(new), loss))
        self.tied.add(was)
        return new

    def _closed(self, name: str, module: nn.Module) -> None:
        """A part that is taken as a whole."""
        if not is_convolution(module):
            tied = [part for part in module.modules() if isinstance(part, TiedLayer)]
            groups = {g for part in tied for g in getattr(part, "levels", ()) or [part.group]}
            self._leave_tied(name, module, groups - {None})
            return
        if has_axis(module, self.n):
            self._leave(name, module, f"has weights with an axis of {self.n}", True)
        elif self.graph is None:
            self._leave(name, module, "uses a graph, and none is given to compare", True)
        else:
            edges, weight = self.graph.edge_index, self.graph.edge_weight
            kept = any(group.preserves(edges, weight) for group in self.levels)
            reason = "uses the graph, which the group preserves" if kept else (
                "uses the graph, which the group does not preserve"
            )  # fmt: skip
            self._leave(name, module, reason, not kept)

    def _foreign(self, name: str, module: nn.Module) -> None:
        """Own tensors of a module of PyTorch or PyG that has no tied form."""
        held = [*module._parameters.values(), *module._buffers.values()]
        own = [t for t in held if t is not None]
        if own:
            unsure = doubt((t.shape for t in own), self.n)
            self._leave(name, module, unsure or _CHANNELS, bool(unsure))

    def _own(self, name: str, module: nn.Module) -> None:
        """Parameters and buffers of a module of the user."""
        for own, p in [*module._parameters.items()]:
            if p is not None:
                self._parameter(join(name, own), module, own, p)
        for own, b in [*module._buffers.items()]:
            if b is not None:
                self._buffer(join(name, own), b)

    def _parameter(self, name: str, module: nn.Module, own: str, value: nn.Parameter) -> None:
        axes = self._axes(value)
        if not axes or not self._is_chosen(value):
            flat = "" if axes else doubt([value.shape], self.n)
            why = "is not named in nodes=" if axes else flat or "has no axis of nodes"
            self._leave(name, value, why, bool(flat))
            return
        why = self._too_many(axes)
        if value in self.shared:
            why = "is shared with another part"
        elif not value.is_floating_point():
            why = f"is {value.dtype}"
        if why:
            self._leave(name, value, why, True)
            return
        shape, before = str(list(value.shape)), value.numel()
        self.tied.add(value)
        loss = self._tie(module, own, axes)
        after = count(parametrizations(module)[own])
        what = "parameter, tied"
        self.replaced.append(Replaced(name, f"parameter {shape}", what, before, after, loss))

    def _buffer(self, name: str, value: Tensor) -> None:
        axes = self._axes(value)
        free = value.is_floating_point()
        # No average is an index or a mask, so nodes= has no say in those.
        index = not free and value.dim() == 2 and value.size(0) == 2  # edges
        if not axes or index or (free and not self._is_chosen(value)):
            return
        why = self._too_many(axes)
        if why:
            self._leave(name, value, why, True)
            return
        real = torch.view_as_real(value) if value.is_complex() else value
        tie = TiedTensor(self.levels, real.shape, axes)
        rows, rest = tie.nearest(real.double())
        loss = share(rest, real)
        self.tied.add(value)
        differs = loss > torch.finfo(value.dtype if free else torch.float64).eps
        if not free:
            how = "differs within orbits" if differs else "is the same along orbits"
            self._leave(name, value, f"is {value.dtype}, and {how}", differs)
        if not free or not differs:
            return
        value.copy_(tie(rows).to(value))
        was = f"buffer {list(value.shape)}"
        self.replaced.append(Replaced(name, was, "buffer, averaged", 0, 0, loss))

    def _axes(self, value: Tensor) -> list[int]:
        return [axis for axis, size in enumerate(value.shape) if size == self.n > 1]

    def _too_many(self, axes: list[int]) -> str:
        return f"has {len(axes)} axes of {self.n}" if len(axes) > 2 else ""

    def _tie(self, module: nn.Module, own: str, axes: Iterable[int]) -> float:
        """Learn a parameter as rows; the share of it that is lost."""
        value: Tensor = getattr(module, own)
        tie = TiedTensor(self.levels, value.shape, tuple(axes))
        loss = share(tie.nearest(value)[1], value)
        parametrize.register_parametrization(module, own, tie)
        self.made.add(tie)
        return loss
