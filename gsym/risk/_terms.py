"""Terms of a covariance: averages over groups, kernels, and where a chain comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

from gsym._graphs import as_graph, coalesce
from gsym.errors import ClusteringError, GroupError, SignalError
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.groups.levels import MOST_LEVELS, few_levels

# From one level of a chain to the next, clusters become fewer by this factor.
_FEWER = 3
# Ward on signals alone stores the distances of all pairs of nodes.
_MOST_PAIRED = 8192
# Up to so many nodes, sums over orbits of pairs take less time than the closed form.
_FEW_NODES = 32
# Kernels of positions reach over these shares of the median distance; those of graphs diffuse so
# long.
_REACH, _TIMES = (0.15, 0.5), (1.0, 8.0)
# A matrix may be indefinite by rounding.
_NEGATIVE = 1e-8

Labelled = tuple[str, PermutationGroup, Representation | None]


@dataclass(frozen=True)
class GroupTerm:
    """The average of a covariance over a group that acts on nodes, and maybe on channels.

    Attributes:
        name: What it is called among the weights.
        group: The group.
        rep: How the group moves channels; ``None`` where they stay.
        channels: Number of channels c.
    """

    name: str
    group: PermutationGroup
    rep: Representation | None
    channels: int

    def __post_init__(self) -> None:
        closed = isinstance(self.group, ClusterGroup) and self.group.swaps is None
        orbits = None
        if self.rep is not None:
            orbits = self.group.pair_orbits(self.rep, self.rep)
        elif not closed or self.group.num_nodes <= _FEW_NODES:
            orbits = self.group.pair_orbits()
        object.__setattr__(self, "_orbits", orbits)

    @property
    def is_trivial(self) -> bool:
        """Whether the average changes nothing."""
        group = self.group
        return not bool((group.node_orbits().sizes > 1).any()) and self.rep is None

    def alike(self) -> NDArray:
        """Labels of coordinates ``[n c]``, equal where the group moves one to the other."""
        n, c = self.group.num_nodes, self.channels
        if self.rep is None:
            nodes = self.group.node_orbits().index.numpy()
            return np.asarray(nodes[:, None] * c + np.arange(c)).ravel()
        index = self._orbits.index.numpy().reshape(n, n, c, c)  # type: ignore[attr-defined]
        return np.asarray(np.einsum("iiaa->ia", index)).ravel()

    def average(self, S: NDArray) -> NDArray:
        """The mean of ``P S P^T`` over the group, ``[n c, n c]``.

        Cost:
            ``O((n c)^2)``: a mean over each orbit of pairs.
        """
        n, c = self.group.num_nodes, self.channels
        blocks = S.reshape(n, c, n, c)
        orbits = self._orbits  # type: ignore[attr-defined]
        if self.rep is not None:
            signs, index = orbits.signs.numpy().ravel(), orbits.index.numpy().ravel()
            flat = blocks.transpose(0, 2, 1, 3).ravel() * signs
            total = np.bincount(index.clip(0), flat, minlength=max(orbits.num_orbits, 1))
            mean = total[: orbits.num_orbits] / orbits.sizes.numpy()
            out = (mean[index.clip(0)] * signs).reshape(n, n, c, c).transpose(0, 2, 1, 3)
        elif orbits is not None:
            index, sizes = orbits.index.numpy().ravel(), orbits.sizes.numpy()
            out = np.empty_like(blocks)
            for a in range(c):
                for b in range(c):
                    total = np.bincount(index, blocks[:, a, :, b].ravel())
                    out[:, a, :, b] = (total / sizes)[index].reshape(n, n)
        else:
            matrices = torch.from_numpy(np.ascontiguousarray(blocks.transpose(1, 3, 0, 2)))
            out = self.group.project(matrices).numpy().transpose(2, 0, 3, 1)
        return np.ascontiguousarray(out).reshape(S.shape)


@dataclass(frozen=True)
class KernelTerm:
    """A fixed covariance of the nodes, times the covariance of the channels within a node.

    Attributes:
        name: What it is called among the weights.
        kernel: Positive semidefinite ``[n, n]``, of trace n.
    """

    name: str
    kernel: NDArray

    def average(self, S: NDArray) -> NDArray:
        """The kernel with the trace of S."""
        n = len(self.kernel)
        c = len(S) // n
        within = np.einsum("iaib->ab", S.reshape(n, c, n, c)) / n
        return np.kron(self.kernel, within)


class Terms:
    """All terms but the ridge, some of which may depend on the signals.

    Args:
        fixed: Those that do not.
        chain: Makes further ones from signals ``[s, n, c]``; ``None`` if there are none.
        counts: Numbers of clusters that ``chain`` makes, for the names.
    """

    def __init__(
        self,
        fixed: Sequence[GroupTerm | KernelTerm],
        chain: Callable[[NDArray], list[Partition]] | None = None,
        counts: Sequence[int] = (),
    ) -> None:
        self.fixed, self.chain = tuple(fixed), chain
        self.names = (*(term.name for term in fixed), *(f"{k} clusters" for k in counts))

    def of(self, signals: NDArray) -> list[GroupTerm | KernelTerm]:
        """The terms, with those of a chain made from these signals ``[s, n, c]``."""
        made: list[GroupTerm | KernelTerm] = list(self.fixed)
        if self.chain is not None:
            c = signals.shape[2]
            for partition in self.chain(signals):
                name = f"{partition.num_clusters} clusters"
                made.append(GroupTerm(name, ClusterGroup(partition), None, c))
        return made

    def alike(self, shape: tuple[int, int]) -> NDArray:
        """Labels of coordinates ``[n c]``, equal where every group moves one to the other.

        Args:
            shape: Nodes n and channels c.
        """
        labels = np.zeros(shape[0] * shape[1], dtype=np.int64)
        for term in self.fixed:
            if isinstance(term, GroupTerm):
                both = np.stack([labels, term.alike()])
                labels = np.unique(both, axis=1, return_inverse=True)[1].ravel()
        return labels


def stack(terms: Iterable[GroupTerm | KernelTerm], S: NDArray) -> NDArray:
    """Every term of S, and the ridge as the last: ``[m + 1, d, d]``."""
    ridge = np.trace(S) / len(S) * np.eye(len(S))
    return np.stack([*(term.average(S) for term in terms), ridge])


def read_terms(
    levels: Any,
    kernels: Iterable[Any],
    positions: Any,
    edge_index: Any,
    edge_weight: Any,
    num_nodes: int,
    channels: int,
) -> Terms:
    """The terms that parameters ask for.

    Raises:
        GroupError: Groups on another number of nodes, or of another number of channels.
        SignalError: Kernels or positions that do not fit, or that are not positive semidefinite.
        TypeError: Levels of another kind.
    """
    n = num_nodes
    graph = None if edge_index is None else as_graph(edge_index, n, edge_weight)
    places = None if positions is None else _check_positions(positions, n)
    extra: list[GroupTerm | KernelTerm] = []
    for i, kernel in enumerate(kernels):
        extra.append(KernelTerm(f"kernel {i}" if i else "kernel", _check_kernel(kernel, n, i)))
    if places is not None and n > 1:
        extra += [KernelTerm(f"positions {r:g}", k) for r, k in _position_kernels(places)]
    if graph is not None and n > 1:
        extra += [KernelTerm(f"diffusion {t:g}", k) for t, k in _graph_kernels(graph, n)]
    if not isinstance(levels, str):
        listed = _read_levels(levels, n)
        made = [GroupTerm(name, group, rep, channels) for name, group, rep in listed]
        _check_channels(made, channels)
        return Terms(_uniquely_named([*made, *extra]))
    if levels != "auto":
        raise TypeError(f'levels must be "auto", a Hierarchy or a list of groups; got {levels!r}')
    ends = [("trivial", Partition.singletons(n)), (f"S_{n}", Partition.single(n))]
    made = [GroupTerm(name, ClusterGroup(p), None, channels) for name, p in ends[: min(n, 2)]]
    counts = _chain_counts(n) if n <= _MOST_PAIRED else []

    def chain(signals: NDArray) -> list[Partition]:
        return ward_chain(signals, counts, places)

    return Terms(_uniquely_named([*made, *extra]), chain if counts else None, counts)


def ward_chain(
    signals: NDArray, counts: Sequence[int], positions: NDArray | None = None
) -> list[Partition]:
    """Nested partitions of the nodes by signals ``[s, n, c]`` and, where given, positions.

    Ward's clustering of nodes by their signals, every channel of unit variance; positions
    weigh as much as all signals together.
    """
    from sklearn.cluster import ward_tree

    n = signals.shape[1]
    scale = signals.std((0, 1))
    features = (signals / np.where(scale > 0, scale, 1.0)).transpose(1, 0, 2).reshape(n, -1)
    features = features / np.sqrt(features.shape[1])
    if positions is not None:
        spread = np.sqrt(((positions - positions.mean(0)) ** 2).sum(1).mean())
        features = np.hstack([features, (positions - positions.mean(0)) / max(spread, 1e-300)])
    merges = ward_tree(features)[0]
    parent = np.arange(2 * n - 1)
    parent[merges] = np.arange(n, 2 * n - 1)[:, None]
    made = []
    for k in counts:
        root = np.where(parent < 2 * n - k, parent, np.arange(2 * n - 1))
        while not np.array_equal(root, root[root]):
            root = root[root]
        made.append(Partition.from_labels(torch.from_numpy(root[:n].copy()), relabel=True))
    return made


def _chain_counts(n: int) -> list[int]:
    """Numbers of clusters strictly between n and 1, each a third of the one before."""
    counts: list[int] = []
    k = n // _FEWER
    while k >= 2 and len(counts) < MOST_LEVELS - 2:
        counts.append(k)
        k //= _FEWER
    return counts


def _read_levels(levels: Any, n: int) -> list[Labelled]:
    if hasattr(levels, "cut") and hasattr(levels, "levels"):
        levels = few_levels(levels)  # a Hierarchy, which is defined on top of this room
    if isinstance(levels, PermutationGroup | Partition) or not isinstance(levels, Iterable):
        raise TypeError(
            'levels must be "auto", a Hierarchy or a list of groups, partitions and pairs '
            f"(group, representation); got {type(levels).__name__}; write [group] for one"
        )
    listed: list[Labelled] = []
    for level in levels:
        group, rep = level if isinstance(level, tuple) else (level, None)
        if isinstance(group, Partition):
            group = ClusterGroup(group)
        if not isinstance(group, PermutationGroup):
            raise TypeError(
                "a level is a group, a partition or a pair (group, representation); got "
                f"{type(group).__name__}"
            )
        if rep is not None and not isinstance(rep, Representation):
            raise TypeError(f"expected a gsym.Representation; got {type(rep).__name__}")
        if group.num_nodes != n:
            raise GroupError(
                f"a level acts on {group.num_nodes} nodes but the signals have {n}; give groups "
                "or a Hierarchy on the nodes of the signals"
            )
        if rep is not None:
            rep.check_group(group)
        listed.append((_name(group, rep), group, rep))
    if not listed:
        raise ClusteringError("levels must hold at least one group; got none")
    return listed


def _name(group: PermutationGroup, rep: Representation | None) -> str:
    signs = "" if rep is None or rep.is_trivial else ", channels moved"
    if isinstance(group, ClusterGroup):
        if group.swaps is None:
            k, n = group.partition.num_clusters, group.num_nodes
            return ("trivial" if k == n else f"S_{n}" if k == 1 else f"{k} clusters") + signs
        return f"{group.partition.num_clusters} clusters, swaps{signs}"
    number = group.num_generators
    return f"group of {number} generator{'s' if number != 1 else ''}{signs}"


def _check_channels(made: Sequence[GroupTerm], channels: int) -> None:
    for term in made:
        if term.rep is not None and term.rep.num_channels != channels:
            raise GroupError(
                f"the representation moves {term.rep.num_channels} channels but the signals have "
                f"{channels}"
            )


def _uniquely_named(terms: Sequence[Any]) -> list[Any]:
    seen: dict[str, int] = {}
    named = []
    for term in terms:
        count = seen[term.name] = seen.get(term.name, 0) + 1
        if count > 1:
            values = {k: v for k, v in vars(term).items() if not k.startswith("_")}
            term = type(term)(**{**values, "name": f"{term.name} ({count})"})
        named.append(term)
    return named


def _check_positions(positions: Any, n: int) -> NDArray:
    values = np.asarray(positions, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != n or not np.isfinite(values).all():
        raise SignalError(
            f"positions must be finite [{n}, d], one row per node; got {list(values.shape)}"
        )
    return values


def _check_kernel(kernel: Any, n: int, number: int) -> NDArray:
    values = np.asarray(kernel, dtype=np.float64)
    if values.shape != (n, n) or not np.isfinite(values).all():
        raise SignalError(
            f"kernel {number} must be finite [{n}, {n}], nodes by nodes; got {list(values.shape)}"
        )
    largest = float(np.abs(values).max())
    if not np.allclose(values, values.T, atol=1e-10 * largest) or largest == 0:
        raise SignalError(f"kernel {number} must be symmetric and not zero; use (K + K.T) / 2")
    low = float(eigh(values, eigvals_only=True, subset_by_index=[0, 0])[0])
    if low < -_NEGATIVE * largest:
        raise SignalError(
            f"kernel {number} must be positive semidefinite; its smallest eigenvalue is {low:.3g}; "
            "take exp(-d^2 / (2 s^2)) of Euclidean distances, or clip the eigenvalues at 0"
        )
    return values * (n / np.trace(values))


def _position_kernels(positions: NDArray) -> list[tuple[float, NDArray]]:
    squares = ((positions[:, None] - positions[None]) ** 2).sum(-1)
    apart = squares[np.triu_indices(len(positions), 1)]
    middle = float(np.median(apart)) or float(apart.mean())
    if middle == 0:
        raise SignalError("positions are equal at all nodes and tell nothing; leave them out")
    return [(r, np.exp(-squares / (2 * r * r * middle))) for r in _REACH]


def _graph_kernels(graph: Any, n: int) -> list[tuple[float, NDArray]]:
    """Diffusion along the undirected graph, ``exp(-t L)`` with the normalised Laplacian."""
    keys, weight = coalesce(graph)
    if (weight < 0).any():
        raise SignalError("edge weights must not be negative: they say how alike nodes are")
    A = np.zeros((n, n))
    A[keys // n, keys % n] = weight
    A = (A + A.T) / 2
    np.fill_diagonal(A, 0)
    degree = A.sum(0)
    root = 1 / np.sqrt(np.where(degree > 0, degree, 1.0))
    values, vectors = eigh(np.eye(n) - root[:, None] * A * root)
    kernels = []
    for t in _TIMES:
        K = (vectors * np.exp(-t * values)) @ vectors.T
        own = 1 / np.sqrt(np.diagonal(K))
        kernels.append((t, own[:, None] * K * own))
    return kernels
