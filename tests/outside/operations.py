"""What a program does by a name: each returns what it saw, and says what must be in the vault afterwards."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MADE = "made"  # the name that link, rename and copies make
TAIL = b"# appended by the program\n"
FRESH = b"#!/bin/sh\necho fresh\n"
PAGE = b"#" * 4095 + b"\n"
_AT_FDCWD = -100
_HANDLE_BYTES = 128
_CHILD_SECONDS = 20

_MAP_READ = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as pages:
    sys.stdout.buffer.write(pages[:])
"""
_MAP_WRITE = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 0) as pages:
    pages[4096:8192] = b"#" * 4095 + b"\\n"
    pages.flush()
os.fsync(fd)
"""

_libc = ctypes.CDLL(None, use_errno=True)


class FileHandle(ctypes.Structure):
    """struct file_handle of open_by_handle_at(2)."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES),
    )


class Refused(OSError):
    """An operation that failed in a child process, by an error or by SIGBUS."""


def handle_of(path: Path) -> FileHandle:
    """The handle of a file. Raises: OSError where the filesystem has none."""
    handle, mount_id = FileHandle(handle_bytes=_HANDLE_BYTES), ctypes.c_int()
    name = os.fsencode(path)
    if _libc.name_to_handle_at(_AT_FDCWD, name, ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def open_handle(handle: FileHandle, mountpoint: Path, flags: int) -> int:
    """Open by a handle; returns a descriptor."""
    mount_fd = os.open(mountpoint, os.O_RDONLY)
    try:
        fd: int = _libc.open_by_handle_at(mount_fd, ctypes.byref(handle), flags)
    finally:
        os.close(mount_fd)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def read_all(fd: int) -> bytes:
    """All of a file, from its start."""
    size = os.fstat(fd).st_size
    pieces, at = [], 0
    while piece := os.pread(fd, max(size, 1 << 16), at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def in_child(code: str, *arguments: str) -> bytes:
    """What a Python program says; Refused where it fails: a mapping can end in SIGBUS."""
    words = [sys.executable, "-I", "-S", "-c", code, *arguments]
    done = subprocess.run(words, capture_output=True, timeout=_CHILD_SECONDS, check=False)
    if done.returncode:
        raise Refused(5, f"{done.returncode}: {done.stderr.decode()[-200:]}")
    return done.stdout


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _mmap(path: Path) -> bytes:
    return in_child(_MAP_READ, str(path))


def _exec(path: Path) -> bytes:
    done = subprocess.run([path], capture_output=True, timeout=_CHILD_SECONDS, check=False)
    if done.returncode:
        raise Refused(5, f"the script ended with {done.returncode}")
    return done.stdout


def _with(path: Path, flags: int, data: bytes, at: int | None = None) -> None:
    fd = os.open(path, flags, 0o755)
    try:
        if at is None:
            os.write(fd, data)
        else:
            os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def _append(path: Path) -> None:
    _with(path, os.O_WRONLY | os.O_APPEND, TAIL)


def _page(path: Path) -> None:
    _with(path, os.O_RDWR, PAGE, 4096)


def _map_write(path: Path) -> None:
    in_child(_MAP_WRITE, str(path))


def _cut(path: Path) -> None:
    os.truncate(path, 21)


def _truncate_open(path: Path) -> None:
    _with(path, os.O_WRONLY | os.O_TRUNC, FRESH)


def _echo(path: Path) -> None:
    _with(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FRESH)


def _chmod(path: Path) -> None:
    path.chmod(0o711)


def _chown(path: Path) -> None:
    os.chown(path, 12345, 12345)


def _utimens(path: Path) -> None:
    os.utime(path, ns=(10**18, 10**18))


def _setxattr(path: Path) -> None:
    os.setxattr(path, "user.outside", b"by a program")


def _link(path: Path) -> None:
    path.with_name(MADE).hardlink_to(path)


def _rename(path: Path) -> None:
    path.rename(path.with_name(MADE))


def _unlink(path: Path) -> None:
    path.unlink()


def _copy(path: Path) -> None:
    source = os.open(path, os.O_RDONLY)
    try:
        target = os.open(path.with_name(MADE), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o755)
        try:
            while os.copy_file_range(source, target, 1 << 20):
                pass
        finally:
            os.close(target)
    finally:
        os.close(source)


@dataclass(frozen=True)
class Operation:
    """An operation by a name.

    act:     does it; returns what it read, or None.
    effect:  the content that the name has afterwards, of the content before; None: it writes nothing.
    made:    whether it makes the name MADE with the content of the name.
    removes: whether the name is gone afterwards.
    creates: whether it makes a file where none is.
    shows:   what is seen of a content: the script's line, where it is run.
    by_handle: `act` takes a descriptor that open_by_handle_at gave.
    """

    name: str
    act: Callable[[Path], bytes | None]
    effect: Callable[[bytes], bytes] | None = None
    made: bool = False
    removes: bool = False
    creates: bool = False
    shows: Callable[[bytes], bytes] = bytes


def line_of(content: bytes) -> bytes:
    """What a script says when it runs."""
    lines = content.split(b"\n", 2)
    return lines[1].removeprefix(b"echo ") + b"\n" if lines[1:] and lines[1].startswith(b"echo ") else b""


def paged(content: bytes) -> bytes:
    """Content after the page was written."""
    return content[:4096].ljust(4096, b"\0") + PAGE + content[8192:]


OPERATIONS = (
    Operation("read", _read),
    Operation("mmap", _mmap),
    Operation("exec", _exec, shows=line_of),
    Operation("copy_file_range", _copy, made=True),
    Operation("append", _append, lambda content: content + TAIL),
    Operation("pwrite", _page, paged),
    Operation("mmap_write", _map_write, paged),
    Operation("truncate", _cut, lambda content: (content + bytes(21))[:21]),
    Operation("o_trunc", _truncate_open, lambda content: FRESH),
    Operation("echo", _echo, lambda content: FRESH, creates=True),
    Operation("chmod", _chmod),
    Operation("chown", _chown),
    Operation("utimens", _utimens),
    Operation("setxattr", _setxattr),
    Operation("link", _link, made=True),
    Operation("rename", _rename, made=True, removes=True),
    Operation("unlink", _unlink, removes=True),
)
