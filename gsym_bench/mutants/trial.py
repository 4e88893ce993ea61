"""Run tests on a copy of the repository with and without a fault, in forks of one process.

Cosmic-ray's own command would start an interpreter with torch for every fault and run all tests;
here a process that has imported torch forks, and runs only the tests that execute the changed line,
quick ones first, to the first failure.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest

from gsym_bench.mutants.faults import Fault, files_of
from gsym_bench.suite.errors import BenchmarkError

# Compilers take minutes and see no fault that the same code misses without them.
LEFT_OUT = "not compile and not export and not onnx"
SLOW = 4.0  # seconds of the processor; a test that takes longer is not tried on every fault

# A test may take so many seconds of the processor more than without a fault, times so many.
GRACE, FACTOR = 4.0, 4.0
START = 60.0  # seconds of the processor to import gsym and to collect tests
MEMORY = 12 * 2**30

_LOG = "pytest.log"
_OPTIONS = ("-q", "-p", "no:xdist", "-k", LEFT_OUT)


@dataclass(frozen=True)
class Traced:
    """What the tests of a target do without a fault.

    Attributes:
        seconds: Test to its time.
        lines: ``"file:line"`` to the tests that execute it.
    """

    seconds: dict[str, float]
    lines: dict[str, list[str]]

    def of(self, fault: Fault) -> list[str]:
        """Tests that execute a fault, quick ones first; all where none is seen to do it.

        Lines that run at import, in a process of their own or in a thread of autograd are not
        seen.
        """
        own = self.lines.get(f"{fault.path}:{fault.line}") or list(self.seconds)
        return sorted(own, key=lambda test: (self.seconds[test], test))


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of the files that git tracks or would; gsym is imported from it from now on."""
    if any(name.split(".")[0] == "gsym" for name in sys.modules):
        raise BenchmarkError("gsym is imported already: no fault could be planted in it")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)
    with tempfile.TemporaryDirectory(prefix="gsym-mutants-") as folder:
        tree = Path(folder).resolve()
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_bytes((root / name).read_bytes())
        _import_once()
        sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != root)]
        # Byte code would be told apart by its time and size, which a fault may leave as they are.
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        yield tree


def trace(tree: Path, target: str, tests: Sequence[str]) -> Traced:
    """Run the tests of a target without a fault.

    Args:
        tree: The copy.
        target: File or folder in it; the examples in its docstrings are tests, too.
        tests: Patterns of test files.

    Raises:
        BenchmarkError: A test fails without any fault.
    """
    own = files_of(tree, target)
    files = sorted({path for pattern in tests for path in tree.glob(pattern)})
    names = [path.relative_to(tree).as_posix() for path in [*files, *own]]
    answer = tree / "trace.json"
    code, _ = _fork(tree, lambda: _trace_here(tree, own, names, answer), 3600.0)
    if code != 0:
        said = "\n".join((tree / _LOG).read_text().splitlines()[-30:])
        raise BenchmarkError(f"the tests of {target} fail without a fault:\n{said}")
    return Traced(**json.loads(answer.read_text()))


def try_out(tree: Path, fault: Fault, traced: Traced) -> tuple[str, str]:
    """Plant one fault and run its tests.

    Returns:
        ``"killed"``, ``"timeout"`` or ``"survived"``, and the first test that failed.
    """
    chosen = traced.of(fault)
    path, answer = tree / fault.path, tree / "failed.txt"
    before, times = path.read_text(encoding="utf-8"), path.stat()
    answer.write_text("")
    limits = {test: GRACE + FACTOR * traced.seconds[test] for test in chosen}
    try:
        path.write_text(fault.plant(before), encoding="utf-8")
        code, slow = _fork(tree, lambda: _try_here(limits, answer), sum(limits.values()))
    finally:
        path.write_text(before, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if code == 0:
        return "survived", ""
    if slow:
        return "timeout", answer.read_text()
    # Without the name of a test, pytest could not collect any: gsym cannot be imported.
    return "killed", answer.read_text() or f"exit code {code}"


def _import_once() -> None:
    """What takes long and is not gsym."""
    import scipy.stats  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import torch
    import torch_geometric.nn  # noqa: F401

    torch.set_num_threads(1)


def _fork(tree: Path, body: Callable[[], int], limit: float) -> tuple[int, bool]:
    """Run ``body`` in a child with the tree as its home; its exit code, and whether it was slow."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            os.setsid()
            os.chdir(tree)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            with Path(_LOG).open("w") as log, redirect_stdout(log), redirect_stderr(log):
                status = body()
        finally:
            os._exit(status)
    # A test that works for ever is ended by its timer; one that waits for ever by the clock.
    deadline = time.monotonic() + START + 10 * limit
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.02)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            done = os.waitpid(pid, 0)
            break
    with suppress(ProcessLookupError):  # workers that the child left behind
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(done[1])
    return code, code in (-signal.SIGPROF, -signal.SIGKILL)


class _Chosen:
    """Keeps the chosen tests in their order, with a limit each; names the first that fails."""

    def __init__(self, limits: dict[str, float], answer: Path) -> None:
        self._limits = limits
        self._place = {name: place for place, name in enumerate(limits)}
        self._answer = answer

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        kept = [item for item in items if item.nodeid in self._place]
        items[:] = sorted(kept, key=lambda item: self._place[item.nodeid])

    def pytest_runtest_setup(self, item: Any) -> None:
        # Its signal ends the process, also within a call of compiled code.
        signal.setitimer(signal.ITIMER_PROF, self._limits[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self._answer.stat().st_size:
            self._answer.write_text(report.nodeid)


def _try_here(limits: dict[str, float], answer: Path) -> int:
    signal.setitimer(signal.ITIMER_PROF, START)
    sys.dont_write_bytecode = True
    _calm_hypothesis()
    files = dict.fromkeys(test.partition("::")[0] for test in limits)
    return int(pytest.main([*_OPTIONS, "-x", *files], plugins=[_Chosen(limits, answer)]))


class _Watch:
    """Tells the tracer which test runs, and takes its time."""

    def __init__(self, tracer: coverage.Coverage) -> None:
        self.seconds: dict[str, float] = {}
        self._tracer = tracer

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        self._tracer.switch_context(item.nodeid)
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start
            self._tracer.switch_context("")


def _trace_here(tree: Path, own: Sequence[Path], files: Sequence[str], answer: Path) -> int:
    _calm_hypothesis()
    tracer = coverage.Coverage(data_file=None, include=list(map(str, own)), config_file=False)
    watch = _Watch(tracer)
    tracer.start()
    code = pytest.main([*_OPTIONS, *files], plugins=[watch])
    tracer.stop()
    seconds = {test: spent for test, spent in watch.seconds.items() if spent < SLOW}
    lines = {}
    for path in own:
        name = path.relative_to(tree).as_posix()
        for line, contexts in tracer.get_data().contexts_by_lineno(str(path)).items():
            lines[f"{name}:{line}"] = [test for test in contexts if test in seconds]
    answer.write_text(json.dumps({"seconds": seconds, "lines": lines}))
    return int(code)


def _calm_hypothesis() -> None:
    """The same examples every time, and no memory of failures between faults."""
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
