"""Files to graphs, signals and partitions, and back: written whole or not at all.

Nothing is unpickled: ``.npy`` and ``.npz`` are read without pickled objects, ``.pt`` with
``weights_only``, and of pickles only plain things. A file that cannot be read as what was asked
for raises :class:`gsym.errors.FileError`, which names it and says what to do. What is doubtful is
asked for, what was assumed is said: every reader keeps a :class:`Summary`.
"""

from gsym._files.edges import Graph
from gsym._files.graphs import read_graph
from gsym._files.inputs import Inputs, read_inputs
from gsym._files.signals import (
    Signals,
    load_signals,
    load_targets,
    read_latlon,
    read_names,
    read_partitions,
    read_positions,
    read_signals,
    read_targets,
)
from gsym._files.summary import Summary
from gsym._files.tables import FirstColumn, FirstRow
from gsym._files.writing import fingerprint, replacing, write_arrays, write_bytes

__all__ = [
    "FirstColumn",
    "FirstRow",
    "Graph",
    "Inputs",
    "Signals",
    "Summary",
    "fingerprint",
    "load_signals",
    "load_targets",
    "read_graph",
    "read_inputs",
    "read_latlon",
    "read_names",
    "read_partitions",
    "read_positions",
    "read_signals",
    "read_targets",
    "replacing",
    "write_arrays",
    "write_bytes",
]
