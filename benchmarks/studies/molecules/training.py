"""Train a network on one fold, and read the two accuracies off its history."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch_geometric.data import Batch, Data

from benchmarks.studies.molecules.graphs import Graphs
from benchmarks.studies.molecules.models import GraphNet
from benchmarks.suite.task import Schedule

LAST = 10  # epochs whose mean the literature reports
STRENGTHS = tuple(10.0**k for k in range(-3, 3))


@dataclass
class History:
    """What was measured after every epoch.

    Attributes:
        val: Accuracy on the validation fold, in percent.
        val_loss: Cross-entropy there.
        test: Accuracy on the test fold, in percent; never compared to choose anything.
    """

    val: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)

    def best(self) -> int:
        """The epoch of best validation accuracy, from 1; ties go to the smaller loss, then early.

        The test fold has no say.
        """
        ranks = [(-accuracy, loss) for accuracy, loss in zip(self.val, self.val_loss, strict=True)]
        return ranks.index(min(ranks)) + 1

    def chosen(self) -> float:
        """Test accuracy at the epoch that validation chooses."""
        return self.test[self.best() - 1]

    def last(self, of: str = "test") -> float:
        """Mean accuracy of the last ten epochs, as the literature reports it."""
        return float(np.mean(getattr(self, of)[-LAST:]))


def train(
    net: GraphNet,
    graphs: Graphs,
    fold: int,
    schedule: Schedule,
) -> History | None:
    """Train with Adam on the training graphs of a fold.

    The graphs of a batch stay together, so that what a network prepares serves all epochs; their
    order changes.

    Args:
        net: The network.
        graphs: The data set.
        fold: Which fold tests.
        schedule: Epochs, batches and learning rate.

    Returns:
        The history, or ``None`` if a loss was no finite number.
    """
    assert schedule.batch_size is not None
    index, *others = graphs.parts(fold)
    shuffled = index[torch.randperm(len(index))]
    training = [_collate(net, graphs, part) for part in shuffled.split(schedule.batch_size)]
    val, test = (_collate(net, graphs, part) for part in others)
    optimiser = torch.optim.Adam(net.parameters(), lr=schedule.lr)
    history = History()
    for epoch in range(schedule.epochs):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(epoch)
        net.train()
        for number in torch.randperm(len(training)).tolist():
            batch, prepared = training[number]
            optimiser.zero_grad()
            loss = F.cross_entropy(net(batch, prepared), batch.y)
            if not loss.isfinite():
                return None
            loss.backward()
            optimiser.step()
        accuracy, loss_there = _evaluate(net, *val)
        if not math.isfinite(loss_there):
            return None
        history.val.append(accuracy)
        history.val_loss.append(loss_there)
        history.test.append(_evaluate(net, *test)[0])
    return history


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


@torch.no_grad()
def _evaluate(net: GraphNet, batch: Batch, prepared: Any) -> tuple[float, float]:
    """Accuracy in percent, and loss."""
    net.eval()
    scores = net(batch, prepared)
    loss = F.cross_entropy(scores, batch.y).item()
    return _percent(scores.argmax(1) == batch.y), loss


def _percent(right: Tensor) -> float:
    return 100 * right.float().mean().item()
