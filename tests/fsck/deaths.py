"""Deaths at a chosen system call, as in tests/recovery/faults.py, of those on directories too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cryptfs.storage import dirs, durability, libc
from cryptfs.vfs import tree
from tests.recovery.faults import Faults

_CALLS = ("rename", "unlink", "rmdir", "mkdir", "symlink", "link", "chmod", "chown", "fchmod")
_XATTR_CALLS = ("setxattr", "removexattr")


@contextlib.contextmanager
def dying(faults: Faults) -> Iterator[Faults]:
    """In effect for a while: every call that changes the disk is counted, and dies from the chosen one on.

    Syncs change nothing that a kill could undo, and take long: they are left out.
    """

    def striking(call: Callable[..., Any]) -> Callable[..., Any]:
        def struck(*args: Any, **options: Any) -> Any:
            if faults.strikes():
                raise faults.fail()
            return call(*args, **options)

        return struck

    def creating(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT and faults.strikes():
            raise faults.fail()
        return opening(path, flags, mode, dir_fd=dir_fd)

    opening = os.open
    with faults.on_disk(), pytest.MonkeyPatch.context() as patch:
        for name in (*_CALLS, *_XATTR_CALLS):
            patch.setattr(os, name, striking(getattr(os, name)))
        patch.setattr(os, "open", creating)
        patch.setattr(dirs, "renameat2", striking(libc.renameat2))
        for module in (durability, tree):
            patch.setattr(module, "syncfs", lambda _: None)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(os, "fdatasync", lambda _: None)
        yield faults
