"""Memory and open files stay flat, in the small; ``make soak`` runs it at length."""

import os
import sys

import pytest
import soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_layers_and_choices_leak_nothing():
    soak.watch(soak.training(), 300)
    soak.watch(soak.choosing(swaps=None), 16)


@pytest.mark.parametrize("what", ["objects", "files", "allocated", "resident"])
def test_a_leak_is_seen(what):
    kept = []

    def leak(_):
        if what == "objects":
            kept.append([])
        elif what == "files":
            kept.append(os.open(os.devnull, os.O_RDONLY))
        else:
            # Below and beyond the size from which memory is mapped on its own.
            kept.append(bytes(2_000 if what == "allocated" else 200_000))

    # A process that has given much back may place large blocks where memory is resident already.
    seen = "(resident|allocated)" if what == "resident" else what
    try:
        with pytest.raises(AssertionError, match=f"{seen} rose by"):
            soak.watch(leak, 480)
    finally:
        for fd in kept if what == "files" else ():
            os.close(fd)
