"""A file in the vault as an object of Python's io: what open() gives, without a mount."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

from cryptfs.errnos import code_of
from cryptfs.errors import CryptfsError
from cryptfs.signals import Undisturbed
from cryptfs.storage.libc import os_error
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.tree import VaultTree

Name = str | bytes
BUFFER_SIZE = 64 * 1024  # at least; each refill opens whole chunks
_LEAST_LOOKED_AT = 64
PATIENT_SECONDS = 5.0  # in which no number of interrupts ends an operation


@contextlib.contextmanager
def errors_of(path: Name) -> Iterator[None]:
    """Every error of the vault becomes an OSError with its errno and this path.

    Detected damage is EIO; strerror then says what does not authenticate, in which file of the vault, and the
    IntegrityError is the __cause__.
    """
    try:
        yield
    except CryptfsError as error:
        told = os_error(code_of(error))
        told.filename = path
        if told.errno == errno.EIO:
            told.strerror = f"{told.strerror}: {error}"
        raise told from error
    except OSError as error:
        if error.errno is not None:  # by a descriptor and a cipher name until now
            error.filename, error.filename2 = path, None
        raise


class WholeOperation(Undisturbed):
    """Around one operation of a program: no interrupt stops it half-way, and errors are as in `errors_of`.

    Python can raise KeyboardInterrupt after any step, and then what the vault knows of a file in memory would
    not fit what is on the disk. So it comes at the end. If the disk hangs, the third one comes at once.

    Args: path: for messages.   returns, begins: see Undisturbed.
    """

    __slots__ = ("_path",)

    def __init__(self, path: Name, *, returns: bool = False, begins: bool = True) -> None:
        super().__init__(seconds=PATIENT_SECONDS, returns=returns, begins=begins)
        self._path = path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        super().__exit__(kind, error)
        if error is not None:
            with errors_of(self._path):
                raise error


class OpenFiles:
    """Files that somebody has open. Safe from many threads.

    A WeakSet runs code of Python when a file goes, and Python drops an interrupt that comes meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[weakref.ref[IO[Any]]] = []
        self._most = _LEAST_LOOKED_AT

    def add(self, file: IO[Any]) -> None:
        """Note a file for as long as somebody has it."""
        with self._lock:
            if len(self._found) >= self._most:
                self._found = [each for each in self._found if each() is not None]
                self._most = max(_LEAST_LOOKED_AT, 2 * len(self._found))
            self._found.append(weakref.ref(file))

    def __iter__(self) -> Iterator[IO[Any]]:
        with self._lock:
            found = [each() for each in self._found]
        return iter([file for file in found if file is not None])


def flags_of(mode: str) -> int:
    """The flags of open(2) for a mode of open(), whose letters are checked as there. Raises: ValueError."""
    letters = set(mode)
    if letters - set("rwxabt+") or len(mode) > len(letters):
        raise ValueError(f"invalid mode: {mode!r}")
    if {"b", "t"} <= letters:
        raise ValueError("can't have text and binary mode at once")
    if len(letters & set("rwxa")) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    access = os.O_RDWR if "+" in letters else os.O_RDONLY if "r" in letters else os.O_WRONLY
    more = {"w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}
    return access | sum(flags for letter, flags in more.items() if letter in letters)


class VaultFile(io.RawIOBase):
    """An open file of the vault. It has no descriptor: fileno() is io.UnsupportedOperation.

    Args: tree: of the vault.   file: belongs to this object, which gives it back.   name: the path, as given.
          flags: of open(2).   after_write: called after each change of content.
    """

    def __init__(
        self, tree: VaultTree, file: OpenFile, name: Name, flags: int, after_write: Callable[[OpenFile], None]
    ) -> None:
        self.name = name
        self._tree = tree
        self._file = file
        self._after_write = after_write
        self._offset = 0
        self._reads = flags & os.O_ACCMODE != os.O_WRONLY
        self._writes = flags & os.O_ACCMODE != os.O_RDONLY
        self._appends = bool(flags & os.O_APPEND)
        letter = "x" if flags & os.O_EXCL else "a" if self._appends else "r" if self._reads else "w"
        self.mode = letter + "b" + ("+" if self._reads and self._writes else "")  # as io.FileIO
        if self._appends:
            self._offset = self._size()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"mode={self.mode!r}"
        return f"<cryptfs.VaultFile name={self.name!r} {state}>"

    def readable(self) -> bool:
        """Whether it can be read."""
        self._require_open()
        return self._reads

    def writable(self) -> bool:
        """Whether it can be written."""
        self._require_open()
        return self._writes

    def seekable(self) -> bool:
        """True."""
        self._require_open()
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the bytes read, 0 at the end. Only authentic bytes get there."""
        self._require(self._reads, "read")
        with WholeOperation(self.name), memoryview(buffer).cast("B") as view:
            got = self._file.read_into(self._offset, view)
        self._offset += got
        return got

    def readall(self) -> bytes:
        """Everything from here to the end."""
        self._require(self._reads, "read")
        parts = []
        while True:
            with WholeOperation(self.name):
                self._file.state.require_loaded()  # a damaged file has no size, and is not empty
                left = max(0, self._file.state.size - self._offset)
                part = self._file.read(self._offset, min(left, 1 << 30))
            if not part:
                break
            self._offset += len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: Any) -> int:
        """Write all of data; returns its length.

        After an interrupt a buffer around this file writes the data again, so it must come to the same place.
        """
        self._require(self._writes, "write")
        with WholeOperation(self.name, returns=self._appends), memoryview(data).cast("B") as view:
            if self._appends:
                done = self._file.append(view)
                after = self._file.state.size
            else:
                done = self._file.write(self._offset, view)
                after = self._offset + done
            self._after_write(self._file)
        self._offset = after
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset; also with os.SEEK_DATA and os.SEEK_HOLE."""
        self._require_open()
        with WholeOperation(self.name):
            if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                wanted = ranges.seek(self._file, offset, whence)
            elif whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
                start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset}.get(whence)
                wanted = (self._size() if start is None else start) + offset
            else:
                raise os_error(errno.EINVAL)
            if wanted < 0:
                raise os_error(errno.EINVAL)
        self._offset = wanted
        return wanted

    def tell(self) -> int:
        """The present offset."""
        self._require_open()
        return self._offset

    def truncate(self, size: int | None = None) -> int:
        """Set the length, by default to the present offset, which stays; returns the length."""
        self._require(self._writes, "truncate")
        wanted = self._offset if size is None else size
        with WholeOperation(self.name):
            self._file.truncate(wanted)
            self._after_write(self._file)
        return wanted

    def stat(self) -> os.stat_result:
        """As os.fstat."""
        self._require_open()
        with WholeOperation(self.name):
            return plain_stat(*self._tree.stat_open(self._file))

    def sync(self) -> None:
        """As os.fsync: on return what was written is on disk. Flush a buffered file first."""
        self._require_open()
        with WholeOperation(self.name):
            self._tree.sync_file(self._file, data_only=False)

    def close(self) -> None:
        """Give the file back; its length becomes the authentic one."""
        # Python calls this for forgotten files as well, and drops errors from there.
        with WholeOperation(self.name, returns=True, begins=False):
            if self.closed:
                return
            try:
                super().close()
            finally:
                self._tree.release(self._file)

    def _size(self) -> int:
        return self._tree.stat_open(self._file).size

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _require(self, able: bool, what: str) -> None:
        self._require_open()
        if not able:
            raise io.UnsupportedOperation(what)


def wrapped(
    raw: VaultFile, mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> IO[Any]:
    """The object that open() would give for a raw file. Arguments as there.

    Raises: ValueError: they contradict each other; the raw file is closed then.
    """
    try:
        text = "b" not in mode
        if not text and not (encoding is None and errors is None and newline is None):
            raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
        if buffering == 0:
            if text:
                raise ValueError("can't have unbuffered text I/O")
            return raw  # type: ignore[return-value]
        size = BUFFER_SIZE if buffering <= 1 else buffering
        buffered: Any
        if raw.readable() and raw.writable():
            buffered = io.BufferedRandom(raw, size)
        else:
            buffered = io.BufferedReader(raw, size) if raw.readable() else io.BufferedWriter(raw, size)
        if not text:
            return buffered  # type: ignore[no-any-return]
        wrapper: Any = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
        wrapper.mode = mode
        return wrapper  # type: ignore[no-any-return]
    except BaseException:
        raw.close()
        raise


def plain_stat(st: os.stat_result, size: int) -> os.stat_result:
    """A stat of a backing file with the plaintext size."""
    fields = list(st)
    fields[6] = size
    return os.stat_result(fields, {name: getattr(st, name) for name in _MORE})


_MORE = (
    *("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
    *("st_blksize", "st_blocks", "st_rdev"),
)
