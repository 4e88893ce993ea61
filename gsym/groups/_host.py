"""Values live on the CPU, whatever default device is in force where they are made or asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from types import FunctionType
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def lives_on_cpu(cls: type[T]) -> type[T]:
    """Let every method and property of a class make its tensors on the CPU.

    Layers are built under ``torch.device("meta")`` to be filled later; their groups have to know
    their numbers all the same.
    """
    for name, member in list(vars(cls).items()):
        wrapped: Any = None
        if isinstance(member, FunctionType):
            wrapped = _on_cpu(member)
        elif isinstance(member, classmethod | staticmethod):
            wrapped = type(member)(_on_cpu(member.__func__))
        elif isinstance(member, property) and member.fget is not None:
            wrapped = property(_on_cpu(member.fget), doc=member.__doc__)
        elif isinstance(member, cached_property):
            wrapped = cached_property(_on_cpu(member.func))
            wrapped.__set_name__(cls, name)
        if wrapped is not None:
            setattr(cls, name, wrapped)
    return cls


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return call
