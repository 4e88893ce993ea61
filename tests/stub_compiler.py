"""A compiler that takes no time, and what tests of the compiled kernels look at."""

import torch

from gsym import kernels
from gsym.kernels import Segments
from gsym.kernels.cpp import library as cpp_library

# In the place of a compiler: it says what the real one does about the processor, and "builds" by
# copying a library that was built before. Every build is counted, and may take a while.
STUB = """#!/bin/sh
here=$(dirname "$0")
case " $* " in *" -dM "*) exec cat "$here/macros";; esac
for out; do :; done
echo built >> "$here/builds"
test -e "$here/delay" && sleep 1
cp "$here/library.so" "$out"
"""


def forget():
    for function in (cpp_library.library, cpp_library._attempt):
        function.cache_clear()


def builds(stub):
    log = stub / "builds"
    return log.read_text().count("built") if log.exists() else 0


def library_in(place):
    (found,) = place.glob("*.so")
    return found


def total(**options):
    segments = Segments.from_index(torch.tensor([0, 1, 1]), 2)
    with kernels.trace() as ran:
        y = kernels.segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), segments, **options)
    assert y.tolist() == [[1.0], [5.0]]
    return ran


def told(recwarn):
    """What the user was warned of."""
    return [str(warning.message) for warning in recwarn if warning.category is RuntimeWarning]
