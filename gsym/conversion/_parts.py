"""Parts of a model: what they are, and by which names they go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch_geometric.nn import DenseGCNConv, MessagePassing
from torch_geometric.nn.dense.linear import Linear as PyGLinear

LINEAR = (nn.Linear, PyGLinear)
# These hold tensors for the module above them.
_LISTS = (nn.ParameterList, nn.ParameterDict)


def join(name: str, child: str) -> str:
    """The name of a child."""
    return f"{name}.{child}" if name else child


def children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Submodules, without those that compute a tensor of the module."""
    parametrised = parametrize.is_parametrized(module)
    for child, part in module._modules.items():
        if part is not None and not (parametrised and child == "parametrizations"):
            yield child, part


def parametrizations(module: Any) -> dict[str, Any]:
    """What computes tensors of a module, by their names."""
    return dict(module.parametrizations.items())


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight


def count(module: nn.Module) -> int:
    """The numbers that it learns from."""
    return sum(p.numel() for p in module.parameters())


def kind_of(module: nn.Module) -> str:
    """Its class and sizes."""
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


def class_of(module: nn.Module) -> type:
    """Its class, without what a parametrisation made of it."""
    kind = type(module)
    return kind.__mro__[1] if parametrize.is_parametrized(module) else kind


def is_library(module: nn.Module) -> bool:
    """Whether PyTorch or PyG defines it."""
    home = class_of(module).__module__
    return home.startswith(("torch.", "torch_geometric.")) and not isinstance(module, _LISTS)


def is_closed(module: nn.Module) -> bool:
    """Whether this is taken as a whole, with what is in it."""
    own = class_of(module).__module__.startswith("gsym.nn")
    return own or is_convolution(module)


def is_convolution(module: nn.Module) -> bool:
    """Whether it works on a graph."""
    return isinstance(module, MessagePassing | DenseGCNConv)


def share(rest: Tensor | float, whole: Tensor | float) -> float:
    """How large what is lost is beside the whole, by norms."""
    lost, size = (float(v.double().norm()) if isinstance(v, Tensor) else v for v in (rest, whole))
    return lost / max(size, 1e-300) if lost else 0.0


def doubt(shapes: Iterable[Sequence[int]], n: int) -> str:
    """Why tensors of these shapes may act on n nodes, if they may."""
    sizes = [size for shape in shapes for size in shape if n > 1 and size and size % n == 0]
    if n in sizes:
        return f"has weights with an axis of {n}"
    return f"{sizes[0]} = {n} x {sizes[0] // n} could be signals laid flat" if sizes else ""


def has_axis(module: nn.Module, n: int) -> bool:
    """Whether a parameter has an axis of n nodes."""
    return n > 1 and any(n in p.shape for p in module.parameters())


def watched(module: nn.Module) -> str:
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
    if not is_closed(module):
        for child, part in children(module):
            yield from _parts(part, join(name, child))


def _own_tensors(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for own, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and value.is_floating_point():
            yield join(name, own), value


def refuse_unclear(model: nn.Module, n: int) -> None:
    """Refuse a model in which n is a number of channels as well as that of the nodes."""
    if n == 1:
        return
    maybe, channels = [], []
    for name, module in _parts(model):
        kind = type(module)
        if is_closed(module):
            channels += [name] if has_axis(module, n) else []
        elif kind in LINEAR:
            shape = tuple(_weight(module).shape)
            if shape == (n, n):
                maybe.append(name)
            elif n in shape:
                channels.append(name)
        elif kind is nn.Embedding:
            continue
        elif is_library(module):
            channels += [name] if any(n in t.shape for _, t in _own_tensors(name, module)) else []
        else:
            maybe += [own for own, t in _own_tensors(name, module) if n in t.shape]
    if maybe and channels:
        raise ValueError(
            f"{n} is the number of nodes, but {listed(channels)} may have {n} channels; so it is "
            f"not clear what {listed(maybe)} acts on; name all that act on nodes, as "
            f"nodes={maybe}, or nodes=[] if none does"
        )


def listed(parts: list[str]) -> str:
    """A few names in one line."""
    shown = ", ".join(name or "the model" for name in parts[:4])
    return shown + (", ..." if len(parts) > 4 else "")


def names(which: str, given: Iterable[str]) -> list[str]:
    """The names of an option."""
    if isinstance(given, str):
        raise TypeError(f"{which} must be a list of names; write [{given!r}] for one")
    return sorted(set(given))


def find(model: nn.Module, n: int, nodes: Iterable[str]) -> dict[str, nn.Module | Tensor]:
    """What is named, once each is known to have an axis of nodes; several names may be of one."""
    known: dict[str, nn.Module | Tensor] = {}
    for name, module in _parts(model):
        if class_of(module) in (*LINEAR, nn.Embedding):
            known[name] = module
        elif not is_library(module) and not is_closed(module):
            known |= _own_tensors(name, module)
    shapes: dict[str, list[int]] = {
        name: list((part if isinstance(part, Tensor) else _weight(part)).shape)
        for name, part in known.items()
    }
    for name in nodes:
        if n not in shapes.get(name, ()):
            came = f"is {shapes[name]}" if name in shapes else "is not in the model"
            fits = listed([known for known, shape in shapes.items() if n in shape]) or "nothing"
            raise ValueError(f"nodes names {name!r}, which {came}; an axis of {n} has {fits}")
    return {name: known[name] for name in nodes}


def hidden(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules in lists, tuples and dictionaries of modules of the user that are in no other place.

    A walk over submodules misses them, and so does what PyTorch trains, moves and saves.
    """
    known, found = set(model.modules()), dict[nn.Module, str]()
    for name, module in _parts(model):
        if not is_library(module) and not is_closed(module):
            for own, value in vars(module).items():
                for key, part in _held(value, set()):
                    if part not in known:
                        found.setdefault(part, join(name, own + key))
    return [(name, part) for part, name in found.items()]


def _held(value: Any, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield "", value
    if type(value) not in (list, tuple, dict) or id(value) in seen:
        return
    seen.add(id(value))  # a list may hold itself
    for key, part in value.items() if type(value) is dict else enumerate(value):
        for deeper, module in _held(part, seen):
            yield f"[{key!r}]{deeper}", module


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put new modules for old where modules keep them outside of their submodules, in lists say."""
    seen: set[int] = set()
    for module in model.modules():
        for key, value in [*vars(module).items()]:
            vars(module)[key] = _swapped(value, new, seen)


def _swapped(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if type(value) is tuple:
        return tuple(_swapped(part, new, seen) for part in value)
    if type(value) not in (list, dict) or id(value) in seen:
        return value
    seen.add(id(value))  # a list may hold itself
    for key, part in [*(value.items() if type(value) is dict else enumerate(value))]:
        value[key] = _swapped(part, new, seen)
    return value
