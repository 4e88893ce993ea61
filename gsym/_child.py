"""Runs a script as a process that does not outlive its parent, however that one ends.

As a script: python -P _child.py PARENT SCRIPT [ARGUMENT ...]. It knows the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def command(script: Path, *arguments: str) -> list[str]:
    """What to start so that a script of this package runs in a process of its own."""
    # -P keeps the folder of the script and the current one out of the way of imports.
    return [sys.executable, "-P", __file__, str(os.getpid()), str(script), *arguments]


def main() -> None:
    """Run the script that was named, tied to the parent that was named."""
    parent, *sys.argv = sys.argv[1:]
    if os.name == "posix":
        _end_with(int(parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        # The kernel does it even while native code holds the interpreter.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _end_without(parent)


def _watch(parent: int) -> None:
    while True:
        _end_without(parent)
        time.sleep(1)


def _end_without(parent: int) -> None:
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        os._exit(1)


if __name__ == "__main__":
    main()
