"""Made-up data with a known answer: a planted partition, a true map, inputs and noise.

Signals are drawn from a twin without end, so the risk of any fitted predictor can be measured, and
the level that is truly best for the signals at hand is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gsym import ClusterGroup, Partition
from gsym.nn import GNet

TRUTHS = ("linear", "two-layer", "nearly linear")
INPUTS = ("isotropic", "correlated")
# Share of the variance that a map without symmetry takes in the nearly linear truth.
ASYMMETRIC = 0.2


class Twin:
    """A planted partition, a true map that it makes equivariant, and inputs.

    Args:
        truth: ``"linear"``: own value and cluster means, of variance 1 each. ``"two-layer"``: a
            G-Net with 8 hidden channels and ReLU, of variance 2. ``"nearly linear"``: the linear
            one, with a fifth of its variance replaced by a random map without any symmetry.
        inputs: ``"isotropic"`` or ``"correlated"``: ``0.95 ** |i - j|`` along an order of the
            nodes that has nothing to do with the partition.
        nodes: Number of nodes.
        planted: Number of clusters, of random sizes from two nodes up.
        noise: Standard deviation of the noise on the targets.
        seed: Seed.
    """

    def __init__(
        self, truth: str, inputs: str, nodes: int, planted: int, noise: float, seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.noise = nodes, noise
        labels = np.repeat(np.arange(planted), 2)
        labels = np.append(labels, self.rng.integers(planted, size=nodes - 2 * planted))
        self.partition = Partition(self.rng.permutation(labels))
        order = self.rng.permutation(nodes)
        covariance = 0.95 ** np.abs(order[:, None] - order)
        self.root = np.eye(nodes) if inputs == "isotropic" else np.linalg.cholesky(covariance)
        self.map = {
            "linear": self._linear,
            "two-layer": self._two_layer,
            "nearly linear": self._nearly_linear,
        }[truth]()

    def inputs(self, signals: int) -> NDArray:
        """Inputs ``[signals, n]``."""
        return self.rng.standard_normal((signals, self.nodes)) @ self.root.T

    def sample(self, signals: int) -> tuple[NDArray, NDArray]:
        """Inputs and noisy targets, ``[signals, n]`` each."""
        x = self.inputs(signals)
        return x, self.map(x) + self.noise * self.rng.standard_normal(x.shape)

    def _standardised(self, function: Callable[[NDArray], NDArray]) -> Callable[..., NDArray]:
        """The function with mean 0 and variance 1 over the inputs and nodes."""
        values = function(self.inputs(2000))
        mean, deviation = values.mean(), values.std()
        return lambda x: (function(x) - mean) / deviation

    def _linear(self) -> Callable[[NDArray], NDArray]:
        labels, k = self.partition.labels.numpy(), self.partition.num_clusters
        pool = np.zeros((self.nodes, k))
        pool[np.arange(self.nodes), labels] = 1 / np.bincount(labels)[labels]
        own, means = self.rng.standard_normal(k), self.rng.standard_normal((k, k))
        first = self._standardised(lambda x: x * own[labels])
        second = self._standardised(lambda x: (x @ pool @ means)[:, labels])
        return lambda x: first(x) + second(x)

    def _nearly_linear(self) -> Callable[[NDArray], NDArray]:
        exact = self._linear()
        matrix = self.rng.standard_normal((self.nodes, self.nodes))
        rest = self._standardised(lambda x: x @ matrix)
        return lambda x: math.sqrt(1 - ASYMMETRIC) * exact(x) + math.sqrt(2 * ASYMMETRIC) * rest(x)

    def _two_layer(self) -> Callable[[NDArray], NDArray]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.rng.integers(2**31)))
            net = GNet([1, 8, 1], ClusterGroup(self.partition), propagate="none").double()
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(std=0.3)

        def run(x: NDArray) -> NDArray:
            with torch.no_grad():
                return net(torch.from_numpy(x)[..., None])[..., 0].numpy()

        scaled = self._standardised(run)
        return lambda x: math.sqrt(2) * scaled(x)


def chain(planted: Partition, rng: np.random.Generator) -> list[Partition]:
    """A nested chain through a partition: clusters halved, or joined in pairs, at each level."""
    n = planted.num_nodes
    levels = [planted]
    while levels[0].num_clusters > 1:
        labels, k = levels[0].labels.numpy(), levels[0].num_clusters
        joined = rng.permutation(k) // 2
        levels.insert(0, Partition.from_labels(joined[labels], relabel=True))
    while True:
        finer = levels[-1].labels.numpy().copy()
        for nodes in levels[-1].clusters():
            if len(nodes) > 1:
                finer[rng.permutation(nodes.numpy())[: len(nodes) // 2]] = finer.max() + 1
        if finer.max() + 1 > 0.7 * n:
            return [Partition.singletons(n), *levels[::-1]]
        levels.append(Partition(finer))
