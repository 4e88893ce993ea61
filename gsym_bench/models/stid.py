"""A light forecaster without messages: what tells nodes apart is an embedding of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsym.nn import OrbitEmbedding


class NodeMLP(nn.Module):
    """One perceptron for all nodes, over a node's past, the time, and the node's embedding.

    After STID (Shao, Zhang, Wang, Wei, Xu, arXiv 2208.05233), a reconstruction: there every node
    has an embedding of its own; here it is an `OrbitEmbedding`, tied by a group or summed along a
    chain. The past is that of the speed alone; time of the day and day of the week are those of the
    last reading.

    Args:
        embedding: Of the nodes; its channels are the width of each of the four parts.
        history: Readings of the past.
        horizon: Steps of the forecast.
        slots: Slots of a day.
        num_layers: Residual layers.
        dropout: In each of them.

    Shapes:
        - input: ``[b, history, n, 3]``: reading, fraction of the day, day of the week from 0
        - output: ``[b, horizon, n]``

    Symmetry:
        Nodes: exact for the group of the embedding.
    """

    def __init__(
        self,
        embedding: OrbitEmbedding,
        history: int,
        horizon: int,
        *,
        slots: int = 288,
        num_layers: int = 3,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        part = embedding.channels
        width = 4 * part
        self.slots = slots
        self.node = embedding
        self.past = nn.Linear(history, part)
        self.slot = nn.Embedding(slots, part)
        self.day = nn.Embedding(7, part)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(num_layers)
        )
        self.last = nn.Linear(width, horizon)
        # As published: small embeddings, which the past soon outweighs.
        for table in (self.slot, self.day):
            nn.init.xavier_uniform_(table.weight)
        embedding.reset_parameters(std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        reading, time, day = x.unbind(-1)
        b, _, n = reading.shape
        # Nudged, because 0.25 * 288 may come as 71.999.
        slot = (time[:, -1, 0] * self.slots + 1e-3).long() % self.slots
        parts = [
            self.past(reading.transpose(1, 2)),
            self.node().expand(b, -1, -1),
            self.slot(slot)[:, None].expand(-1, n, -1),
            self.day(day[:, -1, 0].long())[:, None].expand(-1, n, -1),
        ]
        h = torch.cat(parts, dim=-1)
        for layer in self.layers:
            h = h + layer(h)
        return self.last(h).transpose(1, 2)
