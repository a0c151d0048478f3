"""What a change takes away from a file, and what it does to its times: both engines do the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol, cast

import pytest

from cryptfs.mount.fusepy.operations import CryptOperations
from cryptfs.mount.native import structs
from cryptfs.mount.native.structs import SetAttr
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import parse_options
from cryptfs.storage.libc import UTIME_OMIT
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.tree.xattrs import CAPABILITY
from tests.mount.native_kernel import FakeKernel, kernel_for, make_requests
from tests.support import BareVault

NAME = b"file"
CONTENT = b"content" * 1000
OPTIONS = "nowriteback,max_threads=1"


class Program(Protocol):
    """What a program does to a file that it has open for both."""

    def write(self, *, cached: bool = False) -> None: ...
    def truncate(self) -> None: ...
    def truncate_by_name(self) -> None: ...
    def open_truncating(self) -> None: ...
    def open_again(self) -> None: ...
    def chown(self) -> None: ...
    def chmod(self) -> None: ...
    def utimens(self) -> None: ...
    def set_capability(self) -> None: ...
    def has_capability(self) -> bool: ...
    def close(self) -> None: ...


class Native:
    """By inode."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        entry, self.fh = kernel.create(NAME)
        self.node = entry.nodeid
        kernel.write(self.fh, self.node, 0, CONTENT)
        kernel.release(self.fh, self.node)
        self.fh = self._open(os.O_RDWR)

    def _open(self, flags: int) -> int:
        body = structs.OPEN_IN.pack(flags, 0)
        fh: int = structs.OPEN_OUT.unpack(self.kernel.good(Op.OPEN, self.node, body))[0]
        return fh

    def _set(self, valid: int, *, fh: int = 0, size: int = 0, mode: int = 0, uid: int = 0) -> None:
        body = structs.SETATTR_IN.pack(valid, 0, fh, size, 0, 0, 1, 0, 0, 0, 0, mode, 0, uid, 0, 0)
        self.kernel.good(Op.SETATTR, self.node, body)

    def write(self, *, cached: bool = False) -> None:
        flags = structs.WRITE_CACHE if cached else 0
        body = structs.WRITE_IN.pack(self.fh, 0, 3, flags, 0, 0, 0) + b"new"
        self.kernel.good(Op.WRITE, self.node, body)

    def truncate(self) -> None:
        self._set(SetAttr.SIZE | SetAttr.FH, fh=self.fh, size=5)

    def truncate_by_name(self) -> None:
        self._set(SetAttr.SIZE, size=5)

    def open_truncating(self) -> None:
        self.kernel.release(self._open(os.O_RDWR | os.O_TRUNC), self.node)

    def open_again(self) -> None:
        self.kernel.release(self._open(os.O_RDONLY), self.node)

    def chown(self) -> None:
        self._set(SetAttr.UID, uid=os.getuid())

    def chmod(self) -> None:
        self._set(SetAttr.MODE, mode=0o600)

    def utimens(self) -> None:
        self._set(SetAttr.MTIME)

    def set_capability(self) -> None:
        body = structs.SETXATTR_IN_EXT.pack(5, 0, 0, 0) + CAPABILITY + b"\0" + b"value"
        self.kernel.good(Op.SETXATTR, self.node, body)

    def has_capability(self) -> bool:
        reply = self.kernel.ask(Op.GETXATTR, self.node, structs.GETXATTR_IN.pack(99, 0) + CAPABILITY + b"\0")
        assert reply.code in (0, errno.ENODATA)
        return reply.code == 0

    def close(self) -> None:
        self.kernel.release(self.fh, self.node)


class Fusepy:
    """By path."""

    def __init__(self, operations: Any) -> None:
        self.do = operations
        self.path = "/" + NAME.decode()
        fi = self._info(os.O_RDWR | os.O_CREAT)
        self.do.create(self.path, 0o644, fi)
        self.do.getattr(self.path, fi.fh)
        self.do.write(fi.fh, 0, memoryview(CONTENT), append=False, cached=False)
        self.do.release(None, fi)
        self.fi = self._open(os.O_RDWR)

    def _info(self, flags: int) -> Any:
        return SimpleNamespace(flags=flags, fh=0, keep_cache=False, direct_io=False)

    def _open(self, flags: int) -> Any:
        fi = self._info(flags)
        self.do.open(self.path, fi)
        return fi

    def write(self, *, cached: bool = False) -> None:
        self.do.write(self.fi.fh, 0, memoryview(b"new"), append=False, cached=cached)

    def truncate(self) -> None:
        self.do.truncate(None, 5, self.fi.fh)

    def truncate_by_name(self) -> None:
        self.do.truncate(self.path, 5, None)

    def open_truncating(self) -> None:
        self.do.release(None, self._open(os.O_RDWR | os.O_TRUNC))

    def open_again(self) -> None:
        self.do.release(None, self._open(os.O_RDONLY))

    def chown(self) -> None:
        self.do.chown(self.path, os.getuid(), -1, None)

    def chmod(self) -> None:
        self.do.chmod(self.path, 0o600, None)

    def utimens(self) -> None:
        self.do.utimens(self.path, (0, UTIME_OMIT, 1, 0), None)

    def set_capability(self) -> None:
        self.do.setxattr(self.path, CAPABILITY.decode(), b"value", 0)

    def has_capability(self) -> bool:
        if self.do.has_no_capability(self.path):
            return False
        try:
            return bool(self.do.getxattr(self.path, CAPABILITY.decode()))
        except OSError as error:
            assert error.errno == errno.ENODATA
            return False

    def close(self) -> None:
        self.do.release(None, self.fi)


def fusepy_operations(vault: BareVault, options: str) -> Any:
    shim = cast(Any, SimpleNamespace(tree=vault.tree))
    return CryptOperations(shim, parse_options(options), lambda *_: None)


@pytest.fixture(params=["native", "fusepy"])
def program(request: pytest.FixtureRequest, vault: BareVault) -> Iterator[Program]:
    """A program with a file open, on either engine, without the writeback cache."""
    if request.param == "fusepy":
        yield Fusepy(fusepy_operations(vault, OPTIONS))
    else:
        with kernel_for(vault, OPTIONS) as kernel:
            yield Native(kernel)


CHANGES: dict[str, tuple[Callable[[Program], None], bool]] = {
    "write": (lambda program: program.write(), False),
    "write through a mapping": (lambda program: program.write(cached=True), True),
    "ftruncate": (lambda program: program.truncate(), False),
    "truncate": (lambda program: program.truncate_by_name(), False),
    "open with O_TRUNC": (lambda program: program.open_truncating(), False),
    "chown": (lambda program: program.chown(), False),
    "chmod": (lambda program: program.chmod(), True),
    "utimens": (lambda program: program.utimens(), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_takes_a_capability_away(program: Program, change: str) -> None:
    action, stays = CHANGES[change]
    for _ in range(2):  # one that is set while the file is open goes too
        program.set_capability()
        assert program.has_capability()
        action(program)
        assert program.has_capability() == stays
    program.close()


@pytest.mark.parametrize("change", ["chmod", "chown", "utimens"])
def test_the_last_close_does_not_move_ctime_after_a_change_of_attributes(
    program: Program, vault: BareVault, change: str
) -> None:
    program.write()
    CHANGES[change][0](program)
    before = vault.tree.stat(vault.root, NAME).st
    program.close()
    after = vault.tree.stat(vault.root, NAME).st
    assert (after.st_ctime_ns, after.st_mtime_ns) == (before.st_ctime_ns, before.st_mtime_ns)


@pytest.mark.parametrize("change", ["chmod", "chown", "utimens"])
def test_the_file_is_still_the_one_that_the_kernel_knows(program: Program, change: str) -> None:
    program.open_again()
    program.write()
    CHANGES[change][0](program)
    program.open_again()
    program.write()
    program.open_again()
    program.close()
    program.open_again()


@pytest.mark.parametrize("change", ["chmod", "chown", "utimens"])
def test_the_last_handle_is_given_back_meanwhile(
    program: Program, vault: BareVault, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: descriptors of the file are closed then, or are those of another file."""
    program.write()
    release = FileTable.release
    closed: list[FileState] = []

    def close_first(files: FileTable, state: FileState, *, writable: bool = False) -> None:
        if not closed:
            closed.append(state)
            release(files, state, writable=True)  # the program's
        release(files, state, writable=writable)

    monkeypatch.setattr(FileTable, "release", close_first)
    CHANGES[change][0](program)
    monkeypatch.undo()
    assert closed
    assert vault.tree.files.find(vault.tree.stat(vault.root, NAME).st) is None
    program.open_again()


@pytest.mark.parametrize("engine", ["native", "fusepy"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [("", (False, False)), ("nodiratime", (False, True)), ("noatime", (True, True))],
)
def test_options_about_the_time_of_access(
    vault: BareVault, engine: str, options: str, expected: tuple[bool, bool]
) -> None:
    if engine == "fusepy":
        fusepy_operations(vault, options)
    else:
        make_requests(vault, parse_options(options)).close()
    assert (vault.context.noatime, vault.context.nodiratime) == expected
