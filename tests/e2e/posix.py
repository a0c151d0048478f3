"""The calls that a conformance suite makes, each on one path, for tables of paths, users and modes."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

from cryptfs.storage.libc import AT_FDCWD, RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

PathCall = Callable[[bytes], object]


def write(path: bytes, content: bytes = b"content") -> None:
    """Make or replace a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def open_with(flags: int) -> PathCall:
    """open(2) and close(2); a FIFO holds nobody up."""
    return lambda path: os.close(os.open(path, flags | os.O_NONBLOCK, 0o666))


def bind(path: bytes) -> None:
    """A socket under that name."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def rename_exchange(path: bytes, other: bytes) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    renameat2(AT_FDCWD, os.fsdecode(path), AT_FDCWD, os.fsdecode(other), RENAME_EXCHANGE)


def rename_noreplace(path: bytes, other: bytes) -> None:
    """renameat2(2) with RENAME_NOREPLACE."""
    renameat2(AT_FDCWD, os.fsdecode(path), AT_FDCWD, os.fsdecode(other), RENAME_NOREPLACE)


ON_EXISTING: dict[str, PathCall] = {
    "chmod": lambda path: os.chmod(path, 0o640),
    "chown": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.chown(path, -1, -1, follow_symlinks=False),
    "truncate": lambda path: os.truncate(path, 3),
    "open read": open_with(os.O_RDONLY),
    "open write": open_with(os.O_WRONLY),
    "open both": open_with(os.O_RDWR),
    "open truncate": open_with(os.O_WRONLY | os.O_TRUNC),
    "open read truncate": open_with(os.O_RDONLY | os.O_TRUNC),
    "open append": open_with(os.O_WRONLY | os.O_APPEND),
    "open nofollow": open_with(os.O_RDONLY | os.O_NOFOLLOW),
    "open directory": open_with(os.O_RDONLY | os.O_DIRECTORY),
    "open tmpfile": open_with(os.O_RDWR | os.O_TMPFILE),
    "utimens": lambda path: os.utime(path, ns=(10**18, 10**18)),
    "utimens now": lambda path: os.utime(path),
    "lutimens": lambda path: os.utime(path, ns=(10**18, 10**18), follow_symlinks=False),
    "stat": lambda path: stat.S_IFMT(os.stat(path).st_mode),
    "lstat": lambda path: stat.S_IFMT(os.lstat(path).st_mode),
    "readlink": os.readlink,
    "listdir": lambda path: len(os.listdir(path)),
    "access read": lambda path: os.access(path, os.R_OK),
    "access write": lambda path: os.access(path, os.W_OK),
    "access execute": lambda path: os.access(path, os.X_OK),
    "setxattr": lambda path: os.setxattr(path, "user.name", b"value"),
    "listxattr": lambda path: len(os.listxattr(path)),
    "removexattr": lambda path: os.removexattr(path, "user.name"),
}
"""Calls on what is there."""

MAKING: dict[str, PathCall] = {
    "mkdir": lambda path: os.mkdir(path, 0o777),
    "mkfifo": lambda path: os.mkfifo(path, 0o666),
    "mknod file": lambda path: os.mknod(path, stat.S_IFREG | 0o666),
    "mknod socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o666),
    "mknod device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "bind": bind,
    "symlink": lambda path: os.symlink(b"target", path),
    "create": open_with(os.O_RDWR | os.O_CREAT),
    "create exclusive": open_with(os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "create truncate": open_with(os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
}
"""Calls that make something under a name."""

REMOVING: dict[str, PathCall] = {"unlink": os.unlink, "rmdir": os.rmdir}
"""Calls that take a name away."""

# With a second name: of a file `source` and of a name `target` in the current directory.
WITH_ANOTHER: dict[str, PathCall] = {
    "link to": lambda path: os.link(b"source", path),
    "link from": lambda path: os.link(path, b"target", follow_symlinks=False),
    "rename to": lambda path: os.rename(b"source", path),
    "rename from": lambda path: os.rename(path, b"target"),
    "rename directory to": lambda path: os.rename(b"source-directory", path),
    "rename noreplace": lambda path: rename_noreplace(b"source", path),
    "exchange": lambda path: rename_exchange(b"source", path),
}

ALL_CALLS: dict[str, PathCall] = ON_EXISTING | MAKING | REMOVING | WITH_ANOTHER
