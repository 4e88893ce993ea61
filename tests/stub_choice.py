"""Choices made by hand: what the page needs of a GroupChoice, with numbers that tests can know."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

import gsym
from gsym.choosing import CRITERIA


def candidate(group, score, *, partition=None, error=0.01, gap=0.0, **more):
    if isinstance(group, gsym.Partition):
        partition, group = group, gsym.ClusterGroup(group)
    k = group.node_orbits().num_orbits if partition is None else partition.num_clusters
    size = group.num_nodes if partition is None else k
    row, column = np.indices((size, size))
    known = {
        "group": group,
        "name": str(group),
        "sentence": "",
        "in_rep": None,
        "out_rep": None,
        "partition": partition,
        "num_clusters": k,
        "commutant_dim": group.commutant_dim(),
        "score": score,
        "standard_error": error,
        "gap": gap,
        "gap_error": error / 4,
        "bias": 0.1 * k,
        "variance": 0.001 * k,
        # Positive below the diagonal, negative above: signs that a picture shows.
        "matrix": np.sign(row - column) * (1.0 + row + column),
    }
    return SimpleNamespace(**(known | more))


def choice(candidates, *, edge_index=None, best=None, simplest=None, **more):
    known = [c for c in candidates if np.isfinite(c.score)] or candidates
    best = best or min(known, key=lambda c: c.score)
    given = {
        "candidates": tuple(candidates),
        "best": best,
        "simplest": simplest or best,
        "regret_bound": 0.0123,
        "criterion": "left-out squared error",
        "words": CRITERIA["ridge"].words,
        "hierarchy": None,
        "signs": None,
        "soft": None,
        "task": None,
        "edge_index": edge_index,
    }
    return SimpleNamespace(**(given | more))


def path_graph(n):
    ends = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    return torch.cat([ends, ends.flip(0)], dim=1)


def chain(n=12, counts=(12, 6, 3, 2, 1), scores=(0.9, 0.5, 0.3, 0.31, 0.8)):
    """A path cut into ever longer pieces, best at three."""
    found = []
    for k, score in zip(counts, scores, strict=True):
        labels = torch.arange(n) * k // n
        found.append(candidate(gsym.Partition(labels), score, gap=score - min(scores)))
    return choice(found, edge_index=path_graph(n), simplest=found[3])
