"""The times that a kernel with the writeback cache sends after an unlink or a rename.

It has moved ctime then and tells what it knows, with SETATTR of mtime and ctime alone. The same is sent for a
program that sets mtime, so only what changes nothing may be left out.
"""

from __future__ import annotations

import os

import pytest

from cryptfs.mount.native import structs
from cryptfs.mount.native.structs import SetAttr
from cryptfs.mount.opcodes import Op
from tests.mount.native_kernel import ROOT, FakeKernel, kernel_for
from tests.support import BareVault

SECOND = 10**9
OLD = 1_600_000_000 * SECOND + 5


@pytest.fixture
def nodeid(kernel: FakeKernel) -> int:
    """A file with the mtime OLD, closed."""
    entry, fh = kernel.create(b"file")
    kernel.write(fh, entry.nodeid, 0, b"content")
    kernel.release(fh, entry.nodeid)
    assert set_mtime(kernel, entry.nodeid, OLD) == (OLD, 1)
    return entry.nodeid


def set_mtime(kernel: FakeKernel, nodeid: int, mtime_ns: int) -> tuple[int, int]:
    """SETATTR as the kernel sends it to tell the times; the mtime and nlink of the reply."""
    seconds, nanoseconds = divmod(mtime_ns, SECOND)
    valid = SetAttr.MTIME | SetAttr.CTIME
    body = structs.SETATTR_IN.pack(valid, 0, 0, 0, 0, 0, seconds, 9, 0, nanoseconds, 9, 0, 0, 0, 0, 0)
    reply = structs.ATTRIBUTES.unpack(kernel.good(Op.SETATTR, nodeid, body))[3:]
    return reply[4] * SECOND + reply[7], reply[10]


def rename(kernel: FakeKernel, old: bytes, new: bytes) -> None:
    kernel.good(Op.RENAME, ROOT, structs.RENAME_IN.pack(ROOT) + old + b"\0" + new + b"\0")


def backing_times(vault: BareVault, name: bytes) -> tuple[int, int]:
    """mtime and ctime on disk."""
    st = vault.tree.stat(vault.root, name).st
    return st.st_mtime_ns, st.st_ctime_ns


def held_file(kernel: FakeKernel, nodeid: int) -> os.stat_result:
    held = kernel.requests.nodes.get(nodeid).held
    assert held is not None
    return os.fstat(held.fd)


def test_a_renamed_file_is_not_written_again(kernel: FakeKernel, vault: BareVault, nodeid: int) -> None:
    before = backing_times(vault, b"file")
    rename(kernel, b"file", b"new")
    renamed = backing_times(vault, b"new")
    assert renamed[0] == OLD and renamed[1] > before[1]
    assert set_mtime(kernel, nodeid, OLD) == (OLD, 1)
    assert backing_times(vault, b"new") == renamed


def test_nor_is_anything_left_out_after_that(kernel: FakeKernel, vault: BareVault, nodeid: int) -> None:
    rename(kernel, b"file", b"new")
    set_mtime(kernel, nodeid, OLD)
    renamed = backing_times(vault, b"new")
    assert set_mtime(kernel, nodeid, OLD) == (OLD, 1)
    mtime, ctime = backing_times(vault, b"new")
    assert mtime == OLD and ctime > renamed[1]  # a program that sets the same time moves ctime


def test_a_time_that_differs_is_set(kernel: FakeKernel, vault: BareVault, nodeid: int) -> None:
    rename(kernel, b"file", b"new")
    assert set_mtime(kernel, nodeid, OLD + 1) == (OLD + 1, 1)
    assert backing_times(vault, b"new")[0] == OLD + 1


def test_a_renamed_file_that_is_open_keeps_its_time(
    kernel: FakeKernel, vault: BareVault, nodeid: int
) -> None:
    fh, *_ = structs.OPEN_OUT.unpack(kernel.good(Op.OPEN, nodeid, structs.OPEN_IN.pack(os.O_RDWR, 0)))
    kernel.write(fh, nodeid, 0, b"CONTENT")
    rename(kernel, b"file", b"new")
    assert set_mtime(kernel, nodeid, OLD) == (OLD, 1)
    kernel.release(fh, nodeid)
    assert backing_times(vault, b"new")[0] == OLD
    ctime = backing_times(vault, b"new")[1]
    set_mtime(kernel, nodeid, OLD)
    assert backing_times(vault, b"new")[1] > ctime  # the rename has been answered before


def test_an_exchanged_file_is_not_written_again(kernel: FakeKernel, vault: BareVault, nodeid: int) -> None:
    other, fh = kernel.create(b"other")
    kernel.release(fh, other.nodeid)
    body = structs.RENAME2_IN.pack(ROOT, 2, 0) + b"file\0other\0"
    kernel.good(Op.RENAME2, ROOT, body)
    assert set_mtime(kernel, nodeid, OLD) == (OLD, 1)
    assert backing_times(vault, b"other")[0] == OLD
    assert set_mtime(kernel, other.nodeid, OLD + 2) == (OLD + 2, 1)
    assert backing_times(vault, b"file")[0] == OLD + 2


def test_a_file_without_a_name_is_left_alone(kernel: FakeKernel, nodeid: int) -> None:
    kernel.good(Op.UNLINK, ROOT, b"file\0")
    before = held_file(kernel, nodeid)
    assert set_mtime(kernel, nodeid, OLD + 1) == (OLD, 0)
    assert held_file(kernel, nodeid) == before


def test_one_that_is_open_is_not(kernel: FakeKernel, nodeid: int) -> None:
    fh, *_ = structs.OPEN_OUT.unpack(kernel.good(Op.OPEN, nodeid, structs.OPEN_IN.pack(os.O_RDWR, 0)))
    kernel.good(Op.UNLINK, ROOT, b"file\0")
    assert set_mtime(kernel, nodeid, OLD + 1) == (OLD + 1, 0)
    kernel.release(fh, nodeid)


def test_nor_one_that_has_another_name(kernel: FakeKernel, vault: BareVault, nodeid: int) -> None:
    kernel.good(Op.LINK, ROOT, structs.LINK_IN.pack(nodeid) + b"second\0")
    kernel.good(Op.UNLINK, ROOT, b"second\0")
    assert set_mtime(kernel, nodeid, OLD + 1) == (OLD + 1, 1)
    assert backing_times(vault, b"file")[0] == OLD + 1


def test_without_the_writeback_cache_nothing_is_left_out(vault: BareVault) -> None:
    with kernel_for(vault, "nowriteback,max_threads=1") as kernel:
        entry, fh = kernel.create(b"file")
        kernel.release(fh, entry.nodeid)
        kernel.good(Op.UNLINK, ROOT, b"file\0")
        assert set_mtime(kernel, entry.nodeid, OLD) == (OLD, 0)
