"""How the compiled kernels are built, kept, and done without."""

import os
import subprocess
import sys

import pytest
import torch

from gsym import kernels
from gsym.kernels import BackendUnavailableError, Segments, _cpp_library


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and a process that has not built yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (_cpp_library.library, _cpp_library._attempt):
        function.cache_clear()
    yield tmp_path / "gsym"
    for function in (_cpp_library.library, _cpp_library._attempt):
        function.cache_clear()


def total(**options):
    segments = Segments.from_index(torch.tensor([0, 1, 1]), 2)
    with kernels.trace() as ran:
        y = kernels.segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), segments, **options)
    assert y.tolist() == [[1.0], [5.0]]
    return ran


def test_is_built_once_and_kept(fresh, capfd):
    assert total() == ["cpp"]
    (kept,) = fresh.iterdir()
    assert kept.name.startswith("kernels-")
    assert "compiling" in capfd.readouterr().err
    _cpp_library.library.cache_clear()
    before = kept.stat().st_mtime_ns, kept.stat().st_ino
    _cpp_library.library()
    assert capfd.readouterr().err == ""
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == before


def test_other_sources_are_another_library(fresh, monkeypatch, tmp_path):
    _cpp_library.library()
    changed = tmp_path / "csrc"
    changed.mkdir()
    for path in _cpp_library._SOURCES.iterdir():
        (changed / path.name).write_text(path.read_text() + "// changed\n")
    monkeypatch.setattr(_cpp_library, "_SOURCES", changed)
    _cpp_library.library.cache_clear()
    _cpp_library.library()
    assert len(list(fresh.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(fresh):
    fresh.write_text("a file in the place of the folder")
    assert total() == ["cpp"]
    assert fresh.is_file()


@pytest.fixture
def quick(fresh, monkeypatch):
    """As ``fresh``, and building takes a moment."""
    monkeypatch.setattr(_cpp_library, "_FLAGS", (*_cpp_library._FLAGS, "-O0"))
    return fresh


def test_a_damaged_library_is_built_anew(quick):
    assert total() == ["cpp"]
    (kept,) = quick.iterdir()
    size = kept.stat().st_size
    kept.unlink()  # the process still runs the old one
    kept.write_bytes(b"no library")
    for function in (_cpp_library.library, _cpp_library._attempt):
        function.cache_clear()
    assert total() == ["cpp"]
    assert [path.stat().st_size for path in quick.iterdir()] == [size]


def test_a_compiler_with_a_launcher_and_flags(quick, monkeypatch):
    compiler = os.environ.get("CXX") or "c++"
    monkeypatch.setenv("CXX", f"env {compiler} -DUNUSED")
    assert total() == ["cpp"]


def test_without_a_home(quick, monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the system does not know
    monkeypatch.chdir(tmp_path)
    assert total() == ["cpp"]
    assert not list(tmp_path.iterdir())


def test_without_a_standard_error(quick, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert total() == ["cpp"]


def test_without_a_compiler(fresh, monkeypatch, recwarn):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert total() == ["native"]
    assert not recwarn
    with pytest.raises(BackendUnavailableError, match=r"C\+\+ compiler"):
        total(backend="cpp")


def test_a_compiler_that_fails_is_warned_of_once(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(RuntimeWarning, match="slower kernels: false .*failed") as warned:
        assert total() == total() == ["native"]
    assert len(warned) == 1
    assert not fresh.exists()
    with pytest.raises(BackendUnavailableError, match=r"false .*failed"):
        total(backend="cpp")


def test_importing_builds_nothing():
    code = (
        "import gsym, gsym.nn\n"
        "from gsym.kernels import _cpp_library\n"
        "assert not _cpp_library.library.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tensor_without_memory_is_refused():
    for x in (torch.empty(3, device="meta"), torch.empty(0, device="meta")):
        with pytest.raises(TypeError, match="plain tensors on the CPU; got Tensor on meta"):
            _cpp_library.pointer(x)
    _cpp_library.pointer(torch.empty(0))
    assert _cpp_library.pointer(None) is None
