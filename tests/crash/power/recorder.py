"""Records what cryptfs does to a vault, as the events of the power model."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, RENAME_EXCHANGE
from tests.crash.backing_calls import CHANGES, Call, bytes_of, intercepted
from tests.crash.power.powermodel import (
    ROOT,
    Event,
    Mark,
    Names,
    Punch,
    Recording,
    SetLength,
    SyncAll,
    SyncDirectory,
    SyncFile,
    Write,
)

_ATTRIBUTES = ("chmod", "fchmod", "chown", "fchown", "utimensat", "futimens", "utime")
_RWF_DSYNC = getattr(os, "RWF_DSYNC", 2) | getattr(os, "RWF_SYNC", 4)
_Key = tuple[int, int]


class Recorder:
    """Turns calls into events. Attributes and xattrs are not looked at: no content depends on them.

    Args: vault_dir: the tree; what is in it now counts as being on disk.
    """

    def __init__(self, vault_dir: Path) -> None:
        self.recording = Recording()
        self._vault_dir = vault_dir
        self._lock = threading.RLock()
        self._numbers: dict[_Key, int] = {}
        self._next = ROOT + 1
        self._look(vault_dir, ROOT)

    def _look(self, directory: Path, number: int) -> None:
        self._numbers[_key(os.stat(directory))] = number
        self.recording.directories.add(number)
        with os.scandir(directory) as entries:
            found = list(entries)
        for entry in found:
            st = entry.stat(follow_symlinks=False)
            known = self._numbers.get(_key(st))
            child = self._number(st) if known is None else known
            self.recording.entries[number, entry.name] = child
            if stat.S_ISDIR(st.st_mode):
                self._look(Path(entry.path), child)
            elif stat.S_ISLNK(st.st_mode):
                self.recording.links[child] = os.readlink(entry.path)
            else:
                self.recording.files[child] = Path(entry.path).read_bytes()

    def _number(self, st: os.stat_result) -> int:
        """A number for a new file; inode numbers are used again by filesystems, these are not."""
        number, self._next = self._next, self._next + 1
        self._numbers[_key(st)] = number
        return number

    @contextlib.contextmanager
    def on(self) -> Iterator[Recorder]:
        """Record for a while."""
        with intercepted(self._record, CHANGES):
            yield self

    def mark(self, value: object) -> None:
        """Note in the recording that something has happened."""
        self._add(Mark(value))

    def _add(self, event: Event) -> None:
        with self._lock:
            self.recording.events.append(event)

    # ---- calls

    def _record(self, call: Call) -> Any:
        with self._lock:  # the order of the events is that of the calls
            if call.name in _ATTRIBUTES or call.name in ("setxattr", "removexattr"):
                return call.proceed()
            handler = getattr(self, f"_{call.name}", None)
            if handler is None:
                raise NotImplementedError(f"the recorder does not know {call.name}")
            return handler(call)

    def _file(self, fd: int) -> int | None:
        return self._numbers.get(_key(os.fstat(fd)))

    def _pwrite(self, call: Call) -> int:
        done: int = call.proceed()
        number = self._file(call.args[0])
        if number is not None:
            self._add(Write(number, call.args[2], bytes_of(call.args[1])[:done]))
            if len(call.args) > 3 and call.args[3] & _RWF_DSYNC:
                self._add(SyncFile(number))
        return done

    _pwritev = _pwrite

    def _write(self, call: Call) -> int:
        number = self._file(call.args[0])
        if number is not None:
            raise NotImplementedError("a write without an offset to a file of the vault")
        done: int = call.proceed()
        return done

    _writev = _write

    def _ftruncate(self, call: Call) -> None:
        call.proceed()
        number = self._file(call.args[0])
        if number is not None:
            self._add(SetLength(number, call.args[1]))

    def _fallocate(self, call: Call) -> None:
        fd, mode, offset, length = call.args
        before = os.fstat(fd).st_size
        call.proceed()
        number = self._file(fd)
        if number is None:
            return
        if mode & FALLOC_PUNCH_HOLE or mode & FALLOC_ZERO_RANGE:
            self._add(Punch(number, offset, length))
        if not mode & FALLOC_KEEP_SIZE and offset + length > before:
            self._add(SetLength(number, offset + length))

    def _posix_fallocate(self, call: Call) -> None:
        fd, offset, length = call.args
        before = os.fstat(fd).st_size
        call.proceed()
        number = self._file(fd)
        if number is not None and offset + length > before:
            self._add(SetLength(number, offset + length))

    def _fsync(self, call: Call) -> None:
        number = self._file(call.args[0])
        if number is not None:
            is_directory = number in self.recording.directories
            # Before the call: what other threads do meanwhile need not be in it.
            self._add(SyncDirectory(number) if is_directory else SyncFile(number))
        call.proceed()

    _fdatasync = _fsync

    def _syncfs(self, call: Call) -> None:
        self._add(SyncAll())
        # Not really: it would wait for everything else that this machine writes.

    _sync = _syncfs

    # ---- names

    def _create(self, call: Call) -> int:
        name, flags = call.args[0], call.args[1]
        dir_fd = call.options.get("dir_fd")
        unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        before = None if unnamed else _lstat(name, dir_fd)
        fd: int = call.proceed()
        if unnamed:
            if self._directory(name, dir_fd) is not None:
                self._number(os.fstat(fd))
        elif before is None:
            parent = self._parent(name, dir_fd)
            if parent is not None:
                self._add(Names(((parent, _last(name), self._number(os.fstat(fd))),)))
        elif flags & os.O_TRUNC and (number := self._file(fd)) is not None:
            self._add(SetLength(number, 0))
        return fd

    def _directory(self, path: Any, dir_fd: int | None) -> int | None:
        return self._numbers.get(_key(os.stat(path, dir_fd=dir_fd)))

    def _parent(self, path: Any, dir_fd: int | None) -> int | None:
        """The number of the directory that a name is in; None outside of the vault."""
        return self._directory(os.path.dirname(os.fspath(path)) or ".", dir_fd)

    def _made(self, call: Call, kind: str) -> None:
        """After mkdir, symlink or mknod."""
        name = call.args[1 if kind == "symlink" else 0]
        dir_fd = call.options.get("dir_fd")
        call.proceed()
        parent = self._parent(name, dir_fd)
        if parent is None:
            return
        st = _lstat(name, dir_fd)
        assert st is not None
        number = self._number(st)
        if kind == "mkdir":
            self.recording.directories.add(number)
        elif kind == "symlink":
            self.recording.links[number] = os.fspath(call.args[0])
        self._add(Names(((parent, _last(name), number),)))

    def _mkdir(self, call: Call) -> None:
        self._made(call, "mkdir")

    def _symlink(self, call: Call) -> None:
        self._made(call, "symlink")

    def _mknod(self, call: Call) -> None:
        self._made(call, "mknod")

    def _unlink(self, call: Call) -> None:
        name, dir_fd = call.args[0], call.options.get("dir_fd")
        call.proceed()
        parent = self._parent(name, dir_fd)
        if parent is not None:
            self._add(Names(((parent, _last(name), None),)))

    _remove = _rmdir = _unlink

    def _link(self, call: Call) -> None:
        source, name = call.args[:2]
        follow = call.options.get("follow_symlinks", True)
        dir_fd = call.options.get("dst_dir_fd")
        st = os.stat(source, dir_fd=call.options.get("src_dir_fd"), follow_symlinks=follow)
        call.proceed()
        parent, number = self._parent(name, dir_fd), self._numbers.get(_key(st))
        if parent is not None and number is not None:
            self._add(Names(((parent, _last(name), number),)))

    def _rename(self, call: Call) -> None:
        old, new = call.args[:2]
        self._moved(call, call.options.get("src_dir_fd"), old, call.options.get("dst_dir_fd"), new, 0)

    _replace = _rename

    def _renameat2(self, call: Call) -> None:
        self._moved(call, *call.args[:5])

    def _moved(self, call: Call, old_fd: Any, old: Any, new_fd: Any, new: Any, flags: int) -> None:
        moved, replaced = _lstat(old, old_fd), _lstat(new, new_fd)
        call.proceed()
        source, target = self._parent(old, old_fd), self._parent(new, new_fd)
        if source is None or target is None or moved is None:
            return
        if replaced is not None and _key(moved) == _key(replaced):
            return  # two names of one file: rename(2) does nothing then
        there = self._numbers[_key(replaced)] if flags & RENAME_EXCHANGE and replaced is not None else None
        number = self._numbers[_key(moved)]
        self._add(Names(((source, _last(old), there), (target, _last(new), number))))


def _key(st: os.stat_result) -> _Key:
    return st.st_dev, st.st_ino


def _last(path: Any) -> str:
    return os.path.basename(os.fsdecode(path))


def _lstat(path: Any, dir_fd: int | None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
