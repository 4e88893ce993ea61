"""How the compiled kernels are built, kept, and done without."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
from stub_compiler import builds, forget, library_in, told, total

from gsym.errors import BackendUnavailableError
from gsym.kernels.cpp import build as cpp_build
from gsym.kernels.cpp import cache as cpp_cache
from gsym.kernels.cpp import library as cpp_library

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away and mounts")


def test_is_built_once_and_kept_in_private(stub, place, recwarn, capfd):
    assert total() == ["cpp"]
    assert "compiling" in capfd.readouterr().err
    assert place.stat().st_mode & 0o777 == 0o700
    assert sorted(path.suffix for path in place.iterdir() if path.suffix) == [".json", ".so"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in place.iterdir())
    before = library_in(place).stat()
    forget()
    assert total() == ["cpp"]
    assert capfd.readouterr().err == ""
    assert library_in(place).stat().st_mtime_ns == before.st_mtime_ns
    assert builds(stub) == 1
    assert not told(recwarn)


def test_the_real_compiler_makes_it(stub, monkeypatch):
    monkeypatch.setattr(cpp_build, "_FLAGS", (*cpp_build._FLAGS, "-O0"))
    monkeypatch.setenv("CXX", f"env {shutil.which('c++') or shutil.which('g++')} -DUNUSED")
    assert total() == ["cpp"]


def test_other_sources_or_another_compiler_are_another_library(stub, place, monkeypatch, tmp_path):
    cpp_library.library()
    changed = tmp_path / "csrc"
    shutil.copytree(cpp_build._SOURCES, changed)
    with (changed / "rows.cpp").open("a") as file:
        file.write("// changed\n")
    monkeypatch.setattr(cpp_build, "_SOURCES", changed)
    forget()
    cpp_library.library()
    monkeypatch.setenv("CXX", f"{stub / 'c++'} -DCHANGED")
    forget()
    cpp_library.library()
    assert builds(stub) == len(list(place.glob("*.so"))) == 3


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "text"])
def test_a_damaged_library_is_built_anew(stub, place, recwarn, damage, built):
    total()
    path = library_in(place)
    data = built[0]
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    broken = {
        "truncate": data[: len(data) // 3],
        "empty": b"",
        "flip": bytes(flipped),
        "text": b"no library",
    }
    path.write_bytes(broken[damage])
    forget()
    assert total() == ["cpp"]
    assert path.read_bytes() == data
    assert builds(stub) == 2
    (text,) = told(recwarn)
    assert str(path) in text
    assert "checksum" in text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"sha256": 1}', "\0"])
def test_a_damaged_record_is_written_anew(stub, place, recwarn, text):
    total()
    (record,) = place.glob("*.json")
    good = record.read_text()
    record.write_text(text)
    forget()
    assert total() == ["cpp"]
    assert record.read_text() == good
    assert "is damaged" in "".join(told(recwarn))
    assert len(told(recwarn)) == 1


def test_a_library_is_safe_from_what_happens_to_its_file(stub, place):
    """In a process of its own, since a page that is gone ends the interpreter."""
    total()
    code = f"""
import pathlib, torch, gsym
from gsym.kernels import Segments, segment_sum
from gsym.kernels.cpp import library as cpp_library
s = Segments.from_index(torch.tensor([0, 1, 1]), 2)
cpp_library.library()
pathlib.Path({str(library_in(place))!r}).write_bytes(b"")
for dtype in (torch.float32, torch.float64):
    y = segment_sum(torch.ones(3, 2, dtype=dtype), s, backend="cpp")
    z = gsym.kernels.segment_max(torch.ones(3, 2, dtype=dtype), s, backend="cpp")
print(y.tolist())
cpp_library.library.cache_clear()
cpp_library._attempt.cache_clear()
y = segment_sum(torch.ones(3, 2), s, backend="cpp")
print(y.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[1.0, 1.0], [2.0, 2.0]]\n" * 2
    assert done.stderr.count("checksum") == 1
    assert builds(stub) == 2


def test_where_memory_cannot_be_executed_a_private_copy_is_loaded(
    stub, place, monkeypatch, recwarn
):
    def refuse(data):
        raise OSError("not permitted")

    monkeypatch.setattr(cpp_library, "_load_from_memory", refuse)
    assert total() == ["cpp"]
    forget()
    assert total() == ["cpp"]
    assert builds(stub) == 1
    assert not told(recwarn)


def foreign(data):
    """The library as if for another processor: the header says so."""
    other = bytearray(data)
    other[18:20] = (243).to_bytes(2, "little")  # RISC-V
    return bytes(other)


def test_a_compiler_for_another_machine(stub, place, recwarn, built):
    (stub / "library.so").write_bytes(foreign(built[0]))
    assert total() == total() == ["native"]
    (text,) = told(recwarn)
    assert "slower kernels" in text
    assert "cannot be loaded" in text
    assert not list(place.glob("*.so"))


def test_a_kept_library_for_another_machine(stub, place, recwarn, built):
    """Even where the checksum is right."""
    total()
    path = library_in(place)
    path.write_bytes(foreign(built[0]))
    compiler = cpp_build.find_compiler()
    record = cpp_build.Record.of(foreign(built[0]), compiler)
    path.with_suffix(".json").write_bytes(record.write())
    forget()
    assert total() == ["cpp"]
    assert path.read_bytes() == built[0]
    assert len(told(recwarn)) == 1


def test_a_library_without_the_functions(stub, place, recwarn):
    real = shutil.which("c++") or shutil.which("g++")
    empty = str(stub / "library.so")
    subprocess.run([real, "-shared", "-x", "c++", os.devnull, "-o", empty], check=True)
    assert total() == total() == ["native"]
    (text,) = told(recwarn)
    assert "lack gsym_vector_bytes" in text
    assert not list(place.glob("*.so"))


def test_without_a_compiler(place, no_compiler, recwarn):
    no_compiler()
    assert total() == ["native"]
    assert not told(recwarn)
    assert not place.exists()
    with pytest.raises(BackendUnavailableError, match=r"C\+\+ compiler"):
        total(backend="cpp")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false", "false .*failed"),
        ("true", "made no library"),
        ("/no/such/compiler", "cannot be run"),
        ('c++ "-DNAME', "CXX is no command.*No closing quotation"),
        ("c++ -fno-such-option", "no-such-option"),
    ],
)
def test_a_compiler_that_fails_is_warned_of_once(place, monkeypatch, recwarn, command, message):
    monkeypatch.setenv("CXX", command)
    assert total() == total() == ["native"]
    assert len(told(recwarn)) == 1
    with pytest.warns(RuntimeWarning, match=f"(?s)slower kernels: .*{message}"):
        cpp_library._attempt.cache_clear()
        total()
    assert not list(place.glob("*.so"))
    with pytest.raises(BackendUnavailableError, match=f"(?s){message}"):
        total(backend="cpp")


def test_an_empty_compiler_is_none_named(stub, monkeypatch, place):
    monkeypatch.setenv("PATH", str(stub), prepend=os.pathsep)
    monkeypatch.setenv("CXX", "  ")
    assert total() == ["cpp"]
    assert builds(stub) == 1


def not_kept(recwarn, message):
    """The kernels run all the same, and one warning says why they will be built again."""
    assert total() == total() == ["cpp"]
    (text,) = told(recwarn)
    assert message in text, text
    assert "GSYM_CACHE_DIR" in text or "cannot be kept" in text
    forget()


def test_a_file_in_the_place_of_the_folder(place, recwarn):
    place.write_text("no folder")
    not_kept(recwarn, "no folder")
    assert place.is_file()


def test_a_folder_that_others_can_write(place, recwarn):
    place.mkdir()
    place.chmod(0o770)
    not_kept(recwarn, "can be written by others")
    assert not list(place.iterdir())


def test_a_folder_that_is_a_link(place, recwarn, tmp_path):
    (tmp_path / "elsewhere").mkdir(0o700)
    place.symlink_to(tmp_path / "elsewhere")
    not_kept(recwarn, "symbolic link")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_within_one_that_others_can_write(tmp_path, stub, monkeypatch, recwarn):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv("GSYM_CACHE_DIR", str(open_to_all / "deep" / "cache"))
    not_kept(recwarn, "can be written by others")
    assert not list(open_to_all.iterdir())
    open_to_all.chmod(0o1777)  # as /tmp is: others cannot move what is ours
    recwarn.clear()
    assert total() == ["cpp"]
    assert not told(recwarn)
    assert library_in(open_to_all / "deep" / "cache")


@needs_root
@pytest.mark.parametrize("which", ["folder", "parent"])
def test_a_folder_of_somebody_else(place, recwarn, tmp_path, which, monkeypatch):
    strange = tmp_path / "strange"
    strange.mkdir(0o700)
    os.chown(strange, 12345, 12345)
    inner = strange if which == "folder" else strange / "cache"
    monkeypatch.setenv("GSYM_CACHE_DIR", str(inner))
    not_kept(recwarn, "belongs to user 12345")
    assert not list(strange.iterdir())


@pytest.mark.parametrize("which", ["writable", "link", "pipe", "stranger"])
@pytest.mark.parametrize("suffix", [".so", ".json"])
def test_a_file_that_cannot_be_trusted(stub, place, recwarn, which, suffix, tmp_path):
    if which == "stranger" and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    total()
    path = library_in(place).with_suffix(suffix)
    if which == "writable":
        path.chmod(0o660)
    elif which == "stranger":
        os.chown(path, 12345, -1)
    else:
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved") if which == "link" else os.mkfifo(path)
    forget()
    assert total() == ["cpp"]
    assert builds(stub) == 2
    assert len(told(recwarn)) == 1
    assert path.is_file()
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == os.geteuid()


def test_a_folder_that_cannot_be_written(place, recwarn, monkeypatch):
    place.mkdir(0o700)

    def refuse(self, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cpp_cache.Folder, "write", refuse)
    not_kept(recwarn, "No space left on device")
    if os.geteuid() != 0:  # whom modes do not stop
        monkeypatch.undo()
        place.chmod(0o500)
        recwarn.clear()
        not_kept(recwarn, "permission")


@needs_root
@pytest.mark.parametrize("options", ["ro", "size=64k", "noexec"])
def test_a_mount_that_is_full_or_read_only_or_executes_nothing(place, recwarn, options):
    place.mkdir(0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        if options == "noexec":
            assert total() == ["cpp"]
            forget()
            assert total() == ["cpp"]
            assert not told(recwarn)
        else:
            not_kept(recwarn, {"ro": "Read-only", "size=64k": "No space"}[options])
            assert not list(place.glob("*.so"))
            assert not list(place.glob(".unfinished*"))
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_without_a_home(stub, monkeypatch, tmp_path, recwarn, no_compiler):
    for name in ("HOME", "XDG_CACHE_HOME", "GSYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the system does not know
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    not_kept(recwarn, "no home folder")
    assert not list(empty.iterdir())
    recwarn.clear()
    no_compiler()
    assert total() == ["native"]
    assert not told(recwarn)


def test_a_relative_folder(stub, monkeypatch, recwarn, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSYM_CACHE_DIR", "relative")
    not_kept(recwarn, "must be an absolute path")
    assert not (tmp_path / "relative").exists()


def test_without_a_standard_error(stub, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert total() == ["cpp"]


def test_builders_wait_for_each_other(stub, place):
    (stub / "delay").touch()
    threads = [threading.Thread(target=cpp_library.library) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds(stub) == 1
    assert library_in(place)


def test_a_killed_builder_holds_nothing_up(stub, place, recwarn):
    code = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("cache", {cpp_cache.__file__!r})
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
with cache.opened(pathlib.Path({str(place)!r}), create=True) as folder, folder.locked():
    with folder.workplace() as workplace:
        (workplace / "half.so").write_bytes(b"half")
        (workplace.parent / ".unfinished-file").write_bytes(b"half")
        print("building", flush=True)
        sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as builder:
        assert builder.stdout.readline() == b"building\n"
        assert len(list(place.glob(".unfinished*"))) == 2
        builder.kill()
        builder.wait()
    assert len(list(place.glob(".unfinished*"))) == 2
    assert total() == ["cpp"]
    assert not list(place.glob(".unfinished*"))
    assert not told(recwarn)


def test_the_lock_is_waited_for_only_so_long(stub, place, monkeypatch):
    monkeypatch.setattr(cpp_cache, "_PATIENCE", 0.1)
    with cpp_cache.opened(place, create=True) as folder, folder.locked():
        (place / ".unfinished-of-the-other").mkdir()
        assert total() == ["cpp"]
        assert (place / ".unfinished-of-the-other").is_dir()


def test_importing_builds_nothing():
    code = (
        "import gsym, gsym.nn\n"
        "from gsym.kernels.cpp import library as cpp_library\n"
        "assert not cpp_library.library.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "code", "message"), [("native", 0, ""), ("fast", 1, "'fast'")])
def test_a_machine_may_name_its_back_end(name, code, message, tmp_path):
    script = (
        "import torch, gsym\n"
        "from gsym.kernels import Segments, segment_sum, trace, backend\n"
        "s = Segments.from_index(torch.tensor([0, 1, 1]), 2)\n"
        "with backend('auto'), trace() as ran:\n"
        "    segment_sum(torch.ones(3, 1), s)\n"
        "assert ran == ['native'], ran\n"
    )
    env = {**os.environ, "GSYM_BACKEND": name, "GSYM_CACHE_DIR": str(tmp_path / "unused")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code:
        assert "GSYM_BACKEND must be one of auto, reference, native" in done.stderr
        assert message in done.stderr
    assert not (tmp_path / "unused").exists()
