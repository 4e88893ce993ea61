"""The record that :func:`gsym.kernels.trace` keeps, where the back-ends can reach it."""

from __future__ import annotations

import threading


class _State(threading.local):
    """What holds in one thread; the compiler can read this, but no ``ContextVar``."""

    record: list[str] | None = None


state = _State()


def in_plain_torch() -> None:
    """Say that the call under way, of a back-end with code of its own, does without it."""
    if state.record:
        state.record[-1] = "native"
