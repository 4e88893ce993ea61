"""The compiled C++ of the kernels: built for this processor at first use, and called by pointers.

The sources in ``csrc`` need nothing but a C++ compiler with OpenMP: no headers of PyTorch, so that
building takes seconds and the result serves every release of it. It is kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")

INDEX_TYPES = {torch.int32: "int32", torch.int64: "int64"}
NUMBER_TYPES = {torch.float32: "float32", torch.float64: "float64"}


def why_not() -> str | None:
    """Why there is no library, or ``None`` where there is one."""
    return _attempt()


def is_usable() -> bool:
    """Whether there is a library; of a compiler that fails the user is warned, once."""
    return _attempt() is None


# What torch.compiler.assume_constant_result does, which imports the compiler for it: seconds.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]
is_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _attempt() -> str | None:
    try:
        library()
    except NotImplementedError as error:
        return str(error)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"gsym uses its slower kernels: {error}", RuntimeWarning, stacklevel=2)
        return str(error)
    return None


@cache
def library() -> ctypes.CDLL:
    """The library, from the cache or built.

    Raises:
        NotImplementedError: No compiler, or another system than Linux.
        RuntimeError: A compiler that fails; the message is its own.
    """
    # As make reads it, CXX may hold a launcher before the compiler, or flags behind it.
    compiler = shlex.split(os.environ.get("CXX", "")) or _installed()
    if sys.platform != "linux" or not compiler:
        raise NotImplementedError("it needs Linux and a C++ compiler: CXX, c++ or g++")
    # What the compiler makes of this processor: one home directory may serve several machines.
    probe = _run(*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
    key = hashlib.sha256("\0".join((*compiler, *_FLAGS, probe)).encode())
    for path in sorted(_SOURCES.iterdir()):
        key.update(path.read_bytes())
    # Path.expanduser would raise where the system knows no home of this user.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    folder = Path(home) / "gsym"
    target = folder / f"kernels-{key.hexdigest()[:32]}.so"
    keeps = folder.is_absolute()
    if keeps and target.is_file():
        with contextlib.suppress(OSError):  # one that is damaged is built anew
            return ctypes.CDLL(str(target))
    if sys.stderr is not None:  # a service may have none
        sys.stderr.write("gsym: compiling its kernels for this processor, once\n")
    if keeps:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        keeps = folder.is_dir() and os.access(folder, os.W_OK)
    with tempfile.TemporaryDirectory(dir=folder if keeps else None) as fresh:
        made = Path(fresh) / target.name
        sources = [str(path) for path in sorted(_SOURCES.glob("*.cpp"))]
        _run(*compiler, *_FLAGS, *sources, "-o", str(made))
        loaded = ctypes.CDLL(str(made))
        if keeps:  # of two processes that build at once either may come last
            with made.open("rb") as file:
                os.fsync(file.fileno())  # to load the half that a power cut leaves is to crash
            made.replace(target)
    return loaded


def _installed() -> list[str]:
    found = shutil.which("c++") or shutil.which("g++")
    return [found] if found else []


def call(name: str, *args: ctypes.Structure | ctypes.Array[Any]) -> None:
    """Call a function of the library, which releases the interpreter's lock."""
    getattr(library(), f"gsym_{name}")(*(ctypes.byref(arg) for arg in args))


def alike(*tables: Tensor | None) -> list[Any]:
    """Tables of indices in one type: a graph may have few edges between very many nodes."""
    if len({x.dtype for x in tables if x is not None}) < 2:
        return list(tables)
    return [None if x is None else x.long() for x in tables]


def pointer(x: Tensor | None) -> int | None:
    """Where the numbers of a contiguous tensor lie.

    Raises:
        TypeError: A tensor without numbers in the memory of the CPU.
    """
    if x is None:
        return None
    assert x.is_contiguous()
    address = x.data_ptr()
    if not x.is_cpu or (address == 0 and x.numel()):
        raise TypeError(
            f"compiled code takes plain tensors on the CPU; got {type(x).__name__} on {x.device}; "
            'convert it, or use backend="native"'
        )
    return address


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    except OSError as error:
        raise RuntimeError(f"{command[0]} cannot be run: {error}") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(command)} failed:\n{error.stderr}") from error
    return done.stdout
