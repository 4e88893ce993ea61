"""What must not be accepted in silence: every entry ends in a clear error, or as documented.

Run by ``test_bad_input.py`` in processes of their own, so that an entry which takes the interpreter
down is known by its name: ``python bad_inputs.py CATEGORY...`` prints one line of JSON for each
entry that begins and each that ends.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

import gsym
from gsym import (
    ClusterGroup,
    Orbits,
    Partition,
    PermutationGroup,
    Representation,
    automorphisms,
    check,
    choose_group,
    coarsen,
    kernels,
)
from gsym._files.graphs import read_graph
from gsym._files.signals import read_names, read_partitions, read_positions, read_signals
from gsym.groups import equitable_partition
from gsym.kernels import Segments, Tiles
from gsym.nn import (
    EGNN,
    EGNNConv,
    GNet,
    GNetConv,
    OrbitEmbedding,
    OrbitLinear,
    Penguin,
    PenguinConv,
)
from gsym.transforms import AddOrbits, AddPartition

ROOT = Path(gsym.__file__).parent


@dataclass(frozen=True)
class Bad:
    """One call. ``holds`` says what else than an error is documented."""

    category: str
    label: str
    call: Callable[[], Any]
    words: str
    holds: Callable[[Any], bool] | None = None


def judge(entry: Bad) -> str:
    """Empty if the entry ends as it should; else what is wrong with its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = entry.call()
        except (ValueError, TypeError, ImportError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            if entry.holds is not None:
                return f"documented to work; raises {type(error).__name__}: {error}"
            if ROOT not in Path(last.filename).parents:
                return f"no error of ours: {type(error).__name__}: {error}".replace("\n", " ")[:300]
            if not re.search(entry.words, str(error), re.IGNORECASE):
                return f"says nothing of {entry.words!r}: {error}"[:300]
            return ""
        except AttributeError as error:
            return "" if "never change" in str(error) else f"AttributeError: {error}"[:300]
        except Exception as error:  # whatever else comes is the finding
            return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    if entry.holds is None:
        return f"accepted: {result!r:.120}".replace("\n", " ")
    return "" if entry.holds(result) else f"not as documented: {result!r:.120}"


N = 4
GROUP = ClusterGroup(Partition([0, 0, 1, 1]))
CYCLE = PermutationGroup.from_cycles(N, [(0, 1, 2)])
EDGES = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
X, POS = torch.randn(2, N, 3), torch.randn(2, N, 3)
HUGE = 2**62
NAN = float("nan")


def _nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])


WHOLE: dict[str, Any] = {
    "True": True,
    "a fraction": 1.5,
    "NaN": NAN,
    "a text": "3",
    "a list": [3],
    "a complex number": 3j,
    "minus one": -1,
    "two numbers": torch.tensor([1, 2]),
}
LABELS: dict[str, Any] = {
    "none": None,
    "a text": "0011",
    "texts": ["a", "b"],
    "negative": [0, -1, 1, 0],
    "a gap": [0, 2, 2, 0],
    "huge": [0, HUGE, 1, 0],
    "beyond int64": [0, 2**70, 1, 0],
    "fractions": [0.5, 0, 1, 1],
    "NaN": [0, NAN, 1, 1],
    "booleans": [True, False, True, False],
    "a boolean among numbers": [0, True, 1, 0],
    "complex": torch.zeros(4, dtype=torch.complex64),
    "two axes": [[0, 0], [1, 1]],
    "ragged": [[0], [1, 1]],
    "empty": [],
    "a number": 3,
    "masked": np.ma.masked_array([0, 0, 1, 1], mask=[0, 1, 0, 0]),
    "objects": np.array([0, None, 1, 1], dtype=object),
    "sparse": torch.tensor([0, 0, 1, 1]).to_sparse(),
    "nested": _nested(),
    "on meta": torch.zeros(4, dtype=torch.int64, device="meta"),
    "a set": {0, 1},
    "uint64": np.array([0, 0, 1, 2**63], dtype=np.uint64),
    "dates": np.array(["2020-01-01"] * 4, dtype="datetime64[D]"),
}
PERMS: dict[str, Any] = {
    **{
        name: LABELS[name]
        for name in ("none", "a text", "fractions", "booleans", "masked", "sparse", "on meta")
    },
    "too short": [0, 1, 2],
    "a repeated image": [0, 0, 2, 3],
    "negative": [-1, 1, 2, 3],
    "out of range": [0, 1, 2, 4],
    "huge": [0, 1, 2, HUGE],
}
GRAPHS: dict[str, Any] = {
    "a text": "edges",
    "a number": 3,
    "fractions": EDGES.double(),
    "booleans": EDGES.bool(),
    "int32": EDGES.int(),
    "complex": EDGES.to(torch.complex64),
    "three rows": torch.zeros(3, 4, dtype=torch.int64),
    "transposed": EDGES.T.contiguous(),
    "one axis": torch.zeros(4, dtype=torch.int64),
    "a scalar": torch.tensor(3),
    "negative": EDGES - 1,
    "out of range": EDGES + 1,
    "huge": EDGES + HUGE,
    "sparse": torch.eye(4).to_sparse(),
    "nested": _nested(),
    "on meta": EDGES.to("meta"),
}
WEIGHTS: dict[str, Any] = {
    "a text": "heavy",
    "integers": torch.ones(4, dtype=torch.int64),
    "booleans": torch.ones(4, dtype=torch.bool),
    "complex": torch.ones(4, dtype=torch.complex64),
    "too many": torch.ones(5),
    "too few": torch.ones(3),
    "two axes": torch.ones(4, 2),
    "NaN": torch.tensor([1.0, NAN, 1, 1]),
    "infinite": torch.tensor([1.0, float("inf"), 1, 1]),
    "sparse": torch.ones(4).to_sparse(),
    "on meta": torch.ones(4, device="meta"),
}
SIGNALS: dict[str, Any] = {
    "none": None,
    "a text": "x",
    "a list": X.tolist(),
    "an array": X.numpy(),
    "a masked array": np.ma.masked_array(X.numpy(), mask=X.numpy() > 1),
    "integers": X.long(),
    "booleans": X > 0,
    "complex": X.to(torch.complex64),
    "one axis": X[0, :, 0],
    "too few channels": X[..., :2],
    "too many channels": torch.cat([X, X], -1),
    "float64": X.double(),
    "float16": X.half(),
    "sparse": X.to_sparse(),
    "nested": _nested(),
    "on meta": X.to("meta"),
    "quantised": torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
}
NODES: dict[str, Any] = {"too few nodes": X[:, :3], "too many nodes": torch.cat([X, X], 1)}
BACKENDS: dict[str, Any] = {"unknown": "fast", "a number": 3, "none": None, "empty": ""}


def slot(
    category: str,
    name: str,
    function: Callable[[Any], Any],
    values: dict[str, Any],
    words: str,
    **documented: Callable[[Any], bool] | None,
) -> Iterator[Bad]:
    """One argument with each of the values; ``documented`` by label, with ``_`` for spaces."""
    for label, value in values.items():
        holds = documented.get(label.replace(" ", "_"))
        yield Bad(category, f"{name}: {label}", lambda value=value: function(value), words, holds)


def without(values: dict[str, Any], *labels: str) -> dict[str, Any]:
    return {label: value for label, value in values.items() if label not in labels}


def groups() -> Iterator[Bad]:
    c = "groups"
    yield from slot(c, "Partition", Partition, LABELS, "label|node|integer|gap|character")
    yield from slot(
        c,
        "Partition.from_labels(relabel)",
        lambda v: Partition.from_labels(v, relabel=True),
        without(LABELS, "negative", "a gap", "huge"),
        "label|node|integer",
    )
    sizes = {**WHOLE, "zero": 0, "none": None}
    yield from slot(c, "Partition.single", Partition.single, sizes, "num_nodes|node")
    yield from slot(c, "Partition.singletons", Partition.singletons, sizes, "num_nodes|node")
    clusters = {
        "none": None,
        "a number": 3,
        "empty": [],
        "an empty cluster": [[0, 1], []],
        "a node twice": [[0, 1], [1]],
        "a node missing": [[0], [2]],
        "negative": [[0], [-1]],
        "huge": [[0], [HUGE]],
        "fractions": [[0], [1.5]],
        "booleans": [[False], [True]],
        "texts": [["a"], ["b"]],
    }
    yield from slot(c, "Partition.from_clusters", Partition.from_clusters, clusters, "cluster|node")
    for label, shape in {
        "patch does not divide": (4, 4, 3),
        "patch of zero": (4, 4, 0),
        "booleans": (True, True, True),
        "fractions": (4.0, 4, 2),
        "negative": (-4, 4, 2),
        "texts": ("4", 4, 2),
    }.items():
        call = lambda shape=shape: Partition.grid(*shape)  # noqa: E731
        yield Bad(c, f"Partition.grid: {label}", call, "tile|whole number")
    p = Partition([0, 0, 1, 1])
    others = {"none": None, "another size": Partition([0, 0, 1]), "labels": [0, 0, 1, 1]}
    for method in ("refines", "meet", "join"):
        yield from slot(c, f"Partition.{method}", getattr(p, method), others, "partition|nodes")
    yield from slot(c, "Partition.quotient", p.quotient, GRAPHS, "edge_index|graph|node|edges")
    weigh = lambda v: p.quotient(EDGES, v)  # noqa: E731
    yield from slot(c, "Partition.quotient weights", weigh, WEIGHTS, "edge_weight|weight|edges")
    records = {
        "none": None,
        "empty": {},
        "another kind": GROUP.to_dict(),
        "a later format": {**p.to_dict(), "format": 99},
        "labels with a gap": {**p.to_dict(), "labels": [0, 2]},
        "a text": "Partition",
    }
    yield from slot(
        c,
        "Partition.from_dict",
        Partition.from_dict,
        records,
        "record|kind|format|dict|label|gap|mapping",
    )
    yield from slot(
        c,
        "PermutationGroup degree",
        lambda v: PermutationGroup(v, []),
        sizes,
        "num_nodes|node",
    )
    yield from slot(
        c, "PermutationGroup", lambda v: PermutationGroup(N, [v]), PERMS, "generator|permutation"
    )
    orders = {**WHOLE, "zero": 0, "too large": 4, "huge": HUGE}
    yield from slot(
        c,
        "PermutationGroup order",
        lambda v: PermutationGroup(N, [[1, 2, 0, 3]], order=v),
        orders,
        "order",
    )
    cycles = {
        "not disjoint": [(0, 1), (1, 2)],
        "out of range": [(0, 9)],
        "negative": [(0, -1)],
        "one cycle": (0, 1),
        "booleans": [(True, False)],
        "fractions": [(0.5, 1)],
        "texts": ["01"],
        "none": None,
    }
    yield from slot(
        c,
        "from_cycles",
        lambda v: PermutationGroup.from_cycles(N, v),
        cycles,
        "cycle|generator|node|integer",
    )
    for name, group in (("cycle", CYCLE), ("clusters", GROUP)):
        yield from slot(c, f"{name}.contains", group.contains, PERMS, "perm")
        yield from slot(c, f"{name}.preserves", group.preserves, GRAPHS, "edge_index|graph|node")
        yield from slot(
            c, f"{name}.edge_orbits", group.edge_orbits, GRAPHS, "edge_index|graph|node"
        )
        weigh = lambda v, group=group: group.preserves(EDGES, v)  # noqa: E731
        yield from slot(c, f"{name}.preserves weights", weigh, WEIGHTS, "weight|edges")
        matrices = {
            "none": None,
            "a text": "w",
            "another size": torch.zeros(3, 3),
            "not square": torch.zeros(4, 3),
            "one axis": torch.zeros(4),
            "integers": torch.zeros(4, 4, dtype=torch.int64),
            "booleans": torch.zeros(4, 4, dtype=torch.bool),
            "sparse": torch.eye(4).to_sparse(),
            "a masked array": np.ma.masked_array(np.eye(4), mask=np.eye(4) > 0),
        }
        yield from slot(c, f"{name}.project", group.project, matrices, r"weight|\[")
    yield from slot(
        c,
        "ClusterGroup",
        ClusterGroup,
        {"none": None, "labels": [0, 0, 1], "a number": 3, "a group": GROUP},
        "partition",
    )
    swaps = {
        "another number of clusters": PermutationGroup.symmetric(3),
        "unequal clusters": PermutationGroup.from_cycles(2, [(0, 1)]),
        "a list": [[1, 0]],
        "a text": "auto",
    }
    uneven = Partition([0, 0, 1])
    yield from slot(
        c,
        "ClusterGroup swaps",
        lambda v: ClusterGroup(uneven, swaps=v),
        swaps,
        "swaps|cluster|size",
    )
    for label, args in {
        "a number of orbits too small": (torch.tensor([0, 1]), 1, (1, 1)),
        "fractions": (torch.tensor([0.5, 1]), 2, (1, 1)),
        "sizes that do not sum up": (torch.tensor([0, 1]), 2, (1, 5)),
    }.items():
        yield Bad(c, f"Orbits: {label}", lambda args=args: Orbits(*args), "orbit|index|size")


def representations() -> Iterator[Bad]:
    c = "representations"
    four = PermutationGroup.from_cycles(N, [(0, 1, 2, 3)])
    pose = Representation.from_signs(four, [[-1, 1, 1]])
    other = Representation.trivial(CYCLE, 3)
    words = "generator|sign|channel|representation|group|permutation|row"
    for name, make in {
        "images": lambda v: Representation.from_permutation(four, [v]),
        "rows of images": lambda v: Representation(four, [v], [[1, 1, 1, 1]]),
    }.items():
        yield from slot(c, name, make, without(PERMS, "too short"), words)
    signs = {**without(LABELS, "empty"), "zero": [0, 1], "two": [2, 1], "empty": []}
    yield from slot(c, "signs", lambda v: Representation.from_signs(four, [v]), signs, words)
    rows = {
        "none": None,
        "a number": 3,
        "no row": [],
        "two rows": [[1], [1]],
        "no homomorphism": [[1, 2, 0]],
    }
    for name, build in {
        "all rows": lambda v: Representation.from_permutation(four, v),
        "all signs": lambda v: Representation.from_signs(four, v),
    }.items():
        yield from slot(c, name, build, rows, words)
    tables = {
        "none": None,
        "a number": 3,
        "no matrix": [],
        "a text": "turn",
        "a row": [[1.0, 0.0]],
        "not square": [[[1.0, 0.0]]],
        "not orthogonal": [[[1.0, 0.5], [0.0, 1.0]]],
        "NaN": [[[NAN]]],
        "complex": [torch.eye(2, dtype=torch.complex64)],
        "booleans": [torch.eye(2).bool()],
        "no homomorphism": [[[0.6, -0.8], [0.8, 0.6]]],
        "on meta": [torch.eye(2, device="meta")],
        "sparse": [torch.eye(2).to_sparse()],
    }
    yield from slot(
        c, "matrices", lambda v: Representation.from_matrices(four, v), tables, f"{words}|matri"
    )
    makers: dict[str, Callable[[Any], Any]] = {
        "trivial": lambda v: Representation.trivial(four, v),
        "regular copies": lambda v: Representation.regular(four, v),
        "copies": lambda v: pose * v,
    }
    for name, make in makers.items():
        counts = {**WHOLE, "zero": 0, "none": None}
        yield from slot(c, name, make, counts, "channels|copies|whole")
    owners = {"none": None, "a partition": Partition([0, 0, 1, 1]), "a text": "mirror"}
    for name, make in {
        "group of trivial": lambda v: Representation.trivial(v, 2),
        "group of signs": lambda v: Representation.from_signs(v, [[-1]]),
        "group of regular": Representation.regular,
    }.items():
        yield from slot(c, name, make, owners, "group")
    yield from slot(c, "sum", lambda v: pose + v, {"of another group": other}, "of")
    yield from slot(
        c, "of", pose.of, {**PERMS, "not in the group": [1, 0, 2, 3]}, "perm|group|node"
    )
    turn = [1, 2, 3, 0]
    kept = without(SIGNALS, "float64", "float16", "on meta", "sparse", "nested", "quantised")
    yield from slot(c, "act", lambda v: pose.act(turn, v), {**kept, **NODES}, r"x must|real|float")
    records = {
        "none": None,
        "empty": {},
        "another kind": four.to_dict(),
        "another format": {**pose.to_dict(), "format": 99},
        "no group": {k: v for k, v in pose.to_dict().items() if k != "group"},
        "other signs": {**pose.to_dict(), "signs": [[0, 1, 1]]},
    }
    yield from slot(c, "from_dict", Representation.from_dict, records, f"{words}|to_dict|format")
    wrong = {"a text": "signs", "rows": [[-1, 1, 1]], "of another group": other, "a group": four}
    sides: dict[str, Callable[[Any], Any]] = {
        "OrbitLinear in": lambda v: OrbitLinear(3, 2, four, in_rep=v),
        "OrbitLinear out": lambda v: OrbitLinear(2, 3, four, out_rep=v),
        "OrbitLinear channels": lambda v: OrbitLinear(2, 2, four, in_rep=v),
        "GNetConv in": lambda v: GNetConv(3, 2, four, in_rep=v),
        "GNetConv pointwise": lambda v: GNetConv(3, 2, four, in_rep=v, propagate="pointwise"),
        "GNet out": lambda v: GNet([2, 4, 3], four, out_rep=v),
        "GNet hidden": lambda v: GNet([3, 6, 3], four, in_rep=v),
        "GNet signs hidden": lambda v: GNet([3, 6, 3], four, hidden=v),
        "EGNNConv in": lambda v: EGNNConv(3, 2, 8, group=four, in_rep=v),
        "EGNN signs hidden": lambda v: EGNN(3, 3, 6, group=four, hidden=v),
        "PenguinConv pos": lambda v: PenguinConv(3, 3, 8, group=four, pos_rep=v),
        "S_n": lambda v: OrbitLinear(3, 2, in_rep=v),
        "check": lambda v: check.equivariance_error(torch.relu, four, X, in_rep=v),
        "commutant": lambda v: four.commutant_dim(v),
        "project": lambda v: four.project(torch.zeros(N, N, 1, 3), v),
    }
    for name, make in sides.items():
        mine = {**wrong, "its own": pose} if name.split()[-1] in _REFUSING else wrong
        yield from slot(c, name, make, mine, r"_rep|representation|hidden|pointwise")


# Sides that refuse a representation which is right elsewhere.
_REFUSING = ("channels", "hidden", "S_n")


def graphs() -> Iterator[Bad]:
    c = "automorphisms"
    given = without(GRAPHS, "sparse")
    for name, function in (("automorphisms", automorphisms), ("equitable", equitable_partition)):
        yield from slot(
            c, name, lambda v, f=function: f(v, N), given, "edge_index|graph|node|shape|edges"
        )
        counts = {**WHOLE, "zero": 0, "none": None, "too few": 3}
        yield from slot(
            c, f"{name} num_nodes", lambda v, f=function: f(EDGES, v), counts, "num_nodes|node"
        )
        yield from slot(
            c, f"{name} weights", lambda v, f=function: f(EDGES, N, v), WEIGHTS, "weight|edges"
        )
        labels = without(LABELS, "none", "negative", "a gap", "huge", "booleans")
        yield from slot(
            c,
            f"{name} labels",
            lambda v, f=function: f(EDGES, N, None, v),
            labels,
            "node_labels|label",
        )
    budgets = {"zero": 0, "minus one": -1, "NaN": NAN, "a text": "1", "True": True, "none": None}
    yield from slot(
        c, "time_budget", lambda v: automorphisms(EDGES, N, time_budget=v), budgets, "time_budget"
    )
    solvers = {"unknown": "saucy", "none": None, "a number": 3}
    yield from slot(c, "solver", lambda v: automorphisms(EDGES, N, solver=v), solvers, "solver")
    yield from slot(
        c,
        "start",
        lambda v: equitable_partition(EDGES, N, start=v),
        {"labels": [0, 0, 1, 1], "another size": Partition([0, 1]), "a text": "a"},
        "start",
    )


def _is_nan(y: Any) -> bool:
    return bool(torch.isnan(y).any())


def layers() -> Iterator[Bad]:
    c = "layers"
    channels = {**WHOLE, "zero": 0, "none": None, "huge": HUGE}
    makers: dict[str, Callable[[Any], Any]] = {
        "OrbitLinear in": lambda v: OrbitLinear(v, 2, GROUP),
        "OrbitLinear out": lambda v: OrbitLinear(2, v, GROUP),
        "OrbitEmbedding": lambda v: OrbitEmbedding(v, GROUP),
        "GNetConv in": lambda v: GNetConv(v, 2, GROUP),
        "GNetConv pointwise out": lambda v: GNetConv(2, v, GROUP, propagate="pointwise"),
        "GNet": lambda v: GNet([2, v, 2], GROUP),
        "EGNNConv in": lambda v: EGNNConv(v, 2),
        "EGNNConv out": lambda v: EGNNConv(2, v),
        "EGNNConv hidden": lambda v: EGNNConv(2, 2, v),
        "EGNN in": lambda v: EGNN(v, 2),
        "EGNN hidden": lambda v: EGNN(2, 2, v),
        "EGNN layers": lambda v: EGNN(2, 2, 8, num_layers=v),
        "PenguinConv in": lambda v: PenguinConv(v, 2),
        "PenguinConv hidden": lambda v: PenguinConv(2, 2, v),
        "Penguin layers": lambda v: Penguin(2, 2, 8, num_layers=v),
    }
    words = "channels|in_channels|hidden|num_layers|must be|GiB|whole"
    for name, make in makers.items():
        values = without(channels, "huge") if "layers" in name else channels
        yield from slot(c, name, make, values, words)
    yield from slot(c, "EGNN out", lambda v: EGNN(2, v), without(channels, "none"), words)
    dims = without(channels, "none", "huge")
    yield from slot(c, "EGNNConv dim", lambda v: EGNNConv(2, 2, 8, dim=v), dims, "dim")
    yield from slot(c, "PenguinConv dim", lambda v: PenguinConv(2, 2, 8, dim=v), dims, "dim")
    yield from slot(
        c, "edge_dim", lambda v: EGNNConv(2, 2, 8, v), without(dims, "zero"), "edge_dim"
    )
    yield from slot(
        c,
        "rank",
        lambda v: OrbitLinear(2, 2, GROUP, mixing="low_rank", rank=v),
        {**without(channels, "huge")},
        "rank",
    )
    layer_groups = {
        "a partition": Partition([0, 0, 1, 1]),
        "labels": [0, 0, 1, 1],
        "a number": 4,
        "a text": "S_4",
        "a boolean": True,
    }
    for name, make in {
        "OrbitLinear": lambda v: OrbitLinear(2, 2, v),
        "OrbitEmbedding": lambda v: OrbitEmbedding(2, v),
        "GNetConv": lambda v: GNetConv(2, 2, v),
        "GNet": lambda v: GNet([2, 2], v),
        "EGNNConv": lambda v: EGNNConv(2, 2, 8, group=v),
        "EGNN": lambda v: EGNN(2, 2, 8, group=v),
        "PenguinConv": lambda v: PenguinConv(2, 2, 8, group=v),
    }.items():
        yield from slot(c, f"{name} group", make, layer_groups, "group")
    chains = {
        "no level": [],
        "a partition": Partition([0, 0, 1, 1]),
        "a group": GROUP,
        "a number": 3,
        "a text": "all",
        "numbers": [4, 2],
        "none among them": [GROUP, None],
        "twice the same": [GROUP, GROUP],
        "another number of nodes": [GROUP, PermutationGroup.symmetric(5)],
    }
    soft = OrbitLinear(2, 2, levels=[GROUP, Partition.single(N)])
    for name, make in {
        "OrbitLinear levels": lambda v: OrbitLinear(2, 2, levels=v),
        "OrbitEmbedding levels": lambda v: OrbitEmbedding(2, levels=v),
        "profile": lambda v: check.profile(soft, v, torch.randn(2, N, 2)),
        "GNetConv levels": lambda v: GNetConv(2, 2, levels=v),
        "GNet levels": lambda v: GNet([2, 2], levels=v),
        "soften": soft.soften,
    }.items():
        yield from slot(c, name, make, chains, "level")
    others = without(chains, "a group")
    yield from slot(c, "convert", lambda v: gsym.convert(soft, v), others, "level")
    levels = {"no level": 3, "True": True, "a text": "2", "none": None, "another group": CYCLE}
    yield from slot(c, "harden", soft.harden, levels, "level")
    groups = {**without(layer_groups, "a boolean"), "of other nodes": PermutationGroup.symmetric(5)}
    yield from slot(c, "to_group", soft.to_group, groups, "group")
    names = {"unknown": "some", "none": None, "a number": 1, "True": True}
    yield from slot(c, "mixing", lambda v: OrbitLinear(2, 2, GROUP, mixing=v), names, "mixing")
    yield from slot(
        c, "propagate", lambda v: GNetConv(2, 2, GROUP, propagate=v), names, "propagate"
    )
    acts = {**names, "a class": torch.nn.ReLU, "halves": "glu", "needs more": "threshold"}
    for name, make in {
        "EGNNConv act": lambda v: EGNNConv(2, 2, 8, act=v),
        "EGNN act": lambda v: EGNN(2, 2, 8, act=v),
        "PenguinConv act": lambda v: PenguinConv(2, 2, 8, act=v),
    }.items():
        yield from slot(c, name, make, acts, "act")
    moves = {"none": None, "a number": 1, "a text": "no"}
    yield from slot(
        c, "update_pos", lambda v: EGNNConv(2, 2, 8, update_pos=v), moves, "update_pos must be"
    )
    yield from slot(c, "coord_aggr", lambda v: EGNNConv(2, 2, 8, coord_aggr=v), names, "coord_aggr")
    alphas = {"unknown": "some", "none": None, "True": True, "-0.1": -0.1, "1.1": 1.1, "NaN": NAN}
    yield from slot(c, "alpha", lambda v: PenguinConv(2, 2, 8, alpha=v), alphas, "alpha")
    clamps = {"zero": 0, "minus one": -1.0, "NaN": NAN, "a text": "1", "True": True, "huge": 1e30}
    yield from slot(c, "clamp", lambda v: EGNNConv(2, 2, 8, clamp=v), clamps, "clamp")
    vectors = {
        "one axis": torch.ones(3),
        "empty": torch.ones(0, 3),
        "NaN": torch.tensor([[NAN, 0, 0]]),
        "a text": "up",
        "another dim": torch.ones(1, 2),
    }
    yield from slot(
        c,
        "extra_vectors",
        lambda v: EGNNConv(2, 2, 8, dim=3, extra_vectors=v),
        vectors,
        "extra_vectors",
    )
    yield from slot(
        c, "learn_axis", lambda v: EGNNConv(2, 2, 8, learn_axis=v), {"without dim": True}, "dim"
    )
    yield from slot(
        c, "residual", lambda v: EGNNConv(2, 3, 8, residual=v), {"of two widths": True}, "residual"
    )
    yield from slot(
        c, "GNet widths", GNet, {"one": [2], "none": None, "a number": 3, "empty": []}, "channels"
    )
    coarse = {**without(GRAPHS, "out of range", "negative"), "out of range": EDGES, "none": None}
    yield from slot(
        c,
        "cluster_edge_index",
        lambda v: OrbitLinear(2, 2, GROUP, mixing="quotient", cluster_edge_index=v),
        coarse,
        "edge_index",
    )


def forward() -> Iterator[Bad]:
    c = "forward"
    linear, conv = OrbitLinear(3, 2, GROUP), GNetConv(3, 2, GROUP)
    free, net = GNetConv(3, 2), GNet([3, 2], GROUP, propagate="none")
    egnn = EGNNConv(3, 3, 8, group=GROUP)
    penguin = PenguinConv(3, 3, 8, alpha="node")
    calls: dict[str, Callable[[Any], Any]] = {
        "OrbitLinear": linear,
        "GNetConv": lambda v: conv(v, EDGES),
        "GNetConv S_n": lambda v: free(v, EDGES),
        "GNet": net,
        "EGNNConv": lambda v: egnn(v, POS, EDGES),
        "PenguinConv": lambda v: penguin(v, POS, EDGES),
    }
    for name, call in calls.items():
        yield from slot(c, f"{name} x", call, SIGNALS, r"\bx\b|channels|weights")
        if name not in ("GNetConv S_n", "PenguinConv"):
            yield from slot(c, f"{name} x", call, NODES, "nodes")
        if name in ("OrbitLinear", "GNetConv", "GNet"):
            # Values are not read: they pass through.
            bad = X.clone()
            bad[0, 0, 0] = NAN
            holds = _is_nan
            yield Bad(c, f"{name} x: NaN", lambda call=call, bad=bad: call(bad), "", holds)
    edges = without(GRAPHS, "int32", "sparse")
    edges |= {
        "int32": EDGES.int(),
        "sparse": torch.eye(4).to_sparse(),
        "none": None,
        "a list": EDGES.tolist(),
    }
    for name, call in {
        "GNetConv": lambda v: conv(X, v),
        "EGNNConv": lambda v: egnn(X, POS, v),
        "PenguinConv": lambda v: penguin(X, POS, v),
    }.items():
        # Without a graph GNetConv is its linear map.
        given = without(edges, "none") if name == "GNetConv" else edges
        yield from slot(c, f"{name} edge_index", call, given, "edge_index")
    weights = without(WEIGHTS, "NaN", "infinite")
    yield from slot(c, "GNetConv edge_weight", lambda v: conv(X, EDGES, v), weights, "edge_weight")
    places = {
        **without(SIGNALS, "too few channels", "too many channels", "float64", "float16"),
        "NaN": POS * torch.tensor([1, 1, NAN]),
        "infinite": POS * torch.tensor([1, 1, float("inf")]),
        "another number of nodes": POS[:, :3],
        "another batch": POS[:1],
        "float64": POS.double(),
    }
    yield from slot(c, "EGNNConv pos", lambda v: egnn(X, v, EDGES), places, "pos")
    yield from slot(c, "PenguinConv pos", lambda v: penguin(X, v, EDGES), places, "pos")
    flat = X.flatten(0, 1)
    sizes = {"zero": 0, "minus one": -1, "three": 3, "True": True, "a fraction": 2.0, "a text": "2"}
    yield from slot(
        c, "batch_size", lambda v: conv(flat, EDGES, batch_size=v), sizes, "batch_size|rows|nodes"
    )
    yield from slot(
        c,
        "EGNNConv batch_size",
        lambda v: egnn(flat, POS.flatten(0, 1), EDGES, batch_size=v),
        sizes,
        "batch_size|rows|nodes",
    )
    attributed = EGNNConv(3, 3, 8, edge_dim=2)
    attrs = {
        "none": None,
        "a text": "a",
        "one axis": torch.zeros(4),
        "too few edges": torch.zeros(3, 2),
        "too many numbers": torch.zeros(4, 3),
        "integers": torch.zeros(4, 2, dtype=torch.int64),
        "float64": torch.zeros(4, 2).double(),
        "on meta": torch.zeros(4, 2, device="meta"),
        "sparse": torch.ones(4, 2).to_sparse(),
    }
    yield from slot(c, "edge_attr", lambda v: attributed(X, POS, EDGES, v), attrs, "edge_attr")
    yield Bad(
        c, "edge_attr: not wanted", lambda: egnn(X, POS, EDGES, torch.zeros(4, 2)), "edge_attr"
    )
    moving = EGNNConv(3, 3, 8, velocity=True)
    speeds = {"none": None, "another shape": POS[:, :3], "NaN": POS * NAN, "integers": POS.long()}
    yield from slot(c, "velocity", lambda v: moving(X, POS, EDGES, velocity=v), speeds, "velocity")
    yield Bad(c, "velocity: not wanted", lambda: egnn(X, POS, EDGES, velocity=POS), "velocity")
    given = PenguinConv(3, 3, 8, alpha="given")
    scores = {
        "none": None,
        "-0.1": -0.1,
        "NaN": NAN,
        "True": True,
        "a tensor beyond 1": torch.full((N, 1), 1.5),
        "a tensor of NaN": torch.full((N, 1), NAN),
        "another shape": torch.zeros(N, 2),
        "a text": "node",
    }
    yield from slot(c, "given alpha", lambda v: given(X, POS, EDGES, alpha=v), scores, "alpha")
    state = OrbitLinear(3, 2, ClusterGroup(Partition([0, 1, 1, 0]))).state_dict()
    yield Bad(c, "a checkpoint of another group", lambda: linear.load_state_dict(state), "group")


def primitives() -> Iterator[Bad]:
    c = "kernels"
    index = torch.tensor([0, 0, 1, 1])
    segments = Segments.from_index(index, 2)
    tiles = Tiles(segments, 3, 2)
    indices = {
        "none": None,
        "a list": [0, 0, 1],
        "fractions": index.double(),
        "booleans": index.bool(),
        "two axes": index[None],
        "negative": index - 1,
        "out of range": index + 1,
        "huge": index + HUGE,
        "on meta": index.to("meta"),
        "sparse": index.to_sparse(),
    }
    for name, make in (("from_index", Segments.from_index), ("Segments", Segments)):
        yield from slot(
            c, name, lambda v, m=make: m(v, 2), indices, "segment|index|negative|non-negative"
        )
        counts = {**WHOLE, "too few": 1, "none": None}
        yield from slot(c, f"{name} count", lambda v, m=make: m(index, v), counts, "segment")
    rows = {
        "none": None,
        "a list": [[1.0]] * 4,
        "an array": np.ones((4, 1)),
        "integers": torch.ones(4, 1, dtype=torch.int64),
        "complex": torch.ones(4, 1, dtype=torch.complex64),
        "one axis": torch.ones(4),
        "too few rows": torch.ones(3, 1),
        "too many rows": torch.ones(5, 1),
        "on meta": torch.ones(4, 1, device="meta"),
        "sparse": torch.ones(4, 1).to_sparse(),
    }
    for name in ("segment_sum", "segment_mean", "segment_max"):
        function = getattr(kernels, name)
        yield from slot(c, name, lambda v, f=function: f(v, segments), rows, r"\bx\b")
    tables = {"none": None, "a tensor": index, "a list": [0, 0, 1, 1], "tiles": tiles}
    yield from slot(
        c,
        "segment_sum segments",
        lambda v: kernels.segment_sum(torch.ones(4, 1), v),
        tables,
        "segments",
    )
    yield from slot(
        c,
        "backend",
        lambda v: kernels.segment_sum(torch.ones(4, 1), segments, backend=v),
        BACKENDS,
        "backend|back-end",
    )
    x, weight = torch.ones(4, 3), torch.ones(2, 3, 2)
    weights = {
        "another number": torch.ones(3, 3, 2),
        "another width": torch.ones(2, 4, 2),
        "two axes": torch.ones(3, 2),
        "float64": weight.double(),
        "integers": weight.long(),
        "on meta": weight.to("meta"),
        "none": None,
    }
    yield from slot(
        c, "indexed_linear", lambda v: kernels.indexed_linear(x, v, tiles), weights, "weight"
    )
    yield from slot(
        c,
        "grouped_linear",
        lambda v: kernels.grouped_linear(x.view(2, 2, 3), v),
        weights,
        "weight",
    )
    yield from slot(
        c,
        "indexed_linear tiles",
        lambda v: kernels.indexed_linear(x, weight, v),
        {"none": None, "segments": segments, "a list": [0]},
        "tiles",
    )
    matrix, bias = torch.ones(6, 4), torch.ones(2, 2)
    labels = torch.tensor([0, 0, 1, 1])
    yield from slot(
        c,
        "Clusters labels",
        lambda v: kernels.Clusters(v, 2, 3, 2),
        {
            "empty cluster": torch.zeros(4, dtype=torch.int64),
            "negative": labels - 1,
            "too large": labels + 1,
            "fractions": labels.double(),
            "two axes": labels[None],
            "a list": labels.tolist(),
            "none": None,
            "on meta": labels.to("meta"),
        },
        "index|cluster",
    )
    rows = kernels.Clusters(labels, 2, 3, 2)
    yield from slot(
        c,
        "cluster_linear clusters",
        lambda v: kernels.cluster_linear(x, weight, matrix, bias, v),
        {
            "sizes": torch.tensor([2.0, 2.0]),
            "tiles": tiles,
            "none": None,
            "another number of rows": kernels.Clusters(torch.tensor([0, 0, 1]), 2, 3, 2),
            "three clusters": kernels.Clusters(torch.tensor([0, 1, 2, 2]), 3, 3, 2),
            "on meta": rows.to("meta"),
        },
        "weight|cluster|index",
    )
    order = torch.tensor([1, 0, 2, 3])
    orders = {
        "none": None,
        "a list": order.tolist(),
        "fractions": order.double(),
        "too short": order[:3],
        "two axes": order[None],
        "on meta": order.to("meta"),
    }
    yield from slot(c, "permute_rows", lambda v: kernels.permute_rows(x, v, order), orders, "order")
    source = Segments.from_index(torch.tensor([0, 1, 2, 3, 0]), 4)
    yield Bad(
        c,
        "gather_segment_sum: another number of entries",
        lambda: kernels.gather_segment_sum(x, source, segments),
        "entries",
    )
    factors = without(WEIGHTS, "NaN", "infinite")
    four = Segments.from_index(torch.tensor([0, 1, 2, 3]), 4)
    yield from slot(
        c,
        "gather_segment_sum weight",
        lambda v: kernels.gather_segment_sum(x, four, segments, v),
        factors,
        "weight",
    )
    for name in ("index", "order", "pointers", "num_segments"):
        yield Bad(
            c,
            f"writing to Segments.{name}",
            lambda n=name: setattr(segments, n, index),
            "never change",
        )

    def written() -> Any:
        segments.order.fill_(10**6)
        return kernels.segment_sum(torch.ones(4, 1), segments)

    yield Bad(c, "writing into Segments.order", written, "", lambda y: y.tolist() == [[2.0], [2.0]])


def clustering() -> Iterator[Bad]:
    c = "coarsen"
    ring = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    edges = {
        "a text": "edges",
        "fractions": ring.double(),
        "three rows": torch.zeros(3, 6, dtype=torch.int64),
        "negative": ring - 1,
        "out of range": ring + 1,
        "huge": ring + HUGE,
        "on meta": ring.to("meta"),
        "nested": _nested(),
        "no edges": torch.empty(2, 0, dtype=torch.int64),
    }
    words = "edge_index|node|edges|graph"
    for method in ("ward", "spectral", "graclus", "twins"):
        values = without(edges, "no edges") if method == "twins" else edges
        yield from slot(c, method, lambda v, m=method: coarsen(v, 6, method=m), values, words)
    counts = {**WHOLE, "zero": 0, "too few": 3}
    yield from slot(c, "num_nodes", lambda v: coarsen(ring, v), counts, "num_nodes|node")
    weights = {
        **{k: v for k, v in WEIGHTS.items() if k not in ("too many", "too few", "NaN", "infinite")},
        "negative": -torch.ones(6),
        "NaN": torch.full((6,), NAN),
        "infinite": torch.full((6,), float("inf")),
        "too many": torch.ones(7),
        "masked": np.ma.masked_array(np.ones(6), mask=np.arange(6) > 3),
    }
    yield from slot(c, "edge_weight", lambda v: coarsen(ring, 6, v), weights, "weight|edges")
    noise = torch.randn(8, 6)
    signals = {
        "a text": "x",
        "NaN": noise * NAN,
        "infinite": noise * float("inf"),
        "complex": noise.to(torch.complex64),
        "another number of nodes": noise[:, :5],
        "one axis": noise[0],
        "four axes": noise[None, None],
        "no samples": noise[:0],
        "masked": np.ma.masked_array(noise.numpy(), mask=noise.numpy() > 1),
        "texts": np.array([["a"] * 6]),
    }
    yield from slot(
        c, "signals", lambda v: coarsen(ring, 6, signals=v), signals, "signals|finite|nodes"
    )
    yield from slot(
        c,
        "risk signals",
        lambda v: coarsen(None, 6, signals=v, method="risk"),
        signals,
        "signals|finite|nodes",
    )
    methods = {"near": "wart", "unknown": "xyz", "none": None, "a number": 3, "a list": ["ward"]}
    yield from slot(c, "method", lambda v: coarsen(ring, 6, method=v), methods, "method")
    levels = {
        "zero": [0],
        "too many": [7],
        "negative": [-1],
        "a fraction": [1.5],
        "a boolean": [True],
        "a text": ["2"],
        "a number": 2,
        "NaN": [NAN],
    }
    yield from slot(c, "levels", lambda v: coarsen(ring, 6, levels=v), levels, "level")
    seeds = {"a fraction": 1.5, "a text": "1", "none": None, "minus one": -1, "True": True}
    yield from slot(c, "seed", lambda v: coarsen(ring, 6, method="spectral", seed=v), seeds, "seed")
    for label, shape in {"zero": (0, 4), "a boolean": (True, 6), "a fraction": (2.0, 3)}.items():
        yield Bad(
            c,
            f"grid: {label}",
            lambda s=shape: coarsen(None, method="grid", height=s[0], width=s[1]),
            "height|width|image|whole|at least one node",
        )
    yield Bad(c, "nothing at all", coarsen, "edge_index|num_nodes|graph|signals")
    h = coarsen(ring, 6)
    picks = {"zero": 0, "seven": 7, "a text": "2", "a fraction": 1.5, "True": True, "none": None}
    yield from slot(c, "Hierarchy[k]", lambda v: h[v], picks, "level")


def choosing() -> Iterator[Bad]:
    c = "choose_group"
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, N, 2, generator=random), torch.randn(20, N, 2, generator=random)
    offers = [Partition.single(N), Partition([0, 0, 1, 1])]
    candidates = {
        "none": None,
        "empty": [],
        "a text": "ward",
        "a group": GROUP,
        "numbers": [1, 2],
        "another size": [Partition([0, 1])],
        "a layer": [OrbitLinear(2, 2, GROUP)],
    }
    yield from slot(
        c, "candidates", lambda v: choose_group(v, x, y), candidates, "candidate|group|nodes"
    )
    signals = {
        "none": None,
        "a text": "x",
        "NaN": x * NAN,
        "infinite": x * float("inf"),
        "constant": torch.ones(20, N, 2),
        "complex": x.to(torch.complex64),
        "texts": np.array([["a"] * N] * 20),
        "another number of nodes": x[:, :3],
        "another number of samples": x[:19],
        "one sample": x[:1],
        "no samples": x[:0],
        "four axes": x[None],
        "masked": np.ma.masked_array(x.numpy(), mask=x.numpy() > 1),
        "huge": x * 1e30 * 1e8,
    }
    words = r"\bx\b|signal|sample|nodes|finite"
    yield from slot(
        c, "x", lambda v: choose_group(offers, v, y), without(signals, "constant", "huge"), words
    )
    yield from slot(
        c,
        "denoised",
        lambda v: choose_group(offers, v),
        without(signals, "another number of samples", "huge"),
        words,
    )
    targets = without(signals, "none", "constant", "huge")
    yield from slot(
        c, "y", lambda v: choose_group(offers, x, v), targets, r"\by\b|target|sample|nodes"
    )
    wholes = {**WHOLE, "zero": 0, "none": None}
    yield from slot(
        c,
        "block",
        lambda v: choose_group(offers, x, y, block=v),
        without(wholes, "a text"),
        "block",
    )
    score = lambda group, *rest: 0.0  # noqa: E731
    yield from slot(
        c,
        "folds",
        lambda v: choose_group(offers, x, y, score=score, folds=v),
        {**wholes, "one": 1, "too many": 99},
        "fold",
    )
    yield from slot(
        c,
        "score",
        lambda v: choose_group(offers, x, y, score=v),
        {
            "a text": "mse",
            "a number": 1,
            "returns a text": lambda *a: "good",
            "returns None": lambda *a: None,
        },
        "scor",
    )
    yield from slot(
        c,
        "swaps",
        lambda v: choose_group(offers, x, y, swaps=v),
        {"unknown": "all", "True": True, "a number": 3},
        "swaps",
    )
    h = coarsen(EDGES, N)
    levels = {
        "zero": [0],
        "seven": [7],
        "a text": ["2"],
        "a boolean": [True],
        "empty": [],
        "a number": 2,
    }
    yield from slot(
        c, "levels", lambda v: choose_group(h, x, y, levels=v), levels, "level|candidate"
    )
    yield from slot(
        c,
        "edge_index",
        lambda v: choose_group(offers, x, y, edge_index=v),
        without(GRAPHS, "sparse"),
        "edge_index|graph|node",
    )


def checks() -> Iterator[Bad]:
    c = "check"
    fine = torch.randn(2, N, 3)
    signals = {
        "none": None,
        "a text": "x",
        "an array": fine.numpy(),
        "integers": fine.long(),
        "complex": fine.to(torch.complex64),
        "empty": fine[:0],
        "no channels": fine[..., :0],
        "another number of nodes": fine[:, :3],
        "one axis": fine[0, :, 0],
    }
    for name in ("equivariance_error", "assert_equivariant"):
        function = getattr(check, name)
        values = without(signals, "empty", "no channels") if "assert" in name else signals
        yield from slot(c, name, lambda v, f=function: f(torch.square, CYCLE, v), values, r"\bx\b")
        groups = {"none": None, "a partition": Partition([0, 0, 1, 1]), "labels": [0, 0, 1, 1]}
        yield from slot(
            c, f"{name} group", lambda v, f=function: f(torch.square, v, fine), groups, "group"
        )
        layers = {
            "none": None,
            "a number": 3,
            "returns None": lambda x: None,
            "returns a number": lambda x: 1.0,
            "returns a sum": lambda x: x.sum(),
            "returns fewer nodes": lambda x: x[..., :2, :],
            "returns complex": lambda x: x.to(torch.complex64),
        }
        yield from slot(
            c, f"{name} layer", lambda v, f=function: f(v, CYCLE, fine), layers, "layer"
        )
    names = {"unknown": ["EMAs"], "none": [None], "a number": [3]}
    yield from slot(
        c,
        "treatments",
        lambda v: check.check_module(lambda: torch.nn.Linear(3, 3), fine, treatments=v),
        names,
        "unknown treatment",
    )


def transforms() -> Iterator[Bad]:
    c = "transforms"
    data = Data(edge_index=EDGES, num_nodes=N)
    partition = Partition([0, 0, 1, 1])
    objects = {
        "none": None,
        "a text": "graph",
        "a number": 3,
        "another size": Data(edge_index=EDGES % 3, num_nodes=3),
        "edges out of range": Data(edge_index=EDGES + 3, num_nodes=N),
        "fractions": Data(edge_index=EDGES.double(), num_nodes=N),
        "no edges": Data(num_nodes=N),
    }
    words = "graph|data|node|edge_index|edges"
    yield from slot(c, "AddOrbits", AddOrbits(GROUP), objects, words)
    yield from slot(
        c,
        "AddPartition",
        AddPartition(partition),
        without(objects, "edges out of range", "fractions", "no edges"),
        words,
    )
    by_method = without(objects, "another size")
    yield from slot(c, "AddPartition method", AddPartition(method="ward", k=2), by_method, words)
    yield from slot(
        c,
        "AddOrbits group",
        AddOrbits,
        {"none": None, "a partition": partition, "a text": "S"},
        "group",
    )
    yield from slot(
        c,
        "AddPartition partition",
        AddPartition,
        {"none": None, "labels": [0, 0, 1], "a group": GROUP},
        "partition",
    )
    yield from slot(
        c,
        "AddPartition k",
        lambda v: AddPartition(method="ward", k=v)(data),
        {**WHOLE, "zero": 0, "none": None, "nine": 9},
        "level|k=|clusters",
    )
    yield from slot(
        c,
        "AddPartition method name",
        lambda v: AddPartition(method=v, k=2)(data),
        {"unknown": "wart", "a number": 3},
        "method",
    )


def readers() -> Iterator[Bad]:
    c = "readers"
    folder = Path(tempfile.mkdtemp())

    def write(name: str, content: str | bytes) -> str:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def arrays(name: str, **values: Any) -> str:
        np.savez(folder / name, **values)
        return str(folder / name)

    sparse = folder / "masked.npz"
    np.savez(sparse, adj=np.full((2, 3), 1.0))
    pickled = folder / "objects.npz"
    np.savez(pickled, edge_index=np.array([{"a": 1}], dtype=object))
    files = {
        "missing": str(folder / "missing.txt"),
        "a folder": str(folder),
        "unknown kind": write("graph.xyz", "0 1\n"),
        "empty": write("empty.txt", ""),
        "blanks": write("blank.csv", "\n\n\n"),
        "binary": write("binary.txt", bytes(range(256))),
        "one column": write("one.csv", "1\n2\n3\n"),
        "words": write("words.txt", "these are words alone\nand more of them here\n"),
        "negative": write("negative.txt", "0 -1\n1 2\n"),
        "fractions": write("fractions.csv", "0.5,1\n1,2\n"),
        "NaN weights": write("nan.csv", "0,1,nan\n1,2,1\n"),
        "infinite weights": write("inf.csv", "0,1,inf\n1,2,1\n"),
        "a truncated archive": write("cut.npz", b"PK\x03\x04 nothing"),
        "a truncated tensor": write("cut.pt", b"PK\x03\x04 nothing"),
        "pickled objects": str(pickled),
        "not square": str(sparse),
        "no graph inside": arrays("other.npz", x=np.zeros(3)),
        "edges of fractions": arrays("frac.npz", edge_index=np.array([[0.5, 1], [1, 2]])),
        "edges negative": arrays("neg.npz", edge_index=np.array([[0, -1], [1, 2]])),
        "edges of three rows": arrays("three.npz", edge_index=np.zeros((3, 4), dtype=np.int64)),
        "weights too few": arrays(
            "few.npz", edge_index=np.array([[0, 1], [1, 2]]), edge_weight=np.ones(1)
        ),
        "num_nodes too small": arrays(
            "small.npz", edge_index=np.array([[0, 1], [1, 2]]), num_nodes=np.array(2)
        ),
        "bad XML": write("bad.graphml", "<graphml><graph>"),
        "bad GML": write("bad.gml", "graph [ node [ id "),
        "bad JSON": write("bad.json", '{"nodes": ['),
        "bad Matrix Market": write("bad.mtx", "%%MatrixMarket matrix coordinate real\n3 3\n"),
        "a matrix of a wrong size": write(
            "size.mtx", "%%MatrixMarket matrix coordinate real general\n2 3 1\n1 3 1.0\n"
        ),
    }
    yield from slot(c, "read_graph", read_graph, files, r"\w+")
    signals = {
        **{
            k: files[k] for k in ("missing", "a folder", "unknown kind", "empty", "binary", "words")
        },
        **{k: files[k] for k in ("a truncated archive", "pickled objects")},
        "infinite": write("x_inf.csv", "1,2,inf,4\n1,2,3,4\n"),
        "ragged": write("x_ragged.csv", "1,2,3,4\n1,2,3,4,5,6,7\n"),
        "another number of nodes": write("x_three.csv", "1,2,3\n4,5,6\n"),
        "complex": arrays("x_complex.npz", x=np.zeros((2, 4), dtype=complex)),
        "texts": arrays("x_text.npz", x=np.array([["a"] * 4] * 2)),
        "four axes": arrays("x_four.npz", x=np.zeros((2, 4, 1, 1))),
        "no samples": arrays("x_none.npz", x=np.zeros((0, 4))),
        "two arrays": arrays("x_two.npz", a=np.zeros((2, 4)), b=np.zeros((2, 4))),
    }
    yield from slot(c, "read_signals", lambda v: read_signals(v, N), signals, r"\w+")
    labels = {
        **{k: files[k] for k in ("missing", "empty", "binary", "words", "a truncated archive")},
        "a gap": write("l_gap.txt", "0\n2\n2\n0\n"),
        "negative": write("l_neg.txt", "0\n-1\n0\n0\n"),
        "fractions": write("l_frac.txt", "0\n0.5\n0\n0\n"),
        "another size": write("l_three.txt", "0\n1\n1\n"),
    }
    yield from slot(c, "read_partitions", lambda v: read_partitions(v, N), labels, r"\w+")
    positions = {
        "missing": files["missing"],
        "three axes": arrays("p_three.npz", pos=np.zeros((N, 3))),
        "NaN": arrays("p_nan.npz", pos=np.full((N, 2), NAN)),
        "texts": arrays("p_text.npz", pos=np.array([["a", "b"]] * N)),
    }
    yield from slot(c, "read_positions", lambda v: read_positions(v, N), positions, r"\w+")
    names = {
        "missing": files["missing"],
        "empty": files["empty"],
        "binary": files["binary"],
        "a name twice": write("n_twice.txt", "a\nb\na\n"),
    }
    yield from slot(c, "read_names", read_names, names, r"\w+")


CATEGORIES: dict[str, Callable[[], Iterator[Bad]]] = {
    "groups": groups,
    "representations": representations,
    "automorphisms": graphs,
    "layers": layers,
    "forward": forward,
    "kernels": primitives,
    "coarsen": clustering,
    "choose_group": choosing,
    "check": checks,
    "transforms": transforms,
    "readers": readers,
}


def main(categories: list[str]) -> None:
    """Try some categories; a line when an entry begins and one when it ends."""
    for category in categories:
        for entry in CATEGORIES[category]():
            name = {"category": category, "label": entry.label}
            print(json.dumps(name), flush=True)
            print(json.dumps(name | {"fault": judge(entry)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
