"""Proposals: one function from a graph, signals or both to a hierarchy of partitions."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, csr_matrix, diags_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gsym._validate import ClusteringError, optional_module, warn
from gsym.coarsening._graph import SMALLEST, energy_basis, laplacian_of, smallest_eigenpairs
from gsym.coarsening._request import Merges, Method, Request
from gsym.coarsening.coarsen import Hierarchy
from gsym.coarsening.leiden import leiden_labels
from gsym.coarsening.metis import metis_labels
from gsym.coarsening.multilevel import local_variation_merges, normalised_cut_merges
from gsym.coarsening.paris import paris_merges
from gsym.coarsening.risk import merge_by_risk
from gsym.coarsening.samples import denoising
from gsym.coarsening.twins import twin_partition
from gsym.groups import Partition, automorphisms, equitable_partition

# Coordinates per node in the spectral embedding that Ward clusters.
_EMBEDDING = 16
# Neighbours per node in the graph made of signals alone.
_NEIGHBOURS = 10


def coarsen(
    edge_index: Any = None,
    num_nodes: int | None = None,
    edge_weight: Tensor | None = None,
    signals: Tensor | None = None,
    method: str = "auto",
    *,
    targets: Tensor | None = None,
    levels: Sequence[int] | None = None,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
) -> Hierarchy:
    """Propose partitions of the nodes, from all nodes alone to one cluster.

    ======================  ============  ========  ============================================
    method                  looks at      answer    how
    ======================  ============  ========  ============================================
    ``auto``                                        ``paris``; ``ward`` where signals are given
    ``paris``               graph         chain     ours: more weight than chance, Bonald et al.
    ``ward``                either, both  chain     scikit-learn: smallest rise in variance
    ``spectral``            either, both  family    k-means on eigenvectors, Ng, Jordan, Weiss
    ``local_variation``     graph         chain     ours: matching by local variation, Loukas
    ``graclus``             graph         chain     ours: matching by normalised cut, Dhillon
    ``louvain``             graph         chain     scikit-network, level by level
    ``leiden``              graph         family    networkit, one resolution per level
    ``metis``               graph         family    pymetis, clusters of nearly equal size
    ``twins``               graph         3 levels  nodes that any permutation may exchange
    ``automorphism``        graph         3 levels  orbits of the exact symmetries
    ``equitable``           graph         3 levels  stable colours of colour refinement
    ``grid``                shape         chain     square patches of an image
    ``risk``                signals       chain     smallest rise of the estimated risk
    ======================  ============  ========  ============================================

    A chain is nested, a family is not, and ``Hierarchy.nested`` says which came. Clusterings see
    the undirected graph ``(A + A^T) / 2`` without self-loops, and a similarity of 0 joins nothing;
    twins, orbits and colours see the graph as it is, where an edge of weight 0 is an edge; ``risk``
    goes along edges and leaves weights aside. What a method needs beyond scikit-learn is in the
    extra ``cluster``.

    ``ward`` works on a spectral embedding of the graph (commute times: eigenvectors of ``D - A``
    over the square root of their eigenvalue, the first 16), merging neighbours only; on signals
    alone it merges any clusters by the signals, every channel scaled to unit variance; given both,
    it merges neighbours by the signals. ``spectral`` takes signals as a graph of the 10 nearest
    nodes, and both as edges weighted by how near their ends' signals are.

    Args:
        edge_index: Graph on the nodes, int64 ``[2, e]`` or what :func:`gsym.as_graph` reads
            (NetworkX, SciPy, NumPy, PyG ``Data``; names of nodes are kept as ``names``), or
            ``None`` where signals or the shape of an image suffice.
        num_nodes: Number of nodes; may be left out where the graph, signals or an image tell it.
        edge_weight: Similarities ``[e]``, not negative; 1 where ``None``.
        signals: Signals ``[samples, n]`` or ``[samples, n, c]``.
        method: One of the above. The default depends on what is given, not on what is installed;
            on 14 real graphs ``paris`` is the best chain by modularity, conductance and balance,
            ``ward`` is closer to the spectrum; see *Methods of coarsening* in the documentation.
        targets: What ``risk`` predicts from the signals, in the same form. ``None``: denoising,
            as in :func:`gsym.choose_group`.
        levels: Numbers of clusters to offer. By default a chain offers all it has, a family
            powers of two up to 128. ``louvain``, ``graclus``, ``grid``, ``twins``,
            ``automorphism`` and ``equitable`` have fixed levels, of which these must be some
            (for ``grid`` any square patches, which then may not nest).
        seed: Seed of methods that draw; equal seeds give equal answers.
        height: Rows of the image, for ``grid``.
        width: Columns of the image, for ``grid``.

    Raises:
        ClusteringError: An unknown method (the nearest names are given), a method without the
            input it needs or with one it would ignore, levels out of range, a graph without
            edges, negative weights, signals that are not finite.
        GraphError: Edges out of range, weights that are not finite.
        ImportError: A package that is not installed; the message names the extra.

    Warns:
        UserWarning: A disconnected graph (``paris``, ``ward``, ``spectral``, ``local_variation``:
            each component on its own, joined last), signals that do not tell nodes apart, a level
            that a library could not reach.

    Cost:
        ``paris``, ``leiden``, ``louvain``, ``metis``, ``twins`` and ``equitable`` are near linear.
        ``ward`` on signals alone, without a graph, needs ``O(n^2)`` memory; ``spectral``, ``ward``
        on a graph and ``local_variation`` factorise a sparse matrix once, see
        :func:`~gsym.coarsening._graph.smallest_eigenpairs`.

    Example:
        >>> import networkx as nx
        >>> edges = torch.tensor(list(nx.barbell_graph(4, 0).edges)).T
        >>> h = coarsen(edges, 8)
        >>> h
        Hierarchy(paris, 8 nodes, nested, 8 levels: 8, 7, 6, 5, 4, 3, 2, 1)
        >>> h[2].labels.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]

    Reference:
        Loukas, arXiv 1808.10650; Bonald et al., arXiv 1806.01664 (paris); Blondel et al., arXiv
        0803.0476 (louvain); Traag et al., arXiv 1810.08473 (leiden).
    """
    if not isinstance(method, str):
        raise ClusteringError(
            f"method must be a name, one of {', '.join(METHODS)}; got {method!r:.80}"
        )
    if method == "auto":
        method = "ward" if edge_index is None or signals is not None else "paris"
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(METHODS)}"
        raise ClusteringError(f"unknown method {method!r}; {hint}")
    request = Request.checked(
        METHODS,
        method,
        edge_index,
        num_nodes,
        edge_weight,
        signals,
        targets,
        levels,
        seed,
        height,
        width,
    )
    if request.num_nodes == 1:
        return request.chain([Partition.single(1)])
    return METHODS[method].propose(request)


def _features(signals: Tensor) -> np.ndarray:
    """One row per node ``[n, samples * c]``, every channel scaled to unit variance."""
    scale = signals.std(dim=(0, 1), correction=0)
    # A constant channel tells nothing and has no scale.
    flat = signals / torch.where(scale > 0, scale, torch.ones_like(scale))
    if bool((signals == signals[:, :1]).all()):
        warn(
            "the signals are equal at all nodes and do not tell them apart; which of them share a "
            "cluster says nothing"
        )
    return flat.transpose(0, 1).flatten(1).numpy()


def _ward(request: Request) -> Hierarchy:
    from sklearn.cluster import ward_tree

    features = None if request.signals is None else _features(request.signals)

    def tree(A: csr_array | None, nodes: np.ndarray) -> Merges:
        rows = _commute_embedding(A) if features is None else features[nodes]
        children, *_, heights = ward_tree(rows, connectivity=A, return_distance=True)
        # Merges along edges only may lower the distance; a tree's heights never fall.
        return children, np.maximum.accumulate(heights)

    if request.edge_index is None:
        return request.tree(tree(None, np.arange(request.num_nodes)))
    return request.tree(_by_component(request.graph, tree))


def _commute_embedding(A: csr_array | None) -> np.ndarray:
    """Coordinates ``[n, d]`` whose squared distances approximate effective resistances."""
    assert A is not None
    return energy_basis(A, _EMBEDDING)


def _by_component(
    A: csr_array, tree: Callable[[csr_array, np.ndarray], Merges], *, told: bool = False
) -> Merges:
    """Merges of every connected component on its own, then of the components.

    Components are joined last, smallest first, at infinite height, with a warning unless ``told``.
    """
    n = A.shape[0]
    count, labels = connected_components(A, directed=False)
    if count == 1:
        return tree(A, np.arange(n))
    if not told:
        _warn_components(count)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    parts = np.split(order, np.cumsum(sizes)[:-1])
    pairs, heights, ranks, made = [], [], [], 0
    roots = np.array([part[0] for part in parts])
    for i, nodes in enumerate(parts):
        if nodes.size == 1:
            continue
        children, height = tree(A[nodes][:, nodes], nodes)
        # Merges of this component are numbered as if they followed those made before.
        names = np.concatenate([nodes, n + made + np.arange(nodes.size - 1)])
        pairs.append(names[children])
        heights.append(height)
        ranks.append(np.maximum.accumulate(height))
        made += nodes.size - 1
        roots[i] = names[-1]
    new_order = np.argsort(np.concatenate(ranks), kind="stable") if made else np.arange(0)
    names = np.arange(n + made)
    names[n + new_order] = n + np.arange(made)
    inner = names[np.concatenate(pairs)[new_order]] if made else np.empty((0, 2), dtype=np.int64)
    roots = names[roots[np.argsort(sizes, kind="stable")]]
    left = np.concatenate([roots[:1], n + made + np.arange(count - 2)])
    joins = np.column_stack([left, roots[1:]])
    height = np.concatenate([*heights])[new_order] if made else np.empty(0)
    return np.concatenate([inner, joins]), np.concatenate([height, np.full(count - 1, math.inf)])


def _warn_components(count: int) -> None:
    warn(
        f"the graph has {count} connected components; each is clustered on its own, and they are "
        "joined last"
    )


def _spectral(request: Request) -> Hierarchy:
    A = _similarity(request)
    count, component = connected_components(A, directed=False)
    if count > 1:
        _warn_components(count)
    wanted = request.family_levels
    sizes = np.bincount(component)
    shares = {k: _share(sizes, k) for k in wanted}
    labels = {k: np.zeros(request.num_nodes, dtype=np.int64) for k in wanted}
    used = dict.fromkeys(wanted, 0)
    # The smallest components come first: where k is less than their number they share one label.
    for c in np.argsort(sizes, kind="stable"):
        nodes = np.flatnonzero(component == c)
        most = max((share[c] for share in shares.values()), default=1)
        embedding = _normalised_embedding(A[nodes][:, nodes], most) if most > 1 else None
        for k in wanted:
            parts = int(shares[k][c])
            if parts == 0:
                continue
            within = 0 if embedding is None else _k_means(embedding[:, :parts], parts, request.seed)
            labels[k][nodes] = used[k] + 1 + within
            used[k] += parts
    return request.family((k, labels[k]) for k in wanted)


def _similarity(request: Request) -> csr_array:
    """The weighted graph that spectral clustering cuts, from graph, signals or both."""
    if request.signals is None:
        return request.graph
    features = _features(request.signals)
    if request.edge_index is None:
        from sklearn.neighbors import kneighbors_graph

        count = min(_NEIGHBOURS, request.num_nodes - 1)
        near = kneighbors_graph(features, count, mode="connectivity")
        A = csr_array(near.maximum(near.T))
    else:
        A = request.graph
    coo = A.tocoo()
    distance = np.empty(coo.nnz)
    for block in np.array_split(np.arange(coo.nnz), coo.nnz // 2**16 + 1):
        difference = features[coo.row[block]] - features[coo.col[block]]
        distance[block] = (difference**2).sum(axis=1)
    typical = distance.mean()
    weight = coo.data * np.exp(-distance / typical) if typical > 0 else coo.data
    # A weight that underflows would cut the graph where it has an edge.
    weight = np.maximum(weight, coo.data * SMALLEST)
    return csr_array((weight, (coo.row, coo.col)), shape=A.shape)


def _share(sizes: np.ndarray, k: int) -> np.ndarray:
    """Clusters per component, at least one each and in proportion to size, ``k`` in all.

    With fewer clusters than components, the smallest components get none and form one together.
    """
    if k < sizes.size:
        share = np.zeros_like(sizes)
        share[np.argsort(-sizes, kind="stable")[: k - 1]] = 1
        return share
    exact = np.minimum(sizes, np.maximum(1, k * sizes / sizes.sum()))
    share = np.maximum(1, np.floor(exact).astype(np.int64))
    while share.sum() < k:
        share[np.argmax(np.where(share < sizes, exact - share, -np.inf))] += 1
    while share.sum() > k:
        share[np.argmax(np.where(share > 1, share - exact, -np.inf))] -= 1
    return share


def _normalised_embedding(A: csr_array, k: int) -> np.ndarray:
    """Rows of the first ``k`` eigenvectors of the symmetric normalised Laplacian, ``[n, k]``."""
    scale = diags_array(1 / np.sqrt(np.asarray(A.sum(axis=1)).reshape(-1)))
    _, vectors = smallest_eigenpairs((scale @ laplacian_of(A) @ scale).tocsr(), k)
    return vectors


def _k_means(embedding: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    rows = embedding / np.where(length > 0, length, 1)
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: the missing level is told by Request.family.
        warnings.filterwarnings("ignore", message=".*distinct clusters.*")
        return KMeans(k, n_init=4, random_state=seed).fit(rows).labels_


def _local_variation(request: Request) -> Hierarchy:
    return request.tree(
        _by_component(request.graph, lambda A, _: local_variation_merges(A, seed=request.seed))
    )


def _graclus(request: Request) -> Hierarchy:
    merges, heights, levels = normalised_cut_merges(request.similarities, seed=request.seed)
    h = Hierarchy.from_merges(request.num_nodes, merges, heights, levels=levels)
    return request.chain(h)


def _paris(request: Request) -> Hierarchy:
    return request.tree(_by_component(request.graph, lambda A, _: paris_merges(A)))


def _louvain(request: Request) -> Hierarchy:
    clustering = optional_module(
        "sknetwork.clustering", "scikit-network", "cluster", "method 'louvain'"
    )
    louvain = clustering.Louvain(n_aggregations=1, random_state=request.seed)
    labels = np.arange(request.num_nodes)
    A, found = _csr_matrix(request.graph), []
    while A.shape[0] > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            above = louvain.fit_predict(A)
        if np.unique(above).size == A.shape[0]:
            break
        labels = above[labels]
        found.append(Partition.from_labels(labels, relabel=True))
        A = louvain.aggregate_
    return request.chain(found)


def _csr_matrix(A: csr_array) -> csr_matrix:
    """The type that scikit-network takes; weights relative to the largest, and not vanishing."""
    weight = np.maximum(A.data / A.data.max(), SMALLEST)
    indices = A.indices.astype(np.int32), A.indptr.astype(np.int32)
    return csr_matrix((weight, *indices), shape=A.shape)


def _leiden(request: Request) -> Hierarchy:
    A, wanted = request.graph, request.family_levels
    found = leiden_labels(A, wanted, seed=request.seed)
    return request.family(
        (k, _merge_down(A, labels, k)) for k, labels in zip(wanted, found, strict=True)
    )


def _merge_down(A: csr_array, labels: np.ndarray, k: int) -> np.ndarray:
    """Merge clusters along the dendrogram of their coarse graph until ``k`` are left."""
    count = int(labels.max()) + 1
    if count == k:
        return labels
    coo = A.tocoo()
    between = coo_array((coo.data, (labels[coo.row], labels[coo.col])), shape=(count, count))
    merges, heights = _by_component(between.tocsr(), lambda A, _: paris_merges(A), told=True)
    return Hierarchy.from_merges(count, merges, heights)[k].labels.numpy()[labels]


def _metis(request: Request) -> Hierarchy:
    wanted = request.family_levels
    return request.family(
        zip(wanted, metis_labels(request.graph, wanted, seed=request.seed), strict=True)
    )


def _grid(request: Request) -> Hierarchy:
    assert request.height is not None and request.width is not None
    height, width = request.height, request.width
    if height < 1 or width < 1 or height * width != request.num_nodes:
        raise ClusteringError(
            f"an image of {height} x {width} pixels has {max(0, height * width)} nodes; got "
            f"{request.num_nodes}"
        )
    common = math.gcd(height, width)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    counts = {height * width // side**2: side for side in sides}
    if request.levels is None:
        # Sides nest only if each divides the next: grow by the smallest prime factor.
        chain = [1]
        while chain[-1] < common:
            chain.append(next(s for s in sides if s > chain[-1] and s % chain[-1] == 0))
        partitions = [Partition.grid(height, width, side) for side in chain]
        return request.chain(partitions)
    asked = [k for k in request.levels if k > 1]
    missing = [k for k in asked if k not in counts]
    if missing:
        raise ClusteringError(
            f"square patches do not cut an image of {height} x {width} pixels into {missing[0]}; "
            f"they give {', '.join(map(str, sorted(counts, reverse=True)))}"
        )
    sides = [counts[k] for k in asked]
    nested = all(larger % smaller == 0 for smaller, larger in pairwise(sides))
    partitions = [Partition.grid(height, width, side) for side in sides]
    return request._hierarchy(partitions, nested=nested)


def _twins(request: Request) -> Hierarchy:
    return request.chain([twin_partition(request.exact_graph)])


def _equitable(request: Request) -> Hierarchy:
    return request.chain([equitable_partition(request.exact_graph)])


def _automorphism(request: Request) -> Hierarchy:
    group = automorphisms(request.exact_graph)
    if not group.exact:
        warn("the search for symmetries ran out of time; the orbits are those of colour refinement")
    return request.chain([Partition(group.node_orbits().index)])


def _risk(request: Request) -> Hierarchy:
    if request.targets is None:
        inputs, targets = denoising(request.signals, request.seed)
        merges, heights = merge_by_risk(inputs, targets, edge_index=request.edge_index)
    else:
        merges, heights = merge_by_risk(
            request.signals, request.targets, edge_index=request.edge_index
        )
    return request.tree((np.asarray(merges), np.asarray(heights)))


METHODS: dict[str, Method] = {
    "paris": Method(_paris, ("edge_index",)),
    "ward": Method(_ward, (), ("edge_index", "signals")),
    "spectral": Method(_spectral, (), ("edge_index", "signals")),
    "local_variation": Method(_local_variation, ("edge_index",)),
    "graclus": Method(_graclus, ("edge_index",)),
    "louvain": Method(_louvain, ("edge_index",)),
    "leiden": Method(_leiden, ("edge_index",)),
    "metis": Method(_metis, ("edge_index",)),
    "twins": Method(_twins, ("edge_index",)),
    "automorphism": Method(_automorphism, ("edge_index",)),
    "equitable": Method(_equitable, ("edge_index",)),
    "grid": Method(_grid, ("height", "width")),
    "risk": Method(_risk, ("signals",), ("targets", "edge_index")),
}
