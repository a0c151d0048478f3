"""The other end of the native engine's device, played by a test: a socket that keeps message boundaries."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple, cast

from cryptfs.mount.native import structs
from cryptfs.mount.native.connection import Connection
from cryptfs.mount.native.engine import Requests
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import MountOptions, parse_options
from cryptfs.vfs.vault import Vault
from tests.support import BareVault

SECONDS = 10.0  # that a reply may take; only a hang takes longer
ROOT = structs.ROOT_ID
_BUFFER = (1 << 20) + 8192
_SO_SNDBUFFORCE = 32  # socket(7); for root, as the mounts of these tests


def fake_stat(**fields: int) -> os.stat_result:
    """A backing stat with the fields that matter; the rest is zero."""
    names = (
        "st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize",
        "st_rdev", "st_atime_ns", "st_mtime_ns", "st_ctime_ns",
    )  # fmt: skip
    return cast(os.stat_result, SimpleNamespace(**(dict.fromkeys(names, 0) | fields)))


class Reply(NamedTuple):
    """One answer. code: 0 or an errno."""

    code: int
    payload: bytes


class Entry(NamedTuple):
    """The head of a fuse_entry_out, and what tests ask of its fuse_attr."""

    nodeid: int
    generation: int
    inode: int
    size: int
    mode: int
    nlink: int
    rdev: int


def unpack_entry(payload: bytes) -> Entry:
    """From LOOKUP, CREATE and the like."""
    nodeid, generation, *_ = structs.ENTRY_OUT.unpack_from(payload)
    attributes = structs.ATTR.unpack_from(payload, structs.ENTRY_OUT.size)
    inode, size, *_ = attributes
    return Entry(nodeid, generation, inode, size, attributes[9], attributes[10], attributes[13])


def plus_entries(payload: bytes) -> list[tuple[bytes, int]]:
    """(name, nodeid) of a READDIRPLUS reply."""
    found = []
    at = 0
    while at < len(payload):
        nodeid = structs.ENTRY_OUT.unpack_from(payload, at)[0]
        at += structs.ENTRY_OUT.size + structs.ATTR.size
        _, _, size, _ = structs.DIRENT.unpack_from(payload, at)
        found.append((payload[at + structs.DIRENT.size : at + structs.DIRENT.size + size], nodeid))
        at += structs.DIRENT.size + (size + 7) // 8 * 8
    return found


@dataclass(slots=True)
class FakeKernel:
    """Sends requests as the kernel does, and waits for their replies.

    Args: requests: of the engine, to look into.   vault: behind it.
    """

    connection: socket.socket
    requests: Requests
    vault: BareVault
    session: Connection
    notifications: list[tuple[int, bytes]] = field(default_factory=list)
    thread: int = 1  # who asks
    _unique: int = 1

    def send(self, opcode: int, nodeid: int = ROOT, body: bytes = b"", *, length: int | None = None) -> int:
        """A request with a header. length: said in it, when it is to be wrong. Returns its number."""
        self._unique += 2
        size = structs.IN_HEADER.size + len(body) if length is None else length
        header = structs.IN_HEADER.pack(
            size, opcode, self._unique, nodeid, os.getuid(), os.getgid(), self.thread, 0, 0
        )
        self.connection.sendall(header + body)
        return self._unique

    def receive(self) -> tuple[int, Reply]:
        """The next reply and the number of its request. Raises: TimeoutError."""
        while True:
            raw = self.connection.recv(_BUFFER)
            size, code, unique = structs.OUT_HEADER.unpack_from(raw)
            assert size == len(raw), "a reply says another length than it has"
            payload = raw[structs.OUT_HEADER.size :]
            if unique:
                return unique, Reply(-code, payload)
            self.notifications.append((code, payload))

    def ask(self, opcode: int, nodeid: int = ROOT, body: bytes = b"", *, length: int | None = None) -> Reply:
        """One request and its reply."""
        unique = self.send(opcode, nodeid, body, length=length)
        answered, reply = self.receive()
        assert answered == unique, "the reply belongs to another request"
        return reply

    def good(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> bytes:
        """One request that must succeed; its payload."""
        reply = self.ask(opcode, nodeid, body)
        assert reply.code == 0, f"{Op(opcode).name}: {errno.errorcode.get(reply.code, reply.code)}"
        return reply.payload

    # ---- shorthands

    def lookup(self, name: bytes, parent: int = ROOT) -> Entry:
        """LOOKUP; nodeid 0 where nothing stands."""
        return unpack_entry(self.good(Op.LOOKUP, parent, name + b"\0"))

    def forget(self, nodeid: int, lookups: int = 1) -> None:
        """FORGET, which has no reply, and a request behind it that has one."""
        self.send(Op.FORGET, nodeid, structs.FORGET_IN.pack(lookups))
        self.sync()

    def sync(self) -> None:
        """What was sent before has been served (by one worker) when this returns."""
        assert self.good(Op.STATFS)

    def create(self, name: bytes, parent: int = ROOT, mode: int = 0o100644) -> tuple[Entry, int]:
        """CREATE: the entry and the handle."""
        body = structs.CREATE_IN.pack(os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, 0, 0) + name + b"\0"
        payload = self.good(Op.CREATE, parent, body)
        (fh, _, _) = structs.OPEN_OUT.unpack_from(payload, structs.ENTRY_OUT.size + structs.ATTR.size)
        return unpack_entry(payload), fh

    def mkdir(self, name: bytes, parent: int = ROOT) -> Entry:
        """MKDIR."""
        return unpack_entry(self.good(Op.MKDIR, parent, structs.MKDIR_IN.pack(0o755, 0) + name + b"\0"))

    def open_directory(self, nodeid: int = ROOT) -> int:
        """OPENDIR: the handle."""
        fh: int = structs.OPEN_OUT.unpack(self.good(Op.OPENDIR, nodeid, structs.OPEN_IN.pack(0, 0)))[0]
        return fh

    def write(self, fh: int, nodeid: int, offset: int, data: bytes) -> int:
        """WRITE: how much was taken."""
        body = structs.WRITE_IN.pack(fh, offset, len(data), 0, 0, 0, 0) + data
        size: int = structs.WRITE_OUT.unpack(self.good(Op.WRITE, nodeid, body))[0]
        return size

    def read(self, fh: int, nodeid: int, offset: int, size: int) -> bytes:
        """READ."""
        return self.good(Op.READ, nodeid, read_in(fh, offset, size))

    def release(self, fh: int, nodeid: int) -> None:
        """RELEASE."""
        self.good(Op.RELEASE, nodeid, structs.RELEASE_IN.pack(fh, 0, 0, 0))


def read_in(fh: int, offset: int, size: int) -> bytes:
    """fuse_read_in, also for READDIR and READDIRPLUS."""
    return structs.READ_IN.pack(fh, offset, size, 0, 0, 0, 0)


def init_request(minor: int = 45, flags: int = 2**64 - 1, major: int = 7) -> bytes:
    """INIT as kernels since 7.36 send it."""
    body = struct.pack("=IIIII", major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32) + bytes(44)
    return structs.IN_HEADER.pack(structs.IN_HEADER.size + len(body), Op.INIT, 1, 0, 0, 0, 0, 0, 0) + body


def make_requests(vault: BareVault, options: MountOptions) -> Requests:
    """Requests on a bare tree: they need no more of a Vault than its tree."""
    return Requests(cast(Vault, SimpleNamespace(tree=vault.tree)), options)


@contextmanager
def kernel_for(
    vault: BareVault, options: str = "max_threads=1", *, blocking: bool = True
) -> Iterator[FakeKernel]:
    """A session that has been negotiated and serves; it must end in order when the socket is shut.

    Args: blocking: whether reads of its end wait, which those of a real device do not.
    """
    parsed = parse_options(options)
    requests = make_requests(vault, parsed)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ready = threading.Event()
    with ours, theirs:
        ours.settimeout(SECONDS)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 << 20)  # a message must fit
        session = Connection(theirs.fileno(), requests, parsed, ready.set)
        ours.sendall(init_request(flags=2**64 - 1 & ~structs.Cap.EXPORT_SUPPORT))  # counted numbers
        session.negotiate()
        theirs.setblocking(blocking)
        ours.recv(_BUFFER)
        server = threading.Thread(target=session.serve, name="session")
        server.start()
        try:
            assert ready.wait(SECONDS)
            yield FakeKernel(ours, requests, vault, session)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            server.join(SECONDS)
            requests.close()
            assert not server.is_alive(), "the session did not end when its device did"
