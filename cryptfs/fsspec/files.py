"""Open files as fsspec wants them: Python's own buffered files, with their filesystem and their path."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import uuid
from typing import Any

from cryptfs.storage.libc import os_error
from cryptfs.transfer.fileio import errors_of
from cryptfs.transfer.pathvault import PathVault
from cryptfs.transfer.places import MAX_LINKS
from cryptfs.transfer.sides import PART_PREFIX

COPY_PIECE = 2 << 20


class Deferred:
    """A file that is written under a name of its own until it is committed.

    Args:   path: its name then.   mode: of open(), with w, a or x.
    Raises: OSError.
    """

    def __init__(self, vault: PathVault, path: str, mode: str) -> None:
        self._vault = vault
        self._replaces = "x" not in mode
        with errors_of(path):
            self._path = _behind_links(vault, path)
            if not self._replaces and vault.exists(self._path):
                raise os_error(errno.EEXIST)
            if vault.is_dir(self._path):
                raise os_error(errno.EISDIR)
        self.part = os.path.join(os.path.dirname(self._path), f"{os.fsdecode(PART_PREFIX)}{uuid.uuid4().hex}")
        self.raw: Any = vault.open(self.part, "x+b" if "+" in mode else "xb", buffering=0)
        if "a" in mode and vault.exists(self._path):
            try:
                copy_content(vault, self._path, self.raw)
            except BaseException:
                self.raw.close()
                vault.unlink(self.part)
                raise

    def commit(self) -> None:
        """Give the closed file its name, and the mode of the one that it replaces. Raises: OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._vault.chmod(self.part, stat.S_IMODE(self._vault.stat(self._path).st_mode))
        self._vault.rename(self.part, self._path, replace=self._replaces)

    def discard(self) -> None:
        """Remove it."""
        with contextlib.suppress(FileNotFoundError):
            self._vault.unlink(self.part)


class _OfFilesystem:
    """What fsspec asks of a file besides Python's own methods. fs, path: where it is."""

    fs: Any
    path: str
    deferred: Deferred | None = None

    @property
    def autocommit(self) -> bool:
        """Whether it is under its name already."""
        return self.deferred is None

    @property
    def size(self) -> int:
        """Its present length, without what is buffered."""
        file: Any = self
        return int(file.raw.stat().st_size)

    def commit(self) -> None:
        """End of a transaction: it gets its name. Raises: OSError.   RuntimeError: it has it already."""
        file: Any = self
        if self.deferred is None:
            raise RuntimeError("the file is not in a transaction")
        file.close()
        self.deferred.commit()

    def discard(self) -> None:
        """End of a transaction: it goes. Raises: OSError.   RuntimeError: it has its name already."""
        file: Any = self
        if self.deferred is None:
            raise RuntimeError("the file is not in a transaction")
        with contextlib.suppress(OSError):
            file.close()
        self.deferred.discard()

    def __reduce__(self) -> Any:
        file: Any = self
        if file.closed or file.raw.writable():
            raise TypeError("only a file that is open for reading can be pickled")
        return reopened, (self.fs, self.path, file.tell())

    def __reduce_ex__(self, protocol: Any) -> Any:  # io has its own, which refuses
        return self.__reduce__()


class ReadFile(_OfFilesystem, io.BufferedReader):
    """Open for reading. It can be pickled: the other end opens it again."""


class WriteFile(_OfFilesystem, io.BufferedWriter):
    """Open for writing."""


class UpdateFile(_OfFilesystem, io.BufferedRandom):
    """Open for both."""


AnyFile = ReadFile | WriteFile | UpdateFile


def buffered(raw: Any, fs: Any, path: str, size: int, deferred: Deferred | None) -> AnyFile:
    """The file for a raw one. size: of its buffer, bytes."""
    file: AnyFile
    if raw.readable() and raw.writable():
        file = UpdateFile(raw, size)
    else:
        file = ReadFile(raw, size) if raw.readable() else WriteFile(raw, size)
    file.fs, file.path, file.deferred = fs, path, deferred
    return file


def reopened(fs: Any, path: str, offset: int) -> Any:
    """The other end of a pickle."""
    file = fs.open(path, "rb")
    file.seek(offset)
    return file


def copy_content(vault: PathVault, source: str, target: Any) -> None:
    """Copy what is in a file to where an open raw one is. Raises: OSError."""
    buffer = memoryview(bytearray(COPY_PIECE))
    with vault.open(source, "rb", buffering=0) as reading:
        while got := reading.readinto(buffer):  # type: ignore[attr-defined]
            target.write(buffer[:got])


def _behind_links(vault: PathVault, path: str) -> str:
    """The path of what a path with symlinks at its end leads to. Raises: OSError."""
    for _ in range(MAX_LINKS):
        try:
            if not stat.S_ISLNK(vault.lstat(path).st_mode):
                return path
        except FileNotFoundError:
            return path
        target = os.fsdecode(vault.readlink(path))
        if target.startswith("/"):
            raise os_error(errno.EXDEV)  # it leads out of the vault
        path = os.path.join(os.path.dirname(path), target)
    raise os_error(errno.ELOOP)


def described(name: str, st: os.stat_result, target: str | bytes | None = None) -> dict[str, Any]:
    """As fsspec describes a local file. target: of a symlink."""
    kind = "directory" if stat.S_ISDIR(st.st_mode) else "file" if stat.S_ISREG(st.st_mode) else "other"
    found = {
        "name": name,
        "size": st.st_size,
        "type": kind,
        "created": st.st_ctime,
        "islink": target is not None,
        **{field: getattr(st, f"st_{field}") for field in ("mode", "uid", "gid", "mtime", "ino", "nlink")},
    }
    if target is not None:
        found["destination"] = os.fsdecode(target)
    return found


def range_of(file: Any, start: int | None, end: int | None) -> bytes:
    """Bytes of an open raw file, as a slice of its content."""
    size = file.stat().st_size
    first, stop, _ = slice(start, end).indices(size)
    if stop <= first:
        return b""
    file.seek(first)
    if (first, stop) == (0, size):
        return bytes(file.readall())
    return bytes(file.read(stop - first))
