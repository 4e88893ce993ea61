"""Kernels that were built ahead of time, and are refused where they would not run."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from stub_compiler import builds, library_in, told, total

from gsym.kernels.cpp import build as cpp_build
from gsym.kernels.cpp import cache as cpp_cache
from gsym.kernels.cpp import library as cpp_library


def test_built_ahead_it_serves_without_a_compiler(stub, place, no_compiler, recwarn):
    path, record = cpp_library.prebuild()
    assert path == library_in(place)
    assert record.needs == sorted(record.needs)
    assert total() == ["cpp"]
    no_compiler()
    assert total() == ["cpp"]
    assert builds(stub) == 1
    assert not told(recwarn)


def test_built_ahead_for_all_to_read(stub, tmp_path, no_compiler, monkeypatch, recwarn):
    out = tmp_path / "image" / "gsym"
    (stub / "macros").write_text("#define __SSE2__ 1\n#define __SSE2_MATH__ 1\n")
    path, record = cpp_library.prebuild("x86-64", out)
    assert path.parent == out
    assert (record.march, record.needs) == ("x86-64", ["sse2"])
    assert out.stat().st_mode & 0o777 == 0o755
    assert path.stat().st_mode & 0o777 == 0o644
    monkeypatch.setenv("GSYM_CACHE_DIR", str(out))
    assert total() == ["cpp"]  # rather than to build what is faster
    assert builds(stub) == 1
    no_compiler()
    assert total() == ["cpp"]
    assert not told(recwarn)


def test_the_command_builds_ahead(stub, tmp_path, capsys):
    cli = pytest.importorskip("gsym._cli")
    out = tmp_path / "image"
    cli.main(["build-kernels", "--out", str(out), "--march", "x86-64-v3"])
    assert str(library_in(out)) in capsys.readouterr().out
    out.chmod(0o777)
    with pytest.raises(SystemExit) as end:
        cli.main(["build-kernels", "--out", str(out)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error:")
    assert "can be written by others" in line


@pytest.mark.parametrize("what", ["features", "machine", "sources", "unknown"])
def test_what_this_processor_cannot_run_is_refused(
    stub, place, no_compiler, monkeypatch, recwarn, what
):
    cpp_library.prebuild()
    if what == "features":
        monkeypatch.setattr(cpp_build, "cpu_features", lambda: {"sse2"})
        message = "this processor has no .*avx"
    elif what == "machine":
        monkeypatch.setattr("platform.machine", lambda: "riscv64")
        message = "built for .*, and this is riscv64"
    elif what == "sources":
        monkeypatch.setattr(cpp_library, "sources", lambda: "other")
        message = "another version of gsym"
    else:
        (record,) = place.glob("*.json")
        text = record.read_text()
        start, end = text.index('"needs": ') + 9, text.rindex("]") + 1
        record.write_text(text[:start] + "null" + text[end:])
        message = "which instructions"
    no_compiler()
    assert total() == ["native"]
    with pytest.warns(RuntimeWarning, match=f"slower kernels: .*refused: .*{message}"):
        cpp_library._attempt.cache_clear()
        total()
    assert len(told(recwarn)) == 1


def test_of_several_the_one_that_uses_most_is_taken(stub, place, no_compiler):
    for features in (["SSE2"], ["SSE2", "AVX", "AVX2"], ["SSE2", "AVX99"]):
        text = "".join(f"#define __{name}__ 1\n" for name in features)
        (stub / "macros").write_text(text)
        cpp_library.prebuild("portable")
    if not {"avx", "avx2"} <= cpp_build.cpu_features():
        pytest.skip("needs a processor with AVX2")
    no_compiler()
    read = []
    original = cpp_cache.Folder.read

    def watch(self, name, most):
        read.append(name)
        return original(self, name, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp_cache.Folder, "read", watch)
        assert total() == ["cpp"]
    (loaded,) = (name for name in read if name.endswith(".so"))
    record = cpp_build.Record.read((place / loaded).with_suffix(".json").read_bytes())
    assert record.needs == ["avx", "avx2", "sse2"]


def test_names_of_features_are_those_of_linux():
    macros = ["SSE3", "SSE4_1", "BMI", "LZCNT", "AVX512VNNI", "AVX512VBMI2", "PRFCHW", "FMA"]
    macros.append("SSE2_MATH")
    text = "".join(f"#define __{name}__ 1\n" for name in macros)
    text += "#define __znver3__ 1\n#define __FP_FAST_FMA 1\n#define __SSE_FAKE__ 0\n"
    compiler = cpp_build.Compiler(("unused",))
    compiler.__dict__["macros"] = text
    if not os.uname().machine.startswith("x86"):
        pytest.skip("features of x86-64")
    assert compiler.needs() == {
        *("pni", "sse41", "bmi1", "abm", "avx512vnni", "avx512vbmi2", "3dnowprefetch", "fma"),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_trusts_what_root_built_and_no_one_else_did():
    code = f"""
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("cache", {cpp_cache.__file__!r})
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
os.setgid(12345)
os.setuid(12345)
def attempt(name, create=False):
    try:
        with cache.opened(pathlib.Path(sys.argv[1], name), create=create) as folder:
            print(folder.read("file", 99).decode())
            with folder.locked():
                print("locked")
    except (cache.CacheError, OSError) as error:
        print(type(error).__name__, error)
attempt("of root")
attempt("of a stranger")
attempt("private")
attempt("new", create=True)
"""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        for name, owner, mode in (
            ("of root", 0, 0o755),
            ("of a stranger", 12346, 0o755),
            ("private", 0, 0o700),
        ):
            folder = Path(place, name)
            folder.mkdir()
            (folder / "file").write_text(f"what lies in the folder {name}")
            os.chown(folder, owner, owner)
            folder.chmod(mode)
        command = [sys.executable, "-c", code, place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "what lies in the folder of root"
    assert lines[1].startswith("PermissionError")  # it is not theirs to write
    assert lines[2].startswith("CacheError")
    assert "belongs to user 12346, and you are 12345" in lines[2]
    assert lines[3].startswith("CacheError")
    assert "permission denied" in lines[3]
    assert lines[4].startswith("CacheError")
    assert "permission denied" in lines[4]
    assert len(lines) == 5
