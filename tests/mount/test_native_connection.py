"""The native engine's connection without a mount: a test plays the kernel on a socket."""

from __future__ import annotations

import errno
import gc
import os
import stat
import threading
import time

import pytest

from cryptfs.mount.native import connection, structs
from cryptfs.mount.native.request import Request
from cryptfs.mount.opcodes import Op
from tests.mount.native_kernel import ROOT, FakeKernel, kernel_for, plus_entries, read_in, unpack_entry
from tests.support import MIB, BareVault, open_descriptors, pattern

pytestmark = pytest.mark.serial


def count(kernel: FakeKernel) -> int:
    """Nodes that the engine remembers, without the root."""
    return len(kernel.requests.nodes) - 1


# ---- a file's life


def test_create_write_read_unlink(kernel: FakeKernel) -> None:
    entry, fh = kernel.create(b"file")
    assert stat.S_ISREG(entry.mode)
    assert kernel.write(fh, entry.nodeid, 0, b"content") == 7
    assert kernel.read(fh, entry.nodeid, 0, 4096) == b"content"
    assert kernel.read(fh, entry.nodeid, 100, 4096) == b""
    assert kernel.lookup(b"file").nodeid == entry.nodeid
    kernel.good(Op.UNLINK, ROOT, b"file\0")
    assert kernel.lookup(b"file").nodeid == 0
    assert kernel.read(fh, entry.nodeid, 0, 4096) == b"content"
    kernel.release(fh, entry.nodeid)
    kernel.forget(entry.nodeid, 2)
    assert count(kernel) == 0


@pytest.mark.parametrize("size", [256 * 1024, MIB])
def test_large_requests_arrive_whole(kernel: FakeKernel, size: int) -> None:
    content = pattern(size)
    entry, fh = kernel.create(b"large")
    assert kernel.write(fh, entry.nodeid, 5, content) == size
    assert kernel.read(fh, entry.nodeid, 5, size) == content
    assert kernel.read(fh, entry.nodeid, 0, 5) == bytes(5)
    kernel.release(fh, entry.nodeid)


@pytest.mark.parametrize(
    ("major", "minor"), [(0, 0), (1, 3), (0xFFF, 0), (0, 0xFFFFF), (0xFFF, 0xFFFFF), (259, 0x12345)]
)
def test_device_numbers_both_ways(kernel: FakeKernel, major: int, minor: int) -> None:
    # new_encode_dev() of the kernel: 12 bits of major between the low 8 and the high 12 of minor.
    encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    body = structs.MKNOD_IN.pack(stat.S_IFCHR | 0o600, encoded, 0, 0) + b"device\0"
    assert unpack_entry(kernel.good(Op.MKNOD, ROOT, body)).rdev == encoded
    assert kernel.lookup(b"device").rdev == encoded
    assert kernel.vault.backing(b"device").stat().st_rdev == os.makedev(major, minor)


# ---- lookup counts


def test_lookups_are_counted_and_given_back(kernel: FakeKernel) -> None:
    entry, fh = kernel.create(b"file")
    kernel.release(fh, entry.nodeid)
    for _ in range(3):
        assert kernel.lookup(b"file").nodeid == entry.nodeid
    assert kernel.lookup(b"missing").nodeid == 0
    kernel.forget(entry.nodeid, 3)
    assert count(kernel) == 1
    kernel.good(Op.GETATTR, entry.nodeid, structs.GETATTR_IN.pack(0, 0, 0))
    kernel.forget(entry.nodeid)
    assert count(kernel) == 0
    assert kernel.ask(Op.GETATTR, entry.nodeid, structs.GETATTR_IN.pack(0, 0, 0)).code == errno.ESTALE
    assert kernel.lookup(b"file").nodeid > entry.nodeid  # a number is never used again


def test_batch_forget(kernel: FakeKernel) -> None:
    entries = [kernel.mkdir(b"d%d" % number) for number in range(50)]
    for number in range(0, 50, 2):
        kernel.lookup(b"d%d" % number)
    pairs = [(entry.nodeid, 2 - index % 2) for index, entry in enumerate(entries)]
    body = structs.BATCH_FORGET_IN.pack(len(pairs), 0)
    body += b"".join(structs.FORGET_ONE.pack(*pair) for pair in pairs[:-1])
    kernel.send(Op.BATCH_FORGET, 0, body + structs.FORGET_ONE.pack(entries[-1].nodeid, 0))
    kernel.sync()
    assert count(kernel) == 1
    kernel.forget(entries[-1].nodeid)
    assert count(kernel) == 0


def test_every_reply_with_an_entry_counts(kernel: FakeKernel) -> None:
    entry, fh = kernel.create(b"file")
    kernel.release(fh, entry.nodeid)
    linked = unpack_entry(kernel.good(Op.LINK, ROOT, structs.LINK_IN.pack(entry.nodeid) + b"hard\0"))
    assert (linked.nodeid, linked.nlink) == (entry.nodeid, 2)
    node = unpack_entry(kernel.good(Op.MKNOD, ROOT, structs.MKNOD_IN.pack(stat.S_IFIFO, 0, 0, 0) + b"fifo\0"))
    made = unpack_entry(kernel.good(Op.SYMLINK, ROOT, b"link\0target\0"))
    payload = kernel.good(Op.TMPFILE, ROOT, structs.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"\0")
    unnamed = unpack_entry(payload)
    assert count(kernel) == 4
    kernel.forget(entry.nodeid, 1)
    assert count(kernel) == 4
    kernel.forget(entry.nodeid, 1)
    for other in (node, made, unnamed):
        kernel.forget(other.nodeid)
    assert count(kernel) == 0


def test_forgetting_too_much_or_the_root_or_a_stranger_is_harmless(kernel: FakeKernel) -> None:
    entry = kernel.mkdir(b"d")
    kernel.forget(ROOT, 10**6)
    kernel.forget(12345, 1)
    kernel.forget(entry.nodeid, 2**63)
    assert count(kernel) == 0
    assert kernel.lookup(b"d").nodeid


@pytest.mark.parametrize("room", [200, 400, 4096])
def test_readdirplus_counts_what_it_returns(kernel: FakeKernel, room: int) -> None:
    names = {b"name%02d" % number for number in range(20)}
    for name in names:
        kernel.forget(kernel.mkdir(name).nodeid)
    assert count(kernel) == 0
    fh = kernel.open_directory()
    offset = 0
    seen: list[tuple[bytes, int]] = []
    while payload := kernel.good(Op.READDIRPLUS, ROOT, read_in(fh, offset, room)):
        assert len(payload) <= room
        entries = plus_entries(payload)
        seen += entries
        at = len(payload) - structs.DIRENT.size - (len(entries[-1][0]) + 7) // 8 * 8
        offset = structs.DIRENT.unpack_from(payload, at)[1]
    assert {name for name, _ in seen} == names | {b".", b".."}
    assert len(seen) == 22
    assert [nodeid for name, nodeid in seen if name in (b".", b"..")] == [0, 0]
    assert count(kernel) == 20  # an entry that did not fit any more is counted once, not twice
    for _, nodeid in seen:
        if nodeid:
            kernel.forget(nodeid)
    assert count(kernel) == 0
    kernel.good(Op.RELEASEDIR, ROOT, structs.RELEASE_IN.pack(fh, 0, 0, 0))


def test_readdir_counts_nothing(kernel: FakeKernel) -> None:
    for number in range(5):
        kernel.forget(kernel.mkdir(b"d%d" % number).nodeid)
    fh = kernel.open_directory()
    assert kernel.good(Op.READDIR, ROOT, read_in(fh, 0, 4096))
    assert count(kernel) == 0
    kernel.good(Op.RELEASEDIR, ROOT, structs.RELEASE_IN.pack(fh, 0, 0, 0))


# ---- what has no handler, and the end


@pytest.mark.parametrize(
    "opcode", [0, 7, 19, 31, Op.FLUSH, Op.INTERRUPT, 39, 40, 41, 48, 49, 53, 99, 2**32 - 1]
)
def test_what_is_not_known_is_enosys(kernel: FakeKernel, opcode: int) -> None:
    # INTERRUPT too: the kernel then sends no more of them, and nothing here waits for long.
    assert kernel.ask(opcode, ROOT, bytes(64)).code == errno.ENOSYS
    kernel.sync()


def test_without_xattrs_they_are_enosys(vault: BareVault) -> None:
    with kernel_for(vault, "noxattrs") as kernel:
        for opcode in (Op.GETXATTR, Op.SETXATTR, Op.LISTXATTR, Op.REMOVEXATTR):
            assert kernel.ask(opcode, ROOT, bytes(64)).code == errno.ENOSYS


def test_access_is_the_kernels_business_where_it_checks_permissions(vault: BareVault) -> None:
    body = structs.ACCESS_IN.pack(os.R_OK, 0)
    with kernel_for(vault, "allow_other") as kernel:
        assert kernel.ask(Op.ACCESS, ROOT, body).code == errno.ENOSYS
    with kernel_for(vault) as kernel:
        assert kernel.ask(Op.ACCESS, ROOT, body).code == 0


def test_destroy_gets_no_reply(kernel: FakeKernel) -> None:
    kernel.send(Op.DESTROY)
    kernel.sync()  # the first reply is that of the request behind it


def test_nothing_stays_open_after_the_end(vault: BareVault) -> None:
    vault.tree.pending.flush()
    gc.collect()  # what other tests left
    threads = threading.active_count()
    before = open_descriptors()
    with kernel_for(vault, "") as kernel:
        directory = kernel.mkdir(b"d")
        entry, fh = kernel.create(b"file", directory.nodeid)
        kernel.write(fh, entry.nodeid, 0, b"not released")
        kernel.good(Op.UNLINK, directory.nodeid, b"file\0")
        kernel.open_directory(directory.nodeid)
        assert open_descriptors() > before
    vault.tree.pending.flush()  # it holds new directory records
    vault.tree.files.close()
    assert open_descriptors() == before
    assert threading.active_count() == threads


def test_what_was_not_released_is_settled_by_the_vault(vault: BareVault) -> None:
    with kernel_for(vault) as kernel:
        entry, fh = kernel.create(b"file")
        kernel.write(fh, entry.nodeid, 0, b"content")
    vault.reopen()
    assert vault.get(b"file") == b"content"


# ---- workers


class Stuck:
    """A handler in place of STATFS that waits until it is let go; `large`: as if it moved much data."""

    def __init__(self, kernel: FakeKernel, *, large: bool = False) -> None:
        self.large = large
        self.go = threading.Event()
        self.waiting = threading.Semaphore(0)
        kernel.requests.handlers[Op.STATFS] = self

    def __call__(self, request: Request) -> bytes:
        if self.large:
            request.make_way()
        self.waiting.release()
        assert self.go.wait(20)
        return b"late"


@pytest.mark.parametrize("pause", [0, 0.001, 0.3])
def test_requests_after_a_pause(vault: BareVault, pause: float) -> None:
    """Of a device that does not block: looking for the next request, sleeping, and waking up."""
    with kernel_for(vault, blocking=False) as kernel:
        for number in range(20 if pause < 0.1 else 3):
            entry, fh = kernel.create(b"file%d" % number)
            time.sleep(pause)
            assert kernel.write(fh, entry.nodeid, 0, b"content") == 7
            time.sleep(pause)
            kernel.release(fh, entry.nodeid)
    vault.reopen()
    assert vault.get(b"file2") == b"content"


@pytest.mark.parametrize("blocking", [True, False])
def test_waiting_costs_nothing(vault: BareVault, blocking: bool) -> None:
    with kernel_for(vault, blocking=blocking) as kernel:
        kernel.create(b"file")
        time.sleep(0.2)  # more than anybody looks for a request
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("stuck", [1, 2, 5, 15])
def test_stuck_requests_hold_nobody_up(vault: BareVault, stuck: int, blocking: bool) -> None:
    with kernel_for(vault, "", blocking=blocking) as kernel:
        slow = Stuck(kernel)
        late = {kernel.send(Op.STATFS) for _ in range(stuck)}
        for _ in range(stuck):
            assert slow.waiting.acquire(timeout=5)
        began = time.monotonic()
        assert kernel.lookup(b"missing").nodeid == 0
        assert time.monotonic() - began < 5  # it is milliseconds; the stuck ones would take 20 seconds
        slow.go.set()
        answered = dict(kernel.receive() for _ in range(stuck))
        assert set(answered) == late
        assert {reply.payload for reply in answered.values()} == {b"late"}


def test_workers_have_a_limit_and_go_on_after_it(vault: BareVault) -> None:
    with kernel_for(vault, "max_threads=2") as kernel:
        slow = Stuck(kernel)
        late = {kernel.send(Op.STATFS) for _ in range(2)}
        for _ in range(2):
            assert slow.waiting.acquire(timeout=5)
        waiting = kernel.send(Op.LOOKUP, ROOT, b"missing\0")
        kernel.connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            kernel.receive()
        kernel.connection.settimeout(10)
        slow.go.set()
        answered = dict(kernel.receive() for _ in range(3))
        assert set(answered) == late | {waiting}


def test_stuck_workers_again_and_again(vault: BareVault) -> None:
    # Surplus workers park; they must come back when they are needed anew.
    with kernel_for(vault, "max_threads=4") as kernel:
        for _ in range(5):
            slow = Stuck(kernel)
            late = {kernel.send(Op.STATFS) for _ in range(3)}
            for _ in range(3):
                assert slow.waiting.acquire(timeout=5)
            assert kernel.lookup(b"missing").nodeid == 0
            slow.go.set()
            assert {kernel.receive()[0] for _ in range(3)} == late
            for _ in range(20):
                assert kernel.lookup(b"missing").nodeid == 0


def test_large_requests_side_by_side(vault: BareVault) -> None:
    content = pattern(MIB)
    with kernel_for(vault, "max_threads=4") as kernel:
        opened = [kernel.create(b"file%d" % number) for number in range(4)]
        for entry, fh in opened:
            assert kernel.write(fh, entry.nodeid, 0, content) == MIB
        wanted = {
            kernel.send(Op.READ, entry.nodeid, read_in(fh, 0, MIB - number)): MIB - number
            for number, (entry, fh) in enumerate(opened)
        }
        for _ in opened:
            unique, reply = kernel.receive()
            assert reply.payload == content[: wanted.pop(unique)]
        for entry, fh in opened:
            kernel.release(fh, entry.nodeid)


@pytest.mark.parametrize("patience", [10**9, 2])
def test_large_requests_have_a_thread_for_each_processor_until_they_are_stuck(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setattr(connection, "usable_cores", lambda: 2)
    monkeypatch.setattr(connection, "_LARGE_TICKS", patience)
    with kernel_for(vault, "max_threads=8") as kernel:
        slow = Stuck(kernel, large=True)
        sent = {kernel.send(Op.STATFS) for _ in range(5)}
        for _ in range(2):
            assert slow.waiting.acquire(timeout=5)
        assert slow.waiting.acquire(timeout=0.2 if patience > 2 else 5) == (patience == 2)
        slow.go.set()
        assert {kernel.receive()[0] for _ in range(5)} == sent
        assert kernel.lookup(b"missing").nodeid == 0
        del kernel.requests.handlers[Op.STATFS]
        for _ in range(20):
            kernel.lookup(b"missing")
        assert len(kernel.session._active) <= 2
