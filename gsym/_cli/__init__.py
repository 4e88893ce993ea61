"""Choose a group of node permutations for signals on a fixed graph, from files.

A graph is an .npz (edge_index [2, e] or adj [n, n]), a .pt (PyG Data), or a text file (edge list
or matrix); signals are an .npz, .npy or .csv of [samples, nodes] or [samples, nodes, channels].
To take one array of several, name it: metr_la.npz:speed.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings

import tyro

from gsym._cli import building, choosing, coarsening, symmetry  # noqa: F401  # their commands
from gsym._cli._common import app
from gsym._console import UsageError, show_warning
from gsym.errors import (
    ClusteringError,
    FileError,
    GraphError,
    GroupError,
    PartitionError,
    SignalError,
    SolverUnavailableError,
)

# What the user can mend, and the message says how.
ERRORS = (
    FileError,
    ClusteringError,
    GraphError,
    GroupError,
    PartitionError,
    SignalError,
    SolverUnavailableError,
    ImportError,
    OSError,
)


def main(args: list[str] | None = None) -> None:
    """Run one command; wrong input ends with one line and exit code 2, an interrupt with 130."""
    if threading.current_thread() is threading.main_thread():
        # As an interrupt from the keyboard, it ends the workers and removes temporary files.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            app.cli(
                prog="gsym",
                args=args,
                description=__doc__,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        except (*ERRORS, UsageError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except MemoryError:
            print("error: this does not fit into memory; offer fewer levels", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print(
                "interrupted: nothing half-written is left; run the same command to start again",
                file=sys.stderr,
            )
            sys.exit(130)
