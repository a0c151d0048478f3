"""The calls that cryptfs makes to the disk, as they pass by: each can be watched, failed or cut short.

They are caught where they are made, in `os` and in front of libc, so that the code under test is the real
code with the real order of its calls.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from cryptfs.storage import libc

CHANGES = frozenset(
    {
        *("pwrite", "pwritev", "write", "writev", "ftruncate", "truncate", "fallocate", "posix_fallocate"),
        *("fsync", "fdatasync", "syncfs", "sync"),
        *("rename", "replace", "renameat2", "link", "unlink", "remove", "mkdir", "rmdir", "symlink", "mknod"),
        *("create", "chmod", "fchmod", "chown", "fchown", "utimensat", "futimens", "utime"),
        *("setxattr", "removexattr"),
    }
)
"""Calls that change the disk; `create` is an open with O_CREAT or O_TMPFILE."""
CONTENT_CHANGES = frozenset({"pwrite", "pwritev", "ftruncate", "fallocate"})
"""Calls that change bytes or the length of an open file."""
SYNCS = frozenset({"fsync", "fdatasync", "syncfs", "sync"})
READS = frozenset(
    {
        *("pread", "preadv", "open", "fstat", "stat", "lseek", "readlink", "listdir", "scandir"),
        *("getxattr", "listxattr", "statx", "fstatvfs"),
    }
)
"""Calls that only look."""
_IN_OS = (CHANGES | READS) - {"fallocate", "syncfs", "renameat2", "create", "utimensat", "futimens", "statx"}
_LIBC = {f"_{name}": name for name in ("fallocate", "syncfs", "renameat2", "utimensat", "futimens", "statx")}


class Call(NamedTuple):
    """One call. result: makes it, or, with other arguments than its own, a part of it."""

    name: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    really: Callable[..., Any]

    def proceed(self) -> Any:
        """Make the call as it was meant."""
        return self.really(*self.args, **self.options)

    @property
    def is_write(self) -> bool:
        """Whether it writes bytes at an offset."""
        return self.name in ("pwrite", "pwritev")

    @property
    def data(self) -> bytes:
        """What a write is to write."""
        what = self.args[1]
        return b"".join(map(bytes, what)) if self.name == "pwritev" else bytes(what)

    def write_only(self, length: int) -> int:
        """Write the first bytes of what was to be written; what a kernel may do, too."""
        part = self.data[:length]
        done: int = self.really(self.args[0], [part] if self.name == "pwritev" else part, *self.args[2:])
        return done


Handler = Callable[[Call], Any]
"""Gets each call in its thread, and answers it: with call.proceed(), in another way, or by raising."""


def is_creation(flags: int) -> bool:
    """Whether an open may make a file."""
    return bool(flags & os.O_CREAT) or flags & os.O_TMPFILE == os.O_TMPFILE


@contextlib.contextmanager
def intercepted(handler: Handler, names: frozenset[str] = CHANGES) -> Iterator[None]:
    """All calls with these names go to the handler for a while, from whatever thread."""
    functions = {id(getattr(libc, attribute)): name for attribute, name in _LIBC.items()}

    def caught(name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            actual = name
            if name == "open" and is_creation(args[1] if len(args) > 1 else options["flags"]):
                actual = "create"
            if actual not in names:
                return really(*args, **options)
            return handler(Call(actual, args, options, really))

        return call

    check = libc._check

    def checked(function: Any, *args: Any) -> None:
        name = functions.get(id(function), "")
        if name not in names:
            check(function, *args)
            return
        handler(Call(name, args, {}, lambda *changed: check(function, *changed)))

    with pytest.MonkeyPatch.context() as patch:
        for name in sorted(_IN_OS):
            patch.setattr(os, name, caught(name, getattr(os, name)))
        patch.setattr(libc, "_check", checked)
        yield


def bytes_of(pieces: Sequence[bytes | memoryview] | bytes | memoryview) -> bytes:
    """What a call was given to write, as bytes."""
    if isinstance(pieces, bytes | bytearray | memoryview):
        return bytes(pieces)
    return b"".join(map(bytes, pieces))
