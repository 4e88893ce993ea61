"""The folder of compiled kernels: private, checked before anything in it is trusted.

Whoever can write a library that this process loads runs code as this user. So the folder is treated
as ssh treats its keys: it and everything above it must belong to this user or to root and be
writable by nobody else, and no link is followed. Files are opened relative to the folder's
descriptor, so what was checked is what is read.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gsym.errors import CacheError

if sys.platform == "linux":
    import fcntl

# What a build that was killed leaves behind begins with this.
_UNFINISHED = ".unfinished-"
_LOCK = ".lock"
# How long to wait for another process that builds the same.
_PATIENCE = 300.0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# More than a build takes: a disk that is full is found before compiling, not after it.
_ROOM = 2**23


def location() -> Path:
    """``$GSYM_CACHE_DIR``, or ``gsym`` in the user's cache.

    Raises:
        CacheError: A relative path, or a user whose home the system does not know.
    """
    named = os.environ.get("GSYM_CACHE_DIR")
    if named:
        # Path.expanduser would raise where the system knows no home of this user.
        path = Path(os.path.expanduser(named))  # noqa: PTH111
        if not path.is_absolute():
            raise CacheError(f"GSYM_CACHE_DIR must be an absolute path; got {named!r}")
        return path
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(home).is_absolute():  # which its specification says to ignore
        home = os.path.expanduser("~/.cache")  # noqa: PTH111
    if not Path(home).is_absolute():
        raise CacheError("this user has no home folder; set GSYM_CACHE_DIR to a private folder")
    return Path(home) / "gsym"


class Folder:
    """A folder that has been checked, by its descriptor."""

    def __init__(self, path: Path, descriptor: int, shared: bool) -> None:
        self.path, self._fd = path, descriptor
        self._mode = 0o644 if shared else 0o600

    def names(self) -> list[str]:
        """What lies in the folder, sorted."""
        return sorted(os.listdir(self._fd))  # noqa: PTH208

    def read(self, name: str, most: int) -> bytes:
        """The content of a file that this user or root owns and nobody else can write.

        Raises:
            FileNotFoundError: There is none.
            CacheError: A file that cannot be trusted, or is longer than ``most`` bytes.
        """
        where = self.path / name
        # A pipe would wait for its other end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self._fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CacheError(f"{where} cannot be read: {_reason(error)}") from error
        with open(fd, "rb") as file:  # noqa: PTH123
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CacheError(f"{where} is no regular file; remove it")
            _check_owner(where, status)
            data = file.read(most + 1)
        if len(data) > most:
            raise CacheError(f"{where} is longer than the {most} bytes expected; remove it")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole or not at all, also in a power cut.

        Raises:
            OSError: No space, no permission.
        """
        fresh = f"{_UNFINISHED}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(fresh, flags, self._mode, dir_fd=self._fd)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.replace(fresh, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh, dir_fd=self._fd)
            raise
        os.fsync(self._fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one builder, and clear away what killed ones have left.

        A lock ends with its process. Where the file system has none, or one is held for minutes,
        work goes on without: files are replaced as a whole, so two builders only waste time.

        Raises:
            OSError: No permission.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_LOCK, flags, self._mode, dir_fd=self._fd)
        try:
            alone = _wait_for(fd)
            for name in self.names():
                if name.startswith(_UNFINISHED) and alone:
                    self._remove(name)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A private folder in this one, removed at the end.

        Raises:
            OSError: No space, no permission.
        """
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=self.path) as name:
            with tempfile.TemporaryFile(dir=name) as probe:
                os.posix_fallocate(probe.fileno(), 0, _ROOM)
            yield Path(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=self._fd)
            else:
                os.unlink(name, dir_fd=self._fd)


@contextmanager
def opened(path: Path, *, create: bool = False, shared: bool = False) -> Iterator[Folder]:
    """Open a folder after checking it, with everything above it.

    Args:
        path: Where it is, absolute.
        create: Make it, with mode 0700, where there is none.
        shared: Make it, and files in it, readable by everybody.

    Raises:
        FileNotFoundError: There is none, without ``create``.
        CacheError: A folder that others could change, or that cannot be made.
    """
    # Links above it are resolved once; what they lead to is checked, and opened by that name.
    parent = Path(os.path.realpath(path.parent))
    where = parent / path.name
    mode = 0o755 if shared else 0o700
    try:
        check_parents(parent, mode if create else None)
        if create:
            with suppress(FileExistsError):
                where.mkdir(mode)
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(
            f"the folder {path} cannot be used: {_reason(error)}; name a private one in "
            "GSYM_CACHE_DIR"
        ) from error
    try:
        _check_owner(path, os.fstat(fd))
        yield Folder(where, fd, shared)
    finally:
        os.close(fd)


def check_parents(folder: Path, create: int | None = None) -> None:
    """Refuse a folder above ours whose owner or users could put another one in its place.

    Where a mode is given, what is missing is made with it.

    Raises:
        CacheError: Such a folder.
        OSError: One that is missing or cannot be made.
    """
    for place in (*reversed(folder.parents), folder):
        if create is not None:
            with suppress(FileExistsError):
                place.mkdir(create)
        status = place.lstat()
        # In /tmp the sticky bit keeps others from moving what is ours.
        _check_owner(place, status, sticky=bool(status.st_mode & stat.S_ISVTX))


def _check_owner(path: Path, status: os.stat_result, sticky: bool = False) -> None:
    # Root is whoever owns the root: in a container it may go by another number.
    if status.st_uid not in (os.geteuid(), 0, Path("/").stat().st_uid):
        raise CacheError(
            f"{path} belongs to user {status.st_uid}, and you are {os.geteuid()}: others could put "
            "code there that runs as you; name a folder of your own in GSYM_CACHE_DIR"
        )
    if status.st_mode & _OTHERS_WRITE and not sticky:
        raise CacheError(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}), who could "
            f"put code there that runs as you; chmod go-w {path}, or name a private folder in "
            "GSYM_CACHE_DIR"
        )


def _wait_for(descriptor: int) -> bool:
    """Whether the lock is ours, after some minutes at most."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        except OSError:
            return False


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    if error.errno == errno.ENOTDIR:
        return "it is a symbolic link or no folder"
    return (error.strerror or str(error)).lower()
