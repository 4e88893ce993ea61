"""Proposals: one function from a graph, signals or both to a hierarchy of partitions."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gsym.coarsening._request import Request
from gsym.coarsening.hierarchy import Hierarchy
from gsym.coarsening.methods import DEFAULTS, METHODS, table
from gsym.errors import ClusteringError
from gsym.groups import Partition


def coarsen(
    edge_index: Any = None,
    num_nodes: int | None = None,
    edge_weight: Tensor | None = None,
    signals: Any = None,
    method: str = "auto",
    *,
    targets: Any = None,
    levels: Sequence[int] | None = None,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
) -> Hierarchy:
    """Propose partitions of the nodes, from all nodes alone to one cluster.

    {methods}

    Levels are nested where each partition refines the next; ``Hierarchy.nested`` says so. Methods
    see the undirected graph ``(A + A^T) / 2`` without self-loops, and a similarity of 0 joins
    nothing; twins, orbits and colours see the graph as it is, where an edge of weight 0 is an edge;
    ``risk`` goes along edges and leaves weights aside. What a method needs beyond scikit-learn is
    in the extra ``cluster``.

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
        signals: Signals ``[samples, n]`` or ``[samples, n, c]``, real numbers of any kind of array.
        method: One of the above. The default depends on what is given, not on what is installed;
            on 14 real graphs ``paris`` is the best nested method by modularity, conductance and
            balance, ``ward`` is closer to the spectrum; see *Methods of coarsening* in the
            documentation.
        targets: What ``risk`` predicts from the signals, in the same form. ``None``: denoising,
            as in :func:`gsym.choose_group`.
        levels: Numbers of clusters to offer. By default nested methods offer all they have,
            the others powers of two up to 128. ``louvain``, ``graclus``, ``grid``, ``twins``,
            ``automorphism`` and ``equitable`` have fixed levels, of which these must be some
            (for ``grid`` any square patches, which then may not nest).
        seed: Seed of methods that draw; equal seeds give equal answers.
        height: Rows of the image, for ``grid``.
        width: Columns of the image, for ``grid``.

    Raises:
        ClusteringError: An unknown method (the nearest names are given), a method without the
            input it needs or with one it would ignore, levels out of range, a graph without
            edges, negative weights.
        SignalError: Signals or targets of another shape, or that are not finite.
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
        method = DEFAULTS["signals" if edge_index is None or signals is not None else "graph"]
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


if coarsen.__doc__ is not None:  # as it is under python -OO
    coarsen.__doc__ = coarsen.__doc__.replace("{methods}", table("    "))
