"""Small graphs with classes: from files to lists of PyG graphs, folds, and parts of a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import TUDataset

from gsym.transforms import AddSubgraphKind, EgoSubgraphs
from gsym_bench.data import DataError, read_npz

FOLDS = 10
FOLDER = "tudataset"
# Names of the data sets: ours, which the literature uses, and PyG's.
DATASETS = {
    "MUTAG": "MUTAG",
    "PTC": "PTC_MR",
    "PROTEINS": "PROTEINS",
    "IMDB-BINARY": "IMDB-BINARY",
}
# Ego-networks of more nodes are shrunk to their root: those of IMDB-BINARY reach 136 nodes, and
# their pairs, few graphs' work, would take longer than all others together.
MAX_NODES = 20
KEYS = ("graph_ptr", "edge_index", "node_label", "graph_label", "test_fold")
# Sets of weights, that of rare kinds included; the authors have three sizes on MUTAG.
KINDS = {"size": 4, "automorphism": 8}


@dataclass(frozen=True)
class Graphs:
    """A data set.

    Attributes:
        name: Written to every row.
        graphs: Graphs with one-hot labels ``x``, class ``y``, 1-hop ego-networks, ``label`` (0 for
            nodes of the commonest label, 1 for all others) and the kinds of the ego-networks by
            size and up to isomorphism, ``size_kind`` and ``automorphism_kind``.
        y: Class of every graph, int64 ``[g]``, from 0.
        fold: The fold that tests a graph, int64 ``[g]``; -1 for graphs that only train.
    """

    name: str
    graphs: list[Data]
    y: Tensor
    fold: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1

    @property
    def num_labels(self) -> int:
        """Number of labels of nodes."""
        return self.graphs[0].x.size(1)

    def parts(self, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the training, validation and test graphs of a fold.

        The test graphs are those of the fold, the validation graphs those of the next one, and
        all others train.
        """
        test, val = self.fold == fold, self.fold == (fold + 1) % FOLDS
        parts = (~(test | val), val, test)
        return tuple(part.nonzero().view(-1) for part in parts)  # type: ignore[return-value]


def load(data: Path, name: str) -> Graphs:
    """A data set from ``data/tudataset``: our file, or else PyG's, which downloads it.

    PyG's come without folds; they are drawn stratified by class, the same for everyone.

    Args:
        data: Folder of downloaded data.
        name: One of `DATASETS`.

    Raises:
        DataError: There is no folder ``tudataset``, or a file is damaged or cannot be downloaded.
    """
    folder = data / FOLDER
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}; make it, and the data sets of PyG's TUDataset are downloaded to "
            "it, or name another folder with --data DIR"
        )
    path = folder / f"{name.replace('-', '')}.npz"
    return _from_file(path, name) if path.exists() else _from_pyg(folder, name)


def make_graphs(
    name: str,
    sizes: Sequence[int],
    edges: Sequence[Tensor],
    labels: Sequence[NDArray],
    y: NDArray,
    fold: NDArray,
) -> Graphs:
    """Add features and ego-networks to bare graphs.

    Args:
        name: Of the data set.
        sizes: Nodes of every graph.
        edges: ``edge_index`` of every graph.
        labels: Label of every node, graph by graph; if all are equal, nodes are labelled by the
            logarithm of their degree to base 2, rounded down.
        y: Class of every graph, any numbers.
        fold: The fold that tests every graph.
    """
    if len(set(np.concatenate(labels).tolist())) == 1:
        degrees = (np.bincount(e[0], minlength=n) for e, n in zip(edges, sizes, strict=True))
        labels = [np.log2(d.clip(1)).astype(np.int64) for d in degrees]
    found, flat = np.unique(np.concatenate(labels), return_inverse=True)
    common = int(np.bincount(flat).argmax())
    classes = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    ego = EgoSubgraphs(1, max_nodes=MAX_NODES, large="shrink")
    graphs, start = [], 0
    for n, edge_index, target in zip(sizes, edges, classes, strict=True):
        own = torch.from_numpy(flat[start : start + n])
        start += n
        data = Data(
            x=torch.eye(len(found))[own],
            edge_index=edge_index,
            y=target.view(1),
            label=own.ne(common).long(),
        )
        graphs.append(ego(data))
    for by, count in KINDS.items():
        kinds = AddSubgraphKind(by, num_kinds=count).fit(graphs)
        for graph in graphs:
            graph[f"{by}_kind"] = kinds(graph).sub_kind
    return Graphs(name, graphs, classes, torch.from_numpy(fold).long())


def _from_file(path: Path, name: str) -> Graphs:
    z = read_npz(path, KEYS)
    ptr, ends = z["graph_ptr"].astype(np.int64), z["edge_index"].astype(np.int64)
    count = len(z["graph_label"])
    wrong = {
        f"graph_ptr must rise from 0 to {len(z['node_label'])} in {count} steps": len(ptr)
        != count + 1
        or ptr[0] != 0
        or ptr[-1] != len(z["node_label"])
        or bool((np.diff(ptr) < 1).any()),
        f"test_fold must hold {count} folds from -1 to {FOLDS - 1}, each fold at least once": len(
            z["test_fold"]
        )
        != count
        or not set(range(FOLDS)) <= set(z["test_fold"].tolist()) <= set(range(-1, FOLDS)),
        f"edge_index must hold nodes from 0 to {len(z['node_label']) - 1}": ends.ndim != 2
        or not ends.size
        or ends.min() < 0
        or ends.max() >= len(z["node_label"]),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise DataError(f"{path}: {what}; take the file anew from where it came")
    owner = np.searchsorted(ptr, ends, side="right") - 1
    if (owner[0] != owner[1]).any():
        raise DataError(f"{path}: an edge joins two graphs; take the file anew from where it came")
    ends = ends[:, np.argsort(owner[0], kind="stable")]
    bounds = np.cumsum(np.bincount(owner[0], minlength=count))[:-1]
    edges = [
        torch.from_numpy(own - first)
        for own, first in zip(np.split(ends, bounds, axis=1), ptr, strict=False)
    ]
    labels = np.split(z["node_label"].astype(np.int64), ptr[1:-1])
    sizes = np.diff(ptr).tolist()
    return make_graphs(name, sizes, edges, labels, z["graph_label"], z["test_fold"])


def _from_pyg(folder: Path, name: str) -> Graphs:
    theirs = DATASETS[name]
    try:
        found = TUDataset(str(folder), theirs)
    except Exception as cause:  # whatever a download or a damaged archive raises
        raise DataError(
            f"{folder} holds no {name.replace('-', '')}.npz, and PyG's TUDataset {theirs} cannot "
            f"be had ({type(cause).__name__}: {cause}); put its files into {folder / theirs}/raw"
        ) from cause
    graphs = list(found)
    labels = [
        np.zeros(g.num_nodes, np.int64) if g.x is None else g.x.argmax(1).numpy() for g in graphs
    ]
    y = np.array([int(g.y) for g in graphs])
    fold = np.empty(len(y), np.int64)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(y, y)
    for number, (_, test) in enumerate(splits):
        fold[test] = number
    sizes = [g.num_nodes for g in graphs]
    return make_graphs(theirs, sizes, [g.edge_index for g in graphs], labels, y, fold)
