"""Pickles of plain things: numbers, words, lists, dicts and arrays of numbers.

NumPy's own functions are not called either: stand-ins take what a pickle says of an array, and the
array is made from it after that was checked.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from gsym._files.checks import brief
from gsym.errors import FileError


class _Dtype:
    def __init__(self, kind: object, *_: object) -> None:
        if not isinstance(kind, str) or not re.fullmatch(r"[biuf]\d{1,2}", kind):
            raise pickle.UnpicklingError(f"an array of {kind!r:.20}")
        self.value = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    value: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C").value


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array of unknown type")
    array = _Array()
    array.value = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), "C").value.item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function but these stand-ins."""

    _known: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }
    for _core in ("numpy.core", "numpy._core"):
        _known[_core + ".multiarray", "_reconstruct"] = _Array
        _known[_core + ".multiarray", "scalar"] = _scalar
        _known[_core + ".numeric", "_frombuffer"] = _array

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def load_plain(path: Path, file: BinaryIO) -> Any:
    """What a pickle of plain things holds.

    Raises:
        FileError: It is damaged, or holds anything else.
    """
    try:
        return _resolve(_PlainUnpickler(file, encoding="latin1").load())
    except Exception as cause:  # a malformed pickle may raise anything
        raise FileError(
            f"{path}: cannot be read ({brief(cause)}); of pickles only numbers, words, lists and "
            "arrays are loaded, because others could run code"
        ) from cause


def _resolve(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list | tuple):
        return [_resolve(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _resolve(inner) for key, inner in value.items()}
    return value
