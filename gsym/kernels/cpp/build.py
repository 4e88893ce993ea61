"""Compiling the kernels: the compiler, its flags, and what the result asks of a processor."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared")
# A compiler that hangs must not hang its caller.
_PATIENCE = 600
NATIVE = "native"

# Instructions that compilers use unasked. Features of a name only intrinsics use do not count.
_FEATURE = re.compile(
    r"#define __((?:S?SSE|AVX|FMA|BMI|XOP|TBM|F16C|POPCNT|LZCNT|MOVBE|PRFCHW|GFNI|APX)\w*?)__ 1$",
    re.MULTILINE,
)
# Names of features in Linux that are not those of compilers.
_LINUX_NAMES = {"sse3": "pni", "bmi": "bmi1", "lzcnt": "abm", "prfchw": "3dnowprefetch"}


@dataclass(frozen=True)
class Record:
    """The record of a library, and checked before it is loaded.

    Attributes:
        sha256: Checksum of the library.
        size: Its bytes.
        sources: Checksum of the sources that it was built from.
        machine: Architecture, as ``platform.machine`` names it.
        march: What ``-march`` was.
        needs: Features that a processor must have, as Linux names them; ``None`` where unknown.
    """

    sha256: str
    size: int
    sources: str
    machine: str
    march: str
    needs: list[str] | None

    @classmethod
    def of(cls, data: bytes, compiler: Compiler) -> Record:
        """The record of a library that a compiler has just made."""
        try:
            needs = sorted(compiler.needs())
        except RuntimeError:
            needs = None
        checksum, machine = hashlib.sha256(data).hexdigest(), platform.machine()
        return cls(checksum, len(data), sources(), machine, compiler.march, needs)

    @classmethod
    def read(cls, text: bytes) -> Record:
        """From JSON.

        Raises:
            ValueError: No such record.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("no record of a library")
        record, needs = cls(**values), values["needs"]
        texts = [record.sha256, record.sources, record.machine, record.march]
        if isinstance(needs, list):
            texts += needs
        typed = type(record.size) is int and (needs is None or isinstance(needs, list))
        if not typed or not all(isinstance(text, str) for text in texts):
            raise ValueError("no record of a library")
        return record

    def write(self) -> bytes:
        """As JSON."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def matches(self, data: bytes) -> bool:
        """Whether these are the bytes that were filed."""
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256

    def lacking(self) -> str | None:
        """Why this processor cannot run the library, or ``None`` where it can."""
        if self.machine != platform.machine():
            return f"it was built for {self.machine}, and this is {platform.machine()}"
        if self.needs is None:
            return "it does not say which instructions it uses"
        missing = set(self.needs) - cpu_features()
        if missing:
            return f"this processor has no {', '.join(sorted(missing))}"
        return None


@dataclass(frozen=True)
class Compiler:
    """A command that compiles, and the processor that it compiles for."""

    command: tuple[str, ...]
    march: str = NATIVE

    @cached_property
    def macros(self) -> str:
        """What the compiler makes of the processor.

        Raises:
            RuntimeError: A compiler that fails; the message is its own.
        """
        return _run(*self.command, f"-march={self.march}", "-dM", "-E", "-x", "c++", os.devnull)

    @property
    def name(self) -> str:
        """The name of what this compiler makes of these sources for this processor.

        One home folder may serve several machines.
        """
        parts = (*self.command, *_FLAGS, self.march, self.macros, sources())
        return f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"

    def needs(self) -> set[str]:
        """Features of a processor that may be used, as Linux names them.

        Raises:
            RuntimeError: Another architecture than x86-64, whose features are known here only as
                those of this very machine.
        """
        if platform.machine() not in ("x86_64", "AMD64"):
            if self.march != NATIVE:
                raise RuntimeError(
                    f"for {platform.machine()} only --march native can be checked where it runs; "
                    f"got {self.march}"
                )
            return cpu_features()
        found = {name.lower() for name in _FEATURE.findall(self.macros) if "_MATH" not in name}
        return {_squeeze(_LINUX_NAMES.get(name, name)) for name in found}

    def build(self, workplace: Path) -> bytes:
        """Compile the sources in a folder of our own.

        Raises:
            RuntimeError: A compiler that fails; the message is its own.
        """
        if sys.stderr is not None:  # a service may have none
            sys.stderr.write("gsym: compiling its kernels, once for this processor\n")
        made = workplace / "kernels.so"
        files = [str(path) for path in sorted(_SOURCES.glob("*.cpp"))]
        march = f"-march={self.march}"
        _run(*self.command, *_FLAGS, march, *files, "-o", str(made), temporary=workplace)
        try:
            return made.read_bytes()
        except OSError as error:
            raise RuntimeError(f"{shlex.join(self.command)} made no library: {error}") from error


def find_compiler(march: str = NATIVE) -> Compiler:
    """``$CXX``, c++ or g++.

    As make reads it, CXX may hold a launcher before the compiler, or flags behind it.

    Raises:
        NotImplementedError: No compiler, or another system than Linux.
        RuntimeError: A value of CXX that is no command.
    """
    given = os.environ.get("CXX", "")
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise RuntimeError(f"CXX is no command: {given!r}: {error}") from error
    if not command:
        found = shutil.which("c++") or shutil.which("g++")
        command = [found] if found else []
    if sys.platform != "linux" or not command:
        raise NotImplementedError("it needs Linux and a C++ compiler: CXX, c++ or g++")
    return Compiler(tuple(command), march)


def sources() -> str:
    """Checksum of the sources, and so of how the library is called."""
    key = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return key.hexdigest()


def cpu_features() -> set[str]:
    """What this processor can do, as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return {_squeeze(value) for value in values.split()}
    return set()


def _squeeze(feature: str) -> str:
    """Linux writes some underscores that compilers do not."""
    return feature.replace("_", "")


def _run(*command: str, temporary: Path | None = None) -> str:
    env = None if temporary is None else {**os.environ, "TMPDIR": str(temporary)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=True,
            timeout=_PATIENCE,
            env=env,
        )
    except (OSError, ValueError) as error:  # of a command with a null byte
        raise RuntimeError(f"{command[0]} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{shlex.join(command)} does not end") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{error.stderr}") from error
    return done.stdout
