"""The compiled C++ of the kernels: found or built at first use, and called by pointers.

The sources in ``csrc`` need nothing but a C++ compiler with OpenMP: no headers of PyTorch, so that
the result serves every release of it. :mod:`gsym.kernels.cpp.build` compiles them, and
:mod:`gsym.kernels.cpp.cache` is where the result is kept with a checksum.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsym.errors import CacheError
from gsym.kernels.cpp.build import NATIVE, Compiler, Record, find_compiler, sources
from gsym.kernels.cpp.cache import Folder, check_parents, location, opened

if sys.platform == "linux":
    import fcntl

INDEX_TYPES = {torch.int32: "int32", torch.int64: "int64"}
NUMBER_TYPES = {torch.float32: "float32", torch.float64: "float64"}

_MOST_RECORD = 2**16
# What functions answer, mirrored in csrc/call.h.
_NO_MEMORY = 2
_MISFIT = "the tables of an index do not fit the rows; make them with Segments.from_index"
# One function of every source file.
_SYMBOLS = (
    *("gsym_vector_bytes", "gsym_edges_forward_float32_int32"),
    "gsym_adapted_forward_float32",
    *("gsym_segment_sum_float32_int32", "gsym_mlp_forward_float32"),
    *("gsym_lifted_forward_float32", "gsym_lifted_sums_float32"),
)


def why_not() -> str | None:
    """Why there is no library, or ``None`` where there is one."""
    return _attempt()


def is_usable() -> bool:
    """Whether there is a library; of a compiler that fails the user is warned, once."""
    return _attempt() is None


# What torch.compiler.assume_constant_result does, which imports the compiler for it: seconds.
for _function in (why_not, is_usable):
    vars(_function)["_dynamo_marked_constant"] = True


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
        NotImplementedError: No compiler and nothing built ahead, or another system than Linux.
        RuntimeError: A compiler that fails; the message is its own.
    """
    notes: list[str] = []
    try:
        loaded = _find_or_build(notes)
    except NotImplementedError:
        raise
    except (OSError, RuntimeError) as error:
        raise RuntimeError("; ".join(dict.fromkeys([*notes, str(error)]))) from error
    if notes:
        text = "; ".join(dict.fromkeys(notes))
        warnings.warn(f"gsym runs its compiled kernels, but: {text}", RuntimeWarning, stacklevel=3)
    return loaded


def prebuild(march: str = NATIVE, out: Path | None = None) -> tuple[Path, Record]:
    """Build the library ahead of time, for machines that have no compiler.

    Args:
        march: Processor to build for, as the compiler names it.
        out: Folder, which ``GSYM_CACHE_DIR`` names at run time; by default that, or the user's
            cache.

    Returns:
        The library, and what is filed about it.

    Raises:
        NotImplementedError: No compiler, or another system than Linux.
        RuntimeError: A compiler that fails, or a folder that would not be trusted.
    """
    compiler = find_compiler(march)
    compiler.needs()
    folder_path = location() if out is None else Path(os.path.abspath(out))  # noqa: PTH100
    with opened(folder_path, create=True, shared=out is not None) as folder, folder.locked():
        with folder.workplace() as workplace:
            data = compiler.build(workplace)
        record = Record.of(data, compiler)
        lacking = record.lacking()
        if lacking is None:
            _load(data)
        elif march == NATIVE:
            raise RuntimeError(f"built for this processor, but {lacking}; name one with --march")
        _keep(folder, compiler, data)
    return folder_path / f"{compiler.name}.so", record


def _find_or_build(notes: list[str]) -> ctypes.CDLL:
    """The library; what goes wrong on the way is noted."""
    compiler, missing = None, None
    try:
        compiler = find_compiler()
        _ = compiler.macros
    except (NotImplementedError, RuntimeError) as error:
        compiler, missing = None, error
    place = None
    try:
        place = location()
        with opened(place) as folder:
            found = _find(folder, compiler, notes)
        if found is not None:
            return found
    except FileNotFoundError:
        pass
    except (CacheError, OSError) as error:
        if compiler is not None or (place is not None and os.path.lexists(place)):
            notes.append(str(error))
        place = None
    if compiler is None:
        assert missing is not None
        raise RuntimeError(str(missing)) if notes else missing
    if place is not None:
        try:
            with opened(place, create=True) as folder, folder.locked():
                # Another process may have built meanwhile.
                return _find(folder, compiler, notes) or _build(folder, compiler, notes)
        except (CacheError, OSError) as error:
            notes.append(f"they cannot be kept in {place}: {error}")
    return _build(None, compiler, notes)


def _build(folder: Folder | None, compiler: Compiler, notes: list[str]) -> ctypes.CDLL:
    with _temporary() if folder is None else folder.workplace() as workplace:
        data = compiler.build(workplace)
    loaded = _load(data)
    if folder is not None:
        try:
            _keep(folder, compiler, data)
        except OSError as error:
            notes.append(f"they cannot be kept in {folder.path}: {error}")
    return loaded


def _keep(folder: Folder, compiler: Compiler, data: bytes) -> None:
    # A library without its record counts as none.
    folder.write(f"{compiler.name}.so", data)
    folder.write(f"{compiler.name}.json", Record.of(data, compiler).write())


def _find(folder: Folder, compiler: Compiler | None, notes: list[str]) -> ctypes.CDLL | None:
    """What was built for this very processor, or else the best built ahead that it can run."""
    if compiler is not None:
        record = _record(folder, compiler.name, notes)
        found = None if record is None else _kept(folder, compiler.name, record, notes)
        if found is not None:
            return found
    usable, refused = [], []
    for file in folder.names():
        name = file.removesuffix(".json")
        if name == file or (compiler is not None and name == compiler.name):
            continue
        record = _record(folder, name, notes)
        # With a compiler, what is native to another machine has no use here.
        if record is None or (compiler is not None and record.march == NATIVE):
            continue
        lacking = record.lacking()
        if record.sources != sources():
            lacking = "it was built for another version of gsym"
        if lacking is None:
            usable.append((-len(record.needs or ()), name, record))
        else:
            refused.append(f"{folder.path / name}.so is refused: {lacking}")
    for _, name, record in sorted(usable, key=lambda x: x[:2]):
        found = _kept(folder, name, record, notes)
        if found is not None:
            return found
    if compiler is None:
        notes += refused
    return None


def _record(folder: Folder, name: str, notes: list[str]) -> Record | None:
    try:
        return Record.read(folder.read(f"{name}.json", _MOST_RECORD))
    except FileNotFoundError:
        return None
    except CacheError as error:
        notes.append(str(error))
    except ValueError:
        notes.append(f"{folder.path / name}.json is damaged")
    return None


def _kept(folder: Folder, name: str, record: Record, notes: list[str]) -> ctypes.CDLL | None:
    where = f"{folder.path / name}.so"
    try:
        data = folder.read(f"{name}.so", record.size)
        if record.matches(data):
            return _load(data)
        notes.append(f"{where} is damaged: it does not match its checksum")
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as error:
        notes.append(f"{where}: {error}")
    return None


def _load(data: bytes) -> ctypes.CDLL:
    """Load the very bytes that were checked, whatever happens to their file, now or later.

    Raises:
        RuntimeError: No library, or none of ours.
    """
    try:
        loaded = _load_from_memory(data)
    except OSError:  # a system that forbids it
        try:
            with _temporary() as folder:
                copy = folder / "kernels.so"
                copy.write_bytes(data)
                loaded = ctypes.CDLL(str(copy))
        except OSError as error:
            raise RuntimeError(f"the compiled kernels cannot be loaded: {error}") from error
    missing = [name for name in _SYMBOLS if not hasattr(loaded, name)]
    if missing:
        raise RuntimeError(f"the compiled kernels lack {', '.join(missing)}")
    return loaded


def _load_from_memory(data: bytes) -> ctypes.CDLL:
    # Also where the folder lies on a mount that executes nothing.
    fd = os.memfd_create("gsym-kernels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        # It stays open: the loader takes another library of the same name for the same one.
        return ctypes.CDLL(f"/proc/self/fd/{fd}")
    except BaseException:
        os.close(fd)
        raise


@contextmanager
def _temporary() -> Iterator[Path]:
    """A private folder among the system's temporary ones, removed at the end."""
    check_parents(Path(os.path.realpath(tempfile.gettempdir())))
    with tempfile.TemporaryDirectory(prefix="gsym-") as name:
        yield Path(name)


def call(name: str, *args: ctypes.Structure | ctypes.Array[Any]) -> None:
    """Call a function of the library, which releases the interpreter's lock.

    Raises:
        MemoryError: No memory for what lies between.
        ValueError: Tables of an index that is not that of the rows.
    """
    answer = getattr(library(), f"gsym_{name}")(*map(ctypes.byref, args))
    if answer == _NO_MEMORY:
        raise MemoryError(f"no memory for {name}; take smaller batches")
    if answer:
        raise ValueError(_MISFIT)


def check_sizes(**pairs: tuple[Tensor | None, int]) -> None:
    """Refuse tensors of other sizes than compiled code, which sees addresses alone, will read.

    Raises:
        ValueError: Such a tensor.
    """
    for name, (x, size) in pairs.items():
        if x is not None and x.numel() != size:
            raise ValueError(f"{_MISFIT}: {name} holds {x.numel()} numbers instead of {size}")


def alike(*tables: Tensor | None) -> list[Any]:
    """Tables of indices in one type: a graph may have few edges between very many nodes.

    Raises:
        TypeError: Tables of another type than int32 and int64.
    """
    found, mixed = None, False
    for x in tables:
        if x is not None and x.dtype != found:
            if x.dtype not in INDEX_TYPES:
                raise TypeError(f"an index must be int32 or int64; got {x.dtype}")
            found, mixed = x.dtype, found is not None
    if not mixed:
        return list(tables)
    return [None if x is None else x.long() for x in tables]


def addresses(tensors: Iterable[Tensor | None]) -> list[int | None]:
    """Where the numbers of contiguous tensors lie.

    Raises:
        TypeError: Another one, or a tensor without numbers in the memory of the CPU.
    """
    found: list[int | None] = []
    for x in tensors:
        if x is None:
            found.append(None)
            continue
        address = x.data_ptr()
        if not x.is_cpu or (address == 0 and x.numel()):
            raise TypeError(
                f"compiled code takes plain tensors on the CPU; got {type(x).__name__} on "
                f'{x.device}; convert it, or use backend="native"'
            )
        if not x.is_contiguous():
            raise TypeError(f"compiled code takes contiguous tensors; got strides {x.stride()}")
        if x.is_neg():
            # Its sign lies in a bit of the view, not in memory.
            raise TypeError("compiled code reads numbers as they lie; call resolve_neg() first")
        found.append(address)
    return found
