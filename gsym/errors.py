"""The exceptions of gsym, in one place: input errors are ``ValueError``, the rest ``RuntimeError``.

Every message says what was expected, what came and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailableError",
    "CacheError",
    "ClusteringError",
    "FileError",
    "GraphError",
    "GroupError",
    "PartitionError",
    "SignalError",
    "SolverUnavailableError",
]


class PartitionError(ValueError):
    """Labels or clusters that do not describe a partition."""


class GroupError(ValueError):
    """Permutations that do not describe a group, or a group of the wrong degree."""


class GraphError(ValueError):
    """An ``edge_index`` or ``edge_weight`` that does not describe a graph on the given nodes."""


class SignalError(ValueError):
    """A signal whose shape, type or values do not fit the layer, the group or the method."""


class ClusteringError(ValueError):
    """A graph, signal or request that a coarsening method cannot serve."""


class FileError(ValueError):
    """A file that cannot be read as what was asked for, or cannot be written."""


class BackendUnavailableError(RuntimeError):
    """A back-end was named that cannot run here; the message says what it needs."""


class SolverUnavailableError(RuntimeError):
    """A solver was named whose package is not installed; the message says which."""


class CacheError(RuntimeError):
    """The folder of compiled code, or a file in it, cannot be trusted or used."""
