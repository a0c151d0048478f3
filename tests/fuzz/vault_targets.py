"""Fuzzing with a vault on disk: planted files, sidecars, directory entries, and requests of the kernel."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from cryptfs.core.format.header import NO_FLAGS, HeaderFlag
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.mount.native import structs
from cryptfs.mount.native.engine import Requests
from cryptfs.mount.native.request import Request, Work
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import parse_options
from cryptfs.storage.vaultdir import LOCK_NAME, _read_holder
from cryptfs.vfs.vault import Vault
from tests.fuzz.targets import Target
from tests.support import KIB, BareVault, pattern

CHUNK = 4 * KIB
SIZE = 2 * CHUNK + 500
NAME = b"victim"
LONG = b"l" * 200


def _scratch() -> tuple[Path, BareVault, Callable[[], None]]:
    # A sidecar or file that is left out says so each time; that is not what is looked for here.
    logging.getLogger("cryptfs").setLevel(logging.CRITICAL)
    base = Path(tempfile.mkdtemp(prefix="cryptfs-fuzz-"))
    vault = BareVault(base / "vault")

    def close() -> None:
        with contextlib.suppress(OSError):
            vault.close()
        shutil.rmtree(base)
        logging.getLogger("cryptfs").setLevel(logging.NOTSET)

    return base, vault, close


def file_target() -> Target:
    """Any backing file: what can be read of it is what was written, in its place."""
    _, vault, close = _scratch()
    content = pattern(SIZE, 1)
    vault.put(NAME, content)
    path = vault.backing(NAME)
    clean = path.read_bytes()
    header = vault.header(NAME)
    samples = [clean]
    for flags in (NO_FLAGS, HeaderFlag.SPARSE, HeaderFlag.VOID, HeaderFlag.SPARSE | HeaderFlag.CLEAN):
        changed = header.changed(size_min=CHUNK + 7, flags=flags)
        samples.append(vault.context.pack_header(changed) + clean[HEADER_SIZE:])
    holes = bytearray(samples[-1])
    holes[HEADER_SIZE : HEADER_SIZE + 200] = bytes(200)
    samples.append(bytes(holes))

    def run(data: bytes) -> None:
        path.write_bytes(data)
        for index in range(3):
            try:
                with vault.opened(NAME, os.O_RDONLY) as file:
                    got = file.read(index * CHUNK, CHUNK)
            except IntegrityError:
                continue
            assert content[index * CHUNK :].startswith(got) or not any(got)
            if any(got):
                assert len(got) in (CHUNK, SIZE % CHUNK, 7)
        with contextlib.suppress(IntegrityError), vault.opened(NAME, os.O_RDWR) as file:
            file.write(CHUNK + 3, b"written")
            assert file.read(CHUNK + 3, 7) == b"written"
        with vault.opened(NAME, os.O_WRONLY | os.O_TRUNC) as file:
            file.write(0, b"new")
        assert vault.get(NAME) == b"new"

    return Target("file", run, samples, close)


def entry_target() -> Target:
    """Any name of an entry, and any sidecar beside it: a listing that shows no name twice and no stranger."""
    _, vault, close = _scratch()
    vault.put(b"bystander", b"fine")
    vault.put(LONG, b"long")
    entry, sidecar = vault.entry(LONG), vault.entry(LONG) + SIDECAR_SUFFIX
    cipher_name = (vault.vault_dir / sidecar).read_bytes()
    known = [os.fsencode(vault.entry(b"bystander")), os.fsencode(entry)]

    def run(data: bytes) -> None:
        planted = data[:255].replace(b"/", b"_").replace(b"\0", b"_") or b"x"
        if planted in (b".", b"..", *known) or planted.startswith(b"cryptfs.d"):
            planted = b"x" + planted[:254]
        place = vault.vault_dir / os.fsdecode(planted)
        replaced = place.read_bytes() if place.exists() else None
        (vault.vault_dir / sidecar).write_bytes(data)
        try:
            place.write_bytes(data)
            names = vault.names()
            assert b"bystander" in names and len(set(names)) == len(names)
            assert set(names) <= {b"bystander", LONG}
            assert vault.get(LONG) == b"long"
        finally:
            place.unlink()
            if replaced is not None:
                place.write_bytes(replaced)
            (vault.vault_dir / sidecar).write_bytes(cipher_name)

    return Target("entry", run, [cipher_name, b"cryptfs.long.x", known[0], known[1] + b".name.name"], close)


def lock_target() -> Target:
    """Any `cryptfs.lock`: who holds it is a message only, and fit for one."""
    base, _, close = _scratch()
    path = base / LOCK_NAME

    def run(data: bytes) -> None:
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            holder = _read_holder(fd)
        finally:
            os.close(fd)
        assert isinstance(holder.pid, int) and holder.describe().isprintable()

    return Target("lock", run, [b'{"pid": 12, "mountpoint": "/mnt"}', b"[]", b"{}", b"[" * 5000], close)


OPCODES: list[Op] = [op for op in Op if op not in (Op.SYNCFS, Op.INIT, Op.DESTROY)]
FORESEEN = (OSError, struct.error, CryptfsError, ValueError, OverflowError)


class _Channel:
    """In place of a session: there is no kernel, and what a handler defers is done at once."""

    def notify(self, code: int, payload: bytes) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def defer(self, unique: int, work: Work, *, in_turn: bool) -> None:
        work()


def request_target() -> Target:
    """Any request: the first byte chooses what is asked, the second of which node, the rest is its body."""
    _, vault, close = _scratch()
    vault.put(b"file", pattern(10_000))
    vault.tree.make_directory(vault.root, b"directory", 0o755)
    requests = Requests(cast(Vault, vault), parse_options("allow_other"))
    request = Request(memoryview(bytearray((1 << 20) + 4096)), lambda: None, _Channel())
    samples = list(_request_samples())

    def run(data: bytes) -> None:
        if len(data) < 2:
            return
        opcode = OPCODES[data[0] % len(OPCODES)]
        handler = requests.handlers.get(opcode)
        if handler is None or (opcode == Op.FALLOCATE and _fills_the_disk(data[2:])):
            return
        request.nodeid = (structs.ROOT_ID, 2, 3, 0, 2**64 - 1)[data[1] % 5]
        request.body = memoryview(data)[2:]
        request.uid, request.gid = os.getuid(), os.getgid()
        try:
            reply = handler(request)
        except FORESEEN:
            return
        assert isinstance(reply, int | None) or len(reply) <= len(request.room)

    def close_all() -> None:
        requests.close()
        close()

    return Target("request", run, samples, close_all)


def _fills_the_disk(body: bytes) -> bool:
    """Whether a FALLOCATE takes more than 1 GiB, but no more than some filesystem tries to give."""
    if len(body) < structs.FALLOCATE_IN.size:
        return False
    _, offset, length, *_ = structs.FALLOCATE_IN.unpack_from(body)
    end: int = offset + length
    return 1 << 30 < end < 1 << 63


def _request_samples() -> Iterator[bytes]:
    bodies = {
        Op.LOOKUP: b"file\0",
        Op.MKDIR: structs.MKDIR_IN.pack(0o700, 0) + b"directory\0",
        Op.RENAME2: structs.RENAME2_IN.pack(structs.ROOT_ID, 1, 0) + b"file\0new\0",
        Op.OPEN: structs.OPEN_IN.pack(os.O_RDWR, 0),
        Op.CREATE: structs.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o100600, 0, 0) + b"created\0",
        Op.WRITE: structs.WRITE_IN.pack(1, 0, 4, 0, 0, 0, 0) + b"data",
        Op.SETXATTR: structs.SETXATTR_IN_EXT.pack(5, 0, 0, 0) + b"user.name\0value",
        Op.GETXATTR: structs.GETXATTR_IN.pack(100, 0) + b"user.name\0",
        Op.LINK: structs.LINK_IN.pack(structs.ROOT_ID) + b"link\0",
        Op.SYMLINK: b"name\0target\0",
        Op.MKNOD: structs.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0, 0) + b"node\0",
        Op.UNLINK: b"file\0",
        Op.GETATTR: bytes(16),
        Op.FALLOCATE: structs.FALLOCATE_IN.pack(1, 0, 20_000, 0, 0),
    }
    for opcode, body in bodies.items():
        yield bytes((OPCODES.index(opcode), 0)) + body


VAULT_TARGETS: dict[str, Callable[[], Target]] = {
    "file": file_target,
    "entry": entry_target,
    "lock": lock_target,
    "request": request_target,
}
