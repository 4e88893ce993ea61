"""Random shapes through the C++ kernels, built under AddressSanitizer and UBSan.

Values and gradients are compared with the definitions in float64; a read or write outside of a
tensor, or what C++ leaves undefined, ends the run. ``make asan`` runs 10,000 shapes:

    python tests/sanitize.py --shapes 10000
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# In an environment variable, since the interpreter is started anew with the runtime before it.
_INSIDE = "GSYM_SANITIZED"
_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def runtimes():
    """The shared libraries of the sanitizers, or ``None`` where the compiler has none."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if sys.platform != "linux" or compiler is None:
        return None
    found = []
    for name in ("libasan.so", "libubsan.so"):
        command = [compiler, f"-print-file-name={name}"]
        answer = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not Path(answer).is_absolute():
            return None
        found.append(answer)
    return found


def run(shapes, seed=0, optimize="-O1", timeout=None):
    """Run this file again under the sanitizers; the process that has ended."""
    with tempfile.TemporaryDirectory() as cache:
        env = {
            **os.environ,
            _INSIDE: " ".join((*_FLAGS, optimize, "-g1")),
            "LD_PRELOAD": " ".join(runtimes()),
            # The interpreter ends without giving everything back.
            "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",
            "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
            "GSYM_CACHE_DIR": str(Path(cache) / "kernels"),
        }
        env.pop("CXX", None)
        command = [sys.executable, __file__, "--shapes", str(shapes), "--seed", str(seed)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if _INSIDE in os.environ:
        sys.exit(check(args.shapes, args.seed))
    if runtimes() is None:
        sys.exit("needs g++ with libasan and libubsan")
    done = run(args.shapes, args.seed)
    sys.stderr.write(done.stderr)
    sys.stdout.write(done.stdout)
    sys.exit(done.returncode)


def check(shapes, seed):
    import random_shapes
    import torch

    from gsym.kernels.cpp import build as cpp_build
    from gsym.kernels.cpp import library as cpp_library

    flags = [flag for flag in cpp_build._FLAGS if flag != "-O3"]
    cpp_build._FLAGS = (*flags, *os.environ[_INSIDE].split())
    loaded = cpp_library.library()
    assert hasattr(loaded, "__asan_init"), "the kernels are not under the sanitizer"
    begin, counts = time.monotonic(), Counter()
    for number in range(shapes):
        rng = random_shapes.Draw(seed * 1_000_000 + number)
        torch.set_num_threads(rng.choice([1, 2, 3, 8]))
        name = rng.choice(sorted(random_shapes.CASES))
        try:
            random_shapes.CASES[name](rng)
        except Exception:
            sys.stderr.write(f"shape {number} of seed {seed}: {name}\n")
            raise
        counts[name] += 1
        if number % 1000 == 999:
            sys.stderr.write(f"{number + 1} shapes, {time.monotonic() - begin:.0f} s\n")
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    sys.stdout.write(f"{shapes} shapes agree: {kinds}\n")
    return 0


if __name__ == "__main__":
    main()
