"""convert: a trained model on a fixed graph, tied along a group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.random import fork_rng
from torch_geometric.nn import DenseGCNConv, GCNConv, GINConv, MessagePassing, SAGEConv
from torch_geometric.nn.dense.linear import Linear as PyGLinear

from gsym._graphs import Graph, as_graph
from gsym._validate import warn
from gsym.conversion._convolutions import Unfit, convolution
from gsym.conversion._projecting import Entries, project
from gsym.conversion.layers import NodeMap, TiedNodeLinear, TiedTensor
from gsym.conversion.report import Conversion, LeftAlone, Replaced
from gsym.groups import PermutationGroup
from gsym.groups.levels import read_levels
from gsym.nn import OrbitEmbedding
from gsym.nn._tied import TiedLayer

_CONVOLUTIONS = (GCNConv, SAGEConv, GINConv, DenseGCNConv)
_LINEAR = (nn.Linear, PyGLinear)
_NO_GRAPH = "no graph is given, pass edge_index="
# These hold tensors for the module above them.
_LISTS = (nn.ParameterList, nn.ParameterDict)


def convert(
    model: nn.Module,
    group: Any,
    *,
    edge_index: Any = None,
    edge_weight: Tensor | None = None,
    nodes: Iterable[str] | None = None,
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

    Args:
        model: A model of PyTorch or PyG; it is left as it is.
        group: The group, or a chain: a :class:`gsym.Hierarchy` (of many levels, 7 are taken), or
            groups and partitions.
        edge_index: The graph, ``[2, e]`` or what :func:`gsym.as_graph` reads, which the model is
            called with; by default that of the hierarchy. Without one, convolutions are left alone.
        edge_weight: Its weights, if the model is called with them.
        nodes: Names of all linear maps, parameters and buffers whose axes of size n are nodes. By
            default ``nn.Linear(n, n)`` and whatever has such an axis in modules of your own; needed
            where n is also a number of channels, or for maps from or to nodes,
            ``nn.Linear(n, h)``.
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
            does not say what is what; names that the model does not have; with ``strict``, what
            may break the symmetry.
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
        edge_index, edge_weight = group.edge_index, group.edge_weight
    n = levels[0].num_nodes
    graph = None if edge_index is None else as_graph(edge_index, n, edge_weight)
    chosen = None if nodes is None else _names(model, n, nodes)
    if chosen is None:
        _refuse_unclear(model, n)
    # Converted once before, it has a report that does not belong to the copy.
    twin = copy.deepcopy(model)
    twin.__dict__.pop("conversion", None)
    before = _count(twin)
    work = _Work(twin, levels, graph, chosen)
    with fork_rng(devices=[]), torch.no_grad():
        twin = work.visit("", twin)
    report = Conversion(levels, tuple(work.replaced), tuple(work.left), before, _count(twin))
    if strict and report.may_break:
        parts = "\n".join(
            f"  {p.name or '(model)'}, {p.kind}: {p.reason}" for p in report.may_break
        )
        raise ValueError(f"left alone, these may break the symmetry:\n{parts}")
    graphless = [part for part in report.left if part.reason == _NO_GRAPH]
    if graphless:
        warn(f"{_list([part.name for part in graphless])}: {_NO_GRAPH}, so they were left alone")
    twin.conversion = report  # type: ignore[assignment]
    return twin


class _Work:
    """One walk through a copy of the model, part by part."""

    def __init__(
        self,
        model: nn.Module,
        levels: tuple[PermutationGroup, ...],
        graph: Graph | None,
        nodes: set[str] | None,
    ) -> None:
        self.levels, self.graph, self.nodes = levels, graph, nodes
        self.n = levels[0].num_nodes
        self.replaced: list[Replaced] = []
        self.left: list[LeftAlone] = []
        self.known: dict[nn.Module, nn.Module] = {}
        held: dict[Tensor, int] = {}
        for module in model.modules():
            for p in module._parameters.values():
                if p is not None:
                    held[p] = held.get(p, 0) + 1
        self.shared = {p for p, count in held.items() if count > 1}

    def visit(self, name: str, module: nn.Module) -> nn.Module:
        """The module, or what takes its place."""
        if module not in self.known:
            new = self._convert(name, module)
            self.known[module] = new.train(module.training) if new is not module else module
        return self.known[module]

    def _convert(self, name: str, module: nn.Module) -> nn.Module:
        kind = _class(module)
        action: Callable[[str, Any], nn.Module] | None = None
        if kind in _CONVOLUTIONS:
            action = self._convolution
        elif kind in _LINEAR:
            action = self._linear
        elif kind is nn.Embedding:
            action = self._embedding
        if action is not None:
            why = _watched(module) or self._sharing(module)
            if why:
                return self._leave(name, module, why, self._may_break(module))
            return action(name, module)
        if _is_closed(module):
            self._closed(name, module)
            return module
        if _is_library(module):
            self._foreign(name, module)
        else:
            self._own(name, module)
        for child, part in list(module._modules.items()):
            if isinstance(part, nn.ModuleDict) and child == "parametrizations":
                self._parametrised(name, part)
            elif part is not None:
                new = self.visit(f"{name}.{child}" if name else child, part)
                if new is not part:
                    setattr(module, child, new)
        return module

    def _parametrised(self, name: str, tensors: nn.ModuleDict) -> None:
        """Tensors of a module that something else computes."""
        for own, how in tensors.items():
            tied = isinstance(how, nn.ModuleList) and isinstance(how[0], TiedTensor)
            reason = "is tied already" if tied else "is parametrised"
            may_break = not tied and _has_axis(how, self.n)
            self._leave(f"{name}.{own}" if name else own, how, reason, may_break)

    def _sharing(self, module: nn.Module) -> str:
        shared = any(p in self.shared for p in module.parameters())
        return "shares weights with another part" if shared else ""

    def _may_break(self, module: nn.Module) -> bool:
        return isinstance(module, MessagePassing | DenseGCNConv) or _has_axis(module, self.n)

    def _leave(self, name: str, part: Any, reason: str, may_break: bool) -> Any:
        kind = _kind(part) if isinstance(part, nn.Module) else str(list(part.shape))
        self.left.append(LeftAlone(name, kind, reason, may_break))
        return part

    def _is_chosen(self, name: str) -> bool:
        return self.nodes is None or name in self.nodes

    def _convolution(self, name: str, conv: Any) -> nn.Module:
        if self.graph is None:
            return self._leave(name, conv, _NO_GRAPH, True)
        try:
            found = convolution(conv, self.graph)
        except Unfit as why:
            return self._leave(name, conv, str(why), True)
        maps, lost = project(self.levels, found.entries)
        new = found.make(NodeMap(maps, self.levels, found.like))
        loss = lost * found.gain / max(found.norm, 1e-300) if lost else 0.0
        return self._replace(name, conv, new, f"{type(conv).__name__}, propagation tied", loss)

    def _linear(self, name: str, linear: Any) -> nn.Module:
        out, into = linear.weight.shape
        ends = (out == self.n) + (into == self.n)
        if not ends or (self.nodes is not None and name not in self.nodes):
            flat = self.nodes is None and self.n > 1 and (out % self.n == 0 or into % self.n == 0)
            reason = "acts on channels, alike at every node"
            if flat:
                size = into if into % self.n == 0 else out
                reason = (
                    f"{size} = {self.n} x {size // self.n} could be signals laid flat; if they are "
                    "channels, say so by nodes="
                )
            return self._leave(name, linear, reason, flat)
        if ends == 1 and self.nodes is None:
            reason = f"if its {self.n} numbers are nodes, name it in nodes="
            return self._leave(name, linear, reason, True)
        if ends == 1:
            axis = 0 if out == self.n else 1
            return self._ends(name, linear, axis)
        maps, lost = project(self.levels, Entries.of_matrix(linear.weight))
        loss = lost / max(float(linear.weight.double().norm()), 1e-300) if lost else 0.0
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
        was, before = _kind(linear), _count(linear)
        loss = self._tie(linear, "weight", (axis,))
        if axis == 0 and linear.bias is not None:
            loss = max(loss, self._tie(linear, "bias", (0,)))
        became = f"Linear {'to' if axis == 0 else 'from'} nodes, tied"
        self.replaced.append(Replaced(name, was, became, before, _count(linear), loss))
        return linear

    def _embedding(self, name: str, emb: nn.Embedding) -> nn.Module:
        if emb.num_embeddings != self.n or not self._is_chosen(name):
            return self._leave(name, emb, "its rows are not nodes", False)
        unlike = [o for o in ("padding_idx", "max_norm") if getattr(emb, o) is not None]
        unlike += ["sparse"] if emb.sparse else []
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
        self.replaced.append(Replaced(name, _kind(was), became, _count(was), _count(new), loss))
        return new

    def _closed(self, name: str, module: nn.Module) -> None:
        """A part that is taken as a whole."""
        if not isinstance(module, MessagePassing | DenseGCNConv):
            tied = [part for part in module.modules() if isinstance(part, TiedLayer)]
            groups = {g for part in tied for g in getattr(part, "levels", ()) or [part.group]}
            same = groups - {None} <= set(self.levels)
            reason = "is tied already" if same else "is tied along another group"
            self._leave(name, module, reason, not same)
            return
        if _has_axis(module, self.n):
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
        if any(self.n in t.shape for t in own) and self.n > 1 and self.nodes is None:
            self._leave(name, module, f"has weights with an axis of {self.n}", True)
        elif own:
            self._leave(name, module, "acts on channels, alike at every node", False)

    def _own(self, name: str, module: nn.Module) -> None:
        """Parameters and buffers of a module of the user."""
        before = f"{name}." if name else ""
        for own, p in [*module._parameters.items()]:
            if p is not None:
                self._tensor(before + own, module, own, p)
        for own, b in [*module._buffers.items()]:
            if b is not None and b.is_floating_point():
                self._tensor(before + own, module, own, b)

    def _tensor(self, name: str, module: nn.Module, own: str, value: Tensor) -> None:
        axes = [axis for axis, size in enumerate(value.shape) if size == self.n]
        if not axes or self.n == 1 or not self._is_chosen(name):
            if isinstance(value, nn.Parameter):
                why = "is not named in nodes=" if axes else "has no axis of nodes"
                self._leave(name, value, why, False)
            return
        learnt = isinstance(value, nn.Parameter)
        why = ""
        if len(axes) > 2:
            why = f"has {len(axes)} axes of {self.n}"
        elif learnt and value in self.shared:
            why = "is shared with another part"
        elif not value.is_floating_point():
            why = f"is {value.dtype}"
        if why:
            self._leave(name, value, why, True)
        elif learnt:
            shape, count = str(list(value.shape)), value.numel()
            loss = self._tie(module, own, axes)
            after = sum(p.numel() for p in _rows(module, own))
            what = "parameter, tied"
            self.replaced.append(Replaced(name, f"parameter {shape}", what, count, after, loss))
        else:
            tie = TiedTensor(self.levels, value.shape, axes)
            rows, rest = tie.nearest(value)
            loss = float(rest.norm()) / max(float(value.double().norm()), 1e-300)
            if loss > torch.finfo(value.dtype).eps:
                value.copy_(tie(rows).to(value))
                was = f"buffer {list(value.shape)}"
                self.replaced.append(Replaced(name, was, "buffer, averaged", 0, 0, loss))

    def _tie(self, module: nn.Module, own: str, axes: Iterable[int]) -> float:
        """Learn a parameter as rows; the share of it that is lost."""
        value: Tensor = getattr(module, own)
        tie = TiedTensor(self.levels, value.shape, tuple(axes))
        rest, size = tie.nearest(value)[1], float(value.double().norm())
        parametrize.register_parametrization(module, own, tie)
        return float(rest.norm()) / max(size, 1e-300)


def _rows(module: nn.Module, own: str) -> Iterator[Tensor]:
    """What a tied parameter is learnt as."""
    return module.get_submodule(f"parametrizations.{own}").parameters()


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    sizes = [
        (getattr(module, a, None), getattr(module, b, None))
        for a, b in (
            ("in_channels", "out_channels"),
            ("in_features", "out_features"),
            ("num_embeddings", "embedding_dim"),
        )
    ]
    known = [pair for pair in sizes if None not in pair]
    return f"{name}({known[0][0]}, {known[0][1]})" if known else name


def _class(module: nn.Module) -> type:
    """Its class, without what a parametrisation made of it."""
    kind = type(module)
    return kind.__mro__[1] if parametrize.is_parametrized(module) else kind


def _is_library(module: nn.Module) -> bool:
    home = _class(module).__module__
    return home.startswith(("torch.", "torch_geometric.")) and not isinstance(module, _LISTS)


def _is_closed(module: nn.Module) -> bool:
    """Whether this is taken as a whole, with what is in it."""
    own = _class(module).__module__.startswith("gsym.nn")
    return own or isinstance(module, MessagePassing | DenseGCNConv)


def _has_axis(module: nn.Module, n: int) -> bool:
    return n > 1 and any(n in p.shape for p in module.parameters())


def _watched(module: nn.Module) -> str:
    """Why what is done to a module would not be done to another in its place."""
    if any(parametrize.is_parametrized(part) for part in module.modules()):
        return "is parametrised"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(part, name) for part in module.modules() for name in hooks):
        # MessagePassing has hooks of its own, by other names.
        return "has hooks"
    return ""


def _parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Submodules by name, those within convolutions and layers of gsym left out."""
    yield name, module
    if not _is_closed(module):
        for child, part in module._modules.items():
            if part is not None:
                yield from _parts(part, f"{name}.{child}" if name else child)


def _own_tensors(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for own, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and value.is_floating_point():
            yield f"{name}.{own}" if name else own, value


def _refuse_unclear(model: nn.Module, n: int) -> None:
    """Refuse a model in which n is a number of channels as well as that of the nodes."""
    if n == 1:
        return
    maybe, channels = [], []
    for name, module in _parts(model):
        kind = type(module)
        if _is_closed(module):
            channels += [name] if _has_axis(module, n) else []
        elif kind in _LINEAR:
            shape = tuple(module.weight.shape)  # type: ignore[union-attr,arg-type]
            if shape == (n, n):
                maybe.append(name)
            elif n in shape:
                channels.append(name)
        elif kind is nn.Embedding:
            continue
        elif _is_library(module):
            channels += [name] if any(n in t.shape for _, t in _own_tensors(name, module)) else []
        else:
            maybe += [own for own, t in _own_tensors(name, module) if n in t.shape]
    if maybe and channels:
        raise ValueError(
            f"{n} is the number of nodes, but {_list(channels)} may have {n} channels; so it is "
            f"not clear what {_list(maybe)} acts on; name all that act on nodes, as nodes={maybe}, "
            "or nodes=[] if none does"
        )


def _list(names: list[str]) -> str:
    shown = ", ".join(name or "the model" for name in names[:4])
    return shown + (", ..." if len(names) > 4 else "")


def _names(model: nn.Module, n: int, nodes: Iterable[str]) -> set[str]:
    """The names, once each is known to be of something with an axis of nodes."""
    if isinstance(nodes, str):
        raise TypeError(f"nodes must be a list of names; write [{nodes!r}] for one")
    sizes: dict[str, tuple[int, ...]] = {}
    for name, module in _parts(model):
        if type(module) in (*_LINEAR, nn.Embedding):
            sizes[name] = tuple(module.weight.shape)  # type: ignore[union-attr,arg-type]
        elif not _is_library(module) and not _is_closed(module):
            sizes |= {own: tuple(t.shape) for own, t in _own_tensors(name, module)}
    chosen = set(nodes)
    for name in sorted(chosen):
        if n not in sizes.get(name, ()):
            came = f"is {list(sizes[name])}" if name in sizes else "is not in the model"
            fits = _list([known for known, shape in sizes.items() if n in shape]) or "nothing"
            raise ValueError(f"nodes names {name!r}, which {came}; an axis of {n} has {fits}")
    return chosen
