"""A compiler that takes no time and an empty cache, for tests of the compiled kernels."""

import pytest
from stub_compiler import STUB, forget

from gsym.kernels.cpp import build as cpp_build
from gsym.kernels.cpp import cache as cpp_cache
from gsym.kernels.cpp import library as cpp_library


@pytest.fixture(scope="session")
def built():
    """The library of this processor, and what its compiler says about that."""
    try:
        compiler = cpp_build.find_compiler()
    except NotImplementedError:
        pytest.skip("needs a C++ compiler")
    cpp_library.library()
    with cpp_cache.opened(cpp_cache.location()) as folder:
        return folder.read(f"{compiler.name}.so", 2**24), compiler.macros


@pytest.fixture
def stub(built, tmp_path, monkeypatch):
    """The folder of a compiler that takes no time; an empty cache, and a fresh process."""
    folder = tmp_path / "compiler"
    folder.mkdir()
    (folder / "library.so").write_bytes(built[0])
    (folder / "macros").write_text(built[1])
    (folder / "c++").write_text(STUB)
    (folder / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(folder / "c++"))
    monkeypatch.setenv("GSYM_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield folder
    forget()


@pytest.fixture
def place(stub):
    """Where the libraries are kept; it is made at the first build."""
    return stub.parent / "cache"


@pytest.fixture
def no_compiler(monkeypatch):
    """Take the compiler away, when called."""

    def call():
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
        forget()

    return call
