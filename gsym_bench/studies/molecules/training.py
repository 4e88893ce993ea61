"""Networks and baselines on one fold of a data set of small graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from gsym_bench.studies.molecules.graphs import Graphs
from gsym_bench.studies.molecules.models import GraphNet
from gsym_bench.suite.train import Measured, Training

LAST = 10  # epochs whose mean the literature reports
STRENGTHS = tuple(10.0**k for k in range(-3, 3))


class GraphTraining(Training):
    """A network on the training graphs of a fold, of about so many parameters.

    The graphs of a batch stay together, so that what a network prepares serves all epochs; their
    order changes.

    Args:
        make: Builds the network from the numbers of labels and classes.
        graphs: The data set.
        fold: Which fold tests.
        batch_size: Graphs per step.
    """

    def __init__(
        self, make: Callable[[int, int], GraphNet], graphs: Graphs, fold: int, batch_size: int
    ) -> None:
        self.make, self.graphs, self.fold, self.batch_size = make, graphs, fold, batch_size

    def model(self) -> GraphNet:
        net = self.make(self.graphs.num_labels, self.graphs.num_classes)
        index, *others = self.graphs.parts(self.fold)
        shuffled = index[torch.randperm(len(index))].split(self.batch_size)
        self._train = [_collate(net, self.graphs, part) for part in shuffled]
        self._val, self._test = (_collate(net, self.graphs, part) for part in others)
        return net

    def batches(self) -> Iterator[tuple[Batch, Any]]:
        for number in torch.randperm(len(self._train)).tolist():
            yield self._train[number]

    def loss(self, model: nn.Module, batch: tuple[Batch, Any]) -> Tensor:
        return F.cross_entropy(model(*batch), batch[0].y)

    def validate(self, model: nn.Module) -> Measured:
        """Accuracies in percent and the loss on the validation fold.

        That on the test fold is kept for the page, and chooses nothing here.
        """
        accuracy, loss = _evaluate(model, *self._val)
        return {"val": accuracy, "loss": loss, "test": _evaluate(model, *self._test)[0]}

    def rank(self, measured: Measured) -> tuple[float, ...]:
        """Best accuracy first; ties go to the smaller loss, and the test fold has no say."""
        return -measured["val"], measured["loss"]

    def contents(self, batch: tuple[Batch, Any]) -> dict[str, Any]:
        return {key: batch[0][key] for key in ("x", "edge_index", "batch", "y")}


def last(history: Sequence[Measured], of: str) -> float:
    """Mean accuracy of the last ten epochs, as the literature reports it."""
    return float(np.mean([measured[of] for measured in history[-LAST:]]))


def majority(graphs: Graphs, fold: int) -> tuple[float, float]:
    """Accuracies on validation and test of the class that is most frequent in training."""
    train, val, test = (graphs.y[part] for part in graphs.parts(fold))
    most = train.bincount().argmax()
    return _percent(val == most), _percent(test == most)


def count_labels(graphs: Graphs, fold: int) -> tuple[float, float]:
    """Accuracies of logistic regression on the counts of nodes by label, and of edges.

    The strength of its penalty is chosen on the validation fold.
    """
    rows = [np.r_[data.x.sum(0), data.edge_index.size(1)] for data in graphs.graphs]
    x, y = np.stack(rows).astype(float), graphs.y.numpy()
    train, val, test = (part.numpy() for part in graphs.parts(fold))
    scores = []
    for strength in STRENGTHS:
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        fit.fit(x[train], y[train])
        right = [torch.from_numpy(fit.predict(x[part]) == y[part]) for part in (val, test)]
        scores.append((_percent(right[0]), _percent(right[1])))
    return max(scores, key=lambda pair: pair[0])


BASELINES: dict[str, Callable[[Graphs, int], tuple[float, float]]] = {
    "most frequent class": majority,
    "counts of labels": count_labels,
}


def _collate(net: GraphNet, graphs: Graphs, index: Tensor) -> tuple[Batch, Any]:
    own: Sequence[Data] = [graphs.graphs[i] for i in index.tolist()]
    batch = Batch.from_data_list(own)
    return batch, net.prepare(batch)


def _evaluate(net: nn.Module, batch: Batch, prepared: Any) -> tuple[float, float]:
    """Accuracy in percent, and loss."""
    scores = net(batch, prepared)
    loss = F.cross_entropy(scores, batch.y).item()
    return _percent(scores.argmax(1) == batch.y), loss


def _percent(right: Tensor) -> float:
    return 100 * right.float().mean().item()
