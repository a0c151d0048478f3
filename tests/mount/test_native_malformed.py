"""Requests that no kernel sends: each gets an error, and the session goes on with the next."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptfs.mount.native import structs
from cryptfs.mount.native.structs import SetAttr
from cryptfs.mount.opcodes import Op
from tests.mount.native_kernel import ROOT, FakeKernel, kernel_for, read_in
from tests.support import MIB, BareVault

NO_REPLY = {Op.FORGET, Op.BATCH_FORGET, Op.DESTROY}
ALLOW = "allow_other,max_threads=1"  # with ACLs, so that their code is met, too


@pytest.fixture
def kernel(vault: BareVault, caplog: pytest.LogCaptureFixture) -> Iterator[FakeKernel]:
    with caplog.at_level(logging.WARNING), kernel_for(vault, ALLOW) as made:
        yield made
    assert_foreseen(caplog)


def assert_foreseen(caplog: pytest.LogCaptureFixture) -> None:
    """No traceback was logged."""
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


def setattr_in(valid: int, fh: int = 0, size: int = 0) -> bytes:
    return structs.SETATTR_IN.pack(valid, 0, fh, size, 0, 0, 0, 0, 0, 0, 0, 0o755, 0, 0, 0, 0)


BODIES: dict[Op, bytes] = {
    Op.LOOKUP: b"name\0",
    Op.FORGET: structs.FORGET_IN.pack(1),
    Op.SETATTR: setattr_in(SetAttr.MODE),
    Op.SYMLINK: b"name\0target\0",
    Op.MKNOD: structs.MKNOD_IN.pack(stat.S_IFREG | 0o600, 0, 0, 0) + b"node\0",
    Op.MKDIR: structs.MKDIR_IN.pack(0o700, 0) + b"directory\0",
    Op.UNLINK: b"name\0",
    Op.RMDIR: b"name\0",
    Op.RENAME: structs.RENAME_IN.pack(ROOT) + b"name\0new\0",
    Op.LINK: structs.LINK_IN.pack(ROOT) + b"new\0",
    Op.OPEN: structs.OPEN_IN.pack(os.O_RDONLY, 0),
    Op.READ: read_in(77, 0, 4096),
    Op.WRITE: structs.WRITE_IN.pack(77, 0, 4, 0, 0, 0, 0) + b"data",
    Op.RELEASE: structs.RELEASE_IN.pack(77, 0, 0, 0),
    Op.FSYNC: structs.FSYNC_IN.pack(77, 0, 0),
    Op.SETXATTR: structs.SETXATTR_IN_EXT.pack(5, 0, 0, 0) + b"user.name\0value",
    Op.GETXATTR: structs.GETXATTR_IN.pack(100, 0) + b"user.name\0",
    Op.LISTXATTR: structs.GETXATTR_IN.pack(100, 0),
    Op.REMOVEXATTR: b"user.name\0",
    Op.READDIR: read_in(77, 0, 4096),
    Op.RELEASEDIR: structs.RELEASE_IN.pack(77, 0, 0, 0),
    Op.FSYNCDIR: structs.FSYNC_IN.pack(77, 0, 0),
    Op.CREATE: structs.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100600, 0, 0) + b"created\0",
    Op.BATCH_FORGET: structs.BATCH_FORGET_IN.pack(2, 0) + structs.FORGET_ONE.pack(5, 1) * 2,
    Op.FALLOCATE: structs.FALLOCATE_IN.pack(77, 0, 100, 0, 0),
    Op.READDIRPLUS: read_in(77, 0, 4096),
    Op.RENAME2: structs.RENAME2_IN.pack(ROOT, 1, 0) + b"name\0new\0",
    Op.LSEEK: structs.LSEEK_IN.pack(77, 0, os.SEEK_DATA, 0),
    Op.COPY_FILE_RANGE: structs.COPY_FILE_RANGE_IN.pack(77, 0, ROOT, 78, 0, 100, 0),
    Op.TMPFILE: structs.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"\0",
}
"""What each request needs behind its header; opcodes that are not here need nothing."""

NAMELESS = {Op.TMPFILE}  # the name is only for show
HANDLES = (
    Op.READ, Op.WRITE, Op.RELEASE, Op.FSYNC, Op.READDIR, Op.RELEASEDIR, Op.FSYNCDIR, Op.FALLOCATE,
    Op.READDIRPLUS, Op.LSEEK, Op.COPY_FILE_RANGE,
)  # fmt: skip
ON_NODES = [op for op in BODIES if op not in HANDLES and op not in NO_REPLY]


def test_the_table_has_every_request_with_a_body() -> None:
    without = {
        Op.GETATTR, Op.READLINK, Op.STATFS, Op.FLUSH, Op.INIT, Op.OPENDIR, Op.ACCESS, Op.INTERRUPT,
        Op.DESTROY, Op.SYNCFS, Op.STATX,
    }  # fmt: skip
    assert set(BODIES) | without == set(Op)


@pytest.mark.parametrize("opcode", BODIES, ids=lambda op: op.name)
def test_truncated_at_every_length(kernel: FakeKernel, opcode: Op) -> None:
    body = BODIES[opcode]
    for length in range(len(body) - (opcode in NAMELESS)):
        # Even FORGET is answered then: the kernel drops a reply that it does not wait for.
        assert kernel.ask(opcode, ROOT, body[:length]).code == errno.EINVAL, f"{opcode.name}[:{length}]"
    kernel.sync()


@pytest.mark.parametrize("opcode", [op for op in BODIES if op not in NO_REPLY], ids=lambda op: op.name)
def test_longer_than_it_should_be(kernel: FakeKernel, opcode: Op) -> None:
    for surplus in (b"\0", b"x" * 100, b"\xff" * 65536):
        kernel.ask(opcode, ROOT, BODIES[opcode] + surplus)
    kernel.sync()


@pytest.mark.parametrize("said", [0, 1, 39, 40, 44, 46, 1000, 2**32 - 1])
def test_a_wrong_length_in_the_header(kernel: FakeKernel, said: int) -> None:
    assert kernel.ask(Op.LOOKUP, ROOT, b"name\0", length=said).code == errno.EIO
    assert kernel.lookup(b"name").nodeid == 0


def test_over_the_largest_request(kernel: FakeKernel) -> None:
    body = structs.WRITE_IN.pack(77, 0, MIB + 8192, 0, 0, 0, 0) + bytes(MIB + 8192)
    assert kernel.ask(Op.WRITE, ROOT, body).code == errno.EIO
    kernel.sync()


@pytest.mark.parametrize("size", [1, 4, 16, 39])
def test_shorter_than_a_header(kernel: FakeKernel, size: int, caplog: pytest.LogCaptureFixture) -> None:
    kernel.connection.sendall(bytes(size))
    kernel.sync()
    assert f"a request has only {size} bytes, which is too short" in caplog.text


@pytest.mark.parametrize("opcode", ON_NODES, ids=lambda op: op.name)
@pytest.mark.parametrize("nodeid", [0, 2, 999, 2**64 - 1])
def test_a_node_that_is_not_known_is_stale(kernel: FakeKernel, opcode: Op, nodeid: int) -> None:
    assert kernel.ask(opcode, nodeid, BODIES[opcode]).code == errno.ESTALE


@pytest.mark.parametrize("opcode", [Op.GETATTR, Op.READLINK, Op.OPENDIR, Op.STATX], ids=lambda op: op.name)
def test_nor_is_one_without_a_body(kernel: FakeKernel, opcode: Op) -> None:
    assert kernel.ask(opcode, 999, bytes(16)).code == errno.ESTALE


@pytest.mark.parametrize("opcode", HANDLES, ids=lambda op: op.name)
def test_a_handle_that_is_not_open_is_ebadf(kernel: FakeKernel, opcode: Op) -> None:
    assert kernel.ask(opcode, ROOT, BODIES[opcode]).code == errno.EBADF
    largest = struct.pack("=Q", 2**64 - 1)
    assert kernel.ask(opcode, ROOT, largest + BODIES[opcode][8:]).code == errno.EBADF


def test_handles_of_files_and_of_directories_are_apart(kernel: FakeKernel) -> None:
    entry, file = kernel.create(b"file")
    directory = kernel.open_directory()
    assert kernel.ask(Op.READ, ROOT, read_in(directory, 0, 100)).code == errno.EBADF
    assert kernel.ask(Op.READDIR, ROOT, read_in(file, 0, 100)).code == errno.EBADF
    release = structs.RELEASE_IN.pack(file, 0, 0, 0)
    assert kernel.ask(Op.RELEASEDIR, ROOT, release).code == errno.EBADF
    kernel.release(file, entry.nodeid)
    assert kernel.ask(Op.RELEASE, entry.nodeid, release).code == errno.EBADF  # twice


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_offsets_over_63_bits(kernel: FakeKernel, offset: int) -> None:
    entry, fh = kernel.create(b"file")
    directory = kernel.open_directory()
    bodies = {
        Op.READ: read_in(fh, offset, 100),
        Op.WRITE: structs.WRITE_IN.pack(fh, offset, 4, 0, 0, 0, 0) + b"data",
        Op.READDIR: read_in(directory, offset, 100),
        Op.FALLOCATE: structs.FALLOCATE_IN.pack(fh, offset, 100, 0, 0),
        Op.LSEEK: structs.LSEEK_IN.pack(fh, offset, os.SEEK_DATA, 0),
        Op.COPY_FILE_RANGE: structs.COPY_FILE_RANGE_IN.pack(fh, 0, entry.nodeid, fh, offset, 100, 0),
        Op.SETATTR: setattr_in(SetAttr.SIZE | SetAttr.FH, fh, offset),
    }
    for opcode, body in bodies.items():
        kernel.ask(opcode, entry.nodeid, body)
    assert kernel.write(fh, entry.nodeid, 0, b"still good") == 10
    assert kernel.read(fh, entry.nodeid, 0, 100) == b"still good"
    kernel.release(fh, entry.nodeid)


FUZZED = [op for op in Op if op not in (Op.SYNCFS, Op.INIT, Op.DESTROY)]
few = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Fuzzer:
    """Sends what comes, and then a request that must be answered right."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._entry, self._fh = kernel.create(b"witness")
        kernel.write(self._fh, self._entry.nodeid, 0, b"content")

    def send(self, raw: bytes) -> None:
        self._kernel.connection.sendall(raw)
        self.check()

    def check(self) -> None:
        """All replies up to that of a fresh STATFS; what came before may have one or none."""
        kernel = self._kernel
        wanted = kernel.send(Op.STATFS)
        while True:
            unique, reply = kernel.receive()
            if unique == wanted and len(reply.payload) == structs.STATFS_OUT.size:
                return


def test_any_body_behind_a_good_header(kernel: FakeKernel) -> None:
    fuzzer = Fuzzer(kernel)

    @few
    @given(
        st.sampled_from(FUZZED),
        st.sampled_from([ROOT, 2, 3, 0, 2**64 - 1]),
        st.one_of(st.binary(max_size=120), st.sampled_from(list(BODIES.values()))),
        st.binary(max_size=30),
    )
    def run(opcode: Op, nodeid: int, body: bytes, tail: bytes) -> None:
        kernel.send(opcode, nodeid, body + tail)
        fuzzer.check()

    run()


def test_any_bytes_at_all(kernel: FakeKernel) -> None:
    fuzzer = Fuzzer(kernel)
    without_sync = st.binary(min_size=1, max_size=300).filter(lambda raw: raw[4:8] != struct.pack("=I", 50))

    @few
    @given(without_sync)
    def run(raw: bytes) -> None:
        fuzzer.send(raw)

    run()


@pytest.mark.parametrize("opcode", [op for op in FUZZED if op in BODIES], ids=lambda op: op.name)
def test_one_flipped_byte(kernel: FakeKernel, opcode: Op) -> None:
    fuzzer = Fuzzer(kernel)
    body = BODIES[opcode]
    for place in range(len(body)):
        for change in (0x01, 0x80, 0xFF):
            flipped = bytearray(body)
            flipped[place] ^= change
            kernel.send(opcode, ROOT, bytes(flipped))
    fuzzer.check()


def test_a_link_to_the_root_is_refused(kernel: FakeKernel) -> None:
    """Linux refuses it itself."""
    assert kernel.ask(Op.LINK, ROOT, structs.LINK_IN.pack(ROOT) + b"new\0").code == errno.EPERM
